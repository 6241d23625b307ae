"""Files that are whole or not there."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file for writing under a temporary name; it takes its own name when complete.

  Args:
    path: the file, whose folder exists; replaced if it is there.

  Yields:
    The open binary file. If the body raises, nothing is left and an older file stays as it was.
  """
  temporary = path.with_name(f'.{path.name}.partial')
  try:
    with open(temporary, 'wb') as file:
      yield file
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def check_folder(name: str | pathlib.Path) -> pathlib.Path:
  """Makes a folder, with those above it, and finds out whether files can be written there.

  Args:
    name: the folder, there or not.

  Returns:
    Its path.

  Raises:
    ValueError: if there is no name, or the folder cannot be made or written to.
  """
  if not str(name):
    raise ValueError("workdir: must name a folder, got ''; '.' is the current one")
  path = pathlib.Path(name)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / '.probe.partial'
    probe.touch()
    probe.unlink()
  except FileExistsError:
    raise ValueError(f'workdir: must be a folder, got the file {path}; choose another one with '
                     '--workdir') from None
  except OSError as error:
    raise ValueError(f'workdir: must be a folder that can be written to, got {path} '
                     f'({error.strerror}); choose another one with --workdir') from None
  return path
