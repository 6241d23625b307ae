"""What a workdir holds, how a run goes on in it, and when it is refused."""

import dataclasses
import json

import numpy as np
import pytest

from engine import files, generate, identity, images, results
from tests.engine.sampling import get_plan

FORMATS = [{'output__format': 'png'}, {'output__format': 'png', 'output__subfolders': True},
           {'output__format': 'npz'}, {'output__format': 'npz', 'output__subfolders': True}]
SEEDS = '998-1003,5'


def content(folder):
  """Bytes of all files under a folder, times in the manifest left out."""
  found = {str(path.relative_to(folder)): path.read_bytes()
           for path in folder.rglob('*') if path.is_file()}
  if 'manifest.json' in found:
    manifest = json.loads(found['manifest.json'])
    del manifest['seconds'], manifest['images_per_second']
    found['manifest.json'] = manifest
  return found


def stamps(folder):
  """What changes if a file is written again."""
  return {path: (path.stat().st_mtime_ns, path.stat().st_ino)
          for path in folder.rglob('*') if path.is_file()}


def interrupted(plan, monkeypatch, function, after):
  """Runs a plan that is stopped at a call of a function of images or results."""
  module = images if hasattr(images, function) else results
  original, calls = getattr(module, function), []
  def stop(*arguments):
    calls.append(arguments)
    if len(calls) > after:
      raise KeyboardInterrupt
    return original(*arguments)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(module, function, stop)
    generate.run(plan)


@pytest.mark.parametrize('layout', FORMATS)
def test_the_layout_is_the_one_asked_for(tmp_path, layout):
  plan = get_plan(tmp_path, seeds=SEEDS, labels='0-9', **layout)
  generate.run(plan)
  pngs = ['000998.png', '000999.png', '001000.png', '001001.png', '001002.png', '001003.png',
          '000005.png']
  if layout.get('output__subfolders'):
    pngs = [f'{name[:3]}000/{name}' for name in pngs]
  expected = ['samples.npz'] if layout['output__format'] == 'npz' else pngs
  found = content(tmp_path)
  assert sorted(found) == sorted([*expected, 'grid.png', 'manifest.json', 'run.json'])
  assert found['manifest.json']['files'] == expected
  assert not (tmp_path / 'samples.npz.parts').exists()


def test_npz_holds_what_the_png_files_hold_in_the_order_of_seeds(tmp_path):
  plan = get_plan(tmp_path / 'png', seeds=SEEDS, labels='0-9')
  generate.run(plan)
  generate.run(get_plan(tmp_path / 'npz', seeds=SEEDS, labels='0-9', output__format='npz'))
  with np.load(tmp_path / 'npz' / 'samples.npz') as arrays:
    assert sorted(arrays) == ['arr_0', 'arr_1']
    samples, labels = arrays['arr_0'], arrays['arr_1']
  assert samples.dtype == np.uint8 and samples.shape == (7, 8, 8, 3)
  assert labels.tolist() == [8, 9, 0, 1, 2, 3, 5] and labels.dtype == np.int64
  for seed, sample in zip(plan.results.seeds.tolist(), samples, strict=True):
    np.testing.assert_array_equal(sample, images.read_png(results.path(plan.results, seed)))


@pytest.mark.parametrize('layout', FORMATS)
@pytest.mark.parametrize('function, after', [
    ('to_uint8', 0), ('to_uint8', 1), ('write_png', 3), ('grid', 0), ('pack', 0), ('complete', 0)])
def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch, layout, function, after):
  fields = {'seeds': SEEDS, **layout}  # In two batches.
  generate.run(get_plan(tmp_path / 'whole', **fields))
  interrupted(get_plan(tmp_path / 'parts', **fields), monkeypatch, function, after)
  there = stamps(tmp_path / 'parts')
  assert not (tmp_path / 'parts' / 'manifest.json').exists()
  (tmp_path / 'parts' / '.grid.png.partial').write_bytes(b'left by a kill')
  generate.run(get_plan(tmp_path / 'parts', **fields))
  assert content(tmp_path / 'parts') == content(tmp_path / 'whole')
  for path, stamp in stamps(tmp_path / 'parts').items():  # Nothing that was whole is made again.
    if path.name not in ('grid.png', 'samples.npz'):
      assert there.get(path, stamp) == stamp


@pytest.mark.parametrize('layout', FORMATS)
def test_a_complete_run_returns_at_once_and_touches_nothing(tmp_path, monkeypatch, layout):
  plan = get_plan(tmp_path, seeds=SEEDS, **layout)
  generate.run(plan)
  before = stamps(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(generate.sampler, 'program', None)  # Not even compiled.
    assert generate.run(plan).startswith('nothing to do: 7 images in ')
    # The batch size does not decide what an image is.
    again = generate.run(get_plan(tmp_path, seeds=SEEDS, batch_size=5, **layout))
    assert again.startswith('nothing to do')
  assert stamps(tmp_path) == before


def test_parts_that_a_kill_left_behind_a_complete_npz_go(tmp_path):
  generate.run(get_plan(tmp_path, output__format='npz'))
  (tmp_path / 'samples.npz.parts').mkdir()
  (tmp_path / 'samples.npz.parts' / '000000.png').touch()
  assert generate.run(get_plan(tmp_path, output__format='npz')).startswith('nothing to do')
  assert not (tmp_path / 'samples.npz.parts').exists()


@pytest.mark.parametrize('layout', FORMATS)
def test_a_list_of_seeds_may_grow_and_only_new_images_are_made(tmp_path, monkeypatch, layout):
  generate.run(get_plan(tmp_path / 'grown', seeds='0-4', **layout))
  there = stamps(tmp_path / 'grown')
  made, to_uint8 = [], images.to_uint8
  monkeypatch.setattr(images, 'to_uint8', lambda samples, rule: (
      made.append(len(samples)) or to_uint8(samples, rule)))
  generate.run(get_plan(tmp_path / 'grown', seeds='9,0-6', **layout))
  assert sum(made) == 3
  generate.run(get_plan(tmp_path / 'whole', seeds='9,0-6', **layout))
  assert content(tmp_path / 'grown') == content(tmp_path / 'whole')
  for path, stamp in stamps(tmp_path / 'grown').items():
    if path.stem.isdigit():
      assert there.get(path, stamp) == stamp


def test_an_npz_that_was_stopped_while_it_grew_goes_on(tmp_path, monkeypatch):
  fields = {'output__format': 'npz'}
  generate.run(get_plan(tmp_path / 'whole', seeds='0-8', **fields))
  generate.run(get_plan(tmp_path / 'grown', seeds='0-4', **fields))
  for after in (2, 6, 1):  # While it is taken apart, and twice while new images are added.
    plan = get_plan(tmp_path / 'grown', seeds='0-8', **fields)
    interrupted(plan, monkeypatch, 'write_png', after)
  generate.run(get_plan(tmp_path / 'grown', seeds='0-8', **fields))
  assert content(tmp_path / 'grown') == content(tmp_path / 'whole')


@pytest.mark.parametrize('output', ['png', 'npz'])
def test_a_list_of_seeds_may_not_shrink(tmp_path, output):
  generate.run(get_plan(tmp_path, seeds='0-4', output__format=output))
  with pytest.raises(ValueError, match='^workdir: must hold no images of other seeds, got seed 3 '
                                       'in .*; add it to config.seeds or choose'):
    get_plan(tmp_path, seeds='0-2', output__format=output)


def test_an_image_that_was_deleted_is_made_again(tmp_path):
  plan = get_plan(tmp_path)
  generate.run(plan)
  before = content(tmp_path)
  (tmp_path / '000002.png').unlink()
  assert ', 4 of them were there: ' in generate.run(plan)
  assert content(tmp_path) == before


def test_another_grid_is_made_of_the_same_images(tmp_path, monkeypatch):
  generate.run(get_plan(tmp_path))
  before = images.read_png(tmp_path / 'grid.png').shape
  monkeypatch.setattr(generate.sampler, 'program', None)
  generate.run(get_plan(tmp_path, output__grid__columns=2))
  assert images.read_png(tmp_path / 'grid.png').shape[1] < before[1]
  assert json.loads((tmp_path / 'manifest.json').read_text())['images_per_second'] is None


@pytest.mark.parametrize('overrides, difference', [
    ({'solver__name': 'heun'}, r"config.solver.name 'unipc' \(now 'heun'\); choose another"),
    ({'solver__max_order': 2}, r'config.solver.max_order 3 \(now 2\); '),
    ({'schedule__num_steps': 9}, r'config.schedule.num_steps 8 \(now 9\); '),
    ({'limit': 'clip'}, r"config.limit 'none' \(now 'clip'\); "),
    ({'labels': '3'}, r"config.labels 'random' \(now '3'\); "),
    ({'seeds_from': 'torch_cpu'}, r"config.seeds_from 'jax' \(now 'torch_cpu'\); "),
    ({'output__format': 'npz'}, r"config.output.format 'png' \(now 'npz'\); "),
    ({'output__subfolders': True}, r'config.output.subfolders False \(now True\); '),
    ({'output__uint8_rule': 'truncate'},
     r"config.output.uint8_rule 'nearest' \(now 'truncate'\); "),
    ({'limit': 'clip', 'labels': '3', 'schedule__num_steps': 9, 'seeds_from': 'torch_cpu'},
     r"config.labels .*, config.limit .*, config.schedule.num_steps .* and 1 more; choose"),
])
def test_another_config_is_refused_and_the_difference_named(tmp_path, overrides, difference):
  generate.run(get_plan(tmp_path))
  before = stamps(tmp_path)
  with pytest.raises(ValueError, match='^workdir: must be empty or hold a run of the same config, '
                                       f'got .* with {difference}') as caught:
    get_plan(tmp_path, **overrides)
  assert '\n' not in str(caught.value)
  assert stamps(tmp_path) == before


def test_another_model_is_refused_and_the_same_one_from_another_place_is_not(tmp_path):
  plan = get_plan(tmp_path)
  generate.run(plan)
  other = {**plan.results.identity, 'model': {**plan.results.identity['model'], 'sha256': 'b' * 64}}
  with pytest.raises(ValueError, match=r"model.sha256 'b2dab7.*\.\.\. \(now 'bbbb.*\.\.\.\)"):
    results.check(dataclasses.replace(plan.results, identity=other))
  moved = {**plan.results.identity, 'model': {**plan.results.identity['model'], 'name': 'moved'}}
  results.check(dataclasses.replace(plan.results, identity=moved))


@pytest.mark.parametrize('name', ['manifest.json', 'grid.png', '000000.png', '123456.png'])
def test_results_of_nobody_knows_what_are_refused(tmp_path, name):
  (tmp_path / name).write_text('{}')
  with pytest.raises(ValueError, match=f'hold a run of the same config, got .*{name} without run'):
    get_plan(tmp_path)


def test_files_of_others_do_not_matter(tmp_path):
  for name in ('notes.txt', 'cat.png', '12.png'):
    (tmp_path / name).write_text('mine')
  (tmp_path / 'samples.npz.parts').mkdir()
  generate.run(get_plan(tmp_path))
  assert (tmp_path / 'cat.png').read_text() == 'mine'
  assert (tmp_path / 'samples.npz.parts').exists()  # No matter of a run that writes PNG files.


@pytest.mark.parametrize('text', ['', '[1]', '{"half'])
def test_a_damaged_identity_is_explained(tmp_path, text):
  (tmp_path / identity.NAME).write_text(text)
  with pytest.raises(ValueError, match='^workdir: .*run.json must be what a run wrote, got'):
    get_plan(tmp_path)


@pytest.mark.parametrize('text', ['', '[1]', '{"half', '{"seeds": [0, 1]}'])
def test_a_damaged_manifest_is_explained(tmp_path, text):
  generate.run(get_plan(tmp_path))
  (tmp_path / 'manifest.json').write_text(text)
  plan = get_plan(tmp_path)
  with pytest.raises(OSError, match='manifest.json must be what a run wrote, .*; delete it and'):
    generate.run(plan)


def test_a_full_disk_is_one_sentence_and_finished_images_stay(tmp_path, monkeypatch):
  plan = get_plan(tmp_path, seeds='0-15')
  original, calls = files.replacing, []
  def full(path):
    calls.append(path)
    if len(calls) > 6:
      raise OSError(28, f'files: {path} must be writable, got No space left on device')
    return original(path)
  with monkeypatch.context() as patch, pytest.raises(OSError, match='No space left on device'):
    patch.setattr(files, 'replacing', full)
    generate.run(plan)
  found = content(tmp_path)
  assert 'run.json' in found and 'manifest.json' not in found
  assert 0 < len(found) - 1 <= 5 and not list(tmp_path.glob('.*'))
  generate.run(plan)
  assert len(content(tmp_path)) == 16 + 3
