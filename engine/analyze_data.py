"""The data set that a model is compared with."""

import dataclasses
import pathlib
from typing import Any, NamedTuple

import numpy as np

import models
from engine import data as data_lib, inputs as inputs_lib
from evaluation import gaussian, optimal
from models import digits, mixture

FIELD = 'config.analyze.data'
MOST_DIMENSIONS = 4096  # Of images whose full covariance is decomposed in a minute or so.

_GIVE = "give a .npz file or a folder of images, 'digits', 'auto' or None"


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Images that the optimal denoiser knows.

  Attributes:
    name: where they come from.
    sha256: hash of what they were read from.
    images: float32 (n, height, width, channels), model units.
    labels: class of each image, int32 (n,), those that occur from 0 up; None without classes.
    sample_labels: class of each sample in the same numbers, int32, below 0 without one.
  """

  name: str
  sha256: str
  images: np.ndarray
  labels: np.ndarray | None
  sample_labels: np.ndarray


class Oracle(NamedTuple):
  """A denoiser that is fitted to the data.

  Attributes:
    apply: apply(params, x, sigma, labels) -> D.
    params: its parameters.
    by_class: whether it takes labels.
  """

  apply: Any
  params: Any
  by_class: bool


def load(name: str | None, model: models.Model, labels: np.ndarray) -> Data | None:
  """Resolves config.analyze.data.

  Args:
    name: 'auto', 'digits', a file or folder, or None.
    model: what the images are compared with.
    labels: class of each sample, int32 (k,), below 0 without.

  Returns:
    The Data, or None.

  Raises:
    ValueError: if there is no such data, its images are of another shape, or it has no images of
      a class that is sampled.
  """
  if name == 'auto':
    name = 'digits' if _of_digits(model) else None
  if name is None:
    return None
  if name == 'digits':
    data, _ = data_lib.load('digits', _training(model).get('held_out', 0))
    found = Data(name, data.sha256, data.images, data.labels, labels)
  else:
    found = _read(name, model.image_shape, labels)
  if found.images.shape[1:] != model.image_shape:
    raise ValueError(f'{FIELD}: images must be of the shape of the model, {model.image_shape}, got '
                     f'{found.images.shape[1:]} in {name}; {_GIVE}')
  return _number_classes(found)


def oracles(data: Data) -> dict[str, Oracle]:
  """Fits the denoisers that a model is compared with.

  Args:
    data: the Data.

  Returns:
    name -> Oracle: 'optimal'; where images are small enough 'gaussian', and with two images or
    more in every class 'class_gaussians'.
  """
  found = {'optimal': Oracle(optimal.denoise, _single(optimal.empirical(data.images, data.labels)),
                             data.labels is not None)}
  if np.prod(data.images.shape[1:]) <= MOST_DIMENSIONS and len(data.images) > 1:
    found['gaussian'] = Oracle(gaussian.denoise, _single(gaussian.fit(data.images)), False)
    if data.labels is not None and np.bincount(data.labels).min() > 1:
      found['class_gaussians'] = Oracle(
          gaussian.denoise, _single(gaussian.fit(data.images, data.labels)), True)
  return found


def _read(name, shape, labels):
  if not isinstance(name, str) or name in inputs_lib.GENERATORS:
    raise ValueError(f'{FIELD}: must be a set of images, got {name!r}; {_GIVE}')
  if not pathlib.Path(name).exists():
    raise ValueError(f'{FIELD}: must be there, got {name!r}; {_GIVE}')
  pictures = inputs_lib.load(FIELD, name, shape)
  numbers = np.arange(pictures.count)
  return Data(pictures.name, pictures.sha256, inputs_lib.to_model(pictures.take(numbers)),
              None if pictures.labels is None else pictures.labels(numbers), labels)


def _number_classes(data):
  """The classes that occur as 0, 1, ...; without any where no sample has one."""
  sampled = np.unique(data.sample_labels[data.sample_labels >= 0])
  if data.labels is None:
    if sampled.size:
      raise ValueError(f'{FIELD}: images must have classes (arr_1 of a .npz file), as the samples '
                       f'have, got none in {data.name}; or set --config.labels=none')
    return data
  classes, labels = np.unique(data.labels, return_inverse=True)
  missing = np.setdiff1d(sampled, classes)
  if missing.size:
    raise ValueError(f'{FIELD}: images must have every class that is sampled, got none of class '
                     f'{missing[0]} in {data.name}; choose other --config.labels')
  samples = np.where(data.sample_labels < 0, mixture.UNCONDITIONAL,
                     np.searchsorted(classes, data.sample_labels))
  return dataclasses.replace(data, labels=labels.astype(np.int32),
                             sample_labels=samples.astype(np.int32))


def _single(params):
  """In single precision, which samples are in: half the memory on the device."""
  def cast(leaf):
    return leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf
  if isinstance(params, mixture.Mixture):
    return dataclasses.replace(params, weights=cast(params.weights), means=cast(params.means),
                               widths=cast(params.widths))
  return type(params)(*map(cast, params))


def _training(model):
  """The fields of --mode=train that the model was made with, nothing for others."""
  source = model.config.get('source')
  return source.get('trained', {}).get('train', {}) if isinstance(source, dict) else {}


def _of_digits(model):
  return _training(model).get('data') == 'digits' or model.config.get('data') == digits.PATH.name
