"""Network weights that reference numbers describe instead of storing: a formula per element."""

import gzip
import json
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from tests import reference


def load(path: str) -> dict[str, Any]:
  """Reads a packed list of recipes, a path below tests/golden: {tag or name: entries}."""
  return json.loads(gzip.decompress((reference.GOLDEN / path).read_bytes()))


def weights(entries: Iterable[tuple[str, list[int], int, float, float]], tag: str,
            ) -> dict[str, np.ndarray]:
  """Returns {name: np.float32 array} of a list of [name, shape, levels, offset, scale].

  Element j in C order is offset + scale (k_j - levels), k_j uniform on 0 .. 2 levels, hashed from
  j and the text '<tag>/<name>'; every value is a float32 exactly.
  """
  return {name: _tensor(f'{tag}/{name}', shape, levels, offset, scale)
          for name, shape, levels, offset, scale in entries}


def _tensor(text, shape, levels, offset, scale):
  h = _splitmix64(zlib.crc32(text.encode()), int(np.prod(shape, dtype=int)))
  k = ((h >> np.uint64(33)) % np.uint64(2 * levels + 1)).astype(np.int64)
  return (offset + scale * (k - levels)).astype(np.float32).reshape(shape)


def _splitmix64(seed, count):
  """The first `count` outputs of the generator, uint64. Source: Steele et al. 2014, Sec. 4."""
  z = np.arange(1, count + 1, dtype=np.uint64)  # Arrays wrap around silently; scalars would warn.
  z *= np.uint64(0x9E3779B97F4A7C15)
  z += np.uint64(seed)
  z ^= z >> np.uint64(30)
  z *= np.uint64(0xBF58476D1CE4E5B9)
  z ^= z >> np.uint64(27)
  z *= np.uint64(0x94D049BB133111EB)
  z ^= z >> np.uint64(31)
  return z
