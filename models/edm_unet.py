"""SongUNet: the U-Nets DDPM++ and NCSN++ as EDM trains and publishes them.

Attribute names are those of the published checkpoints' settings, and parameters carry their names
with '_' for '.', so that conversion is a matter of layout.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from models import layers


class SongUNet(nn.Module):
  """F(x, c_noise), a U-Net with embeddings of noise level, class and augmentation.

  DDPM++ is positional/standard/standard, NCSN++ is fourier/residual/standard.

  Source: Song et al. 2021, arXiv:2011.13456, as in Karras et al. 2022, arXiv:2206.00364, Table 7.

  Attributes:
    img_resolution: side of the images; halved at every level but the first.
    out_channels: channels of the result.
    label_dim: number of classes, 0 for none.
    augment_dim: size of augmentation labels, 0 for none.
    model_channels: channels at multiplier 1.
    channel_mult: multiplier of each level.
    channel_mult_emb: multiplier of the embedding's size.
    num_blocks: residual blocks of each level of the encoder; the decoder has one more.
    attn_resolutions: sides at which there is attention.
    dropout: in training.
    embedding_type: of the noise level: 'positional' or 'fourier'.
    channel_mult_noise: multiplier of the noise embedding's size.
    encoder_type: 'standard', 'residual' (the downsampled input is added at every level through a
      learned chain) or 'skip' (through a learned kernel of its own).
    decoder_type: 'standard' or 'skip' (every level adds to an image).
    resample_filter: taps of the resampling filter along one axis.
    step_condition: blocks also read an embedding of the number of steps (SFD).
  """

  img_resolution: int
  out_channels: int
  label_dim: int = 0
  augment_dim: int = 0
  model_channels: int = 128
  channel_mult: tuple[int, ...] = (1, 2, 2, 2)
  channel_mult_emb: int = 4
  num_blocks: int = 4
  attn_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.10
  embedding_type: str = 'positional'
  channel_mult_noise: int = 1
  encoder_type: str = 'standard'
  decoder_type: str = 'standard'
  resample_filter: tuple[float, ...] = (1, 1)
  step_condition: bool = False

  @nn.compact
  def __call__(self, x: jax.Array, c_noise: jax.Array, class_labels: jax.Array | None = None,
               augment_labels: jax.Array | None = None, train: bool = False,
               step_condition: jax.Array | None = None, skip_tuning: bool = False,
               ) -> tuple[jax.Array, jax.Array]:
    """Evaluates the network.

    Args:
      x: (batch, img_resolution, img_resolution, channels), preconditioned.
      c_noise: what stands for the noise level, (batch,).
      class_labels: weights of the classes, mostly one-hot, (batch, label_dim); all 0, or None:
        without a class. Ignored by a network without classes.
      augment_labels: (batch, augment_dim); None: not augmented.
      train: with dropout, from the stream 'dropout'.
      step_condition: number of grid points of the sampler, a scalar or (batch,); None: without.
      skip_tuning: weigh the skips, see layers.skip_weight.

    Returns:
      (F, features): (batch, side, side, out_channels), and the bottleneck that learned solvers
      read, the mean over channels of the last encoder block at resolution 8, or at the lowest
      resolution of a network that has no 8: (batch, h, w).
    """
    embs = (self._embed(c_noise, class_labels, augment_labels),
            self._embed_steps(step_condition, c_noise))
    h, skips, features = self._encode(x, embs, train)
    return self._decode(h, skips, embs, train, skip_tuning), features

  def _embed_number(self, number, name):
    """[sin, cos] of a number, (batch, size)."""
    size = self.model_channels * self.channel_mult_noise
    if self.embedding_type == 'fourier':
      embedding = layers.FourierEmbedding(size, name=name)(number)
    else:
      embedding = layers.positional_embedding(number, size, endpoint=True)
    return jnp.concatenate(jnp.split(embedding, 2, axis=-1)[::-1], axis=-1)

  def _map(self, emb, prefix):
    """The two layers that end every embedding."""
    size = self.model_channels * self.channel_mult_emb
    for i in range(2):
      emb = nn.silu(layers.Dense(size, name=f'{prefix}_layer{i}')(emb))
    return emb

  def _embed(self, c_noise, class_labels, augment_labels):
    emb = self._embed_number(c_noise, 'map_noise')
    size = emb.shape[-1]
    if self.label_dim:
      if class_labels is None:
        class_labels = jnp.zeros((len(c_noise), self.label_dim), emb.dtype)
      scale = np.asarray(np.sqrt(self.label_dim), emb.dtype)  # One-hot vectors of unit variance.
      emb = emb + layers.Dense(size, name='map_label')(class_labels.astype(emb.dtype) * scale)
    if self.augment_dim:
      if augment_labels is None:
        augment_labels = jnp.zeros((len(c_noise), self.augment_dim), emb.dtype)
      augment = layers.Dense(size, use_bias=False, name='map_augment')
      emb = emb + augment(augment_labels.astype(emb.dtype))
    return self._map(emb, 'map')

  def _embed_steps(self, steps, c_noise):
    """The embedding of the number of steps, None without."""
    if steps is None and not (self.step_condition and self.is_initializing()):
      return None
    steps = jnp.asarray(0 if steps is None else steps).astype(c_noise.dtype)
    return self._map(self._embed_number(jnp.broadcast_to(steps, c_noise.shape), 'map_step'),
                     'map_step')

  def _block(self, name, features, attention=False, **resampling):
    return layers.UNetBlock(
        features, heads=int(attention), taps=self.resample_filter, dropout=self.dropout,
        skip_scale=float(np.sqrt(0.5)), epsilon=1e-6, resample_proj=True, adaptive_scale=False,
        init_zero=layers.xavier(1e-5), init_attention=layers.xavier(float(np.sqrt(0.2))),
        name=name, **resampling)

  def _levels(self):
    """(level, side, channels) from the finest to the coarsest."""
    return [(level, self.img_resolution >> level, self.model_channels * mult)
            for level, mult in enumerate(self.channel_mult)]

  def _encode(self, x, embs, train):
    aux, skips, features = x, [], None
    hooked = 8 if any(side == 8 for _, side, _ in self._levels()) else self._levels()[-1][1]
    half = np.asarray(np.sqrt(0.5), x.dtype)
    h = x
    for level, side, channels in self._levels():
      name = f'enc_{side}x{side}'
      if level == 0:
        h = layers.Conv(self.model_channels, name=f'{name}_conv')(h)
      else:
        h = self._block(f'{name}_down', h.shape[-1], down=True)(h, *embs, train)
      skips.append(h)
      if level and self.encoder_type != 'standard':
        aux, h = self._auxiliary(name, aux, h, half)
        skips[-1] = h
      for i in range(self.num_blocks):
        attention = side in self.attn_resolutions
        h = self._block(f'{name}_block{i}', channels, attention)(h, *embs, train)
        skips.append(h)
      if side == hooked:
        features = h.mean(-1)
    return h, skips, features

  def _auxiliary(self, name, aux, h, half):
    """The input's own way down; returns what goes on down, and the level's state with it."""
    resampling = {'down': True, 'taps': self.resample_filter}
    if self.encoder_type == 'skip':
      aux = layers.Conv(aux.shape[-1], 0, **resampling)(aux)
      return aux, h + layers.Conv(h.shape[-1], 1, name=f'{name}_aux_skip')(aux)
    residual = layers.Conv(h.shape[-1], **resampling, fused=True, name=f'{name}_aux_residual')(aux)
    h = (h + residual) * half
    return h, h

  def _decode(self, h, skips, embs, train, skip_tuning):
    count, aux = len(skips), None
    for level, side, channels in reversed(self._levels()):
      name = f'dec_{side}x{side}'
      if level == len(self.channel_mult) - 1:
        h = self._block(f'{name}_in0', channels, attention=True)(h, *embs, train)
        h = self._block(f'{name}_in1', channels)(h, *embs, train)
      else:
        h = self._block(f'{name}_up', h.shape[-1], up=True)(h, *embs, train)
      for i in range(self.num_blocks + 1):
        attention = i == self.num_blocks and side in self.attn_resolutions
        skip = skips.pop()
        if skip_tuning:
          skip = skip * np.asarray(layers.skip_weight(count - len(skips) - 1, count), skip.dtype)
        h = jnp.concatenate([h, skip], axis=-1)
        h = self._block(f'{name}_block{i}', channels, attention)(h, *embs, train)
      if self.decoder_type == 'skip' or level == 0:
        if aux is not None:
          aux = layers.resample(aux, self.resample_filter, up=True)
        out = nn.silu(layers.GroupNorm(1e-6, name=f'{name}_aux_norm')(h))
        out = layers.Conv(self.out_channels, init=layers.xavier(1e-5), name=f'{name}_aux_conv')(out)
        aux = out if aux is None else aux + out
    return aux
