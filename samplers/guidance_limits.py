"""Limits on the denoised image. They carry the denoiser before all of them as `raw`."""

import jax
import jax.numpy as jnp

from samplers import guidance_parts
from samplers.guidance_parts import Denoiser


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
  def change(x: jax.Array, sigma: jax.Array, image: jax.Array) -> jax.Array:
    del x, sigma
    return limit(image)
  limited = guidance_parts.changed(denoise, change, both=True)
  limited.raw = guidance_parts.raw_of(denoise)
  return limited
