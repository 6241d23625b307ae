"""EPD-Solver and EPD-Plugin: reference numbers, gradients, relations to solvers, bad input."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import adasde, amed, epd, learned
from tests import reference

MANIFEST, FILES = reference.load('epd')
ARRAYS = FILES['epd']
CASES = {case['id']: case for case in MANIFEST['cases'] if 'student' in case}
TEACHERS = {case['id']: case for case in MANIFEST['cases'] if 'teacher' in case}
OPTIONS = 'student', 'num_points', 'scale_dir', 'scale_time', 'fcn', 'afs', 'max_order'

# The manifest gives no tolerance. States start near 80: 1e-12 of that is rounding in another order.
RELATIVE, ABSOLUTE = 1e-11, 1e-9


@pytest.fixture(scope='module')
def denoise():
  return reference.mixture_denoiser(FILES['mixture_epd'])


def schedule(case, num_steps):
  rho = {} if case['schedule_rho'] is None else {'rho': case['schedule_rho']}
  low, high = case.get('sigma_min', 0.002), case.get('sigma_max', 80.0)
  return samplers.schedule(case['schedule_type'], num_steps - 1, low, high, **rho)


def tables(name):
  return {table: jnp.asarray(ARRAYS[f'{name}/params/{table}']) for table in epd.TABLES}


def trajectory(design, numbers, denoise, x):
  def one(carry, i):
    carry, _ = design.step(numbers, denoise, carry, i)
    return carry, carry.x
  steps = len(numbers['r_params'])
  return jnp.concatenate([x[None], jax.lax.scan(one, design.start(x), jnp.arange(steps))[1]])


def test_every_case_is_here():
  assert collections.Counter(case['student'] for case in CASES.values()) == {'epd': 5, 'ipndm': 3}
  assert [case['teacher'] for case in TEACHERS.values()] == ['heun', 'dpm']
  assert len(MANIFEST['cases']) == 10


@pytest.mark.parametrize('name', CASES)
def test_published_students(name, denoise):
  """Cost, numbers, states at all levels; the deployed run ends where the training's steps do."""
  case = CASES[name]
  sigmas = schedule(case, case['num_steps'])
  # The original's lowest level goes through exp(.) - 1, which costs it five digits.
  np.testing.assert_allclose(sigmas, ARRAYS[f'{name}/t_steps'], rtol=1e-10)
  options = {option: case[option] for option in OPTIONS if case[option] is not None}
  design = learned.design('epd', sigmas, **options)
  assert (design.nfe, design.calls) == (case['parallel_nfe'], case['total_network_calls'])

  numbers, x = tables(name), jnp.asarray(ARRAYS['z'] * sigmas[0])
  told = design.describe(numbers)
  told = np.stack([told[key] for key in ('r', 'scale_dir', 'scale_time', 'weight')], 1)
  np.testing.assert_allclose(told, ARRAYS[f'{name}/r_dir_time_weight'], rtol=1e-12)

  def traced(numbers, sigmas, x):  # As in deployment, where the grid is an argument.
    return trajectory(learned.design('epd', sigmas, **options), numbers, denoise, x)
  states = jax.jit(traced)(numbers, jnp.asarray(sigmas), x)
  np.testing.assert_allclose(states, ARRAYS[f'{name}/traj'], rtol=RELATIVE, atol=ABSOLUTE)
  if name == 'e06':
    end = jax.jit(design.solve, static_argnums=1)(numbers, denoise, x)
    np.testing.assert_allclose(end, states[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize('name', TEACHERS)
def test_published_teachers(name, denoise):
  case = TEACHERS[name]
  sigmas = schedule(case, case['num_steps_teacher'])
  fine = epd.refine(sigmas, case['inner_steps'] - 1)
  table = samplers.make(case['teacher'], fine)
  assert table.nfe == case['network_calls']
  _, states = samplers.run(samplers.pad(table, *reference.SHAPE), denoise,
                           jnp.asarray(ARRAYS['z'] * sigmas[0]), trajectory=True)
  states = states[::case['inner_steps'] - 1]
  np.testing.assert_allclose(states, ARRAYS[f'{name}/traj'], rtol=RELATIVE, atol=ABSOLUTE)
  student = schedule(case, case['num_steps'])
  np.testing.assert_allclose(sigmas[case['slice_indices']], student[1:], rtol=1e-12)


def test_a_refined_grid_keeps_the_levels_of_the_grid():
  sigmas = samplers.schedule('logsnr', 5, 0.01, 20.0)
  np.testing.assert_array_equal(epd.refine(sigmas, 3)[::3], sigmas)
  np.testing.assert_array_equal(epd.refine(sigmas, 1), sigmas)
  fine = epd.refine(np.array([1.0, 0.0]), 4, rho=2.0)
  np.testing.assert_allclose(fine, [1, 9 / 16, 1 / 4, 1 / 16, 0], atol=1e-15)


@pytest.fixture(scope='module')
def distance(denoise):
  """Distance to a target and its gradient in (numbers, grid): one program for what follows."""
  options = {'student': 'ipndm', 'afs': True, 'max_order': 2, 'scale_dir': 0.3, 'scale_time': 0.2}

  def value(point, x, target):
    numbers, sigmas = point
    design = learned.design('epd', sigmas, **options)
    return jnp.mean((design.solve(numbers, denoise, x) - target)**2)
  return jax.jit(jax.value_and_grad(value))


GRID = samplers.schedule('time_uniform', 3, 0.05, 10.0)
LATENTS = np.random.default_rng(0).standard_normal((8, 4, 4, 3))


def test_gradients_are_those_of_differences(distance):
  """Of every learned table and of the grid, through the whole run."""
  rng = np.random.default_rng(1)
  x = GRID[0] * LATENTS
  point = {name: rng.standard_normal((3, 2)) for name in epd.TABLES}, GRID
  gradient = jax.device_get(distance(point, x, 0 * x)[1])
  for moved in (*epd.TABLES, None):
    ways = jax.tree.map(np.zeros_like, point)
    way = ways[1] if moved is None else ways[0][moved]
    way[...] = 1e-5 * rng.standard_normal(way.shape)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, way: np.sum(g * way), gradient, ways)))
    ahead, back = (distance(jax.tree.map(lambda leaf, way, sign=sign: leaf + sign * way, point,
                                         ways), x, 0 * x)[0] for sign in (1, -1))
    assert abs(slope) > 1e-9
    # Differences of a value near 1 are rounded to 1e-16, and steps of 1e-5 leave 1e-10 of higher
    # orders.
    np.testing.assert_allclose((ahead - back) / 2, slope, rtol=1e-6, atol=1e-14)


def test_learning_brings_the_end_to_that_of_a_fine_solver(distance, denoise):
  x = jnp.asarray(GRID[0] * LATENTS)
  target = reference.sampler(denoise)(samplers.make('heun', epd.refine(GRID, 10)), x)
  numbers, losses = jax.device_get(learned.design('epd', GRID).initial(None)), []
  for _ in range(60):  # Steps of one length: how the distance is scaled has no part in it.
    loss, (gradient, _) = jax.device_get(distance((numbers, GRID), x, target))
    numbers = jax.tree.map(lambda leaf, way: leaf - 0.1 * np.sign(way), numbers, gradient)
    losses.append(loss)
  assert losses[-1] < 0.5 * losses[0]


def test_one_point_is_amed_solver_with_one_prediction_for_all(denoise):
  sigmas = samplers.schedule('time_uniform', 4, 0.01, 40.0)
  design = learned.design('epd', sigmas, num_points=1, afs=True, scale_dir=0.2, scale_time=0.1)
  numbers = {name: np.full((4, 1), value)
             for name, value in zip(epd.TABLES, (-0.7, 0.9, -1.3, 0.4), strict=True)}
  told = design.describe(numbers)

  def predict(bottleneck, sigma, sigma_next):
    del bottleneck, sigma, sigma_next
    return tuple(told[name][0, 0] for name in ('r', 'scale_dir', 'scale_time'))

  def denoise_features(x, sigma):
    one = jax.vmap(lambda x, sigma: denoise(x[None], sigma)[0])  # Levels come one per image.
    return one(x, jnp.broadcast_to(sigma, len(x))), x[..., 0]

  x = jnp.asarray(40 * ARRAYS['z'])
  ends = jax.jit(lambda x: (
      design.solve(numbers, denoise, x),
      amed.sample(denoise_features, predict, x, sigmas, student='amed', afs=True)))(x)
  np.testing.assert_allclose(*ends, rtol=1e-11, atol=1e-11)


def test_points_are_one_call_that_shares_what_the_denoiser_holds_per_image():
  """The denoiser sees the batch it has labels for; AdaSDE's table asks for one point at a time."""
  rng, calls, points = np.random.default_rng(2), [], 3
  means = rng.standard_normal((3, 1, 1, 1))  # As labels: one per image.

  def denoise(x, sigma):
    calls.append((x.shape, jnp.shape(sigma)))
    return means + (x - means) / (1 + sigma**2)

  sigmas = samplers.schedule('polynomial', 2, 0.1, 5.0)
  design = learned.design('epd', sigmas, num_points=points, scale_time=0.2)
  numbers = {name: rng.standard_normal((2, points)) for name in epd.TABLES}
  x = 5 * rng.standard_normal((3, 2, 2, 1))
  ours = jax.jit(design.solve, static_argnums=1)(numbers, denoise, x)
  # Traced once for the first slope and once for all points, which jax.vmap puts in one call.
  assert calls == 2 * [((3, 2, 2, 1), ())]
  table = adasde.steps(sigmas, **design.describe(numbers), gamma=np.zeros((2, points)), noise=False)
  assert design.calls == table.nfe
  one_by_one = jax.jit(samplers.run, static_argnums=1)(table, denoise, jnp.asarray(x))
  np.testing.assert_allclose(ours, one_by_one, rtol=1e-11, atol=1e-12)


def test_training_starts_from_second_order():
  """Inner levels at equal distances, also on a grid that repeats a level, and plain slopes."""
  sigmas, points = np.array([9.0, 3.0, 3.0, 1.0]), 3
  design = learned.design('epd', sigmas, num_points=points)
  numbers = design.initial(None)
  assert {name: table.shape for name, table in numbers.items()} == dict.fromkeys(
      epd.TABLES, (3, points))
  told = design.describe(numbers)
  inner = sigmas[:-1, None]**(1 - told['r']) * sigmas[1:, None]**told['r']
  np.testing.assert_allclose(inner, [[7.5, 6, 4.5], [3, 3, 3], [2.5, 2, 1.5]], rtol=1e-14)
  np.testing.assert_allclose(told['weight'], np.full((3, 3), 1 / 3), rtol=1e-15)
  np.testing.assert_array_equal(told['scale_dir'], np.ones((3, 3)))
  np.testing.assert_array_equal(told['scale_time'], np.ones((3, 3)))

  def error(n):  # The ODE's solution on Gaussian data is known.
    sigmas, x = np.linspace(3.0, 1.0, n + 1), jnp.ones((1, 1, 1, 1))
    design = learned.design('epd', sigmas)
    end = jax.jit(design.solve, static_argnums=1)(
        design.initial(None), reference.gaussian_denoiser(), x)
    return abs(end - reference.gaussian_flow(x, 3.0, 1.0)).item()
  assert np.log2(error(64) / error(128)) == pytest.approx(2, abs=0.1)


@pytest.mark.float32
def test_single_precision_stays_single(denoise):
  case = CASES['e06']
  design = learned.design('epd', ARRAYS['e06/t_steps'], **{key: case[key] for key in OPTIONS})
  x = jnp.asarray(80 * ARRAYS['z'], jnp.float32)
  numbers = {name: table.astype(jnp.float32) for name, table in tables('e06').items()}
  out = jax.jit(design.solve, static_argnums=1)(numbers, denoise, x)
  assert out.dtype == jnp.float32
  # States of size 80 are rounded to 5e-6, and so are their distances from the means.
  np.testing.assert_allclose(out, ARRAYS['e06/traj'][-1], atol=1e-4)


@pytest.mark.parametrize('options, message', [
    ({'student': 'dpm'}, "epd: unknown student 'dpm'; known: epd, ipndm"),
    ({'num_points': 0}, 'epd: num_points must be an integer from 1 to 16, got 0'),
    ({'max_order': 5}, 'epd: max_order must be an integer from 1 to 4, got 5'),
    ({'scale_dir': 1.0}, 'epd: scale_dir must be at least 0 and below 1, got 1.0'),
    ({'scale_time': -0.1}, 'epd: scale_time must be at least 0 and below 1, got -0.1'),
    ({'fcn': 'no'}, "epd: fcn must be True or False, got 'no'"),
    ({'points': 2}, "epd: unknown option 'points'"),
])
def test_bad_options_are_explained(options, message):
  with pytest.raises(ValueError, match=message):
    learned.design('epd', [2.0, 1.0], **options)


def test_bad_refinement_is_explained():
  with pytest.raises(ValueError, match='refine: inner_steps must be an integer of at least 1, got'):
    epd.refine([2.0, 1.0], 0)
  with pytest.raises(ValueError, match='polynomial: rho must be a finite number above 0'):
    epd.refine([2.0, 1.0], 2, rho=0)
  with pytest.raises(ValueError, match='refine: sigmas must decrease'):
    epd.refine([1.0, 2.0])
