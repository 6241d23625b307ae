"""Early-stopped diffusion: given images, diffused to an inner level of a chain and denoised."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from engine import images
from tests import reference
from tests.samplers import chain_cases

MANIFEST, ARRAYS = reference.load('es_ddpm')
CASES = {case['id']: case for case in MANIFEST['cases']}
INPUTS = ARRAYS['inputs']


def arrays_of(name):
  return {key.split('.', 1)[1]: value for key, value in ARRAYS[CASES[name]['file'][:-4]].items()
          if key.startswith(f'{name}.')}


def diffused(name):
  """The grid, and x0 + sigma z at its first level."""
  sigmas = chain_cases.grid(CASES[name])
  return sigmas, INPUTS['x_start'] + sigmas[0] * INPUTS['noise'][0]


def test_every_case_is_here():
  assert len(CASES) == len(MANIFEST['cases']) == 12
  assert collections.Counter(case['sampler'] for case in CASES.values()) == {'ddpm': 8, 'ddim': 4}
  assert sum('traj' in arrays_of(name) for name in CASES) == 10


@pytest.mark.parametrize('name', CASES)
def test_the_inner_level(name):
  case, arrays = CASES[name], arrays_of(name)
  sigmas, x = diffused(name)
  assert len(sigmas) - 1 == case['num_steps'] == case['reverse_steps']
  assert sigmas[0] == pytest.approx(case['sigma_noised'], rel=1e-10)
  chain = samplers.chains.respace(case['diffusion_steps'], case['timestep_respacing'])
  assert len(chain) == case['chain_length']
  assert chain[case['noised_respaced_index']] == case['noised_original_timestep']
  chain_cases.assert_close(x / chain_cases.root(sigmas[0])[0], arrays['x_start_noised'], case)
  for kind in {'model_t', 'cond_t'} & arrays.keys():
    np.testing.assert_allclose(chain_cases.times(case, sigmas[:-1]), arrays[kind], rtol=0,
                               atol=1e-6)


@pytest.mark.parametrize('name', CASES)
def test_samples(name):
  """From the given images to new ones, and to bytes by the original's rule."""
  case, arrays = CASES[name], arrays_of(name)
  sigmas, x = diffused(name)
  noise, y = INPUTS['noise'][1:], INPUTS['y']
  if case['sampler'] == 'ddim':
    end = chain_cases.run_ddim(case, sigmas, x, noise, y)
    chain_cases.check_ddim(case, sigmas, x, noise, y, arrays['traj'])
  else:
    states = chain_cases.run_ddpm(case, x, noise, y)
    end = states[-1]
    if 'traj' in arrays:
      chain_cases.assert_close(states, arrays['traj'], case)
  chain_cases.assert_close(end, arrays['x0'], case)
  scaled = (arrays['x0'] + 1) * 127.5
  settled = abs(scaled - np.rint(scaled)) > 1e-6  # Within rounding of an integer, either may come.
  assert settled.mean() > 0.5
  np.testing.assert_array_equal(images.to_uint8(np.asarray(end), 'truncate')[settled],
                                arrays['x0_uint8'][settled])


def test_fixed_variance_as_a_table():
  (name,) = [name for name, case in CASES.items() if case['model_var_type'] != 'learned_range']
  _, x = diffused(name)
  end = chain_cases.run_fixed(CASES[name], x, INPUTS['noise'][1:], INPUTS['y'])
  chain_cases.assert_close(end, arrays_of(name)['x0'], CASES[name])


def test_bytes_of_the_given_images():
  """Reading is exact; truncation then takes 63 of the 256 values one down."""
  stored = ARRAYS['images']
  np.testing.assert_allclose(stored['arr_0'] / 255 * 2 - 1, INPUTS['x_start'], rtol=0, atol=1e-15)
  np.testing.assert_array_equal(stored['arr_1'], INPUTS['y'])
  quantized = ARRAYS['quantization']
  back = images.to_uint8(quantized['normalised_float32'], 'truncate')
  np.testing.assert_array_equal(back, quantized['roundtrip_uint8'])
  assert (back != quantized['uint8_in']).sum() == 63
  np.testing.assert_array_equal(images.to_uint8(quantized['probe'], 'truncate'),
                                quantized['probe_uint8'])


def test_any_solver_starts_from_an_inner_level():
  """The images keep their distance to the mixture's means, which full noise would not."""
  sigmas, x = diffused('ddpm250_25')
  denoise = reference.mixture_denoiser(chain_cases.MIXTURE)
  fine = samplers.make('euler', samplers.schedule('polynomial', 400, 1e-3, sigmas[0]))
  exact = samplers.run(fine, denoise, jnp.asarray(x))
  for solver, options in (('dpmpp', {}), ('heun', {})):
    coarse = samplers.schedule('polynomial', 8, 1e-3, sigmas[0])
    end = samplers.run(samplers.make(solver, coarse, **options), denoise, jnp.asarray(x))
    assert jnp.sqrt(jnp.mean((end - exact)**2)) < 0.01
