"""The variational bound: reference numbers, textbook formulas, and a likelihood known exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import bound, ddpm, guidance
from tests import reference
from tests.samplers import chain_cases

MANIFEST, ARRAYS = reference.load('ddpm')
INPUTS, TABLES = ARRAYS['inputs'], ARRAYS['tables']
GRID = samplers.schedule('karras', 6, 0.05, 20.0)
DENOISE = reference.gaussian_denoiser(0.5, 0.2)


def network(x, sigma):
  return DENOISE(x, sigma), jnp.tanh(x)


def recorded(r, x):
  return jnp.asarray(INPUTS['noise'], x.dtype)[r, :len(x)]


def test_bits_per_dim():
  (case,) = [case for case in MANIFEST['cases'] if case['sampler'] == 'bpd']
  arrays = {key.split('.', 1)[1]: value for key, value in ARRAYS['cases_bpd'].items()}
  steps = ddpm.coefficients(chain_cases.grid(case))
  network = chain_cases.denoiser_with_variance(chain_cases.Problem.of(case, INPUTS['y']))
  terms = bound.bits_per_dim(steps, network, jnp.asarray(INPUTS['x_data']), draw=recorded)
  for ours, theirs in (('total', 'total_bpd'), ('prior', 'prior_bpd'), ('vb', 'vb'),
                       ('xstart_mse', 'xstart_mse'), ('mse', 'mse')):
    chain_cases.assert_close(getattr(terms, ours), arrays[theirs], case)


@pytest.mark.parametrize('variance', ['fixed_small', 'fixed_large'])
def test_the_bound_of_fixed_variances_in_terms_of_beta(variance):
  """Each divergence from textbook Gaussians whose means and variances are DDPM's tables."""
  chain = {key.removeprefix('chain.linear.1000.20.'): value[::-1] for key, value in TABLES.items()
           if key.startswith('chain.linear.1000.20.')}
  sigmas = samplers.schedule('respaced', respacing='20')
  x0, noise = INPUTS['x_data'], INPUTS['noise']
  terms = bound.bits_per_dim(ddpm.coefficients(sigmas, variance),
                             ddpm.without_variance(guidance.clip(DENOISE)), jnp.asarray(x0),
                             draw=recorded)
  true_variance = np.exp(chain['posterior_log_variance_clipped'])
  model_variance = true_variance if variance == 'fixed_small' else np.append(
      chain['betas'][:-1], true_variance[-1])
  for i in range(19):
    c1, c2 = chain['posterior_mean_coef1'][i], chain['posterior_mean_coef2'][i]
    y = np.sqrt(chain['alphas_cumprod'][i]) * (x0 + sigmas[i] * noise[i])
    denoised = np.clip(DENOISE(x0 + sigmas[i] * noise[i], sigmas[i]), -1, 1)
    ratio = true_variance[i] / model_variance[i]
    gap = (c1 * x0 + c2 * y) - (c1 * denoised + c2 * y)
    divergence = (ratio - 1 - np.log(ratio) + gap**2 / model_variance[i]) / 2
    np.testing.assert_allclose(terms.vb[:, i], divergence.mean((1, 2, 3)) / np.log(2), rtol=1e-8,
                               atol=1e-12)
  np.testing.assert_allclose(terms.total, terms.prior + terms.vb.sum(1), rtol=1e-12)


@pytest.mark.parametrize('respacing', ['10', '60'])
def test_the_bound_with_the_exact_variance_is_the_likelihood_of_gaussian_data(respacing):
  """Then a step is exact, and the mean of the bound that of -log p, however few steps there are."""
  std, count = 0.25, 64
  values = np.random.default_rng(7).normal(0, std, (count, 8, 8, 3))
  x0 = np.clip(np.rint((values + 1) * 127.5), 0, 255) / 127.5 - 1
  steps = ddpm.coefficients(samplers.schedule('respaced', respacing=respacing))
  square, square1 = steps.sigma**2, steps.level**2  # Variance of x' given x, as one of y'.
  exact = (std**2 + square1) * (square - square1) / (std**2 + square) / (1 + square1)
  answers = jnp.asarray(2 * (np.log(exact) - steps.log_lower) / (
      steps.log_upper - steps.log_lower) - 1)

  def network(x, sigma):
    v = answers[jnp.argmin(abs(jnp.asarray(steps.sigma) - sigma))]
    return reference.gaussian_denoiser(std)(x, sigma), jnp.full_like(x, v)

  noise = jnp.asarray(np.random.default_rng(8).standard_normal((60, *x0.shape)))
  bits = bound.bits_per_dim(steps, network, jnp.asarray(x0), draw=lambda r, x: noise[r]).total
  density = np.exp(-x0**2 / (2 * std**2)) / (std * np.sqrt(2 * np.pi))
  gaps = np.asarray(bits) + np.log2(density * 2 / 255).mean((1, 2, 3))
  # Four standard errors; and a bin of the last step is no density, nor its law quite normal.
  assert abs(gaps.mean()) < 4 * gaps.std() / np.sqrt(count) + 0.01
  assert gaps.std() / np.sqrt(count) < 0.02


def test_white_and_black_pixels_have_open_bins():
  """An image of the outermost values that a network knows costs next to nothing."""
  x0 = jnp.asarray(np.where(np.arange(48).reshape(1, 4, 4, 3) % 2, 1.0, -1.0))
  steps = ddpm.coefficients([0.01, 0.0], 'fixed_small')

  @jax.jit
  def off(shift):
    sure = ddpm.without_variance(lambda x, sigma: x0 * (1 + shift))
    return bound.bits_per_dim(steps, sure, x0, draw=recorded).vb[0, 0]
  # Beyond the outermost value all is its bin; a closed bin would lose a shift of 10 deviations.
  assert off(0.1) < 1e-9 < off(0.0) < off(-0.05)


def test_padding_leaves_the_bound():
  steps, x0 = ddpm.coefficients(GRID), jnp.asarray(INPUTS['x_data'])
  plain, padded = (bound.bits_per_dim(c, network, x0, draw=recorded)
                   for c in (steps, ddpm.pad(steps, 8)))
  np.testing.assert_allclose(padded.total, plain.total, rtol=1e-12)
  np.testing.assert_array_equal(padded.vb[:, 6:], 0)


def test_keys_give_each_sample_noise_of_its_own():
  steps, x0 = ddpm.coefficients(GRID), jnp.asarray(INPUTS['x_data'])
  key = jax.vmap(jax.random.key)(jnp.arange(4))
  run = jax.jit(lambda x0, key: bound.bits_per_dim(steps, network, x0, key=key).vb)
  whole, turned = run(x0, key), run(x0[::-1], key[::-1])
  np.testing.assert_allclose(turned[::-1], whole, rtol=1e-12)
  assert abs(run(x0, key[::-1]) - whole).max() > 1e-3


def test_bad_input():
  x0 = jnp.asarray(INPUTS['x_data'])
  with pytest.raises(ValueError, match='^bits_per_dim: the grid must end in 0, where the image is, '
                     'got 0.05; '):
    bound.bits_per_dim(ddpm.coefficients(GRID[:-1]), network, x0, draw=recorded)
  with pytest.raises(ValueError, match='^bits_per_dim: noise needs a draw or one typed key per '
                     r'sample, shape \(4,\), got key None; '):
    bound.bits_per_dim(ddpm.coefficients(GRID), network, x0)
