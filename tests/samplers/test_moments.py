"""Exact moments on Gaussian data against closed forms, and the correlation of draws."""

import numpy as np
import pytest

import samplers
from samplers import moments
from samplers.table import NOTHING, Row, assemble

MEAN, VARIANCE = 0.7, 0.25
SIGMAS = samplers.schedule('polynomial', 6, 0.1, 10.0)


def test_a_single_euler_step_in_closed_form():
  first, last = 10.0, 2.0
  share = VARIANCE / (VARIANCE + first**2)
  ratio = last / first + (1 - last / first) * share
  mean, variance = moments.gaussian_moments(samplers.make('euler', [first, last]), MEAN, VARIANCE)
  assert mean == pytest.approx((1 - last / first) * (1 - share) * MEAN, rel=1e-14)
  assert variance == pytest.approx((ratio * first)**2, rel=1e-14)


def test_ancestral_steps_from_the_diffused_data_keep_its_mean():
  """Their mean is exact on Gaussian data, and so is the variance in the limit of small steps."""
  errors = []
  for n in (100, 200):
    table = samplers.make('ddim', samplers.schedule('polynomial', n, 0.1, 10.0), eta=1.0)
    mean, variance = moments.gaussian_moments(table, MEAN, VARIANCE,
                                              start=(MEAN, VARIANCE + 10.0**2))
    assert mean == pytest.approx(MEAN, rel=1e-12)
    errors.append(abs(variance - (VARIANCE + 0.1**2)))
  assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


def test_dimensions_are_independent():
  means, variances = np.asarray([[0.0, 0.3], [-2.0, 0.1]]), np.asarray([0.01, 4.0])
  table = samplers.make('ddim', SIGMAS, eta=0.7, denoise_to_zero=True)
  mean, variance = moments.gaussian_moments(table, means, variances)
  assert mean.shape == variance.shape == (2, 2)
  for index in np.ndindex(2, 2):
    single = moments.gaussian_moments(table, means[index], variances[index[1]])
    np.testing.assert_allclose((mean[index], variance[index]), single, rtol=1e-14)


def two_draws(*intervals):
  """Variance of the sum of two draws, added to nothing."""
  rows = [Row(1.0, [np.asarray([0.0 if i == 0 else 1.0, 0.0])], kind=NOTHING, noise=1.0,
              interval=interval) for i, interval in enumerate(intervals)]
  return moments.gaussian_moments(assemble(rows), MEAN, VARIANCE)[1]


@pytest.mark.parametrize('second, correlation', [
    ((3.0, 1.0), 0.0), ((4.0, 3.0), 0.5), ((5.0, 2.0), 2 / 12**0.5),
    ((7.0, 3.0), 1.0), ((np.nan, np.nan), 0.0)])
def test_draws_are_correlated_by_what_their_intervals_share(second, correlation):
  """By shared length over the root of both lengths: increments of one Brownian path."""
  assert two_draws((7.0, 3.0), second) == pytest.approx(2 + 2 * correlation, rel=1e-14)


def test_variances_below_0_are_refused():
  table = samplers.make('euler', SIGMAS)
  with pytest.raises(ValueError, match='gaussian_moments: variance must be finite and >= 0, got'):
    moments.gaussian_moments(table, 0.0, -1.0)
  with pytest.raises(ValueError, match=r'gaussian_moments: start\[1\] must be finite and >= 0'):
    moments.gaussian_moments(table, 0.0, 1.0, start=(0.0, np.inf))
