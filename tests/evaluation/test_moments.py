"""Moments of features: any batch size, sharding and order give the same numbers."""

import functools

import numpy as np
import pytest

from evaluation import moments
from tests import reference

SETS = 'relu_a', 'wide_a', 'sing_a', 'offset_a', 'large_a', 'spatial_a'
SAME = 1e-10  # Relative to the largest number: what a reader is promised. Seen: below 1e-13.


@functools.cache
def features(name):
  return np.load(reference.GOLDEN / 'metrics' / 'features.npz')[name]


def in_batches(rows, size):
  batches = [rows[start:start + size] for start in range(0, len(rows), size)]
  return functools.reduce(moments.merge, map(moments.of, batches))


def check_same(got, want):
  assert got.count == want.count
  for a, b in ((got.mean, want.mean), (got.scatter, want.scatter)):
    assert a.dtype == np.float64
    np.testing.assert_allclose(a, b, rtol=0, atol=SAME * np.abs(b).max())


def in_long_double(rows):
  exact = rows.astype(np.longdouble)
  deviations = exact - exact.mean(0)
  return exact.mean(0), deviations.T @ deviations


@pytest.mark.parametrize('name', SETS)
def test_moments_are_those_of_extended_precision(name):
  got = moments.of(features(name))
  mean, scatter = in_long_double(features(name))
  np.testing.assert_allclose(got.mean, mean.astype(float), rtol=1e-14,
                             atol=1e-14 * np.abs(mean).max().astype(float))
  np.testing.assert_allclose(got.scatter, scatter.astype(float), rtol=0,
                             atol=1e-13 * scatter.max().astype(float))


@pytest.mark.parametrize('size', [1, 7, 64])
@pytest.mark.parametrize('name', SETS)
def test_batch_size_does_not_matter(name, size):
  check_same(in_batches(features(name), size), moments.of(features(name)))


@pytest.mark.parametrize('name', SETS)
def test_order_and_shards_do_not_matter(name):
  rows = features(name)
  shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
  shards = [in_batches(shuffled[rank::3], 5) for rank in range(3)]
  for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):
    check_same(functools.reduce(moments.merge, [shards[i] for i in order]), moments.of(rows))
  check_same(moments.merge(shards[0], moments.merge(shards[1], shards[2])), moments.of(rows))


def test_blocks_within_a_batch_do_not_matter(monkeypatch):
  want = moments.of(features('offset_a'))
  monkeypatch.setattr(moments, '_ROWS', 16)
  check_same(moments.of(features('offset_a')), want)


def test_an_empty_shard_changes_nothing():
  some = moments.of(features('relu_a'))
  none = moments.of(features('relu_a')[:0])
  assert none.count == 0
  for merged in (moments.merge(some, none), moments.merge(none, some),
                 moments.merge(moments.empty(32), some)):
    np.testing.assert_array_equal(merged.scatter, some.scatter)


def test_covariance_divides_by_one_less_and_is_symmetric():
  rows = features('relu_a')
  got = moments.covariance(in_batches(rows, 9))
  np.testing.assert_allclose(got, np.cov(rows.T, dtype=np.float64), rtol=0, atol=1e-13)
  np.testing.assert_array_equal(got, got.T)


@pytest.mark.parametrize('dtype', ['float16', 'float64', 'uint8'])
def test_types_are_taken_as_they_are(dtype):
  rows = np.arange(12).reshape(4, 3).astype(dtype)
  np.testing.assert_array_equal(moments.of(rows).mean, [4.5, 5.5, 6.5])


def test_bad_features_are_named():
  rows = features('relu_a').copy()
  rows[3], rows[9, 4] = np.nan, np.inf
  with pytest.raises(ValueError, match='moments.of: features must be finite, got NaN or infinity '
                     'in 2 of 200 rows, the first at row 3; '):
    moments.of(rows)
  with pytest.raises(ValueError, match=r'a matrix of numbers.*got float64 of shape \(2, 3, 4\)'):
    moments.of(np.zeros((2, 3, 4)))
  with pytest.raises(ValueError, match='must be a matrix of numbers.*got <U1'):
    moments.of(np.array([['a']]))
  with pytest.raises(ValueError, match='must be a matrix of numbers.*got complex128'):
    moments.of(np.zeros((2, 3), complex))


def test_other_widths_and_too_few_rows_are_errors():
  with pytest.raises(ValueError, match='moments.merge: both must be of one width, got 32 and 64; '):
    moments.merge(moments.of(features('relu_a')), moments.of(features('wide_a')))
  with pytest.raises(ValueError, match='moments must be of two rows or more, got 1; give more'):
    moments.covariance(moments.of(features('relu_a')[:1]))
