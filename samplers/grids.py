"""Grids of noise levels by formula, between sigma_max and sigma_min.

Every function takes (num_steps, sigma_min, sigma_max, own options) and gives np.float64 levels,
decreasing. num_steps counts intervals: num_steps + 1 levels. The first group ends at sigma_min,
the second has num_steps positive levels and then 0; with num_steps = 1 that is [sigma_max, 0].
Each function checks its own options; `schedules.schedule` checks the rest.
"""

from collections.abc import Sequence

import numpy as np

from samplers import checks, levels as levels_lib

# Ending at sigma_min.


def polynomial(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7) -> np.ndarray:
  """Returns levels equally spaced in sigma^(1/rho).

  sigma_i = (sigma_max^(1/rho) + i/n (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Eq. 5, without the zero.

  Args:
    num_steps: n.
    sigma_min: last level.
    sigma_max: first level.
    rho: exponent, > 0; 1 is equal spacing.

  Returns:
    np.float64 of shape (num_steps + 1,).
  """
  checks.check_positive('polynomial', 'rho', rho, '7 is the usual choice')
  return _power_points(num_steps + 1, sigma_min, sigma_max, rho)


def logsnr(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
  """Returns a geometric grid, equally spaced in log(sigma).

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Sec. 3.3.
  """
  return _geometric_points(num_steps + 1, sigma_min, sigma_max)


def time_uniform(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 1,
                 epsilon_s: float = 1e-3) -> np.ndarray:
  """Returns levels equally spaced in (VP time)^(1/rho).

  u_i = (1 + i/n (epsilon_s^(1/rho) - 1))^rho, sigma_i = sigma(u_i) of the VP process whose
  constants give sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max.

  Source: Song et al. 2021, arXiv:2011.13456, App. C; DPM-Solver, arXiv:2206.00927, Sec. 3.3.

  Args:
    num_steps: n.
    sigma_min: last level.
    sigma_max: first level.
    rho: exponent, > 0; 2 is DPM-Solver's quadratic grid.
    epsilon_s: time of the last level, in (0, 1).

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range, or the range is too narrow for sigma(u) to increase.
  """
  checks.check_positive('time_uniform', 'rho', rho, '1 is equal steps of time')
  return _vp_points('time_uniform', num_steps + 1, sigma_min, sigma_max, rho, epsilon_s)


# Ending in 0 after num_steps positive levels.


def edm(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7) -> np.ndarray:
  """Returns EDM's grid: `polynomial` with num_steps levels, then 0.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Eq. 5.
  """
  checks.check_positive('edm', 'rho', rho, '7 is the usual choice')
  return append_zero(_power_points(num_steps, sigma_min, sigma_max, rho))


def karras(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7) -> np.ndarray:
  """Returns the same grid as `edm`, under the name that k-diffusion gives it."""
  checks.check_positive('karras', 'rho', rho, '7 is the usual choice')
  return append_zero(_power_points(num_steps, sigma_min, sigma_max, rho))


def vp(num_steps: int, sigma_min: float, sigma_max: float, epsilon_s: float = 1e-3) -> np.ndarray:
  """Returns levels equally spaced in VP time, then 0.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, column VP; the constants follow from
  the range as in `time_uniform`.

  Args:
    num_steps: number of positive levels.
    sigma_min: last positive level, at time epsilon_s.
    sigma_max: first level, at time 1.
    epsilon_s: time of the last positive level, in (0, 1).

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: as in `time_uniform`.
  """
  return append_zero(_vp_points('vp', num_steps, sigma_min, sigma_max, 1, epsilon_s))


def ve(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
  """Returns a grid geometric in sigma^2, hence in sigma, then 0; the same levels as `exponential`.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, column VE.
  """
  return append_zero(_geometric_points(num_steps, sigma_min, sigma_max))


def exponential(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
  """Returns a geometric grid, then 0. Source: k-diffusion, get_sigmas_exponential."""
  return append_zero(_geometric_points(num_steps, sigma_min, sigma_max))


def polyexponential(num_steps: int, sigma_min: float, sigma_max: float,
                    rho: float = 1) -> np.ndarray:
  """Returns log(sigma_i) = log(sigma_min) + (1 - i/(n-1))^rho log(sigma_max/sigma_min), then 0.

  Source: k-diffusion, get_sigmas_polyexponential.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: last positive level.
    sigma_max: first level.
    rho: exponent, > 0; 1 is `exponential`.

  Returns:
    np.float64 of shape (num_steps + 1,).
  """
  checks.check_positive('polyexponential', 'rho', rho, "1 is 'exponential'")
  ramp = (1 - _fractions(num_steps))**rho
  grid = sigma_min * np.exp(ramp * np.log(sigma_max / sigma_min))
  return append_zero(_pin(grid, sigma_min, sigma_max))


def kvp(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
        beta_d: float = 19.9, beta_min: float = 0.1, eps_s: float = 1e-3) -> np.ndarray:
  """Returns k-diffusion's VP grid, equal steps of time from 1 to eps_s, then 0.

  Source: k-diffusion, get_sigmas_vp.

  Args:
    num_steps: number of positive levels.
    sigma_min: unused, the constants give the range.
    sigma_max: unused.
    beta_d: slope of beta(t), > 0.
    beta_min: beta(0), > 0.
    eps_s: time of the last positive level, in (0, 1).

  Returns:
    np.float64 of shape (num_steps + 1,).
  """
  del sigma_min, sigma_max
  checks.check_positive('kvp', 'beta_d', beta_d, '19.9 is the usual choice')
  checks.check_positive('kvp', 'beta_min', beta_min, '0.1 is the usual choice')
  checks.check_fraction('kvp', 'eps_s', eps_s, '1e-3 is the usual choice')
  time = 1 + _fractions(num_steps) * (eps_s - 1)
  return append_zero(levels_lib.sigma_of_vp_time(time, beta_d, beta_min))


def linear_quadratic(num_steps: int, sigma_min: float | None = None,
                     sigma_max: float | None = None, threshold_noise: float = 0.025,
                     linear_steps: int | None = None) -> np.ndarray:
  """Returns Mochi's grid: small equal steps first, then steps that grow, to 0.

  sigma_i = sigma_max (1 - f_i): f_i = i th / L for i < L; then the parabola through the same value
  and slope at i = L that reaches 1 at i = num_steps.

  Source: ComfyUI, linear_quadratic_schedule; the same in diffusers' Mochi pipeline.

  Args:
    num_steps: number of positive levels.
    sigma_min: unused.
    sigma_max: first level; it has to be given.
    threshold_noise: th, the part of the range that the equal steps cover, in (0, 1).
    linear_steps: L, from 1 to num_steps - 1; num_steps // 2 if None.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range, or the parabola would turn back.
  """
  del sigma_min
  checks.check_fraction('linear_quadratic', 'threshold_noise', threshold_noise, '0.025 is usual')
  if sigma_max is None:
    raise ValueError('linear_quadratic: sigma_max must be a number above 0, got None; give the '
                     'first level')
  if num_steps == 1:
    return np.array([sigma_max, 0.0])
  linear = num_steps // 2 if linear_steps is None else linear_steps
  if not checks.is_integer(linear) or not 1 <= linear < num_steps:
    raise ValueError(f'linear_quadratic: linear_steps must be an integer from 1 to num_steps - 1 = '
                     f'{num_steps - 1}, got {linear!r}; leave it out for num_steps // 2')
  steps = np.arange(num_steps + 1)
  past = np.maximum(steps - linear, 0)  # Steps after the straight part.
  slope = threshold_noise / linear
  covered = slope * steps + (1 - slope * num_steps) * (past / past[-1])**2
  if covered[-2] >= 1:
    raise ValueError(f'linear_quadratic: threshold_noise must leave the parabola rising, got '
                     f'{threshold_noise:g} in {linear} of {num_steps} steps; lower it or raise '
                     'linear_steps')
  return append_zero(sigma_max * (1 - covered[:-1]))


def explicit(num_steps: int | None = None, sigma_min: float | None = None,
             sigma_max: float | None = None, *, sigmas: Sequence[float]) -> np.ndarray:
  """Returns the given levels.

  Args:
    num_steps: unused, the list gives it.
    sigma_min: unused.
    sigma_max: unused.
    sigmas: two or more levels, decreasing; the last may be 0.

  Returns:
    np.float64 of shape (len(sigmas),).

  Raises:
    ValueError: if the list is not such.
  """
  del num_steps, sigma_min, sigma_max
  return checks.check_grid('explicit', checks.to_array('explicit', 'sigmas', sigmas))


# Shared pieces.


def _fractions(points):
  """i / (points - 1), and 0 for a single point."""
  return np.linspace(0.0, 1.0, points)


def _pin(grid, sigma_min, sigma_max):
  """Frees the ends of rounding; a single level is sigma_max."""
  grid[-1], grid[0] = sigma_min, sigma_max
  return grid


def append_zero(grid: np.ndarray) -> np.ndarray:
  """Returns the levels with a last level 0."""
  return np.append(grid, 0.0)


def differing(name: str, levels: np.ndarray, remedy: str) -> np.ndarray:
  """Returns decreasing levels, or raises ValueError if one comes twice.

  Args:
    name: the schedule, for the error.
    levels: levels or steps of training, not increasing.
    remedy: what to do about it.
  """
  twice = np.flatnonzero(np.diff(levels) >= 0)
  if twice.size:
    raise ValueError(f'{name}: num_steps must leave levels that differ, got {len(levels)}, and '
                     f'equal ones at index {twice[0]} and {twice[0] + 1}; {remedy}')
  return levels


def _power_points(points, sigma_min, sigma_max, rho):
  first, last = sigma_max**(1 / rho), sigma_min**(1 / rho)
  return _pin((first + _fractions(points) * (last - first))**rho, sigma_min, sigma_max)


def _geometric_points(points, sigma_min, sigma_max):
  grid = sigma_max * np.exp(_fractions(points) * np.log(sigma_min / sigma_max))
  return _pin(grid, sigma_min, sigma_max)


def _vp_points(name, points, sigma_min, sigma_max, rho, epsilon_s):
  checks.check_fraction(name, 'epsilon_s', epsilon_s, '1e-3 is the usual choice')
  beta_d, beta_min = levels_lib.vp_constants(sigma_min, sigma_max, epsilon_s)
  if min(beta_d * epsilon_s, beta_d) + beta_min <= 0:  # Slope of log(1 + sigma^2) at either end.
    raise ValueError(f'{name}: sigma_min and sigma_max must be far enough apart for epsilon_s = '
                     f'{epsilon_s:g}, got {sigma_min:g} and {sigma_max:g}; raise epsilon_s, or use '
                     'a grid without VP time such as logsnr')
  time = (1 + _fractions(points) * (epsilon_s**(1 / rho) - 1))**rho
  return _pin(levels_lib.sigma_of_vp_time(time, beta_d, beta_min), sigma_min, sigma_max)
