"""The compiled sampler: one image per seed, a share of the batch on every device."""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import samplers
from engine import devices, seeds as seeds_lib

LIMITS = MappingProxyType({'none': lambda denoise: denoise, 'clip': samplers.guidance.clip,
                           'dynamic': samplers.guidance.dynamic_threshold})
"""Limits on the denoised image by name, functions from denoiser to denoiser."""


class Constants(NamedTuple):
  """What all images of a run share; arguments of the program, so that other values fit it too.

  Attributes:
    params: of the model.
    table: the solver; tables of equal rows and slots share the program.
    sigma_first: first noise level of the grid, a float32 scalar.
    classifier: parameters of the classifier that guides, None without.
    scale: of its guidance, a float32 scalar, None without.
  """

  params: Any
  table: samplers.Table
  sigma_first: Any
  classifier: Any = None
  scale: Any = None


class Inputs(NamedTuple):
  """What belongs to each image.

  Attributes:
    seeds: uint32 (batch,); the solver's noise comes from them.
    latents: float32 (batch, height, width, channels), standard normal.
    labels: int32 (batch,), below 0 without a class; None where nothing knows classes.
  """

  seeds: Any
  latents: Any
  labels: Any


def sample(constants: Constants, inputs: Inputs, *, apply: Callable[..., jax.Array], limit: str,
           log_prob: Callable[..., jax.Array] | None = None) -> jax.Array:
  """Samples one image per seed; pure.

  Image i depends on seed, latent and label i alone. It is the same bit for bit at any place of a
  batch and in any company; another batch size changes the order of sums, so the last digits.

  Args:
    constants: what all images share.
    inputs: what belongs to each image.
    apply: of the model.
    limit: a key of LIMITS; it acts on the guided image.
    log_prob: `apply` of the classifier that guides towards inputs.labels, or None.

  Returns:
    Samples in model units, float32 like the latents.
  """
  def denoise(x, sigma):
    return apply(constants.params, x, sigma, inputs.labels)
  def log_prob_of_labels(x, sigma):
    every = log_prob(constants.classifier, x, sigma)
    return jnp.take_along_axis(every, inputs.labels[:, None], axis=1)[:, 0]
  if log_prob is not None:
    denoise = samplers.guidance.classifier(denoise, log_prob_of_labels, constants.scale)
  return samplers.run(constants.table, LIMITS[limit](denoise),
                      constants.sigma_first * inputs.latents,
                      key=seeds_lib.keys(inputs.seeds, seeds_lib.NOISE))


@functools.cache
def program(apply: Callable[..., jax.Array], limit: str,
            log_prob: Callable[..., jax.Array] | None = None,
            ) -> Callable[[Constants, Inputs], jax.Array]:
  """Returns `sample` on all devices; equal arguments give the same function, so one compilation.

  Args:
    apply: of the model.
    limit: a key of LIMITS.
    log_prob: as in `sample`.

  Returns:
    A function of (Constants, Inputs) as `devices.spread` describes.
  """
  return devices.spread(functools.partial(sample, apply=apply, limit=limit, log_prob=log_prob))
