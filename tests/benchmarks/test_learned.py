"""The report on learned solvers: it runs, and what is claimed of them stands in it."""

import re

import pytest

from benchmarks import learned, report


def rows(table):
  """Name -> cells of one of the section's tables, by evaluations."""
  section = report.PAGE.read_text().split(f'## {learned.TITLE}\n')[1].split('\n## ')[0]
  head, _, *lines = re.findall(r'(?:^\|.*\n)+', section, re.MULTILINE)[table].splitlines()
  budgets = [int(cell.removeprefix(' NFE ')) for cell in head.strip('|').split('|')[1:]]
  return {cells[0]: {nfe: cell for nfe, cell in zip(budgets, cells[1:], strict=True) if cell}
          for cells in ([cell.strip(' *') for cell in line.strip('|').split('|')]
                        for line in lines)}


def test_a_small_report(tmp_path, monkeypatch, capsys):
  config = learned.configured
  monkeypatch.setattr(learned, 'configured', lambda fields: config(
      {**fields, 'model.name': 'digits_exact', 'batch_size': 8}))
  monkeypatch.setattr(learned, 'SEEDS', '0-7')
  monkeypatch.setattr(learned, 'MANY', '0-15')
  monkeypatch.setattr(learned, '_REFERENCE', 0.1)
  monkeypatch.setattr(learned.devices, 'use_cores', lambda: None)  # Too late in this process.
  monkeypatch.setattr('sys.argv', ['learned', '--only', 'iPNDM,UniPC', '--nfe', '3'])
  monkeypatch.setattr(learned, 'ENTRIES', {
      name: make for name, make in learned.ENTRIES.items() if name != 'AMED-Plugin on iPNDM'
      and not name.startswith(('iPNDM +', 'EPD'))})
  monkeypatch.chdir(tmp_path)
  learned.main()
  told = capsys.readouterr().out
  assert re.search(r'\| iPNDM \| (\*\*)?0\.\d{3}', told) and '| UniPC |' in told
  assert '| NFE 3 |' in told and not (tmp_path / 'README.md').exists()


def test_every_solver_of_the_report_was_measured_at_all_numbers():
  distance, frechet, cost = (rows(table) for table in range(3))
  assert list(distance) == list(frechet) == list(cost) == list(learned.ENTRIES)
  for name, cells in distance.items():
    assert cells.keys() == frechet[name].keys() == cost[name].keys()
    assert cells.keys() >= ({3, 4, 5} if name == 'SFD-v' else set(learned.BUDGETS))


@pytest.mark.parametrize('nfe', [3, 5, 7, 9])
def test_the_default_training_beats_plain_ipndm(nfe):
  distance = rows(0)
  plugin, plain = (float(distance[name][nfe]) for name in ('AMED-Plugin on iPNDM', 'iPNDM'))
  assert plugin <= 0.7 * plain


def test_the_best_at_five_evaluations_is_twice_as_near_as_plain_ipndm():
  distance = rows(0)
  best = min(float(cells[5]) for name, cells in distance.items() if not name.startswith('iPNDM'))
  assert best <= 0.5 * float(distance['iPNDM'][5])
