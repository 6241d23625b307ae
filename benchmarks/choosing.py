"""Every solver on the bundled model, without guidance and with: docs/choosing_a_solver.md.

  python -m benchmarks.choosing           runs what is missing in out/, and prints the tables
  python -m benchmarks.choosing --write   also writes them into benchmarks/README.md

The pages that people want to look at are index.html in out/compare_all and out/compare_guided.
About an hour and a half on 2 cores.
"""

import argparse
import json
import pathlib

import ml_collections

from benchmarks.compare import table
from benchmarks.report import write_section
from configs import compare_all, default
from engine import compare, comparison, devices, orders, progress as progress_lib, search

TITLE = 'Every solver'
STATISTICS, PLAIN, GUIDED = 'out/statistics', 'out/compare_all', 'out/compare_guided'


def main() -> None:
  """Runs, prints, and writes the section with --write."""
  devices.use_cores()
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write README.md here')
  arguments = parser.parse_args()
  progress = progress_lib.choose(quiet=False)
  measured = default.get_config()
  measured.search.method = 'dpm_v3'
  search.run(search.plan(measured, STATISTICS), progress)
  reports = []
  for config, folder in ((compare_all.get_config(f'{STATISTICS}/statistics.npz'), PLAIN),
                         (guided(), GUIDED)):
    compare.run(compare.plan(config, folder), progress)
    reports.append(json.loads((pathlib.Path(folder) / comparison.JSON).read_text()))
  text = render(*reports)
  print(text)
  if arguments.write:
    write_section(TITLE, text)


def guided() -> ml_collections.ConfigDict:
  """Returns the config of the second command in configs/compare_all.py."""
  config = compare_all.get_config()
  config.guidance.method, config.guidance.scale, config.labels = 'classifier_free', 2.0, 'balanced'
  config.compare.seeds, config.compare.search = '0-255', 128
  return config


def render(plain: dict, under_guidance: dict) -> str:
  """Returns both reports as Markdown.

  Args:
    plain: content of compare.json.
    under_guidance: the same, of the guided comparison.
  """
  schedules = len({row['schedule'] for row in plain['search']})
  return f'''`python -m benchmarks.choosing --write` makes this section from two comparisons with
[configs/compare_all.py](../configs/compare_all.py). What to take of all this:
[docs/choosing_a_solver.md](../docs/choosing_a_solver.md). Every solver is on the best of its
settings and of {schedules} schedules for each number of evaluations, found on the first
{_searched(plain)} seeds.

### Without guidance

{_one(plain)}

### Guided by classes

`classifier_free` at scale 2; one evaluation asks the network with the class and without.

{_one(under_guidance)}'''


def _searched(report):
  return report['settings']['search'].split('the first ')[1].split(' ')[0]


def _one(report):
  """Two tables and the winners of one comparison."""
  budgets = sorted({cell['nfe'] for cell in report['cells']})
  reference, frechet = report['reference'], report['frechet']
  return f'''Root-mean-square distance per pixel to the solution of the probability-flow ODE from
the same latents ({report['count']} seeds; error of the solution about {reference['error']:.0e}).
Bold: the lowest. Solvers with noise come to no such solution.

{table(report, budgets, 'rms', 'best')}

{_winners(report, budgets, 'rms', False)}

By how much {frechet['name']} of the same cells lies above that of the solution, which is
{frechet['solution']:.3f} ({report['count']} real digits: {frechet['floor']:.3f}). Bold: the
{100 * frechet['level']:g} % interval reaches 0. Below 0: nearer to the digits than the solution.

{table(report, budgets, 'frechet_gap', 'best')}

{_winners(report, budgets, 'frechet', True)}
'''


def _winners(report, budgets, field, draws):
  """The lowest cell at each number of evaluations, among solvers with noise or those without."""
  lines = []
  for nfe in budgets:
    row = [cell for cell in report['cells'] if cell['nfe'] == nfe and cell[field] is not None
           and cell['draws'] == draws and cell['best']]
    first = min(row, key=lambda cell: cell[field])
    options = orders.setting({name: value for name, value in first['options'].items()
                              if name != 'statistics'})
    solver = first['config']['solver.name']
    lines.append(f'{nfe}: `{solver}{f" ({options})" if options else ""}` on '
                 f'{first["setting"]["schedule"]}')
  kind = 'with noise, lowest Frechet distance' if draws else 'without noise, nearest'
  return f'Solvers {kind}, by evaluations: {"; ".join(lines)}.'


if __name__ == '__main__':
  main()
