"""Measures how likely a model finds images, in bits per dimension: `--mode=likelihood`.

By the density along the probability-flow ODE, or by the variational bound of the chain that the
solver ddpm runs.
"""

import dataclasses
import pathlib
import time
from typing import Any

import ml_collections
import numpy as np

import models
from engine import (
  batches,
  devices,
  files,
  generate,
  identity as identity_lib,
  inputs as inputs_lib,
  likelihood_bound,
  likelihood_method,
  likelihood_ode,
  progress as progress_lib,
  resolve,
)
from samplers import checks

METHODS = 'ode', 'bound'
"""Ways to measure, see configs/measuring.py."""

_MANIFEST, _PARTS, _PLOT = 'likelihood.json', 'parts', 'likelihood.png'


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A measurement with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    model: the denoiser.
    identity: what decides the numbers, nested dicts of plain values.
    sigmas: noise levels as the schedule makes them, np.float64 (n + 1,), decreasing.
    method: how the images are measured.
    pictures: what is measured.
    seeds: numbers of the images, np.uint32 (n,); also seeds of all that is drawn.
    labels: np.int32 (n,), below 0 without a class.
    batch_size: images per call, over all devices.
    folder: the workdir, which exists and can be written to.
  """

  config: dict[str, Any]
  model: models.Model
  identity: dict[str, Any]
  sigmas: np.ndarray
  method: likelihood_method.Method
  pictures: inputs_lib.Pictures
  seeds: np.ndarray
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
  grid = resolve.grid(config.output.grid)
  resolve.check_names(config)
  resolve.refuse(config, 'likelihood')
  name = config.likelihood.method or ('bound' if config.solver.name == 'ddpm' else 'ode')
  checks.check_choice('config.likelihood', 'method', name, METHODS)
  if config.input.images is None:
    raise ValueError('config.input.images: must name the images to measure, got None; give a .npz '
                     'file, a folder or a picture')
  model = resolve.model(config.model)
  sigmas, schedule = resolve.sigmas(config.schedule.name, given['schedule'], model)
  pictures = inputs_lib.load('config.input.images', config.input.images, model.image_shape)
  seeds = resolve.seeds(config.seeds, pictures)
  labels = resolve.labels(config, seeds, model.num_classes, pictures, model.image_shape)
  if name == 'bound':
    method = likelihood_bound.plan(config, given, model, sigmas, schedule)
  else:
    method = likelihood_ode.plan(config, model, sigmas, schedule, pictures, seeds, grid)
  identity = {'mode': 'likelihood',
              'config': {**method.identity, 'limit': config.limit, 'labels': str(config.labels),
                         'seeds_from': config.seeds_from},
              'model': model.identity,
              'input': {'images': pictures.name, 'sha256': pictures.sha256}}
  if identity_lib.check(pathlib.Path(workdir), identity):
    _check_seeds(pathlib.Path(workdir) / _MANIFEST, seeds)
  folder = files.check_folder(workdir)
  own = {field: value for field, value in config.likelihood.items() if value is not None}
  return Plan(config={**given, 'likelihood': own}, model=model, identity=identity, sigmas=sigmas,
              method=method, pictures=pictures, seeds=seeds, labels=labels, batch_size=batch_size,
              folder=folder)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Measures the images of a plan that were not measured yet, and writes likelihood.json.

  What was measured of each image stays in the workdir, so that more seeds may be asked for later.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    One line for the user.

  Raises:
    FloatingPointError: if a number is not finite, or an image took too many steps.
    OSError: if a file cannot be written.
  """
  started = time.perf_counter()
  parts = plan.folder / _PARTS
  for folder in (plan.folder, parts):
    files.remove_partial(folder)
  identity_lib.claim(plan.folder, plan.identity)
  earlier = identity_lib.read_result(plan.folder / _MANIFEST, ('seeds', 'told'))
  if earlier and earlier['seeds'] == plan.seeds.tolist():
    return f'nothing to do: {earlier["told"]}; see {_MANIFEST} and {_PLOT} in {plan.folder}'
  parts.mkdir(exist_ok=True)
  found = _read(parts)
  missing = np.array([i for i, seed in enumerate(plan.seeds.tolist()) if seed not in found],
                     np.int64)
  seconds = {'compile': 0.0, 'sample': 0.0}
  if missing.size:
    seconds = _measure(plan, missing, parts, progress)
    found = _read(parts)
  measured = [found[seed] for seed in plan.seeds.tolist()]
  mean = likelihood_method.say(measured)
  told = (f'{len(measured)} images of {plan.pictures.name}: {mean} bits per dimension '
          f'{plan.method.say(measured)}')
  plan.method.draw(plan.folder / _PLOT, measured, f'{len(measured)} images: {mean}')
  seconds['total'] = time.perf_counter() - started
  identity_lib.write_json(plan.folder / _MANIFEST, {
      'mode': 'likelihood', 'told': told, 'method': plan.method.name,
      **likelihood_method.statistics(measured), 'config': plan.config,
      **generate.describe(plan.model), 'input': plan.identity['input'], **plan.method.manifest,
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'seeds': plan.seeds.tolist(),
      'labels': [None if label < 0 else label for label in plan.labels.tolist()],
      **plan.method.report(measured)})
  return f'{told}, {seconds["total"]:.1f} s; see {_MANIFEST} and {_PLOT} in {plan.folder}'


def _measure(plan, missing, parts, progress):
  method = plan.method
  constants = devices.replicate((plan.model.params, method.constants))

  def start(indices):
    seeds = plan.seeds[indices]
    labels = devices.split(plan.labels[indices]) if plan.model.num_classes else None
    return method.program(constants, (devices.split(plan.pictures.take(seeds)),
                                      devices.split(seeds), labels))

  def finish(indices, answers):
    seeds = plan.seeds[indices]
    found = method.read(answers, seeds)
    identity_lib.write_json(parts / f'{seeds[0]:06d}.json', {
        str(seed): numbers for seed, numbers in zip(seeds, found, strict=True)})
  return batches.run(missing, plan.batch_size, start, finish, progress, 'measuring',
                     len(plan.seeds) - len(missing))


def _read(parts):
  """What was measured so far: seed -> its numbers."""
  return {int(seed): numbers for file in parts.glob('*.json')  # Named after the first seed in it.
          for seed, numbers in identity_lib.read_result(file, [str(int(file.stem))]).items()}


def _check_seeds(manifest, seeds):
  """Raises ValueError if a report is there that knows more images."""
  earlier = identity_lib.read_result(manifest, ('seeds',))
  others = set(earlier['seeds'] if earlier else ()).difference(seeds.tolist())
  if others:
    raise ValueError(f'workdir: must hold no images of other seeds, got seed {min(others)} in '
                     f'{manifest}; add it to config.seeds or choose another --workdir')
