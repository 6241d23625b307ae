"""Encodes images as latents and decodes them again: `--mode=invert`.

A deterministic solver runs the grid of noise levels upwards, from the image to its latent, and then
downwards. What comes back differs by the error of both runs; more steps make it small.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
import samplers
from engine import (
  batches,
  devices,
  files,
  generate,
  images,
  inputs as inputs_lib,
  progress as progress_lib,
  resolve,
  results as results_lib,
  sampler,
)

_LATENTS = 'latents'  # Folder of one .npz file per image: latent, rms.


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """An inversion with nothing left to decide.

  Attributes:
    config: the fields that were given, plain values.
    model: the denoiser.
    schedule: name and arguments of the schedule, defaults filled in.
    solver: name and options of the solver, defaults filled in.
    sigmas: noise levels on the way down, np.float64 (n + 1,).
    up: table from the lowest level above 0 to the first.
    down: table from the first level to the last.
    limit: limit on the denoised image, a key of sampler.LIMITS.
    pictures: what is encoded.
    labels: np.int32 (n,), below 0 without a class.
    batch_size: images per call, over all devices.
    uint8_rule: how numbers become bytes.
    results: the workdir and the images that come back.
  """

  config: dict[str, Any]
  model: models.Model
  schedule: dict[str, Any]
  solver: dict[str, Any]
  sigmas: np.ndarray
  up: samplers.Table
  down: samplers.Table
  limit: str
  pictures: inputs_lib.Pictures
  labels: np.ndarray
  batch_size: int
  uint8_rule: str
  results: results_lib.Results


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
  resolve.refuse(config, 'invert')
  if config.input.images is None:
    raise ValueError('config.input.images: must name the images to invert, got None; give a .npz '
                     'file, a folder or a picture')
  model = resolve.model(config.model)
  sigmas, schedule = resolve.sigmas(config.schedule.name, given['schedule'], model)
  options, name = resolve.options(given['solver']), config.solver.name
  up, down = samplers.inversion.tables(name, sigmas, **options)
  pictures = inputs_lib.load('config.input.images', config.input.images, model.image_shape)
  seeds = resolve.seeds(config.seeds, pictures)
  labels = resolve.labels(config, seeds, model.num_classes, pictures, model.image_shape)
  solver = {'name': name, **samplers.options(name), **options}
  output = {field: config.output[field] for field in ('format', 'subfolders', 'uint8_rule')}
  identity = {'mode': 'invert',
              'config': {'schedule': schedule, 'solver': solver, 'limit': config.limit,
                         'labels': str(config.labels), 'seeds_from': config.seeds_from,
                         'output': output},
              'model': model.identity,
              'input': {'images': pictures.name, 'sha256': pictures.sha256}}
  results = results_lib.Results(
      folder=pathlib.Path(workdir), identity=identity, format=config.output.format,
      subfolders=config.output.subfolders, grid=grid, seeds=seeds)
  results_lib.check(results)
  files.check_folder(workdir)
  return Plan(config=given, model=model, schedule=schedule, solver=solver, sigmas=sigmas, up=up,
              down=down, limit=config.limit, pictures=pictures, labels=labels,
              batch_size=batch_size, uint8_rule=config.output.uint8_rule, results=results)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Inverts the images of a plan that are not there yet, and completes the workdir.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    One line for the user.

  Raises:
    FloatingPointError: if a latent is not finite.
    OSError: if a file cannot be written.
  """
  started = time.perf_counter()
  results = plan.results
  folder = results.folder / _LATENTS
  have = f'{len(results.seeds)} images and their latents in {results.folder}'
  lost = np.flatnonzero([not _latent(folder, seed).exists() for seed in results.seeds.tolist()])
  if lost.size:  # Then the run is not complete, whatever its manifest says.
    (results.folder / results_lib.MANIFEST).unlink(missing_ok=True)
  if results_lib.begin(results):
    return f'nothing to do: {have} are complete; see manifest.json'
  folder.mkdir(exist_ok=True)
  files.remove_partial(folder)
  missing = np.union1d(results_lib.missing(results), lost)
  seconds = {'compile': 0.0, 'sample': 0.0}
  if missing.size:
    seconds = _invert(plan, missing, folder, progress)
  errors = [_read_rms(_latent(folder, seed)) for seed in results.seeds.tolist()]
  seconds['total'] = time.perf_counter() - started
  labels = dict(zip(results.seeds.tolist(), plan.labels.tolist(), strict=True))
  results_lib.pack(results, plan.labels, lambda seed: (
      [(results_lib.say(seed, labels[seed]), plan.pictures.take(np.array([seed]))[0])], []),
      {seed: f'back, RMS {error:.3f}' for seed, error in zip(labels, errors, strict=True)})
  results_lib.complete(results, {
      'mode': 'invert', 'config': plan.config, **generate.describe(plan.model),
      'input': results.identity['input'], 'schedule': plan.schedule, 'sigmas': plan.sigmas.tolist(),
      'solver': plan.solver, 'nfe': {'encode': plan.up.nfe, 'decode': plan.down.nfe},
      'uint8_rule': images.UINT8_RULES[plan.uint8_rule],
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'rms_error': errors,
      'labels': [None if label < 0 else label for label in plan.labels.tolist()]})
  return (f'{have}: {plan.solver["name"]} on {plan.schedule["name"]}, NFE {plan.up.nfe} up and '
          f'{plan.down.nfe} down, RMS error {np.sqrt(np.mean(np.square(errors))):.4f}, '
          f'{seconds["total"]:.1f} s; see grid.png and manifest.json')


def _invert(plan, missing, folder, progress):
  program = _program(plan.model.apply, plan.limit)
  first = np.float32(plan.sigmas[0])
  constants = devices.replicate((plan.model.params, plan.up, plan.down, first))

  def start(indices):
    pictures = inputs_lib.to_model(plan.pictures.take(plan.results.seeds[indices]))
    labels = devices.split(plan.labels[indices]) if plan.model.num_classes else None
    return program(constants, (devices.split(pictures), labels))

  with files.in_background() as submit:
    def finish(indices, answers):
      latents, decoded, errors = answers
      seeds = plan.results.seeds[indices]
      pixels = images.to_uint8(generate.check_finite(decoded, seeds), plan.uint8_rule)
      for seed, latent, error, image in zip(seeds.tolist(), latents, errors, pixels, strict=True):
        submit(_write, plan, _latent(folder, seed), latent, error, seed, image)
    return batches.run(missing, plan.batch_size, start, finish, progress, 'inverting',
                       len(plan.results.seeds) - len(missing))


@functools.cache
def _program(apply: Callable[..., jax.Array], limit: str) -> Callable[[Any, Any], Any]:
  def invert(whole, share):
    (params, up, down, first), (x0, labels) = whole, share
    denoise = sampler.LIMITS[limit](lambda x, sigma: apply(params, x, sigma, labels))
    latents = samplers.inversion.encode(up, denoise, x0) / first
    decoded = samplers.run(down, denoise, first * latents)
    return latents, decoded, jnp.sqrt(jnp.mean(jnp.square(decoded - x0), axis=(1, 2, 3)))
  return devices.spread(invert)


def _write(plan, path, latent, error, seed, image):
  """The latent first: an image that is there says that its latent is."""
  with files.replacing(path) as file:
    np.savez(file, latent=latent, rms=error)
  images.write_png(results_lib.path(plan.results, seed), image)


def _latent(folder, seed):
  return folder / f'{seed:06d}.npz'


def _read_rms(path):
  return round(float(files.read_arrays('invert', path, ['rms'])['rms']), 6)
