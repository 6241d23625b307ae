"""Log-likelihood along the ODE: reference numbers, Gaussian data, probes, and dequantization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import likelihood, likelihood_adaptive
from tests import reference

MANIFEST, ARRAYS = reference.load('likelihood')
CASES, INPUTS = ARRAYS['cases'], ARRAYS['inputs']
FIXED, CONTINUOUS = ([case for case in MANIFEST['cases'] if case['kind'] == kind]
                     for kind in ('likelihood_fixed_grid', 'likelihood_continuous'))
MIXTURE = reference.mixture_denoiser(ARRAYS['mixture'])
KINDS = {'rademacher': slice(0, 4), 'gaussian': slice(4, 6)}  # Places in PROBES.
PROBES = np.concatenate([INPUTS[kind] for kind in KINDS])
STD, MEAN = 0.5, 0.1
GAUSSIAN = reference.gaussian_denoiser(STD, MEAN)


def by_image(denoise):
  """The denoiser for levels of shape (batch,)."""
  return lambda x, sigma: jax.vmap(lambda x, sigma: denoise(x[None], sigma)[0])(x, sigma)


def padded(steps, rows):
  """The same with stages and rows of weight 0, so that solvers and grids share a program."""
  more = rows - len(steps.sigma), 4 - steps.sigma.shape[1]
  sigma = np.pad(steps.sigma, [(0, more[0]), (0, more[1])], constant_values=1.0)
  weights = np.zeros((*sigma.shape, 4))
  inner, (n, count) = steps.weights, steps.sigma.shape
  weights[:n, :count - 1, :count] = inner[:, :-1]
  weights[:n, -1, :count] = inner[:, -1]
  return likelihood.Steps(sigma, weights, steps.sigma_max)


@functools.cache
def along(exact):
  """One program for all probes, of which a case takes its own."""
  probes = None if exact else jnp.asarray(PROBES)
  return jax.jit(lambda steps, x: likelihood.along(steps, MIXTURE, x, probes))


@functools.cache
def continuous(exact):
  probes = None if exact else jnp.asarray(PROBES)
  found, info = jax.jit(lambda x: likelihood_adaptive.integrate(
      by_image(MIXTURE), x, 0.05, 20.0, probes, rtol=1e-9, atol=1e-9))(jnp.asarray(INPUTS['x']))
  assert info.finished.all()
  return found


def test_every_case_is_here():
  assert (len(FIXED), len(CONTINUOUS)) == (8, 4)


@pytest.mark.parametrize('case', FIXED, ids=lambda case: case['id'])
def test_reference_on_fixed_grids(case):
  steps = likelihood.steps(CASES[f'grid/{case["grid"]}'], case['solver'])
  assert steps.nfe == case['nfe']
  check(case, along(case['divergence'] == 'exact')(padded(steps, 200), jnp.asarray(INPUTS['x'])))


@pytest.mark.parametrize('case', CONTINUOUS, ids=lambda case: case['id'])
def test_reference_of_the_continuous_solution(case):
  found = continuous(case['divergence'] == 'exact')
  check(case, found)
  if case['divergence'] == 'exact':
    np.testing.assert_allclose(found.integral + CASES['exact/log_density_at_sigma_max'],
                               CASES['exact/log_density_at_sigma0'], atol=case['atol'])


def check(case, found):
  if case['divergence'] != 'exact':
    own = found.by_probe[KINDS[case['divergence']]][:case['probes']]
    found = likelihood.result(found.latent, own, jnp.asarray(20.0))
  for name in case['arrays']:
    np.testing.assert_allclose(getattr(found, name), CASES[f'{case["id"]}/{name}'], rtol=0,
                               atol=case['atol'], err_msg=name)


def exact_gaussian(x, low, high):
  """Log-likelihood of N(MEAN, STD^2) by Eq. 2 of the module, in closed form."""
  x, size = np.asarray(x, np.float64), np.prod(x.shape[1:])
  z = reference.gaussian_flow(x, low, high, STD, MEAN)
  prior = np.sum(-np.log(high * np.sqrt(2 * np.pi)) - z**2 / (2 * high**2), (1, 2, 3))
  return prior + size / 2 * np.log((STD**2 + high**2) / (STD**2 + low**2))


@functools.cache
def along_gaussian():
  return jax.jit(lambda steps, x: likelihood.along(steps, GAUSSIAN, x, jnp.asarray(PROBES[:1, :2])))


@pytest.mark.parametrize('solver', likelihood.SOLVERS)
def test_solvers_have_their_order(solver):
  """On Gaussian data J is a number, of which one probe of signs is exact."""
  x = jnp.asarray(INPUTS['x'][:2])
  expected = exact_gaussian(x, 0.2, 5.0)

  def error(n):
    steps = likelihood.steps(np.geomspace(0.2, 5.0, n + 1), solver)
    return abs(along_gaussian()(padded(steps, 64), x).log_likelihood - expected).max()
  order = {'euler': 1, 'heun': 2, 'rk4': 4}[solver.removesuffix('_log')]
  assert np.log2(error(32) / error(64)) == pytest.approx(order, abs=0.25)


@functools.cache
def adaptive():
  return jax.jit(lambda x, probes, rtol, max_steps: likelihood_adaptive.integrate(
      by_image(GAUSSIAN), x, 0.002, 80.0, probes, rtol=rtol, atol=rtol, max_steps=max_steps))


# Also images far from the data, whose steps differ.
NEAR_AND_FAR = np.concatenate([INPUTS['x'], 20 * INPUTS['x']]).astype(np.float32)
TWO = np.tile(PROBES[:2], (1, 2, 1, 1, 1)).astype(np.float32)


@pytest.mark.float32
def test_adaptive_steps_keep_their_tolerance_image_by_image():
  """Over the whole range of a model, and to the last bit the same in other company."""
  x = NEAR_AND_FAR
  found, info = adaptive()(x, TWO, 1e-4, 1000)
  # Tens of steps, each of which may be off by 1e-4 of the state, whose square is what counts.
  np.testing.assert_allclose(found.log_likelihood, exact_gaussian(x, 0.002, 80.0), rtol=1e-3)
  np.testing.assert_array_equal(info.nfe, 1 + 6 * (info.accepted + info.rejected))
  assert info.finished.all() and len(set(info.accepted.tolist())) > 1
  turned, _ = adaptive()(x[::-1], TWO[:, ::-1], 1e-4, 1000)
  np.testing.assert_array_equal(turned.bits_per_dim[::-1], found.bits_per_dim)
  assert adaptive()(x, TWO, 1e-3, 1000)[1].nfe.mean() < info.nfe.mean()


@pytest.mark.float32
def test_adaptive_steps_end_where_they_cannot_go_on():
  _, info = adaptive()(NEAR_AND_FAR, TWO, 1e-4, 3)
  assert not info.finished.any() and (info.nfe == 19).all()
  broken = np.arange(8) == 1
  x = np.where(broken[:, None, None, None], np.float32(np.nan), NEAR_AND_FAR)
  found, info = adaptive()(x, TWO, 1e-4, 1000)
  np.testing.assert_array_equal(info.finished, ~broken)
  np.testing.assert_array_equal(np.isfinite(found.bits_per_dim), ~broken)


def keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))


def test_probes_belong_to_their_keys():
  one = likelihood.draw_probes(keys([3, 5]), 2, (4, 4, 3), 'rademacher', jnp.float64)
  more = likelihood.draw_probes(keys([7, 5, 3]), 3, (4, 4, 3), 'rademacher', jnp.float64)
  np.testing.assert_array_equal(one, more[:2, ::-1][:, :2])
  assert set(np.unique(one)) == {-1.0, 1.0} and abs(one[0] - one[1]).max() == 2
  gaussian = likelihood.draw_probes(keys([1]), 4, (8, 8, 3), 'gaussian', jnp.float64)
  # Of 768 normal numbers: four standard deviations of mean and of variance.
  assert abs(gaussian.mean()) < 0.15 and abs(gaussian.var() - 1) < 0.21


def test_dequantized_pixels_stay_in_their_bins_and_keep_their_bits():
  pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  x = likelihood.dequantize(jnp.asarray(pixels), keys([4]))
  assert x.dtype == jnp.float32
  steps = (np.asarray(x, np.float64) + 1) * 128 - pixels
  assert 0 <= steps.min() < 0.05 and 0.95 < steps.max() <= 1  # 256 draws of u.
  # All 256 values equally likely: 8 bits, and a density of 1/2 on [-1, 1].
  assert likelihood.bits_per_dim(48 * np.log(0.5), 48) == pytest.approx(8, rel=1e-12)


X = np.zeros((2, 4, 4, 3))


@pytest.mark.parametrize('call, message', [
    (lambda: likelihood.steps([1.0, 2.0], 'rk5'), "^likelihood: unknown solver 'rk5'; did you me"),
    (lambda: likelihood.steps([1.0]), r'sigmas must be a list of two or more levels, got .*\(1,\)'),
    (lambda: likelihood.steps([2.0, 1.0]), 'sigmas must increase, got 1 after 2 at index 1; .* t'),
    (lambda: likelihood.steps([1.0, 1.0]), 'sigmas must increase, got 1 after 1 at index 1'),
    (lambda: likelihood.steps([0.0, 1.0]), 'above 0 and at most 1e.18, got 0 at index 0; data'),
    (lambda: likelihood.steps([1.0, np.nan]), 'above 0 and at most 1e.18, got nan at index 1'),
    (lambda: likelihood.along(likelihood.steps([1.0, 2.0]), GAUSSIAN, np.zeros((2, 3))),
     r'x must be floats of shape \(batch, height, width, channels\), got float64 of .*\(2, 3\)'),
    (lambda: likelihood.along(likelihood.steps([1.0, 2.0]), GAUSSIAN, X, X),
     r'probes must be float64 of shape \(probes, 2, 4, 4, 3\), got float64 of .*\(2, 4, 4, 3\)'),
    (lambda: likelihood.draw_probes(keys([1]), 0, (4, 4, 3)), 'probes must be an integer of 1'),
    (lambda: likelihood.draw_probes(keys([1]), 1, (4, 4, 3), 'exact'), "unknown probes 'exact'"),
    (lambda: likelihood_adaptive.integrate(GAUSSIAN, X, 2.0, 1.0), 'sigma_max must be above'),
    (lambda: likelihood_adaptive.integrate(GAUSSIAN, X, 0.0, 1.0), 'sigma_min must be a fin'),
    (lambda: likelihood_adaptive.integrate(GAUSSIAN, X, 1.0, 2.0, rtol=0), 'rtol must be a finite'),
    (lambda: likelihood_adaptive.integrate(GAUSSIAN, X, 1.0, 2.0, max_steps=0), 'max_steps must'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
