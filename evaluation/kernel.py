"""Kernel Inception distance: squared maximum mean discrepancy with a cubic kernel.

Binkowski et al. 2018, arXiv:1801.01401, Sec. 4: k(x, y) = (x . y / d + 1)^3, and with m and n rows
the unbiased estimate

  sum_{i != j} k(x_i, x_j) / (m (m - 1)) + sum_{i != j} k(y_i, y_j) / (n (n - 1))
  - 2 sum_{ij} k(x_i, y_j) / (m n),

which may fall below 0. All pairs are in the last sum.

Terms of k that depend on x alone or on y alone drop out of that estimate exactly. They are left out
before the sums: with u = x - c and v = y - c about a common point c,

  x . y / d + 1 = p + q,  p = s + l(x) + l(y),  q = u . v / d,
  s = |c|^2 / d + 1,  l(x) = c . u / d,  l(y) = c . v / d,

and p^3 without such terms is l(x) l(y) (6 s + 3 l(x) + 3 l(y)). What is left is of the size of the
spread and not of the mean, so features with a large common offset keep their digits, where the
kernel as written cancels to nothing (in float32 even the sign of the result is then wrong).
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from evaluation import moments
from samplers import checks

_ROWS = 1024  # Of the kernel matrix at a time.


class Kid(NamedTuple):
  """A kernel distance over subsets.

  Attributes:
    mean: over the subsets.
    std: population standard deviation over the subsets.
    subsets: estimate of each subset, float64 (subsets,).
  """

  mean: float
  std: float
  subsets: np.ndarray


def kid(a: np.ndarray, b: np.ndarray, subsets: int = 100, size: int = 1000,
        seed: int = 2020) -> Kid:
  """Computes the mean distance over random subsets, drawn as torch-fidelity draws them.

  Args:
    a: features of one set, (n1, d); torch-fidelity's first input is the generated one.
    b: of the other, (n2, d).
    subsets: how many; their mean has less noise than one of them.
    size: rows that each takes from a and from b, without replacement.
    seed: of the subsets.

  Returns:
    The Kid. The subsets overlap, so `std` over their root is not the error of `mean`.

  Raises:
    ValueError: if features are no matrices of finite numbers of one width, or there are fewer rows
      than `size`, or `size` is below 2.
  """
  a, b = moments.check_pair('kid', a, b)
  return of_indices(a, b, draws(len(a), len(b), subsets, size, seed))


def of_indices(a: np.ndarray, b: np.ndarray,
               indices: Iterable[tuple[np.ndarray, np.ndarray]]) -> Kid:
  """Computes the mean distance over given subsets.

  Args:
    a: features of one set, (n1, d).
    b: of the other, (n2, d).
    indices: pairs of rows of a and rows of b.

  Returns:
    The Kid.

  Raises:
    ValueError: as `squared_mmd`, or if there is no pair.
  """
  values = np.array([squared_mmd(a[rows], b[others]) for rows, others in indices])
  if not values.size:
    raise ValueError('kid: subsets must be one or more, got none; 100 is usual')
  return Kid(float(values.mean()), float(values.std()), values)


def draws(count_a: int, count_b: int, subsets: int, size: int,
          seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Draws subsets in torch-fidelity's order: from a, then from b, one RandomState for all.

  Args:
    count_a: rows of a.
    count_b: rows of b.
    subsets: how many.
    size: rows of each.
    seed: of the RandomState.

  Returns:
    An iterator of (rows of a, rows of b), both (size,).

  Raises:
    ValueError: if `subsets` is below 1, or `size` is below 2 or above a count.
  """
  _check_draws(count_a, count_b, subsets, size)
  generator = np.random.RandomState(seed)
  return ((generator.choice(count_a, size, replace=False),
           generator.choice(count_b, size, replace=False)) for _ in range(subsets))


def clean_fid_draws(count_a: int, count_b: int, subsets: int, size: int,
                    seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Draws subsets in clean-fid's order: from b, then from a; otherwise as `draws`.

  clean-fid itself takes the global generator, so its numbers repeat only where a script seeds that;
  it has 100 subsets of 1000 rows, or of the smaller set where that has fewer.
  """
  _check_draws(count_a, count_b, subsets, size)
  generator = np.random.RandomState(seed)
  def draw():
    others = generator.choice(count_b, size, replace=False)
    return generator.choice(count_a, size, replace=False), others
  return (draw() for _ in range(subsets))


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
  """Computes the unbiased estimate from all rows; the sets may differ in size.

  k-diffusion evaluates this way.

  Args:
    a: features of one set, (m, d).
    b: of the other, (n, d).

  Returns:
    The estimate; below 0 where the sets are closer than chance has them.

  Raises:
    ValueError: if features are no matrices of finite numbers of one width with two rows or more.
  """
  a, b = moments.check_pair('kid', a, b)
  # Any point will do. One of the features' own precision makes the differences exact.
  center = ((moments.mean(a) + moments.mean(b)) / 2).astype(a.dtype).astype(np.float64)
  a, b = a - center, b - center
  inner = sum(_sum(x, x, center, diagonal=False) / (len(x) * (len(x) - 1)) for x in (a, b))
  return float(inner - 2 * _sum(a, b, center) / (len(a) * len(b)))


def _sum(u, v, center, diagonal=True):
  """Sums the reduced kernel over pairs of rows, with those of equal index or without."""
  width = len(center)
  offset = center @ center / width + 1
  lu, lv = u @ center / width, v @ center / width
  total = 0.0
  for start in range(0, len(u), _ROWS):
    rows = slice(start, start + _ROWS)
    x, y = lu[rows, None], lv[None]
    q = u[rows] @ v.T / width
    p = offset + x + y
    values = x * y * (6 * offset + 3 * (x + y)) + q * (3 * p**2 + q * (3 * p + q))
    if not diagonal:
      values[np.arange(len(values)), np.arange(start, start + len(values))] = 0
    total += values.sum()
  return total


def _check_draws(count_a, count_b, subsets, size):
  if not checks.is_integer(subsets) or subsets < 1:
    raise ValueError(f'kid: subsets must be an integer above 0, got {subsets!r}; 100 is usual')
  least = min(count_a, count_b)
  if not checks.is_integer(size) or not 2 <= size <= least:
    raise ValueError(f'kid: size must be an integer from 2 to {least}, the rows of the smaller '
                     f'set, got {size!r}; take smaller subsets or more images')
