"""Learned and searched solvers on the bundled model: what training buys, and what it costs.

  python -m benchmarks.learned            trains what is missing in out/learned, and prints tables
  python -m benchmarks.learned --write    also writes the section and the plot into benchmarks/
  python -m benchmarks.learned --only grid,coefficients --nfe 5

All are measured on seeds that no training saw: a training draws from streams of its own. A killed
run goes on where it was, and what stands in out/learned is neither trained nor measured again. All
of it takes hours on two cores.
"""

import argparse
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from matplotlib import figure as figure_lib

from benchmarks.report import write_section
from configs import default
from engine import (
  devices,
  distill,
  exact,
  files,
  generate,
  images,
  predictors,
  progress,
  quality as quality_lib,
  sampler,
  search,
  seeds as seeds_lib,
  train_amed,
  trial,
)

HERE = pathlib.Path(__file__).parent
OUT = pathlib.Path('out/learned')
TITLE = 'Learned and searched solvers'
SEEDS = '0-255'
MANY = '0-4095'
"""Seeds of the distance to the data, whose error would be larger than what is compared."""
BUDGETS = 3, 4, 5, 6, 8, 10
MORE = 7, 9
"""For the default of --mode=train_amed, and what it is held against."""
DEFAULT = 'iPNDM', 'AMED-Plugin on iPNDM'
_RESAMPLES = 200
_REFERENCE = 1e-3  # Error of the reference solution that is good enough.
_ROWS = 24  # Of its program.


class Made(NamedTuple):
  """Something that samples, and what it took to make.

  Attributes:
    fields: of the config that samples with it, '.' between names.
    seconds: of training; 0 without.
    evaluations: of the network in training.
  """

  fields: dict[str, Any]
  seconds: float = 0.0
  evaluations: int = 0


def plain(solver: str, **options: Any) -> Callable[[int], Iterator[Made]]:
  """A solver on four grids, of which the best counts."""
  def make(nfe):
    for schedule, rho in (('polynomial', 5.0), ('polynomial', 7.0), ('polynomial', 9.0),
                          ('time_uniform', 1.0)):
      yield Made({'solver.name': solver, 'schedule.name': schedule, 'schedule.rho': rho,
                  'schedule.num_steps': nfe,
                  **{f'solver.{name}': value for name, value in options.items()}})
  return make


def ipndm(nfe: int) -> Iterator[Made]:
  """What the others are compared with: iPNDM at the best of rho 5, 7 and 9."""
  yield from list(plain('ipndm', max_order=4)(nfe))[:3]


def ipndm_on_time_uniform(nfe: int) -> Iterator[Made]:
  """The grid that learned solvers start from, without learning, at the best of three orders."""
  for order in (2, 3, 4):
    yield list(plain('ipndm', max_order=order)(nfe))[3]


def searched(nfe: int) -> Iterator[Made]:
  """iPNDM on a grid of GITS."""
  folder = OUT / 'gits'
  fields = {'search.num_steps': '3,4,5,6,7,8,9,10', 'search.coeff': 1.0}
  search.run(search.plan(configured(fields), str(folder)), progress.choose(False))
  told = json.loads((folder / 'search.json').read_text())
  yield Made({'solver.name': 'ipndm', 'solver.max_order': 4, 'schedule.name': 'explicit',
              'schedule.path': str(folder / f'grid-{nfe}.json')}, told['seconds']['total'],
             told['nfe'] * told['search']['warm_up'])


def learned(name: str, pairs: bool, **fields: Any) -> Callable[[int], Iterator[Made]]:
  """A learned solver; `pairs`: with two evaluations in a step, the first of an odd number free."""
  def make(nfe):
    folder = OUT / f'{name}-{nfe}'
    own = {f'learn.{field}': value for field, value in fields.items() if '.' not in field}
    own |= {field: value for field, value in fields.items() if '.' in field}
    own['learn.num_steps'] = (nfe + 1) // 2 if pairs else nfe
    if pairs:
      own['learn.afs'] = bool(nfe % 2)
    print(train_amed.run(train_amed.plan(configured(own), str(folder)), progress.choose(False)))
    source = predictors.load(folder).config['source']
    yield Made({'predictor.path': str(folder)}, source['seconds'], source['evaluations'])
  return make


def plugin(nfe: int) -> Iterator[Made]:
  """The default of --mode=train_amed at odd numbers; at even ones, without a free step, less."""
  yield from learned('plugin', True, **({} if nfe % 2 else FEWER))(nfe)


def distilled(nfe: int) -> Iterator[Made]:
  """The student of SFD-v: one for 2 to 5 evaluations."""
  if nfe <= 5:
    yield from student('sfd-v', nfe, {'distill.step_condition': True,
                                      'distill.trajectories': STUDENT})


def student(name: str, nfe: int, fields: dict[str, Any]) -> Iterator[Made]:
  """A distilled network, which takes Euler steps, the first one free."""
  folder = OUT / name
  print(distill.run(distill.plan(configured(fields), str(folder)), progress.choose(False)))
  source = json.loads((folder / 'model/config.json').read_text())['source']
  told = source['training']
  each = np.mean([(told['M'] + 2) * (points - 1) - 1 for points in told['points']])
  yield Made({'model.path': str(folder / 'model'), 'solver.name': 'euler', 'solver.afs': True,
              'schedule.num_steps': nfe + 1}, source['seconds'],
             int(source['trajectories'] * each))


# The default of 10,000 trajectories is for one row; all with it would take too long.
FEWER = {'trajectories': 1280}
"""Of predictors by a network."""
FEW = {'trajectories': 2560, 'log_every': 2}
FEWEST = {'trajectories': 640, 'log_every': 2}
"""Of designs that learn some dozens of numbers."""
STUDENT = 10_000
"""Of the network that is distilled."""

ENTRIES: dict[str, Callable[[int], Iterator[Made]]] = {
    'iPNDM': ipndm,
    'iPNDM on time_uniform': ipndm_on_time_uniform,
    'DPM-Solver++': plain('dpmpp', max_order=3),
    'UniPC': plain('unipc', max_order=3),
    'iPNDM + GITS': searched,
    'AMED-Solver': learned('amed', True, student='amed', **FEWER),
    'AMED-Plugin on iPNDM': plugin,
    'EPD-Plugin on iPNDM': learned('epd', True, design='epd', student='ipndm', **FEWER),
    'learned grid (LD3)': learned('grid', False, design='grid', **FEW),
    'learned coefficients (S4S)': learned('coefficients', False, design='coefficients', **FEWEST),
    'both': learned('both', False, design='coefficients', learn_grid=True, **FEWEST),
    'SFD-v': distilled,
}


_TO_STUDENTS_END = {'schedule.sigma_min': 0.006}  # The last level that students know.
STUDENTS: dict[str, tuple[int, Callable[[int], Iterator[Made]]]] = {
    'the student': (2, lambda nfe: student('sfd', nfe, {})),
    'Euler with AFS': (2, lambda nfe: iter([Made({
        **_TO_STUDENTS_END, 'solver.name': 'euler', 'solver.afs': True,
        'schedule.num_steps': nfe + 1})])),
    'Euler': (8, lambda nfe: iter([Made({
        **_TO_STUDENTS_END, 'solver.name': 'euler', 'schedule.num_steps': nfe})])),
    'the teacher': (12, lambda nfe: iter([Made({
        **_TO_STUDENTS_END, 'solver.max_order': 3, 'schedule.num_steps': nfe})])),
}
"""Name -> evaluations, and the sampler: the default of --mode=distill, and what it is beside."""


class Judge(NamedTuple):
  """Measures samples against the reference solution and the data.

  Attributes:
    solution: of the reference, from SEEDS.
    quality: what images are judged by.
    floor: distance of as many real images as are judged.
  """

  solution: exact.Solution
  quality: quality_lib.Quality
  floor: float

  def measure(self, made: Made) -> dict[str, Any]:
    """Returns the distance of samples to the reference solution, and what they took."""
    plan = generate.plan(configured(made.fields), str(OUT / 'judge'))
    rms = float(np.sqrt(np.mean((samples_of(plan) - self.solution.end)**2)))
    return {'rms': rms, 'nfe': plan.solver.nfe, 'made': made}

  def compare(self, made: Made) -> dict[str, Any]:
    """Returns the distance of many samples to the data, with its interval."""
    plan = generate.plan(configured({**made.fields, 'seeds': MANY}), str(OUT / 'judge'))
    found = self.quality.resample(images.to_uint8(samples_of(plan)), _RESAMPLES)
    return {'frechet': found.estimate, 'interval': found.interval(quality_lib.LEVEL)}


def measured(judge: Judge, name: str, nfe: int,
             make: Callable[[int], Iterator[Made]]) -> dict[str, Any] | None:
  """Returns what an entry's best is worth, from its file where it was measured before.

  Args:
    judge: of the samples.
    name: of the entry.
    nfe: evaluations of the network.
    make: yields what competes.

  Returns:
    What `Judge.measure` and `Judge.compare` return; None where the entry has nothing of that cost.
  """
  path = OUT / 'measured' / f'{re.sub("[^a-z0-9]+", "-", name.lower())}-{nfe}.json'
  about = {'seeds': SEEDS, 'many': MANY, 'error': judge.solution.error}
  if path.exists():
    told = json.loads(path.read_text())
    if told.pop('about') == about:
      return told | {'made': Made(**told['made'])}
  found = [judge.measure(made) for made in make(nfe)]
  if not found:
    return None
  best = min(found, key=lambda row: row['rms'])
  best = best | judge.compare(best['made'])
  path.parent.mkdir(exist_ok=True)
  with files.replacing(path) as file:
    file.write(json.dumps(best | {'made': best['made']._asdict(), 'about': about}).encode())
  return best


def find_judge() -> Judge:
  """Solves for the reference, and returns who judges by it."""
  config = configured({})
  plan = generate.plan(config, str(OUT / 'judge'))
  seeds = trial.Trial(model=plan.model, guide=None, limit='none', source=None, rows=_ROWS,
                      slots=exact.SLOTS, seeds=plan.results.seeds, labels=plan.labels,
                      seeds_from='jax', batch_size=plan.batch_size)
  solution = None
  while not exact.is_enough(solution, _REFERENCE):
    solution = exact.refine(seeds, plan.model.sigma_min, plan.model.sigma_max, solution)
  judge = quality_lib.plan(config, plan.model)
  return Judge(solution, judge, judge.floor(len(seeds_lib.parse(MANY))))


def samples_of(plan: generate.Plan) -> np.ndarray:
  """Returns the samples of all seeds of a plan, float32 (n, height, width, channels)."""
  program, constants = generate.sampler_of(plan)
  constants, seeds = devices.replicate(constants), plan.results.seeds
  parts = []
  for first in range(0, len(seeds), plan.batch_size):
    some = slice(first, first + plan.batch_size)
    inputs = sampler.Inputs(
        devices.split(seeds[some]),
        seeds_lib.latents(seeds[some], plan.model.image_shape, 'jax'),
        devices.split(plan.labels[some]))
    parts.append(devices.merge(program(constants, inputs)[0]))
  return np.concatenate(parts)


def configured(fields: dict[str, Any]) -> ml_collections.ConfigDict:
  """Returns the default config with these fields."""
  config = default.get_config()
  config.update_from_flattened_dict({'seeds': SEEDS, 'batch_size': 128, **fields})
  return config


def main() -> None:
  """Trains, measures, prints, and writes the section with --write."""
  devices.use_cores()
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write README.md and the plot here')
  parser.add_argument('--only', help='parts of the names of rows, separated by commas')
  parser.add_argument('--nfe', help='evaluations, separated by commas')
  given = parser.parse_args()
  budgets = [int(part) for part in given.nfe.split(',')] if given.nfe else sorted(BUDGETS + MORE)
  OUT.mkdir(parents=True, exist_ok=True)
  judge = find_judge()
  rows = {}
  for name, make in ENTRIES.items():
    if given.only and not any(part in name for part in given.only.split(',')):
      continue
    for nfe in budgets:
      if nfe in MORE and name not in DEFAULT:
        continue
      found = measured(judge, name, nfe, make)
      if found is not None:
        rows.setdefault(name, {})[nfe] = found
        print(name, nfe, found, flush=True)
  students = {} if given.only else {
      name: measured(judge, name, nfe, make) for name, (nfe, make) in STUDENTS.items()}
  text = render(rows, budgets, judge, students)
  print(text)
  if given.write:
    _plot(rows, HERE / 'learned.png')
    write_section(TITLE, text)


def render(rows: dict[str, dict[int, Any]], budgets: Sequence[int], judge: Judge,
           students: dict[str, Any]) -> str:
  """Returns what was found as Markdown.

  Args:
    rows: name -> evaluations -> what `Judge.measure` returns.
    budgets: the columns.
    judge: of the rows.
    students: name -> what `Judge.compare` returns, of STUDENTS.
  """
  def table(text):
    head = [f'| solver | {" | ".join(f"NFE {nfe}" for nfe in budgets)} |',
            '|---' * (len(budgets) + 1) + '|']
    return '\n'.join(head + [
        f'| {name} | {" | ".join(text(row, nfe) if nfe in row else "" for nfe in budgets)} |'
        for name, row in rows.items()])

  def distance(row, nfe):
    best = min(other[nfe]['rms'] for other in rows.values() if nfe in other)
    text = f'{row[nfe]["rms"]:.3f}'
    return f'**{text}**' if row[nfe]['rms'] == best else text

  def distance_to_data(found):
    low, high = found['interval']
    return f'{found["frechet"]:.3f} [{max(low, 0):.3f}, {high:.3f}]'

  def frechet(row, nfe):
    return distance_to_data(row[nfe])

  def cost(row, nfe):
    made = row[nfe]['made']
    return f'{made.seconds:.0f} s, {made.evaluations / 1e3:.0f}k' if made.seconds else '0'
  lines = [f'| {name} | {found["nfe"]} | {distance_to_data(found)} |'
           for name, found in students.items()]
  seconds = [found['made'].seconds for found in students.values() if found['made'].seconds]
  distillation = '' if not lines else '\n'.join([
      f'The default of `--mode=distill`, in {seconds[0]:.0f} s, beside samplers without training, '
      'all down to', 'the same level of 0.006:', '', '| sampler | evaluations | FD-digits |',
      '|---|---|---|', *lines, ''])
  return f'''`python -m benchmarks.learned --write` makes this section: it trains every solver on
the bundled model, and samples the seeds {SEEDS}, which no training saw. Plain solvers are at the
best of their grids: iPNDM of polynomial with rho 5, 7 and 9, the others also of time_uniform, from
which learning starts; iPNDM on that alone, at the best of three orders, has a row of its own.
Solvers with two evaluations in a step take the first of an odd number for free. SFD-v is one
student for all its columns, whose training counts once. 7 and 9 evaluations are measured for the
default of `--mode=train_amed`, and for plain iPNDM.

Root-mean-square distance per pixel to the solution of the probability-flow ODE from the same
latents (error about {judge.solution.error:.0e}). EPD counts what it evaluates at once as one.

{table(distance)}

FD-digits of the seeds {MANY} with its interval (95 %). As many real digits are at
{judge.floor:.3f}.

{table(frechet)}

Cost of training: seconds on {devices.count()} CPU cores, which other work shared at times, and
thousands of evaluations of the network for one image.

{table(cost)}

{distillation}
![Distance to the reference solution](learned.png)
'''


def _plot(rows, path):
  figure = figure_lib.Figure(figsize=(8, 5.5), layout='constrained')
  axes = figure.subplots()
  for index, (name, row) in enumerate(rows.items()):
    axes.plot(list(row), [row[nfe]['rms'] for nfe in row], label=name,
              marker='os^Dv<>pPX*'[index % 11], linestyle='--' if index < 3 else '-',
              color=f'C{index % 10}' if index < 10 else 'black')
  axes.set(xlabel='evaluations of the network', yscale='log',
           ylabel='RMS distance to the reference solution')
  axes.grid(which='both', alpha=0.3)
  figure.legend(fontsize='small', ncols=4, loc='outside lower center')
  figure.savefig(path, dpi=110)


if __name__ == '__main__':
  main()
