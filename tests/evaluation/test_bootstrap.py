"""Bootstrap intervals: they hold the estimate, and the truth as often as they say."""

import functools

import numpy as np
import pytest

from evaluation import bootstrap, frechet, moments


@functools.cache
def reference(width, offset=0.5):
  """Moments of a Gaussian with mean `offset` and a spread from 0.5 to 2, as of many rows."""
  count = 1_000_001
  return moments.Moments(count, np.full(width, offset),
                         (count - 1) * np.diag(np.linspace(0.5, 2, width)**2))


def gaussian(count, width, seed):
  return np.random.default_rng(seed).standard_normal((count, width))


@pytest.mark.parametrize('count, width', [(60, 8), (60, 60), (20, 48)])
def test_distances_of_resamples_are_those_of_gathered_rows(count, width):
  features = gaussian(count, width, 0) @ np.diag(np.linspace(1, 3, width)) + 4
  got = bootstrap.frechet_to(reference(width))(features, resamples=3, seed=1)
  counts = np.random.default_rng(1).multinomial(count, np.full(count, 1 / count), size=3)
  want = [frechet.of_moments(moments.of(np.repeat(features, row, 0)), reference(width))
          for row in counts]
  # Roots of eigenvalues that are 0 up to 1e-16: about 1e-8 each, of a spread of 1.
  np.testing.assert_allclose(got.values, want, rtol=0, atol=1e-7 * width)
  assert got.estimate == pytest.approx(
      frechet.of_moments(moments.of(features), reference(width)), rel=1e-8)  # The same there.


@pytest.mark.parametrize('count, width', [(256, 8), (30, 8), (20, 40), (2, 3)])
def test_the_estimate_lies_within(count, width):
  for seed in range(3):
    features = gaussian(count, width, seed)
    estimate = frechet.of_moments(moments.of(features), reference(width))
    low, high = bootstrap.frechet_interval(features, reference(width), 50, seed)
    assert 0 <= low <= estimate <= high


def test_sets_of_the_same_seeds_differ_by_less_than_each_may_move():
  features = gaussian(200, 6, 0)
  moved = features + 0.05 * gaussian(200, 6, 1)
  resample = bootstrap.frechet_to(reference(6))
  one, other = resample(features), resample(moved)
  low, high = other.minus(one).interval()
  assert low <= other.estimate - one.estimate <= high
  assert high - low < 0.3 * (one.interval()[1] - one.interval()[0])


def test_a_set_equal_to_its_reference():
  features = gaussian(64, 4, 0)
  low, high = bootstrap.frechet_interval(features, moments.of(features))
  assert low == 0 and 0 < high < 0.5


def test_intervals_hold_the_expected_distance_as_often_as_they_say():
  # The distance of 80 rows on average, known from many sets; then how often 95 % intervals hold it.
  def estimate(seed):
    return frechet.of_moments(moments.of(gaussian(80, 6, seed)), reference(6))
  expected = np.mean([estimate(seed) for seed in range(1000, 3000)])
  intervals = [bootstrap.frechet_interval(gaussian(80, 6, seed), reference(6), 100)
               for seed in range(200)]
  share = np.mean([low <= expected <= high for low, high in intervals])
  # 190 of 200 on average; 6 is two standard deviations, and 80 rows cost an interval a little.
  assert 0.89 <= share <= 0.99
  # Percentiles as they come lie too high: their bias is what is taken off.
  features = gaussian(80, 6, 0)
  resampled = bootstrap.frechet_to(reference(6))(features, 400).values
  assert resampled.mean() > estimate(0) + 0.05 * estimate(0)


def test_intervals_narrow_with_images_and_widen_with_the_level():
  def width(count, **options):
    low, high = bootstrap.frechet_interval(gaussian(count, 6, 0), reference(6), **options)
    return high - low
  assert width(640) < 0.6 * width(80)
  assert width(80, level=0.5) < width(80) < width(80, level=0.99)


def test_blocks_of_resamples_do_not_matter(monkeypatch):
  features = gaussian(40, 5, 0)
  want = bootstrap.frechet_interval(features, reference(5), 30)
  assert want == bootstrap.frechet_interval(features, reference(5), 30)
  monkeypatch.setattr(bootstrap, '_NUMBERS', 200)
  assert bootstrap.frechet_interval(features, reference(5), 30) == pytest.approx(want, rel=1e-9)
  assert want != bootstrap.frechet_interval(features, reference(5), 30, seed=1)


def test_mean_and_root_mean_square_hold_the_truth_as_often_as_they_say():
  rng = np.random.default_rng(0)
  sets = rng.standard_normal((300, 100)) * 2 + 1
  means = [bootstrap.interval(values, 200, seed) for seed, values in enumerate(sets)]
  roots = [bootstrap.rms_interval(values, 200, seed) for seed, values in enumerate(sets)]
  # 285 of 300 on average; 8 is two standard deviations.
  assert 0.9 <= np.mean([low <= 1 <= high for low, high in means]) <= 0.98
  assert 0.9 <= np.mean([low <= 5**0.5 <= high for low, high in roots]) <= 0.98
  exact = np.sqrt(np.mean(sets[0]**2))
  assert roots[0][0] < exact < roots[0][1]


def test_equal_values_have_no_width():
  assert bootstrap.interval(np.full(5, 3.0)) == pytest.approx((3, 3), rel=1e-15)
  assert bootstrap.rms_interval(np.full(5, -3.0)) == pytest.approx((3, 3), rel=1e-15)


def test_bad_input():
  features = gaussian(20, 4, 0)
  with pytest.raises(ValueError, match='frechet_to: features must have 5 columns like the '
                     'reference, got 4; '):
    bootstrap.frechet_interval(features, reference(5))
  with pytest.raises(ValueError, match='frechet_to: features must have 2 rows or more'):
    bootstrap.frechet_interval(features[:1], reference(4))
  with pytest.raises(ValueError, match='resamples must be an integer above 0, got 0; 200 or more'):
    bootstrap.frechet_interval(features, reference(4), 0)
  with pytest.raises(ValueError, match='level must be strictly between 0 and 1, got 95; 0.95 is'):
    bootstrap.interval(features[0], level=95)
  with pytest.raises(ValueError, match='rms_interval: errors must be finite numbers, one per '
                     'image, got nan at index 1; '):
    bootstrap.rms_interval([1, np.nan])
  with pytest.raises(ValueError, match=r'interval: values must be .* got shape \(0,\); '):
    bootstrap.interval([])
