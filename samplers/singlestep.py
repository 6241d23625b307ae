"""DPM-Solver of orders 1 to 3 in single steps, and on a budget: DPM-Solver-fast.

In these variables dx/dsigma = eps = (x - D) / sigma. A step goes from s down by h in
lam = -log(sigma); `first`, `second` and `third` are its end, on images or on rows of a table alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, registry
from samplers.ancestral import check_noise, known_zero, noise_of
from samplers.table import Row, Table, assemble


@registry.register
def dpm_fast(levels: Sequence[Any], *, eta: float = 0.0, s_noise: float = 1.0,
             xp: Any = np) -> Table:
  """Builds DPM-Solver-fast: singlestep orders 3, ..., 3 and a lower end for a budget of n NFE.

  The grid gives the budget n (its number of steps) and the range; the levels are the method's own,
  n // 3 + 1 equal steps of log sigma. The last orders are 2, 1 if n is divisible by 3, else
  n mod 3. Order 2 as a whole (3 if n mod 3 = 2). With eta a step goes to a lower level, see
  `split_above`, and noise leads back up; the last has none.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Sec. 3.4; k-diffusion's sample_dpm_fast.

  Args:
    levels: n + 1 decreasing noise levels; the last must be above 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 3 slots.

  Raises:
    ValueError: if the grid ends in 0, or eta or s_noise is below 0.
  """
  if checks.is_zero(levels[-1]):
    raise ValueError('dpm_fast: sigmas must end above 0 since its steps are equal in log sigma, '
                     'got a last level 0; end at sigma_min and add denoise_to_zero')
  check_noise('dpm_fast', eta, s_noise, xp)
  n = len(levels) - 1
  orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
  h = xp.log1p((levels[0] - levels[-1]) / levels[-1]) / len(orders)
  grid = [levels[0] * xp.exp(-h * i) for i in range(len(orders))] + [levels[-1]]
  rows = []
  for i, (order, s, s1) in enumerate(zip(orders, grid, grid[1:], strict=False)):
    h_down, draw = h, {}
    if i + 1 < len(orders) and not known_zero(eta):
      h_down, share = split_above(h, h * (len(orders) - 1 - i), eta, xp)
      draw = noise_of(share * s1, eta, s_noise, s, s1)
    *stages, last = _rows(order, s, s1, h_down, xp)
    rows += [*stages, last._replace(level=s1, **draw)]
  return assemble(rows, xp)


def split_above(h: Any, rest: Any, eta: Any, xp: Any = np) -> tuple[Any, Any]:
  """Splits a step as `levels.ancestral_split` does, in lam, and goes no lower than the grid.

  Of sigma'^2 the noise has the part min(eta^2 (1 - e^(-2 h)), 1 - e^(-2 rest)), and the
  deterministic step leads to a level whose square is what is left of it.

  Source: k-diffusion's sample_dpm_fast and sample_dpm_adaptive.

  Args:
    h: length of the step to sigma' in lam, >= 0.
    rest: distance in lam from sigma' to the last level, >= 0.
    eta: strength of the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    Length of the deterministic step in lam, from h to h + rest, and the standard deviation of the
    noise in units of sigma'.
  """
  added = xp.minimum(-eta**2 * xp.expm1(-2 * h), -xp.expm1(-2 * rest))
  kept = xp.maximum((1 - eta) * (1 + eta) + (eta * xp.exp(-h))**2, xp.exp(-2 * rest))
  # Both are log(1 - added), each where it does not cancel.
  log_kept = xp.where(added < 0.5, xp.log1p(-xp.minimum(added, 0.5)), xp.log(kept))
  return h - log_kept / 2, xp.sqrt(added)


def first(x: Any, eps: Any, s: Any, h: Any, xp: Any = np) -> Any:
  """Returns the end of a step of DPM-Solver-1, Euler: x + (s e^(-h) - s) eps.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Eq. 3.7.

  Args:
    x: state at s.
    eps: slope there.
    s: noise level.
    h: length of the step in lam.
    xp: numpy or jax.numpy.

  Returns:
    The state at s e^(-h).
  """
  return x + s * xp.expm1(-h) * eps


def second(x: Any, eps: Any, eps_r: Any, s: Any, h: Any, r: Any, xp: Any = np) -> Any:
  """Returns the end of a step of DPM-Solver-2.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Alg. 4.

  Args:
    x: state at s.
    eps: slope there.
    eps_r: slope after r h, at the end of a step of order 1.
    s: noise level.
    h: length of the step in lam.
    r: place of the second slope in the step.
    xp: numpy or jax.numpy.

  Returns:
    The state at s e^(-h).
  """
  return first(x, eps + (eps_r - eps) / (2 * r), s, h, xp)


def third(x: Any, eps: Any, eps_r: Any, s: Any, h: Any, r: Any, xp: Any = np) -> Any:
  """Returns the end of a step of DPM-Solver-3: x + (s e^(-h) - s) eps - s e^(-h) h phi_2(h) bend.

  bend = (eps_r - eps) / r. A step has r = 2/3; its stage there is such a step itself, of length
  2/3 h with a slope half-way, which a step of order 1 leads to.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Alg. 5.

  Args:
    x: state at s.
    eps: slope there.
    eps_r: slope after r h.
    s: noise level.
    h: length of the step in lam.
    r: place of the second slope in the step.
    xp: numpy or jax.numpy.

  Returns:
    The state at s e^(-h).
  """
  bend = s * xp.exp(-h) * h * coefficients.phi(2, h, xp) / r
  return first(x, eps, s, h, xp) - bend * (eps_r - eps)


def _rows(order, s, s1, h, xp):
  """Rows of DPM-Solver-1 (to s1), -2 (r = 1/2) or -3 (1/3, 2/3); slots: state, start, first eps."""
  x, start, eps0, denoised = xp.eye(4)
  eps = (x - denoised) / s
  if order == 1:
    return [Row(s, [denoised + s1 / s * (x - denoised), start, eps0])]
  r = 1 / order
  m = s * xp.exp(-r * h)
  rows = [Row(s, [first(x, eps, s, r * h, xp), x, eps])]
  eps = (x - denoised) / m
  if order == 2:
    return [*rows, Row(m, [second(start, eps0, eps, s, h, r, xp), start, eps0])]
  rows.append(Row(m, [third(start, eps0, eps, s, 2 * r * h, 0.5, xp), start, eps0]))
  m = s * xp.exp(-2 * r * h)
  eps = (x - denoised) / m
  return [*rows, Row(m, [third(start, eps0, eps, s, h, 2 * r, xp), start, eps0])]
