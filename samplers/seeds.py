"""SEEDS, exponential solvers of the diffusion SDE, and their deterministic counterparts.

`exponential` has the mathematics; here are the two solvers as the registry knows them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, exponential, registry
from samplers.ancestral import check_noise, known_zero
from samplers.table import Table


@registry.register
def seeds(levels: Sequence[Any], *, order: int = 2, prediction: str = 'data', eta: float = 1.0,
          c2: float | None = None, c3: float | None = None, butcher: str | None = None,
          sigma_data: float = 0.5, xp: Any = np) -> Table:
  """Builds SEEDS-1, -2 or -3: exponential Runge-Kutta steps of the reverse SDE with exact noise.

  Weak order 1, 2 and, for order 3, 2 (3 in the mean); strong order 1. With data prediction,
  h = log(sigma / sigma') and k = 1 + eta, SEEDS-1 is the step

    x' = e^(-k h) x + (1 - e^(-k h)) D + sigma' sqrt(1 - e^(-2 eta h)) z,

  at eta = 1, the published strength, ancestral sampling. Without noise, eta = 0, this is `etd`.

  The noise of a stage is its exact stochastic integral, so that stages and end share one Brownian
  path for every c2. (Published code has this for some c2 and branches only.) A step to 0 is the
  denoiser's answer, the limit with data prediction; the other predictions have none of use. With
  few steps noise prediction is poor: a step adds noise of variance eta (sigma^2 - sigma'^2).

  Source: Gonzalez et al. 2023 (SEEDS), arXiv:2305.14267, with the change of variable for EDM's
  preconditioning; ComfyUI's seeds_2 and seeds_3 (eta).

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0 with data prediction.
    order: 1 to 3.
    prediction: what is integrated: 'data' (D), 'noise' (eps) or 'F' (raw output of a network with
      EDM's preconditioning).
    eta: strength of the noise, >= 0; 0 or 1 with F prediction.
    c2: place of the second stage in lambda, 0 < c2 <= 1 at order 2, 0 < c2 < c3 at order 3; None:
      1/2 and 1/3.
    c3: place of the third stage at order 3, at most 1; None: 2/3, without which the mean has order
      2 alone.
    butcher: tableau of orders 2 and 3, 'a' (fewer terms; None is the same) or 'b' (stiffly exact;
      at order 3 for c2 = 1/3 and c3 = 2/3 alone); '2a', '2b', '3a', '3b' name it with its order.
      At order 2 these are phi_1 and phi_2 elsewhere.
    sigma_data: standard deviation of the data, for 'F'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n order, less order - 1 where the grid ends in 0, and 2 slots (1 at order 1).

  Raises:
    ValueError: if an option is not one of the above, c2, c3 or butcher is given at an order
      without, or the grid ends in 0 with noise and without data prediction.
  """
  stages = _stages('seeds', order, 3, prediction, c2, c3, butcher, sigma_data, xp)
  check_noise('seeds', eta, 1.0, xp)
  if prediction == 'F' and checks.to_number(eta) not in (0, 1):
    raise ValueError(f'seeds: eta must be 0 or 1 with F prediction, got {eta!r}; take data or '
                     'noise prediction in between')
  if checks.is_zero(levels[-1]) and prediction != 'data' and not known_zero(eta):
    raise ValueError(f'seeds: sigmas must end above 0 with {prediction} prediction, got a last '
                     "level 0; end at sigma_min and add denoise_to_zero, or predict 'data'")
  return exponential.exponential(levels, exponential.form(prediction, eta, sigma_data, xp), stages,
                                 xp)


@registry.register
def exp_heun(levels: Sequence[Any], *, eta: float = 0.0, xp: Any = np) -> Table:
  """Builds exponential Heun steps: the step of order 1, then a second evaluation at its end.

  `seeds` of order 2 with c2 = 1 and butcher 'b', for data prediction: both stages have the one draw
  of their step. Of order 2 for eta = 0, with noise of weak order 2.

  Source: Hochbruck and Ostermann 2005, Explicit exponential Runge-Kutta methods for semilinear
  parabolic problems; ComfyUI's exp_heun_2_x0 and exp_heun_2_x0_sde.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0; 0 is deterministic, 1 the reverse SDE.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0) and 2 slots.

  Raises:
    ValueError: if eta is below 0.
  """
  check_noise('exp_heun', eta, 1.0, xp)
  return exponential.exponential(levels, exponential.form('data', eta, None, xp),
                                 exponential.tableau(2, 1, None, True), xp)


@registry.register
def etd(levels: Sequence[Any], *, order: int = 2, prediction: str = 'data',
        c2: float | None = None, c3: float | None = None, butcher: str | None = None,
        sigma_data: float = 0.5, xp: Any = np) -> Table:
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
    c3: as in `seeds`.
    butcher: as in `seeds`; '4' is the tableau of order 4.
    sigma_data: standard deviation of the data, for 'F'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with `order` evaluations per step (5 at order 4), but one for a step to 0, and 2 slots
    (1 at order 1, 3 at order 4).

  Raises:
    ValueError: if an option is not one of the above, or c2, c3 or butcher is given at an order
      without.
  """
  stages = _stages('etd', order, 4, prediction, c2, c3, butcher, sigma_data, xp)
  form = exponential.form(prediction, 0, sigma_data, xp)
  return exponential.exponential(levels, form, stages, xp)


def _stages(name, order, highest, prediction, c2, c3, butcher, sigma_data, xp):
  """The checked tableau."""
  checks.check_order(name, order, highest, 'order')
  checks.check_choice(name, 'prediction', prediction, ('data', 'noise', 'F'))
  if xp is np:
    checks.check_positive(name, 'sigma_data', sigma_data, '0.5 is that of EDM')
  if c3 is not None and order != 3:
    raise ValueError(f'{name}: c3 must be None at order {order}, which has no third node, got '
                     f'{c3!r}; leave it out')
  if order not in (2, 3):
    named = order == 4 and butcher == '4'
    for option, value in (('c2', c2), ('butcher', None if named else butcher)):
      if value is not None:
        raise ValueError(f'{name}: {option} must be None at order {order}, which has one tableau, '
                         f'got {value!r}; leave it out')
    return exponential.tableau(order, None, None, False)
  if butcher is not None:
    checks.check_choice(name, 'butcher', butcher, ('a', 'b', f'{order}a', f'{order}b'))
  second = butcher in ('b', f'{order}b')
  c2 = 1 / order if c2 is None else c2
  c3 = 2 / 3 if c3 is None else c3
  if xp is np:
    c2, c3 = _check_nodes(name, order, c2, c3, second)
  return exponential.tableau(order, c2, c3, second)


def _check_nodes(name, order, c2, c3, second):
  """The checked nodes, as numbers of Python: whether one is 1 decides on the rows."""
  if order == 2:
    checks.check_node(name, 'c2', c2, '0.5 is the midpoint')
    return float(c2), None
  checks.check_node(name, 'c3', c3, '2/3 is of order 3')
  if second:
    for option, value, text in (('c2', c2, '1/3'), ('c3', c3, '2/3')):
      numerator, denominator = text.split('/')
      if not abs(checks.to_number(value) - int(numerator) / int(denominator)) < 1e-6:
        raise ValueError(f'{name}: {option} must be {text} with butcher b at order 3, got '
                         f'{value!r}; leave it out, or take butcher a')
    return 1 / 3, 2 / 3
  if not 0 < checks.to_number(c2) < checks.to_number(c3):
    at = '2/3' if c3 == 2 / 3 else f'{float(c3):g}'
    raise ValueError(f'{name}: c2 must be above 0 and below {at} at order 3, the third node, got '
                     f'{c2!r}; 1/3 is the default')
  return float(c2), float(c3)
