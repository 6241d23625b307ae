"""Texts that a model is conditioned on: prompts in a file or a flag, or their features."""

import pathlib
import zipfile

import numpy as np

import models
from models import parts

_FIELD = 'config.model.prompts'
_ARRAYS = 'features', 'empty'


def settle(model: models.Model, given: str | None) -> models.Model:
  """Returns the model with prompts for classes, so that config.labels chooses among them.

  Args:
    model: as it was loaded.
    given: a .txt file with a prompt in each line, a .npz file with `features` (n, tokens, width)
      and `empty` (tokens, width), or the prompts themselves, '|' between them; None for a model
      that reads no texts.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if texts are given and the model reads none, or the other way round, or a file is
      not of this form.
  """
  reads = parts.context_width(model.config)
  if given is None:
    if reads:
      raise ValueError(f'{_FIELD}: must be given for {model.name}, which reads texts, got none; '
                       "such as 'a photo of a cat', or a file with a prompt in each line")
    return model
  if not reads:
    raise ValueError(f'{_FIELD}: must be left out for {model.name}, which reads no texts, got '
                     f'{given!r}; config.labels chooses among classes')
  if given.endswith('.npz'):
    return model.with_features(*_features(given))
  return model.with_prompts(read_lines(_FIELD, given) if given.endswith('.txt') else _texts(given))


def read_lines(field: str, path: str) -> list[str]:
  """Reads the lines of a text file, one for each text.

  Args:
    field: the field of the config that names the file, for the error.
    path: of the file, UTF-8.

  Raises:
    ValueError: if it cannot be read, or a line is empty.
  """
  try:
    text = pathlib.Path(path).read_bytes().decode()
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f'{field}: must be a text file with one prompt per line, got {path!r} '
                     f'({getattr(error, "strerror", None) or "no UTF-8"}); write one') from None
  # Only these end lines: str.splitlines takes more for an end, which prompts may hold.
  lines = [line.removesuffix('\r') for line in text.removesuffix('\n').split('\n')]
  empty = next((i for i, line in enumerate(lines) if not line.strip()), None)
  if empty is not None:
    raise ValueError(f'{field}: must have a prompt in each line, got nothing in line {empty + 1} '
                     f'of {path}; write one')
  return lines


def _texts(given):
  texts = [text.strip() for text in given.split('|')]
  if not all(texts):
    raise ValueError(f"{_FIELD}: must be prompts with '|' between them, got {given!r}; such as "
                     "'a cat|a dog'")
  return texts


def _features(path):
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return [arrays[name] for name in _ARRAYS]
  except KeyError as error:
    got = f'none named {error.args[0].split()[0]}'
  except (ValueError, zipfile.BadZipFile, EOFError):
    got = 'something else'
  raise ValueError(f'{_FIELD}: must be a .npz file with the arrays features (n, tokens, width) and '
                   f'empty (tokens, width), got {got} in {path}; write it with numpy.savez')
