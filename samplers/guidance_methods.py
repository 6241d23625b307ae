"""Classifier-free guidance, and methods that scale or filter what the condition changes.

All methods are functions of two denoisers, or of one function that gives both answers
(`guidance.paired`) with None for the second, and all reductions are over the pixels and channels of
one sample. Notation: c and u the denoised images with the condition and without, w the scale,
e = x - D, <a, b> the sum over all pixels and channels of a sample, |a|^2 = <a, a>.

Methods that scale or compare answers depend on what the network is taken to predict, its space. Up
to a factor that cancels each space is D - q x: 'denoised' q = 0; 'eps' q = 1; 'velocity' (of flow
matching, eps - D) q = 1 / (1 + sigma); 'v' (of a VP process) q = 1 / (1 + sigma^2).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from samplers import checks, guidance_parts as parts
from samplers.guidance_parts import Denoiser, Scale, Several

_SPACES = {'denoised': jnp.zeros_like, 'eps': jnp.ones_like,
           'velocity': lambda sigma: 1 / (1 + sigma), 'v': lambda sigma: 1 / (1 + sigma**2)}


@parts.register
def classifier_free(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale,
                    interval: Any = None) -> Denoiser:
  """Returns a denoiser guided by the difference that the condition makes.

  D <- D_uncond + scale (D - D_uncond), within an interval of noise levels; D outside of it.

  Source: Ho & Salimans 2022, arXiv:2207.12598, Eq. 6 with w = scale - 1; the interval:
  Kynkaanniemi et al. 2024, arXiv:2404.07724, Eq. 5.

  Args:
    denoise: D(x; sigma) under the condition; or both answers, see `paired`, with None for the next.
    denoise_uncond: without it.
    scale: of the guidance: a scalar or (batch,), traced or not, or a function of sigma, see `ramp`;
      1 is none.
    interval: (low, high): guided where low < sigma <= high; None: everywhere.

  Returns:
    A denoiser.

  Raises:
    ValueError: if the interval does not go from a level >= 0 up to a higher one; one that is
      traced is not checked.
  """
  def rule(x, sigma, memory, cond, uncond):
    return parts.apart(cond, uncond, parts.scale_at(scale, x, sigma)), memory
  return parts.guide('classifier_free', denoise, (denoise_uncond,), rule, interval)


@parts.register
def rescale(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
            phi: float = 0.7, space: str = 'v', interval: Any = None) -> Denoiser:
  """Returns classifier-free guidance that keeps the contrast of the answer under the condition.

  P <- P (phi std(P_c) / std(P) + 1 - phi), P the guided prediction, P_c that under the condition.
  The result depends on the space: the paper's is v, a pipeline of the network's own prediction has
  whatever that is.

  Source: Lin et al. 2023, arXiv:2305.08891, Sec. 3.4.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`.
    phi: how much of it, 0 (none) to 1.
    space: 'v', 'eps', 'velocity' or 'denoised'.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: if an option is out of range, or as `classifier_free`.
  """
  parts.check('rescale', 'phi', phi, lambda phi: 0 <= phi <= 1, 'be from 0 to 1', '0.7 is usual')
  checks.check_choice('rescale', 'space', space, tuple(_SPACES))

  def rule(x, sigma, memory, cond, uncond):
    moved = parts.apart(cond, uncond, parts.scale_at(scale, x, sigma))
    origin = _SPACES[space](parts.column(sigma, x)) * x
    ratio = parts.ratio(_std(cond - origin), _std(moved - origin))
    factor = parts.column(phi, x) * (ratio - 1) + 1
    return origin + factor * (moved - origin), memory
  return parts.guide('rescale', denoise, (denoise_uncond,), rule, interval)


@parts.register
def mambo_g(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
            alpha: float = 8.0, space: str = 'velocity', interval: Any = None) -> Denoiser:
  """Returns MAMBO-G: a scale that falls where the condition makes a large difference.

  D = u + (1 + (w - 1) exp(-alpha r)) (c - u), r = |P_c - P_u| / |P_u| in the given space.

  Source: arXiv:2508.03442, for the velocity of flow matching.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`; the highest.
    alpha: how fast it falls, >= 0; 0 is `classifier_free`.
    space: 'velocity', 'eps', 'v' or 'denoised'.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: if an option is out of range, or as `classifier_free`.
  """
  parts.check('mambo_g', 'alpha', alpha, lambda alpha: 0 <= alpha < np.inf,
         'be a finite number of at least 0', '8 is usual')
  checks.check_choice('mambo_g', 'space', space, tuple(_SPACES))

  def rule(x, sigma, memory, cond, uncond):
    origin = _SPACES[space](parts.column(sigma, x)) * x
    ratio = parts.ratio(parts.norm(cond - uncond), parts.norm(uncond - origin))
    damped = (parts.scale_at(scale, x, sigma) - 1) * jnp.exp(-parts.column(alpha, x) * ratio)
    return parts.apart(cond, uncond, 1 + damped), memory
  return parts.guide('mambo_g', denoise, (denoise_uncond,), rule, interval)


@parts.register
def fresca(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
           scale_low: float = 1.0, scale_high: float = 1.25, freq_cutoff: int = 20,
           interval: Any = None) -> Denoiser:
  """Returns guidance with factors of its own for low and high frequencies.

  c - u is filtered per channel: the frequencies below `freq_cutoff` along both axes count
  scale_low times, the others scale_high times. D = u + w (c - u, filtered).

  Source: Huang et al. 2025 (FreSca), arXiv:2504.02154; the square block of ComfyUI's node,
  from -cutoff to cutoff - 1, at most half of a side.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`.
    scale_low: factor on the low frequencies.
    scale_high: factor on the others.
    freq_cutoff: in whole waves over the image, an integer >= 0, not traced.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: if an option is out of range, or as `classifier_free`.
  """
  for option, value in (('scale_low', scale_low), ('scale_high', scale_high)):
    parts.check('fresca', option, value, np.isfinite, 'be a finite number', '1 changes nothing')
  if not checks.is_integer(freq_cutoff) or freq_cutoff < 0:
    raise ValueError('fresca: freq_cutoff must be an integer of at least 0, got '
                     f'{freq_cutoff!r}; 20 is usual for latents of 64 x 64')

  def rule(x, sigma, memory, cond, uncond):
    step = cond - uncond
    low = _low_frequencies(x.shape[1:3], freq_cutoff)[None, :, :, None]
    factor = jnp.where(low, parts.column(scale_low, x), parts.column(scale_high, x))
    waves = jnp.fft.fft2(step, axes=(1, 2))
    filtered = jnp.fft.ifft2(waves * factor.astype(waves.dtype), axes=(1, 2)).real
    return uncond + parts.scale_at(scale, x, sigma) * filtered, memory
  return parts.guide('fresca', denoise, (denoise_uncond,), rule, interval)


@parts.register
def cfg_norm(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
             strength: float = 1.0, interval: Any = None) -> Denoiser:
  """Returns classifier-free guidance whose pixels are no longer than under the condition alone.

  Each pixel of the guided image is multiplied by strength min(1, |c| / |D|), norms over its
  channels.

  Source: ComfyUI's node CFGNorm; 1e-8 is added to |D| as there.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`.
    strength: factor on the result, above 0.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: if the strength is not above 0, or as `classifier_free`.
  """
  parts.check('cfg_norm', 'strength', strength, lambda strength: 0 < strength < np.inf,
         'be a finite number above 0', '1 is usual')

  def rule(x, sigma, memory, cond, uncond):
    moved = parts.apart(cond, uncond, parts.scale_at(scale, x, sigma))
    longest, length = (parts.root(jnp.sum(image**2, -1, keepdims=True)) for image in (cond, moved))
    short = jnp.minimum(1, longest / (length + 1e-8))
    return parts.column(strength, x) * short * moved, memory
  return parts.guide('cfg_norm', denoise, (denoise_uncond,), rule, interval)


def _std(image):
  return parts.root(jnp.mean((image - jnp.mean(image, (1, 2, 3), keepdims=True))**2, (1, 2, 3),
                        keepdims=True))


def _low_frequencies(shape, cutoff):
  """Which coefficients of a 2-d Fourier transform are low, bool (height, width)."""
  inside = [(waves >= -most) & (waves < most) for waves, most in (
      (np.fft.fftfreq(side, 1 / side), min(cutoff, side // 2)) for side in shape)]
  return inside[0][:, None] & inside[1][None]
