"""The loss, its levels and the average of parameters, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from engine import losses


def test_levels_are_log_normal():
  sigma = np.log(losses.draw_sigma(jax.random.key(0), 100_000, -1.2, 1.2))
  # Standard errors of mean and deviation: 1.2 / sqrt(1e5) = 0.004 and 0.003; four of them.
  assert abs(sigma.mean() + 1.2) < 0.016 and abs(sigma.std() - 1.2) < 0.012


@pytest.mark.parametrize('sigma_max', [0.05, 1.0, 30.0])
def test_levels_below_an_inner_one_are_the_cut_distribution(sigma_max):
  sigma = np.asarray(losses.draw_sigma(jax.random.key(0), 100_000, -1.2, 1.2, sigma_max))
  assert sigma.max() <= sigma_max and sigma.min() > 0
  cut = scipy.special.ndtr((np.log(sigma_max) + 1.2) / 1.2)
  for share in (0.1, 0.5, 0.9):  # Quantiles, by the inverse of what is drawn from.
    level = np.exp(-1.2 + 1.2 * scipy.special.ndtri(share * cut))
    assert abs((sigma < level).mean() - share) < 0.007  # 4 sqrt(0.25 / 1e5).


def test_denoising_loss_of_a_known_error_is_its_weight():
  def apply(params, x, sigma, labels):
    del sigma, labels
    return x0 + params, None  # Off by `params` in every pixel.
  x0 = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
  sigma = jnp.array([0.1, 0.5, 10.0])
  loss = losses.denoising(apply, 0.5)(0.3, x0, None, sigma, jnp.ones_like(x0))
  # 1 / sigma_data^2 + 1 / sigma^2: what makes the target of F have unit variance.
  np.testing.assert_allclose(loss, 0.09 * (4 + 1 / sigma**2), rtol=1e-5)


def test_denoising_loss_sees_the_noisy_image():
  seen = {}
  def apply(params, x, sigma, labels, train):
    seen.update(x=x, labels=labels, train=train)
    return x, None
  x0, z = jnp.ones((2, 2, 2, 1)), jnp.full((2, 2, 2, 1), 3.0)
  losses.denoising(apply, 0.5)(None, x0, jnp.array([1, -1]), jnp.array([0.5, 2.0]), z, train=True)
  assert seen['train'] and seen['labels'].tolist() == [1, -1]
  assert seen['x'][:, 0, 0, 0].tolist() == [2.5, 7.0]


def test_classification_loss_is_the_log_probability_of_the_label():
  def apply(params, x, sigma):
    return jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5]]))
  x0 = jnp.zeros((2, 2, 2, 1))
  loss = losses.classification(apply)(None, x0, jnp.array([1, 0]), jnp.ones(2), x0)
  np.testing.assert_allclose(loss, -np.log([0.8, 0.5]), rtol=1e-6)


def test_average_forgets_half_in_its_half_life_and_the_start_sooner():
  late = losses.ema_decay(100_000, 128, 12_800)
  assert float(late)**100 == pytest.approx(0.5, rel=1e-4)  # 100 steps of 128; float32 power.
  # At the first step the half-life is a twentieth of the images seen.
  assert float(losses.ema_decay(0, 128, 12_800)) == pytest.approx(0.5**20, rel=1e-4)
