"""Every deterministic solver against reference numbers of the original systems, in 64 bit.

Three checks per case: the coefficients alone, without a network (`linear_map`); the samples on an
analytic mixture; trajectory, slopes and evaluation levels where they are stored.
"""

import collections
import functools

import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import levels as levels_lib
from tests import reference

# 1e-9 of the manifest is for samples of size 1; the map's entries reach 80 on high first levels.
MAP_TOLERANCE = 1e-9

ODE, ODE_ARRAYS = reference.load('ode')
EDM, EDM_ARRAYS = reference.load('edm')
KD, KD_ARRAYS = reference.load('kdiffusion')

_ODE_NAMES = {'dpm_2': 'dpm', 'dpm_pp': 'dpmpp'}
# k-diffusion samplers that are ours under another name, and what turns their noise off.
_KD_NAMES = {
    'sample_euler': ('euler', {}), 'sample_heun': ('heun', {}), 'sample_dpm_2': ('dpm', {}),
    'sample_lms': ('lms', {}), 'sample_dpmpp_2m': ('dpmpp_2m', {}),
    'sample_dpm_fast': ('dpm_fast', {}), 'sample_euler_ancestral': ('ddim', {'eta': 0.0}),
    'sample_dpm_2_ancestral': ('dpm', {}), 'sample_dpmpp_2m_sde': ('dpmpp_2m', {}),
}


def kd_deterministic(case):
  """Whether a k-diffusion case has no noise and its sampler is one of this registry."""
  return (case['function'] in _KD_NAMES and not kd_noise(case)
          and case['options'].get('solver_type') != 'heun')


def kd_noise(case):
  return any(case['options'].get(key) for key in ('s_churn', 'eta'))


ODE_CASES = {case['id']: case for case in ODE['cases']}
EDM_CASES = {case['id']: case for case in EDM['cases'] if not case['options'].get('S_churn')}
KD_CASES = {case['id']: case for case in KD['cases'] if kd_deterministic(case)}


def test_every_deterministic_case_is_here():
  assert len(ODE_CASES) == 127
  assert collections.Counter(case['solver'] for case in ODE_CASES.values()) == {
      'euler': 6, 'heun': 6, 'dpm_2': 8, 'ipndm': 11, 'ipndm_v': 10, 'deis': 22, 'dpm_pp': 28,
      'unipc': 36}
  assert len(EDM_CASES) == 54 and len(EDM['cases']) == 67  # The others: test_churn.
  assert len(KD_CASES) == 25 and len(KD['cases']) == 69
  # Without noise as well, but elsewhere: members with eta = 0 of stochastic families are in
  # test_ancestral, adaptive steps in test_adaptive.
  assert {case['id'] for case in KD['cases'] if not kd_noise(case)} - set(KD_CASES) == {
      'dpmpp_2s_ancestral_026', 'dpmpp_sde_027', 'dpmpp_2m_sde_029', 'dpmpp_3m_sde_030',
      'dpm_adaptive_065', 'dpm_adaptive_066', 'dpm_adaptive_067', 'dpm_adaptive_068'}


@functools.cache
def denoiser(area, mixture, thresholded=False):
  arrays = {'ode': ODE_ARRAYS, 'edm': EDM_ARRAYS, 'kd': KD_ARRAYS}
  denoise = reference.mixture_denoiser(arrays[area][mixture])
  return samplers.guidance.dynamic_threshold(denoise) if thresholded else denoise


def sample(table, denoise, latents):
  return reference.sampler(denoise)(table, start(table, latents))


def sample_trajectory(table, denoise, latents):
  return samplers.run(samplers.pad(table, *reference.SHAPE), denoise, start(table, latents),
                      trajectory=True)


def start(table, latents):
  return jnp.asarray(latents * table.sigma[0])


def check_map(table, expected, tolerance=MAP_TOLERANCE):
  ours = reference.linear_map(table)
  assert ours.shape == expected.shape
  np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance)


# -- diff-sampler ---------------------------------------------------------------------------------


def ode_table(case):
  options = dict(case['options'])
  if 'deis_mode' in options:
    options['mode'] = options.pop('deis_mode')
  return samplers.make(_ODE_NAMES.get(case['solver'], case['solver']),
                       ODE_ARRAYS['cases'][f'{case["id"]}/t_steps'], afs=case['afs'],
                       denoise_to_zero=case['denoise_to_zero'], **options)


@pytest.mark.parametrize('name', ODE_CASES)
def test_diff_sampler(name):
  case = ODE_CASES[name]
  arrays = {key.split('/')[1]: value for key, value in ODE_ARRAYS['cases'].items()
            if key.startswith(name + '/')}
  table = ode_table(case)
  assert table.nfe == case['nfe']
  np.testing.assert_allclose(reference.evaluation_levels(table), arrays['eval_sigma'], rtol=1e-12)
  check_map(table, arrays['linear_map'])

  denoise = denoiser('ode', case['mixture'], case['solver'] in ('dpm_pp', 'unipc')
                     and case['options']['predict_x0'])
  latents = ODE_ARRAYS['latents'][case['latents']]
  final = sample(table, denoise, latents)
  np.testing.assert_allclose(final, arrays['final'], rtol=0, atol=case['atol'])
  if 'trajectory' in arrays:
    end, states = sample_trajectory(table, denoise, latents)
    np.testing.assert_allclose(end, final, rtol=0, atol=1e-12)
    np.testing.assert_allclose(states, arrays['trajectory'], rtol=1e-11, atol=case['atol'])
  if 'eps' in arrays:  # Slope at the start of every step, from our own states.
    raw = getattr(denoise, 'raw', denoise)
    for i, (eps, sigma) in enumerate(zip(arrays['eps'], arrays['t_steps'], strict=False)):
      ours = (states[i] - raw(states[i], jnp.asarray(sigma))) / sigma
      if i == 0 and case['afs']:
        ours = states[0] / np.sqrt(1 + sigma**2)
      # A difference of order 1e-9 in the state is divided by sigma.
      np.testing.assert_allclose(ours, eps, rtol=0, atol=case['atol'] * max(1, 1 / sigma))


@pytest.mark.parametrize('name', [name for name, case in ODE_CASES.items()
                                  if case['options'].get('deis_mode') == 'tab'
                                  and case['options']['max_order'] > 1])
def test_deis_exact_quadrature(name):
  """The exact integrals, and the samples made with them."""
  case, arrays = ODE_CASES[name], ODE_ARRAYS['cases']
  table = samplers.make('deis', arrays[f'{name}/t_steps'], max_order=case['options']['max_order'],
                        quadrature='exact', afs=case['afs'],
                        denoise_to_zero=case['denoise_to_zero'])
  final = sample(table, denoiser('ode', case['mixture']), ODE_ARRAYS['latents'][case['latents']])
  np.testing.assert_allclose(final, arrays[f'{name}/final_exact_integral'], rtol=0,
                             atol=case['atol'])


# -- EDM ------------------------------------------------------------------------------------------


def edm_table(case):
  """The Table of a case; the ablation sampler's own times become noise levels first."""
  options, times = case['options'], EDM_ARRAYS['cases'][f'{case["id"]}/t_steps']
  churn = {option: float(value) for option, value in options.items() if option.startswith('S_')}
  if case['network']['round_sigma'] == 'iddpm table':
    churn['round_levels'] = EDM_ARRAYS['iddpm_table']['u']
  if case['function'] == 'edm_sampler':
    return samplers.make('edm', times, **churn)
  low, high = edm_range(case)
  sigmas = {'vp': lambda t: levels_lib.sigma_of_vp_time(t, *levels_lib.vp_constants(low, high)),
            've': np.sqrt, 'linear': np.asarray}[options['schedule']](times)
  sigmas[-1] = 0
  return samplers.make(
      'rk', sigmas, order={'euler': 1, 'heun': 2}[options['solver']], c=options['alpha'],
      schedule=options['schedule'], scaling=options['scaling'], sigma_min=low, sigma_max=high,
      **churn)


def edm_range(case):
  """Range of levels that the ablation sampler uses: its discretization's, within the network's."""
  low, high = {'vp': (levels_lib.sigma_of_vp_time(1e-3, 19.9, 0.1),
                      levels_lib.sigma_of_vp_time(1.0, 19.9, 0.1)),
               've': (0.02, 100), 'iddpm': (0.002, 81), 'edm': (0.002, 80)}[
                   case['options']['discretization']]
  network = case['network']
  return max(low, network['sigma_min']), min(high, float(network['sigma_max']))


@pytest.mark.parametrize('name', EDM_CASES)
def test_edm(name):
  case, arrays = EDM_CASES[name], EDM_ARRAYS['cases']
  table = edm_table(case)
  assert table.nfe == case['nfe']
  # Levels of vp stages go through exp(.) - 1 in the original: it loses digits where sigma is
  # small, which is what the manifest's larger tolerance is for.
  scale = case['atol'] / 1e-9
  np.testing.assert_allclose(reference.evaluation_levels(table), arrays[f'{name}/eval_sigma'],
                             rtol=1e-12 * scale)
  network_columns = [0] + [i + 1 for i, event in enumerate(case['events']) if event == 'D']
  # Entries of the map grow with those of the samples on coarse grids.
  check_map(table, arrays[f'{name}/linear_map'][:, network_columns],
            case['atol'] * max(1, np.abs(arrays[f'{name}/linear_map']).max()))
  final = sample(table, denoiser('edm', 'mixture'), EDM_ARRAYS['latents']['latents'])
  np.testing.assert_allclose(final, arrays[f'{name}/final'], rtol=0, atol=case['atol'])


# -- k-diffusion ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', KD_CASES)
def test_k_diffusion(name):
  case, arrays = KD_CASES[name], KD_ARRAYS['cases']
  solver, options = _KD_NAMES[case['function']]
  given = case['options']
  if solver == 'dpm_fast':
    sigmas = samplers.schedule('logsnr', given['n'], given['sigma_min'], given['sigma_max'])
  else:
    sigmas = arrays[f'grid/{case["grid"]}']
  if solver == 'lms':
    options = {'order': given['order']}
  table = samplers.make(solver, sigmas, **options)
  assert table.nfe == case['nfe']
  np.testing.assert_allclose(reference.evaluation_levels(table), arrays[f'{name}/eval_sigma'],
                             rtol=1e-12)
  columns = [0] + [i + 1 for i, event in enumerate(case['events']) if event == 'D']
  check_map(table, arrays[f'{name}/linear_map'][:, columns])
  denoise, latents = denoiser('kd', 'mixture'), KD_ARRAYS['latents']['latents']
  np.testing.assert_allclose(sample(table, denoise, latents), arrays[f'{name}/final'], rtol=0,
                             atol=case['atol'])
  if f'{name}/states' in arrays:
    _, states = sample_trajectory(table, denoise, latents)
    np.testing.assert_allclose(states[:-1], arrays[f'{name}/states'], rtol=1e-11,
                               atol=case['atol'])


@pytest.mark.parametrize('name', [case['id'] for case in KD['cases']
                                  if case['function'] == 'sample_euler_ancestral'
                                  and case['options']['s_noise'] == 1])
def test_ddim_with_eta_replays_recorded_noise(name):
  """k-diffusion's ancestral Euler is DDIM with eta in these variables."""
  case = next(case for case in KD['cases'] if case['id'] == name)
  arrays, noise = KD_ARRAYS['cases'], jnp.asarray(KD_ARRAYS['latents']['noise'])
  table = samplers.make('ddim', arrays[f'grid/{case["grid"]}'], eta=case['options']['eta'])
  x = start(table, KD_ARRAYS['latents']['latents'])
  final = samplers.run(table, denoiser('kd', 'mixture'), x, draw=lambda r, x: noise[r])
  np.testing.assert_allclose(final, arrays[f'{name}/final'], rtol=0, atol=case['atol'])
