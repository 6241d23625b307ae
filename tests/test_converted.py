"""From published files to images: every preconditioning, both containers, guidance."""

import json
import lzma

import jax
import numpy as np
import pytest
from PIL import Image

import models
from configs import default, es_ddpm
from convert import containers
from engine import generate
from tests import reference
from tests.convert import writing
from tests.engine.test_convert import convert
from tests.models import test_adm_nets, test_edm_nets
from tests.test_main import run_main

PICKLES = reference.GOLDEN / 'edm_pickles'
NETS = reference.GOLDEN / 'adm_nets'
KWARGS = {case['id']: case.get('kwargs')
          for case in json.loads((NETS / 'manifest.json').read_text())['cases']}
CM_KWARGS = next(case['kwargs'] for case in json.loads(
    (reference.GOLDEN / 'cm_nets/manifest.json').read_text())['cases']
    if case['id'] == 'cm_lsun_style')
SMALL = {'seeds': '0-1', 'batch_size': 2, 'schedule.num_steps': 2}


def sample(model, workdir, **fields):
  """Samples two images of a converted model."""
  config = default.get_config()
  config.update_from_flattened_dict({**SMALL, 'model.path': str(model), 'labels': 'random',
                                     **fields})
  generate.run(generate.plan(config, str(workdir)))


def module(tensors):
  """A module of EDM's pickles from the dotted names of its tensors."""
  own, inner = {}, {}
  for name, array in tensors.items():
    first, _, rest = name.partition('.')
    if rest:
      inner.setdefault(first, {})[rest] = array
    else:
      own[first] = writing.parameter(np.float32(array))
  return writing.persistent('Module', writing.state(
      own, modules={name: module(parts) for name, parts in inner.items()}))


def write_vp(path):
  """A file of a network under VP preconditioning, of which none is recorded as a pickle."""
  case = test_edm_nets.CASES['ddpmpp_u_vp']
  settings = dict(test_edm_nets.NETWORKS[case['network']]['init_kwargs'])
  settings |= {'img_channels': settings.pop('in_channels'), 'model_type': 'SongUNet'}
  del settings['out_channels']
  arrays = test_edm_nets.ARRAYS
  instance = writing.state(modules={'model': module(arrays[f'weights_{case["network"]}'])},
                           _init_args=(), _init_kwargs=settings)
  path.write_bytes(writing.dumps({'ema': writing.persistent('VPPrecond', instance)}))
  return arrays['case_ddpmpp_u_vp'], case


@pytest.mark.parametrize('name', ['edm_song_cond', 'baseline_ve', 'baseline_iddpm', 'sfd_student',
                                  'vp'])
def test_every_preconditioning_of_edm_is_converted_and_sampled(name, tmp_path):
  source = PICKLES / f'{name}.pkl'
  if name == 'vp':
    source = tmp_path / 'vp.pkl'
    arrays, case = write_vp(source)
  convert(source, tmp_path / 'model', self_check=False)
  model = models.load(tmp_path / 'model')
  assert model.config['preconditioning']['name'] == {
      'baseline_ve': 've', 'baseline_iddpm': 'iddpm', 'vp': 'vp'}.get(name, 'edm')
  if name == 'vp':
    denoised = test_edm_nets.quickly(model.denoise)(np.float32(arrays['x']),
                                                    np.float32(arrays['sigma']))
    bound = 4 * case['max_abs_float32_minus_float64']['D']  # As in test_edm_nets.
    assert abs(np.float64(denoised) - arrays['D_f64']).max() < bound
  # A student of SFD-v was trained for 3 steps and more.
  sample(tmp_path / 'model', tmp_path / 'out', **{'schedule.num_steps': 3})
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert manifest['model']['source']['sha256'] == containers.read(source).sha256
  with Image.open(tmp_path / 'out' / '000001.png') as picture:
    assert np.asarray(picture).std() > 1  # Random weights paint no picture, but no flat one.


def test_adm_in_both_containers_with_and_without_guidance(tmp_path):
  """The classifier and the guided run as a user would, the others by what main.py calls."""
  names = 'adm_uncond_ssn_updown', 'adm_plain_conv_resample', 'cls_attention'
  for name in names:
    (tmp_path / f'{name}.pt').write_bytes(lzma.decompress((NETS / f'{name}.pt.xz').read_bytes()))
    (tmp_path / f'{name}.json').write_text(json.dumps(KWARGS[name]))
  for name in names[:2]:
    convert(tmp_path / f'{name}.pt', tmp_path / name, architecture=str(tmp_path / f'{name}.json'))
  result = run_main(tmp_path, '--mode=convert', '--workdir=cls_attention',
                    '--config.convert.source=cls_attention.pt',
                    '--config.convert.architecture=cls_attention.json')
  assert result.returncode == 0, result.stderr
  kinds = {containers.read(tmp_path / f'{name}.pt').container
           for name in ('adm_uncond_ssn_updown', 'adm_plain_conv_resample')}
  assert kinds == {'torch_zip', 'torch_legacy'}
  for workdir, name in (('plain', names[1]), ('unguided', names[0])):
    sample(tmp_path / name, tmp_path / workdir)
  result = run_main(
      tmp_path, *(f'--config.{field}={value}' for field, value in SMALL.items()),
      '--config.model.path=adm_uncond_ssn_updown', '--config.limit=clip', '--config.labels=7',
      '--config.guidance.classifier=cls_attention', '--config.guidance.scale=3',
      '--workdir=guided')
  assert result.returncode == 0, result.stderr
  manifest = json.loads((tmp_path / 'guided' / 'manifest.json').read_text())
  assert manifest['labels'] == [7, 7] and manifest['guidance']['classifier'] == 'cls_attention'
  pictures = [(tmp_path / workdir / '000000.png').read_bytes()
              for workdir in ('plain', 'unguided', 'guided')]
  assert len(set(pictures)) == 3


def test_class_conditional_adm_is_converted_and_sampled(tmp_path):
  name = 'adm_cond_legacy_order'
  (tmp_path / 'net.safetensors').write_bytes(writing.safetensors(test_adm_nets.tensors(name)))
  (tmp_path / 'flags.json').write_text(json.dumps(KWARGS[name]))
  report = convert(tmp_path / 'net.safetensors', tmp_path / 'model', self_check=False,
                   architecture=str(tmp_path / 'flags.json'))
  assert '10 classes' in report
  model = models.load(tmp_path / 'model')
  arrays = reference.load('adm_nets')[1]['cg_wrapper']  # Without guidance, at its first level.
  x, sigma = arrays['x'][0], arrays['sigma'][0]
  denoised, v = test_edm_nets.quickly(model.denoise_variance)(
      np.float32(x), np.float32(sigma), arrays['y'])
  expected = x - sigma * arrays['model_output64'][0][..., :3]
  assert abs(denoised - expected).max() < 1e-4 * (1 + sigma)
  assert abs(v - arrays['model_output64'][0][..., 3:]).max() < 1e-4


def test_a_consistency_model_samples_in_two_steps(tmp_path):
  """As configs/cm.py does, from the small checkpoint under the name of a distilled one."""
  source = tmp_path / 'cd_small.pt'
  source.write_bytes(lzma.decompress(
      (reference.GOLDEN / 'cm_nets/cm_lsun_style.pt.xz').read_bytes()))
  (tmp_path / 'kwargs.json').write_text(json.dumps(CM_KWARGS))
  convert(source, tmp_path / 'model', architecture=str(tmp_path / 'kwargs.json'))
  model = models.load(tmp_path / 'model')
  assert model.config['preconditioning']['settings']['sigma_min'] == 0.002
  x = np.float32(np.random.default_rng(0).standard_normal((1, *model.image_shape)))
  np.testing.assert_allclose(model.denoise(x, 0.002), x, atol=1e-6)  # Its boundary.
  sample(tmp_path / 'model', tmp_path / 'out', labels='none', **{
      'solver.name': 'consistency', 'schedule.name': 'subset', 'schedule.num_steps': 39,
      'schedule.ts': '0,17,39'})
  manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
  assert manifest['nfe'] == 2 and manifest['model']['source']['family'] == 'cm'


def test_early_stop_with_a_learned_variance_as_published(tmp_path):
  """configs/es_ddpm.py on a small network that learned a variance, guided, in two shares."""
  name = 'adm_cond_legacy_order'
  (tmp_path / 'net.safetensors').write_bytes(writing.safetensors(test_adm_nets.tensors(name)))
  (tmp_path / 'flags.json').write_text(json.dumps(KWARGS[name]))
  convert(tmp_path / 'net.safetensors', tmp_path / 'model', self_check=False,
          architecture=str(tmp_path / 'flags.json'))
  model = models.load(tmp_path / 'model')
  assert model.apply_variance is not None
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (4, *model.image_shape), dtype=np.uint8)
  np.savez(tmp_path / 'gan.npz', arr_0=images, arr_1=np.arange(4))
  for share in ('0/2', '1/2'):
    config = es_ddpm.get_config('imagenet64')
    assert config.schedule.reverse_steps == 25 and config.solver.variance == 'learned'
    config.update_from_flattened_dict({
        'model.path': str(tmp_path / 'model'), 'input.images': str(tmp_path / 'gan.npz'),
        'schedule.respacing': '20', 'schedule.reverse_steps': 2, 'share': share, 'batch_size': 2})
    told = generate.run(generate.plan(config, str(tmp_path / 'out')))
  assert 'NFE 2' in told and 'started from' in told
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert manifest['labels'] == [0, 1, 2, 3] and manifest['solver']['variance'] == 'learned'
  assert manifest['sigmas'][-1] == 0 and len(manifest['sigmas']) == 3
  with np.load(tmp_path / 'out' / 'samples.npz') as arrays:
    assert arrays['arr_0'].shape == images.shape and arrays['arr_0'].std() > 1
    np.testing.assert_array_equal(arrays['arr_1'], np.arange(4))


def test_parameters_load_in_the_precision_asked_for(tmp_path):
  convert(PICKLES / 'edm_song_cond.pkl', tmp_path / 'model', self_check=False)
  whole = models.load(tmp_path / 'model').params
  half = models.load(tmp_path / 'model', dtype='bfloat16').params
  for ours, theirs in zip(jax.tree.leaves(half), jax.tree.leaves(whole), strict=True):
    assert ours.dtype.name == 'bfloat16' and theirs.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs.astype(ours.dtype))
  with pytest.raises(ValueError, match="unknown dtype 'float8'"):
    models.load(tmp_path / 'model', dtype='float8')
