"""The predictor of AMED: reference outputs, initialization, and the design around it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import amed_predictor, layers
from samplers import amed, learned
from tests.samplers import amed_cases

ENTRIES = amed_cases.MANIFEST['predictor_forward']
RECORDED = amed_cases.ARRAYS['predictor_forward']
SIGMAS = np.array([80.0, 10.0, 1.0, 0.1])


def _entry(entry):
  """Parameters and the compiled predictor of an entry, over all its pairs of levels."""
  params = amed_cases.params(RECORDED, entry['key'] + '/')
  module = amed_cases.predictor(params, entry['scale_dir'], entry['scale_time'])
  widths = {'r': 1, 'scale_dir': entry['scale_dir'], 'scale_time': entry['scale_time']}

  @jax.jit
  def outputs(params, bottleneck, pairs):
    found = jax.vmap(lambda pair: amed_predictor.predict(
        params, bottleneck, pair[0], pair[1], module))(pairs)
    return jnp.stack([value for value, width in zip(found, widths.values(), strict=True)
                      if width], axis=1)
  return params, outputs


def test_every_recorded_predictor_is_replayed():
  assert [entry['key'] for entry in ENTRIES] == ['p0', 'p1', 'p2', 'p3']
  assert [entry['outputs'] for entry in ENTRIES] == [
      ['r'], ['r', 'scale_dir'], ['r', 'scale_time'], ['r', 'scale_dir', 'scale_time']]


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['key'])
def test_outputs_match_the_reference(entry, x64):
  params, outputs = _entry(entry)
  bottleneck, pairs = RECORDED['bottleneck'], RECORDED['t_pairs']
  for name, seen in (('out', bottleneck), ('out_zero_bottleneck', np.zeros_like(bottleneck))):
    wanted = RECORDED[f'{entry["key"]}/{name}']
    assert wanted.shape == (4, len(entry['outputs']), 4)
    np.testing.assert_allclose(outputs(params, seen, pairs), wanted, rtol=1e-9)


@pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry['key'])
def test_outputs_match_the_reference_in_single_precision(entry):
  params, outputs = _entry(entry)
  params, bottleneck, pairs = jax.tree.map(
      lambda leaf: jnp.asarray(leaf, jnp.float32),
      (params, RECORDED['bottleneck'], RECORDED['t_pairs']))
  found = outputs(params, bottleneck, pairs)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(found, RECORDED[f'{entry["key"]}/out_f32'], rtol=2e-6, atol=2e-6)


def test_the_embedding_has_sines_first(x64):
  cosines, sines = np.split(np.asarray(layers.positional_embedding(
      jnp.asarray(RECORDED['embed_t']), 8, endpoint=True)), 2, axis=1)
  np.testing.assert_allclose(np.hstack([cosines, sines]), RECORDED['embed_raw_cos_sin'], atol=1e-12)
  np.testing.assert_allclose(np.hstack([sines, cosines]), RECORDED['embed_swapped_sin_cos'],
                             atol=1e-12)


def test_levels_may_differ_between_samples():
  params, _ = _entry(ENTRIES[1])
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  predict = functools.partial(amed_predictor.predict, params, predictor=amed_cases.predictor(
      params, 0.01, 0))
  bottleneck = jnp.asarray(RECORDED['bottleneck'], jnp.float32)
  r, _, scale_time = predict(bottleneck, jnp.array([8.0, 8.0, 2.0, 2.0]), jnp.ones(4))
  alone = predict(bottleneck, jnp.array(2.0), jnp.array(1.0))[0]
  assert scale_time == 1.0 and r.shape == (4,)
  np.testing.assert_allclose(r[2:], alone[2:], rtol=1e-6)
  assert np.all(np.abs(r[:2] - alone[:2]) > 1e-4)


def test_r_is_of_each_sample_in_every_batch_without_scales():
  # The published code takes r of another sample for a scale in batches of 2 and 3.
  params, outputs = _entry(ENTRIES[0])
  params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
  pairs = np.asarray(RECORDED['t_pairs'], np.float32)
  for batch in (2, 3):
    found = outputs(params, np.asarray(RECORDED['bottleneck'][:batch], np.float32), pairs)
    np.testing.assert_allclose(found, RECORDED['p0/out'][..., :batch], rtol=1e-5)


def test_parameters_start_as_published():
  design = learned.design('amed', SIGMAS, scale_time=0.2, hidden_dim=512)
  start = jax.jit(design.initial)(jax.random.key(0))
  shapes = {name: layer['kernel'].shape for name, layer in start.items()}
  assert shapes == {'enc_layer0': (64, 512), 'enc_layer1': (512, 4), 'map_layer0': (8, 8),
                    'fc_r': (20, 1), 'fc_scale_dir': (20, 1), 'fc_scale_time': (20, 1)}
  assert all(np.all(layer['bias'] == 0) for layer in start.values())
  for name in ('enc_layer0', 'enc_layer1'):  # Of 32768 and 2048 numbers: 4 standard errors.
    kernel = np.asarray(start[name]['kernel'])
    assert kernel.std() * kernel.shape[0]**0.5 == pytest.approx(
        1, rel=4 / (2 * kernel.size)**0.5)
    assert np.abs(kernel).max() * kernel.shape[0]**0.5 > 3  # Normal, neither uniform nor cut.
  kernel = np.asarray(start['map_layer0']['kernel'])
  assert 0.85 < np.abs(kernel).max() / (6 / 16)**0.5 <= 1


@pytest.mark.parametrize('options, calls, restarts', [
    ({}, 5, False), ({'afs': False}, 6, False), ({'student': 'amed'}, 5, True),
    ({'student': 'euler'}, 5, True), ({'student': 'dpm', 'afs': False}, 6, True),
    ({'student': 'dpmpp', 'max_order': 3}, 5, False)], ids=str)
def test_a_design_tells_its_cost(options, calls, restarts):
  design = learned.design('amed', SIGMAS, **options)
  assert (design.nfe, design.calls, design.restarts) == (calls, calls, restarts)
  assert design.features and not design.draws and design.loss == 'intervals'
  assert design.learning_rate == 0.03


def test_options_have_plain_types():
  types = learned.design_option_types('amed')
  assert types == {'student': str, 'scale_dir': float, 'scale_time': float, 'afs': bool,
                   'max_order': int, 'predict_x0': bool, 'lower_order_final': bool,
                   'hidden_dim': int, 'bottleneck_output_dim': int, 'noise_channels': int,
                   'bottleneck_size': int}


def features(x, sigma):
  del sigma
  return x / 2, x.mean(-1)


def test_a_design_samples_as_its_parts_do():
  design = learned.design('amed', SIGMAS, student='euler', afs=False, scale_dir=0.01,
                          scale_time=0.0, hidden_dim=8, bottleneck_size=16)
  params = jax.jit(design.initial)(jax.random.key(1))
  x = 80 * jax.random.normal(jax.random.key(2), (2, 4, 4, 1))
  predict = functools.partial(amed_predictor.predict, params,
                              predictor=amed_predictor.AmedPredictor(hidden_dim=8))

  @jax.jit
  def both(params, x):
    parts = amed.sample(features, predict, x, SIGMAS, student='euler')
    return design.solve(params, features, x), parts
  found, wanted = both(params, x)
  np.testing.assert_allclose(found, wanted, rtol=1e-4)  # Single precision, other order of sums.


def test_a_bottleneck_of_another_size_is_explained():
  design = learned.design('amed', SIGMAS, hidden_dim=8)
  params = jax.eval_shape(design.initial, jax.random.key(1))
  with pytest.raises(ValueError, match=r'amed: bottleneck must have 64 values.* got 16 \(shape '
                                       r'\(4, 4\)\); take the model'):
    jax.eval_shape(lambda params: design.solve(params, features, jnp.ones((2, 4, 4, 1))), params)


@pytest.mark.parametrize('options, match', [
    ({'student': 'amd'}, "amed: unknown student 'amd'; did you mean amed"),
    ({'student': 'dpmpp', 'max_order': 4}, 'amed: dpmpp: max_order must be .* from 1 to 3, got 4'),
    ({'student': 'ipndm', 'max_order': 5}, 'amed: ipndm: max_order must be .* from 1 to 4, got 5'),
    ({'scale_dir': 1.0}, 'amed: scale_dir must be at least 0 and below 1, got 1.0; 0 leaves it'),
    ({'scale_time': -0.1}, 'amed: scale_time must be at least 0 and below 1, got -0.1'),
    ({'scale_time': float('nan')}, 'amed: scale_time must be at least 0'),
    ({'hidden_dim': 0}, 'amed: hidden_dim must be an integer of 1 or more, got 0'),
    ({'bottleneck_size': 2.5}, 'amed: bottleneck_size must be an integer of 1 or more, got 2.5'),
    ({'bottleneck_output_dim': True}, 'amed: bottleneck_output_dim must be an integer'),
    ({'noise_channels': 7}, 'amed: noise_channels must be even and at least 4'),
    ({'noise_channels': 2}, 'amed: noise_channels must be even and at least 4.* got 2'),
    ({'afs': 'no'}, "amed: afs must be True or False, got 'no'"),
    ({'student': 'heun', 'order': 3}, "amed: unknown option 'order'"),
], ids=str)
def test_options_out_of_range_are_explained(options, match):
  with pytest.raises(ValueError, match=match):
    learned.design('amed', SIGMAS, **options)


@pytest.mark.parametrize('sigmas, match', [
    ([2.0, 1.0, 0.0], 'amed: sigmas must end above 0'),
    ([2.0, 1.0, 1.0], 'amed: sigmas must decrease strictly'),
    ([2.0], 'amed: sigmas must be a list of two or more')])
def test_grids_without_room_for_a_level_are_explained(sigmas, match):
  with pytest.raises(ValueError, match=match):
    learned.design('amed', sigmas)
