"""Latent diffusion's U-Nets with and without transformers against the reference numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import adm, arguments, rules
from models import denoisers, layers, networks, transformer
from samplers import guidance
from tests import recipe, reference
from tests.models.test_cm_nets import precision
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('ldm')
CASES = {case['id']: case for case in MANIFEST['cases']}
RECIPES = recipe.load('ldm/recipes.json.gz')
UNETS = 'ldm_vq', 'ldm_kl', 'sd'
EXACT = 1e-9  # In 64 bit another order of sums is all that differs.
PREFIX = 'model.diffusion_model.'


def tensors(name, ema):
  """The tensors of a U-Net by their names relative to it."""
  weights = recipe.weights(RECIPES[name], CASES[name]['weight_tag'])
  short = [key.removeprefix(PREFIX) for key in weights if key.startswith(PREFIX)]
  if not ema:
    return {key: weights[f'{PREFIX}{key}'] for key in short}
  return {key: weights[f'model_ema.diffusion_model{key.replace(".", "")}'] for key in short}


@functools.cache
def module(name):
  """The network of a case."""
  config = CASES[name]['config']
  given = arguments.complete(config['unet_config']['params'], adm.LATENT_UNET)
  return networks.build('adm_unet', adm.unet_settings(given, config['image_size']))


@functools.cache
def parameters(name, dtype, ema):
  """The parameters of a case, by the rules of conversion."""
  weights, image_shape = tensors(name, ema), ARRAYS[name]['x_raw'].shape[1:]
  like = rules.shapes(module(name), image_shape, len(weights))
  params = rules.place(adm.key_rules(module(name), like), weights, like)
  return jax.tree.map(lambda array: jnp.asarray(array, dtype), params)


@functools.cache
def compiled(name):
  """network(params, x, c_noise, context) -> (F, (bottleneck, middle block))."""
  net = module(name)
  lowest = net.img_resolution >> len(net.channel_mult) - 1
  middle = f'dec_{lowest}x{lowest}_in1'
  @quickly
  def evaluate(params, x, c_noise, context):
    (out, bottleneck), state = net.apply(
        {'params': params}, x, c_noise, context=context, mutable=['intermediates'],
        capture_intermediates=lambda module, _: module.name == middle)
    return out, (bottleneck, state['intermediates'][middle]['__call__'][0])
  return evaluate


def network(name, dtype, context=None, ema=None):
  """evaluate(x, c_noise) of a case; EMA weights where there are some."""
  ema = name != 'sd' if ema is None else ema
  context = None if context is None else jnp.asarray(context, dtype)
  return lambda x, c_noise: compiled(name)(parameters(name, dtype, ema), x, c_noise, context)


def contexts(name):
  """(conditional, unconditional) features of the texts of a case, one row for each image."""
  if name != 'sd':
    return None, None
  rows = [CASES[name]['prompts'].index(prompt) for prompt in CASES[name]['condition_prompts']]
  features = ARRAYS[name]['context64']
  return features[rows], features[[CASES[name]['prompts'].index('')] * len(rows)]


@functools.cache
def coefficients(name):
  """The preconditioning of a case, with its own table."""
  config = CASES[name]['config']
  betas = np.linspace(*(config[end]**0.5 for end in ('linear_start', 'linear_end')), 1000)**2
  table = np.float32(np.cumprod(1 - betas)).astype(np.float64)
  return quickly(networks.preconditioning('discrete', {'alphas_cumprod': table.tolist()}))


def test_all_cases_of_the_reference_are_here():
  assert {name for name, case in CASES.items() if 'unet_config' in case.get('config', {})} == {
      *UNETS}
  assert [len(ARRAYS[name].get('denoised64', ())) for name in UNETS] == [4, 0, 3]


@pytest.mark.parametrize('name, count', [('ldm_vq', 702499), ('sd', 967940)])
def test_parameters_are_as_many_as_published(name, count):
  shapes = rules.shapes(module(name), ARRAYS[name]['x_raw'].shape[1:], 1000)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
  assert CASES[name]['n_params_unet'] == count


# 32 bit runs the same code: the network with all of it shows that it loses no more than due.
@pytest.mark.parametrize('name, dtype', [*((name, np.float64) for name in UNETS),
                                         ('sd', np.float32)])
def test_unet(name, dtype):
  arrays = ARRAYS[name]
  conditional, unconditional = contexts(name)
  # 32 bit: another order of sums than the original's, in a network of the same conditioning.
  own = abs(arrays['eps_raw32'] - arrays['eps_raw64']).max()
  bound = EXACT if dtype == np.float64 else 4 * own
  with precision(dtype):
    inputs = jnp.asarray(arrays['x_raw'], dtype), jnp.asarray(arrays['t_raw'], dtype)
    out, (bottleneck, middle) = network(name, dtype, conditional)(*inputs)
    assert abs(np.float64(out) - arrays['eps_raw64']).max() < bound
    if 'middle64' in arrays:
      assert abs(np.float64(middle) - arrays['middle64']).max() < bound
      assert abs(np.float64(bottleneck) - arrays['middle64'].mean(-1)).max() < bound
    if 'eps_raw_nonema64' in arrays:
      out, _ = network(name, dtype, ema=False)(*inputs)
      assert abs(np.float64(out) - arrays['eps_raw_nonema64']).max() < bound
    if 'eps_raw_uncond64' in arrays:
      out, _ = network(name, dtype, unconditional)(*inputs)
      assert abs(np.float64(out) - arrays['eps_raw_uncond64']).max() < bound


def test_denoiser_without_conditions(x64):
  arrays = ARRAYS['ldm_vq']
  for sigma, x, expected in zip(arrays['sigma'], arrays['x'], arrays['denoised64'], strict=True):
    denoised, _, _ = denoisers.precondition(network('ldm_vq', np.float64), coefficients('ldm_vq'),
                                            jnp.asarray(x), sigma)
    assert abs(denoised - expected).max() < EXACT
  time = coefficients('ldm_vq')(arrays['sigma']).c_noise
  np.testing.assert_allclose(time, arrays['c_noise64'], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_denoiser_with_classifier_free_guidance(dtype):
  case, arrays = CASES['sd'], ARRAYS['sd']
  bound = EXACT if dtype == np.float64 else 4 * case['denoised_max_abs_err_float32_vs_float64']
  with precision(dtype):
    def denoise(context):
      return lambda x, sigma: denoisers.precondition(
          network('sd', dtype, context), coefficients('sd'), x, sigma)[0]
    conditional, unconditional = map(denoise, contexts('sd'))
    levels = jnp.asarray(arrays['sigma'], dtype)
    for rate, of_rate in zip(arrays['guidance_rate'], arrays['denoised64'], strict=True):
      guided = guidance.classifier_free(conditional, unconditional, dtype(rate))
      for sigma, x, expected in zip(levels, arrays['x'], of_rate, strict=True):
        denoised = guided(jnp.asarray(x, dtype), sigma)
        assert abs(np.float64(denoised) - expected).max() < bound
    if dtype == np.float64:
      time = coefficients('sd')(levels).c_noise
      np.testing.assert_allclose(time, arrays['c_noise64'], rtol=1e-9, atol=1e-9)


def test_what_learned_solvers_read_under_guidance(x64):
  # Of the conditional half of the doubled batch [unconditional; conditional].
  arrays, halves = ARRAYS['sd'], np.split(ARRAYS['sd']['middle_guided64'], 2)
  x, sigma = jnp.asarray(arrays['x'][0]), jnp.asarray(arrays['sigma'][0])
  for context, expected in zip(contexts('sd')[::-1], halves, strict=True):
    _, _, (bottleneck, middle) = denoisers.precondition(
        network('sd', np.float64, context), coefficients('sd'), x, sigma)
    assert abs(middle - expected).max() < EXACT
  assert abs(bottleneck - arrays['amed_feature64']).max() < EXACT


def test_labels_of_a_text_network_are_features():
  evaluate = networks.denoiser(module('sd'), networks.preconditioning('edm', {}))
  x = jnp.zeros((2, 8, 8, 4))
  for labels, match in [
      (None, r'labels must be features of a text, .* shape \(2, tokens, 24\), got none; encode'),
      (np.array([1, 0]), r'got int32 of shape \(2,\)|got int64 of shape \(2,\)'),
      (np.zeros((2, 77, 768), np.float32), r'got the shape \(2, 77, 768\)'),
      (np.zeros((1, 77, 24), np.float32), r'got the shape \(1, 77, 24\)'),
      (np.zeros((77, 24), np.float32), r'got the shape \(77, 24\)')]:
    with pytest.raises(ValueError, match=match) as error:
      evaluate({}, x, 1.0, labels)
    assert '\n' not in str(error.value)
  features = jax.ShapeDtypeStruct((2, 5, 24), jnp.bfloat16)  # Any number of tokens, any precision.
  params = parameters('sd', np.float32, ema=False)
  denoised, _, _ = jax.eval_shape(evaluate, params, x, 1.0, features)
  assert (denoised.shape, denoised.dtype) == (x.shape, x.dtype)


@pytest.mark.parametrize('changes, match', [
    ({'transformer_depth': -1}, 'transformer_depth must be an integer of 0 or more, got -1'),
    ({'context_dim': 2.5}, 'context_dim must be an integer of 0 or more, got 2.5'),
    ({'transformer_depth': 0}, 'context_dim must be 0 without transformers, .* got 24; give a'),
    ({'label_dim': 10}, 'label_dim must be 0 where labels are features of a text, got 10'),
    ({'num_heads': 5}, 'channels of a level must divide into its attention heads'),
])
def test_settings_that_do_not_fit(changes, match):
  settings = {'img_resolution': 8, 'out_channels': 4, 'model_channels': 32, 'channels_per_head': 0,
              'num_heads': 4, 'channel_mult': [1, 2], 'transformer_depth': 1, 'context_dim': 24}
  assert networks.build('adm_unet', settings).context_dim == 24
  with pytest.raises(ValueError, match=match):
    networks.build('adm_unet', {**settings, **changes})


@pytest.mark.parametrize('changes, match', [
    ({'n_embed': 64}, 'n_embed of the architecture must be none, got 64'),
    ({'context_dim': 24}, 'context_dim of the architecture must be none without use_spatial'),
    ({'use_spatial_transformer': True}, 'context_dim of the architecture must be an integer'),
])
def test_arguments_that_do_not_fit(changes, match):
  given = CASES['ldm_vq']['config']['unet_config']['params']
  with pytest.raises(ValueError, match=match):
    adm.unet_settings(arguments.complete({**given, **changes}, adm.LATENT_UNET), 8)


def test_attention_reads_a_context_or_without_one_itself(x64):
  random, net = np.random.RandomState(0), transformer.CrossAttention(heads=2)
  x, context = random.randn(1, 4, 6), random.randn(1, 5, 3)
  for read, given in ((context, (context,)), (x, ())):
    shapes = jax.eval_shape(net.init, jax.random.key(0), x, *given)['params']
    params = jax.tree.map(lambda leaf: random.randn(*leaf.shape), shapes)
    q, k, v = ((source[0] @ params[name]['kernel']).reshape(-1, 2, 3)
               for name, source in (('q', x), ('k', read), ('v', read)))
    weights = np.exp(np.einsum('qhc,khc->hqk', q, k) / 3**0.5)
    weights /= weights.sum(-1, keepdims=True)
    answer = np.einsum('hqk,khc->qhc', weights, v).reshape(4, 6)
    expected = answer @ params['out']['kernel'] + params['out']['bias']
    np.testing.assert_allclose(quickly(net.apply)({'params': params}, x, *given)[0], expected,
                               rtol=1e-12, atol=1e-12)


def test_attention_over_many_pixels_is_the_same_a_few_queries_at_a_time(x64, monkeypatch):
  random = np.random.RandomState(0)
  qkv = [random.randn(2, 50, 2, 4) for _ in range(3)]
  def answers():
    def loss(*qkv):
      return (layers.attend(*qkv)**2).sum()
    return quickly(jax.value_and_grad(loss, (0, 1, 2)))(*qkv)
  at_once = answers()
  monkeypatch.setattr(layers, 'MOST_TOKENS', 10)
  monkeypatch.setattr(layers, '_FEW_LOGITS', 400)  # Eight at a time, and two that are left.
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), answers(),
               at_once)


def test_attention_over_many_pixels_needs_little_memory():
  tokens = jax.ShapeDtypeStruct((1, 64 * 64, 8, 40), jnp.float32)
  for function in (layers.attend, jax.grad(lambda *qkv: layers.attend(*qkv).sum())):
    memory = jax.jit(function).lower(tokens, tokens, tokens).compile().memory_analysis()
    # All logits are 512 MiB.
    assert memory.temp_size_in_bytes < 2**28
