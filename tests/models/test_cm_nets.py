"""The U-Nets of consistency models and their preconditionings against the reference numbers."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import cm
from models import denoisers, networks
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('cm_nets')
CASES = {case['id']: case for case in MANIFEST['cases']}
RECIPES = recipe.load('cm_nets/recipes.json.gz')
SMALLEST = 'cm_lsun_style_wide'  # In compilation.
EXACT = 1e-9  # In 64 bit another order of sums is all that differs.


@contextlib.contextmanager
def precision(dtype):
  """64 bit without silent promotions, or 32 bit."""
  with contextlib.ExitStack() as stack:
    stack.enter_context(jax.enable_x64(dtype == np.float64))
    stack.enter_context(jax.numpy_dtype_promotion('strict'))
    stack.enter_context(jax.numpy_rank_promotion('raise'))
    yield


@functools.cache
def build(name, dtype):
  """network(x, c_noise) -> (F, (bottleneck, middle block)) of a case."""
  weights = recipe.weights(RECIPES[CASES[name]['recipe']], CASES[name]['weight_tag'])
  config, params = cm.convert(weights, CASES[name]['kwargs'], distilled=False)
  module = networks.build(**config['network'])
  params = jax.tree.map(lambda array: jnp.asarray(array, dtype), params)
  call = {}
  if config['num_classes']:
    call['class_labels'] = jax.nn.one_hot(ARRAYS[name]['y'], config['num_classes'], dtype=dtype)
  lowest = config['image_shape'][0] >> len(module.channel_mult) - 1
  middle = f'dec_{lowest}x{lowest}_in1'
  @quickly
  def evaluate(params, x, c_noise):
    (out, bottleneck), state = module.apply(
        {'params': params}, x, c_noise, mutable=['intermediates'],
        capture_intermediates=lambda module, _: module.name == middle, **call)
    return out, (bottleneck, state['intermediates'][middle]['__call__'][0])
  return functools.partial(evaluate, params)


def denoise(name, coefficients, x, sigma, dtype=np.float64):
  """D(x; sigma) of a case."""
  network, coefficients = build(name, dtype), quickly(coefficients)
  return denoisers.precondition(network, coefficients, jnp.asarray(x, dtype), sigma)[0]


def preconditioning(distilled):
  """The coefficients that conversion chooses."""
  config = cm.describe(CASES['cm_lsun_style']['kwargs'], distilled)
  return networks.preconditioning(**config['preconditioning'])


def test_all_cases_of_the_reference_are_here():
  assert len(CASES) == 3 and {case['kind'] for case in CASES.values()} == {'unet+preconditioning'}
  assert CASES.keys() == ARRAYS.keys() == RECIPES.keys()
  assert sum('middle64' in arrays for arrays in ARRAYS.values()) == 1


# 32 bit runs the same code: one network, and that of test_cm, show that it loses no more than due.
@pytest.mark.parametrize('name, dtype', [*((name, np.float64) for name in CASES),
                                         (SMALLEST, np.float32)])
def test_unet(name, dtype):
  arrays = ARRAYS[name]
  with precision(dtype):
    out, (bottleneck, middle) = build(name, dtype)(
        jnp.asarray(arrays['x_raw'], dtype), jnp.asarray(arrays['t_raw'], dtype))
  # 32 bit: another order of sums than the original's, in a network of the same conditioning.
  bound = EXACT if dtype == np.float64 else 4 * CASES[name]['max_abs_err_float32_vs_float64']
  assert abs(np.float64(out) - arrays['out_raw64']).max() < bound
  if 'middle64' in arrays:
    assert abs(np.float64(middle) - arrays['middle64']).max() < bound
    assert abs(np.float64(bottleneck) - arrays['middle_channel_mean64']).max() < bound


@pytest.mark.parametrize('name', CASES)
def test_denoisers_of_teachers_and_of_consistency_models(name):
  arrays = ARRAYS[name]
  teacher, student = (preconditioning(distilled) for distilled in (False, True))
  with precision(np.float64):
    for i, sigma in enumerate(arrays['sigma']):
      for coefficients, expected in ((teacher, 'denoised64'), (student, 'denoised_boundary64')):
        denoised = denoise(name, coefficients, arrays['x'][i], sigma)
        assert abs(denoised - arrays[expected][i]).max() < EXACT
    denoised = denoise(name, teacher, arrays['x_vec'], arrays['sigma_vec'])
    assert abs(denoised - arrays['denoised_vec64']).max() < EXACT
    time = teacher(jnp.asarray(arrays['sigma'])).c_noise
    np.testing.assert_allclose(time, arrays['rescaled_t64'], rtol=1e-12)


def test_denoiser_in_32_bit():
  arrays, case = ARRAYS[SMALLEST], CASES[SMALLEST]
  bound = 4 * case['denoised_max_abs_err_float32_vs_float64']  # As of the network above.
  with precision(np.float32):
    for i, sigma in enumerate(np.float32(arrays['sigma'])):
      denoised = denoise(SMALLEST, preconditioning(False), arrays['x'][i], sigma, np.float32)
      assert abs(np.float64(denoised) - arrays['denoised64'][i]).max() < bound


def test_a_consistency_model_leaves_the_start_of_a_trajectory_as_it_is():
  x = ARRAYS[SMALLEST]['x_vec']
  with precision(np.float64):
    denoised = denoise(SMALLEST, preconditioning(True), x, 0.002)
    # To sigma_data^2 / sigma_data^2, whatever the network answers.
    np.testing.assert_allclose(denoised, x, rtol=1e-15)
    assert abs(denoise(SMALLEST, preconditioning(False), x, 0.002) - x).max() > 1e-4
