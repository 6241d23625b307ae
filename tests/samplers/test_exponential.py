"""Exponential steps: their coefficients, the exact moments of what they do, and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments, noise as noise_lib
from tests import reference
from tests.samplers.seeds_cases import (
  MOMENTS,
  STEP_MAPS,
  VARIANTS,
  describe,
  make,
  over_predictions,
  over_variants,
  same_table,
)


def test_every_entry_is_here():
  assert len(MOMENTS['rows']) == 69 and len(STEP_MAPS['rows']) == 276


# -- Coefficients of single steps -----------------------------------------------------------------


def step_map(table, case):
  """Inputs of the evaluations and the result as weights of y, of the G's and of the draws."""
  order = table.rows
  form, d = case['form'], case['sigma_data']
  state = np.zeros((table.slots, 1 + 2 * order))
  state[0, 0] = 1
  lines = []
  for r, (sigma, mix, noise) in enumerate(zip(table.sigma, table.mix, table.noise, strict=True)):
    lines.append(state[0])
    g = np.eye(1 + 2 * order)[1 + r]  # D as a function of the state and of a free G.
    root = np.hypot(sigma, d)
    answer = {'data': g, 'eps': state[0] - sigma * g,
              'F': (d / root)**2 * state[0] + sigma * d / root * g}[form]
    state = mix @ np.concatenate([state, [answer]])
    state[:, 1 + order + r] += noise
  return np.stack([*lines, state[0]])


@pytest.mark.parametrize('kind', sorted({describe(case) for case in STEP_MAPS['rows']}))
def test_step_map(kind):
  """All drift and noise coefficients, also of a step of a thousandth and at 80 >> sigma_data."""
  rows = [case for case in STEP_MAPS['rows'] if describe(case) == kind]
  assert len(rows) == 4
  for case in rows:
    table = make(case, [case['sigma_from'], case['sigma_to']])
    count = table.rows
    levels = [*table.sigma, table.level[-1]]
    np.testing.assert_allclose(levels, case['stage_sigmas'], rtol=1e-12)
    ours = step_map(table, case)
    np.testing.assert_allclose(ours[:, 0], case['coef_y'], rtol=1e-11)
    for first, key in ((1, 'coef_G'), (1 + count, 'coef_z')):
      expected = np.zeros((count + 1, count))
      for line, values in zip(expected, case[key], strict=True):
        line[:len(values)] = values
      size = np.abs(expected).max()
      np.testing.assert_allclose(ours[:, first:first + count], expected, rtol=0, atol=1e-11 * size)


WHOLE_STEP_VARIANCE = {
    'noise': lambda a, b, d: (a - b) * (a + b),
    'data': lambda a, b, d: (b / a)**2 * (a - b) * (a + b),
    'F': lambda a, b, d: (b**2 + d**2) * (a - b) * (a + b) / (a**2 + d**2)}


@over_predictions
@over_variants
def test_variance_of_a_step_is_exact_however_short(prediction, options):
  """All draws of a step together have the variance of the SDE's noise; no digit is lost."""
  d = 0.5
  for a, ratio in ((80.0, 0.1), (80.0, 1e-3), (80.0, 1e-9), (1.0, 1e-12), (0.01, 1e-9)):
    b = a * (1 - ratio)
    table = samplers.make('seeds', [a, b], prediction=prediction, sigma_data=d, **options)
    case = {'form': {'noise': 'eps'}.get(prediction, prediction), 'sigma_data': d}
    draws = step_map(table, case)[-1, 1 + table.rows:]
    assert np.sum(draws**2) == pytest.approx(WHOLE_STEP_VARIANCE[prediction](a, b, d), rel=1e-12)


WHOLE_STEP_DRIFT = {
    ('etd', 'noise'): lambda a, b, d: b - a,
    ('etd', 'data'): lambda a, b, d: (a - b) / a,
    ('etd', 'F'): lambda a, b, d: np.hypot(b, d) * np.arctan((a - b) * d / (d**2 + a * b)),
    ('seeds', 'noise'): lambda a, b, d: 2 * (b - a),
    ('seeds', 'data'): lambda a, b, d: (a - b) / a * (a + b) / a,
    # 2 n(b) (exp(h) - 1) with exp(h) = a norm(b) / (b norm(a)).
    ('seeds', 'F'): lambda a, b, d: 2 * d * np.hypot(b, d) * (a - b) * (a + b) / (
        np.hypot(a, d) * (a * np.hypot(b, d) + b * np.hypot(a, d))),
}


@pytest.mark.parametrize('name', ['seeds', 'etd'])
@over_predictions
@over_variants
def test_weights_of_a_step_add_up_however_short(name, prediction, options):
  """Where G is constant the step is exact, whatever the tableau."""
  d = 0.5
  for a, ratio in ((80.0, 0.9), (80.0, 1e-3), (80.0, 1e-9), (1.0, 1e-12), (0.01, 1e-9)):
    b = a * (1 - ratio)
    table = samplers.make(name, [a, b], prediction=prediction, sigma_data=d, **options)
    case = {'form': {'noise': 'eps'}.get(prediction, prediction), 'sigma_data': d}
    # Weights of y may round at 1e-16, of which those of G are taken free in `step_map`: relative
    # to the step's own size.
    weights = step_map(table, case)[-1, 1:1 + table.rows]
    expected = WHOLE_STEP_DRIFT[name, prediction](a, b, d)
    assert np.sum(weights) == pytest.approx(expected, rel=1e-11)
    assert np.all((b <= table.sigma) & (table.sigma <= a))


@over_predictions
@pytest.mark.parametrize('name', ['seeds', 'etd'])
def test_single_precision_keeps_the_digits_of_a_traced_table(name, prediction):
  """Steps of a thousandth, also where lambda saturates: high above the data's deviation."""
  sigmas = np.asarray([80.0, 79.92, 57.6, 1.0, 0.999, 0.01], np.float32)
  options = {'order': 3, 'prediction': prediction}
  double = samplers.make(name, sigmas.astype(np.float64), **options)
  with jax.enable_x64(False):
    single = jax.jit(lambda sigmas: samplers.build(name, sigmas, **options))(jnp.asarray(sigmas))
  assert single.mix.dtype == np.float32
  np.testing.assert_allclose(single.sigma, double.sigma, rtol=1e-6)
  np.testing.assert_allclose(single.noise, double.noise, rtol=5e-6)
  np.testing.assert_allclose(single.mix, double.mix, rtol=3e-6, atol=3e-7)


# -- Exact moments on Gaussian data ---------------------------------------------------------------


@pytest.mark.parametrize('kind', [describe(case) for case in MOMENTS['rows']])
def test_moments_of_the_scheme(kind):
  case, = (case for case in MOMENTS['rows'] if describe(case) == kind)
  assert case['N'] == [9, 17, 33, 65, 129, 257]
  for i in (0, 2, 4):
    n, nfe, mean, variance = (case[key][i] for key in ('N', 'nfe', 'mean', 'variance'))
    sigmas = samplers.schedule('polynomial', n - 1, MOMENTS['sigma_min'], MOMENTS['sigma_max'])
    table = make(case | {'sigma_data': MOMENTS['sigma_data']}, sigmas)
    assert table.nfe == nfe
    ours = moments.gaussian_moments(table, MOMENTS['mu0'], MOMENTS['s0']**2)
    np.testing.assert_allclose(ours, (mean, variance), rtol=1e-12)


MEAN, VARIANCE = 0.4, 0.09


def exact_moments(stochastic, first, last):
  """Moments at `last` of the reverse SDE or the ODE on Gaussian data, from N(0, first^2)."""
  ratio = (VARIANCE + last**2) / (VARIANCE + first**2)
  if not stochastic:
    return MEAN - MEAN * np.sqrt(ratio), first**2 * ratio
  fresh = (VARIANCE + last**2) * (first**2 - last**2) / (VARIANCE + first**2)
  return MEAN - MEAN * ratio, first**2 * ratio**2 + fresh


@pytest.mark.parametrize('name, options', [
    *[(name, options) for name in ('seeds', 'etd') for options in VARIANTS],
    ('etd', {'order': 4})], ids=str)
@over_predictions
def test_weak_order(name, prediction, options):
  """Orders 1, 2, 3, 4; the SDE's variance is of order 2 at most, since W is read at nodes only."""
  exact = exact_moments(name == 'seeds', 1.5, 0.15)

  def errors(n):
    sigmas = samplers.schedule('polynomial', n, 0.15, 1.5)
    table = samplers.make(name, sigmas, prediction=prediction, **options)
    return np.abs(np.subtract(moments.gaussian_moments(table, MEAN, VARIANCE), exact))

  coarse, fine = errors(40), errors(80)
  highest = 2 if name == 'seeds' else 4
  assert np.log2(coarse[1] / fine[1]) == pytest.approx(min(options['order'], highest), abs=0.3)
  if (name, prediction) == ('seeds', 'data'):  # The posterior mean of Gaussian data is linear.
    assert max(coarse[0], fine[0]) < 1e-13
  else:
    assert np.log2(coarse[0] / fine[0]) == pytest.approx(options['order'], abs=0.3)


@pytest.mark.parametrize('source', noise_lib.SOURCES)
def test_samples_have_the_moments_of_the_scheme(source):
  """Every law of the draws with mean 0 and variance 1 gives the same first two moments."""
  table = samplers.make('seeds', samplers.schedule('polynomial', 4, 0.05, 5.0), c2=0.3)
  keys = jax.random.split(jax.random.key(3), 4)
  x = np.random.default_rng(0).standard_normal((4, 32, 32, 1)) * 5.0
  denoise = reference.gaussian_denoiser(VARIANCE**0.5, MEAN)
  draw = noise_lib.SOURCES[source](keys, table)
  samples = samplers.run(table, denoise, jnp.asarray(x), draw=draw)
  mean, variance = moments.gaussian_moments(table, MEAN, VARIANCE)
  # Five standard errors.
  assert samples.mean() == pytest.approx(mean, abs=5 * np.sqrt(variance / x.size))
  assert samples.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / x.size))


# -- Traced ---------------------------------------------------------------------------------------


@over_predictions
@pytest.mark.parametrize('options', [{'order': 2, 'c2': 1.0}, {'order': 3, 'butcher': 'b'}],
                         ids=str)
def test_make_and_build_agree(prediction, options):
  """For SEEDS; the laws of all deterministic solvers have the other."""
  sigmas = samplers.schedule('polynomial', 3, 0.05, 20.0)
  options = {'prediction': prediction, **options}
  built = jax.jit(lambda sigmas: samplers.build('seeds', sigmas, **options))(jnp.asarray(sigmas))
  same_table(built, samplers.make('seeds', sigmas, **options))


@pytest.mark.parametrize('name, prediction, free, options', [
    ('seeds', 'data', True, {'order': 2, 'butcher': 'b'}), ('seeds', 'noise', True, {'order': 2}),
    ('seeds', 'F', True, {'order': 3}), ('etd', 'F', True, {'order': 2}),
    # No draw after a stage at the end: the root of its length has no slope at 0.
    ('seeds', 'data', False, {'order': 2, 'c2': 1.0}), ('etd', 'noise', False, {'order': 4})])
def test_gradient_with_respect_to_grid_and_node(name, prediction, free, options):
  """That of any function of the traced table, against differences of tables made on the host."""
  def summary(table, xp):
    weigh = [xp.sum(part * np.cos(np.arange(part.size)).reshape(part.shape))
             for part in (table.sigma, table.mix, table.noise)]
    return weigh[0] + weigh[1] + weigh[2]

  def given(at):
    return {'prediction': prediction, **options, **({'c2': at[-1]} if free else {})}

  def ours(at):
    return summary(samplers.build(name, at[:-1], final_zero=False, **given(at)), jnp)

  def host(at):
    return summary(samplers.make(name, at[:-1], **given(at)), np)

  at, step = np.asarray([5.0, 1.0, 0.2, 0.4]), 1e-5
  gradient = jax.jit(jax.grad(ours))(jnp.asarray(at))
  for slope, unit in zip(gradient, np.eye(4), strict=True):
    difference = (host(at + step * unit) - host(at - step * unit)) / (2 * step)
    assert slope.item() == pytest.approx(difference, rel=1e-6, abs=1e-8)
