"""Makes a directory of a published model or predictor: `plan` reads and checks, `run` writes.

A file that is damaged, or does not fit its settings, is found before anything is written.
"""

import dataclasses
import functools
import gc
import json
import pathlib
import re
import time
import zipfile

import jax
import ml_collections
import numpy as np

import convert
from convert import text
from engine import convert_checks, files, progress as progress_lib
from models import autoencoder, directory, feature_networks, parts as parts_lib
from samplers import checks


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
    sha256 = convert.digest(source)
    if settings.sha256 and sha256 != settings.sha256.lower():
      raise ValueError(f'config.convert.sha256: must be that of {source}, {sha256}, got '
                       f'{settings.sha256}; download the file again')
  if there:
    if not _is_result(folder, settings, source, sha256):
      raise ValueError(f'workdir: must not exist or be what this conversion made, got {folder}; '
                       'choose another one with --workdir')
    return Plan(None, None, settings, folder, 0.0)
  converted = convert.read(source, settings.family, published=settings.published,
                           architecture=settings.architecture, tokenizer=settings.tokenizer,
                           ema=settings.ema)
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
    check = convert_checks.check(converted, plan.oracle) if plan.settings.self_check else 'not done'
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
  if not source.is_file() and not convert.is_folder(source):
    what = 'a folder' if source.is_dir() else 'nothing'
    raise ValueError(f'config.convert.source: must be a file, got {what} at {source}; check the '
                     'name, a folder must be one of diffusers with model_index.json')
  if settings.family is not None:
    convert.check_family(settings.family)
  checks.check_choice('config.convert', 'dtype', settings.dtype, directory.DTYPES)
  checks.check_choice('config.convert', 'ema', settings.ema, convert.EMA_CHOICES)
  if settings.sha256 and not re.fullmatch('[0-9a-fA-F]{64}', settings.sha256):
    raise ValueError(f'config.convert.sha256: must be 64 digits in hex, got {settings.sha256!r}; '
                     'sha256sum tells it')
  return source


def _check_resolution(resolution, config, source):
  """Raises ValueError unless a resolution, if one is asked for, is that of the network."""
  if resolution is None:
    return
  if config['kind'] == 'features':
    raise ValueError('config.convert.resolution: must be left out for a network of features, got '
                     f'{resolution} and {source}; take it out')
  predictor = config['kind'] == 'predictor'
  side = (config['model'] if predictor else config)['image_shape'][0]
  if 'parts' in config:
    side = _picture_shape(config)[0]
  if resolution != side:
    raise ValueError(f'config.convert.resolution: must be that of the network in {source}, {side}, '
                     f'got {resolution}; take the file that the config names, or the config of '
                     'this file')


def _picture_shape(config):
  """Of the pictures of a denoiser of latents."""
  return autoencoder.picture_shape(
      parts_lib.first_stage('convert', config['parts']['first_stage']), config['image_shape'])


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
  if 'architecture' in stored or settings.architecture or settings.published:
    given = convert.find_architecture(source, settings.published, settings.architecture,
                                      stored.get('family'))
    if json.loads(json.dumps(given)) != stored.get('architecture'):
      return False
  if settings.ema != stored.get('ema', 'auto'):
    return False
  if settings.tokenizer and text.digest(
      text.read_vocabulary(settings.tokenizer)) != stored.get('vocabulary'):
    return False
  others = {source.with_name(name): known for name, known in stored.get('beside', {}).items()}
  if not all(other.is_file() and convert.digest(other) == known for other, known in others.items()):
    return False
  return (stored.get('sha256'), stored.get('dtype')) == (sha256, settings.dtype)


def _read_oracle(source, config):
  """Reference numbers beside the source, or None."""
  path = source.with_name(f'{source.stem}{convert_checks.ORACLE}')
  # Where the network reads a number of steps, the file does not tell which.
  if (not path.is_file() or config['kind'] != 'denoiser' or 'parts' in config
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


def _report(plan, check, seconds):
  config, source = plan.converted.config, plan.converted.source
  params = plan.converted.params
  by_part = params if 'parts' in config else {'': params}
  counts = ' and '.join(f'{part} {sum(leaf.size for leaf in jax.tree.leaves(own)):,}'.strip()
                        for part, own in by_part.items())
  return '\n'.join([
      f'{config["kind"]} in {plan.workdir}: {source["family"]}, {plan.converted.tensors} tensors, '
      f'{counts} parameters, {seconds:.1f} s',
      f'  {_describe(config, plan.converted.params)}',
      f'  self-check: {check}',
      f'  source: {source["converted"]}, SHA-256 {source["sha256"]}'])


def _describe_predictor(config):
  """What a predictor is, in a line."""
  design, grid, model = config['design'], config['schedule'], config['model']
  height, width, channels = model['image_shape']
  guidance = config['guidance']
  under = f' under {guidance["method"]} guidance of {guidance["scale"]:g}' if guidance else ''
  return (f'{design["name"]} with student {design["settings"]["student"]}, '
          f'{convert_checks.design(config).nfe} evaluations on {grid["num_steps"]} intervals of '
          f'{grid["name"]}, sigma from {grid["sigma_min"]:.4g} to {grid["sigma_max"]:.6g}, for '
          f'{model["name"]} {height}x{width}x{channels or "?"}{under}')


def _describe(config, params):
  """What a network is, in a line."""
  if config['kind'] == 'predictor':
    return _describe_predictor(config)
  name = config['network']['name']
  if config['kind'] == 'autoencoder':
    return f'{_describe_first_stage(config)}, pictures {_by(config["image_shape"])} in training'
  if config['kind'] == 'features':
    module = feature_networks.build(**config['network'])
    answer = jax.eval_shape(functools.partial(feature_networks.evaluate, module), params,
                            *feature_networks.example(module))
    return f'{name} with the features ' + ', '.join(
        f'{feature} {"x".join(map(str, values.shape[1:])) or 1}'
        for feature, values in answer.items())
  labels = f'{config["num_classes"]} classes' if config['num_classes'] else 'no classes'
  shape, parts = _by(config['image_shape']), config.get('parts', {})
  if parts:
    shape = (f'latents {shape} of pictures {_by(_picture_shape(config))} by a first stage '
             f'{_describe_first_stage(parts["first_stage"])}')
  if 'text' in parts:
    settings = parts['text']['network']['settings']
    labels = f'texts of {settings["context"]} tokens of {settings["width"]}'
  return (f'{name} with preconditioning {config["preconditioning"]["name"]}, '
          f'{shape}, {labels}, sigma from {config["sigma_min"]:.4g} to {config["sigma_max"]:.6g}')


def _describe_first_stage(fields):
  return f'{fields["network"]["settings"]["kind"]} with scale factor {fields["scale_factor"]:.6g}'


def _by(shape):
  return 'x'.join(map(str, shape))
