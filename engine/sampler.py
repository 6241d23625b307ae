"""The compiled sampler: one image per seed, a share of the batch on every device."""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

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
  """

  params: Any
  table: samplers.Table
  sigma_first: Any


class Inputs(NamedTuple):
  """What belongs to each image.

  Attributes:
    seeds: uint32 (batch,); the solver's noise comes from them.
    latents: float32 (batch, height, width, channels), standard normal.
    labels: int32 (batch,), below 0 without a class; None for a model without classes.
  """

  seeds: Any
  latents: Any
  labels: Any


def sample(constants: Constants, inputs: Inputs, *, apply: Callable[..., jax.Array],
           limit: str) -> jax.Array:
  """Samples one image per seed; pure.

  Image i depends on seed, latent and label i alone. It is the same bit for bit at any place of a
  batch and in any company; another batch size changes the order of sums, so the last digits.

  Args:
    constants: what all images share.
    inputs: what belongs to each image.
    apply: of the model.
    limit: a key of LIMITS.

  Returns:
    Samples in model units, float32 like the latents.
  """
  params, table, sigma_first = constants
  denoise = LIMITS[limit](lambda x, sigma: apply(params, x, sigma, inputs.labels))
  return samplers.run(table, denoise, sigma_first * inputs.latents,
                      key=seeds_lib.keys(inputs.seeds, seeds_lib.NOISE))


@functools.cache
def program(apply: Callable[..., jax.Array],
            limit: str) -> Callable[[Constants, Inputs], jax.Array]:
  """Returns `sample` on all devices; equal arguments give the same function, so one compilation.

  Args:
    apply: of the model.
    limit: a key of LIMITS.

  Returns:
    A function of (Constants, Inputs) as `devices.spread` describes.
  """
  return devices.spread(functools.partial(sample, apply=apply, limit=limit))
