"""The transformer of latent diffusion: pixels attend to each other, then to the features of a text.

Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.3 and App. E.2.1, as published.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers

_EPSILON = 1e-6  # Of the norm that comes first; the others of the U-Net have 1e-5.


class SpatialTransformer(nn.Module):
  """Transformer blocks over the pixels of images, as a residual branch.

    x + proj_out(block_n(... block_1(proj_in(norm(x))) ...))

  Attributes:
    heads: of every attention, a divisor of the channels.
    depth: number of blocks.
    groups: of the norm, see layers.GroupNorm.
  """

  heads: int
  depth: int = 1
  groups: int = 0

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    """Evaluates the branch and adds it.

    Args:
      x: (batch, height, width, channels).
      context: what the second attention of each block reads, (batch, tokens, width); None: the
        pixels again.

    Returns:
      An array like x.
    """
    channels = x.shape[-1]
    h = layers.GroupNorm(_EPSILON, self.groups, name='norm')(x)
    h = layers.Conv(channels, 1, name='proj_in')(h)
    tokens = h.reshape(len(h), -1, channels)
    for i in range(self.depth):
      tokens = TransformerBlock(self.heads, name=f'block{i}')(tokens, context)
    h = tokens.reshape(x.shape)
    return x + layers.Conv(channels, 1, init=nn.initializers.zeros, name='proj_out')(h)


class TransformerBlock(nn.Module):
  """Self-attention, attention to a context, and a gated perceptron, each after a norm.

    x += attn1(norm1(x)),  x += attn2(norm2(x), context),  x += ff(norm3(x))

  with ff(x) = fc2(a gelu(b)), (a, b) = fc1(x), four times as wide within: GEGLU, Shazeer 2020,
  arXiv:2002.05202.

  Attributes:
    heads: of both attentions, a divisor of the width.
  """

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    """Maps (batch, tokens, width) to the same; context as in SpatialTransformer."""
    width = x.shape[-1]
    norms = [layers.LayerNorm(name=f'norm{i}') for i in (1, 2, 3)]
    x = x + CrossAttention(self.heads, name='attn1')(norms[0](x))
    x = x + CrossAttention(self.heads, name='attn2')(norms[1](x), context)
    value, gate = jnp.split(layers.Dense(8 * width, name='fc1')(norms[2](x)), 2, axis=-1)
    return x + layers.Dense(width, name='fc2')(value * nn.gelu(gate, approximate=False))


class CrossAttention(nn.Module):
  """Attention of tokens to a context, with keys and values of their own projections.

  Attributes:
    heads: a divisor of the width.
  """

  heads: int

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
    """Maps (batch, tokens, width) to the same; context (batch, any, any), None: x itself."""
    batch, tokens, width = x.shape
    context = x if context is None else context.astype(x.dtype)
    def project(name, source):
      projected = layers.Dense(width, use_bias=False, name=name)(source)
      return projected.reshape(batch, source.shape[1], self.heads, width // self.heads)
    read = layers.attend(project('q', x), project('k', context), project('v', context))
    return layers.Dense(width, name='out')(read.reshape(batch, tokens, width))
