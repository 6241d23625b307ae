"""Pictures: model units to bytes, PNG files, and a labelled grid to look at."""

import io
import math
import pathlib
from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine import files

UINT8_RULES = MappingProxyType({'nearest': 'clip(x * 127.5 + 128, 0, 255), truncated',
                                'truncate': 'clip((x + 1) * 127.5, 0, 255), truncated'})
"""How numbers become bytes: to the nearest one (EDM, diff-sampler), or down (ADM)."""

_BACKGROUND, _INK = (42, 44, 50), (214, 216, 222)
_GAP = 6  # Pixels between cells.


def to_uint8(images: np.ndarray, rule: str = 'nearest') -> np.ndarray:
  """Returns bytes.

  Args:
    images: finite, in [-1, 1] up to what is clipped, any shape.
    rule: a key of UINT8_RULES.

  Returns:
    uint8 of the same shape.
  """
  half = np.float32(127.5)
  if rule == 'nearest':
    values = np.asarray(images) * half + np.float32(128)
  else:
    values = (np.asarray(images) + np.float32(1)) * half
  return np.clip(values, 0, 255).astype(np.uint8)


def write_png(path: pathlib.Path, image: np.ndarray) -> None:
  """Writes a PNG file, whole or not at all.

  Args:
    path: the file.
    image: uint8 (height, width, 1 or 3).
  """
  encoded = io.BytesIO()  # So that all errors of writing are the file's own.
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(encoded, format='png')
  with files.replacing(path) as file:
    file.write(encoded.getbuffer())


def read_png(path: pathlib.Path) -> np.ndarray:
  """Reads what `write_png` wrote: uint8 (height, width, 1 or 3)."""
  with Image.open(path, formats=('PNG',)) as picture:
    pixels = np.asarray(picture)
  return pixels[..., None] if pixels.ndim == 2 else pixels


def grid(images: np.ndarray, captions: Sequence[str], columns: int, size: int) -> np.ndarray:
  """Arranges images in rows, enlarged smoothly, each with a line of text under it.

  Args:
    images: uint8 (n, height, width, 1 or 3), n >= 1.
    captions: n short texts; what is too wide for its cell is cut.
    columns: images per row, at most.
    size: least length of a shown image's longer side in pixels; the factor is a whole number, so
      that every source pixel covers the same area. Larger images keep their size.

  Returns:
    uint8 (grid height, grid width, 3).
  """
  count, height, width, channels = images.shape
  factor = max(1, math.ceil(size / max(height, width)))
  width, height = width * factor, height * factor
  font = ImageFont.load_default(size=max(11, width // 8))
  line = sum(font.getmetrics()) + 2  # Ascent and descent.
  columns = min(columns, count)
  rows = math.ceil(count / columns)
  step_x, step_y = width + _GAP, height + line + _GAP
  canvas = Image.new('RGB', (columns * step_x + _GAP, rows * step_y + _GAP), _BACKGROUND)
  for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
    left, top = _GAP + i % columns * step_x, _GAP + i // columns * step_y
    picture = Image.fromarray(np.repeat(image, 3, axis=-1) if channels == 1 else image)
    canvas.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
    canvas.paste(_caption(caption, width, line, font), (left, top + height))
  return np.asarray(canvas)


def _caption(text, width, height, font):
  """A strip with centred text; drawn on its own so that it cannot run into a neighbour."""
  strip = Image.new('RGB', (width, height), _BACKGROUND)
  ImageDraw.Draw(strip).text((width / 2, height / 2), text, fill=_INK, font=font, anchor='mm')
  return strip
