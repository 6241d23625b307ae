"""SEEDS and exponential Heun with noise of any strength: recorded runs, weak orders, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments
from tests.samplers import beyond_cases
from tests.samplers.seeds_cases import same_table

MEAN, VARIANCE = 0.4, 0.09
LETTERS = {'phi_1': 'a', 'phi_2': 'b'}
SECOND, THIRD, HEUN = (beyond_cases.family(name) for name in (
    'seeds2_eta', 'seeds3_eta', 'exp_heun_2_x0'))


# -- Recorded runs --------------------------------------------------------------------------------


def test_every_case_is_here():
  assert (len(SECOND), len(THIRD), len(HEUN)) == (3, 2, 3)


def make(case):
  sigmas, given = beyond_cases.grid(case), case['options']
  if case['family'] == 'exp_heun_2_x0':
    return samplers.make('exp_heun', sigmas, **given)
  if case['family'] == 'seeds2_eta':
    return samplers.make('seeds', sigmas, c2=given['r'], butcher=LETTERS[given['solver']],
                         eta=given['eta'])
  return samplers.make('seeds', sigmas, order=3, c2=given['r1'], c3=given['r2'], eta=given['eta'])


@pytest.mark.parametrize('name', [*SECOND, *THIRD, *HEUN])
def test_recorded_run(name):
  case = beyond_cases.CASES[name]
  table = make(case)
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


# -- Orders ---------------------------------------------------------------------------------------


def exact_moments(eta, first, last):
  """Of the diffusion of strength eta from N(0, first^2), on Gaussian data."""
  ratio = (VARIANCE + last**2) / (VARIANCE + first**2)
  latent = ratio**((1 + eta) / 2)
  return MEAN - MEAN * latent, (first * latent)**2 + (VARIANCE + last**2) * (1 - ratio**eta)


def errors(name, n, eta, options):
  table = samplers.make(name, samplers.schedule('polynomial', n, 0.15, 1.5), eta=eta, **options)
  return np.abs(np.subtract(moments.gaussian_moments(table, MEAN, VARIANCE),
                            exact_moments(eta, 1.5, 0.15)))


@pytest.mark.parametrize('eta', [0.3, 0.7])
@pytest.mark.parametrize('name, options, orders', [
    *[('seeds', {'prediction': given, **options}, (p, min(p, 2))) for given in ('data', 'noise')
      for p, options in ((1, {'order': 1}), (2, {}), (2, {'butcher': 'b', 'c2': 0.3}),
                         (3, {'order': 3}), (3, {'order': 3, 'butcher': 'b'}),
                         (2, {'order': 3, 'c2': 0.25, 'c3': 0.8}))],
    ('exp_heun', {}, (2, 2))], ids=str)
def test_weak_order(name, options, orders, eta):
  """Of mean and variance; the noise, read at the nodes only, leaves the variance at most 2."""
  coarse, fine = errors(name, 80, eta, options), errors(name, 160, eta, options)
  np.testing.assert_allclose(np.log2(coarse / fine), orders, atol=0.2)


@pytest.mark.parametrize('prediction', ['data', 'noise'])
@pytest.mark.parametrize('options', [
    {'order': 1}, {'c2': 0.3}, {'c2': 1.0, 'butcher': 'b'}, {'order': 3, 'c2': 0.25, 'c3': 0.9},
    {'order': 3, 'c3': 1.0}], ids=str)
def test_draws_of_a_step_add_up(prediction, options):
  """With D = 0, or eps = 0, at all stages what is left is the exact integral of the noise."""
  eta, a, b = 0.6, 3.0, 1.2
  table = samplers.make('seeds', [a, b], prediction=prediction, eta=eta, **options)
  variance = 0.0
  for mix, noise in zip(table.mix, table.noise, strict=True):
    factor = mix[0, 0] if prediction == 'data' else 1.0  # Without eps a state stays as it is.
    variance = factor**2 * variance + noise[0]**2
  exact = b**2 * (1 - (b / a)**(2 * eta)) if prediction == 'data' else eta * (a**2 - b**2)
  assert variance == pytest.approx(exact, rel=1e-12)
  assert not table.noise[:, 1:].any()


# -- Relations ------------------------------------------------------------------------------------


@pytest.mark.parametrize('prediction', ['data', 'noise', 'F'])
@pytest.mark.parametrize('options', [{}, {'order': 3, 'butcher': 'b'}], ids=str)
def test_without_noise_seeds_is_etd(prediction, options):
  for sigmas in ([20.0, 5.0, 1.0, 0.3], [20.0, 5.0, 1.0, 0.0], [0.3, 1.0, 5.0]):
    ours = samplers.make('seeds', sigmas, eta=0.0, prediction=prediction, **options)
    assert not ours.noise.any() and np.isnan(ours.interval).all()
    same_table(ours, samplers.make('etd', sigmas, prediction=prediction, **options))


@pytest.mark.parametrize('prediction', ['data', 'noise'])
def test_little_noise_changes_little(prediction):
  sigmas = [20.0, 5.0, 1.0, 0.3]
  ours, none = (samplers.make('seeds', sigmas, order=3, eta=eta, prediction=prediction)
                for eta in (1e-10, 0.0))
  np.testing.assert_allclose(ours.mix, none.mix, rtol=0, atol=1e-8)
  assert 0 < ours.noise[:, 0].max() < 1e-3


def test_exponential_heun_is_a_member_of_seeds():
  """One draw per step, whose two stages share it."""
  sigmas = [20.0, 5.0, 1.0, 0.3, 0.0]
  ours = samplers.make('exp_heun', sigmas, eta=0.4)
  same_table(ours, samplers.make('seeds', sigmas, c2=1.0, butcher='b', eta=0.4))
  np.testing.assert_array_equal(ours.noise[:, 0] > 0, [True, False] * 3 + [False])
  np.testing.assert_array_equal(ours.interval[:6:2], list(zip(sigmas, sigmas[1:4], strict=False)))


def test_slots_are_for_half_of_the_stages():
  for name, order, slots in (('seeds', 1, 1), ('seeds', 2, 2), ('seeds', 3, 2), ('etd', 4, 3)):
    assert samplers.make(name, [3.0, 1.0, 0.2], order=order).slots == slots


def test_gradient_with_respect_to_noise_and_nodes():
  """That of a function of the traced tables, against differences of tables made on the host."""
  sigmas = np.array([5.0, 1.0, 0.2])

  def summary(maker, at, xp):
    tables = [maker('seeds', xp.asarray(sigmas), order=3, prediction=given, eta=at[0], c2=at[1],
                    c3=at[2]) for given in ('data', 'noise')]
    return sum(xp.sum(part * np.cos(np.arange(part.size)).reshape(part.shape))
               for table in tables for part in (table.sigma, table.mix, table.noise))

  at, step = np.array([0.5, 0.3, 0.7]), 1e-5
  gradient = jax.jit(jax.grad(lambda at: summary(samplers.build, at, jnp)))(jnp.asarray(at))
  for slope, unit in zip(gradient, np.eye(3), strict=True):
    high, low = (summary(samplers.make, at + side * step * unit, np) for side in (1, -1))
    assert slope.item() == pytest.approx((high - low) / (2 * step), rel=1e-6, abs=1e-8)


# -- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, options, message', [
    ('seeds', {'eta': -1.0}, 'eta must be a finite number of at least 0, got -1.0; 0 is'),
    ('exp_heun', {'eta': 'x'}, "eta must be a finite number of at least 0, got 'x'; 0 is"),
    ('seeds', {'eta': 0.5, 'prediction': 'F'}, 'eta must be 0 or 1 with F prediction, got 0.5; t'),
    ('seeds', {'c3': 0.7}, 'c3 must be None at order 2, which has no third node, got 0.7; leave'),
    ('seeds', {'order': 3, 'c3': 1.2}, 'c3 must be above 0 and at most 1, got 1.2; 2/3 is of ord'),
    ('seeds', {'order': 3, 'c3': '1'}, "c3 must be above 0 and at most 1, got '1'; 2/3 is of ord"),
    ('etd', {'order': 3, 'c2': 0.6, 'c3': 0.5}, 'c2 must be above 0 and below 0.5 at order 3'),
    ('etd', {'order': 3, 'c3': 0.5, 'butcher': 'b'}, 'c3 must be 2/3 with butcher b at order 3')])
def test_options_out_of_range(name, options, message):
  with pytest.raises(ValueError, match=f'{name}: {message}'):
    samplers.make(name, [3.0, 1.2, 0.5], **options)


def test_inversion_needs_no_noise():
  assert samplers.make('exp_heun', [0.1, 0.5, 2.0]).nfe == 4
  with pytest.raises(ValueError, match='exp_heun: sigmas must decrease for a solver with noise'):
    samplers.make('exp_heun', [0.1, 0.5, 2.0], eta=0.5)
