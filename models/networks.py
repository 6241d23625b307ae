"""Networks by name: from the settings of a model directory to pure functions."""

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import (
  adm_unet,
  classifier as classifier_lib,
  denoisers,
  edm_unet,
  settings as settings_lib,
)
from samplers import checks

Preconditioning = Callable[[jax.Array], denoisers.Coefficients]

NETWORKS = MappingProxyType({
    'song_unet': edm_unet.SongUNet, 'adm_unet': adm_unet.AdmUNet,
    'adm_classifier': adm_unet.AdmClassifier, 'noise_classifier': classifier_lib.NoiseClassifier})
"""Name -> Flax module; its attributes are the settings."""

_CHOICES = {'embedding_type': ('positional', 'fourier'),
            'encoder_type': ('standard', 'residual', 'skip'), 'decoder_type': ('standard', 'skip'),
            'resampling': ('block', 'conv', 'none'), 'bottleneck': ('encoder', 'middle'),
            'pool': ('attention', 'adaptive', 'spatial', 'spatial_v2'),
            'torso': ('float32', 'float16', 'bfloat16')}
_MAY_BE_ZERO = ('label_dim', 'augment_dim', 'attn_resolutions', 'channels_per_head', 'num_heads_up',
                'groups', 'transformer_depth', 'context_dim')


def build(name: str, settings: Mapping[str, Any]) -> nn.Module:
  """Builds a network from plain values.

  Args:
    name: a key of NETWORKS.
    settings: attributes of the module; lists become tuples.

  Returns:
    The module, without parameters.

  Raises:
    ValueError: if the name or a setting is unknown, a setting is missing or out of range, the
      channels of a level do not divide into groups, the side does not halve often enough, or there
      is a context that nothing reads, or classes beside it.
  """
  module = checks.lookup('network', name, NETWORKS)
  network = module(**settings_lib.read(name, module, settings, functools.partial(_check, name)))
  for mult in network.channel_mult:
    _check_channels(name, network, mult)
  side, factor = getattr(network, 'img_resolution', 0), 2**(len(network.channel_mult) - 1)
  if side % factor:
    raise ValueError(f'{name}: img_resolution must be a multiple of {factor}, as each of the '
                     f'{len(network.channel_mult)} levels but the first halves it, got {side}; '
                     'take fewer multipliers')
  _check_context(name, network)
  return network


def _check_context(name, network):
  """Raises ValueError unless the features of a text are read, and are all that labels can be."""
  if not getattr(network, 'context_dim', 0):
    return
  if not network.transformer_depth:
    raise ValueError(f'{name}: context_dim must be 0 without transformers, which read the context, '
                     f'got {network.context_dim}; give a transformer_depth')
  if network.label_dim:
    raise ValueError(f'{name}: label_dim must be 0 where labels are features of a text, got '
                     f'{network.label_dim} beside context_dim {network.context_dim}; leave one out')


def _check_channels(name, network, mult):
  """Raises ValueError unless the channels of a level divide into groups and heads."""
  channels = network.model_channels * mult
  groups = getattr(network, 'groups', 0)
  what = f'got {channels:g} (model_channels {network.model_channels} times {mult:g})'
  if groups and channels % groups:
    raise ValueError(f'{name}: channels of a level must be a multiple of the {groups} groups, '
                     f'{what}; choose other multipliers')
  if not groups and (channels % 4 or channels % min(32, channels // 4)):
    raise ValueError(f'{name}: channels of a level must be a multiple of 4, and of 32 above 128, '
                     f'{what}; choose other multipliers')
  size = getattr(network, 'channels_per_head', 0)
  heads = ({channels // size or 1} if size else
           {getattr(network, 'num_heads', 1), getattr(network, 'num_heads_up', 0) or 1})
  if any(channels % count for count in heads):
    raise ValueError(f'{name}: channels of a level must divide into its attention heads, {what} '
                     f'and {max(heads):g} heads; choose other multipliers')


def _check(name, setting, value, kind):
  """Raises ValueError unless a setting has the type and range of its kind."""
  if setting in _CHOICES:
    checks.check_choice(name, setting, value, _CHOICES[setting])
    return
  least = 0 if setting in _MAY_BE_ZERO else 1
  if kind is bool:
    good, rule = isinstance(value, bool), 'True or False'
  elif kind is float:
    good, rule = 0 <= checks.to_number(value) < 1, 'from 0 to below 1'
  elif kind is int:
    good, rule = checks.is_integer(value) and value >= least, f'an integer of {least} or more'
  else:
    whole = kind == tuple[int, ...]
    good = isinstance(value, tuple) and (len(value) >= least) and all(
        (checks.is_integer(one) and one >= 1) if whole else checks.to_number(one) > 0
        for one in value)
    rule = f'a list of {"integers of 1 or more" if whole else "numbers above 0"}'
  if not good:
    raise ValueError(f'{name}: {setting} must be {rule}, got {value!r}; see the attributes of '
                     f'{NETWORKS[name].__name__}')


@functools.cache
def _coefficients(name, settings):
  return functools.partial(denoisers.PRECONDITIONING[name], **dict(settings))


def preconditioning(name: str, settings: Mapping[str, Any]) -> Preconditioning:
  """Returns the coefficients of Eq. 1 in models/denoisers.py as a function of sigma alone.

  Args:
    name: a key of denoisers.PRECONDITIONING.
    settings: its arguments beside sigma.

  Returns:
    A function from levels (batch,) to Coefficients; equal arguments give the same one.

  Raises:
    ValueError: if the name or a setting is unknown.
  """
  function = checks.lookup('preconditioning', name, denoisers.PRECONDITIONING)
  known = list(inspect.signature(function).parameters)[1:]
  for setting in settings:
    if setting not in known:
      raise ValueError(f'{name}: {checks.unknown("setting", setting, known)}')
  return _coefficients(name, tuple(sorted(
      (setting, tuple(value) if isinstance(value, list) else value)
      for setting, value in settings.items())))


@functools.cache
def denoiser(network: nn.Module, coefficients: Preconditioning,
             ) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
  """Returns how to evaluate a network; equal arguments give one function, so one compilation.

  Args:
    network: a module that is called as edm_unet.SongUNet.
    coefficients: what `preconditioning` returns.

  Returns:
    evaluate(params, x, sigma, labels=None, **how the network is called) -> (D, rest, features), as
    denoisers.precondition. Labels are integers, (batch,), or, for a network with a context_dim,
    features of a text, (batch, tokens, context_dim), which it cannot do without.
  """
  width = getattr(network, 'context_dim', 0)
  def evaluate(params, x, sigma, labels=None, rngs=None, **call):
    if width:
      call['context'] = _features(labels, len(x), width).astype(x.dtype)
    elif labels is not None and network.label_dim:  # Labels below 0 become zero vectors.
      call['class_labels'] = jax.nn.one_hot(labels, network.label_dim, dtype=x.dtype)
    def call_network(scaled, c_noise):
      return network.apply({'params': params}, scaled, c_noise, rngs=rngs, **call)
    return denoisers.precondition(call_network, coefficients, x, sigma)
  return evaluate


def _features(labels, batch, width):
  """Labels that are features of a text, or ValueError."""
  if labels is None or not jnp.issubdtype(jnp.result_type(labels), jnp.floating):
    got = 'none' if labels is None else f'{jnp.result_type(labels)} of shape {jnp.shape(labels)}'
  elif jnp.ndim(labels) != 3 or (jnp.shape(labels)[0], jnp.shape(labels)[2]) != (batch, width):
    got = f'the shape {jnp.shape(labels)}'
  else:
    return jnp.asarray(labels)
  raise ValueError('denoiser: labels must be features of a text, floating and of shape '
                   f'({batch}, tokens, {width}), got {got}; encode the prompts with the text '
                   'encoder of this model')


@functools.cache
def classifier(network: nn.Module, coefficients: Preconditioning) -> Callable[..., jax.Array]:
  """Returns apply of a classifier, as `denoiser`; of the coefficients, c_in and c_noise serve.

  Args:
    network: a module that is called as classifier.NoiseClassifier.
    coefficients: what `preconditioning` returns.

  Returns:
    apply(params, x, sigma, **how the network is called) -> log p(y | x; sigma), (batch, classes).
  """
  def apply(params, x, sigma, rngs=None, **call):
    c = coefficients(jnp.broadcast_to(jnp.asarray(sigma).astype(x.dtype), x.shape[:1]))
    logits = network.apply({'params': params}, c.c_in[:, None, None, None] * x, c.c_noise,
                           rngs=rngs, **call)
    return jax.nn.log_softmax(logits)
  return apply


@functools.cache
def select(evaluate: Callable[..., Any], *parts: int) -> Callable[..., Any]:
  """Returns a function that gives these parts of another's answer; one function per argument."""
  def selected(*args, **call):
    answer = evaluate(*args, **call)
    return answer[parts[0]] if len(parts) == 1 else tuple(answer[part] for part in parts)
  return selected


@functools.cache
def for_points(evaluate: Callable[..., Any], points: int) -> Callable[..., Any]:
  """Returns a function whose network is told the number of grid points; one function per argument.

  Source: Zhou et al. 2024 (SFD-v), arXiv:2409.19681.

  Args:
    evaluate: what `denoiser` or `select` returns, of a network with a step condition.
    points: of the sampler's grid, one more than its intervals.
  """
  return functools.partial(evaluate, step_condition=points)


def initialize(network: nn.Module, image_shape: tuple[int, int, int], key: jax.Array) -> Any:
  """Returns random parameters of a network, nested dicts of float32 arrays."""
  x = jnp.zeros((1, *image_shape))
  call = {'low_res': x} if getattr(network, 'low_res', False) else {}
  if getattr(network, 'context_dim', 0):
    call['context'] = jnp.zeros((1, 1, network.context_dim))
  return network.init(key, x, jnp.zeros((1,)), **call)['params']
