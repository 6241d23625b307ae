"""The plots of a comparison, and the orders of convergence in their legends."""

import copy
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image

from engine import compare_plots, orders
from tests.engine import comparison

SVG = '{http://www.w3.org/2000/svg}'


@pytest.fixture(scope='module')
def report():
  return comparison.make()[0]


def test_an_exact_order_is_measured_on_the_three_finest_grids():
  steps = [40, 5, 20, 10]
  order, used = orders.measured(steps, [3 * n ** -2.5 for n in steps])
  assert order == pytest.approx(2.5, abs=1e-12) and [steps[i] for i in used] == [10, 20, 40]


def test_grids_that_feel_the_error_of_the_reference_are_left_out():
  steps, floor = [5, 10, 20, 40], 1e-4
  errors = [0.5 * n ** -2 for n in steps[:-1]] + [4.9 * floor]
  order, used = orders.measured(steps, errors, floor)
  assert order == pytest.approx(2, abs=1e-12) and used == [0, 1, 2]


@pytest.mark.parametrize('errors', [
    [0.1, 0.01], [0.1, 0.01, None], [0.1, 0.01, 1e-9], [0.1, 0.2, 0.001], [0.1, 0.09, 0.001],
    [0.1, 0.1, 0.1], [None, None, None]],
    ids=['two', 'none', 'converged', 'rises', 'kink', 'flat', 'stochastic'])
def test_no_order_where_none_shows(errors):
  assert orders.measured([5, 10, 20][:len(errors)], errors, 1e-6) is None


def test_orders_belong_to_the_common_setting_and_to_steps_not_evaluations():
  cells = [{'solver': 'heun', 'common': common, 'num_steps': n, 'nfe': 2 * n - 1,
            'rms': n ** -2.0 if common else 1.0, 'schedule': {'name': 'polynomial', 'rho': 7.0}}
           for n in (3, 5, 10, 20) for common in (True, False)]
  cells += [{**cells[0], 'solver': 'seeds', 'rms': None}]
  found = orders.of_cells(cells, 1e-5)
  assert found['heun'].pop('order') == pytest.approx(2, abs=1e-12)
  assert found == {'heun': {'nfe': [9, 19, 39], 'setting': 'polynomial rho=7'}, 'seeds': None}


def test_seventy_solvers_look_different():
  report = {'cells': [{'solver': f'solver{i}'} for i in range(70)]}
  assert len(set(compare_plots.styles(report).values())) == 70


def test_error_has_a_line_per_solver_and_setting_and_a_shaded_floor(report):
  figure = compare_plots.error(report)
  assert len(figure.axes) == 2
  for axes, (setting, factor) in zip(figure.axes, [('common', 1), ('best', 0.8)], strict=True):
    assert axes.get_xscale() == axes.get_yscale() == 'log'
    assert len(axes.lines) == 5, 'a solver that draws noise has no distance to the solution'
    cells = [c for c in report['cells'] if c['solver'] == 'heun' and c[setting]]
    heun = axes.lines[1]
    np.testing.assert_array_equal(heun.get_xdata(), comparison.NFE)
    np.testing.assert_array_equal(heun.get_ydata(), [c['rms'] for c in cells])
    assert heun.get_ydata()[0] == pytest.approx(factor * 2.4 / 25 + comparison.ERROR)
    [floor] = axes.patches
    assert floor.get_y() + floor.get_height() == pytest.approx(comparison.ERROR)
  assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
  [legend] = figure.legends
  texts = [text.get_text() for text in legend.get_texts()]
  assert texts == ['euler (order 1.00)', 'heun (order 2.00)', 'dpmpp (order 2.00)',
                   'unipc (order 3.00)', 'ipndm (order 2.00)', 'error of the reference']


def test_distance_has_all_solvers_their_intervals_and_the_value_of_real_images(report):
  figure = compare_plots.distance(report)
  axes = figure.axes[0]
  assert len(axes.lines) == 7 and axes.lines[-1].get_ydata()[0] == 5.5
  seeds = [c for c in report['cells'] if c['solver'] == 'seeds' and c['common']]
  ends = [segment[:, 1] for segment in axes.collections[5].get_segments()]
  np.testing.assert_allclose(ends, [c['frechet_interval'] for c in seeds])
  assert [t.get_text() for t in figure.legends[0].get_texts()][-2:] == ['seeds', 'real images']
  # Moved aside so that bars do not coincide, less than what two NFE differ by.
  np.testing.assert_allclose(axes.lines[5].get_xdata(), comparison.NFE, rtol=0.05)


def test_numbers_that_a_logarithm_cannot_show_are_left_out(report):
  report = copy.deepcopy(report)
  for cell, value in zip(report['cells'], (math.nan, math.inf, 0.0, None), strict=False):
    cell['rms'] = value
  report['reference']['error'] = None
  figure = compare_plots.error(report)
  assert [len(axes.lines[0].get_xdata()) for axes in figure.axes] == [3, 3]
  assert all(np.isfinite(axes.get_ylim()).all() for axes in figure.axes)


def test_a_comparison_without_a_frechet_distance_has_one_plot(report, tmp_path):
  report = copy.deepcopy(report)
  report['frechet'] = None
  for cell in report['cells']:
    cell['frechet'] = cell['frechet_interval'] = None
  assert list(compare_plots.metrics(report)) == ['error']
  assert compare_plots.write(tmp_path, report) == [tmp_path / 'error.png']
  assert [path.name for path in tmp_path.iterdir()] == ['error.png']
  with Image.open(tmp_path / 'error.png') as picture:
    assert min(picture.size) > 500 and len(np.unique(np.asarray(picture))) > 50


def test_panels_are_named_and_take_the_colour_of_the_page(report):
  panels = compare_plots.panels(report)
  assert list(panels) == ['error-common', 'error-best', 'distance-common', 'distance-best']
  for name, content in panels.items():
    root = ElementTree.fromstring(content)
    assert root.tag == f'{SVG}svg'
    groups = {group.get('id'): group for group in root.iter(f'{SVG}g')}
    solvers = [s for s in comparison.ORDERS if s != 'seeds' or name.startswith('distance')]
    for solver in solvers:
      assert len(list(groups[f'{name}-{solver}'].iter(f'{SVG}use'))) == len(comparison.NFE)
    texts = list(root.iter(f'{SVG}text'))
    assert len(texts) > 6 and all('currentColor' in text.get('style') for text in texts)
    assert not re.search(rb'href="(?!#)', content), 'nothing to load'


def test_a_panel_is_repeatable_and_a_name_in_it_is_a_text(report):
  frechet = {**report['frechet'], 'name': '<script>&"'}
  common = [{**cell, 'rms': None, 'best': False} for cell in report['cells'][::10]]
  few = {**report, 'frechet': frechet, 'cells': common}
  panels = compare_plots.panels(few)
  assert list(panels) == ['distance-common'] and compare_plots.panels(few) == panels
  content = panels['distance-common']
  assert b'<script' not in content and b'&lt;script&gt;&amp;' in content
