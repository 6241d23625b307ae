"""How good the bundled models are: pictures, memory, and distance to what is exact.

  python -m benchmarks.bundled           prints the tables
  python -m benchmarks.bundled --write   also writes them and the plots into benchmarks/

Samples are judged by their gray levels (the largest channel, 0 to 16, in 64 dimensions): the
Frechet distance to all 1,797 digits, the share that a classifier of real digits recognises as the
class asked for, and the distance to the nearest digit of the training set beside that of digits
held out of it. The denoiser and the classifier are compared with the exact ones of the data.
About 15 minutes on 2 cores.
"""

import argparse
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sklearn.svm

import models
import samplers
from benchmarks.report import write_section
from engine import data as data_lib, progress as progress_lib, seeds
from models import digits

HERE = pathlib.Path(__file__).parent
TITLE = 'Bundled models'
HELD_OUT = 8  # As in configs/training.py.
SIGMAS = np.geomspace(0.02, 20, 16)  # Of the comparison with the exact models.
SCHEDULES = {
    'polynomial': {}, 'polynomial, rho 5': {'rho': 5.0}, 'logsnr': {}, 'time_uniform': {}}
SOLVERS = {'dpmpp': {}, 'unipc': {}, 'deis': {}, 'ipndm': {}}
BUDGETS = (4, 6, 8, 10)


class Judge(NamedTuple):
  """What samples are measured with.

  Attributes:
    real: gray levels of all digits, (1797, 64).
    labels: their classes, which the samples are asked for in the same order.
    training: those of the training set.
    recognise: a classifier of real digits, gray levels (n, 64) -> classes (n,).
    held_out_distance: median distance of held-out digits to the nearest of the training set.
  """

  real: np.ndarray
  labels: np.ndarray
  training: np.ndarray
  recognise: object
  held_out_distance: float


class Scores(NamedTuple):
  """Measurements of one set of samples, see the module."""

  frechet: float
  recognised: float
  nearest: float


Row = tuple[str, str, int, Scores]  # Solver, schedule, NFE, measurements.


def main() -> None:
  """Measures, prints, and writes the report with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write the section and plots here')
  arguments = parser.parse_args()
  judge = make_judge()
  rows = measure(judge, progress_lib.choose(quiet=False))
  curves = denoiser_curves()
  losses = classifier_curves()
  report = render(rows, curves, losses)
  print(report)
  if arguments.write:
    plot(curves, losses, HERE / 'bundled.png')
    write_section(TITLE, report)


def make_judge() -> Judge:
  """Returns the Judge for the bundled digits."""
  images, labels = digits.grays()
  real = images.reshape(len(images), -1).astype(np.float64)
  out = np.arange(len(real)) % HELD_OUT == HELD_OUT - 1
  recognise = sklearn.svm.SVC(gamma=0.001).fit(real, labels).predict
  return Judge(real, labels, real[~out], recognise,
               float(np.median(nearest(real[out], real[~out]))))


def measure(judge: Judge, progress: progress_lib.Progress = progress_lib.silent) -> list[Row]:
  """Returns the Rows of the exact denoiser, of Heun, and of multistep solvers on all grids."""
  exact, trained = models.load('digits_exact'), models.load('digits')
  runs = [('exact denoiser, heun', exact, 'heun', 'polynomial', 18),
          ('heun', trained, 'heun', 'polynomial', 18)]
  runs += [(solver, trained, solver, schedule, budget)
           for solver in SOLVERS for schedule in SCHEDULES for budget in BUDGETS]
  rows = []
  with progress('sampling', len(runs), 'sets of 1,797') as advance:
    for name, model, solver, schedule, num_steps in runs:
      rows.append((name, schedule, *_run(judge, model, solver, schedule, num_steps)))
      advance()
  return rows


def _run(judge, model, solver, schedule, num_steps):
  sigmas = samplers.schedule(schedule.split(',')[0], num_steps, model.sigma_min, model.sigma_max,
                             **SCHEDULES[schedule])
  table = samplers.make(solver, sigmas, **SOLVERS.get(solver, {}))
  images = sample(model, table, judge.labels, sigmas[0])
  return table.nfe, score(judge, images)


def sample(model: models.Model, table: samplers.Table, labels: np.ndarray, sigma_first: float,
           batch_size: int = 600) -> np.ndarray:
  """Samples one image per label, from seeds 0, 1, ... as main.py does.

  Args:
    model: the model.
    table: the solver.
    labels: classes, (n,).
    sigma_first: first level of the grid.
    batch_size: images at once.

  Returns:
    Images in model units, float32 (n, *image_shape).
  """
  run = _sampler(model.apply)
  batches = []
  for start in range(0, len(labels), batch_size):
    own = labels[start:start + batch_size]
    own = np.pad(own, (0, batch_size - len(own)))
    numbers = np.arange(start, start + batch_size, dtype=np.uint32)
    keys = seeds.keys(numbers, seeds.LATENT)
    latents = jax.vmap(lambda key: jax.random.normal(key, model.image_shape))(keys)
    batches.append(np.asarray(run(model.params, samplers.pad(table, 36, 5), np.float32(sigma_first),
                                  latents, own)))
  return np.concatenate(batches)[:len(labels)]


@functools.cache
def _sampler(apply):
  """One compiled sampler per network for all tables."""
  return jax.jit(lambda params, table, sigma, latents, labels: samplers.run(
      table, lambda x, s: apply(params, x, s, labels), sigma * latents))


def score(judge: Judge, images: np.ndarray) -> Scores:
  """Measures samples of the judge's labels.

  Args:
    judge: the Judge.
    images: in model units, (n, 8, 8, 3).

  Returns:
    Their Scores.
  """
  gray = np.clip(digits.luminance(images), 0, digits.LEVELS).reshape(len(images), -1)
  gray = gray.astype(np.float64)
  return Scores(frechet(gray, judge.real),
                float(np.mean(judge.recognise(gray) == judge.labels[:len(gray)])),
                float(np.median(nearest(gray, judge.training))) / judge.held_out_distance)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the Frechet distance of Gaussians fitted to two sets of vectors.

    |mean_a - mean_b|^2 + tr(S_a) + tr(S_b) - 2 tr((S_a S_b)^(1/2))

  With S = R^T R from the QR decomposition of the centred vectors, the last trace is the sum of the
  singular values of R_a R_b^T: no square root of a matrix, and covariances may be singular.

  Args:
    a: vectors, (n, d), n >= 2.
    b: vectors, (m, d), m >= 2.

  Returns:
    The squared distance, >= 0 up to rounding.
  """
  difference = a.mean(0) - b.mean(0)
  roots = [np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode='r') for x in (a, b)]
  shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
  return float(difference @ difference + sum((root**2).sum() for root in roots) - 2 * shared)


def nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Returns the Euclidean distance of each point to the nearest of the others, (n,)."""
  square = (points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T
  return np.sqrt(np.maximum(square.min(1), 0))


def denoiser_curves() -> dict[str, np.ndarray]:
  """Returns root-mean-square errors per pixel over SIGMAS, on held-out digits.

  Keys: 'trained - exact', 'trained', 'exact' and, up to its highest level, 'early' (the last three
  against the clean image).
  """
  _, held_out = data_lib.load('digits', HELD_OUT)
  x0, labels = jnp.asarray(held_out.images), jnp.asarray(held_out.labels)
  z = jax.random.normal(jax.random.key(0), x0.shape)
  loaded = {name: models.load(f'digits{suffix}') for name, suffix in (
      ('trained', ''), ('exact', '_exact'), ('early', '_early'))}
  denoise = {name: jax.jit(model.denoise) for name, model in loaded.items()}
  curves = {'trained - exact': [], **{name: [] for name in loaded}}
  for sigma in np.float32(SIGMAS):
    answers = {name: denoise[name](x0 + sigma * z, sigma, labels) for name in loaded}
    pairs = {name: (answer, x0) for name, answer in answers.items()}
    pairs['trained - exact'] = answers['trained'], answers['exact']
    for name, (a, b) in pairs.items():
      known = name != 'early' or sigma <= loaded['early'].sigma_max
      curves[name].append(float(jnp.sqrt(jnp.mean((a - b)**2))) if known else np.nan)
  return {name: np.array(values) for name, values in curves.items()}


def classifier_curves() -> dict[str, np.ndarray]:
  """Returns the mean of -log p(y | x; sigma) over SIGMAS on held-out digits, trained and exact.

  The exact one is that of the training set's own mixture: all that there is to know from it.
  """
  training, held_out = data_lib.load('digits', HELD_OUT)
  x0, labels = jnp.asarray(held_out.images), jnp.asarray(held_out.labels)
  z = jax.random.normal(jax.random.key(0), x0.shape)
  trained = jax.jit(models.load_classifier('digits_classifier').log_prob)
  mixture = models.mixture.mixture(training.images, 0.05, labels=training.labels)
  exact = jax.jit(lambda x, sigma: models.mixture.log_prob(mixture, x, sigma))
  curves = {'trained': [], 'exact': []}
  for sigma in np.float32(SIGMAS):
    for name, log_prob in (('trained', trained), ('exact', exact)):
      values = log_prob(x0 + sigma * z, sigma)
      curves[name].append(-float(jnp.take_along_axis(values, labels[:, None], 1).mean()))
  return {name: np.array(values) for name, values in curves.items()}


def render(rows: list, curves: dict, losses: dict) -> str:
  """Returns the report as Markdown."""
  lines = [f'| {solver} | {schedule} | {nfe} | {scores.frechet:.1f} | {scores.recognised:.1%} | '
           f'{scores.nearest:.2f} |' for solver, schedule, nfe, scores in rows]
  pairs = [f'| {sigma:.2g} | ' + ' | '.join(
      '' if np.isnan(values[i]) else f'{values[i]:.3f}' for values in (
          *curves.values(), *losses.values())) + ' |' for i, sigma in enumerate(SIGMAS)]
  names = [*curves, *(f'-log p(y), {name}' for name in losses)]
  return f'''`python -m benchmarks.bundled --write` makes this section: 1,797 samples with the
labels of the set, from seeds 0 to 1796, judged by gray levels (the largest channel, 0 to 16).
Frechet distance: to all 1,797 digits, in 64 dimensions, so blind to ink. Recognised: as the class
asked for, by a support-vector classifier of real digits; blurry samples pass too, so it is a sanity
check only. Nearest: median distance to the nearest digit of the training set over that of held-out
digits; far below 1 would be memory. The exact denoiser is that: it can give back nothing but its
data, and its Frechet distance is what drawing 1,797 times from them leaves.

| solver | schedule | NFE | Frechet | recognised | nearest |
|---|---|---|---|---|---|
{chr(10).join(lines)}

On held-out digits in all inks, over noise levels: root-mean-square distance per pixel of the
trained denoiser to the exact one of all data, and of each to the clean image ('early': the model
below an inner level); then the classifiers' loss, where 'exact' knows the training set alone. Below
sigma 1 the exact denoiser finds the very digit again, which it knows, and the exact classifier is
too sure of the nearest digit that it knows: what a model must not learn from its data.

| sigma | {' | '.join(names)} |
{'|---' * (len(names) + 1)}|
{chr(10).join(pairs)}

![Trained and exact models over noise levels](bundled.png)
'''


def plot(curves: dict, losses: dict, path: pathlib.Path) -> None:
  """Draws both comparisons over noise levels."""
  import matplotlib  # Only for this picture: the tables need no plotting library.
  matplotlib.use('Agg')
  from matplotlib import pyplot
  figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.5), layout='constrained')
  styles = {'trained - exact': 'k-', 'trained': 'C0-', 'exact': 'C1--', 'early': 'C2:'}
  for axes, values, label in ((panels[0], curves, 'RMS distance per pixel'),
                              (panels[1], losses, '-log p(y | x; sigma), nats')):
    for name, line in values.items():
      suffix = '' if name == 'trained - exact' or axes is panels[1] else ' - clean image'
      axes.semilogx(SIGMAS, line, styles[name], lw=2, label=f'{name}{suffix}')
    axes.set(xlabel='sigma', ylabel=label)
    axes.grid(which='both', alpha=0.3)
    axes.legend()
  panels[0].set_title('Denoisers on held-out digits')
  panels[1].set_title('Classifiers on held-out digits')
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


if __name__ == '__main__':
  main()
