"""Guidance by classes on the bundled model: which method, which scale, which solver.

  python -m benchmarks.guidance           prints the table
  python -m benchmarks.guidance --write   also writes it into benchmarks/README.md

Every row is `python main.py` with the fields that it shows, for some numbers of evaluations.
"""

import argparse
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np

from benchmarks import bundled
from benchmarks.report import write_section
from benchmarks.sampling import markdown
from configs import default
from engine import devices, generate, progress as progress_lib
from models import digits

TITLE = 'Guidance by classes'
IMAGES = 600  # 60 of each class.
BUDGETS = (5, 10, 20)
FREE = 'classifier_free'
PLUS = 'cfg_plus_plus'


class Row(NamedTuple):
  """A way to sample.

  Attributes:
    solver: name of the solver; those of two evaluations per step take half the steps.
    method: of the guidance, None: none.
    scale: of the guidance.
    options: further fields of config.guidance.
  """

  solver: str
  method: str | None = None
  scale: float = 1.0
  options: tuple[tuple[str, object], ...] = ()


ROWS = (
    *(Row(solver) for solver in ('euler', 'dpmpp', 'ipndm', 'dpmpp_2m_sde')),
    *(Row(solver, FREE, 2.0) for solver in ('euler', 'dpmpp', 'ipndm', 'er_sde', 'dpmpp_2m_sde')),
    *(Row('dpmpp', FREE, scale) for scale in (1.5, 4.0)),
    *(Row('dpmpp', method, 4.0, options) for method, options in (
        (FREE, (('interval', '0.3,5'),)), (FREE, (('ramp', 'cosine'),)),
        ('rescale', ()), ('apg', ()), ('cfg_zero_star', ()), ('tcfg', ()), ('mambo_g', ()),
        ('fresca', ()), ('cfg_norm', ()))),
    *(Row(f'{solver}_cfg_pp', PLUS, 0.6) for solver in (
        'euler', 'dpmpp_2m', 'gradient_estimation', 'euler_ancestral', 'dpmpp_2s_ancestral')),
    *(Row('dpmpp_2m_cfg_pp', PLUS, scale) for scale in (0.3, 1.0)),
)


def main() -> None:
  """Measures, prints, and writes the section with --write."""
  devices.use_cores()
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write README.md here')
  arguments = parser.parse_args()
  text = render(measure(ROWS, BUDGETS, IMAGES, progress_lib.choose(quiet=False)))
  print(text)
  if arguments.write:
    write_section(TITLE, text)


def measure(rows: tuple[Row, ...], budgets: tuple[int, ...], images: int,
            progress: progress_lib.Progress = progress_lib.silent,
            ) -> dict[Row, dict[int, bundled.Scores]]:
  """Returns the Scores of every row at every number of evaluations that it can meet.

  Args:
    rows: what to measure.
    budgets: numbers of evaluations of the sampler; one asks the network with a class and without.
    images: per cell, from seeds 0, 1, ..., of all classes in turn.
    progress: how to show progress.
  """
  judge = bundled.make_judge()._replace(labels=np.arange(images) % digits.NUM_CLASSES)
  found = {row: {} for row in rows}
  with progress('guidance', len(rows) * len(budgets), f'sets of {images}') as advance:
    for row in rows:
      for budget in budgets:
        pictures = sample(row, budget, images)
        if pictures is not None:
          found[row][budget] = bundled.score(judge, pictures)
        advance()
  return found


def sample(row: Row, budget: int, images: int) -> np.ndarray | None:
  """Returns what `python main.py` makes, in model units; None where the evaluations cannot be met.

  Args:
    row: how.
    budget: evaluations.
    images: how many.
  """
  config = default.get_config()
  config.solver.name, config.labels = row.solver, 'balanced'
  config.seeds, config.batch_size, config.output.format = f'0-{images - 1}', min(images, 200), 'npz'
  config.guidance.method, config.guidance.scale = row.method, row.scale
  for field, value in row.options:
    config.guidance[field] = value
  for steps in (budget, budget // 2):
    config.schedule.num_steps = steps
    with tempfile.TemporaryDirectory() as folder:
      plan = generate.plan(config, folder)
      if plan.solver.nfe == budget:
        generate.run(plan)
        with np.load(pathlib.Path(folder) / 'samples.npz') as stored:
          return np.float32(stored['arr_0']) / 127.5 - 1
  return None


def render(found: dict[Row, dict[int, bundled.Scores]]) -> str:
  """Returns the section as Markdown; bold is the lowest Frechet distance of a column."""
  budgets = sorted({budget for row in found.values() for budget in row})
  lowest = {budget: min(row[budget].frechet for row in found.values() if budget in row)
            for budget in budgets}
  lines = []
  for row, by_budget in found.items():
    options = ', '.join(f'{field} {value}' for field, value in row.options)
    line = [f'`{row.solver}`', f'`{row.method}`' if row.method else 'none',
            f'{row.scale:g}' if row.method else '', options]
    for budget in budgets:
      scores = by_budget.get(budget)
      number = scores and f'{scores.frechet:.1f}'
      line.append((f'**{number}**' if scores.frechet == lowest[budget] else number)
                  if scores else '')
    line += [f'{by_budget[budget].recognised:.1%}' if budget in by_budget else ''
             for budget in budgets]
    lines.append(line)
  head = ['solver', 'guidance', 'scale', 'options',
          *(f'Frechet, NFE {budget}' for budget in budgets),
          *(f'recognised, NFE {budget}' for budget in budgets)]
  return f'''`python -m benchmarks.guidance --write` makes this section: {IMAGES} images of the
bundled model, as many of each class, from seeds 0 to {IMAGES - 1} on polynomial grids. Every
evaluation under guidance asks the network with the class and without. Frechet and recognised: as
under "Bundled models"; of so few images the distance is higher for all. Guidance is a trade: what
it adds to the share that is recognised it takes from the variety that the distance sees. A blank:
no such number of evaluations.

{markdown(head, lines)}
'''


if __name__ == '__main__':
  main()
