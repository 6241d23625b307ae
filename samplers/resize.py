"""Resampling images by a linear map per axis, as MATLAB's imresize does: kernels that widen.

The centre of pixel p, from 0, is p + 1/2 pixel widths from the edge, before and after. Where an
image gets smaller the kernel widens by the factor, so that it averages; beyond the edges the image
is mirrored, the edge pixel repeated; the weights of a pixel sum to 1.

Source: the resizer of ILVR's and split-diffusion's code (arXiv:2108.02938, arXiv:2301.11558), whose
box kernel fails when it enlarges; this one does not.
"""

import math

import numpy as np

from samplers import checks


def _cubic(x):
  """Catmull-Rom: Keys' kernel with a = -1/2. Source: Keys 1981, Eq. 15."""
  x = np.abs(x)
  near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _lanczos(lobes):
  """sinc(x) sinc(x / lobes) as published, with an epsilon against 0 / 0 that shows at 1e-7."""
  def kernel(x):
    angle, epsilon = np.pi * x, np.finfo(np.float32).eps
    product = np.sin(angle) * np.sin(angle / lobes)
    return np.where(np.abs(x) < lobes, (product + epsilon) / (angle**2 / lobes + epsilon), 0.0)
  return kernel


def _box(x):
  return ((x >= -0.5) & (x < 0.5)).astype(float)


def _linear(x):
  return np.maximum(1 - np.abs(x), 0.0)


KERNELS = {'cubic': (_cubic, 4), 'lanczos2': (_lanczos(2), 4), 'lanczos3': (_lanczos(3), 6),
           'box': (_box, 1), 'linear': (_linear, 2)}
"""Kernel and its width in pixels, by name."""


def matrix(size: int, scale: float, kernel: str = 'cubic') -> np.ndarray:
  """Returns the linear map that resamples an axis.

  Args:
    size: number of pixels before.
    scale: of the size: 0.5 halves it, 2 doubles it.
    kernel: a key of KERNELS.

  Returns:
    np.float64 of shape (ceil(scale size), size), rows of sum 1.

  Raises:
    ValueError: if the kernel is unknown, or size or scale is not above 0.
  """
  checks.check_choice('resize', 'kernel', kernel, tuple(KERNELS))
  checks.check_positive('resize', 'size', size, 'it counts pixels')
  checks.check_positive('resize', 'scale', scale, '0.5 halves the size')
  function, width = KERNELS[kernel]
  shrink = min(scale, 1.0)
  centers = (np.arange(math.ceil(size * scale)) + 0.5) / scale - 0.5
  first = np.floor(centers - width / shrink / 2)
  pixels = first[:, None] + np.arange(math.ceil(width / shrink) + 2)
  weights = function(shrink * (centers[:, None] - pixels))
  weights /= weights.sum(1, keepdims=True)
  # Mirrored: 0 .. size - 1, then back again, and so on.
  turn = pixels.astype(int) % (2 * size)
  turn = np.minimum(turn, 2 * size - 1 - turn)
  result = np.zeros((len(centers), size))
  np.add.at(result, (np.arange(len(centers))[:, None], turn), weights)
  return result
