"""Images that a run starts from: files, a folder, or a small generator that comes along."""

import hashlib
import io
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from models import digits

_SUFFIXES = '.png', '.jpg', '.jpeg'
_FORMATS = 'PNG', 'JPEG'  # Whatever a name says: Pillow would start Ghostscript for PostScript.
_LABEL = re.compile(r'_label_([0-9]+)$')  # As ES-DDPM names its pictures: 000012_label_7.png.


class Pictures(NamedTuple):
  """Images by number; the seed s has number s.

  Attributes:
    name: where they come from.
    sha256: hash of all of them.
    shape: of one image, (height, width, channels).
    count: how many there are; None: as many as there are seeds.
    take: numbers (k,) -> uint8 (k, *shape).
    labels: numbers (k,) -> classes int32 (k,); None where none are known.
  """

  name: str
  sha256: str
  shape: tuple[int, int, int]
  count: int | None
  take: Callable[[np.ndarray], np.ndarray]
  labels: Callable[[np.ndarray], np.ndarray] | None


def load(field: str, name: str, shape: tuple[int, int, int]) -> Pictures:
  """Loads images for a model; they have its size.

  Args:
    field: of the config, for errors.
    name: a .npz file (arr_0: uint8 (n, height, width, channels); perhaps arr_1: n classes), a
      picture, a folder of pictures in the order of their names, or a key of GENERATORS.
    shape: of the model's images.

  Returns:
    The Pictures.

  Raises:
    ValueError: if there is nothing of that name, it holds something else than 8-bit gray or RGB
      pictures, or their size is not that of the model.
  """
  if name in GENERATORS:
    pictures = GENERATORS[name]()
  else:
    path = pathlib.Path(name)
    if path.is_dir():
      pictures = _folder(field, path)
    elif path.suffix.lower() in _SUFFIXES:
      pictures = _arrays(name, read_picture(field, path)[None], None)
    else:
      pictures = _npz(field, path)
  if pictures.shape != shape:
    raise ValueError(f'{field}: images must be of the shape of the model, {shape}, got '
                     f'{pictures.shape} in {name}; resize them, or choose another model')
  return pictures


def to_model(images: np.ndarray) -> np.ndarray:
  """Returns bytes as float32 in [-1, 1]: 0 is -1 and 255 is 1."""
  return images.astype(np.float32) / np.float32(127.5) - 1


def read_picture(field: str, path: pathlib.Path) -> np.ndarray:
  """Reads one picture.

  Args:
    field: of the config, for errors.
    path: a PNG or JPEG file.

  Returns:
    uint8 (height, width, 1 or 3).

  Raises:
    ValueError: if it cannot be read, or is not 8-bit gray or RGB.
  """
  try:
    with Image.open(path, formats=_FORMATS) as picture:
      mode, pixels = picture.mode, np.asarray(picture)
  except (OSError, UnidentifiedImageError, ValueError, SyntaxError,
          Image.DecompressionBombError) as error:
    reason = getattr(error, 'strerror', None) or 'not a picture, or a damaged one'
    raise ValueError(f'{field}: must be a PNG or JPEG picture, got {path} ({reason}); check the '
                     'path') from None
  if mode not in ('L', 'RGB'):
    raise ValueError(f'{field}: must be an 8-bit gray or RGB picture, got mode {mode} in {path}; '
                     'convert it first, without transparency or palette')
  return pixels[..., None] if mode == 'L' else pixels


def _folder(field, path):
  files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
  if not files:
    raise ValueError(f'{field}: folder must hold pictures ({", ".join(_SUFFIXES)}), got none in '
                     f'{path}; check the path')
  images = [read_picture(field, file) for file in files]
  for file, image in zip(files, images, strict=True):
    if image.shape != images[0].shape:
      raise ValueError(f'{field}: pictures must be of one shape, got {image.shape} in {file} and '
                       f'{images[0].shape} in {files[0]}; resize them')
  found = [_LABEL.search(file.stem) for file in files]
  labels = np.array([int(match[1]) for match in found], np.int32) if all(found) else None
  return _arrays(str(path), np.stack(images), labels)


def _npz(field, path):
  def wrong(got):
    return ValueError(f'{field}: must be a folder of pictures, a picture, a .npz file with arr_0, '
                      'uint8 (n, height, width, channels), and perhaps arr_1, their classes, or '
                      f'one of {", ".join(GENERATORS)}, got {got}; output.format=npz writes such '
                      'files')
  try:
    content = path.read_bytes()
  except OSError as error:
    raise wrong(f'{str(path)!r} ({error.strerror})') from None
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
      if 'arr_0' not in arrays:
        raise wrong(f'{str(path)!r} with {", ".join(arrays) or "nothing"}')
      images, labels = arrays['arr_0'], arrays.get('arr_1')
  except (OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError,
          NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
    if str(error).startswith(field):
      raise
    raise wrong(f'{str(path)!r} ({type(error).__name__})') from None
  if not all(isinstance(part, np.ndarray | None) for part in (images, labels)):
    raise wrong(f'{str(path)!r} with bytes that are no array')  # As NumPy gives what has no header.
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8 or images.ndim != 4 or not images.size or (
      images.shape[-1] not in (1, 3)):
    raise wrong(f'{images.dtype} {images.shape} in {str(path)!r}')
  if labels is not None and (labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu'
                             or labels.min() < 0):
    raise wrong(f'labels {labels.dtype} {labels.shape} for {len(images)} images in {str(path)!r}')
  return _arrays(str(path), images, None if labels is None else labels.astype(np.int32))


def _arrays(name, images, labels):
  digest = hashlib.sha256(np.ascontiguousarray(images))
  if labels is not None:
    digest.update(labels.tobytes())
  return Pictures(name, digest.hexdigest(), images.shape[1:], len(images),
                  lambda numbers: images[numbers],
                  None if labels is None else lambda numbers: labels[numbers])


def _gaussian_digits():
  """A Gaussian per class of digit, in an ink by number: blurry, and fitted in no time."""
  pictures, classes = digits.grays()
  def fit(flat):
    _, scales, directions = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return flat.mean(0), scales / np.sqrt(len(flat) - 1), directions

  fitted = [fit(pictures[classes == k].reshape(-1, 64).astype(np.float64))
            for k in range(digits.NUM_CLASSES)]
  inks = np.array(list(digits.INKS.values()))

  def labels(numbers):
    return (numbers % digits.NUM_CLASSES).astype(np.int32)

  def one(number):
    rng = np.random.default_rng(int(number))
    mean, scales, directions = fitted[number % digits.NUM_CLASSES]
    gray = mean + (rng.standard_normal(len(scales)) * scales) @ directions
    ink = inks[rng.integers(len(inks))]
    colored = np.clip(gray, 0, digits.LEVELS).reshape(8, 8, 1) / digits.LEVELS * ink
    return np.round(255 * colored).astype(np.uint8)

  return Pictures('gaussian_digits', digits.SHA256, (8, 8, 3), None,
                  lambda numbers: np.stack([one(number) for number in numbers]), labels)


GENERATORS = MappingProxyType({'gaussian_digits': _gaussian_digits})
"""Generators that come with the project by name, fitted when called."""
