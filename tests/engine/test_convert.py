"""The job that makes model directories of checkpoints, and its command line."""

import hashlib
import json
import lzma
import shutil

import jax
import numpy as np
import pytest

import models
from configs import default
from convert import containers, lpips, rules
from engine import convert as job, predictors, progress
from models import directory, feature_networks
from tests import reference
from tests.convert import test_inception, test_torchscript, writing
from tests.test_main import run_main

PICKLES = reference.GOLDEN / 'edm_pickles'
NETS = reference.GOLDEN / 'adm_nets'
KWARGS = {case['id']: case.get('kwargs')
          for case in json.loads((NETS / 'manifest.json').read_text())['cases']}


def configured(source, **fields):
  config = default.get_config()
  config.convert.update({'source': str(source), **fields})
  return config


def convert(source, folder, **fields):
  return job.run(job.plan(configured(source, **fields), str(folder)))


def adm_file(folder, name, change=None):
  """A file of tensors with the case's architecture beside it; returns fields of the config."""
  packed = folder / f'{name}.pt'
  packed.write_bytes(lzma.decompress((NETS / f'{name}.pt.xz').read_bytes()))
  tensors = dict(containers.read(packed).data)
  packed.unlink()
  if change:
    tensors |= change(tensors)
  source, flags = folder / f'{name}.safetensors', folder / 'flags.json'
  source.write_bytes(writing.safetensors(tensors))
  flags.write_text(json.dumps(KWARGS[name]))
  return source, {'architecture': str(flags)}


def test_a_model_directory_is_written_and_works(tmp_path):
  source = PICKLES / 'edm_song_cond.pkl'
  report = convert(source, tmp_path / 'a' / 'model').splitlines()
  sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
  assert report[0].startswith(f'denoiser in {tmp_path}/a/model: edm, 147 tensors, 17,451 paramete')
  assert report[1] == ('  song_unet with preconditioning edm, 8x8x3, 10 classes, '
                       'sigma from 0.002 to 80')
  error = float(report[2].removeprefix('  self-check: largest error ').split()[0])
  assert error < 1e-6 and report[3] == f'  source: edm_song_cond.pkl, SHA-256 {sha256}'
  model, oracle = models.load(tmp_path / 'a' / 'model'), np.load(
      PICKLES / 'edm_song_cond.expected.npz')
  assert model.config['source'] == {'converted': 'edm_song_cond.pkl', 'sha256': sha256,
                                    'family': 'edm', 'dtype': 'float32'}
  denoised = jax.jit(model.denoise)(oracle['x'], oracle['sigma'], oracle['class_index'])
  assert abs(denoised - oracle['D_f32']).max() < 1e-5
  assert [path.name for path in (tmp_path / 'a').iterdir()] == ['model']


@pytest.mark.parametrize('name, kind', [('adm_uncond_ssn_updown', 'denoiser'),
                                        ('cls_attention', 'classifier')])
def test_networks_of_guided_diffusion(name, kind, tmp_path):
  source, fields = adm_file(tmp_path, name)
  report = convert(source, tmp_path / 'model', **fields)
  assert report.startswith(f'{kind} in {tmp_path}/model: adm, ')
  shape = '(1, 10)' if kind == 'classifier' else '(1, 16, 16, 3)'
  assert f'self-check: finite answer of shape {shape} at sigma = 1' in report
  load = models.load_classifier if kind == 'classifier' else models.load
  assert load(tmp_path / 'model').config['source']['architecture'] == KWARGS[name]
  assert convert(source, tmp_path / 'model', **fields).endswith('nothing was left to do')
  other = {**KWARGS[name], 'dropout': 0.5}
  (tmp_path / 'flags.json').write_text(json.dumps(other))
  with pytest.raises(ValueError, match='workdir: must not exist or be what this conversion made'):
    convert(source, tmp_path / 'model', **fields)


def test_converting_twice_gives_the_same_parameters(tmp_path):
  source = PICKLES / 'edm_adm_easydict.pkl'
  for name in ('a', 'b'):
    convert(source, tmp_path / name, self_check=False)
  configs = [directory.read_config(tmp_path / name) for name in ('a', 'b')]
  assert configs[0] == configs[1]


def test_half_precision_on_disk(tmp_path):
  source = PICKLES / 'edm_adm_easydict.pkl'
  report = convert(source, tmp_path / 'half', dtype='float16', self_check=False)
  assert 'self-check: not done' in report
  whole = job.plan(configured(source), str(tmp_path / 'none')).converted.params
  expected = jax.tree.map(lambda value: value.astype(np.float16).astype(np.float32), whole)
  jax.tree.map(np.testing.assert_array_equal, models.load(tmp_path / 'half').params, expected)
  with pytest.raises(ValueError, match='must not exist or be what this conversion made'):
    convert(source, tmp_path / 'half')


def test_a_second_run_does_nothing_and_another_is_refused(tmp_path):
  source = tmp_path / 'net.pkl'
  shutil.copy(PICKLES / 'edm_song_cond.pkl', source)
  convert(source, tmp_path / 'model', self_check=False)
  before = (tmp_path / 'model' / 'config.json').stat().st_mtime_ns
  assert convert(source, tmp_path / 'model') == (
      f'{tmp_path}/model is complete; nothing was left to do')
  assert (tmp_path / 'model' / 'config.json').stat().st_mtime_ns == before
  shutil.copy(PICKLES / 'edm_ve_proto2.pkl', source)
  with pytest.raises(ValueError, match='workdir: must not exist or be what this conversion made'):
    convert(source, tmp_path / 'model')
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError, match='workdir: must not exist'):
    convert(source, tmp_path / 'file')


def test_sha256_is_compared_before_anything_is_read(tmp_path, monkeypatch):
  source = PICKLES / 'edm_song_cond.pkl'
  sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
  job.plan(configured(source, sha256=sha256.upper()), str(tmp_path / 'model'))
  monkeypatch.setattr(containers, 'read', None)
  with pytest.raises(ValueError, match=f'sha256: must be that of .*, {sha256}, got 00.*download'):
    convert(source, tmp_path / 'model', sha256='0' * 64)


@pytest.mark.parametrize('fields, match', [
    ({'source': None}, 'source: must name a checkpoint, got none'),
    ({'source': 'nofile.pkl'}, 'source: must be a file, got nothing at nofile.pkl'),
    ({'source': '.'}, 'source: must be a file, got a folder at .;'),
    ({'family': 'emd'}, "unknown family 'emd'; did you mean edm"),
    ({'family': 'adm'}, 'family must be edm, as its tensors show, got adm'),
    ({'family': 'sfd'}, 'family must be edm, as its tensors show, got sfd'),
    ({'published': 'lsun'}, "unknown published checkpoint 'lsun'"),
    ({'published': 'lsun_cat'}, 'must be left out, as the file tells its own, got lsun_cat'),
    ({'resolution': 32}, 'resolution: must be that of the network in .*, 8, got 32; take the file'),
    ({'dtype': 'float8'}, "unknown dtype 'float8'"),
    ({'sha256': 'abc'}, "sha256: must be 64 digits in hex, got 'abc'"),
    ({'source': PICKLES / 'amed_predictor.pkl', 'resolution': 64},
     'resolution: must be that of the network in .*, 32, got 64; take the file'),
    ({'family': 'amed'}, 'family must be edm, as its tensors show, got amed; leave it out'),
    ({'source': PICKLES / 'bad_unknown_class.pkl'}, "unknown class of network 'SomethingElse"),
    ({'source': PICKLES / 'bad_missing_tensor.pkl'}, 'missing model.map_layer0.weight'),
    ({'source': PICKLES / 'bad_unexpected_tensor.pkl'}, 'not used model.extra'),
    ({'source': PICKLES / 'bad_wrong_shape.pkl'}, r'is \(4, 5\) and must be \(4, 4\)'),
])
def test_bad_input_leaves_nothing(fields, match, tmp_path):
  fields = {name: str(value) if name == 'source' and value else value
            for name, value in fields.items()}
  config = default.get_config()
  config.convert.update({'source': str(PICKLES / 'edm_song_cond.pkl'), **fields})
  with pytest.raises(ValueError, match=match):
    job.plan(config, str(tmp_path / 'a' / 'model'))
  assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite(tmp_path):
  def spoil(tensors):
    return {'out.0.weight': np.where(np.arange(32) == 3, np.nan, tensors['out.0.weight']).astype(
        np.float32)}
  source, fields = adm_file(tmp_path, 'adm_uncond_ssn_updown', spoil)
  with pytest.raises(ValueError, match='got NaN or infinity in out.0.weight;'):
    convert(source, tmp_path / 'model', **fields)


def test_a_network_whose_answer_is_not_finite(tmp_path):
  def spoil(tensors):
    return {'out.2.weight': np.full_like(tensors['out.2.weight'], 3e38)}
  source, fields = adm_file(tmp_path, 'adm_uncond_ssn_updown', spoil)
  plan = job.plan(configured(source, **fields), str(tmp_path / 'model'))
  with pytest.raises(FloatingPointError, match='answer of the network must be finite .* nothing'):
    job.run(plan, progress.silent)
  assert not (tmp_path / 'model').exists()


def test_reference_numbers_that_are_not(tmp_path):
  shutil.copy(PICKLES / 'edm_song_cond.pkl', tmp_path / 'net.pkl')
  for content in ({'x': np.zeros((1, 4, 4, 3)), 'D_f32': np.zeros((1, 4, 4, 3))}, None):
    with open(tmp_path / 'net.expected.npz', 'wb') as file:
      np.savez(file, **content) if content else file.write(b'PK\3\4 no archive')
    with pytest.raises(ValueError, match='net.expected.npz must hold .*; take it away'):
      convert(tmp_path / 'net.pkl', tmp_path / 'model')


SNAPSHOT = reference.GOLDEN / 'amed/snapshot_ipndm.pkl'


def test_a_snapshot_becomes_a_predictor_that_samples(tmp_path):
  report = convert(SNAPSHOT, tmp_path / 'it').splitlines()
  assert report[0].startswith(f'predictor in {tmp_path}/it: amed, 12 tensors, 8,971 parameters, ')
  assert report[1] == ('  amed with student ipndm, 5 evaluations on 3 intervals of polynomial, '
                       'sigma from 0.002 to 80, for cifar10 4x4x3')
  told = report[2].removeprefix('  self-check: finite sample, r ')
  r, *scales = (float(part.split()[-1]) for part in told.split(' in the')[0].split(', '))
  assert 0 < r < 1 and np.all(np.abs(np.subtract(scales, 1)) < (0.01, 0.2))
  predictor = predictors.load(tmp_path / 'it')
  assert predictor.config['source']['training']['M'] == 2 and predictor.design.nfe == 5
  def denoise(x, sigma):  # Of one gray image: the ODE's solutions are straight lines to it.
    return 0 * x + 0.25, np.zeros((len(x), 8, 8), np.float32)
  x = 80 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  solved = jax.jit(predictor.design.solve, static_argnums=1)(predictor.learned, denoise, x)
  # They are met wherever a level is placed; what is left is that scale_dir is 1 to 0.5%, of
  # updates of up to 200 here.
  assert abs(solved - 0.25).max() < 0.005 * abs(x).max()
  assert convert(SNAPSHOT, tmp_path / 'it').endswith('nothing was left to do')
  with pytest.raises(ValueError, match='must be a denoiser, got the predictor'):
    models.load(tmp_path / 'it')


def test_a_predictor_whose_answers_are_not_finite(tmp_path):
  plan = job.plan(configured(SNAPSHOT), str(tmp_path / 'it'))
  plan.converted.params['enc_layer1']['kernel'][:] = np.nan
  with pytest.raises(FloatingPointError, match='answers of the predictor must be finite, got others'
                                               ' in r, sample, scale.* nothing was written'):
    job.run(plan)
  assert not list(tmp_path.iterdir())


def test_a_student_is_a_denoiser(tmp_path):
  convert(PICKLES / 'sfd_student.pkl', tmp_path / 'model', self_check=False)
  model = models.load(tmp_path / 'model')
  assert (model.sigma_min, model.sigma_max) == (0.006, 80.0)
  assert model.config['source']['training']['use_step_condition']


def clip_program(folder, **changes):
  """A small CLIP of OpenAI's as the TorchScript archive that they publish."""
  packed = folder / 'packed.pt'
  golden = reference.GOLDEN / 'clip_image/openai_layout.pt.xz'
  packed.write_bytes(lzma.decompress(golden.read_bytes()))
  tensors = {name: np.array(array, order='C') for name, array in (
      containers.read(packed).data | changes).items()}
  packed.unlink()
  arrays = {str(i): array for i, array in enumerate(tensors.values())}
  stored = {name: writing.tensor(writing.storage(str(i), array), array.shape)
            for i, (name, array) in enumerate(tensors.items())}
  def make(own, modules):
    return test_torchscript.module('part', **own, **modules)
  (folder / 'clip.pt').write_bytes(test_torchscript.archive(
      test_inception.tree(stored, make), arrays, code='raise SystemExit'))
  return folder / 'clip.pt', tensors


def test_an_inception_becomes_a_network_of_features(tmp_path):
  source = tmp_path / 'inception.pth'
  source.write_bytes(test_inception.pth(writing.archive))
  report = convert(source, tmp_path / 'model').splitlines()
  assert report[0].startswith(
      f'features in {tmp_path}/model: inception, 566 tensors, 23,885,392 parameters, ')
  assert report[1:3] == [
      '  inception with the features logits 1008, logits_unbiased 1008, pool 2048, spatial 17x17x7',
      '  self-check: finite logits, logits_unbiased, pool, spatial of a gray image']
  network = models.load_features(tmp_path / 'model')
  test_inception.check(network.params, 'pth')
  assert network.name == 'inception' and network.config['source']['family'] == 'inception'
  assert convert(source, tmp_path / 'model').endswith('nothing was left to do')
  with pytest.raises(ValueError, match='must be a denoiser, got the features'):
    models.load(tmp_path / 'model')
  with pytest.raises(ValueError, match='resolution: must be left out for a network of features'):
    job.plan(configured(source, resolution=299), str(tmp_path / 'other'))


def test_a_network_whose_features_are_not_finite(tmp_path):
  source, _ = clip_program(tmp_path, **{'visual.proj': np.full((64, 32), 3e38, np.float32)})
  with pytest.raises(FloatingPointError, match='features of a gray image must be finite, got other'
                                               's in image; .* nothing was written'):
    convert(source, tmp_path / 'model')
  assert not (tmp_path / 'model').exists()


def test_a_config_beside_a_clip_decides(tmp_path):
  source, _ = clip_program(tmp_path)
  (tmp_path / 'config.json').write_text('{"activation": "gelu"}')
  fields = {'architecture': str(tmp_path / 'config.json')}
  convert(source, tmp_path / 'model', self_check=False, **fields)
  config = models.load_features(tmp_path / 'model').config
  assert config['network']['settings']['activation'] == 'gelu'
  assert config['source']['architecture'] == {'activation': 'gelu'}
  assert convert(source, tmp_path / 'model', **fields).endswith('nothing was left to do')
  with pytest.raises(ValueError, match='must not exist or be what this conversion made'):
    convert(source, tmp_path / 'model')
  convert(source, tmp_path / 'plain', self_check=False)
  with pytest.raises(ValueError, match='must not exist or be what this conversion made'):
    convert(source, tmp_path / 'plain', **fields)


def lpips_files(folder):
  """The two published files of LPIPS, with values that many tensors share; returns the smaller."""
  like = feature_networks.shapes(feature_networks.build('lpips_vgg', {}))
  shapes = {name: rules.LAYOUTS[rule.layout].original(like[rule.target[0]][rule.target[1]].shape)
            for name, rule in lpips.key_rules().items()}
  pool = np.random.default_rng(0).random(512 * 512 * 9, np.float32) / 1e4
  stored = {name: writing.tensor(writing.storage('0', pool), shape)
            for name, shape in shapes.items()}
  for name, lins in ('vgg16-397923af.pth', False), ('vgg.pth', True):
    (folder / name).write_bytes(writing.archive(
        {key: value for key, value in stored.items() if (key in lpips.LINS) == lins}, {'0': pool}))
  return folder / 'vgg.pth'


def test_the_two_files_of_lpips_become_one_network(tmp_path):
  source = lpips_files(tmp_path)
  report = convert(source, tmp_path / 'model', dtype='float16').splitlines()
  assert report[0].startswith(f'features in {tmp_path}/model: lpips, 31 tensors, 14,716,160 param')
  assert report[1:3] == ['  lpips_vgg with the features distance 1, stages 5',
                         '  self-check: finite distance, stages of a gray image']
  other = tmp_path / 'vgg16-397923af.pth'
  assert models.load_features(tmp_path / 'model').config['source']['beside'] == {
      other.name: hashlib.sha256(other.read_bytes()).hexdigest()}
  assert convert(source, tmp_path / 'model', dtype='float16').endswith('nothing was left to do')
  other.write_bytes(other.read_bytes() + b'.')
  with pytest.raises(ValueError, match='must not exist or be what this conversion made'):
    convert(source, tmp_path / 'model', dtype='float16')
  other.unlink()
  with pytest.raises(ValueError, match='must hold VGG16 and the lin weights, got none of VGG16'):
    convert(source, tmp_path / 'again')


def test_torchscript_from_the_command_line(tmp_path):
  source, tensors = clip_program(tmp_path)
  good = run_main(tmp_path, '--mode=convert', '--workdir=model',
                  f'--config.convert.source={source}')
  assert (good.returncode, good.stderr) == (0, '')
  assert '  clip with the features image 32, text 32\n' in good.stdout
  params = models.load_features(tmp_path / 'model').params
  np.testing.assert_array_equal(params['image']['patch_kernel'],
                                tensors['visual.conv1.weight'].transpose(2, 3, 1, 0))
  frozen = reference.GOLDEN / 'torchscript/frozen.pt'
  with pytest.raises(ValueError, match='frozen.pt: source must be a module with named tensors'):
    convert(frozen, tmp_path / 'other')


def test_the_command_line(tmp_path):
  bad = run_main(tmp_path, '--mode=convert', '--workdir=a/model',
                 f'--config.convert.source={PICKLES / "bad_wrong_shape.pkl"}')
  assert (bad.returncode, bad.stdout, list(tmp_path.iterdir())) == (2, '', [])
  line, = bad.stderr.splitlines()
  assert line.startswith(f'main.py: convert: {PICKLES}/bad_wrong_shape.pkl: tensors must be those')
  good = run_main(tmp_path, '--mode=convert', '--workdir=a/model',
                  f'--config.convert.source={PICKLES / "baseline_ve.pkl"}')
  assert (good.returncode, good.stderr) == (0, '')
  assert 'preconditioning ve, 8x8x3, no classes, sigma from 0.02 to 100' in good.stdout
  sampled = run_main(tmp_path, '--config.model.path=a/model', '--config.seeds=0-1',
                     '--config.batch_size=2', '--config.schedule.num_steps=2')
  assert sampled.returncode == 0, sampled.stderr
