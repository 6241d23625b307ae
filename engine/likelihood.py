"""Measures how likely a model finds images, in bits per dimension: `--mode=likelihood`.

The variational bound of the chain that the solver ddpm runs down, one draw per step and image.
"""

import dataclasses
import functools
import json
import math
import pathlib
import time
from collections.abc import Callable
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
  identity as identity_lib,
  inputs as inputs_lib,
  plots,
  progress as progress_lib,
  resolve,
  sampler,
  seeds as seeds_lib,
)

_MANIFEST, _PARTS, _PLOT = 'likelihood.json', 'parts', 'likelihood.png'


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A measurement with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    model: the denoiser.
    identity: what decides the numbers, nested dicts of plain values.
    sigmas: noise levels of the chain, np.float64 (n + 1,), the last 0.
    coefficients: of the chain's steps.
    learned: whether the network tells the variance.
    limit: limit on the denoised image.
    pictures: what is measured.
    seeds: numbers of the images, np.uint32 (n,); also seeds of the draws.
    labels: np.int32 (n,), below 0 without a class.
    batch_size: images per call, over all devices.
    folder: the workdir, which exists and can be written to.
  """

  config: dict[str, Any]
  model: models.Model
  identity: dict[str, Any]
  sigmas: np.ndarray
  coefficients: samplers.ddpm.Coefficients
  learned: bool
  limit: str
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
  resolve.check_names(config)
  resolve.refuse(config, 'likelihood')
  if config.input.images is None:
    raise ValueError('config.input.images: must name the images to measure, got None; give a .npz '
                     'file, a folder or a picture')
  options = resolve.options(given['solver'])
  if config.solver.name != 'ddpm' or options.keys() - {'variance'}:
    raise ValueError('config.solver: must be ddpm, with no option but variance, for the bound of '
                     f'its chain, got {config.solver.name} {options or ""}; set '
                     '--config.solver.name=ddpm')
  variance = options.get('variance', samplers.options('ddpm')['variance'])
  model = resolve.model(config.model)
  if variance == 'learned' and model.apply_variance is None:
    raise ValueError("config.solver.variance: 'learned' must have a model that learned one, got "
                     f"{model.name}; take 'fixed_small' or 'fixed_large'")
  sigmas, schedule = resolve.sigmas(config.schedule.name, given['schedule'], model)
  if sigmas[-1] > 0:
    sigmas = np.append(sigmas, 0.0)  # The last step leads to the image.
  coefficients = samplers.ddpm.coefficients(sigmas, variance)
  pictures = inputs_lib.load('config.input.images', config.input.images, model.image_shape)
  seeds = resolve.seeds(config.seeds, pictures)
  labels = resolve.labels(config, seeds, model.num_classes, pictures, model.image_shape)
  identity = {'mode': 'likelihood',
              'config': {'schedule': schedule, 'solver': {'name': 'ddpm', 'variance': variance},
                         'limit': config.limit, 'labels': str(config.labels),
                         'seeds_from': config.seeds_from},
              'model': model.identity,
              'input': {'images': pictures.name, 'sha256': pictures.sha256}}
  identity_lib.check(pathlib.Path(workdir), identity)
  folder = files.check_folder(workdir)
  return Plan(config=given, model=model, identity=identity, sigmas=sigmas,
              coefficients=coefficients, learned=variance == 'learned', limit=config.limit,
              pictures=pictures, seeds=seeds, labels=labels, batch_size=batch_size, folder=folder)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Measures the images of a plan that were not measured yet, and writes likelihood.json.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    One line for the user.

  Raises:
    FloatingPointError: if a number is not finite.
    OSError: if a file cannot be written.
  """
  started = time.perf_counter()
  parts = plan.folder / _PARTS
  for folder in (plan.folder, parts):
    files.remove_partial(folder)
  identity_lib.claim(plan.folder, plan.identity)
  earlier = identity_lib.read_result(plan.folder / _MANIFEST, ('seeds', 'total'))
  if earlier and earlier['seeds'] == plan.seeds.tolist():
    return f'nothing to do: {_say(plan, earlier["total"])}'
  parts.mkdir(exist_ok=True)
  found = _read(parts)
  missing = np.array([i for i, seed in enumerate(plan.seeds.tolist()) if seed not in found],
                     np.int64)
  seconds = {'compile': 0.0, 'sample': 0.0}
  if missing.size:
    seconds = _measure(plan, missing, parts, progress)
    found = _read(parts)
  measured = [found[seed] for seed in plan.seeds.tolist()]
  vb = np.array([some['vb'] for some in measured])
  seconds['total'] = time.perf_counter() - started
  plots.write_bound(plan.folder / _PLOT, plan.sigmas[:-1], vb.mean(0),
                    f'{len(measured)} images: {_mean([some["total"] for some in measured])}')
  identity_lib.write_json(plan.folder / _MANIFEST, {
      'mode': 'likelihood', 'config': plan.config, **generate.describe(plan.model),
      'input': plan.identity['input'], 'schedule': plan.identity['config']['schedule'],
      'solver': plan.identity['config']['solver'], 'sigmas': plan.sigmas.tolist(),
      'nfe': plan.coefficients.nfe,
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'seeds': plan.seeds.tolist(),
      'labels': [None if label < 0 else label for label in plan.labels.tolist()],
      **{name: [some[name] for some in measured] for name in ('total', 'prior')},
      'vb_by_step': vb.mean(0).tolist()})
  for part in parts.glob('*.json'):
    part.unlink()
  parts.rmdir()
  return f'{_say(plan, [some["total"] for some in measured])}, {seconds["total"]:.1f} s'


def _measure(plan, missing, parts, progress):
  program = _program(plan.model.apply_variance if plan.learned else plan.model.apply, plan.learned,
                     plan.limit)
  constants = devices.replicate((plan.model.params, plan.coefficients))

  def start(indices):
    seeds = plan.seeds[indices]
    labels = devices.split(plan.labels[indices]) if plan.model.num_classes else None
    return program(constants, (devices.split(inputs_lib.to_model(plan.pictures.take(seeds))),
                               devices.split(seeds), labels))

  def finish(indices, terms):
    seeds = plan.seeds[indices].tolist()
    if not np.isfinite(terms.total).all():
      raise FloatingPointError('likelihood: the bound must be finite, got a value that is not for '
                               f'image {seeds[int(np.argmin(np.isfinite(terms.total)))]}; '
                               'start the grid at a higher level')
    identity_lib.write_json(parts / f'{seeds[0]:06d}.json', {
        str(seed): {'total': float(terms.total[i]), 'prior': float(terms.prior[i]),
                    'vb': terms.vb[i].tolist()} for i, seed in enumerate(seeds)})
  return batches.run(missing, plan.batch_size, start, finish, progress, 'measuring',
                     len(plan.seeds) - len(missing))


@functools.cache
def _program(apply: Callable[..., Any], learned: bool, limit: str) -> Callable[[Any, Any], Any]:
  def measure(whole, share):
    (params, coefficients), (x0, seeds, labels) = whole, share

    def denoise(x, sigma):
      return apply(params, x, sigma, labels)
    denoise_variance = denoise if learned else samplers.ddpm.without_variance(denoise)
    return samplers.bound.bits_per_dim(
        coefficients, samplers.ddpm.change(denoise_variance, sampler.LIMITS[limit]), x0,
        key=seeds_lib.keys(seeds, seeds_lib.NOISE))
  return devices.spread(measure)


def _read(parts):
  """What was measured so far: seed -> its numbers."""
  return {int(seed): numbers for file in parts.glob('*.json')
          for seed, numbers in json.loads(file.read_text()).items()}


def _say(plan, totals):
  return (f'{len(totals)} images of {plan.pictures.name}: {_mean(totals)} bits per dimension at '
          f'most, by the bound of {len(plan.sigmas) - 1} steps, NFE {plan.coefficients.nfe}; see '
          f'{_MANIFEST} and {_PLOT} in {plan.folder}')


def _mean(totals):
  """The mean and its standard error over the images."""
  if len(totals) < 2:
    return f'{totals[0]:.3f}'
  return f'{np.mean(totals):.3f} +- {np.std(totals, ddof=1) / math.sqrt(len(totals)):.3f}'
