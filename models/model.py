"""Models: a network or a formula with its parameters and the range it knows, and `load`."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax

from models import digits, directory as directory_lib, mixture, networks
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
    sigma_min: lowest noise level it is meant for, in units of x.
    sigma_max: highest one.
    image_shape: (height, width, channels).
    num_classes: number of classes, 0 for a model without.
    sha256: hash of its parameters or data.
    apply_features: as `apply`, -> (D, bottleneck (batch, h, w)); None where there is no network.
    apply_variance: as `apply`, -> (D, v), v what the network says of the variance, as it says it,
      like D; None where it says nothing.
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
  config = directory_lib.read_config(directory)
  if config['kind'] != kind:
    raise ValueError(f'load: model must be a {kind}, got the {config["kind"]} {directory}; choose '
                     'another')
  network = networks.build(**config['network'])
  preconditioning = networks.preconditioning(**config['preconditioning'])
  shape = tuple(config['image_shape'])
  like = jax.eval_shape(functools.partial(networks.initialize, network, shape), jax.random.key(0))
  params = directory_lib.read_params(directory, like, config['sha256'], dtype)
  own = {field: config[field] for field in ('sigma_min', 'sigma_max', 'num_classes', 'sha256')}
  return container(name=name, config=config, params=params, image_shape=shape,
                   **functions(network, preconditioning, shape[-1]), **own)


def _load_denoiser(directory, name, dtype):
  def functions(network, preconditioning, channels):
    evaluate = networks.denoiser(network, preconditioning)
    learned = network.out_channels == 2 * channels
    return {'apply': networks.select(evaluate, 0),
            'apply_features': networks.select(evaluate, 0, 2),
            'apply_variance': networks.select(evaluate, 0, 1) if learned else None}
  return _load(directory, 'denoiser', Model, functions, name, dtype)


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
