"""The U-Net of ADM, as most published diffusion models have it, and its encoder as a classifier.

Parameters carry the names of EDM's DhariwalUNet with '_' for '.'; guided-diffusion, consistency
models and latent diffusion count the same blocks in another way (convert/adm.py). Levels are named
by their side in pixels.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import layers, transformer


class _Given(NamedTuple):
  """What every block is given beside its input.

  Attributes:
    emb: embedding of noise level, class and augmentation, (batch, size).
    emb_step: embedding of the number of steps, (batch, size), or None.
    context: features of a text, (batch, tokens, context_dim), or None.
    train: with dropout.
  """

  emb: jax.Array
  emb_step: jax.Array | None = None
  context: jax.Array | None = None
  train: bool = False


class AdmUNet(nn.Module):
  """F(x, c_noise), a U-Net with embeddings of noise level, class and augmentation.

  EDM's DhariwalUNet with the defaults; guided-diffusion's UNetModel, and that of consistency models
  and of latent diffusion, with groups=32 and bottleneck='middle'; guided-diffusion's SuperResModel
  with low_res=True too; Stable Diffusion's with transformer_depth and context_dim too.

  Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 3, as in Karras et al. 2022,
  arXiv:2206.00364, App. F; transformers: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.3.

  Attributes:
    img_resolution: side of the images; halved at every level but the first.
    out_channels: channels of the result.
    label_dim: number of classes, 0 for none.
    augment_dim: size of augmentation labels, 0 for none.
    model_channels: channels at multiplier 1.
    channel_mult: multiplier of each level.
    channel_mult_emb: multiplier of the embedding's size.
    num_blocks: residual blocks of each level of the encoder; the decoder has one more.
    attn_resolutions: sides at which every block has attention.
    dropout: in training.
    channels_per_head: of the attention; a level with fewer channels has none (so in EDM); 0: the
      number of heads is given.
    num_heads: number of heads where channels_per_head is 0.
    num_heads_up: of the decoder, 0: as num_heads.
    groups: of the norms, 0: min(32, channels // 4).
    adaptive_scale: embeddings scale and shift, else they are added.
    resampling: between levels: 'block' (within a residual block), 'conv' (a learned kernel; down at
      every second pixel, up after the nearest neighbour), 'none' (mean and nearest neighbour).
    bottleneck: what learned solvers read: 'encoder', its last block at side 8, or at the lowest
      side of a network that has no 8; 'middle', the blocks between encoder and decoder.
    step_condition: blocks also read an embedding of the number of steps (SFD).
    low_res: the network is given a smaller image too (super-resolution).
    transformer_depth: blocks of the spatial transformer that stands wherever attention would, 0:
      plain attention.
    context_dim: channels of the features of a text that the transformers read, 0: none, their
      blocks attend to the pixels twice.
    torso: precision between the first and the last layer, with float32 norms and embeddings.
  """

  img_resolution: int
  out_channels: int
  label_dim: int = 0
  augment_dim: int = 0
  model_channels: int = 192
  channel_mult: tuple[float, ...] = (1, 2, 3, 4)
  channel_mult_emb: int = 4
  num_blocks: int = 3
  attn_resolutions: tuple[int, ...] = (32, 16, 8)
  dropout: float = 0.10
  channels_per_head: int = 64
  num_heads: int = 1
  num_heads_up: int = 0
  groups: int = 0
  adaptive_scale: bool = True
  resampling: str = 'block'
  bottleneck: str = 'encoder'
  step_condition: bool = False
  low_res: bool = False
  transformer_depth: int = 0
  context_dim: int = 0
  torso: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array, c_noise: jax.Array, class_labels: jax.Array | None = None,
               augment_labels: jax.Array | None = None, train: bool = False,
               step_condition: jax.Array | None = None, low_res: jax.Array | None = None,
               skip_tuning: bool = False,
               context: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Evaluates the network.

    Args:
      x: (batch, img_resolution, img_resolution, channels), preconditioned.
      c_noise: what stands for the noise level, (batch,).
      class_labels: weights of the classes, mostly one-hot, (batch, label_dim); all 0, or None:
        without a class. Ignored by a network without classes.
      augment_labels: (batch, augment_dim); None: not augmented.
      train: with dropout, from the stream 'dropout'.
      step_condition: number of grid points of the sampler, a scalar or (batch,); None: without.
      low_res: (batch, any height, any width, channels) for a network of super-resolution, resized
        here (bilinear, half-pixel centres, no antialiasing).
      skip_tuning: weigh the skips, see layers.skip_weight.
      context: features of a text, (batch, tokens, context_dim), for a network with a context_dim.

    Returns:
      (F, features): (batch, side, side, out_channels), and the bottleneck, the mean over channels:
      (batch, h, w).
    """
    if self.low_res:
      resized = jax.image.resize(low_res, (*x.shape[:3], low_res.shape[-1]), 'bilinear',
                                 antialias=False)
      x = jnp.concatenate([x, resized], axis=-1)
    embs = self._embed(c_noise, class_labels, augment_labels, step_condition)
    given = _Given(*embs, context, train)
    h, skips, bottleneck = _encode(self, x, given)
    h, middle = self._decode(h, skips, given, skip_tuning)
    h = nn.silu(layers.GroupNorm(groups=self.groups, name='out_norm')(h.astype(x.dtype)))
    out = layers.Conv(self.out_channels, init=nn.initializers.zeros, name='out_conv')(h)
    features = middle if self.bottleneck == 'middle' else bottleneck
    return out, features.astype(x.dtype).mean(-1)

  def _embed(self, c_noise, class_labels, augment_labels, step_condition):
    """Embeddings of noise level with class and augmentation, and of the number of steps or None."""
    emb = _embed_noise(self, c_noise, augment_labels)
    if self.label_dim:
      if class_labels is None:
        class_labels = jnp.zeros((len(c_noise), self.label_dim), emb.dtype)
      label = layers.Dense(emb.shape[-1], use_bias=False, init=nn.initializers.normal(1.0),
                           name='map_label')
      emb = emb + label(class_labels.astype(emb.dtype))
    if step_condition is None and not (self.step_condition and self.is_initializing()):
      return nn.silu(emb), None
    steps = jnp.zeros(()) if step_condition is None else jnp.asarray(step_condition)
    steps = jnp.broadcast_to(steps.astype(c_noise.dtype), c_noise.shape)
    return nn.silu(emb), nn.silu(_embed_noise(self, steps, None, 'map_step'))

  def _decode(self, h, skips, given, skip_tuning):
    count, middle = len(skips), None
    for level, side, channels in reversed(_levels(self)):
      name = f'dec_{side}x{side}'
      if level == len(self.channel_mult) - 1:
        h = _block(self, f'{name}_in0', channels, h, given, attention=True)
        h = _block(self, f'{name}_in1', channels, h, given)
        middle = h
      else:
        h = _resample(self, f'{name}_up', h, given, up=True)
      for i in range(self.num_blocks + 1):
        skip = skips.pop()
        if skip_tuning:
          skip = skip * np.asarray(layers.skip_weight(count - len(skips) - 1, count), skip.dtype)
        h = jnp.concatenate([h, skip], axis=-1)
        attention = side in self.attn_resolutions
        h = _block(self, f'{name}_block{i}', channels, h, given, attention, decoder=True)
    return h, middle


class AdmClassifier(nn.Module):
  """Logits of the classes from a noisy image: the encoder of the U-Net, its middle, and a pool.

  Source: Dhariwal & Nichol 2021, arXiv:2105.05233, Sec. 4 and App. D.

  Attributes:
    img_resolution: side of the images.
    label_dim: number of classes.
    model_channels: channels at multiplier 1.
    channel_mult: multiplier of each level.
    num_blocks: residual blocks of each level.
    attn_resolutions: sides at which every block has attention.
    dropout: in training.
    channels_per_head: of the attention, 0: the number of heads is given.
    num_heads: number of heads where channels_per_head is 0.
    adaptive_scale: embeddings scale and shift, else they are added.
    resampling: as in AdmUNet.
    pool: 'attention' (CLIP's: the mean attends to all pixels), 'adaptive' (mean), 'spatial' (means
      of all blocks through a hidden layer), 'spatial_v2' (the same with a norm).
    torso: as in AdmUNet.
  """

  img_resolution: int
  label_dim: int
  model_channels: int = 128
  channel_mult: tuple[float, ...] = (1, 1, 2, 2, 4, 4)
  num_blocks: int = 2
  attn_resolutions: tuple[int, ...] = (32, 16, 8)
  dropout: float = 0.0
  channels_per_head: int = 64
  num_heads: int = 1
  adaptive_scale: bool = True
  resampling: str = 'block'
  pool: str = 'attention'
  torso: str = 'float32'

  # What the encoder asks a U-Net for.
  channel_mult_emb = 4
  augment_dim = 0
  num_heads_up = 0
  groups = 32
  transformer_depth = 0

  @nn.compact
  def __call__(self, x: jax.Array, c_noise: jax.Array, train: bool = False) -> jax.Array:
    """Evaluates the network.

    Args:
      x: (batch, img_resolution, img_resolution, channels), preconditioned.
      c_noise: what stands for the noise level, (batch,).
      train: with dropout, from the stream 'dropout'.

    Returns:
      Logits, (batch, label_dim).
    """
    given = _Given(nn.silu(_embed_noise(self, c_noise, None)), train=train)
    h, outputs, _ = _encode(self, x, given)
    h = _block(self, 'middle0', h.shape[-1], h, given, attention=True)
    h = _block(self, 'middle1', h.shape[-1], h, given).astype(x.dtype)
    if self.pool.startswith('spatial'):
      means = [output.astype(x.dtype).mean((1, 2)) for output in (*outputs, h)]
      hidden = layers.Dense(2048, name='hidden')(jnp.concatenate(means, axis=-1))
      if self.pool == 'spatial':
        return layers.Dense(self.label_dim, name='logits')(nn.relu(hidden))
      norm = layers.GroupNorm(groups=self.groups, name='out_norm')
      hidden = norm(hidden[:, None, None])[:, 0, 0]
      return layers.Dense(self.label_dim, name='logits')(nn.silu(hidden))
    h = nn.silu(layers.GroupNorm(groups=self.groups, name='out_norm')(h))
    if self.pool == 'adaptive':
      return layers.Dense(self.label_dim, name='logits')(h.mean((1, 2)))
    return self._attend(h)

  def _attend(self, h):
    """A token with the mean joins the pixels; what it has read is the answer."""
    tokens = h.reshape(len(h), 1, -1, h.shape[-1])
    tokens = jnp.concatenate([tokens.mean(2, keepdims=True), tokens], axis=2)
    position = self.param('pool_position', nn.initializers.normal(h.shape[-1]**-0.5),
                          tokens.shape[2:])
    tokens = tokens + position.astype(h.dtype)[None, None]
    qkv = layers.Conv(3 * h.shape[-1], 1, name='pool_qkv')(tokens)
    heads = h.shape[-1] // self.channels_per_head if self.channels_per_head else self.num_heads
    return layers.Dense(self.label_dim, name='pool_proj')(layers.attention(qkv, heads)[:, 0, 0])


def _levels(net):
  """(level, side, channels) from the finest to the coarsest."""
  return [(level, net.img_resolution >> level, int(net.model_channels * mult))
          for level, mult in enumerate(net.channel_mult)]


def _embed_noise(net, c_noise, augment_labels, prefix='map'):
  """The embedding of a number and of augmentation before its last silu, (batch, size)."""
  emb = layers.positional_embedding(c_noise, net.model_channels, endpoint=False)
  if net.augment_dim and prefix == 'map':
    if augment_labels is None:
      augment_labels = jnp.zeros((len(c_noise), net.augment_dim), emb.dtype)
    augment = layers.Dense(net.model_channels, use_bias=False, init=nn.initializers.zeros,
                           name='map_augment')
    emb = emb + augment(augment_labels.astype(emb.dtype))
  size = net.model_channels * net.channel_mult_emb
  emb = nn.silu(layers.Dense(size, name=f'{prefix}_layer0')(emb))
  return layers.Dense(size, name=f'{prefix}_layer1')(emb)


def _block(net, name, channels, h, given, attention=False, decoder=False, **resampling):
  """Runs a residual block, with the attention of the network behind it."""
  heads = net.num_heads_up if decoder and net.num_heads_up else net.num_heads
  if net.channels_per_head:
    heads = channels // net.channels_per_head
  depth = net.transformer_depth if attention and heads else 0
  h = layers.UNetBlock(
      channels, heads=heads if attention and not depth else 0, dropout=net.dropout,
      groups=net.groups, adaptive_scale=net.adaptive_scale, name=name, **resampling,
  )(h, given.emb, given.emb_step, given.train)
  if depth:
    h = transformer.SpatialTransformer(heads, depth, net.groups, name=f'{name}_transformer')(
        h, given.context)
  return h


def _resample(net, name, h, given, up=False):
  """From one level to the next, or back, as the network does it."""
  if net.resampling == 'block':
    return _block(net, name, h.shape[-1], h, given, up=up, down=not up)
  if up:
    h = layers.resample(h, (1, 1), up=True)
    return layers.Conv(h.shape[-1], name=name)(h) if net.resampling == 'conv' else h
  if net.resampling == 'none':
    return layers.resample(h, (1, 1))
  return layers.Conv(h.shape[-1], stride=2, name=name)(h)


def _encode(net, x, given):
  """Runs an encoder; returns the result, what every block gave, and the block that is hooked."""
  sides = [side for _, side, _ in _levels(net)]
  hooked, skips, features = 8 if 8 in sides else sides[-1], [], None
  h = x.astype(net.torso) if net.torso != 'float32' else x  # A 64-bit x stays one.
  for level, side, channels in _levels(net):
    name = f'enc_{side}x{side}'
    if level == 0:
      h = layers.Conv(channels, name=f'{name}_conv')(h)
    else:
      h = _resample(net, f'{name}_down', h, given)
    skips.append(h)
    for i in range(net.num_blocks):
      attention = side in net.attn_resolutions
      h = _block(net, f'{name}_block{i}', channels, h, given, attention)
      skips.append(h)
    if side == hooked:
      features = h
  return h, skips, features
