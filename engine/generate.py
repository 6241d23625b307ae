"""Samples images, one per seed: `plan` checks everything on the host, `run` does the work."""

import dataclasses
import importlib.metadata
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

import models
import samplers
from engine import (
  devices,
  files,
  images,
  progress as progress_lib,
  results as results_lib,
  sampler,
  seeds as seeds_lib,
)
from samplers import checks

_PACKAGES = ('jax', 'jaxlib', 'numpy', 'pillow', 'ml_collections')
_GRID = {'columns': (1, 100), 'rows': (1, 100), 'size': (64, 512)}  # Least and most of each.


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A run with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    model: the denoiser.
    schedule: name and arguments of the schedule, defaults filled in.
    solver: name and options of the solver, defaults filled in.
    sigmas: noise levels, np.float64 (num_steps + 1,).
    table: the solver on these levels.
    limit: limit on the denoised image, a key of sampler.LIMITS.
    classifier: that guides towards the labels, or None.
    scale: of its guidance.
    seeds_from: who draws latents and random labels, one of seeds.SOURCES.
    labels: np.int32 (n,), below 0 without a class; one for each of results.seeds.
    batch_size: images per call of the compiled sampler, over all devices.
    uint8_rule: how numbers become bytes, a key of images.UINT8_RULES.
    results: the workdir, which exists and can be written to, and what is kept in it.
  """

  config: dict[str, Any]
  model: models.Model
  schedule: dict[str, Any]
  solver: dict[str, Any]
  sigmas: np.ndarray
  table: samplers.Table
  limit: str
  classifier: models.Classifier | None
  scale: float
  seeds_from: str
  labels: np.ndarray
  batch_size: int
  uint8_rule: str
  results: results_lib.Results


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it; nothing is compiled before all of it is found good.

  Args:
    config: the fields of configs/default.py.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of the model cannot be read.
    ValueError: if a field is out of range, or the folder cannot be written to or holds something
      else than a run of this config.
  """
  given = _given(config.to_dict())
  for group in ('train', 'convert'):  # Of other jobs.
    given.pop(group, None)
  batch_size = _within('batch_size', config.batch_size, 1, 2**16)
  grid = {name: _within(f'output.grid.{name}', config.output.grid[name], least, most)
          for name, (least, most) in _GRID.items()}
  for field, value, known in (('limit', config.limit, sampler.LIMITS),
                              ('output.format', config.output.format, results_lib.FORMATS),
                              ('output.uint8_rule', config.output.uint8_rule, images.UINT8_RULES)):
    if value not in known:
      raise ValueError(checks.unknown(f'config.{field}', value, known))
  seeds = seeds_lib.parse(config.seeds)
  model = _model(config.model)
  sigmas, schedule = _sigmas(config.schedule.name, given['schedule'], model)
  table, solver = _table(config.solver.name, given['solver'], sigmas)
  classifier = _classifier(config.guidance, model)
  num_classes = classifier.num_classes if classifier else model.num_classes
  classes = seeds_lib.parse_labels(config.labels, num_classes)
  if classifier and classes is not None and classes.min() < 0:
    raise ValueError(f'config.labels: must be classes for a classifier to guide to, got '
                     f"{config.labels!r}; give 'random', 'balanced' or a list")
  seeds_lib.check_source(config.seeds_from, model.image_shape)
  output = {name: config.output[name] for name in ('format', 'subfolders', 'uint8_rule')}
  identity = {'mode': 'generate',
              'config': {'schedule': schedule, 'solver': solver, 'limit': config.limit,
                         'labels': str(config.labels), 'seeds_from': config.seeds_from,
                         'output': output},
              'model': {'name': model.name, 'sha256': model.sha256, **model.config},
              **_guidance(classifier, config.guidance.scale)}
  results = results_lib.Results(
      folder=pathlib.Path(workdir), identity=identity, format=config.output.format,
      subfolders=config.output.subfolders, grid=grid, seeds=seeds)
  results_lib.check(results)
  files.check_folder(workdir)
  labels = seeds_lib.labels(classes, seeds, num_classes, model.image_shape, config.seeds_from)
  return Plan(config=given, model=model, schedule=schedule, solver=solver, sigmas=sigmas,
              table=table, limit=config.limit, classifier=classifier,
              scale=float(config.guidance.scale), seeds_from=config.seeds_from, labels=labels,
              batch_size=batch_size, uint8_rule=config.output.uint8_rule, results=results)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Samples the images of a plan that are not there yet, and completes the workdir.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    One line for the user: what was made, where, at which cost.

  Raises:
    FloatingPointError: if a sample is not finite.
    OSError: if a file cannot be written.
  """
  started = time.perf_counter()
  count = len(plan.results.seeds)
  have = f'{count} image{"s" * (count > 1)} in {plan.results.folder}'
  if results_lib.begin(plan.results):
    return f'nothing to do: {have} are complete; see manifest.json'
  missing = results_lib.missing(plan.results)
  seconds = _sample(plan, missing, progress) if missing.size else {'compile': 0.0, 'sample': 0.0}
  results_lib.pack(plan.results, plan.labels)
  seconds['total'] = time.perf_counter() - started
  results_lib.complete(plan.results, _manifest(plan, len(missing), seconds))
  there = f', {count - len(missing)} of them were there' if len(missing) < count else ''
  guided = f', guided by {plan.classifier.name}' if plan.classifier else ''
  return (f'{have}{there}: {plan.solver["name"]} on {plan.schedule["name"]}, NFE {plan.table.nfe}'
          f'{guided}, '
          f'{seconds["total"]:.1f} s; see grid.png and manifest.json')


def _sample(plan, missing, progress):
  """Samples and writes the images of these indices; returns the seconds it took.

  A batch is computed while the one before it is fetched and written.
  """
  started = time.perf_counter()
  batches = _batches(missing, devices.share_of(plan.batch_size) * devices.count())
  program, constants = sampler_of(plan)
  constants = devices.replicate(constants)
  with progress('compiling', 1, 'program') as advance:
    running = program(constants, _inputs(plan, batches[0]))
    advance()
  ready = time.perf_counter()
  total = len(plan.results.seeds)
  with progress('sampling', total, 'images', done=total - len(missing)) as advance, (
      files.in_background()) as submit:
    for indices, following in zip(batches, [*batches[1:], None], strict=True):
      finished = running
      if following is not None:
        running = program(constants, _inputs(plan, following))
      kept = np.unique(indices)  # Without the padding of the last batch; they are in order.
      seeds = plan.results.seeds[kept]
      samples = _finite(devices.merge(finished)[:len(kept)], seeds)
      pixels = images.to_uint8(samples, plan.uint8_rule)
      for seed, image in zip(seeds.tolist(), pixels, strict=True):
        submit(images.write_png, results_lib.path(plan.results, seed), image)
      advance(len(kept))
  return {'compile': ready - started, 'sample': time.perf_counter() - ready}


def sampler_of(plan: Plan) -> tuple[Callable, sampler.Constants]:
  """Returns the compiled sampler of a plan, and what all its images share."""
  constants = sampler.Constants(plan.model.params, plan.table, np.float32(plan.sigmas[0]))
  if plan.classifier is None:
    return sampler.program(plan.model.apply, plan.limit), constants
  return (sampler.program(plan.model.apply, plan.limit, plan.classifier.apply),
          constants._replace(classifier=plan.classifier.params, scale=np.float32(plan.scale)))


def _batches(indices, size):
  """Splits indices into batches; the last one repeats its last index up to the full size."""
  padded = np.minimum(np.arange(-(-len(indices) // size) * size), len(indices) - 1)
  return indices[padded].reshape(-1, size)


def _inputs(plan, indices):
  """What belongs to each image of a batch; without classes there are no labels."""
  seeds = plan.results.seeds[indices]
  return sampler.Inputs(
      seeds=devices.split(seeds),
      latents=seeds_lib.latents(seeds, plan.model.image_shape, plan.seeds_from),
      labels=devices.split(plan.labels[indices]) if (
          plan.model.num_classes or plan.classifier) else None)


def _finite(samples, seeds):
  bad = np.flatnonzero(~np.isfinite(samples).all(axis=(1, 2, 3)))
  if bad.size:
    raise FloatingPointError(f'generate: samples must be finite, got a value that is not for seed '
                             f'{seeds[bad[0]]}; take more steps or another solver')
  return samples


def _model(config):
  """The model at a path, or one that comes with the project."""
  if config.path is not None:
    model = models.load(pathlib.Path(config.path))
  else:
    checks.lookup('config.model.name', config.name, models.BUNDLED)
    model = models.load(config.name)
  if model.image_shape[-1] not in (1, 3):
    raise ValueError(f'config.model: images must have 1 or 3 channels, got {model.image_shape[-1]} '
                     f'in {model.name}; choose a model in pixel space')
  return model


def _classifier(config, model):
  """The classifier that guides, or None."""
  if config.classifier is None:
    if config.scale != 1.0:
      raise ValueError(f'config.guidance.scale: must be 1 without a classifier, got {config.scale};'
                       ' set config.guidance.classifier')
    return None
  if not np.isfinite(config.scale):
    raise ValueError(f'config.guidance.scale: must be a finite number, got {config.scale}; 1 is '
                     'the plain product with the classifier')
  path = config.classifier
  classifier = models.load_classifier(
      path if path in models.BUNDLED_CLASSIFIERS else pathlib.Path(path))
  for name, wanted, got in (
      ('images of shape', model.image_shape, classifier.image_shape),
      ('classes:', model.num_classes or classifier.num_classes, classifier.num_classes)):
    if wanted != got:
      raise ValueError(f'config.guidance.classifier: must be for {name} {wanted}, as the model, '
                       f'got {got} in {classifier.name}; choose the one of the same data')
  return classifier


def _guidance(classifier, scale):
  """What guidance adds to the identity of a run; nothing without."""
  if classifier is None:
    return {}
  return {'guidance': {'classifier': classifier.name, 'sha256': classifier.sha256,
                       'scale': float(scale), 'source': classifier.config.get('source')}}


def _sigmas(name, given, model):
  """The grid of noise levels, and the arguments that made it."""
  arguments = {'sigma_min': model.sigma_min, 'sigma_max': model.sigma_max}
  arguments |= samplers.schedule_options(name)
  arguments |= {option: _numbers(option, value) for option, value in given.items()}
  arguments['name'] = name
  return samplers.schedule(**arguments), arguments


def _table(name, given, sigmas):
  """The solver on these levels, and the arguments that made it."""
  options = {option: value for option, value in given.items() if option != 'name'}
  return samplers.make(name, sigmas, **options), {
      'name': name, **samplers.options(name), **options}


def _numbers(option, value):
  """A list of numbers written as text; other values, names too, stay as they are."""
  if not isinstance(value, str) or ',' not in value:
    return value
  try:
    return [float(part) for part in value.split(',')]
  except ValueError:
    raise ValueError(f'schedule: {option} must be numbers separated by commas, got {value!r}; such '
                     "as '80,5,0.5,0'") from None


def _within(name, value, least, most):
  if not checks.is_integer(value) or not least <= value <= most:
    raise ValueError(f'config.{name}: must be an integer from {least} to {most}, got {value}; '
                     'configs/default.py has the usual one')
  return value


def _given(fields):
  """The fields with a value; None stands for a default that belongs to someone else."""
  return {name: _given(value) if isinstance(value, dict) else value
          for name, value in fields.items() if value is not None}


def _manifest(plan, sampled, seconds):
  return {
      'mode': 'generate',
      'config': plan.config,
      'model': {'name': plan.model.name, 'sha256': plan.model.sha256, **plan.model.config},
      **_guidance(plan.classifier, plan.scale),
      'schedule': plan.schedule,
      'sigmas': plan.sigmas.tolist(),
      'solver': plan.solver,
      'nfe': plan.table.nfe,
      'uint8_rule': images.UINT8_RULES[plan.uint8_rule],
      'versions': {'python': platform.python_version(),
                   **{name: importlib.metadata.version(name) for name in _PACKAGES}},
      'devices': {'kind': devices.kind(), 'count': devices.count(),
                  'images_per_device': devices.share_of(plan.batch_size)},
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'images_per_second': round(sampled / seconds['sample'], 3) if sampled else None,
      'labels': [None if label < 0 else label for label in plan.labels.tolist()],
  }
