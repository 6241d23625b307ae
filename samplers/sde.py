"""DPM-Solver++ for the diffusion SDE, as k-diffusion has it: exponential steps with fresh noise.

With lam = -log(sigma), h = log(sigma / sigma') and g = (1 + eta) h a multistep solver goes

  x' = e^(-g) x + (1 - e^(-g)) D + higher orders of D in lam + sigma' sqrt(1 - e^(-2 eta h)) z,

which is exact for a constant D at any eta >= 0; eta = 0 is the ODE, eta = 1 the reverse SDE.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, levels as levels_lib, registry
from samplers.ancestral import check_noise, noise_of
from samplers.table import Row, Table, assemble


@registry.register
def dpmpp_sde(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5,
              xp: Any = np) -> Table:
  """Builds DPM-Solver++ (SDE) steps with an inner level m = sigma'^r sigma^(1 - r).

  With down and up of a stretch as in `levels.ancestral_split` (eta > 1: at most down = 0),
    y = (down_m / sigma) x + (1 - down_m / sigma) D + up_m s_noise z_m,
    x' = (down / sigma) x + (1 - down / sigma) ((1 - 1 / (2 r)) D + D(y; m) / (2 r))
         + up s_noise z,
  where z_m acts from sigma to m and z from sigma to sigma'. On one Brownian path the two correlate,
  as published, and the solver has weak order 2 (on Gaussian data); with independent draws only 1.
  A step to 0 returns the denoised image.

  Source: k-diffusion's sample_dpmpp_sde; Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Sec. 5.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    r: place of the inner level in log sigma, 0 < r <= 1.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0) and 3 slots.

  Raises:
    ValueError: if eta or s_noise is below 0 or r is not within (0, 1].
  """
  check_noise('dpmpp_sde', eta, s_noise, xp)
  if xp is np:
    checks.check_node('dpmpp_sde', 'r', r, '0.5 is the midpoint')
  x, start, first, denoised = xp.eye(4)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    if checks.is_zero(s1):
      rows.append(Row(s, [denoised, start, first], s1))
      continue
    m = s * (s1 / s)**r
    down, up = levels_lib.ancestral_split(s, m, eta, xp=xp)
    rows.append(Row(s, [denoised + down / s * (x - denoised), x, denoised],
                    **noise_of(up, eta, s_noise, s, m)))
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    image = first + (denoised - first) / (2 * r)
    rows.append(Row(m, [image + down / s * (start - image), start, first], s1,
                    **noise_of(up, eta, s_noise, s, s1)))
  return assemble(rows, xp)


@registry.register
def dpmpp_2m_sde(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                 solver_type: str = 'midpoint', xp: Any = np) -> Table:
  """Builds DPM-Solver++(2M) for the SDE: one evaluation per step and the one before.

  With D1 the difference of the last two D in lam, in units of h, a step adds g phi_2(-g) D1
  ('heun') or g phi_1(-g) / 2 D1 ('midpoint'). Of order 2 for eta = 0, where 'midpoint' is
  `dpmpp_2m`. The first step is of order 1, a step to 0 the denoised image, also as the only one
  (where published code fails).

  Source: k-diffusion's sample_dpmpp_2m_sde; Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Sec.
  5.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    solver_type: 'midpoint' or 'heun'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots.

  Raises:
    ValueError: if eta or s_noise is below 0 or solver_type is unknown.
  """
  checks.check_choice('dpmpp_2m_sde', 'solver_type', solver_type, ('midpoint', 'heun'))

  def higher(g, differences):
    first, = differences
    if solver_type == 'heun':
      return g * coefficients.phi(2, -g, xp) * first
    return g * coefficients.phi(1, -g, xp) / 2 * first
  return _multistep('dpmpp_2m_sde', levels, 2, eta, s_noise, higher, xp)


@registry.register
def dpmpp_3m_sde(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                 xp: Any = np) -> Table:
  """Builds DPM-Solver++(3M) for the SDE: one evaluation per step and the two before.

  With D1 and D2 the derivatives of D in lam, in units of h, from the last three evaluations a step
  adds g phi_2(-g) D1 + g phi_3(-g) D2. As published D2 is the divided difference, half of the
  second derivative: for eta = 0 the solver is of order 2, and from the third step on `dpmpp` with
  max_order 3. The second step has D1 alone, the first neither. A step to 0 is the denoised image,
  also as the only one (where published code fails).

  Source: k-diffusion's sample_dpmpp_3m_sde.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 3 slots.

  Raises:
    ValueError: if eta or s_noise is below 0.
  """
  def higher(g, differences):
    total = coefficients.phi(2, -g, xp) * differences[0]
    if len(differences) == 2:
      total = total + coefficients.phi(3, -g, xp) * differences[1]
    return g * total
  return _multistep('dpmpp_3m_sde', levels, 3, eta, s_noise, higher, xp)


def _multistep(name: str, levels: Sequence[Any], depth: int, eta: Any, s_noise: Any,
               higher: Callable[[Any, list[Any]], Any], xp: Any) -> Table:
  """Builds the Table of a multistep solver of the SDE.

  Args:
    name: who asks, for errors.
    levels: n + 1 noise levels.
    depth: number of answers that the formula uses at most.
    eta: strength of the noise.
    s_noise: factor on the noise.
    higher: higher(g, differences): what a step adds for the first depth - 1 differences of D, as
      many as there are.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and `depth` slots: the state, then the earlier answers, the newest first.
  """
  check_noise(name, eta, s_noise, xp)
  x, *memory, denoised = xp.eye(depth + 1)
  answers = [denoised, *memory]
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    if checks.is_zero(s1):
      rows.append(Row(s, answers, s1))
      continue
    h = _step(s, s1, xp)
    g = (1 + eta) * h
    end = xp.exp(-g) * x - xp.expm1(-g) * denoised
    if i > 0:
      recent = levels[max(i + 1 - depth, 0):i + 1][::-1]
      end = end + higher(g, _differences(answers, recent, h, xp))
    up = s1 * xp.sqrt(-xp.expm1(-2 * eta * h))
    rows.append(Row(s, [end, *answers[:depth - 1]], s1, **noise_of(up, eta, s_noise, s, s1)))
  return assemble(rows, xp)


def _differences(answers, recent, h, xp):
  """First and, of three answers, second divided difference in lam, times h and h^2."""
  ratios = [_step(before, level, xp) / h
            for level, before in zip(recent, recent[1:], strict=False)]
  slopes = [(new - old) / ratio
            for new, old, ratio in zip(answers, answers[1:], ratios, strict=False)]
  if len(slopes) == 1:
    return slopes
  second = (slopes[0] - slopes[1]) / (ratios[0] + ratios[1])
  return [slopes[0] + ratios[0] * second, second]


def _step(s, s1, xp):
  """log(s / s1), accurate for short steps too."""
  return xp.log1p((s - s1) / s1)
