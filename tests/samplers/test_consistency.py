"""Samplers of consistency models: recorded runs, their grids, the law of multistep sampling."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from models import denoisers
from samplers import guidance, moments
from tests import reference
from tests.samplers import replay

MANIFEST, ARRAYS = reference.load('consistency')
CASES = {case['id']: case for case in MANIFEST['cases']}
INPUTS = ARRAYS['inputs']
MIXTURE = reference.mixture_denoiser(ARRAYS['mixture'])


def test_every_case_is_here():
  assert collections.Counter(case['sampler'] for case in CASES.values()) == {
      'heun': 5, 'dpm': 2, 'euler': 2, 'ancestral': 2, 'onestep': 2, 'progdist': 3, 'multistep': 4}
  assert sum(case['distillation'] for case in CASES.values()) == 4
  assert sum(case['class_cond'] for case in CASES.values()) == 1
  assert sum(case['s_churn'] > 0 for case in CASES.values()) == 3
  assert sum(case['clip_denoised'] for case in CASES.values()) == 7
  assert sum('x_before_step' in case['arrays'] for case in CASES.values()) == 6


# -- Recorded runs --------------------------------------------------------------------------------


def of_class(x, sigma):
  """The denoisers of the components alone, each sample's own."""
  s, mu = (jnp.asarray(ARRAYS['mixture'][name][INPUTS['y']]) for name in ('s', 'mu'))
  variance = (s**2).reshape(-1, 1, 1, 1)
  return (variance * x + sigma**2 * mu) / (variance + sigma**2)


@functools.cache
def denoiser(distillation, sigma_min, class_cond, clip):
  """The manifest's network, asked with the scale and the time of the real preconditioning."""
  inner = of_class if class_cond else MIXTURE
  coefficients = functools.partial(denoisers.cm, sigma_min=sigma_min if distillation else None)

  def network(scaled, time):
    sigma = jnp.exp(time[0] / 250)
    edm = denoisers.edm(sigma)
    x = scaled / edm.c_in
    return (inner(x, sigma) - edm.c_skip * x) / edm.c_out, None

  def denoise(x, sigma):
    return denoisers.precondition(network, coefficients, x, sigma)[0]
  return guidance.clip(denoise) if clip else denoise


def grid_of(case):
  """Ours for a case: the original's ends in a 0 that progdist and multistep do not use."""
  ends = case['sigma_min'], case['sigma_max']
  if case['sampler'] == 'onestep':
    return [case['sigma_max'], case['sigma_min']]
  if case['sampler'] == 'multistep':
    return samplers.schedule('subset', case['steps'] - 1, *ends, ts=case['ts'])
  if case['sampler'] == 'progdist':
    return samplers.schedule('polynomial', case['steps'], *ends, rho=case['rho'])
  return samplers.schedule('edm', case['steps'], *ends, rho=case['rho'])


def table_of(case):
  churn = {'S_churn': case['s_churn'], 'S_min': case['s_tmin'], 'S_noise': case['s_noise'],
           'S_max': np.inf if case['s_tmax'] is None else case['s_tmax']}
  name, options = {
      'heun': ('heun', churn), 'dpm': ('dpm', {'rho': 3.0, **churn}), 'euler': ('euler', {}),
      'ancestral': ('ddim', {'eta': 1.0}), 'progdist': ('euler', {}),
      'onestep': ('consistency', {}),
      'multistep': ('consistency', {'sigma_min': case['sigma_min']})}[case['sampler']]
  return samplers.make(name, grid_of(case), **options)


def assert_close(ours, expected, case):
  """The manifest's rule: the largest difference over the larger of 1 and the largest value."""
  error = np.abs(ours - expected).max() / max(1, np.abs(expected).max())
  assert ours.shape == expected.shape and error <= case['tolerance']


@pytest.mark.parametrize('name', CASES)
def test_recorded_run(name):
  """Grid, levels and times of the evaluations, samples before and after the final clip, states."""
  case = CASES[name]
  arrays = {key.split('.')[1]: value for key, value in ARRAYS['cases'].items()
            if key.split('.')[0] == name}
  assert set(arrays) == set(case['arrays'])
  if case['sampler'] in ('heun', 'dpm', 'euler', 'ancestral'):
    np.testing.assert_allclose(grid_of(case), arrays['sigmas'], rtol=1e-12)
  elif case['sampler'] == 'progdist':
    np.testing.assert_allclose([*grid_of(case), 0.0], arrays['sigmas'], rtol=1e-12)

  table = table_of(case)
  assert table.nfe == case['model_evaluations']
  levels = reference.evaluation_levels(table)
  np.testing.assert_allclose(levels, arrays['model_sigma'], rtol=1e-11)  # Stored through its log.
  np.testing.assert_allclose(denoisers.cm(jnp.asarray(levels)).c_noise,
                             250 * np.log(arrays['model_sigma']), rtol=1e-11, atol=1e-9)

  denoise = denoiser(*(case[key] for key in (
      'distillation', 'sigma_min', 'class_cond', 'clip_denoised')))
  x = jnp.asarray(INPUTS['x_T'] * case['sigma_max'])
  raw = replay.sample(table, denoise, x, INPUTS['noise'])
  assert_close(raw, arrays['raw'], case)
  assert_close(np.clip(raw, -1, 1), arrays['sample'], case)
  if 'x_before_step' in arrays:
    states = replay.states(table, denoise, x, INPUTS['noise'])[:-1]
    weights = np.zeros(len(states))  # The original reports states with the noise of the churn.
    before = np.isnan(table.level) & table.noise.any(axis=1)
    weights[replay.steps_of_rows(table)[before]] = table.noise[before, 0]
    states = states + weights.reshape(-1, 1, 1, 1, 1) * INPUTS['noise'][:len(states)]
    for ours, expected in zip(states, arrays['x_before_step'], strict=True):
      assert_close(ours, expected, case)


def test_recorded_preconditioning():
  """What the recorded networks stand on: tables of the coefficients and of the network's time."""
  tables, sigma = ARRAYS['tables'], jnp.asarray(ARRAYS['tables']['sigma'])
  for name, low in (('edm', None), ('consistency', 0.002)):
    ours = denoisers.cm(sigma, sigma_min=low)
    for field in ('c_skip', 'c_out', 'c_in'):
      np.testing.assert_allclose(getattr(ours, field), tables[f'{name}.{field}'], rtol=1e-12,
                                 atol=1e-15)
  np.testing.assert_allclose(denoisers.cm(sigma).c_noise, tables['rescaled_t'], rtol=1e-12)


def test_recorded_grids():
  grids = {key: value for key, value in ARRAYS['tables'].items() if key.startswith('karras.')}
  assert len(grids) == 4
  for key, expected in grids.items():
    steps, low, high, rho = _numbers(key.removeprefix('karras.'))
    ours = samplers.schedule('edm', int(steps), low, high, rho=rho)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)


def _numbers(text):
  """'10.0.002.80.0.7.0' as 10, 0.002, 80.0, 7.0: an integer and three decimals."""
  first, *parts = text.split('.')
  return [float(first), *(float('.'.join(parts[i:i + 2])) for i in (0, 2, 4))]


# -- Multistep sampling ---------------------------------------------------------------------------


def test_two_levels_are_one_step():
  x = jnp.full((2, 2, 2, 1), 30.0)
  for last in (0.0, 0.002):
    table = samplers.make('consistency', [40.0, last])
    assert table.nfe == table.rows == 1 and not table.noise.any()
    denoise = reference.gaussian_denoiser(0.5, 0.7)
    np.testing.assert_array_equal(samplers.run(table, denoise, x), denoise(x, 40.0))


def test_levels_and_noise():
  """Every answer gets the noise that takes it from sigma_min to the next level."""
  sigmas = [80.0, 5.0, 0.5, 0.1]
  for sigma_min, low in ((None, 0.1), (0.02, 0.02), (0.0, 0.0)):
    table = samplers.make('consistency', sigmas, sigma_min=sigma_min)
    np.testing.assert_array_equal(table.sigma, sigmas[:-1])
    np.testing.assert_array_equal(table.level, sigmas[1:])
    np.testing.assert_allclose(table.noise[:, 0]**2, np.square(sigmas[1:]) - low**2, rtol=1e-13)
    assert np.isnan(table.interval).all()
  low = samplers.make('consistency', sigmas, sigma_min=2.0)  # Below its lowest level: no noise.
  np.testing.assert_allclose(low.noise[:, 0]**2, [21.0, 0, 0], rtol=1e-13)


def test_a_perfect_model_samples_the_data_in_any_number_of_steps():
  """Where D is the solution of the ODE, every step keeps the distribution at its level.

  Gaussian data: D is linear in x, and D = sqrt((v + sigma_min^2) / (v + sigma^2)) (x - mu) + mu.
  """
  mean, variance, low = 0.7, 0.25, 0.01
  sigmas = [40.0, 8.0, 1.0, 0.3, low]
  table = samplers.make('consistency', sigmas)
  state = variance + sigmas[0]**2
  for sigma, noise, mix in zip(table.sigma, table.noise[:, 0], table.mix, strict=True):
    np.testing.assert_array_equal(mix, [[0, 1]])
    state = state * (variance + low**2) / (variance + sigma**2) + noise**2
    level = sigmas[sigmas.index(sigma) + 1]
    assert state == pytest.approx(variance + level**2, rel=1e-12)
  # The denoiser of the same data answers with means: less variance at the end.
  end = moments.gaussian_moments(table, mean, variance, start=(mean, variance + sigmas[0]**2))
  assert end[0] == pytest.approx(mean) and end[1] < 0.8 * variance


def test_make_and_build_agree_and_have_gradients():
  sigmas = np.array([20.0, 2.0, 0.5, 0.1])
  for final in ([], [0.0]):
    grid = np.append(sigmas, final)
    made = samplers.make('consistency', grid)
    built = samplers.build('consistency', jnp.asarray(grid))
    for field in ('sigma', 'mix', 'noise', 'level'):
      np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-14)

  def noise(sigmas):
    return samplers.build('consistency', sigmas, sigma_min=0.1).noise[:, 0]
  slopes = jax.jacobian(noise)(jnp.asarray(sigmas))
  expected = np.diag(sigmas[1:] / np.sqrt(sigmas[1:]**2 - 0.1**2 + (sigmas[1:] == 0.1)))
  expected[-1, -1] = 0.0  # sigma_min itself, where the root has no slope.
  np.testing.assert_allclose(slopes[:, 1:], expected, rtol=1e-12)
  np.testing.assert_array_equal(slopes[:, 0], 0)


@pytest.mark.parametrize('sigma_min', [-0.1, float('inf'), float('nan'), 'low'])
def test_bad_sigma_min(sigma_min):
  with pytest.raises(ValueError, match='^consistency: sigma_min must be a finite number >= 0, got'):
    samplers.make('consistency', [40.0, 1.0], sigma_min=sigma_min)


# -- Grids and the inner level of dpm -------------------------------------------------------------


def test_subset_takes_levels_of_the_polynomial_grid():
  whole = samplers.schedule('polynomial', 39, 0.002, 80.0)
  chosen = samplers.schedule('subset', 39, 0.002, 80.0, ts=[0, 22, 39])
  np.testing.assert_array_equal(chosen, whole[[0, 22, 39]])
  text = samplers.schedule('subset', 39, 0.002, 80.0, ts=[0.0, 22.0, 39.0])  # As a config has it.
  np.testing.assert_array_equal(text, chosen)
  np.testing.assert_array_equal(samplers.schedule('subset', 39, 0.002, 80.0), whole)
  other = samplers.schedule('subset', 10, 0.002, 80.0, rho=3, ts=range(0, 11, 5))
  np.testing.assert_array_equal(other, samplers.schedule('polynomial', 2, 0.002, 80.0, rho=3))


@pytest.mark.parametrize('ts', [[0], [0, 40], [0, 0, 39], [39, 0], [-1, 5], [0, 2.5], [[0, 39]]])
def test_bad_ts(ts):
  with pytest.raises(ValueError, match=r'^subset: ts must be two or more increasing integers from '
                                       r'0 to num_steps = 39, got \['):
    samplers.schedule('subset', 39, 0.002, 80.0, ts=ts)
  with pytest.raises(ValueError, match='^subset: ts must be a list of numbers'):
    samplers.schedule('subset', 39, 0.002, 80.0, ts='best')


def test_inner_level_of_dpm():
  """Halfway in sigma^(1/rho), also in a step to 0; the geometric mean for a large rho."""
  table = samplers.make('dpm', [8.0, 1.0, 0.0], rho=3.0)
  np.testing.assert_allclose(table.sigma, [8.0, 1.5**3, 1.0, 0.125], rtol=1e-15)
  table = samplers.make('dpm', [8.0, 1.0], rho=3.0, r=0.25)
  np.testing.assert_allclose(table.sigma, [8.0, 1.75**3], rtol=1e-15)
  sigmas = [8.0, 2.0, 0.5]
  geometric, limit = (reference.linear_map(samplers.make('dpm', sigmas, rho=rho))
                      for rho in (None, 1e7))
  np.testing.assert_allclose(limit, geometric, atol=1e-5)
  # The inner level of a step to 0 would be 0 with r = 1: Euler, as without rho.
  ends = [samplers.make('dpm', [8.0, 1.0, 0.0], r=1.0, rho=rho) for rho in (None, 3.0)]
  np.testing.assert_allclose(*(reference.linear_map(end) for end in ends), atol=1e-14)
  assert ends[1].nfe == 3
  with pytest.raises(ValueError, match='^dpm: rho must be a finite number above 0, got 0.0; 3 is'):
    samplers.make('dpm', sigmas, rho=0.0)
