"""The exact denoiser of a mixture of isotropic Gaussians, per class and over all.

  p(x0) = sum_k w_k N(x0; mu_k, s_k^2 I)                                                    (1)

stays a mixture under noise, x = x0 + sigma z, with variances v_k = s_k^2 + sigma^2:

  log p(x, k; sigma) = log w_k - |x - mu_k|^2 / (2 v_k) - d / 2 log(2 pi v_k)                (2)
  r_k(x; sigma) = softmax_k log p(x, k; sigma)                                              (3)
  D(x; sigma) = sum_k r_k (s_k^2 x + sigma^2 mu_k) / v_k                                    (4)

Given a class, the sums run over its components alone. With one narrow component per image of a
data set this is the denoiser that a network trained on that set approximates (Karras et al. 2022,
arXiv:2206.00364, Eq. 57 is the limit s_k = 0), and an oracle for whatever was trained on it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNCONDITIONAL = -1
"""Label of a sample without a class; its one-hot vector is zero."""


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Parameters of a mixture of K isotropic Gaussians over images; a pytree.

  Build one with `mixture`, which checks it.

  Attributes:
    weights: w_k > 0, shape (K,), with sum 1.
    means: mu_k, shape (K, height, width, channels).
    widths: standard deviations s_k >= 0, shape (K,).
    labels: class of each component, int32 (K,), 0 to num_classes - 1.
    num_classes: number of classes, each with one component or more.
  """

  weights: Any
  means: Any
  widths: Any
  labels: Any
  num_classes: int


jax.tree_util.register_dataclass(
    Mixture, data_fields=['weights', 'means', 'widths', 'labels'], meta_fields=['num_classes'])


def mixture(means: np.ndarray, widths: np.ndarray | float, weights: np.ndarray | None = None,
            labels: np.ndarray | None = None) -> Mixture:
  """Builds a checked Mixture on the host.

  Args:
    means: (K, height, width, channels).
    widths: standard deviations >= 0, a scalar or (K,).
    weights: > 0, shape (K,), scaled here to sum 1; None: equal.
    labels: class of each component, integers (K,) that leave no class from 0 up empty; None: one
      class.

  Returns:
    The Mixture; the means keep their precision, the small arrays are float64.

  Raises:
    ValueError: if a shape or a value is not as above.
  """
  means = np.asarray(means)
  if means.ndim != 4 or not means.size:
    raise ValueError('mixture: means must have shape (K, height, width, channels), got '
                     f'{means.shape}; add the missing axes')
  count = len(means)
  widths = np.asarray(widths, np.float64)
  if widths.ndim == 0:
    widths = np.full(count, widths)
  weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
  labels = np.zeros(count, np.int32) if labels is None else np.asarray(labels)
  for name, values in (('widths', widths), ('weights', weights), ('labels', labels)):
    if values.shape != (count,):
      raise ValueError(f'mixture: {name} must have shape ({count},), one per mean, got '
                       f'{values.shape}')
  for name, values, good in (('widths', widths, widths >= 0), ('weights', weights, weights > 0)):
    bad = np.flatnonzero(~(good & np.isfinite(values)))
    if bad.size:
      raise ValueError(f'mixture: {name} must be finite and {">= 0" if name == "widths" else "> 0"}'
                       f', got {values[bad[0]]:g} at index {bad[0]}')
  classes = np.unique(labels)
  if not np.issubdtype(labels.dtype, np.integer) or not np.array_equal(
      classes, np.arange(len(classes))):
    raise ValueError('mixture: labels must be integers that use every class from 0 up, got '
                     f'{labels.dtype} with values {classes[:10].tolist()}; number the classes '
                     'without gaps')
  return Mixture(weights / weights.sum(), means, widths, labels.astype(np.int32), len(classes))


def denoise(params: Mixture, x: jax.Array, sigma: jax.Array | float,
            labels: jax.Array | None = None) -> jax.Array:
  """Returns D(x; sigma) = E[x0 | x, label], Eq. 4.

  Args:
    params: a Mixture; cast to the precision of x.
    x: noisy images, shape (batch, height, width, channels), float32 or float64.
    sigma: noise level > 0 (>= 0 where no width is 0), a scalar or (batch,).
    labels: class of each sample, integers (batch,) below num_classes; UNCONDITIONAL (any number
      below 0) leaves a sample without a class. None: none has one.

  Returns:
    Denoised images like x.

  Raises:
    ValueError: if a shape does not fit x.
  """
  flat, sigma = _check(params, x, sigma)
  logits, variance = _log_joint(params, flat, sigma)
  if labels is not None:
    if labels.shape != x.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
      raise ValueError(f'mixture: labels must be integers of shape ({len(x)},), one per sample, '
                       f'got {labels.dtype} of shape {labels.shape}; {UNCONDITIONAL} leaves a '
                       'sample without a class')
    labels = jnp.asarray(labels).astype(jnp.int32)[:, None]
    logits = jnp.where((labels < 0) | (labels == params.labels[None]), logits, -jnp.inf)
  posterior = jax.nn.softmax(logits)
  means = _cast(params.means, flat).reshape(-1, flat.shape[1])
  keep = posterior * (_cast(params.widths, flat)[None]**2 / variance)
  pull = posterior * (sigma**2 / variance)
  denoised = jnp.sum(keep, axis=-1, keepdims=True) * flat
  denoised = denoised + jnp.matmul(pull, means, precision='highest')
  return denoised.reshape(x.shape)


def log_prob(params: Mixture, x: jax.Array, sigma: jax.Array | float) -> jax.Array:
  """Returns log p(y | x; sigma) of every class: the exact noise-conditional classifier.

  Args:
    params: a Mixture; cast to the precision of x.
    x: noisy images, shape (batch, height, width, channels).
    sigma: noise level > 0 (>= 0 where no width is 0), a scalar or (batch,).

  Returns:
    Log probabilities, shape (batch, num_classes).

  Raises:
    ValueError: if a shape does not fit x.
  """
  flat, sigma = _check(params, x, sigma)
  logits, _ = _log_joint(params, flat, sigma)
  classes = jnp.arange(params.num_classes, dtype=jnp.int32)
  member = classes[:, None] == params.labels[None]  # (num_classes, K)
  by_class = jnp.where(member[None], logits[:, None], -jnp.inf)
  return jax.nn.log_softmax(jax.nn.logsumexp(by_class, axis=-1))


def _log_joint(params, flat, sigma):
  """Returns Eq. 2 up to a constant of each sample, and v_k; both (batch, K)."""
  means = _cast(params.means, flat).reshape(-1, flat.shape[1])
  variance = _cast(params.widths, flat)[None]**2 + sigma**2
  # Volumes relative to the widest component of the mixture: equal widths give an exact 0.
  # What the widest changes is a constant of the sample; the derivative of a maximum is 0 / 0 where
  # a compiler rounds its arguments a second time, and none equals it.
  widest = jax.lax.stop_gradient(jnp.max(variance, axis=-1, keepdims=True))
  volume = jnp.log(variance / widest) * (flat.shape[1] / 2)
  logits = jnp.log(_cast(params.weights, flat))[None] - volume
  logits = logits - _square_distance(flat, means) / (2 * variance)
  return jnp.broadcast_to(logits, (len(flat), len(means))), variance


@jax.custom_jvp
@jax.jit  # Fused also where the caller is not compiled.
def _square_distance(x, means):
  """|x_b - mu_k|^2, shape (batch, K), from differences.

  The form |x|^2 - 2 x . mu + |mu|^2 would lose at small sigma what the division by sigma^2 then
  shows: digits that a decision hangs on. XLA fuses the sum, nothing of size batch x K x d is held.
  """
  return jnp.sum((x[:, None] - means[None])**2, axis=-1)


@functools.partial(_square_distance.defjvp, symbolic_zeros=True)
def _square_distance_jvp(primals, tangents):
  """2 (x - mu) . (dx - dmu), as matrix products: a gradient holds nothing of batch x K x d.

  Parts that do not change take no product: of x with zeros, fused with its division by the
  variance, XLA makes NaN on CPUs (JAX 0.10).
  """
  (x, means), (dx, dmeans) = primals, tangents
  def product(a, b):
    return jnp.matmul(a, b.T, precision='highest')
  change = jnp.zeros((len(x), len(means)), x.dtype)
  if not isinstance(dx, jax.custom_derivatives.SymbolicZero):
    change += jnp.sum(x * dx, axis=-1)[:, None] - product(dx, means)
  if not isinstance(dmeans, jax.custom_derivatives.SymbolicZero):
    change += jnp.sum(means * dmeans, axis=-1)[None] - product(x, dmeans)
  return _square_distance(x, means), 2 * change


def _cast(values, x):
  return jnp.asarray(values).astype(x.dtype)


def _check(params, x, sigma):
  """Returns x as (batch, d) and sigma as (batch, 1) or (1, 1)."""
  if x.ndim != 4 or x.shape[1:] != params.means.shape[1:]:
    raise ValueError('mixture: x must have shape (batch, '
                     f'{", ".join(map(str, params.means.shape[1:]))}), got {x.shape}')
  x = jnp.asarray(x)
  sigma = jnp.asarray(sigma).astype(x.dtype)
  if sigma.shape not in ((), x.shape[:1]):
    raise ValueError(f'mixture: sigma must be a scalar or of shape ({len(x)},), one per sample, '
                     f'got shape {sigma.shape}')
  return x.reshape(len(x), -1), sigma.reshape(-1, 1)
