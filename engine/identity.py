"""What a workdir belongs to: run.json, written before any result, and compared by later runs."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from engine import files

NAME = 'run.json'

_SHOWN = 3  # Differences in an error.


def read(folder: pathlib.Path) -> dict[str, Any] | None:
  """Returns the identity of the run in a folder, None if there is none.

  Args:
    folder: a workdir, there or not.

  Returns:
    Nested dicts of plain values.

  Raises:
    ValueError: if the file is not one of ours.
  """
  return read_json(folder / NAME)


def check(folder: pathlib.Path, now: dict[str, Any]) -> bool:
  """Refuses a folder that belongs to another run; writes nothing.

  Args:
    folder: a workdir, there or not.
    now: identity of the run to start, nested dicts of plain values.

  Returns:
    Whether the folder belongs to this run already.

  Raises:
    ValueError: if it belongs to another one; it names what differs, with both values.
  """
  stored = read(folder)
  if stored is None:
    return False
  different = _differences(_flat(stored), _flat(now))
  if different:
    shown = ', '.join(different[:_SHOWN])
    more = f' and {len(different) - _SHOWN} more' if len(different) > _SHOWN else ''
    raise ValueError(f'workdir: must be empty or hold a run of the same config, got {folder} with '
                     f'{shown}{more}; choose another --workdir or delete it')
  return True


def check_product(folder: pathlib.Path, now: dict[str, Any], product: str) -> None:
  """As `check`, and refuses a folder that holds what the run makes, but not whose it is.

  Args:
    folder: a workdir, there or not.
    now: identity of the run to start.
    product: name of what the run leaves in the folder, written last.

  Raises:
    ValueError: as `check`, or if the product is there without a run.json.
  """
  if not check(folder, now) and (folder / product).exists():
    raise ValueError(f'workdir: must be empty or hold a run of the same config, got '
                     f'{folder / product} without {NAME}; choose another --workdir')


def write(folder: pathlib.Path, now: dict[str, Any]) -> None:
  """Writes run.json, whole or not at all.

  Args:
    folder: a workdir that is there.
    now: identity of the run.

  Raises:
    OSError: if it cannot be written.
  """
  write_json(folder / NAME, now)


def claim(folder: pathlib.Path, now: dict[str, Any]) -> None:
  """Writes run.json unless it is there: as `write`, for a folder that `check` has seen."""
  if not (folder / NAME).exists():
    write(folder, now)


def read_json(file: pathlib.Path) -> dict[str, Any] | None:
  """Returns the content of a JSON file of ours, None if it is not there.

  Args:
    file: its path.

  Returns:
    The object in it.

  Raises:
    ValueError: if it holds anything else.
  """
  try:
    content = json.loads(file.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except ValueError:
    content = None
  if not isinstance(content, dict):
    raise ValueError(f'workdir: {file} must be what a run wrote, got something else; choose '
                     'another --workdir or delete it')
  return content


def read_result(file: pathlib.Path, fields: Sequence[str]) -> dict[str, Any] | None:
  """Returns a finished result of ours, None if it is not there.

  Args:
    file: its path.
    fields: names that it must have.

  Returns:
    The object in it.

  Raises:
    OSError: if it is damaged or holds anything else; unlike a folder of another run, which
      `read_json` refuses, it can be made again.
  """
  try:
    content = read_json(file)
  except ValueError:
    content = {}
  if content is not None and not set(fields) <= content.keys():
    raise OSError(f'workdir: {file} must be what a run wrote, got something else; delete it and '
                  'start the same command again')
  return content


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
  """Writes a JSON object, a line for each entry, whole or not at all.

  Args:
    file: its path.
    content: plain values.

  Raises:
    OSError: if it cannot be written.
  """
  lines = [f'{json.dumps(name)}: {json.dumps(value)}' for name, value in content.items()]
  with files.replacing(file) as opened:
    opened.write(('{\n' + ',\n'.join(lines) + '\n}\n').encode())


def _flat(tree: dict[str, Any], above: str = '') -> dict[str, Any]:
  """Nested dicts as {'solver.name': 'unipc'}; values as JSON gives them back."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, dict):
      flat |= _flat(value, f'{above}{name}.')
    else:
      flat[f'{above}{name}'] = json.loads(json.dumps(value))
  return flat


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """Fields that differ, with both values; where a name differs, its options go without saying."""
  names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
  if names == ['model.name']:  # The same parameters from another place.
    return []
  if 'mode' in names:
    names = ['mode']
  renamed = tuple(name.removesuffix('name') for name in names if name.endswith('.name'))
  return [f'{name} {_short(before.get(name))} (now {_short(now.get(name))})' for name in names
          if name.endswith('.name') or not name.startswith(renamed)]


def _short(value: Any) -> str:
  """A value in an error; hashes and long lists are cut."""
  text = repr(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
