"""Numbers of image sets, end to end: what they are, resumed, kept as a reference, and refused."""

import dataclasses
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import evaluating
from engine import evaluate, features, generate
from evaluation import extractors, frechet, sources, statistics
from tests.engine.sampling import get_config, get_plan

REAL = sources.digits()
INK = 1797  # Digits of one ink.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run of 64 images, real digits, and noise."""
  top = tmp_path_factory.mktemp('sets')
  generate.run(get_plan(top / 'run', seeds='0-63', batch_size=64, solver__name='euler',
                        schedule__num_steps=4))
  some = np.random.default_rng(0).permutation(REAL.count)[:664]
  np.savez(top / 'reference.npz', arr_0=REAL.take(some[64:]))
  np.savez(top / 'real.npz', arr_0=REAL.take(some[:64]))
  np.savez(top / 'noise.npz', arr_0=np.random.default_rng(0).integers(
      0, 256, (64, 8, 8, 3), dtype=np.uint8))
  return top


def get(workdir, images, **overrides):
  """Plans an evaluation; fields of config.evaluate as keywords."""
  config = get_config(batch_size=64, share=overrides.pop('share', '0/1'))
  with config.unlocked():
    config.evaluate = evaluating.get_group()
  config.evaluate.update({'images': str(images), **{
      name: str(value) if name == 'reference' else value for name, value in overrides.items()}})
  return evaluate.plan(config, str(workdir))


def measure(workdir, images, **overrides):
  """The text that is printed, and evaluate.json."""
  told = evaluate.run(get(workdir, images, **overrides))
  return told, json.loads((workdir / 'evaluate.json').read_text())


def test_a_run_is_measured_against_the_bundled_digits(folder, tmp_path):
  told, result = measure(tmp_path, folder / 'run')
  line, *others = told.splitlines()
  assert line.startswith('FD-digits ') and others[0].startswith('KD-digits ')
  for part in ('64 images of 8x8', 'seeds 0-63', 'labels random', 'uint8 nearest',
               'model digits_exact ', 'euler on time_uniform', 'reference digits '):
    assert part in line
  assert list(result['metrics']) == ['fid', 'kid'] and result['found'] == {}
  assert result['metrics']['fid']['pipeline']['network'] == 'digits_classifier'
  assert result['reference']['count'] == REAL.count
  assert 0 < result['metrics']['fid']['value'] < np.inf
  assert evaluate.run(get(tmp_path, folder / 'run')) == f'nothing to do: {told}'


def test_real_digits_are_nearer_than_samples_of_noise(folder, tmp_path):
  def distances(name):
    told, result = measure(tmp_path / name, folder / name, reference=folder / 'reference.npz',
                           metrics='fid,kid,precision_recall,density_coverage', accept='manifest')
    assert 'no recipe known' in told and 'ACCEPTED: manifest' in told
    return result['metrics']
  real, noise = distances('real.npz'), distances('noise.npz')
  assert real['fid']['value'] < noise['fid']['value'] / 5
  assert abs(real['kid']['value']) < noise['kid']['value'] / 5
  assert real['precision_recall']['precision'] > 0.5 > noise['precision_recall']['precision']
  assert real['density_coverage']['density'] > 0.5 > noise['density_coverage']['density']
  assert real['density_coverage']['k'] == 5 and real['kid']['subset_size'] == 64


def test_distance_is_that_of_the_features(folder, tmp_path):
  plan = get(tmp_path, folder / 'run', reference=folder / 'reference.npz', metrics='fid')
  evaluate.run(plan)
  own, other = (features.matrix(some, 'pool')
                for some in (plan.jobs['images'].features, plan.jobs['reference'].features))
  extractor = extractors.digits()
  x = jnp.asarray(extractor.prepare(plan.images.take(np.arange(plan.images.count))))
  np.testing.assert_allclose(jax.jit(extractor.apply)(extractor.params, x)['pool'], own, rtol=1e-4,
                             atol=1e-5)  # float32, compiled otherwise.
  written = json.loads((tmp_path / 'evaluate.json').read_text())['metrics']['fid']['value']
  np.testing.assert_allclose(written, frechet.of_features(own, other), rtol=1e-12)


def test_a_killed_run_goes_on(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(features, 'PART', 200)
  plan = get(tmp_path, folder / 'run', reference=folder / 'reference.npz', metrics='fid')
  def stopped(numbers):
    if numbers.max() > 450:
      raise KeyboardInterrupt
    return plan.reference.images.take(numbers)
  job = plan.jobs['reference']
  job = job._replace(images=job.images._replace(take=stopped))
  with pytest.raises(KeyboardInterrupt):
    evaluate.run(dataclasses.replace(plan, jobs={**plan.jobs, 'reference': job}))
  before = {path: path.stat().st_ino for path in tmp_path.rglob('*.npy')}
  assert len(before) == 2 and not (tmp_path / 'evaluate.json').exists()
  evaluate.run(plan)
  after = {path: path.stat().st_ino for path in tmp_path.rglob('*.npy')}
  assert before.items() <= after.items() and len(after) == 4


def test_more_metrics_reuse_the_features(folder, tmp_path, monkeypatch):
  given = {'reference': folder / 'reference.npz'}
  _, first = measure(tmp_path, folder / 'run', metrics='fid', **given)
  monkeypatch.setattr(features.batches, 'run', None)  # Nothing is left for it.
  _, second = measure(tmp_path, folder / 'run', metrics='fid,kid', **given)
  assert list(second['metrics']) == ['fid', 'kid']
  assert second['metrics']['fid'] == first['metrics']['fid']


def test_machines_share_the_work(folder, tmp_path, monkeypatch):
  monkeypatch.setattr(features, 'PART', 200)
  given = {'reference': folder / 'reference.npz', 'metrics': 'fid'}
  told = evaluate.run(get(tmp_path, folder / 'run', share='1/2', **given))
  assert told.startswith('share 1/2 is complete; 3 parts') and not (
      tmp_path / 'evaluate.json').exists()
  assert evaluate.run(get(tmp_path, folder / 'run', share='0/2', **given)).startswith('FD-digits')


def test_statistics_that_were_written_give_the_same_distance(folder, tmp_path):
  target = tmp_path / 'digits.npz'
  told = evaluate.run(get(tmp_path / 'a', folder / 'reference.npz', write_reference=str(target)))
  assert told.startswith('statistics of 600 images in ')
  assert statistics.read(target).num_images == 600
  _, of_file = measure(tmp_path / 'b', folder / 'run', reference=target)
  _, of_set = measure(tmp_path / 'c', folder / 'run', reference=folder / 'reference.npz')
  assert list(of_file['metrics']) == ['fid']  # A file of statistics has no images.
  np.testing.assert_allclose(of_file['metrics']['fid']['value'], of_set['metrics']['fid']['value'],
                             rtol=1e-6)  # Moments of 64 images lose digits, see frechet.


@pytest.fixture
def inception(monkeypatch):
  """Stands for Inception: small features of every layer, at any size of image."""
  weights = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32)
  dims = {'pool': 4, 'spatial': 5, 'logits_unbiased': 6}

  def build(network, pipeline, layers):
    def apply(params, x):
      rows = jnp.tanh(x.reshape(len(x), -1)[:, :40] * params)
      return {layer: rows[:, :dims[layer]] for layer in layers}
    return extractors.Extractor(
        'inception', {'network': 'inception', 'sha256': network.sha256, 'name': pipeline,
                      'layers': list(layers)},
        {layer: dims[layer] for layer in layers},
        lambda images: images.astype(np.float32) / np.float32(255), weights, apply)
  monkeypatch.setattr(evaluate.models, 'load_features', lambda name: types.SimpleNamespace(
      name='inception', sha256=name))
  monkeypatch.setattr(evaluate.extractors, 'inception', build)
  return {'network': 'c0ffee'}


def test_published_layouts_bring_their_pipeline_and_protocol(folder, tmp_path, inception):
  target = tmp_path / 'virtual.npz'
  given = {'write_reference': str(target), 'layout': 'adm', **inception}
  evaluate.run(get(tmp_path / 'a', folder / 'reference.npz', **given))
  assert len(statistics.read(target).images) == 600
  with pytest.raises(ValueError, match='must be 50,000 images, got 64; mend it, or accept it with '
                                       '--config.evaluate.accept=count$'):
    get(tmp_path / 'b', folder / 'run', reference=target, **inception)
  told, result = measure(tmp_path / 'b', folder / 'run', reference=target, count=64, **inception)
  assert list(result['metrics']) == ['fid', 'sfid', 'is', 'kid']
  assert told.startswith('FID ') and 'inception tf1 c0ffee, reference virtual.npz' in told
  assert result['metrics']['is']['parts'] == 'of 5000 in order'
  mu, sigma, *_ = statistics.read(target)
  np.savez(tmp_path / 'edm.npz', mu=mu, sigma=sigma)
  told, result = measure(tmp_path / 'd', folder / 'run', reference=tmp_path / 'edm.npz',
                         accept='count', **inception)
  assert list(result['metrics']) == ['fid', 'is'] and 'ACCEPTED: count' in told
  assert 'inception edm c0ffee' in told and result['metrics']['is']['parts'] == '10, shuffled'


def test_published_files_know_their_resolution_and_rule(folder, tmp_path, inception):
  target = write_statistics(tmp_path / 'VIRTUAL_imagenet64_labeled.npz', 4)
  with pytest.raises(ValueError, match='must be 64x64 as the reference, got 8x8.*'
                                       "'truncate' of the reference, got 'nearest'; mend it, or "
                                       'accept it with .*=count,resolution,uint8$'):
    get(tmp_path / 'b', folder / 'run', reference=target, **inception)


def test_statistics_of_ours_bring_what_they_were_made_with(folder, tmp_path, inception):
  target, given = tmp_path / 'mine.npz', {'metrics': 'fid', 'accept': 'count'}
  evaluate.run(get(tmp_path / 'a', folder / 'run', write_reference=str(target), pipeline='clean',
                   **inception))
  told = statistics.read(target).recipe
  assert told['pipeline'] == {'network': 'inception', 'sha256': 'c0ffee', 'name': 'clean'}
  assert (told['shape'], told['count'], told['uint8']) == ([8, 8, 3], 64, 'nearest')
  plan = get(tmp_path / 'b', folder / 'run', reference=target, **given, **inception)
  assert plan.jobs['images'].extractor.pipeline['name'] == 'clean'
  write_pictures(tmp_path / 'large', [9, 9])
  for images, fields, message in (
      ('run', {'pipeline': 'edm'}, "must be 'clean' as that of the statistics in mine.npz, got 'e"),
      ('run', {'network': 'decade'}, 'network of SHA-256 decade, got c0ffee in mine.npz; give'),
      ('../large', {}, 'must be 8x8 as the reference, got 9x9')):
    images = tmp_path / 'large' if images == '../large' else folder / images
    with pytest.raises(ValueError, match=message) as caught:
      get(tmp_path / 'c', images, reference=target, **{**given, **inception, **fields})
    assert '\n' not in str(caught.value)


def test_digits_are_measured_by_the_network_of_their_statistics(folder, tmp_path):
  target = write_statistics(tmp_path / 'other.npz', 64)
  with np.load(target) as arrays:
    np.savez(target, **arrays, recipe=np.array(json.dumps(
        {'pipeline': {'network': 'digits_classifier', 'sha256': 'c0ffee'}, 'shape': [8, 8, 3]})))
  with pytest.raises(ValueError, match='must be of the network of SHA-256 .*, got c0ffee in other'):
    get(tmp_path / 'out', folder / 'run', reference=target)


@pytest.fixture
def towers(monkeypatch):
  """Stands for LPIPS and CLIP: the mean square of a pair, and colours against code points."""
  class Module:
    image_size, projection_dim, context = 8, 3, 3

    def apply(self, variables, x, method):
      return x.mean((1, 2)) + 5 if method == 'embed_images' else x.astype(jnp.float32)
  monkeypatch.setattr(evaluate.models, 'load_features', lambda name: types.SimpleNamespace(
      name=name, sha256='beef', params={}, module=Module()))
  monkeypatch.setattr(evaluate.pairs.lpips, 'SMALLEST', 8)
  monkeypatch.setattr(evaluate.pairs.lpips, 'compare', lambda params, a, b: (
      jnp.square(a - b).mean((1, 2, 3)), None))
  monkeypatch.setattr(evaluate.pairs.tokens.Tokenizer, 'load', lambda path: types.SimpleNamespace(
      encode=lambda texts, context: np.array([[len(text)] * context for text in texts])))
  monkeypatch.setattr(evaluate.clip_score, 'embed_texts', lambda clip, ids: ids + 0.0)


def test_pairs_of_images_are_compared_one_by_one(folder, tmp_path, towers, monkeypatch):
  told, result = measure(tmp_path, folder / 'run', reference=folder / 'real.npz', metrics='lpips',
                         lpips_network='lpips_vgg')
  a, b = (sources.open(folder / name).take(np.arange(64)) / 255 for name in ('run', 'real.npz'))
  np.testing.assert_allclose(result['metrics']['lpips']['value'], np.mean((a - b)**2), rtol=1e-5)
  assert told.startswith('LPIPS ') and 'lpips beef' in told
  assert result['metrics']['lpips']['pipeline']['network'] == 'lpips_vgg'
  given = {'reference': folder / 'real.npz', 'metrics': 'lpips', 'lpips_network': 'lpips_vgg'}
  assert evaluate.run(get(tmp_path, folder / 'run', **given)).startswith('nothing to do')
  monkeypatch.setattr(evaluate.models, 'load_features', lambda name: types.SimpleNamespace(
      name=name, sha256='cafe', params={}))  # Another network under the same name.
  assert 'lpips cafe' in evaluate.run(get(tmp_path, folder / 'run', **given))


def test_pairs_must_be_pairs(folder, tmp_path, towers, monkeypatch):
  given = {'metrics': 'lpips', 'lpips_network': 'lpips_vgg'}
  with pytest.raises(ValueError, match='as many images of one size, got 64 of 8x8 .* 600 of 8x8'):
    get(tmp_path, folder / 'run', reference=folder / 'reference.npz', **given)
  shutil.copytree(folder / 'run', tmp_path / 'other')
  (tmp_path / 'other' / '000063.png').rename(tmp_path / 'other' / '000064.png')
  with pytest.raises(ValueError, match='pairs must be of one seed, got seed 63 in .* seed 64 in'):
    get(tmp_path / 'out', folder / 'run', reference=tmp_path / 'other', **given)
  for name, seeds, kind in (('a', '0-3', 'npz'), ('b', '1-4', 'npz'), ('c', '0-3', 'png')):
    generate.run(get_plan(tmp_path / name, seeds=seeds, solver__name='euler', batch_size=64,
                          schedule__num_steps=4, output__format=kind))
  get(tmp_path / 'out', tmp_path / 'a', reference=tmp_path / 'c', **given)  # Of the same seeds.
  with pytest.raises(ValueError, match='of one seed, got seed 0 in .*a beside seed 1 in .*b; make'):
    get(tmp_path / 'out', tmp_path / 'a', reference=tmp_path / 'b', **given)
  with monkeypatch.context() as patch, pytest.raises(ValueError, match=(
      'lpips: images must be of at least 16 pixels on a side, got 8x8 in .*; leave lpips out')):
    patch.setattr(evaluate.pairs.lpips, 'SMALLEST', 16)
    get(tmp_path / 'out', folder / 'run', reference=folder / 'real.npz', **given)
  with pytest.raises(ValueError, match='lpips needs config.evaluate.lpips_network'):
    get(tmp_path / 'out', folder / 'run', metrics='lpips')
  with pytest.raises(ValueError, match='lpips_network: must be the model directory of lpips_vgg, '
                                       'got clip'):
    get(tmp_path / 'out', folder / 'run', reference=folder / 'real.npz', metrics='lpips',
        lpips_network='clip')


def test_images_are_scored_against_their_prompts(folder, tmp_path, towers):
  prompts = tmp_path / 'prompts.txt'
  prompts.write_text('a digit\n' * 64)
  given = {'metrics': 'clip', 'clip_network': 'clip', 'tokenizer': 'vocabulary'}
  told, result = measure(tmp_path / 'a', folder / 'run', prompts=str(prompts), **given)
  assert told.startswith('CLIP score ') and 90 < result['metrics']['clip']['value'] <= 100
  prompts.write_text('a digit\r\n' * 63 + 'a\u2028digit', newline='')  # 64 lines in any editor.
  assert evaluate.run(get(tmp_path / 'a', folder / 'run', prompts=str(prompts), **given)) != told
  again = evaluate.run(get(tmp_path / 'a', folder / 'run', prompts=str(prompts), **given))
  assert again.startswith('nothing to do')
  for content, message in (('a digit\n' * 63, '64 images, got 63 lines in'),
                           ('a digit\n' * 63 + ' \n', 'got nothing in line 64 of')):
    prompts.write_text(content)
    with pytest.raises(ValueError, match=message):
      get(tmp_path / 'b', folder / 'run', prompts=str(prompts), **given)
  with pytest.raises(ValueError, match="got 'none.txt' .No such file"):
    get(tmp_path / 'b', folder / 'run', prompts='none.txt', **given)
  with pytest.raises(ValueError, match='clip needs config.evaluate.prompts'):
    get(tmp_path / 'b', folder / 'run', **given)


def write_statistics(path, dim=7):
  np.savez(path, mu=np.zeros(dim), sigma=np.eye(dim))
  return path


def write_pictures(folder, sizes):
  from engine import images
  folder.mkdir()
  for i, size in enumerate(sizes):
    images.write_png(folder / f'{i}.png', np.zeros((size, size, 3), np.uint8))
  return folder


@pytest.mark.parametrize('fields, message', [
    ({'images': None}, 'evaluate.images: must name the images to measure, got None'),
    ({'images': 'none'}, "evaluate.images: must be a folder .*'none' .no such file"),
    ({'images': 'noise.npz'}, 'must come with the manifest.json of their run, got none; .*'
                              'accept=manifest$'),
    ({'count': 100}, 'must be 100 images, got 64; .*accept=count$'),
    ({'count': 0}, 'evaluate.count: must be an integer above 0, got 0'),
    ({'accept': 'cuont'}, "unknown config.evaluate.accept 'cuont'; did you mean count"),
    ({'metrics': 'fdi'}, "unknown config.evaluate.metrics 'fdi'; did you mean fid"),
    ({'metrics': ','}, 'evaluate.metrics: must name one or more of fid, sfid'),
    ({'metrics': 'fid,sfid'}, 'sfid is a metric of Inception; give config.evaluate.network'),
    ({'metrics': 'kid', 'reference': 'digits64.npz'}, 'kid needs the images of the reference'),
    ({'reference': 'digits7.npz'}, r'statistics must have 64 dimensions as the features of digits, '
                                   'got 7 in digits7.npz'),
    ({'reference': 'lost.npz'}, 'evaluate.reference: must be a folder .*no such file'),
    ({'images': 'large', 'metrics': None}, 'evaluate.network: must be the model directory of '
                                           'Inception for images of 9x9'),
    ({'images': 'mixed'}, 'of one size, got 9 x 9 in .*mixed/1.png and 8 x 8 in .*mixed/0.png'),
    ({'images': 'one', 'accept': 'manifest'}, 'fid must have 2 images or more, got 1'),
    ({'reference': 'large'}, 'must be 9x9 as the reference, got 8x8; .*accept=resolution$'),
    ({'reference': 'large', 'accept': 'resolution'}, 'digits: images must be 8x8 .* got 9x9'),
    ({'pipeline': 'edm'}, "evaluate.pipeline: must be left out for digits, got 'edm'"),
    ({'layout': 'emd'}, "unknown layout 'emd'; did you mean edm"),
    ({'layout': 'adm', 'write_reference': 'x.npz'}, "evaluate.layout: must be 'edm' for digits"),
    ({'write_reference': 'x.pkl'}, 'evaluate.write_reference: must be an .npz file'),
])
def test_bad_input(folder, tmp_path, monkeypatch, fields, message):
  monkeypatch.chdir(tmp_path)
  for name in ('run', 'noise.npz'):
    (tmp_path / name).symlink_to(folder / name)
  write_pictures(tmp_path / 'large', [9, 9])
  write_pictures(tmp_path / 'mixed', [8, 9])
  write_pictures(tmp_path / 'one', [8])
  for dim in (7, 64):
    write_statistics(tmp_path / f'digits{dim}.npz', dim)
  with pytest.raises(ValueError, match=message) as caught:
    get(tmp_path / 'out', **{'images': 'run', 'metrics': 'fid', **fields})
  assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


def test_a_run_that_was_not_finished_is_refused(folder, tmp_path):
  shutil.copytree(folder / 'run', tmp_path / 'run')
  (tmp_path / 'run' / 'manifest.json').unlink()
  with pytest.raises(ValueError, match='got no manifest.json in .*accept=incomplete$'):
    get(tmp_path / 'out', tmp_path / 'run')
  (tmp_path / 'run' / '000007.png').write_bytes(b'damaged')
  with pytest.raises(ValueError, match='000007.png .*delete it and make it again'):
    get(tmp_path / 'out', tmp_path / 'run')


@pytest.mark.parametrize('content', ['{"mode"', '[]', '{"mode": "evaluate"}'])
def test_a_damaged_result_is_named(folder, tmp_path, content):
  plan = get(tmp_path, folder / 'run')
  (tmp_path / 'evaluate.json').write_text(content)
  with pytest.raises(OSError, match='evaluate.json must be what a run wrote, .*; delete') as caught:
    evaluate.run(plan)
  assert '\n' not in str(caught.value)


def test_files_of_other_machines_stay(folder, tmp_path):
  given = {'reference': folder / 'reference.npz', 'metrics': 'fid'}
  plan = get(tmp_path, folder / 'run', share='0/2', **given)
  (tmp_path / '.evaluate.json.x.partial').write_bytes(b'being written')
  evaluate.run(plan)
  assert (tmp_path / '.evaluate.json.x.partial').exists()
  evaluate.run(get(tmp_path, folder / 'run', **given))
  assert not (tmp_path / '.evaluate.json.x.partial').exists()


def test_another_set_in_the_same_workdir_is_refused(folder, tmp_path):
  measure(tmp_path, folder / 'run', reference=folder / 'reference.npz')
  with pytest.raises(ValueError, match='workdir: must be empty or hold a run of the same config'):
    get(tmp_path, folder / 'real.npz', reference=folder / 'reference.npz', accept='manifest')


def test_features_that_are_not_finite_are_named(folder, tmp_path, inception):
  plan = get(tmp_path, folder / 'run', accept='count', metrics='is', **inception)
  job = plan.jobs['images']
  dims = job.extractor.dims
  job = job._replace(extractor=job.extractor._replace(
      apply=lambda params, x: {layer: jnp.full((len(x), dim), jnp.nan)
                               for layer, dim in dims.items()}))
  with pytest.raises(FloatingPointError, match='must be finite, got .* for image 000000.png'):
    evaluate.run(dataclasses.replace(plan, jobs={'images': job}))
