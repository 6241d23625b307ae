"""DPM-Solver++ and DPM-Solver: exponential multistep solvers in lam = -log(sigma).

One formula for the probability-flow ODE (eta = 0), the reverse SDE (eta = 1) and what lies between:
the same marginals, with noise of strength eta. With h = lam' - lam, k = 1 + eta, m the denoised
image (data prediction) or eps (noise prediction), and D1, D2 its first and second differences in
lam in units of h, a step goes

  data:  x' = e^(-k h) x + k h (phi_1(-k h) m + phi_2(-k h) D1 + phi_3(-k h) D2)
              + sigma' sqrt(1 - e^(-2 eta h)) z,
  noise: x' = x - k sigma' h (phi_1(h) m + phi_2(h) D1 + phi_3(h) D2)
              + sqrt(eta (sigma^2 - sigma'^2)) z,

which is exact for a constant m at any eta >= 0. Order 2 has D1 alone, with phi_2 ('heun') or
phi_1 / 2 ('midpoint'). The noise of a step lies on a Brownian path over the levels.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, registry
from samplers.ancestral import check_noise, known_zero, noise_of
from samplers.table import Row, Table, assemble


@registry.register
def dpmpp(levels: Sequence[Any], *, max_order: int = 2, predict_x0: bool = True, eta: float = 0.0,
          lower_order_final: bool = True, solver_type: str | None = None,
          third: str = 'published', xp: Any = np) -> Table:
  """Builds multistep DPM-Solver++ (data prediction) or DPM-Solver (noise prediction).

  The formula is that of the module, with order min(max_order, i + 1) at step i, and at most the
  number of steps left with lower_order_final. A step to 0 returns the denoised image.

  Of order max_order for eta = 0 (2 as run, since the first step is Euler's); with noise the mean
  keeps that order and the variance has at most 2. Order 3 as published everywhere takes the divided
  difference for D2, which is half of the second derivative: it is of second order. It is the
  default since published results used it, and it is no worse below about 20 steps. third='exact'
  integrates the interpolating polynomial exactly: the factor 2 in order 3, and, unless solver_type
  says otherwise, 'heun' in the steps of order 2 at its start and end.

  Source: Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Alg. 2, Sec. 5 and App. B; (DPM-Solver)
  arXiv:2206.00927. The published third order for the SDE has a wrong sign in diffusers.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    max_order: 1, 2 or 3.
    predict_x0: data prediction (DPM-Solver++), else noise prediction.
    eta: strength of the noise, >= 0; 0 is deterministic, 1 the reverse SDE.
    lower_order_final: lower the order of the last steps, for few steps (published code does below
      15).
    solver_type: form of the steps of order 2, 'midpoint' or 'heun'; None is 'midpoint', but 'heun'
      for an exact third order.
    third: form of max_order 3, 'published' or 'exact'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and max_order slots.

  Raises:
    ValueError: if max_order is not 1, 2 or 3, eta is below 0, or solver_type or `third` is unknown.
  """
  checks.check_order('dpmpp', max_order, 3)
  checks.check_choice('dpmpp', 'third', third, ('published', 'exact'))
  exact = max_order == 3 and third == 'exact'
  if solver_type is None:
    solver_type = 'heun' if exact else 'midpoint'
  return steps('dpmpp', levels, max_order=max_order, predict_x0=predict_x0, eta=eta,
               lower_order_final=lower_order_final, solver_type=solver_type, exact=exact, xp=xp)


@registry.register
def dpmpp_2m(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds k-diffusion's DPM-Solver++(2M): `dpmpp` of order 2 without a lower last order.

  Source: Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Alg. 2.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots.
  """
  return steps('dpmpp_2m', levels, max_order=2, eta=0.0, solver_type='midpoint', xp=xp)


def steps(name: str, levels: Sequence[Any], *, max_order: int, eta: Any, solver_type: str, xp: Any,
          s_noise: Any = 1.0, predict_x0: bool = True, exact: bool = False,
          lower_order_final: bool = False) -> Table:
  """Builds the Table of the module's formula; its callers name themselves and give the options.

  Args:
    name: who asks, for errors.
    levels: n + 1 decreasing noise levels; the last may be 0. Increasing ones will do without noise.
    max_order: 1, 2 or 3.
    eta: strength of the noise.
    solver_type: 'midpoint' or 'heun'.
    xp: numpy or jax.numpy.
    s_noise: factor on the noise.
    predict_x0: data prediction, else noise prediction.
    exact: D2 the second derivative of the interpolating polynomial, else half of it.
    lower_order_final: lower the order of the last steps.

  Returns:
    A Table with NFE n and max_order slots: the state, then the earlier answers, the newest first.

  Raises:
    ValueError: if eta or s_noise is below 0 or solver_type is unknown.
  """
  check_noise(name, eta, s_noise, xp)
  checks.check_choice(name, 'solver_type', solver_type, ('midpoint', 'heun'))
  n, k = len(levels) - 1, 1 + eta
  silent = known_zero(eta) or known_zero(s_noise)
  x, *memory, denoised = xp.eye(max_order + 1)
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    answers = [denoised if predict_x0 else (x - denoised) / s, *memory]
    held = answers[:max_order - 1]
    if checks.is_zero(s1):
      rows.append(Row(s, [denoised, *held], s1))
      continue
    h, up = log_step(s, s1, xp), 0.0
    if predict_x0:
      z, weight = -k * h, k * h
      end = (s1 / s)**k * x - xp.expm1(z) * denoised
      if not silent:
        up = s1 * xp.sqrt(-xp.expm1(-2 * eta * h))
    else:
      z, weight = h, -k * s1 * h
      end = x + k * (s1 - s) * answers[0]
      if not silent:
        up = xp.sqrt(eta * (s - s1) * (s + s1))
    order = min(max_order, i + 1, n - i if lower_order_final else max_order)
    if order > 1:
      differences = _differences(answers, levels[i + 1 - order:i + 1][::-1], h, xp)
      end = end + weight * _higher(differences, z, solver_type, exact, xp)
    rows.append(Row(s, [end, *held], s1, **noise_of(up, eta, s_noise, s, s1)))
  return assemble(rows, xp)


def log_step(s: Any, s1: Any, xp: Any) -> Any:
  """Returns log(s / s1), the length of a step in lam, accurate for short ones too."""
  return xp.log1p((s - s1) / s1)


def _differences(answers, recent, h, xp):
  """First and, at three levels, second divided difference in lam, times h and h^2."""
  ratios = [log_step(before, level, xp) / h
            for level, before in zip(recent, recent[1:], strict=False)]
  slopes = [(new - old) / ratio
            for new, old, ratio in zip(answers, answers[1:], ratios, strict=False)]
  if len(slopes) == 1:
    return slopes
  second = (slopes[0] - slopes[1]) / (ratios[0] + ratios[1])
  return [slopes[0] + ratios[0] * second, second]


def _higher(differences, z, solver_type, exact, xp):
  """What the differences add to a step, over its weight."""
  if len(differences) == 1:
    share = coefficients.phi(2, z, xp) if solver_type == 'heun' else coefficients.phi(1, z, xp) / 2
    return share * differences[0]
  first, second = differences
  factor = 2.0 if exact else 1.0
  return coefficients.phi(2, z, xp) * first + factor * coefficients.phi(3, z, xp) * second
