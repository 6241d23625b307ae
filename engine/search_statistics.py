"""Measures a model for DPM-Solver-v3: `--mode=search --config.search.method=dpm_v3`.

Data are samples of the model itself, or given images; noise of every level of a fine grid is added,
and `model_statistics` tells what comes of it. The file that is written belongs to the model: any
run of it takes it, on any grid within the range of levels, as config.solver.statistics.
"""

import dataclasses
import pathlib
import shlex
import time
from typing import Any

import ml_collections
import numpy as np

import models
import samplers
from engine import (
  batches,
  devices,
  files,
  generate,
  guides,
  identity as identity_lib,
  inputs as inputs_lib,
  model_statistics,
  progress as progress_lib,
  resolve,
  sampler,
  search_plots,
  seeds as seeds_lib,
  solvers,
  statistics_files,
  teachers,
)
from samplers import checks, dpm_v3

KINDS = 'element', 'scalar'
"""Statistics by element of the image, or one number for all."""

_MANIFEST, _FILE, _PLOT, _PARTS = 'search.json', 'statistics.npz', 'statistics.png', 'parts'
_MOST_LEVELS, _MOST_STEPS = 10_000, 1000


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A measurement with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    identity: what decides the statistics, nested dicts of plain values.
    model: the denoiser.
    guide: guidance, or None.
    limit: limit on the denoised image, a key of sampler.LIMITS.
    sigmas: levels of the statistics, np.float64 (m + 1,).
    kind: one of KINDS.
    pictures: the data; None: samples of the model.
    teacher: table that samples them.
    seeds: of the images, or their numbers, np.uint32 (n,).
    labels: np.int32 (n,), below 0 without a class.
    seeds_from: who draws latents, one of seeds.SOURCES.
    batch_size: images per call, over all devices.
    folder: the workdir, which exists and can be written to.
  """

  config: dict[str, Any]
  identity: dict[str, Any]
  model: models.Model
  guide: guides.Guide | None
  limit: str
  sigmas: np.ndarray
  kind: str
  pictures: inputs_lib.Pictures | None
  teacher: samplers.Table
  seeds: np.ndarray
  labels: np.ndarray
  seeds_from: str
  batch_size: int
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it.

  Args:
    config: the fields of configs/default.py, those that have None as a text resolved.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of a model cannot be read.
    ValueError: if a field is out of range, or the folder holds something else.
  """
  given, own = resolve.given(config), config.search
  batch_size = resolve.batch_size(config)
  resolve.check_names(config)
  resolve.refuse(config, 'search', guided=True)
  guides.refuse_of_steps(config.guidance, 'search')
  checks.check_choice('config.search', 'statistics', own.statistics, KINDS)
  for field, least, most, usual in (('levels', 2, _MOST_LEVELS, 120),
                                    ('teacher_steps', 1, _MOST_STEPS, 60),
                                    ('warm_up', 2, seeds_lib.MOST, 256),
                                    ('seed', 0, seeds_lib.HIGHEST + 1 - own.warm_up, 1_000_000)):
    if not checks.is_integer(own[field]) or not least <= own[field] <= most:
      raise ValueError(f'config.search.{field}: must be an integer from {least} to {most}, got '
                       f'{own[field]}; {usual} is usual')
  model = resolve.model(config.model, latent=True)
  resolve.check_latent(config, model)
  fine, schedule = resolve.sigmas(config.schedule.name, {
      **given['schedule'], 'num_steps': own.teacher_steps}, model)
  sigmas = np.geomspace(fine[0], fine[fine > 0][-1], own.levels + 1)
  checks.distinct('config.schedule', fine[fine > 0])
  setting = teachers.parse('config.search.teacher', own.teacher)
  teacher = teachers.table('config.search.teacher', setting,
                           checks.distinct('config.schedule', fine))
  guide = guides.plan(config.guidance, model, {'name': setting.name}, fine)
  pictures = config.input.images and inputs_lib.load('config.input.images', config.input.images,
                                                     model.image_shape)
  if pictures and pictures.count is not None and pictures.count < own.warm_up:
    raise ValueError('config.search.warm_up: must be at most the number of images, '
                     f'{pictures.count} in {pictures.name}, got {own.warm_up}; lower it')
  seeds = np.arange(own.warm_up, dtype=np.uint32) + np.uint32(0 if pictures else own.seed)
  num_classes = guide.num_classes if guide else model.num_classes
  labels = resolve.labels(config, seeds, num_classes, pictures, model.image_shape)
  guides.check_labels(guide, labels, config.labels)
  search = {field: own[field] for field in ('method', 'statistics', 'levels', 'warm_up')}
  if pictures is None:
    search |= {'teacher': setting.text, **{field: own[field] for field in (
        'teacher_steps', 'seed')}}
  identity = {'mode': 'search',
              'config': {'schedule': schedule if pictures is None else {
                             'sigma_max': float(sigmas[0]), 'sigma_min': float(sigmas[-1])},
                         'search': search, 'limit': config.limit, 'labels': str(config.labels),
                         'seeds_from': config.seeds_from},
              'model': model.identity, **(guide.identity if guide else {})}
  if pictures:
    identity['input'] = {'images': pictures.name, 'sha256': pictures.sha256}
  identity_lib.check(pathlib.Path(workdir), identity)
  return Plan(config=given, identity=identity, model=model, guide=guide, limit=config.limit,
              sigmas=sigmas, kind=own.statistics, pictures=pictures, teacher=teacher, seeds=seeds,
              labels=labels, seeds_from=config.seeds_from, batch_size=batch_size,
              folder=files.check_folder(workdir))


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Measures the statistics of a plan; writes them, their plot, and search.json last.

  What was measured at a level is kept when the run is interrupted.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    What was measured, and a command that samples with it; two lines.

  Raises:
    FloatingPointError: if an answer of the model is not finite.
    OSError: if a file cannot be written, or one of an earlier run is damaged.
  """
  started = time.perf_counter()
  parts = plan.folder / _PARTS
  for folder in (plan.folder, parts):
    files.remove_partial(folder)
  identity_lib.claim(plan.folder, plan.identity)
  if identity_lib.read_result(plan.folder / _MANIFEST, ('statistics',)) and (
      plan.folder / _FILE).exists():
    return _say(plan, 'nothing to do')
  parts.mkdir(exist_ok=True)
  images = _images(plan, parts, progress)
  guide = plan.guide
  constants = sampler.Constants(plan.model.params, None, np.float32(plan.sigmas[0]),
                                guide and guide.constants)
  shared = model_statistics.Shared(constants, np.float32(plan.sigmas))
  slopes, = _measure(plan, 'slopes', shared, images, parts, progress)
  linear = 1 - _mean(plan, slopes)
  lam = -np.log(plan.sigmas)
  moments = _measure(plan, 'moments', shared._replace(
      l=np.float32(linear), gradient=np.float32(model_statistics.slope(linear, lam))),
                     images, parts, progress)
  statistics = dpm_v3.Statistics(plan.sigmas, linear, *model_statistics.fit(*(
      _mean(plan, moment) for moment in moments)))
  about = {'samples': len(images), 'levels': len(lam) - 1, **{
      name: value for name, value in plan.identity.items() if name not in ('mode', 'model')}}
  sha256 = statistics_files.write(plan.folder / _FILE, statistics, plan.model, about)
  search_plots.write_statistics(plan.folder / _PLOT, statistics, _recipe(plan))
  seconds = time.perf_counter() - started
  identity_lib.write_json(plan.folder / _MANIFEST, {
      'mode': 'search', 'config': plan.config, **generate.describe(plan.model),
      **plan.identity['config'], 'levels': len(lam) - 1, 'samples': len(images),
      'sigma_max': float(plan.sigmas[0]), 'sigma_min': float(plan.sigmas[-1]),
      'seconds': round(seconds, 3), 'statistics': sha256, 'files': [_FILE, _PLOT]})
  for part in parts.glob('*.npz'):
    part.unlink()
  parts.rmdir()
  return _say(plan, f'{seconds:.1f} s')


def _images(plan, parts, progress):
  """The data in model units, float32 (n, height, width, channels)."""
  if plan.pictures:
    return inputs_lib.to_model(plan.pictures.take(plan.seeds))
  guide, found = plan.guide, []
  program = sampler.program(sampler.Method(
      plan.model.apply, solvers.of_table(None), False, None, plan.limit, guide and guide.method))
  constants = devices.replicate(sampler.Constants(
      plan.model.params, plan.teacher, np.float32(plan.sigmas[0]), guide and guide.constants))
  path = parts / 'samples.npz'
  if path.exists():
    return files.read_arrays('search', path, ['samples'])['samples']

  def start(indices):
    seeds = plan.seeds[indices]
    return program(constants, sampler.Inputs(
        devices.split(seeds), seeds_lib.latents(seeds, plan.model.image_shape, plan.seeds_from),
        _labels(plan, indices)))

  def finish(indices, answers):
    found.append(generate.check_finite(answers[0], plan.seeds[indices], 'take another teacher'))
  batches.run(np.arange(len(plan.seeds)), plan.batch_size, start, finish, progress, 'sampling')
  with files.replacing(path) as file:
    np.savez(file, samples=np.concatenate(found))
  return np.concatenate(found)


def _measure(plan, what, shared, images, parts, progress):
  """Means over all images, (kinds of answers, levels, height, width, channels), float64.

  Work is by level, so that a level is a file.
  """
  guide, count = plan.guide, len(images)
  program = model_statistics.program(sampler.Method(
      plan.model.apply, None, False, None, plan.limit, guide and guide.method), what)
  names = [parts / f'{what}-{place:05d}.npz' for place in range(len(plan.sigmas))]
  missing = np.flatnonzero([not name.exists() for name in names])
  totals: dict[int, Any] = {}
  constants = devices.replicate(shared)

  def start(indices):
    places, own = np.divmod(indices, count)
    return program(constants, (devices.split(plan.seeds[own]), devices.split(images[own]),
                               devices.split(places.astype(np.int32)), _labels(plan, own)))

  def finish(indices, answers):
    places, own = np.divmod(indices, count)
    answers = np.stack(answers).astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(answers).all(axis=(0, 2, 3, 4)))
    if bad.size:
      raise FloatingPointError(
          f'search: derivatives must be finite, got one that is not for seed '
          f'{plan.seeds[own[bad[0]]]} at level {plan.sigmas[places[bad[0]]]:.4g}; narrow '
          'config.schedule, or take less guidance')
    if what == 'moments':
      f, derivative = answers
      answers = np.stack([f, derivative, f**2, f * derivative])
    for place in np.unique(places):
      here = places == place
      totals[place] = totals.get(place, 0) + answers[:, here].sum(axis=1)
      if own[here][-1] == count - 1:
        with files.replacing(names[place]) as file:
          np.savez(file, mean=totals.pop(place) / count)

  if missing.size:
    indices = (missing[:, None] * count + np.arange(count)).reshape(-1)
    batches.run(indices, plan.batch_size, start, finish, progress, f'measuring {what}',
                (len(names) - len(missing)) * count)
  return np.stack([files.read_arrays('search', name, ['mean'])['mean'] for name in names], axis=1)


def _labels(plan, indices):
  classes = plan.model.num_classes or (plan.guide and plan.guide.num_classes)
  return devices.split(plan.labels[indices]) if classes else None


def _mean(plan, means):
  """Of all elements where one number is asked for."""
  return means if plan.kind == 'element' else means.mean(axis=(1, 2, 3), keepdims=True)


def _recipe(plan):
  """What was measured, in one line."""
  data = plan.pictures.name if plan.pictures else 'of its own'
  return (f'{plan.model.name} at {len(plan.sigmas)} levels, {plan.sigmas[0]:g} to '
          f'{plan.sigmas[-1]:g}, on {len(plan.seeds)} images {data}')


def _say(plan, note):
  given = plan.config
  flags = resolve.model_flags(given)
  flags |= {f'schedule.{field}': value for field, value in given['schedule'].items()
            if field != 'num_steps'}
  flags |= {'solver.name': dpm_v3.NAME, 'solver.statistics': plan.folder / _FILE}
  if plan.limit != 'none':
    flags['limit'] = plan.limit
  if plan.guide:
    flags |= {f'guidance.{field}': value for field, value in given['guidance'].items()}
  command = ' '.join(['python main.py', *(f'--config.{field}={shlex.quote(str(value))}'
                                          for field, value in flags.items())])
  return (f'statistics of {_recipe(plan)}, {note}; see {_FILE}, {_PLOT} and {_MANIFEST} in '
          f'{plan.folder}\nsample with them: {command}')
