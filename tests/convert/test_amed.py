"""AMED's predictors: numbers of recorded snapshots, settings of others, and what is refused."""

import json
import os

import jax
import numpy as np
import pytest

import convert
import samplers
from convert import containers, pickles
from models import amed_predictor
from tests import reference
from tests.convert import writing
from tests.convert.writing import Call, Name

FOLDER = reference.GOLDEN / 'amed'
SNAPSHOTS = {case['file'].removesuffix('.pkl'): case['attributes'] for case in json.loads(
    (FOLDER / 'manifest.json').read_text())['snapshots']}
OLD = reference.GOLDEN / 'edm_pickles'  # Another snapshot, whose answers are recorded too.
SIZES = {'map_layer0': (6, 6), 'enc_layer0': (5, 16), 'enc_layer1': (3, 5), 'fc_r': (1, 15),
         'fc_scale_dir': (1, 15), 'fc_scale_time': (1, 15)}
GIVEN = {'dataset_name': 'ffhq', 'img_resolution': 64, 'num_steps': 3, 'sampler_stu': 'dpmpp',
         'sampler_tea': 'heun', 'M': 2, 'guidance_type': None, 'guidance_rate': 0.0,
         'schedule_type': 'polynomial', 'schedule_rho': 5, 'afs': True, 'scale_dir': 0.05,
         'scale_time': 0.1, 'max_order': 3, 'predict_x0': True, 'lower_order_final': False}
LOSS = {'sigma_min': 0.01, 'sigma_max': 50.0, 'M': 2, 'solver_stu': Name('solvers_amed', 'dpm_pp')}


def snapshot(path, without=(), loss=(), model='AMED_predictor', sizes=(), spoil=None, **changes):
  """Writes a snapshot with changes to GIVEN, LOSS and SIZES; returns (path, values by name)."""
  sizes = {name: shape for name, shape in {**SIZES, **dict(sizes)}.items() if shape}
  rng = np.random.default_rng(0)
  values = {name: {'weight': rng.standard_normal(shape, np.float32),
                   'bias': rng.standard_normal(shape[:1], np.float32)}
            for name, shape in sizes.items()}
  if spoil:
    values[spoil]['bias'][0] = np.nan
  modules = {name: writing.persistent('Linear', writing.state(
      {last: writing.parameter(array) for last, array in layer.items()}))
      for name, layer in values.items()}
  modules['sigmoid'] = Call(Name('torch.nn.modules.activation', 'Sigmoid'), (), True,
                            writing.state())
  given = {name: value for name, value in {**GIVEN, **changes}.items() if name not in without}
  predictor = writing.persistent(model, writing.state(modules=modules, **given))
  told = {name: writing.parameter(value) if isinstance(value, np.ndarray) else value
          for name, value in {**LOSS, **dict(loss)}.items() if name not in without}
  data = {'model': predictor, 'loss_fn': writing.persistent('AMED_loss', told)}
  path.write_bytes(writing.dumps({key: value for key, value in data.items() if key not in without},
                                 4))
  return path, values


def settings(config):
  return config['design']['settings']


def predictor(config):
  own = settings(config)
  return amed_predictor.AmedPredictor(own['scale_dir'], own['scale_time'], own['hidden_dim'],
                                      own['bottleneck_output_dim'], own['noise_channels'])


def test_recorded_snapshots_convert_exactly():
  recorded = sorted(path.stem for path in FOLDER.glob('snapshot_*.pkl'))
  assert recorded == sorted(SNAPSHOTS) == ['snapshot_amed', 'snapshot_ipndm']
  for name in SNAPSHOTS:
    converted = convert.read(FOLDER / f'{name}.pkl')
    with np.load(FOLDER / f'{name}_expected.npz') as expected:
      assert len(expected) == converted.tensors == len(jax.tree.leaves(converted.params))
      for key in expected:
        layer, last = key.removesuffix('_f32').split('.')
        array = expected[key].T if last == 'weight' else expected[key]
        found = converted.params[layer]['kernel' if last == 'weight' else last]
        np.testing.assert_array_equal(found, array, strict=True)


@pytest.mark.parametrize('name', [*SNAPSHOTS, 'amed_predictor'])
def test_converted_predictors_give_the_recorded_answers(name):
  old = name not in SNAPSHOTS
  config, params = convert.load((OLD if old else FOLDER) / f'{name}.pkl', 'amed')
  with np.load(OLD / f'{name}.expected.npz' if old else FOLDER / f'{name}_forward.npz') as oracle:
    bottleneck, levels = oracle['bottleneck' if old else 'bottleneck_f32'], (
        np.float32(oracle['t_cur']), np.float32(oracle['t_next']))
    expected = np.stack([oracle['out0'], oracle['out1']])[..., 0] if old else oracle['out_f32']
  found = amed_predictor.predict(params, bottleneck, *levels, predictor(config))
  active = [answer for answer in found if np.ndim(answer)]
  assert len(active) == len(expected)
  # The manifest's tolerance for float32; the answers lie between 0 and 1.2.
  np.testing.assert_allclose(active, expected, rtol=0, atol=2e-6)


def test_fields_of_the_recorded_snapshots():
  assert convert.load(FOLDER / 'snapshot_ipndm.pkl')[0] == {
      'kind': 'predictor', 'limit': 'none', 'guidance': None,
      'design': {'name': 'amed', 'settings': {
          'student': 'ipndm', 'scale_dir': 0.01, 'scale_time': 0.2, 'afs': True, 'max_order': 4,
          'predict_x0': True, 'lower_order_final': True, 'hidden_dim': 128,
          'bottleneck_output_dim': 4, 'noise_channels': 8, 'bottleneck_size': 64}},
      'schedule': {'name': 'polynomial', 'num_steps': 3, 'sigma_min': 0.002, 'sigma_max': 80.0,
                   'rho': 7.0},
      'sigmas': samplers.schedule('polynomial', 3, 0.002, 80.0).tolist(),
      'model': {'name': 'cifar10', 'path': None, 'sha256': None, 'image_shape': [4, 4, 3]}}
  for name, told in SNAPSHOTS.items():
    config, _, source, _ = convert.read(FOLDER / f'{name}.pkl')
    assert source['family'] == 'amed' and source['training'] == {
        **{key: value for key, value in told.items() if key != 'training'},
        'sigma_min': 0.002, 'sigma_max': 80.0}
    assert settings(config).items() >= {
        'student': told['sampler_stu'], **{key: told[key] for key in (
            'afs', 'scale_dir', 'scale_time', 'predict_x0', 'lower_order_final')}}.items()
    assert (config['schedule']['name'], config['schedule']['num_steps'] + 1) == (
        told['schedule_type'], told['num_steps'])


def test_sizes_are_those_of_the_tensors(tmp_path):
  path, values = snapshot(tmp_path / 'a.pkl')
  config, params = convert.load(path)
  assert settings(config) == {
      'student': 'dpmpp', 'scale_dir': 0.05, 'scale_time': 0.1, 'afs': True, 'max_order': 3,
      'predict_x0': True, 'lower_order_final': False, 'hidden_dim': 5, 'bottleneck_output_dim': 3,
      'noise_channels': 6, 'bottleneck_size': 16}
  np.testing.assert_array_equal(params['enc_layer1']['kernel'], values['enc_layer1']['weight'].T)
  assert config['limit'] == 'dynamic' and config['model']['image_shape'] == [64, 64, 3]
  assert config['sigmas'] == samplers.schedule('polynomial', 2, 0.01, 50.0, rho=5).tolist()


NO_SCALES = {'fc_scale_dir': None, 'fc_scale_time': None}


@pytest.mark.parametrize('changes, fields', [
    ({'predict_x0': False}, {'limit': 'none'}),
    ({'sampler_stu': 'euler', 'max_order': 9}, {'limit': 'none', 'max_order': 4}),
    ({'sampler_stu': 'amed', 'max_order': None}, {'max_order': 4}),
    ({'sampler_stu': 'ipndm', 'max_order': 1}, {'max_order': 1}),
    ({'scale_dir': 0, 'scale_time': 0, 'sizes': NO_SCALES}, {'scale_dir': 0.0, 'scale_time': 0.0}),
    ({'guidance_type': 'uncond', 'guidance_rate': 1.0}, {'guidance': None}),
    ({'guidance_type': 'cfg', 'guidance_rate': 7.5, 'dataset_name': 'ms_coco'},
     {'guidance': {'method': 'classifier_free', 'scale': 7.5}, 'image_shape': [64, 64, 4]}),
    ({'guidance_type': 'cg', 'guidance_rate': 4}, {'guidance': {'method': 'classifier',
                                                                'scale': 4.0}}),
    ({'dataset_name': 'my_own'}, {'name': 'my_own', 'image_shape': [64, 64, None]}),
    ({'schedule_type': 'logsnr'}, {'schedule': {'name': 'logsnr', 'num_steps': 2,
                                                'sigma_min': 0.01, 'sigma_max': 50.0}}),
    # The first version of the published code: no range of scale_dir, a switch for scale_time.
    ({'without': ['scale_dir'], 'scale_time': True}, {'scale_dir': 0.05, 'scale_time': 0.2}),
    ({'without': ['scale_dir'], 'sampler_stu': 'ipndm', 'scale_time': False,
      'sizes': {'fc_scale_time': None}}, {'scale_dir': 0.01, 'scale_time': 0.0}),
])
def test_settings_of_other_snapshots(tmp_path, changes, fields):
  config, _ = convert.load(snapshot(tmp_path / 'a.pkl', **changes)[0])
  flat = {**config, **settings(config), **config['model']}
  assert {name: flat[name] for name in fields} == fields


@pytest.mark.parametrize('table', ['stable_diffusion', 'latent_diffusion', None])
def test_stored_levels_tell_the_table_of_a_discrete_schedule(tmp_path, table):
  ends = {'sigma_min': 0.04, 'sigma_max': 14.0}
  stored = samplers.schedule('discrete', 3, **ends, alphas_cumprod=table)
  path, _ = snapshot(tmp_path / 'a.pkl', loss={**ends, 't_steps': np.float32(stored)},
                     num_steps=4, schedule_type='discrete', schedule_rho=1)
  config, _ = convert.load(path)
  assert config['schedule'] == {'name': 'discrete', 'num_steps': 3, **ends, 'rho': 1.0,
                                'alphas_cumprod': table}
  assert config['sigmas'] == stored.tolist()


def test_grids_that_float32_has_changed_are_known(tmp_path):
  ends = {'sigma_min': 0.002, 'sigma_max': 80.0}
  for name, rho in ('polynomial', 10.0), ('time_uniform', 2.0), ('logsnr', None):
    exact = samplers.schedule(name, 4, **ends, **({'rho': rho} if rho else {}))
    # As rounding of exp(e) and of powers does, see the snapshots; a percent is another grid.
    rounded = np.sqrt(exact**2 * (1 + 1e-5) + 1e-7 * (name == 'time_uniform'))
    changes = {'num_steps': 5, 'schedule_type': name, 'schedule_rho': rho}
    path, _ = snapshot(tmp_path / 'a.pkl', loss={**ends, 't_steps': np.float32(rounded)}, **changes)
    assert convert.load(path)[0]['sigmas'] == exact.tolist()
    snapshot(tmp_path / 'a.pkl', loss={**ends, 't_steps': np.float32(rounded * [1, 1, 1.01, 1, 1])},
             **changes)
    with pytest.raises(ValueError, match=f't_steps must be the grid of the settings, {name} with'):
      convert.load(path)


@pytest.mark.parametrize('changes, match', [
    ({'sampler_stu': 'heun'}, "amed: unknown student 'heun'; known: amed, dpm, dpmpp"),
    ({'max_order': 4}, 'amed: dpmpp: max_order must be an integer from 1 to 3, got 4'),
    ({'afs': 'yes'}, "amed: afs must be True or False, got 'yes'"),
    ({'scale_dir': 1.5}, 'amed: scale_dir must be at least 0 and below 1, got 1.5'),
    ({'scale_time': 'x' * 9999}, 'amed: scale_time must be at least 0 and below 1, got None'),
    ({'scale_time': 0}, 'got: not used fc_scale_time.weight, fc_scale_time.bias; take a whole'),
    ({'sizes': {'fc_scale_dir': None}},
     'must be those of the predictor that its settings describe, got: missing fc_scale_dir.bias'),
    ({'sizes': {'fc_r': (1, 14)}}, r'got: fc_r.weight is \(1, 14\) and must be \(1, 15\); take'),
    ({'sizes': {'enc_layer0': (5,)}}, 'sizes of the predictor, got no matrix enc_layer0.weight'),
    ({'sizes': {'map_layer0': (5, 5)}}, 'noise_channels must be even and at least 4'),
    ({'sizes': {'map_layer9': (5, 5)}}, 'got: not used map_layer9.weight, map_layer9.bias'),
    ({'spoil': 'fc_r'}, 'weights must be finite, got NaN or infinity in fc_r.bias'),
    ({'num_steps': 1}, 'num_steps of the predictor must be an integer from 2 to 1000, got 1'),
    ({'num_steps': 10**9}, 'num_steps of the predictor must be .* got 1000000000'),
    ({'num_steps': 2**100}, 'num_steps of the predictor must be .* got None'),
    ({'schedule_type': 'karras'}, "schedule_type of the predictor must be one of .* got 'karras'"),
    ({'schedule_rho': -1.0}, 'polynomial: rho must be a finite number above 0, got -1.0'),
    ({'schedule_rho': float('nan')}, 'schedule_rho of the predictor must be a finite number'),
    ({'guidance_type': 'sdg'}, "guidance_type of the predictor must be one of None, uncond, cfg"),
    ({'guidance_type': 'cfg', 'guidance_rate': None}, 'guidance_rate of the predictor must be'),
    ({'img_resolution': None}, 'img_resolution of the predictor must be an integer from 1'),
    ({'dataset_name': 3}, 'dataset_name of the predictor must be a name, got 3'),
    ({'without': ['sigma_min']}, 'sigma_min of the predictor must be a finite number, got None'),
    ({'without': ['loss_fn']}, "range of noise levels under 'loss_fn', got None; take the file as"),
    ({'loss': {'sigma_min': 90.0}}, 'polynomial: sigma_max must be above sigma_min, got 50 and 90'),
    ({'loss': {'t_steps': np.float32([50, 1, 0.01])}},
     't_steps must be the grid of the settings, polynomial with 50, 3.*, got 50, 1, 0.01; take'),
    ({'loss': {'t_steps': np.float32([50, 0.01])}}, 't_steps must be .* got 50, 0.01; take a whol'),
    ({'loss': {'t_steps': [50, 1, 0.01]}}, 't_steps must be .* got a list; take a whole snapshot'),
    ({'model': 'EPD_predictor'}, "unknown class of network 'EPD_predictor'"),
    ({'without': ['model']}, "must be a dictionary with a network under 'ema' or 'model', got"),
])
def test_snapshots_that_do_not_fit(tmp_path, changes, match):
  path, _ = snapshot(tmp_path / 'a.pkl', **changes)
  with pytest.raises(ValueError, match=match) as error:
    convert.load(path)
  assert str(error.value).startswith('convert: ') and str(error.value).isprintable()


def test_a_network_is_no_predictor_and_a_predictor_no_network():
  with pytest.raises(ValueError, match='family must be edm, as its tensors show, got amed; leave'):
    convert.load(OLD / 'edm_song_cond.pkl', 'amed')
  with pytest.raises(ValueError, match='family must be amed, as its tensors show, got edm; leave'):
    convert.load(FOLDER / 'snapshot_amed.pkl', 'edm')


def test_damaged_snapshots_are_refused_in_one_line(tmp_path):
  data = (FOLDER / 'snapshot_amed.pkl').read_bytes()
  path = tmp_path / 'a.pkl'
  for end in np.linspace(1, len(data) - 1, 40).astype(int):
    path.write_bytes(data[:end])
    with pytest.raises(ValueError, match='download it again|check that it is') as error:
      convert.load(path)
    assert str(error.value).startswith('convert: ') and str(error.value).isprintable()


@pytest.mark.parametrize('where', ['attribute', 'loss', 'storage'])
def test_nothing_is_executed(tmp_path, where):
  target = tmp_path / 'planted'
  mkdir = Call(Name(os.mkdir.__module__, 'mkdir'), (str(target),))
  stored = Call(Name('torch.storage', '_load_from_bytes'), (writing.legacy(mkdir, {}),))
  changes = {'attribute': {'dataset_name': mkdir}, 'loss': {'loss': {'t_steps': mkdir}},
             'storage': {'loss': {'buffer_model': [stored]}}}[where]
  path, _ = snapshot(tmp_path / 'a.pkl', **changes)
  with pytest.raises(ValueError, match='mkdir.* was not executed'):
    convert.load(path)
  assert not target.exists()


def test_what_training_has_left_on_its_device_does_not_matter():
  data = containers.read(FOLDER / 'snapshot_ipndm.pkl').data
  assert pickles.network(data).class_name == 'AMED_predictor'
  left = data['loss_fn'].state['buffer_model']
  assert left and all(isinstance(array, np.ndarray) for array in left)
