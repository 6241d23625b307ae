"""Grids of noise levels that come from a network's table, a distribution or a published list.

The conventions are those of `grids`. A table is `alphas_cumprod`: alpha_bar by training step, or a
key of `levels.ALPHAS_CUMPROD`.
"""

import math
from collections.abc import Sequence

import numpy as np

from samplers import checks, grids, levels as levels_lib

AYS_LEVELS = {
    'SD1': (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
            0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    'SDXL': (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
             0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    'SVD': (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
    'stable_diffusion_1': (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152,
                           0.029),
    'stable_diffusion_xl': (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113,
                            0.029),
    'stable_video_diffusion': (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173,
                               0.034, 0.002),
}
"""Align Your Steps: the short names as ComfyUI computes them from the published timesteps, the long
ones rounded as the authors print them."""

GITS_LEVELS = {
    'cifar10': {6: (80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002)},
}
"""Grids that the authors of GITS print, by data set and number of steps."""


def discrete(num_steps: int, sigma_min: float, sigma_max: float,
             alphas_cumprod: str | Sequence[float] | None = None, rho: float = 1,
             beta_d: float = levels_lib.ADM_BETA_D,
             beta_min: float = levels_lib.ADM_BETA_MIN) -> np.ndarray:
  """Returns levels equally spaced in (a network's time)^(1/rho), ending at sigma_min.

  u_i = (A + i/n (B - A))^rho, A = t(sigma_max)^(1/rho), B = t(sigma_min)^(1/rho), sigma_i =
  sigma(u_i). Published code leaves out the root in A: equal where t(sigma_max) = 1.

  Source: DPM-Solver, arXiv:2206.00927, Sec. 3.4; Zhou et al. 2024, arXiv:2312.00094 (its code).

  Args:
    num_steps: n.
    sigma_min: last level.
    sigma_max: first level.
    alphas_cumprod: the network's table; None for the analytic VP pair of ADM.
    rho: exponent, > 0.
    beta_d: slope of beta(t) of the analytic pair, > 0.
    beta_min: beta(0) of the analytic pair, > 0.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the table or an option is out of range, or sigma_min has no time above 0.
  """
  checks.check_positive('discrete', 'rho', rho, '1 is equal steps of time')
  if alphas_cumprod is None:
    checks.check_positive('discrete', 'beta_d', beta_d, '19.9 is the usual choice')
    checks.check_positive('discrete', 'beta_min', beta_min, '0.1 is the usual choice')
    pair = levels_lib.vp_time_of_sigma, levels_lib.sigma_of_vp_time
    constants = beta_d, beta_min
  else:
    pair = levels_lib.time_of_sigma, levels_lib.sigma_of_time
    constants = (levels_lib.read_alphas_cumprod('discrete', alphas_cumprod),)
  ends = pair[0](np.array([sigma_max, sigma_min]), *constants)
  if not ends[1] > 0:
    raise ValueError(f'discrete: sigma_min must be a level that the network reaches at a time '
                     f'above 0, got {sigma_min:g} (time {ends[1]:g}); raise sigma_min')
  first, last = ends**(1 / rho)
  grid = pair[1](np.linspace(first, last, num_steps + 1)**rho, *constants)
  grid[0], grid[-1] = sigma_max, sigma_min
  return grid


def iddpm(num_steps: int, sigma_min: float, sigma_max: float, C_1: float = 0.001,
          C_2: float = 0.008, M: int = 1000) -> np.ndarray:
  """Returns num_steps equally spaced ones of an iDDPM network's levels in the range, then 0.

  The level at position rint(i (K-1)/(n-1)) of the K levels u_j within [sigma_min, sigma_max], see
  `levels.iddpm_levels`; the ends of the range count with a margin of 1e-9.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, column iDDPM.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: lower end of the range.
    sigma_max: upper end.
    C_1: lower bound of the ratio of neighbours, in (0, 1).
    C_2: offset of the cosine rule, > 0.
    M: number of training steps.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range, or the range holds fewer than num_steps levels.
  """
  checks.check_fraction('iddpm', 'C_1', C_1, '0.001 is the usual choice')
  checks.check_positive('iddpm', 'C_2', C_2, '0.008 is the usual choice')
  if not checks.is_integer(M) or M < 1:
    raise ValueError(f'iddpm: M must be an integer of at least 1, got {M!r}; 1000 is usual')
  table = levels_lib.iddpm_levels(C_1, C_2, M)
  table = table[(table >= sigma_min * (1 - 1e-9)) & (table <= sigma_max * (1 + 1e-9))]
  if num_steps > len(table):
    raise ValueError(f"iddpm: num_steps must be at most {len(table)}, the network's levels from "
                     f'{sigma_min:g} to {sigma_max:g}, got {num_steps}; ask for fewer or widen the '
                     'range')
  positions = np.linspace(0, len(table) - 1, num_steps)
  return grids.append_zero(table[np.rint(positions).astype(int)])


def normal(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
           alphas_cumprod: str | Sequence[float]) -> np.ndarray:
  """Returns levels at equally spaced indices of a table, both ends included, then 0.

  Levels between entries are linear in log(sigma).

  Source: k-diffusion, DiscreteSchedule.get_sigmas; ComfyUI's scheduler 'normal'.

  Args:
    num_steps: number of positive levels.
    sigma_min: last positive level, clipped to the table; its smallest level if None.
    sigma_max: first level, clipped to the table; its largest if None.
    alphas_cumprod: the network's table.

  Returns:
    np.float64 of shape (num_steps + 1,).
  """
  table = _read_levels('normal', alphas_cumprod)
  low, high = _index_range('normal', table, sigma_min, sigma_max)
  return grids.append_zero(levels_lib.sigma_of_index(np.linspace(high, low, num_steps), table))


def sgm_uniform(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
                alphas_cumprod: str | Sequence[float]) -> np.ndarray:
  """Returns levels at num_steps + 1 equally spaced indices of a table, the last replaced by 0.

  Source: ComfyUI's scheduler 'sgm_uniform', after Stability AI's generative models.

  Args:
    num_steps: number of positive levels.
    sigma_min: as in `normal`; here the level that 0 replaces.
    sigma_max: as in `normal`.
    alphas_cumprod: the network's table.

  Returns:
    np.float64 of shape (num_steps + 1,).
  """
  table = _read_levels('sgm_uniform', alphas_cumprod)
  low, high = _index_range('sgm_uniform', table, sigma_min, sigma_max)
  indices = np.linspace(high, low, num_steps + 1)[:-1]
  return grids.append_zero(levels_lib.sigma_of_index(indices, table))


def beta(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
         alpha: float = 0.6, beta: float = 0.6,
         alphas_cumprod: str | Sequence[float] | None = None) -> np.ndarray:
  """Returns levels at quantiles of a beta distribution, then 0.

  Without a table (diffusers): sigma_min + Q(1 - i/(n-1)) (sigma_max - sigma_min). With a table of M
  entries (ComfyUI): the entries at rint((M-1) Q(1 - i/n)), half to even. Entries that come twice
  are kept once, so many steps give fewer levels than asked for.

  Source: Lee et al. 2024 (Beta Sampling is All You Need), arXiv:2407.12173.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: last positive level; with a table the lower end of the range, rounded to an entry
      and not reached; its smallest level if None.
    sigma_max: first level; with a table rounded to an entry, its largest if None.
    alpha: first parameter of the distribution, > 0.
    beta: second one, > 0.
    alphas_cumprod: the network's table, for ComfyUI's form.

  Returns:
    np.float64 of shape (num_steps + 1,), or shorter with a table.

  Raises:
    ValueError: if an option is out of range, or there is neither a table nor a range.
  """
  checks.check_positive('beta', 'alpha', alpha, '0.6 is the usual choice')
  checks.check_positive('beta', 'beta', beta, '0.6 is the usual choice')
  if alphas_cumprod is None:
    if sigma_min is None or sigma_max is None:
      raise ValueError(f'beta: sigma_min and sigma_max must be numbers above 0 without a table, '
                       f'got {sigma_min} and {sigma_max}; give them or alphas_cumprod')
    weight = beta_quantile(1 - np.linspace(0, 1, num_steps), alpha, beta)
    return grids.append_zero(sigma_min * (1 - weight) + sigma_max * weight)
  table = _read_levels('beta', alphas_cumprod)
  low, high = np.rint(_index_range('beta', table, sigma_min, sigma_max))
  quantiles = beta_quantile(1 - np.arange(num_steps) / num_steps, alpha, beta)
  indices = np.rint(low + (high - low) * quantiles).astype(int)
  return grids.append_zero(table[np.unique(indices)[::-1]])


def ays(num_steps: int | None = None, sigma_min: float | None = None,
        sigma_max: float | None = None, *, model: str) -> np.ndarray:
  """Returns the published Align Your Steps levels of a model, the last replaced by 0.

  For another number of steps than 10, log(sigma) is interpolated linearly over num_steps + 1
  equally spaced positions before the last level is replaced.

  Source: Sabour et al. 2024 (Align Your Steps), arXiv:2404.14507, and the authors' quick start.

  Args:
    num_steps: number of positive levels; 10 if None.
    sigma_min: unused, the list gives it.
    sigma_max: unused.
    model: a key of AYS_LEVELS.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the model is unknown.
  """
  del sigma_min, sigma_max
  checks.check_choice('ays', 'model', model, tuple(AYS_LEVELS))
  published = np.array(AYS_LEVELS[model])
  if num_steps is None or num_steps == len(published) - 1:
    return grids.append_zero(published[:-1])
  positions = np.linspace(0, len(published) - 1, num_steps + 1)[:-1]
  log_levels = np.interp(positions, np.arange(len(published)), np.log(published))
  return grids.append_zero(np.exp(log_levels))


def gits(num_steps: int | None = None, sigma_min: float | None = None,
         sigma_max: float | None = None, *, model: str) -> np.ndarray:
  """Returns a published GITS grid: the steps that a search chose for a data set, for iPNDM.

  A search depends on the number of steps, so there is no grid in between; `samplers.gits` searches
  one for any number and model.

  Source: Chen et al. 2024 (GITS), arXiv:2405.11326; the list is in the README of its code. It is
  the 61-point polynomial grid of rho 7 at the points 0, 19, 27, 33, 39, 45 and 60, to 4 decimals.

  Args:
    num_steps: intervals, one of those published; may be None where there is but one.
    sigma_min: unused, the list gives it.
    sigma_max: unused.
    model: a key of GITS_LEVELS.

  Returns:
    np.float64 of shape (num_steps + 1,), ending at sigma_min.

  Raises:
    ValueError: if the model is unknown, or there is no grid of so many steps.
  """
  del sigma_min, sigma_max
  checks.check_choice('gits', 'model', model, tuple(GITS_LEVELS))
  published = GITS_LEVELS[model]
  if num_steps is None and len(published) == 1:
    num_steps, = published
  if num_steps not in published:
    raise ValueError(f'gits: num_steps must be a published one, {", ".join(map(str, published))} '
                     f'for {model}, got {num_steps}; search a grid for another')
  return np.array(published[num_steps])


def beta_quantile(p: np.ndarray, a: float, b: float) -> np.ndarray:
  """Returns the quantile function of the beta distribution, to about 1e-14.

  Newton's method on log I_x(a, b) as a function of log x, for x up to the mean a / (a + b), from
  the series of positive terms I_x(a, b) = x^a (1-x)^b / (a B(a, b)) sum_k (a+b)_k / (a+1)_k x^k;
  beyond the mean through Q(p; a, b) = 1 - Q(1-p; b, a).

  Source: NIST Digital Library of Mathematical Functions, Eq. 8.17.4 and 8.17.8.

  Args:
    p: probabilities in [0, 1], any shape.
    a: first parameter, > 0.
    b: second parameter, > 0.

  Returns:
    x with I_x(a, b) = p, shaped like p.
  """
  p = np.asarray(p, np.float64)
  split = min(max(a / (a + b), 0.1), 0.9)  # Further out the series would be slow.
  p_split = 0.5 if a == b else np.exp(_log_beta_cdf(np.array([math.log(split)]), a, b)[0][0])
  x = np.where(p >= 1, 1.0, np.where(p == p_split, split, 0.0))
  low, high = (p > 0) & (p < p_split), (p > p_split) & (p < 1)
  x[low] = _lower_quantile(p[low], a, b, split)
  x[high] = 1 - _lower_quantile(1 - p[high], b, a, 1 - split)
  return x


def _lower_quantile(p, a, b, highest):
  """Quantiles that are known to be at most `highest`."""
  log_x = np.full(p.shape, math.log(highest))
  for _ in range(100):
    log_cdf, slope = _log_beta_cdf(log_x, a, b)
    step = (log_cdf - np.log(p)) / slope
    log_x = np.minimum(log_x - step, math.log(highest))
    if np.all(np.abs(step) < 1e-9):  # Newton's next error is its square.
      break
  return np.exp(log_x)


def _log_beta_cdf(log_x, a, b):
  """log I_x(a, b) and its derivative to log x, for x up to 0.9."""
  x = np.exp(log_x)
  series, term, k = np.ones_like(x), np.ones_like(x), 0
  while np.any(term > 1e-17 * series) or k < b:  # Below k = b the terms may still grow.
    term = term * x * (a + b + k) / (a + 1 + k)
    series, k = series + term, k + 1
  log_front = a * log_x + b * np.log1p(-x) - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b))
  return log_front + np.log(series / a), a / (series * (1 - x))


def _read_levels(name, alphas_cumprod):
  return levels_lib.table_sigmas(levels_lib.read_alphas_cumprod(name, alphas_cumprod))


def _index_range(name, table, sigma_min, sigma_max):
  """Indices of the ends of a range, clipped to the table; the whole table for None."""
  low = 0.0 if sigma_min is None else levels_lib.index_of_sigma(sigma_min, table)
  high = len(table) - 1.0 if sigma_max is None else levels_lib.index_of_sigma(sigma_max, table)
  if not low < high:
    raise ValueError(f"{name}: sigma_min and sigma_max must overlap the table's range, "
                     f'{table[0]:g} to {table[-1]:g}, got {sigma_min} and {sigma_max}; widen '
                     'the range')
  return low, high
