"""The compiled sampler: one image per seed, a share of the batch on every device."""

import dataclasses
import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import models
import samplers
from engine import conditions, devices, guides, seeds as seeds_lib

LIMITS = MappingProxyType({'none': lambda denoise: denoise, 'clip': samplers.guidance.clip,
                           'dynamic': samplers.guidance.dynamic_threshold})
"""Limits on the denoised image by name, functions from denoiser to denoiser."""


@dataclasses.dataclass(frozen=True)
class Method:
  """How samples are made: all that shapes the program; equal methods share one.

  Attributes:
    apply: of the model: (params, x, sigma, labels) -> D(x; sigma), or (D, what is asked for).
    solve: runs the solver, see `solvers.Solver`.
    splits: whether the solver takes the gradient's part of the guidance in rows of its own.
    asks: what it wants of the denoiser beside D, see `solvers.Solver`.
    limit: a key of LIMITS.
    guide: what changes the denoiser, None without guidance.
    condition: what the samples have to agree with, None without.
  """

  apply: Callable[..., Any]
  solve: Callable[..., tuple[jax.Array, jax.Array | None]]
  splits: bool
  asks: str | None
  limit: str
  guide: guides.Method | None = None
  condition: conditions.Method | None = None


class Constants(NamedTuple):
  """What all images of a run share; arguments of the program, so that other values fit it too.

  Attributes:
    params: of the model.
    solver: coefficients; tables of equal rows and slots share the program.
    sigma_first: first noise level of the grid, a float32 scalar.
    guide: arrays of the guidance, None without.
    condition: arrays of the condition, None without.
  """

  params: Any
  solver: Any
  sigma_first: Any
  guide: guides.Constants | None = None
  condition: conditions.Constants | None = None


class Inputs(NamedTuple):
  """What belongs to each image.

  Attributes:
    seeds: uint32 (batch,); the solver's noise comes from them.
    latents: float32 (batch, height, width, channels), standard normal.
    labels: int32 (batch,), below 0 without a class; None where nothing knows classes.
    start: images under the latents, like them, in model units; None: nothing but noise.
  """

  seeds: Any
  latents: Any
  labels: Any
  start: Any = None


def apply_of(model: models.Model, asks: str | None) -> Callable[..., Any]:
  """Returns how a model gives D, or (D, what is asked for); equal arguments, one function.

  Args:
    model: the denoiser.
    asks: what a solver wants beside D, see `solvers.Solver`.

  Raises:
    ValueError: if the model cannot tell it.
  """
  apply = {None: model.apply, 'variance': model.apply_variance,
           'features': model.apply_features}[asks]
  if apply is None:
    raise ValueError(f'config.model: must be a network that tells its {asks}, got {model.name}; '
                     'choose another model or solver')
  return apply


def denoiser(constants: Constants, labels: jax.Array | None, *, method: Method,
             ) -> tuple[Callable[..., Any], Callable[..., jax.Array] | None]:
  """Returns what a solver asks, with guidance, limit and condition.

  Guidance between two networks acts first, the limit on what comes of it, and the gradient of a
  classifier or a condition last, as guided-diffusion does: a limited image is pulled further.
  What is asked for beside D is that of the images' own labels.

  Args:
    constants: what all images share.
    labels: of the images, as in Inputs.
    method: how.

  Returns:
    (denoise, guide): denoise(x, sigma) -> D, or (D, what is asked for); guide(x, sigma), the
    gradient's part of the guidance where the solver splits, else None.
  """
  def evaluate(x, sigma, labels=labels):
    return method.apply(constants.params, x, sigma, labels)

  def plain(x, sigma, labels=labels):
    answer = evaluate(x, sigma, labels)
    return answer[0] if method.asks else answer

  def limited(denoise, guide=method.guide):
    if guide:
      denoise = guides.between_networks(guide, constants.guide, denoise, labels)
    return LIMITS[method.limit](denoise)

  def asked(x, sigma):
    denoised, beside = evaluate(x, sigma)  # Once; only another label is asked for again.
    def again(x, sigma, own=labels):
      return denoised if own is labels else plain(x, sigma, own)
    guide = method.guide and dataclasses.replace(method.guide, calls=2)
    return limited(again, guide)(x, sigma), beside

  denoise = limited(plain)
  log_prob = _sum([
      guides.log_prob(method.guide, constants.guide, labels) if method.guide else None,
      conditions.log_prob(method.condition, constants.condition, plain) if (
          method.condition) else None])
  guide = None
  if log_prob is not None and method.splits:
    guide = samplers.guidance.classifier_term(log_prob, 1.0)
  elif log_prob is not None:
    denoise = samplers.guidance.classifier(denoise, log_prob, 1.0)
  if not method.asks:
    return denoise, guide
  if log_prob is None or method.splits:
    return asked, guide

  def pulled(x, sigma):
    denoised, beside = asked(x, sigma)
    return samplers.guidance.classifier(lambda x, sigma: denoised, log_prob, 1.0)(x, sigma), beside
  return pulled, guide


def sample(constants: Constants, inputs: Inputs, *,
           method: Method) -> tuple[jax.Array, jax.Array | None]:
  """Samples one image per seed; pure.

  Image i depends on seed, latent, label and start i alone. It is the same bit for bit at any place
  of a batch and in any company; another batch size changes the order of sums, so the last digits.

  Args:
    constants: what all images share.
    inputs: what belongs to each image.
    method: how.

  Returns:
    Samples in model units, float32 like the latents; evaluations of the network per image, int32
    (batch,), or None where the table tells.
  """
  denoise, guide = denoiser(constants, inputs.labels, method=method)
  x = constants.sigma_first * inputs.latents
  return method.solve(
      constants.solver, denoise, x if inputs.start is None else inputs.start + x,
      keys=seeds_lib.keys(inputs.seeds, seeds_lib.NOISE), guide=guide,
      project=conditions.project(method.condition, constants.condition) if (
          method.condition) else None)


@functools.cache
def program(method: Method) -> Callable[[Constants, Inputs], Any]:
  """Returns `sample` on all devices; equal arguments give the same function, so one compilation.

  Args:
    method: how.

  Returns:
    A function of (Constants, Inputs) as `devices.spread` describes.
  """
  return devices.spread(functools.partial(sample, method=method))


def _sum(log_probs):
  """The sum of log probabilities, None of none: independent pieces of evidence."""
  given = [log_prob for log_prob in log_probs if log_prob is not None]
  if not given:
    return None
  return lambda x, sigma: functools.reduce(jnp.add, (log_prob(x, sigma) for log_prob in given))
