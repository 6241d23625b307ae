"""The metrics of --mode=evaluate by name: what each reads, and how it is called."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from engine import features as features_lib
from evaluation import (
  clip_score,
  frechet,
  inception_score,
  kernel,
  manifold,
  moments,
  sources,
  statistics as statistics_lib,
)

_MOST_ROWS = 100_000  # Of features in memory for a Frechet distance; beyond it takes moments.


class Reference(NamedTuple):
  """What images are measured against.

  Attributes:
    name: of the file or set.
    sha256: of the file, or the digest of the set.
    statistics: published ones, without images, or None.
    images: the set, or None.
  """

  name: str
  sha256: str
  statistics: statistics_lib.Statistics | None
  images: sources.ImageSet | None


class Sets(NamedTuple):
  """What metrics are computed of.

  Attributes:
    features: of the 'images', of those of the 'reference', of 'pairs' of both and, for texts, of
      'clip'; as far as they are needed.
    reference: what the images are measured against, or None.
    embed_texts: () -> embeddings of the texts, (n, d); None without.
  """

  features: Mapping[str, features_lib.Features]
  reference: Reference | None
  embed_texts: Callable[[], np.ndarray] | None = None


class Metric(NamedTuple):
  """A metric of the command line.

  Attributes:
    title: of its line.
    layer: feature that it reads.
    needs: of the reference: 'statistics', 'images' or None.
    least: number of images of either set.
    measure: sets -> numbers by name.
    options: sets -> how it was computed, plain values.
    usual: whether it is computed unless metrics are named: some compare all with all.
    source: whose features it reads, a key of Sets.features.
  """

  title: str
  layer: str
  needs: str | None
  least: int
  measure: Callable[[Sets], dict[str, float]]
  options: Callable[[Sets], dict[str, Any]] = lambda sets: {}
  usual: bool = True
  source: str = 'images'


def measure(name: str, sets: Sets) -> dict[str, float]:
  """Computes a metric.

  Args:
    name: a key of METRICS.
    sets: with the features that it reads.

  Returns:
    Numbers by name.

  Raises:
    FloatingPointError: if one of them is not finite.
    ValueError: as the metric itself.
  """
  numbers = {key: float(value) for key, value in METRICS[name].measure(sets).items()}
  if not np.isfinite(list(numbers.values())).all():
    raise FloatingPointError(f'evaluate: {name} must be finite, got {numbers}; look at the images')
  return numbers


def describe(name: str, values: Mapping[str, Any], network: str) -> str:
  """Returns the numbers of a metric in words, with its title.

  Args:
    name: a key of METRICS.
    values: what `measure` returned, perhaps among other fields.
    network: name of the extractor; a distance by another one than Inception is no FID.
  """
  metric = METRICS[name]
  title = metric.title
  if metric.source == 'images' and network != 'inception':
    title = {'fid': 'FD', 'kid': 'KD'}.get(name, title) + f'-{network}'
  if 'value' not in values:
    both = [values[key] for key in ('precision', 'recall', 'density', 'coverage') if key in values]
    return f'{title} {" and ".join(map(_number, both))}'
  spread = f' +- {_number(values["std"])}' if 'std' in values else ''
  return f'{title} {_number(values["value"])}{spread}'


def _number(value):
  return f'{value:.4g}' if abs(value) < 1 else f'{value:.3f}'


def _frechet(layer):
  def measure(sets):
    if (known := _known(sets.reference, layer)) is not None:
      own = features_lib.moments(sets.features['images'], layer)
      return {'value': frechet.frechet_distance(own.mean, moments.covariance(own), *known)}
    both = sets.features['images'], sets.features['reference']
    if max(some.count for some in both) <= _MOST_ROWS:  # Keeps the digits that moments lose.
      return {'value': frechet.of_features(*(features_lib.matrix(some, layer) for some in both))}
    return {'value': frechet.of_moments(*(features_lib.moments(some, layer) for some in both))}
  return measure


def _inception_score(sets):
  logits = features_lib.matrix(sets.features['images'], 'logits_unbiased')
  if _by_size(sets):
    score = inception_score.by_size(logits)
  else:
    score = inception_score.inception_score(logits, _num_splits(sets))
  return {'value': score.mean, 'std': score.std}


def _kid(sets):
  score = kernel.kid(*_pools(sets), size=_subset(sets))
  return {'value': score.mean, 'std': score.std}


def _precision_recall(sets):
  generated, real = _pools(sets)
  return manifold.precision_recall(real, generated)._asdict()


def _density_coverage(sets):
  generated, real = _pools(sets)
  every = manifold.prdc(real, generated)
  return {'density': every.density, 'coverage': every.coverage}


def _lpips(sets):
  values = features_lib.matrix(sets.features['pairs'], 'lpips').astype(np.float64)
  return {'value': values.mean(), 'std': values.std()}


def _clip(sets):
  embeddings = features_lib.matrix(sets.features['clip'], 'embedding')
  return {'value': clip_score.score(embeddings, sets.embed_texts()).value}


METRICS = MappingProxyType({
    'fid': Metric('FID', 'pool', 'statistics', 2, _frechet('pool')),
    'sfid': Metric('sFID', 'spatial', 'statistics', 2, _frechet('spatial')),
    'is': Metric('IS', 'logits_unbiased', None, 1, _inception_score, lambda sets: {
        'parts': 'of 5000 in order' if _by_size(sets) else f'{_num_splits(sets)}, shuffled'}),
    'kid': Metric('KID', 'pool', 'images', 2, _kid, lambda sets: {
        'subsets': 100, 'subset_size': _subset(sets)}),
    'precision_recall': Metric('precision and recall', 'pool', 'images', 4, _precision_recall,
                               lambda sets: {'k': 3}, usual=False),
    'density_coverage': Metric('density and coverage', 'pool', 'images', 6, _density_coverage,
                               lambda sets: {'k': 5}, usual=False),
    'lpips': Metric('LPIPS', 'lpips', 'images', 1, _lpips, usual=False, source='pairs'),
    'clip': Metric('CLIP score', 'embedding', None, 1, _clip, usual=False, source='clip'),
})
"""Metrics by the name that config.evaluate.metrics takes."""


def _known(reference, layer):
  """Mean and covariance of published statistics, or None."""
  statistics = reference.statistics
  if statistics is None:
    return None
  return (statistics.mu, statistics.sigma) if layer == 'pool' else (
      statistics.mu_s, statistics.sigma_s)


def _pools(sets):
  return (features_lib.matrix(sets.features['images'], 'pool'),
          features_lib.matrix(sets.features['reference'], 'pool'))


def _subset(sets):
  return min(1000, sets.features['images'].count, sets.reference.images.count)


def _num_splits(sets):
  return min(10, sets.features['images'].count)


def _by_size(sets):
  """Whether the Inception Score is guided-diffusion's, as with references in its layout."""
  statistics = sets.reference and sets.reference.statistics
  return statistics is not None and statistics.mu_s is not None
