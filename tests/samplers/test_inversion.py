"""Inversion: reference numbers, the way back of every solver without noise, and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import inversion, moments
from tests import reference

MANIFEST, ARRAYS = reference.load('likelihood')
ALL, X = ARRAYS['cases'], ARRAYS['inputs']['x']
CASES = {case['id']: case for case in MANIFEST['cases'] if case['kind'] == 'inversion'}
DENOISE = reference.mixture_denoiser(ARRAYS['mixture'])
SOLVERS = {'euler': ('euler', {}), 'heun': ('heun', {}),
           'dpmpp_2m': ('dpmpp', {'max_order': 2, 'lower_order_final': False})}


def array(name, array):
  return ALL[f'{name}/{array}']


def test_every_case_is_here():
  assert len(CASES) == 6


@pytest.mark.parametrize('name', sorted(CASES.keys() - {'inversion_05'}))
def test_reference(name):
  """Table, latent, and what comes back."""
  case, grid = CASES[name], ALL[f'grid/{CASES[name]["grid"]}']
  if case['solver'] == 'euler_target_level':
    up, down = inversion.target_level(grid), samplers.make('euler', grid[::-1])
  else:
    solver, options = SOLVERS[case['solver']]
    up, down = inversion.tables(solver, grid[::-1], **options)
  assert up.nfe == case['nfe']
  np.testing.assert_allclose(reference.evaluation_levels(up), array(name, 'eval_sigma'), rtol=1e-12)
  linear = reference.linear_map(up)
  linear[:, 0] /= up.sigma[0]  # Here from x itself.
  np.testing.assert_allclose(linear, array(name, 'linear_map'), rtol=0, atol=1e-9)
  sample = reference.sampler(DENOISE)
  latent = sample(up, jnp.asarray(X))
  np.testing.assert_allclose(latent, array(name, 'latent'), rtol=0, atol=case['atol'])
  back = sample(down, latent)
  np.testing.assert_allclose(back, array(name, 'reconstruction'), rtol=0, atol=case['atol'])
  assert abs(back - X).max() == pytest.approx(case['reconstruction_error'], abs=case['atol'])


def test_reference_of_cfg_plus_plus():
  case = CASES['inversion_05']
  grid, scale = ALL[f'grid/{case["grid"]}'], case['options']['scale']
  mixture = ARRAYS['mixture']
  with np.errstate(divide='ignore'):  # The condition gives some components no weight.
    guided = reference.mixture_denoiser({**mixture, 'w': mixture['w_cond']})
    latent = jax.jit(lambda x: inversion.cfg_plus_plus(guided, DENOISE, x, grid, scale))(X)
  np.testing.assert_allclose(latent, array('inversion_05', 'latent'), rtol=0, atol=case['atol'])


POINT, DATA = 0.7, (0.1, 0.25)  # An image of one pixel; mean and variance of the data.


def moved(table, x):
  """Where a table takes x, with the exact denoiser of Gaussian data."""
  return moments.gaussian_moments(table, *DATA, start=(x, 0.0))[0]


@functools.cache
def is_still(name):
  return name not in samplers.LOOPS and not np.any(
      samplers.make(name, [3.0, 2.0, 1.0, 0.5]).noise)


@pytest.mark.parametrize('name', [name for name in samplers.SOLVERS if is_still(name)])
@pytest.mark.parametrize('schedule', ['polynomial', 'edm'])  # Ending above 0, and in 0.
def test_every_solver_without_noise_goes_up_and_comes_back(name, schedule):
  def errors(n):
    grid = samplers.schedule(schedule, n, 0.002, 80.0)
    try:
      up, down = inversion.tables(name, grid)
    except ValueError as error:
      assert 'sigmas must end above 0' in str(error)
      pytest.skip('has no step to 0')
    latent = moved(up, POINT)
    exact = reference.gaussian_flow(POINT, 0.002, 80.0, 0.5, DATA[0])
    return abs(latent / exact - 1), abs(moved(down, latent) - POINT)
  coarse, fine = errors(40), errors(80)
  # Of first order at least, both the latent and the way back; a last step to 0 leaves 1e-5.
  assert coarse[0] < 0.15 and fine[0] < 0.65 * coarse[0] + 1e-5
  assert coarse[1] < 0.15 and fine[1] < 0.65 * coarse[1] + 1e-5


def test_what_belongs_to_the_end_of_the_way_down_stays_there():
  grid = samplers.schedule('polynomial', 6, 0.002, 80.0)
  up, down = inversion.tables('euler', grid, afs=True, denoise_to_zero=True)
  plain, _ = inversion.tables('euler', grid)
  assert (up.nfe, down.nfe) == (6, 6)  # One less and one more.
  np.testing.assert_array_equal(up.mix, plain.mix)


def test_target_level_is_the_ddim_of_the_state_in_vp():
  """One step by its published form: y' = sqrt(A') x0 + sqrt(1 - A') eps, at the level of A'."""
  a, b = 0.3, 0.9
  x = jnp.asarray(X)
  got = samplers.run(inversion.target_level([a, b]), DENOISE, x)
  alpha, alpha1 = 1 / (1 + a**2), 1 / (1 + b**2)
  y = np.sqrt(alpha) * X
  eps = (y / np.sqrt(alpha1) - DENOISE(jnp.asarray(y / np.sqrt(alpha1)), jnp.asarray(b))) / b
  expected = np.sqrt(alpha1) * (y - np.sqrt(1 - alpha) * eps) / np.sqrt(alpha) + (
      np.sqrt(1 - alpha1) * eps)
  np.testing.assert_allclose(np.sqrt(alpha1) * got, expected, rtol=0, atol=1e-12)


def outside():
  images = np.zeros((1, 2, 2, 3))
  images[0, 1, 0, 2] = 1.5
  return images


TABLE = samplers.make('euler', [1.0, 2.0])


@pytest.mark.parametrize('call, message', [
    (lambda: inversion.encode(TABLE, DENOISE, jnp.asarray(outside())),
     r'^encode: images must lie in \[-1, 1\], got 1.5 at \(0, 1, 0, 2\); 8-bit'),
    (lambda: inversion.encode(TABLE, DENOISE, jnp.full((1, 2, 2, 3), jnp.nan)), 'got nan at'),
    (lambda: inversion.tables('dpm_adaptive', [2.0, 1.0]), 'must be a table, got dpm_adaptive'),
    (lambda: inversion.tables('ddim', [2.0, 1.0, 0.5], eta=1.0), "draw no noise, got ddim .*eta"),
    (lambda: inversion.tables('euler', [2.0, 0.0]), 'must hold two levels above 0 or more, got'),
    (lambda: inversion.tables('euler', [1.0, 2.0]), 'sigmas must decrease, got 2 after 1'),
    (lambda: inversion.target_level([2.0, 1.0]), 'target_level: sigmas must increase, got 2'),
    (lambda: inversion.cfg_plus_plus(DENOISE, DENOISE, X, [2.0, 1.0], 0.6), 'cfg_plus_plus: sig'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
