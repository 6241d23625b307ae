"""Splitting, PLMS and DDIM on guided fields: reference numbers, counts, orders."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import guidance, imputation, table as table_lib
from tests import reference
from tests.samplers import chain_cases

MANIFEST, ARRAYS = reference.load('splitting')
CASES = {case['id']: case for case in MANIFEST['cases']}
INPUTS, MIXTURE = ARRAYS['inputs'], ARRAYS['mixture']
PLAIN = reference.mixture_denoiser(MIXTURE)
COMPILED = jax.jit(PLAIN)
ROWS, SLOTS = 80, 4
FACTOR = 2


def test_every_case_is_here():
  assert len(CASES) == len(MANIFEST['cases']) == 78
  assert collections.Counter(case['method'] for case in CASES.values()) == {
      'ltsp': 28, 'stsp': 25, 'plms': 23, 'ddim': 2}
  assert collections.Counter(case['guidance'] for case in CASES.values()) == {
      None: 21, 'classifier': 49, 'inpainting': 2, 'super_resolution': 2, 'colorization': 2,
      'text': 2}
  assert collections.Counter(case['imputation'] for case in CASES.values()) == {
      None: 64, 'inpainting': 5, 'super_resolution': 3, 'colorization': 3,
      'super_resolution_ilvr': 3}
  assert collections.Counter(
      case['method'] for case in CASES.values() if 'traj' in case['arrays']
  ) == {'ltsp': 8, 'stsp': 4, 'plms': 6, 'ddim': 1}
  assert {'pred_xstart' in case['arrays'] for case in CASES.values()
          if 'traj' in case['arrays']} == {True}


def grid(case):
  sigmas = samplers.schedule('respaced', alphas_cumprod=chain_cases.alphas_cumprod(case),
                             respacing=case['timestep_respacing'])
  return sigmas[case['skip_timesteps']:]


def table_of(case, sigmas):
  if case['method'] == 'ddim':
    return samplers.make('ddim', sigmas)
  option = 'max_order' if case['method'] == 'plms' else 'order'
  return samplers.make(case['method'], sigmas, **{option: case['order']})


OPERATORS = {
    'inpainting': imputation.inpainting(INPUTS['mask']),
    'super_resolution': imputation.block_mean(FACTOR),
    'colorization': imputation.grayscale(),
    'super_resolution_ilvr': imputation.bicubic(4, 4, FACTOR),
}


def class_log_prob(x, sigma):
  """log p(y | x; sigma) of the mixture's components, whose gradient is (D_y - D) / sigma^2."""
  v = jnp.asarray(MIXTURE['s']**2) + sigma**2
  square = jnp.sum((x[:, None] - jnp.asarray(MIXTURE['mu'])[None])**2, axis=(2, 3, 4))
  count = MIXTURE['mu'][0].size
  joint = (jnp.log(MIXTURE['w']) - count / 2 * jnp.log(v))[None] - square / (2 * v)[None]
  return jax.nn.log_softmax(joint)[jnp.arange(len(x)), INPUTS['y']]


def text(images):
  embedded = images.reshape(len(images), -1) @ INPUTS['text_encoder'].T
  return embedded @ INPUTS['text_target'] / jnp.linalg.norm(embedded, axis=1)


CONDITIONS = {
    None: None,
    'classifier': class_log_prob,
    'text': guidance.of_denoised(PLAIN, text),
    **{name: imputation.log_likelihood(PLAIN, OPERATORS[name], INPUTS['x_ref'])
       for name in ('inpainting', 'super_resolution', 'colorization')},
}


@functools.cache
def program(kind, splits):
  """One compilation per kind of condition; all else of a case is an argument."""
  imputations = [imputation.replace(operator, INPUTS['x_ref']) for operator in OPERATORS.values()]

  def sample(table, x, scale, clip, imputed, steps):
    def denoise(x, sigma):
      return jnp.where(clip, guidance.clip(PLAIN)(x, sigma), PLAIN(x, sigma))

    def project(x, sigma, z):
      return jax.lax.switch(imputed, [lambda x, sigma, z: x, *imputations], x, sigma, z)

    guide, condition = None, CONDITIONS[kind]
    if condition is not None and splits:
      guide = guidance.classifier_term(condition, scale)
    elif condition is not None:
      denoise = guidance.classifier(denoise, condition, scale)
    return samplers.run(table, denoise, x, guide=guide, project=project,
                        project_draw=lambda r, x: jnp.asarray(INPUTS['noise'])[steps[r]])
  return jax.jit(sample)


def states(case, table, x, cuts):
  """The state after the first `cut` rows of the table, for each of the cuts."""
  sample = program(case['guidance'], case['method'] in ('ltsp', 'stsp'))
  ends = ~np.isnan(table.level)
  steps = np.zeros(ROWS, int)
  steps[:table.rows] = np.cumsum(ends) - ends
  for cut in cuts:
    head = jax.tree.map(lambda leaf, cut=cut: leaf[:cut], table)
    yield x if cut == 0 else sample(
        samplers.pad(head, ROWS, SLOTS), x, case['guidance_scale'] or 0.0, case['clip_denoised'],
        [None, *OPERATORS].index(case['imputation']), steps)


@pytest.mark.parametrize('name', CASES)
def test_reference(name):
  case = CASES[name]
  sigmas = grid(case)
  table = table_of(case, sigmas)
  arrays = {key.removeprefix(f'{name}.'): value
            for key, value in ARRAYS[case['file'][:-4]].items() if key.startswith(f'{name}.')}
  assert sorted(arrays) == case['arrays'] and len(sigmas) == case['num_steps'] + 1

  x = INPUTS['x_T'] * np.sqrt(1 + sigmas[0]**2)  # The originals start from a unit normal draw.
  if case['skip_timesteps']:
    x = INPUTS['x_ref'] + sigmas[0] * INPUTS['x_T']
  out, = states(case, table, x, [table.rows])
  chain_cases.assert_close(out, arrays['x0'], case)

  # Who is asked, how often, and at which levels.
  asked = table.sigma[table.kind == table_lib.DENOISE]
  assert table.nfe == len(asked) == case['model_evaluations']
  np.testing.assert_allclose(chain_cases.times(case, asked), arrays['model_t'], atol=1e-6)
  if case['guidance'] is not None:
    guides = table.sigma[table.kind == table_lib.GUIDE]
    levels = guides if case['method'] in ('ltsp', 'stsp') else asked
    assert len(levels) == case['guidance_evaluations']
    np.testing.assert_allclose(chain_cases.times(case, levels), arrays['cond_t'], atol=1e-6)

  if 'traj' in arrays:
    ends = np.flatnonzero(~np.isnan(table.level)) + 1
    along = np.stack(list(states(case, table, x, ends)))
    chain_cases.assert_close(along / chain_cases.root(sigmas[1:]), arrays['traj'], case)
    # What the network says first in each step, before PLMS or DDIM guide it.
    first = [start + int(np.argmax(table.kind[start:] == table_lib.DENOISE))
             for start in (0, *ends[:-1])]
    denoise = guidance.clip(COMPILED) if case['clip_denoised'] else COMPILED
    said = [denoise(jnp.asarray(state), table.sigma[row])
            for row, state in zip(first, states(case, table, x, first), strict=True)]
    chain_cases.assert_close(np.stack(said), arrays['pred_xstart'], case)


# -- Laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('order', [1, 2, 3, 4])
def test_without_a_guide_both_are_adams_bashforth(order):
  sigmas = samplers.schedule('edm', 7, 0.01, 20.0)
  plain = reference.linear_map(samplers.make('ipndm', sigmas, max_order=order))
  for name in ('ltsp', 'stsp'):
    table = samplers.make(name, sigmas, order=order)
    np.testing.assert_allclose(reference.linear_map(table), plain, rtol=1e-12, atol=1e-12)


STD, MEAN, NOISE = 0.5, 0.3, 0.8  # Of the data, and of the noise in what was measured of them.
MEASURED = np.array([0.9, -1.2]).reshape(1, 2, 1, 1)
KNOWN = imputation.inpainting(np.array([1.0, 0.0]).reshape(2, 1, 1))


def measurement_log_prob(x, sigma):
  """log p(y | x; sigma) of y = x0 + NOISE z at the known pixel: y given x is Gaussian."""
  variance = NOISE**2 + STD**2 * sigma**2 / (STD**2 + sigma**2)
  residual = KNOWN(reference.gaussian_denoiser(STD, MEAN)(x, sigma) - MEASURED)
  return -jnp.sum(residual**2, axis=(1, 2, 3)) / (2 * variance)


def posterior_flow(x, sigma, sigma_next):
  """The guided ODE solved: that of the posterior, a Gaussian, at the known pixel, else of data."""
  precision = 1 / STD**2 + 1 / NOISE**2
  mean = (MEAN / STD**2 + MEASURED / NOISE**2) / precision
  posterior = reference.gaussian_flow(x, sigma, sigma_next, np.sqrt(1 / precision), mean)
  return np.where(np.asarray(KNOWN(np.ones_like(x))) > 0, posterior,
                  reference.gaussian_flow(x, sigma, sigma_next, STD, MEAN))


@functools.cache
def guided_gaussian():
  guide = guidance.classifier_term(measurement_log_prob, 1.0)
  return jax.jit(lambda table, x: samplers.run(
      table, reference.gaussian_denoiser(STD, MEAN), x, guide=guide))


def guided_errors(name, num_steps, **options):
  """Errors of the measured and of the free pixel at the end of a grid that ends above 0."""
  sigmas = samplers.schedule('polynomial', num_steps, 0.1, 10.0, rho=7)
  x = np.full((1, 2, 1, 1), 7.0)
  table = samplers.pad(samplers.make(name, sigmas, **options), 3 * 320, SLOTS)
  exact = posterior_flow(x, sigmas[0], sigmas[-1])
  return abs(guided_gaussian()(table, x) - exact).ravel()


@pytest.mark.parametrize('name', ['ltsp', 'stsp'])
@pytest.mark.parametrize('order', [1, 2, 4])
def test_guided_samples_reach_the_posterior_at_first_order(name, order):
  """Against the closed form. The free pixel follows no guide, and keeps the order of its weights.

  Strang's halves are steps of Euler: both are of first order, whatever that of Adams-Bashforth.
  """
  errors = [guided_errors(name, n, order=order) for n in (80, 160, 320)]
  guided, free = np.log2(np.divide(errors[:-1], errors[1:]))[-1]
  assert guided == pytest.approx(1, abs=0.1)
  assert free == pytest.approx(min(order, 2), abs=0.1)


def test_strang_errs_less_than_lie_and_trotter():
  """At twice the evaluations of the guide, on that problem: by a factor of 3.8."""
  ratio = guided_errors('ltsp', 160)[0] / guided_errors('stsp', 160)[0]
  assert 3 < ratio < 5


@pytest.mark.parametrize('name, guides', [('ltsp', 1), ('stsp', 2)])
@pytest.mark.parametrize('last', [0.0, 0.2])
def test_evaluations_are_counted_where_they_happen(name, guides, last):
  """Of the network and of the guide, as the run calls them; without a guide its rows are free."""
  calls = collections.Counter()

  def counted(who, answer):
    def function(x, sigma):
      jax.debug.callback(lambda: calls.update([who]))
      return answer * x
    return function

  table = samplers.make(name, [3.0, 1.0, 0.4, last])
  assert table.nfe == 3
  for guide in (None, counted('guide', 0.1)):
    calls.clear()
    samplers.run(table, counted('network', 0.5), jnp.ones((1, 1, 1, 1)), guide=guide)
    jax.effects_barrier()
    assert calls == {'network': 3} | ({'guide': 3 * guides} if guide else {})


@pytest.mark.parametrize('name', ['ltsp', 'stsp'])
@pytest.mark.parametrize('order', [0, 5, 2.5])
def test_bad_orders(name, order):
  with pytest.raises(ValueError, match=f'{name}: order must be an integer from 1 to 4, got'):
    samplers.make(name, [2.0, 1.0], order=order)
