"""Sources of noise: their law, what ties rows and grids together, and what a batch may not do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import noise
from tests import reference
from tests.samplers import cases

SHAPE = 16, 8, 8, 3
COUNT = int(np.prod(SHAPE))
SIX_ERRORS = 6 / np.sqrt(COUNT)  # Of a mean of COUNT draws of variance 1, and of a correlation.
MIXTURE = reference.mixture_denoiser(reference.load('ode')[1]['mixture_small'])


def keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


@jax.jit
def increments(high, low):
  """One increment of the path of each of the 16 keys, (16, 8, 8, 3)."""
  return jax.vmap(lambda key: noise.increment(key, high, low, SHAPE[1:], float))(keys(range(16)))


def correlation(a, b):
  return float(np.mean(np.asarray(a) * np.asarray(b)))


# -- The path -------------------------------------------------------------------------------------


@pytest.mark.parametrize('high, low', [
    (80.0, 0.002), (80.0, 79.9), (1.0, 0.5), (4.0, 1.0), (3.0, 2.9999), (1.5, 0.0),
    (0.0021, 0.002), (1e18, 1e-3), (2e-10, 1e-10)])
def test_increments_are_standard_normal(high, low):
  z = np.asarray(increments(high, low)).ravel()
  assert abs(z.mean()) < SIX_ERRORS
  assert abs(z.var() - 1) < SIX_ERRORS * np.sqrt(2)
  assert abs(np.mean(z**4) - 3) < SIX_ERRORS * np.sqrt(96)  # Var z^4 = 105 - 9.


def test_neighbours_of_float32_are_a_path_still():
  """The leaves: two levels as close as can be have an increment of variance 1 as well."""
  high = np.float32(3.0)
  z = np.asarray(increments(high, np.nextafter(high, np.float32(0)))).ravel()
  # W is of size 1 there and an increment of size 5e-4, in float64: no rounding to be seen.
  assert abs(z.var() - 1) < SIX_ERRORS * np.sqrt(2)


@pytest.mark.parametrize('levels', [
    (80.0, 10.0, 0.5), (3.9, 3.0, 2.1), (8.0, 4.0, 2.0), (1.0000001, 1.0, 0.9), (2.0, 0.7, 0.0)])
def test_increments_of_neighbouring_intervals_add_up(levels):
  """Refinement: a coarse step draws the sum of what the fine steps draw."""
  a, b, c = (float(np.float32(level)) for level in levels)
  both = np.sqrt(a - b) * increments(a, b) + np.sqrt(b - c) * increments(b, c)
  np.testing.assert_allclose(both / np.sqrt(a - c), increments(a, c), atol=1e-9)


@pytest.mark.parametrize('first, second', [
    ((80.0, 10.0), (10.0, 1.0)), ((3.0, 2.5), (2.5, 2.2)), ((80.0, 70.0), (0.1, 0.01)),
    ((1.9, 1.8), (1.7, 1.6)), ((4.0, 2.0), (2.0, 1.0))])
def test_disjoint_intervals_are_independent(first, second):
  assert abs(correlation(increments(*first), increments(*second))) < SIX_ERRORS


def test_nested_intervals_correlate_by_the_root_of_their_lengths():
  """As the two draws of a step of DPM-Solver++ (SDE), from s to m and from s to s'."""
  for (high, low), inner in (((10.0, 2.0), 4.0), ((3.0, 2.2), 2.5)):
    expected = np.sqrt((high - inner) / (high - low))
    measured = correlation(increments(high, low), increments(high, inner))
    assert measured == pytest.approx(expected, abs=SIX_ERRORS)


def test_levels_that_float32_cannot_tell_apart_draw_by_row():
  assert np.isnan(increments(2.0, 2.0)).all()  # There is no increment.
  draw = noise.brownian(keys(range(16)), np.array([[2.0, 2.0 - 1e-9], [np.nan, np.nan]]))
  for row in (0, 1):
    np.testing.assert_array_equal(draw(row, jnp.zeros(SHAPE)),
                                  noise.by_row(keys(range(16)))(row, jnp.zeros(SHAPE)))


@pytest.mark.float32
def test_single_precision_draws_the_same_path():
  """Bits of the key become numbers of the precision; the points of the tree are the same levels."""
  z = np.asarray(noise.increment(jax.random.key(0), 0.0021, 0.002, (64, 64, 3)))
  assert z.dtype == np.float32
  assert abs(z.var() - 1) < 6 * np.sqrt(2 / z.size)


def test_points_of_two_values():
  for source, values, fourth in ((noise.two_point, {-1, 1}, 1),
                                 (noise.three_point, {-np.sqrt(3), 0, np.sqrt(3)}, 3)):
    z = np.asarray(source(keys(range(16)))(0, jnp.zeros(SHAPE))).ravel()
    assert set(z.tolist()) == values
    assert abs(z.mean()) < SIX_ERRORS and abs(np.mean(z**2) - 1) < SIX_ERRORS * np.sqrt(2)
    assert abs(np.mean(z**4) - fourth) < SIX_ERRORS * 3  # Var z^4 = 0 and 18.


# -- Solvers --------------------------------------------------------------------------------------

GRID = samplers.schedule('polynomial', 4, 0.1, 10.0)
LATENTS = np.random.default_rng(0).standard_normal((3, 3, 3, 2))
ROWS, SLOTS = 30, 6


@functools.cache
def run(source):
  def sample(table, x, key):
    draw = noise.SOURCES[source](key, table)
    return samplers.run(table, MIXTURE, x, draw=draw)
  return reference.as_users_do(sample)


def start():
  return GRID[0] * np.resize(LATENTS, (3, *MIXTURE_SHAPE))


MIXTURE_SHAPE = reference.load('ode')[1]['mixture_small']['mu'].shape[1:]


def test_every_solver_that_draws_has_a_stochastic_case():
  draws = {name for name in samplers.SOLVERS
           if {'eta', 'S_churn', 's_noise'} & samplers.options(name).keys()
           or samplers.make(name, GRID).noise.any()}
  assert {case.name for case in cases.STOCHASTIC} == draws


@pytest.mark.parametrize('case', cases.STOCHASTIC, ids=str)
def test_a_batch_never_changes_its_members(case):
  """A sample is the same beside others, and another seed next to it changes nothing."""
  table = samplers.pad(samplers.make(case.name, GRID, **case.options), ROWS, SLOTS)
  assert table.noise.any()
  for source in ('brownian', 'gaussian'):
    x = start()
    whole = run(source)(table, x, keys([5, 6, 7]))
    other = run(source)(table, x[[2, 1, 0]], keys([99, 6, 5]))
    np.testing.assert_allclose(other[1], whole[1], rtol=1e-11, atol=1e-12)
    assert abs(other[0] - whole[2]).max() > 1e-3  # Another seed, the same start.


@pytest.mark.parametrize('case', cases.STOCHASTIC, ids=str)
def test_draws_of_a_solver_act_where_it_says(case):
  """An interval lies within the grid, from a level down to a lower one."""
  table = samplers.make(case.name, GRID, **case.options)
  drawn = table.noise.any(axis=1)
  intervals = table.interval[drawn & ~np.isnan(table.interval).any(axis=1)]
  assert (intervals[:, 0] > intervals[:, 1]).all()
  assert (intervals <= GRID[0] * (1 + 1e-12)).all() and (intervals >= 0).all()


def test_run_draws_along_the_path_by_default():
  table = samplers.pad(samplers.make('ddim', GRID, eta=1.0), ROWS, SLOTS)
  default = reference.as_users_do(
      lambda table, x, key: samplers.run(table, MIXTURE, x, key=key))
  x, key = start(), keys([5, 6, 7])
  np.testing.assert_array_equal(default(table, x, key), run('brownian')(table, x, key))


@pytest.mark.parametrize('case', cases.REFINES[::2], ids=str)
def test_a_finer_grid_shows_the_same_image(case):
  """The same seed at 20 and at 40 steps: nearer by far than two seeds are."""
  def sample(num_steps, source):
    sigmas = samplers.schedule('polynomial', num_steps, 0.1, 10.0)
    table = samplers.pad(samplers.make(case.name, sigmas, **case.options), 250, SLOTS)
    x = np.zeros((12, *MIXTURE_SHAPE))  # One start: what differs comes from the noise.
    return np.asarray(run(source)(table, x, keys(range(12))))
  coarse, fine = sample(20, 'brownian'), sample(40, 'brownian')
  distance = np.sqrt(np.mean((coarse - fine)**2))
  seeds_apart = np.sqrt(np.mean((fine - np.roll(fine, 1, axis=0))**2))
  rows_apart = np.sqrt(np.mean((fine - sample(40, 'gaussian'))**2))
  assert distance < 0.35 * seeds_apart
  assert rows_apart > 0.8 * seeds_apart  # By row number nothing ties the grids together.
