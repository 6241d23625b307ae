"""LPIPS between pairs of images: batches in, float64 numbers out."""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from models import lpips
from samplers import checks

SFD_SIZE = 224
"""Side that SFD resizes both images to."""
SMALLEST = lpips.SMALLEST
"""Least side of images that are not resized."""


class Network(Protocol):
  """What is needed of a feature network that was loaded; see models.load_features."""

  name: str
  params: object


class Distances(NamedTuple):
  """LPIPS of pairs.

  Attributes:
    values: np.float64 (n,).
    layers: contribution of each stage of VGG16, np.float64 (n, 5).
  """

  values: np.ndarray
  layers: np.ndarray


def distance(network: Network, a: np.ndarray, b: np.ndarray, *, replace_pooling: bool = False,
             size: int | None = None, batch_size: int = 32) -> Distances:
  """Compares images pair by pair, see models.lpips.VggDistance.

  SFD as published gives images in [-1, 1] where [0, 1] is meant; that is not copied.

  Args:
    network: LPIPS, as models.load_features gives it.
    a: uint8, or floating-point in [0, 1], (n, height, width, 3 or 1); gray becomes RGB.
    b: like a.
    replace_pooling: means in place of maxima.
    size: side that images are resized to first, bilinear between the centers of pixels, not
      antialiased (SFD: SFD_SIZE and replace_pooling); None: as they are.
    batch_size: pairs at a time; it has no effect on the numbers but rounding.

  Returns:
    The Distances; computed in float32, or in float64 for such images in 64-bit mode.

  Raises:
    ValueError: if the network is another one, or the images are of another form, out of range, too
      small or none.
  """
  if network.name != 'lpips_vgg':
    raise ValueError(f'lpips: network must be lpips_vgg, got {network.name}; convert the published '
                     'files first')
  for option, value in (('batch_size', batch_size), ('size', size)):
    if value is not None and (not checks.is_integer(value) or value < 1):
      raise ValueError(f'lpips: {option} must be an integer of 1 or more, got {value!r}; '
                       f'{"32" if option == "batch_size" else SFD_SIZE} is usual')
  a, b = np.asarray(a), np.asarray(b)
  _check(a, b)
  parts = []
  for start in range(0, len(a), batch_size):
    pair = [_pad(prepare(images[start:start + batch_size]), batch_size) for images in (a, b)]
    parts.append([np.asarray(part, np.float64)[:len(a) - start]
                  for part in _compiled(replace_pooling, size)(network.params, *pair)])
  return Distances(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def prepare(images: np.ndarray) -> np.ndarray:
  """Returns what `compare` reads of images.

  Args:
    images: uint8, or floating-point in [0, 1], (n, height, width, 3 or 1); gray becomes RGB.

  Returns:
    float32 in [0, 1], float64 for such images, (n, height, width, 3).
  """
  wide = images.astype(np.float64 if images.dtype == np.float64 else np.float32)
  scaled = wide / wide.dtype.type(255) if images.dtype == np.uint8 else wide
  return np.broadcast_to(scaled, (*scaled.shape[:-1], 3))


def compare(params: Any, a: jax.Array, b: jax.Array, replace_pooling: bool = False,
            size: int | None = None) -> tuple[jax.Array, jax.Array]:
  """Compares prepared images pair by pair; pure, to be compiled by the caller.

  Args:
    params: of the network.
    a: what `prepare` returned.
    b: like a.
    replace_pooling: as `distance`.
    size: as `distance`.

  Returns:
    (distances (n,), the contribution of each stage (n, 5)).
  """
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf, a.dtype), params)
  if size is not None:
    a, b = lpips.resize(a, size), lpips.resize(b, size)
  # Products in float32 as such: accelerators would round them to fewer bits.
  with jax.default_matmul_precision('highest'):
    return lpips.apply(params, a, b, replace_pooling)


def _check(a, b):
  for images in (a, b):
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
      raise ValueError('lpips: images must be of shape (n, height, width, 3 or 1), n above 0, got '
                       f'{images.shape}; stack them')
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
      raise ValueError('lpips: images must be uint8, or floating-point in [0, 1], got '
                       f'{images.dtype}; convert them')
  if a.shape != b.shape or a.dtype != b.dtype:
    raise ValueError(f'lpips: both sets must be of one shape and type, got {a.dtype} {a.shape} and '
                     f'{b.dtype} {b.shape}; pair them')
  if a.dtype != np.uint8:
    for images in (a, b):
      low, high = images.min(), images.max()
      if not (low >= 0 and high <= 1):
        raise ValueError(f'lpips: images must lie in [0, 1], got {low:g} to {high:g}; scale them')


def _pad(images, count):
  """A batch with `count` images: what is added repeats the last one."""
  return np.pad(images, [(0, count - len(images)), (0, 0), (0, 0), (0, 0)], mode='edge')


@functools.cache
def _compiled(replace_pooling, size):
  return jax.jit(functools.partial(compare, replace_pooling=replace_pooling, size=size))
