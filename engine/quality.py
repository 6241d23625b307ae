"""The judge of a comparison: the Frechet distance of samples to real images, with its interval."""

import dataclasses
import functools
from typing import Any

import jax
import ml_collections
import numpy as np

import models
from engine import evaluate, images
from evaluation import bootstrap, extractors, frechet, moments
from models import digits

LEVEL = 0.95
_BATCH = 256  # Images per call.
_DRAWS = 20  # Of real images, for the floor.
_DIGITS = 8, 8, 3  # Shape of the bundled digits.
_USUAL = 50_000  # Images behind statistics that do not tell; a covariance stays what it is.


@dataclasses.dataclass(frozen=True, eq=False)
class Quality:
  """What samples are judged by.

  Attributes:
    name: of the distance.
    description: in words.
    extractor: of the features.
    layer: the feature.
    reference: moments of the real images.
    real: features of real images (n, d), None where only their statistics are known.
  """

  name: str
  description: str
  extractor: extractors.Extractor
  layer: str
  reference: moments.Moments
  real: np.ndarray | None

  def describe(self) -> dict[str, Any]:
    """Returns what decides the numbers, plain values."""
    return {'name': self.name, 'description': self.description,
            'pipeline': self.extractor.pipeline, 'level': LEVEL}

  def distance(self, pixels: np.ndarray, resamples: int) -> tuple[float, list[float]]:
    """Returns the distance of images, uint8 (n, height, width, channels), and its interval."""
    features = extract(self.extractor, pixels)[self.layer]
    low, high = bootstrap.frechet_interval(features, self.reference, resamples, level=LEVEL)
    return frechet.of_moments(moments.of(features), self.reference), [low, high]

  def floor(self, count: int) -> float | None:
    """Returns the mean distance of as many real images, drawn at random; None where unknown."""
    if self.real is None:
      return None
    rng = np.random.default_rng(0)
    return float(np.mean([frechet.of_moments(
        moments.of(self.real[rng.choice(len(self.real), count, replace=count > len(self.real))]),
        self.reference) for _ in range(_DRAWS)]))


def plan(config: ml_collections.ConfigDict, model: models.Model) -> Quality | None:
  """Returns the judge of a model's samples.

  Args:
    config: the fields of configs/default.py.
    model: that is sampled from.

  Returns:
    The Quality: by the bundled classifier for images of the digits' size, by config.evaluate's
    network and statistics where they are given; None where there is nothing to judge by.

  Raises:
    OSError: if a file of the network cannot be read.
    ValueError: if a field is out of range, or the reference does not fit.
  """
  group = config.evaluate
  if group.network is None:
    if group.reference not in (None, 'digits'):
      raise ValueError("config.evaluate.reference: must be 'digits' or left out without a network, "
                       f'got {group.reference!r}; give config.evaluate.network too')
    return _digits() if model.image_shape == _DIGITS else None
  if group.reference is None:
    raise ValueError('config.evaluate.reference: must be given with config.evaluate.network, got '
                     'None; statistics are made by config.evaluate.write_reference')
  reference = evaluate.find_reference(group.reference)
  known = reference.statistics
  if known is None:
    raise ValueError('config.evaluate.reference: must be a file of statistics with --mode=compare, '
                     f'got the images {group.reference}; --mode=evaluate makes it, see '
                     'config.evaluate.write_reference')
  extractor = extractors.inception(models.load_features(group.network), evaluate.choose_pipeline(
      group.pipeline, reference, small=False))
  evaluate.check_dims(reference, extractor)
  count = known.num_images or _USUAL
  return Quality('FID', f'Frechet distance to {reference.name}, SHA-256 '
                 f'{reference.sha256[:12]}, in the pool features of Inception', extractor, 'pool',
                 moments.Moments(count, known.mu, known.sigma * (count - 1)), None)


@functools.cache
def _digits():
  extractor = extractors.digits()
  real = extract(extractor, images.to_uint8(digits.images()[0]))['pool']
  return Quality('FD-digits', 'Frechet distance to all bundled digits in all inks, in the last '
                 'hidden features of the bundled classifier', extractor, 'pool', moments.of(real),
                 real)


def extract(extractor: extractors.Extractor, pixels: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the features of images in memory.

  Args:
    extractor: of the features.
    pixels: uint8 (n, height, width, channels).

  Returns:
    Name -> float32 (n, d).
  """
  apply = jax.jit(extractor.apply)
  count = len(pixels)
  padded = np.concatenate([pixels, np.repeat(pixels[-1:], -count % _BATCH, axis=0)])
  parts = [apply(extractor.params, extractor.prepare(padded[first:first + _BATCH]))
           for first in range(0, len(padded), _BATCH)]
  return {name: np.concatenate([np.asarray(part[name]) for part in parts])[:count]
          for name in extractor.dims}


def root_mean_square(errors: np.ndarray | None,
                     resamples: int) -> tuple[float | None, list[float] | None]:
  """Returns the root mean square of the images' errors and its interval; None of None."""
  if errors is None:
    return None, None
  low, high = bootstrap.rms_interval(errors, resamples, level=LEVEL)
  return float(np.sqrt(np.mean(np.square(errors)))), [low, high]
