"""Between a network's own time and noise levels: tables, the VP process, iDDPM, k-diffusion.

Everywhere sigma is the noise level of x = x0 + sigma * z. Plain formulas take `xp` (numpy or
jax.numpy); tables are NumPy float64 on the host.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from samplers import checks

ADM_BETA_D, ADM_BETA_MIN = 19.9, 0.1  # The linear VP process of Song et al. 2021, also ADM's.

LOWEST_ALPHA_BAR = 2.0**-24  # In place of 0, whose level is infinite; diffusers' choice.


# Tables of alpha_bar.


def scaled_linear_alphas_cumprod(beta_start: float, beta_end: float, num: int = 1000) -> np.ndarray:
  """Returns alpha_bar of the scaled-linear rule of latent diffusion.

  alpha_bar_k = prod_{i <= k} (1 - beta_i), sqrt(beta) equally spaced.

  Source: Rombach et al. 2022, arXiv:2112.10752, the published configs.

  Args:
    beta_start: beta of the first training step.
    beta_end: beta of the last.
    num: number of training steps M.

  Returns:
    np.float64 of shape (num,), decreasing.
  """
  return np.cumprod(1 - np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num)**2)


def linear_alphas_cumprod(beta_start: float = 1e-4, beta_end: float = 0.02,
                          num: int = 1000) -> np.ndarray:
  """Returns alpha_bar for equally spaced beta. Source: Ho et al. 2020 (DDPM), arXiv:2006.11239."""
  return np.cumprod(1 - np.linspace(beta_start, beta_end, num))


def cosine_alphas_cumprod(num: int = 1000) -> np.ndarray:
  """Returns alpha_bar of the cosine rule.

  beta_i = min(1 - g((i + 1) / M) / g(i / M), 0.999), g(t) = cos((t + 0.008) / 1.008 pi / 2)^2.

  Source: Nichol and Dhariwal 2021 (iDDPM), arXiv:2102.09672, Eq. 17.
  """
  g = np.cos((np.arange(num + 1) / num + 0.008) / 1.008 * np.pi / 2)**2
  return np.cumprod(1 - np.minimum(1 - g[1:] / g[:-1], 0.999))


def zero_terminal_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
  """Returns a table stretched so that its last step is noise alone.

  With a = sqrt(alpha_bar): a' = (a - a_last) a_first / (a_first - a_last).

  Source: Lin et al. 2023, Common Diffusion Noise Schedules and Sample Steps are Flawed,
  arXiv:2305.08891, Alg. 1.

  Args:
    alphas_cumprod: alpha_bar by training step, decreasing, shape (M,).

  Returns:
    np.float64 of shape (M,). The last entry is 0, an infinite level: a network that predicts eps
    says nothing there, and a grid needs a finite level in its place, such as LOWEST_ALPHA_BAR.
  """
  a = np.sqrt(alphas_cumprod)
  return ((a - a[-1]) * a[0] / (a[0] - a[-1]))**2


ALPHAS_CUMPROD: dict[str, Callable[..., np.ndarray]] = {
    'stable_diffusion': lambda num=1000: scaled_linear_alphas_cumprod(0.00085, 0.012, num),
    'latent_diffusion': lambda num=1000: scaled_linear_alphas_cumprod(0.0015, 0.0195, num),
    # Of fewer steps each adds more noise, so that the last level stays about the same.
    'ddpm': lambda num=1000: linear_alphas_cumprod(0.1 / num, 20 / num, num),
    'cosine': lambda num=1000: cosine_alphas_cumprod(num),
}
"""Table of alpha_bar by name, computed when called with a number of training steps."""


def read_alphas_cumprod(name: str, table: str | Sequence[float] | np.ndarray) -> np.ndarray:
  """Returns a table of alpha_bar as float64, after checking it.

  Args:
    name: who asks, for the error.
    table: a key of ALPHAS_CUMPROD, for 1000 training steps, or one with their number such as
      'cosine:4000', either perhaps with ':zero_snr' behind it: `zero_terminal_snr`, with a low
      last entry in place of 0; or alpha_bar by training step.

  Returns:
    np.float64 of shape (M,).

  Raises:
    ValueError: if the name is unknown, the number of steps is none, or the table has fewer than two
      entries, one is outside (0, 1], or the next is not lower.
  """
  if isinstance(table, str):
    return _named_alphas_cumprod(name, table)
  array = checks.to_array(name, 'alphas_cumprod', table)
  if array.ndim != 1 or len(array) < 2:
    raise ValueError(f'{name}: alphas_cumprod must be a list of two or more entries, got shape '
                     f'{array.shape}; give one entry per training step')
  bad = np.flatnonzero(~((array > 0) & (array <= 1)))
  if bad.size:
    raise ValueError(f'{name}: alphas_cumprod must lie in (0, 1], got {array[bad[0]]} at index '
                     f'{bad[0]}; give cumprod(1 - beta), 2**-24 in place of a last 0')
  bad = np.flatnonzero(np.diff(array) >= 0)
  if bad.size:
    raise ValueError(f'{name}: alphas_cumprod must decrease strictly, got {array[bad[0] + 1]:g} '
                     f'after {array[bad[0]]:g} at index {bad[0] + 1}; order it from the first '
                     'training step (least noise) to the last')
  return array


def _named_alphas_cumprod(name, text):
  rule, *rest = text.split(':')
  checks.check_choice(name, 'alphas_cumprod', rule, tuple(ALPHAS_CUMPROD))
  stretched = rest[-1:] == ['zero_snr']
  num, *excess = rest[:len(rest) - stretched] or ['1000']
  # Betas of up to 20 / M have to stay below 1.
  if excess or not (num.isdecimal() and 20 < int(num) <= 10**6):
    raise ValueError(f'{name}: alphas_cumprod must name 21 to 1000000 training steps, got '
                     f"{text!r}; '{rule}:1000' is the usual number")
  table = ALPHAS_CUMPROD[rule](int(num))
  if stretched:
    table = zero_terminal_snr(table)
    table[-1] = min(LOWEST_ALPHA_BAR, table[-2] / 2)  # Of many steps the last but one is lower.
  return table


def table_sigmas(alphas_cumprod: np.ndarray) -> np.ndarray:
  """Returns the noise levels of a table, increasing: sqrt((1 - alpha_bar) / alpha_bar)."""
  alphas_cumprod = np.asarray(alphas_cumprod, np.float64)
  return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def sigma_of_time(time: Any, alphas_cumprod: np.ndarray, xp: Any = np) -> Any:
  """Returns the noise level at a continuous time of a network with a table.

  log alpha is linear between the knots t_k = (k + 1) / M, log alpha_k = log(alpha_bar_k) / 2, and
  beyond them along the outermost two; sigma = sqrt(1 - alpha^2) / alpha.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Sec. 3.4 and its published noise schedule.

  Args:
    time: 1 is the last training step.
    alphas_cumprod: the table, shape (M,).
    xp: numpy or jax.numpy.

  Returns:
    sigma, shaped like `time`; 0 where the extrapolation leaves alpha <= 1.
  """
  position = xp.asarray(time) * len(alphas_cumprod) - 1
  log_alphas = _like(np.log(alphas_cumprod) / 2, position, xp)
  low = xp.clip(xp.floor(position), 0, len(alphas_cumprod) - 2)
  knot = low.astype(int)
  log_alpha = log_alphas[knot] + (position - low) * (log_alphas[knot + 1] - log_alphas[knot])
  return xp.sqrt(xp.maximum(xp.expm1(-2 * log_alpha), 0))


def time_of_sigma(sigma: Any, alphas_cumprod: np.ndarray, xp: Any = np) -> Any:
  """Returns the time at which a network with a table has noise level sigma.

  The inverse of `sigma_of_time`: log alpha = -log(1 + sigma^2) / 2, interpolated back.

  Args:
    sigma: noise level, >= 0.
    alphas_cumprod: the table, shape (M,).
    xp: numpy or jax.numpy.

  Returns:
    time, shaped like sigma; beyond the table by extrapolation.
  """
  log_alpha = -xp.log1p(xp.asarray(sigma)**2) / 2
  log_alphas = _like(np.log(alphas_cumprod) / 2, log_alpha, xp)
  knot = xp.searchsorted(-log_alphas, -log_alpha, side='right') - 1
  knot = xp.clip(knot, 0, len(alphas_cumprod) - 2)
  step = (log_alpha - log_alphas[knot]) / (log_alphas[knot + 1] - log_alphas[knot])
  return (knot.astype(step.dtype) + 1 + step) / len(alphas_cumprod)


def network_index(sigma: Any, alphas_cumprod: np.ndarray, xp: Any = np) -> Any:
  """Returns M t - 1, the fractional index that a network with a table gets for sigma.

  Args:
    sigma: noise level, >= 0.
    alphas_cumprod: the table, shape (M,).
    xp: numpy or jax.numpy.

  Returns:
    index, shaped like sigma; 0 is the first training step.
  """
  return len(alphas_cumprod) * time_of_sigma(sigma, alphas_cumprod, xp) - 1


def table_range(alphas_cumprod: np.ndarray) -> tuple[float, float]:
  """Returns the range of a network with a table, (sigma(0.001), sigma(1))."""
  low, high = sigma_of_time(np.array([0.001, 1.0]), alphas_cumprod)
  return float(low), float(high)


# The VP process, sigma(t)^2 = exp(beta_d t^2 / 2 + beta_min t) - 1.


def check_vp_range(name: str, sigma_min: float, sigma_max: float, epsilon_s: float) -> None:
  """Checks a range that `vp_constants` is asked for.

  Args:
    name: who asks, for the error.
    sigma_min: noise level at time epsilon_s.
    sigma_max: noise level at time 1.
    epsilon_s: time of the lowest level.

  Raises:
    ValueError: if a level is not above 0, sigma_max is not above sigma_min, or epsilon_s is not
      between 0 and 1.
  """
  checks.check_fraction(name, 'epsilon_s', epsilon_s, '1e-3 is the usual choice')
  checks.check_positive(name, 'sigma_min', sigma_min, "the network's lowest level is usual")
  checks.check_positive(name, 'sigma_max', sigma_max, "the network's highest level is usual")
  checks.check_range(name, sigma_min, sigma_max)


def vp_constants(sigma_min: Any, sigma_max: Any, epsilon_s: float = 1e-3,
                 xp: Any = np) -> tuple[Any, Any]:
  """Returns (beta_d, beta_min) for which sigma(epsilon_s) = sigma_min and sigma(1) = sigma_max.

  beta_d = 2 (log(1 + sigma_min^2) / epsilon_s - log(1 + sigma_max^2)) / (epsilon_s - 1),
  beta_min = log(1 + sigma_max^2) - beta_d / 2. For a range so narrow that beta_d + beta_min < 0,
  sigma(t) has a peak before 1; `vp_time_of_sigma` then gives the time before the peak.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, the published ablation sampler.

  Args:
    sigma_min: noise level at time epsilon_s.
    sigma_max: noise level at time 1.
    epsilon_s: time of the lowest level.
    xp: numpy or jax.numpy.

  Returns:
    beta_d and beta_min.
  """
  low, high = xp.log1p(sigma_min**2), xp.log1p(sigma_max**2)
  beta_d = 2 * (low / epsilon_s - high) / (epsilon_s - 1)
  return beta_d, high - beta_d / 2


def sigma_of_vp_time(time: Any, beta_d: Any, beta_min: Any, xp: Any = np) -> Any:
  """Returns sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1).

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, column VP.

  Args:
    time: t, with 1 the end of the process.
    beta_d: slope of beta(t).
    beta_min: beta(0).
    xp: numpy or jax.numpy.

  Returns:
    sigma, shaped like `time`.
  """
  return xp.sqrt(xp.expm1((beta_d / 2 * time + beta_min) * time))


def vp_time_of_sigma(sigma: Any, beta_d: Any, beta_min: Any, xp: Any = np) -> Any:
  """Returns the time at which the VP process has noise level sigma, 0 at sigma = 0.

  t = (sqrt(beta_min^2 + 2 beta_d log(1 + sigma^2)) - beta_min) / beta_d, in the form without
  cancellation. A range wide enough gives beta_min < 0: then sigma(t) is real from
  t = -2 beta_min / beta_d on only, and 0 still maps to 0, as the end of the process.

  Args:
    sigma: noise level, >= 0.
    beta_d: slope of beta(t).
    beta_min: beta(0).
    xp: numpy or jax.numpy.

  Returns:
    time, shaped like sigma.
  """
  log_term = xp.log1p(sigma**2)
  root = xp.sqrt(beta_min**2 + 2 * beta_d * log_term)
  total = root + xp.abs(beta_min)
  safe = xp.where(total > 0, total, 1.0)  # total = 0 only where the answer is 0.
  rising = beta_min > 0
  time = xp.where(rising, 2 * log_term / safe, total / xp.where(rising, 1.0, beta_d))
  return xp.where(sigma > 0, time, 0.0)[()]


# Levels of given networks.


def iddpm_levels(C_1: float = 0.001, C_2: float = 0.008, M: int = 1000) -> np.ndarray:
  """Returns the noise levels of an iDDPM network in EDM's form.

  u_M = 0, u_{j-1} = sqrt((u_j^2 + 1) / max(a_{j-1} / a_j, C_1) - 1), a_j = sin(pi/2 j/M/(C_2+1))^2.
  In float64; the published network keeps a float32 table, off by up to 5e-4.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, column iDDPM.

  Args:
    C_1: lower bound of the ratio of neighbours.
    C_2: offset of the cosine rule.
    M: number of training steps.

  Returns:
    np.float64 of shape (M + 1,), decreasing to 0.
  """
  alpha_bar = np.sin(np.pi / 2 * np.arange(M + 1) / M / (C_2 + 1))**2
  levels = np.zeros(M + 1)
  for j in range(M, 0, -1):
    ratio = max(alpha_bar[j - 1] / alpha_bar[j], C_1)
    levels[j - 1] = np.sqrt((levels[j]**2 + 1) / ratio - 1)
  return levels


def nearest_index(sigmas: Any, levels: Any, xp: Any = np) -> Any:
  """Returns the index of the entry of `levels` nearest to each sigma, the first of equals."""
  sigmas = xp.asarray(sigmas)[..., None]
  levels = xp.asarray(levels).reshape((1,) * (sigmas.ndim - 1) + (-1,))
  return xp.argmin(xp.abs(sigmas - levels), axis=-1)


def round_to_levels(sigmas: Any, levels: Any, xp: Any = np) -> Any:
  """Returns the entry of `levels` nearest to each sigma, the first of equals.

  Args:
    sigmas: noise levels, any shape.
    levels: levels of a network, shape (M,), in any order.
    xp: numpy or jax.numpy.

  Returns:
    Rounded levels, shaped like sigmas.
  """
  return xp.asarray(levels)[nearest_index(sigmas, levels, xp)]


_PRECONDITIONING_RANGES = {
    'vp': lambda: tuple(float(sigma_of_vp_time(t, ADM_BETA_D, ADM_BETA_MIN)) for t in (1e-5, 1.0)),
    've': lambda: (0.02, 100.0),
    'iddpm': lambda: (float(iddpm_levels()[-2]), float(iddpm_levels()[0])),
    'edm': lambda: (0.0, float('inf')),
}


def preconditioning_range(name: str) -> tuple[float, float]:
  """Returns (sigma_min, sigma_max) that a network of EDM's preconditionings supports.

  Args:
    name: 'vp', 've', 'iddpm' or 'edm', with default constants.

  Returns:
    The range; (0, inf) for 'edm'.

  Raises:
    ValueError: if the name is unknown.
  """
  checks.check_choice('preconditioning_range', 'name', name, tuple(_PRECONDITIONING_RANGES))
  return _PRECONDITIONING_RANGES[name]()


# k-diffusion's DiscreteSchedule and ancestral steps.


def index_of_sigma(sigma: Any, sigmas: np.ndarray, quantize: bool = False, xp: Any = np) -> Any:
  """Returns the index of a noise level in a table, linear in log sigma, clipped to the table.

  Source: k-diffusion, DiscreteSchedule.sigma_to_t.

  Args:
    sigma: noise level, > 0.
    sigmas: levels of the table, increasing, shape (M,), see `table_sigmas`.
    quantize: return the index of the entry nearest in log sigma instead.
    xp: numpy or jax.numpy.

  Returns:
    index, shaped like sigma; integers if quantize.
  """
  log_sigma = xp.log(xp.asarray(sigma))
  log_sigmas = _like(np.log(sigmas), log_sigma, xp)
  if quantize:
    return nearest_index(log_sigma, log_sigmas, xp)
  return xp.interp(log_sigma, log_sigmas, _like(np.arange(len(sigmas)), log_sigma, xp))


def sigma_of_index(index: Any, sigmas: np.ndarray, xp: Any = np) -> Any:
  """Returns the noise level at a fractional index of a table, linear in log sigma.

  Source: k-diffusion, DiscreteSchedule.t_to_sigma.

  Args:
    index: 0 to M - 1, clipped to the table; under jax.numpy a floating type.
    sigmas: levels of the table, increasing, shape (M,).
    xp: numpy or jax.numpy.

  Returns:
    sigma, shaped like index.
  """
  index = np.asarray(index, np.float64) if xp is np else xp.asarray(index)
  knots = _like(np.arange(len(sigmas)), index, xp)
  return xp.exp(xp.interp(index, knots, _like(np.log(sigmas), index, xp)))


def ancestral_split(sigma: Any, sigma_next: Any, eta: Any = 1.0, xp: Any = np) -> tuple[Any, Any]:
  """Splits a step into a deterministic one to sigma_down and fresh noise sigma_up.

  sigma_up = min(sigma', eta sigma' sqrt(sigma^2 - sigma'^2) / sigma),
  sigma_down^2 = sigma'^2 - sigma_up^2 = sigma'^2 (1 - eta^2 + (eta sigma' / sigma)^2): computed in
  the last form, which neither cancels nor loses its gradient at eta = 0.

  Source: k-diffusion, get_ancestral_step.

  Args:
    sigma: current noise level, > 0.
    sigma_next: next one, from 0 to sigma.
    eta: strength of the noise; 1 is ancestral sampling.
    xp: numpy or jax.numpy.

  Returns:
    sigma_down and sigma_up.
  """
  if checks.is_zero(sigma_next):
    return 0.0, 0.0
  # On an increasing grid, which is for eta = 0 alone, there is no variance to add.
  added = xp.maximum((sigma - sigma_next) * (sigma + sigma_next), 0.0)
  up = eta * xp.sqrt(added) / sigma
  down_squared = (1 - eta) * (1 + eta) + (eta * sigma_next / sigma)**2
  return (sigma_next * xp.sqrt(xp.maximum(down_squared, 0.0)),
          sigma_next * xp.minimum(up, 1.0))


def _like(values, like, xp):
  """A table on the host as it is, under jax.numpy in the precision of the argument."""
  return values if xp is np else xp.asarray(values, like.dtype)
