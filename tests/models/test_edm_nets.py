"""The networks of EDM and SFD under every preconditioning against the reference numbers."""

import functools
import zlib

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
CASES = {case['id']: case for case in MANIFEST['cases']}
RECIPES = {case['id']: case for case in MANIFEST['recipe_cases']}
NAMES = {'SongUNet': 'song_unet', 'DhariwalUNet': 'adm_unet'}
PRECONDITIONING = {'EDMPrecond': 'edm', 'VPPrecond': 'vp', 'VEPrecond': 've',
                   'iDDPMPrecond': 'iddpm'}


# A network compiles for seconds and runs once: optimizing its machine code does not pay.
quickly = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def network(case):
  """How to evaluate the network of a case, -> (D, bottleneck)."""
  entry = NETWORKS[case['network']]
  settings = {setting: value for setting, value in entry['init_kwargs'].items()
              if setting not in ('in_channels', 'label_dropout')}  # Known from x; for training.
  if entry['variant'] == 'sfd':
    settings['step_condition'] = True
  name = PRECONDITIONING[case['precond']]
  given = {setting: value for setting, value in case['precond_kwargs'].items()
           if setting not in ('sigma_min', 'sigma_max', 'epsilon_t')}  # Of the range.
  if name == 'iddpm':
    given['u'] = ARRAYS['noise_tables']['u_float32'].tolist()  # That of a checkpoint.
  return networks.select(networks.denoiser(networks.build(NAMES[entry['network_class']], settings),
                                           networks.preconditioning(name, given)), 0, 2)


def denoiser(name, dtype):
  """(features(x) -> (D, bottleneck), recorded arrays) of a case."""
  case, arrays = CASES[name], ARRAYS[f'case_{name}']
  params = torch_layout.params(ARRAYS[f'weights_{case["network"]}'], dtype)
  sigma = jnp.asarray(arrays['sigma'], dtype)
  call = {field: jnp.asarray(arrays[field], dtype) for field in ('augment_labels', 'class_labels')
          if field in arrays}
  if 'step_condition' in case:
    call['step_condition'] = case['step_condition']
  if 'skip_tuning' in case:
    call['skip_tuning'] = case['skip_tuning']
  apply = network(case)
  return (lambda x: apply(params, x, sigma[0] if sigma.shape == (1,) else sigma, **call)), arrays


def test_all_networks_of_the_reference_are_here():
  assert len(CASES) == 24
  assert {CASES[name]['network'] for name in CASES} == set(NETWORKS)


@pytest.mark.parametrize('name', CASES)
def test_denoiser_in_64_bit(x64, name):
  features, arrays = denoiser(name, np.float64)
  denoised, bottleneck = quickly(features)(jnp.asarray(arrays['x'], np.float64))
  np.testing.assert_allclose(denoised, arrays['D_f64'], rtol=1e-9, atol=1e-12)
  if 'bottleneck_channel_mean_f64' in arrays:
    np.testing.assert_allclose(bottleneck, arrays['bottleneck_channel_mean_f64'], rtol=1e-9,
                               atol=1e-12)


# One case for every third network: compiling takes longer than all else here.
@pytest.mark.parametrize('name', [*{
    case['network']: name for name, case in CASES.items()}.values()][::3])
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
  """The recorded loss of a case with gradients."""
  denoised, _ = apply(params, x, jnp.asarray(arrays['sigma'], x.dtype),
                      class_labels=jnp.asarray(arrays['class_labels'], x.dtype))
  square = jnp.sum((denoised - jnp.asarray(arrays['target'], x.dtype))**2, (1, 2, 3))
  return jnp.mean(jnp.asarray(arrays['loss_weight'], x.dtype) * square)


@pytest.mark.parametrize('dtype, name', [
    (np.float64, 'ddpmpp_c_edm_grad'), (np.float64, 'adm_c_edm_grad'),
    (np.float32, 'adm_c_edm_grad')])
def test_gradients_in_the_input_and_in_parameters(dtype, name):
  case, arrays = CASES[name], ARRAYS[f'case_{name}']
  apply, weights = network(case), ARRAYS[f'weights_{case["network"]}']
  with jax.enable_x64(dtype == np.float64):
    params = torch_layout.params(weights, dtype)
    own_params, own_x = quickly(jax.grad(functools.partial(loss_of_gradients, apply), (0, 1)))(
        params, jnp.asarray(arrays['x'], dtype),
        {field: arrays[field] for field in ('sigma', 'class_labels', 'target', 'loss_weight')})
  recorded = {field.removeprefix('gradp_f64:'): value for field, value in arrays.items()
              if field.startswith('gradp_f64:')}
  assert len(recorded) == len(case['gradient_parameters']) >= 4
  ours = flax.traverse_util.flatten_dict(own_params)
  expected = flax.traverse_util.flatten_dict(torch_layout.nested(recorded))
  pairs = [(own_x, arrays['grad_x_f64']), *((ours[name], expected[name]) for name in expected)]
  x_error = abs(np.float64(arrays['grad_x_f32']) - arrays['grad_x_f64']).max()
  relative = 4 * x_error / abs(arrays['grad_x_f64']).max() if dtype == np.float32 else 1e-12
  for value, reference_value in pairs:
    scale = abs(reference_value).max()
    assert abs(np.float64(value) - reference_value).max() < relative * scale


def recipe_weight(salt, name, shape):
  """One tensor of a network that is described, not stored."""
  *_, parent, leaf = ('', *name.split('.'))
  seed = zlib.crc32(f'{salt}/{name}'.encode())
  z = np.random.RandomState(seed).standard_normal(shape)
  if name == 'map_noise.freqs':
    z = 16 * z
  elif len(shape) > 1:
    z = z / np.sqrt(np.prod(shape[1:]))
  else:
    z = 0.1 * z + (leaf == 'weight' and 'norm' in parent)
  return z.astype(np.float32)


def recipe_params(case, shapes):
  """Parameters of a described network: the names of the original follow from ours."""
  params = {}
  for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
    *modules, kind = path
    if modules[0].startswith(('enc_', 'dec_')):
      modules = [modules[0][:3], modules[0][4:], *modules[1:]]
    shape = leaf.shape
    if kind == 'kernel':
      shape = shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
    name = '.'.join([*modules, {'kernel': 'weight', 'scale': 'weight'}.get(kind, kind)])
    weight = recipe_weight(case['salt'], name, shape)
    if name == case['recipe_check']['name']:
      np.testing.assert_allclose(weight.ravel()[:3], case['recipe_check']['first3'], rtol=1e-6)
      np.testing.assert_allclose(np.sum(weight, dtype=np.float64),
                                 case['recipe_check']['sum_float64'], rtol=1e-9)
    params[path] = torch_layout.transposed('weight' if kind != 'bias' else kind, weight)[1] if (
        kind != 'freqs') else weight
  return flax.traverse_util.unflatten_dict(params)


@pytest.mark.parametrize('name', [
    'recipe_adm_2heads', 'full_edm-cifar10-32x32-uncond-vp',
    pytest.param('full_edm-cifar10-32x32-uncond-ve', marks=pytest.mark.slow),
    pytest.param('full_edm-imagenet-64x64-cond-adm', marks=pytest.mark.slow)])
def test_described_networks_in_32_bit(name):
  case, arrays = RECIPES[name], ARRAYS[name]
  settings = {setting: value for setting, value in case['init_kwargs'].items()
              if setting not in ('model_type', 'img_channels')}
  module = networks.build(NAMES[case['init_kwargs']['model_type']], settings | {'out_channels': 3})
  side = case['init_kwargs']['img_resolution']
  shapes = jax.eval_shape(functools.partial(networks.initialize, module, (side, side, 3)),
                          jax.random.key(0))
  params = recipe_params(case, shapes)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case['num_parameters'] + (
      len(params['map_noise']['freqs']) if 'map_noise' in params else 0)  # A buffer there.
  apply = networks.denoiser(module, networks.preconditioning('edm', {}))
  labels = jnp.asarray(arrays['class_index']) if 'class_index' in arrays else None
  denoised, _, _ = quickly(apply)(params, jnp.asarray(arrays['x'], jnp.float32),
                                  jnp.asarray(arrays['sigma'], jnp.float32), labels)
  bound = 4 * case['max_abs_float32_minus_float64']['D']  # As above.
  expected = arrays['D_f64'] if 'D_f64' in arrays else arrays['D_f64_as_float32']
  assert abs(np.float64(denoised) - expected).max() < bound
