"""Latent diffusion from published containers to pictures, learned solvers and grids, end to end."""

import functools
import json
import lzma
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

import models
from configs import default
from engine import generate, latents, prompts, resolve, search, train_amed
from tests import reference
from tests.engine.test_convert import convert
from tests.test_main import run_main

LDM = reference.GOLDEN / 'ldm'
CASES = {case['id']: case for case in json.loads((LDM / 'manifest.json').read_text())['cases']}
PROMPTS = 'a red ball|two cats'


@pytest.fixture(scope='module', autouse=True)
def loaded_once():
  """Loads a model of a folder once, not for every plan."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(models, 'load', functools.cache(models.load))
    yield


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A Stable Diffusion of diffusers, converted to sd/, and one without texts, vq/."""
  folder = tmp_path_factory.mktemp('latents')
  with tarfile.open(LDM / 'sd_diffusers.tar.xz') as tar:
    tar.extractall(folder, filter='data')
  source = next(path.parent for path in folder.rglob('model_index.json'))
  convert(source, folder / 'sd', self_check=False)
  (folder / 'model.ckpt').write_bytes(lzma.decompress((LDM / 'ldm_vq.ckpt.xz').read_bytes()))
  (folder / 'params.json').write_text(json.dumps(CASES['ldm_vq']['config']))
  convert(folder / 'model.ckpt', folder / 'vq', self_check=False,
          architecture=str(folder / 'params.json'))
  return folder


def configured(folder, **fields):
  """A config of the converted Stable Diffusion, '__' for the dots."""
  config = default.get_config()
  config.update_from_flattened_dict({
      'model.path': str(folder / 'sd'), 'model.prompts': PROMPTS, 'batch_size': 2,
      'seeds': '0-2', **{name.replace('__', '.'): value for name, value in fields.items()}})
  return config


def test_texts_become_pictures(folder):
  (folder / 'texts.txt').write_text(PROMPTS.replace('|', '\n') + '\n')
  done = run_main(
      folder, '--config.model.path=sd', '--config.model.prompts=texts.txt', '--config.labels=0,1',
      '--config.seeds=0-2', '--config.batch_size=2', '--config.schedule.name=discrete',
      '--config.schedule.num_steps=3', '--config.solver.max_order=2',
      '--config.solver.predict_x0=False', '--config.guidance.method=classifier_free',
      '--config.guidance.scale=7.5')
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout.startswith('3 images in out: dpmpp on discrete, NFE 3, classifier_free at 7.5')
  manifest = json.loads((folder / 'out/manifest.json').read_text())
  assert manifest['labels'] == [0, 1, 0] and manifest['model']['prompts']['count'] == 2
  pictures = []
  for seed in range(3):
    with Image.open(folder / f'out/00000{seed}.png') as picture:
      pictures.append(np.asarray(picture))
  assert all(picture.shape == (16, 16, 3) and picture.std() > 1 for picture in pictures)
  model = models.load(folder / 'sd').with_prompts(PROMPTS.split('|'))
  assert manifest['sigmas'][0] == pytest.approx(model.sigma_max)


def test_a_model_without_texts_samples_in_latents_too(folder):
  config = configured(folder, schedule__num_steps=2, schedule__name='discrete',
                      solver__name='euler')
  with config.unlocked():
    config.model.path, config.model.prompts = str(folder / 'vq'), None
  generate.run(generate.plan(config, str(folder / 'plain')))
  with Image.open(folder / 'plain/grid.png') as picture:
    assert np.asarray(picture).std() > 1


def test_slices_are_decoded_as_the_whole(folder):
  model = models.load(folder / 'sd')
  z = np.random.default_rng(0).standard_normal((5, *model.image_shape)).astype(np.float32)
  whole, sliced = (latents.decoder(model, memory, 4)(z) for memory in (1.0, 1e-9))
  assert whole.shape == (5, *model.picture_shape) == (5, 16, 16, 3)
  np.testing.assert_allclose(whole, sliced, atol=1e-5)  # Sums of another order; values are of 1.
  np.testing.assert_allclose(whole, model.first_stage.decode(z), atol=1e-5)


def test_features_from_a_file_are_those_of_the_prompts(folder):
  model = models.load(folder / 'sd')
  features = model.text.encode([*PROMPTS.split('|'), ''])
  np.savez(folder / 'features.npz', features=features[:-1], empty=features[-1])
  given = prompts.settle(model, str(folder / 'features.npz'))
  told = prompts.settle(model, PROMPTS)
  np.testing.assert_array_equal(given.params['features'], told.params['features'])
  assert given.num_classes == told.num_classes == 2


GUIDED = {'guidance__method': 'classifier_free', 'guidance__scale': 2.0, 'labels': 'balanced'}


def test_a_grid_is_searched_under_guidance(folder):
  search.run(search.plan(configured(
      folder, **GUIDED, schedule__name='discrete', search__teacher_steps=4, search__num_steps='2',
      search__warm_up=4), str(folder / 'gits')))
  grid = json.loads((folder / 'gits/grid-2.json').read_text())
  assert len(grid['sigmas']) == 3


@pytest.mark.slow
def test_a_predictor_is_trained_under_guidance(folder):
  train_amed.run(train_amed.plan(configured(
      folder, **GUIDED, learn__num_steps=1, learn__trajectories=4, learn__batch_size=4,
      learn__M=1, learn__teacher='euler', learn__student='euler', learn__loss='intervals',
      learn__afs=False), str(folder / 'amed')))
  told = json.loads((folder / 'amed/predictor/config.json').read_text())
  assert told['design']['settings']['bottleneck_size'] == 2**2  # Channel mean of the middle.
  config = configured(folder, labels='balanced', predictor__path=str(folder / 'amed'))
  line = generate.run(generate.plan(config, str(folder / 'by_amed')))
  assert line.startswith(f'3 images in {folder}/by_amed: amed on time_uniform, NFE 2')


@pytest.mark.parametrize('fields, message', [
    ({'model__prompts': None}, 'config.model.prompts: must be given for .*, which reads texts'),
    ({'model__prompts': 'a||b'}, "prompts: must be prompts with '|' between them, got 'a||b'"),
    ({'model__prompts': 'none.txt'}, 'must be a text file with one prompt per line'),
    ({'labels': '2'}, 'labels: classes must be from 0 to 1, got 2'),
    ({'limit': 'clip'}, "config.limit: must be none for .* whose samples are latents, got 'clip'"),
    ({'output__decode_memory': 0.0},
     'config.output: decode_memory must be a finite number above 0, got 0'),
    ({'input__images': 'gaussian_digits'}, 'config.input.images: must be None for '),
])
def test_bad_input(folder, tmp_path, fields, message):
  with pytest.raises(ValueError, match=message.replace('|', '[|]')):
    generate.plan(configured(folder, **fields), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('job', [train_amed, search])
def test_latents_are_not_limited_in_training_and_search_either(folder, tmp_path, job):
  with pytest.raises(ValueError, match='config.limit: must be none for .* are latents, got .clip'):
    job.plan(configured(folder, limit='clip', labels='balanced'), str(tmp_path / 'out'))


def test_models_without_texts_and_other_jobs_refuse(folder, tmp_path):
  config = default.get_config()
  config.model.prompts = 'a cat'
  with pytest.raises(ValueError, match='prompts: must be left out for digits, which reads no'):
    resolve.model(config.model)
  with pytest.raises(ValueError, match='must be a model in pixel space, got .* of latents'):
    resolve.model(configured(folder).model)
  shutil.copytree(folder / 'sd', tmp_path / 'sd')
  shutil.rmtree(tmp_path / 'sd/first_stage')
  with pytest.raises(ValueError, match='must have its part first_stage/'):
    models.load(tmp_path / 'sd')
