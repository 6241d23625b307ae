"""DPM-Solver++: exponential multistep solvers in lam = -log(sigma)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, registry
from samplers.multistep import multistep
from samplers.table import Table


@registry.register
def dpmpp(levels: Sequence[Any], *, max_order: int = 2, predict_x0: bool = True,
          lower_order_final: bool = True, third: str = 'published', xp: Any = np) -> Table:
  """Builds multistep DPM-Solver++ (data prediction) or DPM-Solver (noise prediction).

  With h = lam' - lam, m the denoised image or eps, D1 and D2 its first and second differences in
  lam in units of h:
    data:  x' = (sigma'/sigma) x + h (phi_1(-h) m + phi_2(-h) D1 + phi_3(-h) D2),
    noise: x' = x - sigma' h (phi_1(h) m + phi_2(h) D1 + phi_3(h) D2).
  Order 2 has phi_1 / 2 in place of phi_2 (midpoint form). Order min(max_order, i + 1) at step i,
  and at most the number of steps left with lower_order_final. A step to 0 is of order 1 and
  returns the denoised image.

  Source: Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Alg. 2 and App. B; (DPM-Solver)
  arXiv:2206.00927. Order 3 as published everywhere takes the divided difference for D2, which is
  half of the second derivative: it is of second order. It is the default since published results
  used it. third='exact' integrates the interpolating polynomial exactly: the factor 2 in order 3,
  and phi_2 in the steps of order 2 at its start and end.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    max_order: 1, 2 or 3.
    predict_x0: data prediction (DPM-Solver++), else noise prediction.
    lower_order_final: lower the order of the last steps, for few steps.
    third: form of max_order 3, 'published' or 'exact'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and max_order slots.

  Raises:
    ValueError: if max_order is not 1, 2 or 3, or `third` is unknown.
  """
  checks.check_order('dpmpp', max_order, 3)
  checks.check_choice('dpmpp', 'third', third, ('published', 'exact'))
  n = len(levels) - 1
  lam = [-xp.log(level) for level in levels[:-1]]
  exact = max_order == 3 and third == 'exact'

  def advance(i, x, m):
    s, s1 = levels[i], levels[i + 1]
    order = min(len(m), n - i) if lower_order_final else len(m)
    ratio = s1 / s
    base = ratio * x + (1 - ratio) * m[0] if predict_x0 else x + (s1 - s) * m[0]
    if order == 1 or checks.is_zero(s1):
      return base
    h = xp.log(s / s1)
    z, weight = (-h, h) if predict_x0 else (h, -s1 * h)
    r0 = (lam[i] - lam[i - 1]) / h
    d10 = (m[0] - m[1]) / r0
    if order == 2:
      second = coefficients.phi(2, z, xp) if exact else coefficients.phi(1, z, xp) / 2
      return base + weight * second * d10
    r1 = (lam[i - 1] - lam[i - 2]) / h
    d11 = (m[1] - m[2]) / r1
    d1 = d10 + r0 / (r0 + r1) * (d10 - d11)
    d2 = (2.0 if exact else 1.0) * (d10 - d11) / (r0 + r1)
    return base + weight * (coefficients.phi(2, z, xp) * d1 + coefficients.phi(3, z, xp) * d2)
  return multistep(levels, max_order, predict_x0, advance, xp)


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
  return dpmpp(levels, max_order=2, lower_order_final=False, xp=xp)
