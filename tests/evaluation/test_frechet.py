"""Frechet distance against 70-digit values, closed forms, and its own laws."""

import collections
import functools
import json

import numpy as np
import pytest

from evaluation import frechet, moments
from tests import reference

FOLDER = reference.GOLDEN / 'metrics'
CASES = {case['id']: case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']}
# All kinds of the area, so that none is left out. Elsewhere: clip_score and lpips (networks).
COUNTS = {'fid': 11, 'fid_stats': 8, 'is.torch_fidelity': 20, 'is.adm': 12, 'kid': 5, 'pr': 15,
          'lpips': 6, 'clip_score': 1, 'file': 5}
FID = [case for case in CASES if case.startswith('fid.')]
STATS = [case for case in CASES if case.startswith('fid_stats.')]
STORED = [case for case in FID if {CASES[case]['a'], CASES[case]['b']} <= {
    'relu_a', 'relu_b', 'wide_a', 'wide_b', 'sing_a', 'sing_b'}]
PRECISE = 1e-12  # Of the traces; the manifest has about 1e-13 for these formulas.


@functools.cache
def arrays(stem):
  return dict(np.load(FOLDER / f'{stem}.npz'))


def features(case):
  return arrays('features')[CASES[case]['a']], arrays('features')[CASES[case]['b']]


def statistics(prefix):
  return [arrays('statistics')[f'{prefix}{name}'] for name in ('mu1', 'sigma1', 'mu2', 'sigma2')]


def noise_floor(sigma1, sigma2):
  """What rounded covariances that are singular allow, as the manifest states it."""
  return len(sigma1) * np.sqrt(1e-16 * np.linalg.norm(sigma1, 2) * np.linalg.norm(sigma2, 2))


def test_no_case_is_left_out():
  kinds = collections.Counter('.'.join(case.split('.')[:1 + case.startswith('is.')])
                              for case in CASES)
  assert kinds == COUNTS and sum(COUNTS.values()) == len(CASES) == 83
  assert len(FID) == 11 and len(STATS) == 8 and len(STORED) == 6


@pytest.mark.parametrize('case', FID)
def test_features_give_the_exact_distance(case):
  want = CASES[case]
  scale = want['trace1'] + want['trace2'] + want['mean_term']
  assert frechet.of_features(*features(case)) == pytest.approx(
      want['fid_exact'], rel=0, abs=PRECISE * scale)


@pytest.mark.parametrize('case', FID)
def test_moments_give_the_exact_distance_up_to_the_noise_of_singular_covariances(case):
  a, b = map(moments.of, features(case))
  floor = noise_floor(moments.covariance(a), moments.covariance(b))
  assert frechet.of_moments(a, b) == pytest.approx(CASES[case]['fid_exact'], rel=1e-12, abs=floor)


@pytest.mark.parametrize('case', [case for case in FID if case not in (
    'fid.wide', 'fid.singular', 'fid.identical_wide', 'fid.spatial')])
def test_moments_are_as_good_as_features_where_covariances_are_regular(case):
  a, b = map(moments.of, features(case))
  scale = CASES[case]['trace1'] + CASES[case]['trace2'] + CASES[case]['mean_term']
  assert frechet.of_moments(a, b) == pytest.approx(
      CASES[case]['fid_exact'], rel=0, abs=PRECISE * scale)


@pytest.mark.parametrize('case', STATS)
def test_given_statistics(case):
  given = statistics(CASES[case]['prefix'])
  traces = np.trace(given[1]) + np.trace(given[3]) + np.sum((given[0] - given[2])**2)
  singular = case in ('fid_stats.rank_deficient', 'fid_stats.orthogonal_supports')
  bound = noise_floor(given[1], given[3]) if singular else PRECISE * traces
  assert frechet.frechet_distance(*given) == pytest.approx(CASES[case]['fid_exact'], rel=0,
                                                           abs=bound)


@pytest.mark.parametrize('case', STORED)
def test_stored_statistics_of_features(case):
  given = [arrays('statistics')[f'{CASES[case][side]}.{name}']
           for side in 'ab' for name in ('mu', 'sigma')]
  assert frechet.frechet_distance(*given) == pytest.approx(
      CASES[case]['fid_exact'], rel=1e-12, abs=noise_floor(given[1], given[3]))


def test_gaussians_with_common_axes_have_a_closed_form():
  rng = np.random.default_rng(0)
  axes = np.linalg.qr(rng.standard_normal((40, 40)))[0]
  first, second = rng.uniform(0.1, 3, (2, 40))
  mu = rng.standard_normal((2, 40))
  want = np.sum((mu[0] - mu[1])**2) + np.sum((first - second)**2)
  got = frechet.frechet_distance(mu[0], axes * first**2 @ axes.T, mu[1], axes * second**2 @ axes.T)
  assert got == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize('case', ['fid.relu', 'fid.wide', 'fid.singular', 'fid.spatial'])
def test_symmetry_rotation_shift_and_scale(case):
  a, b = (x.astype(np.float64) for x in features(case))
  want = frechet.of_features(a, b)
  rotation = np.linalg.qr(np.random.default_rng(1).standard_normal((a.shape[1], a.shape[1])))[0]
  close = functools.partial(pytest.approx, rel=1e-11)
  assert frechet.of_features(b, a) == close(want)
  assert frechet.of_features(a @ rotation, b @ rotation) == close(want)
  assert frechet.of_features(a + 8, b + 8) == close(want)
  assert frechet.of_features(4 * a, 4 * b) == close(16 * want)


@pytest.mark.parametrize('name', sorted(arrays('features')))
def test_a_set_is_at_distance_zero_from_itself_in_any_order(name):
  rows = arrays('features')[name]
  bound = PRECISE * np.trace(moments.covariance(moments.of(rows)))
  assert 0 <= frechet.of_features(rows, rows) <= bound
  assert 0 <= frechet.of_features(rows, rows[::-1]) <= bound


def test_blocks_of_rows_change_nothing():
  # 200 rows of 8 columns pass through seven triangular factors; a long decomposition is one.
  rows = arrays('features')['relu_a'][:, :8], arrays('features')['relu_b'][:, :8]
  factors = [np.linalg.svd(x - x.mean(0, dtype=np.float64), full_matrices=False)
             for x in rows]
  root = [(f[1][:, None] * f[2]) / np.sqrt(len(x) - 1) for f, x in zip(factors, rows, strict=True)]
  difference = rows[0].mean(0, dtype=np.float64) - rows[1].mean(0, dtype=np.float64)
  want = (difference @ difference + sum(np.sum(r**2) for r in root)
          - 2 * np.linalg.svd(root[0] @ root[1].T)[1].sum())
  assert frechet.of_features(*rows) == pytest.approx(want, rel=1e-12)


def test_constant_features_are_a_point():
  points = np.full((3, 5), 2.0), np.full((4, 5), 5.0)
  assert frechet.of_features(*points) == 45
  assert frechet.of_features(points[0], points[0]) == 0


def test_scalars_are_one_dimension():
  assert frechet.frechet_distance(0.0, 1.0, 3.0, 4.0) == pytest.approx(10, rel=1e-15)


def test_single_precision_statistics_are_taken():
  mu1, sigma1, mu2, sigma2 = statistics('stats.general.')
  got = frechet.frechet_distance(*(x.astype(np.float32) for x in (mu1, sigma1, mu2, sigma2)))
  assert got == pytest.approx(CASES['fid_stats.general']['fid_exact'], rel=1e-6)


EYE, ZEROS = np.eye(3), np.zeros(3)
BAD = {
    'width': ((ZEROS, EYE, np.zeros(2), np.eye(2)),
              'mu2 must have 3 numbers like mu1, got 2; these are statistics of another network'),
    'square': ((ZEROS, np.ones((3, 2)), ZEROS, EYE),
               r'sigma1 must be square, \(3, 3\) as mu1 has 3 numbers, got shape \(3, 2\); '),
    'vector': ((EYE, EYE, ZEROS, EYE), r'mu1 must be a vector, got shape \(3, 3\); '),
    'finite mean': ((ZEROS, EYE, np.array([0, np.nan, 0]), EYE),
                    'mu2 must be finite, got nan at index 1; '),
    'finite': ((ZEROS, EYE, ZEROS, np.diag([1, np.inf, 1])),
               'sigma2 must be finite, got inf at index 1, 1; '),
    'symmetric': ((ZEROS, EYE + np.eye(3, k=1), ZEROS, EYE),
                  'sigma1 must be symmetric, got 1 and 0 at 0, 1 and across; '),
    'negative': ((ZEROS, EYE, ZEROS, -EYE),
                 'sigma2 must be a covariance, got an eigenvalue of -1 where the largest is -1; '),
    'text': (('a', EYE, ZEROS, EYE), "mu1 must be a list of numbers, got 'a'; "),
}


@pytest.mark.parametrize('given, text', BAD.values(), ids=BAD)
def test_bad_statistics(given, text):
  with pytest.raises(ValueError, match=f'^frechet_distance: {text}') as error:
    frechet.frechet_distance(*given)
  assert '\n' not in str(error.value)


def test_bad_features():
  rows = arrays('features')['relu_a']
  with pytest.raises(ValueError, match='b must have 32 columns like a, got 64; '):
    frechet.of_features(rows, arrays('features')['wide_a'])
  with pytest.raises(ValueError, match='frechet.of_features: b must have 2 rows or more, got 1; '):
    frechet.of_features(rows, rows[:1])
  with pytest.raises(ValueError, match='a must be finite, got NaN or infinity in 200 of 200 rows'):
    frechet.of_features(np.where(rows > 0, rows, np.nan)[:, :20], rows[:, :20])
