"""Makes a directory of a published model or predictor: `plan` reads and checks, `run` writes.

A file that is damaged, or does not fit its settings, is found before anything is written.
"""

import dataclasses
import functools
import gc
import hashlib
import json
import pathlib
import re
import time
import zipfile

import jax
import ml_collections
import numpy as np

import convert
import samplers
from engine import files, progress as progress_lib
from models import directory, feature_networks, networks
from samplers import checks

_ORACLE = '.expected.npz'  # Ending of a file beside the source, in place of its own.


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A conversion with nothing left to decide.

  Attributes:
    converted: the checkpoint as a model; None: the model directory is complete.
    oracle: what the network must answer, arrays x, sigma and D_f32, or None.
    settings: config.convert.
    workdir: the model directory.
    seconds: spent on reading.
  """

  converted: convert.Converted | None
  oracle: dict[str, np.ndarray] | None
  settings: ml_collections.FrozenConfigDict
  workdir: pathlib.Path
  seconds: float


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config, and reads and checks the checkpoint.

  Args:
    config: the fields of configs/default.py, of which `convert` counts.
    workdir: the model directory, which must not exist, or be what this conversion makes.

  Returns:
    The Plan.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if a field is out of range, the file is no known checkpoint, is damaged, or does not
      fit its settings, or the folder holds something else.
  """
  started = time.perf_counter()
  settings = ml_collections.FrozenConfigDict(config.convert)
  source = _check(settings)
  folder = pathlib.Path(workdir)
  if not str(workdir) or folder.name in ('', '..'):
    raise ValueError(f'workdir: must name the model directory to be made, got {workdir!r}; give '
                     'one with --workdir')
  there = folder.exists() or folder.is_symlink()
  if there or settings.sha256:  # Long work waits for this.
    sha256 = _sha256(source)
    if settings.sha256 and sha256 != settings.sha256.lower():
      raise ValueError(f'config.convert.sha256: must be that of {source}, {sha256}, got '
                       f'{settings.sha256}; download the file again')
  if there:
    if not _is_result(folder, settings, source, sha256):
      raise ValueError(f'workdir: must not exist or be what this conversion made, got {folder}; '
                       'choose another one with --workdir')
    return Plan(None, None, settings, folder, 0.0)
  converted = convert.read(source, settings.family, published=settings.published,
                           architecture=settings.architecture)
  _check_resolution(settings.resolution, converted.config, source)
  oracle = _read_oracle(source, converted.config)
  files.check_folder(folder.absolute().parent)
  return Plan(converted, oracle, settings, folder, time.perf_counter() - started)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Evaluates the network once and writes the model directory.

  Args:
    plan: what `plan` returns.
    progress: shows how far the run is.

  Returns:
    The report, some lines.

  Raises:
    FloatingPointError: if the answer of the network is not finite.
    OSError: if a file cannot be written.
  """
  if plan.converted is None:
    return f'{plan.workdir} is complete; nothing was left to do'
  started = time.perf_counter()
  converted = plan.converted
  with progress('converting', 2, 'steps') as advance:
    check = _self_check(converted, plan.oracle) if plan.settings.self_check else 'not done'
    gc.collect()  # The copy of the parameters on the device, before they are copied to be saved.
    advance()
    convert.save(plan.workdir, converted.config, converted.params,
                 _source(converted.source, plan.settings), plan.settings.dtype)
    advance()
  seconds = plan.seconds + time.perf_counter() - started
  return _report(plan, check, seconds)


def _check(settings):
  """Checks the fields; returns the path of the source."""
  if not settings.source:
    raise ValueError('config.convert.source: must name a checkpoint, got none; give its file with '
                     '--config.convert.source')
  source = pathlib.Path(settings.source)
  if not source.is_file():
    what = 'a folder' if source.is_dir() else 'nothing'
    raise ValueError(f'config.convert.source: must be a file, got {what} at {source}; check the '
                     'name')
  if settings.family is not None:
    convert.check_family(settings.family)
  checks.check_choice('config.convert', 'dtype', settings.dtype, directory.DTYPES)
  if settings.sha256 and not re.fullmatch('[0-9a-fA-F]{64}', settings.sha256):
    raise ValueError(f'config.convert.sha256: must be 64 digits in hex, got {settings.sha256!r}; '
                     'sha256sum tells it')
  return source


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_resolution(resolution, config, source):
  """Raises ValueError unless a resolution, if one is asked for, is that of the network."""
  if resolution is None:
    return
  if config['kind'] == 'features':
    raise ValueError('config.convert.resolution: must be left out for a network of features, got '
                     f'{resolution} and {source}; take it out')
  predictor = config['kind'] == 'predictor'
  side = (config['model'] if predictor else config)['image_shape'][0]
  if resolution != side:
    raise ValueError(f'config.convert.resolution: must be that of the network in {source}, {side}, '
                     f'got {resolution}; take the file that the config names, or the config of '
                     'this file')


def _source(source, settings):
  """What config.json tells of where the parameters come from."""
  return {**source, 'dtype': settings.dtype}


def _is_result(folder, settings, source, sha256):
  """Says whether a folder is what this conversion makes."""
  try:
    stored = directory.read_config(folder)['source']
  except (KeyError, OSError, ValueError):
    return False
  if not isinstance(stored, dict) or settings.family not in (None, stored.get('family')):
    return False
  if 'architecture' in stored or settings.architecture:
    given = convert.find_architecture(source, settings.published, settings.architecture)
    if json.loads(json.dumps(given)) != stored.get('architecture'):
      return False
  others = {source.with_name(name): known for name, known in stored.get('beside', {}).items()}
  if not all(other.is_file() and _sha256(other) == known for other, known in others.items()):
    return False
  return (stored.get('sha256'), stored.get('dtype')) == (sha256, settings.dtype)


def _read_oracle(source, config):
  """Reference numbers beside the source, or None."""
  path = source.with_name(f'{source.stem}{_ORACLE}')
  # Where the network reads a number of steps, the file does not tell which.
  if (not path.is_file() or config['kind'] != 'denoiser'
      or config['network']['settings'].get('step_condition')):
    return None
  try:
    with open(path, 'rb') as file, np.load(file) as arrays:
      oracle = {name: arrays[name] for name in ('x', 'sigma', 'D_f32', 'class_index')
                if name in arrays}
  except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
    raise ValueError(f'convert: {path} must hold reference numbers, got {error}; take it away'
                     ) from None
  shapes = [oracle[name].shape for name in ('x', 'D_f32') if name in oracle]
  if len(shapes) < 2 or 'sigma' not in oracle or any(
      shape[1:] != tuple(config['image_shape']) for shape in shapes):
    raise ValueError(f'convert: {path} must hold x, sigma and D_f32 for images of '
                     f'{tuple(config["image_shape"])}, got {shapes}; take it away')
  return oracle


# It runs once: a quick compilation is worth more than a quick program.
_COMPILER = {'xla_backend_optimization_level': 0}


def _check_features(config, params):
  """Evaluates a network of features on gray; returns what is to be told of it."""
  module = feature_networks.build(**config['network'])
  apply = jax.jit(functools.partial(feature_networks.evaluate, module), compiler_options=_COMPILER)
  answer = jax.device_get(apply(params, *feature_networks.example(module)))
  bad = [name for name, values in answer.items() if not np.isfinite(values).all()]
  if bad:
    raise FloatingPointError(f'convert: features of a gray image must be finite, got others in '
                             f'{", ".join(bad)}; the checkpoint is damaged, nothing was written')
  return f'finite {", ".join(answer)} of a gray image'


def _check_predictor(config, params):
  """Samples with a predictor where a denoiser answers gray; returns what is to be told of it."""
  design = _design(config)
  bottleneck = np.zeros((1, 1, config['design']['settings']['bottleneck_size']), np.float32)
  def denoise(x, sigma):
    del sigma
    return 0 * x, bottleneck
  def solve(params, x):
    _, told = design.step(params, denoise, design.start(x), 0)
    return {**told, 'sample': design.solve(params, denoise, x)}
  answer = jax.jit(solve, compiler_options=_COMPILER)(params, np.ones((1, 1, 1, 1), np.float32))
  bad = [name for name, values in answer.items() if not np.isfinite(values).all()]
  if bad:
    raise FloatingPointError(f'convert: answers of the predictor must be finite, got others in '
                             f'{", ".join(bad)}; the snapshot is damaged, nothing was written')
  first = ', '.join(f'{name} {float(values[0]):.3g}' for name, values in answer.items()
                    if name != 'sample')
  return f'finite sample, {first} in the first interval'


def _self_check(converted, oracle):
  """Evaluates the network once; returns what is to be told of it."""
  config = converted.config
  if config['kind'] == 'features':
    return _check_features(config, converted.params)
  if config['kind'] == 'predictor':
    return _check_predictor(config, converted.params)
  network = networks.build(**config['network'])
  coefficients = networks.preconditioning(**config['preconditioning'])
  shape = tuple(config['image_shape'])
  x = np.asarray(jax.random.normal(jax.random.key(0), (1, *shape)))
  sigma, labels, call = np.ones(1, np.float32), None, {}
  if oracle:
    x, sigma, labels = (oracle.get(name) for name in ('x', 'sigma', 'class_index'))
  elif config['num_classes']:
    labels = np.zeros(1, np.int32)
  if getattr(network, 'low_res', False):
    call = {'low_res': x[:, ::2, ::2]}
  if config['kind'] == 'classifier':
    apply = jax.jit(networks.classifier(network, coefficients), compiler_options=_COMPILER)
    answer, expected = apply(converted.params, x, sigma), (len(x), config['num_classes'])
  else:
    evaluate = networks.select(networks.denoiser(network, coefficients), 0)
    apply = jax.jit(evaluate, compiler_options=_COMPILER)
    answer, expected = apply(converted.params, x, sigma, labels, **call), x.shape
  answer = np.asarray(answer)
  if answer.shape != expected or not np.isfinite(answer).all():
    raise FloatingPointError(f'convert: answer of the network must be finite and of shape '
                             f'{expected}, got {np.isfinite(answer).mean():.0%} finite of shape '
                             f'{answer.shape}; the checkpoint is damaged, nothing was written')
  if not oracle:
    return f'finite answer of shape {answer.shape} at sigma = 1'
  error = np.abs(answer - oracle['D_f32']).max()
  return f'largest error {error:.1e} against the reference numbers in *{_ORACLE}'


def _report(plan, check, seconds):
  config, source = plan.converted.config, plan.converted.source
  count = sum(leaf.size for leaf in jax.tree.leaves(plan.converted.params))
  return '\n'.join([
      f'{config["kind"]} in {plan.workdir}: {source["family"]}, {plan.converted.tensors} tensors, '
      f'{count:,} parameters, {seconds:.1f} s',
      f'  {_describe(config, plan.converted.params)}',
      f'  self-check: {check}',
      f'  source: {source["converted"]}, SHA-256 {source["sha256"]}'])


def _design(config):
  """The design of a predictor."""
  design = config['design']
  return samplers.learned.design(design['name'], np.array(config['sigmas']), **design['settings'])


def _describe_predictor(config):
  """What a predictor is, in a line."""
  design, grid, model = config['design'], config['schedule'], config['model']
  height, width, channels = model['image_shape']
  guidance = config['guidance']
  under = f' under {guidance["method"]} guidance of {guidance["scale"]:g}' if guidance else ''
  return (f'{design["name"]} with student {design["settings"]["student"]}, {_design(config).nfe} '
          f'evaluations on {grid["num_steps"]} intervals of {grid["name"]}, sigma from '
          f'{grid["sigma_min"]:.4g} to {grid["sigma_max"]:.6g}, for {model["name"]} '
          f'{height}x{width}x{channels or "?"}{under}')


def _describe(config, params):
  """What a network is, in a line."""
  if config['kind'] == 'predictor':
    return _describe_predictor(config)
  name = config['network']['name']
  if config['kind'] == 'features':
    module = feature_networks.build(**config['network'])
    answer = jax.eval_shape(functools.partial(feature_networks.evaluate, module), params,
                            *feature_networks.example(module))
    return f'{name} with the features ' + ', '.join(
        f'{feature} {"x".join(map(str, values.shape[1:])) or 1}'
        for feature, values in answer.items())
  height, width, channels = config['image_shape']
  classes = f'{config["num_classes"]} classes' if config['num_classes'] else 'no classes'
  return (f'{name} with preconditioning {config["preconditioning"]["name"]}, '
          f'{height}x{width}x{channels}, {classes}, sigma from {config["sigma_min"]:.4g} to '
          f'{config["sigma_max"]:.6g}')
