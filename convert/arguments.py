"""Arguments of networks' constructors and flags of scripts, as published code spells them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from samplers import checks

REQUIRED = object()
"""Instead of a default: the argument must be given."""


def complete(given: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
  """Returns all arguments: those given over the defaults.

  Args:
    given: name -> value.
    known: name -> default, or REQUIRED.

  Raises:
    ValueError: if one is unknown, missing, or no switch where the default is one.
  """
  for name in given:
    if name not in known:
      raise ValueError(f'convert: {checks.unknown("setting of the architecture", name, known)}')
  missing = [name for name, default in known.items() if default is REQUIRED and name not in given]
  if missing:
    raise ValueError(f'convert: architecture must have {", ".join(missing)}, got none; add them')
  for name, value in given.items():
    if isinstance(known[name], bool):
      checks.check_switch('convert', name, value)
  return {**known, **given}


def numbers(name: str, values: Any) -> list[int | float]:
  """Returns a list of numbers above 0, also of a text such as '1,2,3'.

  Raises:
    ValueError: if it is none.
  """
  if isinstance(values, str):
    values = [value.strip() for value in values.split(',')] if values else []
  try:
    result = [float(value) for value in values]
  except (TypeError, ValueError):
    result = [np.nan]
  if not all(0 < number < np.inf for number in result):
    raise ValueError(f'convert: {name} of the architecture must be numbers above 0, got {values!r}'
                     "; such as '32,16,8'")
  return [int(number) if number == int(number) else number for number in result]


def factors(side: int, values: Any) -> list[int]:
  """Returns sides of the attention in pixels as factors of the whole side, or back.

  Raises:
    ValueError: if the values are no list of numbers above 0.
  """
  return [side // max(int(value), 1) for value in numbers('attention_resolutions', values)]


def whole(given: Mapping[str, Any], name: str, least: int = 1, most: int = 2**20) -> int:
  """Returns an argument that is an integer within a range.

  Raises:
    ValueError: if it is not.
  """
  value = given[name]
  if not checks.is_integer(value) or not least <= value <= most:
    raise ValueError(f'convert: {name} of the architecture must be an integer from {least} to '
                     f'{most}, got {value!r}; take the settings that the network was trained with')
  return value
