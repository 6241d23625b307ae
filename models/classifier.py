"""A classifier of noisy images, log p(y | x; sigma): the encoder of the U-Nets and a mean.

For classifier guidance, which moves samples along its gradient in x (Dhariwal & Nichol 2021,
arXiv:2105.05233, Sec. 4); small, for the small data sets that are trained here.
"""

import flax.linen as nn
import jax

from models import layers


class NoiseClassifier(nn.Module):
  """Logits of the classes from an image at any noise level.

  Attributes:
    label_dim: number of classes.
    model_channels: channels at multiplier 1, and the size of the embedding times 1 / 4.
    channel_mult: multiplier of each level; sides are halved at every level but the first.
    num_blocks: residual blocks of each level.
    dropout: in training.
  """

  label_dim: int
  model_channels: int = 32
  channel_mult: tuple[int, ...] = (1, 2)
  num_blocks: int = 1
  dropout: float = 0.1

  @nn.compact
  def __call__(self, x: jax.Array, c_noise: jax.Array, train: bool = False,
               features: bool = False) -> jax.Array:
    """Evaluates the network.

    Args:
      x: (batch, side, side, channels), preconditioned.
      c_noise: what stands for the noise level, (batch,).
      train: with dropout, from the stream 'dropout'.
      features: return what the last layer reads, the mean over positions of the last block's
        normalized result.

    Returns:
      Logits, (batch, label_dim), or features, (batch, channels of the last level).
    """
    size = 4 * self.model_channels
    emb = layers.positional_embedding(c_noise, self.model_channels, endpoint=True)
    for name in ('map_layer0', 'map_layer1'):
      emb = nn.silu(layers.Dense(size, name=name)(emb))
    h = layers.Conv(self.model_channels, name='conv')(x)
    for level, mult in enumerate(self.channel_mult):
      channels = self.model_channels * mult
      for i in range(self.num_blocks):
        down = level > 0 and i == 0
        h = layers.UNetBlock(channels, down=down, dropout=self.dropout, skip_scale=0.5**0.5,
                             name=f'level{level}_block{i}')(h, emb, train=train)
    h = nn.silu(layers.GroupNorm(name='norm')(h)).mean((1, 2))
    if features:
      return h
    return layers.Dense(self.label_dim, name='logits')(h)
