"""Images to train on."""

import hashlib
import io
import pathlib
import zipfile
import zlib
from typing import NamedTuple

import numpy as np

from models import digits


class Data(NamedTuple):
  """Images in memory.

  Attributes:
    images: float32 (n, side, side, channels) in [-1, 1].
    labels: int32 (n,), or None without classes.
    num_classes: number of classes, 0 without.
    sha256: hash of the file they come from.
  """

  images: np.ndarray
  labels: np.ndarray | None
  num_classes: int
  sha256: str


def load(name: str, held_out: int) -> tuple[Data, Data | None]:
  """Loads images, split into those to train on and those to measure on.

  Args:
    name: 'digits', or a .npz file with arr_0 (uint8 NHWC, square) and perhaps arr_1 (labels,
      integers from 0).
    held_out: every `held_out`-th image is held out, the last of each group; 0: none. Of the digits,
      every such digit is held out in all its inks.

  Returns:
    (training, held-out or None).

  Raises:
    ValueError: if there is no such file, or it does not hold this.
  """
  if name == 'digits':
    images, labels, _ = digits.images()
    data, period = Data(images, labels, digits.NUM_CLASSES, digits.SHA256), len(digits.grays()[1])
  else:
    data = _read(name)
    period = len(data.images)
  if not held_out:
    return data, None
  if not 2 <= held_out <= period:
    raise ValueError(f'config.train.held_out: must be 0 or from 2 to the number of images, got '
                     f'{held_out} for {period}; 8 keeps an eighth')
  out = np.arange(len(data.images)) % period % held_out == held_out - 1
  return _take(data, ~out), _take(data, out)


def _take(data, which):
  return Data(data.images[which], None if data.labels is None else data.labels[which],
              data.num_classes, data.sha256)


def _read(name):
  path = pathlib.Path(name)
  def wrong(got):
    return ValueError(f"config.train.data: must be 'digits' or a .npz file with arr_0, uint8 "
                      'images (n, side, side, channels), and perhaps arr_1, their classes from 0; '
                      f'got {got}; output.format=npz writes such files')
  try:
    content = path.read_bytes()
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
      images = arrays['arr_0']
      labels = arrays.get('arr_1')
  except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError,
          NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
    raise wrong(f'{name!r} ({type(error).__name__}: {error})') from None
  if not all(isinstance(part, np.ndarray | None) for part in (images, labels)):
    raise wrong(f'bytes that are no array in {name!r}')  # As NumPy gives what has no header.
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] != images.shape[2] or (
      not images.size):
    raise wrong(f'{images.dtype} {images.shape} in {name!r}')
  if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu'
                             or labels.min() < 0):
    raise wrong(f'labels {labels.dtype} {labels.shape} for {len(images)} images in {name!r}')
  num_classes = 0 if labels is None else int(labels.max()) + 1
  pixels = images.astype(np.float32) / np.float32(127.5) - 1
  return Data(pixels, None if labels is None else labels.astype(np.int32), num_classes,
              hashlib.sha256(content).hexdigest())
