"""The variational bound of a chain on the likelihood of images, in bits per dimension.

A chain with reverse steps p(y' | y) = N(mean, v), see `ddpm`, bounds -log p(x0) by

  L = KL(q(y_n | x0) || N(0, I)) + sum over steps of KL(q(y' | y, x0) || p(y' | y))
      - log p(x0 | y_1),                                                                         (1)

each term at one draw of y ~ q(y | x0) = N(x0 / sqrt(1 + sigma^2), sigma^2 / (1 + sigma^2)); the
last one is the probability of the 8-bit value that x0 holds, under N(D, v).

Source: Ho et al. 2020 (DDPM), arXiv:2006.11239, Eq. 5, 7 and 13; Nichol & Dhariwal 2021 (iDDPM),
arXiv:2102.09672, Sec. 3, and the evaluation published with it.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import ddpm, noise as noise_lib

_HALF_BIN = 1 / 255  # Half the distance of two 8-bit values in [-1, 1].
_OPEN_BIN = 0.999  # Beyond it a value is the first or the last, whose bins have no outer end.
_LEAST_PROBABILITY = 1e-12


class Terms(NamedTuple):
  """The bound and its parts; the steps are in the order of sampling, the noisiest first.

  Attributes:
    total: prior plus the sum of vb, bits per dimension, (batch,).
    prior: first term of Eq. 1, bits per dimension, (batch,).
    vb: the other terms, bits per dimension, (batch, rows).
    xstart_mse: mean square of D - x0, (batch, rows).
    mse: mean square of the noise that D leaves unexplained, (x - D) / sigma - z, (batch, rows).
  """

  total: jax.Array
  prior: jax.Array
  vb: jax.Array
  xstart_mse: jax.Array
  mse: jax.Array


def bits_per_dim(coefficients: ddpm.Coefficients, denoise_variance: ddpm.DenoiseVariance,
                 x0: jax.Array, *, key: jax.Array | None = None,
                 draw: Callable[[jax.Array, jax.Array], jax.Array] | None = None) -> Terms:
  """Estimates the bound of Eq. 1 with one draw per step.

  A network without a learned variance: `ddpm.without_variance(denoise)`, with coefficients of a
  fixed one. Pure; compile it with the coefficients as an argument.

  Args:
    coefficients: of the whole chain, from `ddpm.coefficients` or `ddpm.pad`, on a grid that ends
      in 0; rows without a step add 0 to every sum.
    denoise_variance: (x, sigma) -> (D(x; sigma), v), sigma a scalar. Published bounds clip D.
    x0: images of 8-bit values in [-1, 1], shape (batch, height, width, channels).
    key: one typed key per sample, (batch,): independent draws.
    draw: draw(step, x) -> z like x, in place of a key; steps count from 0.

  Returns:
    The Terms.

  Raises:
    ValueError: if x0 is not a batch of images of floats, the grid is on the host and does not end
      in 0, or there is neither a key per sample nor a draw.
  """
  steps = ddpm.cast(coefficients, x0)
  active = coefficients.active
  if not isinstance(active, jax.core.Tracer):
    end = np.asarray(coefficients.level)[np.asarray(active)][-1]
    if end != 0:
      raise ValueError(f'bits_per_dim: the grid must end in 0, where the image is, got {end:g}; '
                       'append a level 0')
  draw = ddpm.source('bits_per_dim', steps, x0, key, draw,
                     lambda keys, interval: noise_lib.by_row(keys))

  def step(_, row):
    r, c = row

    def measured():
      z = draw(r, x0).astype(x0.dtype)
      x = x0 + c.sigma * z
      denoised, v = (part.astype(x0.dtype) for part in denoise_variance(x, c.sigma))
      log_variance = ddpm.interpolate(c, v)
      divergence = jax.lax.cond(
          c.level > 0, lambda: _divergence(c, denoised - x0, log_variance),
          lambda: -_log_probability(x0, denoised, log_variance))
      error = (x - denoised) / c.sigma - z
      return tuple(_mean(part) for part in (divergence / math.log(2), (denoised - x0)**2, error**2))

    def nothing():
      return (jnp.zeros_like(x0[:, 0, 0, 0]),) * 3
    return None, jax.lax.cond(c.active, measured, nothing)

  _, (vb, xstart_mse, mse) = jax.lax.scan(step, None, (jnp.arange(len(steps.sigma)), steps))
  alpha_bar = 1 / (1 + steps.sigma[0]**2)
  # -log(1 - alpha_bar) - alpha_bar is of order alpha_bar^2.
  prior = _mean(alpha_bar * x0**2 - jnp.log1p(-alpha_bar) - alpha_bar) / (2 * math.log(2))
  return Terms(prior + vb.sum(0), prior, vb.T, xstart_mse.T, mse.T)


def _divergence(c, error, log_variance):
  """KL between the posterior and a step whose D is off by `error`."""
  shift = c.pull**2 / (1 + c.level**2) * error**2  # Square of the distance of the means, in y'.
  surplus = c.log_posterior - log_variance
  return (jnp.expm1(surplus) - surplus + shift * jnp.exp(-log_variance)) / 2


def _log_probability(x0, mean, log_variance):
  """Log-probability of the bin of x0, with the tanh approximation of the normal distribution."""
  inverse = jnp.exp(-log_variance / 2)
  upper, lower = (inverse * (x0 - mean + side) for side in (_HALF_BIN, -_HALF_BIN))
  # The open bins reach to -1 - infinity and 1 + infinity.
  inside = _cumulative(upper) - _cumulative(lower)
  bins = jnp.where(x0 < -_OPEN_BIN, _cumulative(upper),
                   jnp.where(x0 > _OPEN_BIN, _cumulative(-lower), inside))
  return jnp.log(jnp.maximum(bins, _LEAST_PROBABILITY))


def _cumulative(u):
  return (1 + jnp.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3))) / 2


def _mean(images):
  return images.mean(axis=(1, 2, 3))
