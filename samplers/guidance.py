"""Functions from denoiser to denoiser: guidance, and limits on the denoised image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]


def classifier(denoise: Denoiser, log_prob: Denoiser, scale: float | jax.Array) -> Denoiser:
  """Returns a denoiser guided by a classifier of noisy images.

  D <- D + scale sigma^2 grad_x log p(y | x; sigma), which is eps <- eps - scale sigma grad.

  Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Alg. 2 (there in x / sqrt(1 + sigma^2)).

  Args:
    denoise: D(x; sigma).
    log_prob: log p(y | x; sigma) of the wanted class of each sample, (batch,).
    scale: of the guidance; 0 is none, and 1 is the product of both distributions.

  Returns:
    A denoiser.
  """
  def guided(x, sigma):
    gradient = jax.grad(lambda x: jnp.sum(log_prob(x, sigma)))(x)
    square = jnp.square(jnp.asarray(sigma, x.dtype)).reshape(-1, *[1] * (x.ndim - 1))
    return denoise(x, sigma) + scale * square * gradient
  return guided


def classifier_free(denoise: Denoiser, denoise_uncond: Denoiser, scale: float | jax.Array,
                    interval: tuple[float, float] | None = None) -> Denoiser:
  """Returns a denoiser guided by the difference that the condition makes.

  D <- D_uncond + scale (D - D_uncond).

  Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6 with w = scale - 1; the interval:
  Kynkaanniemi et al. 2024, arXiv:2404.07724.

  Args:
    denoise: D(x; sigma) under the condition.
    denoise_uncond: without it.
    scale: of the guidance; 1 is none.
    interval: (lowest, highest) noise level that is guided; None: all.

  Returns:
    A denoiser.

  Raises:
    ValueError: if the interval does not go from a level >= 0 up to a higher one.
  """
  if interval is not None and not 0 <= interval[0] < interval[1]:
    raise ValueError(f'classifier_free: interval must go from a level >= 0 up, got {interval}; put '
                     'the lower level first')
  def guided(x, sigma):
    uncond = denoise_uncond(x, sigma)
    factor = jnp.asarray(scale, x.dtype)
    if interval is not None:
      levels = jnp.asarray(sigma, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
      inside = (interval[0] <= levels) & (levels <= interval[1])
      factor = jnp.where(inside, factor, jnp.ones_like(factor))
    return uncond + factor * (denoise(x, sigma) - uncond)
  return guided


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


def _limited(denoise, limit):
  def limited(x, sigma):
    return limit(denoise(x, sigma))
  limited.raw = getattr(denoise, 'raw', denoise)
  return limited
