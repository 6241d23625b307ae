"""Gradient estimation: Euler steps along a slope extrapolated from the last two."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, registry
from samplers.multistep import multistep
from samplers.table import Table


@registry.register
def gradient_estimation(levels: Sequence[Any], *, gamma: float = 2.0, xp: Any = np) -> Table:
  """Builds gradient-estimation steps: Euler's, along an extrapolated slope.

    x' = x + (sigma' - sigma)(gamma eps + (1 - gamma) eps_before).

  The first step is Euler's, a step to 0 the denoised image. gamma = 1 is Euler; 1.5 has the weights
  of Adams-Bashforth for equal steps, and so order 2 on smooth grids. Any other value is of order 1:
  the default pays at 5 to 8 steps alone.

  Source: Permenter and Yuan 2023, Interpreting and improving diffusion models from an optimization
  perspective, arXiv:2306.04848, Alg. 2.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    gamma: weight of the new slope, a finite number.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots.

  Raises:
    ValueError: if gamma is not a finite number.
  """
  if xp is np and not np.isfinite(checks.to_number(gamma)):
    raise ValueError(f'gradient_estimation: gamma must be a finite number, got {gamma!r}; 1.5 is '
                     'of second order, 1 is Euler')

  def advance(i, x, m):
    dsigma = levels[i + 1] - levels[i]
    if len(m) == 1 or checks.is_zero(levels[i + 1]):
      return x + dsigma * m[0]
    return x + dsigma * (gamma * m[0] + (1 - gamma) * m[1])
  return multistep(levels, 2, False, advance, xp)
