"""GITS: costs, value tables and chosen steps against reference numbers, and laws of the search."""

import collections
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import gits
from tests import reference

# Small programs, of many shapes.
MANIFEST, ARRAYS = reference.load('gits')
CASES = {case['id']: case for case in MANIFEST['cases']}
DP_CASES = MANIFEST['dp_cases']
ROWS, SLOTS, BATCH, POINTS = 60, 6, 4, 21  # All tables, batches and grids fit in.
TOLERANCE = 1e-9  # The manifest's; states reach 80 times a few.
DENOISE = reference.mixture_denoiser(ARRAYS['mixture_gits'])


def arrays_of(name):
  return {key.split('/')[1]: value for key, value in ARRAYS['searches'].items()
          if key.startswith(name + '/')}


def options_of(name, case):
  known = samplers.options(name)
  return {option: value for option, value in {
      'max_order': case['max_order'], **case.get('options', {})}.items() if option in known}


@functools.cache
def compiled(limited):
  """Every row's state of a padded table: one program for all cases."""
  denoise = samplers.guidance.dynamic_threshold(DENOISE) if limited else DENOISE

  @jax.jit
  def states(table, x):
    table = dataclasses.replace(table, level=np.zeros(ROWS))  # All rows are looked at.
    return samplers.run(table, denoise, x, trajectory=True)[1]
  return states


def trajectory(table, x, limited):
  """The states at the grid points, as `samplers.run` gives them."""
  padded = np.resize(x, (BATCH, *x.shape[1:]))
  states = np.asarray(compiled(limited)(samplers.pad(table, ROWS, SLOTS), padded))
  points = np.flatnonzero(~np.isnan(table.level)) + 1
  return states[np.array([0, *points])][:, :len(x)]


def is_limited(name, case):
  """DPM-Solver++ on data predictions was published with dynamic thresholding."""
  return name == 'dpmpp' and case['options']['predict_x0']


@functools.cache
def solve(name):
  """Costs of a case, with what the teacher did in the last round."""
  case, arrays = CASES[name], arrays_of(name)
  sigmas, limited = arrays['t_teacher'], is_limited(case['teacher'], case)
  table = gits.teacher(case['teacher'], sigmas, afs=case['teacher_afs'], limited=limited,
                       **options_of(case['teacher'], case))
  rounds = []
  for z in arrays['z']:
    visited = trajectory(table, z * sigmas[0], limited)
    states, eps = np.concatenate([visited[:1], visited[1::2]]), visited[2::2]
    rounds.append(cost_matrix(states, eps, sigmas, case['metric']))
  return np.mean(rounds, axis=0), states, eps, table


def lengthened(function):
  """One program for all grids: the last state repeated changes neither chord nor jumps."""
  def call(states, eps, sigmas, *args):
    more, n = POINTS - len(states), len(states)
    states, sigmas = (np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1), mode='edge')
                      for array in (np.asarray(states), sigmas))
    eps = np.pad(eps, [(0, POINTS - len(eps))] + [(0, 0)] * 4)
    return np.asarray(function(states, eps, sigmas, *args))[..., :n, :n]
  return call


cost_matrix = lengthened(jax.jit(gits.cost_matrix, static_argnums=3))
costs = lengthened(jax.jit(gits.costs, static_argnums=3))
distance = jax.jit(gits.distance)


@jax.jit
def _deviation(states):
  return gits.deviation(states, states[0], states[-1])


def deviation(states):
  more = [states[-1:]] * (POINTS - len(states))
  return np.asarray(_deviation(np.concatenate([states, *more])))[:len(states)]


def close(ours, expected, tolerance=TOLERANCE):
  assert np.shape(ours) == expected.shape
  np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=tolerance)


# -- Reference numbers -----------------------------------------------------------------------------


def test_every_case_is_here():
  cases = CASES.values()
  assert len(CASES) == 15 and {case['kind'] for case in cases} == {'search'}
  assert collections.Counter(case['teacher'] for case in cases) == {
      'ipndm': 4, 'euler': 3, 'heun': 3, 'dpmpp': 2, 'deis': 1, 'dpm': 1, 'ipndm_v': 1}
  assert collections.Counter(case['metric'] for case in cases) == {'dev': 8, 'l1': 2, 'l2': 5}
  assert collections.Counter((case['afs'], case['teacher_afs']) for case in cases) == {
      (False, False): 9, (True, False): 4, (True, True): 2}
  assert sum(is_limited(case['teacher'], case) for case in cases) == 1
  assert len(DP_CASES) == 144 and sum(case['has_V'] for case in DP_CASES) == 48
  assert len(ARRAYS['dp']) == 144 + 48 + 4 and len(ARRAYS['metrics']) == 8


@pytest.mark.parametrize('name', CASES)
def test_teacher_costs_and_chosen_steps(name):
  case, arrays = CASES[name], arrays_of(name)
  cost, states, eps, table = solve(name)
  calls = 2 if case['teacher'] in ('heun', 'dpm') or is_limited(case['teacher'], case) else 1
  assert table.nfe == calls * (case['num_steps_tea'] - 1) - case['teacher_afs']
  close(states, arrays['teacher_traj_last'])
  close(eps, arrays['teacher_eps_last'])
  close(deviation(states)[1:-1].T, arrays['teacher_deviation_last'])
  close(cost, arrays['cost'])
  num_steps = case['num_steps'] - 1
  close(gits.values(cost, num_steps, case['coeff']), arrays['V'])
  indices = gits.search(cost, num_steps, case['coeff'])
  np.testing.assert_array_equal(indices, arrays['phi'])
  assert gits.objective(cost, indices, case['coeff']) == pytest.approx(
      arrays['V'][0, num_steps], rel=1e-11, abs=TOLERANCE)


@pytest.mark.parametrize('name', [name for name, case in CASES.items() if case['afs']])
def test_the_step_that_the_analytical_first_slope_pays_for(name):
  case, arrays = CASES[name], arrays_of(name)
  _, states, *_ = solve(name)
  candidates = gits.afs_candidates(arrays['phi'])
  np.testing.assert_array_equal(candidates[:, 1], arrays['afs_candidates'])
  distances = []
  for indices in candidates:
    end = sample(case, arrays['t_teacher'][indices], arrays['z'][-1])[-1]
    distances.append(np.mean(distance(end, states[-1])))
  close(np.array(distances), arrays['afs_distance'])
  np.testing.assert_array_equal(gits.insert_afs(arrays['phi'], distances), arrays['dp_list'])


@pytest.mark.parametrize('name', CASES)
def test_student_samples_on_the_chosen_grid(name):
  case, arrays = CASES[name], arrays_of(name)
  np.testing.assert_array_equal(arrays['t_teacher'][arrays['dp_list']], arrays['t_selected'])
  assert student(case, arrays['t_selected']).nfe == case['student_network_calls']
  close(sample(case, arrays['t_selected'], arrays['sample_z']), arrays['sample_traj'])


def student(case, sigmas):
  return samplers.make(case['student'], sigmas, afs=case['afs'],
                       **options_of(case['student'], case))


def sample(case, sigmas, z):
  return trajectory(student(case, sigmas), z * sigmas[0], is_limited(case['student'], case))


def test_all_metrics_of_one_trajectory():
  arrays = ARRAYS['metrics']
  states, eps = arrays['teacher_traj'], arrays['teacher_eps']
  close(deviation(states)[1:-1].T, arrays['deviation'])
  for metric in gits.METRICS:
    close(cost_matrix(states, eps, arrays['t_teacher'], metric), arrays[f'cost_{metric}'])
  longer = np.concatenate([eps, eps[:1] * np.nan])  # A slope at the last state has no use.
  close(jax.jit(gits.cost_matrix)(states, longer, arrays['t_teacher']), arrays['cost_dev'])


def test_dynamic_programme():
  for case in DP_CASES:
    arrays, steps = ARRAYS['dp'], case['num_steps'] - 1
    cost = arrays[f'{case["key"].split("/")[0]}/cost']
    np.testing.assert_array_equal(gits.search(cost, steps, case['coeff']),
                                  arrays[f'{case["key"]}/phi'], err_msg=case['id'])
    if case['has_V']:
      np.testing.assert_allclose(gits.values(cost, steps, case['coeff']),
                                 arrays[f'{case["key"]}/V'], rtol=1e-12, err_msg=case['id'])


def test_deis_coefficients_of_the_teacher_grid():
  arrays = arrays_of('g06')
  table = samplers.make('deis', arrays['t_teacher'], max_order=3)
  weights = np.zeros((table.nfe, 4))
  weights[:, 0] = -table.mix[:, 0, -1] * table.sigma  # The answer stands in eps, divided by sigma.
  weights[:, 1:3] = table.mix[:, 0, 1:3]
  published = arrays['deis_coeff_teacher']
  assert np.flatnonzero(~published.any(axis=1)).tolist() == [0]  # Zeros stand for Euler's step.
  np.testing.assert_allclose(weights[1:], published[1:], rtol=1e-8, atol=1e-9)
  np.testing.assert_allclose(weights[0, 0], np.diff(arrays['t_teacher'])[0], rtol=1e-12)


# -- Laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize('coeff', [0.7, 1.0, 1.3])
def test_search_is_the_best_of_all_ways(coeff):
  cost = np.random.default_rng(0).normal(0.5, 1.0, (9, 9))  # What is below the diagonal is no jump.
  for num_steps in range(1, 9):
    ways = [(0, *middle, 8) for middle in itertools.combinations(range(1, 8), num_steps - 1)]
    totals = [gits.objective(cost, way, coeff) for way in ways]
    found = gits.search(cost, num_steps, coeff)
    assert tuple(found) == ways[int(np.argmin(totals))]
    assert gits.values(cost, num_steps, coeff)[0, num_steps] == pytest.approx(min(totals))


def test_of_equal_ways_the_smallest_indices_win():
  np.testing.assert_array_equal(gits.search(np.zeros((6, 6)), 3, 1.15), [0, 1, 2, 5])


def test_coeff_gives_weight_to_late_jumps():
  sigmas = np.linspace(10, 0, 21)
  cost = np.square(sigmas[:, None] - sigmas)  # The plain sum is least for jumps of one size.
  first = [np.diff(gits.search(cost, 5, coeff))[0] for coeff in (0.7, 1.0, 1.4)]
  assert first[0] < first[1] == 4 < first[2]


def test_straight_trajectories_cost_nothing():
  """Where the denoiser always answers the same, every Euler jump is exact."""
  sigmas = np.array([9.0, 4.0, 1.0, 0.3])
  x = np.random.default_rng(0).normal(0, 9, (2, 4, 4, 3))
  table = gits.teacher('ipndm', sigmas)
  states, eps = jax.jit(lambda x: gits.follow(table, lambda x, sigma: 0 * x + 0.5, x))(x)
  np.testing.assert_allclose(eps, np.broadcast_to((x - 0.5) / 9, eps.shape), rtol=1e-12)
  for metric in gits.METRICS:  # The deviation is the root of a rounding error.
    np.testing.assert_allclose(costs(states, eps, sigmas, metric), 0, atol=1e-6)


def test_costs_of_samples_are_their_own():
  arrays = ARRAYS['metrics']
  states, eps = arrays['teacher_traj'], arrays['teacher_eps']
  every = costs(states, eps, arrays['t_teacher'])
  alone = costs(states[:, 2:3], eps[:, 2:3], arrays['t_teacher'])
  np.testing.assert_allclose(every[2:3], alone, rtol=1e-12, atol=1e-13)
  np.testing.assert_array_equal(np.tril(every), 0)


@pytest.mark.parametrize('solver, options, more', [
    ('euler', {}, 0), ('heun', {}, 0), ('unipc', {}, 4), ('dpmpp', {'limited': True}, 5)])
def test_slopes_are_those_of_the_states(solver, options, more):
  """UniPC has no evaluation of its corrected states, nor a limited denoiser of what came before."""
  sigmas = np.array([20.0, 8.0, 3.0, 1.0, 0.2, 0.0])
  raw = reference.gaussian_denoiser(std=0.5, mean=0.9)
  denoise = samplers.guidance.clip(raw) if options else raw
  table = gits.teacher(solver, sigmas, **options)
  plain = samplers.make(solver, sigmas)
  assert table.nfe == plain.nfe + more
  x = np.random.default_rng(1).normal(0, 20, (2, 2, 2, 3))

  @jax.jit
  def follow(x):
    return gits.follow(table, denoise, x), samplers.run(plain, denoise, x, trajectory=True)[1]
  (states, eps), expected = jax.tree.map(np.asarray, follow(x))
  np.testing.assert_allclose(states, expected, rtol=1e-12, atol=1e-13)
  for state, slope, sigma in zip(states, eps, sigmas, strict=False):
    np.testing.assert_allclose(slope, (state - raw(state, sigma)) / sigma, rtol=1e-11, atol=1e-11)


# -- Bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize('call, message', [
    (lambda: gits.search(np.zeros((4, 4)), 4), 'num_steps must be an integer from 1 to 3, .* 4;'),
    (lambda: gits.search(np.zeros((4, 4)), 0), 'num_steps must be .* got 0'),
    (lambda: gits.search(np.zeros((4, 4)), 2.0), 'num_steps must be .* got 2.0'),
    (lambda: gits.search(np.zeros((4, 4)), 2, 0.0), 'coeff must be a finite number .* got 0.0'),
    (lambda: gits.search(np.zeros((4, 3)), 2), r'cost must have shape .* got \(4, 3\)'),
    (lambda: gits.search(np.full((4, 4), np.nan), 2), 'cost must be finite, got nan from 0 to 1'),
    (lambda: gits.insert_afs([0, 3, 5], [1.0]), r'one for each of 2 candidates, got shape \(1,\)'),
    (lambda: gits.costs(jnp.zeros((3, 1, 2, 2, 1)), jnp.zeros((1, 1, 2, 2, 1)), np.ones(3)),
     'states, eps and sigmas must have n . 1, n and n . 1 entries'),
    (lambda: gits.costs(jnp.zeros((3, 1, 2, 2, 1)), jnp.zeros((2, 1, 2, 2, 1)), np.ones(3), 'l3'),
     "unknown metric 'l3'.* known: dev, l1, l2"),
    (lambda: gits.teacher('ddim', [3.0, 1.0], eta=1.0), 'must follow the ODE, got ddim, which'),
    (lambda: gits.teacher('dpm_fast', [9.0, 3.0, 1.0]), 'from each level to the next, got dpm'),
    (lambda: gits.teacher('ipndm', [3.0, 1.0], denoise_to_zero=True), 'from each level to'),
    (lambda: gits.teacher('dpm_adaptive', [3.0, 1.0]), 'dpm_adaptive: must be called'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
