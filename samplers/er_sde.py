"""ER-SDE-Solver: the reverse SDE with a noise scale function p in place of one strength eta.

For every p with p(sigma) / sigma nowhere decreasing, the process

  dx = (p'/p) (x - D) dsigma + noise   that keeps the marginals of x0 + sigma z

runs from sigma down to 0. p = sigma is the probability-flow ODE, p = sigma^2 the reverse SDE; the
others have little noise at low levels, where a network is least exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, registry
from samplers.ancestral import check_noise, noise_of
from samplers.churn import root
from samplers.multistep import weighted
from samplers.table import Row, Table, assemble

_POWERS = {'ode': 0.0, 'sde': 1.0, 'sde2': 0.5, 'sde3': 1.5}  # Of sigma in p(sigma) / sigma.
SCALES = (*_POWERS, 'sde1', 'sde4', 'sde5')
"""Noise scale functions by name, see `er_sde`."""

# p(sigma) / sigma of 'sde4' grows up to where w log(w) / (w - 1) = 15 with w = 1 + 100 sigma^1.5.
_HIGHEST_SDE4 = 1022.4
# Nodes and weights in log sigma. All integrands are positive and smooth there: 64 leave nothing but
# rounding, 1e-14 of the integral, of a single step from 1000 to 0.001 or from 1 to 1 - 1e-9. Closed
# forms, which the powers have, are differences that lose the digits of a short step.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


@registry.register
def er_sde(levels: Sequence[Any], *, order: int = 3, scale: str = 'sde5', corrected: bool = False,
           s_noise: float = 1.0, xp: Any = np) -> Table:
  """Builds ER-SDE-Solver of order 1, 2 or 3, with exact integrals.

  With r = p(sigma') / p(sigma), d1 and d2 the first and second derivative of D by sigma,
    x' = r x + (1 - r) D - int (1 - q) du d1 + int (sigma - u) (1 - q) du d2
         + sqrt(sigma'^2 - r^2 sigma^2) s_noise z,   q = p(sigma') / p(u), u from sigma' to sigma.
  Step i has order min(order, i + 1); a step to 0 returns the denoised image. The noise scale
  functions p(x) are 'ode' x; 'sde' x^2; 'sde1' x (e^(-1/x) + 10); 'sde2' x^1.5; 'sde3' x^2.5;
  'sde4' x^0.9 log10(1 + 100 x^1.5); 'sde5' x (e^(x^0.3) + 10).

  As published, d1 is a backward difference also where d2 is known, which leaves order 3 with second
  order; `corrected` adds d2 / 2 times the last step's length: third order in the drift, and less
  error at few steps. The published code sums each integral over 100 points on the left of their
  intervals, and rounds variances below 1e-6 to 0; here integrals are exact and variances kept.

  Source: Cui et al. 2023 (Elucidating the solution space of extended reverse-time SDE),
  arXiv:2309.06169, Sec. 3, with each integral of 1 / p joined to the term that it nearly cancels.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0. With 'sde4' at most 1022.
    order: 1, 2 or 3.
    scale: 'ode', 'sde' or 'sde1' to 'sde5'.
    corrected: make order 3 of third order.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and `order` slots.

  Raises:
    ValueError: if order is not 1, 2 or 3, the scale is unknown, corrected is no truth value,
      s_noise is below 0, or a level is too high for 'sde4'.
  """
  checks.check_order('er_sde', order, 3, 'order')
  checks.check_choice('er_sde', 'scale', scale, SCALES)
  checks.check_switch('er_sde', 'corrected', corrected)
  check_noise('er_sde', 0.0, s_noise, xp)
  if xp is np and scale == 'sde4' and max(levels) > _HIGHEST_SDE4:
    raise ValueError(f"er_sde: sigmas must be at most {_HIGHEST_SDE4:g} with scale 'sde4', got "
                     f"{max(levels):g}; p(sigma) / sigma decreases above, take 'sde5'")
  ends_in_zero = checks.is_zero(levels[-1])
  steps = _steps(levels[:-1] if ends_in_zero else levels, order, scale, xp)
  x, *memory, denoised = xp.eye(order + 1)
  answers = [denoised, *memory]
  rows = []
  for i, (kept, up, *integrals) in enumerate(steps):
    recent = [levels[i - j] for j in range(min(order, i + 1))]
    slopes = _derivatives(answers, recent, corrected)
    end = denoised + kept * (x - denoised) + weighted(integrals, slopes)
    s, s1 = levels[i], levels[i + 1]
    rows.append(Row(s, [end, *answers[:-1]], s1, **noise_of(up, up, s_noise, s, s1)))
  if ends_in_zero:
    rows.append(Row(levels[-2], answers, levels[-1]))
  return assemble(rows, xp)


def _steps(levels, order, scale, xp):
  """Weight of the state, of the noise and, above order 1, of two derivatives for each step."""
  if len(levels) == 1:
    return []
  s, s1 = xp.stack(levels[:-1]), xp.stack(levels[1:])
  h = xp.log1p((s - s1) / s1)
  excess = _excess(scale, s1, h, xp)
  up = [0.0] * len(s) if scale == 'ode' else s1 * root(-xp.expm1(-2 * excess), xp)
  parts = [xp.exp(-h - excess), up]
  if order > 1:
    parts += _integrals(scale, s1[:, None], h[:, None], xp)
  return zip(*parts, strict=True)


def _derivatives(answers, levels, corrected):
  """First and second derivative of D by sigma, as far as the levels in use give them."""
  slopes = [(answers[j] - answers[j + 1]) / (levels[j] - levels[j + 1])
            for j in range(len(levels) - 1)]
  if len(slopes) < 2:
    return slopes
  second = 2 * (slopes[0] - slopes[1]) / (levels[0] - levels[2])
  first = slopes[0] + second / 2 * (levels[0] - levels[1]) if corrected else slopes[0]
  return [first, second]


def _integrals(scale, s1, h, xp):
  """-int (1 - q) du and int (s - u) (1 - q) du from u = s1 to s = s1 e^h, (steps, 1) -> (steps,).

  Where q = p(s1) / p(u).
  """
  v = h * xp.asarray((_NODES[None] + 1) / 2, h.dtype)
  u = s1 * xp.exp(v)
  lost = xp.expm1(-v - _excess(scale, s1, v, xp))  # q - 1
  measure = h / 2 * xp.asarray(_WEIGHTS[None], h.dtype) * u * lost
  return [xp.sum(measure, axis=1), -xp.sum(measure * u * xp.expm1(h - v), axis=1)]


def _excess(scale, s1, v, xp):
  """log of p(u) / u over p(s1) / s1 at u = s1 e^v: the part of the noise, accurate for any v.

  Each is written through log1p and expm1 of the difference of two values of p: it may be as small
  as e^(-1/s1) beside 10.
  """
  if scale in _POWERS:
    return _POWERS[scale] * v
  if scale == 'sde4':
    w = 100 * s1**1.5
    gain = xp.log1p(w * xp.expm1(1.5 * v) / (1 + w))  # Of log(1 + 100 u^1.5).
    return xp.log1p(gain / xp.log1p(w)) - v / 10
  if scale == 'sde1':
    start, step = -1 / s1, -xp.expm1(-v) / s1  # -1/u - start
  else:
    start, step = s1**0.3, s1**0.3 * xp.expm1(0.3 * v)
  return xp.log1p(-xp.exp(start + step) * xp.expm1(-step) / (xp.exp(start) + 10))
