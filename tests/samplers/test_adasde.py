"""AdaSDE: reference numbers with their noise, gradients through the draw, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import adasde, epd, learned, table as table_lib
from tests import reference
from tests.samplers import beyond_cases

CASES = beyond_cases.family('adasde')

GRID = samplers.schedule('polynomial', 2, 0.05, 10.0)
LATENTS = np.random.default_rng(0).standard_normal((4, 4, 4, 3))


@pytest.fixture(scope='module')
def denoise():
  return reference.mixture_denoiser(beyond_cases.ARRAYS['mixture'])


@pytest.fixture(scope='module')
def distance(denoise):
  """Mean square of the result and its gradient in (numbers, grid): one program for what follows."""
  def value(point, keys, x):
    numbers, sigmas = point
    design = learned.design('adasde', sigmas, num_points=2, gamma=0.5, afs=True)
    return jnp.mean(design.solve(numbers, denoise, x, keys)**2)
  return jax.jit(jax.value_and_grad(value))


def numbers_at_random(seed, points=2, count=2):
  rng = np.random.default_rng(seed)
  return {name: rng.standard_normal((count, points)) for name in (*epd.TABLES, 'gamma_params')}


def test_every_case_is_here():
  assert [len(case['options']['params'][0]['r']) for case in CASES.values()] == [1, 3]


@pytest.mark.parametrize('name', CASES)
def test_published_runs(name):
  case = CASES[name]
  params = case['options']['params']
  table = adasde.steps(beyond_cases.grid(case), **{
      number: [step[number] for step in params] for number in adasde.NUMBERS})
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


def test_gradients_are_those_of_differences(distance):
  """Through the draws too: each is fixed by its key, and its weight is learned."""
  rng, keys = np.random.default_rng(1), jax.random.split(jax.random.key(1), 4)
  x = GRID[0] * LATENTS
  point = numbers_at_random(2), GRID
  gradient = jax.device_get(distance(point, keys, x)[1])
  np.testing.assert_array_equal(gradient[0]['gamma_params'][0], 0)  # No draw before the first step.
  assert np.all(gradient[0]['gamma_params'][1:] != 0)
  for moved in (*point[0], None):
    ways = jax.tree.map(np.zeros_like, point)
    way = ways[1] if moved is None else ways[0][moved]
    way[...] = 1e-5 * rng.standard_normal(way.shape)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, way: np.sum(g * way), gradient, ways)))
    ahead, back = (distance(jax.tree.map(lambda leaf, way, sign=sign: leaf + sign * way, point,
                                         ways), keys, x)[0] for sign in (1, -1))
    assert abs(slope) > 1e-9
    # Differences of a value near 1 are rounded to 1e-16, and steps of 1e-5 leave 1e-10 of higher
    # orders.
    np.testing.assert_allclose((ahead - back) / 2, slope, rtol=1e-6, atol=1e-14)


def test_gradients_stay_finite_where_the_noise_has_vanished(distance):
  """At G = 0 the root has a slope without bounds, which would meet 0 and make NaN."""
  point = numbers_at_random(3), GRID
  point[0]['gamma_params'][...] = -800.0  # exp(-800) is 0 in double precision.
  _, gradient = distance(point, jax.random.split(jax.random.key(1), 4), GRID[0] * LATENTS)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_a_sample_depends_on_its_own_key_alone(distance):
  """Samples in another order are the same, and another key is another sample."""
  point, keys = (numbers_at_random(4), GRID), jax.random.split(jax.random.key(1), 4)
  x = GRID[0] * LATENTS
  value = distance(point, keys, x)[0]
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(distance(point, keys[order], x[order])[0], value, rtol=1e-13)
  assert abs(distance(point, keys[order], x)[0] - value) > 1e-6


def test_levels_are_raised_by_the_noise_that_is_added():
  sigmas = samplers.schedule('polynomial', 3, 0.05, 10.0)
  design = learned.design('adasde', sigmas, num_points=2, gamma=0.4)
  numbers = jax.device_get(design.describe(numbers_at_random(5, count=3)))
  table = adasde.steps(sigmas, **numbers)
  drawn = np.flatnonzero(np.any(table.noise != 0, axis=1))
  assert len(drawn) == 2 and np.all(table.kind[drawn] == table_lib.NOTHING)
  assert np.all(np.isnan(table.level[drawn]))  # Grid points hold the state before.
  share = np.sum(numbers['gamma'] * numbers['weight'], axis=1)
  assert share[0] == 0 and np.all((share[1:] > 0) & (share[1:] < 0.4))
  raised = table.sigma[drawn + 1]
  np.testing.assert_allclose(raised, (1 + share[1:]) * sigmas[1:3], rtol=1e-14)
  np.testing.assert_allclose(table.noise[drawn, 0]**2 + sigmas[1:3]**2, raised**2, rtol=1e-13)


@pytest.mark.parametrize('points, afs', [(1, False), (3, True)])
def test_without_noise_it_is_epd(points, afs, denoise):
  options = {'num_points': points, 'scale_dir': 0.1, 'scale_time': 0.1, 'afs': afs}
  ours = learned.design('adasde', GRID, gamma=0.0, **options)
  theirs = learned.design('epd', GRID, **options)
  assert not ours.draws and ours.nfe == ours.calls == theirs.calls
  numbers, x = numbers_at_random(6, points), jnp.asarray(GRID[0] * LATENTS)
  ends = jax.jit(lambda numbers, x: (ours.solve(numbers, denoise, x),
                                     theirs.solve(numbers, denoise, x)))(numbers, x)
  np.testing.assert_allclose(*ends, rtol=1e-11, atol=1e-12)


def test_without_learned_numbers_it_is_dpm():
  numbers = {key: np.ones((2, 1)) for key in adasde.NUMBERS}
  table = adasde.steps(GRID, **numbers | {'r': np.full((2, 1), 0.5), 'gamma': np.zeros((2, 1))})
  np.testing.assert_allclose(*(reference.linear_map(made) for made in (
      table, samplers.make('dpm', GRID))), atol=1e-12)


def test_cost_and_first_numbers():
  design = learned.design('adasde', GRID, num_points=2, gamma=0.3, afs=True)
  assert design.nfe == design.calls == 5 and design.draws and design.loss == 'end'
  told = design.describe(design.initial(None))
  np.testing.assert_allclose(told['gamma'], [[0, 0], [0.15, 0.15]], rtol=1e-15)
  assert not learned.design('adasde', GRID[:2]).draws  # One step adds no noise.


@pytest.mark.parametrize('options, message', [
    ({'num_points': 1.5}, 'adasde: num_points must be an integer from 1 to 16, got 1.5'),
    ({'gamma': 1.0}, 'adasde: gamma must be at least 0 and below 1, got 1.0'),
    ({'scale_dir': 'x'}, "adasde: scale_dir must be at least 0 and below 1, got 'x'"),
    ({'scale_time': 2}, 'adasde: scale_time must be at least 0 and below 1, got 2'),
])
def test_bad_options_are_explained(options, message):
  with pytest.raises(ValueError, match=message):
    learned.design('adasde', [2.0, 1.0], **options)


def test_a_missing_key_is_explained(denoise):
  design = learned.design('adasde', GRID)
  with pytest.raises(ValueError, match='adasde: key must be one typed key per sample, got None'):
    design.solve(design.initial(None), denoise, jnp.asarray(LATENTS))


@pytest.mark.parametrize('name, value, message', [
    ('gamma', [[0.1], [-0.1]], 'adasde: gamma must be at least 0, got -0.1'),
    ('weight', [[1.0]], r'adasde: weight must have a row for each of 2 .* shape \(1, 1\)'),
    ('r', 'x', 'adasde: r must be a list of numbers'),
    ('r', [[0.5], [1.5]], 'adasde: r must be within 0 and 1, got 1.5'),
    ('scale_time', [[1.0], [0.0]], 'adasde: scale_time must be above 0, got 0'),
    ('weight', [[1.0], [np.nan]], 'adasde: weight must be finite, got nan'),
])
def test_bad_numbers_are_explained(name, value, message):
  numbers = {key: np.ones((2, 1)) for key in adasde.NUMBERS} | {name: value}
  with pytest.raises(ValueError, match=message):
    adasde.steps([3.0, 2.0, 1.0], **numbers)


def test_a_grid_to_0_is_refused():
  """All inner levels of its last step would be 0."""
  with pytest.raises(ValueError, match='adasde: sigmas must end above 0, got a last level 0; end'):
    adasde.steps([3.0, 2.0, 0.0], **{key: np.ones((2, 1)) for key in adasde.NUMBERS})
