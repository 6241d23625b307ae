"""What training minimizes, and at which noise levels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def draw_sigma(key: jax.Array, count: int, P_mean: float, P_std: float,
               sigma_max: float | None = None) -> jax.Array:
  """Draws noise levels with ln sigma normal, below `sigma_max` if there is one.

  The cut distribution is drawn by its inverse: Phi(u) for u uniform up to Phi of the cut.

  Source: Karras et al. 2022, arXiv:2206.00364, Sec. 5; the cut as in ES-DDPM, Lyu et al. 2022,
  arXiv:2205.12524, whose network sees inner levels only.

  Args:
    key: one typed key.
    count: how many.
    P_mean: mean of ln sigma.
    P_std: standard deviation of ln sigma.
    sigma_max: highest level, or None.

  Returns:
    Levels, float32 (count,).
  """
  if sigma_max is None:
    normal = jax.random.normal(key, (count,))
  else:
    highest = jax.scipy.special.ndtr((np.log(sigma_max) - P_mean) / P_std)
    least = np.finfo(np.float32).tiny  # Its normal deviate is -12.9; that of 0 is not finite.
    normal = jax.scipy.special.ndtri(jax.random.uniform(key, (count,), minval=least) * highest)
  sigma = jnp.exp(P_mean + P_std * normal)
  return sigma if sigma_max is None else jnp.minimum(sigma, sigma_max)


def denoising(apply: Callable[..., tuple[jax.Array, ...]], sigma_data: float) -> Callable:
  """Returns EDM's loss: the weighted squared error of D, mean over pixels and samples.

    (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 |D(x0 + sigma z; sigma) - x0|^2

  Source: Karras et al. 2022, Eq. 2 and 8, weight of Table 1.

  Args:
    apply: apply(params, x, sigma, labels, **call) -> (denoised, ...).
    sigma_data: standard deviation of the data.

  Returns:
    loss(params, x0, labels, sigma, z, **call) -> per sample, (batch,).
  """
  def loss(params, x0, labels, sigma, z, **call):
    denoised, *_ = apply(params, x0 + sigma[:, None, None, None] * z, sigma, labels, **call)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data)**2
    return weight * jnp.mean((denoised - x0)**2, axis=(1, 2, 3))
  return loss


def classification(apply: Callable[..., jax.Array]) -> Callable:
  """Returns the loss of a classifier: -log p(y | x0 + sigma z; sigma).

  Args:
    apply: apply(params, x, sigma, **call) -> log probabilities, (batch, classes).

  Returns:
    loss(params, x0, labels, sigma, z, **call) -> per sample, (batch,).
  """
  def loss(params, x0, labels, sigma, z, **call):
    log_prob = apply(params, x0 + sigma[:, None, None, None] * z, sigma, **call)
    return -jnp.take_along_axis(log_prob, labels[:, None], axis=1)[:, 0]
  return loss


def ema_decay(step: Any, batch_size: int, half_life: float, ramp_up: float = 0.05) -> jax.Array:
  """Returns the decay of the parameters' average at a step.

  The half-life counts images, and is at most `ramp_up` of those seen, so that the random start is
  forgotten soon: what EDM's training does.

  Args:
    step: steps done before this one.
    batch_size: images of a step.
    half_life: in images.
    ramp_up: share of the images seen that the half-life may reach.

  Returns:
    A scalar in [0, 1).
  """
  images = jnp.minimum(half_life, (step + 1) * batch_size * ramp_up)
  return 0.5**(batch_size / jnp.maximum(images, 1e-8))
