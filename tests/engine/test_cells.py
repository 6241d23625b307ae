"""What a comparison consists of."""

import numpy as np
import pytest

import models
import samplers
from configs import compare_all, default
from engine import cells


def plan(**fields):
  config = default.get_config()
  for name, value in fields.items():
    group = config.schedule if name.startswith('sigma') else config.compare
    group[name] = value
  return cells.plan(config, models.load('digits_exact'))


def test_every_solver_has_the_evaluations_that_it_can_do():
  found, refused, *_ = plan(solvers='euler; heun; euler(afs=True, denoise_to_zero=True)',
                        schedules='polynomial; edm', nfe='3,1,4')
  assert {(cell.solver.text, cell.schedule.name, cell.nfe, cell.num_steps) for cell in found} == {
      *[('euler', schedule, nfe, nfe) for schedule in ('polynomial', 'edm') for nfe in (1, 3, 4)],
      ('heun', 'polynomial', 4, 2),  # Two evaluations for each step,
      ('heun', 'edm', 1, 1), ('heun', 'edm', 3, 2),  # one for a step to 0.
      # The first evaluation is free and one is added, but a grid ending in 0 has nowhere to add.
      *[('euler(afs=True, denoise_to_zero=True)', 'polynomial', nfe, nfe) for nfe in (1, 3, 4)]}
  line, = refused
  assert line.startswith('euler(afs=True, denoise_to_zero=True) on edm: ') and '\n' not in line
  for cell in found:
    table = samplers.make(cell.solver.name, cell.sigmas, **cell.solver.options)
    assert table.nfe == cell.nfe and np.array_equal(table.mix, cell.run.arrays.mix)
  assert len({cell.id for cell in found}) == len(found)


def test_the_common_cell_is_the_first_of_each_solver_on_the_first_schedule():
  found, *_ = plan(solvers='dpmpp(max_order=3|2); euler', schedules='logsnr; polynomial(rho=7)',
                  nfe='5')
  assert [(cell.solver.text, cell.schedule.text) for cell in found if cell.common] == [
      ('dpmpp(max_order=3)', 'logsnr'), ('euler', 'logsnr')]


def test_settings_with_noise_and_without_are_two_solvers():
  found = plan(solvers='er_sde(scale=ode); er_sde; ddim; ddim(eta=1); sa_solver',
               schedules='polynomial; logsnr', nfe='3,6').cells
  kinds = {(cell.title, cell.noisy, cell.solver.text) for cell in found if cell.common}
  assert kinds == {('er_sde, no noise', False, 'er_sde(scale=ode)'), ('er_sde', True, 'er_sde'),
                   ('ddim', False, 'ddim'), ('ddim, with noise', True, 'ddim(eta=1)'),
                   ('sa_solver', True, 'sa_solver')}
  # SA-Solver draws between two levels alone; a grid that misses them does not make it another.
  assert {cell.draws for cell in found if cell.title == 'sa_solver'} == {True, False}


def test_the_page_of_all_solvers_leaves_none_out():
  config = compare_all.get_config()
  config.compare.nfe, config.compare.schedules = '10,15', 'logsnr'
  found = cells.plan(config, models.load('digits_exact'))
  plus_plus = {name for name in samplers.SOLVERS if name.endswith('_cfg_pp')}
  assert found.refused == []
  assert {cell.solver.name for cell in found.cells} == (
      samplers.SOLVERS.keys() - compare_all.LEFT_OUT.keys() - plus_plus)
  assert compare_all.SETTINGS.keys() < samplers.SOLVERS.keys()
  assert {*compare_all.LEFT_OUT.values()} < {cell.solver.name for cell in found.cells}
  assert 'dpm_solver_v3(statistics=a.npz)' in compare_all.get_config('a.npz').compare.solvers


def test_a_range_given_for_the_schedule_is_that_of_all_cells():
  found, *_ = plan(solvers='euler', schedules='polynomial; logsnr', nfe='4', sigma_max=10.0,
                  sigma_min=0.1)
  for cell in found:
    np.testing.assert_allclose(cell.sigmas[[0, -1]], [10, 0.1])


def test_a_record_tells_how_to_make_the_samples_again():
  found, *_ = plan(solvers='dpmpp(max_order=2)', schedules='polynomial(rho=5)', nfe='6')
  record = cells.record(found[0], {'seeds': '0-3', 'model.path': 'a folder'})
  assert record['id'] == 'dpmpp_max_order=2-polynomial_rho=5-6'
  assert record['config'] == {
      'seeds': '0-3', 'model.path': 'a folder', 'solver.name': 'dpmpp', 'solver.max_order': 2,
      'schedule.name': 'polynomial', 'schedule.rho': 5.0, 'schedule.num_steps': 6}
  assert "'--config.model.path=a folder'" in record['command']
  assert record['command'].endswith(f' --workdir=out/{record["id"]}')


@pytest.mark.parametrize('fields, message', [
    ({'nfe': '3,three'}, "config.compare.nfe: must be different integers from 1 to 1000, .* got"),
    ({'nfe': '3,3'}, "must be different integers .* got '3,3'; such as"),
    ({'nfe': '0'}, "must be different integers from 1 to 1000, .* got '0'"),
    ({'solvers': 'heun', 'nfe': '3'}, 'every solver must have a cell, got 3 for heun, which can'),
    ({'solvers': 'dpm_adaptive'}, 'evaluations of solvers must be known, got dpm_adaptive'),
    ({'solvers': 'dpmpp(max_order=9)'}, 'every solver must have a cell, got dpmpp.max_order=9. on'),
    ({'schedules': 'polynom'}, "unknown schedule 'polynom'; did you mean polynomial")])
def test_what_cannot_be_compared_is_one_line(fields, message):
  with pytest.raises(ValueError, match=message) as caught:
    plan(**fields)
  assert '\n' not in str(caught.value)
