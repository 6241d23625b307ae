"""EDM's and SFD's checkpoints: complete rules for published ones, numbers of small ones."""

import dataclasses
import gzip
import json
import types

import flax
import jax
import numpy as np
import pytest

import convert
from convert import containers, edm, pickles, rules
from models import networks
from samplers import levels
from tests import reference
from tests.models.test_edm_nets import quickly

KEYS = reference.GOLDEN / 'edm_checkpoint_keys'
PUBLISHED = {path.name.removesuffix('.json.gz'): json.loads(gzip.decompress(path.read_bytes()))
             for path in sorted(KEYS.glob('*.json.gz'))}
PICKLES = reference.GOLDEN / 'edm_pickles'
CASES = {case['id']: case for case in json.loads((PICKLES / 'manifest.json').read_text())['cases']}
GOOD = [name for name, case in CASES.items() if case.get('forward')]


def published(name, **changes):
  """A network of published shapes, all of its values alike."""
  entry = PUBLISHED[name]
  tensors = {tensor: np.broadcast_to(np.float32(1), shape) for tensor, shape in entry['tensors']}
  taps = np.array(entry['init_kwargs'].get('resample_filter', [1, 1]), np.float32)
  for tensor in tensors:
    if tensor.endswith('resample_filter'):
      tensors[tensor] = (np.outer(taps, taps) / taps.sum()**2)[None, None]
  if 'u' in tensors:
    tensors['u'] = levels.iddpm_levels().astype(np.float32)
  return types.SimpleNamespace(**{
      'class_name': entry['precond'], 'init_args': (), 'init_kwargs': entry['init_kwargs'],
      'tensors': tensors, 'attributes': {}, **changes})


def check(network):
  """Places the tensors of a network by their shapes; returns (config, shapes of parameters)."""
  config = edm.describe(network)
  module = networks.build(**config['network'])
  like = rules.shapes(module, config['image_shape'], len(network.tensors))
  tensors = {name: array for name, array in network.tensors.items() if name != 'u'}
  rules.check(edm.key_rules(like), tensors, like, edm.constants(module))
  return config, like


def sfd(name):
  """Whether a published file is a student, which does not tell its arguments."""
  return name.startswith('sfd')


@pytest.mark.parametrize('name', PUBLISHED)
def test_rules_place_every_tensor_of_published_checkpoints(name):
  entry = PUBLISHED[name]
  network = published(name, **({'init_kwargs': {}} if sfd(name) else {}))
  config, like = check(network)
  # What is not trained is not counted there.
  frequencies = like.get('map_noise', {}).get('freqs', np.zeros(0)).size
  assert sum(leaf.size for leaf in jax.tree.leaves(like)) - frequencies == entry['num_parameters']
  side, channels = entry['img_resolution'], entry['img_channels']
  assert config['image_shape'] == [side, side, channels]
  assert config['num_classes'] == entry['label_dim']
  # Every ignored name is a buffer of the list, and by its exact name.
  module = networks.build(**config['network'])
  assert edm.constants(module).keys() == {
      buffer for buffer in entry['buffers'] if buffer.endswith('resample_filter')
      and buffer in network.tensors}


@pytest.mark.parametrize('name', PUBLISHED)
def test_tensors_tell_the_arguments_too(name):
  network = published(name)
  module = networks.build(**edm.describe(network)['network'])
  inferred = networks.build(**edm.describe(published(name, init_kwargs={}))['network'])
  assert inferred.step_condition == sfd(name)
  out = {'out_channels': module.out_channels}  # A variance is told by the class of the file.
  out |= {'dropout': module.dropout, 'step_condition': False}
  assert dataclasses.replace(inferred, **out) == module


@pytest.mark.parametrize('encoder, decoder, types_', [
    ('skip', 'skip', ('aux_down', 'aux_up')), ('residual', 'standard', ('aux_residual',))])
def test_filters_of_all_kinds_of_layers(encoder, decoder, types_):
  module = networks.build('song_unet', {
      'img_resolution': 8, 'out_channels': 3, 'model_channels': 4, 'channel_mult': [1, 2],
      'encoder_type': encoder, 'decoder_type': decoder, 'resample_filter': [1, 3, 3, 1]})
  constants = edm.constants(module)
  sides = {'aux_down': 'enc.4x4', 'aux_residual': 'enc.4x4', 'aux_up': 'dec.8x8'}
  own = {f'model.{sides[layer]}_{layer}.resample_filter' for layer in types_}
  both = {f'model.{place}.{layer}.resample_filter' for place in ('enc.4x4_down', 'dec.8x8_up')
          for layer in ('conv0', 'skip')}
  assert constants.keys() == own | both
  assert all(value.sum() == 1 and value.shape == (1, 1, 4, 4) for value in constants.values())


@pytest.mark.parametrize('name', GOOD)
def test_converted_networks_give_the_recorded_images(name):
  case, oracle = CASES[name], np.load(PICKLES / CASES[name]['expected_file'])
  config, params = convert.load(PICKLES / case['file'])
  network = networks.build(**config['network'])
  evaluate = networks.denoiser(network, networks.preconditioning(**config['preconditioning']))
  call = {'step_condition': case['step_condition']} if 'step_condition' in case else {}
  denoised, *_ = quickly(lambda *args: evaluate(*args, **call))(
      params, oracle['x'], oracle['sigma'], oracle.get('class_index'))
  # Both in float32, with sums in another order.
  assert abs(denoised - oracle['D_f32']).max() < 1e-6 * max(1, abs(oracle['D_f32']).max())


def test_half_precision_and_strided_views_convert():
  _, params = convert.load(PICKLES / 'strided_half.pkl')
  with np.load(PICKLES / 'strided_half.expected.npz') as oracle:
    given = {name.removeprefix('sd:'): oracle[name] for name in oracle if name.startswith('sd:')}
  conv = {name: array for name, array in given.items() if name.endswith('conv0.weight')}
  assert given and all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
  for name, array in conv.items():
    module = name.removeprefix('model.').replace('enc.', 'enc_').replace('dec.', 'dec_').split('.')
    np.testing.assert_array_equal(params[module[0]]['conv0']['kernel'], array.transpose(2, 3, 1, 0))


def test_levels_and_preconditioning():
  def read(name, **changes):
    config = edm.describe(published(name, **changes))
    return config['preconditioning'], config['sigma_min'], config['sigma_max']
  edm_name, vp_name = 'edm-cifar10-32x32-cond-vp', 'baseline-cifar10-32x32-uncond-vp'
  assert read(edm_name) == ({'name': 'edm', 'settings': {'sigma_data': 0.5}}, 0.002, 80.0)
  narrow = {'sigma_min': 0.01, 'sigma_max': 50.0, 'sigma_data': 0.3}
  assert read(edm_name, attributes=narrow) == (
      {'name': 'edm', 'settings': {'sigma_data': 0.3}}, 0.01, 50.0)
  vp, low, high = read(vp_name, attributes={'sigma_min': 0.0009765625})
  assert vp == {'name': 'vp', 'settings': {'beta_d': 19.9, 'beta_min': 0.1, 'M': 1000}}
  assert (low, high) == levels.preconditioning_range('vp')
  assert low == pytest.approx(0.00100049747, rel=1e-6)  # The file's has cancelled.
  ve = read(vp_name, class_name='VEPrecond')
  assert ve == ({'name': 've', 'settings': {}}, 0.02, 100.0)
  config, _ = convert.load(PICKLES / 'baseline_iddpm.pkl')
  u = config['preconditioning']['settings']['u']
  stored = pickles.network(containers.read(PICKLES / 'baseline_iddpm.pkl').data).tensors['u']
  assert np.array_equal(np.float32(u), stored)
  assert (config['sigma_min'], config['sigma_max']) == (stored[-2], stored[0])


def test_arguments_by_position():
  kwargs = {name: value for name, value in PUBLISHED['edm-cifar10-32x32-cond-vp'][
      'init_kwargs'].items() if name not in ('img_resolution', 'img_channels', 'label_dim')}
  given = published('edm-cifar10-32x32-cond-vp', init_args=(32, 3, 10), init_kwargs=kwargs)
  assert edm.describe(given) == {
      **edm.describe(published('edm-cifar10-32x32-cond-vp')),
      'network': edm.describe(given)['network']}
  check(given)


@pytest.mark.parametrize('file, match', [
    ('bad_unknown_class', "unknown class of network 'SomethingElsePrecond'"),
    ('bad_missing_tensor', 'got: missing model.map_layer0.weight; choose'),
    ('bad_unexpected_tensor', 'got: not used model.extra; choose'),
    ('bad_wrong_shape', r'got: model.map_layer0.weight is \(4, 5\) and must be \(4, 4\); choose'),
    ('bad_no_ema', "a network under 'ema' or 'model', got 'G_ema'"),
])
def test_files_that_do_not_fit(file, match):
  with pytest.raises(ValueError, match=match) as error:
    convert.load(PICKLES / f'{file}.pkl')
  assert str(error.value).startswith(f'convert: {PICKLES / file}.pkl') and '\n' not in str(error)


@pytest.mark.parametrize('changes, match', [
    ({'model_type': 'UNet'}, "unknown type of network 'UNet'"),
    ({'img_resolution': 'large'}, "img_resolution of the network must be an integer above 0, got"),
    ({'img_resolution': 64}, r'block0.conv0.weight is \(256, 128, 3, 3\) and must be \(256, '),
    ({'channel_mult': [1, 2, 2]}, r'conv0.weight is \(256, 128, 3, 3\) and must be \(128, 128'),
    ({'width': 3}, "unknown setting 'width'"),
    ({'sigma_data': 'half'}, "sigma_data of the network must be a number, got 'half'"),
    ({'sigma_min': 90.0}, 'noise levels of the network must be above 0 and finite, got 90.0 to 80'),
    ({'resample_filter': [1, 3, 3, 1]}, 'is another filter than'),
    ({'resample_filter': [1] * 99}, 'must have at most 16 taps, got 99'),
    ({'model_channels': 2**80}, 'network must be one that can be built, got settings for which'),
    ({'img_resolution': 2**80}, 'network must be one that can be built, got settings for which'),
    ({'num_blocks': 10**9}, 'must have fewer blocks than the 427 tensors'),
])
def test_arguments_that_do_not_fit(changes, match):
  name = 'edm-cifar10-32x32-cond-vp'
  with pytest.raises(ValueError, match=match):
    check(published(name, init_kwargs={**PUBLISHED[name]['init_kwargs'], **changes}))


def test_tensors_that_tell_nothing():
  with pytest.raises(ValueError, match='tensors must tell the settings .* got no model.map_layer0'):
    edm.infer({'model.enc.odd': np.zeros(3)})


def student(told, untouched=False):
  """The small student with changes to what it tells of its training; step layers as they began."""
  found = pickles.network(containers.read(PICKLES / 'sfd_student.pkl').data)
  kwargs = {**found.attributes['training_kwargs'], **told}
  tensors = {name: 0 * array if untouched and 'step' in name and name.endswith('.bias') else array
             for name, array in found.tensors.items()}
  return types.SimpleNamespace(class_name=found.class_name, init_args=(), init_kwargs={},
                               tensors=tensors, state=found.state, attributes={
                                   **found.attributes, 'training_kwargs': kwargs})


def test_students_keep_what_is_told_of_their_training():
  converted = convert.read(PICKLES / 'sfd_student.pkl', 'sfd')
  assert converted.source['family'] == 'sfd' and converted.source['training'].items() >= {
      'num_steps': 4, 'afs': False, 'schedule_type': 'polynomial', 'schedule_rho': 7,
      'sigma_min': 0.006, 'sigma_max': 80.0, 'use_step_condition': True, 'is_second_stage': False,
      'sampler_tea': 'dpmpp', 'M': 3, 'max_order': 3, 'predict_x0': True, 'lower_order_final': True,
      'dataset_name': 'cifar10', 'model_source': 'edm', 'guidance_type': None,
      'guidance_rate': 0.0}.items()
  assert converted.config['network']['settings']['step_condition']
  assert converted.config['network']['settings']['dropout'] == 0.13  # For a second stage.
  assert (converted.config['sigma_min'], converted.config['sigma_max']) == (0.006, 80.0)


def test_levels_of_a_student_are_those_of_its_training():
  config, _ = edm.convert(student({'sigma_min': 0.01, 'sigma_max': 40.0}))
  assert (config['sigma_min'], config['sigma_max']) == (0.01, 40.0)
  config, _ = edm.convert(student({'sigma_min': None}))
  assert config['sigma_min'] == 0.006  # The network's own.
  with pytest.raises(ValueError, match="sigma_min of the network must be a number, got 'low'"):
    edm.convert(student({'sigma_min': 'low'}))


@pytest.mark.parametrize('told, untouched, conditioned', [
    ({}, False, True), ({'use_step_condition': False}, False, False),
    # The published second stage notes False whatever the first stage was: trained layers show.
    ({'use_step_condition': False, 'is_second_stage': True}, False, True),
    ({'use_step_condition': False, 'is_second_stage': True}, True, False)])
def test_step_layers_are_kept_where_they_were_trained(told, untouched, conditioned):
  network = student(told, untouched)
  assert edm.is_student(network)
  config, params = edm.convert(network)
  assert config['network']['settings']['step_condition'] == conditioned
  names = {'.'.join(path) for path in flax.traverse_util.flatten_dict(params)}
  assert any('step' in name for name in names) == conditioned


def test_students_are_known_without_step_layers():
  told = student({})
  told.tensors = {name: array for name, array in told.tensors.items() if 'step' not in name}
  assert edm.is_student(told)
  assert not edm.convert(told)[0]['network']['settings']['step_condition']
