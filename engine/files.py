"""Files that are whole or not there.

They are under another name until they are complete, so that a killed process leaves whole files and
perhaps one under a temporary name, which the next run removes. Against a loss of power there is no
promise: nothing waits for the disk.
"""

import collections
import contextlib
import os
import pathlib
import secrets
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any, BinaryIO

import numpy as np

_SUFFIX = '.partial'
_WRITERS = 4  # Threads; compression lets go of Python's lock.
_WAITING = 256  # Writes that may wait before the next one has to; each holds an image.


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Opens a file for writing under a temporary name; it takes its own name when complete.

  Args:
    path: the file, whose folder exists; replaced if it is there.

  Yields:
    The open binary file. If the body raises, nothing is left and an older file stays as it was.

  Raises:
    OSError: if it cannot be written, with the file and the remedy.
  """
  # Other processes may be writing the same file: each has a name of its own.
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}{_SUFFIX}')
  try:
    with open(temporary, 'wb') as file:
      yield file
    os.replace(temporary, path)
  except BaseException as error:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)
    if isinstance(error, OSError):
      raise OSError(f'files: {path} must be writable, got {error.strerror or error}; make room or '
                    'choose another --workdir; finished files stay, and the same command goes on '
                    'from there') from error
    raise


def read_arrays(job: str, path: pathlib.Path, names: Sequence[str] = (),
                more: bool = False) -> dict[str, np.ndarray]:
  """Returns arrays of an .npz file that an earlier run wrote.

  Args:
    job: who asks, for the error.
    path: the file.
    names: of arrays that it must hold.
    more: whether all others are wanted too.

  Returns:
    The arrays by name.

  Raises:
    OSError: if the file is damaged, or no such file.
  """
  try:
    with path.open('rb') as file, np.load(file, allow_pickle=False) as arrays:
      return {name: arrays[name] for name in dict.fromkeys([*names, *(arrays if more else ())])}
  except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile,
          zlib.error) as error:  # What NumPy and zipfile raise for bytes that are no .npz.
    raise OSError(f'{job}: {path} must be what a run wrote, got something else; delete it and '
                  'start the same command again') from error


def remove_partial(folder: pathlib.Path) -> None:
  """Removes temporary files and folders that a killed process left in a folder, if it is there."""
  for path in folder.glob(f'.*{_SUFFIX}'):
    if path.is_dir():
      shutil.rmtree(path, ignore_errors=True)
    else:
      path.unlink(missing_ok=True)


@contextlib.contextmanager
def in_background() -> Iterator[Callable[..., None]]:
  """Lets threads write files beside the work of the caller.

  Yields:
    submit(function, *arguments), which waits if too much is waiting. When the body ends, all is
    written; if it raises, writes that have not begun are dropped, the others are completed.

  Raises:
    Exception: what a function raised, from a later `submit` or at the end.
  """
  waiting: collections.deque[futures.Future[Any]] = collections.deque()
  with futures.ThreadPoolExecutor(_WRITERS) as threads:
    def submit(function, *arguments):
      while waiting and (waiting[0].done() or len(waiting) >= _WAITING):
        waiting.popleft().result()
      waiting.append(threads.submit(function, *arguments))
    try:
      yield submit
      for future in waiting:
        future.result()
    finally:
      threads.shutdown(cancel_futures=True)


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
    probe = path / f'.probe{_SUFFIX}'
    probe.touch()
    probe.unlink()
  except FileExistsError:
    raise ValueError(f'workdir: must be a folder, got the file {path}; choose another one with '
                     '--workdir') from None
  except OSError as error:
    raise ValueError(f'workdir: must be a folder that can be written to, got {path} '
                     f'({error.strerror}); choose another one with --workdir') from None
  return path
