"""Layers that the U-Nets share, NHWC, Flax linen.

Every layer computes in the precision of its input and its parameters. Statistics and softmax of
half-precision inputs are taken in float32.
"""

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Initializer = Callable[..., jax.Array]

MOST_TOKENS = 2048  # That attend to each other at once.
_FEW_LOGITS = 2**20  # Of an image and head, where the queries come a few at a time: 4 MiB.


def xavier(scale: float = 1.0) -> Initializer:
  """Returns Glorot's uniform initializer times `scale`: EDM's default (1e-5 for "zero")."""
  return nn.initializers.variance_scaling(scale**2, 'fan_avg', 'uniform')


def resample(x: jax.Array, taps: Sequence[float], *, up: bool = False,
             pad: int | None = None) -> jax.Array:
  """Halves or doubles both sides of images with a separable filter.

  Down: correlation with outer(taps, taps) / sum(taps)^2 at every second pixel. Up: its transpose
  times 4, so that constants stay constants inside. Zeros continue the image.

  Args:
    x: (batch, height, width, channels); sides even where they are halved.
    taps: of the filter along one axis.
    up: double instead of halve.
    pad: zeros on each side (up: what is cut from each side of the result); (len(taps) - 1) // 2,
      which gives exactly twice or half the side, if None.

  Returns:
    (batch, new height, new width, channels).
  """
  pad = (len(taps) - 1) // 2 if pad is None else pad
  weights = np.asarray(taps, np.float64) / np.sum(taps)
  if up:
    weights = 2 * weights[::-1]
    pad = len(taps) - 1 - pad
  stride, interior = (1, 1) if up else (2, 0)
  for axis in (1, 2):
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (pad, pad, interior)
    padded = lax.pad(x, jnp.zeros((), x.dtype), config)
    last = padded.shape[axis] - len(taps)
    x = sum(jnp.asarray(weight, x.dtype) * lax.slice_in_dim(padded, i, last + i + 1, stride, axis)
            for i, weight in enumerate(weights))
  return x


class Conv(nn.Module):
  """A convolution with zero padding, before or after it a resampling filter.

  Attributes:
    features: channels of the result.
    kernel: side of the learned kernel, odd; 0: the filter alone, without parameters.
    up: double both sides.
    down: halve both sides.
    taps: of the resampling filter along one axis.
    fused: the learned kernel and the filter share their padding and, down, swap their order: what
      comes of running them as one (EDM, Karras et al. 2022, arXiv:2206.00364, App. C.2).
    stride: 2 keeps every second pixel of what the learned kernel gives.
    use_bias: add a learned bias.
    init: initializer of the kernel.
  """

  features: int
  kernel: int = 3
  up: bool = False
  down: bool = False
  taps: tuple[float, ...] = (1, 1)
  fused: bool = False
  stride: int = 1
  use_bias: bool = True
  init: Initializer = xavier()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns (batch, new height, new width, features)."""
    own, other = self.kernel // 2, (len(self.taps) - 1) // 2  # Paddings that keep the side.
    resampled, fused = self.up or self.down, self.fused and self.kernel
    if resampled and not (fused and self.down):
      x = resample(x, self.taps, up=self.up, pad=max(other - own, 0) if fused else other)
    if not self.kernel:
      return x
    if fused and resampled:
      own = max(own - other, 0) if self.up else own + other
    kernel = self.param('kernel', self.init, (self.kernel, self.kernel, x.shape[-1], self.features))
    x = lax.conv_general_dilated(x, kernel.astype(x.dtype), (self.stride,) * 2, [(own, own)] * 2,
                                 dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    if fused and self.down:
      x = resample(x, self.taps, pad=0)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(x.dtype)[None, None, None]
    return x


class Dense(nn.Module):
  """A linear layer over the last axis.

  Attributes:
    features: size of the result.
    use_bias: add a learned bias.
    init: initializer of the kernel.
  """

  features: int
  use_bias: bool = True
  init: Initializer = xavier()

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, ..., size) to (batch, ..., features)."""
    kernel = self.param('kernel', self.init, (x.shape[-1], self.features))
    x = x @ kernel.astype(x.dtype)
    if self.use_bias:
      bias = self.param('bias', nn.initializers.zeros, (self.features,))
      x = x + bias.astype(x.dtype)[(None,) * (x.ndim - 1)]
    return x


class GroupNorm(nn.Module):
  """Group normalization over space and the channels of a group, with biased variance.

  Attributes:
    epsilon: added to the variance.
    groups: number of groups; 0: min(32, channels // 4), EDM's rule.
  """

  epsilon: float = 1e-5
  groups: int = 0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns an array like x, (batch, height, width, channels)."""
    channels = x.shape[-1]
    groups = self.groups or min(32, channels // 4)
    def mean(values):  # Space first: channels lie side by side in memory.
      means = values.mean((1, 2)).reshape(-1, groups, channels // groups).mean(-1, keepdims=True)
      return jnp.broadcast_to(means, (*means.shape[:2], channels // groups)).reshape(
          -1, 1, 1, channels)
    wide = x.astype(_wide(x.dtype))
    centred = wide - mean(wide)  # Two passes: no difference of large sums.
    gain = self.param('scale', nn.initializers.ones, (channels,)).astype(wide.dtype)
    shift = self.param('bias', nn.initializers.zeros, (channels,)).astype(wide.dtype)
    scale = lax.rsqrt(mean(centred**2) + self.epsilon) * gain[None, None, None]
    return (centred * scale + shift[None, None, None]).astype(x.dtype)


class LayerNorm(nn.Module):
  """Layer normalization over the last axis, with biased variance.

  Attributes:
    epsilon: added to the variance.
  """

  epsilon: float = 1e-5

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns an array like x, (batch, ..., width)."""
    wide = x.astype(_wide(x.dtype))
    axes = (None,) * (x.ndim - 1)
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:]).astype(wide.dtype)[axes]
    bias = self.param('bias', nn.initializers.zeros, x.shape[-1:]).astype(wide.dtype)[axes]
    centred = wide - wide.mean(-1, keepdims=True)  # Two passes: no difference of large sums.
    variance = (centred**2).mean(-1, keepdims=True)
    return (centred * lax.rsqrt(variance + self.epsilon) * scale + bias).astype(x.dtype)


def attention(qkv: jax.Array, heads: int) -> jax.Array:
  """Attends from every pixel to every pixel; EDM's order of channels.

  The 3C channels are (head, channel of the head, q or k or v): the three lie innermost. Other
  orders are a permutation of the layer before, which conversion makes.

  Args:
    qkv: (batch, height, width, 3 * channels).
    heads: number of heads, a divisor of channels.

  Returns:
    (batch, height, width, channels).
  """
  batch, height, width, channels = qkv.shape
  size = channels // 3 // heads
  split = qkv.reshape(batch, height * width, heads, size, 3)
  query, key, value = (split[..., i] for i in range(3))
  return attend(query, key, value).reshape(batch, height, width, -1)


def attend(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
  """Returns softmax(query key^T / sqrt(size)) value of every head.

  Where the logits of an image and head were more than those of 2048 tokens to each other, as over
  64 x 64 pixels, some queries are answered at a time: memory grows with the tokens, not with their
  square, in gradients too. The result is the same.

  Args:
    query: (batch, queries, heads, size).
    key: (batch, keys, heads, size).
    value: like key.

  Returns:
    An array like query.
  """
  size = query.shape[-1]
  key = key / np.sqrt(size).astype(key.dtype)
  def answer(query):
    logits = jnp.einsum('bqhc,bkhc->bhqk', query, key)
    weights = nn.softmax(logits.astype(_wide(logits.dtype))).astype(value.dtype)
    return jnp.einsum('bhqk,bkhc->bqhc', weights, value)
  queries, keys = query.shape[1], key.shape[1]
  if queries * keys <= MOST_TOKENS**2:
    return answer(query)
  answers = lax.map(jax.checkpoint(lambda one: answer(one[:, None])[:, 0]),
                    jnp.moveaxis(query, 1, 0), batch_size=max(_FEW_LOGITS // keys, 1))
  return jnp.moveaxis(answers, 0, 1)


def positional_embedding(c_noise: jax.Array, size: int, endpoint: bool) -> jax.Array:
  """Returns [cos, sin] of c_noise times frequencies from 1 down to 1 / 10000.

  Args:
    c_noise: (batch,).
    size: of the embedding, even.
    endpoint: the last frequency is 1 / 10000 (DDPM++), else one short of it (ADM).

  Returns:
    (batch, size).
  """
  half = size // 2
  frequencies = 1e-4**(np.arange(half) / (half - endpoint))
  angles = c_noise[:, None] * jnp.asarray(frequencies, c_noise.dtype)[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class FourierEmbedding(nn.Module):
  """[cos, sin] of 2 pi c_noise times random frequencies, drawn once and never trained (NCSN++).

  Attributes:
    size: of the embedding, even.
    scale: standard deviation of the frequencies.
  """

  size: int
  scale: float = 16.0

  @nn.compact
  def __call__(self, c_noise: jax.Array) -> jax.Array:
    """Maps (batch,) to (batch, size)."""
    init = nn.initializers.normal(self.scale)
    frequencies = lax.stop_gradient(self.param('freqs', init, (self.size // 2,)))
    angles = (2 * np.pi) * c_noise[:, None] * frequencies.astype(c_noise.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class UNetBlock(nn.Module):
  """The residual block of DDPM++, NCSN++ and ADM, with its choices as attributes.

    h = conv0(silu(norm0(x))), with the resampling
    h = silu(norm1(h + p)), or silu(norm1(h) (1 + scale) + shift) if adaptive; p = affine(emb)
      (with a second embedding p + p_step, or the same scale and shift again)
    h = (conv1(dropout(h)) + skip(x)) * skip_scale
    h = (proj(attention(qkv(norm2(h)))) + h) * skip_scale, if heads

  Source: Karras et al. 2022, arXiv:2206.00364, App. F.2 and Table 7 of its experiments.

  Attributes:
    features: channels of the result.
    heads: of the attention, 0 for none.
    up: double both sides.
    down: halve both sides.
    taps: of the resampling filter.
    dropout: share of channels' values dropped in training.
    skip_scale: factor of both sums.
    epsilon: of the norms.
    groups: of the norms, see GroupNorm.
    resample_proj: a resampled skip has a learned 1x1 kernel even if channels agree.
    adaptive_scale: the embedding scales too.
    init: initializer of the learned kernels.
    init_zero: of those that end a branch.
    init_attention: of qkv.
  """

  features: int
  heads: int = 0
  up: bool = False
  down: bool = False
  taps: tuple[float, ...] = (1, 1)
  dropout: float = 0.0
  skip_scale: float = 1.0
  epsilon: float = 1e-5
  groups: int = 0
  resample_proj: bool = False
  adaptive_scale: bool = True
  init: Initializer = xavier()
  init_zero: Initializer = nn.initializers.zeros
  init_attention: Initializer = xavier()

  @nn.compact
  def __call__(self, x: jax.Array, emb: jax.Array, emb_step: jax.Array | None = None,
               train: bool = False) -> jax.Array:
    """Maps images (batch, height, width, channels) and embeddings (batch, size) to images."""
    resampling = {'up': self.up, 'down': self.down, 'taps': self.taps}
    def norm(name):
      return GroupNorm(self.epsilon, self.groups, name=name)
    def affine(name, emb):
      p = Dense(self.features * (1 + self.adaptive_scale), init=self.init, name=name)(emb)
      return p[:, None, None].astype(x.dtype)
    h = nn.silu(norm('norm0')(x))
    h = Conv(self.features, **resampling, init=self.init, name='conv0')(h)
    embedded = [affine('affine', emb)]
    if emb_step is not None:
      embedded.append(affine('affine_step', emb_step))
    if self.adaptive_scale:
      h = norm('norm1')(h)
      for p in embedded:
        scale, shift = jnp.split(p, 2, axis=-1)
        h = h * (1 + scale) + shift
      h = nn.silu(h)
    else:
      h = nn.silu(norm('norm1')(h + sum(embedded)))
    h = nn.Dropout(self.dropout, deterministic=not train)(h)
    h = Conv(self.features, init=self.init_zero, name='conv1')(h)
    if self.up or self.down or x.shape[-1] != self.features:
      kernel = int(self.resample_proj or x.shape[-1] != self.features)
      x = Conv(self.features, kernel, **resampling, init=self.init, name='skip')(x)
    h = (h + x) * np.asarray(self.skip_scale, h.dtype)
    if self.heads:
      qkv = Conv(3 * self.features, 1, init=self.init_attention, name='qkv')(norm('norm2')(h))
      out = Conv(self.features, 1, init=self.init_zero, name='proj')(attention(qkv, self.heads))
      h = (out + h) * np.asarray(self.skip_scale, h.dtype)
    return h


def skip_weight(index: int, count: int) -> float:
  """Returns SFD's weight of the skip that a decoder takes as number `index` (from 0) of `count`.

  Source: Zhou et al. 2024 (SFD), arXiv:2409.19681, after Ma et al. 2024 (Skip-Tuning),
  arXiv:2402.15170: 0.75 at the bottom, towards 1.
  """
  return 0.75 + 0.25 * index / count


def _wide(dtype):
  """The precision of sums: float32 at least."""
  return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
