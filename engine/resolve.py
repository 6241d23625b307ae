"""From the fields of a config to checked values; what several jobs share."""

import pathlib
from typing import Any

import ml_collections
import numpy as np

import models
import samplers
from engine import (
  grid_files,
  guide_fields,
  images,
  inputs as inputs_lib,
  prompts,
  results as results_lib,
  sampler,
  seeds as seeds_lib,
)
from models import mixture
from samplers import checks

_GRID = {'columns': (1, 100), 'rows': (1, 100), 'size': (64, 512)}  # Least and most of each.


def read_none(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Returns a copy whose texts 'None' are None: how a flag takes back what a config gives."""
  copy = config.copy_and_resolve_references()
  with copy.ignore_type():
    _read_none(copy)
  return copy.lock()


def _read_none(group):
  for name, value in group.items():
    if isinstance(value, ml_collections.ConfigDict):
      _read_none(value)
    elif value == 'None':
      group[name] = None


def model(config: ml_collections.ConfigDict, conditioned: bool = False,
          latent: bool = False) -> models.Model:
  """Loads the model at a path, or one that comes with the project.

  Args:
    config: the fields of config.model.
    conditioned: whether the job tells a network its number of steps, where it wants to know.
    latent: whether the job takes a model of latents.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is none, its images are no pictures, the job does not tell what it has to
      know, or the prompts are not as it needs them.
  """
  if config.path is not None:
    model = models.load(pathlib.Path(config.path))
  else:
    checks.lookup('config.model.name', config.name, models.BUNDLED)
    model = models.load(config.name)
  if model.first_stage is not None and not latent:
    raise ValueError(f'config.model: must be a model in pixel space, got {model.name} of latents; '
                     'the modes generate, train_amed and search take it')
  if model.picture_shape[-1] not in (1, 3):
    raise ValueError(f'config.model: images must have 1 or 3 channels, got '
                     f'{model.picture_shape[-1]} in {model.name}; choose a model in pixel space')
  if model.step_condition and not conditioned:
    raise ValueError('config.model: must be a network for any number of steps, got the student of '
                     f'SFD-v {model.name}; --mode=generate samples from it')
  return prompts.settle(model, config.prompts)


def sigmas(name: str, given: dict[str, Any],
               model: models.Model) -> tuple[np.ndarray, dict[str, Any]]:
  """Returns the grid of noise levels, and the arguments that made it.

  Of a file of levels, the levels are among the arguments, and not its name: they are what counts.

  Raises:
    ValueError: if the schedule refuses them, or there is a file of levels that is none or does not
      go with them.
  """
  if given.get('path') is not None:
    for field, value, rule in (('name', name, 'explicit'), ('sigmas', given.get('sigmas'), None)):
      if value != rule:
        raise ValueError(f'config.schedule.{field}: must be {rule} with a file of levels in '
                         f'config.schedule.path, got {value!r}; or leave the path out')
    given = {**given, 'sigmas': grid_files.read(given['path']).tolist()}
  given = {option: value for option, value in given.items() if option != 'path'}
  arguments = {'sigma_min': model.sigma_min, 'sigma_max': model.sigma_max}
  options = samplers.schedule_options(name)
  own = model.config.get('preconditioning', {}).get('settings', {}).get('alphas_cumprod')
  if 'alphas_cumprod' in options and own is not None:
    options['alphas_cumprod'] = own  # A grid in the network's times is one in those of its table.
  arguments |= options
  arguments |= {option: _numbers(option, value) for option, value in given.items()}
  arguments['name'] = name
  return samplers.schedule(**arguments), arguments


def seeds(text: str, start: inputs_lib.Pictures | None) -> np.ndarray:
  """Returns the seeds; with images to start from, their numbers.

  Raises:
    ValueError: as `seeds.parse`, or if an image of such a number does not exist.
  """
  if text == 'all':
    if start is None or start.count is None:
      raise ValueError("config.seeds: 'all' must go with a file or folder in config.input.images, "
                       f'got {start.name if start else None}; give numbers')
    return np.arange(start.count, dtype=np.uint32)
  seeds = seeds_lib.parse(text)
  if start and start.count is not None and seeds.max() >= start.count:
    raise ValueError(f'config.seeds: must be numbers of images, from 0 to {start.count - 1} in '
                     f"{start.name}, got {seeds.max()}; 'all' takes every image")
  return seeds


def labels(config: ml_collections.ConfigDict, seeds: np.ndarray, num_classes: int,
               start: inputs_lib.Pictures | None, shape: tuple[int, int, int]) -> np.ndarray:
  """Returns the class of every seed, np.int32 (n,), below 0 without.

  Raises:
    ValueError: as `seeds.parse_labels`, or if the images' own classes are asked for and there are
      none, or others than the model's.
  """
  seeds_lib.check_source(config.seeds_from, shape)
  if config.labels != 'given':
    return seeds_lib.labels(seeds_lib.parse_labels(config.labels, num_classes), seeds, num_classes,
                            shape, config.seeds_from)
  if start is None or start.labels is None:
    raise ValueError("config.labels: 'given' must go with images that have classes (arr_1 of a "
                     f'.npz file), got {start.name if start else "no images"}; give '
                     "'random', 'none' or a list")
  labels = start.labels(seeds)
  if num_classes and labels.max() >= num_classes:
    raise ValueError(f'config.labels: classes must be from 0 to {num_classes - 1}, got '
                     f'{labels.max()} in {start.name}; choose the model of the same data')
  return labels if num_classes else np.full_like(labels, mixture.UNCONDITIONAL)


def batch_size(config: ml_collections.ConfigDict) -> int:
  """Returns config.batch_size, or raises ValueError."""
  return _within('batch_size', config.batch_size, 1, 2**16)


def check_least(group: str, fields: ml_collections.ConfigDict, least: dict[str, int],
                file: str) -> None:
  """Raises ValueError for the first field of a group that is no integer of its least or more.

  Args:
    group: name of the group, such as 'train'.
    fields: the group.
    least: field -> lowest value.
    file: of configs/, where the usual values are.
  """
  for field, lowest in least.items():
    value = fields[field]
    if not checks.is_integer(value) or value < lowest:
      raise ValueError(f'config.{group}.{field}: must be an integer of {lowest} or more, got '
                       f'{value!r}; configs/{file} has the usual one')


def given(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns the fields that have a value, without those of jobs of their own."""
  given = _given(config.to_dict())
  for group in ('train', 'learn', 'distill', 'search', 'convert', 'evaluate', 'compare',
                'analyze', 'likelihood'):
    given.pop(group, None)
  return given


def check_names(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError unless the names of limit, noise and output are known."""
  for field, value, known in (('limit', config.limit, sampler.LIMITS),
                              ('noise', config.noise, samplers.noise.SOURCES),
                              ('output.format', config.output.format, results_lib.FORMATS),
                              ('output.uint8_rule', config.output.uint8_rule, images.UINT8_RULES)):
    if value not in known:
      raise ValueError(checks.unknown(f'config.{field}', value, known))


def refuse(config: ml_collections.ConfigDict, job: str, guided: bool = False) -> None:
  """Raises ValueError if a field is given that only the mode generate has.

  Args:
    config: the fields of configs/default.py.
    job: the mode that runs.
    guided: whether it takes guidance.
  """
  guidance = [] if guided else [f'guidance.{name}' for name in config.guidance]
  for field in ('predictor.path', 'condition.task', 'condition.image', 'condition.mask', *guidance):
    group, name = field.split('.')
    usual = guide_fields.DEFAULTS.get(name) if group == 'guidance' else None
    if config[group][name] != usual:
      raise ValueError(f'config.{field}: must be left out with --mode={job}, got '
                       f'{config[group][name]}; the mode generate has it')
  if config.share != '0/1':
    raise ValueError(f'config.share: must be 0/1 with --mode={job}, got {config.share}; give each '
                     'machine seeds and a workdir of its own')


def model_flags(given: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields that name the model of a run, for its command: 'model.path' -> value.

  Args:
    given: the fields that were given, see `given`.
  """
  return {f'model.{field}': value for field, value in given['model'].items()
          if field != 'name' or 'path' not in given['model']}


def _numbers(option, value):
  """A list of numbers written as text; other values, names too, stay as they are."""
  if not isinstance(value, str) or ',' not in value:
    return value
  try:
    return [float(part) for part in value.split(',')]
  except ValueError:
    raise ValueError(f'schedule: {option} must be numbers separated by commas, got {value!r}; such '
                     "as '80,5,0.5,0'") from None


def check_latent(config: ml_collections.ConfigDict, model: models.Model) -> None:
  """Raises ValueError if a field is given that has no meaning for the latents of a model."""
  if model.first_stage is None:
    return
  for field, value, usual in (('limit', config.limit, 'none'),
                              ('condition.task', config.condition.task, None),
                              ('input.images', config.input.images, None)):
    if value != usual:
      raise ValueError(f'config.{field}: must be {usual} for {model.name}, whose samples are '
                       f'latents, got {value!r}; take a model in pixel space')


def _within(name, value, least, most):
  if not checks.is_integer(value) or not least <= value <= most:
    raise ValueError(f'config.{name}: must be an integer from {least} to {most}, got {value}; '
                     'configs/default.py has the usual one')
  return value


def _given(fields):
  """The fields with a value; None stands for a default that belongs to someone else."""
  return {name: _given(value) if isinstance(value, dict) else value
          for name, value in fields.items() if value is not None}




def grid(config: ml_collections.ConfigDict) -> dict[str, int]:
  """Returns the fields of config.output.grid, or raises ValueError."""
  return {name: _within(f'output.grid.{name}', config[name], least, most)
          for name, (least, most) in _GRID.items()}


def options(fields: dict[str, Any]) -> dict[str, Any]:
  """Returns the fields of a group but its name."""
  return {option: value for option, value in fields.items() if option != 'name'}
