"""Single layers against the reference numbers of EDM's, and against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import layers
from tests import reference
from tests.models import torch_layout

MANIFEST, ARRAYS = reference.load('edm_nets')
CASES = {case['id']: case for case in MANIFEST['unit_cases']}
UNITS = ARRAYS['units']


def module(case):
  """The layer of a case, called with its inputs."""
  kind, options = case['kind'], dict(case['kwargs'])
  options.pop('in_channels', None)
  if kind == 'PositionalEmbedding':
    return lambda params, c_noise: layers.positional_embedding(
        c_noise, options['num_channels'], options['endpoint'])
  if kind == 'FourierEmbedding':
    layer = layers.FourierEmbedding(options['num_channels'])
  elif kind == 'GroupNorm':
    layer = layers.GroupNorm(options['eps'])
  elif kind == 'Conv2d':
    names = {'out_channels': 'features', 'resample_filter': 'taps', 'fused_resample': 'fused',
             'bias': 'use_bias'}
    layer = layers.Conv(**{names.get(name, name): tuple(value) if isinstance(value, list) else value
                           for name, value in options.items()})
  else:
    features = options.pop('out_channels')
    heads = options.pop('num_heads', None)
    per_head = options.pop('channels_per_head', None)
    attention = options.pop('attention', False)
    del options['emb_channels']
    names = {'resample_filter': 'taps', 'eps': 'epsilon'}
    layer = layers.UNetBlock(
        features, heads=(heads or features // per_head) if attention else 0,
        **{names.get(name, name): tuple(value) if isinstance(value, list) else value
           for name, value in options.items()})
  return lambda params, *inputs: layer.apply({'params': params}, *inputs)


def evaluate(case, dtype):
  start = f'{case["id"]}/'
  arrays = {name.removeprefix(f'{start}w:'): value for name, value in UNITS.items()
            if name.startswith(f'{start}w:')}
  inputs = [jnp.asarray(UNITS[f'{start}in:{name}'], dtype) for name in case['inputs']]
  answer = module(case)(torch_layout.params(arrays, dtype), *inputs)
  assert answer.dtype == dtype
  return answer, UNITS[f'{start}out_f64']


def test_all_layers_of_the_reference_are_here():
  assert len(CASES) == 38


@pytest.mark.parametrize('name', CASES)
def test_layer_in_64_bit(x64, name):
  answer, expected = evaluate(CASES[name], np.float64)
  np.testing.assert_allclose(answer, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', [*CASES][::3])  # The formulas are those of 64 bit.
def test_layer_in_32_bit(name):
  answer, expected = evaluate(CASES[name], np.float32)
  # The original's own error, and room for another order of sums: 4 roundings of the largest value.
  bound = 2 * CASES[name]['max_abs_float32_minus_float64'] + 4 * 2**-24 * abs(expected).max()
  assert abs(np.float64(answer) - expected).max() <= bound


@pytest.mark.parametrize('taps', [(1, 1), (1, 3, 3, 1)])
def test_resampling_keeps_constants_inside_and_down_is_the_adjoint_of_up(x64, taps):
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  y = jax.random.normal(jax.random.key(1), (2, 12, 12, 3))
  up, down = layers.resample(x, taps, up=True), layers.resample(y, taps)
  assert up.shape == y.shape and down.shape == x.shape
  np.testing.assert_allclose(jnp.vdot(up, y), 4 * jnp.vdot(x, down), rtol=1e-12)
  constant = layers.resample(jnp.ones((1, 6, 6, 1)), taps, up=True)[0, 1:-1, 1:-1]
  np.testing.assert_allclose(constant, 1, rtol=1e-12)


def test_group_norm_survives_large_half_precision_and_large_means():
  x = 3e4 + 100 * jax.random.normal(jax.random.key(0), (1, 4, 4, 8))
  params = {'scale': jnp.ones(8), 'bias': jnp.zeros(8)}
  wide = layers.GroupNorm().apply({'params': params}, x)
  # A mean of 3e4 in float32 leaves 2e-3 of x, so 2e-5 of a standard deviation of 100.
  assert abs(wide.std() - 1) < 1e-4 and abs(wide.mean()) < 1e-4
  half = layers.GroupNorm().apply({'params': params}, x.astype(jnp.float16))
  assert half.dtype == jnp.float16
  # A float16 near 3e4 is a multiple of 16: up to 8 of 100 are lost before the layer sees it.
  assert abs(half - wide).max() < 0.12
