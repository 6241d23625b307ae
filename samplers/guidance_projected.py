"""Guidance that projects one answer of the network on another; notation as `guidance_methods`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import guidance_parts as parts
from samplers.guidance_parts import Denoiser, Scale, Several


@parts.register
def apg(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
        eta: float = 0.0, norm_threshold: float = 0.0, momentum: float | None = None,
        interval: Any = None) -> Denoiser:
  """Returns adaptive projected guidance: less saturation at high scales.

  d = c - u; with momentum d <- d + momentum (d of the evaluation before); then its norm is limited
  to norm_threshold; of its part along c only eta is kept: D = c + (w - 1) (d - par + eta par),
  par = <d, c> / <c, c> c. Its momentum is of the evaluations of a run: `samplers.run` has it, other
  callers have none.

  Source: Sadat et al. 2024, arXiv:2410.02416, Alg. 1, on denoised images. Where published code
  adds w times the rest to u or to c, it is another method for eta other than 1.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`.
    eta: of the part along the conditional answer, which saturates; 1 keeps it.
    norm_threshold: highest |d|, in units of the image's norm; 0: no limit.
    momentum: between -1 and 1; negative in the paper, -0.75 to -0.5. A traced one counts as one.
      None or 0: none.
    interval: as `classifier_free`.

  Returns:
    A denoiser; with a momentum its attribute `remembers` is True.

  Raises:
    ValueError: if an option is out of range, or as `classifier_free`.
  """
  parts.check('apg', 'eta', eta, np.isfinite, 'be a finite number', '0 is usual, 1 no projection')
  parts.check('apg', 'norm_threshold', norm_threshold, lambda most: 0 <= most < np.inf,
         'be a finite number of at least 0', '0 is no limit')
  momentum = 0.0 if momentum is None else momentum
  parts.check('apg', 'momentum', momentum, lambda momentum: -1 < momentum < 1,
         'be between -1 and 1', '-0.5 is usual, 0 none')
  remembers = isinstance(momentum, jax.Array) or momentum != 0

  def rule(x, sigma, memory, cond, uncond):
    step = cond - uncond
    if memory is not None:
      step = memory = step + parts.column(momentum, x) * memory
    most = parts.column(norm_threshold, x)
    short = jnp.minimum(1, parts.ratio(most, parts.norm(step)))
    step = jnp.where(most > 0, short, jnp.ones_like(short)) * step
    along = parts.ratio(parts.dot(step, cond), parts.dot(cond, cond)) * cond
    step = step + (parts.column(eta, x) - 1) * along
    return cond + (parts.scale_at(scale, x, sigma) - 1) * step, memory
  return parts.guide('apg', denoise, (denoise_uncond,), rule, interval, remembers)


@parts.register
def cfg_zero_star(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
                  zero_above: float | None = None, interval: Any = None) -> Denoiser:
  """Returns CFG-Zero*: guidance away from the best multiple of the unconditional prediction.

  a = <e_c, e_u> / <e_u, e_u>, D = x - (a e_u + w (e_c - a e_u)): the same for noise and velocity.
  Above a level the flow's velocity is 0: D = x / (1 + sigma), so that its first steps do nothing.

  Source: Fan et al. 2025, arXiv:2503.18886. The published code counts the steps without
  velocity: of a grid, k of them are those above its level k.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`.
    zero_above: that level, > 0; None: guided from the start.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: if the level is not above 0, or as `classifier_free`.
  """
  if zero_above is not None:
    parts.check('cfg_zero_star', 'zero_above', zero_above, lambda level: 0 < level < np.inf,
           'be a level above 0', 'leave it out to guide from the start')

  def rule(x, sigma, memory, cond, uncond):
    of_cond, of_uncond = x - cond, x - uncond
    shrunk = parts.ratio(parts.dot(of_cond, of_uncond), parts.dot(of_uncond, of_uncond)) * of_uncond
    moved = x - parts.apart(of_cond, shrunk, parts.scale_at(scale, x, sigma))
    if zero_above is not None:
      level = parts.column(sigma, x)
      moved = jnp.where(level > parts.column(zero_above, x), x / (1 + level), moved)
    return moved, memory
  return parts.guide('cfg_zero_star', denoise, (denoise_uncond,), rule, interval)


@parts.register
def tcfg(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
         interval: Any = None) -> Denoiser:
  """Returns tangential guidance: away from what the unconditional noise shares with the other.

  e_u becomes its projection on p e_u + q e_c, the first right singular vector of the two rows e_u
  and e_c; (p, q) is the leading unit eigenvector of their Gram matrix. D = x - (e_u + w (e_c -
  e_u)). With the angle 2 t of that vector, tan 2 t = 2 <e_u, e_c> / (|e_u|^2 - |e_c|^2), the
  projection is p^2 e_u + p q e_c = ((1 + cos 2 t) e_u + sin 2 t e_c) / 2.

  Source: Kwon et al. 2025, arXiv:2503.18137.

  Args:
    denoise: as `classifier_free`.
    denoise_uncond: as `classifier_free`.
    scale: as `classifier_free`.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: as `classifier_free`.
  """
  def rule(x, sigma, memory, cond, uncond):
    of_cond, of_uncond = x - cond, x - uncond
    gap = parts.dot(of_uncond, of_uncond) - parts.dot(of_cond, of_cond)
    shared = 2 * parts.dot(of_uncond, of_cond)
    length = parts.root(gap**2 + shared**2)
    cosine, sine = parts.ratio(gap, length), parts.ratio(shared, length)
    shrunk = ((1 + cosine) * of_uncond + sine * of_cond) / 2
    return x - parts.apart(of_cond, shrunk, parts.scale_at(scale, x, sigma)), memory
  return parts.guide('tcfg', denoise, (denoise_uncond,), rule, interval)


@parts.register
def perp_neg(denoise: Denoiser | Several, denoise_uncond: Denoiser | None, scale: Scale, *,
             denoise_negative: Denoiser | None = None, negative_scale: float = 1.0,
             interval: Any = None) -> Denoiser:
  """Returns guidance away from what is not wanted, as far as it says nothing of what is.

  p = c - u, q = n - u, n under a negative condition; q' = q - <q, p> / <p, p> p is perpendicular
  to p, and D = u + w (p - negative_scale q').

  Source: Armandpour et al. 2023, arXiv:2304.04968. Per sample: published code that sums
  the projection over a batch lets its samples act on each other.

  Args:
    denoise: D(x; sigma) under the condition; or all three answers, see `paired`, with None for the
      two others.
    denoise_uncond: without a condition.
    scale: as `classifier_free`.
    denoise_negative: under the negative condition.
    negative_scale: of the way from it.
    interval: as `classifier_free`.

  Returns:
    A denoiser.

  Raises:
    ValueError: if an option is no finite number or a denoiser is missing, or as `classifier_free`.
  """
  parts.check('perp_neg', 'negative_scale', negative_scale, np.isfinite, 'be a finite number',
         '1 is usual')

  def rule(x, sigma, memory, cond, uncond, negative):
    wanted, not_wanted = cond - uncond, negative - uncond
    along = parts.ratio(parts.dot(not_wanted, wanted), parts.dot(wanted, wanted)) * wanted
    step = wanted - parts.column(negative_scale, x) * (not_wanted - along)
    return uncond + parts.scale_at(scale, x, sigma) * step, memory
  return parts.guide('perp_neg', denoise, (denoise_uncond, denoise_negative), rule, interval)
