"""Mean and covariance of features in float64, from batches in any order and on any machine.

Each batch keeps its own mean and the scatter of deviations from it; two of them are merged as in
Chan, Golub and LeVeque 1979 (Updating formulae and a pairwise algorithm for computing sample
variances). Nothing large is subtracted from anything large, as sum(x x^T) - n mean mean^T would do:
features with a mean of 300 and a spread of 0.01 lose no digits. That is why any batch size, number
of shards and order give the same numbers up to rounding.
"""

from typing import NamedTuple

import numpy as np

_ROWS = 4096  # Turned into float64 at a time: 64 MiB at 2048 columns.


class Moments(NamedTuple):
  """Mean and scatter of `count` rows of features.

  Attributes:
    count: rows seen.
    mean: float64 (d,).
    scatter: float64 (d, d), sum over rows of the outer product of the deviation from the mean.
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray


def empty(width: int) -> Moments:
  """Returns the moments of no row at all: merged with others it changes nothing."""
  return Moments(0, np.zeros(width), np.zeros((width, width)))


def of(features: np.ndarray) -> Moments:
  """Computes the moments of a batch.

  Args:
    features: (n, d), any real type; n may be 0.

  Returns:
    Moments in float64.

  Raises:
    ValueError: if features are not a matrix of finite numbers.
  """
  features = check_features('moments.of', features)
  total = empty(features.shape[1])
  for start in range(0, len(features), _ROWS):
    block = features[start:start + _ROWS]
    center = mean(block)
    deviations = block - center
    total = merge(total, Moments(len(block), center, deviations.T @ deviations))
  return total


def merge(a: Moments, b: Moments) -> Moments:
  """Combines the moments of two disjoint sets of rows: batches, shards, machines.

  Chan et al. 1979, Eq. 2.1 and its matrix form: scatter = scatter_a + scatter_b
  + (n_a n_b / n) delta delta^T with delta = mean_b - mean_a.

  Args:
    a: of the one set.
    b: of the other.

  Returns:
    Moments of their union.

  Raises:
    ValueError: if they are of different widths.
  """
  if a.mean.shape != b.mean.shape:
    raise ValueError(f'moments.merge: both must be of one width, got {len(a.mean)} and '
                     f'{len(b.mean)}; take features of one layer of one network')
  if not a.count or not b.count:
    return a if a.count else b
  count = a.count + b.count
  delta = b.mean - a.mean
  between = delta * np.sqrt(a.count * (b.count / count))  # Its outer square is symmetric exactly.
  return Moments(count, a.mean + delta * (b.count / count),
                 a.scatter + b.scatter + np.multiply.outer(between, between))


def covariance(moments: Moments) -> np.ndarray:
  """Returns the unbiased covariance, scatter / (n - 1), float64 (d, d).

  Raises:
    ValueError: if there are fewer than two rows.
  """
  if moments.count < 2:
    raise ValueError('moments.covariance: moments must be of two rows or more, got '
                     f'{moments.count}; give more images')
  return moments.scatter / (moments.count - 1)


def mean(features: np.ndarray) -> np.ndarray:
  """Returns the mean over rows in float64, accumulated about the first row: (n, d) -> (d,).

  Deviations from a row are as small as the spread, so a large common offset costs no digits.
  """
  first = features[0].astype(np.float64)
  total = np.zeros_like(first)
  for start in range(0, len(features), _ROWS):
    total += (features[start:start + _ROWS] - first).sum(0)
  return first + total / len(features)


def check_features(name: str, features: np.ndarray, least: int = 0,
                   what: str = 'features') -> np.ndarray:
  """Checks a matrix of features.

  Args:
    name: who asks, for the error.
    features: (n, d), one row per image.
    least: how many rows there must be.
    what: what the matrix is called in the error.

  Returns:
    The matrix as a NumPy array of its own type; integers and half precision become float64.

  Raises:
    ValueError: if it is no real matrix with columns, has too few rows, or an entry is NaN or
      infinite, with the number of such rows and the first.
  """
  array = np.asarray(features)
  if array.ndim != 2 or array.dtype.kind not in 'fiu' or not array.shape[1]:
    raise ValueError(f'{name}: {what} must be a matrix of numbers, one row per image, got '
                     f'{array.dtype} of shape {array.shape}; flatten what an image gives')
  if len(array) < least:
    raise ValueError(f'{name}: {what} must have {least} rows or more, got {len(array)}; give more '
                     'images')
  bad = np.flatnonzero(~np.isfinite(array).all(1))
  if bad.size:
    raise ValueError(f'{name}: {what} must be finite, got NaN or infinity in {bad.size} of '
                     f'{len(array)} rows, the first at row {bad[0]}; look at these images and at '
                     'the precision of the network')
  return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)


def check_pair(name: str, a: np.ndarray, b: np.ndarray, least: tuple[int, int] = (2, 2),
               whats: tuple[str, str] = ('a', 'b')) -> tuple[np.ndarray, np.ndarray]:
  """Checks two matrices of features of one network, as `check_features` does.

  Raises:
    ValueError: as `check_features`, or if the columns differ in number.
  """
  a = check_features(name, a, least[0], whats[0])
  b = check_features(name, b, least[1], whats[1])
  if a.shape[1] != b.shape[1]:
    raise ValueError(f'{name}: {whats[1]} must have {a.shape[1]} columns like {whats[0]}, got '
                     f'{b.shape[1]}; take features of one layer of one network')
  return a, b
