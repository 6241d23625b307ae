"""Guidance and limits on the denoised image; `test_guidance_methods` has the recorded numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import guidance

RNG = np.random.default_rng(0)


def test_dynamic_threshold_is_the_quantile_of_each_sample():
  denoised = RNG.standard_normal((4, 5, 5, 3)) * np.array([0.1, 1, 3, 9]).reshape(4, 1, 1, 1)
  limited = guidance.dynamic_threshold(lambda x, sigma: x)(jnp.asarray(denoised), 1.0)
  for ours, image in zip(limited, denoised, strict=True):
    bound = max(1.0, np.quantile(np.abs(image), 0.995))  # NumPy interpolates linearly by default.
    np.testing.assert_allclose(ours, np.clip(image, -bound, bound) / bound, rtol=1e-14)
  np.testing.assert_array_equal(limited[0], denoised[0])  # Small images are left alone.
  assert abs(limited).max() == 1


def test_clip():
  x = jnp.asarray([-3.0, -1.0, 0.2, 5.0]).reshape(1, 2, 2, 1)
  np.testing.assert_array_equal(guidance.clip(lambda x, sigma: x)(x, 1.0).ravel(), [-1, -1, 0.2, 1])


def test_limits_carry_the_denoiser_before_all_of_them():
  def denoise(x, sigma):
    return 2 * x
  twice = guidance.clip(guidance.dynamic_threshold(denoise))
  assert twice.raw is denoise


def test_limits_follow_the_precision_of_the_denoiser():
  x = jnp.ones((1, 2, 2, 1), jnp.float32)
  assert guidance.dynamic_threshold(lambda x, sigma: x * 3)(x, 1.0).dtype == jnp.float32


@pytest.mark.parametrize('quantile', [-0.1, 1.5, float('nan')])
def test_bad_quantile(quantile):
  with pytest.raises(ValueError, match='quantile must be between 0 and 1, got .*; published'):
    guidance.dynamic_threshold(lambda x, sigma: x, quantile)


# -- Guidance -------------------------------------------------------------------------------------


def one(x, sigma):
  return 0.3 * x / (1 + sigma)


def two(x, sigma):
  return 0.2 * jnp.tanh(x) * sigma


X = RNG.standard_normal((3, 2, 2, 3))


def test_euler_with_it_is_cfg_plus_plus():
  """Against the update of the paper: the guided image and the unguided noise."""
  sigmas, scale = np.array([4.0, 1.5, 0.4, 0.0]), 0.6
  guided = guidance.cfg_plus_plus(one, two, scale, sigmas)
  out = samplers.run(samplers.make('euler', sigmas), guided, X)
  x = X
  for sigma, following in itertools.pairwise(sigmas):
    wanted = two(x, sigma) + scale * (one(x, sigma) - two(x, sigma))
    x = wanted + following * (x - two(x, sigma)) / sigma
  np.testing.assert_allclose(out, x, rtol=1e-12)


def test_cfg_plus_plus_of_a_repeated_level_and_after_the_last():
  sigmas = np.array([4.0, 2.0, 2.0, 0.5])
  guided = guidance.cfg_plus_plus(one, two, 0.6, sigmas)
  for sigma, following in ((2.0, 0.5), (0.5, 0.0)):
    expected = guidance.classifier_free(one, two, 0.6 / (1 - following / sigma))(X, sigma)
    np.testing.assert_allclose(guided(X, sigma), expected, rtol=1e-12)


@pytest.mark.parametrize('sigma', [1.3, np.array([0.2, 1.0, 3.0])], ids=['one', 'many'])
def test_one_call_of_the_network_or_two(sigma):
  """A batch of twice the size gives what two calls give, also with a level for each sample."""
  sizes = []

  def evaluate(x, sigma, condition):
    sizes.append(len(x))
    level = jnp.broadcast_to(jnp.asarray(sigma), len(x)).reshape(-1, 1, 1, 1)
    labels, features = condition
    return (labels.reshape(-1, 1, 1, 1) - 0.3 * x) / (1 + level) + features[:, None, None, :]

  wanted = jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray(RNG.standard_normal((3, 3)))
  nobody = jnp.zeros(3), jnp.zeros((3, 3))
  free = guidance.classifier_free(lambda x, sigma: evaluate(x, sigma, wanted),
                                  lambda x, sigma: evaluate(x, sigma, nobody), 2.5)(X, sigma)
  for calls, expected in ((1, [6]), (2, [3, 3])):
    pair = guidance.paired(evaluate, wanted, nobody, calls)
    sizes.clear()
    np.testing.assert_allclose(guidance.classifier_free_pair(pair, 2.5)(X, sigma), free,
                               rtol=1e-12)
    assert sizes == expected


def test_bad_number_of_calls():
  with pytest.raises(ValueError, match='paired: calls must be 1 or 2, got 3; 1 is faster'):
    guidance.paired(lambda x, sigma, condition: x, 0, 0, calls=3)
  with pytest.raises(ValueError, match='paired: calls must be 1 or 3, got 2; 1 is faster, 3 needs'):
    guidance.paired(lambda x, sigma, condition: x, 0, 0, calls=2, negative=0)


def test_three_answers_in_one_call_or_three():
  sizes = []

  def evaluate(x, sigma, condition):
    sizes.append(len(x))
    return condition.reshape(-1, 1, 1, 1) - 0.3 * x
  conditions = [np.full(3, value) for value in (1.0, 0.0, -2.0)]
  for calls, expected in ((1, [9]), (3, [3, 3, 3])):
    sizes.clear()
    several = guidance.paired(evaluate, *conditions[:2], calls, negative=conditions[2])
    for seen, condition in zip(several(X, 1.0), conditions, strict=True):
      np.testing.assert_allclose(seen, evaluate(X, 1.0, condition), rtol=1e-12)
    assert sizes[:calls] == expected


def test_outside_of_the_interval_the_other_answer_does_not_matter():
  """Not even one that is no number, as of a weak model beyond the levels that it knows."""
  def broken(x, sigma):
    return jnp.full_like(x, jnp.nan)
  guided = guidance.autoguidance(one, broken, 3.0, (0.3, 5.0))
  np.testing.assert_array_equal(guided(X, 6.0), one(X, 6.0))
  assert np.isnan(guided(X, 5.0)).all()


def test_one_compilation_for_all_scales_intervals_and_grids():
  """They may be traced: as an array, as a pair, and padded by more of the last level."""
  @jax.jit
  def free(scale, interval):
    return guidance.classifier_free(one, two, scale, interval)(jnp.asarray(X), 1.0)

  @jax.jit
  def plus_plus(scale, sigmas, sigma):
    return guidance.cfg_plus_plus(one, two, scale, sigmas)(jnp.asarray(X), sigma)

  for scale, interval in ((2.0, (0.5, 1.0)), (3.0, (1.0, 4.0))):
    expected = guidance.classifier_free(one, two, scale, interval)(X, 1.0)
    np.testing.assert_allclose(free(scale, interval), expected, rtol=1e-12)
    np.testing.assert_allclose(free(scale, np.array(interval)), expected, rtol=1e-12)
  for last in (0.0, 0.2):
    sigmas = np.array([4.0, 1.0, last])
    expected = guidance.cfg_plus_plus(one, two, 0.6, sigmas)(X, 1.0)
    for padded in ([4.0, 1.0, last, last, last], [4.0, 1.0, last, 0.0, 0.0]):
      np.testing.assert_allclose(plus_plus(0.6, np.array(padded), 1.0), expected, rtol=1e-12)
  assert free._cache_size() == 2 and plus_plus._cache_size() == 1


def test_a_scale_for_each_sample():
  scales = jnp.asarray([0.0, 1.0, 4.0])
  log_prob = guidance.of_denoised(one, lambda image: -(image**2).sum((1, 2, 3)))
  for make in (lambda scale: guidance.classifier_free(one, two, scale),
               lambda scale: guidance.classifier(one, log_prob, scale),
               lambda scale: guidance.cfg_plus_plus(one, two, scale, [2.0, 1.0, 0.5])):
    alone = [make(scale)(X[i:i + 1], 1.0) for i, scale in enumerate(scales)]
    np.testing.assert_allclose(make(scales)(X, 1.0), np.concatenate(alone), rtol=1e-12)


def test_interval_of_levels_by_sample():
  """Adaptive solvers have a level for each sample; the lower end is outside, the upper inside."""
  levels = jnp.asarray([0.3, 0.31, 5.0])
  level = levels.reshape(-1, 1, 1, 1)
  guided = guidance.classifier_free(
      lambda x, s: x, lambda x, s: jnp.zeros_like(x), 3.0, (0.3, 5.0))(X, levels)
  np.testing.assert_allclose(guided, jnp.where(level > 0.3, 3.0, 1.0) * X, rtol=1e-12)


def test_gradient_of_a_condition_on_the_denoised_image():
  """D = x / 2 and f = sum of D: the gradient of f is 1/2 everywhere."""
  log_prob = guidance.of_denoised(lambda x, sigma: x / 2, lambda image: image.sum((1, 2, 3)))
  np.testing.assert_allclose(guidance.classifier_term(log_prob, 3.0)(X, 2.0),
                             np.full(X.shape, -3.0), rtol=1e-12)
  guided = guidance.classifier(one, log_prob, 3.0)
  np.testing.assert_allclose(guided(X, 2.0), one(X, 2.0) + 6.0, rtol=1e-12)


def test_limit_first_and_guide_then():
  def log_prob(x, sigma):
    return x.sum((1, 2, 3))
  guided = guidance.classifier(guidance.clip(lambda x, sigma: 5 * jnp.ones_like(x)), log_prob, 2.0)
  np.testing.assert_allclose(guided(X, 1.0), np.full(X.shape, 3.0))
  np.testing.assert_allclose(guided.raw(X, 1.0), np.full(X.shape, 7.0))
  assert not hasattr(guidance.classifier(one, log_prob, 2.0), 'raw')
  free = guidance.classifier_free(guidance.clip(lambda x, sigma: 5 * x), two, 2.0)
  np.testing.assert_allclose(free.raw(X, 1.0), 10 * X - two(X, 1.0), rtol=1e-12)
  assert guidance.clip(free).raw is free.raw  # A limit after the guidance keeps what was before.
  assert not hasattr(guidance.classifier_free(one, two, 2.0), 'raw')


@pytest.mark.parametrize('interval', [(5.0, 0.3), (-1.0, 2.0), (1.0, 1.0), (float('nan'), 1.0)])
def test_bad_intervals(interval):
  for make in guidance.classifier_free, guidance.autoguidance:
    with pytest.raises(ValueError, match=f'{make.__name__}: interval must go from a level >= 0 up'):
      make(one, two, 2.0, interval)


def test_bad_grid():
  with pytest.raises(ValueError, match='cfg_plus_plus: sigmas must decrease, got 2 after 1 at'):
    guidance.cfg_plus_plus(one, two, 0.6, [1.0, 2.0])
