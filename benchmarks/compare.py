"""Solvers on the bundled model: what `python main.py --mode=compare` finds, as a page.

  python -m benchmarks.compare           runs what is missing of it in out/compare, and prints it
  python -m benchmarks.compare --write   also writes the section and the plots into benchmarks/

The page that people want to look at is out/compare/index.html.
"""

import argparse
import json
import pathlib
import shutil

from benchmarks.report import write_section
from configs import default
from engine import compare, comparison, devices, orders, progress

HERE = pathlib.Path(__file__).parent
TITLE = 'Comparison on the bundled model'


def main() -> None:
  """Runs, prints, and writes the section with --write."""
  devices.use_cores()
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write README.md and the plots here')
  parser.add_argument('--workdir', default='out/compare', help='folder of the comparison')
  arguments = parser.parse_args()
  folder = pathlib.Path(arguments.workdir)
  compare.run(compare.plan(default.get_config(), arguments.workdir), progress.choose(False))
  text = render(json.loads((folder / comparison.JSON).read_text()))
  print(text)
  if arguments.write:
    for name in ('error', 'distance'):
      shutil.copy(folder / f'{name}.png', HERE / f'compare_{name}.png')
    write_section(TITLE, text)


def render(report: dict) -> str:
  """Returns a report as Markdown.

  Args:
    report: the content of compare.json.
  """
  reference, frechet = report['reference'], report['frechet']
  budgets = sorted({cell['nfe'] for cell in report['cells']})
  return f'''`python -m benchmarks.compare --write` makes this section from what `python main.py
--mode=compare` measures, and writes to `out/compare/index.html`: {report['count']} seeds
({report['seeds']}) for every cell. Root-mean-square distance per pixel to the solution of the
probability-flow ODE from the same latents ({reference['description']}, {reference['nfe']}
evaluations, error about {reference['error']:.0e}), and {frechet['name']}:
{frechet['description']}. As many real digits, drawn at random, are at {frechet['floor']:.2f}.
A blank: no such number of evaluations. {_seconds(report)}

On the common schedule, {report['cells'][0]['setting']['schedule']}, with usual options:

{table(report, budgets, 'rms', 'common')}

Every solver on the best of its settings, which the first seeds choose by that distance:

{table(report, budgets, 'rms', 'best')}

By how much {frechet['name']} of the same cells lies above that of the reference solution, which
is {frechet['solution']:.3f}. Bold: its interval ({100 * frechet['level']:g} %) reaches 0. That
comes from the same resamples of the seeds for both; the interval of one {frechet['name']} alone,
such as the lowest, {_number(report)}, holds most of the others.

{table(report, budgets, 'frechet_gap', 'best')}

{_winners(report, budgets)}

![Distance to the reference solution](compare_error.png)

![{frechet['name']}](compare_distance.png)
'''


def _seconds(report):
  """How long it took, where one run measured everything."""
  made = report['run']
  if made['cells'] < len(report['cells']):
    return ''
  return f'It took {made["seconds"]:.0f} s on {report["machine"]["device"]}.'


def table(report: dict, budgets: list[int], field: str, which: str) -> str:
  """Returns a row per solver; bold is the lowest, or what cannot be told from the solution.

  Args:
    report: the content of compare.json.
    budgets: numbers of evaluations.
    field: of the cells, 'rms' or 'frechet_gap'.
    which: 'common' or 'best'.
  """
  rows = {}
  for cell in report['cells']:
    if cell[which] and cell[field] is not None:
      rows.setdefault(cell['solver'], {})[cell['nfe']] = cell
  lowest = {nfe: min((row[nfe][field] for row in rows.values() if nfe in row), default=None)
            for nfe in budgets}

  def text(row, nfe):
    if nfe not in row:
      return ''
    value = row[nfe][field]
    if field == 'rms':
      number, marked = f'{value:.2g}', value == lowest[nfe]
    else:
      number, marked = f'{value:.3f}', row[nfe]['frechet_gap_interval'][0] <= 0
    return f'**{number}**' if marked else number
  lines = [f'| solver | {" | ".join(f"NFE {nfe}" for nfe in budgets)} | order |',
           '|---' * (len(budgets) + 2) + '|']
  for solver, row in rows.items():
    order = report['orders'].get(solver)
    shown = f'{order["order"]:.1f}' if order and field == 'rms' and which == 'common' else ''
    lines.append(f'| {solver} | {" | ".join(text(row, nfe) for nfe in budgets)} | {shown} |')
  if field != 'rms' or which != 'common':
    lines = [line.rpartition('|')[0].rpartition('|')[0] + '|' for line in lines]
  return '\n'.join(lines)


def _number(report):
  """The lowest Frechet distance with its interval."""
  lowest = min((cell for cell in report['cells'] if cell['frechet'] is not None),
               key=lambda cell: cell['frechet'])
  low, high = lowest['frechet_interval']
  return f'{lowest["frechet"]:.2f} [{low:.2f}, {high:.2f}]'


def _winners(report, budgets):
  """What to take at each number of evaluations."""
  lines = []
  for nfe in budgets:
    row = [cell for cell in report['cells'] if cell['nfe'] == nfe and cell['rms'] is not None]
    first = min(row, key=lambda cell: cell['rms'])
    options = orders.setting(first['options'])
    name = f'{first["solver"]}{f" ({options})" if options else ""}'
    lines.append(f'{nfe}: `{name}` on {first["setting"]["schedule"]}')
  return f'Nearest to the reference solution, by evaluations: {"; ".join(lines)}.'


if __name__ == '__main__':
  main()
