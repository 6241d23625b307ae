"""The optimal denoiser of a data set, and how far a model is from it.

For a finite set of images y_n the expected image given x = y + sigma z is known exactly,

  D*(x; sigma) = sum_n softmax_n(-|x - y_n|^2 / (2 sigma^2)) y_n,                           (1)

and its trajectories end in images of the set. A model that does better than memorize differs from
it, at levels where several images are near.

Source: Karras et al. 2022, arXiv:2206.00364, Eq. 57; Chen et al. 2023, arXiv:2305.19947.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from evaluation import geometry
from models import mixture

denoise = mixture.denoise
"""denoise(params, x, sigma, labels=None) -> D*(x; sigma), `params` as `empirical` returns them."""


def empirical(images: np.ndarray, labels: np.ndarray | None = None) -> mixture.Mixture:
  """Returns the parameters of Eq. 1: a mixture of points of equal weight.

  Args:
    images: (n, height, width, channels) in model units.
    labels: class of each image, integers (n,) that leave no class from 0 up empty; a labelled
      sample then knows the images of its class alone.

  Returns:
    The Mixture, a pytree for `denoise`.

  Raises:
    ValueError: if a shape or a label is not as above.
  """
  return mixture.mixture(images, 0.0, labels=labels)


def along(denoise: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array,
          sigmas: jax.Array | np.ndarray) -> jax.Array:
  """Denoises every state of a trajectory; pure.

  Args:
    denoise: denoise(x, sigma) -> D(x; sigma).
    x: states, (points, batch, height, width, channels).
    sigmas: their noise levels, (points,), above 0.

  Returns:
    D(x_i; sigma_i), like x.
  """
  return jax.lax.map(lambda point: denoise(*point), (x, jnp.asarray(sigmas).astype(x.dtype)))


class Differences(NamedTuple):
  """L2 distances between a model and the optimal denoiser, each (rows, batch), n points.

  Attributes:
    sample: between the states of both trajectories, n rows.
    denoised: between the denoised images, each on its own trajectory, n - 1 rows.
    on_x: between both denoisers on the model's trajectory, n - 1 rows.
    on_x_opt: between both denoisers on the optimal trajectory, n - 1 rows.
  """

  sample: np.ndarray
  denoised: np.ndarray
  on_x: np.ndarray
  on_x_opt: np.ndarray


def differences(x: np.ndarray, denoised: np.ndarray, x_opt: np.ndarray, denoised_opt: np.ndarray,
                optimal_on_x: np.ndarray, model_on_x_opt: np.ndarray) -> Differences:
  """Compares a model with the optimal denoiser along the trajectories of both.

  Args:
    x: states of the model's trajectory, (n, batch, height, width, channels).
    denoised: what the model says on them, (n - 1, batch, ...).
    x_opt: states of the optimal denoiser's trajectory from the same start, like x.
    denoised_opt: what the optimal denoiser says on them, like `denoised`.
    optimal_on_x: what the optimal denoiser says on x.
    model_on_x_opt: what the model says on x_opt.

  Returns:
    Differences.
  """
  def distance(a, b):
    return geometry.magnitude(np.asarray(a, np.float64) - np.asarray(b, np.float64))
  return Differences(distance(x_opt, x), distance(denoised_opt, denoised),
                     distance(optimal_on_x, denoised), distance(model_on_x_opt, denoised_opt))
