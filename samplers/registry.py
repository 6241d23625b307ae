"""Names of the solvers, and the way from a name and a grid to a Table."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, table as table_lib

SOLVERS: dict[str, Callable[..., table_lib.Table]] = {}
"""Solver by name: function(levels, *, options..., xp) -> Table, see `register`."""

LOOPS: dict[str, Callable[..., Any]] = {}
"""Samplers that are no tables, since they look at what the network says: name -> function."""

_COMMON = {'afs': False, 'denoise_to_zero': False}


def register(function: Callable[..., table_lib.Table]) -> Callable[..., table_lib.Table]:
  """Adds a solver under its function's name; its keyword arguments are its options.

  The function gets `levels`, a list of n + 1 scalars that were checked to decrease, the last one
  the number 0 where the grid ends there (also when the others are traced), and `xp`.
  """
  SOLVERS[function.__name__] = function
  return function


def register_loop(name: str) -> Callable[[Callable], Callable]:
  """Adds a sampler that is no table; its keyword arguments but for its noise are its options."""
  def add(function):
    LOOPS[name] = function
    return function
  return add


def options(name: str) -> dict[str, Any]:
  """Returns the options of a solver with their defaults, read from its signature.

  Args:
    name: a key of SOLVERS or LOOPS.

  Returns:
    Option name -> default value, those that all tables have included.

  Raises:
    ValueError: if the name is unknown; it lists the known ones.
  """
  parameters = inspect.signature(
      checks.lookup('solver', name, SOLVERS | LOOPS)).parameters.values()
  own = {p.name: p.default for p in parameters
         if p.kind is p.KEYWORD_ONLY and p.name not in ('xp', 'key', 'draw')}
  return own if name in LOOPS else own | _COMMON


def option_types(name: str) -> dict[str, type]:
  """Returns the types of a solver's options, see `checks.plain_types`; ValueError as `options`."""
  return checks.plain_types((SOLVERS | LOOPS).get(name), options(name))


def make(name: str, sigmas: Sequence[float] | np.ndarray, *, afs: bool = False,
         denoise_to_zero: bool = False, **options: Any) -> table_lib.Table:
  """Builds the Table of a solver on a grid of noise levels, on the host, in float64, checked.

  Args:
    name: a key of SOLVERS.
    sigmas: noise levels, shape (n + 1,), decreasing; only the last may be 0. A level that is
      repeated counts once: the step between is the identity. Deterministic solvers also take an
      increasing grid above 0, which leads from an image to its latent.
    afs: replace the first evaluation by the analytical one (`table.first_step_for_free`).
    denoise_to_zero: one more evaluation at the last level, whose answer is the result; for grids
      that end above 0.
    **options: the solver's own, see `options(name)`; those per step count the different levels.

  Returns:
    The Table.

  Raises:
    ValueError: if the name or an option is unknown, an option is out of range, the grid is neither
      decreasing nor increasing, or the solver cannot do what is asked on this grid.
  """
  _check_options(name, options | {'afs': afs, 'denoise_to_zero': denoise_to_zero})
  levels = list(checks.distinct(name, checks.check_grid(name, sigmas, rising=True)))
  rises = levels[-1] > levels[0]
  if rises and np.any(_table(name, levels[::-1], options, afs, denoise_to_zero, np).noise):
    raise ValueError(f'{name}: sigmas must decrease for a solver with noise, got an increasing '
                     'grid; invert with a deterministic one, such as euler, or sort the levels')
  return _table(name, levels, options, afs, denoise_to_zero, np)


def build(name: str, sigmas: jax.Array, *, final_zero: bool | None = None, afs: bool = False,
          denoise_to_zero: bool = False, **options: Any) -> table_lib.Table:
  """Builds the same Table from a traced grid, so that gradients flow to it and to the options.

  Example: jax.grad(lambda sigmas: loss(run(build('heun', sigmas, final_zero=True), denoise, x))).

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
  _check_options(name, options | {'afs': afs, 'denoise_to_zero': denoise_to_zero})
  if final_zero is None:
    final_zero = not isinstance(sigmas, jax.core.Tracer) and float(sigmas[-1]) == 0
  sigmas = jnp.asarray(sigmas)
  if sigmas.ndim != 1 or len(sigmas) < 2:
    raise ValueError(f'{name}: sigmas must have shape (n + 1,) with n >= 1, got {sigmas.shape}')
  levels = [*sigmas[:-1], np.float64(0) if final_zero else sigmas[-1]]
  return _table(name, levels, options, afs, denoise_to_zero, jnp)


def _check_options(name, given):
  known = options(name)
  if name in LOOPS:
    raise ValueError(f'{name}: must be called, since it is no table, got make or build; see '
                     f'samplers.{LOOPS[name].__module__.split(".")[-1]}')
  for option, value in given.items():
    if option not in known:
      raise ValueError(f'{name}: {checks.unknown("option", option, known)}')
    if isinstance(known[option], bool):
      checks.check_switch(name, option, value)


def _table(name, levels, given, afs, denoise_to_zero, xp):
  table = SOLVERS[name](levels, **given, xp=xp)
  if afs:
    table = table_lib.first_step_for_free(table, xp)
  if denoise_to_zero:
    if checks.is_zero(levels[-1]):
      raise ValueError(f'{name}: denoise_to_zero needs a grid that ends above 0, got a last level '
                       '0; end the grid at sigma_min, or leave denoise_to_zero out')
    table = table_lib.denoise_at_end(table, levels[-1], xp)
  return table
