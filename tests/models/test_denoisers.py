"""Conventions of time and prediction: against recorded numbers, and on data with a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from models import denoisers, networks
from samplers import guidance, levels
from tests import reference

MANIFEST, ARRAYS = reference.load('edm_nets')
WRAPPED, TABLES = ARRAYS['wrappers'], ARRAYS['noise_tables']
CASES = {case['id']: case for case in MANIFEST['wrapper_cases']}
MEAN, STD = 0.3, 0.5  # Of the data where the answer is known.


def toy(x, time, condition=0.0):
  """The recorded network, -> like x."""
  a, b, c = (WRAPPED[f'toy_{name}'] for name in 'abc')
  rest = jnp.broadcast_to(b * time + c * condition, (len(x),))[:, None, None, None]
  return jnp.sin(a * x + rest)


def evaluate(case, x, sigma):
  """D of a recorded wrapper, and what its network received."""
  name, settings = case['id'], case['kwargs']
  seen = []
  def network(x, time, condition=0.0):
    seen.append((x, time))
    return toy(x, time, condition)
  if case['wrapper'] == 'CMPrecond':
    coefficients = networks.preconditioning('cm', {})
    denoised = denoisers.precondition(lambda *args: (network(*args), None), coefficients, x, sigma)
    return denoised[0], seen
  if case['wrapper'] == 'CGPrecond':
    labels = WRAPPED[f'{name}/class_labels']
    coefficients = networks.preconditioning('vp', {})
    def denoise(x, sigma):
      def two_halves(x, time):
        return jnp.concatenate([network(x, time, labels), jnp.cos(x)], axis=-1), None
      return denoisers.precondition(two_halves, coefficients, x, sigma)[0]
    def log_prob(x, sigma):
      c = coefficients(sigma)
      scaled = c.c_in[:, None, None, None] * x
      logits = jnp.einsum('bhwc,khwc->bk', jnp.tanh(scaled), WRAPPED['classifier_W']) + (
          c.c_noise[:, None] / 1000 * WRAPPED['classifier_b'][None])
      return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
    guided = guidance.classifier(denoise, log_prob, settings['guidance_rate'])
    return guidance.clip(guided)(x, sigma), seen
  denoise = denoisers.from_eps(network, denoisers.discrete_time(WRAPPED['alphas_cumprod']))
  conditions = [WRAPPED[f'{name}/{field}'] for field in case['call']]
  plain = lambda x, sigma: denoise(x, sigma, *conditions[:1])  # noqa: E731
  if len(conditions) < 2 or settings['guidance_rate'] == 1:
    return plain(x, sigma), seen
  uncond = lambda x, sigma: denoise(x, sigma, conditions[1])  # noqa: E731
  return guidance.classifier_free(plain, uncond, settings['guidance_rate'])(x, sigma), seen


@pytest.mark.parametrize('name', CASES)
def test_wrappers_of_the_reference(x64, name):
  arrays = {field.removeprefix(f'{name}/'): value for field, value in WRAPPED.items()
            if field.startswith(f'{name}/')}
  sigma = jnp.asarray(arrays['sigma'])
  with jax.numpy_rank_promotion('allow'):  # Of the toy network.
    denoised, seen = evaluate(CASES[name], jnp.asarray(arrays['x']),
                              sigma[0] if sigma.shape == (1,) else sigma)
  np.testing.assert_allclose(denoised, arrays['D_f64'], rtol=1e-9, atol=1e-12)
  got_x, got_time = (np.concatenate(parts) for parts in zip(*seen[::-1], strict=True))
  np.testing.assert_allclose(got_x, arrays['net_x_f64'], rtol=1e-12)
  np.testing.assert_allclose(got_time, np.broadcast_to(arrays['net_t_f64'], got_time.shape),
                             rtol=1e-9)


def test_all_wrappers_of_the_reference_are_here():
  assert len(CASES) == 8


def test_times_of_the_reference(x64):
  time = denoisers.discrete_time(WRAPPED['alphas_cumprod'])(jnp.asarray(
      WRAPPED['discrete_sigma_in']))
  np.testing.assert_allclose((time + 1) / 1000, WRAPPED['discrete_sigma_inv'], rtol=1e-9)
  vp = denoisers.vp(jnp.asarray(TABLES['vp_sigma'][1:]), TABLES['vp_beta_d'], TABLES['vp_beta_min'])
  np.testing.assert_allclose(vp.c_noise / 999, TABLES['vp_t'][1:], rtol=1e-9)
  index = 999 - denoisers.iddpm(jnp.asarray(TABLES['sigma']), u=TABLES['u_float32']).c_noise
  assert (np.asarray(index) == TABLES['index_exact_nearest_in_u_float32']).all()
  np.testing.assert_allclose(levels.iddpm_levels(), TABLES['u_float64'], rtol=1e-9)


def test_vp_time_keeps_its_digits_in_32_bit_at_low_noise():
  sigma = np.geomspace(1e-3, 100, 40)
  exact = 999 * levels.vp_time_of_sigma(sigma, 19.9, 0.1)
  # Six roundings; log(1 + sigma^2) as the original takes it loses half of the digits here.
  np.testing.assert_allclose(denoisers.vp(jnp.asarray(sigma, jnp.float32)).c_noise, exact,
                             rtol=6 * 2**-24)


def ideal(x, sigma):
  """D(x; sigma) of N(MEAN, STD^2)."""
  return MEAN + (x - MEAN) * STD**2 / (STD**2 + sigma**2)


def in_vp(kind):
  """The ideal prediction in a VP network's own coordinates: scaled image and time in [0, 1]."""
  def predict(scaled, time):
    sigma = levels.sigma_of_vp_time(time, 19.9, 0.1, jnp)[:, None, None, None]
    alpha = 1 / jnp.sqrt(1 + sigma**2)
    x0 = ideal(scaled / alpha, sigma)
    eps = (scaled / alpha - x0) / sigma
    return {'eps': eps, 'x0': x0, 'v': alpha * eps - alpha * sigma * x0}[kind]
  return predict


def vp_time(sigma):
  return levels.vp_time_of_sigma(sigma, 19.9, 0.1, jnp)


def velocity(x_t, t):
  """The ideal velocity of a flow: E[z - x0 | x_t]."""
  t = t[:, None, None, None]
  variance = (1 - t)**2 * STD**2 + t**2
  centred = x_t - (1 - t) * MEAN
  return t / variance * centred - (MEAN + (1 - t) * STD**2 / variance * centred)


DENOISERS = {
    'eps': denoisers.from_eps(in_vp('eps'), vp_time),
    'x0': denoisers.from_x0(in_vp('x0'), vp_time),
    'v': denoisers.from_v(in_vp('v'), vp_time),
    'flow': denoisers.from_flow(velocity),
    'eps ve': denoisers.from_eps(
        lambda x, time: (x - ideal(x, jnp.exp(time)[:, None, None, None]))
        / jnp.exp(time)[:, None, None, None], jnp.log, scaling='ve'),
}


@pytest.mark.parametrize('kind', DENOISERS)
@pytest.mark.parametrize('sigma', [0.01, 0.7, np.array([30.0, 0.2])])
def test_every_prediction_gives_the_same_denoiser(x64, kind, sigma):
  x = MEAN + jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 3)))
  expected = ideal(x, jnp.reshape(sigma, (-1, 1, 1, 1)))
  np.testing.assert_allclose(DENOISERS[kind](x, sigma), expected, rtol=1e-9, atol=1e-11)


def test_further_arguments_reach_the_network():
  denoise = denoisers.from_x0(lambda x, time, label: label[:, None, None, None] + 0 * x, jnp.log)
  x = jnp.ones((2, 1, 1, 1))
  assert denoise(x, 1.0, jnp.array([3.0, 4.0])).ravel().tolist() == [3, 4]


def test_a_flow_is_solved_on_its_own_grid(x64):
  sigmas = samplers.schedule('flow_dpm', 64, shift=3.0)
  t = np.linspace(0.999, 0, 65)
  np.testing.assert_allclose(denoisers.flow_time(sigmas), 3 * t / (1 + 2 * t), rtol=1e-12)
  np.testing.assert_allclose(denoisers.flow_sigma(denoisers.flow_time(sigmas)), sigmas, rtol=1e-12)
  x = MEAN + sigmas[0] * jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 1)))
  got = samplers.run(samplers.make('heun', sigmas), DENOISERS['flow'], x)
  exact = reference.gaussian_flow(x, sigmas[0], 0.0, STD, MEAN)
  assert abs(got - exact).max() < 0.01  # In units of [-1, 1]; it falls by 4 with twice the steps.
  finer = samplers.schedule('flow_dpm', 128, shift=3.0)
  better = samplers.run(samplers.make('heun', finer), DENOISERS['flow'], x)
  assert abs(better - exact).max() < abs(got - exact).max() / 3


@pytest.mark.parametrize('call, message', [
    (lambda: denoisers.from_eps(toy, jnp.log, scaling='edm'), "scaling must be 'vp' or 've'.*edm"),
    (lambda: denoisers.discrete_time([0.5, 0.9]), 'must decrease strictly, got 0.9 after 0.5'),
    (lambda: guidance.classifier_free(toy, toy, 2.0, (3.0, 1.0)), r'interval .* got \(3.0, 1.0\)'),
])
def test_bad_input_is_one_clear_line(call, message):
  with pytest.raises(ValueError, match=message):
    call()
