"""DPM-Solver++ and DPM-Solver with noise of any strength: recorded runs, orders, identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments
from tests import reference
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('dpm_solver_multistep')
MEAN, VARIANCE = 0.7, 0.25
over_predictions = pytest.mark.parametrize('data', [True, False], ids=['data', 'noise'])
over_types = pytest.mark.parametrize('solver_type', ['midpoint', 'heun'])


def grid(n, low=0.1, high=10.0):
  return samplers.schedule('polynomial', n, low, high)


# -- Recorded runs --------------------------------------------------------------------------------


def test_every_case_is_here():
  assert len(FAMILY) == 14
  assert sum(case['options'].get('third') == 'exact' for case in FAMILY.values()) == 6


@pytest.mark.parametrize('name', FAMILY)
def test_recorded_run(name):
  case, given = FAMILY[name], FAMILY[name]['options']
  sigmas = beyond_cases.grid(case)
  table = samplers.make(
      'dpmpp', sigmas, max_order=given['max_order'], predict_x0=given['prediction'] == 'data',
      eta=given['eta'], solver_type=given['solver'], third=given.get('third', 'published'),
      lower_order_final=len(sigmas) <= 15)
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


# -- Orders ---------------------------------------------------------------------------------------


def exact_moments(eta, first, last):
  """Of the diffusion of strength eta from N(0, first^2), on Gaussian data."""
  ratio = (VARIANCE + last**2) / (VARIANCE + first**2)
  latent = ratio**((1 + eta) / 2)
  return MEAN - MEAN * latent, (first * latent)**2 + (VARIANCE + last**2) * (1 - ratio**eta)


@over_predictions
@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
@pytest.mark.parametrize('options', [
    {'solver_type': 'midpoint'}, {'solver_type': 'heun'}, {'max_order': 3},
    {'max_order': 3, 'third': 'exact'}], ids=str)
def test_weak_order_as_run(data, eta, options):
  """At least 2, of mean and variance: a first step of order 1 leaves that of higher orders."""
  def errors(n):
    table = samplers.make('dpmpp', grid(n), predict_x0=data, eta=eta, lower_order_final=False,
                          **options)
    return np.abs(np.subtract(moments.gaussian_moments(table, MEAN, VARIANCE),
                              exact_moments(eta, 10.0, 0.1)))
  coarse, fine = errors(60), errors(120)
  if (data, eta) == (True, 1.0):  # The posterior mean of Gaussian data is linear.
    assert max(coarse[0], fine[0]) < 1e-12
  else:
    assert np.log2(coarse[0] / fine[0]) > 1.8
  assert np.log2(coarse[1] / fine[1]) > 1.8


@pytest.mark.parametrize('options', [
    {'max_order': 1}, {'solver_type': 'heun'}, {'max_order': 3, 'third': 'exact'}], ids=str)
@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0, 1.7])
def test_noise_keeps_the_marginal_variance(eta, options):
  """Data that are one point: after every step the state has the variance of its level."""
  sigmas = grid(6)
  for end in range(2, 8):
    table = samplers.make('dpmpp', sigmas[:end], eta=eta, **options)
    mean, variance = moments.gaussian_moments(table, MEAN, 0.0, start=(MEAN, sigmas[0]**2))
    assert mean == pytest.approx(MEAN, rel=1e-12)
    assert variance == pytest.approx(sigmas[end - 1]**2, rel=1e-11)


# -- Identities -----------------------------------------------------------------------------------


def same_table(first, second):
  for field in ('sigma', 'mix', 'noise', 'level', 'interval'):
    np.testing.assert_allclose(getattr(first, field), getattr(second, field), rtol=1e-12,
                               atol=1e-13, err_msg=field)


@pytest.mark.parametrize('eta', [0.0, 0.6, 1.0])
@pytest.mark.parametrize('data', [True, False])
def test_order_1_is_seeds_of_order_1(data, eta):
  sigmas = [*grid(6, 0.05, 40.0), *([0.0] if data else [])]
  same_table(samplers.make('dpmpp', sigmas, max_order=1, predict_x0=data, eta=eta),
             samplers.make('seeds', sigmas, order=1, prediction='data' if data else 'noise',
                           eta=eta))


@over_types
@pytest.mark.parametrize('last', [0.0, 0.02])
def test_names_of_order_2(solver_type, last):
  sigmas, given = [*grid(6, 0.05, 40.0), last], {'eta': 0.7, 'solver_type': solver_type}
  same_table(samplers.make('dpmpp', sigmas, lower_order_final=False, **given),
             samplers.make('dpmpp_2m_sde', sigmas, **given))


def test_names_of_order_3():
  sigmas = grid(7, 0.05, 40.0)
  same_table(samplers.make('dpmpp', sigmas, max_order=3, eta=0.7, solver_type='heun',
                           lower_order_final=False),
             samplers.make('dpmpp_3m_sde', sigmas, eta=0.7))


@pytest.mark.parametrize('options, solver_type', [
    ({}, 'midpoint'), ({'max_order': 3}, 'midpoint'), ({'third': 'exact'}, 'midpoint'),
    ({'max_order': 3, 'third': 'exact'}, 'heun')], ids=str)
def test_form_of_order_2_that_none_stands_for(options, solver_type):
  """The published third order has midpoint steps at its ends, the exact one exact ones."""
  plain, named = (samplers.make('dpmpp', grid(6), **options, **more)
                  for more in ({}, {'solver_type': solver_type}))
  same_table(plain, named)


# -- Draws, inversion, gradients, bad input -------------------------------------------------------


@over_predictions
def test_draws_cover_the_grid_and_only_with_noise(data):
  for last in (0.1, 0.0):
    sigmas = np.append(grid(5)[:-1], last)
    table = samplers.make('dpmpp', sigmas, predict_x0=data, eta=0.5)
    pairs = np.stack([sigmas[:-1], sigmas[1:]], axis=1)
    drawn = table.noise[:, 0] > 0
    np.testing.assert_array_equal(drawn, sigmas[1:] > 0)
    np.testing.assert_array_equal(table.interval[drawn], pairs[drawn])
    quiet = samplers.make('dpmpp', sigmas, predict_x0=data)
    assert not quiet.noise.any() and np.isnan(quiet.interval).all()


@over_predictions
def test_a_step_to_0_is_the_denoised_image(data):
  table = samplers.make('dpmpp', [*grid(3), 0.0], max_order=3, predict_x0=data, eta=1.0,
                        lower_order_final=False)
  np.testing.assert_array_equal(table.mix[-1, 0], [0, 0, 0, 1])


@over_predictions
def test_inversion_is_for_no_noise(data):
  sigmas, options = np.geomspace(0.05, 10.0, 61), {'predict_x0': data, 'lower_order_final': False}
  x = 0.9
  table = samplers.make('dpmpp', sigmas, **options)
  mean, variance = moments.gaussian_moments(table, MEAN, VARIANCE, start=(x, 0.0))
  np.testing.assert_allclose(
      mean, reference.gaussian_flow(x, 0.05, 10.0, VARIANCE**0.5, MEAN), rtol=5e-3)
  assert variance == 0
  with pytest.raises(ValueError, match='dpmpp: sigmas must decrease for a solver with noise'):
    samplers.make('dpmpp', sigmas, eta=0.5, **options)


def test_gradient_with_respect_to_grid_and_noise():
  """That of a function of the traced tables, against differences of tables made on the host."""
  def summary(maker, at, xp):
    total = 0.0
    for data in (True, False):
      table = maker('dpmpp', at[:-1], eta=at[-1], max_order=3, third='exact', predict_x0=data,
                    lower_order_final=False)
      total += sum(xp.sum(part * np.cos(np.arange(part.size)).reshape(part.shape))
                   for part in (table.mix, table.noise))
    return total

  at, along, step = np.array([5.0, 2.0, 0.6, 0.2, 0.5]), np.array([0.3, -0.2, 0.1, 0.05, 0.4]), 1e-5
  gradient = jax.jit(jax.grad(lambda at: summary(samplers.build, at, jnp)))(jnp.asarray(at))
  high, low = (summary(samplers.make, p, np) for p in (at + step * along, at - step * along))
  assert gradient @ along == pytest.approx((high - low) / (2 * step), rel=1e-6)


@pytest.mark.parametrize('options, message', [
    ({'eta': -0.5}, 'eta must be a finite number of at least 0, got -0.5; 0 is deterministic'),
    ({'eta': 'x'}, "eta must be a finite number of at least 0, got 'x'"),
    ({'solver_type': 'taylor'}, "unknown solver_type 'taylor'; known: heun, midpoint"),
    ({'s_noise': 0.9}, "unknown option 's_noise'; ")])
def test_bad_options(options, message):
  with pytest.raises(ValueError, match='dpmpp: ' + message):
    samplers.make('dpmpp', grid(5), **options)
