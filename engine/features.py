"""Features of image sets, computed in parts that survive whatever kills the run.

A folder holds one set under one pipeline: identity.json, which says so, and for every 1,024 images
and every feature a file such as pool_00003.npy, float32, whole or not there. A run that was killed
goes on behind the last part that is there, and machines that share the folder compute parts of
their own. Moments are merged in the order of the parts, so that they do not depend on who made
them.
"""

import contextlib
import functools
import hashlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from engine import (
  batches,
  devices,
  files,
  identity as identity_lib,
  progress as progress_lib,
  seeds as seeds_lib,
)
from evaluation import extractors, moments as moments_lib, sources

PART = 1024  # Images; at most so many are computed again after a kill.
_NAME = 'identity.json'
_OLD = 3600  # Seconds; to write a part takes far less.


class Features(NamedTuple):
  """Features of one image set on disk.

  Attributes:
    folder: where their parts lie.
    count: number of images.
    dims: feature -> its size.
    identity: of the set and the pipeline, plain values.
  """

  folder: pathlib.Path
  count: int
  dims: dict[str, int]
  identity: dict[str, Any]


def plan(extractor: extractors.Extractor, images: sources.ImageSet,
         folder: pathlib.Path) -> Features:
  """Says where the features of a set belong; writes nothing.

  Args:
    extractor: the network and its pipeline.
    images: the set.
    folder: of all features; each set and pipeline has a folder of its own in it, named by the hash
      of both, and so may share it with other runs.

  Returns:
    The Features, there or not.

  Raises:
    ValueError: if the pipeline cannot take such images, or the folder holds something else.
  """
  extractor.prepare(images.take(np.zeros(1, np.int64)))  # The pipeline's own refusals, at once.
  # Features are in files of their own: one that is there serves whatever others are asked for.
  pipeline = {name: value for name, value in extractor.pipeline.items() if name != 'layers'}
  identity = {'format': 1, 'extractor': extractor.name, 'pipeline': pipeline,
              'images': images.digest, 'count': images.count, 'part': PART}
  key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
  features = Features(folder / f'{extractor.name}_{key}', images.count, dict(extractor.dims),
                      identity)
  _check(features)
  return features


def missing(features: Features) -> np.ndarray:
  """Returns the numbers of the parts that are not there, np.int64 (k,)."""
  return np.array([part for part in range(_num_parts(features)) if not all(
      _path(features, name, part).exists() for name in features.dims)], np.int64)


def extract(features: Features, extractor: extractors.Extractor, images: sources.ImageSet,
            batch_size: int, share: tuple[int, int] = (0, 1),
            progress: progress_lib.Progress = progress_lib.silent) -> dict[str, float]:
  """Computes the parts of a share that are not there yet.

  Args:
    features: what `plan` returns for the next two.
    extractor: the network and its pipeline.
    images: the set.
    batch_size: images per call over all devices.
    share: (index, count) of machines that share the folder.
    progress: how to show progress.

  Returns:
    Seconds of 'compile' and 'sample', as batches.run has them.

  Raises:
    FloatingPointError: if a feature is not finite; the image is named.
    OSError: if an image is damaged, or a part cannot be written.
  """
  features.folder.mkdir(parents=True, exist_ok=True)
  _remove_old(features.folder)
  if not (features.folder / _NAME).exists():  # Else it is this one's: `plan` has seen to that.
    identity_lib.write_json(features.folder / _NAME, features.identity)
  own = seeds_lib.of_share(_num_parts(features), share)
  parts = np.intersect1d(missing(features), own)
  if not parts.size:
    return {'compile': 0.0, 'sample': 0.0}
  wanted = np.concatenate([_indices(features, part) for part in parts])
  size = devices.share_of(min(batch_size, features.count)) * devices.count()
  run = program(extractor.apply)
  params = devices.replicate(extractor.params)

  def read(indices):
    kept = np.unique(indices)
    return extractor.prepare(images.take(kept))[np.searchsorted(kept, indices)]
  inputs = sources.ahead(read, batches.split(wanted, size))
  waiting = _Waiting(features, images.names, parts.tolist())
  done = sum(len(_indices(features, part)) for part in own) - len(wanted)
  try:
    return batches.run(wanted, size, lambda _: run(params, devices.split(next(inputs))),
                       waiting.add, progress, f'features of {images.path}', done)
  finally:
    inputs.close()


def parts(features: Features, name: str) -> Iterator[np.ndarray]:
  """Yields the parts of a feature in order, float32 (k, dim).

  Raises:
    OSError: if a part is damaged; it is named.
  """
  for part in range(_num_parts(features)):
    path = _path(features, name, part)
    shape = len(_indices(features, part)), features.dims[name]
    try:
      array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
      array = None
    if array is None or array.shape != shape or array.dtype != np.float32:
      raise OSError(f'features: {path} must be what a run wrote, got something else; delete it '
                       'and start the same command again')
    yield array


def moments(features: Features, name: str) -> moments_lib.Moments:
  """Returns the moments of a feature, part by part in float64; see `parts`."""
  return functools.reduce(moments_lib.merge, map(moments_lib.of, parts(features, name)))


def matrix(features: Features, name: str) -> np.ndarray:
  """Returns a feature of all images, float32 (count, dim); see `parts`."""
  return np.concatenate(list(parts(features, name)))


class _Waiting:
  """Collects features, batch by batch, and writes every part once it is complete."""

  def __init__(self, features, names, parts):
    self._features, self._names, self._parts = features, names, parts
    self._rows = {name: [] for name in features.dims}

  def add(self, indices: np.ndarray, answers: dict[str, np.ndarray]) -> None:
    """Takes the features of the next images, in their order."""
    for name, rows in answers.items():
      bad = np.flatnonzero(~np.isfinite(rows).all(-1))
      if bad.size:
        raise FloatingPointError(
            f'features: {name} must be finite, got a value that is not for image '
            f'{self._names[indices[bad[0]]]}; look at it, and convert the network again')
      self._rows[name].append(rows.astype(np.float32, copy=False))
    while self._parts and sum(map(len, self._rows[name])) >= self._length():
      length, part = self._length(), self._parts.pop(0)
      for name, rows in self._rows.items():
        together = np.concatenate(rows)
        with files.replacing(_path(self._features, name, part)) as file:
          np.save(file, together[:length])
        self._rows[name] = [together[length:]]

  def _length(self):
    return len(_indices(self._features, self._parts[0])) if self._parts else math.inf


@functools.cache
def program(apply: Callable[..., Any]) -> Callable[[Any, Any], Any]:
  """Returns an extractor's `apply` on all devices; equal ones give the same, so one compilation."""
  return devices.spread(apply)


def _remove_old(folder):
  """Removes what killed runs left; a younger file may be of a run that shares the folder."""
  for path in folder.glob('.*.partial'):
    with contextlib.suppress(FileNotFoundError):
      if path.stat().st_mtime < time.time() - _OLD:
        path.unlink()


def _check(features):
  """Refuses a folder of other features."""
  found = identity_lib.read_json(features.folder / _NAME)
  if found is not None and found != json.loads(json.dumps(features.identity)):
    raise ValueError(f'features: {features.folder} must hold features of the same images and '
                     'pipeline, got others; delete it, or choose another config.evaluate.features')


def _num_parts(features):
  return -(-features.count // PART)


def _indices(features, part):
  return np.arange(part * PART, min((part + 1) * PART, features.count))


def _path(features, name, part):
  return features.folder / f'{name}_{part:05d}.npy'
