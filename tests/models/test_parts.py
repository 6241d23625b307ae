"""Denoisers with parts: saved whole, loaded with what fits, and given prompts for classes."""

import copy
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import samplers
from models import directory
from tests.models import latents

PROMPTS = ['a cat', 'dog', 'a cat do']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A saved model, not to be changed."""
  path = tmp_path_factory.mktemp('latents') / 'model'
  directory.save(path, latents.CONFIG, latents.params(), 'a test')
  return path


@pytest.fixture(scope='module')
def model(folder):
  return models.load(folder)


@pytest.fixture
def changed(folder, tmp_path):
  """change(part or None, **fields): the folder of a copy with other fields in a config.json."""
  shutil.copytree(folder, tmp_path / 'model')
  def change(part, **fields):
    path = tmp_path / 'model' / (part or '') / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return tmp_path / 'model'
  return change


def draw(*shape):
  return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def apply(model):
  """Model.apply, compiled once for features and once for numbers of a batch."""
  return jax.jit(model.apply), jax.jit(model.with_prompts([]).apply)


@pytest.fixture(scope='module')
def x():
  return draw(3, 4, 4, 4)


SIGMA = np.float32([0.5, 1.0, 2.0])


def test_what_is_saved_is_loaded(folder, model):
  jax.tree.map(np.testing.assert_array_equal,
               {'network': model.params, 'first_stage': model.first_stage.params,
                'text': model.text.params}, latents.params())
  names = sorted(path.name for path in folder.iterdir())
  assert names == ['config.json', 'first_stage', 'params', 'text']
  told = json.loads((folder / 'config.json').read_text())
  assert told['format'] == 1 and told['parts'] == model.identity['parts'] == {
      'first_stage': model.first_stage.sha256, 'text': model.text.sha256}
  assert told['sha256'] == directory.digest(latents.params()['network'])
  for name, part in latents.CONFIG['parts'].items():
    config = directory.read_config(folder / name)
    assert {field: config[field] for field in part} == part and config['source'] == 'a test'
    assert config['sha256'] == directory.digest(latents.params()[name]) == told['parts'][name]
  assert [path.name for path in folder.parent.iterdir()] == ['model']


def test_parts_are_models_of_their_own(folder, model):
  stage, text = models.load_first_stage(folder / 'first_stage'), models.load_text_encoder(
      folder / 'text')
  assert stage.apply_decode is model.first_stage.apply_decode  # One compilation for both.
  np.testing.assert_array_equal(text.encode(['dog']), model.text.encode(['dog']))
  for name in ('first_stage', 'text'):
    with pytest.raises(ValueError, match='load: model must be a denoiser, got the '):
      models.load(folder / name)
  with pytest.raises(ValueError, match='load: model must be an autoencoder, got the denoiser'):
    models.load_first_stage(folder)


def test_pictures_of_latents(model):
  stage = model.first_stage
  assert (model.image_shape, model.picture_shape) == ((4, 4, 4), (8, 8, 3))
  assert (stage.image_shape, stage.latent_shape) == ((16, 16, 3), (8, 8, 4))
  scale = latents.FIRST_STAGE['scale_factor']
  @jax.jit
  def both_ways(params, z):
    images, own = stage.apply_decode(params, z), {'params': params}
    decoded = stage.module.apply(own, z / scale, method='decode')
    moments = stage.module.apply(own, images, method='encode')
    return images, decoded, stage.apply_encode(params, images), scale * moments[..., :4]
  images, decoded, latent, mean = both_ways(stage.params, draw(1, 4, 4, 4))
  assert images.shape == (1, *model.picture_shape) and latent.shape == (1, *model.image_shape)
  for answer, expected in ((images, decoded), (latent, mean)):
    np.testing.assert_allclose(answer, expected, atol=1e-4 * abs(expected).max())
  assert models.load('digits_exact').picture_shape == (8, 8, 3)


def test_half_precision_on_disk(tmp_path):
  directory.save(tmp_path / 'half', latents.CONFIG, latents.params(), 'a test', 'bfloat16')
  model = models.load(tmp_path / 'half', 'float16')
  for tree in (model.params, model.first_stage.params, model.text.params):
    assert {leaf.dtype for leaf in jax.tree.leaves(tree)} == {np.dtype('float16')}


@pytest.mark.parametrize('parts', [('first_stage',), ('text',), ()])
def test_any_part_may_be_missing_from_the_start(tmp_path, parts):
  config = {**latents.CONFIG, 'parts': {name: latents.CONFIG['parts'][name] for name in parts}}
  params = {name: latents.params()[name] for name in ('network', *parts)}
  directory.save(tmp_path / 'it', config, params if parts else params['network'], 'a test')
  model = models.load(tmp_path / 'it')
  assert (model.first_stage is not None, model.text is not None) == tuple(
      name in parts for name in ('first_stage', 'text'))
  assert model.picture_shape == ((8, 8, 3) if 'first_stage' in parts else (4, 4, 4))
  assert ('parts' in model.config) == bool(parts)
  if 'text' not in parts:
    with pytest.raises(ValueError, match='with_prompts: model must have a text encoder, got .*it '):
      model.with_prompts(PROMPTS)
    assert model.with_features(draw(2, 8, 12), draw(8, 12)).num_classes == 2


def test_features_of_texts_are_labels(model, apply, x):
  plain, _ = apply
  features = model.text.encode(PROMPTS)
  denoised = plain(model.params, x, SIGMA, features)
  assert denoised.shape == x.shape and model.num_classes == 0
  change = abs(denoised - plain(model.params, x, SIGMA, features[[0, 0, 0]])).max((1, 2, 3))
  assert change[0] == 0 and (change[1:] > 1e-3).all()
  for labels in (None, np.zeros(3, np.int32)):
    with pytest.raises(ValueError, match='labels must be features of a text'):
      model.denoise(x, SIGMA, labels)


def test_prompts_are_numbered_from_0_and_below_is_the_empty_text(model, apply, x):
  plain, numbered = apply
  prompted = model.with_prompts(PROMPTS)
  features, empty = model.text.encode(PROMPTS), model.text.encode([''])[0]
  given = model.with_features(features, empty)
  assert prompted.num_classes == given.num_classes == 3
  assert (prompted.image_shape, prompted.sha256) == (model.image_shape, model.sha256)
  assert prompted.first_stage is model.first_stage
  np.testing.assert_array_equal(prompted.params['features'], given.params['features'])
  for labels in ([2, 0, 1], [-1, 1, -7]):
    rows = np.stack([empty if label < 0 else features[label] for label in labels])
    # Gathered inside the program or before it: two programs, sums in other orders.
    np.testing.assert_allclose(numbered(prompted.params, x, SIGMA, np.int32(labels)),
                               plain(model.params, x, SIGMA, rows), atol=1e-5)
  with pytest.raises(ValueError, match='labels of a model with prompts must be their numbers, got'):
    prompted.denoise(x, SIGMA, features)


def test_other_prompts_change_no_program(model, folder, apply, x):
  first, second = model.with_prompts(PROMPTS), models.load(folder).with_prompts(['dog', 'a', 'b'])
  names = 'apply', 'apply_features'
  assert all(getattr(first, name) is getattr(second, name) for name in names)
  assert first.apply_variance is None
  labels = np.zeros(3, np.int32)
  one, other = (apply[1](it.params, x, SIGMA, labels) for it in (first, second))
  assert abs(one - other).max() > 1e-3
  shapes = jax.eval_shape(first.apply_features, first.params, x, SIGMA, labels)
  assert [shape.shape for shape in shapes] == [(3, 4, 4, 4), (3, 4, 4)]


def test_prompts_belong_to_the_identity(model):
  def told(prompts):
    return model.with_prompts(prompts).identity
  assert told(PROMPTS) == told(iter(PROMPTS)) and told(PROMPTS)['prompts']['count'] == 3
  assert told(PROMPTS) != told(PROMPTS[::-1]) and told(PROMPTS)['sha256'] == model.sha256
  features, empty = draw(2, 8, 12), draw(8, 12)
  given = model.with_features(features, empty).identity
  assert given['features']['count'] == 2 and 'prompts' not in given
  for other in ((2 * features, empty), (features, 2 * empty)):
    assert model.with_features(*other).identity != given
  json.dumps([told(PROMPTS), given])  # Plain values, for run.json.
  assert 'prompts' not in model.config


def test_classifier_free_guidance_takes_numbers(model, apply, x):
  plain, _ = apply
  prompted, labels = model.with_prompts(PROMPTS), jnp.array([2, 0, 1])
  @jax.jit
  def guided(params, x, scale):
    def evaluate(x, sigma, labels):
      return prompted.apply(params, x, sigma, labels)
    pair = samplers.guidance.paired(evaluate, labels, jnp.full_like(labels, -1))
    return samplers.guidance.classifier_free_pair(pair, scale)(x, SIGMA)
  features, empty = model.text.encode([PROMPTS[i] for i in labels]), model.text.encode([''])
  with_text = plain(model.params, x, SIGMA, features)
  without = plain(model.params, x, SIGMA, np.repeat(empty, 3, 0))
  assert abs(with_text - without).max() > 1e-3
  np.testing.assert_allclose(guided(prompted.params, x, 7.5), without + 7.5 * (with_text - without),
                             atol=1e-4)  # 7.5 times what two programs differ by.


@pytest.mark.parametrize('features, empty, match', [
    (draw(2, 8, 9), draw(8, 9), r'features must be of shape \(n, tokens, 12\), .* \(2, 8, 9\); '),
    (draw(8, 12), draw(8, 12), r'features must be of shape \(n, tokens, 12\), .* got \(8, 12\);'),
    (draw(2, 8, 12), draw(7, 12), r'empty must be of the shape \(8, 12\) of each of .* \(7, 12\);'),
    (draw(2, 8, 12) * np.nan, draw(8, 12), 'features must be an array of finite numbers, got'),
    (draw(2, 8, 12), 'none', 'empty must be an array of finite numbers, got others; encode'),
])
def test_features_of_another_form(model, features, empty, match):
  with pytest.raises(ValueError, match=f'with_features: {match}'):
    model.with_features(features, empty)


def test_prompts_for_models_that_take_none(model):
  with pytest.raises(ValueError, match='with_prompts: model must have a text encoder, got digits_'):
    models.load('digits_exact').with_prompts(PROMPTS)
  for name in ('digits_early', 'digits_exact'):
    with pytest.raises(ValueError, match=f'with_features: model must read texts, got {name}, whi'):
      models.load(name).with_features(draw(2, 8, 12), draw(8, 12))
  with pytest.raises(ValueError, match='with_prompts: prompts must be a list of texts'):
    model.with_prompts('a cat')
  with pytest.raises(ValueError, match='with_prompts: model must have no prompts yet, .* with 3;'):
    model.with_prompts(PROMPTS).with_prompts(['dog'])


@pytest.mark.parametrize('name', ['first_stage', 'text'])
def test_missing_and_damaged_parts(changed, name):
  path = changed(None)
  data = max((path / name / 'params').rglob('*'), key=lambda path: path.stat().st_size)
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 0xff
  data.write_bytes(content)
  with pytest.raises(ValueError, match='make the model again'):
    models.load(path)
  (path / name / 'config.json').unlink()
  with pytest.raises(ValueError, match=f'{name} without config.json; make it again'):
    models.load(path)
  shutil.rmtree(path / name)
  with pytest.raises(ValueError, match=f'load: model must have its part {name}/ beside config.json'
                                       ', got none in .*; copy the whole folder, or make'):
    models.load(path)


@pytest.mark.parametrize('part, fields, match', [
    (None, {'parts': {'text': '0' * 64}}, 'text must have SHA-256 000000000000..., as config'),
    (None, {'parts': {'vae': '0' * 64}}, "unknown part 'vae'; known: first_stage, text"),
    (None, {'parts': ['text']}, "parts in config.json of .* must be the hash of each by"),
    ('text', {'kind': 'features'}, "part text must be of the kind text_encoder, got 'features'; t"),
    ('text', {'merges': latents.MERGES[:1]}, 'vocab of the text encoder must be 515, 514 and its'),
    ('text', {'sha256': 'abc'}, r'text must have SHA-256 .*, got abc\.\.\.; it belongs to another'),
    ('first_stage', {'latent_shape': [8, 8, 3]}, r'latent_shape .* must have 4 .* got \[8, 8, 3\]'),
    ('first_stage', {'image_shape': [8, 8, 3]}, r'image_shape 2 times its sides .* \[8, 8, 3\]; '),
    ('first_stage', {'image_shape': 16}, r'image_shape 2 times its .* got \[8, 8, 4\] and 16; m'),
    ('first_stage', {'scale_factor': 0}, 'scale_factor of the first stage must be a finite number'),
])
def test_config_of_a_part_that_does_not_fit(changed, part, fields, match):
  with pytest.raises(ValueError, match=f'load: .*{match}|{match}') as error:
    models.load(changed(part, **fields))
  assert '\n' not in str(error.value)


def with_changes(**changes):
  """CONFIG with other values at paths whose names are joined by '__'."""
  config = copy.deepcopy(latents.CONFIG)
  for path, value in changes.items():
    *above, last = path.split('__')
    target = config
    for name in above:
      target = target[name]
    target[last] = value
  return config


@pytest.mark.parametrize('config, match', [
    (with_changes(image_shape=[4, 4, 3]),
     'save: latents of the first stage must have the 3 channels of the denoiser, got 4; take all'),
    (with_changes(network__settings__context_dim=16),
     'save: width of the text encoder must be the context_dim of the denoiser, 16, got 12; take'),
    (with_changes(network__settings__context_dim=0),
     'save: denoiser must read texts to have a text encoder, got one without context_dim; take'),
    (with_changes(parts__text__merges=['a t']), 'save: vocab of the text encoder must be 515, 514'),
    (with_changes(parts__text__network='clip'), 'save: network of the text_encoder must be the n'),
    (with_changes(parts__text__kind='autoencoder'), 'save: config of the part text must have the'),
    (with_changes(parts__first_stage=latents.TEXT),
     "save: part first_stage must be of the kind autoencoder, got 'text_encoder'; take all"),
    (with_changes(parts__first_stage__network__settings__embed_dim=3),
     r'save: latent_shape of the first stage must have 3 channels, .* got \[8, 8, 4\] and'),
    (with_changes(parts__vae=latents.FIRST_STAGE), "save: unknown part 'vae'; known: first"),
    (with_changes(parts__text={}), 'save: config of the part text must have the fields .* none'),
    (with_changes(parts='text'), "save: parts must be the fields of each part by its name, got 't"),
])
def test_parts_that_do_not_fit_are_not_saved(tmp_path, config, match):
  with pytest.raises(ValueError, match=match) as error:
    directory.save(tmp_path / 'it', config, latents.params(), 'a test')
  assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_a_model_with_parts_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
  less = {name: latents.params()[name] for name in ('network', 'text')}
  with pytest.raises(ValueError, match='save: params must be those of network, first_stage, text'):
    directory.save(tmp_path / 'it', latents.CONFIG, less, 'a test')
  whole, calls = directory.digest, []
  def fail_later(params):
    calls.append(params)
    if len(calls) == 3:  # The parameters before are written.
      raise OSError('disk full')
    return whole(params)
  monkeypatch.setattr(directory, 'digest', fail_later)
  with pytest.raises(OSError, match='disk full'):
    directory.save(tmp_path / 'it', latents.CONFIG, latents.params(), 'a test')
  assert len(calls) == 3 and not list(tmp_path.iterdir())
