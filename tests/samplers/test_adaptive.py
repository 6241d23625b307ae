"""DPM-Solver with adaptive steps: reference runs, what a sample may not see, and how it ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import adaptive
from tests import reference

KD, KD_ARRAYS = reference.load('kdiffusion')
CASES = {case['id']: case for case in KD['cases'] if case['function'] == 'sample_dpm_adaptive'}
ARRAYS, LATENTS = KD_ARRAYS['cases'], KD_ARRAYS['latents']['latents']
MIXTURE = reference.mixture_denoiser(KD_ARRAYS['mixture'])
HIGH, LOW = 14.0, 0.03
MEAN, STD = 0.7, 0.5


def mixture(x, sigma):
  """The mixture's denoiser at one level per sample."""
  return jax.vmap(lambda x, sigma: MIXTURE(x[None], sigma)[0])(x, sigma)


def gaussian(x, sigma):
  share = STD**2 / (STD**2 + sigma**2)
  return MEAN + (x - MEAN) * share[:, None, None, None]


def latents(indices=(0, 1, 2, 3)):
  return HIGH * jnp.asarray(LATENTS[list(indices)])


def keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


@functools.cache
def compiled(denoise=mixture, **options):
  return jax.jit(lambda x, key=None: adaptive.sample(denoise, x, HIGH, LOW, key=key, **options))


# -- Reference runs -------------------------------------------------------------------------------


def test_all_adaptive_cases_are_here():
  assert len(CASES) == 4 and {case['options'].get('eta', 0) for case in CASES.values()} == {0}


@functools.cache
def attempt(order):
  """One program for all numbers: (state, numbers) -> state and levels of the evaluations."""
  def one(state, numbers):
    seen = []

    def denoise(x, sigma):
      seen.append(sigma)
      return mixture(x, sigma)
    options = adaptive.Options(order=order, norm='batch')._replace(**numbers)
    return adaptive.step(options, denoise, None, LOW, state), jnp.stack(seen)
  return jax.jit(one)


@pytest.mark.parametrize('name', CASES)
def test_every_attempt_of_a_reference_run(name):
  """Levels of all evaluations, and state, lam, h and error after each attempt."""
  case = CASES[name]
  arrays = {key.split('/')[1]: value for key, value in ARRAYS.items() if key.startswith(name + '/')}
  numbers = dict(case['options'])
  assert (numbers.pop('sigma_max'), numbers.pop('sigma_min')) == (HIGH, LOW)
  options = adaptive.Options(**numbers)
  run = attempt(numbers.pop('order'))
  state, states, evaluated = adaptive.start(options, latents(), HIGH), [], []
  while adaptive.active(options, state, LOW).all():
    state, sigmas = run(state, numbers)
    states.append(state)
    evaluated += [*sigmas]
  evaluated = np.stack(evaluated)
  np.testing.assert_array_equal(evaluated, evaluated[:, :1] * np.ones(4))  # All in step.
  np.testing.assert_allclose(evaluated[:, 0], arrays['eval_sigma'], rtol=1e-10)
  for field, key in (('lam', 'accepted_t'), ('h', 'h_after'), ('error', 'error')):
    ours = np.stack([getattr(state, field)[0] for state in states])
    np.testing.assert_allclose(ours, arrays[key], rtol=1e-8, err_msg=key)
  if 'states' in arrays:
    np.testing.assert_allclose(np.stack([state.x for state in states]), arrays['states'], rtol=0,
                               atol=case['atol'])
  np.testing.assert_allclose(state.x, arrays['final'], rtol=0, atol=case['atol'])
  assert len(states) == case['info']['steps'] and len(evaluated) == case['nfe']
  np.testing.assert_array_equal(state.accepted, case['info']['n_accept'])
  np.testing.assert_array_equal(state.rejected, case['info']['n_reject'])


@pytest.mark.parametrize('name', ['dpm_adaptive_065', 'dpm_adaptive_068'])
def test_the_loop_makes_these_attempts(name):
  case = CASES[name]
  given = {key: value for key, value in case['options'].items() if not key.startswith('sigma')}
  run = jax.jit(functools.partial(adaptive.sample, mixture, **given, norm='batch'))
  end, info = run(latents(), HIGH, LOW)  # The range may be traced.
  np.testing.assert_allclose(end, ARRAYS[f'{name}/final'], rtol=0, atol=case['atol'])
  for field, key in (('steps', 'steps'), ('nfe', 'nfe'), ('accepted', 'n_accept'),
                     ('rejected', 'n_reject')):
    np.testing.assert_array_equal(getattr(info, field), case['info'][key])
  assert info.finished.all()


# -- A sample and its company ---------------------------------------------------------------------


@pytest.mark.parametrize('order', [2, 3])
def test_a_sample_does_not_depend_on_its_company(order):
  """Images, attempts and evaluations are the same alone, beside others and in another order."""
  run = compiled() if order == 3 else compiled(order=order)
  x = latents()
  whole, info = run(x)
  turned, turned_info = run(x[::-1])
  np.testing.assert_allclose(turned[::-1], whole, rtol=1e-10, atol=1e-11)
  np.testing.assert_array_equal(turned_info.nfe[::-1], info.nfe)
  for i in range(4):
    alone, alone_info = run(x[i:i + 1])
    np.testing.assert_allclose(alone[0], whole[i], rtol=1e-10, atol=1e-11)
    for field, value in zip(info._fields, info, strict=True):
      np.testing.assert_allclose(getattr(alone_info, field)[0], value[i], rtol=1e-10, err_msg=field)
  assert info.finished.all() and len(set(info.nfe.tolist())) > 1  # Their paths do differ.
  np.testing.assert_array_equal(info.nfe, order * info.steps)
  np.testing.assert_array_equal(info.steps, info.accepted + info.rejected)


def test_the_noise_of_a_sample_is_that_of_its_key():
  run, x = compiled(eta=0.5), latents()
  whole, info = run(x, keys([0, 1, 2, 3]))
  other, other_info = run(x[jnp.asarray([3, 1, 1, 1])], keys([9, 8, 1, 0]))
  np.testing.assert_allclose(other[2], whole[1], rtol=1e-10, atol=1e-11)
  assert other_info.nfe[2] == info.nfe[1]
  assert all(abs(other[i] - whole[1]).max() > 1e-2 for i in (1, 3))  # The same start, other keys.


def test_a_norm_over_the_batch_couples_samples():
  run = compiled(norm='batch')
  info = run(latents())[1]
  assert len(set(info.nfe.tolist())) == 1
  alone = [compiled()(latents([i]))[1].nfe[0].item() for i in range(4)]
  assert set(alone) != {info.nfe[0].item()}


def test_a_hopeless_sample_harms_no_other():
  """A network whose answer is no number for one sample: that one stops, the others go on."""
  def faulty(x, sigma):
    bad = (jnp.arange(4) == 2) & (sigma < 1.0)
    return jnp.where(bad[:, None, None, None], jnp.nan, mixture(x, sigma))

  end, info = compiled(faulty)(latents())
  healthy, healthy_info = compiled()(latents())
  rest = np.array([0, 1, 3])
  assert info.finished.tolist() == [True, True, False, True]
  np.testing.assert_allclose(end[rest], healthy[rest], rtol=1e-12)
  np.testing.assert_array_equal(info.nfe[rest], healthy_info.nfe[rest])
  # It rests where the last good step left it.
  assert np.isfinite(end).all() and info.level[2] >= 1.0 and info.rejected[2] >= 1


def test_a_bound_on_the_attempts():
  full = compiled(gaussian)(latents())[1]
  end, info = compiled(gaussian, max_steps=5)(latents())
  assert full.steps.min() > 5
  assert (info.steps == 5).all() and not info.finished.any() and np.isfinite(end).all()
  assert (info.level > LOW).all() and (info.level < HIGH).all()
  # One attempt less than it takes is one too few.
  last = compiled(gaussian, max_steps=full.steps.max().item() - 1)(latents())[1].finished
  np.testing.assert_array_equal(last, full.steps < full.steps.max())


# -- Accuracy -------------------------------------------------------------------------------------


@pytest.mark.parametrize('order', [2, 3])
def test_the_error_follows_the_tolerance(order):
  """On Gaussian data, against the exact flow, down to the last level."""
  exact = reference.gaussian_flow(np.asarray(latents()), HIGH, LOW, STD, MEAN)
  errors = []
  for rtol, atol in ((5e-2, 7.8e-3), (5e-4, 7.8e-5)):
    end, info = compiled(gaussian, order=order, rtol=rtol, atol=atol)(latents())
    np.testing.assert_allclose(info.level, LOW, rtol=1.1e-5)
    errors.append(abs(end - exact).max().item())
  assert errors[0] < 0.25 and errors[1] < errors[0] / 30


@pytest.mark.float32
def test_single_precision_takes_the_same_way():
  x = np.asarray(HIGH * LATENTS, np.float32)
  end, info = compiled()(x)
  assert end.dtype == np.float32 and info.finished.all()
  with jax.enable_x64(True):
    double, double_info = compiled()(latents())
  np.testing.assert_array_equal(info.nfe, double_info.nfe)
  # Early errors are all rounding, so that steps differ by some 0.1%; their own error is 0.05.
  np.testing.assert_allclose(end, double, atol=5e-3)


# -- Noise ----------------------------------------------------------------------------------------


def point(x, sigma):
  del sigma
  return jnp.full_like(x, MEAN)


@pytest.mark.parametrize('eta', [0.5, 1.7])
def test_noise_keeps_the_marginal_variance(eta):
  """Data that are one point: x - MEAN is noise of the level at all times, whatever eta."""
  start, *noise = np.random.default_rng(0).standard_normal((20, 8, 16, 16, 3))
  noise = jnp.asarray(np.stack(noise))

  def draw(accepted, x):
    return noise[accepted, jnp.arange(len(x))]

  run = jax.jit(lambda x: adaptive.sample(point, x, HIGH, LOW, eta=eta, draw=draw))
  end, info = run(jnp.asarray(MEAN + HIGH * start))
  z = (np.asarray(end) - MEAN) / LOW
  assert info.finished.all() and info.accepted.max() < len(noise)
  assert abs(z.mean()) < 6 / np.sqrt(z.size)
  assert abs(z.var() - 1) < 6 * np.sqrt(2 / z.size)
  assert np.mean(z * start) < 0.8  # The start is being forgotten.


def test_without_noise_a_point_is_approached_in_a_straight_line():
  x = MEAN + HIGH * LATENTS
  end = compiled(point)(jnp.asarray(x))[0]
  np.testing.assert_allclose((end - MEAN) / LOW, LATENTS, rtol=1e-4)


def test_deterministic_runs_draw_nothing():
  def never(accepted, x):
    raise AssertionError('drawn')
  for options in ({}, {'eta': 0.5, 's_noise': 0.0}):
    adaptive.sample(point, latents(), HIGH, LOW, draw=never, max_steps=1, **options)


def test_draws_are_numbered_by_accepted_steps_and_scaled():
  """The first accepted step of every sample draws number 0, and s_noise scales what it adds."""
  table = jnp.asarray(KD_ARRAYS['latents']['noise'])

  def end(s_noise, offset):
    def draw(accepted, x):
      return table[accepted + offset, jnp.arange(len(x))]
    return adaptive.sample(point, latents(), HIGH, LOW, eta=1.0, s_noise=s_noise, draw=draw,
                           max_steps=1)
  quiet, info = end(0.0, offset=0)
  assert (info.accepted == 1).all()
  s, s1 = HIGH, np.asarray(info.level)
  up = s1 / s * np.sqrt((s - s1) * (s + s1))  # Of a step with eta = 1.
  expected = 0.5 * up[:, None, None, None] * table[3]
  np.testing.assert_allclose(end(0.5, offset=3)[0] - quiet, expected, rtol=1e-9, atol=1e-12)


def test_a_seed_shows_the_same_image_at_another_tolerance():
  """Noise along the path of a key: the steps change, the image hardly."""
  x, key = jnp.zeros((12, *LATENTS.shape[1:])), keys(range(12))
  loose, fine = (np.asarray(run(x, key)[0]) for run in (compiled(eta=0.5),
                                                        compiled(eta=0.5, rtol=0.02)))
  apart = np.sqrt(np.mean((fine - np.roll(fine, 1, axis=0))**2))
  assert np.sqrt(np.mean((loose - fine)**2)) < 0.5 * apart


# -- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('options, message', [
    ({'order': 4}, 'dpm_adaptive: order must be 2 or 3, got 4; 3 is the default'),
    ({'order': 2.0}, 'order must be 2 or 3, got 2.0'),
    ({'rtol': 0.0}, 'dpm_adaptive: rtol must be a finite number above 0, got 0.0; 0.05'),
    ({'atol': -1.0}, 'dpm_adaptive: atol must be a finite number above 0, got -1.0; 0.0078'),
    ({'h_init': 0.0}, 'dpm_adaptive: h_init must be a finite number above 0, got 0.0; 0.05'),
    ({'icoeff': float('nan')}, 'icoeff must be a finite number, got nan; 0, 1 and 0 are'),
    ({'pcoeff': 'x'}, "pcoeff must be a finite number, got 'x'"),
    ({'accept_safety': 1.5}, 'accept_safety must be above 0 and at most 1, got 1.5; 0.81'),
    ({'eta': -0.1}, 'dpm_adaptive: eta must be a finite number of at least 0, got -0.1; 0 is'),
    ({'s_noise': -1.0}, 's_noise must be a finite number of at least 0, got -1.0'),
    ({'max_steps': 0}, 'max_steps must be an integer of at least 1, got 0; 1000'),
    ({'norm': 'pixel'}, "dpm_adaptive: unknown norm 'pixel'; known: batch, sample"),
    ({'sigma_min': 0.0}, 'sigma_min must be a finite number above 0, got 0.0; the model'),
    ({'sigma_max': float('inf')}, 'sigma_max must be a finite number above 0, got inf'),
    ({'sigma_max': 0.01}, 'dpm_adaptive: sigma_max must be above sigma_min, got 0.01 and 0.03'),
    ({'eta': 1.0}, r'noise needs a draw or one typed key per sample, shape \(4,\), got key None'),
    ({'eta': 1.0, 'key': jax.random.key(0)}, r'per sample, shape \(4,\), got key key.* of shap'),
    ({'x': np.zeros((4, 4))}, r'x must be floats of shape .* got float64 of shape \(4, 4\); add'),
    ({'x': np.zeros((1, 4, 4, 3), int)}, r'x must be floats of shape .*, got int64 of shape'),
])
def test_bad_input(options, message):
  given = {'x': latents(), 'sigma_max': HIGH, 'sigma_min': LOW, **options}
  with pytest.raises(ValueError, match=message) as error:
    adaptive.sample(mixture, **given)
  assert '\n' not in str(error.value) and '; ' in str(error.value)


def test_options_are_those_of_the_registry():
  """What a config offers, but for the noise; the record of options is the signature's."""
  options = samplers.options('dpm_adaptive')
  assert options == adaptive.Options()._asdict()
  with pytest.raises(ValueError, match='dpm_adaptive: must be called, since it is no table'):
    samplers.make('dpm_adaptive', [2.0, 1.0])
