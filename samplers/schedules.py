"""Noise schedules by name: the registry and the checked way to a grid."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from samplers import (
  chains,
  checks,
  consistency,
  flow_grids,
  grids,
  levels as levels_lib,
  published_grids,
  quantile_grids,
  table_grids,
  timestep_grids,
)

SCHEDULES: dict[str, Callable[..., np.ndarray]] = {function.__name__: function for function in (
    grids.polynomial, grids.logsnr, grids.time_uniform, table_grids.discrete,
    grids.edm, grids.vp, grids.ve, table_grids.iddpm, grids.karras, grids.exponential,
    grids.polyexponential, grids.kvp, table_grids.normal, table_grids.sgm_uniform,
    table_grids.simple, table_grids.ddim_uniform, quantile_grids.beta, quantile_grids.kl_optimal,
    quantile_grids.laplace, grids.linear_quadratic, published_grids.ays,
    published_grids.optimal_steps, published_grids.gits, timestep_grids.timestep_spacing,
    timestep_grids.lcm, timestep_grids.sd_turbo, timestep_grids.pndm, flow_grids.flow_shift,
    flow_grids.flow_dpm, flow_grids.flow_dynamic, flow_grids.flow_shift_terminal, chains.respaced,
    consistency.subset, grids.explicit)}
"""Schedule by name: function(num_steps, sigma_min, sigma_max, **options) -> levels."""

_RANGE = ('num_steps', 'sigma_min', 'sigma_max')


def schedule_options(name: str) -> dict[str, Any]:
  """Returns the options of a schedule with their defaults, read from its signature.

  Args:
    name: a key of SCHEDULES.

  Returns:
    Option name -> default value, None for an option that has to be given; num_steps, sigma_min and
    sigma_max, which all schedules take, are left out.

  Raises:
    ValueError: if the name is unknown; it lists the known ones.
  """
  return {option: None if parameter.default is parameter.empty else parameter.default
          for option, parameter in _parameters(name).items() if option not in _RANGE}


def schedule_option_types(name: str) -> dict[str, type]:
  """Returns the types of a schedule's options, see `checks.plain_types`; ValueError as above."""
  return checks.plain_types(SCHEDULES.get(name), schedule_options(name))


def schedule(name: str, num_steps: int | None = None, sigma_min: float | None = None,
             sigma_max: float | None = None, *, levels: Sequence[float] | None = None,
             **options: Any) -> np.ndarray:
  """Returns a decreasing grid of noise levels, checked.

  Ending at sigma_min: polynomial, logsnr, time_uniform, discrete, gits, subset. Ending in 0 after
  num_steps positive levels: edm, vp, ve, iddpm, karras, exponential, polyexponential, kvp, normal,
  sgm_uniform, simple, ddim_uniform, beta, kl_optimal, laplace, linear_quadratic, ays,
  timestep_spacing, lcm, sd_turbo, pndm, respaced; and for flows optimal_steps, flow_shift,
  flow_dpm, flow_dynamic, flow_shift_terminal, and those from normal to beta with a `shift`. As
  given: explicit.

  Example: schedule('polynomial', 10, 0.002, 80.0, rho=5).

  Args:
    name: a key of SCHEDULES.
    num_steps: number of intervals, >= 1. Unused by explicit.
    sigma_min: lowest positive level, > 0. Unused by those that take timesteps of a table, times of
      a flow, a published or a given list, and by kvp and linear_quadratic.
    sigma_max: first level, > sigma_min; on the times of a flow it stands for the infinite level at
      time 1, see `flow_grids`. Else unused by those that take timesteps or a list, and by kvp.
    levels: the levels of a network that knows no others, in any order: every positive level of the
      grid is replaced by the nearest positive one of them. Several may meet in one; the step
      between equal levels is the identity in every solver.
    **options: the schedule's own, see `schedule_options(name)`.

  Returns:
    np.float64 of shape (num_steps + 1,), decreasing to a level >= 0; beta with a table and trailing
    timesteps of a clipped one may be shorter, ddim_uniform differs where num_steps does not divide
    the table, respaced is as long as its chain, subset and explicit as their lists.

  Raises:
    ValueError: if the name or an option is unknown, an option or an end of the range is missing or
      out of range, or the grid would not decrease.
  """
  parameters = _parameters(name)
  for option in options:
    if option not in parameters:
      known = schedule_options(name)
      raise ValueError(f'{name}: {checks.unknown("option", option, known)}')
  for option, parameter in parameters.items():
    if (option not in _RANGE and parameter.default is parameter.empty
        and options.get(option) is None):
      raise ValueError(f'{name}: {option} must be given, got None; '
                       f'{_REMEDIES.get((name, option)) or _REMEDIES[option]}')
  given = dict(zip(_RANGE, (num_steps, sigma_min, sigma_max), strict=True))
  needed = {option for option in _RANGE if parameters[option].default is inspect.Parameter.empty}
  grid = SCHEDULES[name](**_check_range(name, given, needed), **options)
  if levels is not None:
    grid = _round(name, grid, levels)
  return checks.check_grid(name, grid)


_REMEDIES = {
    'sigmas': 'give two or more decreasing levels',
    ('ays', 'model'): f'choose one of {", ".join(published_grids.AYS_LEVELS)}',
    ('gits', 'model'): f'choose one of {", ".join(published_grids.GITS_LEVELS)}',
    ('optimal_steps', 'model'):
        f'choose one of {", ".join(published_grids.OPTIMAL_STEPS_TIMES)}',
    'alphas_cumprod': table_grids.TABLE_REMEDY,
}


def _parameters(name):
  if name not in SCHEDULES:
    raise ValueError(f'schedule: {checks.unknown("schedule", name, SCHEDULES)}')
  return inspect.signature(SCHEDULES[name]).parameters


def _check_range(name, given, needed):
  """The number of steps and the range, as numbers where they are given, checked."""
  num_steps, low, high = given.values()
  if num_steps is not None or 'num_steps' in needed:
    if not checks.is_integer(num_steps) or num_steps < 1:
      raise ValueError(f'{name}: num_steps must be an integer of at least 1, got {num_steps!r}; it '
                       'counts the intervals between levels')
    num_steps = int(num_steps)
  for option, value, remedy in (('sigma_min', low, "the model's lowest level is the usual choice"),
                                ('sigma_max', high, "the model's highest level is usual")):
    if value is not None or option in needed:
      checks.check_positive(name, option, value, remedy)
      if value > checks.HIGHEST_SIGMA:
        raise ValueError(f'{name}: {option} must be at most {checks.HIGHEST_SIGMA:g}, got '
                         f'{value:g}; {remedy}')
  low, high = (None if value is None else float(value) for value in (low, high))
  if low is not None and high is not None:
    checks.check_range(name, low, high)
  return {'num_steps': num_steps, 'sigma_min': low, 'sigma_max': high}


def _round(name, grid, levels):
  """Rounds positive levels to a network's; its level 0 does not count, since a step needs > 0."""
  levels = checks.to_array(name, 'levels', levels)
  bad = np.flatnonzero(~(np.isfinite(levels) & (levels >= 0)))
  if bad.size or levels.ndim != 1 or not np.any(levels > 0):
    got = f'{levels[bad[0]]} at index {bad[0]}' if bad.size and levels.ndim == 1 else levels
    raise ValueError(f'{name}: levels must be a list of finite numbers >= 0, one of them above 0, '
                     f"got {got}; give the network's own levels")
  return np.where(grid > 0, levels_lib.round_to_levels(grid, levels[levels > 0]), 0.0)
