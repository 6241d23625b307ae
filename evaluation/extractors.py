"""Feature extractors: which numbers of which network, behind which input pipeline, by name.

The same network gives features that differ by up to 4 % behind different pipelines, so an extractor
carries a description of its own, which belongs into every result made with it.
"""

import functools
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
from evaluation import resize
from models import inception as inception_lib, networks
from samplers import checks


class Extractor(NamedTuple):
  """A network with its input pipeline and the features that are read from it.

  Attributes:
    name: of the network: 'inception' or 'digits'.
    pipeline: plain values that decide what the numbers mean. Features may be compared where all
      but 'layers', the list of them, are equal.
    dims: feature -> its size once flat.
    prepare: uint8 images (n, height, width, 1 or 3) -> float32 inputs of the network, on the host;
      gray images become three equal channels. A ValueError says what does not fit.
    params: parameters of the network, an argument of compiled functions.
    apply: apply(params, inputs) -> {feature: (n, dim)}, pure; equal extractors share one function.
  """

  name: str
  pipeline: dict[str, Any]
  dims: dict[str, int]
  prepare: Callable[[np.ndarray], np.ndarray]
  params: Any
  apply: Callable[[Any, jax.Array], dict[str, jax.Array]]


class Pipeline(NamedTuple):
  """How images of bytes become inputs of Inception: resized to 299x299, then (x - shift) / scale.

  Attributes:
    resize: floating-point images (n, height, width, 3) of 0 to 255 -> (n, 299, 299, 3).
    description: of the resize.
    shift: byte that becomes 0.
    scale: byte above `shift` that becomes 1.
  """

  resize: Callable[[np.ndarray], np.ndarray]
  description: str
  shift: float
  scale: float


def _clean(images):
  # Pillow's float32 whatever the precision of the features: the rounding is part of the metric.
  side = inception_lib.SIDE
  resized = resize.pil(images.astype(np.float32, copy=False), side, side)
  return np.clip(resized, 0, 255).astype(images.dtype, copy=False)


def _to_side(function):
  return lambda images: function(images, inception_lib.SIDE)


PIPELINES = MappingProxyType({
    'tf1': Pipeline(_to_side(resize.tf1), 'TensorFlow 1 bilinear', 128.0, 128.0),
    'pytorch_fid': Pipeline(_to_side(resize.half_pixel), 'half-pixel bilinear', 127.5, 127.5),
    'edm': Pipeline(_to_side(resize.grid_sample), 'grid sample at TensorFlow 1 positions', 128.0,
                    128.0),
    'clean': Pipeline(_clean, 'Pillow bicubic antialiased, float32, clipped', 128.0, 128.0)})
"""Input pipelines of Inception by name.

'tf1': FID's authors, guided-diffusion, torch-fidelity. 'pytorch_fid': pytorch-fid, in its words
2 (x / 255) - 1. 'edm': EDM and what descends from it, 'tf1' up to 3e-8 of the features. 'clean':
clean-fid. The latter two were published with the detector's parameters, the others with the .pth
file's; both are one network here and any pipeline takes either.
"""

_BLOCK_MEANS = MappingProxyType(
    {'dims64': 'MaxPool_1', 'dims192': 'MaxPool_2', 'dims768': 'Mixed_6e'})

LAYERS = MappingProxyType({
    'pool': 2048, 'spatial': 17 * 17 * 7, 'logits_unbiased': inception_lib.OUTPUTS,
    'logits': inception_lib.OUTPUTS, 'dims64': 64, 'dims192': 192, 'dims768': 768})
"""Features of Inception and their sizes once flat: those of models.inception.FEATURES, with
'spatial' in the order y, x, channel, and pytorch-fid's means over positions of earlier blocks."""


def inception(network: models.FeatureNetwork, pipeline: str = 'tf1',
              layers: Sequence[str] = ('pool',)) -> Extractor:
  """Returns the extractor behind FID ('pool'), sFID ('spatial') and IS ('logits_unbiased').

  Args:
    network: Inception, as models.load_features gives it.
    pipeline: a key of PIPELINES.
    layers: keys of LAYERS; the others are not computed.

  Returns:
    The Extractor; it prepares images of any size.

  Raises:
    ValueError: if the network is another one, or the pipeline or a layer is unknown or missing.
  """
  if network.name != 'inception':
    raise ValueError(f'inception: network must be inception, got {network.name}; convert its '
                     'published file first')
  own = checks.lookup('pipeline', pipeline, PIPELINES)
  layers = (layers,) if isinstance(layers, str) else tuple(dict.fromkeys(layers))
  if not layers:
    raise ValueError(f'inception: layers must name a feature, got none; known: {", ".join(LAYERS)}')
  dims = {layer: checks.lookup('layer', layer, LAYERS) for layer in layers}
  description = {
      'network': 'inception', 'sha256': network.sha256, 'name': pipeline,
      'resize': f'{own.description} to {inception_lib.SIDE}x{inception_lib.SIDE}',
      'scaling': f'(x - {own.shift:g}) / {own.scale:g}', 'layers': list(layers)}
  return Extractor('inception', description, dims, functools.partial(inputs, pipeline),
                   network.params, _inception_features(layers))


def inputs(pipeline: str, images: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
  """Returns what Inception reads of images.

  Args:
    pipeline: a key of PIPELINES.
    images: uint8 (n, height, width, 1 or 3).
    dtype: np.float32, or np.float64 to compute in it throughout ('clean' rounds all the same).

  Returns:
    (n, 299, 299, 3).

  Raises:
    ValueError: if the pipeline is unknown or the images are of another form.
  """
  own = checks.lookup('pipeline', pipeline, PIPELINES)
  scaled = own.resize(_colored('inception', images).astype(dtype))
  scaled -= own.shift
  scaled /= own.scale
  return scaled


def digits() -> Extractor:
  """Returns the extractor of the bundled digits, for distances without any download.

  Its feature, 'pool', is what the last layer of the bundled classifier reads at the lowest noise
  level that it knows. A distance in it compares images of digits with each other and with nothing
  else: it is no FID.

  Returns:
    The Extractor; it takes images of the digits' size, 8x8, as they are.
  """
  classifier = models.load_classifier('digits_classifier')
  network = networks.build(**classifier.config['network'])
  coefficients = networks.preconditioning(**classifier.config['preconditioning'])
  apply = _classifier_features(network, coefficients, classifier.sigma_min)
  x = jax.ShapeDtypeStruct((1, *classifier.image_shape), jnp.float32)
  dims = {name: one.shape[-1] for name, one in
          jax.eval_shape(apply, classifier.params, x).items()}
  description = {'network': classifier.name, 'sha256': classifier.sha256, 'resize': 'none',
                 'scaling': '(x - 127.5) / 127.5', 'sigma': classifier.sigma_min,
                 'layers': list(dims)}
  return Extractor('digits', description, dims,
                   functools.partial(_digit_inputs, classifier.image_shape), classifier.params,
                   apply)


def _digit_inputs(shape, images):
  images = _colored('digits', images)
  if images.shape[1:] != shape:
    raise ValueError(f'digits: images must be {shape[0]}x{shape[1]} as the bundled digits, got '
                     f'{images.shape[1]}x{images.shape[2]}; take Inception for other images')
  return images.astype(np.float32) / np.float32(127.5) - 1


def _colored(name, images):
  """Returns images with three channels after checking them."""
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not min(
      images.shape[1:]):
    raise ValueError(f'{name}: images must be uint8 (n, height, width, 1 or 3), got '
                     f'{images.dtype} {images.shape}; convert them to 8-bit gray or RGB')
  return np.broadcast_to(images, (*images.shape[:-1], 3))


@functools.cache
def _inception_features(layers):
  """One function for equal layers, so that it compiles once."""
  def apply(params, x):
    own = inception_lib.apply(params, x, [_BLOCK_MEANS.get(layer, layer) for layer in layers])
    return {layer: own[_BLOCK_MEANS[layer]].mean((1, 2)) if layer in _BLOCK_MEANS
            else own[layer].reshape(len(x), -1) for layer in layers}
  return apply


@functools.cache
def _classifier_features(network, coefficients, sigma):
  def apply(params, x):
    c = coefficients(jnp.full(len(x), sigma, x.dtype))
    return {'pool': network.apply({'params': params}, c.c_in[:, None, None, None] * x, c.c_noise,
                                  features=True)}
  return apply
