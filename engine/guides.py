"""Guidance of a run: by a classifier, or by the difference between two answers of networks."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
import samplers
from engine import guide_fields
from models import mixture
from samplers import checks

NAMES = ('classifier', 'cfg_plus_plus', 'autoguidance', *samplers.guidance.METHODS)
"""Kinds of guidance, see configs/default.py."""


@dataclasses.dataclass(frozen=True)
class Method:
  """What of the guidance shapes the program.

  Attributes:
    name: one of NAMES.
    apply: of the classifier or of the weak model; None where the model guides itself.
    calls: of the network for its answers, 1 (all in one batch), or 2 (one after the other).
    ramp: how the scale grows, a shape of samplers.guidance.ramp; None: it does not.
    options: of the method, names and values, those that are no arrays.
  """

  name: str
  apply: Callable[..., jax.Array] | None
  calls: int
  ramp: str | float | None = None
  options: tuple[tuple[str, Any], ...] = ()


class Constants(NamedTuple):
  """Arrays of the guidance, shared by all images.

  Attributes:
    scale: float32 scalar.
    params: of the classifier or the weak model, or None.
    interval: lowest and highest guided noise level, float32 (2,), or None for all.
    sigmas: the grid, float32 (n + 1,), for CFG++ with a solver of one answer, else None.
    ends: levels at which a ramp ends, float32 (2,), the lower one first, or None.
    negative: label to lead away from, int32 scalar, or None for none at all.
    options: of the method, float32 scalars by name, or None.
  """

  scale: Any
  params: Any = None
  interval: Any = None
  sigmas: Any = None
  ends: Any = None
  negative: Any = None
  options: dict[str, Any] | None = None


class Guide(NamedTuple):
  """A guidance with nothing left to decide.

  Attributes:
    method: what shapes the program.
    constants: its arrays.
    identity: what it adds to run.json and the manifest.
    num_classes: of the labels that it needs.
    text: for the user's line.
  """

  method: Method
  constants: Constants
  identity: dict[str, Any]
  num_classes: int
  text: str


def plan(config: ml_collections.ConfigDict, model: models.Model, solver: dict[str, Any],
         sigmas: np.ndarray) -> Guide | None:
  """Resolves config.guidance.

  Args:
    config: the fields of config.guidance.
    model: to be guided.
    solver: name and options of the solver.
    sigmas: noise levels of the run.

  Returns:
    The Guide, or None without guidance.

  Raises:
    OSError: if a file of a network cannot be read.
    ValueError: if a field is out of range or does not go with the others or the model.
  """
  name = config.method or ('classifier' if config.classifier is not None else None)
  if name is None:
    guide_fields.refuse_leftovers(config)
    return None
  if name not in NAMES:
    raise ValueError(checks.unknown('config.guidance.method', name, NAMES))
  if not np.isfinite(config.scale):
    raise ValueError(f'config.guidance.scale: must be a finite number, got {config.scale}; '
                     + ('1 is the plain product with the classifier' if name == 'classifier' else
                        '1 is none, 2 a fair amount'))
  if config.calls not in (1, 2):
    raise ValueError('config.guidance.calls: must be 1 (both halves in one batch) or 2, got '
                     f'{config.calls}; 1 is faster, 2 needs less memory')
  for field, owner in (('classifier', 'classifier'), ('weak', 'autoguidance')):
    if (config[field] is not None) != (name == owner):
      rule = 'given' if name == owner else 'left out'
      raise ValueError(f'config.guidance.{field}: must be {rule} with the method {name!r}, got '
                       f'{config[field]}; it is the network of {owner!r}')
  interval = guide_fields.interval(config.interval, name)
  if interval and not (interval[0] < sigmas[0] and interval[1] >= sigmas[sigmas > 0][-1]):
    raise ValueError('config.guidance.interval: must hold levels of the run, which go from '
                     f'{sigmas[0]:g} to {sigmas[sigmas > 0][-1]:g}, got {config.interval!r}; '
                     "such as '0.3,5'")
  ramp = guide_fields.ramp(config.ramp, name)
  options = guide_fields.options(config, name, solver)
  if name == 'classifier':
    network, num_classes = _classifier(config.classifier, model)
  elif name == 'autoguidance':
    network, num_classes = _weak(config.weak, model, sigmas, interval), model.num_classes
  else:
    network, num_classes = None, model.num_classes
    if not num_classes:
      raise ValueError(f'config.guidance.method: {name!r} must have a model of classes, got the '
                       f'unconditional {model.name}; guide it with a classifier')
  guide_fields.check_plus_plus(name, solver)
  negative = guide_fields.negative(config.negative, name, num_classes)
  identity = {'method': name, 'scale': float(config.scale)}
  if network is not None:
    identity[{'classifier': 'classifier', 'autoguidance': 'weak'}[name]] = network.name
    identity |= {'sha256': network.sha256, 'source': network.config.get('source')}
  if interval is not None:
    identity['interval'] = list(interval)
  identity |= options | {field: value for field, value in (
      ('ramp', ramp), ('negative', negative)) if value is not None}
  arrays = {option: np.float32(value) for option, value in options.items()
            if isinstance(value, float)}
  fixed = tuple((option, options[option]) for option in sorted(options.keys() - arrays.keys()))
  by_level = name == 'cfg_plus_plus' and solver['name'] in guide_fields.EULER
  constants = Constants(
      np.float32(config.scale), None if network is None else network.params, _array(interval),
      _array(sigmas if by_level else None),
      _array((model.sigma_min, model.sigma_max) if ramp else None),
      None if negative is None else np.int32(negative), arrays or None)
  method = Method(name, network and network.apply, config.calls, ramp, fixed)
  return Guide(method, constants, {'guidance': identity}, num_classes,
               f'guided by {network.name}' if network else f'{name} at {float(config.scale):g}')


def refuse_of_steps(config: ml_collections.ConfigDict, mode: str) -> None:
  """Refuses guidance that belongs to the steps of a solver.

  There is then no denoiser, and so no ODE, that solvers could have in common.

  Args:
    config: the fields of config.guidance.
    mode: of the run.

  Raises:
    ValueError: if the method is CFG++, or there is momentum.
  """
  if config.method == 'cfg_plus_plus':
    raise ValueError(f"config.guidance.method: must not be 'cfg_plus_plus' with --mode={mode}, got "
                     "it; it belongs to the steps of one solver, take 'classifier_free'")
  if config.momentum:
    raise ValueError(f'config.guidance.momentum: must be 0 with --mode={mode}, got '
                     f'{config.momentum:g}; it belongs to the steps of one solver, leave it out')


def check_labels(guide: Guide | None, labels: np.ndarray, text: str) -> None:
  """Refuses to guide images towards no class.

  Args:
    guide: guidance, or None.
    labels: of the images, np.int32 (n,), below 0 without a class.
    text: config.labels, for the error.

  Raises:
    ValueError: if the guidance needs classes and an image has none.
  """
  if guide and guide.method.name != 'autoguidance' and labels.min() < 0:
    raise ValueError('config.labels: must be classes for guidance to lead to, got '
                     f"{text!r}; give 'random', 'balanced' or a list")


def between_networks(method: Method, constants: Constants, plain: Callable[..., jax.Array],
                     labels: jax.Array | None) -> Callable[..., jax.Array]:
  """Returns the denoiser guided by the difference of two answers; `plain` where there is none.

  Args:
    method: what shapes the program.
    constants: its arrays.
    plain: plain(x, sigma, labels) -> D, labels those of the run by default.
    labels: of the images, int32 (batch,).

  Returns:
    A denoiser (x, sigma) -> D.
  """
  if method.name == 'classifier':
    return plain
  scale = constants.scale
  if method.ramp is not None:
    scale = samplers.guidance.ramp(scale, *constants.ends, method.ramp)
  if method.name == 'autoguidance':
    def weak(x, sigma):
      return method.apply(constants.params, x, sigma, labels)
    return samplers.guidance.autoguidance(plain, weak, scale, constants.interval)

  away = {'no_condition': jnp.full_like(labels, mixture.UNCONDITIONAL)}
  if constants.negative is not None:
    negative = jnp.full_like(labels, constants.negative)
    away['negative' if method.name == 'perp_neg' else 'no_condition'] = negative
  several = samplers.guidance.paired(plain, labels, **away,
                                     calls=1 if method.calls == 1 else 1 + len(away))
  if constants.sigmas is not None:
    return samplers.guidance.cfg_plus_plus_pair(several, scale, constants.sigmas)
  name = 'classifier_free' if method.name == 'cfg_plus_plus' else method.name
  return samplers.guidance.METHODS[name](several, None, scale, interval=constants.interval,
                                         **dict(method.options), **(constants.options or {}))


def log_prob(method: Method, constants: Constants,
             labels: jax.Array) -> Callable[..., jax.Array] | None:
  """Returns scale log p(label | x; sigma) of each sample, None without a classifier."""
  if method.name != 'classifier':
    return None

  def of_labels(x, sigma):
    every = method.apply(constants.params, x, sigma)
    return constants.scale * jnp.take_along_axis(every, labels[:, None], axis=1)[:, 0]
  return of_labels


def _array(values):
  return None if values is None else np.float32(values)


def _classifier(name, model):
  classifier = models.load_classifier(
      name if name in models.BUNDLED_CLASSIFIERS else pathlib.Path(name))
  for what, wanted, got in (
      ('images of shape', model.image_shape, classifier.image_shape),
      ('classes:', model.num_classes or classifier.num_classes, classifier.num_classes)):
    if wanted != got:
      raise ValueError(f'config.guidance.classifier: must be for {what} {wanted}, as the model, '
                       f'got {got} in {classifier.name}; choose the one of the same data')
  return classifier, classifier.num_classes


def _weak(name, model, sigmas, interval):
  weak = models.load(name if name in models.BUNDLED else pathlib.Path(name))
  for what, wanted, got in (('images of shape', model.image_shape, weak.image_shape),
                            ('classes:', model.num_classes, weak.num_classes)):
    if wanted != got:
      raise ValueError(f'config.guidance.weak: must be for {what} {wanted}, as the model, got '
                       f'{got} in {weak.name}; choose a weaker model of the same data')
  highest = sigmas[0] if interval is None else min(sigmas[0], interval[1])
  if highest > weak.sigma_max * (1 + 1e-6):
    raise ValueError(f'config.guidance.weak: must know all guided levels, up to {highest:g}, got '
                     f'{weak.name} up to {weak.sigma_max:g}; set config.guidance.interval to '
                     f"'0,{weak.sigma_max:g}'")
  return weak
