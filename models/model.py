"""Models: a network or a formula with its parameters and the range it knows, and `load`."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from models import (
    digits,
    directory as directory_lib,
    first_stage as first_stage_lib,
    mixture,
    networks,
    parts as parts_lib,
    text as text_lib,
)
from samplers import checks

ASSETS = pathlib.Path(__file__).parent / 'assets'


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A denoiser, whatever is behind it.

  Attributes:
    name: what it was loaded as.
    config: what it is made of, plain values.
    params: pytree of arrays, an argument of compiled functions.
    apply: apply(params, x, sigma, labels=None) -> D(x; sigma), pure; x (batch, *image_shape) in
      model units, sigma a scalar or (batch,), labels integers (batch,), below 0 without a class.
      Labels of a network that reads texts are features (batch, tokens, width), until
      `with_prompts` or `with_features` numbers them.
    sigma_min: lowest noise level it is meant for, in units of x.
    sigma_max: highest one.
    image_shape: (height, width, channels) of x, which may be a latent.
    num_classes: number of classes or prompts, 0 for a model without.
    sha256: hash of its parameters or data.
    apply_features: as `apply`, -> (D, bottleneck (batch, h, w)); None where there is no network.
    apply_variance: as `apply`, -> (D, v), v what the network says of the variance, as it says it,
      like D; None where it says nothing.
    first_stage: what makes pictures of x where that is a latent, else None.
    text: the encoder of the texts that the network reads, or None.
  """

  name: str
  config: dict[str, Any]
  params: Any
  apply: Callable[..., jax.Array]
  sigma_min: float
  sigma_max: float
  image_shape: tuple[int, int, int]
  num_classes: int
  sha256: str
  apply_features: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  apply_variance: Callable[..., tuple[jax.Array, jax.Array]] | None = None
  first_stage: first_stage_lib.FirstStage | None = None
  text: text_lib.TextEncoder | None = None

  @property
  def identity(self) -> dict[str, Any]:
    """What tells it from other models: plain values for run.json and manifests."""
    return {'name': self.name, 'sha256': self.sha256, **self.config}

  @property
  def step_condition(self) -> bool:
    """Whether the network has to be told the number of grid points, see `for_points`."""
    return bool(self.config.get('network', {}).get('settings', {}).get('step_condition'))

  def for_points(self, points: int) -> 'Model':
    """Returns the model as a sampler on a grid of so many points calls it.

    A network with a step condition, a student of SFD-v, is another denoiser for each number; any
    other model is returned as it is.

    Args:
      points: of the grid, 2 or more: one more than its intervals.
    """
    if not self.step_condition:
      return self
    names = 'apply', 'apply_features', 'apply_variance'
    return dataclasses.replace(self, **{
        name: networks.for_points(getattr(self, name), points)
        for name in names if getattr(self, name) is not None})

  @property
  def picture_shape(self) -> tuple[int, int, int]:
    """(height, width, channels) of what a user looks at: the first stage's answer, or x itself."""
    return (self.first_stage.picture_shape(self.image_shape) if self.first_stage else
            self.image_shape)

  def with_prompts(self, prompts: Sequence[str]) -> 'Model':
    """Returns the model with numbered prompts for classes; see `with_features`.

    Args:
      prompts: texts, of which label i names the i-th; a label below 0 names the empty text. None
        are needed for a model without a condition.

    Raises:
      ValueError: if the model has no text encoder or has prompts already, or the prompts are no
        list of texts.
    """
    if self.text is None:
      raise ValueError(f'with_prompts: model must have a text encoder, got {self.name} without; '
                       'give features of texts, or convert a checkpoint with its encoder')
    self._check_unconditioned('with_prompts')
    if isinstance(prompts, str):
      raise ValueError(f'with_prompts: prompts must be a list of texts, got {prompts[:40]!r}; put '
                       'one text in a list')
    prompts = [*prompts]
    features = self.text.encode([*prompts, ''])
    text = json.dumps(prompts)
    return self._conditioned(features[:-1], features[-1], {'prompts': {
        'count': len(prompts), 'sha256': hashlib.sha256(text.encode()).hexdigest()}})

  def with_features(self, features: np.ndarray, empty: np.ndarray) -> 'Model':
    """Returns the model with numbered text features for classes.

    All that knows classes then works with texts. `params` are {'network': the model's,
    'features': (n + 1, tokens, width), those of the empty text first}. The features belong to
    `config` and `identity` by their hash; `sha256` stays the network's.

    Args:
      features: what label i stands for, (n, tokens, width); n is the new `num_classes`.
      empty: what labels below 0, and none, stand for, (tokens, width): the empty text's.

    Raises:
      ValueError: if the network reads no texts or another width, the model has prompts already, or
        the features are not finite numbers of these shapes.
    """
    self._check_unconditioned('with_features')
    features, empty = text_lib.check_features(features, empty,
                                              parts_lib.context_width(self.config))
    return self._conditioned(features, empty, {'features': {
        'count': len(features),
        'sha256': directory_lib.digest({'features': features, 'empty': empty})}})

  def _check_unconditioned(self, who):
    if not parts_lib.context_width(self.config):
      raise ValueError(f'{who}: model must read texts, got {self.name}, which does not; take a '
                       'text-conditional one')
    if 'network' in self.params and 'features' in self.params:
      raise ValueError(f'{who}: model must have no prompts yet, got {self.name} with '
                       f'{self.num_classes}; start from the model as it was loaded')

  def _conditioned(self, features, empty, told):
    """The model with these features, and what config is to tell of them."""
    params = {'network': self.params,
              'features': np.concatenate([empty[None], features]).astype(np.float32)}
    names = 'apply', 'apply_features', 'apply_variance'
    return dataclasses.replace(
        self, params=params, num_classes=len(features), config={**self.config, **told},
        **{name: text_lib.numbered(getattr(self, name)) for name in names
           if getattr(self, name) is not None})

  def denoise(self, x: jax.Array, sigma: jax.Array | float,
              labels: jax.Array | None = None) -> jax.Array:
    """Returns D(x; sigma) = E[x0 | x, label], see `apply`."""
    return self.apply(self.params, x, sigma, labels)

  def denoise_features(self, x: jax.Array, sigma: jax.Array | float,
                       labels: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns (D(x; sigma), bottleneck (batch, h, w)): what learned solvers read.

    Raises:
      ValueError: if the model has no network.
    """
    if self.apply_features is None:
      raise ValueError(f'denoise_features: model must be a network, got {self.name}; load a '
                       'trained or converted one')
    return self.apply_features(self.params, x, sigma, labels)

  def denoise_variance(self, x: jax.Array, sigma: jax.Array | float,
                       labels: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Returns (D(x; sigma), v): v places the variance of a DDPM step between its bounds.

    Source: Nichol & Dhariwal 2021, arXiv:2102.09672, Eq. 15, where (v + 1) / 2 is the weight.

    Raises:
      ValueError: if the network did not learn a variance.
    """
    if self.apply_variance is None:
      raise ValueError(f'denoise_variance: model must have learned a variance, got {self.name}; '
                       "take a solver without one, or guided-diffusion's networks")
    return self.apply_variance(self.params, x, sigma, labels)


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A classifier of noisy images.

  Attributes:
    name: what it was loaded as.
    config: what it is made of, plain values.
    params: pytree of arrays, an argument of compiled functions.
    apply: apply(params, x, sigma) -> log p(y | x; sigma) of all classes, (batch, num_classes).
    sigma_min: lowest noise level it is meant for, in units of x.
    sigma_max: highest one.
    image_shape: (height, width, channels).
    num_classes: number of classes.
    sha256: hash of its parameters.
  """

  name: str
  config: dict[str, Any]
  params: Any
  apply: Callable[..., jax.Array]
  sigma_min: float
  sigma_max: float
  image_shape: tuple[int, int, int]
  num_classes: int
  sha256: str

  def log_prob(self, x: jax.Array, sigma: jax.Array | float) -> jax.Array:
    """Returns log p(y | x; sigma) of every class, (batch, num_classes), see `apply`."""
    return self.apply(self.params, x, sigma)


def load(directory: str | os.PathLike, dtype: str = 'float32') -> Model:
  """Loads a denoiser.

  Args:
    directory: a model directory, or the name of a model that comes with the project, a key of
      BUNDLED; a folder of that name is meant by './name'.
    dtype: of the parameters, one of directory.DTYPES. They are computed with in the precision of x.

  Returns:
    The Model; parameters are NumPy arrays.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is no such model, or it is incomplete, damaged, of a newer format, or no
      denoiser.
  """
  return _find(directory, BUNDLED, _load_denoiser, dtype)


def load_classifier(directory: str | os.PathLike, dtype: str = 'float32') -> Classifier:
  """Loads a classifier of noisy images.

  Args:
    directory: a model directory, or a key of BUNDLED_CLASSIFIERS.
    dtype: as `load`.

  Returns:
    The Classifier; parameters are NumPy arrays.

  Raises:
    OSError: as `load`.
    ValueError: as `load`.
  """
  return _find(directory, BUNDLED_CLASSIFIERS, _load_classifier, dtype)


def _find(directory, bundled, loader, dtype):
  """A bundled model by name, else a folder; a bare word that is neither was meant as a name."""
  checks.check_choice('load', 'dtype', dtype, directory_lib.DTYPES)
  if directory in bundled:
    return bundled[directory](directory, dtype)
  path = pathlib.Path(directory)
  if len(path.parts) < 2 and not path.exists():
    raise ValueError(f'load: {checks.unknown("model", str(directory), bundled)}; these come with '
                     'the project, another is given by its folder, which '
                     '--mode=train or --mode=convert makes')
  return loader(directory, str(directory), dtype)


def _load(directory, kind, container, functions, name, dtype):
  config = directory_lib.read_kind(directory, kind, dtype)
  network = networks.build(**config['network'])
  preconditioning = networks.preconditioning(**config['preconditioning'])
  shape = tuple(config['image_shape'])
  like = jax.eval_shape(functools.partial(networks.initialize, network, shape), jax.random.key(0))
  params = directory_lib.read_params(directory, like, config['sha256'], dtype)
  own = {field: config[field] for field in ('sigma_min', 'sigma_max', 'num_classes', 'sha256')}
  return container(name=name, config=config, params=params, image_shape=shape,
                   **functions(network, preconditioning, shape[-1]), **own)


def _load_denoiser(directory, name, dtype):
  parts = _load_parts(directory, dtype)  # First, as the smaller ones: errors come early.
  def functions(network, preconditioning, channels):
    evaluate = networks.denoiser(network, preconditioning)
    learned = network.out_channels == 2 * channels
    return {'apply': networks.select(evaluate, 0),
            'apply_features': networks.select(evaluate, 0, 2),
            'apply_variance': networks.select(evaluate, 0, 1) if learned else None, **parts}
  return _load(directory, 'denoiser', Model, functions, name, dtype)


_PART_LOADERS = MappingProxyType({'first_stage': first_stage_lib.load_first_stage,
                                  'text': text_lib.load_text_encoder})


def _load_parts(directory, dtype):
  """The parts that a denoiser's config names, by name, each with the hash it has there."""
  config = directory_lib.read_config(directory)
  hashes = config.get('parts', {}) if config['kind'] == 'denoiser' else {}
  if not isinstance(hashes, dict):
    raise ValueError(f'load: parts in config.json of {directory} must be the hash of each by its '
                     f'name, got {str(hashes)[:80]!r}; make the model again')
  found = {}
  for name, sha256 in hashes.items():
    if name not in parts_lib.PARTS:
      raise ValueError(f'load: {checks.unknown("part", name, parts_lib.PARTS)}')
    folder = pathlib.Path(directory) / name
    if not folder.is_dir():
      raise ValueError(f'load: model must have its part {name}/ beside config.json, got none in '
                       f'{directory}; copy the whole folder, or make the model again')
    found[name] = directory_lib.read_config(folder)
    parts_lib.check_kind('load', name, found[name])
    if found[name]['sha256'] != sha256:
      raise ValueError(f'load: part {folder} must have SHA-256 {str(sha256)[:12]}..., as '
                       f'config.json above it says, got {str(found[name]["sha256"])[:12]}...; it '
                       'belongs to another model, make this one again')
  parts_lib.check('load', config, found)
  return {name: _PART_LOADERS[name](pathlib.Path(directory) / name, dtype) for name in found}


def _load_classifier(directory, name, dtype):
  def functions(network, preconditioning, channels):
    del channels
    return {'apply': networks.classifier(network, preconditioning)}
  return _load(directory, 'classifier', Classifier, functions, name, dtype)


def _asset(loader, name, dtype):
  return loader(ASSETS / name, name, dtype)


def _exact(container, apply, name, dtype):
  """A Gaussian around each digit in each ink: nothing is learned, nothing approximated."""
  del dtype  # Its parameters are the data.
  width = 0.05  # Under half a gray level (2 / 16): samples look like the data to the eye.
  images, labels, _ = digits.images()
  config = {'kind': 'mixture', 'data': digits.PATH.name, 'inks': dict(digits.INKS), 'width': width}
  return container(name, config, mixture.mixture(images, width, labels=labels), apply,
                   sigma_min=0.002, sigma_max=80.0, image_shape=images.shape[1:],
                   num_classes=digits.NUM_CLASSES, sha256=digits.SHA256)


BUNDLED = MappingProxyType({
    'digits': functools.partial(_asset, _load_denoiser),
    'digits_early': functools.partial(_asset, _load_denoiser),
    'digits_exact': functools.partial(_exact, Model, mixture.denoise),
})
"""Denoisers that come with the project, name -> function of name and dtype returning the Model."""

BUNDLED_CLASSIFIERS = MappingProxyType({
    'digits_classifier': functools.partial(_asset, _load_classifier),
    'digits_exact': functools.partial(_exact, Classifier, mixture.log_prob),
})
"""Classifiers that come with the project, name -> function of name and dtype."""
