"""Solvers of the reverse SDE against EDM's churn, on the bundled model and on Gaussian data.

  python -m benchmarks.stochastic           prints the tables
  python -m benchmarks.stochastic --write   also writes them and the plot into benchmarks/

Three views of each solver: the Frechet distance of its samples of the bundled model, the exact one
of what it makes of Gaussian data (computed from its table, without sampling), and how much an image
still changes when the same seed gets twice the steps. About 5 minutes on 2 cores.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np

import models
import samplers
from benchmarks import bundled, sampling
from benchmarks.report import write_section
from benchmarks.sampling import Entry
from engine import progress as progress_lib

HERE = pathlib.Path(__file__).parent
TITLE = 'Stochastic solvers'
MODEL = 'digits'
IMAGES = 256
BUDGETS = (8, 16, 32, 64)
# The published churn but for its amount, which is to be found for each model.
_CHURN = {'S_min': 0.05, 'S_max': 50.0, 'S_noise': 1.003}
ENTRIES = (
    Entry('dpmpp (no noise)', 'dpmpp', {}),
    Entry('edm S_churn=0 (no noise)', 'edm', {}),
    Entry('edm S_churn=3', 'edm', {'S_churn': 3.0, **_CHURN}),
    Entry('edm S_churn=10', 'edm', {'S_churn': 10.0, **_CHURN}),
    Entry('ddpm', 'ddpm', {}),
    Entry('seeds order=2', 'seeds', {'order': 2}),
    Entry('seeds order=3', 'seeds', {'order': 3}),
    Entry('dpmpp_2m_sde', 'dpmpp_2m_sde', {}),
    Entry('dpmpp_3m_sde', 'dpmpp_3m_sde', {}),
    Entry('dpmpp_sde', 'dpmpp_sde', {}),
)
SAME_AS_DDPM = (Entry('ddim eta=1', 'ddim', {'eta': 1.0}),
                Entry('euler_ancestral', 'euler_ancestral', {}),
                Entry('seeds order=1', 'seeds', {'order': 1}))
_NO_PATH = 'edm'  # Whose draws are raised levels, independent of those of another grid.

Figures = dict[str, dict[int, float]]
"""By solver and budget."""


class Results(NamedTuple):
  """What is measured.

  Attributes:
    frechet: of the samples to all digits.
    gaussian: of the exact result on Gaussian data to these data.
    change: RMS distance per pixel to the images of the budget before, from the same seeds.
    floor: Frechet distance of as many digits, drawn at random, to all of them: mean and deviation.
  """

  frechet: Figures
  gaussian: Figures
  change: Figures
  floor: tuple[float, float]


def main() -> None:
  """Measures, prints, and writes the report with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write the section and plot here')
  arguments = parser.parse_args()
  results = measure(progress_lib.choose(quiet=False))
  report = render(results)
  print(report)
  if arguments.write:
    plot(results, HERE / 'stochastic.png')
    write_section(TITLE, report)


def num_steps(entry: Entry, budget: int) -> int:
  """Returns the number of steps whose evaluations are nearest to a budget."""
  stages = entry.table(np.array([2.0, 1.0])).nfe
  return max(1, round(budget / stages))


def measure(progress: progress_lib.Progress = progress_lib.silent) -> Results:
  """Returns the Results of all solvers."""
  judge = bundled.make_judge()
  labels = judge.labels[:IMAGES]
  model = models.load(MODEL)
  grids = {(entry.label, budget): sampling.grid(model, num_steps(entry, budget))
           for entry in ENTRIES for budget in BUDGETS}
  rows = max(entry.table(grids[entry.label, budget]).rows
             for entry in ENTRIES for budget in BUDGETS)
  frechet, gaussian, change = {}, {}, {}
  with progress('sampling', len(grids), f'sets of {IMAGES}') as advance:
    for entry in ENTRIES:
      own = frechet[entry.label], gaussian[entry.label], change[entry.label] = {}, {}, {}
      before = None
      for budget in BUDGETS:
        sigmas = grids[entry.label, budget]
        images = sampling.sample(model, entry, sigmas, labels, rows)
        own[0][budget] = bundled.score(judge, images).frechet
        own[1][budget] = on_gaussian(entry.table(sigmas), judge.real)
        if before is not None:
          own[2][budget] = sampling.rms(images, before)
        before = images
        advance()
  return Results(frechet, gaussian, change, floor(judge.real))


def on_gaussian(table: samplers.Table, grays: np.ndarray) -> float:
  """Returns the exact Frechet distance of a solver's result on Gaussian data to these data.

  Args:
    table: the solver.
    grays: vectors whose mean and covariance the data have, gray levels (n, d).

  Returns:
    The squared distance |mean - mu|^2 + sum_k (sqrt(v_k) - sqrt(variance_k))^2 in gray levels: the
    axes of the covariance stay the solver's own, since every step is a number along each.
  """
  unit = models.digits.LEVELS / 2  # Gray levels per unit of the model.
  values, axes = np.linalg.eigh(np.cov(grays, rowvar=False))
  mean = (grays.mean(0) / unit - 1) @ axes
  variance = np.maximum(values, 0) / unit**2
  got_mean, got_variance = samplers.moments.gaussian_moments(table, mean, variance)
  deviations = np.sqrt(got_variance) - np.sqrt(variance)
  return float(unit**2 * (np.sum((got_mean - mean)**2) + np.sum(deviations**2)))


def floor(grays: np.ndarray, draws: int = 50) -> tuple[float, float]:
  """Returns the Frechet distance of IMAGES of the vectors, drawn with repeats, to all.

  Args:
    grays: the vectors, (n, d).
    draws: number of such sets.

  Returns:
    Mean and standard deviation over the sets.
  """
  rng = np.random.default_rng(0)
  distances = [bundled.frechet(grays[rng.integers(len(grays), size=IMAGES)], grays)
               for _ in range(draws)]
  return float(np.mean(distances)), float(np.std(distances))


def render(results: Results) -> str:
  """Returns the report as Markdown."""
  def figures(values, form):
    present = [b for b in BUDGETS if all(b in row for row in values.values())]
    lowest = {b: min(row[b] for row in values.values()) for b in present}
    return {label: [_bold(form(row[b]), row[b] == lowest[b]) if b in row else '' for b in present]
            for label, row in values.items()}
  head = ['solver', *(f'{what} {b}' for what in ('Frechet', 'Gaussian') for b in BUDGETS)]
  head += [f'change {a} to {b}' for a, b in zip(BUDGETS, BUDGETS[1:], strict=False)]
  columns = (figures(results.frechet, '{:.1f}'.format), figures(results.gaussian, _short),
             figures(results.change, '{:.3f}'.format))
  rows = [[label, *(cell for column in columns for cell in column[label])]
          for label in results.frechet]
  same = ', '.join(f'`{entry.label}`' for entry in SAME_AS_DDPM)
  return f'''`python -m benchmarks.stochastic --write` makes this section, on polynomial grids, at
about {', '.join(map(str, BUDGETS))} evaluations (3 per step: the nearest multiple of 3).

- Frechet: {IMAGES} samples of the bundled model, seeds 0 to {IMAGES - 1}, as under
  "{bundled.TITLE}". As many digits drawn at random are at {results.floor[0]:.1f}, with a standard
  deviation of {results.floor[1]:.1f}: smaller differences are chance. (Samples have the classes of
  the set in its order, which is a little better than random.)
- Gaussian: the exact Frechet distance between Gaussian data, with mean and covariance of the gray
  digits, and what the solver makes of them with their exact denoiser: `moments.gaussian_moments`
  gives it from the table, so there is no noise in it.
- Change: RMS distance per pixel between images of the same seeds at one budget and the next, about
  twice the steps. Noise comes from one Brownian path per seed, so this is strong convergence; the
  draws of churn are not on a path, and theirs are other images.

Bold: the lowest of the column. `ddpm` without guidance is also
{same}: the same steps. Other options are
defaults; churn has S_min 0.05, S_max 50 and S_noise 1.003.

{sampling.markdown(head, rows)}

![Stochastic solvers against evaluations](stochastic.png)

{findings(results)}
'''


def findings(results: Results) -> str:
  """Returns what the figures say, as sentences."""
  def least(values, budget):
    label = min(values, key=lambda label: values[label][budget])
    return f'`{label}` at {budget} ({_short(values[label][budget])})'
  wins = [', '.join(least(values, b) for b in BUDGETS)
          for values in (results.frechet, results.gaussian)]
  noisy = {entry.label for entry in ENTRIES if 'no noise' not in entry.label}
  stochastic = {label: row for label, row in results.frechet.items() if label in noisy}
  churned = {label: row for label, row in stochastic.items() if label.startswith('edm')}
  others = {label: row for label, row in stochastic.items() if not label.startswith('edm')}
  rest = ', '.join(
      f'{least(others, b)} against {least(churned, b)}' for b in BUDGETS)
  paths = {label: row for label, row in results.change.items()
           if label in noisy and not label.startswith(_NO_PATH)}
  last = BUDGETS[-1]
  ratios = ', '.join(f'`{label}` {row[BUDGETS[1]] / row[last]:.1f}' for label, row in paths.items())
  steps = last // BUDGETS[1]
  return f'''Lowest Frechet distance of the samples: {wins[0]}; on Gaussian data: {wins[1]}.

The best solver of the SDE against the best churn, by samples: {rest}.

From the first change to the last, over a factor of {steps} in steps, the change falls by a factor
of: {ratios}. Strong order 1/2 would be {steps**0.5:.1f}, order 1 would be {steps:.1f}: so few steps
do not show the order of the limit.'''


def plot(results: Results, path: pathlib.Path) -> None:
  """Draws the three views against evaluations."""
  import matplotlib  # Only for this picture: the tables need no plotting library.
  matplotlib.use('Agg')
  from matplotlib import pyplot, ticker
  figure, panels = pyplot.subplots(1, 3, figsize=(15, 5), layout='constrained')
  views = ((results.frechet, f'Frechet distance of {IMAGES} samples'),
           (results.gaussian, 'exact Frechet distance on Gaussian data'),
           (results.change, 'RMS change since half the steps'))
  for axes, (values, title) in zip(panels, views, strict=True):
    for i, (label, row) in enumerate(values.items()):
      style = '--' if 'no noise' in label else ':' if label.startswith('edm') else '-'
      axes.loglog(list(row), list(row.values()), style, marker='osD^v<>pP*'[i], color=f'C{i}',
                  label=label)
    axes.set(title=title, xlabel='network evaluations', xticks=BUDGETS)
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(alpha=0.3)
  panels[0].axhline(results.floor[0], color='0.6', label='digits drawn at random')
  panels[0].legend(fontsize='small')
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


def _bold(text, wanted):
  return f'**{text}**' if wanted else text


def _short(value):
  return f'{value:.1f}' if value >= 10 else f'{value:#.2g}'


if __name__ == '__main__':
  main()
