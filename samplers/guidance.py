"""Functions from denoiser to denoiser: guidance, and limits on the denoised image.

Limits carry the denoiser before them as the attribute `raw`, and guidance passes it on: guided.raw
is the guidance of what was not limited.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from samplers import checks

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
LogProb = Callable[[jax.Array, jax.Array], jax.Array]
"""log p(condition | x; sigma) of each sample, (batch,), or anything to be increased."""
Pair = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Both answers at once: that which is wanted, and that to get away from. See `paired`."""


def classifier(denoise: Denoiser, log_prob: LogProb, scale: float | jax.Array) -> Denoiser:
  """Returns a denoiser guided by a classifier of noisy images, or by another condition.

  D <- D + scale sigma^2 grad_x log p(y | x; sigma), which is eps <- eps - scale sigma grad. Around
  a limited denoiser it is what guided-diffusion does: limit first, then guide.

  Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Alg. 2 (there in x / sqrt(1 + sigma^2)).

  Args:
    denoise: D(x; sigma).
    log_prob: log p(y | x; sigma) of the wanted class of each sample, (batch,).
    scale: of the guidance, a scalar or (batch,); 0 is none, and 1 is the product of both
      distributions.

  Returns:
    A denoiser.
  """
  term = classifier_term(log_prob, scale)

  def guided(x, sigma):
    return denoise(x, sigma) - _column(sigma, x) * term(x, sigma)
  raw = _raw(denoise)
  if raw is not denoise:
    guided.raw = classifier(raw, log_prob, scale)
  return guided


def classifier_term(log_prob: LogProb, scale: float | jax.Array) -> Denoiser:
  """Returns the guidance term alone, in units of eps: for solvers with rows of kind 1.

  guide(x, sigma) = -scale sigma grad_x log p(y | x; sigma).

  Source: Wizadwongsa & Suwajanakorn 2023, arXiv:2301.11558, Eq. 7, in these variables.

  Args:
    log_prob: as `classifier`.
    scale: of the guidance.

  Returns:
    guide(x, sigma), like x.
  """
  def guide(x, sigma):
    gradient = jax.grad(lambda x: jnp.sum(log_prob(x, sigma)))(x)
    return -_column(scale, x) * _column(sigma, x) * gradient
  return guide


def of_denoised(denoise: Denoiser, function: Callable[[jax.Array], jax.Array]) -> LogProb:
  """Returns a condition on the denoised image, for `classifier` and `classifier_term`.

  log p(x; sigma) = f(D(x; sigma)): the gradient goes through the network.

  Source: Chung et al. 2023 (DPS), arXiv:2209.14687, Eq. 11; arXiv:2301.11558, Sec. 4.

  Args:
    denoise: D(x; sigma), without a limit: where that acts, its gradient is 0.
    function: any differentiable function of images (batch, height, width, channels), (batch,).

  Returns:
    log_prob(x, sigma), (batch,).
  """
  return lambda x, sigma: function(denoise(x, sigma))


def classifier_free(denoise: Denoiser, denoise_uncond: Denoiser, scale: float | jax.Array,
                    interval: Any = None) -> Denoiser:
  """Returns a denoiser guided by the difference that the condition makes.

  D <- D_uncond + scale (D - D_uncond), within an interval of noise levels; D outside of it.

  Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6 with w = scale - 1; the interval:
  Kynkaanniemi et al. 2024, arXiv:2404.07724, Eq. 5.

  Args:
    denoise: D(x; sigma) under the condition.
    denoise_uncond: without it.
    scale: of the guidance, a scalar or (batch,), traced or not; 1 is none.
    interval: (low, high): guided where low < sigma <= high; None: everywhere.

  Returns:
    A denoiser.

  Raises:
    ValueError: if the interval does not go from a level >= 0 up to a higher one; one that is
      traced is not checked.
  """
  return classifier_free_pair(_two_calls(denoise, denoise_uncond), scale, interval)


def classifier_free_pair(pair: Pair, scale: float | jax.Array, interval: Any = None) -> Denoiser:
  """Returns what `classifier_free` does, from a function that gives both answers at once.

  Args:
    pair: pair(x, sigma) -> (D under the condition, D without it), see `paired`.
    scale: as `classifier_free`.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: as `classifier_free`.
  """
  _check_interval('classifier_free', interval)
  return _away(pair, lambda x, sigma: _column(scale, x), interval)


def autoguidance(denoise: Denoiser, denoise_weak: Denoiser, scale: float | jax.Array,
                 interval: Any = None) -> Denoiser:
  """Returns a denoiser guided away from a weaker model of the same condition.

  D <- D_weak + scale (D - D_weak): `classifier_free` with another partner.

  Source: Karras et al. 2024, arXiv:2406.02507, Eq. 3.

  Args:
    denoise: D(x; sigma).
    denoise_weak: of a model that was trained less, or is smaller.
    scale: of the guidance; 1 is none.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: as `classifier_free`.
  """
  _check_interval('autoguidance', interval)
  return classifier_free(denoise, denoise_weak, scale, interval)


def cfg_plus_plus(denoise: Denoiser, denoise_uncond: Denoiser, scale: float | jax.Array,
                  sigmas: Any) -> Denoiser:
  """Returns the denoiser that makes `euler` on a grid the sampler CFG++.

  CFG++ moves towards the guided image but keeps the unguided noise:
  x' = D_scale + sigma' (x - D_uncond) / sigma, D_scale = D_uncond + scale (D - D_uncond), 0 to 1.
  That is Euler with the scale divided by 1 - sigma' / sigma. At a level that is not on the grid
  sigma' is the next one below; below the last it is 0. Churn and DDIM's noise, which step from or
  to other levels, have no such form.

  Source: Chung et al. 2024 (CFG++), arXiv:2406.08070, Alg. 2.

  Args:
    denoise: D(x; sigma) under the condition.
    denoise_uncond: without it.
    scale: of the guidance, mostly 0 to 1.
    sigmas: the grid of noise levels, (n + 1,), decreasing, traced or not.

  Returns:
    A denoiser.

  Raises:
    ValueError: if a grid that is not traced does not decrease to a level >= 0.
  """
  return cfg_plus_plus_pair(_two_calls(denoise, denoise_uncond), scale, sigmas)


def cfg_plus_plus_pair(pair: Pair, scale: float | jax.Array, sigmas: Any) -> Denoiser:
  """Returns what `cfg_plus_plus` does, from a function that gives both answers at once.

  Args:
    pair: pair(x, sigma) -> (D under the condition, D without it), see `paired`.
    scale: as `cfg_plus_plus`.
    sigmas: as `cfg_plus_plus`.

  Returns:
    A denoiser.

  Raises:
    ValueError: as `cfg_plus_plus`.
  """
  if not isinstance(sigmas, jax.Array):
    sigmas = checks.check_grid('cfg_plus_plus', sigmas)

  def factor(x, sigma):
    levels = jnp.asarray(sigmas).astype(x.dtype).reshape(*[1] * x.ndim, -1)
    level = _column(sigma, x)
    # The grid may have been rounded on its way here: levels that near are the same.
    below = jnp.where(levels < level[..., None] * (1 - 1e-5), levels, 0).max(-1)
    return _column(scale, x) / (1 - below / level)
  return _away(pair, factor)


def paired(evaluate: Callable[[jax.Array, jax.Array, Any], jax.Array], condition: Any,
           no_condition: Any, calls: int = 1) -> Pair:
  """Returns both answers of one network, for `classifier_free_pair` and `cfg_plus_plus_pair`.

  Args:
    evaluate: evaluate(x, sigma, condition) -> D(x; sigma) under the condition of each sample.
    condition: labels or features, an array (batch, ...) or a tree of them.
    no_condition: the same for the other answer.
    calls: of the network: 1, with a batch of twice the size, or 2, which needs less memory.

  Returns:
    pair(x, sigma) -> (D under `condition`, D under `no_condition`).

  Raises:
    ValueError: if calls is neither 1 nor 2.
  """
  if calls not in (1, 2):
    raise ValueError(f'paired: calls must be 1 or 2, got {calls!r}; 1 is faster, 2 needs less '
                     'memory')
  if calls == 2:
    return _two_calls(lambda x, sigma: evaluate(x, sigma, condition),
                      lambda x, sigma: evaluate(x, sigma, no_condition))

  def pair(x, sigma):
    twice, conditions = jax.tree.map(lambda *halves: jnp.concatenate(halves), (x, condition),
                                     (x, no_condition))
    levels = jnp.concatenate([sigma, sigma]) if jnp.ndim(sigma) else sigma
    both = evaluate(twice, levels, conditions)
    return both[:len(x)], both[len(x):]
  return pair


def dynamic_threshold(denoise: Denoiser, quantile: float = 0.995) -> Denoiser:
  """Returns a denoiser limited per sample to a quantile of its own magnitudes.

  D <- clip(D, -q, q) / q, q = max(1, quantile of |D| over all pixels and channels of the sample),
  interpolated linearly between order statistics. For models in pixel space: a latent has no
  natural range. DPM-Solver++ and UniPC with data prediction were published with it.

  Source: Saharia et al. 2022 (Imagen), arXiv:2205.11487, Sec. 2.3.

  Args:
    denoise: D(x; sigma).
    quantile: between 0 and 1.

  Returns:
    A denoiser; its attribute `raw` is the one before any limit.

  Raises:
    ValueError: if the quantile is not within 0 and 1.
  """
  if not 0 <= quantile <= 1:
    raise ValueError('dynamic_threshold: quantile must be between 0 and 1, got '
                     f'{quantile!r}; published results used 0.995')

  def limit(denoised):
    magnitudes = jnp.abs(denoised).reshape(len(denoised), -1)
    bound = jnp.maximum(1.0, jnp.quantile(magnitudes, quantile, axis=1)).astype(denoised.dtype)
    bound = bound.reshape(-1, *[1] * (denoised.ndim - 1))
    return jnp.clip(denoised, -bound, bound) / bound
  return _limited(denoise, limit)


def clip(denoise: Denoiser) -> Denoiser:
  """Returns a denoiser clipped to the range of images, [-1, 1] (static thresholding).

  Source: Ho et al. 2020 (DDPM), arXiv:2006.11239; `clip_denoised` of guided-diffusion.

  Args:
    denoise: D(x; sigma).

  Returns:
    A denoiser; its attribute `raw` is the one before any limit.
  """
  return _limited(denoise, lambda denoised: jnp.clip(denoised, -1.0, 1.0))


def _away(pair, factor, interval=None):
  """D_other + factor (D - D_other) within the interval, D itself outside."""
  def guided(x, sigma):
    wanted, other = pair(x, sigma)
    moved = other + factor(x, sigma) * (wanted - other)
    if interval is None:
      return moved
    level, (low, high) = _column(sigma, x), (_column(end, x) for end in interval)
    return jnp.where((low < level) & (level <= high), moved, wanted)
  raw = _raw(pair)
  if raw is not pair:
    guided.raw = _away(raw, factor, interval)
  return guided


def _two_calls(denoise, other):
  """The Pair of two denoisers; its `raw` is that of what they were before their limits."""
  def pair(x, sigma):
    return denoise(x, sigma), other(x, sigma)
  raw = _raw(denoise), _raw(other)
  if raw != (denoise, other):
    pair.raw = _two_calls(*raw)
  return pair


def _raw(function):
  return getattr(function, 'raw', function)


def _column(values, x):
  """Noise levels or scales, a scalar or (batch,), as they multiply images."""
  return jnp.asarray(values).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def _check_interval(name, interval):
  traced = any(isinstance(end, jax.Array) for end in jax.tree.leaves(interval))
  if interval is not None and not traced and not 0 <= interval[0] < interval[1]:
    raise ValueError(f'{name}: interval must go from a level >= 0 up, got {interval}; put the '
                     'lower level first')


def _limited(denoise, limit):
  def limited(x, sigma):
    return limit(denoise(x, sigma))
  limited.raw = _raw(denoise)
  return limited
