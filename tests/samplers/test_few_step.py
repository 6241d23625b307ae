"""LCM and TCD: reference runs, where a step jumps to, how much noise it adds, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import levels as levels_lib
from tests.samplers import beyond_cases

CASES = beyond_cases.family('lcm') | beyond_cases.family('tcd')
GAMMAS = {'tcd_00': 0.3, 'tcd_01': 0.0, 'tcd_02': 1.0}  # Of the cases' notes.
GRID = [14.0, 4.0, 1.5, 0.4, 0.05]


def low_and_noise(table):
  """The level m that each step jumps to, and the deviation of its noise."""
  return table.mix[:, 0, 0] * table.sigma, table.noise[:, 0]


def test_every_case_is_here():
  assert len(CASES) == 5


@pytest.mark.parametrize('name', CASES)
def test_published_runs(name):
  case = CASES[name]
  table = samplers.make(case['family'], beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


@pytest.mark.parametrize('name', GAMMAS)
def test_the_table_of_a_network_gives_the_published_levels(name):
  """Timesteps are read off the levels: their rounding must not lower a floor by a whole one."""
  case = CASES[name]
  table = samplers.make('tcd', beyond_cases.grid(case), gamma=GAMMAS[name],
                        alphas_cumprod='stable_diffusion')
  low, _ = low_and_noise(table)
  np.testing.assert_allclose(low, case['options']['mid'], rtol=1e-12)
  assert table.noise.any() == (GAMMAS[name] > 0)


@pytest.mark.parametrize('options', [
    {}, {'gamma': 0.0}, {'gamma': 1.0}, {'gamma': 0.6, 'alphas_cumprod': 'stable_diffusion'},
    {'mid': [3.0, 1.5, 0.0, 0.05]}])
@pytest.mark.parametrize('last', [0.05, 0.0])
def test_noise_leads_back_to_the_levels_of_the_grid(options, last):
  if 'mid' in options:
    options = {'mid': [*options['mid'][:-1], last]}
  grid = [*GRID[:-1], last]
  table = samplers.make('tcd', grid, **options)
  low, noise = low_and_noise(table)
  np.testing.assert_allclose(low**2 + noise**2, np.square(grid[1:]), rtol=1e-12)
  assert noise[-1] == 0 and (low >= 0).all()
  np.testing.assert_array_equal(table.level, grid[1:])
  assert np.isnan(table.interval).all()  # No part of it is a path over the step.


def test_a_level_below_the_table_is_not_raised():
  """The table's lowest is 0.029; beyond its highest, 14.6, the jump goes below it."""
  table = samplers.make('tcd', [90.0, 50.0, 0.01, 0.001], alphas_cumprod='stable_diffusion')
  low, noise = low_and_noise(table)
  highest = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod('test', 'stable_diffusion'))[-1]
  assert low[0] < highest and noise[0] > 0
  np.testing.assert_allclose(low[1:], [0.01, 0.001], rtol=1e-14)
  assert not noise[1:].any()


def test_ends_of_gamma_are_euler_and_lcm():
  for last in (0.05, 0.0):
    grid = [*GRID[:-1], last]
    ours, euler = samplers.make('tcd', grid, gamma=0.0), samplers.make('euler', grid)
    np.testing.assert_allclose(ours.mix, euler.mix, atol=1e-15)
  strong, lcm = samplers.make('tcd', grid, gamma=1.0), samplers.make('lcm', grid)
  np.testing.assert_array_equal(strong.mix, lcm.mix)
  np.testing.assert_array_equal(strong.noise, lcm.noise)


def test_gamma_0_draws_nothing_on_a_network_s_levels_and_between_them():
  """Steps of the same levels go by the table and back, and rounding is no noise."""
  for grid in (*(samplers.schedule('lcm', n) for n in (7, 25, 50)), GRID):
    table = samplers.make('tcd', grid, gamma=0.0, alphas_cumprod='stable_diffusion')
    assert not table.noise.any()
    np.testing.assert_allclose(table.mix, samplers.make('euler', grid).mix, atol=1e-12)


def test_lcm_is_the_sampler_of_consistency_models_with_a_lowest_level_0():
  grid = [*GRID[:-1], 0.0]
  lcm, other = samplers.make('lcm', grid), samplers.make('consistency', grid, sigma_min=0.0)
  for field in ('sigma', 'mix', 'noise', 'level', 'interval'):
    np.testing.assert_array_equal(getattr(lcm, field), getattr(other, field))
  # The result is an answer, whatever the last level.
  above = samplers.make('lcm', GRID)
  np.testing.assert_array_equal(above.mix, lcm.mix)
  np.testing.assert_array_equal(above.noise, lcm.noise)


def test_make_and_build_agree_and_have_gradients():
  for options in ({'alphas_cumprod': 'stable_diffusion'}, {'mid': [3.0, 1.5, 0.0, 0.05]}):
    made = samplers.make('tcd', GRID, **options)
    built = jax.jit(lambda grid, more=options: samplers.build('tcd', grid, **more))(
        np.array(GRID))
    for field in ('sigma', 'mix', 'noise', 'level'):
      np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-12)

  def noise(gamma):
    return samplers.build('tcd', jnp.asarray(GRID), gamma=gamma).noise[:, 0]
  slope = jax.jit(lambda gamma: jax.jvp(noise, (gamma,), (1.0,))[1])
  for gamma in (0.0, 0.3):  # The noise is gamma s'.
    np.testing.assert_allclose(slope(gamma), [*GRID[1:-1], 0.0], rtol=1e-14)


def test_only_what_draws_nothing_goes_up():
  assert samplers.make('tcd', GRID[::-1], gamma=0.0).nfe == 4
  for name in ('lcm', 'tcd'):
    with pytest.raises(ValueError, match=f'{name}: sigmas must decrease for a solver with noise'):
      samplers.make(name, GRID[::-1])


@pytest.mark.parametrize('options, message', [
    ({'gamma': 1.2}, 'gamma must be between 0 and 1, got 1.2; 0 is deterministic'),
    ({'gamma': None}, 'gamma must be between 0 and 1, got None'),
    ({'mid': [3.0, 1.0]}, r'mid must have one level for each of 4 steps, got shape \(2,\)'),
    ({'mid': [3.0, 1.6, 0.2, 0.0]}, 'mid must lie between the levels 0 and 1.5 in step 1, got 1.6'),
    ({'alphas_cumprod': [0.5, 0.7]}, 'alphas_cumprod must decrease strictly, got 0.7 after 0.5'),
])
def test_bad_options_are_explained(options, message):
  with pytest.raises(ValueError, match=f'^tcd: {message}'):
    samplers.make('tcd', GRID, **options)
