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
from engine import (
  batches,
  conditions,
  devices,
  files,
  guides,
  images,
  inputs as inputs_lib,
  latents,
  predictors,
  progress as progress_lib,
  resolve,
  results as results_lib,
  sampler,
  seeds as seeds_lib,
  solvers,
)
from samplers import checks

_PACKAGES = ('jax', 'jaxlib', 'numpy', 'pillow', 'ml_collections')


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A run with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    model: the denoiser.
    schedule: name and arguments of the schedule, defaults filled in.
    sigmas: noise levels, np.float64 (num_steps + 1,).
    solver: the solver on these levels.
    limit: limit on the denoised image, a key of sampler.LIMITS.
    guide: guidance, or None.
    condition: task with an image given in part, or None.
    start: images to start from, or None.
    share: which of how many machines this is, (index, count).
    seeds_from: who draws latents and random labels, one of seeds.SOURCES.
    labels: np.int32 (n,), below 0 without a class; one for each of results.seeds.
    batch_size: images per call of the compiled sampler, over all devices.
    uint8_rule: how numbers become bytes, a key of images.UINT8_RULES.
    decode_memory: for decoding latents, GiB on each device.
    results: the workdir, which exists and can be written to, and what is kept in it.
  """

  config: dict[str, Any]
  model: models.Model
  schedule: dict[str, Any]
  sigmas: np.ndarray
  solver: solvers.Solver
  limit: str
  guide: guides.Guide | None
  condition: conditions.Condition | None
  start: inputs_lib.Pictures | None
  share: tuple[int, int]
  seeds_from: str
  labels: np.ndarray
  batch_size: int
  uint8_rule: str
  decode_memory: float
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
  config, predictor = predictors.settle(resolve.read_none(config))
  given = resolve.given(config)
  if predictor:  # What it decides is in the manifest as it decides it.
    given = {name: value for name, value in given.items() if name not in ('schedule', 'solver')}
  batch_size = resolve.batch_size(config)
  grid = resolve.grid(config.output.grid)
  resolve.check_names(config)
  model = resolve.model(config.model, conditioned=True, latent=True)
  checks.check_positive('config.output', 'decode_memory', config.output.decode_memory,
                        '2 GiB is usual')
  resolve.check_latent(config, model)
  if predictor:
    predictors.check(predictor, model)
    sigmas, schedule = predictor.sigmas, predictor.config['schedule']
    solver = predictors.solver(predictor)
  else:
    sigmas, schedule = resolve.sigmas(config.schedule.name, given['schedule'], model)
    solver = solvers.plan(config.solver.name, resolve.options(given['solver']), sigmas,
                          config.noise, model)
  model = _told(model, len(sigmas))
  if solver.asks == 'variance' and model.apply_variance is None:
    raise ValueError(f"config.solver.variance: 'learned' must have a model that learned one, got "
                     f"{model.name}; take 'fixed_small' or 'fixed_large'")
  guide = guides.plan(config.guidance, model, solver.identity, sigmas)
  condition = conditions.plan(config.condition, model.image_shape)
  if condition and condition.method.how == 'replace' and not solver.projects:
    raise ValueError("config.condition.method: must be 'gradient' with "
                     f"{solver.identity['name']}, got 'replace'; its steps end at levels of its "
                     'own')
  start = None
  if config.input.images is not None:
    start = inputs_lib.load('config.input.images', config.input.images, model.image_shape)
    if sigmas[0] > model.sigma_max * (1 + 1e-6):
      raise ValueError('config.schedule: must start at a level that the model knows, up to '
                       f'{model.sigma_max:g}, got {sigmas[0]:g}; set sigma_max, or fewer '
                       'reverse_steps')
  seeds = resolve.seeds(config.seeds, start)
  num_classes = guide.num_classes if guide else model.num_classes
  labels = resolve.labels(config, seeds, num_classes, start, model.image_shape)
  guides.check_labels(guide, labels, config.labels)
  output = {name: config.output[name] for name in ('format', 'subfolders', 'uint8_rule')}
  identity = {'mode': 'generate',
              'config': {'schedule': schedule, 'solver': solver.identity, 'limit': config.limit,
                         'labels': str(config.labels), 'seeds_from': config.seeds_from,
                         'output': output},
              'model': model.identity,
              **_extras(guide, condition, start)}
  results = results_lib.Results(
      folder=pathlib.Path(workdir), identity=identity, format=config.output.format,
      subfolders=config.output.subfolders, grid=grid, seeds=seeds)
  share = seeds_lib.parse_share(config.share)
  results_lib.check(results)
  files.check_folder(workdir)
  return Plan(config=given, model=model, schedule=schedule, sigmas=sigmas, solver=solver,
              limit=config.limit, guide=guide, condition=condition, start=start, share=share,
              seeds_from=config.seeds_from, labels=labels, batch_size=batch_size,
              uint8_rule=config.output.uint8_rule, decode_memory=config.output.decode_memory,
              results=results)


def _told(model, points):
  """The model as it is called on a grid of so many points, if it was trained for that number."""
  if model.step_condition:
    training = (model.config.get('source') or {}).get('training') or {}
    known = training.get('points') or range(4, 8)  # As published.
    if points not in known:
      raise ValueError(f'config.schedule.num_steps: must be one of '
                       f'{", ".join(str(number - 1) for number in known)} for {model.name}, a '
                       f'student of SFD-v, got {points - 1}; it was trained for no other')
  return model.for_points(points)


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
  alone = plan.share == (0, 1)
  if results_lib.begin(plan.results, alone):
    return f'nothing to do: {have} are complete; see manifest.json'
  own = seeds_lib.of_share(count, plan.share)
  missing = np.intersect1d(results_lib.missing(plan.results), own)
  seconds, evaluations = {'compile': 0.0, 'sample': 0.0}, []
  if missing.size:
    seconds, evaluations = _sample(plan, missing, len(own) - len(missing), progress)
  if not alone and (rest := len(results_lib.missing(plan.results))):
    return (f'share {plan.share[0]}/{plan.share[1]} is complete; of the {have} {rest} are still '
            'missing, and the share that finishes last completes the run')
  seconds['total'] = time.perf_counter() - started
  try:
    results_lib.pack(plan.results, plan.labels, _beside(plan))
    results_lib.complete(plan.results, _manifest(plan, len(missing), seconds, evaluations))
  except OSError:
    if alone or not results_lib.is_complete(plan.results):  # Else another share was faster.
      raise
  there = f', {count - len(missing)} of them were there' if len(missing) < count else ''
  nfe = plan.solver.nfe if plan.solver.nfe is not None else (
      f'{np.mean(evaluations):.1f} on average' if evaluations else 'by image')
  if plan.solver.calls not in (None, nfe):
    nfe = f'{nfe} ({plan.solver.calls} evaluations, some at once)'
  extra = ''.join(f', {part.text}' for part in (plan.guide, plan.condition) if part)
  if plan.start:
    extra += f', started from {plan.start.name}'
  return (f'{have}{there}: {plan.solver.identity["name"]} on {plan.schedule["name"]}, NFE {nfe}'
          f'{extra}, {seconds["total"]:.1f} s; see grid.png and manifest.json')


def _sample(plan, missing, done, progress):
  """Samples and writes the images of these indices; the seconds and evaluations it took."""
  program, constants = sampler_of(plan)
  constants = devices.replicate(constants)
  decode = latents.decoder(plan.model, plan.decode_memory, plan.batch_size)
  evaluations = []
  with files.in_background() as submit:
    def finish(indices, answers):
      samples, counts = answers
      seeds = plan.results.seeds[indices]
      if counts is not None:
        evaluations.extend(counts.tolist())
      remedy = 'take more steps or another solver'
      if plan.solver.nfe is None:
        remedy = 'let it take more steps by config.solver.max_steps, or raise rtol'
      pixels = images.to_uint8(decode(check_finite(samples, seeds, remedy)), plan.uint8_rule)
      for seed, image in zip(seeds.tolist(), pixels, strict=True):
        submit(images.write_png, results_lib.path(plan.results, seed), image)
    seconds = batches.run(missing, plan.batch_size,
                          lambda indices: program(constants, _inputs(plan, indices)), finish,
                          progress, 'sampling', done)
  return seconds, evaluations


def sampler_of(plan: Plan) -> tuple[Callable, sampler.Constants]:
  """Returns the compiled sampler of a plan, and what all its images share."""
  solver, guide, condition = plan.solver, plan.guide, plan.condition
  method = sampler.Method(
      sampler.apply_of(plan.model, solver.asks), solver.solve, solver.splits, solver.asks,
      plan.limit, guide and guide.method, condition and condition.method)
  return sampler.program(method), sampler.Constants(
      plan.model.params, solver.arrays, np.float32(plan.sigmas[0]),
      guide and guide.constants, condition and condition.constants)


def _inputs(plan, indices):
  """What belongs to each image of a batch; without classes there are no labels."""
  seeds = plan.results.seeds[indices]
  return sampler.Inputs(
      seeds=devices.split(seeds),
      latents=seeds_lib.latents(seeds, plan.model.image_shape, plan.seeds_from),
      labels=devices.split(plan.labels[indices]) if plan.model.num_classes or (
          plan.guide and plan.guide.num_classes) else None,
      start=devices.split(inputs_lib.to_model(plan.start.take(seeds))) if plan.start else None)


def _beside(plan):
  """What grid.png shows beside each image: seed -> (cells before, cells after)."""
  def cell(caption, image):
    return caption, images.to_uint8(image)
  if plan.condition:
    before = [cell('input', plan.condition.known)]
    whole = plan.condition.reference
    after = [] if whole is None else [cell('reference', whole)]
    return lambda seed: (before, after)
  if plan.start:
    return lambda seed: ([('start', plan.start.take(np.array([seed]))[0])], [])
  return lambda seed: ([], [])


def describe(model: models.Model) -> dict[str, Any]:
  """Returns what a manifest says of the model, and what it was run with."""
  return {
      'model': model.identity,
      'versions': {'python': platform.python_version(),
                   **{name: importlib.metadata.version(name) for name in _PACKAGES}},
      'devices': {'kind': devices.kind(), 'count': devices.count()},
  }


def check_finite(samples: np.ndarray, seeds: np.ndarray,
                 remedy: str = 'take more steps or another solver') -> np.ndarray:
  """Returns the samples, or raises FloatingPointError with the seed of one that is not finite."""
  bad = np.flatnonzero(~np.isfinite(samples).all(axis=(1, 2, 3)))
  if bad.size:
    raise FloatingPointError(f'generate: samples must be finite, got a value that is not for seed '
                             f'{seeds[bad[0]]}; {remedy}')
  return samples


def _extras(guide, condition, start):
  """What these add to the identity of a run; nothing without."""
  own = {**(guide.identity if guide else {}), **(condition.identity if condition else {})}
  if start:
    own['input'] = {'images': start.name, 'sha256': start.sha256}
  return own


def _manifest(plan, sampled, seconds, evaluations):
  described = describe(plan.model)
  nfe = plan.solver.nfe
  if nfe is None:
    nfe = {'mean': float(np.mean(evaluations)), 'most': max(evaluations)} if evaluations else None
  return {
      'mode': 'generate',
      'config': plan.config,
      'model': described['model'],
      **_extras(plan.guide, plan.condition, plan.start),
      'schedule': plan.schedule,
      'sigmas': plan.sigmas.tolist(),
      'solver': plan.solver.identity,
      'nfe': nfe,
      **({'calls': plan.solver.calls} if plan.solver.calls not in (None, nfe) else {}),
      'uint8_rule': images.UINT8_RULES[plan.uint8_rule],
      'versions': described['versions'],
      'devices': {**described['devices'],
                  'images_per_device': devices.share_of(plan.batch_size)},
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'images_per_second': round(sampled / seconds['sample'], 3) if sampled else None,
      'labels': [None if label < 0 else label for label in plan.labels.tolist()],
  }
