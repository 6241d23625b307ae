"""The Model: a denoiser with its parameters and the range it knows, and `load` by name."""

import dataclasses
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax

from models import digits, mixture


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
    sha256: hash of the file with its parameters or data.
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

  def denoise(self, x: jax.Array, sigma: jax.Array | float,
              labels: jax.Array | None = None) -> jax.Array:
    """Returns D(x; sigma) = E[x0 | x, label], see `apply`."""
    return self.apply(self.params, x, sigma, labels)


def load(directory: str) -> Model:
  """Loads a model.

  Args:
    directory: the name of a model that comes with the project, a key of BUNDLED.

  Returns:
    The Model.

  Raises:
    OSError: if a file of the model is missing.
    ValueError: if there is no such model (it lists those there are), or a file is damaged.
  """
  if directory not in BUNDLED:
    raise ValueError(f'load: model must be one of: {", ".join(BUNDLED)}, got {directory!r}; choose '
                     'one of these, or wrap your own callable D(x; sigma) for samplers.run')
  return BUNDLED[directory](directory)


def _digits_exact(name):
  """A Gaussian around each digit in each ink: the exact denoiser of the bundled data."""
  width = 0.05  # Under half a gray level (2 / 16): samples look like the data to the eye.
  images, labels, _ = digits.images()
  config = {'kind': 'mixture', 'data': digits.PATH.name, 'inks': dict(digits.INKS), 'width': width}
  return Model(name, config, mixture.mixture(images, width, labels=labels), mixture.denoise,
               sigma_min=0.002, sigma_max=80.0, image_shape=images.shape[1:],
               num_classes=digits.NUM_CLASSES, sha256=digits.SHA256)


BUNDLED = MappingProxyType({'digits_exact': _digits_exact})
"""Models that come with the project, name -> function of that name returning the Model."""
