"""SEEDS and its deterministic counterparts: recorded runs, relations to other solvers, bad input.

The reference numbers are those of the corrected method: the published code's where they are right.
"""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from tests import reference
from tests.samplers.seeds_cases import make, over_predictions, over_variants, same_table

MANIFEST, ARRAYS = reference.load('seeds')
CASES = {case['id']: case for case in MANIFEST['cases']}
EXPONENTIAL = {name: case for name, case in CASES.items() if case['solver'] != 'rk'}
BASELINE = {name: case for name, case in CASES.items() if case['solver'] == 'rk'}

DENOISE = reference.mixture_denoiser(ARRAYS['mixture_visible'])


# -- Recorded runs --------------------------------------------------------------------------------


def test_every_case_is_here():
  assert len(CASES) == 84
  kinds = collections.Counter((case['solver'], case['form'], case['noise'])
                              for case in EXPONENTIAL.values())
  assert kinds == {
      ('etd-erk', 'eps', None): 12, ('etd-erk', 'data', None): 11, ('etd-erk', 'F', None): 8,
      ('etd-serk', 'eps', 'gaussian'): 12, ('etd-serk', 'data', 'gaussian'): 13,
      ('etd-serk', 'F', 'gaussian'): 8, ('etd-serk', 'eps', 'discrete'): 3,
      ('etd-serk', 'data', 'discrete'): 2, ('etd-serk', 'F', 'discrete'): 1}
  kinds = collections.Counter((case['order'], bool(case['churn'])) for case in BASELINE.values())
  assert kinds == {
      (1, False): 4, (2, False): 7, (1, True): 1, (2, True): 2}
  assert not any(case['churn'] for case in EXPONENTIAL.values())


def arrays_of(name):
  return {key.split('.')[1]: value for key, value in ARRAYS['cases'].items()
          if key.startswith(name + '.')}


@jax.jit
def states_after_rows(table, x, bank):
  # Every row counts as the end of a step, so that tables share one program.
  table = samplers.Table(**{**vars(table), 'level': np.ones(reference.SHAPE[0])})
  return samplers.run(table, DENOISE, x, draw=lambda r, x: bank[r], trajectory=True)[1]


def replay(table, latents, bank=None):
  """States at the grid points, the result last, with the draws of a bank: one per row."""
  draws = np.zeros((reference.SHAPE[0], *latents.shape))
  if bank is not None:
    draws[:len(bank)] = bank
  x = jnp.asarray(latents * table.sigma[0])
  states = states_after_rows(samplers.pad(table, *reference.SHAPE), x, jnp.asarray(draws))
  return np.asarray(states)[np.append(0, 1 + np.flatnonzero(~np.isnan(table.level)))]


def scale(case, sigma):
  """s(t), by which the reference multiplies the states."""
  return 1 / np.sqrt(1 + np.square(sigma)) if case['scaling'] == 'vp' else np.ones_like(sigma)


@pytest.mark.parametrize('name', EXPONENTIAL)
def test_recorded_run(name):
  case, arrays = CASES[name], arrays_of(name)
  sigmas, atol = arrays['sigmas'], 1e-9 * max(1, case['max_abs_traj'])
  table = make(case, sigmas)
  assert table.nfe == case['nfe']
  assert np.any(table.noise, axis=1).sum() == case['draws_used'] - exhausted(case)
  # The published code has stage levels from times of the vp schedule, which costs it digits.
  np.testing.assert_allclose(reference.evaluation_levels(table), arrays['query_sigmas'],
                             rtol=2e-11 if case['schedule'] == 'vp' else 1e-12)
  inputs = ARRAYS['inputs']
  bank = inputs[f'noise_{case["noise"]}'] if case['stochastic'] else None
  states = replay(table, inputs['latents'], bank)
  s = scale(case, sigmas).reshape(-1, 1, 1, 1, 1)
  np.testing.assert_allclose(s * states, arrays['traj'], rtol=0, atol=atol)
  states = replay(make(case, sigmas, denoise_to_zero=True), inputs['latents'], bank)
  np.testing.assert_allclose(states[-1], arrays['denoised_last'], rtol=0, atol=atol)


def exhausted(case):
  """Draws that act over nothing: those after a stage at the end of its step."""
  return len(arrays_of(case['id'])['sigmas']) - 1 if case['stochastic'] and case['c2'] == 1 else 0


@pytest.mark.parametrize('name', BASELINE)
def test_recorded_baseline(name):
  """Runge-Kutta in t, in the coordinates of each schedule and scaling, with and without churn."""
  case, arrays = CASES[name], arrays_of(name)
  sigmas = np.append(arrays['sigmas'], 0.0)
  options = {'c': case['c2']} if case['order'] == 2 else {}
  if case['churn']:
    options |= case['churn']
    if case['net_class'] == 'iDDPMPrecond':
      options['round_levels'] = ARRAYS['inputs']['iddpm_u']
  table = samplers.make('rk', sigmas, order=case['order'], schedule=case['schedule'],
                        scaling=case['scaling'], sigma_min=case['sigma_min'],
                        sigma_max=case['sigma_max'], **options)
  assert table.nfe == case['nfe']
  drawn = np.any(table.noise, axis=1)
  assert drawn.any() == bool(case['churn'])
  np.testing.assert_allclose(reference.evaluation_levels(table), arrays['query_sigmas'], rtol=1e-9)
  # A draw per step: those of steps that are not raised go unused.
  step = np.append(0, np.cumsum(~np.isnan(table.level)))[:-1]
  draws = np.where(drawn[:, None, None, None, None],
                   ARRAYS['inputs']['churn_noise'][np.minimum(step, 8)], 0.0)
  states = replay(table, ARRAYS['inputs']['latents'], draws)
  s = scale(case, sigmas).reshape(-1, 1, 1, 1, 1)
  np.testing.assert_allclose(s * states, arrays['traj'], rtol=0,
                             atol=1e-9 * max(1, case['max_abs_traj']))


# -- Relations to other solvers -------------------------------------------------------------------


@pytest.mark.parametrize('last', [0.0, 0.02])
def test_first_order_with_data_prediction_is_ancestral_sampling(last):
  sigmas = [80.0, 10.0, 1.0, 0.3, last]
  first, second = samplers.make('seeds', sigmas, order=1), samplers.make('ddim', sigmas, eta=1.0)
  np.testing.assert_allclose(first.mix, second.mix, rtol=1e-12)
  np.testing.assert_allclose(first.noise, second.noise, rtol=1e-12)


def test_first_order_with_data_prediction_is_the_posterior_of_ddpm():
  """In x / sqrt(1 + sigma^2), where it is known by the alphas: Ho et al. 2020, Eq. 7."""
  sigmas = np.asarray([5.0, 2.0])
  alpha_bar, alpha_bar1 = 1 / (1 + sigmas**2)
  beta = 1 - alpha_bar / alpha_bar1
  table = samplers.make('seeds', sigmas, order=1)
  from_x = table.mix[0, 0, 0] * np.sqrt(alpha_bar1 / alpha_bar)
  assert from_x == pytest.approx(np.sqrt(1 - beta) * (1 - alpha_bar1) / (1 - alpha_bar), rel=1e-12)
  from_data = table.mix[0, 0, 1] * np.sqrt(alpha_bar1)
  assert from_data == pytest.approx(np.sqrt(alpha_bar1) * beta / (1 - alpha_bar), rel=1e-12)
  noise_weight = table.noise[0, 0] * np.sqrt(alpha_bar1)
  assert noise_weight**2 == pytest.approx((1 - alpha_bar1) / (1 - alpha_bar) * beta, rel=1e-12)


@pytest.mark.parametrize('prediction', ['data', 'noise'])
def test_first_order_without_noise_is_euler(prediction):
  sigmas = samplers.schedule('edm', 6, 0.002, 80.0)
  np.testing.assert_allclose(
      reference.linear_map(samplers.make('etd', sigmas, order=1, prediction=prediction)),
      reference.linear_map(samplers.make('euler', sigmas)), atol=1e-12)


@over_predictions
def test_names_of_a_tableau(prediction):
  sigmas = [3.0, 1.2, 0.5]
  for order in (2, 3):
    for letter in ('a', 'b'):
      named, short = (samplers.make('seeds', sigmas, order=order, prediction=prediction, butcher=b)
                      for b in (f'{order}{letter}', letter))
      same_table(named, short)
    plain = samplers.make('seeds', sigmas, order=order, prediction=prediction)
    same_table(plain, samplers.make('seeds', sigmas, order=order, prediction=prediction,
                                    butcher='a', c2=1 / order))


# -- Rows, draws and the end ----------------------------------------------------------------------


@over_predictions
@over_variants
def test_draws_of_a_step_share_its_interval(prediction, options):
  """Their intervals follow on each other and cover the grid once, whatever the nodes."""
  sigmas = samplers.schedule('polynomial', 5, 0.01, 80.0)
  table = samplers.make('seeds', sigmas, prediction=prediction, **options)
  used = table.interval[np.any(table.noise, axis=1)]
  assert len(used) == 5 * (options['order'] - (options.get('c2') == 1.0))
  np.testing.assert_array_equal(np.append(used[:, 0], used[-1, 1])[[0, -1]], sigmas[[0, -1]])
  np.testing.assert_array_equal(used[1:, 0], used[:-1, 1])
  assert np.all(used[:, 0] > used[:, 1])
  # A row that draws over nothing names no interval, or it would ask for an empty increment.
  idle = ~np.any(table.noise, axis=1)
  assert np.isnan(table.interval[idle]).all()


@pytest.mark.parametrize('name, prediction', [('seeds', 'data'), ('etd', 'data'), ('etd', 'noise'),
                                              ('etd', 'F')])
@pytest.mark.parametrize('order', [1, 2, 3])
def test_a_last_level_of_0_is_the_final_denoise(name, prediction, order):
  sigmas = samplers.schedule('polynomial', 4, 0.05, 20.0)
  options = {'order': order, 'prediction': prediction}
  table = samplers.make(name, np.append(sigmas, 0.0), **options)
  other = samplers.make(name, sigmas, **options, denoise_to_zero=True)
  assert table.nfe == other.nfe == 4 * order + 1
  same_table(table, other)
  assert samplers.make(name, [20.0, 0.0], **options).nfe == 1


@pytest.mark.parametrize('name, prediction, gap', [
    ('seeds', 'data', 0), ('etd', 'data', 0), ('etd', 'noise', 0), ('etd', 'F', 0.1**2 / 3)])
def test_the_final_denoise_is_the_limit_of_order_1(name, prediction, gap):
  """All but F prediction: a step from 0.05 then keeps a share of the state, see `etd`."""
  table = samplers.make(name, [0.05, 1e-9], order=1, prediction=prediction)
  assert table.mix[0, 0, 0] == pytest.approx(gap, rel=0.02, abs=1e-7)
  assert table.mix[0, 0, 1] == pytest.approx(1, abs=1e-7 + gap)
  assert table.noise[0, 0] < 2e-9


# -- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, options, text', [
    ('seeds', {'order': 4}, 'seeds: order must be an integer from 1 to 3, got 4'),
    ('seeds', {'order': 0}, 'seeds: order must be an integer from 1 to 3, got 0'),
    ('seeds', {'order': 2.0}, 'seeds: order must be an integer from 1 to 3, got 2.0'),
    ('etd', {'order': 5}, 'etd: order must be an integer from 1 to 4, got 5'),
    ('seeds', {'prediction': 'eps'}, "seeds: unknown prediction 'eps'; known: F, data, noise"),
    ('etd', {'prediction': 'dta'}, "unknown prediction 'dta'; did you mean data"),
    ('seeds', {'butcher': 'c'}, "seeds: unknown butcher 'c'; known: 2a, 2b, a, b"),
    ('seeds', {'butcher': '3a'}, "seeds: unknown butcher '3a'"),
    ('etd', {'order': 3, 'butcher': '3c'}, "etd: unknown butcher '3c'"),
    ('seeds', {'order': 1, 'c2': 0.5}, 'seeds: c2 must be None at order 1'),
    ('etd', {'order': 4, 'butcher': 'b'}, 'etd: butcher must be None at order 4'),
    ('etd', {'order': 4, 'c2': '4'}, 'etd: c2 must be None at order 4'),
    ('seeds', {'c2': 0.0}, 'seeds: c2 must be above 0 and at most 1, got 0.0'),
    ('seeds', {'c2': 1.01}, 'seeds: c2 must be above 0 and at most 1, got 1.01'),
    ('etd', {'c2': float('nan')}, 'etd: c2 must be above 0 and at most 1, got nan'),
    ('seeds', {'order': 3, 'c2': 2 / 3}, 'seeds: c2 must be above 0 and below 2/3 at order 3'),
    ('seeds', {'order': 3, 'c2': -0.1}, 'seeds: c2 must be above 0 and below 2/3 at order 3'),
    ('etd', {'order': 3, 'c2': 'half'}, "c2 must be above 0 and below 2/3 .*, got 'half'"),
    ('seeds', {'order': 3, 'c2': 0.4, 'butcher': 'b'}, 'c2 must be 1/3 with butcher b at order 3'),
    ('seeds', {'prediction': 'F', 'sigma_data': 0.0}, 'sigma_data must be a finite number above 0'),
])
def test_options_out_of_range(name, options, text):
  with pytest.raises(ValueError, match=text):
    samplers.make(name, [3.0, 1.2, 0.5], **options)


@pytest.mark.parametrize('prediction', ['noise', 'F'])
def test_sde_steps_to_0_need_data_prediction(prediction):
  with pytest.raises(ValueError, match=f'seeds: sigmas must end above 0 with {prediction} '
                     'prediction, got a last level 0; end at sigma_min and add denoise_to_zero'):
    samplers.make('seeds', [3.0, 1.2, 0.0], prediction=prediction)


def test_inversion_is_for_the_deterministic_ones():
  rising = [0.05, 0.4, 3.0]
  with pytest.raises(ValueError, match='seeds: sigmas must decrease for a solver with noise'):
    samplers.make('seeds', rising)
  there = samplers.make('etd', np.geomspace(0.05, 3.0, 41), order=3, prediction='F')
  x = np.full((1, 1, 1, 1), 0.7)
  end = reference.gaussian_flow(x, 0.05, 3.0, 0.3, 0.4)
  ours = samplers.run(there, reference.gaussian_denoiser(0.3, 0.4), jnp.asarray(x))
  np.testing.assert_allclose(ours, end, rtol=1e-4)
