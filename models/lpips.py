"""LPIPS v0.1 with VGG16: a distance between images that agrees with what people see.

Source: Zhang et al. 2018, arXiv:1801.03924, Eq. 1, in the form published as version 0.1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers

MEAN = 0.485, 0.456, 0.406
"""Of the channels of VGG16's training images, in [0, 1]."""
STD = 0.229, 0.224, 0.225
"""Of the channels of VGG16's training images, in [0, 1]."""

STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
"""Numbers of the convolutions before each pooling, as torchvision counts VGG16's layers."""
WIDTHS = 64, 128, 256, 512, 512
"""Channels of each stage; the last convolution of each, after its ReLU, is compared."""

SMALLEST = 16
"""Least side of an image: four poolings leave one pixel."""

_EPSILON = 1e-10  # Added to the length of a vector of channels.


class VggDistance(nn.Module):
  """LPIPS; its parameters are VGG16's convolutions and a weight per compared channel."""

  @nn.compact
  def __call__(self, a: jax.Array, b: jax.Array, replace_pooling: bool = False,
               ) -> tuple[jax.Array, jax.Array]:
    """Compares images pair by pair.

    For each stage the vectors of channels, at length 1, are subtracted, squared, weighted and
    summed, then averaged over the pixels; stages are summed.

    Args:
      a: (n, height, width, 3) in [0, 1], at least SMALLEST on a side.
      b: like a.
      replace_pooling: take means in place of maxima, as SFD does, for smoother gradients.

    Returns:
      (distances (n,), the contribution of each stage (n, 5)).

    Raises:
      ValueError: if the images have different shapes, no three channels, or are too small.
    """
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3 or min(a.shape[1:3]) < SMALLEST:
      raise ValueError('lpips: images must be two arrays of one shape (n, height, width, 3), of at '
                       f'least {SMALLEST} pixels on a side, got {a.shape} and {b.shape}; resize '
                       'them, and repeat the channel of gray ones')
    mean, std = (jnp.asarray(values, a.dtype)[None, None, None] for values in (MEAN, STD))
    x = (jnp.concatenate([a, b]) - mean) / std
    parts = []
    for stage, (convs, width) in enumerate(zip(STAGES, WIDTHS, strict=True)):
      if stage:
        x = layers.resample(x, (1, 1)) if replace_pooling else nn.max_pool(x, (2, 2), (2, 2))
      for number in convs:
        x = nn.relu(layers.Conv(width, name=f'conv{number}')(x))
      first, second = jnp.split(_unit(x), 2)
      weigh = layers.Dense(1, use_bias=False, name=f'lin{stage}')
      parts.append(weigh(((first - second)**2).mean((1, 2)))[:, 0])
    contributions = jnp.stack(parts, axis=-1)
    return contributions.sum(-1), contributions


def apply(params: Any, a: jax.Array, b: jax.Array,
          replace_pooling: bool = False) -> tuple[jax.Array, jax.Array]:
  """Evaluates VggDistance.

  Args:
    params: of VggDistance.
    a: (n, height, width, 3) in [0, 1].
    b: like a.
    replace_pooling: as VggDistance.

  Returns:
    (distances (n,), the contribution of each stage (n, 5)).

  Raises:
    ValueError: as VggDistance.
  """
  return VggDistance().apply({'params': params}, a, b, replace_pooling)


def resize(images: jax.Array, size: int) -> jax.Array:
  """Resizes between the centers of pixels, bilinear, not antialiased: SFD's way, to 224.

  Args:
    images: (n, height, width, channels).
    size: side of the result.

  Returns:
    (n, size, size, channels).
  """
  return jax.image.resize(images, (len(images), size, size, images.shape[-1]), 'linear',
                          antialias=False)


def _unit(x):
  """Vectors of channels over their length; zero ones stay zero, and so do their gradients."""
  square = (x**2).sum(-1, keepdims=True)
  # sqrt has no finite slope at 0, which reaches wherever no channel is active.
  some = square > 0
  return x / (jnp.where(some, jnp.sqrt(jnp.where(some, square, 1)), 0) + _EPSILON)
