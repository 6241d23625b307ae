"""The judge of a comparison: the Frechet distance of samples to real images, with its interval."""

import dataclasses
import functools
from typing import Any

import ml_collections
import numpy as np

import models
from engine import batches, devices, evaluate, features as features_lib, images
from evaluation import bootstrap, extractors, moments
from models import digits

LEVEL = 0.95
_BATCH = 128  # Images per call.
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

  @functools.cached_property
  def _to_reference(self):
    return bootstrap.frechet_to(self.reference)

  def resample(self, pixels: np.ndarray, resamples: int) -> bootstrap.Resampled:
    """Returns the distance of images, uint8 (n, height, width, channels), and of resamples."""
    return self._to_reference(extract(self.extractor, pixels)[self.layer], resamples)

  def judge(self, pixels: np.ndarray, own: bootstrap.Resampled,
            resamples: int) -> dict[str, Any]:
    """Returns distances and their intervals, plain values.

    Args:
      pixels: the images, uint8 (n, height, width, channels).
      own: distance of the reference solution from the same seeds.
      resamples: of the bootstrap, as many as `own` has.

    Returns:
      'frechet', the distance, 'frechet_gap', how much larger it is than that of the reference
      solution, and an interval for each.
    """
    found = self.resample(pixels, resamples)
    low, high = found.interval(LEVEL)
    gap = found.minus(own)
    return {'frechet': found.estimate, 'frechet_interval': [max(low, 0.0), high],
            'frechet_gap': gap.estimate, 'frechet_gap_interval': list(gap.interval(LEVEL))}

  def floor(self, count: int) -> float | None:
    """Returns the mean distance of as many real images, drawn at random; None where unknown."""
    if self.real is None:
      return None
    rng = np.random.default_rng(0)
    return float(np.mean([self._to_reference(
        self.real[rng.choice(len(self.real), count, replace=count > len(self.real))], 1).estimate
        for _ in range(_DRAWS)]))


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
  shape = (known.recipe or {}).get('shape')
  if shape and tuple(shape) != tuple(model.image_shape):
    raise ValueError(f'config.evaluate.reference: must be of images like those of the model, '
                     f'{model.image_shape}, got {tuple(shape)} in {reference.name}; give the '
                     'statistics of its own data')
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


def extract(extractor: extractors.Extractor, pixels: np.ndarray,
            batch_size: int = _BATCH) -> dict[str, np.ndarray]:
  """Returns the features of images in memory.

  Args:
    extractor: of the features.
    pixels: uint8 (n, height, width, channels).
    batch_size: images per call over all devices.

  Returns:
    Name -> float32 (n, d).
  """
  program, params = features_lib.program(extractor.apply), devices.replicate(extractor.params)
  parts = [program(params, devices.split(extractor.prepare(pixels[indices])))
           for indices in batches.split(np.arange(len(pixels)),
                                        devices.share_of(batch_size) * devices.count())]
  return {name: np.concatenate([devices.merge(part[name]) for part in parts])[:len(pixels)]
          for name in extractor.dims}


def root_mean_square(errors: np.ndarray | None,
                     resamples: int) -> tuple[float | None, list[float] | None]:
  """Returns the root mean square of the images' errors and its interval; None of None."""
  if errors is None:
    return None, None
  low, high = bootstrap.rms_interval(errors, resamples, level=LEVEL)
  return float(np.sqrt(np.mean(np.square(errors)))), [low, high]
