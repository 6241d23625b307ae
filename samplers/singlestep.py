"""DPM-Solver of orders 1 to 3 in single steps, on a budget: DPM-Solver-fast.

In these variables dx/dsigma = eps = (x - D) / sigma.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, registry
from samplers.table import Row, Table, assemble


@registry.register
def dpm_fast(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds DPM-Solver-fast: singlestep orders 3, ..., 3 and a lower end for a budget of n NFE.

  The grid gives the budget n (its number of steps) and the range; the levels are the method's own,
  n // 3 + 1 equal steps of log sigma. The last orders are 2, 1 if n is divisible by 3, else
  n mod 3. Order 2 as a whole (3 if n mod 3 = 2).

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Sec. 3.4; k-diffusion's sample_dpm_fast.

  Args:
    levels: n + 1 decreasing noise levels; the last must be above 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 3 slots.

  Raises:
    ValueError: if the grid ends in 0.
  """
  if checks.is_zero(levels[-1]):
    raise ValueError('dpm_fast: sigmas must end above 0 since its steps are equal in log sigma, '
                     'got a last level 0; end at sigma_min and add denoise_to_zero')
  n = len(levels) - 1
  orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
  h = xp.log(levels[0] / levels[-1]) / len(orders)
  grid = [levels[0] * xp.exp(-h * i) for i in range(len(orders))] + [levels[-1]]
  rows = []
  for order, s, s1 in zip(orders, grid, grid[1:], strict=False):
    rows += _singlestep(order, s, s1, h, xp)
  return assemble(rows, xp)


def _singlestep(order, s, s1, h, xp):
  """Rows of DPM-Solver-1, -2 (r = 1/2) or -3 (r = 1/3, 2/3); slots: state, start, first eps."""
  x, start, eps0, denoised = xp.eye(4)
  phi = lambda k, z: coefficients.phi(k, z, xp)  # noqa: E731 - as in the paper
  eps = (x - denoised) / s
  if order == 1:
    return [Row(s, [denoised + s1 / s * (x - denoised), start, eps0], level=s1)]
  r1 = 1 / order
  m1 = s * xp.exp(-r1 * h)
  rows = [Row(s, [x + (m1 - s) * eps, x, eps])]
  eps = (x - denoised) / m1
  if order == 2:
    end = start + (s1 - s) * eps0 + (s1 - s) / (2 * r1) * (eps - eps0)
    return [*rows, Row(m1, [end, start, eps0], level=s1)]
  r2 = 2 * r1
  m2 = s * xp.exp(-r2 * h)
  # (e^z - 1) / z - 1 = z phi_2(z), and s1 (e^h - 1) = s - s1.
  middle = start + (m2 - s) * eps0 - m2 * (r2 / r1) * r2 * h * phi(2, r2 * h) * (eps - eps0)
  rows.append(Row(m1, [middle, start, eps0]))
  eps = (x - denoised) / m2
  end = start + (s1 - s) * eps0 - s1 * h * phi(2, h) / r2 * (eps - eps0)
  return [*rows, Row(m2, [end, start, eps0], level=s1)]
