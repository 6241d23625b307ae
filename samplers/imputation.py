"""Linear measurements of images, and samples that agree with what was measured.

An operator maps images to images of the same size: what was measured of them. `replace` puts it
into the state after every step, `log_likelihood` is a condition for gradients; both take any
function that maps images linearly. Those here but `bicubic` are orthogonal projectors: P P = P =
P^T.

Source: Song et al. 2021, arXiv:2011.13456, App. I; Wizadwongsa & Suwajanakorn 2023,
arXiv:2301.11558, Sec. 4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, guidance, resize

Operator = Callable[[jax.Array], jax.Array]
"""Images (batch, height, width, channels) -> what was measured of them, of the same shape."""


def inpainting(mask: jax.Array | np.ndarray) -> Operator:
  """Returns the operator that keeps known pixels and sets the others to 0.

  Args:
    mask: 1 where a pixel is known, else 0; shape (height, width, 1) or (batch, height, width, 1).

  Returns:
    The Operator.

  Raises:
    ValueError: if a mask that is not traced has other values than 0 and 1; the Operator, for images
      of another size.
  """
  if not isinstance(mask, jax.Array) and not np.isin(mask, (0, 1)).all():
    raise ValueError('inpainting: mask must be 0 or 1 everywhere, got values from '
                     f'{np.min(mask):g} to {np.max(mask):g}; compare it with a threshold')

  def keep(images):
    shape = jnp.shape(mask)
    # A batch of one, of masks or of reference images, goes with any.
    if len(shape) not in (3, 4) or shape[-3:] != (*images.shape[1:3], 1) or (
        len(shape) == 4 and 1 not in (shape[0], len(images)) and shape[0] != len(images)):
      raise ValueError(f'inpainting: mask must have shape {(*images.shape[1:3], 1)}, as the '
                       f'images, or one for each of {len(images)}, got {shape}; resize it')
    return images * jnp.asarray(mask).astype(images.dtype).reshape(-1, *images.shape[1:3], 1)
  return keep


def block_mean(factor: int) -> Operator:
  """Returns the operator that replaces blocks of pixels by their mean: for super-resolution.

  Args:
    factor: side of a block, which divides height and width.

  Returns:
    The Operator.

  Raises:
    ValueError: if the factor is no integer of at least 1; the Operator, if it does not divide.
  """
  _check_factor('block_mean', factor)

  def average(images):
    count, height, width, channels = images.shape
    _check_divides('block_mean', factor, height, width)
    blocks = images.reshape(count, height // factor, factor, width // factor, factor, channels)
    means = blocks.mean((2, 4), keepdims=True)
    return jnp.broadcast_to(means, blocks.shape).reshape(images.shape)
  return average


def bicubic(height: int, width: int, factor: int) -> Operator:
  """Returns the operator that shrinks images by a cubic kernel and enlarges them again.

  It is no projector: an image that was enlarged and shrinks again comes back a little smoother, so
  that samples agree with the measurement but nearly.

  Source: Choi et al. 2021 (ILVR), arXiv:2108.02938, Sec. 3.1.

  Args:
    height: of the images.
    width: of the images.
    factor: by which they shrink; divides both.

  Returns:
    The Operator.

  Raises:
    ValueError: if the factor is no integer of at least 1, or does not divide.
  """
  _check_factor('bicubic', factor)
  _check_divides('bicubic', factor, height, width)
  rows, columns = (resize.matrix(size // factor, factor) @ resize.matrix(size, 1 / factor)
                   for size in (height, width))
  return lambda images: _apply(rows, columns, images)


def grayscale() -> Operator:
  """Returns the operator that replaces the channels by their mean: for colorization."""
  def average(images):
    return jnp.broadcast_to(images.mean(-1, keepdims=True), images.shape)
  return average


def enlarge(images: jax.Array | np.ndarray, factor: int, kernel: str) -> jax.Array:
  """Returns images of full size whose measurement by an operator are the small ones.

  For 'mean' pixels are repeated. For 'bicubic', with S the map that shrinks and U the one that
  enlarges, it is U (S U)^-1: U alone would come back smoother, for S U is not the identity.

  Args:
    images: (batch, height, width, channels).
    factor: by which they grow.
    kernel: of the operator, 'mean' for `block_mean`, 'bicubic' for `bicubic`.

  Returns:
    Images (batch, factor height, factor width, channels).

  Raises:
    ValueError: if the factor is no integer of at least 1, or the kernel is unknown.
  """
  _check_factor('enlarge', factor)
  checks.check_choice('enlarge', 'kernel', kernel, ('mean', 'bicubic'))
  images = jnp.asarray(images)
  if kernel == 'mean':
    return images.repeat(factor, axis=1).repeat(factor, axis=2)

  def sharpened(size):
    up, down = resize.matrix(size, factor), resize.matrix(size * factor, 1 / factor)
    return up @ np.linalg.inv(down @ up)  # Its condition is about 2.
  return _apply(*(sharpened(size) for size in images.shape[1:3]), images)


def replace(operator: Operator, reference: jax.Array
            ) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """Returns the imputation that `samplers.run` calls where a step ends.

  x <- x - P x + P (reference + sigma z): what was measured, with the noise of the level. At level
  0 the samples agree with the measurement exactly.

  Args:
    operator: P.
    reference: images that were measured, like the samples or (1, height, width, channels); only P
      of them counts.

  Returns:
    project(x, sigma, z) -> x.
  """
  def project(x, sigma, z):
    return x - operator(x) + operator(jnp.asarray(reference).astype(x.dtype) + sigma * z)
  return project


def log_likelihood(denoise: guidance.Denoiser, operator: Operator,
                   reference: jax.Array) -> guidance.LogProb:
  """Returns how well the denoised image agrees with the measurement, for gradients.

  -|P D(x; sigma) - P reference|^2 / 2, summed over the image: noise of variance 1 in the
  measurement; a scale on it stands for another one.

  Args:
    denoise: D(x; sigma), without a limit.
    operator: P.
    reference: as `replace`.

  Returns:
    log_prob(x, sigma), (batch,).
  """
  def agreement(denoised):
    difference = operator(denoised) - operator(jnp.asarray(reference).astype(denoised.dtype))
    return -0.5 * jnp.sum(difference**2, axis=(1, 2, 3))
  return guidance.of_denoised(denoise, agreement)


def _apply(rows, columns, images):
  rows, columns = (jnp.asarray(matrix, images.dtype) for matrix in (rows, columns))
  return jnp.einsum('ih,jw,nhwc->nijc', rows, columns, images, precision='highest')


def _check_factor(name, factor):
  if not checks.is_integer(factor) or factor < 1:
    raise ValueError(f'{name}: factor must be an integer of at least 1, got {factor!r}; 2 and 4 '
                     'are usual')


def _check_divides(name, factor, height, width):
  if height % factor or width % factor:
    raise ValueError(f'{name}: factor must divide height and width, {height} and {width}, got '
                     f'{factor}; crop the image or choose another one')
