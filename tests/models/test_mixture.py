"""The exact denoiser against closed forms, identities of the posterior and its own gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import digits, mixture

SIGMAS = (0.002, 0.05, 0.4, 1.5, 80.0)
SHAPE = (2, 3, 1)


def small_mixture(seed=0, count=7, classes=3):
  """Components of unequal weights and widths in `classes` classes."""
  rng = np.random.default_rng(seed)
  return mixture.mixture(rng.uniform(-1, 1, (count, *SHAPE)), rng.uniform(0.05, 0.6, count),
                         rng.uniform(0.2, 1.0, count), np.arange(count) % classes)


def noisy(params, sigma, batch=5, seed=1):
  """Samples of the mixture with noise, float64."""
  rng = np.random.default_rng(seed)
  k = rng.choice(len(params.means), batch, p=params.weights)
  x0 = params.means[k] + params.widths[k, None, None, None] * rng.standard_normal((batch, *SHAPE))
  return jnp.asarray(x0 + sigma * rng.standard_normal(x0.shape))


def log_density(params, x, sigma, label=None):
  """log p(x; sigma) by its definition, one component at a time; with a label log p(x, label)."""
  total = -jnp.inf
  for w, mu, s, y in zip(params.weights, params.means, params.widths, params.labels, strict=True):
    if label is None or y == label:
      variance = s**2 + sigma**2
      term = jnp.log(w) - 0.5 * jnp.sum((x - mu)**2 / variance + jnp.log(2 * jnp.pi * variance))
      total = jnp.logaddexp(total, term)
  return total


def test_one_component_is_the_gaussian_in_closed_form(x64):
  mean = np.full((1, *SHAPE), 0.3)
  params = mixture.mixture(mean, 0.5)
  x = jnp.linspace(-2.0, 2.0, 6).reshape(1, *SHAPE)
  for sigma in SIGMAS:
    expected = 0.3 + (x - 0.3) * 0.25 / (0.25 + sigma**2)
    np.testing.assert_allclose(mixture.denoise(params, x, sigma), expected, atol=1e-14)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_denoiser_is_tweedies_formula_of_the_density(x64, sigma):
  params = small_mixture()
  x = noisy(params, sigma)
  labels = jnp.array([0, 1, 2, mixture.UNCONDITIONAL, 1])
  score = [jax.grad(lambda x, y=y: log_density(params, x, sigma, y))(one)
           for one, y in zip(x, [0, 1, 2, None, 1], strict=True)]
  expected = x + sigma**2 * jnp.stack(score)
  np.testing.assert_allclose(mixture.denoise(params, x, sigma, labels), expected, atol=1e-11)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_classifier_is_bayes_rule_on_the_densities(x64, sigma):
  params = small_mixture()
  x = noisy(params, sigma)
  joint = jnp.array([[log_density(params, one, sigma, y) for y in range(3)] for one in x])
  expected = joint - jnp.array([log_density(params, one, sigma) for one in x])[:, None]
  np.testing.assert_allclose(mixture.log_prob(params, x, sigma), expected, atol=1e-9)


@pytest.mark.parametrize('sigma', [0.1, 1.5])
def test_classifier_gradient_leads_from_unconditional_to_class(x64, sigma):
  # D(x | y) = D(x) + sigma^2 grad log p(y | x): what classifier guidance at scale 1 relies on.
  params = small_mixture()
  x, labels = noisy(params, sigma), jnp.array([0, 1, 2, 0, 1])
  def chosen(x):
    return jnp.sum(jnp.take_along_axis(mixture.log_prob(params, x, sigma), labels[:, None], 1))
  guided = mixture.denoise(params, x, sigma) + sigma**2 * jax.grad(chosen)(x)
  np.testing.assert_allclose(mixture.denoise(params, x, sigma, labels), guided, atol=1e-11)


@pytest.mark.parametrize('sigma', [0.1, 1.5])
def test_unconditional_answer_is_the_mean_of_the_conditional_ones(x64, sigma):
  params = small_mixture()
  x = noisy(params, sigma)
  chance = jnp.exp(mixture.log_prob(params, x, sigma))
  per_class = [mixture.denoise(params, x, sigma, jnp.full(5, y)) for y in range(3)]
  mean = sum(chance[:, y, None, None, None] * per_class[y] for y in range(3))
  np.testing.assert_allclose(mixture.denoise(params, x, sigma), mean, atol=1e-12)


def test_each_sample_has_its_own_level(x64):
  params = small_mixture()
  x, sigmas = noisy(params, 1.0), np.array(SIGMAS)
  together = mixture.denoise(params, x, jnp.asarray(sigmas))
  alone = [mixture.denoise(params, x[i:i + 1], sigma)[0] for i, sigma in enumerate(sigmas)]
  np.testing.assert_allclose(together, jnp.stack(alone), atol=1e-14)
  np.testing.assert_allclose(mixture.log_prob(params, x, jnp.asarray(sigmas))[2],
                             mixture.log_prob(params, x, 0.4)[2], atol=1e-12)


def test_derivatives_agree_with_finite_differences_in_both_modes(x64):
  params = small_mixture()
  x, direction = noisy(params, 0.4), noisy(params, 1.0, seed=2)
  def answer(x):
    return mixture.denoise(params, x, 0.4)
  _, forward = jax.jvp(answer, (x,), (direction,))
  step = 1e-5
  difference = (answer(x + step * direction) - answer(x - step * direction)) / (2 * step)
  np.testing.assert_allclose(forward, difference, atol=1e-8)
  _, pull = jax.vjp(answer, x)
  np.testing.assert_allclose(jnp.vdot(pull(direction)[0], direction), jnp.vdot(direction, forward),
                             rtol=1e-10)


@pytest.mark.parametrize('sigma', SIGMAS)
def test_single_precision_agrees_with_double_on_the_digits(sigma):
  images, classes, _ = digits.images()
  rng = np.random.default_rng(0)
  chosen = rng.choice(len(images), 4)
  x0 = images[chosen]
  x = (x0 + sigma * rng.standard_normal(x0.shape)).astype(np.float32)
  model = models.load('digits_exact')
  labels = classes[chosen]
  labels[2:] = (labels[2] + 1) % 10, mixture.UNCONDITIONAL  # Sample 2 is asked for another digit.
  with jax.numpy_dtype_promotion('strict'), jax.numpy_rank_promotion('raise'):
    single = jax.jit(model.apply)(model.params, x, np.float32(sigma), labels)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
      double = jax.jit(model.apply)(model.params, x.astype(np.float64), float(np.float32(sigma)),
                                    labels)
      assert double.dtype == jnp.float64
  # A logit |x - mu|^2 / (2 v) rounds to about 1e-7 of itself and moves D by that much times the
  # distance of the components it weighs: |logit| is 100 near the data (d / 2), up to 1e4 for an
  # image that lies far from all components of its label.
  near = np.array([0, 1, 3])
  np.testing.assert_allclose(single[near], double[near], atol=1e-5)
  np.testing.assert_allclose(single[2], double[2], atol=1e-3)


def test_the_lowest_level_keeps_a_digit_and_the_highest_returns_the_mean():
  model = models.load('digits_exact')
  images, classes, _ = digits.images()
  some = images[::1500]
  np.testing.assert_allclose(model.denoise(some, 0.002), some, atol=1e-6)
  labels = np.full(len(some), 7, np.int32)
  # At 80 the logits still differ, by |mu|^2 / (2 sigma^2) of 0.01 or so.
  np.testing.assert_allclose(model.denoise(some, 80.0, labels)[0], images[classes == 7].mean(0),
                             atol=0.02)
  far = model.denoise(1e4 * np.ones_like(some), 0.002)
  assert np.isfinite(far).all()


def test_gradient_of_the_classifier_is_finite_at_every_level():
  model = models.load('digits_exact')
  images, _, _ = digits.images()
  def log_three(x, sigma):
    return mixture.log_prob(model.params, x, sigma)[:, 3].sum()
  gradient = jax.jit(jax.grad(log_three))
  for sigma in SIGMAS:
    assert np.isfinite(gradient(images[::3000], sigma)).all()


@pytest.mark.parametrize('arguments, message', [
    ({'means': np.zeros((4, 6))}, r'means must have shape \(K, height, width, channels\), got'),
    ({'widths': -1.0}, 'widths must be finite and >= 0, got -1 at index 0'),
    ({'widths': [1, 2]}, r'widths must have shape \(4,\), one per mean, got \(2,\)'),
    ({'weights': [1, 1, 0, 1]}, 'weights must be finite and > 0, got 0 at index 2'),
    ({'labels': [0, 2, 2, 0]}, r'labels must be integers that use every class .* \[0, 2\]'),
    ({'labels': [0.0, 1.0, 1.0, 0.0]}, 'labels must be integers .*float64'),
])
def test_bad_parameters_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    mixture.mixture(**{'means': np.zeros((4, *SHAPE)), 'widths': 0.1} | arguments)


@pytest.mark.parametrize('x, sigma, labels, message', [
    (np.zeros((2, 3, 2, 1)), 1.0, None, r'x must have shape \(batch, 2, 3, 1\), got \(2, 3, 2, 1'),
    (np.zeros((2, *SHAPE)), np.ones(3), None, r'sigma must be a scalar or of shape \(2,\)'),
    (np.zeros((2, *SHAPE)), 1.0, np.zeros((2, 3), int), r'labels must be integers of shape \(2,\)'),
    (np.zeros((2, *SHAPE)), 1.0, np.zeros(2), 'labels must be integers .*float64'),
])
def test_arguments_that_do_not_fit_are_named(x, sigma, labels, message):
  with pytest.raises(ValueError, match=message):
    mixture.denoise(small_mixture(), x, sigma, labels)
