"""One-step solvers: Euler, DDIM, Heun, DPM-Solver-2, EDM's Runge-Kutta family.

In these variables dx/dsigma = eps = (x - D) / sigma. With churn, noise is added before a step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, churn, levels as levels_lib, registry
from samplers.table import Row, Table, assemble


@registry.register
def euler(levels: Sequence[Any], *, S_churn: float = 0.0, S_min: float = 0.0,
          S_max: float = float('inf'), S_noise: float = 1.0,
          round_levels: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds Euler steps of the probability-flow ODE, in these variables DDIM with eta = 0.

  x' = x + (sigma' - sigma) eps. Order 1.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Eq. 1 with sigma(t) = t; Song et al. 2021
  (DDIM), arXiv:2010.02502, Eq. 13.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    S_churn: noise before each step; this and the next four as in `churn.Churn`.
    S_min: lowest level that is raised.
    S_max: highest level that is raised.
    S_noise: factor on the added noise.
    round_levels: levels of the network, if it knows no others.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.

  Raises:
    ValueError: if an option of the churn is out of range.
  """
  noise = churn.Churn(S_churn, S_min, S_max, S_noise, round_levels)
  x, denoised = xp.eye(2)
  rows = []
  for (s, before), s1 in zip(churn.starts('euler', levels, noise, 1, xp), levels[1:], strict=True):
    rows += [*before, Row(s, [denoised + s1 / s * (x - denoised)], level=s1)]
  return assemble(rows, xp)


@registry.register
def ddim(levels: Sequence[Any], *, eta: float = 0.0, xp: Any = np) -> Table:
  """Builds DDIM steps with noise eta; eta = 0 is Euler, eta = 1 the ancestral DDPM sampler.

  x' = D + down / sigma (x - D) + up z with up^2 = eta^2 sigma'^2 (sigma^2 - sigma'^2) / sigma^2
  and down^2 + up^2 = sigma'^2.

  Source: Song et al. 2021 (DDIM), arXiv:2010.02502, Eq. 12 and 16, divided by sqrt(alpha_bar').

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, 0 to 1.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.

  Raises:
    ValueError: if eta is not within 0 and 1.
  """
  if xp is np and not 0 <= checks.to_number(eta) <= 1:
    raise ValueError(f'ddim: eta must be between 0 and 1, got {eta!r}; 0 is deterministic, 1 is '
                     'ancestral')
  x, denoised = xp.eye(2)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    rows.append(Row(s, [denoised + down / s * (x - denoised)], s1, noise=up, interval=(s, s1)))
  return assemble(rows, xp)


@registry.register
def heun(levels: Sequence[Any], *, S_churn: float = 0.0, S_min: float = 0.0,
         S_max: float = float('inf'), S_noise: float = 1.0,
         round_levels: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds Heun steps: the slope is the mean of those at both ends. Order 2.

  A step to 0 is Euler, since eps is not defined there.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Alg. 1 with sigma(t) = t, s(t) = 1.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    S_churn: noise before each step; this and the next four as in `churn.Churn`.
    S_min: lowest level that is raised.
    S_max: highest level that is raised.
    S_noise: factor on the added noise.
    round_levels: levels of the network, if it knows no others.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0) and 2 slots.

  Raises:
    ValueError: if an option of the churn is out of range.
  """
  return _heun('heun', levels, churn.Churn(S_churn, S_min, S_max, S_noise, round_levels), xp)


@registry.register
def edm(levels: Sequence[Any], *, S_churn: float = 0.0, S_min: float = 0.0,
        S_max: float = float('inf'), S_noise: float = 1.0,
        round_levels: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds EDM's sampler: `heun` under the name of its paper, meant for grids that end in 0.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Alg. 2; with S_churn = 0 Alg. 1. Table 5 has
  the published S_churn, S_min, S_max and S_noise by model.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    S_churn: noise before each step; this and the next four as in `churn.Churn`.
    S_min: lowest level that is raised.
    S_max: highest level that is raised.
    S_noise: factor on the added noise.
    round_levels: levels of the network, if it knows no others.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0) and 2 slots.

  Raises:
    ValueError: if an option of the churn is out of range.
  """
  return _heun('edm', levels, churn.Churn(S_churn, S_min, S_max, S_noise, round_levels), xp)


def _heun(name, levels, noise, xp):
  x, slope, denoised = xp.eye(3)
  rows = []
  for (s, before), s1 in zip(churn.starts(name, levels, noise, 2, xp), levels[1:], strict=True):
    rows += before
    eps = (x - denoised) / s
    euler_x = denoised + s1 / s * (x - denoised)
    if checks.is_zero(s1):
      rows.append(Row(s, [euler_x, eps], level=s1))
      continue
    rows.append(Row(s, [euler_x, eps]))
    rows.append(Row(s1, [x + (s1 - s) / 2 * ((x - denoised) / s1 - slope), slope], level=s1))
  return assemble(rows, xp)


@registry.register
def dpm(levels: Sequence[Any], *, r: float = 0.5, rho: float | None = None, S_churn: float = 0.0,
        S_min: float = 0.0, S_max: float = float('inf'), S_noise: float = 1.0,
        round_levels: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds DPM-Solver-2 steps with an inner level m = sigma'^r sigma^(1 - r). Order 2.

  x' = x + (sigma' - sigma) ((1 - 1 / (2 r)) eps + eps_m / (2 r)). A step to 0 is Euler.

  With rho, r is a place in sigma^(1/rho), as the levels of a polynomial grid have it: m^(1/rho) =
  (1 - r) sigma^(1/rho) + r sigma'^(1/rho), and the above is the limit for a large rho. This m is
  above 0 in a step to 0 too, which is then made like the others.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Alg. 4, in the form of EDM, App. C.2, and
  of Zhou et al. 2024 (AMED), arXiv:2312.00094. r = 1/2 is k-diffusion's sample_dpm_2, and with
  rho = 3 the dpm sampler of consistency_models.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    r: place of the inner level in the step, 0 < r <= 1.
    rho: > 0, see above; None: r is a place in log sigma.
    S_churn: noise before each step; this and the next four as in `churn.Churn`.
    S_min: lowest level that is raised.
    S_max: highest level that is raised.
    S_noise: factor on the added noise.
    round_levels: levels of the network, if it knows no others.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0 and rho is None or r is 1) and 2 slots.

  Raises:
    ValueError: if r is not within (0, 1], or rho or an option of the churn is out of range.
  """
  if xp is np:
    checks.check_node('dpm', 'r', r, '0.5 is the midpoint')
    if rho is not None:
      checks.check_positive('dpm', 'rho', rho, '3 is that of consistency_models')
  noise = churn.Churn(S_churn, S_min, S_max, S_noise, round_levels)

  def inner(s, s1):
    return s * (s1 / s)**r if rho is None else ((1 - r) * s**(1 / rho) + r * s1**(1 / rho))**rho

  # The inner level of a step to 0 would be 0 as well, where eps is not defined.
  euler_at_end = rho is None or (isinstance(r, float | int) and r == 1)
  x, slope, denoised = xp.eye(3)
  rows = []
  for (s, before), s1 in zip(churn.starts('dpm', levels, noise, 2, xp), levels[1:], strict=True):
    rows += before
    eps = (x - denoised) / s
    if checks.is_zero(s1) and euler_at_end:
      rows.append(Row(s, [denoised, eps], level=s1))
      continue
    m = inner(s, s1)
    rows.append(Row(s, [x + (m - s) * eps, eps]))
    rest = (s1 - s) * (1 - 0.5 / r) - (m - s)  # What is left of the first slope after the half.
    rows.append(Row(m, [x + rest * slope + (s1 - s) * 0.5 / r * (x - denoised) / m, slope],
                    level=s1))
  return assemble(rows, xp)


@registry.register
def rk(levels: Sequence[Any], *, order: int = 2, c: float = 1.0, schedule: str = 'linear',
       scaling: str = 'none', sigma_min: float | None = None, sigma_max: float | None = None,
       epsilon_s: float = 1e-3, S_churn: float = 0.0, S_min: float = 0.0,
       S_max: float = float('inf'), S_noise: float = 1.0,
       round_levels: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds EDM's family of Runge-Kutta steps in t, for a noise schedule and a scaling.

  With state s(t) x and noise level sigma(t), dx~/dt = f(x~, t) = (sigma'/sigma + s'/s) x~
  - sigma' s / sigma D(x~ / s; sigma). Order 2: k1 = f(x~, t), k2 = f(x~ + c h k1, t + c h),
  x~' = x~ + h ((1 - 1/(2 c)) k1 + k2 / (2 c)). A step to 0 is Euler. c = 1 is Heun, 1/2 the
  midpoint, 2/3 Ralston. The Table holds x = x~ / s; a step with churn starts at the time of the
  raised level.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, Eq. 4 and Alg. 3; the Runge-Kutta
  baseline of SEEDS, arXiv:2305.14267.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    order: 1 or 2.
    c: node of the second stage, 0 < c <= 1; EDM's alpha.
    schedule: sigma(t): 'vp' (variance preserving), 've' (sqrt(t)) or 'linear' (t).
    scaling: s(t): 'none' (1) or 'vp' (1 / sqrt(1 + sigma^2)).
    sigma_min: level that the vp schedule has at epsilon_s; None: the grid's last above 0.
    sigma_max: level that the vp schedule has at t = 1; None: the grid's first.
    epsilon_s: time of sigma_min in the vp schedule.
    S_churn: noise before each step; this and the next four as in `churn.Churn`.
    S_min: lowest level that is raised.
    S_max: highest level that is raised.
    S_noise: factor on the added noise.
    round_levels: levels of the network, if it knows no others.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n (order 1), 2 n (order 2; 2 n - 1 if the grid ends in 0), 2 slots.

  Raises:
    ValueError: if order, c, schedule or scaling is not one of the above, the vp schedule has no
      range or one below the grid, or an option of the churn is out of range.
  """
  checks.check_order('rk', order, 2, 'order')
  checks.check_choice('rk', 'schedule', schedule, ('vp', 've', 'linear'))
  checks.check_choice('rk', 'scaling', scaling, ('none', 'vp'))
  if xp is np:
    checks.check_node('rk', 'c', c, '1 is Heun')
  ends = levels[0], levels[-2] if checks.is_zero(levels[-1]) else levels[-1]
  high, low = ends if xp is not np else (max(ends), min(ends))  # A grid may rise.
  low = low if sigma_min is None else sigma_min
  high = high if sigma_max is None else sigma_max
  if xp is np and schedule == 'vp':
    levels_lib.check_vp_range('rk', low, high, epsilon_s)
    if high < levels[0] * (1 - 1e-9):
      raise ValueError(f"rk: sigma_max must not be below the grid's first level {levels[0]:g}, got "
                       f'{high:g}; leave it out to take that level')
  time_of, sigma_of, slope_of = _noise_schedule(schedule, low, high, epsilon_s, xp)

  def scale(sigma):
    return 1 / xp.sqrt(1 + sigma**2) if scaling == 'vp' else 1.0

  def velocity(x, denoised, sigma, t):  # f at x~ = s x; s'/s = -sigma sigma' s^2 for vp scaling.
    s, dsigma = scale(sigma), slope_of(sigma, t)
    drift = dsigma / sigma - (sigma * dsigma * s**2 if scaling == 'vp' else 0.0)
    return s * (drift * x - dsigma / sigma * denoised)

  noise = churn.Churn(S_churn, S_min, S_max, S_noise, round_levels)
  x, slope, denoised = xp.eye(3)
  rows = []
  for (sigma, before), sigma1 in zip(churn.starts('rk', levels, noise, 2, xp), levels[1:],
                                     strict=True):
    rows += before
    t, t1 = time_of(sigma), time_of(sigma1)
    h = t1 - t
    k1 = velocity(x, denoised, sigma, t)
    if order == 1 or checks.is_zero(sigma1):
      rows.append(Row(sigma, [(scale(sigma) * x + h * k1) / scale(sigma1), k1], level=sigma1))
      continue
    whole = isinstance(c, float | int) and c == 1
    t2, sigma2 = (t1, sigma1) if whole else (t + c * h, sigma_of(t + c * h))
    rows.append(Row(sigma, [(scale(sigma) * x + c * h * k1) / scale(sigma2), k1]))
    k2 = velocity(x, denoised, sigma2, t2)
    end = scale(sigma2) * x + h * ((1 - 0.5 / c - c) * slope + 0.5 / c * k2)
    rows.append(Row(sigma2, [end / scale(sigma1), slope], level=sigma1))
  return assemble(rows, xp)


def _noise_schedule(schedule, sigma_min, sigma_max, epsilon_s, xp):
  """Returns t(sigma), sigma(t) and sigma'(t) as a function of (sigma, t)."""
  if schedule == 'linear':
    return (lambda sigma: sigma), (lambda t: t), lambda sigma, t: 1.0
  if schedule == 've':
    return (lambda sigma: sigma**2), xp.sqrt, lambda sigma, t: 0.5 / sigma
  beta = levels_lib.vp_constants(sigma_min, sigma_max, epsilon_s, xp=xp)
  return (lambda sigma: levels_lib.vp_time_of_sigma(sigma, *beta, xp=xp),
          lambda t: levels_lib.sigma_of_vp_time(t, *beta, xp=xp),
          lambda sigma, t: 0.5 * (beta[0] * t + beta[1]) * (sigma + 1 / sigma))
