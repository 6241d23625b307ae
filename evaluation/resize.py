"""Resizing as the published metrics do it, each to the last bit that matters, on the host.

Features move by up to 4 % with the resize, so a metric names its own. All of these are separable,
width first, then height:

- `tf1`: TensorFlow 1's bilinear, which FID's authors used: pixel i of the result lies at
  i * (size before / size after), half a pixel off, and nothing is averaged where an image shrinks;
- `grid_sample`: the same as EDM's detector computes it;
- `half_pixel`: bilinear between the centres of pixels, not averaged either: pytorch-fid;
- `pil`: Pillow's, whose kernels widen where an image shrinks: clean-fid.

Sources: Heusel et al. 2017, arXiv:1706.08500; Parmar et al. 2022, arXiv:2104.11222, Sec. 3.
"""

from types import MappingProxyType

import numpy as np

from samplers import checks

Size = int | tuple[int, int]

_FIXED_POINT = 22  # Bits after the point in Pillow's weights of 8-bit images.


def tf1(images: np.ndarray, size: Size) -> np.ndarray:
  """Resizes as TensorFlow 1: bilinear, corners not aligned, no half-pixel shift, not antialiased.

  In float32 the result is that of tf.compat.v1.image.resize_bilinear bit by bit.

  Args:
    images: (..., height, width, channels); float64 is computed in float64, with the ratio of the
      sizes rounded to float32 all the same, anything else in float32.
    size: side of the result, or (height, width).

  Returns:
    (..., *size, channels), float32 or float64.

  Raises:
    ValueError: if the images or the size have no pixels.
  """
  images, size, dtype = _checked('tf1', images, size)
  def place(before, after):
    return np.arange(after, dtype=dtype) * dtype.type(np.float32(before) / np.float32(after))
  return _bilinear(images, size, place)


def grid_sample(images: np.ndarray, size: Size) -> np.ndarray:
  """Resizes as EDM's detector: `tf1` with the ratio of the sizes in float64.

  The detector shifts a sampling grid by half a pixel and half a pixel of the result, which puts
  pixel i at i * (size before / size after). It rounds on the way, to float32; the coordinates here
  are what it rounds.

  Args:
    images: as `tf1`.
    size: as `tf1`.

  Returns:
    As `tf1`.

  Raises:
    ValueError: as `tf1`.
  """
  images, size, _ = _checked('grid_sample', images, size)
  return _bilinear(images, size, lambda before, after: np.arange(after) * before / after)


def half_pixel(images: np.ndarray, size: Size) -> np.ndarray:
  """Resizes as PyTorch's bilinear: between the centres of pixels, not antialiased.

  Args:
    images: as `tf1`.
    size: as `tf1`.

  Returns:
    As `tf1`.

  Raises:
    ValueError: as `tf1`.
  """
  images, size, _ = _checked('half_pixel', images, size)
  def place(before, after):
    return np.maximum((np.arange(after) + 0.5) * before / after - 0.5, 0)
  return _bilinear(images, size, place)


def pil(images: np.ndarray, height: int, width: int, filter: str = 'bicubic') -> np.ndarray:
  """Resizes as Pillow up to version 12: with kernels that widen where an image shrinks.

  A pixel of the result weighs the pixels under its kernel, weights of sum 1, with what the edge
  cuts off left out. A side that keeps its length is left alone. Pillow 13 swaps the two passes of
  some images, which moves their 8-bit results by a few levels: hence not Pillow itself.

  Args:
    images: (..., height, width, channels). uint8: weights have 22 bits, and each pass is rounded
      and clipped to 0..255, as Pillow resizes 8-bit pictures. float64: nothing is rounded, as in
      PyTorch's antialiased bilinear and bicubic. Anything else is float32, rounded after each pass
      as Pillow rounds a channel of floats; not clipped.
    height: of the result.
    width: of the result.
    filter: a key of FILTERS.

  Returns:
    (..., height, width, channels), uint8, float64 or float32.

  Raises:
    ValueError: if the filter is unknown, or the images or the size have no pixels.
  """
  checks.check_choice('pil', 'filter', filter, tuple(FILTERS))
  floats, size, _ = _checked('pil', images, (height, width))
  exact = images.dtype == np.uint8
  images, weigh = (images, _weigh_bytes) if exact else (floats, _weigh)
  passes = [(axis, *_taps(images.shape[axis], after, filter))
            for axis, after in ((-2, width), (-3, height)) if images.shape[axis] != after]

  def resize(image):
    for axis, first, weights in passes:
      image = weigh(image, axis, first, weights)
    return image
  return _each(resize, images, size)


def _checked(name, images, size):
  """Returns floating-point images, (height, width) and the precision."""
  size = tuple(size) if isinstance(size, tuple | list) else (size, size)
  if len(size) != 2 or not all(checks.is_integer(side) and side > 0 for side in size):
    raise ValueError(f'{name}: size must be integers above 0, got {size}; give (height, width)')
  if images.ndim < 3 or not min(images.shape[-3:]):
    raise ValueError(f'{name}: images must have the shape (..., height, width, channels), got '
                     f'{images.shape}; a single channel is an axis of length 1')
  dtype = np.dtype(np.float64 if images.dtype == np.float64 else np.float32)
  return images.astype(dtype, copy=False), size, dtype


def _each(resize, images, size):
  """Resizes one image after the other, which stays in the cache, into one array."""
  channels = images.shape[-1]
  result = np.empty((*images.shape[:-3], *size, channels), images.dtype)
  sources, results = images.reshape(-1, *images.shape[-3:]), result.reshape(-1, *size, channels)
  for source, target in zip(sources, results, strict=True):
    target[...] = resize(source)
  return result


def _bilinear(images, size, place):
  """Interpolates along the width, then the height; place(before, after) -> coordinates."""
  def steps(axis, after):
    before = images.shape[axis]
    source = place(before, after)
    lower = np.minimum(np.floor(source).astype(int), before - 1)
    weight = (source - lower).astype(images.dtype)
    return axis, lower, np.minimum(lower + 1, before - 1), _along(axis, weight)
  passes = steps(-2, size[1]), steps(-3, size[0])

  def resize(image):
    for axis, lower, upper, weight in passes:
      left, image = image.take(lower, axis), image.take(upper, axis)
      image -= left  # left + (right - left) * weight, in place and in TensorFlow's order.
      image *= weight
      image += left
    return image
  return _each(resize, images, size)


def _along(axis, values):
  """Values of each column or row, for multiplying an image."""
  return values.reshape(-1, *(1,) * (-1 - axis))


def _taps(before, after, filter):
  """Returns (index of the first pixel (after,), weights (after, taps)) of every result's pixel."""
  kernel, radius = FILTERS[filter]
  scale = before / after
  widened = max(scale, 1.0)
  support = radius * widened
  centres = (np.arange(after) + 0.5) * scale
  first = np.maximum((centres - support + 0.5).astype(int), 0)  # The cast cuts off, as C does.
  last = np.minimum((centres + support + 0.5).astype(int), before)
  pixels = first[:, None] + np.arange((last - first).max())
  weights = kernel((pixels - centres[:, None] + 0.5) * (1 / widened))
  weights = np.where(pixels < last[:, None], weights, 0.0)
  total = np.zeros(after)
  for column in weights.T:  # From left to right, as a loop in C adds.
    total += column
  return first, weights / total[:, None]


def _weigh(image, axis, first, weights):
  """Sums of weighed pixels along an axis, in double precision and from left to right."""
  return _sums(image.astype(np.float64), axis, first, weights).astype(image.dtype, copy=False)


def _weigh_bytes(image, axis, first, weights):
  """The same in fixed point: rounded by adding a half and shifting, then clipped."""
  one = 1 << _FIXED_POINT
  fixed = (weights * one + np.copysign(0.5, weights)).astype(np.int32)
  total = _sums(image.astype(np.int32), axis, first, fixed) + one // 2
  return np.clip(total >> _FIXED_POINT, 0, 255).astype(np.uint8)


def _sums(image, axis, first, weights):
  shape = list(image.shape)
  shape[axis] = len(first)
  total, part = np.zeros(shape, image.dtype), np.empty(shape, image.dtype)
  for tap, column in enumerate(weights.T):
    # Past the last pixel the weight is 0, and `clip` repeats it.
    np.take(image, first + tap, axis, out=part, mode='clip')
    part *= _along(axis, column)
    total += part
  return total


def _box(x):
  return ((x > -0.5) & (x <= 0.5)).astype(float)


def _triangle(x):
  return np.maximum(1 - np.abs(x), 0.0)


def _cubic(x):
  """Keys' kernel with a = -1/2, by Horner's rule in Pillow's order."""
  x, a = np.abs(x), -0.5
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x):
  """sinc(x) sinc(x / 3) within 3 pixels."""
  return np.where((x >= -3) & (x < 3), np.sinc(x) * np.sinc(x / 3), 0.0)


FILTERS = MappingProxyType({
    'bicubic': (_cubic, 2), 'lanczos': (_lanczos, 3), 'bilinear': (_triangle, 1),
    'box': (_box, 0.5)})
"""Kernel and its radius in pixels, by Pillow's name."""
