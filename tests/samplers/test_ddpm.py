"""DDPM, DDIM and its inversion: reference numbers and closed forms."""

import collections
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import ddpm, guidance, noise as noise_lib
from tests import reference
from tests.samplers import chain_cases

MANIFEST, ARRAYS = reference.load('ddpm')
CASES = {case['id']: case for case in MANIFEST['cases']}
INPUTS = ARRAYS['inputs']
TABLES = ARRAYS['tables']


def of_kind(*kinds):
  return [name for name, case in CASES.items() if case['sampler'] in kinds]


def arrays_of(name):
  return {key.split('.', 1)[1]: value for key, value in ARRAYS[CASES[name]['file'][:-4]].items()
          if key.startswith(f'{name}.')}


def test_every_case_is_here():
  assert len(CASES) == len(MANIFEST['cases']) == 28
  assert collections.Counter(case['sampler'] for case in CASES.values()) == {
      'ddpm': 15, 'ddim': 9, 'ddim_reverse': 3, 'bpd': 1}
  assert collections.Counter(case['model_var_type'] for case in CASES.values()) == {
      'learned_range': 20, 'fixed_large': 5, 'fixed_small': 3}


def start(name):
  """The state at the first level: y is a standard normal draw whatever alpha_bar is there."""
  sigmas = chain_cases.grid(CASES[name])
  return sigmas, INPUTS['x_T'] * chain_cases.root(sigmas[0])[0]


# -- Reference numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize('name', CASES)
def test_levels_are_whole_steps_of_the_network(name):
  case, arrays = CASES[name], arrays_of(name)
  sigmas = chain_cases.grid(case)
  assert len(sigmas) == case['num_steps'] + 1
  times = chain_cases.times(case, sigmas[:-1])
  if case['sampler'] == 'ddim_reverse':
    times = times[::-1]
  for kind in {'model_t', 'cond_t'} & arrays.keys():
    np.testing.assert_allclose(times, arrays[kind], rtol=0, atol=1e-6)


@pytest.mark.parametrize('name', of_kind('ddpm'))
def test_ddpm(name):
  case, arrays = CASES[name], arrays_of(name)
  _, x = start(name)
  states = chain_cases.run_ddpm(case, x, INPUTS['noise'], INPUTS['y'])
  chain_cases.assert_close(states, arrays['traj'], case)


@pytest.mark.parametrize('name', [name for name in of_kind('ddpm')
                                  if CASES[name]['model_var_type'] != 'learned_range'])
def test_ddpm_as_a_table(name):
  _, x = start(name)
  end = chain_cases.run_fixed(CASES[name], x, INPUTS['noise'], INPUTS['y'])
  chain_cases.assert_close(end, arrays_of(name)['traj'][-1], CASES[name])


@pytest.mark.parametrize('name', of_kind('ddim'))
def test_ddim(name):
  sigmas, x = start(name)
  chain_cases.check_ddim(CASES[name], sigmas, x, INPUTS['noise'], INPUTS['y'],
                         arrays_of(name)['traj'])


@pytest.mark.parametrize('name', of_kind('ddpm', 'ddim'))
def test_predicted_images(name):
  """The guided one for DDIM; DDPM's guidance acts on the mean, not on the image."""
  case, arrays = CASES[name], arrays_of(name)
  sigmas, x = start(name)
  case = case if case['sampler'] == 'ddim' else {**case, 'classifier_scale': 0.0}
  problem = chain_cases.Problem.of(case, INPUTS['y'])
  states = np.concatenate([x[None], arrays['traj'][:-1] * chain_cases.root(sigmas[1:-1])])
  stored = arrays.get('pred_xstart', arrays['pred_xstart_last'][None])
  last = slice(-len(stored), None)  # All steps, or the last one alone.
  for sigma, state, expected in zip(sigmas[:-1][last], states[last], stored, strict=True):
    image = chain_cases.compiled()['guided_images'](jnp.asarray(state), sigma, problem)
    chain_cases.assert_close(image, expected, case)


@pytest.mark.parametrize('name', of_kind('ddim_reverse'))
def test_inversion_is_euler_on_an_increasing_grid(name):
  """The original reads the image as y at the lowest level; its last state is eps at the highest."""
  case, arrays = CASES[name], arrays_of(name)
  up = chain_cases.grid(case)[:-1][::-1]
  problem = chain_cases.Problem.of(case, INPUTS['y'])
  x = INPUTS['x_data'] * chain_cases.root(up[0])[0]
  for i in range(1, len(up)):
    table = samplers.make('euler', up[:i + 1])
    end = chain_cases.compiled()['guided_run'](
        samplers.pad(table, chain_cases.STEPS, 1), jnp.asarray(x),
        chain_cases.noise_pool(INPUTS['noise']), problem)
    chain_cases.assert_close(end / chain_cases.root(up[i])[0], arrays['traj'][i - 1], case)
  eps = (end - chain_cases.denoiser(problem)(end, up[-1])) / up[-1]
  chain_cases.assert_close(eps, arrays['traj'][-1], case)


@pytest.mark.parametrize('chain', [('linear', 1000, '20'), ('cosine', 1000, 'ddim25'),
                                   ('linear', 400, '10,10,5')])
def test_coefficients_are_those_of_the_respaced_betas(chain):
  """Against beta and its kin, which cancel more: hence 1e-10."""
  schedule, num, respacing = chain
  prefix = f'chain.{schedule}.{num}.{respacing}.'
  expected = {key.removeprefix(prefix): value[::-1] for key, value in TABLES.items()
              if key.startswith(prefix)}
  sigmas = chain_cases.grid({'noise_schedule': schedule, 'diffusion_steps': num,
                             'timestep_respacing': respacing})
  steps = ddpm.coefficients(sigmas)
  alpha_bar, alpha_bar_next = 1 / (1 + steps.sigma**2), 1 / (1 + steps.level**2)
  for ours, theirs in (
      (alpha_bar, 'alphas_cumprod'), (alpha_bar_next, 'alphas_cumprod_prev'),
      (np.exp(steps.log_upper), 'betas'), (steps.log_lower, 'posterior_log_variance_clipped'),
      (np.sqrt(alpha_bar_next) * steps.pull, 'posterior_mean_coef1'),
      (np.sqrt(alpha_bar_next / alpha_bar) * steps.keep, 'posterior_mean_coef2')):
    np.testing.assert_allclose(ours, expected[theirs], rtol=1e-8 if schedule == 'cosine' else 1e-10)


# -- Closed forms ---------------------------------------------------------------------------------

GRID = samplers.schedule('karras', 6, 0.05, 20.0)


def variance_at_the_end(table, variance, data):
  """Variance of the sample where D = mean + shrink (x - mean), by the table's own coefficients."""
  covariance = np.zeros((table.slots,) * 2)
  covariance[0, 0] = variance
  for sigma, kind, mix, noise in zip(table.sigma, table.kind, table.mix, table.noise, strict=True):
    answer = np.zeros((1, table.slots))
    answer[0, 0] = data / (data + sigma**2) if kind == 0 else 0
    step = mix[:, :-1] + mix[:, -1:] @ answer
    covariance = step @ covariance @ step.T + np.outer(noise, noise)
  return covariance[0, 0]


@pytest.mark.parametrize('variance, data', [('fixed_small', 0.0), ('fixed_large', 1.0)])
def test_bounds_of_the_variance_are_exact_for_the_data_they_are_made_for(variance, data):
  """A single point, and unit variance: any number of steps gives the exact law at every level."""
  for sigmas in (GRID[:-1], GRID[:3], GRID[[0, 5]]):
    table = samplers.make('ddpm', sigmas, variance=variance)
    end = variance_at_the_end(table, data + sigmas[0]**2, data)
    assert end == pytest.approx(data + sigmas[-1]**2, rel=1e-12)


def test_small_variance_is_ddim_with_eta_1():
  x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 4, 3)) * 20)
  denoise = reference.gaussian_denoiser(0.5, 0.2)
  noise = jnp.asarray(np.random.default_rng(1).standard_normal((6, 2, 4, 4, 3)))
  small = samplers.run(samplers.make('ddpm', GRID), denoise, x, draw=lambda r, x: noise[r // 2])
  ddim = samplers.run(samplers.make('ddim', GRID, eta=1.0), denoise, x, draw=lambda r, x: noise[r])
  np.testing.assert_allclose(small, ddim, rtol=1e-12)


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large'])
def test_weights_do_not_cancel_on_tiny_steps(variance):
  """A step of relative length 1e-13 adds the noise of its own length."""
  low = 1 - 2**-43
  noise = samplers.make('ddpm', [1.0, low], variance=variance).noise[1, 0]
  # Both bounds tend to sigma^2 - sigma'^2.
  assert noise == pytest.approx(math.sqrt(2**-43 * (1 + low)), rel=1e-12)


def test_nothing_is_drawn_in_the_last_step_and_the_small_variance_does_not_guide_there():
  for variance, rows in (('fixed_small', 11), ('fixed_large', 12)):
    table = samplers.make('ddpm', GRID, variance=variance)
    assert table.rows == rows and table.nfe == 6
    drawn = ~np.isnan(table.interval).any(axis=1)
    np.testing.assert_array_equal(drawn, table.noise.any(axis=1))
    assert drawn.sum() == 5 and not drawn[-1]


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large'])
def test_a_traced_grid_gives_the_same_table(variance):
  for sigmas, options in ((GRID, {'afs': True}), (GRID[:-1], {'denoise_to_zero': True}),
                          (GRID[-2:], {})):
    made = samplers.make('ddpm', sigmas, variance=variance, **options)
    built = samplers.build('ddpm', jnp.asarray(sigmas), variance=variance, **options)
    for field in ('sigma', 'kind', 'mix', 'noise', 'level', 'interval'):
      np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-12,
                                 atol=1e-14, err_msg=field)


def test_one_step_to_0_asks_for_the_level_above():
  chain = samplers.schedule('respaced', 30)
  whole, alone = ddpm.coefficients(chain), ddpm.coefficients(chain[-2:], above=chain[-3])
  for column, one in zip(whole, alone, strict=True):
    np.testing.assert_array_equal(column[-1:], one)
  # Without it, the level above is far away.
  far = ddpm.coefficients(chain[-2:]).log_lower
  np.testing.assert_allclose(far, ddpm.coefficients([chain[-2], 0.0], above=1e9).log_lower)


def test_encoding_and_decoding_return_the_image():
  """Euler up and down again; the error falls with the number of steps."""
  x = jnp.asarray(INPUTS['x_data'])
  sample = reference.sampler(reference.mixture_denoiser(chain_cases.MIXTURE))
  errors = []
  for respacing in ('20', '40'):
    sigmas = samplers.schedule('respaced', respacing=respacing)[:-1]
    there = sample(samplers.make('ddim', sigmas[::-1]), x)
    back = sample(samplers.make('ddim', sigmas), there)
    assert 0.5 < float(there.std()) / sigmas[0] < 1.2  # Noise, up to the error of a few steps.
    errors.append(float(jnp.sqrt(jnp.mean((back - x)**2))))
  assert errors[1] < 0.6 * errors[0] and errors[1] < 0.1


# -- The scan of learned variances ----------------------------------------------------------------

DENOISE = reference.gaussian_denoiser(0.5, 0.2)
NOISE = np.random.default_rng(3).standard_normal((9, 3, 4, 4, 3))


def network(x, sigma):
  return DENOISE(x, sigma), jnp.tanh(x)


def keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def images(count=3):
  return jnp.asarray(np.random.default_rng(5).standard_normal((count, 4, 4, 3)) * 20)


def recorded(r, x):
  return jnp.asarray(NOISE, x.dtype)[r, :len(x)]


def guided(x, sigma):
  return jnp.tanh(x) * sigma


@pytest.fixture
def path_by_interval(monkeypatch):
  """Draws that depend on the interval and the key alone, as a Brownian path's, but compile fast."""
  def fake(keys, interval):
    independent = noise_lib.by_row(keys)

    def draw(row, x):
      return independent((1e6 * jnp.asarray(interval)[row].sum()).astype(int), x)
    return draw
  monkeypatch.setattr(noise_lib, 'brownian', fake)


@functools.cache
def by_key():
  """Samples of a table, and of a chain, from one key per sample."""
  def table(table, x, key):
    return samplers.run(table, DENOISE, x, key=key, guide=guided)

  def chain(steps, x, key):
    return ddpm.sample(steps, network, x, key=key, guide=guided)
  return jax.jit(table), jax.jit(chain)


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large'])
def test_with_a_fixed_variance_it_is_the_table(variance, path_by_interval):
  """The same noise from the same keys, guidance included, whatever the network answers."""
  x, key = images(), keys([1, 2, 3])
  table = samplers.make('ddpm', GRID, variance=variance)
  expected = by_key()[0](samplers.pad(table, 12, 2), x, key)
  got = by_key()[1](ddpm.coefficients(GRID, variance), x, key)
  np.testing.assert_allclose(got, expected, rtol=1e-11)


def test_a_sample_depends_on_its_own_key_alone(path_by_interval):
  steps, x = ddpm.coefficients(GRID), images()
  whole = by_key()[1](steps, x, keys([5, 6, 7]))
  other = by_key()[1](steps, x[jnp.asarray([1, 1, 2])], keys([99, 6, 7]))
  np.testing.assert_allclose(other[1:], whole[1:], rtol=1e-12)
  again = by_key()[1](steps, x, keys([5, 99, 7]))
  np.testing.assert_allclose(again[::2], whole[::2], rtol=1e-12)
  assert abs(again[1] - whole[1]).max() > 0.1


@pytest.mark.parametrize('v, variance', [(-1.0, 'fixed_small'), (1.0, 'fixed_large')])
def test_the_answer_of_the_network_places_the_variance_between_the_bounds(v, variance):
  """On a grid that ends above 0: in a step to 0 it is the guidance alone that differs."""
  def constant(x, sigma):
    return DENOISE(x, sigma), jnp.full_like(x, v)
  got = ddpm.sample(ddpm.coefficients(GRID[:-1]), constant, images(), draw=recorded, guide=guided)
  expected = samplers.run(samplers.make('ddpm', GRID[:-1], variance=variance), DENOISE, images(),
                          draw=lambda r, x: recorded(r // 2, x), guide=guided)
  np.testing.assert_allclose(got, expected, rtol=1e-11)


def test_other_chains_share_the_program_and_padding_changes_nothing():
  traces = []

  @jax.jit
  def run(steps, x):
    traces.append(1)
    return ddpm.sample(steps, network, x, draw=recorded, trajectory=True)

  for sigmas in (GRID, GRID[1:], samplers.schedule('respaced', respacing='ddim5')):
    steps = ddpm.coefficients(sigmas)
    plain, states = ddpm.sample(steps, network, images(), draw=recorded, trajectory=True)
    padded = ddpm.pad(steps, 9)
    assert padded.nfe == steps.nfe == len(sigmas) - 1
    end, more = run(padded, images())
    np.testing.assert_allclose(end, plain, rtol=1e-12)
    np.testing.assert_allclose(more[:len(states)], states, rtol=1e-12)
    np.testing.assert_array_equal(states[0], images())
  assert len(traces) == 1


def test_imputation_is_that_of_run():
  def project(x, sigma, z):
    return 0.7 * x + 0.1 * (1 + sigma) * z
  steps, plain = ddpm.coefficients(GRID, 'fixed_large'), ddpm.without_variance(DENOISE)
  expected = samplers.run(samplers.make('ddpm', GRID, variance='fixed_large'), DENOISE, images(),
                          draw=lambda r, x: recorded(r // 2, x), project=project,
                          project_draw=lambda r, x: recorded(2 + r // 2, x))
  got = ddpm.sample(steps, plain, images(), draw=recorded, project=project,
                    project_draw=lambda r, x: recorded(2 + r, x))
  np.testing.assert_allclose(got, expected, rtol=1e-11)
  # Without a draw of its own it has a stream of the key.
  of_key = jax.jit(lambda key: ddpm.sample(steps, plain, images(), draw=recorded, key=key,
                                           project=project))
  of_keys = [of_key(keys(seeds)) for seeds in ([1, 2, 3], [1, 5, 3])]
  np.testing.assert_array_equal(of_keys[0][::2], of_keys[1][::2])
  assert abs(of_keys[0] - of_keys[1])[1].max() > 0.01 < abs(of_keys[0] - got).max()
  with pytest.raises(ValueError, match='^ddpm: noise needs a draw or one typed key per sample'):
    ddpm.sample(steps, plain, images(), draw=recorded, project=project)


def test_a_limit_on_the_image_leaves_the_variance():
  denoised, v = ddpm.change(network, guidance.clip)(images(), 0.3)
  np.testing.assert_array_equal(denoised, jnp.clip(DENOISE(images(), 0.3), -1, 1))
  np.testing.assert_array_equal(v, jnp.tanh(images()))


@pytest.mark.float32
def test_single_precision():
  steps = ddpm.coefficients(GRID)

  def run():
    return ddpm.sample(steps, network, images(), draw=recorded, guide=guided)
  single = run()
  with jax.enable_x64(True):
    double = np.asarray(run())
  assert single.dtype == jnp.float32 and double.dtype == np.float64
  np.testing.assert_allclose(single, double, rtol=0, atol=2e-5)


# -- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('call, message', [
    (lambda: samplers.make('ddpm', GRID, variance='small'),
     "^ddpm: unknown variance 'small'; did you mean fixed_small"),
    (lambda: samplers.make('ddpm', GRID, variance='learned'),
     "^ddpm: variance must be 'fixed_small' or 'fixed_large' in a table, .*; samplers.ddpm.sample"),
    (lambda: samplers.make('ddpm', GRID[:-1][::-1]), '^ddpm: sigmas must decrease for a solver'),
    (lambda: samplers.make('ddim', GRID, eta=-0.1), '^ddim: eta must be between 0 and 1, got -0.1'),
    (lambda: ddpm.coefficients(GRID, 'large'), "^ddpm: unknown variance 'large'.* known: "),
    (lambda: ddpm.coefficients(GRID[::-1]), '^ddpm: sigmas must decrease, got 0.05'),
    (lambda: ddpm.coefficients([1.0, 0.0], above=0.5),
     '^ddpm: above must be a level above the first one, 1, got 0.5; '),
    (lambda: ddpm.pad(ddpm.coefficients(GRID), 5), '^ddpm: rows must be at least .* 6, got 5; '),
    (lambda: ddpm.sample(ddpm.coefficients(GRID), network, images()),
     r'^ddpm: noise needs a draw or one typed key per sample, shape \(3,\), got key None'),
    (lambda: ddpm.sample(ddpm.coefficients(GRID), network, images(), key=keys([1])),
     r'^ddpm: noise needs .* got key key<fry> of shape \(1,\); use jax.random.split'),
    (lambda: ddpm.sample(ddpm.coefficients(GRID), network, jnp.zeros((3, 4, 4, 3), jnp.uint8),
                         key=keys([1, 2, 3])), '^ddpm: x must be floats of shape .* got uint8'),
    (lambda: ddpm.sample(ddpm.coefficients(GRID), network, jnp.zeros((4, 4, 3)), key=keys([1])),
     '^ddpm: x must be floats of shape .batch, height'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message) as error:
    call()
  assert '\n' not in str(error.value)
