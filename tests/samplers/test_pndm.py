"""PNDM: reference runs, its middle levels, exactness on cubic slopes, cost, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import levels as levels_lib
from tests.samplers import beyond_cases

CASES = beyond_cases.family('pndm')
TABLES = dict(zip(CASES, ('ddpm', 'stable_diffusion'), strict=True))  # Of the cases' notes.
GRID = samplers.schedule('polynomial', 6, 0.05, 20.0)


def make(sigmas, **options):
  return samplers.make('pndm', sigmas, **options)


def test_every_case_is_here():
  assert len(CASES) == 2


@pytest.mark.parametrize('name', CASES)
def test_published_runs(name):
  case = CASES[name]
  table = make(beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


@pytest.mark.parametrize('name', CASES)
def test_middle_levels_of_a_network(name):
  """Timesteps 901, 801, ... and between them 851, 751, 651: levels of the table itself."""
  case = CASES[name]
  table = make(beyond_cases.grid(case), alphas_cumprod=TABLES[name])
  np.testing.assert_allclose(table.sigma[[1, 5, 9]], case['options']['mid'], rtol=1e-13)


def test_an_odd_number_of_timesteps_has_its_middle_between_two():
  sigmas = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod('test', 'ddpm'))
  table = make(sigmas[[901, 800, 500, 100]], alphas_cumprod='ddpm')
  np.testing.assert_allclose(table.sigma[1], np.sqrt(sigmas[850] * sigmas[851]), rtol=1e-13)
  assert table.sigma[1] == table.sigma[2]  # The state is where the network is asked.


def test_without_a_table_and_beyond_it_the_mean_is_geometric():
  means = np.sqrt(GRID[:3] * GRID[1:4])
  np.testing.assert_allclose(make(GRID).sigma[[1, 5, 9]], means, rtol=1e-15)
  beyond = make([80.0, 40.0, 20.0, 10.0], alphas_cumprod='stable_diffusion')  # It ends at 14.6.
  np.testing.assert_allclose(beyond.sigma[[1, 5]], np.sqrt([80 * 40, 40 * 20]), rtol=1e-15)
  assert 10.0 < beyond.sigma[9] < 14.7


def test_cubic_slopes_are_solved_exactly_by_equal_steps():
  """Simpson's rule and Adams-Bashforth of order 4; up, too, as an inversion goes."""
  def slope(sigma):
    return 1 + sigma * (0.3 - sigma * (0.2 - 0.05 * sigma))

  def integral(sigma):
    return sigma * (1 + sigma * (0.15 - sigma * (0.2 / 3 - 0.0125 * sigma)))

  for sigmas in (np.linspace(4.0, 1.0, 7), np.linspace(1.0, 4.0, 7)):
    table = make(sigmas, mid=(sigmas[:3] + sigmas[1:4]) / 2)
    end = samplers.run(table, lambda x, sigma: x - sigma * slope(sigma), jnp.full((1, 1, 1, 1), 3.))
    expected = 3.0 + integral(sigmas[-1]) - integral(sigmas[0])
    np.testing.assert_allclose(end.item(), expected, rtol=1e-13)


def test_cost():
  for count in range(1, 6):
    sigmas = GRID[:count + 1]
    assert make(sigmas).nfe == count + min(9, 3 * count)
    to_zero = make([*sigmas[:-1], 0.0])
    assert to_zero.nfe == count + min(9, 3 * (count - 1))
    if count <= 3:  # A Runge-Kutta step asks at its end: Euler instead.
      np.testing.assert_array_equal(to_zero.mix[-1, 0], [0, 0, 0, 0, 0, 1])


def test_make_and_build_agree_on_middle_levels():
  text = ', '.join(map(str, np.sqrt(GRID[:3] * GRID[1:4])))
  for options in ({'alphas_cumprod': 'stable_diffusion'}, {'mid': text}):
    made = make(GRID, **options)
    built = jax.jit(lambda grid, more=options: samplers.build('pndm', grid, **more))(GRID)
    for field in ('sigma', 'mix', 'level'):
      np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-11,
                                 atol=1e-12)


@pytest.mark.parametrize('options, message', [
    ({'mid': [15.0, 9.0]}, r'mid must have one level for each of 3 steps, got shape \(2,\); leave'),
    ({'mid': [851, 751, 651]}, 'mid must lie between the levels 0.05 and 20 in step 0, got 851; '),
    ({'mid': [15.0, 9.0, 0.05]}, 'mid must lie between the levels 0.05 and 20 in step 2, got 0.05'),
    ({'mid': [15.0, 5.0, GRID[3]]}, 'mid must differ from the levels at the ends of step 2, '),
    ({'mid': 'low'}, 'mid must be a list of numbers'),
    ({'alphas_cumprod': 'sd'}, "unknown alphas_cumprod 'sd'"),
])
def test_bad_options_are_explained(options, message):
  with pytest.raises(ValueError, match=f'^pndm: {message}'):
    make(GRID, **options)
