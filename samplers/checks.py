"""Checks of what users give: one line with who asks, the rule, the value and the remedy."""

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

HIGHEST_SIGMA = 1e18
"""Highest noise level of a grid: float32 holds its square, and sums of many."""


def is_zero(level: Any) -> bool:
  """Says whether a level is the number 0; a traced level never is."""
  return isinstance(level, float) and level == 0


def is_integer(value: Any) -> bool:
  """Says whether a value is an integer of Python or NumPy; True and False are not."""
  return isinstance(value, int | np.integer) and not isinstance(value, bool)


def to_number(value: Any) -> float:
  """Returns a value as a float, NaN where it is none; a text or a truth value is none."""
  try:
    return float('nan' if isinstance(value, str | bool) else value)
  except (TypeError, ValueError):
    return float('nan')


def to_array(name: str, option: str, value: Any) -> np.ndarray:
  """Returns a list of numbers as float64, or raises ValueError in the name of who asks."""
  try:
    if np.asarray(value).dtype == bool:
      raise TypeError('A truth value is no number.')
    return np.asarray(value, np.float64)
  except (TypeError, ValueError):
    raise ValueError(f'{name}: {option} must be a list of numbers, got {value!r}; give a list, '
                     'tuple or array') from None


def check_grid(name: str, sigmas: Sequence[float] | np.ndarray,
               rising: bool = False) -> np.ndarray:
  """Returns a grid as float64 after checking that it decreases to a level >= 0.

  A level may be repeated, as rounding to the levels of a network does.

  Args:
    name: who asks, for the error.
    sigmas: noise levels.
    rising: whether a grid that increases from a level > 0 will do too.

  Returns:
    np.float64 of shape (n + 1,).

  Raises:
    ValueError: if there are fewer than two levels, one is not a finite number or below 0, the first
      is 0, or the next is higher.
  """
  levels = to_array(name, 'sigmas', sigmas)
  if levels.ndim != 1 or len(levels) < 2:
    raise ValueError(f'{name}: sigmas must be a list of two or more levels, got shape '
                     f'{levels.shape}; num_steps = 1 makes two')
  bad = np.flatnonzero(~(levels <= HIGHEST_SIGMA))
  if bad.size:
    raise ValueError(f'{name}: sigmas must be finite, at most {HIGHEST_SIGMA:g}, got '
                     f'{levels[bad[0]]} at index {bad[0]}; check sigma_min, sigma_max and the '
                     'schedule')
  if levels.min() < 0:
    raise ValueError(f'{name}: sigmas must not go below 0, got {levels.min():g} at index '
                     f'{levels.argmin()}; end the grid at 0 or above')
  bad = np.flatnonzero(np.diff(levels) > 0)
  if bad.size and (not rising or np.any(np.diff(levels) < 0)):
    raise ValueError(f'{name}: sigmas must decrease, got {levels[bad[0] + 1]:g} after '
                     f'{levels[bad[0]]:g} at index {bad[0] + 1}; sort the levels, highest first')
  if levels[0] == 0:
    raise ValueError(f'{name}: sigmas must start above 0, got 0 at index 0; a solver starts from '
                     'and works at levels above 0')
  return levels


def distinct(name: str, levels: np.ndarray) -> np.ndarray:
  """Returns a checked grid with each level once, since a step of length 0 is the identity.

  Raises:
    ValueError: if there is but one level.
  """
  kept = levels[np.concatenate([[True], np.diff(levels) != 0])]
  if len(kept) < 2:
    raise ValueError(f'{name}: sigmas must hold two different levels, got {kept[0]:g} alone; widen '
                     'the range')
  return kept


def lookup(what: str, name: str, known: Mapping[str, Any]) -> Any:
  """Returns known[name], or raises ValueError with the nearest and all known names."""
  if not isinstance(name, str) or name not in known:
    raise ValueError(unknown(what, name, known))
  return known[name]


def unknown(what: str, name: Any, known: Iterable[str]) -> str:
  """Returns the sentence for an unknown name: the nearest known one and all of them."""
  near = difflib.get_close_matches(str(name), known, 1)
  hint = f'; did you mean {near[0]}?' if near else ';'
  return f'unknown {what} {name!r}{hint} known: {", ".join(sorted(known)) or "none"}'


def check_choice(name: str, option: str, value: str, known: Sequence[str]) -> None:
  """Raises ValueError unless the value of an option is one of the known ones."""
  if not isinstance(value, str) or value not in known:
    raise ValueError(f'{name}: {unknown(option, value, known)}')


def check_order(name: str, value: int, highest: int, option: str = 'max_order') -> None:
  """Raises ValueError unless an order is an integer from 1 to `highest`."""
  if not is_integer(value) or not 1 <= value <= highest:
    raise ValueError(f'{name}: {option} must be an integer from 1 to {highest}, got {value!r}; '
                     f'{min(highest, 2)} is a safe choice')


def check_positive(name: str, option: str, value: float, remedy: str) -> None:
  """Raises ValueError unless a value is a finite number above 0."""
  if not 0 < to_number(value) < np.inf:
    raise ValueError(f'{name}: {option} must be a finite number above 0, got {value!r}; {remedy}')


def check_range(name: str, sigma_min: float, sigma_max: float) -> None:
  """Raises ValueError unless sigma_max is above sigma_min."""
  if sigma_max <= sigma_min:
    raise ValueError(f'{name}: sigma_max must be above sigma_min, got {sigma_max:g} and '
                     f'{sigma_min:g}; swap them or widen the range')


def check_fraction(name: str, option: str, value: float, remedy: str) -> None:
  """Raises ValueError unless a value lies strictly between 0 and 1."""
  if not 0 < to_number(value) < 1:
    raise ValueError(f'{name}: {option} must be strictly between 0 and 1, got {value!r}; {remedy}')


def check_node(name: str, option: str, value: float, remedy: str) -> None:
  """Raises ValueError unless a value is above 0 and at most 1: a place within a step."""
  if not 0 < to_number(value) <= 1:
    raise ValueError(f'{name}: {option} must be above 0 and at most 1, got {value!r}; {remedy}')


def check_switch(name: str, option: str, value: bool) -> None:
  """Raises ValueError unless a value is True or False."""
  if not isinstance(value, bool | np.bool_):
    raise ValueError(f'{name}: {option} must be True or False, got {value!r}; a text is neither')


def plain_types(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, type]:
  """Returns the types that the options of a function have on a command line.

  Args:
    function: whose annotations tell them.
    options: option -> default, whose type counts where the function does not know the option.

  Returns:
    Option -> str, bool, float or int, the first of these that the annotation allows; what is no
    plain value is text.
  """
  parameters = inspect.signature(function).parameters
  def of(option, default):
    if option not in parameters:  # `afs` and its like belong to all solvers and to no signature.
      return type(default)
    annotation = parameters[option].annotation
    union = typing.get_origin(annotation) in (types.UnionType, typing.Union)
    kinds = typing.get_args(annotation) if union else (annotation,)
    return next((kind for kind in (str, bool, float, int) if kind in kinds), str)
  return {option: of(option, default) for option, default in options.items()}
