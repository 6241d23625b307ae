"""Compares solvers, schedules and numbers of evaluations on one model: `--mode=compare`.

All cells start from the same latents. What is measured: the distance to the reference solution of
the probability-flow ODE, the Frechet distance to real images, and the time. Every solver gets the
same search over schedules and over the options that the config names: on some of the seeds, all
settings of it are tried; then, on all seeds, the one that is common to all solvers, and the best.

A workdir may be asked for more: cells that are there stay, on the same page.
"""

import dataclasses
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

from engine import (
  cells as cells_lib,
  comparison,
  devices,
  exact,
  files,
  generate,
  guides,
  identity as identity_lib,
  images,
  progress as progress_lib,
  quality as quality_lib,
  resolve,
  seeds as seeds_lib,
  trial as trial_lib,
)
from samplers import checks

_LEAST_ROWS = 12  # Of the tables: room for pieces of the reference solution.
_REFERENCE = 'reference.npz'


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A comparison with nothing left to decide.

  Attributes:
    asked: what is compared.
    trial: seeds, model and program.
    sigma_min: last level of the reference solution.
    sigma_max: first level of all cells.
    search: number of seeds of the search.
    shown: number of seeds on the page.
    tolerance: of the reference solution.
    resamples: of the bootstrap.
    quality: judge of the images, or None.
    uint8_rule: how numbers become bytes.
    flags: fields of the config that all cells share, for their commands.
    identity: what decides all numbers but the lists of cells.
    folder: the workdir.
  """

  asked: cells_lib.Cells
  trial: trial_lib.Trial
  sigma_min: float
  sigma_max: float
  search: int
  shown: int
  tolerance: float
  resamples: int
  quality: quality_lib.Quality | None
  uint8_rule: str
  flags: dict[str, Any]
  identity: dict[str, Any]
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it.

  Args:
    config: the fields of configs/default.py.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of a model cannot be read.
    ValueError: if a field is out of range, or the folder holds something else.
  """
  config = resolve.read_none(config)
  own = config.compare
  resolve.check_names(config)
  _refuse(config)
  batch_size = resolve.batch_size(config)
  model = resolve.model(config.model)
  seeds = seeds_lib.parse(own.seeds)
  _check_numbers(own, len(seeds))
  asked = cells_lib.plan(config, model)
  cells = asked.cells
  tables = [cell.run.arrays for cell in cells if cell.is_table]
  guide = guides.plan(config.guidance, model, {'name': 'heun'},
                      max((cell.sigmas for cell in cells), key=max))
  num_classes = guide.num_classes if guide else model.num_classes
  labels = resolve.labels(config, seeds, num_classes, None, model.image_shape)
  guides.check_labels(guide, labels, config.labels)
  quality = quality_lib.plan(config, model)
  trial = trial_lib.Trial(
      model=model, guide=guide, limit=config.limit,
      source=config.noise if any(cell.draws for cell in cells) else None,
      rows=max([_LEAST_ROWS, *(len(table.sigma) for table in tables)]),
      slots=max([exact.SLOTS, *(table.mix.shape[1] for table in tables)]),
      seeds=seeds, labels=labels, seeds_from=config.seeds_from, batch_size=batch_size)
  sigma_min = config.schedule.sigma_min or model.sigma_min
  sigma_max = config.schedule.sigma_max or model.sigma_max
  identity = {
      'mode': 'compare', 'format': comparison.FORMAT,
      # Times of two machines, or of two batch sizes, do not compare.
      'machine': {'devices': _machine(), 'batch_size': batch_size},
      'config': {'seeds': own.seeds, 'search': own.search, 'shown': own.shown,
                 'common': asked.schedule, 'tolerance': own.tolerance,
                 'resamples': own.resamples, 'sigma_min': sigma_min, 'sigma_max': sigma_max,
                 'limit': config.limit, 'noise': config.noise, 'labels': str(config.labels),
                 'seeds_from': config.seeds_from, 'uint8_rule': config.output.uint8_rule},
      'model': model.identity,
      'frechet': quality.describe() if quality else None,
      **(guide.identity if guide else {})}
  folder = pathlib.Path(workdir)
  same = identity_lib.check(folder, identity)
  if not same and (folder / comparison.CELLS).exists():
    raise ValueError(f'workdir: must be empty or hold a comparison, got {folder / comparison.CELLS}'
                     f' without {identity_lib.NAME}; choose another --workdir')
  if same:
    _check_statistics(folder, cells)
  files.check_folder(workdir)
  return Plan(
      asked=asked, trial=trial, sigma_min=sigma_min, sigma_max=sigma_max,
      search=own.search, shown=own.shown, tolerance=own.tolerance, resamples=own.resamples,
      quality=quality, uint8_rule=config.output.uint8_rule,
      flags=_shared_flags(config, guide is not None), identity=identity, folder=folder)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Measures the cells that are not there yet, and writes the report.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    The best cells by number of evaluations, some lines.

  Raises:
    FloatingPointError: if the reference solution is not finite.
    OSError: if a file cannot be written.
  """
  folder = plan.folder
  started = time.perf_counter()
  comparison.begin(folder, plan.identity)
  solution = _solution(plan, progress)
  own = plan.quality and plan.quality.resample(_pixels(plan, solution.end), plan.resamples)
  _search(plan, solution, progress)
  best = comparison.best(comparison.read_search(folder))
  due = [cell for cell in plan.asked.cells
         if cell.common or (cell.solver.text, cell.schedule.text) == best.get(
             (cell.title, cell.nfe))]
  measured = {cell['id'] for cell in comparison.read_cells(folder)}
  missing = [cell for cell in due if cell.id not in measured]
  if missing:
    seconds = _seconds(plan, missing, progress)
  with progress('measuring', len(due), 'cells', done=len(due) - len(missing)) as advance:
    for cell in missing:
      record, samples = _measure(plan, cell, solution, own, seconds)
      comparison.write_cell(folder, record, _strip(plan, samples))
      advance()
  report = _report(plan, solution, own) | {
      'run': {'cells': len(missing), 'seconds': time.perf_counter() - started}}
  comparison.write(folder, report, _strip(plan, solution.end))
  return comparison.summary(folder, report, plan.asked.refused)


def _solution(plan, progress):
  """The reference solution, refined until it is good enough; each refinement is kept."""
  path = plan.folder / _REFERENCE
  solution = comparison.read_solution(path)
  done = solution.num_steps if solution else 0
  with progress('reference solution', exact.LAST, 'steps', done=done) as advance:
    while not exact.is_enough(solution, plan.tolerance):
      solution = exact.refine(plan.trial, plan.sigma_min, plan.sigma_max, solution)
      with files.replacing(path) as file:
        np.savez(file, **solution._asdict())
      advance(solution.num_steps - done, error=f'{solution.error:.1e}')
      done = solution.num_steps
  return solution


def _seconds(plan, missing, progress):
  """Seconds of one evaluation for all seeds; every program that is timed later is compiled here."""
  with progress('timing', 1, 'program') as advance:
    for cell in {_program(cell): cell for cell in missing}.values():
      _sample(plan, cell, 1)
    seconds = trial_lib.seconds_per_evaluation(plan.trial)
    advance()
  return seconds


def _search(plan, solution, progress):
  """Tries all settings on some seeds: by distance, those with noise by their images."""
  rows = {}
  for cell in plan.asked.cells:
    rows.setdefault((cell.solver.text, cell.schedule.text), []).append(cell)
  known = {(row['solver'], row['schedule'], nfe)
           for row in comparison.read_search(plan.folder) for nfe in row['scores']}
  due = [row for row in rows.values() if any(
      (cell.solver.text, cell.schedule.text, str(cell.nfe)) not in known for cell in row)]
  with progress('searching', len(rows), 'settings', done=len(rows) - len(due)) as advance:
    for row in due:
      scores = {str(cell.nfe): _score(plan, cell, solution) for cell in row}
      comparison.write_search(plan.folder, row[0], scores)
      advance()


def _score(plan, cell, solution):
  """What the search goes by, the lower the better; None where there is nothing to go by."""
  samples, _ = _sample(plan, cell, plan.search)
  if not cell.noisy:
    errors = _errors(plan, cell, samples, solution)
    return None if errors is None else exact.rms(errors)
  if plan.quality is None or not np.isfinite(samples).all():
    return None
  return plan.quality.resample(_pixels(plan, samples), 1).estimate


def _sample(plan, cell, count):
  return plan.trial.run([cell.run.arrays], cell.sigmas[0], count, splits=cell.run.splits,
                        solve=None if cell.is_table else cell.run.solve)


def _program(cell):
  """What tells the programs of cells apart: all tables share theirs."""
  return cell.run.splits if cell.is_table else (cell.run.solve, cell.num_steps)


def _errors(plan, cell, samples, solution):
  """RMS per pixel of each image."""
  target = solution.zero
  if cell.last_level > 0:
    target = solution.end if np.isclose(cell.last_level, plan.sigma_min, rtol=1e-3) else None
  if cell.draws or target is None or not np.isclose(cell.sigmas[0], plan.sigma_max, rtol=1e-3) or (
      not np.isfinite(samples).all()):
    return None
  difference = np.square(samples - target[:len(samples)], dtype=np.float64)
  return np.sqrt(difference.mean((1, 2, 3)))


def _pixels(plan, samples):
  return images.to_uint8(samples, plan.uint8_rule)


def _measure(plan, cell, solution, own, per_evaluation):
  """One cell on all seeds: its record, and the samples."""
  count = len(plan.trial.seeds)
  samples, seconds = _sample(plan, cell, count)
  errors = _errors(plan, cell, samples, solution)
  finite = np.isfinite(samples).all(axis=(1, 2, 3))
  record = cells_lib.record(cell, plan.flags)
  record['rms'], record['rms_interval'] = quality_lib.root_mean_square(errors, plan.resamples)
  record |= dict.fromkeys(('frechet', 'frechet_interval', 'frechet_gap', 'frechet_gap_interval'))
  if plan.quality and finite.all():
    record |= plan.quality.judge(_pixels(plan, samples), own, plan.resamples)
  if not finite.all():
    record['note'] = f'{np.sum(~finite)} of {count} samples are not finite'
  record |= {'seconds': seconds, 'images_per_second': count / seconds,
             'network_seconds': cell.nfe * per_evaluation}
  return record, samples


def _strip(plan, samples):
  """The first samples side by side, as PNG."""
  shown = np.nan_to_num(samples[:plan.shown], nan=-1.0, posinf=1.0, neginf=-1.0)
  return comparison.strip(_pixels(plan, shown))


def _report(plan, solution, own):
  """All that compare.json says."""
  trial, model = plan.trial, plan.trial.model
  about = generate.describe(model)
  settings = {'limit': trial.limit, 'labels': plan.identity['config']['labels'],
              'guidance': trial.guide.text if trial.guide else 'none',
              'levels': f'from {plan.sigma_max:g} to {plan.sigma_min:g}',
              'search': f'the first {plan.search} seeds, by the distance to the reference '
                        'solution, for solvers with noise by the Frechet distance',
              'images per call': str(trial.batch_size)}
  return comparison.report(
      plan.folder, plan.asked.firsts,
      title=f'Solvers on {model.name}',
      model={'name': model.name, 'sha256': model.sha256, 'image_shape': list(model.image_shape)},
      seeds=plan.identity['config']['seeds'], count=len(trial.seeds),
      shown_seeds=trial.seeds[:plan.shown].tolist(),
      machine={'device': _machine(),
               'versions': about['versions']},
      reference={
          'description': f'{exact.SOLVER} of order {exact.OPTIONS["order"]} on {exact.SCHEDULE}, '
                         f'{solution.num_steps} steps',
          'nfe': solution.nfe, 'error': solution.error, 'strip': comparison.REFERENCE,
          'converged': solution.error <= plan.tolerance},
      frechet=plan.quality and {**plan.quality.describe(), 'resamples': plan.resamples,
                                'floor': plan.quality.floor(len(trial.seeds)),
                                'solution': own.estimate},
      settings=settings)


def _machine():
  return f'{devices.count()} x {devices.kind()}'


def _shared_flags(config, guided):
  """The fields that all cells share, for the command of each: 'model.name' -> value."""
  fields = {'seeds': config.compare.seeds, 'output.uint8_rule': config.output.uint8_rule}
  fields |= {name: config[name] for name in ('labels', 'seeds_from', 'limit', 'noise')}
  model = 'name' if config.model.path is None else 'path'
  fields[f'model.{model}'] = config.model[model]
  fields |= {f'schedule.{name}': config.schedule[name] for name in ('sigma_min', 'sigma_max')}
  if guided:
    fields |= {f'guidance.{name}': value for name, value in config.guidance.items()}
  return {name: value for name, value in fields.items() if value is not None}


def _refuse(config):
  """Raises ValueError for fields of the mode generate that would change what is compared."""
  for field in ('predictor.path', 'condition.task', 'input.images'):
    group, name = field.split('.')
    if config[group][name] is not None:
      raise ValueError(f'config.{field}: must be left out with --mode=compare, got '
                       f'{config[group][name]}; the mode generate has it')
  if config.share != '0/1':
    raise ValueError(f'config.share: must be 0/1 with --mode=compare, got {config.share}; times '
                     'compare on one machine only')
  guides.refuse_of_steps(config.guidance, 'compare')


def _check_statistics(folder, cells):
  """Raises ValueError if a file of statistics has changed since its cells were measured."""
  now = {cell.id: cell.run.identity.get('statistics') for cell in cells}
  for record in comparison.read_cells(folder):
    if record.get('statistics') != now.get(record['id'], record.get('statistics')):
      raise ValueError(f'workdir: must hold cells of the same statistics, got {record["id"]} in '
                       f'{folder} of others than those that its file has now; choose another '
                       '--workdir')


def _check_numbers(own, count):
  for field, least, most in (('search', 2, count), ('shown', 1, count), ('resamples', 20, 100_000)):
    if not checks.is_integer(own[field]) or not least <= own[field] <= most:
      raise ValueError(f'config.compare.{field}: must be an integer from {least} to {most}, got '
                       f'{own[field]}; config.compare.seeds has {count}')
  if count < 2:
    raise ValueError(f'config.compare.seeds: must be two or more, got {count}; 256 are usual')
  checks.check_positive('config.compare', 'tolerance', own.tolerance, '1e-3 is usual')
