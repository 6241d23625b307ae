"""DPM-Solver-v3: reference runs, its limits, order, and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import dpm_v3
from tests import reference
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('dpm_solver_v3')
OPTIONS = 'order', 'p_pseudo', 'use_corrector', 'c_pseudo', 'lower_order_final'


def published(kind):
  """Statistics of the reference runs, 'element' or 'scalar'."""
  arrays = beyond_cases.ARRAYS['dpm_solver_v3_statistics']
  return dpm_v3.Statistics(np.geomspace(20.0, 0.05, 61), *(
      arrays[f'{kind}/{name}'] for name in 'lsb'))


def constant(l=1.0, s=0.0, b=0.0, intervals=60):  # noqa: E741
  """Statistics that do not depend on the level."""
  return dpm_v3.Statistics(np.geomspace(20.0, 0.05, intervals + 1), *(
      np.full((intervals + 1, 1, 1, 1), value) for value in (l, s, b)))


def test_all_cases_are_here():
  assert len(FAMILY) == 6


@pytest.mark.parametrize('name', FAMILY)
def test_reference_run(name):
  case, options = FAMILY[name], FAMILY[name]['options']
  statistics = published(options['statistics'])
  found = dpm_v3.coefficients(statistics, statistics.sigmas[options['indices']],
                              **{option: options[option] for option in OPTIONS})
  assert found.nfe == case['nfe']
  np.testing.assert_allclose(found.sigma, beyond_cases.array(case, 'eval_sigma'), rtol=1e-12)
  end, states = program()(found, 20.0 * beyond_cases.ARRAYS['latents']['latents'])
  np.testing.assert_allclose(states[:-1], beyond_cases.array(case, 'eval_inputs'), rtol=0,
                             atol=1e-9)
  np.testing.assert_allclose(end, beyond_cases.array(case, 'final'), rtol=0, atol=case['atol'])
  np.testing.assert_array_equal(end, states[-1])


@functools.cache
def program():
  """run(coefficients, x) on the mixture, with all states."""
  denoise = reference.mixture_denoiser(beyond_cases.ARRAYS['mixture'])
  return jax.jit(lambda found, x: dpm_v3.run(found, denoise, jnp.asarray(x), trajectory=True))


GRID = np.geomspace(20.0, 0.05, 7)


def weights(found):
  """Weights of the unit latent and of the answers in the result; of statistics with b = 0."""
  count = found.nfe
  x = np.zeros((1, 1, 1 + count, 1))
  x[0, 0, 0] = found.sigma[0]

  def answer(x, sigma):
    row = jnp.argmin(jnp.abs(jnp.asarray(found.sigma) - sigma))
    return jax.nn.one_hot(row + 1, 1 + count, dtype=x.dtype).reshape(x.shape)
  return np.asarray(dpm_v3.run(found, answer, jnp.asarray(x))).ravel()


@pytest.mark.parametrize('order, known', [
    (1, {'name': 'euler'}), (2, {'name': 'dpmpp_2m_sde', 'eta': 0.0, 'solver_type': 'heun'})])
def test_without_statistics_it_is_dpm_solver_plus_plus(order, known):
  """But for the trapezoid sums, whose error falls by four with twice the levels."""
  expected = reference.linear_map(samplers.make(sigmas=GRID, **known))[-1]
  errors = [np.abs(weights(dpm_v3.coefficients(
      constant(intervals=intervals), GRID, order=order, use_corrector=False,
      lower_order_final=False)) - expected).max() for intervals in (600, 1200)]
  assert errors[0] < 1e-4 and errors[0] / errors[1] == pytest.approx(4, rel=0.01)


def test_with_no_linear_part_it_is_the_noise_prediction():
  found = dpm_v3.coefficients(constant(l=0.0, s=-1.0, intervals=6000), GRID, order=1)
  expected = reference.linear_map(samplers.make('euler', GRID))[-1]
  np.testing.assert_allclose(weights(found), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('order', [1, 2, 3])
def test_a_step_is_exact_where_f_is_a_polynomial(order):
  """l = s = b = 0 and D = x - lam^n: a step is the integral of lam^n, for n below the order."""
  lam = -np.log(GRID)
  found = dpm_v3.coefficients(constant(l=0.0, intervals=6000), GRID, order=order,
                              use_corrector=False, lower_order_final=False)
  for n in range(order + 1):
    _, states = dpm_v3.run(found, lambda x, sigma, n=n: x - (-jnp.log(sigma))**n,
                           jnp.zeros((1, 1, 1, 1)), trajectory=True)
    exact = -np.diff(lam**(n + 1)) / (n + 1)
    error = np.abs(np.diff(states.ravel()) - exact)[order - 1:].max()
    assert error < 1e-6 if n < order else error > 1e-2


MEAN, STD = 0.7, 0.5


def gaussian(intervals=1200):
  """Exact statistics of Gaussian data: f = -l MEAN is no matter of chance; s may be anything."""
  sigmas = np.geomspace(20.0, 0.05, intervals + 1).reshape(-1, 1, 1, 1)
  linear = sigmas**2 / (STD**2 + sigmas**2)
  slope = -2 * linear * (1 - linear)  # dl / dlam.
  s = np.full_like(linear, 0.3)
  return dpm_v3.Statistics(sigmas.ravel(), linear, s, -slope * MEAN + s * linear * MEAN)


@pytest.mark.parametrize('grid', [[20.0, 1.7, 0.05], [0.05, 0.6, 20.0]])
def test_two_steps_of_order_1_are_exact_on_gaussian_data(grid):
  """Down and up, on levels of its own: what the statistics say is all there is."""
  x = jnp.asarray(np.linspace(-2, 3, 12).reshape(1, 2, 2, 3)) * grid[0]
  denoise = reference.gaussian_denoiser(STD, MEAN)
  exact = reference.gaussian_flow(x, grid[0], grid[-1], STD, MEAN)
  end = samplers.LOOPS['dpm_solver_v3'](denoise, x, grid, statistics=gaussian(), order=1)
  size = np.abs(exact).max()
  assert np.abs(end - exact).max() < 1e-5 * size  # Of the sums: (range of lam / 1200)^2.
  euler = samplers.run(samplers.make('euler', grid), denoise, x)
  assert np.abs(euler - exact).max() > 1e-2 * size


@jax.jit
def run_on_gaussian(found, x):
  """(samples, states) on Gaussian data."""
  return dpm_v3.run(found, reference.gaussian_denoiser(STD, MEAN), x, trajectory=True)


def test_any_statistics_converge():
  """Second order as run: the first step is of order 1. The sums get finer with the grid."""
  x = jnp.asarray(np.linspace(-2, 3, 12).reshape(1, 2, 2, 3)) * 20
  exact = reference.gaussian_flow(x, 20.0, 0.05, STD, MEAN)
  rng = np.random.default_rng(0)
  l, s, b = (rng.uniform(*ends, (9, 2, 2, 3)) for ends in ((0, 1), (-1, 1), (-0.5, 0.5)))  # noqa: E741
  statistics = dpm_v3.Statistics(np.geomspace(20.0, 0.05, 9), l, s, b)
  for order, expected in ((1, 1), (2, 2), (3, 2)):
    errors = [np.abs(run_on_gaussian(dpm_v3.coefficients(
        statistics, np.geomspace(20.0, 0.05, n + 1), order=order), x)[0] - exact).max()
              for n in (64, 128)]
    assert np.log2(errors[0] / errors[1]) > expected - 0.25


def test_the_last_step_to_zero_is_the_last_answer():
  found = dpm_v3.coefficients(constant(l=0.6, s=0.2, b=0.1), [*GRID, 0.0], c_pseudo=True)
  end, states = run_on_gaussian(found, jnp.asarray([-30.0, 1.0, 50.0]).reshape(1, 1, 1, 3))
  assert found.nfe == 7
  np.testing.assert_allclose(end, reference.gaussian_denoiser(STD, MEAN)(states[-2], GRID[-1]),
                             rtol=1e-12)


def test_one_program_for_all_options():
  traces = []

  @jax.jit
  def run(found, x):
    traces.append(1)
    return dpm_v3.run(found, reference.gaussian_denoiser(), x)
  x = jnp.ones((2, 4, 4, 3))
  for options in ({}, {'order': 1}, {'c_pseudo': True, 'p_pseudo': True},
                  {'use_corrector': False, 'lower_order_final': False}):
    for grid in (GRID, GRID**0.9):
      assert np.isfinite(run(dpm_v3.coefficients(published('element'), grid, **options), x)).all()
  assert len(traces) == 1


def test_options_are_those_of_the_command_line():
  assert samplers.options('dpm_solver_v3') == {
      'statistics': None, 'order': 3, 'p_pseudo': False, 'use_corrector': True, 'c_pseudo': False,
      'lower_order_final': True}
  assert samplers.option_types('dpm_solver_v3') == {
      'statistics': str, 'order': int, **dict.fromkeys(OPTIONS[1:], bool)}


def broken(**fields):
  return constant()._replace(**fields)


@pytest.mark.parametrize('statistics, sigmas, options, message', [
    (constant(), GRID, {'order': 4}, 'order must be an integer from 1 to 3, got 4'),
    (constant(), GRID, {'order': 0}, 'order must be an integer from 1 to 3, got 0'),
    (constant(), GRID, {'c_pseudo': 1}, 'c_pseudo must be True or False, got 1'),
    (constant(), [80.0, 1.0], {}, 'sigmas must lie within .* 0.05 to 20, got 80; set sigma_min'),
    (constant(), [20.0, 0.01], {}, 'sigmas must lie within .* 0.05 to 20, got 0.01; set'),
    (constant(), [1.0, 2.0, 0.1], {}, 'sigmas must decrease, got 2 after 1'),
    (None, GRID, {}, 'statistics must be those of the model, got None; --mode=search --config.sea'),
    ('file.npz', GRID, {}, "statistics must be those of the model, got 'file.npz'; "),
    (broken(l=np.ones((60, 1, 1, 1))), GRID, {}, r'l of the statistics must be .* \(60, 1, 1, 1\)'),
    (broken(s=np.ones((61, 2, 2, 3))), GRID, {}, r's of the statistics must be .*beside l of \(61'),
    (broken(b=np.full((61, 1, 1, 1), np.nan)), GRID, {}, 'b of the statistics must be finite'),
    (broken(sigmas=[*np.geomspace(20, 0.05, 60), 0.0]), GRID, {}, 'end above 0, got 0 after 0.05'),
    (broken(sigmas=['a']), GRID, {}, 'sigmas of the statistics must be a list of numbers'),
])
def test_bad_input(statistics, sigmas, options, message):
  with pytest.raises(ValueError, match=f'^dpm_solver_v3: .*{message}') as error:
    dpm_v3.coefficients(statistics, sigmas, **options)
  assert '\n' not in str(error.value)


def test_bad_states():
  found = dpm_v3.coefficients(published('element'), GRID)
  for x, message in ((jnp.ones((4, 4, 3)), r'must be floats of shape .* \(4, 4, 3\); add'),
                     (jnp.ones((1, 4, 4, 3), int), 'must be floats of shape .* got int'),
                     (jnp.ones((1, 8, 8, 3)), r'of the statistics, \(4, 4, 3\), got \(8, 8, 3\)')):
    with pytest.raises(ValueError, match=f'^dpm_solver_v3: x .*{message}'):
      dpm_v3.run(found, reference.gaussian_denoiser(), x)
