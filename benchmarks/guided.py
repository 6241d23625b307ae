"""Guided sampling on the bundled model: does splitting the guidance off pay?

  python -m benchmarks.guided           prints the table
  python -m benchmarks.guided --write   also writes it and the plot into benchmarks/

The bundled model, told no class, is guided by the gradient of the bundled trained classifier. DDIM
and PLMS integrate the guided field; LTSP and STSP take the guidance out into steps of its own. All
run on the same grids from the same seeds, and are compared with a fine integration of the guided
ODE and with the digits. About 5 minutes on 2 cores.
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
from engine import guides, progress as progress_lib
from samplers import table as table_lib

HERE = pathlib.Path(__file__).parent
TITLE = 'Guided sampling: splitting'
IMAGES = 192
MODEL, CLASSIFIER = 'digits', 'digits_classifier'
SCALES = (1.0, 4.0)
STEPS = (5, 10, 20, 40)
FINE = 128  # Steps of the reference; half of them for its own error.
ENTRIES = (Entry('DDIM', 'euler', {}), Entry('PLMS4', 'plms', {'max_order': 4}),
           Entry('LTSP4', 'ltsp', {'order': 4}), Entry('STSP4', 'stsp', {'order': 4}))
REFERENCE = Entry('reference', 'ipndm_v', {'max_order': 4})


class Cost(NamedTuple):
  """Evaluations per image: of the network, and of the classifier with its gradient."""

  network: int
  classifier: int


class Result(NamedTuple):
  """What guided solvers do at one scale.

  Attributes:
    distance: RMS distance to the reference by solver and number of steps.
    frechet: Frechet distance to the digits likewise.
    converged: RMS distance of the reference to that of half the steps.
    reference: Frechet distance of the reference.
    recognised: share of the reference that shows the class asked for.
  """

  distance: dict[str, dict[int, float]]
  frechet: dict[str, dict[int, float]]
  converged: float
  reference: float
  recognised: float


def main() -> None:
  """Measures, prints, and writes the report with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write the section and plot here')
  arguments = parser.parse_args()
  results = measure(progress_lib.choose(quiet=False))
  report = render(results, costs())
  print(report)
  if arguments.write:
    plot(results, HERE / 'guided.png')
    write_section(TITLE, report)


def costs() -> dict[str, dict[int, Cost]]:
  """Returns the Cost by solver and number of steps, counted from the tables."""
  model = models.load(MODEL)
  return {entry.label: {n: cost(entry.table(sampling.grid(model, n))) for n in STEPS}
          for entry in ENTRIES}


def cost(table: samplers.Table) -> Cost:
  """Returns the Cost of a guided table: one without rows for the guide has it in every answer."""
  rows = int((table.kind == table_lib.GUIDE).sum())
  return Cost(table.nfe, rows or table.nfe)


def measure(progress: progress_lib.Progress = progress_lib.silent) -> dict[float, Result]:
  """Returns a Result per scale."""
  judge = bundled.make_judge()
  labels = judge.labels[:IMAGES]
  model, classifier = models.load(MODEL), models.load_classifier(CLASSIFIER)
  rows = max(FINE, *(entry.table(sampling.grid(model, n)).rows for entry in ENTRIES for n in STEPS))

  def run(entry, num_steps, scale):
    images = sampling.sample(
        model, entry, sampling.grid(model, num_steps), labels, rows, classifier=classifier,
        guide=guides.Constants(np.float32(scale), classifier.params))
    advance()
    return images

  results = {}
  total = len(SCALES) * (2 + len(ENTRIES) * len(STEPS))
  with progress('guided', total, f'sets of {IMAGES}') as advance:
    for scale in SCALES:
      half, fine = (run(REFERENCE, n, scale) for n in (FINE // 2, FINE))
      distance, frechet = {}, {}
      for entry in ENTRIES:
        images = {n: run(entry, n, scale) for n in STEPS}
        distance[entry.label] = {n: sampling.rms(x, fine) for n, x in images.items()}
        frechet[entry.label] = {n: bundled.score(judge, x).frechet for n, x in images.items()}
      scores = bundled.score(judge, fine)
      results[scale] = Result(distance, frechet, sampling.rms(half, fine), scores.frechet,
                              scores.recognised)
  return results


def render(results: dict[float, Result], costs: dict[str, dict[int, Cost]]) -> str:
  """Returns the report as Markdown."""
  head = ['solver', 'steps', 'network', 'classifier']
  head += [f'{what}, scale {scale:g}' for scale in results for what in ('RMS', 'Frechet')]
  rows = []
  for n in STEPS:
    for label, by_steps in costs.items():
      row = [label, str(n), str(by_steps[n].network), str(by_steps[n].classifier)]
      for result in results.values():
        lowest = [min(row[n] for row in values.values())
                  for values in (result.distance, result.frechet)]
        row += [_bold(f'{result.distance[label][n]:.3f}', result.distance[label][n] == lowest[0]),
                _bold(f'{result.frechet[label][n]:.1f}', result.frechet[label][n] == lowest[1])]
      rows.append(row)
  references = '; '.join(
      f'at scale {scale:g} its own error is at most about {result.converged:.4f} (RMS distance to '
      f'{FINE // 2} steps), its Frechet distance {result.reference:.1f}, and '
      f'{result.recognised:.1%} of it show the class asked for'
      for scale, result in results.items())
  return f'''`python -m benchmarks.guided --write` makes this section: {IMAGES} images of the
bundled model without a class, guided by the gradient of the bundled trained classifier, from the
same seeds and on the same polynomial grids. RMS: distance per pixel to the guided reference
solution, {FINE} steps of `ipndm_v` on the guided field. Frechet: of gray levels to all digits, as
under "{bundled.TITLE}"; so few images alone cost most of it, so compare it with that of the
reference. Network and classifier: evaluations per image, the classifier's with its gradient. Bold:
the lowest for that number of steps.

The reference: {references}.

{sampling.markdown(head, rows)}

![Distance to the guided reference solution](guided.png)

{findings(results)}
'''


def findings(results: dict[float, Result]) -> str:
  """Returns what the figures say, as sentences."""
  parts = []
  for scale, result in results.items():
    best = [min(result.distance, key=lambda label: result.distance[label][n]) for n in STEPS]
    wins = ', '.join(f'{label} at {n}' for label, n in zip(best, STEPS, strict=True))
    ratios = ', '.join(f'{result.distance["STSP4"][n] / result.distance["PLMS4"][n]:.2f}'
                       for n in STEPS)
    halves = ', '.join(f'{result.distance["STSP4"][n] / result.distance["LTSP4"][n]:.2f}'
                       for n in STEPS)
    parts.append(f'At scale {scale:g} the nearest to the reference is {wins} steps. The distance '
                 f'of STSP4 is {ratios} times that of PLMS4 at {", ".join(map(str, STEPS))} steps, '
                 f'and {halves} times that of LTSP4, for twice the evaluations of the classifier.')
  return '\n\n'.join([*parts, conclusion(results)])


def conclusion(results: dict[float, Result]) -> str:
  """Returns how often splitting is best by either measure, as sentences."""
  def wins(values):
    best = {n: min(values, key=lambda label: values[label][n]) for n in STEPS}
    return sum(label in ('LTSP4', 'STSP4') for label in best.values())
  total = len(results) * len(STEPS)
  return (f'In all, splitting is nearest to the reference in '
          f'{sum(wins(result.distance) for result in results.values())} of {total} cases, and has '
          f'the lowest Frechet distance in '
          f'{sum(wins(result.frechet) for result in results.values())}. The second is no proof of '
          'good integration: a distance below that of the reference only says that the error of '
          'the solver happens to lead towards the digits. Where the classifier is not much cheaper '
          'than the network, the second gradient of STSP4 counts too: compare equal sums of both '
          'columns of evaluations.')


def plot(results: dict[float, Result], path: pathlib.Path) -> None:
  """Draws the distance to the reference against steps, a panel per scale."""
  import matplotlib  # Only for this picture: the tables need no plotting library.
  matplotlib.use('Agg')
  from matplotlib import pyplot, ticker
  figure, panels = pyplot.subplots(1, len(results), figsize=(11, 4.2), sharey=True, squeeze=False,
                                   layout='constrained')
  for axes, (scale, result) in zip(panels[0], results.items(), strict=True):
    for (label, row), marker in zip(result.distance.items(), 'osD^', strict=True):
      axes.loglog(list(row), list(row.values()), f'{marker}-', label=label)
    axes.axhline(result.converged, color='0.7', ls=':', label='error of the reference')
    axes.set(title=f'scale {scale:g}', xlabel='steps', xticks=STEPS)
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(alpha=0.3)
  panels[0, 0].set_ylabel('RMS distance to the guided reference')
  panels[0, 0].legend()
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


def _bold(text, wanted):
  return f'**{text}**' if wanted else text


if __name__ == '__main__':
  main()
