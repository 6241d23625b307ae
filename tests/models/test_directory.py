"""Model directories: what is saved is loaded, and what is wrong is one clear error."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import directory, networks

SETTINGS = {'img_resolution': 4, 'out_channels': 1, 'label_dim': 3, 'model_channels': 4,
            'channel_mult': [1, 1], 'num_blocks': 1, 'attn_resolutions': [2]}
CONFIG = {'kind': 'denoiser', 'network': {'name': 'song_unet', 'settings': SETTINGS},
          'preconditioning': {'name': 'edm', 'settings': {'sigma_data': 0.4}},
          'sigma_min': 0.01, 'sigma_max': 50.0, 'image_shape': [4, 4, 1], 'num_classes': 3}


@pytest.fixture(scope='module')
def params():
  network = networks.build('song_unet', SETTINGS)
  init = jax.jit(networks.initialize, static_argnums=(0, 1),
                 compiler_options={'xla_backend_optimization_level': 0})  # It runs once.
  return jax.device_get(init(network, (4, 4, 1), jax.random.key(0)))


@pytest.fixture
def saved(tmp_path, params):
  models.directory.save(tmp_path / 'model', CONFIG, params, 'a test')
  return tmp_path / 'model'


PREDICTOR = {'kind': 'predictor', 'design': {'name': 'amed', 'settings': {'afs': True}},
             'schedule': {'name': 'explicit', 'sigmas': [3.0, 0.1]}, 'sigmas': [3.0, 0.1],
             'limit': 'none', 'guidance': None,
             'model': {'name': 'digits', 'path': None, 'sha256': None, 'image_shape': [8, 8, 1]}}


def edit(folder, **fields):
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**config, **fields}))


def test_what_is_saved_is_loaded(saved, params):
  model = models.load(saved)
  jax.tree.map(np.testing.assert_array_equal, model.params, params)
  assert (model.sigma_min, model.sigma_max, model.num_classes) == (0.01, 50.0, 3)
  assert model.image_shape == (4, 4, 1) and model.config['source'] == 'a test'
  assert sorted(path.name for path in saved.parent.iterdir()) == ['model']


def test_loaded_model_denoises_with_its_own_settings(saved, params):
  model, again = models.load(saved), models.load(str(saved))
  assert model.apply is again.apply  # So a compiled sampler is shared.
  x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
  labels = jnp.array([2, 0, -1])
  denoised, features = jax.jit(model.denoise_features)(x, jnp.array([0.1, 1.0, 3.0]), labels)
  assert denoised.shape == x.shape and features.shape == (3, 2, 2)
  # Fresh networks end in kernels of almost 0, so D is c_skip x: EDM's start, here for 0.4.
  c_skip = 0.16 / (0.16 + jnp.array([0.1, 1.0, 3.0])**2)
  assert abs(denoised - c_skip[:, None, None, None] * x).max() < 1e-3
  alone = jax.jit(model.denoise)(x[1:2], 1.0, labels[1:2])
  np.testing.assert_allclose(alone, denoised[1:2], atol=1e-6)


def test_labels_reach_the_network_and_none_is_a_zero_vector(saved, params):
  model = models.load(saved)
  # Larger kernels at the ends of branches, so that embeddings show.
  strong = jax.tree.map(lambda value: value + 0.1, params)
  x = jax.random.normal(jax.random.key(1), (3, 4, 4, 1))
  apply = jax.jit(model.apply)
  by_class = apply(strong, x, 1.0, jnp.array([0, 1, 2]))
  none = apply(strong, x, 1.0, jnp.array([-1, -1, -1]))
  assert abs(by_class - none).max() > 1e-3
  np.testing.assert_allclose(none, apply(strong, x, 1.0), atol=1e-6)


@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_half_precision_on_disk_is_float32_in_memory(tmp_path, params, dtype):
  directory.save(tmp_path / 'half', CONFIG, params, 'a test', dtype)
  loaded = models.load(tmp_path / 'half').params
  expected = jax.tree.map(lambda value: value.astype(dtype).astype(np.float32), params)
  jax.tree.map(np.testing.assert_array_equal, loaded, expected)
  assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype('float32')}


def test_missing_folder_or_config(tmp_path, saved):
  with pytest.raises(ValueError, match='load: model must be a folder .* got nothing at .*nowhere'):
    models.load(tmp_path / 'nowhere')
  (tmp_path / 'file').write_text('text')
  with pytest.raises(ValueError, match='got a file at'):
    models.load(tmp_path / 'file')
  (saved / 'config.json').write_text('{"format":')
  with pytest.raises(ValueError, match='config.json must be JSON'):
    models.load(saved)
  (saved / 'config.json').unlink()
  with pytest.raises(ValueError, match='without config.json'):
    models.load(saved)


def test_a_missing_name_tells_the_bundled_ones():
  with pytest.raises(ValueError, match="unknown model 'digits_exactt'; did you mean digits_exact?"):
    models.load('digits_exactt')


@pytest.mark.parametrize('fields, match', [
    ({'format': 2}, 'must be at most 1, got 2; update fewstep'),
    ({'format': 'new'}, "must have a format number, got 'new'"),
    ({'kind': 'classifier'}, 'must be a denoiser, got the classifier'),
    ({'network': {'name': 'unet', 'settings': SETTINGS}}, "unknown network 'unet'"),
    ({'network': {'name': 'song_unet', 'settings': {**SETTINGS, 'num_block': 1}}},
     "song_unet: unknown setting 'num_block'; did you mean num_blocks"),
    ({'network': {'name': 'song_unet', 'settings': {'img_resolution': 4}}},
     'song_unet: settings out_channels must be given'),
    ({'network': {'name': 'song_unet', 'settings': {**SETTINGS, 'model_channels': 6}}},
     'channels of a level must be a multiple of 4'),
    ({'network': {'name': 'song_unet', 'settings': {**SETTINGS, 'model_channels': 8}}},
     r'dec_2x2_block0.affine.kernel is \(16, 4\) and must be \(32, 8\)'),
    ({'network': {'name': 'song_unet', 'settings': {**SETTINGS, 'num_blocks': 2}}},
     'missing dec_2x2_block2.affine.bias'),
    ({'network': {'name': 'song_unet', 'settings': {**SETTINGS, 'label_dim': 0}}},
     'not used map_label.bias; not used map_label.kernel'),
    ({'preconditioning': {'name': 'edm', 'settings': {'data': 1}}}, "unknown setting 'data'"),
    ({'preconditioning': {'name': 'mde', 'settings': {}}}, "unknown preconditioning 'mde'"),
    ({'sha256': 'abc'}, r'must have SHA-256 abc\.\.\.'),
])
def test_config_that_does_not_fit(saved, fields, match):
  edit(saved, **fields)
  with pytest.raises(ValueError, match=match):
    models.load(saved)


@pytest.mark.parametrize('setting, value, match', [
    ('channel_mult', [1, 'x'], r"channel_mult must be a list of integers of 1 or more, got \(1, "),
    ('channel_mult', [1, 0], 'channel_mult must be a list of integers of 1 or more'),
    ('channel_mult', [], 'channel_mult must be a list of integers of 1 or more'),
    ('channel_mult', 2, 'channel_mult must be a list of integers of 1 or more, got 2'),
    ('channel_mult', [1, 1, 1, 1], 'img_resolution must be a multiple of 8, as each of the 4 le'),
    ('model_channels', -4, 'model_channels must be an integer of 1 or more, got -4'),
    ('num_blocks', 0, 'num_blocks must be an integer of 1 or more, got 0'),
    ('label_dim', -1, 'label_dim must be an integer of 0 or more'),
    ('dropout', 1.5, 'dropout must be from 0 to below 1, got 1.5'),
    ('embedding_type', 'fourir', "unknown embedding_type 'fourir'; did you mean fourier"),
    ('resample_filter', [1, -1], 'resample_filter must be a list of numbers above 0'),
])
def test_settings_out_of_range(setting, value, match):
  with pytest.raises(ValueError, match=f'song_unet: {match}'):
    networks.build('song_unet', {**SETTINGS, setting: value})


def test_incomplete_config_names_the_fields(saved):
  config = json.loads((saved / 'config.json').read_text())
  del config['sigma_max'], config['num_classes']
  (saved / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match='got none for sigma_max, num_classes'):
    models.load(saved)


def test_missing_and_damaged_parameters(saved):
  largest = max((saved / 'params').rglob('*'), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 0xff
  largest.write_bytes(content)
  with pytest.raises(ValueError, match='make the model again'):
    models.load(saved)
  largest.write_bytes(content[:len(content) // 2])
  with pytest.raises(ValueError, match='must be a whole checkpoint'):
    models.load(saved)
  shutil.rmtree(saved / 'params')
  with pytest.raises(ValueError, match='must be a whole checkpoint'):
    models.load(saved)


def test_saving_refuses_what_it_would_overwrite_and_leaves_nothing_half(saved, params, monkeypatch):
  with pytest.raises(ValueError, match='save: directory must not exist'):
    directory.save(saved, CONFIG, params, 'again')
  with pytest.raises(ValueError, match='save: config must have the fields'):
    directory.save(saved.with_name('other'), {'kind': 'denoiser'}, params, 'again')
  with pytest.raises(ValueError, match='must have the fields kind, network, got kind;'):
    directory.save(saved.with_name('other'), {'kind': 'features'}, params, 'again')
  with pytest.raises(ValueError, match='must have the fields kind, network, got kind, '):
    directory.save(saved.with_name('other'), {**CONFIG, 'kind': 'features'}, params, 'again')
  def fail(*_):
    raise OSError('disk full')
  monkeypatch.setattr(directory, 'digest', fail)
  with pytest.raises(OSError, match='disk full'):
    directory.save(saved.with_name('other'), CONFIG, params, 'again')
  assert [path.name for path in saved.parent.iterdir()] == ['model']


def test_a_predictor_has_fields_of_its_own_and_is_no_model(tmp_path):
  learned = {'fc_r': {'bias': np.float32([2]), 'kernel': np.float32([[1], [3]])}}
  directory.save(tmp_path / 'it', PREDICTOR, learned, {'family': 'amed'})
  config = directory.read_config(tmp_path / 'it')
  assert {field: config[field] for field in directory.PREDICTOR_FIELDS} == PREDICTOR
  read = directory.read_params(tmp_path / 'it', learned, config['sha256'])
  jax.tree.map(np.testing.assert_array_equal, read, learned)
  with pytest.raises(ValueError, match='load: model must be a denoiser, got the predictor .*it;'):
    models.load(tmp_path / 'it')
  edit(tmp_path / 'it', kind=['predictor'])  # Of no kind at all: the fields of a model are asked.
  with pytest.raises(ValueError, match='must have all fields, got none for network, precond'):
    directory.read_config(tmp_path / 'it')


@pytest.mark.parametrize('field', directory.PREDICTOR_FIELDS[1:])
def test_a_predictor_without_one_of_its_fields(tmp_path, field):
  less = {name: value for name, value in PREDICTOR.items() if name != field}
  with pytest.raises(ValueError, match='config must have the fields kind, design, .* got kind, '):
    directory.save(tmp_path / 'it', less, {}, 'a test')
  assert not list(tmp_path.iterdir())
  directory.save(tmp_path / 'it', PREDICTOR, {'a': {'b': np.ones(1)}}, 'a test')
  config = json.loads((tmp_path / 'it' / 'config.json').read_text())
  del config[field]
  (tmp_path / 'it' / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=f'must have all fields, got none for {field}; make it'):
    directory.read_config(tmp_path / 'it')
