"""Predictors: what a learned solver has learned, on disk with all that sampling needs to know.

A predictor is a directory as models are: config.json with the solver and its options (`design`),
the grid (`schedule`, `sigmas`), `limit`, `guidance` and the `model` it was trained for, beside the
learned numbers. It is named by its path, or by the number of its experiment in exps/.
"""

import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

import models
import samplers
from configs import default
from engine import solvers
from models import directory
from models.model import ASSETS

BUNDLED = 'digits_amed',
"""Names of predictors that come with the project."""

EXPERIMENTS = pathlib.Path('exps')
FOLDER = 'predictor'

_SETTLED = 'schedule', 'solver', 'limit', 'guidance', 'noise'
"""Fields of a config that a predictor decides."""

_FREE = 'classifier', 'weak', 'calls'
"""Those of guidance that it does not: networks may have moved."""


class Predictor(NamedTuple):
  """A learned solver with nothing left to decide.

  Attributes:
    name: what it was loaded as.
    config: fields of config.json.
    learned: pytree of arrays.
    sigmas: its grid, np.float64 (n + 1,).
  """

  name: str
  config: dict[str, Any]
  learned: Any
  sigmas: np.ndarray

  @property
  def design(self) -> samplers.learned.Design:
    """Returns the solver on its grid."""
    return design(self.config['design'], self.sigmas)


def design(named: Mapping[str, Any], sigmas: Any) -> samplers.learned.Design:
  """Returns a design from its name and settings."""
  return samplers.learned.design(named['name'], sigmas, **named['settings'])


def find(text: str | pathlib.Path) -> pathlib.Path:
  """Returns the directory of a predictor.

  Args:
    text: its path, that of the run that made it, the number of an experiment, or one of BUNDLED.

  Returns:
    The path of a folder that is there.

  Raises:
    ValueError: if there is none, or a number names no experiment or several.
  """
  path = ASSETS / str(text) if str(text) in BUNDLED else pathlib.Path(text)
  if re.fullmatch('[0-9]{1,5}', str(text)) and not path.exists():
    found = experiments().get(int(str(text)), [])
    if len(found) != 1:
      have = ', '.join(str(number) for number in sorted(experiments())) or 'none'
      what = f'{len(found)} folders' if found else 'no folder'
      raise ValueError(f'config.predictor.path: must be the number of one folder in {EXPERIMENTS}/,'
                       f' got {text}, which is that of {what}; there are: {have}')
    path, = found
  path = path / FOLDER if (path / FOLDER).is_dir() else path
  if not path.is_dir():
    what = ('a file' if path.exists() else
            'an unfinished run' if path.parent.is_dir() and path.name == FOLDER else 'nothing')
    raise ValueError('config.predictor.path: must be a folder that --mode=train_amed or '
                     f'--mode=convert made, the number of an experiment, or one of '
                     f'{", ".join(BUNDLED)}, got {what} at {text}')
  return path


def experiments() -> dict[int, list[pathlib.Path]]:
  """Returns the numbered folders of exps/, by number."""
  found = {}
  for path in sorted(EXPERIMENTS.glob('*')) if EXPERIMENTS.is_dir() else []:
    match = re.match('([0-9]{5})-', path.name)
    if match and path.is_dir():
      found.setdefault(int(match[1]), []).append(path)
  return found


def load(text: str | pathlib.Path) -> Predictor:
  """Loads a predictor.

  Args:
    text: as `find`.

  Returns:
    The Predictor; what is learned are NumPy arrays.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is none, or the folder holds something else, is incomplete or damaged.
  """
  path = find(text)
  config = directory.read_config(path)
  if config['kind'] != FOLDER:
    raise ValueError(f'config.predictor.path: must be a predictor, got the {config["kind"]} {path};'
                     ' --mode=train_amed and --mode=convert make one')
  sigmas = np.array(config['sigmas'], np.float64)
  try:
    initial = design(config['design'], sigmas).initial
    like = jax.eval_shape(lambda: initial(jax.random.key(0)))
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(f'config.predictor.path: config.json of {path} must name a design with its '
                     f'settings, got {error}; make the predictor again') from None
  return Predictor(str(path), config, directory.read_params(path, like, config['sha256']), sigmas)


def settle(config: ml_collections.ConfigDict,
           ) -> tuple[ml_collections.ConfigDict, Predictor | None]:
  """Loads the predictor of a config, if there is one, and lets it decide what is its to decide.

  Args:
    config: the fields of configs/default.py.

  Returns:
    (config, predictor): the config with the predictor's limit and guidance and, where none is
    given, its model.

  Raises:
    OSError: as `load`.
    ValueError: as `load`, or if the config gives a field another value than the predictor's.
  """
  if config.predictor.path is None:
    return config, None
  predictor = load(config.predictor.path)
  own, usual = predictor.config, default.get_config()
  guidance = own['guidance'] or {}
  decided = {'schedule': own['schedule'], 'limit': own['limit'], 'guidance': guidance}
  for field, value in _leaves(config):
    group, _, name = field.partition('.')
    if group == 'guidance' and guidance and name in _FREE:
      if value is not None:
        guidance = {**guidance, name: value}
      continue
    if group in _SETTLED and value not in (_at(usual, field), _at(decided, field)):
      raise ValueError(f'config.{field}: must be left out with a predictor, which decides it, got '
                       f'{value}; {predictor.name} has {_at(decided, field)}, train another for '
                       'more')
  settled = ml_collections.ConfigDict(config)
  settled.limit = own['limit']
  with settled.guidance.ignore_type():
    settled.guidance.update(guidance)
  if config.model.path is None and config.model.name == default.MODEL:
    if own['model']['path'] is None and own['model']['name'] not in models.BUNDLED:
      raise ValueError('config.model.path: must be given for the predictor '
                       f'{predictor.name}, made for {own["model"]["name"]}, got none; give the '
                       'folder of that model')
    settled.model.path = own['model']['path']
    if settled.model.path is None:
      settled.model.name = own['model']['name']
  return settled.lock(), predictor


def check(predictor: Predictor, model: models.Model) -> None:
  """Refuses a model that a predictor was not trained for.

  Args:
    predictor: loaded.
    model: to sample from.

  Raises:
    ValueError: if its parameters, the shape of its images or of its features are others.
  """
  own = predictor.config['model']
  remedy = 'choose its own model, or train a predictor for this one'
  who = f'config.predictor.path: must be a predictor for {model.name}, got {predictor.name}, made '
  shape = tuple(own['image_shape'])
  if any(want not in (None, have) for want, have in zip(shape, model.image_shape, strict=True)):
    raise ValueError(f'{who}for {own["name"]} with images of shape {shape} in place of '
                     f'{model.image_shape}; {remedy}')
  if own['sha256'] not in (None, model.sha256):
    raise ValueError(f'{who}for {own["name"]} with SHA-256 {own["sha256"][:12]}... in place of '
                     f'{model.sha256[:12]}...; {remedy}')
  if predictor.design.features:
    size = bottleneck_size(model)
    if size != predictor.config['design']['settings']['bottleneck_size']:
      raise ValueError(f'{who}for {predictor.config["design"]["settings"]["bottleneck_size"]} '
                       f'features in place of {size}; {remedy}')


def bottleneck_size(model: models.Model) -> int:
  """Returns how many numbers per image the model's bottleneck has, its channels averaged.

  Raises:
    ValueError: if the model has no network.
  """
  if model.apply_features is None:
    raise ValueError('config.model: must be a network, whose bottleneck learned solvers read, got '
                     f'{model.name}; choose another')
  x = jax.ShapeDtypeStruct((1, *model.image_shape), np.float32)
  labels = jax.ShapeDtypeStruct((1,), np.int32) if model.num_classes else None
  _, bottleneck = jax.eval_shape(model.apply_features, model.params, x, np.float32(1), labels)
  return int(np.prod(bottleneck.shape[1:]))


def solver(predictor: Predictor) -> solvers.Solver:
  """Returns a predictor as the solver of a run."""
  named, own = predictor.config['design'], predictor.design
  identity = {'name': named['name'], **named['settings'],
              'predictor': predictor.config['sha256']}
  arrays = {'learned': predictor.learned, 'sigmas': np.float32(predictor.sigmas)}
  return solvers.Solver(identity, arrays, _solve(named['name'], tuple(named['settings'].items())),
                        own.nfe, asks='features' if own.features else None, projects=False,
                        calls=own.calls)


@functools.cache
def _solve(name, settings):
  def solve(arrays, denoise, x, *, keys, guide, project):
    del guide, project
    made = samplers.learned.design(name, arrays['sigmas'], **dict(settings))
    return made.solve(arrays['learned'], denoise, x, keys), None
  return solve


def _leaves(group, above=''):
  for name, value in group.items():
    if isinstance(value, ml_collections.ConfigDict):
      yield from _leaves(value, f'{above}{name}.')
    else:
      yield f'{above}{name}', value


def _at(tree, field):
  for name in field.split('.'):
    tree = tree.get(name) if isinstance(tree, Mapping | ml_collections.ConfigDict) else None
  return tree
