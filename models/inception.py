"""Inception-v3 as published on 2015-12-05: the network behind FID, sFID, IS, KID and precision.

Not the Inception-v3 of the paper and of model zoos: 1008 outputs, average pools that leave the
padding out of their count, and a max pool in the last block. Parameters bear the names of the .pth
file that pytorch-fid and torch-fidelity share. NVIDIA's detector is the same network with 1 for the
scales of its batch norms.

Source: Szegedy et al. 2016, arXiv:1512.00567; FID: Heusel et al. 2017, arXiv:1706.08500.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from samplers import checks

SIDE = 299
"""Height and width of the images."""

OUTPUTS = 1008
"""Classes of the last layer, all of which enter a softmax."""

FEATURES = 'pool', 'spatial', 'logits_unbiased', 'logits'
"""What metrics read: FID's features, sFID's, the logits of the Inception Score, those with bias."""

_EPSILON = 1e-3  # Of the batch norms.
_HIGHEST = lax.Precision.HIGHEST  # TF32, which accelerators default to, moves features by 1e-3.

# A block is a tuple of branches, which all read its input and whose results are concatenated in
# this order. A branch is a tuple of steps: a pool by name; a unit (name, channels, kernel height,
# width[, stride]); or several units side by side, concatenated.


def _mixed_35(channels):
  """Branches at 35x35; `channels` of the pooled one."""
  return ((('branch1x1', 64, 1, 1),),
          (('branch5x5_1', 48, 1, 1), ('branch5x5_2', 64, 5, 5)),
          (('branch3x3dbl_1', 64, 1, 1), ('branch3x3dbl_2', 96, 3, 3),
           ('branch3x3dbl_3', 96, 3, 3)),
          ('average', ('branch_pool', channels, 1, 1)))


def _mixed_17(inner):
  """Branches at 17x17; `inner` channels between the factors of the 7x7 kernels."""
  return ((('branch1x1', 192, 1, 1),),
          (('branch7x7_1', inner, 1, 1), ('branch7x7_2', inner, 1, 7),
           ('branch7x7_3', 192, 7, 1)),
          (('branch7x7dbl_1', inner, 1, 1), ('branch7x7dbl_2', inner, 7, 1),
           ('branch7x7dbl_3', inner, 1, 7), ('branch7x7dbl_4', inner, 7, 1),
           ('branch7x7dbl_5', 192, 1, 7)),
          ('average', ('branch_pool', 192, 1, 1)))


def _mixed_8(pool):
  """Branches at 8x8."""
  return ((('branch1x1', 320, 1, 1),),
          (('branch3x3_1', 384, 1, 1),
           (('branch3x3_2a', 384, 1, 3), ('branch3x3_2b', 384, 3, 1))),
          (('branch3x3dbl_1', 448, 1, 1), ('branch3x3dbl_2', 384, 3, 3),
           (('branch3x3dbl_3a', 384, 1, 3), ('branch3x3dbl_3b', 384, 3, 1))),
          (pool, ('branch_pool', 192, 1, 1)))


_MIXED = {
    'Mixed_5b': _mixed_35(32), 'Mixed_5c': _mixed_35(64), 'Mixed_5d': _mixed_35(64),
    'Mixed_6a': (
        (('branch3x3', 384, 3, 3, 2),),
        (('branch3x3dbl_1', 64, 1, 1), ('branch3x3dbl_2', 96, 3, 3),
         ('branch3x3dbl_3', 96, 3, 3, 2)),
        ('halve',)),
    'Mixed_6b': _mixed_17(128), 'Mixed_6c': _mixed_17(160), 'Mixed_6d': _mixed_17(160),
    'Mixed_6e': _mixed_17(192),
    'Mixed_7a': (
        (('branch3x3_1', 192, 1, 1), ('branch3x3_2', 320, 3, 3, 2)),
        (('branch7x7x3_1', 192, 1, 1), ('branch7x7x3_2', 192, 1, 7), ('branch7x7x3_3', 192, 7, 1),
         ('branch7x7x3_4', 192, 3, 3, 2)),
        ('halve',)),
    'Mixed_7b': _mixed_8('average'), 'Mixed_7c': _mixed_8('max')}


def apply(params: Mapping[str, Any], x: jax.Array,
          names: Sequence[str] = FEATURES) -> dict[str, jax.Array]:
  """Evaluates the network.

  Args:
    params: tree of parameters, named as in the .pth file: {'Conv2d_1a_3x3': {'conv': {'kernel'},
      'bn': {'scale', 'bias', 'mean', 'var'}}, 'Mixed_5b': {'branch1x1': {...}, ...}, ...,
      'fc': {'kernel', 'bias'}}.
    x: images, (n, 299, 299, 3), scaled to about [-1, 1]; (x - 128) / 128 in the original.
    names: what to return, of FEATURES and BLOCKS.

  Returns:
    'pool' (n, 2048), 'spatial' (n, 17, 17, 7), 'logits_unbiased' and 'logits' (n, 1008), blocks
    (n, height, width, channels); in the precision of x. What is not asked for is not computed once
    compiled.

  Raises:
    ValueError: if a name is unknown or x has another shape.
  """
  for name in names:
    checks.check_choice('inception', 'name', name, (*FEATURES, *BLOCKS))
  if x.ndim != 4 or x.shape[1:] != (SIDE, SIDE, 3):
    raise ValueError(f'inception: x must have the shape (n, {SIDE}, {SIDE}, 3), got {x.shape}; '
                     'see evaluation/resize.py')
  everything = Inception().apply({'params': params}, x)
  return {name: everything[name] for name in names}


class Inception(nn.Module):
  """The network, every block's result by name; see `apply`."""

  @nn.compact
  def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
    """Maps images (n, 299, 299, 3) to {name: array} of BLOCKS and FEATURES."""
    out = {}

    def keep(name, value):
      out[name] = value
      return value

    for step in _STEM:
      if isinstance(step, str):
        x = keep(step, _max_pool(x, 2, 0))
      else:
        x = keep(step[0], Unit(*step[1:], name=step[0])(x))
    for name, branches in _MIXED.items():
      x = keep(name, Mixed(branches, name=name)(x))
    out['spatial'] = out['Mixed_6d'][..., :7]  # Within its first branch: TensorFlow's mixed_6/conv.
    out['pool'] = x.mean((1, 2))
    out['logits_unbiased'], out['logits'] = _Head(name='fc')(out['pool'])
    return out


_STEM = (
    ('Conv2d_1a_3x3', 32, 3, 3, 2, 0), ('Conv2d_2a_3x3', 32, 3, 3, 1, 0),
    ('Conv2d_2b_3x3', 64, 3, 3, 1, 1), 'MaxPool_1', ('Conv2d_3b_1x1', 80, 1, 1, 1, 0),
    ('Conv2d_4a_3x3', 192, 3, 3, 1, 0), 'MaxPool_2')

BLOCKS = (*(step if isinstance(step, str) else step[0] for step in _STEM), *_MIXED)
"""Names of the blocks in their order."""


class Unit(nn.Module):
  """A convolution without bias, batch norm with stored moments, and ReLU.

  Attributes:
    features: channels of the result.
    height: of the kernel.
    width: of the kernel.
    stride: 1, or 2 to keep every second pixel.
    padding: zeros on all four sides; None: what keeps the size at stride 1, none at stride 2.
  """

  features: int
  height: int
  width: int
  stride: int = 1
  padding: int | None = None

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns (n, new height, new width, features)."""
    if self.padding is None and self.stride == 1:
      sides = self.height // 2, self.width // 2
    else:
      sides = (self.padding or 0,) * 2
    x = _Conv(self.features, (self.height, self.width), self.stride, sides, name='conv')(x)
    return nn.relu(_Norm(name='bn')(x))


class Mixed(nn.Module):
  """Branches side by side.

  Attributes:
    branches: see the table of blocks in this file.
  """

  branches: tuple[tuple[Any, ...], ...]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns (n, new height, new width, channels of all branches)."""
    results = []
    for branch in self.branches:
      h = x
      for step in branch:
        if isinstance(step, str):
          h = _POOLS[step](h)
        elif isinstance(step[0], str):
          h = Unit(*step[1:], name=step[0])(h)
        else:
          h = jnp.concatenate([Unit(*unit[1:], name=unit[0])(h) for unit in step], -1)
      results.append(h)
    return jnp.concatenate(results, -1)


class _Conv(nn.Module):
  features: int
  sides: tuple[int, int]
  stride: int
  padding: tuple[int, int]

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.he_normal(),
                        (*self.sides, x.shape[-1], self.features))
    return lax.conv_general_dilated(
        x, kernel.astype(x.dtype), (self.stride,) * 2, [(pad, pad) for pad in self.padding],
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision=_HIGHEST)


class _Norm(nn.Module):

  @nn.compact
  def __call__(self, x):
    def own(name, init):
      return self.param(name, init, (x.shape[-1],)).astype(x.dtype)
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    factor = own('scale', ones) * lax.rsqrt(own('var', ones) + _EPSILON)
    shift = own('bias', zeros) - own('mean', zeros) * factor
    return x * factor[None, None, None] + shift[None, None, None]


class _Head(nn.Module):

  @nn.compact
  def __call__(self, x):
    kernel = self.param('kernel', nn.initializers.lecun_normal(), (x.shape[-1], OUTPUTS))
    bias = self.param('bias', nn.initializers.zeros, (OUTPUTS,)).astype(x.dtype)
    logits = jnp.matmul(x, kernel.astype(x.dtype), precision=_HIGHEST)
    return logits, logits + bias[None]


def _max_pool(x, stride, padding):
  """The largest of 3x3; outside the image nothing is larger."""
  pads = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
  return lax.reduce_window(x, np.array(-np.inf, x.dtype), lax.max, (1, 3, 3, 1),
                           (1, stride, stride, 1), pads)


def _average_pool(x):
  """The mean of the up to 9 neighbours inside the image."""
  def neighbours(values, axis):
    pads = [(1, 1) if a == axis else (0, 0) for a in range(values.ndim)]
    padded, size = jnp.pad(values, pads), values.shape[axis]
    return sum(lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
  counts = neighbours(neighbours(jnp.ones((1, *x.shape[1:3], 1), x.dtype), 1), 2)
  return neighbours(neighbours(x, 1), 2) / jnp.broadcast_to(counts, x.shape)


_POOLS = MappingProxyType({'average': _average_pool, 'max': lambda x: _max_pool(x, 1, 1),
                           'halve': lambda x: _max_pool(x, 2, 0)})
