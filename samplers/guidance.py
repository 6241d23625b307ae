"""Functions from denoiser to denoiser: guidance, and limits on the denoised image.

Limits carry the denoiser before them as the attribute `raw`, and guidance passes it on: guided.raw
is the guidance of what was not limited. Guided denoisers also carry what solvers of two answers and
guidance with a history ask, see `guidance_parts`.

`METHODS` are the ways to guide by a network's answers with and without its condition; `options`
tells those of one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from samplers import checks, guidance_parts as parts
from samplers.guidance_limits import clip, dynamic_threshold
from samplers.guidance_methods import cfg_norm, classifier_free, fresca, mambo_g, rescale
from samplers.guidance_parts import (
  METHODS,
  Denoiser,
  Scale,
  Several,
  option_types,
  options,
  paired,
)
from samplers.guidance_projected import apg, cfg_zero_star, perp_neg, tcfg

__all__ = ['METHODS', 'Denoiser', 'LogProb', 'Scale', 'Several', 'apg', 'autoguidance', 'cfg_norm',
           'cfg_plus_plus', 'cfg_plus_plus_pair', 'cfg_zero_star', 'classifier', 'classifier_free',
           'classifier_free_pair', 'classifier_term', 'clip', 'dynamic_threshold', 'fresca',
           'mambo_g', 'of_denoised', 'option_types', 'options', 'paired', 'perp_neg', 'ramp',
           'rescale', 'tcfg']

LogProb = Callable[[jax.Array, jax.Array], jax.Array]
"""log p(condition | x; sigma) of each sample, (batch,), or anything to be increased."""


def classifier(denoise: Denoiser, log_prob: LogProb, scale: Scale) -> Denoiser:
  """Returns a denoiser guided by a classifier of noisy images, or by another condition.

  D <- D + scale sigma^2 grad_x log p(y | x; sigma), which is eps <- eps - scale sigma grad. Around
  a limited denoiser it is what guided-diffusion does: limit first, then guide.

  Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Alg. 2 (there in x / sqrt(1 + sigma^2)).

  Args:
    denoise: D(x; sigma).
    log_prob: log p(y | x; sigma) of the wanted class of each sample, (batch,).
    scale: of the guidance, a scalar or (batch,), or a function of sigma, see `ramp`; 0 is none, and
      1 is the product of both distributions.

  Returns:
    A denoiser.
  """
  term = classifier_term(log_prob, scale)

  def pull(x, sigma, image):
    return image - parts.column(sigma, x) * term(x, sigma)
  guided = parts.changed(denoise, pull, guides=True)
  raw = parts.raw_of(denoise)
  if raw is not denoise:
    guided.raw = classifier(raw, log_prob, scale)
  return guided


def classifier_term(log_prob: LogProb, scale: Scale) -> Denoiser:
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
    return -parts.scale_at(scale, x, sigma) * parts.column(sigma, x) * gradient
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


def classifier_free_pair(pair: Several, scale: Scale, interval: Any = None) -> Denoiser:
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
  return classifier_free(pair, None, scale, interval)


def autoguidance(denoise: Denoiser, denoise_weak: Denoiser, scale: Scale,
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
  def rule(x, sigma, memory, strong, weak):
    return parts.apart(strong, weak, parts.scale_at(scale, x, sigma)), memory
  return parts.guide('autoguidance', denoise, (denoise_weak,), rule, interval)


def cfg_plus_plus(denoise: Denoiser, denoise_uncond: Denoiser, scale: Scale,
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
  return cfg_plus_plus_pair(parts.together(denoise, denoise_uncond), scale, sigmas)


def cfg_plus_plus_pair(pair: Several, scale: Scale, sigmas: Any) -> Denoiser:
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

  def guided(x, sigma):
    cond, uncond = pair(x, sigma)
    levels = jnp.asarray(sigmas).astype(x.dtype).reshape(*[1] * x.ndim, -1)
    level = parts.column(sigma, x)
    # The grid may have been rounded on its way here: levels that near are the same.
    below = jnp.where(levels < level[..., None] * (1 - 1e-5), levels, 0).max(-1)
    factor = parts.scale_at(scale, x, sigma) / (1 - below / level)
    return parts.apart(cond, uncond, factor)
  raw = parts.raw_of(pair)
  if raw is not pair:
    guided.raw = cfg_plus_plus_pair(raw, scale, sigmas)
  return guided  # One image: it is Euler's step that makes it CFG++, also in `euler_cfg_pp`.


def ramp(scale: float | jax.Array, sigma_min: Any, sigma_max: Any,
         shape: str | float = 'linear') -> Callable[[jax.Array], jax.Array]:
  """Returns a scale that grows from 1 at the highest level to `scale` at the lowest.

  scale(sigma) = 1 + (scale - 1) f(u), u = ln(sigma_max / sigma) / ln(sigma_max / sigma_min) within
  0 and 1; f(u) = u, (1 - cos(pi u)) / 2, or a power of u. Guidance that grows keeps variety, which
  the high levels decide on, and costs little likeness.

  Source: Wang et al. 2024, arXiv:2404.13040, whose schedules are these in the time of a network;
  ln sigma stands for it here, which no network needs to tell.

  Args:
    scale: at sigma_min and below, a scalar or (batch,), traced or not.
    sigma_min: lower end, > 0.
    sigma_max: upper end, above the lower one.
    shape: 'linear', 'cosine', or the power, > 0.

  Returns:
    A function of sigma, a scalar or (batch,), for `scale` of the functions here.

  Raises:
    ValueError: if the shape is unknown, or ends on the host are not in order.
  """
  checks.check_choice('ramp', 'shape', shape if isinstance(shape, str) else 'linear',
                      ('linear', 'cosine'))
  if not isinstance(shape, str):
    checks.check_positive('ramp', 'shape', shape, "a power, such as 2, or 'linear' or 'cosine'")
  traced = any(isinstance(end, jax.Array) for end in (sigma_min, sigma_max))
  low, high = (checks.to_number(end) for end in (sigma_min, sigma_max)) if not traced else (1, 2)
  if not 0 < low < high < float('inf'):
    raise ValueError('ramp: sigma_min and sigma_max must be levels above 0, the lower one first, '
                     f'got {sigma_min!r} and {sigma_max!r}; take those of the model')

  def at(sigma):
    low, high = (jnp.asarray(end).astype(sigma.dtype) for end in (sigma_min, sigma_max))
    u = jnp.clip(jnp.log(high / sigma) / jnp.log(high / low), 0, 1)
    if shape == 'cosine':
      u = (1 - jnp.cos(jnp.pi * u)) / 2
    elif shape != 'linear':
      u = u**shape
    return 1 + (jnp.asarray(scale).astype(u.dtype) - 1) * u
  return at
