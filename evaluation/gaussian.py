"""Gaussian approximations of a data set: one for all images, or one per class.

With the mean mu and the covariance S = U diag(l) U^T of a component, x = x0 + sigma z has

  D(x; sigma) = mu + U diag(l / (l + sigma^2)) U^T (x - mu),                                (1)
  log N(x; mu, S + sigma^2 I),                                                              (2)

and a mixture weighs Eq. 1 by the softmax of Eq. 2. At high noise a trained network is close to
Eq. 1, whatever the data.

Source: Chen et al. 2024, arXiv:2405.11326; Chen et al. 2025, arXiv:2506.10177. The published
notebook subtracts the column means of the covariance before it decomposes it; here U and l are
those of the covariance itself, as in the papers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from models import mixture
from samplers import checks


class Gaussians(NamedTuple):
  """Components of equal weight with covariances in principal axes; a pytree.

  Attributes:
    means: mu, (K, d).
    axes: the columns of U, (K, r, d), r = min(d, most images of a class - 1).
    variances: l along them, (K, r), decreasing, 0 where a class has fewer.
    kept: 1 where Eq. 1 uses the axis, else 0, (K, r); Eq. 2 uses all.
  """

  means: np.ndarray
  axes: np.ndarray
  variances: np.ndarray
  kept: np.ndarray


def fit(images: np.ndarray, labels: np.ndarray | None = None,
        rank: int | None = None) -> Gaussians:
  """Fits one Gaussian to all images, or one to each class.

  Args:
    images: (n, height, width, channels).
    labels: class of each image, integers (n,), two images or more in each class from 0 up; None:
      one class. Classes weigh the same, whatever the number of their images.
    rank: principal axes that Eq. 1 uses, those of the largest variance; None: all.

  Returns:
    Gaussians, float64, covariances with denominator n - 1.

  Raises:
    ValueError: if a shape, the labels or the rank are not as above.
  """
  groups = _classes('gaussian.fit', images, labels, least=2)
  if rank is not None and (not checks.is_integer(rank) or rank < 1):
    raise ValueError(f'gaussian.fit: rank must be an integer of at least 1, got {rank!r}; None '
                     'uses all axes')
  parts = [_principal(group) for group in groups]
  most = max(len(variances) for _, variances in parts)
  axes, variances = (np.stack([np.pad(part, [(0, most - len(part))] + [(0, 0)] * (part.ndim - 1))
                               for part in column]) for column in zip(*parts, strict=True))
  kept = np.broadcast_to(np.arange(most) < (most if rank is None else rank), variances.shape)
  return Gaussians(np.stack([group.mean(0) for group in groups]), axes, variances,
                   kept.astype(np.float64))


def unit_covariance(images: np.ndarray, labels: np.ndarray | None = None) -> mixture.Mixture:
  """Returns Gaussians around the means of the classes with the covariance I, of equal weight.

  What the published code calls full rank. It is a mixture that `mixture.denoise` denoises:
  D = (sigma^2 mu + x) / (1 + sigma^2) for one component.

  Args:
    images: (n, height, width, channels).
    labels: as `fit`, one image or more in each class.

  Returns:
    The Mixture.

  Raises:
    ValueError: as `fit`.
  """
  groups = _classes('gaussian.unit_covariance', images, labels, least=1)
  means = np.stack([group.mean(0) for group in groups])
  return mixture.mixture(means.reshape(-1, *images.shape[1:]), 1.0, labels=np.arange(len(groups)))


def denoise(params: Gaussians, x: jax.Array, sigma: jax.Array | float,
            labels: jax.Array | None = None) -> jax.Array:
  """Returns D(x; sigma): Eq. 1 of one component, or the mixture of all.

  Args:
    params: Gaussians; cast to the precision of x.
    x: (batch, height, width, channels).
    sigma: noise level > 0, a scalar or (batch,).
    labels: component of each sample, integers (batch,), below 0 for the mixture; None: all.

  Returns:
    Denoised images like x.

  Raises:
    ValueError: if the images are of another size.
  """
  means, axes, variances, kept = (jnp.asarray(leaf).astype(x.dtype) for leaf in params)
  flat = x.reshape(len(x), -1)
  if flat.shape[1] != means.shape[1]:
    raise ValueError(f'gaussian.denoise: x must have images of {means.shape[1]} numbers, as the '
                     f'data, got {x.shape}')
  square = jnp.broadcast_to(jnp.asarray(sigma).astype(x.dtype), (len(x),))[:, None]**2

  def component(mean, axes, variances, kept):
    away = flat - mean[None]
    parts = jnp.matmul(away, axes.T, precision='highest')
    # What lies across the axes, as a vector: a difference of squares would cancel at small sigma.
    across = away - jnp.matmul(parts, axes, precision='highest')
    total = variances[None] + square
    # Up to the volume of N(0, sigma^2 I), which all components share.
    log_prob = -0.5 * (jnp.sum(parts**2 / total + jnp.log1p(variances[None] / square), axis=-1)
                       + jnp.sum(across**2, axis=-1) / square[:, 0])
    shrink = kept[None] * variances[None] / total
    return mean[None] + jnp.matmul(parts * shrink, axes, precision='highest'), log_prob

  denoised, log_prob = jax.vmap(component)(means, axes, variances, kept)
  if labels is not None:
    index = jnp.arange(len(means), dtype=jnp.int32)[:, None]
    labels = jnp.asarray(labels).astype(jnp.int32)[None]
    log_prob = jnp.where((labels < 0) | (labels == index), log_prob, -jnp.inf)
  weights = jax.nn.softmax(log_prob, axis=0)
  return jnp.sum(weights[..., None] * denoised, axis=0).reshape(x.shape)


def _classes(name, images, labels, least):
  """The images of each class as float64 (n_k, d), checked."""
  images = np.asarray(images)
  if images.ndim != 4:
    raise ValueError(f'{name}: images must have shape (n, height, width, channels), got '
                     f'{images.shape}; add the missing axes')
  labels = np.zeros(len(images), np.int64) if labels is None else np.asarray(labels)
  if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu' or np.any(labels < 0):
    raise ValueError(f'{name}: labels must be integers from 0 of shape {images.shape[:1]}, got '
                     f'{labels.dtype} of shape {labels.shape}')
  counts = np.bincount(labels, minlength=1)
  if counts.min() < least:
    raise ValueError(f'{name}: every class must have at least {least} images, got '
                     f'{counts.min()} in class {counts.argmin()}; leave the labels out')
  flat = images.reshape(len(images), -1).astype(np.float64)
  return [flat[labels == k] for k in range(len(counts))]


def _principal(flat):
  """Principal axes and variances of (n, d), the smaller of both sides decides the cost."""
  count, dimension = flat.shape
  away = flat - flat.mean(0)
  if count <= dimension:
    _, scales, axes = np.linalg.svd(away, full_matrices=False)
    return axes[:count - 1], scales[:count - 1]**2 / (count - 1)  # The mean took one direction.
  variances, axes = np.linalg.eigh(away.T @ away / (count - 1))
  return axes.T[::-1], np.maximum(variances[::-1], 0.0)
