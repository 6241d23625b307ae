"""The recipe refuses numbers that could not be compared, by name, and lets them be asked for."""

import json

import numpy as np
import pytest

from evaluation import recipe, sources
from tests.evaluation.test_sources import write_folder

NEAREST = 'clip(x * 127.5 + 128, 0, 255), truncated'
PROTOCOL = recipe.Protocol(count=4, resolution=(4, 6), labels='random', uint8='nearest')


def write_run(folder, seeds, labels='random', name='{:06d}.png', ended=True, **fields):
  """A workdir as a run leaves it, with images of these seeds."""
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (len(seeds), 4, 6, 3), dtype=np.uint8)
  files = [name.format(seed) for seed in seeds]
  for file, image in zip(files, images, strict=True):
    write_folder(folder, [image], file)
  model = {'name': 'm', 'sha256': 'ab' * 32, 'num_classes': 10}
  schedule, solver = {'name': 'polynomial', 'rho': 7}, fields.pop('solver', {'name': 'heun'})
  settings = {'labels': labels, 'limit': fields.pop('limit', 'none'),
              'seeds_from': fields.pop('seeds_from', 'jax')}
  config = {**settings, 'seeds': '0-3'}
  run = {'mode': 'generate', 'model': model,
         'config': {'schedule': schedule, 'solver': solver, **settings,
                    'output': {'uint8_rule': 'nearest'}}}
  manifest = {'mode': 'generate', 'config': config, 'model': model, 'schedule': schedule,
              'solver': solver, 'nfe': 7, 'uint8_rule': NEAREST,
              'labels': [None if labels == 'none' else 1] * len(seeds), 'seeds': list(seeds),
              'files': files, **fields}
  (folder / 'run.json').write_text(json.dumps(run | fields))
  if ended:
    (folder / 'manifest.json').write_text(json.dumps(manifest))
  return folder


def find(folder, protocol=PROTOCOL):
  return recipe.findings(recipe.read(sources.open(folder)), protocol)


def test_a_run_by_the_protocol_has_no_findings(tmp_path):
  folder = write_run(tmp_path / 'run', [3, 4, 5, 6])
  assert find(folder) == {}
  told = recipe.read(sources.open(folder))
  assert recipe.describe(told, {}) == ('4 images of 4x6, seeds 3-6, labels random, uint8 nearest, '
                                       'model m abababababab, heun on polynomial NFE 7')


def test_a_limit_is_told(tmp_path):
  folder = write_run(tmp_path / 'run', [3, 4, 5, 6], limit='clip')
  assert find(folder) == {}
  assert recipe.describe(recipe.read(sources.open(folder)), {}).endswith('NFE 7, limit clip')


def test_runs_of_one_config_may_be_merged_in_folders_of_their_own(tmp_path):
  write_run(tmp_path / 'a', [0, 1])
  write_run(tmp_path / 'b', [2, 3], name='000000/{:06d}.png')
  (tmp_path / 'a' / 'grid.png').write_bytes(b'no image of the set')
  assert find(tmp_path) == {}
  assert recipe.read(sources.open(tmp_path)).seeds == (0, 1, 2, 3)


def other_model(folder):
  write_run(folder / 'a', [0, 1])
  write_run(folder / 'b', [2, 3], model={'name': 'm', 'sha256': 'cd' * 32, 'num_classes': 10})


def other_solver(folder):
  write_run(folder / 'a', [0, 1])
  write_run(folder / 'b', [2, 3], solver={'name': 'euler'})


def other_limit(folder):
  write_run(folder / 'a', [0, 1], limit='clip')
  write_run(folder / 'b', [2, 3])


def other_source(folder):
  write_run(folder / 'a', [0, 1])
  write_run(folder / 'b', [2, 3], seeds_from='torch')


def other_labels(folder):
  write_run(folder / 'a', [0, 1])
  write_run(folder / 'b', [2, 3], labels='3')


def unlisted(folder):
  write_run(folder, [0, 1, 2])
  write_folder(folder, np.zeros((1, 4, 6, 3), np.uint8), '000003.png')


def lost(folder):
  write_run(folder, [0, 1, 2, 3, 4])
  (folder / '000002.png').unlink()


def exchanged_manifest(folder):
  write_run(folder, [0, 1, 2, 3])
  told = json.loads((folder / 'manifest.json').read_text())
  (folder / 'manifest.json').write_text(json.dumps(told | {'solver': {'name': 'euler'}}))


def exchanged_limit(folder):
  write_run(folder, [0, 1, 2, 3])
  told = json.loads((folder / 'manifest.json').read_text())
  told['config']['limit'] = 'clip'
  (folder / 'manifest.json').write_text(json.dumps(told))


def same_seeds(folder):
  write_run(folder / 'a', [0, 1])
  write_run(folder / 'b', [1, 2])


def no_manifest(folder):
  write_folder(folder, np.zeros((4, 4, 6, 3), np.uint8))


@pytest.mark.parametrize('make, name, message', [
    (lambda folder: write_run(folder, range(3)), 'count', 'must be 4 images, got 3'),
    (lambda folder: write_run(folder, [0, 1, 2, 4]), 'seeds', 'got 4 after 2'),
    (same_seeds, 'seeds', 'got seed 1 twice or more'),
    (lambda folder: write_run(folder, range(4), labels='balanced'), 'labels',
     "by the rule 'random', got 'balanced'"),
    (lambda folder: write_run(folder, range(4), labels='3'), 'labels', "got '3'"),
    (lambda folder: write_run(folder, range(4), labels='none'), 'labels',
     "got 'none of a model with classes'"),
    (lambda folder: write_run(folder, range(4), uint8_rule='clip((x + 1) * 127.5, 0, 255), '
                              'truncated'), 'uint8', "got 'truncate'"),
    (no_manifest, 'manifest', 'must come with the manifest.json of their run, got none'),
    (other_model, 'mixed', 'runs of another model in .*a and .*b'),
    (other_solver, 'mixed', 'runs of another solver in .*a and .*b'),
    (other_limit, 'mixed', 'runs of another limit in .*a and .*b'),
    (other_source, 'mixed', 'runs of another seeds_from in .*a and .*b'),
    (exchanged_limit, 'mixed', 'got another limit in run.json than in manifest.json'),
    (other_labels, 'mixed', 'runs of other labels in .*a and .*b'),
    (unlisted, 'mixed', r'got 000003.png, which manifest.json does not list \(1 such\)'),
    (lost, 'mixed', r'got no 000002.png, which manifest.json lists \(1 such\)'),
    (exchanged_manifest, 'mixed', 'got another solver in run.json than in manifest.json'),
    (lambda folder: write_run(folder, range(4), ended=False), 'incomplete',
     'a run that has ended, got no manifest.json in'),
])
def test_every_departure_is_found_and_can_be_accepted(tmp_path, make, name, message):
  make(tmp_path / 'run')
  found = find(tmp_path / 'run')
  assert list(found) == [name]
  with pytest.raises(ValueError, match=message) as caught:
    recipe.check(found, [])
  assert str(caught.value).endswith(f'--config.evaluate.accept={name}')
  recipe.check(found, [name])
  told = recipe.read(sources.open(tmp_path / 'run'))
  assert recipe.describe(told, found).endswith(f'ACCEPTED: {name}')


def test_resolution_is_that_of_the_reference(tmp_path):
  folder = write_run(tmp_path / 'run', range(4))
  found = find(folder, PROTOCOL._replace(resolution=(8, 8)))
  assert found == {'resolution': 'must be 8x8 as the reference, got 4x6'}


def test_all_departures_come_in_one_line(tmp_path):
  folder = write_run(tmp_path / 'run', [0, 2], labels='balanced')
  with pytest.raises(ValueError, match='accept=count,labels,seeds$'):
    recipe.check(find(folder), [])
  with pytest.raises(ValueError, match='2 after 0; mend it, .*accept=count,labels,seeds$'):
    recipe.check(find(folder), ['count', 'labels'])  # What is accepted stays so.


def test_models_without_classes_need_no_rule(tmp_path):
  model = {'name': 'm', 'sha256': 'ab' * 32, 'num_classes': 0}
  folder = write_run(tmp_path / 'run', range(4), labels='random', model=model)
  told = json.loads((folder / 'manifest.json').read_text())
  (folder / 'manifest.json').write_text(json.dumps(told | {'labels': [None] * 4}))
  assert recipe.read(sources.open(folder)).labels == 'none' and find(folder) == {}


def test_arrays_of_a_run_have_its_manifest(tmp_path):
  folder = write_run(tmp_path / 'run', range(4))
  for file in folder.glob('*.png'):
    file.unlink()
  np.savez(folder / 'samples.npz', arr_0=np.zeros((4, 4, 6, 3), np.uint8))
  told = json.loads((folder / 'manifest.json').read_text())
  (folder / 'manifest.json').write_text(json.dumps(told | {'files': ['samples.npz']}))
  assert find(folder) == {} and find(folder / 'samples.npz') == {}
  np.savez(folder / 'samples.npz', arr_0=np.zeros((3, 4, 6, 3), np.uint8))
  assert list(find(folder)) == ['count', 'mixed']
  np.savez(folder / 'other.npz', arr_0=np.zeros((4, 4, 6, 3), np.uint8))  # Nobody lists it.
  assert list(find(folder / 'other.npz')) == ['manifest']


@pytest.mark.parametrize('name, count, side, rule', [
    ('cifar10-32x32.npz', 50_000, 32, 'nearest'),
    ('VIRTUAL_imagenet256_labeled.npz', 50_000, 256, 'truncate'),
    ('ms_coco-512x512.npz', 30_000, 512, 'nearest')])
def test_published_statistics_bring_their_protocol(name, count, side, rule):
  assert recipe.protocol(name, None, True) == recipe.Protocol(count, (side, side), 'random', rule)


def test_other_references_expect_what_they_are():
  assert recipe.protocol('my.npz', None, True) == recipe.Protocol(50_000, None, 'random', None)
  assert recipe.protocol('my.npz', [32, 16, 3], True, 'truncate') == recipe.Protocol(
      50_000, (32, 16), 'random', 'truncate')
  assert recipe.protocol('digits', (8, 8, 3), False) == recipe.Protocol(None, (8, 8), 'random',
                                                                        None)


def test_bad_input(tmp_path):
  with pytest.raises(ValueError, match='unknown config.evaluate.accept .* did you mean count'):
    recipe.check({}, ['cout'])
  folder = write_run(tmp_path / 'run', range(4))
  (folder / 'manifest.json').write_text('{')
  with pytest.raises(ValueError, match='manifest.json must be what a run wrote'):
    find(folder)
