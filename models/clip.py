"""CLIP: an image tower and a text tower with projections into one space, Flax linen.

Source: Radford et al. 2021, arXiv:2103.00020, Sec. 2.4, in the form of OpenAI's and LAION's
checkpoints. Both towers are pre-norm transformers:

  x += out(attention(norm1(x))),  x += fc2(act(fc1(norm2(x))))

The text tower is a network of its own, as text-conditional diffusion reads its states alone.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from models import layers
from samplers import checks

MEAN = 0.48145466, 0.4578275, 0.40821073
"""Of the channels of training images in [0, 1]."""
STD = 0.26862954, 0.26130258, 0.27577711
"""Of the channels of training images in [0, 1]."""

ACTIVATIONS = {'quick_gelu': lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's.
               'gelu': lambda x: nn.gelu(x, approximate=False)}  # LAION's larger ones.
"""Name -> function between the two layers of a block's perceptron."""

LARGEST_ID = 2
"""The value of eos_token_id that stands for the largest id of a text, in published configs."""

EPSILON = 1e-5
"""Of every norm, in all published checkpoints."""


class TowerOutput(NamedTuple):
  """What a tower gives.

  Attributes:
    hidden_states: input of the first block and output of each, (layers + 1, n, tokens, width).
    last: of all tokens, (n, tokens, width): text, after the last norm; images, before it.
    pooled: of the class token or the end-of-text token, after the last norm, (n, width).
  """

  hidden_states: jax.Array
  last: jax.Array
  pooled: jax.Array


class Block(nn.Module):
  """A block of a tower.

  Attributes:
    heads: of the attention, a divisor of the width.
    mlp: width between the two layers of the perceptron.
    activation: a key of ACTIVATIONS.
    causal: a token attends to itself and those before it alone.
  """

  heads: int
  mlp: int
  activation: str = 'quick_gelu'
  causal: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (n, tokens, width) to the same."""
    width = x.shape[-1]
    qkv = _dense(3 * width, 'qkv', layers.LayerNorm(EPSILON, name='norm1')(x))
    x = x + _dense(width, 'out', _attention(qkv, self.heads, self.causal))
    act = checks.lookup('activation', self.activation, ACTIVATIONS)
    hidden = act(_dense(self.mlp, 'fc1', layers.LayerNorm(EPSILON, name='norm2')(x)))
    return x + _dense(width, 'fc2', hidden)


class ImageTower(nn.Module):
  """A vision transformer.

  Attributes:
    width: channels of a token.
    layers: number of blocks.
    heads: of each attention.
    patch: side of the square that becomes one token, in pixels.
    image_size: side of the images, a multiple of it.
    mlp: width between the two layers of a block's perceptron.
    activation: a key of ACTIVATIONS.
  """

  width: int
  layers: int
  heads: int
  patch: int
  image_size: int
  mlp: int
  activation: str = 'quick_gelu'

  @nn.compact
  def __call__(self, x: jax.Array) -> TowerOutput:
    """Evaluates the tower.

    Args:
      x: (n, image_size, image_size, 3), in [0, 1], less MEAN, over STD.

    Returns:
      The TowerOutput; the token of the class is first, then the patches row by row.

    Raises:
      ValueError: if the images have another shape.
    """
    n, side, patch = len(x), self.image_size // self.patch, self.patch
    if x.shape[1:] != (self.image_size, self.image_size, 3):
      raise ValueError(f'clip: images must be of shape {(self.image_size, self.image_size, 3)}, '
                       f'got {x.shape[1:]}; resize them, see evaluation.clip_score.preprocess')
    init = nn.initializers.normal(self.width**-0.5)
    def parameter(name, *shape):
      return self.param(name, init, shape).astype(x.dtype)
    kernel = parameter('patch_kernel', patch, patch, 3, self.width)
    split = x.reshape(n, side, patch, side, patch, 3)
    tokens = jnp.einsum('nhpwqc,pqcf->nhwf', split, kernel).reshape(n, side**2, self.width)
    first = parameter('class_embedding', self.width)[None, None]
    tokens = jnp.concatenate([jnp.broadcast_to(first, (n, 1, self.width)), tokens], axis=1)
    tokens += parameter('position_embedding', side**2 + 1, self.width)[None]
    states = [layers.LayerNorm(EPSILON, name='pre_norm')(tokens)]
    for i in range(self.layers):
      block = Block(self.heads, self.mlp, self.activation, name=f'block{i}')
      states.append(block(states[-1]))
    pooled = layers.LayerNorm(EPSILON, name='post_norm')(states[-1][:, 0])
    return TowerOutput(jnp.stack(states), states[-1], pooled)


class TextTower(nn.Module):
  """A causal transformer over the tokens of a text.

  Attributes:
    width: channels of a token.
    layers: number of blocks.
    heads: of each attention.
    context: most tokens of a text.
    vocab: number of ids.
    mlp: width between the two layers of a block's perceptron.
    eos_token_id: the id whose first place ends a text; LARGEST_ID: the first place of the largest
      id, OpenAI's rule.
    activation: a key of ACTIVATIONS.
  """

  width: int
  layers: int
  heads: int
  context: int
  vocab: int
  mlp: int
  eos_token_id: int = LARGEST_ID
  activation: str = 'quick_gelu'

  @nn.compact
  def __call__(self, ids: jax.Array) -> TowerOutput:
    """Evaluates the tower.

    What stands behind the end of a text, its padding, has no effect on `pooled`.

    Args:
      ids: of the tokens, integers in 0 .. vocab - 1, (n, at most context); others give NaN.

    Returns:
      The TowerOutput; `last` is what Stable Diffusion reads.

    Raises:
      ValueError: if the texts are too long.
    """
    if ids.ndim != 2 or ids.shape[1] > self.context:
      raise ValueError(f'clip: texts must be of shape (n, at most {self.context}), got {ids.shape};'
                       ' encode them for this context')
    init = nn.initializers.normal(0.02)
    embedding = self.param('token_embedding', init, (self.vocab, self.width))
    positions = self.param('position_embedding', init, (self.context, self.width))
    # A negative id would count from the end.
    tokens = jnp.take(embedding, jnp.where(ids < 0, self.vocab, ids), axis=0, mode='fill')
    states = [tokens + positions[None, :ids.shape[1]]]
    for i in range(self.layers):
      block = Block(self.heads, self.mlp, self.activation, causal=True, name=f'block{i}')
      states.append(block(states[-1]))
    last = layers.LayerNorm(EPSILON, name='final_norm')(states[-1])
    ends = jnp.argmax(ids if self.eos_token_id == LARGEST_ID else ids == self.eos_token_id, axis=1)
    pooled = jnp.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
    return TowerOutput(jnp.stack(states), last, pooled)


class Clip(nn.Module):
  """Both towers and their projections; attributes as those of the towers.

  Attributes:
    projection_dim: of the common space.
    image_width: see ImageTower.
    image_layers: see ImageTower.
    image_heads: see ImageTower.
    patch: see ImageTower.
    image_size: see ImageTower.
    image_mlp: see ImageTower.
    text_width: see TextTower.
    text_layers: see TextTower.
    text_heads: see TextTower.
    context: see TextTower.
    vocab: see TextTower.
    text_mlp: see TextTower.
    eos_token_id: see TextTower.
    activation: of both towers, a key of ACTIVATIONS.
  """

  projection_dim: int
  image_width: int
  image_layers: int
  image_heads: int
  patch: int
  image_size: int
  image_mlp: int
  text_width: int
  text_layers: int
  text_heads: int
  context: int
  vocab: int
  text_mlp: int
  eos_token_id: int = LARGEST_ID
  activation: str = 'quick_gelu'

  def setup(self):
    """Names the parts."""
    self.image = ImageTower(self.image_width, self.image_layers, self.image_heads, self.patch,
                            self.image_size, self.image_mlp, self.activation)
    self.text = TextTower(self.text_width, self.text_layers, self.text_heads, self.context,
                          self.vocab, self.text_mlp, self.eos_token_id, self.activation)
    self.image_projection = layers.Dense(self.projection_dim, use_bias=False)
    self.text_projection = layers.Dense(self.projection_dim, use_bias=False)
    self.logit_scale = self.param('logit_scale', nn.initializers.constant(np.log(1 / 0.07)), ())

  def embed_images(self, x: jax.Array) -> jax.Array:
    """Maps images as of ImageTower to (n, projection_dim), not normalized."""
    return self.image_projection(self.image(x).pooled)

  def embed_texts(self, ids: jax.Array) -> jax.Array:
    """Maps ids as of TextTower to (n, projection_dim), not normalized."""
    return self.text_projection(self.text(ids).pooled)

  def __call__(self, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Returns cosines times exp(logit_scale), the logits that CLIP is trained with.

    Args:
      x: (n, image_size, image_size, 3), see ImageTower.
      ids: (m, at most context), see TextTower.

    Returns:
      (n, m).
    """
    images, texts = unit(self.embed_images(x)), unit(self.embed_texts(ids))
    return images @ texts.T * jnp.exp(self.logit_scale).astype(images.dtype)


def unit(embeddings: jax.Array) -> jax.Array:
  """Returns vectors (n, d) divided by their lengths; zero ones stay zero."""
  square = jnp.sum(embeddings**2, -1, keepdims=True)
  return embeddings * lax.rsqrt(jnp.where(square > 0, square, 1))


def pixel_values(images: jax.Array, size: int) -> jax.Array:
  """Makes inputs of the image tower from samples, differentiably.

  For guidance: resizing is bicubic (a = -0.5) with antialiasing between the centers of pixels, and
  nothing is rounded. A published score needs evaluation.clip_score.preprocess, which rounds as PIL.

  Args:
    images: (n, height, width, 3) in [-1, 1].
    size: side of the result.

  Returns:
    (n, size, size, 3), see ImageTower.
  """
  images = (images + 1) / 2
  if images.shape[1:3] != (size, size):
    images = jax.image.resize(images, (len(images), size, size, 3), 'cubic', antialias=True)
  mean, std = (jnp.asarray(values, images.dtype)[None, None, None] for values in (MEAN, STD))
  return (images - mean) / std


def spherical_loss(image_embeds: jax.Array, text_embeds: jax.Array) -> jax.Array:
  """Returns half the squared angle between vectors: 2 arcsin(|u - v| / 2)^2, u and v of length 1.

  The loss of CLIP guidance (Crowson 2021, k-diffusion's sample_clip_guided.py).

  Args:
    image_embeds: (n, d), of any length above 0.
    text_embeds: (n, d), or (1, d) for all.

  Returns:
    (n,); its gradient is finite at equal directions, where that of the formula as written is not.
  """
  v = jnp.broadcast_to(unit(text_embeds), image_embeds.shape)
  square = jnp.sum((unit(image_embeds) - v)**2, -1)
  near = square < 1e-6  # There s / 2 + s^2 / 24 is exact to s^3 / 180.
  safe = jnp.where(near, 1, square)
  far = 2 * jnp.arcsin(jnp.minimum(jnp.sqrt(safe) / 2, 1))**2
  return jnp.where(near, square / 2 + square**2 / 24, far)


def _dense(features, name, x):
  """A linear layer over the last axis, called within a compact module."""
  return layers.Dense(features, name=name)(x.reshape(-1, x.shape[-1])).reshape(
      *x.shape[:-1], features)


def _attention(qkv, heads, causal):
  """Attends between tokens: (n, tokens, q k v of all heads) -> (n, tokens, width)."""
  n, tokens, channels = qkv.shape
  size = channels // 3 // heads
  query, key, value = jnp.moveaxis(qkv.reshape(n, tokens, 3, heads, size), 2, 0)
  logits = jnp.einsum('nqhc,nkhc->nhqk', query * np.asarray(size**-0.5, qkv.dtype), key)
  logits = logits.astype(_wide(logits.dtype))
  if causal:
    seen = np.tri(tokens, dtype=bool)[None, None]
    logits = jnp.where(seen, logits, -jnp.inf)
  weights = nn.softmax(logits).astype(value.dtype)
  return jnp.einsum('nhqk,nkhc->nqhc', weights, value).reshape(n, tokens, -1)


def _wide(dtype):
  """The precision of sums: float32 at least."""
  return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)
