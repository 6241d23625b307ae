"""Levels within the steps of a grid, for solvers that count in the timesteps of a network."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, levels as levels_lib


def given(name: str, mid: Sequence[Any] | str, bounds: Sequence[tuple[Any, Any]],
          inside: bool, xp: Any = np) -> Any:
  """Returns levels that a user gives, one per step.

  Args:
    name: who asks, for the error.
    mid: the levels, or text with commas; under jax.numpy perhaps traced.
    bounds: (one, other) for each step: the levels between which its own has to lie.
    inside: whether it must differ from both.
    xp: numpy or jax.numpy.

  Returns:
    Levels, np.float64 of shape (len(bounds),), or what was given where it may be traced.

  Raises:
    ValueError: if xp is numpy or `mid` a text, and there is not one number per step, or xp is numpy
      and one is out of bounds.
  """
  if xp is not np and not isinstance(mid, str):
    return mid
  array = checks.to_array(name, 'mid', mid.split(',') if isinstance(mid, str) else mid)
  if array.shape != (len(bounds),):
    raise ValueError(f'{name}: mid must have one level for each of {len(bounds)} steps, got shape '
                     f'{array.shape}; leave it out for the default')
  if xp is not np:
    return array
  for i, (level, ends) in enumerate(zip(array, bounds, strict=True)):
    low, high = min(ends), max(ends)
    if not (low < level < high if inside else low <= level <= high):
      raise ValueError(f'{name}: mid must lie between the levels {low:g} and {high:g} in step {i}, '
                       f'got {level:g}; leave it out for the default')
  return array


def table(name: str, alphas_cumprod: str | Sequence[float] | np.ndarray) -> np.ndarray:
  """Returns the levels of a network by timestep, increasing; see `levels.read_alphas_cumprod`."""
  return levels_lib.table_sigmas(levels_lib.read_alphas_cumprod(name, alphas_cumprod))
