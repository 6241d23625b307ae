"""Trajectory analysis end to end: what is written, resumed and refused."""

import dataclasses
import functools
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from engine import analyze, analyze_plots, inputs
from models import digits
from tests.engine.sampling import get_config, interrupted

PNG = {f'{name}.png' for name in analyze_plots.PLOTS} | {analyze_plots.OVERVIEW}


def get_plan(workdir, **overrides):
  fields = {'seeds': '0-4', 'batch_size': 3, 'schedule__num_steps': 3, 'analyze__num_points': 9,
            'analyze__window': 5, 'analyze__substeps': 12, 'model__name': 'digits_exact',
            **overrides}
  return analyze.plan(get_config(**fields), str(workdir))


def read(folder):
  return json.loads((folder / 'analysis.json').read_text())


@pytest.fixture(scope='module', name='whole')
def _whole(tmp_path_factory):
  """A finished run of the exact model."""
  folder = tmp_path_factory.mktemp('whole')
  plan = get_plan(folder, analyze__save_trajectories=True)
  return plan, analyze.run(plan)


def test_numbers_plots_and_trajectories_are_written(whole):
  plan, told = whole
  written = read(plan.folder)
  assert {path.name for path in plan.folder.iterdir()} == PNG | {
      'analysis.json', 'run.json', 'trajectories.npz'}
  assert set(written['files']) == PNG | {'trajectories.npz'}
  for name in PNG:
    with Image.open(plan.folder / name) as picture:
      assert min(picture.size) > 300
      assert np.asarray(picture.convert('L')).std() > 10  # Something is drawn.
  assert written['model']['sha256'] == plan.model.sha256
  assert written['solver']['name'] == 'dpmpp' and written['nfe'] == 3
  assert written['analyze']['data']['images'] == 'digits'
  assert written['seeds'] == [0, 1, 2, 3, 4] and len(written['kept_seeds']) == 4
  curves = written['over_images']
  assert len(curves['mag_x']['mean']) == len(written['sigmas']) == 9
  assert len(curves['error_steps_local']['mean']) == 3
  assert 'chord' in told and str(plan.folder) in told
  with np.load(plan.folder / 'trajectories.npz') as arrays:
    x, denoised = arrays['x'], arrays['denoised']
  assert x.shape == (9, 5, 8, 8, 3) and denoised.shape == (8, 5, 8, 8, 3)
  np.testing.assert_allclose(np.linalg.norm(x.reshape(9, 5, -1), axis=-1).mean(1),
                             curves['mag_x']['mean'], rtol=1e-5)


def test_the_facts_of_the_papers_hold_for_the_exact_model(whole):
  curves = read(whole[0].folder)['over_images']
  assert np.all(np.diff(curves['mag_x']['mean'][:5]) < 0)  # The state shrinks.
  assert curves['mag_denoised']['mean'][-1] > curves['mag_denoised']['mean'][0]
  assert min(curves['cos']['mean']) > 0.9
  assert max(curves['dev_x']['high']) < 0.02 * curves['dist_x']['mean'][0]
  assert curves['explained']['mean'][1] > 0.95


def test_first_step_of_a_multistep_solver_is_eulers(whole):
  curves = read(whole[0].folder)['over_images']
  for kind in ('', '_local'):  # No history yet, and both start from the exact state.
    np.testing.assert_allclose(curves[f'error_steps{kind}']['mean'][0],
                               curves['error_steps_euler_local']['mean'][0], rtol=1e-3)
  # What is measured stands out of what it is measured with.
  assert max(curves['error_half']['mean']) < 0.1 * max(curves['error_steps_local']['mean'])


def test_a_killed_run_goes_on_and_gives_the_same(whole, tmp_path, monkeypatch):
  monkeypatch.setattr(analyze.analyze_plots, 'write', lambda folder, look: [])  # Seen above.
  plan = dataclasses.replace(whole[0], folder=tmp_path)  # Its programs are compiled already.
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(analyze.batches, 'run', interrupted(analyze.batches.run))
    analyze.run(plan)
  assert len(list((tmp_path / 'parts').glob('*.npz'))) == 1
  assert not (tmp_path / 'analysis.json').exists()
  analyze.run(plan)
  want, got = read(whole[0].folder)['over_images'], read(tmp_path)['over_images']
  # Batches are of other images: sums of float32 run in another order.
  np.testing.assert_allclose(got['mag_x']['mean'], want['mag_x']['mean'], rtol=1e-5)
  np.testing.assert_allclose(got['optimal_on_x']['mean'], want['optimal_on_x']['mean'], rtol=1e-3)
  assert not (tmp_path / 'parts').exists()
  monkeypatch.setattr(analyze.batches, 'run', None)
  assert 'nothing to do' in analyze.run(plan)


def test_damaged_files_are_named(tmp_path):
  plan = get_plan(tmp_path, analyze__data=None)
  (tmp_path / 'parts').mkdir()
  part = tmp_path / 'parts' / '000000.npz'
  np.savez(part, seeds=np.arange(5, dtype=np.uint32), x=np.zeros((5, 100)))
  whole = part.read_bytes()
  for content in (b'', whole[:30], whole[:-30], b'no zip'):
    part.write_bytes(content)
    with pytest.raises(OSError, match='analyze: .*000000.npz must be what a run wrote, .*; delete'):
      analyze.run(plan)
  part.write_bytes(whole.replace(bytes(400), bytes(399) + b'!', 1))  # Its start is as it was.
  with pytest.raises(OSError, match='analyze: .*000000.npz must be what a run wrote, .*; delete'):
    analyze.run(plan)
  (tmp_path / 'analysis.json').write_text('{"mode": "anal')
  with pytest.raises(OSError, match='analysis.json must be what a run wrote, .*; delete it and'):
    analyze.run(plan)


def test_another_config_is_refused(whole):
  for fields, message in (({'solver__name': 'heun'}, "solver.name 'dpmpp' .now 'heun'"),
                          ({'analyze__num_points': 11}, 'analyze.num_points 9 .now 11'),
                          ({'analyze__data': None}, 'analyze.data')):
    with pytest.raises(ValueError, match=message):
      get_plan(whole[0].folder, **{'analyze__save_trajectories': True, **fields})


def test_without_data_and_with_a_grid_that_ends_in_zero(tmp_path):
  plan = get_plan(tmp_path, analyze__data=None, schedule__name='edm', solver__name='euler')
  analyze.run(plan)
  written = read(tmp_path)
  assert written['sigmas'][-1] == 0 and written['step_sigmas'][-1] > 0
  assert len(written['over_images']['error_steps_local']['mean']) == 2
  assert 'optimal_on_x' not in written['over_images'] and 'optimal.png' not in written['files']


def test_a_solver_that_divides_the_range_by_itself_is_measured_where_its_steps_end(tmp_path):
  grids = get_plan(tmp_path, solver__name='dpm_fast', analyze__num_points=30).grids
  steps = grids.tables['steps']
  ends = steps.level[~np.isnan(steps.level)]
  assert len(ends) == 2 and len(grids.points) == 11
  np.testing.assert_array_equal(grids.sigmas[1:], ends)


def save(path, *, count=6, shape=(8, 8, 3), labels=None):
  arrays = {'arr_0': np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)}
  np.savez(path, **arrays, **({} if labels is None else {'arr_1': np.array(labels)}))
  return str(path)


@pytest.mark.parametrize('fields, message', [
    ({'analyze__num_points': 2}, r'num_points: must be an integer from 3 to 10001, got 2'),
    ({'analyze__window': 6}, 'window: must be an odd integer from 5 to .* 9, got 6'),
    ({'analyze__window': 11}, 'window: must be an odd integer from 5 to .* 9, got 11'),
    ({'analyze__substeps': 5}, 'substeps: must be even, .* got 5'),
    ({'seeds': '0-1'}, r'seeds: must be 3 or more .*, got 2'),
    ({'solver__name': 'ddpm'}, 'solver: must be a table that draws no noise, .* got ddpm'),
    ({'solver__name': 'dpm_adaptive'}, 'solver: must be a table .* got dpm_adaptive'),
    ({'solver__denoise_to_zero': True}, 'denoise_to_zero: must be left out'),
    ({'schedule__name': 'edm', 'schedule__num_steps': 1}, 'two or more levels above 0'),
    ({'schedule__name': 'explicit', 'schedule__sigmas': '80,5,1,0.1'},
     'num_points: must be the number of different levels .*, 4, got 9'),
    ({'input__images': 'gaussian_digits'}, 'input.images: must be left out with --mode=analyze'),
    ({'guidance__method': 'classifier_free'}, 'guidance.method: must be left out'),
    ({'analyze__data': 'digts'}, "data: must be there, got 'digts'"),
    ({'analyze__data': 'gaussian_digits'}, "data: must be a set of images, got 'gaussian_digits'"),
])
def test_bad_input(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message) as caught:
    get_plan(tmp_path / 'out', **fields)
  assert '\n' not in str(caught.value) and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('contents, message', [
    ({'shape': (4, 4, 3)}, r'images must be of the shape of the model, \(8, 8, 3\)'),
    ({}, 'images must have classes .*, got none'),
    ({'labels': [0, 0, 0, 5, 5, 5]}, 'every class that is sampled, got none of class 3'),
])
def test_data_that_does_not_fit(tmp_path, contents, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', analyze__data=save(tmp_path / 'data.npz', **contents), labels='3')
  assert not (tmp_path / 'out').exists()


def test_classes_of_data_are_numbered_as_they_occur(tmp_path):
  file = save(tmp_path / 'data.npz', labels=[7, 7, 7, 3, 3, 3])
  data = get_plan(tmp_path / 'out', analyze__data=file, labels='3,7').data
  np.testing.assert_array_equal(data.labels, [1, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(data.sample_labels, [0, 1, 0, 1, 0])


def test_auto_takes_the_digits_that_the_model_was_trained_on(tmp_path):
  find = functools.partial(get_plan, analyze__data='auto')
  # Seven eighths of the digits in six inks.
  assert len(find(tmp_path / 'a', model__name='digits').data.images) == 9438
  assert len(find(tmp_path / 'b').data.images) == len(digits.images()[0])
  assert pathlib.Path(tmp_path / 'a').exists()
  assert 'gaussian_digits' in inputs.GENERATORS  # Refused above: it has no last image.
