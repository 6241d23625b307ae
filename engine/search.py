"""Searches the best noise levels for a model and a number of steps: `--mode=search`.

A teacher follows the ODE on a fine grid from some latents; what every jump between its points would
cost tells which of them to keep, see `samplers.gits`. The trajectories are computed once for all
numbers of steps. docs/search.md shows what comes of it.

Another method searches no levels: `search_statistics` measures a model for DPM-Solver-v3.
"""

import dataclasses
import functools
import pathlib
import shlex
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

import samplers
from engine import (
  batches,
  devices,
  files,
  generate,
  grid_files,
  guides,
  identity as identity_lib,
  progress as progress_lib,
  resolve,
  sampler,
  search_plots,
  search_statistics,
  seeds as seeds_lib,
  settings,
  trial as trial_lib,
)
from samplers import checks, gits

METHODS = 'gits', 'dpm_v3'
"""What can be found: noise levels, or the statistics of a model."""

_MANIFEST, _COSTS, _PLOT, _PARTS = 'search.json', 'costs.npz', 'costs.png', 'parts'
_MOST_STEPS = 1000  # Of the teacher.
_OTHERS = 'levels', 'statistics'  # Fields of config.search that grids have no use for.


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A search with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    identity: what decides the grids, nested dicts of plain values.
    sigmas: the fine grid, np.float64 (n + 1,).
    table: of the teacher on it, see gits.teacher.
    teacher: its setting.
    student: the solver that is to sample.
    num_steps: of the grids, increasing.
    metric: one of gits.METRICS.
    coeff: weight of each jump over the one before.
    afs: whether the student starts with an analytical step.
    trial: model, guidance, limit, seeds and batch size; padded for the student's tables.
    folder: the workdir, which exists and can be written to.
  """

  config: dict[str, Any]
  identity: dict[str, Any]
  sigmas: np.ndarray
  table: samplers.Table
  teacher: settings.Setting
  student: settings.Setting
  num_steps: tuple[int, ...]
  metric: str
  coeff: float
  afs: bool
  trial: trial_lib.Trial
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan | search_statistics.Plan:
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
  given = resolve.given(config)
  own = config.search
  checks.check_choice('config.search', 'method', own.method, METHODS)
  if own.method == 'dpm_v3':
    return search_statistics.plan(config, workdir)
  batch_size = resolve.batch_size(config)
  resolve.check_names(config)
  _refuse(config)
  _check_group(own, batch_size)
  model = resolve.model(config.model, latent=True)
  resolve.check_latent(config, model)
  sigmas, schedule = resolve.sigmas(config.schedule.name, {
      **given['schedule'], 'num_steps': own.teacher_steps}, model)
  sigmas = checks.distinct('config.schedule', sigmas)
  num_steps = _num_steps(own.num_steps, len(sigmas) - 1)
  teacher, student = (_setting(f'config.search.{field}', own[field])
                      for field in ('teacher', 'student'))
  table = gits.teacher(teacher.name, sigmas, limited=config.limit != 'none', **teacher.options)
  tables = [_student(student, sigmas[_even(len(sigmas), steps + own.afs)], own.afs)
            for steps in num_steps if steps + own.afs < len(sigmas)]
  guide = guides.plan(config.guidance, model, {'name': teacher.name}, sigmas)
  seeds = np.arange(own.seed, own.seed + own.warm_up).astype(np.uint32)
  num_classes = guide.num_classes if guide else model.num_classes
  labels = resolve.labels(config, seeds, num_classes, None, model.image_shape)
  guides.check_labels(guide, labels, config.labels)
  trial = trial_lib.Trial(
      model=model, guide=guide, limit=config.limit, source=None,
      rows=max((table.rows for table in tables), default=1),
      slots=max((table.slots for table in tables), default=1), seeds=seeds, labels=labels,
      seeds_from=config.seeds_from, batch_size=batch_size)
  extras = guide.identity if guide else {}
  identity = {'mode': 'search',
              'config': {'schedule': schedule,
                         'search': {**{field: value for field, value in own.to_dict().items()
                                       if field not in _OTHERS}, 'num_steps': list(num_steps),
                                    'teacher': teacher.text, 'student': student.text},
                         'limit': config.limit, 'labels': str(config.labels),
                         'seeds_from': config.seeds_from},
              'model': model.identity, **extras}
  identity_lib.check(pathlib.Path(workdir), identity)
  return Plan(config=given, identity=identity, sigmas=sigmas, table=table, teacher=teacher,
              student=student, num_steps=num_steps, metric=own.metric, coeff=own.coeff,
              afs=own.afs, trial=trial, folder=files.check_folder(workdir))


def run(plan: Plan | search_statistics.Plan,
        progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Finds the grids of a plan; writes them, the costs with a plot, and search.json last.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    The grids with their costs, and a command that samples on one; some lines.

  Raises:
    FloatingPointError: if a cost is not finite.
    OSError: if a file cannot be written, or one of an earlier run is damaged.
  """
  if isinstance(plan, search_statistics.Plan):
    return search_statistics.run(plan, progress)
  started = time.perf_counter()
  parts = plan.folder / _PARTS
  for folder in (plan.folder, parts):
    files.remove_partial(folder)
  identity_lib.claim(plan.folder, plan.identity)
  earlier = identity_lib.read_result(plan.folder / _MANIFEST, ('grids',))
  if earlier:
    return _say(plan, earlier['grids'], 'nothing to do')
  parts.mkdir(exist_ok=True)
  done = {seed for part in _read(parts) for seed in part['seeds'].tolist()}
  missing = np.flatnonzero([seed not in done for seed in plan.trial.seeds.tolist()])
  seconds = {'compile': 0.0, 'sample': 0.0}
  if missing.size:
    seconds = _measure(plan, missing, parts, progress)
  found = _read(parts)
  cost = sum(part['total'] for part in found) / len(plan.trial.seeds)
  indices = {steps: gits.search(cost, steps, plan.coeff) for steps in plan.num_steps}
  chosen = _with_free_step(plan, indices, found, progress) if plan.afs else indices
  grids = [_write_grid(plan, steps, indices[steps], chosen[steps], cost)
           for steps in plan.num_steps]
  with files.replacing(plan.folder / _COSTS) as file:
    np.savez(file, cost=cost, sigmas=plan.sigmas)
  search_plots.write(plan.folder / _PLOT, cost, plan.sigmas,
                     {steps: chosen[steps] for steps in plan.num_steps}, _recipe(plan))
  seconds['total'] = time.perf_counter() - started
  identity_lib.write_json(plan.folder / _MANIFEST, {
      'mode': 'search', 'config': plan.config, **generate.describe(plan.trial.model),
      **plan.identity['config'], 'nfe': plan.table.nfe, 'fine_sigmas': plan.sigmas.tolist(),
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'grids': grids, 'files': [_COSTS, _PLOT]})
  for part in parts.glob('*.npz'):
    part.unlink()
  parts.rmdir()
  return _say(plan, grids, f'{seconds["total"]:.1f} s')


def _refuse(config):
  for field, value, default, reason in (
      ('condition.task', config.condition.task, None, 'its trajectories are those of whole images'),
      ('input.images', config.input.images, None, 'its trajectories start from noise'),
      ('predictor.path', config.predictor.path, None,
       'a learned solver has a grid of its own'),
      ('share', config.share, '0/1', 'all trajectories count in one mean')):
    if value != default:
      raise ValueError(f'config.{field}: must be {default} with --mode=search, got {value}; '
                       f'{reason}')
  guides.refuse_of_steps(config.guidance, 'search')


def _check_group(own, batch_size):
  checks.check_choice('config.search', 'metric', own.metric, gits.METRICS)
  checks.check_positive('config.search', 'coeff', own.coeff, '1.15 is usual')
  for field, least, most, remedy in (
      ('teacher_steps', 1, _MOST_STEPS, '60 is usual'),
      ('warm_up', batch_size, seeds_lib.MOST, 'it must fill a batch: raise it, or lower '
       'config.batch_size'),
      ('seed', 0, seeds_lib.HIGHEST + 1 - own.warm_up, 'the other trajectories have the seeds that '
       'follow')):
    if not checks.is_integer(own[field]) or not least <= own[field] <= most:
      raise ValueError(f'config.search.{field}: must be an integer from {least} to {most}, got '
                       f'{own[field]}; {remedy}')


def _num_steps(text, most):
  """The numbers of steps, increasing, each once."""
  try:
    numbers = tuple(sorted({int(part) for part in str(text).split(',')}))
  except ValueError:
    raise ValueError('config.search.num_steps: must be numbers of intervals separated by commas, '
                     f"got {text!r}; such as '4,6,8'") from None
  for number in numbers:
    if not 1 <= number <= most:
      raise ValueError(f'config.search.num_steps: must be from 1 to {most}, the intervals of the '
                       f'fine grid, got {number}; raise config.search.teacher_steps for more')
  return numbers


def _setting(field, text):
  """The one solver of a text, a table."""
  parsed = settings.parse(field, text, samplers.option_types)
  if len(parsed) != 1:
    raise ValueError(f'{field}: must be one solver, got {len(parsed)} in {text!r}; such as '
                     "'ipndm(max_order=4)'")
  setting, = parsed
  if setting.name in samplers.LOOPS:
    raise ValueError(f'{field}: must be a table, whose steps are known, got {setting.name}; take '
                     'ipndm')
  return setting


def _student(student, sigmas, afs):
  """The student on a grid, checked."""
  if 'afs' in student.options:
    raise ValueError('config.search.student: must leave afs to config.search.afs, got '
                     f'{student.text}; take it out')
  table = samplers.make(student.name, sigmas, afs=afs, **student.options)
  if afs and np.any(table.noise):
    raise ValueError('config.search.student: must draw no noise where samples tell the place of '
                     f'the first step, got {student.text}; take ipndm, or leave afs out')
  return table


def _even(points, num_steps):
  """Indices of a grid of so many steps, evenly over the points."""
  return np.rint(np.linspace(0, points - 1, num_steps + 1)).astype(int)


def _measure(plan, missing, parts, progress):
  """Follows the teacher from these seeds batch by batch; a file of each batch is left."""
  trial = plan.trial
  guide = trial.guide
  program = sampler.program(sampler.Method(
      trial.model.apply, _teach(plan.table.level.tobytes(), plan.metric), False, None, trial.limit,
      guide and guide.method))
  constants = devices.replicate(sampler.Constants(
      trial.model.params, (plan.table, plan.sigmas), np.float32(plan.sigmas[0]),
      guide and guide.constants))
  by_class = trial.model.num_classes or (guide and guide.num_classes)

  def start(indices):
    seeds = trial.seeds[indices]
    return program(constants, sampler.Inputs(
        seeds=devices.split(seeds),
        latents=seeds_lib.latents(seeds, trial.model.image_shape, trial.seeds_from),
        labels=devices.split(trial.labels[indices]) if by_class else None))

  def finish(indices, answers):
    ends, costs = answers
    seeds = trial.seeds[indices]
    bad = np.flatnonzero(~np.isfinite(costs).all(axis=(1, 2)))
    if bad.size:
      raise FloatingPointError('search: costs must be finite, got one that is not for seed '
                               f'{seeds[bad[0]]}; take another teacher, or less guidance')
    kept = {'ends': ends} if plan.afs else {}
    with files.replacing(parts / f'{seeds[0]:010d}.npz') as file:
      np.savez(file, seeds=seeds, total=costs.sum(0, dtype=np.float64), **kept)
  return batches.run(missing, trial.batch_size, start, finish, progress, 'following the teacher',
                     len(trial.seeds) - len(missing))


@functools.cache
def _teach(level: bytes, metric: str) -> Callable[..., Any]:
  """`solve` of sampler.Method: where a teacher ends, and the costs of all jumps, per sample."""
  def solve(arrays, denoise, x, *, keys, guide, project):
    del keys, guide, project
    table, sigmas = arrays
    # Which rows are looked at is a shape, so it is known while tracing; nothing is drawn.
    table = dataclasses.replace(table, level=np.frombuffer(level),
                                noise=np.zeros(table.noise.shape))
    states, eps = gits.follow(table, denoise, x)
    return states[-1], gits.costs(states, eps, sigmas, metric)
  return solve


def _read(parts):
  """What was computed so far, in the order of the seeds."""
  return [files.read_arrays('search', file, ['seeds', 'total'], more=True)
          for file in sorted(parts.glob('*.npz'))]


def _with_free_step(plan, indices, found, progress):
  """Number of steps -> the indices with the point that the analytical first step pays for."""
  place = {seed: i for i, seed in enumerate(np.concatenate([part['seeds'] for part in found]))}
  ends = np.concatenate([part['ends'] for part in found])[[
      place[seed] for seed in plan.trial.seeds]]
  candidates = {steps: gits.afs_candidates(way) for steps, way in indices.items()}
  chosen = {}
  with progress('placing the free step', sum(map(len, candidates.values())), 'grids') as advance:
    for steps, ways in candidates.items():
      distances = []
      for way in ways:
        sigmas = plan.sigmas[way]
        samples, _ = plan.trial.run([_student(plan.student, sigmas, True)], sigmas[0], len(ends))
        distances.append(np.linalg.norm((samples - ends).reshape(len(ends), -1), axis=1).mean())
        advance()
      chosen[steps] = gits.insert_afs(indices[steps], distances)
  return chosen


def _write_grid(plan, steps, searched, chosen, cost):
  """Writes a grid with its exports; what search.json says of it."""
  identity = plan.identity
  sigmas = plan.sigmas[chosen].tolist()
  # Where the first two points are neighbours there is no place for a free step.
  afs = plan.afs and len(chosen) > len(searched)
  about = {
      'num_steps': steps, 'afs': afs, 'indices': chosen.tolist(),
      'cost': gits.objective(cost, searched, plan.coeff),
      'cost_of_even_points': gits.objective(cost, _even(len(cost), steps), plan.coeff),
      'nfe': _student(plan.student, sigmas, afs).nfe,
      'solver': plan.student.text}
  names = grid_files.write(plan.folder, steps, sigmas, {
      **about, **{name: identity['config']['search'][name]
                  for name in ('method', 'teacher', 'teacher_steps', 'metric', 'coeff', 'warm_up',
                               'seed')},
      **{name: value for name, value in identity.items() if name not in ('mode', 'config')},
      **{name: identity['config'][name] for name in ('schedule', 'limit', 'labels')}})
  return {**about, 'sigmas': sigmas, 'files': names}


def _recipe(plan):
  """What was searched, in one line."""
  own = plan.identity['config']['search']
  return (f'{own["warm_up"]} trajectories of {plan.teacher.text} on {len(plan.sigmas)} points of '
          f'{plan.identity["config"]["schedule"]["name"]}, {plan.trial.model.name}')


def _say(plan, grids, note):
  lines = [f'{grid["num_steps"]} steps{" after a free one" if grid["afs"] else ""}: '
           f'{", ".join(f"{level:.4g}" for level in grid["sigmas"])}; cost {grid["cost"]:.3g} '
           f'({grid["cost_of_even_points"]:.3g} on even points)' for grid in grids]
  return '\n'.join([*lines, f'{_recipe(plan)}, NFE {plan.table.nfe}, {note}; see {_PLOT} and '
                    f'{_MANIFEST} in {plan.folder}', 'sample on one of them:',
                    _command(plan, grids[len(grids) // 2])])


def _command(plan, grid):
  """The command line that samples on a grid."""
  given = plan.config
  flags = {**resolve.model_flags(given),
           'schedule.name': 'explicit',
           'schedule.path': plan.folder / grid_files.name(grid['num_steps']),
           'solver.name': plan.student.name,
           **{f'solver.{option}': value for option, value in plan.student.options.items()}}
  if grid['afs']:
    flags['solver.afs'] = True
  if plan.trial.limit != 'none':
    flags['limit'] = plan.trial.limit
  if plan.trial.guide:
    flags |= {f'guidance.{field}': value for field, value in given['guidance'].items()}
  return ' '.join(['python main.py', *(f'--config.{field}={shlex.quote(str(value))}'
                                       for field, value in flags.items())])
