"""RES multistep: recorded runs, its relation to the SDE's solver, strong noise, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('res_multistep')
MEAN, VARIANCE = 0.7, 0.25


def grid(n, low=0.1, high=10.0):
  return samplers.schedule('polynomial', n, low, high)


def test_every_case_is_here():
  assert len(FAMILY) == 5
  assert sorted(case['options']['eta'] for case in FAMILY.values()) == [0, 0, 0.6, 1, 1]


@pytest.mark.parametrize('name', FAMILY)
def test_recorded_run(name):
  case = FAMILY[name]
  table = samplers.make('res_multistep', beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


@pytest.mark.parametrize('eta', [0.0, 1.0])
@pytest.mark.parametrize('last', [0.0, 0.02])
def test_with_none_or_all_of_the_noise_this_is_the_solver_of_the_sde(eta, last):
  sigmas, given = [*grid(7, 0.05, 40.0), last], {'eta': eta, 's_noise': 0.9}
  ours = samplers.make('res_multistep', sigmas, **given)
  other = samplers.make('dpmpp_2m_sde', sigmas, solver_type='heun', **given)
  np.testing.assert_allclose(ours.mix, other.mix, atol=1e-13)
  np.testing.assert_allclose(ours.noise, other.noise, rtol=1e-12)
  np.testing.assert_array_equal(ours.interval, other.interval)


@pytest.mark.parametrize('eta', [0.0, 0.6, 1.0, 1.4])
def test_noise_keeps_the_marginal_variance(eta):
  """Data that are one point: after every step the state has the variance of its level."""
  sigmas = grid(6)
  for end in range(2, 8):
    table = samplers.make('res_multistep', sigmas[:end], eta=eta)
    mean, variance = moments.gaussian_moments(table, MEAN, 0.0, start=(MEAN, sigmas[0]**2))
    assert mean == pytest.approx(MEAN, rel=1e-12)
    assert variance == pytest.approx(sigmas[end - 1]**2, rel=1e-11)


@pytest.mark.parametrize('eta, order', [(0.0, 2), (0.6, 1)])
def test_order_of_the_mean(eta, order):
  """The split is that of the diffusion of strength eta^2, to first order in the step."""
  def error(n):
    mean, _ = moments.gaussian_moments(samplers.make('res_multistep', grid(n), eta=eta), MEAN,
                                       VARIANCE)
    ratio = (VARIANCE + 0.1**2) / (VARIANCE + 10.0**2)
    return abs(mean - MEAN + MEAN * ratio**((1 + eta**2) / 2))
  assert np.log2(error(60) / error(120)) == pytest.approx(order, abs=0.1)


def test_noise_that_leaves_nothing_of_a_step():
  """A step to down = 0 is the denoised image and noise, and the one after it starts afresh."""
  table = samplers.make('res_multistep', [10.0, 1.0, 0.9, 0.5], eta=1.2)
  np.testing.assert_array_equal(table.mix[0, 0], [0, 0, 1])
  assert table.noise[0, 0] == 1.0 and table.mix[1, 0, 1] == 0 and table.mix[2, 0, 1] != 0
  with pytest.raises(ValueError, match='res_multistep: eta must be at most 1 where .*, got 1.2; b'):
    samplers.build('res_multistep', jnp.asarray([10.0, 1.0, 0.9]), eta=1.2)


def test_build_is_make_with_noise():
  sigmas, given = np.append(grid(4), 0.0), {'eta': 0.6, 's_noise': 1.1}
  made = samplers.make('res_multistep', sigmas, **given)
  built = jax.jit(lambda sigmas: samplers.build('res_multistep', sigmas, final_zero=True, **given))(
      jnp.asarray(sigmas))
  for field in ('mix', 'noise', 'interval'):
    np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('sigmas, options, message', [
    ([3.0, 1.0], {'eta': -1}, 'eta must be a finite number of at least 0, got -1; 0 is'),
    ([3.0, 1.0], {'s_noise': None}, 's_noise must be a finite number of at least 0, got None'),
    ([1.0, 3.0], {'eta': 0.5}, 'sigmas must decrease for a solver with noise')])
def test_bad_input(sigmas, options, message):
  with pytest.raises(ValueError, match='res_multistep: ' + message):
    samplers.make('res_multistep', sigmas, **options)
