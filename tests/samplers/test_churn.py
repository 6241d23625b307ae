"""Churn: recorded runs of EDM's samplers and k-diffusion's, the law of its noise, bad input."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import levels as levels_lib, moments, noise as noise_lib, table as table_lib
from tests import reference
from tests.samplers import replay, test_parity

EDM, EDM_ARRAYS = test_parity.EDM, test_parity.EDM_ARRAYS
KD, KD_ARRAYS = test_parity.KD, test_parity.KD_ARRAYS
EDM_CASES = {case['id']: case for case in EDM['cases'] if case['options'].get('S_churn')}
KD_CASES = {case['id']: case for case in KD['cases'] if case['options'].get('s_churn')}

SOLVERS = 'euler', 'heun', 'edm', 'dpm', 'rk'
GRID = samplers.schedule('edm', 6, 0.01, 20.0)
DATA = reference.gaussian_denoiser(0.5, 0.7)
every_solver = pytest.mark.parametrize('name', SOLVERS)


# -- Recorded runs --------------------------------------------------------------------------------


def test_every_case_with_churn_is_here():
  assert collections.Counter(case['function'] for case in EDM_CASES.values()) == {
      'edm_sampler': 7, 'ablation_sampler': 6}
  assert set(EDM_CASES) | set(test_parity.EDM_CASES) == {case['id'] for case in EDM['cases']}
  assert len(EDM['cases']) == 67
  assert collections.Counter(case['function'] for case in KD_CASES.values()) == {
      'sample_euler': 2, 'sample_heun': 2, 'sample_dpm_2': 2}


def linear_map(table, events):
  """The sampler as a matrix on the latent, then the answers (D) and the draws (N) of `events`.

  The original draws once per step, also where its factor is 0: that column is zero here.
  """
  answers, draws = ([i + 1 for i, event in enumerate(events) if event == kind] for kind in 'DN')
  state = np.zeros((table.slots, 1 + len(events)))
  state[0, 0] = table.sigma[0]
  inputs = []
  for kind, mix, noise, step in zip(table.kind, table.mix, table.noise,
                                    replay.steps_of_rows(table), strict=True):
    answer = np.zeros((1, state.shape[1]))
    if kind == table_lib.DENOISE:
      answer[0, answers[len(inputs)]] = 1
      inputs.append(state[0])
    state = mix @ np.concatenate([state, answer])
    state[:, draws[step]] += noise
  return np.stack([*inputs, state[0]])


def check(table, case, arrays, inputs, denoise):
  """Evaluations, coefficients and samples of a recorded run; the manifest's tolerance."""
  assert table.nfe == case['nfe'] and case['events'].count('N') == case['noise_draws']
  # Where an original takes levels through exp(.) - 1, its tolerance is larger than 1e-9.
  np.testing.assert_allclose(reference.evaluation_levels(table), arrays['eval_sigma'],
                             rtol=1e-12 * case['atol'] / 1e-9)
  expected = arrays['linear_map']
  np.testing.assert_allclose(linear_map(table, case['events']), expected, rtol=0,
                             atol=case['atol'] * max(1, np.abs(expected).max()))
  x = jnp.asarray(inputs['latents'] * table.sigma[0])
  np.testing.assert_allclose(replay.sample(table, denoise, x, inputs['noise']), arrays['final'],
                             rtol=0, atol=case['atol'])
  return x


def arrays_of(arrays, name):
  return {key.split('/')[1]: value for key, value in arrays.items() if key.startswith(f'{name}/')}


@pytest.mark.parametrize('name', EDM_CASES)
def test_edm(name):
  """Both samplers, the general one in the time of every schedule; rounding to iDDPM's levels."""
  case = EDM_CASES[name]
  check(test_parity.edm_table(case), case, arrays_of(EDM_ARRAYS['cases'], name),
        EDM_ARRAYS['latents'], test_parity.denoiser('edm', 'mixture'))


@pytest.mark.parametrize('name', KD_CASES)
def test_k_diffusion(name):
  case, arrays = KD_CASES[name], arrays_of(KD_ARRAYS['cases'], name)
  given, inputs = case['options'], KD_ARRAYS['latents']
  solver, _ = test_parity._KD_NAMES[case['function']]
  table = samplers.make(
      solver, KD_ARRAYS['cases'][f'grid/{case["grid"]}'], S_churn=given['s_churn'],
      S_min=given['s_tmin'], S_max=float(given['s_tmax']), S_noise=given['s_noise'])
  denoise = test_parity.denoiser('kd', 'mixture')
  x = check(table, case, arrays, inputs, denoise)
  if 'states' in arrays:
    before = replay.trajectory(table, denoise, x, inputs['noise'])[:-1]
    weights = np.zeros(len(before))  # The original reports states with the noise of the churn.
    weights[replay.steps_of_rows(table)[table.kind == table_lib.NOTHING]] = (
        table.noise[table.kind == table_lib.NOTHING, 0])
    after = before + weights.reshape(-1, 1, 1, 1, 1) * inputs['noise'][:len(before)]
    np.testing.assert_allclose(after, arrays['states'], rtol=1e-11, atol=case['atol'])


def test_states_of_k_diffusion_are_compared():
  assert sum('states' in case['arrays'] for case in KD_CASES.values()) == 2


# -- The law of the noise -------------------------------------------------------------------------


def fields_equal(first, second):
  for field in ('sigma', 'kind', 'mix', 'noise', 'level', 'interval'):
    np.testing.assert_array_equal(getattr(first, field), getattr(second, field), err_msg=field)


@every_solver
def test_no_churn_is_the_plain_solver(name):
  """Bit for bit, on the host and traced: off, or on for levels that the grid does not have."""
  plain = samplers.make(name, GRID)
  assert not plain.noise.any() and plain.nfe == plain.rows
  fields_equal(samplers.make(name, GRID, S_churn=0, S_min=1.0, S_noise=2.0), plain)
  fields_equal(samplers.make(name, GRID, S_churn=40.0, S_min=100.0), plain)
  assert samplers.build(name, jnp.asarray(GRID), S_churn=0.0).rows == plain.rows
  idle = samplers.build(name, jnp.asarray(GRID), S_churn=40.0, S_min=100.0)
  assert idle.rows == plain.rows + 6 and not idle.noise.any()
  x = jnp.full((1, 1, 1, 1), 13.0)
  ends = [replay.sample(jax.tree.map(np.asarray, table), DATA, x, np.ones((6, 1, 1, 1, 1)))
          for table in (idle, samplers.build(name, jnp.asarray(GRID)))]
  np.testing.assert_array_equal(*ends)


@every_solver
@pytest.mark.parametrize('S_churn, gamma', [(0.06, 0.01), (1.5, 0.25), (40.0, 2**0.5 - 1)])
def test_added_variance(name, S_churn, gamma):
  """sigma_hat^2 - sigma^2, times S_noise^2; the next evaluation is at sigma_hat."""
  table = samplers.make(name, GRID, S_churn=S_churn, S_noise=1.1)
  rows = np.flatnonzero(table.kind == table_lib.NOTHING)
  np.testing.assert_array_equal(table.sigma[rows], GRID[:-1])
  np.testing.assert_allclose(table.sigma[rows + 1], GRID[:-1] * (1 + gamma), rtol=1e-15)
  np.testing.assert_allclose(
      table.noise[rows, 0]**2, 1.21 * (table.sigma[rows + 1]**2 - GRID[:-1]**2), rtol=1e-14)
  assert not table.noise[:, 1:].any() and np.isnan(table.level[rows]).all()
  assert np.isnan(table.interval).all()  # No stretch of decreasing levels: drawn by row number.
  np.testing.assert_array_equal(np.delete(table.noise, rows, axis=0), 0)
  np.testing.assert_array_equal(table.level[~np.isnan(table.level)], GRID[1:])
  assert table.nfe == samplers.make(name, GRID).nfe


@every_solver
def test_levels_outside_the_limits_stay(name):
  """S_min and S_max are themselves inside."""
  table = samplers.make(name, GRID, S_churn=2.0, S_min=GRID[3], S_max=GRID[1])
  np.testing.assert_array_equal(table.sigma[table.kind == table_lib.NOTHING], GRID[1:4])


@pytest.mark.parametrize('name, order', [('euler', 1), ('heun', 2), ('dpm', 2), ('rk', 2)])
def test_moments_converge_to_those_of_the_data(name, order):
  """Noise and its removal balance: on Gaussian data, mean and variance at the last level."""
  mean, variance, last = 0.7, 0.25, 0.1

  def errors(n):
    table = samplers.make(name, samplers.schedule('polynomial', n, last, 20.0), S_churn=10.0)
    assert (table.kind == table_lib.NOTHING).sum() == n
    end = moments.gaussian_moments(table, mean, variance, start=(mean, variance + 400))
    return np.abs(np.subtract(end, (mean, variance + last**2)))

  assert errors(800)[1] < 2e-2 * variance
  assert np.log2(errors(400)[1] / errors(800)[1]) == pytest.approx(order, abs=0.25)


def test_rk_of_the_plain_schedule_is_heun():
  options = {'S_churn': 5.0, 'S_min': 0.05, 'S_max': 10.0, 'S_noise': 1.003}
  heun, edm, rk = (samplers.make(name, GRID, **options) for name in ('heun', 'edm', 'rk'))
  fields_equal(heun, edm)
  np.testing.assert_allclose(rk.noise, heun.noise, rtol=1e-15)
  np.testing.assert_allclose(reference.linear_map(rk), reference.linear_map(heun), atol=1e-12)


@pytest.mark.parametrize('schedule, scaling', [('vp', 'vp'), ('vp', 'none'), ('ve', 'vp')])
def test_noise_does_not_depend_on_the_scaling(schedule, scaling):
  plain = samplers.make('rk', GRID, S_churn=5.0)
  other = samplers.make('rk', GRID, S_churn=5.0, schedule=schedule, scaling=scaling)
  np.testing.assert_array_equal(other.noise, plain.noise)
  churn = plain.kind == table_lib.NOTHING
  np.testing.assert_array_equal(other.mix[churn], plain.mix[churn])


# -- Rounding to a network's levels ---------------------------------------------------------------


def test_raised_levels_are_those_of_the_network():
  known = np.append(np.geomspace(100.0, 0.001, 400), 0.0)
  sigmas = samplers.schedule('edm', 6, 0.01, 20.0, levels=known)
  table = samplers.make('heun', sigmas, S_churn=1.0, round_levels=known)
  assert np.isin(table.sigma, known).all()
  rows = np.flatnonzero(table.kind == table_lib.NOTHING)
  assert len(rows) == 6
  raised = table.sigma[rows + 1]
  nearest = levels_lib.round_to_levels(sigmas[:-1] * (1 + 1 / 6), known)
  np.testing.assert_array_equal(raised, nearest)
  np.testing.assert_allclose(table.noise[rows, 0]**2, raised**2 - sigmas[:-1]**2, rtol=1e-14)
  text = ','.join(map(str, known))  # As a config has it.
  fields_equal(samplers.make('heun', sigmas, S_churn=1.0, round_levels=text), table)


def test_a_level_that_rounding_does_not_raise_stays():
  """Neither noise without a higher level nor, on a grid that was not rounded, a lower level."""
  sigmas, known = [8.0, 2.6, 0.5, 0.0], [8.0, 2.0, 0.6]
  table = samplers.make('euler', sigmas, S_churn=0.3, round_levels=known)  # 8.8, 2.86, 0.55.
  assert table.rows == 4
  np.testing.assert_allclose(table.sigma, [8.0, 2.6, 0.5, 0.6])
  np.testing.assert_allclose(table.noise[:, 0]**2, [0, 0, 0.6**2 - 0.5**2, 0])


# -- Programs -------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['euler', 'heun'])
def test_padding_changes_nothing_bit_for_bit(name):
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 2, 1)) * 20)
  keys = jax.random.split(jax.random.key(3), 2)

  @reference.as_users_do
  def run(table, keys):
    return samplers.run(table, DATA, x, draw=noise_lib.by_row(keys))

  table = samplers.make(name, GRID, S_churn=4.0, S_max=5.0)
  padded = samplers.pad(table, table.rows + 5, table.slots + 1)
  plain = run(table, keys)
  np.testing.assert_array_equal(plain, run(padded, keys))
  assert np.abs(plain - run(table, keys[::-1])).max() > 1e-3


@every_solver
def test_a_traced_grid_gives_the_same_samples(name):
  """Its table has a row for every step; draws are told by step, not by row."""
  options = {'S_churn': 2.0, 'S_min': 0.05, 'S_max': 5.0, 'S_noise': 1.003}
  if name == 'edm':
    options['round_levels'] = np.geomspace(100.0, 0.001, 300)
  made = samplers.make(name, GRID, **options)
  built = jax.tree.map(np.asarray, samplers.build(name, jnp.asarray(GRID), **options))
  assert built.rows == made.nfe + 6 > made.rows
  x, noise = jnp.full((2, 1, 1, 1), 13.0), np.random.default_rng(2).standard_normal((6, 2, 1, 1, 1))
  ends = [replay.sample(table, DATA, x, noise) for table in (made, built)]
  np.testing.assert_allclose(*ends, rtol=1e-11)


@pytest.mark.parametrize('name', ['heun', 'rk'])
def test_gradients(name):
  """With respect to the amount and the grid, also where a traced step is not raised."""
  x = jnp.full((1, 1, 1, 1), 13.0)
  levels = np.array([20.0, 3.0, 0.5, 0.02, 0.01])  # Raised: the second and the third.

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1))
  def end(S_churn, second):
    table = samplers.build(name, jnp.asarray(levels).at[1].set(second), S_churn=S_churn,
                           S_min=0.05, S_max=15.0)
    return samplers.run(table, DATA, x, draw=lambda r, x: jnp.ones_like(x)).sum()

  def slope(at, change):
    up, down = (end(*(a + sign * c for a, c in zip(at, change, strict=True)))[0].item()
                for sign in (1, -1))
    return (up - down) / (2 * sum(change))

  at = (1.2, 3.0)
  by_amount, by_level = end(*at)[1]
  assert by_amount.item() == pytest.approx(slope(at, (1e-5, 0.0)), rel=1e-6)
  assert by_level.item() == pytest.approx(slope(at, (0.0, 1e-5)), rel=1e-6)
  assert np.isfinite(end(0.0, 3.0)[1]).all()  # The true slope has no bound there.


# -- Bad input ------------------------------------------------------------------------------------


@every_solver
@pytest.mark.parametrize('options, message', [
    ({'S_churn': -1.0}, r'S_churn must be a finite number >= 0, got -1.0; 0 is no churn'),
    ({'S_churn': float('nan')}, 'S_churn must be a finite number >= 0, got nan'),
    ({'S_churn': 'much'}, "S_churn must be a finite number >= 0, got 'much'"),
    ({'S_min': -0.1}, 'S_min must be a finite number >= 0, got -0.1; 0 is no lower limit'),
    ({'S_min': 2.0, 'S_max': 1.0}, 'S_max must not be below S_min = 2, got 1.0; inf is no upper'),
    ({'S_max': float('nan')}, 'S_max must not be below S_min = 0, got nan'),
    ({'S_noise': float('inf')}, 'S_noise must be a finite number >= 0, got inf; 1 keeps'),
    ({'round_levels': []}, 'round_levels must be a list of finite numbers >= 0, one of them '),
    ({'round_levels': [1.0, -1.0]}, 'round_levels must be a list of finite numbers >= 0'),
    ({'round_levels': 'iddpm'}, r'round_levels must be a list of numbers, got \[.iddpm.\]'),
])
def test_bad_options(name, options, message):
  with pytest.raises(ValueError, match=f'^{name}: {message}'):
    samplers.make(name, GRID, **options)


@every_solver
def test_an_increasing_grid_has_no_churn(name):
  rising = GRID[-2::-1]
  assert samplers.make(name, rising).nfe >= 5
  with pytest.raises(ValueError, match=f'^{name}: sigmas must decrease for a solver with noise'):
    samplers.make(name, rising, S_churn=1.0)
  # Noise at the lowest level alone, from which a decreasing grid has no step.
  with pytest.raises(ValueError, match=f'^{name}: S_churn must be 0 on an increasing grid'):
    samplers.make(name, rising, S_churn=1.0, S_max=rising[0])


def test_first_step_for_free_starts_where_no_noise_is_added():
  table = samplers.make('heun', GRID, afs=True, S_churn=2.0, S_max=10.0)
  assert table.nfe == samplers.make('heun', GRID).nfe - 1
  with pytest.raises(ValueError, match='^afs: the table must start with an evaluation'):
    samplers.make('heun', GRID, afs=True, S_churn=2.0)
