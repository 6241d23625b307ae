"""Files of a model's statistics: what --mode=search writes, and what dpm_solver_v3 reads."""

import json
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

import models
from engine import files
from models import directory
from samplers import dpm_v3

FORMAT = 'fewstep statistics 1'

_MEASURE = '--mode=search --config.search.method=dpm_v3 measures them'


def write(path: pathlib.Path, statistics: dpm_v3.Statistics, model: models.Model,
          about: Mapping[str, Any]) -> str:
  """Writes statistics, whole or not at all.

  Args:
    path: of the .npz file: sigmas, l, s, b, and a JSON text `about`.
    statistics: see dpm_v3.Statistics; all but the levels are kept as float32.
    model: whose they are.
    about: where they come from, plain values.

  Returns:
    Their SHA-256, as `read` gives it.

  Raises:
    OSError: if the file cannot be written.
  """
  arrays = {name: np.asarray(value, np.float64 if name == 'sigmas' else np.float32)
            for name, value in statistics._asdict().items()}
  whose = {'name': model.name, 'sha256': model.sha256, 'image_shape': [*model.image_shape]}
  text = json.dumps({'format': FORMAT, 'model': whose, **about})
  with files.replacing(path) as file:
    np.savez(file, about=np.array(text), **arrays)
  return directory.digest(arrays)


def read(path: str | None, model: models.Model | None,
         field: str = 'config.solver.statistics') -> tuple[dpm_v3.Statistics, str]:
  """Reads the statistics of a model.

  Args:
    path: of the file.
    model: whose they have to be; None: not known.
    field: of the config, for errors.

  Returns:
    The Statistics in float64, checked, and their SHA-256.

  Raises:
    ValueError: if there is no such file, it holds anything else, or it is of another model or of
      images of another size.
  """
  if path is None:
    raise ValueError(f'{field}: must name the statistics of the model with dpm_solver_v3, got None;'
                     f' {_MEASURE}')
  arrays, about = _load(field, path)
  statistics = dpm_v3.Statistics(**arrays)
  try:
    checked = dpm_v3.check(statistics)
    whose = about['model']['name'], about['model']['sha256'], tuple(about['model']['image_shape'])
  except (ValueError, TypeError, KeyError) as error:
    raise _none(field, path, str(error).removeprefix(f'{dpm_v3.NAME}: ')) from None
  name, sha256, shape = whose
  if model is not None and sha256 != model.sha256:
    raise ValueError(f'{field}: must be of the model, {model.name}, got those of {name} in {path}; '
                     f'{_MEASURE}')
  if model is not None and shape != model.image_shape:
    raise ValueError(f'{field}: must be of images of the shape of the model, {model.image_shape}, '
                     f'got {shape} in {path}; {_MEASURE}')
  if statistics.l.shape[1:] not in ((1, 1, 1), shape):
    raise _none(field, path, f'shape {statistics.l.shape[1:]} for images of {shape}')
  return checked, directory.digest(arrays)


def _load(field, path):
  """The arrays by name, and what `about` says."""
  names = dpm_v3.Statistics._fields
  try:
    with np.load(path, allow_pickle=False) as stored:
      arrays = {name: stored[name] for name in names}
      about = json.loads(str(stored['about']))
  except FileNotFoundError:
    raise ValueError(f'{field}: must be a file that is there, got {path}; {_MEASURE}') from None
  except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, RecursionError,
          NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
    raise _none(field, path, getattr(error, 'strerror', None) or type(error).__name__) from None
  if not isinstance(about, dict) or about.get('format') != FORMAT:
    raise _none(field, path, 'another format')
  if any(not np.issubdtype(array.dtype, np.floating) for array in arrays.values()):
    raise _none(field, path, 'arrays that are no floats')
  return arrays, about


def _none(field, path, got):
  return ValueError(f'{field}: must be a file of statistics, got {path} ({" ".join(got.split())}); '
                    f'{_MEASURE}')
