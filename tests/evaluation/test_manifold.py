"""Balls around features against reference numbers, plain differences, and their own laws."""

import functools
import json

import numpy as np
import pytest

from evaluation import manifold
from tests import reference

FOLDER = reference.GOLDEN / 'metrics'
CASES = {case['id']: case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']
         if case['id'].startswith('pr.')}
GOLDEN = [case for case in CASES if 'inclusive_exact' in CASES[case]]
DETAILED = 'relu.k3', 'relu.k5', 'wide.k3', 'wide.k5'


@functools.cache
def arrays(stem):
  return dict(np.load(FOLDER / f'{stem}.npz'))


def features(case):
  stem = arrays(CASES[case]['file'].removesuffix('.npz'))
  return stem[CASES[case]['real']], stem[CASES[case]['generated']]


def squared_distances(a, b):
  return np.square(a[:, None].astype(np.float64) - b[None]).sum(-1)


def squared_radii(points, k):
  return np.sort(squared_distances(points, points), 1)[:, k]


def test_no_case_is_left_out():
  assert len(GOLDEN) == 14 and set(CASES) - set(GOLDEN) == {'pr.offset_float16_loss'}


@pytest.mark.parametrize('case', GOLDEN)
def test_precision_and_recall_on_the_surface(case):
  want = CASES[case]['inclusive_exact']
  got = manifold.precision_recall(*features(case), CASES[case]['k'])
  # Shares of a count: equal but for the last digit of a quotient.
  assert got._asdict() == pytest.approx(want, rel=1e-15)


@pytest.mark.parametrize('case', GOLDEN)
def test_density_and_coverage(case):
  got = manifold.prdc(*features(case), CASES[case]['k'])
  assert got._asdict() == pytest.approx(CASES[case]['strict_exact'], rel=1e-15)


@pytest.mark.parametrize('case', DETAILED)
def test_radii_memberships_and_realism(case):
  real, generated = features(f'pr.{case}')
  k = CASES[f'pr.{case}']['k']
  want = {name.removeprefix(f'{case}.'): value for name, value in arrays('manifold').items()
          if name.startswith(f'{case}.')}
  assert len(want) == 5
  np.testing.assert_allclose(manifold.radii(real, k), want['radius_real'], rtol=1e-14)
  np.testing.assert_allclose(manifold.radii(generated, k), want['radius_generated'], rtol=1e-14)
  np.testing.assert_allclose(manifold.realism(real, generated, k), want['realism'], rtol=1e-14)
  np.testing.assert_array_equal(manifold.within(generated, real, k),
                                want['generated_in_real_manifold'])
  np.testing.assert_array_equal(manifold.within(real, generated, k),
                                want['real_in_generated_manifold'])


@pytest.mark.parametrize('strict', [False, True])
@pytest.mark.parametrize('case', [*GOLDEN, 'pr.offset_float16_loss'])
def test_memberships_are_those_of_plain_differences(case, strict):
  real, generated = features(case)
  k = CASES[case]['k']
  distances, limits = squared_distances(generated, real), squared_radii(real, k)
  want = distances < limits if strict else distances <= limits
  np.testing.assert_array_equal(manifold.within(generated, real, k, strict), want.any(1))
  np.testing.assert_array_equal(manifold.radii(real, k), np.sqrt(limits))


def test_a_large_offset_changes_nothing():
  # In half precision all distances of this set are noise, and both numbers come out as 1.
  real, generated = (rows.astype(np.float64) for rows in features('pr.offset_float16_loss'))
  got = manifold.precision_recall(real, generated)
  assert got == manifold.precision_recall(real - 300, generated - 300)
  assert max(got) < 1


@pytest.mark.parametrize('case', ['pr.relu.k3', 'pr.duplicates.k3', 'pr.large.k5'])
def test_blocks_do_not_matter(case, monkeypatch):
  def numbers():
    pair = *features(case), CASES[case]['k']
    return (*manifold.precision_recall(*pair), *manifold.prdc(*pair), *manifold.realism(*pair))
  want = numbers()
  monkeypatch.setattr(manifold, '_PAIRS', 300)
  monkeypatch.setattr(manifold, '_NUMBERS', 100)
  assert numbers() == pytest.approx(want, rel=1e-15)


def test_swapping_the_sets_swaps_precision_and_recall():
  real, generated = features('pr.duplicates.k3')
  assert manifold.precision_recall(real, generated) == manifold.precision_recall(
      generated, real)[::-1]


def test_distant_sets_share_nothing_and_equal_ones_everything():
  real = features('pr.relu.k3')[0]
  assert manifold.prdc(real, real + 1e3) == (0, 0, 0, 0)
  assert manifold.precision_recall(real, real[::-1]) == (1, 1)
  assert np.all(manifold.realism(real, real + 1e3) < 0.1)


def test_copies_of_repeated_images():
  # Radii are 0, so the surface is the ball; a copy is real, and anything else is not.
  real = np.repeat(np.arange(5.0)[:, None], 6, 0)
  real = np.concatenate([real, 1e3 + 10 * np.arange(40.0)[:, None]])
  generated = np.array([[2.0], [2.5], [3.0], [1e4]])
  assert manifold.within(generated, real, 3).tolist() == [True, False, True, False]
  assert not manifold.within(generated, real[:30], 3, strict=True).any()
  assert manifold.realism(real, generated).tolist() == [1, 0, 1, 0]


def test_a_copy_of_a_real_point_is_infinitely_real():
  real, generated = features('pr.relu.k3')
  smallest = np.argmin(manifold.radii(real, 3))
  assert manifold.realism(real, real[smallest:smallest + 1]).tolist() == [np.inf]
  assert np.isfinite(manifold.realism(real, generated)).all()


def test_bad_input():
  real, generated = features('pr.wide.k3')
  with pytest.raises(ValueError, match='precision_recall: generated must have 4 rows or more'):
    manifold.precision_recall(real, generated[:3])
  with pytest.raises(ValueError, match='prdc: k must be an integer above 0, got 0; 3 and 5 are'):
    manifold.prdc(real, generated, 0)
  with pytest.raises(ValueError, match='prdc: generated must have 64 columns like real, got 32; '):
    manifold.prdc(real, features('pr.relu.k3')[1])
  with pytest.raises(ValueError, match='realism: real must be finite, got NaN or infinity in 1 of'):
    manifold.realism(np.where(np.arange(24)[:, None] == 5, np.nan, real), generated)
  with pytest.raises(ValueError, match='realism: real must have radii below their median, got 0 '):
    manifold.realism(np.zeros((9, 2)), generated[:, :2])
