"""Samples images, one per seed: `plan` checks everything on the host, `run` does the work."""

import dataclasses
import functools
import importlib.metadata
import json
import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
import samplers
from engine import files, images, seeds as seeds_lib

_PACKAGES = ('jax', 'jaxlib', 'numpy', 'pillow', 'ml_collections')
_GRID = {'columns': (1, 100), 'rows': (1, 100), 'size': (64, 512)}  # Least and most of each.
_LIMITS = {'none': lambda denoise: denoise, 'clip': samplers.guidance.clip,
           'dynamic': samplers.guidance.dynamic_threshold}


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
    limit: limit on the denoised image: 'none', 'clip' or 'dynamic'.
    seeds: np.uint32 (n,).
    labels: np.int32 (n,), below 0 without a class.
    batch_size: images per call of the compiled sampler.
    grid: columns, rows and size of the grid of images.
    workdir: folder of all output; exists and can be written to.
  """

  config: dict[str, Any]
  model: models.Model
  schedule: dict[str, Any]
  solver: dict[str, Any]
  sigmas: np.ndarray
  table: samplers.Table
  limit: str
  seeds: np.ndarray
  labels: np.ndarray
  batch_size: int
  grid: dict[str, int]
  workdir: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it; nothing is compiled before all of it is found good.

  Args:
    config: the fields of configs/default.py.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of the model cannot be read.
    ValueError: if a field is out of range or the folder cannot be written to.
  """
  given = _given(config.to_dict())
  batch_size = _within('batch_size', config.batch_size, 1, 2**16)
  grid = {name: _within(f'output.grid.{name}', config.output.grid[name], least, most)
          for name, (least, most) in _GRID.items()}
  model = models.load(config.model.name)
  sigmas, schedule = _sigmas(config.schedule.name, given['schedule'], model)
  table, solver = _table(config.solver.name, given['solver'], sigmas)
  if config.limit not in _LIMITS:
    raise ValueError(f'config.limit: must be one of: {", ".join(_LIMITS)}, got {config.limit!r}; '
                     "'none' changes nothing")
  seeds = seeds_lib.parse(config.seeds)
  classes = seeds_lib.parse_labels(config.labels, model.num_classes)
  folder = files.check_folder(workdir)
  labels = seeds_lib.labels(classes, seeds, model.num_classes)
  return Plan(config=given, model=model, schedule=schedule, solver=solver, sigmas=sigmas,
              table=table, limit=config.limit, seeds=seeds, labels=labels, batch_size=batch_size,
              grid=grid, workdir=folder)


def run(plan: Plan) -> str:
  """Samples all images of a plan and writes them, the grid, and last the manifest.

  A manifest of an earlier run goes first: where there is one, the run that it tells of is complete.

  Args:
    plan: what `plan` returns.

  Returns:
    One line for the user: what was made, where, at which cost.

  Raises:
    FloatingPointError: if a sample is not finite.
    OSError: if a file cannot be written.
  """
  started = time.perf_counter()
  (plan.workdir / 'manifest.json').unlink(missing_ok=True)
  batches = _batches(len(plan.seeds), plan.batch_size)
  constants = jax.device_put((plan.model.params, plan.table, np.float32(plan.sigmas[0])))
  compiled = sample.lower(*constants, *_inputs(plan, batches[0]), apply=plan.model.apply,
                          limit=plan.limit, shape=plan.model.image_shape).compile()
  ready = time.perf_counter()
  names = [f'{seed:06d}.png' for seed in plan.seeds]
  shown, sampling = [], 0.0
  for indices in batches:
    before = time.perf_counter()
    samples = np.asarray(compiled(*constants, *_inputs(plan, indices)))
    sampling += time.perf_counter() - before
    kept = np.unique(indices)  # Without the padding of the last batch.
    pixels = images.to_uint8(_finite(samples[:len(kept)], plan.seeds[kept]))
    for i, image in zip(kept, pixels, strict=True):
      images.write_png(plan.workdir / names[i], image)
    shown += list(pixels[:plan.grid['columns'] * plan.grid['rows'] - len(shown)])
  images.write_png(plan.workdir / 'grid.png', images.grid(
      np.stack(shown), _captions(plan)[:len(shown)], plan.grid['columns'], plan.grid['size']))
  seconds = {'compile': ready - started, 'sample': sampling,
             'total': time.perf_counter() - started}
  _write_manifest(plan, names, seconds)
  return (f'{len(names)} image{"s" * (len(names) > 1)} in {plan.workdir}: {plan.solver["name"]} on '
          f'{plan.schedule["name"]}, NFE {plan.table.nfe}, {seconds["total"]:.1f} s; see grid.png '
          'and manifest.json')


@functools.partial(jax.jit, static_argnames=('apply', 'limit', 'shape'))
def sample(params: Any, table: samplers.Table, sigma_first: jax.Array, seeds: jax.Array,
           labels: jax.Array | None, *, apply: Callable[..., jax.Array],
           limit: str, shape: tuple[int, int, int]) -> jax.Array:
  """Samples one image per seed; compiled once for all batches of a run.

  Image i depends on seed i and label i alone. It is the same bit for bit at any place of a batch
  and in any company; another batch size changes the order of sums, so the last digits.

  Args:
    params: of the model.
    table: the solver; tables of equal rows and slots share the program.
    sigma_first: first noise level of the grid, a scalar.
    seeds: uint32 (batch,).
    labels: int32 (batch,), None for a model without classes.
    apply: of the model.
    limit: limit on the denoised image: 'none', 'clip' or 'dynamic'.
    shape: of an image.

  Returns:
    Samples in model units, float32 (batch, *shape).
  """
  latents = jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(
      seeds_lib.keys(seeds, seeds_lib.LATENT))
  denoise = _LIMITS[limit](lambda x, sigma: apply(params, x, sigma, labels))
  return samplers.run(table, denoise, sigma_first * latents,
                      key=seeds_lib.keys(seeds, seeds_lib.NOISE))


def _batches(count, batch_size):
  """Indices of each batch; the last one repeats its last index up to the full size."""
  padded = np.minimum(np.arange(-(-count // batch_size) * batch_size), count - 1)
  return padded.reshape(-1, batch_size)


def _inputs(plan, indices):
  """Seeds and labels of a batch; a model without classes gets none."""
  return plan.seeds[indices], plan.labels[indices] if plan.model.num_classes else None


def _finite(samples, seeds):
  bad = np.flatnonzero(~np.isfinite(samples).all(axis=(1, 2, 3)))
  if bad.size:
    raise FloatingPointError(f'generate: samples must be finite, got a value that is not for seed '
                             f'{seeds[bad[0]]}; take more steps or another solver')
  return samples


def _captions(plan):
  return [f'seed {seed}' if label < 0 else f'{label}, seed {seed}'
          for seed, label in zip(plan.seeds, plan.labels, strict=True)]


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
  if value is None or not least <= value <= most:
    raise ValueError(f'config.{name}: must be an integer from {least} to {most}, got {value}; '
                     'configs/default.py has the usual one')
  return value


def _given(fields):
  """The fields with a value; None stands for a default that belongs to someone else."""
  return {name: _given(value) if isinstance(value, dict) else value
          for name, value in fields.items() if value is not None}


def _write_manifest(plan, names, seconds):
  manifest = {
      'mode': 'generate',
      'config': plan.config,
      'model': {'name': plan.model.name, 'sha256': plan.model.sha256, **plan.model.config},
      'schedule': plan.schedule,
      'sigmas': plan.sigmas.tolist(),
      'solver': plan.solver,
      'nfe': plan.table.nfe,
      'uint8_rule': images.UINT8_RULE,
      'versions': {'python': platform.python_version(),
                   **{name: importlib.metadata.version(name) for name in _PACKAGES}},
      'device': str(jax.devices()[0].device_kind),
      'seconds': {name: round(value, 3) for name, value in seconds.items()},
      'images_per_second': round(len(names) / seconds['sample'], 3),
      'seeds': plan.seeds.tolist(),
      'labels': [None if label < 0 else label for label in plan.labels.tolist()],
      'files': names,
  }
  with files.replacing(plan.workdir / 'manifest.json') as file:
    lines = [f'{json.dumps(key)}: {json.dumps(value)}' for key, value in manifest.items()]
    file.write(('{\n' + ',\n'.join(lines) + '\n}\n').encode())
