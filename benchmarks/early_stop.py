"""Early-stopped diffusion on the bundled example: another generator's digits, made sharp.

  python -m benchmarks.early_stop           prints the table
  python -m benchmarks.early_stop --write   also writes it and the picture into benchmarks/

A Gaussian per class of digit, fitted on the fly, makes blurry images. They get the noise of an
inner level and are denoised from there by the bundled model, or by the small one trained for levels
up to 1. What comes out is compared with what went in, and with full sampling from noise at the same
number of evaluations. About 2 minutes on 2 cores.
"""

import argparse
import pathlib
from typing import NamedTuple

import numpy as np

import models
from benchmarks import bundled, sampling
from benchmarks.report import write_section
from benchmarks.sampling import Entry
from engine import inputs, progress as progress_lib

HERE = pathlib.Path(__file__).parent
TITLE = 'Early-stopped diffusion'
IMAGES = 512
GENERATOR = 'gaussian_digits'
STARTS = (0.5, 1.0, 2.0)
BUDGETS = (4, 8)
ENTRIES = (Entry('dpmpp', 'dpmpp', {}), Entry('ddpm', 'ddpm', {}))
MODELS = 'digits', 'digits_early'
SHOWN = 20  # Images per row of the picture.


class Key(NamedTuple):
  """One run: model, level that it starts from (None: noise alone), solver, evaluations."""

  model: str
  start: float | None
  solver: str
  nfe: int


def main() -> None:
  """Measures, prints, and writes the report with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write the section and picture here')
  arguments = parser.parse_args()
  before, images = measure(progress_lib.choose(quiet=False))
  judge = bundled.make_judge()._replace(labels=classes())
  scores = {key: bundled.score(judge, own) for key, own in images.items()}
  report = render(bundled.score(judge, before), scores)
  print(report)
  if arguments.write:
    plot(before, images, HERE / 'early_stop.png')
    write_section(TITLE, report)


def classes() -> np.ndarray:
  """Returns the classes of the generator's images, (IMAGES,)."""
  return _generator().labels(np.arange(IMAGES))


def runs() -> list[Key]:
  """Returns all runs: inner levels that a model knows, and noise for the model of all levels."""
  keys = []
  for name in MODELS:
    highest = models.load(name).sigma_max
    levels = [start for start in STARTS if start <= highest]
    levels += [None] if highest > max(STARTS) else []
    keys += [Key(name, start, entry.label, nfe)
             for start in levels for entry in ENTRIES for nfe in BUDGETS]
  return keys


def measure(progress: progress_lib.Progress = progress_lib.silent) -> tuple[
    np.ndarray, dict[Key, np.ndarray]]:
  """Returns the generator's images and those of every run, in model units, and of equal labels."""
  before = inputs.to_model(_generator().take(np.arange(IMAGES)))
  loaded = {name: models.load(name) for name in MODELS}
  solvers = {entry.label: entry for entry in ENTRIES}
  rows = 2 * max(BUDGETS)  # Of ddpm: each step has one for a guide.
  keys, images = runs(), {}
  with progress('sampling', len(keys), f'sets of {IMAGES}') as advance:
    for key in keys:
      model = loaded[key.model]
      images[key] = sampling.sample(
          model, solvers[key.solver], sampling.grid(model, key.nfe, key.start), classes(), rows,
          start=np.zeros_like(before) if key.start is None else before)
      advance()
  return before, images


def render(before: bundled.Scores, scores: dict[Key, bundled.Scores]) -> str:
  """Returns the report as Markdown."""
  def cells(own):
    return [f'{own.frechet:.1f}', f'{own.nearest:.2f}', f'{own.recognised:.1%}']
  head = ['model', 'starts from', 'solver']
  head += [f'{what}, NFE {nfe}' for nfe in BUDGETS for what in ('Frechet', 'nearest', 'recognised')]
  rows = [[f'none: {GENERATOR} itself', '', '', *cells(before), *[''] * 3 * (len(BUDGETS) - 1)]]
  groups = dict.fromkeys((key.model, key.start, key.solver) for key in scores)
  for model, start, solver in groups:
    level = 'noise' if start is None else f'sigma {start:g}'
    rows.append([model, level, solver, *(cell for nfe in BUDGETS for cell in cells(
        scores[Key(model, start, solver, nfe)]))])
  return f'''`python -m benchmarks.early_stop --write` makes this section: {IMAGES} images of
`{GENERATOR}`, a Gaussian per class of digit, get the noise of an inner level and are
denoised from there on a polynomial grid; "noise" is full sampling of the same classes. Scores as
under "{bundled.TITLE}". The generator has the digits' own mean and covariance but for what is cut
off at black and at full ink, and the Frechet distance sees nothing else: it is the distance to the
nearest digit of the training set, over that of held-out digits, that tells blurry from sharp.

{sampling.markdown(head, rows)}

![The generator's digits, and what becomes of them](early_stop.png)

{findings(before, scores)}
'''


def findings(before: bundled.Scores, scores: dict[Key, bundled.Scores]) -> str:
  """Returns what the figures say, as sentences."""
  parts = [f'The generator alone is at a Frechet distance of {before.frechet:.1f}, and '
           f'{before.nearest:.2f} times as far from the nearest digit as held-out ones.']
  for nfe in BUDGETS:
    own = {key: score for key, score in scores.items() if key.nfe == nfe}
    noise = min((key for key in own if key.start is None), key=lambda key: own[key].frechet)
    texts = []
    for name in MODELS:
      key = min((key for key in own if key.model == name and key.start is not None),
                key=lambda key: own[key].frechet)
      texts.append(f'{own[key].frechet:.1f} with `{name}` ({key.solver} from sigma {key.start:g}, '
                   f'nearest {own[key].nearest:.2f})')
    parts.append(f'With {nfe} evaluations the best is {" and ".join(texts)}, against '
                 f'{own[noise].frechet:.1f} of full sampling ({noise.solver}, nearest '
                 f'{own[noise].nearest:.2f}).')
  return ' '.join(parts)


def plot(before: np.ndarray, images: dict[Key, np.ndarray], path: pathlib.Path) -> None:
  """Draws the first images of the generator, and of runs of the highest budget, row by row."""
  import matplotlib  # Only for this picture: the tables need no plotting library.
  matplotlib.use('Agg')
  from matplotlib import pyplot
  picked = [key for key in images if key.nfe == max(BUDGETS) and key.solver == ENTRIES[0].label]
  rows = [(GENERATOR, before)] + [
      (f'{key.model}, from ' + ('noise' if key.start is None else f'sigma {key.start:g}'),
       images[key]) for key in picked]
  figure, panels = pyplot.subplots(len(rows), 1, figsize=(12, 0.9 * len(rows)),
                                   layout='constrained')
  for axes, (name, own) in zip(panels, rows, strict=True):
    strip = np.concatenate(np.pad(own[:SHOWN], [(0, 0), (0, 0), (0, 1), (0, 0)],
                                  constant_values=1.0), axis=1)
    axes.imshow(np.clip((strip + 1) / 2, 0, 1), interpolation='nearest')
    axes.set_title(name, fontsize='small', loc='left', pad=2)
    axes.axis('off')
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


def _generator():
  return inputs.load('early_stop', GENERATOR, models.load(MODELS[0]).image_shape)


if __name__ == '__main__':
  main()
