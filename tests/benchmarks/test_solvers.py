"""The report on deterministic solvers covers the registry, and its program runs."""

import pathlib

import jax
import numpy as np

import samplers
from benchmarks import solvers

PAGE = (pathlib.Path(solvers.__file__).parent / 'README.md').read_text()
REPORT = PAGE.split(f'## {solvers.TITLE}')[1].split('\n## ')[0]


def test_every_deterministic_solver_is_measured_and_reported():
  assert {entry.name for entry in solvers.ENTRIES} == solvers.deterministic()
  assert {name for names in solvers.PANELS.values() for name in names} == solvers.deterministic()
  assert 'seeds' in samplers.SOLVERS.keys() - solvers.deterministic()
  for entry in solvers.ENTRIES:
    assert REPORT.count(f'| {entry} |') == 2


def test_measurement(monkeypatch, tmp_path):
  """Small, end to end: the reference is converged, and figures are those of the report."""
  monkeypatch.setattr(solvers, 'BUDGETS', (10,))
  monkeypatch.setattr(solvers, 'ENTRIES', [
      solvers.Entry(name, {}) for name in ('euler', 'dpmpp', 'unipc', 'ipndm')])
  monkeypatch.setattr(solvers, 'SCHEDULES', {solvers.COMMON: ('polynomial', {})})
  with jax.enable_x64(True):
    errors, converged = solvers.measure()
  assert converged < 1e-10
  row = next(line for line in REPORT.splitlines() if line.startswith('| euler |')).split('|')
  reported = float(row[2 + 5].strip(' *'))  # The column of 10 evaluations.
  np.testing.assert_allclose(errors[solvers.COMMON]['euler'][10], reported, rtol=0.05)
  assert '| euler |' in solvers.render(errors, converged)
  solvers.plot(errors[solvers.COMMON], tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 10_000
