"""The page of a comparison: what it says, that texts stay texts, how it works in Chromium."""

import copy
import html
import json
import math
import re

import numpy as np
import pytest

from engine import compare_plots, page
from tests.engine import comparison
from tests.engine.browser import chromium  # noqa: F401  A fixture.

NASTY = '</script><script>alert(1)</script><img src=x onerror=alert(2)>&"\'{{script}}'


@pytest.fixture(scope='module')
def made():
  report, strips = comparison.make()
  return report, strips, compare_plots.panels(report)


@pytest.fixture(scope='module')
def path(made, tmp_path_factory):
  path = tmp_path_factory.mktemp('page') / 'compare.html'
  path.write_text(page.render(*made), encoding='utf-8')
  return path


@pytest.fixture
def tab(chromium, path):  # noqa: F811
  chromium.open(path)
  yield chromium
  assert chromium.errors == [] and chromium.requests == []


def embedded(text, name):
  return json.loads(re.search(f'id="{name}">(.*?)</script>', text, re.DOTALL)[1])


def short(text):
  """What a reader sees of HTML: texts alone, spaces once."""
  return ' '.join(html.unescape(re.sub('<[^>]*>', ' ', text)).split())


def test_winners_are_the_least_at_each_nfe_and_name_their_ties(made):
  cells = made[0]['cells']
  found = page.winners(cells[::-1])
  assert [winner.nfe for winner in found] == list(comparison.NFE)
  for winner in found:
    here = [cell for cell in cells if cell['nfe'] == winner.nfe]
    assert winner.closest['rms'] == min(cell['rms'] for cell in here if cell['rms'])
    assert winner.lowest['frechet'] == min(cell['frechet'] for cell in here)
    reach = {cell['solver'] for cell in here
             if cell['frechet_interval'][0] <= winner.lowest['frechet_interval'][1]}
    assert {*winner.ties, winner.lowest['solver']} == reach
  assert found[0].ties == () and found[-1].ties


def test_the_recommended_cell_is_the_cheapest_that_reaches_the_lowest():
  def cell(nfe, frechet, rms):
    bounds = frechet and [frechet - 1, frechet + 1]
    return {'solver': 's', 'nfe': nfe, 'frechet': frechet, 'frechet_interval': bounds, 'rms': rms}
  cells = [cell(5, 9.0, 0.1), cell(8, 6.9, 0.2), cell(8, 7.5, 0.1), cell(40, 5.0, 0.01)]
  assert page.recommended(cells) is cells[1]
  assert page.recommended([cells[0], cells[3]]) is cells[3]
  assert page.recommended([cell(5, None, 0.1), cell(8, None, 0.2)])['nfe'] == 5
  assert page.recommended([cell(5, None, None)]) is None


@pytest.mark.parametrize('value, text', [
    (None, '\N{EN DASH}'), (0.0, '0'), (12345.6, '12,346'), (100.0, '100'), (6.239, '6.24'),
    (0.01234, '0.0123'), (1.234e-4, '0.000123'), (4.54e-5, '4.5e-5'), (-2e-12, '-2.0e-12')])
def test_numbers_have_three_digits(value, text):
  assert page.number(value) == text


def test_the_page_answers_in_words(made):
  text = short(page.render(*made))
  assert 'The short answer unipc at NFE' in text
  assert 'cannot be told apart from the lowest of all 60 cells' in text
  for words in ('b2dab7b5' * 8, '0-255', 'cpu, 2 cores', 'unipc, 400 steps', 'jax 0.10.2',
                'resize \N{EN DASH}', 'layers [pool]', '95 %, bootstrap over seeds, 200 resamples',
                'one per seed', '5.5 at the same count', '2.0e-5, RMS per pixel, estimated'):
    assert words in text, words


def test_texts_of_users_stay_texts(made):
  report, strips = comparison.make(NASTY)
  text = page.render(report, strips, made[2])
  markup = text.replace(page._asset('compare.js'), '')
  assert text.count('<script') == text.count('</script>') == 3
  assert '<img' not in markup and 'onerror=alert(2)&gt;' in markup
  assert embedded(text, 'report')['title'] == report['title']
  assert embedded(text, 'report')['cells'] == report['cells']


def test_numbers_that_are_none_are_dashes_and_never_nan(made):
  report = copy.deepcopy(made[0])
  for cell in report['cells']:
    cell.update(rms=math.nan, frechet=math.inf, frechet_interval=[-math.inf, math.nan],
                seconds=None, images_per_second=math.nan)
  text = page.render(report, {}, {})
  found = embedded(text, 'report')['cells'][0]
  assert (found['rms'], found['frechet'], found['frechet_interval']) == (None, None, [None, None])
  assert 'No cell has a distance yet.' in text


def test_pictures_that_no_cell_shows_stay_out(made):
  report, strips, _ = made
  text = page.render(report, {**strips, 'other': b'unused'}, {'bars': strips['reference']})
  assert set(embedded(text, 'strips')) == set(strips)
  assert '<figure><img src="data:image/png;base64,' in text and 'alt="bars"' in text


def test_the_page_is_one_document_without_addresses(path):
  text = path.read_text()
  assert not re.search(r'(?:src|href)="(?!data:|#)', text)
  assert not re.search(r'url\((?!#|\$)', text) and '@import' not in text


@pytest.mark.parametrize('dark', [False, True])
@pytest.mark.parametrize('width', [1280, 400])
def test_it_looks_like_a_page(tab, path, width, dark):
  tab.open(path, width, dark=dark)
  assert tab.overflow() == 0
  picture = tab.screenshot()
  assert picture.shape == (900, width, 3)
  assert len(np.unique(picture @ [65536, 256, 1])) > 100, 'blank'
  assert (np.median(picture) < 60) if dark else (np.median(picture) > 200)
  # The pictures of digits are there: pure inks, much of them saturated, on black.
  tab.run("document.querySelector('#wall').scrollIntoView({behavior: 'instant'})")
  wall = tab.screenshot().astype(int)
  assert np.mean(np.ptp(wall, -1) > 120) > 0.02


def test_a_click_on_a_heading_sorts_and_another_reverses(tab, made):
  def column():
    return tab.run("[...document.querySelectorAll('tr.cell')].map(row => row.dataset.id)")
  values = {cell['id']: cell['rms'] for cell in made[0]['cells']}
  tab.click('th[data-key=rms] button')
  rising = [values[name] for name in column()]
  numbers = [value for value in rising if value is not None]
  assert numbers == sorted(values[name] for name in values if values[name] is not None)
  assert rising[len(numbers):] == [None] * 10, 'what has no number comes last'
  assert tab.run("document.querySelector('th[data-key=rms]').ariaSort") == 'ascending'
  tab.click('th[data-key=rms] button')
  assert [values[name] for name in column()] == numbers[::-1] + [None] * 10
  assert tab.run("document.querySelector('th[data-key=rms]').ariaSort") == 'descending'
  tab.click('th[data-key=nfe] button')  # As numbers: 5 before 12.
  assert [int(name.split('-')[1]) for name in column()] == sorted(comparison.NFE * 12)
  assert tab.run("document.querySelectorAll('th[aria-sort]').length") == 1


def test_filters_narrow_the_table_together(tab):
  def count():
    assert len(tab.texts('tr.cell')) == int(tab.texts('.count')[0].split()[0])
    return len(tab.texts('tr.cell'))
  assert count() == 60
  tab.click('[data-state=only] [data-value=best]')
  assert count() == 30
  tab.run("(() => { const s = document.querySelector('select[name=nfe]'); s.value = '8';"
          "s.dispatchEvent(new Event('input', {bubbles: true})); })()")
  assert count() == 6
  tab.type('input[type=search]', 'RHO=5 unipc')
  assert count() == 1 and tab.texts('tr.cell .open') == ['unipc']
  tab.type('input[type=search]', ' nonsense')
  assert tab.texts('#cells tbody tr') == ['No cell passes the filter.']


def test_a_row_opens_to_its_command_and_config_and_copies_it(tab, made):
  cell = made[0]['cells'][0]
  assert tab.texts('.detail') == []
  tab.click('tr.cell .open')
  assert tab.run("document.querySelector('.open').ariaExpanded") == 'true'
  assert tab.texts('.detail pre') == [cell['command'], json.dumps(cell['config'], indent=2).replace(
      '7.0', '7')]
  tab.run('navigator.clipboard.writeText = text => { window.copied = text; '
          'return Promise.resolve(); }')
  tab.click('.detail .copy')
  assert tab.run('window.copied') == cell['command'] and tab.texts('.detail .copy')[0] == 'Copied'
  tab.click('tr.cell .open')
  assert tab.texts('.detail') == []


def test_the_wall_shows_one_nfe_and_setting_with_the_reference_on_top(tab, made):
  cells = made[0]['cells']
  for setting in compare_plots.SETTINGS:
    for nfe in (5, 40):
      tab.click(f'#wall [data-state=setting] [data-value={setting}]')
      tab.click(f'#wall [data-state=nfe] [data-value="{nfe}"]')
      names = tab.texts('#wall .row .name')
      assert names[0].startswith('Reference') and names[-1].startswith('seeds')
      shown = tab.run("[...document.querySelectorAll('#wall [data-id]')].map(r => r.dataset.id)")
      expected = [c for c in cells if c['nfe'] == nfe and c[setting]]
      assert set(shown) == {cell['id'] for cell in expected}
      rms = [next(c['rms'] for c in expected if c['id'] == name) for name in shown[:-1]]
      assert rms == sorted(rms)
  assert tab.run("document.querySelectorAll('#wall .row:last-of-type .pictures:first-child i')"
                 '.length') == comparison.SHOWN
  assert tab.run("getComputedStyle(document.querySelector('#wall .pictures i')).imageRendering"
                 ) == 'pixelated'
  # The plots follow the same switch.
  assert tab.run("[...document.querySelectorAll('figure')].map(f => f.hidden)") == [
      True, False, True, False]


def test_the_difference_to_the_reference_is_dark_where_a_solver_is_close(tab):
  tab.click('#wall [data-state=nfe] [data-value="40"]')
  tab.click('#wall [data-state=view] [data-value=difference]')
  def mean(name):
    box = tab.run(f"(() => {{ const e = document.querySelector('.row[data-id={name}] .strip');"
                  "e.scrollIntoView({block: 'center', behavior: 'instant'});"
                  'const b = e.getBoundingClientRect(); return [b.x, b.y, b.right, b.bottom]; })()')
    x, y, right, bottom = map(round, box)
    return tab.screenshot()[y + 4:bottom - 4, x:right].mean()
  close, far = mean('unipc-40-7'), mean('euler-40-7')
  assert close < 30 < far


def test_the_theme_button_turns_the_page_over(tab):
  assert np.median(tab.screenshot()) > 200
  tab.click('#theme')
  assert np.median(tab.screenshot()) < 60


def test_a_solver_stands_out_at_its_name(tab):
  tab.click('.legend [data-solver=heun]')
  names = tab.run("[...document.querySelectorAll('svg .line.on')].map(line => line.id)")
  assert names == [f'{metric}-{setting}-heun{part}'
                   for metric, parts in (('error', ('',)), ('distance', ('-bars', '')))
                   for setting in compare_plots.SETTINGS for part in parts]


def test_a_script_in_a_text_does_not_run_and_nothing_is_loaded(chromium, made,  # noqa: F811
                                                               tmp_path):
  report, strips = comparison.make(NASTY)
  path = tmp_path / 'page.html'
  path.write_text(page.render(report, strips, made[2]), encoding='utf-8')
  chromium.open(path)
  chromium.click('tr.cell .open')
  assert chromium.texts('h1') == [report['title']]
  assert chromium.texts('.detail pre')[0] == report['cells'][0]['command']
  assert chromium.run("document.querySelectorAll('img').length") == 0
  assert chromium.errors == [] and chromium.requests == []
