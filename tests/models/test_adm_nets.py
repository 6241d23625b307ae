"""ADM's U-Nets and classifiers, and guidance by them, against the reference numbers."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import adm
from models import layers, networks
from samplers import guidance, levels
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('adm_nets')
CASES = {case['id']: case for case in MANIFEST['cases']}
UNETS = [name for name, case in CASES.items() if case['kind'] == 'unet']
CLASSIFIERS = [name for name, case in CASES.items() if case['kind'] == 'classifier']
RECIPES = recipe.load('adm_nets/recipes.json.gz')


def tensors(name):
  """The checkpoint of a case, {name in the file: array}."""
  return recipe.weights(RECIPES[CASES[name]['recipe']], CASES[name]['weight_tag'])


def build(name, dtype, **changes):
  """(network, parameters) of a case."""
  config, params = adm.convert(tensors(name), CASES[name]['kwargs'])
  module = networks.build(config['network']['name'], {**config['network']['settings'], **changes})
  return module, jax.tree.map(lambda array: jnp.asarray(array, dtype), params)


def call(name, dtype):
  """Inputs of a U-Net beside x, in this precision."""
  arrays, inputs = ARRAYS[name], {}
  if 'y' in arrays:
    inputs['class_labels'] = jax.nn.one_hot(arrays['y'], CASES[name]['kwargs']['num_classes'],
                                            dtype=dtype)
  if 'low_res' in arrays:
    inputs['low_res'] = jnp.asarray(arrays['low_res'], dtype)
  return inputs


def test_all_cases_of_the_reference_are_here():
  assert (len(UNETS), len(CLASSIFIERS), len(CASES)) == (8, 4, 14)


@pytest.mark.parametrize('name, dtype', [*((name, np.float64) for name in UNETS),
                                         *((name, np.float32) for name in [*UNETS][::3])])
def test_unet(name, dtype):
  arrays = ARRAYS[name]
  with jax.enable_x64(dtype == np.float64):
    module, params = build(name, dtype)
    out, middle = quickly(lambda x, t: module.apply({'params': params}, x, t, **call(name, dtype)))(
        jnp.asarray(arrays['x'], dtype), jnp.asarray(arrays['t'], dtype))
  # 32 bit: another order of sums than the original's, in a network of the same conditioning.
  bound = 1e-9 if dtype == np.float64 else 4 * CASES[name]['max_abs_err_float32_vs_float64']
  assert abs(np.float64(out) - arrays['out64']).max() < bound
  if 'middle_channel_mean64' in arrays:
    assert abs(np.float64(middle) - arrays['middle_channel_mean64']).max() < bound


@pytest.mark.parametrize('name, dtype', [*((name, np.float64) for name in CLASSIFIERS),
                                         *((name, np.float32) for name in [*CLASSIFIERS][:1])])
def test_classifier_and_its_gradient(name, dtype):
  arrays, case = ARRAYS[name], CASES[name]
  with jax.enable_x64(dtype == np.float64):
    module, params = build(name, dtype)
    def log_prob(x, t):
      logits = module.apply({'params': params}, x, t)
      chosen = jax.nn.log_softmax(logits)[jnp.arange(len(x)), arrays['y']]
      return chosen.sum(), (logits, chosen)
    gradient, (logits, chosen) = quickly(jax.grad(log_prob, has_aux=True))(
        jnp.asarray(arrays['x'], dtype), jnp.asarray(arrays['t'], dtype))
  exact = dtype == np.float64
  bound = 1e-9 if exact else 4 * case['max_abs_err_float32_vs_float64']
  assert abs(np.float64(logits) - arrays['logits64']).max() < bound
  assert abs(np.float64(chosen) - arrays['logp_y64']).max() < 2 * bound
  bound = 1e-9 if exact else 4 * case['grad_max_abs_err_float32_vs_float64']
  assert abs(np.float64(gradient) - arrays['grad64']).max() < bound


@pytest.mark.parametrize('name', [name for name in UNETS if 'out_fp16_torso' in ARRAYS[name]])
def test_unet_with_a_torso_of_half_precision(name):
  arrays = ARRAYS[name]
  module, params = build(name, np.float32, torso='float16')
  out, _ = quickly(lambda x, t: module.apply({'params': params}, x, t, **call(name, np.float32)))(
      jnp.asarray(arrays['x'], np.float32), jnp.asarray(arrays['t'], np.float32))
  assert out.dtype == np.float32
  error = abs(np.float64(out) - arrays['out64']).max()
  assert 1e-5 < error < 0.03  # It is half precision, as the manifest has it: some 1e-2.
  assert abs(out - arrays['out_fp16_torso']).max() < 0.03


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_guidance_by_a_classifier(dtype):
  case, arrays = CASES['cg_wrapper'], ARRAYS['cg_wrapper']
  with jax.enable_x64(dtype == np.float64):
    unet, params = build(case['model_case'], dtype)
    module, classifier_params = build(case['classifier_case'], dtype)
    vp = networks.preconditioning('vp', {name: case[name] for name in ('beta_d', 'beta_min', 'M')})
    evaluate = networks.select(networks.denoiser(unet, vp), 0)
    classify = networks.classifier(module, vp)
    labels = jnp.asarray(arrays['y'])
    @quickly
    def denoise(x, sigma, scale):
      guided = guidance.classifier(
          lambda x, sigma: evaluate(params, x, sigma, labels),
          lambda x, sigma: classify(classifier_params, x, sigma)[jnp.arange(2), labels], scale)
      return guidance.clip(guided)(x, sigma)
    # The original's own error in float32; its time cancels at low noise, and 64 bit does not.
    bound = 1e-9 if dtype == np.float64 else 4 * case['max_abs_err_float32_vs_float64']
    for i, rate in enumerate(arrays['guidance_rate']):
      for j, sigma in enumerate(arrays['sigma']):
        ours = denoise(jnp.asarray(arrays['x'][j], dtype), jnp.full(2, sigma, dtype), dtype(rate))
        assert abs(np.float64(ours) - arrays['denoised64'][i, j]).max() < bound
    ours = denoise(jnp.asarray(arrays['x_vec'], dtype), jnp.asarray(arrays['sigma_vec'], dtype),
                   dtype(arrays['guidance_rate'][1]))
    assert abs(np.float64(ours) - arrays['denoised_vec64']).max() < bound


def test_noise_levels_of_the_wrapper():
  case, arrays = CASES['cg_wrapper'], ARRAYS['cg_wrapper']
  pair = case['beta_d'], case['beta_min']
  ours = levels.sigma_of_vp_time(arrays['t_table'], *pair)
  np.testing.assert_allclose(ours, arrays['sigma_of_t64'], rtol=1e-9)
  np.testing.assert_allclose(levels.vp_time_of_sigma(ours, *pair), arrays['t_of_sigma64'],
                             rtol=1e-9)
  ends = levels.sigma_of_vp_time(np.array([case['epsilon_t'], 1.0]), *pair)
  np.testing.assert_allclose(ends, arrays['sigma_min_max64'], rtol=1e-9)


def test_timestep_embedding(x64):
  arrays = ARRAYS['timestep_embedding']
  t = arrays['t'] if 't' in arrays else arrays['timesteps']
  sizes = [int(name.split('_')[1]) for name in arrays if name.startswith('emb64_')]
  for size in sizes:
    ours = layers.positional_embedding(jnp.asarray(t, np.float64), size - size % 2, endpoint=False)
    np.testing.assert_allclose(ours, arrays[f'emb64_{size}'][:, :size - size % 2], rtol=1e-9,
                               atol=1e-9)
