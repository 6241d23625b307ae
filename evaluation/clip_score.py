"""CLIP score: how well images fit their texts, 100 times the mean cosine of CLIP's embeddings.

Source: Hessel et al. 2021, arXiv:2104.08718, without its weight and without clamping, as the
scripts of diffusion models report it. A score compares with others of the same network alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from evaluation import resize
from models import clip
from samplers import checks


class Network(Protocol):
  """What is needed of a feature network that was loaded; see models.load_features."""

  name: str
  params: Any
  module: clip.Clip


class Score(NamedTuple):
  """A CLIP score.

  Attributes:
    value: 100 times the mean of `cosines`.
    cosines: of each image and its text, np.float64 (n,).
  """

  value: float
  cosines: np.ndarray


def score(image_features: np.ndarray, text_features: np.ndarray, clamp: bool = False) -> Score:
  """Returns the score of pairs, row by row, in float64.

  Published scripts (diff-sampler's clip_score.py) divide the sum of one process by the number of
  images of all, and pair a random part of the images with the first texts; neither is copied.

  Args:
    image_features: embeddings of any length, (n, d).
    text_features: of the text of each image, (n, d).
    clamp: count negative cosines as 0, as torchmetrics does.

  Returns:
    The Score.

  Raises:
    ValueError: if there are no pairs, or an embedding is not finite or zero.
  """
  units = []
  for name, features in (('image_features', image_features), ('text_features', text_features)):
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size:
      raise ValueError(f'clip_score: {name} must be of shape (n, d), n and d above 0, got '
                       f'{features.shape}; give one row for each pair')
    lengths = np.linalg.norm(features, axis=-1, keepdims=True)
    bad = np.flatnonzero(~((lengths > 0) & (lengths < np.inf)))
    if bad.size:
      raise ValueError(f'clip_score: {name} must be finite and not zero, got others in row {bad[0]}'
                       f' and {bad.size - 1} more; check the network and its inputs')
    units.append(features / lengths)
  if units[0].shape != units[1].shape:
    raise ValueError('clip_score: there must be one text for each image, got features '
                     f'{units[0].shape} of images and {units[1].shape} of texts; pair them')
  cosines = (units[0] * units[1]).sum(-1)
  cosines = np.maximum(cosines, 0) if clamp else cosines
  return Score(100 * float(cosines.mean()), cosines)


def preprocess(images: np.ndarray, size: int) -> np.ndarray:
  """Prepares images as CLIP was trained and is scored with: torchvision's transforms on PIL images.

  The shorter side becomes `size` (the longer one is cut off to whole pixels) by Pillow's bicubic on
  bytes, in the order of passes of Pillow up to 12; the centre is cut out, where half a pixel goes
  to the even side; then (x / 255 - mean) / std. transformers' processors cut out another centre
  where the difference is 3, 7, 11, ...; that is not copied.

  Args:
    images: uint8 (n, height, width, 3 or 1); gray becomes RGB.
    size: side of the network's images.

  Returns:
    float32 (n, size, size, 3).

  Raises:
    ValueError: if the images or the size are of another form.
  """
  images = np.asarray(images)
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not min(
      images.shape[1:]):
    raise ValueError('clip_score: images must be uint8 of shape (n, height, width, 3 or 1), got '
                     f'{images.dtype} {images.shape}; stack images of one size')
  if not checks.is_integer(size) or size < 1:
    raise ValueError(f'clip_score: size must be an integer of 1 or more, got {size!r}; take '
                     'image_size of the network')
  short = min(images.shape[1:3])
  height, width = (size if side == short else int(size * side / short)
                   for side in images.shape[1:3])
  resized = resize.pil(images, height, width)
  top, left = round((height - size) / 2), round((width - size) / 2)
  cut = resized[:, top:top + size, left:left + size].astype(np.float32) / np.float32(255)
  return (np.broadcast_to(cut, (*cut.shape[:-1], 3)) - np.float32(clip.MEAN)) / np.float32(clip.STD)


def embedding(module: clip.Clip, method: str) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns apply(params, x) -> embeddings float32 (n, d), pure, to be compiled by the caller.

  Args:
    module: CLIP.
    method: 'embed_images', x as `preprocess` returns it, or 'embed_texts', x being ids.
  """
  def embed(params, x):
    # Products in float32 as such: accelerators would round them to fewer bits.
    with jax.default_matmul_precision('highest'):
      return jnp.asarray(module.apply({'params': params}, x, method=method), jnp.float32)
  return embed


def embed_texts(network: Network, ids: np.ndarray, batch_size: int = 64) -> np.ndarray:
  """Returns embeddings of texts.

  Args:
    network: CLIP, as models.load_features gives it.
    ids: of tokens, integers (n, at most the network's context), see models.tokens.
    batch_size: texts at a time.

  Returns:
    float32 (n, d), not normalized.

  Raises:
    ValueError: if the network is another one, or an id is none of its vocabulary.
  """
  if network.name != 'clip':
    raise ValueError(f'clip_score: network must be clip, got {network.name}; convert a published '
                     'CLIP first')
  if not checks.is_integer(batch_size) or batch_size < 1:
    raise ValueError('clip_score: batch_size must be an integer of 1 or more, got '
                     f'{batch_size!r}; 64 is usual')
  ids = np.asarray(ids)
  vocab = network.module.vocab
  if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer) or not ids.size:
    raise ValueError('clip_score: ids must be integers of shape (n, tokens), got '
                     f'{ids.dtype} {ids.shape}; encode the texts with models.tokens')
  if ids.min() < 0 or ids.max() >= vocab:
    raise ValueError(f'clip_score: ids must be from 0 to {vocab - 1}, got {ids.min()} to '
                     f'{ids.max()}; take the vocabulary of this network')
  embed, parts = _compiled(network.module), []
  for start in range(0, len(ids), batch_size):
    part = ids[start:start + batch_size].astype(np.int32)
    # Batches of one shape: what the last one lacks repeats its last text.
    padded = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
    parts.append(np.asarray(embed(network.params, padded))[:len(part)])
  return np.concatenate(parts)


@functools.cache
def _compiled(module):
  return jax.jit(embedding(module, 'embed_texts'))
