"""Networks of features, which know no noise: those that metrics and guidance look at images with.

A model directory of kind 'features' holds one; --mode=convert makes it of a published file.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from models import clip, directory as directory_lib, inception, lpips, settings as settings_lib
from samplers import checks

FEATURE_NETWORKS = MappingProxyType({
    'inception': inception.Inception, 'lpips_vgg': lpips.VggDistance, 'clip': clip.Clip})
"""Name -> Flax module; its attributes are the settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureNetwork:
  """A network of features with its parameters.

  Attributes:
    name: a key of FEATURE_NETWORKS.
    config: what config.json tells, plain values.
    params: nested dicts of NumPy arrays, an argument of compiled functions.
    module: the network, without parameters.
    sha256: hash of the parameters as stored.
  """

  name: str
  config: dict[str, Any]
  params: Any
  module: nn.Module
  sha256: str


def load_features(directory: str | os.PathLike, dtype: str = 'float32') -> FeatureNetwork:
  """Loads a network of features.

  Args:
    directory: a model directory of kind 'features'.
    dtype: of the parameters, one of directory.DTYPES.

  Returns:
    The FeatureNetwork.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is no such directory, or it is incomplete, damaged, of a newer format, or
      holds another kind of model.
  """
  config = directory_lib.read_kind(directory, 'features', dtype)
  match config['network']:
    case {'name': str(name), 'settings': dict(settings), **rest} if not rest:
      module = build(name, settings)
    case other:
      raise ValueError('load: network in config.json must be a name and settings, got '
                       f'{str(other)[:80]!r}; make the model again')
  params = directory_lib.read_params(directory, shapes(module), config['sha256'], dtype)
  return FeatureNetwork(name, config, params, module, config['sha256'])


def build(name: str, settings: Mapping[str, Any]) -> nn.Module:
  """Builds a network of features from plain values.

  Args:
    name: a key of FEATURE_NETWORKS.
    settings: attributes of the module; lists become tuples.

  Returns:
    The module, without parameters.

  Raises:
    ValueError: if the name or a setting is unknown, or a setting is missing or of another type.
  """
  kind = checks.lookup('network of features', name, FEATURE_NETWORKS)
  def check(setting, value, known):
    whole = checks.is_integer(value) and value >= 0
    if (known is int and not whole) or (known in (bool, str) and not isinstance(value, known)):
      rule = 'an integer of 0 or more' if known is int else f'a {known.__name__}'
      raise ValueError(f'{name}: {setting} must be {rule}, got {str(value)[:80]!r}; see the '
                       f'attributes of {kind.__name__}')
  return kind(**settings_lib.read(name, kind, settings, check))


def example(module: nn.Module) -> tuple[np.ndarray, ...]:
  """Returns arguments that a network of features can be called with: gray images, and texts of 0.

  Args:
    module: what `build` returns.

  Returns:
    Arrays with a batch of 1, in the network's own scale.
  """
  return _FACES[type(module)].example(module)


def evaluate(module: nn.Module, params: Any, *inputs: jax.Array) -> dict[str, jax.Array]:
  """Returns the features of a network by name, whatever else it computes.

  Args:
    module: what `build` returns.
    params: its parameters.
    *inputs: as `example`, of any batch.

  Returns:
    Name -> array (batch, ...).
  """
  return _FACES[type(module)].evaluate(module, params, *inputs)


@functools.cache
def shapes(module: nn.Module) -> Any:
  """Returns the shapes of a network's parameters; nothing is computed.

  Args:
    module: what `build` returns.

  Returns:
    Nested dicts of jax.ShapeDtypeStruct.

  Raises:
    ValueError: if there is no such network: its settings do not fit each other.
  """
  try:
    return jax.eval_shape(module.init, jax.random.key(0), *example(module))['params']
  except (TypeError, ValueError, ArithmeticError) as error:
    raise ValueError(f'{type(module).__name__}: settings must be those of a network that can be '
                     f'built, got some for which {str(error).splitlines()[0]}; choose others'
                     ) from None


class _Face(NamedTuple):
  """How a network is called: `example` and `evaluate`."""

  example: Callable[[Any], tuple[np.ndarray, ...]]
  evaluate: Callable[..., dict[str, jax.Array]]


def _gray(side, value=0.0):
  return np.full((1, side, side, 3), value, np.float32)


def _distance(module, params, a, b):
  distance, stages = module.apply({'params': params}, a, b)
  return {'distance': distance, 'stages': stages}


def _embeddings(module, params, x, ids):
  return {'image': module.apply({'params': params}, x, method='embed_images'),
          'text': module.apply({'params': params}, ids, method='embed_texts')}


_FACES = MappingProxyType({
    inception.Inception: _Face(lambda module: (_gray(inception.SIDE),),
                               lambda module, params, x: inception.apply(params, x)),
    lpips.VggDistance: _Face(lambda module: (_gray(lpips.SMALLEST, 0.5),) * 2, _distance),
    clip.Clip: _Face(lambda module: (_gray(module.image_size),
                                     np.zeros((1, module.context), np.int32)), _embeddings),
})
