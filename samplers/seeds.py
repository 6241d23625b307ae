"""SEEDS, exponential solvers of the diffusion SDE, and their deterministic counterparts.

`exponential` has the mathematics; here are the two solvers as the registry knows them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, exponential, registry
from samplers.table import Table


@registry.register
def seeds(levels: Sequence[Any], *, order: int = 2, prediction: str = 'data',
          c2: float | None = None, butcher: str | None = None, sigma_data: float = 0.5,
          xp: Any = np) -> Table:
  """Builds SEEDS-1, -2 or -3: exponential Runge-Kutta steps of the reverse SDE with exact noise.

  Weak order 1, 2 and, for order 3, 2 (3 in the mean); strong order 1. With data prediction,
  h = log(sigma / sigma'), SEEDS-1 is the ancestral step

    x' = e^(-2 h) x + (1 - e^(-2 h)) D + sigma' sqrt(1 - e^(-2 h)) z.

  The noise of a stage is its exact stochastic integral, so that stages and end share one Brownian
  path for every c2. (Published code has this for some c2 and branches only.) A step to 0 is the
  denoiser's answer, the limit with data prediction; the other predictions have none of use. With
  few steps noise prediction is poor: a step adds noise of deviation sqrt(sigma^2 - sigma'^2).

  Source: Gonzalez et al. 2023 (SEEDS), arXiv:2305.14267, with the change of variable for EDM's
  preconditioning.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0 with data prediction.
    order: 1 to 3.
    prediction: what is integrated: 'data' (D), 'noise' (eps) or 'F' (raw output of a network with
      EDM's preconditioning).
    c2: place of the second stage in lambda, 0 < c2 <= 1 at order 2, 0 < c2 < 2/3 at order 3; None:
      1/2 and 1/3.
    butcher: tableau of orders 2 and 3, 'a' (fewer terms; None is the same) or 'b' (stiffly exact;
      at order 3 for c2 = 1/3 alone); '2a', '2b', '3a', '3b' name it with its order.
    sigma_data: standard deviation of the data, for 'F'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n order, less order - 1 where the grid ends in 0, and `order` slots.

  Raises:
    ValueError: if an option is not one of the above, c2 or butcher is given at an order without,
      or the grid ends in 0 with noise or F prediction.
  """
  stages = _stages('seeds', order, 3, prediction, c2, butcher, sigma_data, xp)
  if checks.is_zero(levels[-1]) and prediction != 'data':
    raise ValueError(f'seeds: sigmas must end above 0 with {prediction} prediction, got a last '
                     "level 0; end at sigma_min and add denoise_to_zero, or predict 'data'")
  form = exponential.form(prediction, True, sigma_data, xp)
  return exponential.exponential(levels, form, stages, xp)


@registry.register
def etd(levels: Sequence[Any], *, order: int = 2, prediction: str = 'data',
        c2: float | None = None, butcher: str | None = None, sigma_data: float = 0.5,
        xp: Any = np) -> Table:
  """Builds exponential Runge-Kutta steps of the probability-flow ODE: SEEDS without noise.

  Order 1 is DDIM, for data and noise prediction alike. A step to 0 is the denoiser's answer, the
  limit of order 1 with those; with F prediction that limit differs by a share (sigma / d)^2 / 3.

  Source: Gonzalez et al. 2023 (SEEDS), arXiv:2305.14267; order 4, in five stages: Hochbruck and
  Ostermann 2005, Explicit exponential Runge-Kutta methods for semilinear parabolic problems.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    order: 1 to 4.
    prediction: 'data', 'noise' or 'F', as in `seeds`.
    c2: as in `seeds`.
    butcher: as in `seeds`; '4' is the tableau of order 4.
    sigma_data: standard deviation of the data, for 'F'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with `order` slots and evaluations per step (5 at order 4), but one for a step to 0.

  Raises:
    ValueError: if an option is not one of the above, or c2 or butcher is given at an order without.
  """
  stages = _stages('etd', order, 4, prediction, c2, butcher, sigma_data, xp)
  form = exponential.form(prediction, False, sigma_data, xp)
  return exponential.exponential(levels, form, stages, xp)


def _stages(name, order, highest, prediction, c2, butcher, sigma_data, xp):
  """The checked tableau."""
  checks.check_order(name, order, highest, 'order')
  checks.check_choice(name, 'prediction', prediction, ('data', 'noise', 'F'))
  if xp is np:
    checks.check_positive(name, 'sigma_data', sigma_data, '0.5 is that of EDM')
  if order not in (2, 3):
    named = order == 4 and butcher == '4'
    for option, value in (('c2', c2), ('butcher', None if named else butcher)):
      if value is not None:
        raise ValueError(f'{name}: {option} must be None at order {order}, which has one tableau, '
                         f'got {value!r}; leave it out')
    return exponential.tableau(order, None, False)
  if butcher is not None:
    checks.check_choice(name, 'butcher', butcher, ('a', 'b', f'{order}a', f'{order}b'))
  second = butcher in ('b', f'{order}b')
  if c2 is None:
    c2 = 1 / order
  elif xp is np:
    c2 = _check_node(name, order, c2, second)
  return exponential.tableau(order, c2, second)


def _check_node(name, order, c2, second):
  """The checked c2, as a number of Python: whether it is 1 decides on the rows."""
  if order == 2:
    checks.check_node(name, 'c2', c2, '0.5 is the midpoint')
  elif second and not abs(checks.to_number(c2) - 1 / 3) < 1e-6:
    raise ValueError(f'{name}: c2 must be 1/3 with butcher b at order 3, got {c2!r}; leave it out, '
                     'or take butcher a')
  elif not 0 < checks.to_number(c2) < exponential.THIRD_NODE:
    raise ValueError(f'{name}: c2 must be above 0 and below 2/3 at order 3, the third node, got '
                     f'{c2!r}; 1/3 is the default')
  return 1 / 3 if second and order == 3 else float(c2)
