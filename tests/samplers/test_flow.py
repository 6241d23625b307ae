"""Solvers in the time of a flow: reference runs, exactness there, noise, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments
from tests import reference
from tests.samplers import beyond_cases

CASES = beyond_cases.family('flow_heun') | beyond_cases.family('euler_ancestral_rf')
GRID = samplers.schedule('polynomial', 6, 0.05, 49.0)


def test_every_case_is_here():
  assert len(CASES) == 5


@pytest.mark.parametrize('name', CASES)
def test_published_runs(name):
  case = CASES[name]
  table = samplers.make(case['family'], beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


@pytest.mark.parametrize('times', [[0.98, 0.7, 0.45, 0.1], [0.1, 0.2, 0.6, 0.95]])
def test_heun_is_exact_for_velocities_linear_in_the_time_of_the_flow(times):
  """u' - u = int v dt by the trapezoid, on any grid; x = u / (1 - t), D = u - t v."""
  times = np.array(times)
  table = samplers.make('flow_heun', times / (1 - times))

  def denoise(x, sigma):
    t = sigma / (1 + sigma)
    return x * (1 - t) - t * (0.4 - 1.3 * t)

  start, end = times[0], times[-1]
  u = 0.8 + 0.4 * (end - start) - 1.3 / 2 * (end**2 - start**2)
  result = samplers.run(table, denoise, jnp.full((1, 1, 1, 1), 0.8 / (1 - start)))
  np.testing.assert_allclose(result.item() * (1 - end), u, rtol=1e-13)


def test_a_single_step_to_0_is_the_denoised_image():
  for name in ('flow_heun', 'euler_ancestral_rf'):
    table = samplers.make(name, [49.0, 0.0])
    np.testing.assert_array_equal(reference.linear_map(table), [[49, 0], [0, 1]])
    assert not table.noise.any() and np.isnan(table.interval).all()


# -- Noise ----------------------------------------------------------------------------------------


def test_noise_leads_back_to_the_levels_of_the_grid():
  for eta in (0.3, 1.0, 5.0):
    table = samplers.make('euler_ancestral_rf', GRID, eta=eta)
    down, noise = table.mix[:, 0, 0] * table.sigma, table.noise[:, 0]
    np.testing.assert_allclose(down**2 + noise**2, GRID[1:]**2, rtol=1e-13)
    np.testing.assert_array_equal(table.interval, np.stack([GRID[:-1], GRID[1:]], axis=1))
  assert down[0] > 0 and down[-1] == 0  # At eta 5 the last step is an answer with new noise.


def test_without_noise_it_is_euler():
  for sigmas in (GRID, GRID[::-1], np.append(GRID, 0.0)):
    table = samplers.make('euler_ancestral_rf', sigmas, eta=0.0)
    assert not table.noise.any() and np.isnan(table.interval).all()
    euler = samplers.make('euler', sigmas)
    np.testing.assert_allclose(reference.linear_map(table), reference.linear_map(euler), atol=1e-14)
  assert not samplers.make('euler_ancestral_rf', GRID, s_noise=0.0).noise.any()


def test_short_steps_keep_their_digits():
  """At eta = 1, t_down = t'^2 / t, also where it all but equals t' and t all but 1."""
  sigmas = 900.0 * (1 - 2.0**-30)**np.arange(4)
  wide = sigmas.astype(np.longdouble)
  t = wide / (1 + wide)
  down = t[1:]**2 / t[:-1]
  expected = np.sqrt(wide[1:]**2 - (down / (1 - down))**2)
  table = samplers.make('euler_ancestral_rf', sigmas)
  # Longer doubles have 1e-19, of which the times leave 1e-16 and the difference 1e-7.
  np.testing.assert_allclose(table.noise[:, 0], expected.astype(float), rtol=1e-6)


def test_variance_of_samples_has_order_1():
  """From the diffused data on, whose variance the data's is at the end."""
  errors = []
  for n in (240, 480):
    table = samplers.make('euler_ancestral_rf', samplers.schedule('polynomial', n, 0.1, 10.0))
    variance = moments.gaussian_moments(table, 0.7, 0.25, start=(0.7, 0.25 + 10.0**2))[1]
    errors.append(abs(variance - 0.25 - 0.1**2))
  assert np.log2(errors[0] / errors[1]) == pytest.approx(1, abs=0.1)


def test_build_is_make_and_the_strength_can_be_learned():
  def make(eta):
    return samplers.make('euler_ancestral_rf', GRID, eta=eta, s_noise=1.1)

  @jax.jit
  def built_and_slope(eta):
    def build(eta):
      return samplers.build('euler_ancestral_rf', jnp.asarray(GRID), eta=eta, s_noise=1.1)
    return jax.jvp(build, (eta,), (1.0,))

  built, slope = built_and_slope(0.5)
  for field in ('sigma', 'mix', 'noise', 'level', 'interval'):
    np.testing.assert_allclose(getattr(built, field), getattr(make(0.5), field), rtol=1e-12)
  step = 1e-5
  for field in ('mix', 'noise'):  # Third derivatives are of size 1 and the levels up to 30.
    ahead, back = (getattr(make(0.5 + move), field) for move in (step, -step))
    np.testing.assert_allclose(getattr(slope, field), (ahead - back) / (2 * step), atol=1e-7)
  assert np.isfinite(built_and_slope(0.0)[1].noise).all()  # Where the root has no bounded slope.


@pytest.mark.parametrize('options, message', [
    ({'eta': -0.1}, 'eta must be a finite number of at least 0, got -0.1'),
    ({'s_noise': 'x'}, "s_noise must be a finite number of at least 0, got 'x'")])
def test_bad_noise(options, message):
  with pytest.raises(ValueError, match=f'^euler_ancestral_rf: {message}'):
    samplers.make('euler_ancestral_rf', GRID, **options)


def test_an_infinite_level_is_refused():
  with pytest.raises(ValueError, match='flow_heun: sigmas must be finite, .* got inf at index 0'):
    samplers.make('flow_heun', [np.inf, 2.0, 1.0])
