"""Precision, recall, density, coverage and realism from balls around the features of two sets.

The ball of a point reaches to its k-th nearest other point of its own set.

- Precision and recall: the share of generated points within the ball of any real point, and of real
  points within that of any generated point (Kynkaanniemi et al. 2019, arXiv:1904.06991, Eq. 1, 2).
- Density and coverage: how many real balls hold a generated point, over k, and the share of real
  points whose ball holds any generated point (Naeem et al. 2020, arXiv:2002.09797, Eq. 3, 5).
- Realism of a generated point: the largest radius / distance over real points, those with the
  larger half of the radii left out (Kynkaanniemi et al., Eq. 3).

Points on the surface count for the former pair as its authors have it, and do not for the latter.
Sets with repeated images have such ties, and there the choice shows.

Distances are decided on sums of squared float64 differences. The product form |u|^2 - 2 u . v +
|v|^2, which loses digits and breaks ties, comes first for its speed, with a bound on its rounding;
only pairs that it leaves open are looked at again, so results are those of the differences alone.
The original evaluator's half precision, in which distinct distances tie, is not copied.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from evaluation import moments
from samplers import checks

_PAIRS = 2**22  # Pairs of points at a time: 32 MiB per array over them.
_NUMBERS = 2**22  # Features of pairs at a time, where differences are taken.


class PrecisionRecall(NamedTuple):
  """Improved precision and recall, both from 0 to 1."""

  precision: float
  recall: float


class Prdc(NamedTuple):
  """Precision, recall and coverage, from 0 to 1, and density, which may exceed 1."""

  precision: float
  recall: float
  density: float
  coverage: float


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> PrecisionRecall:
  """Computes improved precision and recall; a point on the surface of a ball is within.

  Args:
    real: features of real images, (n, d).
    generated: features of generated images, (m, d).
    k: which neighbour a ball reaches to; 3 is usual.

  Returns:
    PrecisionRecall.

  Raises:
    ValueError: if features are no matrices of finite numbers of one width, or a set has no more
      than k points.
  """
  real, generated = _check('precision_recall', real, generated, k)
  return PrecisionRecall(float(np.mean(within(generated, real, k))),
                         float(np.mean(within(real, generated, k))))


def prdc(real: np.ndarray, generated: np.ndarray, k: int = 5) -> Prdc:
  """Computes precision, recall, density and coverage; the surface of a ball is outside.

  Args:
    real: features of real images, (n, d).
    generated: features of generated images, (m, d).
    k: which neighbour a ball reaches to; 5 is usual.

  Returns:
    Prdc.

  Raises:
    ValueError: as `precision_recall`.
  """
  real, generated = _check('prdc', real, generated, k)
  held = np.zeros(len(generated), np.int64)
  covered = np.zeros(len(real), bool)
  for rows, inside in _memberships(generated, real, k, strict=True):
    held[rows] = inside.sum(1)
    covered |= inside.any(0)
  return Prdc(float(np.mean(held > 0)), float(np.mean(within(real, generated, k, strict=True))),
              float(held.sum() / (k * len(held))), float(np.mean(covered)))


def within(points: np.ndarray, centers: np.ndarray, k: int, strict: bool = False) -> np.ndarray:
  """Says for each point whether the ball of any center holds it.

  Args:
    points: features, (n, d).
    centers: features of the other set, (m, d), m above k.
    k: which neighbour a ball reaches to.
    strict: whether its surface is outside.

  Returns:
    bool (n,).

  Raises:
    ValueError: as `precision_recall`.
  """
  points, centers = _check('manifold.within', points, centers, k, ('points', 'centers'),
                           (1, k + 1))
  held = np.zeros(len(points), bool)
  for rows, inside in _memberships(points, centers, k, strict):
    held[rows] = inside.any(1)
  return held


def radii(points: np.ndarray, k: int) -> np.ndarray:
  """Returns the distance of each point to its k-th nearest other point: (n, d) -> float64 (n,).

  Raises:
    ValueError: as `precision_recall`.
  """
  points, _ = _check('manifold.radii', points, points, k, ('points', 'points'))
  return np.sqrt(_squared_radii(points, k))


def realism(real: np.ndarray, generated: np.ndarray, k: int = 3) -> np.ndarray:
  """Computes the realism of each generated point; 1 or more: it lies within a real ball.

  Args:
    real: features of real images, (n, d).
    generated: features of generated images, (m, d).
    k: which neighbour a ball reaches to.

  Returns:
    float64 (m,); infinite for a copy of a real point with a ball.

  Raises:
    ValueError: as `precision_recall`, or if no radius is below the median.
  """
  real, generated = _check('realism', real, generated, k, least=(k + 1, 1))
  squared = _squared_radii(real, k)
  kept = np.sqrt(squared) < np.median(np.sqrt(squared))
  if not kept.any():
    raise ValueError(f'realism: real must have radii below their median, got {squared[0]**0.5:g} '
                     'for most points; remove repeated images')
  real, squared = real[kept], squared[kept]
  result = np.empty(len(generated))
  for rows, near, slack in _products(generated, real):
    with np.errstate(divide='ignore', invalid='ignore'):
      lowest = np.fmax.reduce(squared / (near + slack), axis=1)
      highest = squared / np.maximum(near - slack, 0)
      i, j = np.nonzero(~(highest < lowest[:, None]))  # 0 / 0 is no bound and stays open.
      ratio = squared[j] / _differences(generated, real, i + rows.start, j)
    exact = np.zeros(near.shape)
    exact[i, j] = np.where(np.isnan(ratio), 1, ratio)  # A copy of a point whose ball is a point.
    result[rows] = np.sqrt(exact.max(1))
  return result


def _memberships(points, centers, k, strict):
  """Yields (rows, bool (rows, centers)): which balls hold which points."""
  squared = _squared_radii(centers, k)
  for rows, near, slack in _products(points, centers):
    inside = near < squared - slack
    i, j = np.nonzero(np.abs(near - squared) <= slack)
    exact = _differences(points, centers, i + rows.start, j)
    inside[i, j] = exact < squared[j] if strict else exact <= squared[j]
    yield rows, inside


def _squared_radii(points, k):
  result = np.empty(len(points))
  for rows, near, slack in _products(points, points):
    # The point itself, at distance 0, is among the k + 1 nearest, or as near as those that are.
    limit = np.partition(near, k, axis=1)[:, k, None] + 2 * slack
    i, j = np.nonzero(near <= limit)
    exact = np.full(near.shape, np.inf)
    exact[i, j] = _differences(points, points, i + rows.start, j)
    result[rows] = np.partition(exact, k, axis=1)[:, k]
  return result


def _products(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
  """Yields (rows of a, squared distances to b by products, bound of their error (rows, 1))."""
  center = moments.mean(b)
  b = b - center
  squares = np.einsum('ij,ij->i', b, b)
  # Each product of d terms is off by at most d eps |u| |v|, and centring moves a point by eps of
  # its length; the factor leaves room for both, in the sums of squares as well.
  unit = 4 * (b.shape[1] + 8) * np.finfo(np.float64).eps
  step = max(1, _PAIRS // len(b))
  for start in range(0, len(a), step):
    rows = slice(start, min(start + step, len(a)))
    u = a[rows] - center
    own = np.einsum('ij,ij->i', u, u)[:, None]
    yield rows, own + squares - 2 * (u @ b.T), unit * (own + squares.max())


def _differences(a, b, i, j):
  """Returns squared distances of the pairs (a[i], b[j]) by differences, (pairs,)."""
  step = max(1, _NUMBERS // a.shape[1])
  parts = [np.square(np.subtract(a[i[s:s + step]], b[j[s:s + step]], dtype=np.float64)).sum(1)
           for s in range(0, len(i), step)]
  return np.concatenate([np.empty(0), *parts])


def _check(name, first, second, k, whats=('real', 'generated'), least=None):
  if not checks.is_integer(k) or k < 1:
    raise ValueError(f'{name}: k must be an integer above 0, got {k!r}; 3 and 5 are usual')
  return moments.check_pair(name, first, second, least or (k + 1, k + 1), whats)
