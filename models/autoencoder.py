"""First stages of latent diffusion: images to latents and back, with KL or codebook, Flax linen.

Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1 and App. G, in the form of the published
checkpoints of latent diffusion and Stable Diffusion. Convolutions and one attention in the middle:
any size of image that halves often enough will do, whatever the size in training.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models import layers, settings as settings_lib
from samplers import checks

KINDS = 'kl', 'vq'
"""A Gaussian of every latent, regularized towards the standard one; a codebook of latents."""

GROUPS = 32
"""Of every norm, in all published checkpoints."""
EPSILON = 1e-6
"""Of every norm."""

LOG_VARIANCE = -30.0, 20.0
"""Range of the logarithm of the variance of a latent."""

_TYPES = {'kind': 'one of ' + ' and '.join(KINDS), 'n_embed': 'an integer of 0 or more',
          'channel_mult': 'a list of one or more numbers above 0',
          'attn_levels': 'a list of integers of 0 or more'}  # Others: integers of 1 or more.


class ResBlock(nn.Module):
  """x + conv1(silu(norm1(conv0(silu(norm0(x)))))), with a 1x1 kernel on x if channels change.

  Attributes:
    features: channels of the result.
  """

  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images (batch, height, width, channels) to images."""
    h = layers.Conv(self.features, name='conv0')(nn.silu(_norm('norm0')(x)))
    h = layers.Conv(self.features, name='conv1')(nn.silu(_norm('norm1')(h)))
    if x.shape[-1] != self.features:
      x = layers.Conv(self.features, 1, name='skip')(x)
    return x + h


class Attention(nn.Module):
  """x + out(attention(q, k, v of norm(x))), from every pixel to every pixel, one head."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns an array like x, (batch, height, width, channels)."""
    channels = x.shape[-1]
    pixels = _norm('norm')(x).reshape(len(x), -1, 1, channels)
    h = layers.attend(*(layers.Dense(channels, name=name)(pixels) for name in 'qkv'))
    return x + layers.Dense(channels, name='out')(h).reshape(x.shape)


class Encoder(nn.Module):
  """Images to what the latents are a 1x1 convolution of.

  Attributes:
    first: channels of the first convolution.
    channels: of each level, from the finest.
    num_blocks: residual blocks of each level.
    attn_levels: levels at which every block is followed by attention.
    out_channels: channels of the result.
  """

  first: int
  channels: tuple[int, ...]
  num_blocks: int
  attn_levels: tuple[int, ...]
  out_channels: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, any) to sides halved at every level but the last."""
    h = layers.Conv(self.first, name='conv_in')(x)
    for level, channels in enumerate(self.channels):
      h = _level(self, level, h, channels, self.num_blocks)
      if level < len(self.channels) - 1:
        # Zeros continue the image to the right and below alone. The layer pads on all sides: one
        # more row and column move its kernel by a pixel, and what it gives for them is dropped.
        padded = jnp.pad(h, ((0, 0), (1, 1), (1, 1), (0, 0)))
        h = layers.Conv(channels, stride=2, name=f'level{level}_down')(padded)[:, 1:, 1:]
    return _end(self, _middle(h))


class Decoder(nn.Module):
  """The way back; its levels have one block more.

  Attributes:
    channels: of each level, from the finest.
    num_blocks: residual blocks of each level of the encoder.
    attn_levels: as Encoder.
    out_channels: channels of the result.
  """

  channels: tuple[int, ...]
  num_blocks: int
  attn_levels: tuple[int, ...]
  out_channels: int

  @nn.compact
  def __call__(self, h: jax.Array) -> jax.Array:
    """Maps (batch, height, width, any) to sides doubled at every level but the first."""
    h = _middle(layers.Conv(self.channels[-1], name='conv_in')(h))
    for level, channels in reversed([*enumerate(self.channels)]):
      h = _level(self, level, h, channels, self.num_blocks + 1)
      if level:
        h = layers.Conv(channels, up=True, name=f'level{level}_up')(h)
    return _end(self, h)


class Autoencoder(nn.Module):
  """A first stage.

  Attributes:
    kind: one of KINDS.
    embed_dim: channels of the latents.
    z_channels: channels between them and the networks on both sides.
    n_embed: vectors of the codebook, for 'vq'.
    in_channels: of the images.
    out_channels: of the decoded images.
    model_channels: channels at multiplier 1.
    channel_mult: multiplier of each level; every level but the first halves the sides.
    num_blocks: residual blocks of each level of the encoder; the decoder has one more.
    attn_levels: levels, 0 the finest, at which every block is followed by attention.
  """

  kind: str
  embed_dim: int
  z_channels: int
  n_embed: int = 0
  in_channels: int = 3
  out_channels: int = 3
  model_channels: int = 128
  channel_mult: tuple[float, ...] = (1, 2, 4, 4)
  num_blocks: int = 2
  attn_levels: tuple[int, ...] = ()

  def setup(self):
    """Names the layers."""
    body = {'channels': _channels(self), 'num_blocks': self.num_blocks,
            'attn_levels': self.attn_levels}
    parts = 2 if self.kind == 'kl' else 1
    self.encoder = Encoder(self.model_channels, out_channels=parts * self.z_channels, **body)
    self.quant_conv = layers.Conv(parts * self.embed_dim, 1)
    self.post_quant_conv = layers.Conv(self.z_channels, 1)
    self.decoder = Decoder(out_channels=self.out_channels, **body)
    if self.kind == 'vq':
      self.codebook = self.param('codebook', nn.initializers.uniform(1 / self.n_embed),
                                 (self.n_embed, self.embed_dim))

  def __call__(self, images: jax.Array) -> jax.Array:
    """Encodes and decodes, by the mean of 'kl'."""
    return self.decode(self.encode(images)[..., :self.embed_dim])

  def encode(self, images: jax.Array) -> jax.Array:
    """Returns what a latent is made of, before any scale.

    Args:
      images: (batch, height, width, in_channels) in [-1, 1].

    Returns:
      (batch, height / factor, width / factor, embed_dim), not quantised; for 'kl' twice as many
      channels, see `posterior`.
    """
    return self.quant_conv(self.encoder(images))

  def decode(self, z: jax.Array, quantize: bool = True) -> jax.Array:
    """Returns images.

    Args:
      z: (batch, height, width, embed_dim), without scale.
      quantize: replace every latent by the nearest vector of the codebook first, if there is one.

    Returns:
      (batch, factor * height, factor * width, out_channels), around [-1, 1], not clipped.
    """
    if quantize and self.kind == 'vq':
      z = self.quantize(z)[0]
    return self.decoder(self.post_quant_conv(z))

  def quantize(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest vectors of the codebook, like z, and their indices, without channels."""
    index = nearest(self.codebook, z)
    return self.codebook[index].astype(z.dtype), index


def build(settings: Mapping[str, Any]) -> Autoencoder:
  """Builds a first stage from plain values.

  Args:
    settings: attributes of Autoencoder; lists become tuples.

  Returns:
    The module, without parameters.

  Raises:
    ValueError: if a setting is unknown, missing or out of range, or the channels of a level do not
      divide into groups.
  """
  def check(setting, value, _):
    if not _is_good(setting, value):
      rule = _TYPES.get(setting, 'an integer of 1 or more')
      raise ValueError(f'autoencoder: {setting} must be {rule}, got {str(value)[:80]!r}; see the '
                       'attributes of Autoencoder')
  module = Autoencoder(**settings_lib.read('autoencoder', Autoencoder, settings, check))
  if bool(module.n_embed) != (module.kind == 'vq'):
    raise ValueError('autoencoder: n_embed must be the size of the codebook for vq and 0 for kl, '
                     f'got {module.n_embed} for {module.kind}; choose one of both')
  if max(module.attn_levels, default=0) >= len(module.channel_mult):
    raise ValueError('autoencoder: attn_levels must be below the number of levels, '
                     f'{len(module.channel_mult)}, got {max(module.attn_levels)}; count from 0')
  for mult in (1, *module.channel_mult):
    if module.model_channels * mult % GROUPS:
      raise ValueError(f'autoencoder: channels of a level must be a multiple of {GROUPS}, got '
                       f'{module.model_channels * mult:g} (model_channels {module.model_channels} '
                       f'times {mult:g}); choose other multipliers')
  return module


def initialize(module: Autoencoder, key: jax.Array) -> Any:
  """Returns random parameters, nested dicts of float32 arrays."""
  side = factor(module)  # One latent: parameters do not depend on the size.
  return module.init(key, jnp.zeros((1, side, side, module.in_channels)))['params']


@functools.cache
def shapes(module: Autoencoder) -> Any:
  """Returns the shapes of the parameters, nested dicts of jax.ShapeDtypeStruct, without computing.

  Raises:
    ValueError: if there can be no such network.
  """
  try:
    return jax.eval_shape(lambda key: initialize(module, key), jax.random.key(0))
  except (TypeError, ValueError, ArithmeticError) as error:
    raise ValueError('autoencoder: settings must be those of a network that can be built, got some '
                     f'for which {str(error).splitlines()[0]}; choose others') from None


def factor(module: Autoencoder) -> int:
  """Returns by how much a side of the images is longer than that of the latents."""
  return 2**(len(module.channel_mult) - 1)


def picture_shape(module: Autoencoder, latent_shape: Sequence[int]) -> tuple[int, int, int]:
  """Returns the shape of a decoded image for that of a latent, both (height, width, channels)."""
  height, width, _ = latent_shape
  return height * factor(module), width * factor(module), module.out_channels


def latent_shape(module: Autoencoder, image_shape: Sequence[int]) -> tuple[int, int, int]:
  """Returns the shape of the latent of an image, both (height, width, channels)."""
  height, width, _ = image_shape
  return height // factor(module), width // factor(module), module.embed_dim


def decode(module: Autoencoder, params: Any, z: jax.Array, scale_factor: float = 1.0,
           quantize: bool = True) -> jax.Array:
  """Decodes latents.

  Args:
    module: the first stage.
    params: its parameters.
    z: (batch, height, width, embed_dim), of any size, in units of the diffusion model.
    scale_factor: of the diffusion model: z is scale_factor times what the first stage knows.
    quantize: as Autoencoder.decode.

  Returns:
    (batch, factor * height, factor * width, out_channels), around [-1, 1], not clipped.

  Raises:
    ValueError: if z has another form.
  """
  if z.ndim != 4 or z.shape[-1] != module.embed_dim:
    raise ValueError('decode: z must be latents (batch, height, width, channels) with '
                     f'{module.embed_dim} channels, got shape {z.shape}; take the first stage that '
                     'the latents belong to')
  z = z / jnp.asarray(scale_factor, z.dtype)
  return module.apply({'params': params}, z, quantize, method='decode')


def encode(module: Autoencoder, params: Any, images: jax.Array, scale_factor: float = 1.0,
           noise: jax.Array | None = None) -> jax.Array:
  """Encodes images.

  Args:
    module: the first stage.
    params: its parameters.
    images: (batch, height, width, in_channels) in [-1, 1].
    scale_factor: as `decode`.
    noise: standard normal, like the result: gives a sample of the posterior of 'kl'; None: the
      mean. A codebook has no posterior.

  Returns:
    (batch, height / factor, width / factor, embed_dim), of 'vq' not quantised.

  Raises:
    ValueError: if images have another form, or sides that are no multiple of the factor; or there
      is noise for 'vq'.
  """
  side = factor(module)
  if (images.ndim != 4 or images.shape[-1] != module.in_channels
      or any(size % side or not size for size in images.shape[1:3])):
    raise ValueError('encode: images must be (batch, height, width, channels) with '
                     f'{module.in_channels} channels and sides that are multiples of {side}, got '
                     f'shape {images.shape}; resize or crop them')
  if noise is not None and module.kind == 'vq':
    raise ValueError('encode: noise must be None for a codebook, got an array; only kl has a '
                     'posterior to draw from')
  z = module.apply({'params': params}, images, method='encode')
  if module.kind == 'kl':
    z, std = posterior(z)
    z = z if noise is None else z + std * noise
  return z * jnp.asarray(scale_factor, z.dtype)


def decode_bytes(module: Autoencoder, latent_shape: Sequence[int]) -> int:
  """Returns an upper estimate of the memory that decoding one image in float32 works with.

  It is what the largest activations ask for, or an attention. Of the former XLA keeps 2.5 at a
  time, in the first block of the finest level: 2560 bytes per pixel of the published decoders.
  Convolutions take scratch memory of their own: a process on a CPU grew by 3300 bytes per pixel at
  512x512, 4400 at 256x256. Here it is 5120. Parameters and the result are left out.

  Args:
    module: the first stage.
    latent_shape: (height, width, channels).
  """
  pixels, channels = latent_shape[0] * latent_shape[1], _channels(module)
  largest = 2 * latent_shape[1] * module.n_embed  # Distances of a row to the codebook.
  for level, own in reversed([*enumerate(channels)]):
    # A level starts with the channels of the coarser one.
    largest = max(largest, 5 * pixels * max(channels[level:level + 2]))
    if level in (*module.attn_levels, len(channels) - 1):
      logits = min(pixels, layers.MOST_TOKENS)**2
      largest = max(largest, 2 * logits + 8 * pixels * own)
    pixels *= 4
  return 4 * largest


def posterior(moments: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns mean and standard deviation of latents, (..., channels) each.

  Args:
    moments: mean and logarithm of the variance, (..., 2 * channels); the latter is clipped.
  """
  mean, log_variance = jnp.split(moments, 2, axis=-1)
  return mean, jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE) / 2)


def nearest(codebook: jax.Array, z: jax.Array) -> jax.Array:
  """Returns the index of the nearest vector by Euclidean distance; of several the lowest.

  Distances are sums of squared differences: the expanded square would cancel, and mistake near
  neighbours in float32. One row of the latents at a time, for the sake of memory.

  Args:
    codebook: (n, channels).
    z: (batch, height, width, channels).

  Returns:
    (batch, height, width), integers.
  """
  wide = jnp.promote_types(z.dtype, jnp.float32)
  vectors = codebook.astype(wide)[None, None]
  def row(points):  # (batch, width, channels)
    return jnp.argmin(((points.astype(wide)[:, :, None] - vectors)**2).sum(-1), axis=-1)
  return jnp.moveaxis(lax.map(row, jnp.moveaxis(z, 1, 0)), 0, 1)


def _is_good(setting, value):
  if setting == 'kind':
    return value in KINDS
  if setting == 'channel_mult':
    return isinstance(value, tuple) and value and all(0 < checks.to_number(one) < np.inf
                                                      for one in value)
  if setting == 'attn_levels':
    return isinstance(value, tuple) and all(checks.is_integer(one) and one >= 0 for one in value)
  return checks.is_integer(value) and value >= (setting != 'n_embed')


def _channels(module):
  """Channels of each level, from the finest."""
  return tuple(int(module.model_channels * mult) for mult in module.channel_mult)


def _norm(name):
  return layers.GroupNorm(EPSILON, GROUPS, name=name)


def _level(net, level, h, channels, blocks):
  """The blocks of a level, each with its attention."""
  for i in range(blocks):
    h = ResBlock(channels, name=f'level{level}_block{i}')(h)
    if level in net.attn_levels:
      h = Attention(name=f'level{level}_attention{i}')(h)
  return h


def _middle(h):
  h = Attention(name='middle_attention')(ResBlock(h.shape[-1], name='middle0')(h))
  return ResBlock(h.shape[-1], name='middle1')(h)


def _end(net, h):
  return layers.Conv(net.out_channels, name='out_conv')(nn.silu(_norm('out_norm')(h)))
