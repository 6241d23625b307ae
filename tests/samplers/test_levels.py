"""Conversions between network time and noise levels: closed forms, inverses, limits, jax.numpy."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import levels

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden'
TABLES = {'stable_diffusion': ('schedules', 'alphas_cumprod_sd'),
          'latent_diffusion': ('schedules', 'alphas_cumprod_ldm_lsun_ffhq'),
          'ddpm': ('beyond_schedules', 'table/ddpm'),
          'cosine': ('beyond_schedules', 'table/cosine')}
SD = levels.ALPHAS_CUMPROD['stable_diffusion']()
SIGMAS = np.geomspace(0.01, 30, 41)


@pytest.mark.parametrize('name', sorted(levels.ALPHAS_CUMPROD))
def test_named_tables_are_the_published_ones(name):
  file, key = TABLES[name]
  stored = np.load(GOLDEN / file / 'schedules.npz')[key]
  table = levels.read_alphas_cumprod('test', name)
  expected = stored if file == 'schedules' else 1 / (1 + stored**2)  # The other stores sigma.
  np.testing.assert_allclose(table, expected, rtol=1e-10)
  np.testing.assert_allclose(levels.table_sigmas(table), np.sqrt(1 / expected - 1), rtol=1e-10)


def test_sigma_at_the_knots_is_the_table():
  knots = (np.arange(1000) + 1) / 1000
  np.testing.assert_allclose(levels.sigma_of_time(knots, SD), levels.table_sigmas(SD), rtol=1e-10)
  np.testing.assert_allclose(levels.network_index(levels.table_sigmas(SD), SD), np.arange(1000),
                             atol=1e-9)


def test_log_alpha_is_linear_between_knots_and_beyond_them():
  def log_alpha(index):
    return -np.log1p(levels.sigma_of_time((index + 1) / 1000, SD)**2) / 2
  for low, inside in ((0, -0.4), (417, 417.25), (998, 1003.7)):
    slope = log_alpha(low + 1) - log_alpha(low)
    assert log_alpha(inside) == pytest.approx(log_alpha(low) + (inside - low) * slope, rel=1e-9)


@pytest.mark.parametrize('table', [SD, np.array([0.9, 0.4]), np.array([0.99, 0.5, 0.01])])
def test_time_is_the_inverse_of_sigma_also_beyond_the_table(table):
  time = levels.time_of_sigma(SIGMAS, table)
  np.testing.assert_allclose(levels.sigma_of_time(time, table), SIGMAS, rtol=1e-9)
  assert np.all(np.diff(time) > 0)


def test_sigma_of_time_is_zero_where_the_extrapolation_leaves_the_process():
  assert levels.sigma_of_time(-0.5, SD) == 0


def test_a_linear_log_alpha_is_reproduced_exactly():
  table = np.exp(-2 * 0.3 * (np.arange(20) + 1) / 20)  # log alpha = -0.3 t
  time = np.array([0.01, 0.33, 0.5, 0.98, 1.4])
  np.testing.assert_allclose(levels.sigma_of_time(time, table), np.sqrt(np.exp(0.6 * time) - 1),
                             rtol=1e-11)


@pytest.mark.parametrize('sigma_min, sigma_max', [(0.002, 80.0), (0.02, 100.0), (0.1, 80.0)])
def test_vp_constants_give_the_range(sigma_min, sigma_max):
  beta_d, beta_min = levels.vp_constants(sigma_min, sigma_max, 1e-3)
  ends = levels.sigma_of_vp_time(np.array([1e-3, 1.0]), beta_d, beta_min)
  np.testing.assert_allclose(ends, [sigma_min, sigma_max], rtol=1e-9)
  sigmas = np.geomspace(sigma_min, sigma_max, 33)  # beta_min < 0, > 0, and beta_d < 0.
  times = levels.vp_time_of_sigma(sigmas, beta_d, beta_min)
  assert np.all(np.diff(times) > 0)
  np.testing.assert_allclose(levels.sigma_of_vp_time(times, beta_d, beta_min), sigmas, rtol=1e-10)
  assert levels.vp_time_of_sigma(0.0, beta_d, beta_min) == 0


def test_vp_conversions_keep_their_digits_near_zero():
  # sigma^2 = exp(0.1 t + 9.95 t^2) - 1 = 0.1 t (1 + 99.55 t + ...) and its inverse.
  time = 1e-12
  sigma = levels.sigma_of_vp_time(time, 19.9, 0.1)
  assert sigma == pytest.approx(np.sqrt(0.1 * time), rel=1e-9)
  assert levels.vp_time_of_sigma(sigma, 19.9, 0.1) == pytest.approx(time, rel=1e-12)


@pytest.mark.parametrize('M', [1, 10, 1000])
def test_iddpm_levels_are_those_of_its_alpha_bar(M):
  table = levels.iddpm_levels(C_1=1e-9, M=M)  # C_1 out of the way: sigma^2 = 1 / alpha_bar - 1.
  alpha_bar = np.sin(np.pi / 2 * np.arange(1, M + 1) / M / 1.008)**2
  expected = np.sqrt(alpha_bar[-1] / alpha_bar - 1)
  assert table.shape == (M + 1,)
  np.testing.assert_allclose(table[1:], expected, rtol=1e-8, atol=1e-12)


def test_rounding_takes_the_nearest_level_whatever_the_order():
  table, sigmas = levels.iddpm_levels(), np.geomspace(0.01, 50, 29).reshape(29, 1)
  rounded = levels.round_to_levels(sigmas, table)
  assert rounded.shape == sigmas.shape
  assert np.all(np.isin(rounded, table))
  for level in table:
    assert np.all(np.abs(rounded - sigmas) <= np.abs(level - sigmas))
  np.testing.assert_array_equal(levels.round_to_levels(sigmas, table[::-1]), rounded)


def test_table_index_is_clipped_and_quantized():
  sigmas = levels.table_sigmas(SD)
  np.testing.assert_array_equal(levels.index_of_sigma([1e-4, 100.0], sigmas), [0, 999])
  middle = np.sqrt(sigmas[10] * sigmas[11])
  assert levels.index_of_sigma(middle, sigmas) == pytest.approx(10.5)
  assert levels.sigma_of_index(10.5, sigmas) == pytest.approx(middle)
  assert levels.index_of_sigma(middle * 1.001, sigmas, quantize=True) == 11


@pytest.mark.parametrize('eta', [0.0, 0.4, 1.0])
def test_ancestral_split_keeps_the_variance(eta):
  sigma, sigma_next = np.array([9.0, 2.0, 1.0]), np.array([8.999, 0.5, 0.0])
  down, up = levels.ancestral_split(sigma, sigma_next, eta)
  np.testing.assert_allclose(down**2 + up**2, sigma_next**2, rtol=1e-13)
  if eta == 1:  # The posterior of DDPM: down = sigma'^2 / sigma.
    np.testing.assert_allclose(down, sigma_next**2 / sigma, rtol=1e-12)


def test_ancestral_split_of_long_steps_does_not_cancel():
  sigma, sigma_next = 80.0, np.array([1e-2, 1e-4, 1e-7])
  down, _ = levels.ancestral_split(sigma, sigma_next, 1.0)
  np.testing.assert_allclose(down, sigma_next**2 / sigma, rtol=1e-14)


def test_ancestral_split_has_gradients_at_the_ends():
  def split(sigma, eta, sigma_next=1.0):
    return sum(levels.ancestral_split(sigma, sigma_next, eta, xp=jnp))
  # d up / d eta = sqrt(1 - 1/4) and d down / d eta = 0 for a step from 2 to 1 at eta = 0.
  assert jax.grad(split, 1)(2.0, 0.0) == pytest.approx(np.sqrt(3) / 2)
  assert split(2.0, 1.0, 0.0) == 0  # The number 0 has no slope: nothing is infinite there.


def test_formulas_give_the_same_numbers_under_jax_numpy():
  times, table_levels = np.linspace(0.002, 1.1, 41), levels.table_sigmas(SD)
  iddpm = levels.iddpm_levels()
  for function, value, *rest in (
      (levels.sigma_of_time, times, SD), (levels.time_of_sigma, SIGMAS, SD),
      (levels.network_index, SIGMAS, SD), (levels.sigma_of_vp_time, times, 19.9, 0.1),
      (levels.vp_time_of_sigma, SIGMAS, 19.9, 0.1), (levels.vp_time_of_sigma, SIGMAS, 17.5, -0.005),
      (levels.round_to_levels, SIGMAS, iddpm), (levels.index_of_sigma, SIGMAS, table_levels),
      (levels.index_of_sigma, SIGMAS, table_levels, True),
      (levels.sigma_of_index, times * 900, table_levels), (levels.vp_constants, SIGMAS, 80.0)):
    traced = jax.jit(lambda x, f=function, rest=rest: f(x, *rest, xp=jnp))(jnp.asarray(value))
    np.testing.assert_allclose(traced, function(value, *rest), rtol=1e-12, err_msg=str(function))


def test_table_conversions_stay_in_the_precision_of_the_network():
  sigma = jnp.asarray(SIGMAS, jnp.float32)
  index = levels.network_index(sigma, SD, jnp)
  assert index.dtype == jnp.float32
  np.testing.assert_allclose(index, levels.network_index(SIGMAS, SD), rtol=1e-4, atol=1e-2)
  assert levels.sigma_of_index(jnp.float32(3.5), levels.table_sigmas(SD), jnp).dtype == jnp.float32


def test_vp_time_has_a_gradient():
  beta_d, beta_min = levels.vp_constants(0.002, 80.0)
  for constants in ((beta_d, beta_min), (19.9, 0.1)):
    for sigma in (0.01, 1.0, 40.0):
      slope = jax.grad(lambda s, c=constants: levels.vp_time_of_sigma(s, *c, xp=jnp))(sigma)
      time = levels.vp_time_of_sigma(sigma, *constants)
      rate = constants[0] * time + constants[1]  # d log(1 + sigma^2) / dt
      assert slope == pytest.approx(2 * sigma / (1 + sigma**2) / rate, rel=1e-10)


def test_unknown_preconditionings_are_named():
  with pytest.raises(ValueError, match="^preconditioning_range: unknown name 'edn'.*known: .*iddp"):
    levels.preconditioning_range('edn')


def test_read_alphas_cumprod_takes_lists_and_arrays():
  for table in ([0.9, 0.5], (0.9, 0.5), np.array([0.9, 0.5], np.float32).astype(float)):
    assert levels.read_alphas_cumprod('test', table).dtype == np.float64
  with pytest.raises(ValueError, match='^test: alphas_cumprod must decrease strictly, got 0.7 af'):
    levels.read_alphas_cumprod('test', [0.5, 0.7])
