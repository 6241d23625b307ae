"""Names of the solvers, and the way from a name and a grid to a Table."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import table as table_lib

SOLVERS: dict[str, Callable[..., table_lib.Table]] = {}
"""Solver by name: function(levels, *, options..., xp) -> Table, see `register`."""

_COMMON = {'afs': False, 'denoise_to_zero': False}


def register(function: Callable[..., table_lib.Table]) -> Callable[..., table_lib.Table]:
  """Adds a solver under its function's name; its keyword arguments are its options.

  The function gets `levels`, a list of n + 1 scalars that were checked to decrease, the last one
  the number 0 where the grid ends there (also when the others are traced), and `xp`.
  """
  SOLVERS[function.__name__] = function
  return function


def options(name: str) -> dict[str, Any]:
  """Returns the options of a solver with their defaults, read from its signature.

  Args:
    name: a key of SOLVERS.

  Returns:
    Option name -> default value, `afs` and `denoise_to_zero` included.

  Raises:
    ValueError: if the name is unknown; it lists the known ones.
  """
  parameters = inspect.signature(lookup('solver', name, SOLVERS)).parameters.values()
  own = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != 'xp'}
  return own | _COMMON


def make(name: str, sigmas: Sequence[float] | np.ndarray, *, afs: bool = False,
         denoise_to_zero: bool = False, **options: Any) -> table_lib.Table:
  """Builds the Table of a solver on a grid of noise levels, on the host, in float64, checked.

  Args:
    name: a key of SOLVERS.
    sigmas: noise levels, shape (n + 1,), strictly decreasing; only the last may be 0.
    afs: replace the first evaluation by the analytical one (`table.first_step_for_free`).
    denoise_to_zero: one more evaluation at the last level, whose answer is the result; for grids
      that end above 0.
    **options: the solver's own, see `options(name)`.

  Returns:
    The Table.

  Raises:
    ValueError: if the name or an option is unknown, an option is out of range, the grid does not
      decrease to a level >= 0, or the solver cannot do what is asked on this grid.
  """
  _check_options(name, options)
  levels = check_grid(name, sigmas)
  return _table(name, list(levels), options, afs, denoise_to_zero, np)


def build(name: str, sigmas: jax.Array, *, final_zero: bool | None = None, afs: bool = False,
          denoise_to_zero: bool = False, **options: Any) -> table_lib.Table:
  """Builds the same Table from a traced grid, so that gradients flow to it and to the options.

  The formulas are those of `make`; values cannot be checked here. Which rows a table has depends
  on whether the grid ends in 0, so that has to be known while tracing.

  Args:
    name: a key of SOLVERS.
    sigmas: noise levels, shape (n + 1,), decreasing, traced or not.
    final_zero: whether the last level is 0; read off the value where it is not traced, False for
      a traced grid.
    afs: as in `make`.
    denoise_to_zero: as in `make`.
    **options: the solver's own; continuous ones may be traced.

  Returns:
    A Table of jax arrays.

  Raises:
    ValueError: if the name or an option is unknown, or the grid has fewer than two levels.
  """
  _check_options(name, options)
  if final_zero is None:
    final_zero = not isinstance(sigmas, jax.core.Tracer) and float(sigmas[-1]) == 0
  sigmas = jnp.asarray(sigmas)
  if sigmas.ndim != 1 or len(sigmas) < 2:
    raise ValueError(f'{name}: sigmas must have shape (n + 1,) with n >= 1, got {sigmas.shape}')
  levels = [*sigmas[:-1], np.float64(0) if final_zero else sigmas[-1]]
  return _table(name, levels, options, afs, denoise_to_zero, jnp)


def check_grid(name: str, sigmas: Sequence[float] | np.ndarray) -> np.ndarray:
  """Returns the grid as float64 after checking that it decreases to a level >= 0.

  Args:
    name: who asks, for the error.
    sigmas: noise levels.

  Returns:
    np.float64 of shape (n + 1,).

  Raises:
    ValueError: if there are fewer than two levels, one is not a finite number or below 0, or
      the next is not lower.
  """
  try:
    levels = np.asarray(sigmas, np.float64)
  except (TypeError, ValueError):
    raise ValueError(f'{name}: sigmas must be numbers, got {sigmas!r}') from None
  if levels.ndim != 1 or len(levels) < 2:
    raise ValueError(f'{name}: sigmas must be a list of two or more levels, got '
                     f'{levels.size if levels.ndim < 2 else levels.shape}; num_steps = 1 makes two')
  bad = np.flatnonzero(~np.isfinite(levels))
  if bad.size:
    raise ValueError(f'{name}: sigmas must be finite, got {levels[bad[0]]} at index {bad[0]}; '
                     'check sigma_min, sigma_max and the schedule')
  if levels.min() < 0:
    raise ValueError(f'{name}: sigmas must not go below 0, got {levels.min():g} at index '
                     f'{levels.argmin()}; end the grid at 0 or above')
  bad = np.flatnonzero(np.diff(levels) >= 0)
  if bad.size:
    raise ValueError(f'{name}: sigmas must decrease strictly, got {levels[bad[0] + 1]:g} after '
                     f'{levels[bad[0]]:g} at index {bad[0] + 1}; sort the levels, highest first, '
                     'without repeats')
  return levels


def lookup(what: str, name: str, known: Iterable[str]) -> Any:
  """Returns known[name], or raises with the nearest and all known names.

  Args:
    what: kind of thing, for the error.
    name: the name asked for.
    known: a mapping by name.

  Returns:
    The entry.

  Raises:
    ValueError: if there is none of this name.
  """
  if name not in known:
    raise ValueError(unknown(what, name, known))
  return known[name]


def unknown(what: str, name: str, known: Iterable[str]) -> str:
  """Returns the sentence for an unknown name: the nearest known one and all of them."""
  near = difflib.get_close_matches(str(name), known, 1)
  hint = f'; did you mean {near[0]}?' if near else ';'
  return f'unknown {what} {name!r}{hint} known: {", ".join(sorted(known)) or "none"}'


def check_order(name: str, value: int, highest: int, option: str = 'max_order') -> None:
  """Raises ValueError unless the order is an integer from 1 to `highest`."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or not (
      1 <= value <= highest):
    raise ValueError(f'{name}: {option} must be an integer from 1 to {highest}, got {value!r}')


def check_choice(name: str, option: str, value: str, known: Sequence[str]) -> None:
  """Raises ValueError unless the value of an option is one of the known ones."""
  if value not in known:
    raise ValueError(f'{name}: {unknown(option, value, known)}')


def _check_options(name, given):
  known = options(name)
  for option in given:
    if option not in known:
      raise ValueError(f'{name}: {unknown("option", option, known)}')


def _table(name, levels, given, afs, denoise_to_zero, xp):
  table = SOLVERS[name](levels, **given, xp=xp)
  if afs:
    table = table_lib.first_step_for_free(table, xp)
  if denoise_to_zero:
    if is_zero(levels[-1]):
      raise ValueError(f'{name}: denoise_to_zero needs a grid that ends above 0, got a last level '
                       '0; leave it out, the last step already returns the denoised image')
    table = table_lib.denoise_at_end(table, levels[-1], xp)
  return table


def is_zero(level: Any) -> bool:
  """Says whether a level is the number 0; a traced level never is."""
  return isinstance(level, float) and level == 0
