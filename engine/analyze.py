"""Looks at the trajectories of a model: `--mode=analyze`.

Samples trajectories with the solver, and measures their shape; compares the model with the optimal
denoiser and with Gaussian approximations of a data set along them; and measures the error of every
single step of the solver against a fine solution. docs/analysis.md explains the plots.
"""

import dataclasses
import functools
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

import models
import samplers
from engine import (
  analyze_data,
  analyze_paths,
  analyze_plots,
  batches,
  devices,
  files,
  generate,
  identity as identity_lib,
  progress as progress_lib,
  resolve,
  seeds as seeds_lib,
)
from evaluation import curves, projection
from samplers import checks

_MANIFEST, _PARTS, _TRAJECTORIES = 'analysis.json', 'parts', 'trajectories.npz'
_KEPT = 0.8  # Share of the trajectories that are drawn in space, as published.
_MOST_POINTS = 10_001


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """An analysis with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    model: the denoiser.
    identity: what decides the numbers, nested dicts of plain values.
    grids: levels and tables.
    limit: limit on the denoised image, a key of sampler.LIMITS.
    window: points of a fit of curvature and torsion.
    data: what the model is compared with, or None.
    save: whether trajectories.npz is written.
    seeds: np.uint32 (n,).
    seeds_from: who draws latents, one of seeds.SOURCES.
    labels: np.int32 (n,), below 0 without a class.
    batch_size: images per call, over all devices.
    folder: the workdir, which exists and can be written to.
  """

  config: dict[str, Any]
  model: models.Model
  identity: dict[str, Any]
  grids: analyze_paths.Grids
  limit: str
  window: int
  data: analyze_data.Data | None
  save: bool
  seeds: np.ndarray
  seeds_from: str
  labels: np.ndarray
  batch_size: int
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it.

  Args:
    config: the fields of configs/default.py.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of the model cannot be read.
    ValueError: if a field is out of range, or the folder holds something else.
  """
  config = resolve.read_none(config)
  given = resolve.given(config)
  batch_size = resolve.batch_size(config)
  resolve.check_names(config)
  resolve.refuse(config, 'analyze')
  if config.input.images is not None:
    raise ValueError('config.input.images: must be left out with --mode=analyze, got '
                     f'{config.input.images}; its trajectories start from noise, and '
                     'config.analyze.data names images to compare with')
  analyze = config.analyze
  _check_group(analyze)
  model = resolve.model(config.model)
  seeds = resolve.seeds(config.seeds, None)
  if len(seeds) < 3:
    raise ValueError('config.seeds: must be 3 or more for --mode=analyze, which compares '
                     f"trajectories, got {len(seeds)}; such as '0-63'")
  labels = resolve.labels(config, seeds, model.num_classes, None, model.image_shape)
  sigmas, schedule = resolve.sigmas(config.schedule.name, given['schedule'], model)
  points, _ = resolve.sigmas(config.schedule.name, {
      **given['schedule'], 'num_steps': analyze.num_points - 1}, model)
  sigmas, points = (checks.distinct('config.schedule', levels) for levels in (sigmas, points))
  grids, solver = _grids(config.solver.name, resolve.options(given['solver']), sigmas, points,
                         analyze)
  data = analyze_data.load(analyze.data, model, labels)
  known = {'images': data.name, 'sha256': data.sha256} if data else None
  identity = {'mode': 'analyze',
              'config': {'schedule': schedule, 'solver': solver, 'limit': config.limit,
                         'labels': str(config.labels), 'seeds_from': config.seeds_from,
                         'analyze': {**analyze.to_dict(), 'data': known}},
              'model': model.identity}
  identity_lib.check(pathlib.Path(workdir), identity)
  return Plan(config=given, model=model, identity=identity, grids=grids, limit=config.limit,
              window=analyze.window, data=data, save=analyze.save_trajectories, seeds=seeds,
              seeds_from=config.seeds_from, labels=labels, batch_size=batch_size,
              folder=files.check_folder(workdir))


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Analyzes the trajectories of a plan; writes plots and then analysis.json.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    One line for the user.

  Raises:
    FloatingPointError: if a state is not finite.
    OSError: if a file cannot be written, or one of an earlier run is damaged.
  """
  started = time.perf_counter()
  parts = plan.folder / _PARTS
  for folder in (plan.folder, parts):
    files.remove_partial(folder)
  identity_lib.claim(plan.folder, plan.identity)
  earlier = identity_lib.read_result(plan.folder / _MANIFEST, ('seeds', 'summary'))
  if earlier and earlier['seeds'] == plan.seeds.tolist():
    return f'nothing to do: {_say(plan, earlier["summary"])}'
  parts.mkdir(exist_ok=True)
  there = np.isin(plan.seeds, _list(parts))
  seconds = {'compile': 0.0, 'sample': 0.0}
  if not there.all():
    seconds = _measure(plan, np.flatnonzero(~there), parts, progress)
  numbers = _read(parts, plan.seeds.tolist())
  if plan.save:
    with files.replacing(plan.folder / _TRAJECTORIES) as file:
      np.savez(file, sigmas=plan.grids.points, seeds=plan.seeds,
               **{name: np.moveaxis(numbers.pop(name), 1, 0) for name in ('x', 'denoised')})
  numbers |= _shape(numbers, plan.window)
  plots = analyze_plots.write(plan.folder, analyze_plots.Look(
      numbers, plan.grids.points, plan.grids.sigmas, plan.identity['config']['solver']['name'],
      _recipe(plan)))
  seconds['total'] = time.perf_counter() - started
  summary = _summary(plan, numbers)
  identity_lib.write_json(plan.folder / _MANIFEST, {
      'mode': 'analyze', 'config': plan.config, **generate.describe(plan.model),
      **plan.identity['config'], 'nfe': plan.grids.tables['steps'].nfe,
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'summary': summary, 'seeds': plan.seeds.tolist(),
      'labels': [None if label < 0 else label for label in plan.labels.tolist()],
      'sigmas': plan.grids.points.tolist(), 'step_sigmas': plan.grids.sigmas.tolist(),
      'kept_seeds': plan.seeds[numbers['kept']].tolist(),
      'over_images': {name: _over_images(array) for name, array in numbers.items()
                      if name not in ('kept', 'aligned', 'coordinates')},
      'files': plots + [_TRAJECTORIES] * plan.save})
  for part in parts.glob('*.npz'):
    part.unlink()
  parts.rmdir()
  return f'{_say(plan, summary)}, {seconds["total"]:.1f} s'


def _check_group(analyze):
  for name, least in (('num_points', 3), ('substeps', 2)):
    if not checks.is_integer(analyze[name]) or not least <= analyze[name] <= _MOST_POINTS:
      raise ValueError(f'config.analyze.{name}: must be an integer from {least} to {_MOST_POINTS}, '
                       f'got {analyze[name]}; configs/analyzing.py has the usual one')
  if analyze.substeps % 2:
    raise ValueError('config.analyze.substeps: must be even, since a solution with half as many '
                     f'tells its error, got {analyze.substeps}; take {analyze.substeps + 1}')


def _grids(name, options, sigmas, points, analyze):
  """The tables, and the solver with its defaults filled in; or ValueError."""
  if len(points) != analyze.num_points:
    raise ValueError('config.analyze.num_points: must be the number of different levels where the '
                     f'schedule sets it, {len(points)}, got {analyze.num_points}; set it, or '
                     'choose a schedule of any number of steps')
  if options.get('denoise_to_zero'):
    raise ValueError('config.solver.denoise_to_zero: must be left out with --mode=analyze, got '
                     'True; it is no step along a trajectory')
  if name in samplers.LOOPS or np.any(samplers.make(name, sigmas, **options).noise):
    raise ValueError('config.solver: must be a table that draws no noise, so that it follows the '
                     f'ODE, got {name} with {options or "its defaults"}; take euler, heun or dpmpp')
  grids = analyze_paths.plan(name, options, sigmas, points, analyze.substeps)
  curves.check_window('config.analyze.window:', analyze.window, len(grids.points))
  return grids, {'name': name, **samplers.options(name), **options}


def _measure(plan, missing, parts, progress):
  """Computes the images of these indices batch by batch; a file of each batch is left."""
  place = functools.partial(analyze_paths.place, limit=plan.limit)
  model = place(plan.model.apply, plan.model.params, by_class=plan.model.num_classes > 0)
  oracles = analyze_data.oracles(plan.data) if plan.data else {}
  oracles = {name: analyze_paths.place(*oracle[:2], 'none', oracle.by_class)
             for name, oracle in oracles.items()}
  data_labels = plan.data.sample_labels if plan.data else plan.labels

  def start(indices):
    latents = seeds_lib.latents(plan.seeds[indices], plan.model.image_shape, plan.seeds_from)
    return analyze_paths.start(model, oracles, plan.grids, latents,
                               devices.split(plan.labels[indices]),
                               devices.split(data_labels[indices]))

  def finish(indices, states):
    seeds = plan.seeds[indices]
    for array in states.values():
      bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
      if bad.size:
        raise FloatingPointError('analyze: states must be finite, got one that is not for seed '
                                 f'{seeds[bad[0]]}; take more steps or another solver')
    numbers = analyze_paths.reduce(states, plan.grids)
    if plan.save:
      count = len(plan.grids.points)
      numbers |= {'x': states['x'][:, :count], 'denoised': states['denoised'][:, :count - 1]}
    with files.replacing(parts / f'{seeds[0]:06d}.npz') as file:
      np.savez(file, seeds=seeds, **numbers)
  return batches.run(missing, plan.batch_size, start, finish, progress, 'analyzing',
                     len(plan.seeds) - len(missing))


def _list(parts):
  """Seeds of all that was computed so far."""
  return [seed for file in sorted(parts.glob('*.npz'))
          for seed in files.read_arrays('analyze', file, ['seeds'])['seeds']]


def _read(parts, seeds):
  """name -> numbers of all images in the order of the seeds."""
  found = {}
  for file in sorted(parts.glob('*.npz')):
    for name, array in files.read_arrays('analyze', file, more=True).items():
      found.setdefault(name, []).append(array)
  found = {name: np.concatenate(some) for name, some in found.items()}
  place = {seed: index for index, seed in enumerate(found.pop('seeds').tolist())}
  order = [place[seed] for seed in seeds]
  return {name: array[order] for name, array in found.items()}


def _shape(numbers, window):
  """What needs all trajectories at once: which are kept, and their curves aligned."""
  coordinates = np.moveaxis(numbers['coordinates'], 1, 0)
  kept, _ = projection.trim(coordinates, _KEPT)
  bend, twist = curves.curvature_torsion(coordinates, window)
  return {'kept': kept, 'aligned': projection.align(numbers['coordinates'][kept][..., 1:]),
          'arc_length': curves.arc_length(coordinates).T, 'curvature': bend.T, 'torsion': twist.T}


def _over_images(array):
  """Mean, tenth and ninetieth percentile over the images of each entry."""
  low, high = np.nanpercentile(array, (10, 90), axis=0)
  return {'mean': np.nanmean(array, axis=0).tolist(), 'low': low.tolist(), 'high': high.tolist()}


def _summary(plan, numbers):
  """The numbers of the printed line."""
  steps = {'solver': numbers['error_steps_local'], 'euler': numbers['error_steps_euler_local'],
           'reference': numbers['error_half']}
  return {'deviation': float((numbers['dev_x'].max(1) / numbers['dist_x'][:, 0]).mean()),
          'explained_by_two': float(numbers['explained'][:, 1].mean()),
          'largest_step_error': {name: float(error.mean(0).max()) for name, error in steps.items()}}


def _recipe(plan):
  """What was looked at, in one line."""
  config = plan.identity['config']
  return (f'{config["solver"]["name"]} on {config["schedule"]["name"]}, '
          f'{len(plan.grids.points)} points, {len(plan.seeds)} seeds, {plan.model.name}')


def _say(plan, summary):
  errors = summary['largest_step_error']
  return (f'{_recipe(plan)}: at most {100 * summary["deviation"]:.1f} % of its length off the '
          f'chord, {100 * summary["explained_by_two"]:.1f} % of the rest in two directions; '
          f'largest error of one of {len(plan.grids.sigmas) - 1} steps {errors["solver"]:.2g}, '
          f'of Euler {errors["euler"]:.2g}, of the reference {errors["reference"]:.1g}; see '
          f'{_MANIFEST} and {analyze_plots.OVERVIEW} in {plan.folder}')
