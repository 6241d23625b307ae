"""Images beside something else: another image (LPIPS), or a text (CLIP score).

Both become extractors over image sets, so that they are computed in parts as features are.
"""

import functools
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np

import models
from engine import prompts
from evaluation import clip_score, extractors, lpips, recipe, sources
from models import tokens


def image_pairs(a: sources.ImageSet, b: sources.ImageSet) -> sources.ImageSet:
  """Returns pairs of images as images of the channels of both.

  Args:
    a: one set.
    b: the other; image i of both is a pair.

  Returns:
    An image set of shape (height, width, 6).

  Raises:
    ValueError: if there are not as many of one size in both, they are too small, or of other seeds.
  """
  if (a.count, a.shape[:2]) != (b.count, b.shape[:2]):
    raise ValueError('lpips: both sets must have as many images of one size, got '
                     f'{a.count:,} of {a.shape[0]}x{a.shape[1]} in {a.path} and {b.count:,} of '
                     f'{b.shape[0]}x{b.shape[1]} in {b.path}; make both from the same seeds')
  if min(a.shape[:2]) < lpips.SMALLEST:
    raise ValueError(f'lpips: images must be of at least {lpips.SMALLEST} pixels on a side, got '
                     f'{a.shape[0]}x{a.shape[1]} in {a.path}; leave lpips out')
  own, others = _seeds(a), _seeds(b)
  if own and others and own != others:
    one, other = next(pair for pair in zip(own, others, strict=True) if pair[0] != pair[1])
    raise ValueError(f'lpips: pairs must be of one seed, got seed {one} in {a.path} beside seed '
                     f'{other} in {b.path}; make both from the same seeds')

  def take(numbers):
    return np.concatenate([np.broadcast_to(images, (*images.shape[:-1], 3))
                           for images in (a.take(numbers), b.take(numbers))], -1)
  digest = hashlib.sha256(f'{a.digest} {b.digest}'.encode()).hexdigest()
  return a._replace(path=f'{a.path} beside {b.path}', kind='pairs', shape=(*a.shape[:2], 6),
                    labels=None, digest=digest, take=take)


def lpips_extractor(network: models.FeatureNetwork) -> extractors.Extractor:
  """Returns the extractor of distances of pairs, feature 'lpips', (n, 1).

  Raises:
    ValueError: if the network is another one.
  """
  _check(network, 'lpips_vgg', 'lpips_network')
  pipeline = {'network': network.name, 'sha256': network.sha256, 'resize': 'none',
              'scaling': 'x / 255', 'layers': ['lpips']}
  return extractors.Extractor('lpips', pipeline, {'lpips': 1}, _both, network.params, _distances)


def clip_extractor(network: models.FeatureNetwork) -> extractors.Extractor:
  """Returns the extractor of embeddings of images, feature 'embedding', (n, projection_dim).

  Raises:
    ValueError: if the network is another one.
  """
  _check(network, 'clip', 'clip_network')
  size = network.module.image_size
  pipeline = {'network': network.name, 'sha256': network.sha256,
              'resize': f"Pillow bicubic to {size}, centre", 'scaling': "CLIP's mean and deviation",
              'layers': ['embedding']}
  return extractors.Extractor('clip', pipeline, {'embedding': network.module.projection_dim},
                              functools.partial(clip_score.preprocess, size=size), network.params,
                              _embedding(network.module))


def read_prompts(path: str, tokenizer: str, count: int, context: int) -> np.ndarray:
  """Reads a text for every image.

  Args:
    path: a text file, line i for image i.
    tokenizer: path of the vocabulary, see models.tokens.
    count: number of images.
    context: of the network.

  Returns:
    Ids of tokens, int32 (count, context).

  Raises:
    OSError: if the vocabulary cannot be read.
    ValueError: if the file cannot be read, has another number of lines, or an empty one.
  """
  lines = prompts.read_lines('config.evaluate.prompts', path)
  if len(lines) != count:
    raise ValueError(f'config.evaluate.prompts: must be a text file with a line for each of '
                     f'{count} images, got {len(lines)} lines in {path}; write one prompt per '
                     'line, in their order')
  return tokens.Tokenizer.load(tokenizer).encode(lines, context)


def _seeds(images):
  """Seed of each image of a run, None of others; pictures have it in their names."""
  told = None if images.kind == 'bundled' else recipe.read(images)
  if not told or not told.manifests:
    return None
  stems = [pathlib.PurePath(name).stem for name in images.names]
  if images.names[0].lower().endswith(sources.SUFFIXES):
    return [int(stem) for stem in stems] if all(map(str.isdigit, stems)) else None
  return list(told.seeds) if len(told.seeds or ()) == images.count else None


def _check(network, name, field):
  if network.name != name:
    raise ValueError(f'config.evaluate.{field}: must be the model directory of {name}, got '
                     f'{network.name}; --mode=convert makes it')


def _both(images):
  return np.concatenate([lpips.prepare(half) for half in np.split(images, 2, -1)], -1)


def _distances(params: Any, x: jax.Array) -> dict[str, jax.Array]:
  return {'lpips': lpips.compare(params, x[..., :3], x[..., 3:])[0][:, None]}


@functools.cache
def _embedding(module):
  embed = clip_score.embedding(module, 'embed_images')
  return lambda params, x: {'embedding': embed(params, x)}
