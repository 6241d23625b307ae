"""Limits on the denoised image."""

import jax.numpy as jnp
import numpy as np
import pytest

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
