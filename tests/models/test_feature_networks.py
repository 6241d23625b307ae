"""Model directories of networks of features: what is saved is loaded, what is wrong is one line."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from models import directory, feature_networks

SETTINGS = {'projection_dim': 4, 'image_width': 8, 'image_layers': 1, 'image_heads': 2, 'patch': 4,
            'image_size': 8, 'image_mlp': 8, 'text_width': 6, 'text_layers': 1, 'text_heads': 3,
            'context': 5, 'vocab': 9, 'text_mlp': 7}
CONFIG = {'kind': 'features', 'network': {'name': 'clip', 'settings': SETTINGS}}


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  like = feature_networks.shapes(feature_networks.build('clip', SETTINGS))
  return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), like)


@pytest.fixture
def saved(tmp_path, params):
  directory.save(tmp_path / 'model', CONFIG, params, 'a test')
  return tmp_path / 'model'


def edit(folder, **fields):
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps({**config, **fields}))


def test_what_is_saved_is_loaded(saved, params):
  network = models.load_features(saved)
  jax.tree.map(np.testing.assert_array_equal, network.params, params)
  assert network.name == 'clip' and network.module == feature_networks.build('clip', SETTINGS)
  assert network.config == {'format': 1, **CONFIG, 'source': 'a test', 'sha256': network.sha256}
  assert network.sha256 == directory.digest(params)
  half = models.load_features(str(saved), 'bfloat16')
  assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype('bfloat16')}
  answer = feature_networks.evaluate(network.module, network.params,
                                     *feature_networks.example(network.module))
  assert {name: values.shape for name, values in answer.items()} == {'image': (1, 4),
                                                                     'text': (1, 4)}


@pytest.mark.parametrize('name', feature_networks.FEATURE_NETWORKS)
def test_every_network_can_be_called_with_its_example(name):
  module = feature_networks.build(name, SETTINGS if name == 'clip' else {})
  assert isinstance(module, feature_networks.FEATURE_NETWORKS[name])
  shapes, inputs = feature_networks.shapes(module), feature_networks.example(module)
  answer = jax.eval_shape(lambda params: feature_networks.evaluate(module, params, *inputs), shapes)
  assert answer and {values.shape[0] for values in answer.values()} == {1}
  assert feature_networks.shapes(feature_networks.build(name, module_settings(module))) is shapes


def module_settings(module):
  return SETTINGS if isinstance(module, feature_networks.FEATURE_NETWORKS['clip']) else {}


def test_kinds_are_not_mixed_up(saved):
  with pytest.raises(ValueError, match=f'load: model must be a denoiser, got the features {saved}'):
    models.load(saved)
  with pytest.raises(ValueError, match='model must be a classifier, got the features'):
    models.load_classifier(saved)
  with pytest.raises(ValueError, match='network of features, got the denoiser .*digits; '):
    models.load_features(models.model.ASSETS / 'digits')


@pytest.mark.parametrize('fields, match', [
    ({'format': 2}, 'must be at most 1, got 2; update fewstep'),
    ({'network': {'name': 'incepton', 'settings': {}}},
     "unknown network of features 'incepton'; did you mean inception"),
    ({'network': {'name': 'inception', 'settings': {'width': 3}}},
     "inception: unknown setting 'width'"),
    ({'network': {'name': 'clip', 'settings': {**SETTINGS, 'patchs': 3}}},
     "clip: unknown setting 'patchs'; did you mean patch"),
    ({'network': {'name': 'clip', 'settings': {**SETTINGS, 'patch': '4'}}},
     "clip: patch must be an integer of 0 or more, got '4'"),
    ({'network': {'name': 'clip', 'settings': {**SETTINGS, 'activation': 3}}},
     "clip: activation must be a str, got '3'"),
    ({'network': {'name': 'clip', 'settings': {'patch': 4}}},
     'clip: settings projection_dim, image_width, .* must be given, got none'),
    ({'network': {'name': 'clip', 'settings': {**SETTINGS, 'image_heads': 3}}},
     'Clip: settings must be those of a network that can be built, got some for which'),
    ({'network': {'name': 'clip', 'settings': {**SETTINGS, 'activation': 'relu'}}}, "'relu'"),
    ({'network': {'name': 'clip', 'settings': {**SETTINGS, 'text_layers': 2}}},
     'missing text.block1.fc1.bias'),
    ({'network': {'name': 'clip'}}, 'network in config.json must be a name and settings, got'),
    ({'network': 'clip'}, "network in config.json must be a name and settings, got 'clip'"),
    ({'sha256': 'abc'}, r'must have SHA-256 abc\.\.\.'),
])
def test_config_that_does_not_fit(saved, fields, match):
  edit(saved, **fields)
  with pytest.raises(ValueError, match=match) as error:
    models.load_features(saved)
  assert '\n' not in str(error.value)


def test_what_is_not_there(saved):
  with pytest.raises(ValueError, match='load: model must be a folder .* got nothing at .*nowhere'):
    models.load_features(saved.with_name('nowhere'))
  with pytest.raises(ValueError, match="unknown dtype 'float8'"):
    models.load_features(saved, 'float8')
  (saved / 'config.json').write_text(json.dumps({'format': 1, 'kind': 'features'}))
  with pytest.raises(ValueError, match='must have all fields, got none for network, sha256; make'):
    models.load_features(saved)
