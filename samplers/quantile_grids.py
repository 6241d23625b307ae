"""Grids of noise levels at equally spaced quantiles of a distribution.

Of sigma: Cauchy's in `kl_optimal`, the beta distribution in `beta`; of ln(sigma): Laplace's in
`laplace`. The conventions are those of the second group of `grids`: num_steps positive levels,
then 0.
"""

import math
from collections.abc import Sequence

import numpy as np

from samplers import checks, flow_grids, grids, table_grids


def kl_optimal(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
  """Returns levels equally spaced in atan(sigma), then 0.

  Source: Sabour et al. 2024 (Align Your Steps), arXiv:2404.14507, Sec. 3.1 (optimal in KL
  divergence for Gaussian data), in ComfyUI's form. The original divides 0 by 0 for one step.
  """
  fractions = np.linspace(0.0, 1.0, num_steps)
  grid = np.tan(fractions * np.arctan(sigma_min) + (1 - fractions) * np.arctan(sigma_max))
  grid[-1], grid[0] = sigma_min, sigma_max  # Free of rounding; a single level is sigma_max.
  return grids.append_zero(grid)


def laplace(num_steps: int, sigma_min: float, sigma_max: float, *, mu: float = 0.0,
            beta: float = 0.5) -> np.ndarray:
  """Returns levels at quantiles of a Laplace distribution of ln(sigma), then 0.

  sigma_i = exp(mu - beta sign(1/2 - u) ln(1 - 2 |1/2 - u| + 1e-5)), u = i/(n-1), clipped to the
  range. The original ends at sigma_min and so leaves noise of that level; 0 follows here.

  Source: Hang & Gu 2024, Improved Noise Schedule for Diffusion Training, arXiv:2407.03297, Table 1,
  in the form of ComfyUI's get_sigmas_laplace.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: lower end of the range.
    sigma_max: upper end.
    mu: logarithm of the level around which the others are dense.
    beta: width in ln(sigma), > 0.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range, or clipping makes levels equal.
  """
  if not np.isfinite(checks.to_number(mu)):
    raise ValueError(f'laplace: mu must be a finite number, got {mu!r}; 0 is usual')
  checks.check_positive('laplace', 'beta', beta, '0.5 is the usual choice')
  offset = 0.5 - np.linspace(0.0, 1.0, num_steps)
  log_levels = mu - beta * np.sign(offset) * np.log(1 - 2 * np.abs(offset) + 1e-5)
  levels = np.exp(np.clip(log_levels, np.log(sigma_min), np.log(sigma_max)))
  return grids.append_zero(
      grids.differing('laplace', levels, 'widen the range, or change mu or beta'))


def beta(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None,
         alpha: float = 0.6, beta: float = 0.6,
         alphas_cumprod: str | Sequence[float] | None = None,
         shift: float | None = None) -> np.ndarray:
  """Returns levels at quantiles of a beta distribution, then 0.

  Without a table (diffusers): sigma_min + Q(1 - i/(n-1)) (sigma_max - sigma_min). With a table of M
  entries (ComfyUI): the entries at rint((M-1) Q(1 - i/n)), half to even. Entries that come twice
  are kept once, so many steps give fewer levels than asked for. With a shift the table is a flow's.

  Source: Lee et al. 2024 (Beta Sampling is All You Need), arXiv:2407.12173.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: last positive level; with a table the lower end of the range, rounded to an entry
      and not reached; its smallest level if None.
    sigma_max: first level; with a table rounded to an entry, its largest if None; of a flow in
      place of the infinite one, see `flow_grids`.
    alpha: first parameter of the distribution, 0.01 to 100.
    beta: second one, the same.
    alphas_cumprod: the network's table, for ComfyUI's form.
    shift: of a flow's times, in place of a table; 1 leaves them as they are.

  Returns:
    np.float64 of shape (num_steps + 1,), or shorter with a table.

  Raises:
    ValueError: if an option is out of range, or there is neither a table nor a range.
  """
  for option, value in (('alpha', alpha), ('beta', beta)):
    if not 0.01 <= checks.to_number(value) <= 100:  # What `beta_quantile` is for.
      raise ValueError(f'beta: {option} must be a number from 0.01 to 100, got {value!r}; 0.6 is '
                       'the usual choice')
  if alphas_cumprod is None and shift is None:
    if sigma_min is None or sigma_max is None:
      raise ValueError(f'beta: sigma_min and sigma_max must be numbers above 0 without a table, '
                       f'got {sigma_min} and {sigma_max}; give them or alphas_cumprod')
    weight = beta_quantile(1 - np.linspace(0, 1, num_steps), alpha, beta)
    return grids.append_zero(sigma_min * (1 - weight) + sigma_max * weight)
  table = table_grids.read_levels('beta', alphas_cumprod, shift)
  if shift is None:
    low, high = np.rint(table_grids.index_range('beta', table, sigma_min, sigma_max))
  else:
    low, high = 0, len(table) - 1
  quantiles = beta_quantile(1 - np.arange(num_steps) / num_steps, alpha, beta)
  indices = np.rint(low + (high - low) * quantiles).astype(int)
  return flow_grids.finish('beta', table[np.unique(indices)[::-1]], sigma_max)


def beta_quantile(p: np.ndarray, a: float, b: float) -> np.ndarray:
  """Returns the quantile function of the beta distribution, to about 1e-14.

  Newton's method on log I_x(a, b) as a function of log x, for x up to the mean a / (a + b), from
  the series of positive terms I_x(a, b) = x^a (1-x)^b / (a B(a, b)) sum_k (a+b)_k / (a+1)_k x^k;
  beyond the mean through Q(p; a, b) = 1 - Q(1-p; b, a).

  Source: NIST Digital Library of Mathematical Functions, Eq. 8.17.4 and 8.17.8.

  Args:
    p: probabilities in [0, 1], any shape.
    a: first parameter, 0.01 to 100; far beyond, Newton's method may not find the way.
    b: second parameter, the same.

  Returns:
    x with I_x(a, b) = p, shaped like p.
  """
  p = np.asarray(p, np.float64)
  split = min(max(a / (a + b), 0.1), 0.9)  # Further out the series would be slow.
  p_split = 0.5 if a == b else np.exp(_log_beta_cdf(np.array([math.log(split)]), a, b)[0][0])
  x = np.where(p >= 1, 1.0, np.where(p == p_split, split, 0.0))
  low, high = (p > 0) & (p < min(p_split, 1)), (p > p_split) & (p < 1)  # It rounds, also upwards.
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
