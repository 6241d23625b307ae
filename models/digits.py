"""The UCI handwritten digits as a data set of colour images: six inks on black.

1,797 images of 8x8 pixels with 17 gray levels, 0 (black) to 16, and their class. The ink is a
second attribute beside the class, so that colour has something to say; a classifier of digits
sees `luminance`. Provenance and licence: models/assets/README.md.
"""

import functools
import hashlib
import io
import pathlib
from types import MappingProxyType

import jax
import numpy as np

PATH = pathlib.Path(__file__).parent / 'assets' / 'digits.npz'
SHA256 = 'b2dab7b501728c22e9119ad76740b2e17c77a231e42d1e592380d90886f1a05e'

NUM_CLASSES = 10
LEVELS = 16  # Highest gray level.

INKS = MappingProxyType({
    'white': (1.0, 1.0, 1.0),
    'red': (1.0, 0.25, 0.25),
    'yellow': (1.0, 0.875, 0.125),
    'green': (0.25, 1.0, 0.375),
    'blue': (0.25, 0.625, 1.0),
    'magenta': (1.0, 0.375, 0.875),
})
"""RGB of each ink, 0 to 1: far from black (Rec. 601 luma 0.47 or more) and from each other. The
largest channel is 1, so that `luminance` is exact; eighths, so that every pixel is exact too."""


@functools.cache
def grays() -> tuple[np.ndarray, np.ndarray]:
  """Reads the gray images and their classes.

  Returns:
    (images, labels): uint8 (1797, 8, 8) of levels 0 to 16; int32 (1797,) of classes 0 to 9. Both
    are shared by all callers and read-only.

  Raises:
    OSError: if the data file is missing or unreadable.
    ValueError: if it is not the one this code was written for.
  """
  try:
    content = PATH.read_bytes()
  except OSError as error:
    raise OSError(f'digits: data file {PATH} must be readable, got: {error.strerror}; restore it '
                  'from the repository') from error
  digest = hashlib.sha256(content).hexdigest()
  if digest != SHA256:
    raise ValueError(f'digits: data file {PATH} must have SHA-256 {SHA256[:12]}..., got '
                     f'{digest[:12]}... ({len(content)} bytes); restore it from the repository')
  with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
    pictures, labels = arrays['images'], arrays['labels'].astype(np.int32)
  for array in (pictures, labels):
    array.setflags(write=False)
  return pictures, labels


def images() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns every digit in every ink, ink by ink in the order of INKS.

  A pixel is gray / 8 * ink - 1, without rounding.

  Returns:
    (images, labels, inks): float32 (10782, 8, 8, 3) in [-1, 1]; int32 (10782,) of classes 0 to 9;
    int32 (10782,) of indices into INKS.

  Raises:
    OSError: as `grays`.
    ValueError: as `grays`.
  """
  pictures, labels = grays()
  colors = np.array(list(INKS.values()), np.float32)
  colored = pictures[None, ..., None] * (colors[:, None, None, None] * 2 / LEVELS) - 1
  return (colored.reshape(-1, *colored.shape[2:]).astype(np.float32),
          np.tile(labels, len(INKS)), np.repeat(np.arange(len(INKS), dtype=np.int32), len(labels)))


def luminance(images: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
  """Returns the gray levels under the ink: the largest channel, on the scale 0 to 16.

  Exact for the images of this data set, whichever their ink, since the largest channel of every
  ink is 1. Perceived luma (Rec. 601) would depend on the ink.

  Args:
    images: (..., 3) in [-1, 1], numpy or jax.

  Returns:
    Gray levels, shape (...), 0 to 16.
  """
  return (images.max(-1) + 1) * (LEVELS / 2)
