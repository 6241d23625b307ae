"""Files of noise levels: what --mode=search writes, and what `explicit` reads.

A grid file is a JSON object with the levels and where they come from. Two exports of it are plain
lists for other programs. All three, and any text of numbers, can be read back.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine import files, identity as identity_lib
from samplers import checks

FORMAT = 'fewstep grid 1'

EXPORTS = 'diffusers', 'comfyui'
"""Programs that there is an export for: a suffix of the file's name."""

_MOST = 2**20  # Bytes; more is no grid.


def name(num_steps: int, program: str | None = None) -> str:
  """Returns the name of the grid of so many steps, or of its export for a program."""
  return f'grid-{num_steps}.{program}.txt' if program else f'grid-{num_steps}.json'


def write(folder: pathlib.Path, num_steps: int, sigmas: Sequence[float],
          about: Mapping[str, Any]) -> list[str]:
  """Writes a grid file and its exports, each whole or not at all.

  Args:
    folder: that is there.
    num_steps: for the names.
    sigmas: noise levels.
    about: where they come from, plain values.

  Returns:
    Names of the files.

  Raises:
    OSError: if one cannot be written.
  """
  levels = [float(level) for level in sigmas]
  identity_lib.write_json(folder / name(num_steps), {
      'format': FORMAT, 'sigmas': levels, **about})
  for program in EXPORTS:
    with files.replacing(folder / name(num_steps, program)) as file:
      file.write(export(levels, program).encode())
  return [name(num_steps), *(name(num_steps, program) for program in EXPORTS)]


def export(sigmas: Sequence[float], program: str) -> str:
  """Returns levels as the text that a program takes.

  Both programs sample down to level 0, in as many evaluations as there are intervals: the last
  level is replaced by 0, as in their own published grids.

  diffusers: the list for `sigmas=` of a pipeline. The one scheduler of noise levels that takes it,
  EulerDiscreteScheduler, adds nothing to it; n + 1 levels are n steps.
  ComfyUI: the text for the node ManualSigmas, which takes every number in it, and would take
  '1e-05' for two: numbers have no exponent.

  Args:
    sigmas: n + 1 noise levels.
    program: one of EXPORTS.

  Returns:
    One line.
  """
  numbers = [np.format_float_positional(level, trim='0') for level in [*sigmas[:-1], 0.0]]
  line = ', '.join(numbers)
  return f'[{line}]\n' if program == 'diffusers' else f'{line}\n'


def read(path: str | pathlib.Path, field: str = 'config.schedule.path') -> np.ndarray:
  """Reads the levels of a file.

  Args:
    path: a grid file, a JSON list of numbers, or numbers separated by commas, spaces or lines,
      perhaps in brackets.
    field: of the config, for errors.

  Returns:
    np.float64 (n + 1,), decreasing; only the last may be 0.

  Raises:
    ValueError: if there is no such file, it holds anything else, fewer than two levels, or levels
      that do not decrease.
  """
  path = pathlib.Path(path)
  levels = _levels(field, path, _text(field, path))
  try:
    return checks.check_grid(field, levels)
  except ValueError as error:
    raise ValueError(f'{error}; see {path}') from None


def _text(field, path):
  try:
    if path.stat().st_size > _MOST:
      raise ValueError(f'{field}: must be a file of at most {_MOST} bytes, got {path}; a grid is a '
                       'short list of noise levels')
    return path.read_text()
  except OSError as error:
    raise ValueError(f'{field}: must be a file that can be read, got {path} ({error.strerror}); '
                     '--mode=search writes one') from None
  except UnicodeDecodeError:
    raise _no_grid(field, path, 'bytes that are no text') from None


def _levels(field, path, text):
  """The numbers of a text, of any of the forms."""
  try:
    content = json.loads(text)
  except (ValueError, RecursionError):
    content = re.sub(r'^\s*[\[({](.*)[\])}]\s*$', r'\1', text, flags=re.DOTALL)
    content = [part for part in re.split(r'[\s,;]+', content) if part]
  if isinstance(content, dict):
    content = content.get('sigmas')
    if not isinstance(content, list):
      raise _no_grid(field, path, "an object without a list 'sigmas'")
  if not isinstance(content, list):
    content = [content]  # One number is valid JSON: too few levels, as is told later.
  for value in content:
    try:
      number = float('nan' if isinstance(value, bool) else value)
    except (TypeError, ValueError):
      number = float('nan')
    if not math.isfinite(number):
      raise _no_grid(field, path, f'{str(value)[:40]!r}')
  return np.array([float(value) for value in content], np.float64)


def _no_grid(field, path, got):
  return ValueError(f'{field}: must be a file of noise levels, a grid file or a list of numbers, '
                    f'got {got} in {path}; such as 80, 5, 0.5, 0')
