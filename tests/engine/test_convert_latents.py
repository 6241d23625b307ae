"""The job that makes model directories of latent diffusion, its parts, and consistency models."""

import json
import lzma
import tarfile

import numpy as np
import pytest

import models
from convert import containers
from engine import convert as job
from tests import reference
from tests.convert import writing
from tests.engine.test_convert import configured, convert

LATENT = {case['id']: case for case in json.loads(
    (reference.GOLDEN / 'ldm/manifest.json').read_text())['cases']}


def latent_files(folder, name):
  """A small trainer and what it needs beside it; returns fields of the config."""
  told = LATENT[name]['config']
  if name == 'sd':
    told = {**told, 'cond_stage_config': {'clip_text_config': LATENT['sd']['clip_config']}}
  (folder / 'told.json').write_text(json.dumps(told))
  (folder / f'{name}.ckpt').write_bytes(
      lzma.decompress((reference.GOLDEN / f'ldm/{name}.ckpt.xz').read_bytes()))
  with tarfile.open(reference.GOLDEN / 'ldm/sd_diffusers.tar.xz') as tar:
    tar.extractall(folder / 'folder', filter='data')
  return {'architecture': str(folder / 'told.json')} | (
      {'tokenizer': str(folder / 'folder/tokenizer')} if name == 'sd' else {})


def test_a_stable_diffusion_becomes_a_directory_with_parts(tmp_path):
  fields = latent_files(tmp_path, 'sd')
  report = convert(tmp_path / 'sd.ckpt', tmp_path / 'a', resolution=16, **fields).splitlines()
  assert report[0].startswith(f'denoiser in {tmp_path}/a: sd, 493 tensors, network 967,940 and '
                              'first_stage 218,791 and text 30,360 parameters, ')
  assert report[1:3] == [
      '  adm_unet with preconditioning discrete, latents 8x8x4 of pictures 16x16x3 by a first '
      'stage kl with scale factor 0.18215, texts of 77 tokens of 24, sigma from 0.02917 to 14.6146',
      '  self-check: finite denoised 8x8x4, picture 16x16x3, text 77x24']
  model = models.load(tmp_path / 'a')
  assert model.first_stage.image_shape == (16, 16, 3) and model.text.tokenizer.pad == 583
  source = model.config['source']
  assert (source['family'], source['ema'], source['weights']) == ('sd', 'auto', 'as trained')
  # A second run does nothing, and none with another choice.
  done = 'nothing was left to do'
  assert convert(tmp_path / 'sd.ckpt', tmp_path / 'a', **fields).endswith(done)
  for changes in ({'ema': 'ignore'}, {'architecture': None}, {'published': 'sd_v1'}):
    with pytest.raises(ValueError, match='must not exist or be what|must not be given both'):
      convert(tmp_path / 'sd.ckpt', tmp_path / 'a', **fields | changes)
  with pytest.raises(ValueError, match='resolution: must be that of the network in .*, 16, got 8;'):
    job.plan(configured(tmp_path / 'sd.ckpt', resolution=8, **fields), str(tmp_path / 'c'))
  # The folder of diffusers is the same model.
  convert(tmp_path / 'folder', tmp_path / 'b', self_check=False)
  assert convert(tmp_path / 'folder', tmp_path / 'b').endswith(done)
  other = models.load(tmp_path / 'b')
  assert (other.sha256, other.config['parts']) == (model.sha256, model.config['parts'])
  sha256 = other.config['source']['sha256']
  assert convert(tmp_path / 'folder', tmp_path / 'b', sha256=sha256).endswith(done)
  (tmp_path / 'folder/tokenizer/tokenizer_config.json').unlink()
  with pytest.raises(ValueError, match='must not exist or be what this conversion made'):
    convert(tmp_path / 'folder', tmp_path / 'b')
  (tmp_path / 'folder/vae/config.json').unlink()
  with pytest.raises(ValueError, match='must be a whole folder .* without vae/config.json'):
    convert(tmp_path / 'folder', tmp_path / 'b')


def test_a_part_whose_answer_is_not_finite(tmp_path):
  fields = latent_files(tmp_path, 'sd')
  plan = job.plan(configured(tmp_path / 'sd.ckpt', **fields), str(tmp_path / 'model'))
  plan.converted.params['first_stage']['decoder']['out_conv']['bias'][:] = np.inf
  with pytest.raises(FloatingPointError, match='answers of the parts must be finite, got others in '
                                               'picture; .* nothing was written'):
    job.run(plan)
  assert not (tmp_path / 'model').exists()


def test_a_first_stage_alone(tmp_path):
  latent_files(tmp_path, 'ldm_vq')
  tensors = containers.read(tmp_path / 'ldm_vq.ckpt').data['state_dict']
  start = 'first_stage_model.'
  source = tmp_path / 'vq.safetensors'
  source.write_bytes(writing.safetensors(
      {name.removeprefix(start): np.array(value) for name, value in tensors.items()
       if name.startswith(start)} | {'loss.odd': np.zeros(3, np.float32)}))
  report = convert(source, tmp_path / 'model').splitlines()
  assert report[0].startswith(f'autoencoder in {tmp_path}/model: autoencoder, ')
  assert report[1:3] == ['  vq with scale factor 1, pictures 256x256x3 in training',
                         '  self-check: finite picture 16x16x3']
  assert models.load_first_stage(tmp_path / 'model').latent_shape == (128, 128, 3)
  assert convert(source, tmp_path / 'model').endswith('nothing was left to do')


@pytest.mark.parametrize('stem, told, preconditioning', [
    ('edm_small', {}, {}), ('cd_small', {}, {'sigma_min': 0.002}),
    ('small', {'training_mode': 'consistency_training'}, {'sigma_min': 0.002})])
def test_consistency_models_and_their_teachers(stem, told, preconditioning, tmp_path):
  folder = reference.GOLDEN / 'cm_nets'
  case = json.loads((folder / 'manifest.json').read_text())['cases'][0]
  source, flags = tmp_path / f'{stem}.pt', tmp_path / 'flags.json'
  source.write_bytes(lzma.decompress((folder / case['checkpoint']).read_bytes()))
  flags.write_text(json.dumps(case['kwargs'] | told))
  plan = job.plan(configured(source, architecture=str(flags)), str(tmp_path / 'model'))
  assert plan.converted.config['preconditioning'] == {'name': 'cm', 'settings': preconditioning}
  assert plan.converted.source['family'] == 'cm'
  with pytest.raises(ValueError, match='architecture must be given, .* edm_imagenet64_ema, '):
    job.plan(configured(source), str(tmp_path / 'model'))
  if told:
    flags.write_text(json.dumps(case['kwargs']))
    with pytest.raises(ValueError, match='training_mode of the architecture must be one of edm,'):
      job.plan(configured(source, architecture=str(flags)), str(tmp_path / 'model'))
