"""--mode=compare on the bundled model: numbers, resuming, growing, and what it refuses."""

import csv
import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest
from PIL import Image

import models
from engine import compare, comparison, exact, generate, images, statistics_files
from samplers import dpm_v3
from tests.engine import sampling
from tests.engine.browser import chromium  # noqa: F401  A fixture.

SMALL = {'model__name': 'digits_exact', 'batch_size': 6, 'compare__seeds': '3-8',
         'compare__search': 3, 'compare__shown': 4,
         'compare__resamples': 20, 'compare__solvers': 'euler; dpmpp(max_order=3|2)',
         'compare__schedules': 'polynomial(rho=7); logsnr', 'compare__nfe': '3,6',
         'compare__tolerance': 0.05}


def get_plan(folder, **fields):
  return compare.plan(sampling.get_config(**{**SMALL, **fields}), str(folder))


def run(folder, **fields):
  """Runs a comparison; what the terminal shows, and compare.json."""
  text = compare.run(get_plan(folder, **fields))
  return text, json.loads((folder / 'compare.json').read_text())


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """A comparison, whole: (folder, text, report)."""
  folder = tmp_path_factory.mktemp('compare') / 'out'
  return folder, *run(folder)


def test_the_report_has_common_and_best_cells_of_every_solver(done):
  _, text, report = done
  cells = {(cell['solver'], cell['nfe'], cell['common'], cell['best']) for cell in report['cells']}
  for solver in ('euler', 'dpmpp'):
    for nfe in (3, 6):
      here = {key[2:] for key in cells if key[:2] == (solver, nfe)}
      assert here in ({(True, True)}, {(True, False), (False, True)})
  assert {cell['setting']['solver'] for cell in report['cells'] if cell['common']} == {
      'euler', 'dpmpp(max_order=3)'}
  assert report['frechet']['name'] == 'FD-digits' and report['frechet']['pipeline']['sha256']
  assert report['reference']['error'] <= 0.05
  lines = text.splitlines()
  assert 'each on 6 seeds' in lines[0] and lines[1].startswith('  short answer: ')
  assert lines[2].startswith('  NFE   3: ')


def test_the_best_is_the_lowest_of_the_search(done):
  _, _, report = done
  assert len(report['search']) == 6  # Settings: (1 + 2) solvers on 2 schedules.
  for cell in report['cells']:
    if cell['best']:
      found = {(row['solver'], row['schedule']): row['scores'][str(cell['nfe'])]
               for row in report['search'] if row['name'] == cell['solver']}
      setting = cell['setting']['solver'], cell['setting']['schedule']
      assert found[setting] == min(found.values())


def test_numbers_are_of_the_samples_of_the_command(done, tmp_path):
  folder, _, report = done
  cell = next(cell for cell in report['cells'] if cell['solver'] == 'dpmpp' and cell['nfe'] == 6)
  flags = shlex.split(cell['command'])[2:]
  config = sampling.get_config()
  for flag in flags[:-1]:
    name, value = flag.removeprefix('--config.').split('=', 1)
    kind = config.get_type(name) if '.' not in name else type(cell['config'][name])
    config.update_from_flattened_dict({name: kind(value)})
  plan = generate.plan(config, str(tmp_path / 'out'))
  assert plan.solver.nfe == 6 and flags[-1] == f'--workdir=out/{cell["id"]}'
  samples = sampling.samples(plan)
  with np.load(folder / 'reference.npz') as reference:
    error = exact.rms(samples - reference['end'])
  assert cell['rms'] == pytest.approx(error, rel=1e-3)  # Another program: sums in another order.
  assert cell['rms_interval'][0] <= cell['rms'] <= cell['rms_interval'][1]
  assert cell['frechet_interval'][0] <= cell['frechet'] <= cell['frechet_interval'][1]
  strip = np.asarray(Image.open(folder / 'cells' / f'{cell["id"]}.png'))
  shown = np.concatenate(list(images.to_uint8(samples[:4])), axis=1)
  assert np.abs(strip.astype(int) - shown).max() <= 1


def test_the_error_of_the_reference_is_an_upper_estimate(done):
  plan = get_plan(done[0])
  coarse = comparison.read_solution(done[0] / 'reference.npz')
  fine = coarse
  while not exact.is_enough(fine, 1e-4):
    fine = exact.refine(plan.trial, plan.sigma_min, plan.sigma_max, fine)
  assert fine.error <= 1e-4 < coarse.error <= 0.05
  assert exact.rms(coarse.end - fine.end) <= coarse.error
  # Below the lowest level there is one denoising step left, which moves by less than the level.
  assert 0 < exact.rms(coarse.zero - coarse.end) < 2 * plan.sigma_min


def test_tables_of_all_cells_share_one_program(done):
  plan = get_plan(done[0], compare__solvers='euler; heun; unipc(max_order=3); ipndm(max_order=4)',
                  compare__nfe='2,4,8')
  assert len({cell.run.arrays.mix.shape for cell in plan.asked.cells}) > 3
  traced = []

  def apply(*arguments):
    traced.append(arguments)
    return plan.trial.model.apply(*arguments)
  trial = dataclasses.replace(plan.trial, model=dataclasses.replace(plan.trial.model, apply=apply))
  counts = []
  for cell in plan.asked.cells:
    trial.run([cell.run.arrays], cell.sigmas[0], 2, splits=cell.run.splits)
    counts.append(len(traced))
  assert counts[0] > 0 and set(counts) == {counts[0]}


def test_a_run_that_was_stopped_goes_on(done, tmp_path, monkeypatch):
  folder, _, whole = done
  written = []

  def stop(*arguments):
    if len(written) == 2:
      raise KeyboardInterrupt
    written.append(arguments[1]['id'])
    write(*arguments)
  write = comparison.write_cell
  monkeypatch.setattr(comparison, 'write_cell', stop)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'out')
  assert not (tmp_path / 'out' / 'compare.json').exists()
  monkeypatch.setattr(comparison, 'write_cell', lambda *arguments: (
      written.append(arguments[1]['id']), write(*arguments)))
  monkeypatch.setattr(exact, 'refine', None)  # It is there already.
  _, report = run(tmp_path / 'out')
  assert sorted(written) == sorted(cell['id'] for cell in whole['cells'])
  timed = 'seconds', 'images_per_second', 'network_seconds'
  for cell, other in zip(report['cells'], whole['cells'], strict=True):
    assert {**cell, **dict.fromkeys(timed)} == {**other, **dict.fromkeys(timed)}
  assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == sorted(
      path.name for path in folder.iterdir())


def test_cells_are_added_to_a_page_and_nothing_is_measured_twice(done, tmp_path, monkeypatch):
  folder = tmp_path / 'out'
  shutil.copytree(done[0], folder)
  before = {path.name: path.stat().st_mtime_ns for path in (folder / 'cells').iterdir()}
  noisy = 'edm(S_churn=10)'
  monkeypatch.setattr(exact, 'refine', None)
  _, report = run(folder, compare__solvers=noisy, compare__nfe='4')
  assert {path.name: path.stat().st_mtime_ns for path in (folder / 'cells').iterdir()
          if path.name in before} == before
  added = [cell for cell in report['cells'] if cell['solver'] == 'edm, with noise']
  assert len(report['cells']) == len(done[2]['cells']) + len(added)
  assert all(cell['rms'] is None and cell['frechet'] > 0 for cell in added)
  assert sum(cell['best'] for cell in added) == sum(cell['common'] for cell in added) == 1
  assert {row['by'] for row in report['search'] if row['name'] == 'edm, with noise'} == {'frechet'}
  page = (folder / 'index.html').read_text()
  assert all(cell['id'] in page for cell in report['cells'])
  with open(folder / 'compare.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert [row['id'] for row in rows] == [cell['id'] for cell in report['cells']]
  assert [float(row['rms']) for row in rows if row['rms']] == [
      cell['rms'] for cell in report['cells'] if cell['rms'] is not None]


def test_the_page_sorts_and_shows_every_cell_in_a_browser(done, chromium):  # noqa: F811
  folder, _, report = done
  chromium.open(folder / 'index.html')
  chromium.click('th[data-key=rms] button')
  order = chromium.run("[...document.querySelectorAll('tr.cell')].map(e => e.dataset.id)")
  errors = {cell['id']: cell['rms'] for cell in report['cells']}
  assert sorted(order) == sorted(errors)
  sorted_ones = [errors[name] for name in order]
  assert sorted_ones in (sorted(sorted_ones), sorted(sorted_ones, reverse=True))
  assert chromium.errors == [] and chromium.requests == [] and chromium.overflow() <= 0
  assert chromium.screenshot().std() > 10  # Not blank.


def test_what_is_common_is_what_the_last_run_names_first(done, tmp_path):
  folder = tmp_path / 'out'
  shutil.copytree(done[0], folder)
  for order in ('2|3', '3|2'):
    _, report = run(folder, compare__solvers=f'dpmpp(max_order={order})')
    common = {cell['setting']['solver'] for cell in report['cells'] if cell['common']}
    assert common == {'euler', f'dpmpp(max_order={order[0]})'}


def test_the_gap_to_the_reference_solution_is_known_better_than_the_distance(done):
  _, _, report = done
  for cell in report['cells']:
    gap = cell['frechet'] - report['frechet']['solution']
    assert cell['frechet_gap'] == pytest.approx(gap)
    (low, high), (least, most) = cell['frechet_gap_interval'], cell['frechet_interval']
    assert low <= gap <= high and high - low < most - least


@pytest.mark.parametrize('name', ['reference.npz', 'cells', 'search'])
def test_a_damaged_file_is_named(done, tmp_path, name):
  folder = tmp_path / 'out'
  shutil.copytree(done[0], folder)
  path = folder / name
  if path.is_dir():
    path = sorted(path.glob('*.json'))[0]
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(OSError, match='delete it and start the same command again') as caught:
    run(folder)
  assert str(path) in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize('fields, message', [
    ({'compare__search': 7}, 'config.compare.search: must be an integer from 2 to 6, got 7'),
    ({'compare__shown': 0}, 'config.compare.shown: must be an integer from 1 to 6, got 0'),
    ({'compare__resamples': 3}, 'config.compare.resamples: must be an integer from 20 to'),
    ({'compare__tolerance': 0.0}, 'tolerance must be .* got 0'),
    ({'compare__seeds': '4', 'compare__search': 2}, 'must be an integer from 2 to 1, got 2'),
    ({'condition__task': 'inpaint'}, 'config.condition.task: must be left out with --mode=compare'),
    ({'share': '0/2'}, 'config.share: must be 0/1 with --mode=compare, got 0/2; times compare'),
    ({'guidance__method': 'cfg_plus_plus'}, "must not be 'cfg_plus_plus' with --mode=compare"),
    ({'limit': 'clip'}, "must be empty or hold a run of the same config, .* 'none' .now 'clip'")])
def test_what_cannot_be_done_is_one_line(done, fields, message):
  with pytest.raises(ValueError, match=message) as caught:
    get_plan(done[0], **fields)
  assert '\n' not in str(caught.value)


def test_guided_cells_and_a_solver_that_splits(tmp_path):
  _, report = run(tmp_path / 'out', guidance__classifier='digits_exact', labels='balanced',
                  compare__solvers='euler; ltsp', compare__schedules='polynomial(rho=7)',
                  compare__nfe='4', compare__seeds='0-1', compare__search=2, compare__shown=2)
  assert report['settings']['guidance'] == 'guided by digits_exact'
  assert [cell['solver'] for cell in report['cells']] == ['euler', 'ltsp']
  assert all(0 < cell['rms'] < 1 for cell in report['cells'])
  assert '--config.guidance.classifier=digits_exact' in report['cells'][0]['command']


def test_a_solver_with_statistics_has_cells_of_these_statistics(tmp_path):
  model, path = models.load('digits_exact'), tmp_path / 'statistics.npz'
  levels = np.geomspace(80, 0.002, 30)
  one = np.ones((30, 1, 1, 1))

  def write(s):  # l = 1, s = 0, b = 0 is DPM-Solver++ with its exact integrals.
    statistics_files.write(path, dpm_v3.Statistics(levels, one, s * one, 0 * one), model, {})
  write(0)
  fields = {'compare__schedules': 'logsnr', 'compare__nfe': '4', 'compare__solvers':
            f'euler; dpm_solver_v3(statistics={path}, order=1)'}
  _, report = run(tmp_path / 'out', **fields)
  euler, v3 = report['cells']
  assert (v3['solver'], v3['nfe'], v3['common'], v3['draws']) == ('dpm_solver_v3', 4, True, False)
  assert v3['rms'] == pytest.approx(euler['rms'], rel=0.02)  # Both are of order 1 on this data.
  again = {part.split('=', 1)[0].removeprefix('--config.'): part.split('=', 1)[1]
           for part in shlex.split(v3['command'])[2:]}
  assert again['solver.name'] == 'dpm_solver_v3' and again['solver.statistics'] == str(path)
  write(-1)
  with pytest.raises(ValueError, match='workdir: must hold cells of the same statistics, got dpm'):
    get_plan(tmp_path / 'out', **fields)
