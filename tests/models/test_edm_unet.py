"""SongUNet under EDM's preconditioning against the reference numbers of EDM's own."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import networks
from tests import reference
from tests.models import torch_layout

MANIFEST, ARRAYS = reference.load('edm_nets')
NETWORKS = {network['id']: network for network in MANIFEST['networks']}
CASES = {case['id']: case for case in MANIFEST['cases']
         if NETWORKS[case['network']]['network_class'] == 'SongUNet'
         and NETWORKS[case['network']]['variant'] == 'edm' and case['precond'] == 'EDMPrecond'}


# A network compiles for seconds and runs once: optimizing its machine code does not pay.
quickly = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def network(case):
  """apply_features of a case."""
  settings = {setting: value for setting, value in NETWORKS[case['network']]['init_kwargs'].items()
              if setting not in ('in_channels', 'label_dropout')}  # Known from x; for training.
  sigma_data = case['precond_kwargs'].get('sigma_data', 0.5)
  return networks.denoiser(networks.build('song_unet', settings),
                           networks.preconditioning('edm', {'sigma_data': sigma_data}))


def denoiser(name, dtype):
  """(features(x) -> (D, bottleneck), recorded arrays) of a case."""
  case, arrays = CASES[name], ARRAYS[f'case_{name}']
  params = torch_layout.params(ARRAYS[f'weights_{case["network"]}'], dtype)
  sigma = jnp.asarray(arrays['sigma'], dtype)
  call = {field: jnp.asarray(arrays[field], dtype) for field in ('augment_labels',)
          if field in arrays}
  if 'class_labels' in arrays:
    call['class_labels'] = jnp.asarray(arrays['class_labels'], dtype)
  apply = network(case)
  return (lambda x: apply(params, x, sigma[0] if sigma.shape == (1,) else sigma, **call)), arrays


def test_all_networks_of_the_reference_are_here():
  assert len(CASES) == 9
  assert {CASES[name]['network'] for name in CASES} == {
      network for network in NETWORKS if network.startswith('song_')}


@pytest.mark.parametrize('name', CASES)
def test_denoiser_in_64_bit(x64, name):
  features, arrays = denoiser(name, np.float64)
  denoised, bottleneck = quickly(features)(jnp.asarray(arrays['x'], np.float64))
  np.testing.assert_allclose(denoised, arrays['D_f64'], rtol=1e-9, atol=1e-12)
  if 'bottleneck_channel_mean_f64' in arrays:
    np.testing.assert_allclose(bottleneck, arrays['bottleneck_channel_mean_f64'], rtol=1e-9,
                               atol=1e-12)


# One case for each network: compiling takes longer than all else here.
@pytest.mark.parametrize('name', {case['network']: name for name, case in CASES.items()}.values())
def test_denoiser_in_32_bit(name):
  features, arrays = denoiser(name, np.float32)
  denoised, bottleneck = quickly(features)(jnp.asarray(arrays['x'], np.float32))
  # Another order of sums than the original's, in a network of the same conditioning.
  bound = 4 * CASES[name]['max_abs_float32_minus_float64']['D']
  assert abs(np.float64(denoised) - arrays['D_f64']).max() < bound
  if 'bottleneck_channel_mean_f64' in arrays:
    own = abs(np.float64(arrays['bottleneck_f32']) - arrays['bottleneck_f64']).max()
    assert abs(np.float64(bottleneck) - arrays['bottleneck_channel_mean_f64']).max() < 4 * own


def loss_of_gradients(apply, params, x, arrays):
  """The recorded loss of the case with gradients."""
  denoised, _ = apply(params, x, jnp.asarray(arrays['sigma'], x.dtype),
                      class_labels=jnp.asarray(arrays['class_labels'], x.dtype))
  square = jnp.sum((denoised - jnp.asarray(arrays['target'], x.dtype))**2, (1, 2, 3))
  return jnp.mean(jnp.asarray(arrays['loss_weight'], x.dtype) * square)


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_gradients_in_the_input_and_in_parameters(dtype):
  case, arrays = CASES['ddpmpp_c_edm_grad'], ARRAYS['case_ddpmpp_c_edm_grad']
  apply, weights = network(case), ARRAYS[f'weights_{case["network"]}']
  with jax.enable_x64(dtype == np.float64):
    params = torch_layout.params(weights, dtype)
    own_params, own_x = quickly(jax.grad(functools.partial(loss_of_gradients, apply), (0, 1)))(
        params, jnp.asarray(arrays['x'], dtype),
        {name: arrays[name] for name in ('sigma', 'class_labels', 'target', 'loss_weight')})
  recorded = {field.removeprefix('gradp_f64:'): value for field, value in arrays.items()
              if field.startswith('gradp_f64:')}
  assert len(recorded) == len(case['gradient_parameters']) == 6
  ours = flax.traverse_util.flatten_dict(own_params)
  expected = flax.traverse_util.flatten_dict(torch_layout.nested(recorded))
  pairs = [(own_x, arrays['grad_x_f64']), *((ours[name], expected[name]) for name in expected)]
  x_error = abs(np.float64(arrays['grad_x_f32']) - arrays['grad_x_f64']).max()
  relative = 4 * x_error / abs(arrays['grad_x_f64']).max() if dtype == np.float32 else 1e-12
  for value, reference_value in pairs:
    scale = abs(reference_value).max()
    assert abs(np.float64(value) - reference_value).max() < relative * scale
