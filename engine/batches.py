"""Work on many images in batches: the devices compute one while the host is busy with the last."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from engine import devices, progress as progress_lib


def split(indices: np.ndarray, size: int) -> np.ndarray:
  """Splits indices into batches; the last one repeats its last index up to the full size."""
  padded = np.minimum(np.arange(-(-len(indices) // size) * size), len(indices) - 1)
  return indices[padded].reshape(-1, size)


def run(indices: np.ndarray, batch_size: int, start: Callable[[np.ndarray], Any],
        finish: Callable[[np.ndarray, Any], None], progress: progress_lib.Progress,
        what: str, done: int = 0) -> dict[str, float]:
  """Computes images batch by batch.

  Args:
    indices: of the images, at least one, increasing.
    batch_size: images per batch over all devices, rounded up to a multiple of their number.
    start: start(indices of a batch) -> pytree of arrays (devices, share, ...), queued.
    finish: finish(indices, pytree of arrays (k, ...) on the host), for a batch without padding.
    progress: how to show progress.
    what: the work, for the bar.
    done: images that were done before.

  Returns:
    Seconds of 'compile', up to the first queued batch, and of 'sample', the rest.
  """
  started = time.perf_counter()
  batches = split(indices, devices.share_of(batch_size) * devices.count())
  with progress('compiling', 1, 'program') as advance:
    running = start(batches[0])
    advance()
  ready = time.perf_counter()
  with progress(what, done + len(indices), 'images', done=done) as advance:
    for some, following in zip(batches, [*batches[1:], None], strict=True):
      finished = running
      if following is not None:
        running = start(following)
      kept = np.unique(some)  # Without the padding of the last batch; they are in order.
      finish(kept, jax.tree.map(functools.partial(_first, len(kept)), finished))
      advance(len(kept))
  return {'compile': ready - started, 'sample': time.perf_counter() - ready}


def _first(count, array):
  """The first images of a batch that is spread over devices, on the host."""
  return devices.merge(array)[:count]
