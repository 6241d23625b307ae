"""Intervals by the bootstrap: how far a number might move with another set of images.

Resamples are counts, how often each image is drawn, and every number is a weighted one: nothing is
gathered or run again. One seed gives the same resamples to all solvers of a comparison, so their
numbers move together.

A mean has the percentile interval (Efron and Tibshirani 1993, ch. 13). A Frechet distance needs
more care: drawing with replacement adds distance, about as much as the finite number of images has
already added, so the percentiles lie above the estimate. Their bias, the mean over resamples less
the estimate, is taken off: the interval is that of the distance *at this number of images*, the one
to compare solvers by, not of its limit for many. Near distance 0 it is wider than it need be.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from evaluation import frechet, moments
from samplers import checks

_NUMBERS = 2**24  # Of the resampled matrices at a time: 128 MiB.


class Resampled(NamedTuple):
  """A number, and what it is for resamples of the images.

  Attributes:
    estimate: of the images as they are.
    values: of the resamples, (resamples,).
  """

  estimate: float
  values: np.ndarray

  def minus(self, other: 'Resampled') -> 'Resampled':
    """Returns the difference to a number that was resampled alike: image i has the same seed.

    What seeds and classes do to both of them cancels, so the interval of the difference is far
    narrower than those of the two numbers.
    """
    return Resampled(self.estimate - other.estimate, self.values - other.values)

  def interval(self, level: float = 0.95) -> tuple[float, float]:
    """Returns percentiles with their bias taken off; they hold the estimate."""
    checks.check_fraction('interval', 'level', level, '0.95 is usual')
    low, high = np.quantile(self.values - (self.values.mean() - self.estimate), _ends(level))
    # A skewed distribution may leave its own mean out; the number reported is always within.
    return float(min(low, self.estimate)), float(max(high, self.estimate))


def frechet_to(reference: moments.Moments) -> Callable[..., Resampled]:
  """Prepares Frechet distances to fixed reference statistics.

  Args:
    reference: taken as exact.

  Returns:
    resample(features (n, d), resamples=200, seed=0) -> Resampled. Cost: an eigendecomposition of
    min(n, d) columns per resample. Its rounding (1e-8 of the traces, see `frechet`) is far below
    what an interval means; the estimate comes from singular values. ValueError if features are no
    finite matrix with two rows or more, the widths differ, or an option is out of range.

  Raises:
    ValueError: if the reference is no covariance.
  """
  sigma = moments.covariance(reference)
  frechet.check_statistics('frechet_to', reference.mean, sigma)
  root = frechet.factor('frechet_to', 'reference', sigma)

  def resample(features, resamples=200, seed=0):
    features = moments.check_features('frechet_to', features, 2)
    _check('frechet_to', resamples)
    if features.shape[1] != len(reference.mean):
      raise ValueError(f'frechet_to: features must have {len(reference.mean)} columns like the '
                       f'reference, got {features.shape[1]}; take one layer of one network')
    estimate, distances = _weighted_distances(features, reference.mean, np.trace(sigma), root)
    return Resampled(estimate, np.concatenate([
        distances(counts / len(features)) for counts in _resamples(
            len(features), resamples, seed, min(features.shape)**2)]))
  return resample


def frechet_interval(features: np.ndarray, reference: moments.Moments, resamples: int = 200,
                     seed: int = 0, level: float = 0.95) -> tuple[float, float]:
  """Computes an interval for the Frechet distance of a set to fixed reference statistics.

  Args:
    features: of the set, (n, d).
    reference: taken as exact, of the same width.
    resamples: how many; 200 fix the ends of a 95 % interval to about a tenth of its width.
    seed: of the resamples.
    level: probability of the interval, in (0, 1).

  Returns:
    (low, high), around the distance that `frechet.of_moments` gives for the set; not below 0.

  Raises:
    ValueError: as `frechet_to`, or if the level is out of range.
  """
  low, high = frechet_to(reference)(features, resamples, seed).interval(level)
  return max(0.0, low), high


def interval(values: np.ndarray, resamples: int = 1000, seed: int = 0,
             level: float = 0.95) -> tuple[float, float]:
  """Computes the percentile interval of a mean.

  Args:
    values: one per image, (n,).
    resamples: how many.
    seed: of the resamples.
    level: probability of the interval, in (0, 1).

  Returns:
    (low, high).

  Raises:
    ValueError: if values are no finite vector, or an option is out of range.
  """
  return _mean_interval('interval', values, resamples, seed, level)


def rms_interval(errors: np.ndarray, resamples: int = 1000, seed: int = 0,
                 level: float = 0.95) -> tuple[float, float]:
  """Computes the percentile interval of a root mean square.

  Args:
    errors: one per image, (n,): each the root mean square over the image's numbers.
    resamples: how many.
    seed: of the resamples.
    level: probability of the interval, in (0, 1).

  Returns:
    (low, high), in units of the errors.

  Raises:
    ValueError: as `interval`.
  """
  errors = checks.to_array('rms_interval', 'errors', errors)
  low, high = _mean_interval('rms_interval', np.square(errors), resamples, seed, level, 'errors')
  return low**0.5, high**0.5


def _weighted_distances(features, center, trace, root):
  """The distance of a set, and distances(shares (resamples, n)) -> (resamples,): rows sum to 1.

  With the reference's covariance R^T R, the trace of the root is the sum of singular values of
  W^(1/2) F R^T for centred features F and shares W: roots of the eigenvalues of the smaller of its
  two Gram matrices. F R^T is computed once.
  """
  count, width = features.shape
  mean = moments.mean(features)
  deviations = features - mean
  squares = np.einsum('ij,ij->i', deviations, deviations)
  mapped = deviations @ root.T
  products = _outer_products(mapped) if count <= width else _inner_products(mapped)
  unbiased = count / (count - 1)

  def total(moved, variances, roots):
    return (np.einsum('ij,ij->i', moved, moved) + unbiased * variances + trace
            - 2 * np.sqrt(unbiased) * roots)

  def distances(shares):
    means = shares @ deviations
    variances = shares @ squares - np.einsum('ij,ij->i', means, means)
    roots = np.sqrt(np.maximum(np.linalg.eigvalsh(products(shares)), 0)).sum(1)
    return total(means + (mean - center), variances, roots)
  exact = np.linalg.svd(mapped / np.sqrt(count), compute_uv=False).sum()
  estimate = total((mean - center)[None], squares.mean(), exact)[0]
  return max(float(estimate), 0.0), distances


def _inner_products(mapped):
  """Returns shares (resamples, n) -> weighted and centred mapped^T mapped, (resamples, d, d)."""
  def products(shares):
    means = shares @ mapped
    raw = np.stack([(share[:, None] * mapped).T @ mapped for share in shares])
    return raw - means[:, :, None] * means[:, None]
  return products


def _outer_products(mapped):
  """Returns shares (resamples, n) -> weighted and centred mapped mapped^T, (resamples, n, n)."""
  gram = mapped @ mapped.T
  def products(shares):
    along = shares @ gram  # Products with the weighted mean.
    square = np.einsum('ij,ij->i', along, shares)[:, None, None]
    roots = np.sqrt(shares)
    centered = gram - along[:, :, None] - along[:, None] + square
    return roots[:, :, None] * centered * roots[:, None]
  return products


def _mean_interval(name, values, resamples, seed, level, what='values'):
  values = checks.to_array(name, what, values)
  bad = np.flatnonzero(~np.isfinite(values))
  if values.ndim != 1 or not values.size or bad.size:
    got = f'{values.reshape(-1)[bad[0]]} at index {bad[0]}' if bad.size else f'shape {values.shape}'
    raise ValueError(f'{name}: {what} must be finite numbers, one per image, got {got}; leave out '
                     'or repair such images')
  _check(name, resamples)
  checks.check_fraction(name, 'level', level, '0.95 is usual')
  means = np.concatenate([counts @ values / len(values)
                          for counts in _resamples(len(values), resamples, seed, len(values))])
  low, high = np.quantile(means, _ends(level))
  return float(low), float(high)


def _resamples(count, resamples, seed, each) -> Iterator[np.ndarray]:
  """Yields counts (some, count); `each` numbers are needed per resample."""
  generator = np.random.default_rng(seed)
  step = max(1, _NUMBERS // max(each, count))
  for start in range(0, resamples, step):
    yield generator.multinomial(count, np.full(count, 1 / count),
                                size=min(step, resamples - start)).astype(np.float64)


def _ends(level):
  return (1 - level) / 2, (1 + level) / 2


def _check(name, resamples):
  if not checks.is_integer(resamples) or resamples < 1:
    raise ValueError(f'{name}: resamples must be an integer above 0, got {resamples!r}; 200 or '
                     'more are usual')
