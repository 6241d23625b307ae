"""Samplers of consistency models and of their teachers.

A consistency model maps x at any noise level to the start of its ODE trajectory, at the network's
lowest level. Its published samplers are, in the names of this package:

  onestep     consistency on two levels: one evaluation, at the first
  multistep   consistency, on a grid of `subset`
  progdist    euler on a polynomial grid, which ends above 0: a network distilled by halving its
              number of steps is asked at these levels only
  heun        heun, with churn
  dpm         dpm(rho=3), with churn
  euler       euler
  ancestral   ddim(eta=1)

the last four for teachers, on a grid that ends in 0 (`schedules.schedule('edm', ...)`). Published
code clips every result to [-1, 1].
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, churn, grids, registry
from samplers.table import Row, Table, assemble


@registry.register
def consistency(levels: Sequence[Any], *, sigma_min: float | None = None, xp: Any = np) -> Table:
  """Builds multistep consistency sampling: an answer, new noise, a better answer, ...

  x' = D(x; sigma) + sqrt(sigma'^2 - sigma_min^2) z. On two levels, one-step sampling: x' = D. The
  noise is as fresh as that of the start: no part of it is a path over the step. Meant for
  consistency models, whose D is a sample; any other network gives the mean of what is left to know.

  Source: Song et al. 2023, Consistency Models, arXiv:2303.01469, Alg. 1.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    sigma_min: level of the model's answers, its lowest; None: the grid's last, so that the result
      is an answer. The result has noise of the last level if that is above.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.

  Raises:
    ValueError: if sigma_min is not a finite number >= 0.
  """
  if xp is np and sigma_min is not None and not 0 <= checks.to_number(sigma_min) < np.inf:
    raise ValueError(f'consistency: sigma_min must be a finite number >= 0, got {sigma_min!r}; '
                     "the model's lowest level is usual")
  low = levels[-1] if sigma_min is None else sigma_min
  _, denoised = xp.eye(2)
  return assemble([Row(s, [denoised], level=s1, noise=churn.root((s1 - low) * (s1 + low), xp))
                   for s, s1 in zip(levels, levels[1:], strict=False)], xp)


def subset(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7,
           ts: Sequence[int] | None = None) -> np.ndarray:
  """Returns the chosen levels of a polynomial grid, for multistep consistency sampling.

  sigma_i = (sigma_max^(1/rho) + ts_i / n (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

  Source: consistency_models, stochastic_iterative_sampler. Its `steps` counts levels, one more than
  num_steps here: of 40 it visits 0, 22, 39 (ImageNet 64) or 0, 17, 39 (LSUN), found by search.

  Args:
    num_steps: intervals n of the grid to choose from.
    sigma_min: its last level.
    sigma_max: its first level.
    rho: exponent, > 0.
    ts: numbers of the chosen levels, increasing, from 0 to num_steps; None: all.

  Returns:
    np.float64, one level per number.

  Raises:
    ValueError: if rho is not above 0, or ts are not two or more increasing numbers of levels.
  """
  checks.check_positive('subset', 'rho', rho, '7 is the usual choice')
  grid = grids.polynomial(num_steps, sigma_min, sigma_max, rho)
  if ts is None:
    return grid
  numbers = checks.to_array('subset', 'ts', ts)
  if (numbers.ndim != 1 or len(numbers) < 2 or np.any(numbers != np.rint(numbers))
      or np.any(np.diff(numbers) <= 0) or numbers[0] < 0 or numbers[-1] > num_steps):
    raise ValueError(f'subset: ts must be two or more increasing integers from 0 to num_steps = '
                     f'{num_steps}, got {ts}; 0 is the first level, {num_steps} the last')
  return grid[numbers.astype(int)]
