"""Pickles of dictionaries of arrays, read without executing anything in them.

Unpickling calls what a file names. Here a name stands for one of the few functions below or for
nothing: they are made anew for each file, take bytes and give arrays, and no function of NumPy, of
the standard library or of this project can be reached from a file.
"""

import io
import math
import pathlib
import pickle
import pickletools
import re
from typing import Any

import numpy as np

_MULTIARRAY = 'numpy.core.multiarray', 'numpy._core.multiarray'  # NumPy 1 and 2.
_NUMERIC = 'numpy.core.numeric', 'numpy._core.numeric'
_MEMO = 'PUT', 'BINPUT', 'LONG_BINPUT'


def load(name: str, path: pathlib.Path) -> dict[Any, Any]:
  """Reads a pickled dictionary of numbers, arrays, and dictionaries of these.

  Args:
    name: who asks, for the error.
    path: the file.

  Returns:
    The dictionary.

  Raises:
    ValueError: if the file cannot be read, is damaged, names anything else, or holds no dictionary.
  """
  try:
    content = path.read_bytes()
    for opcode, argument, _ in pickletools.genops(content):
      # Place is made for every memo up to the highest; a number beyond the file's length is a trap.
      if opcode.name in _MEMO and argument > len(content):
        raise ValueError(f'memo {argument} in {len(content)} bytes')
    value = _Reader(io.BytesIO(content), encoding='latin1').load()
  except Exception as error:  # Hostile bytes may raise anything.
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise ValueError(f'{name}: must be a pickle of a dict of arrays, got {path} ({reason}); '
                     'download it again, and only from where it was published') from None
  if not isinstance(value, dict):
    raise ValueError(f'{name}: must be a pickle of a dict of arrays, got {type(value).__name__} in '
                     f'{path}; check that it is a file of statistics')
  return _plain(value)


class _Reader(pickle.Unpickler):
  """Unpickler to which a name is one of `_functions` or an error."""

  def __init__(self, *args, **kwargs):
    super().__init__(*args, **kwargs)
    self._known = _functions()

  def find_class(self, module, name):
    if (module, name) not in self._known:
      raise pickle.UnpicklingError(f'it names {module}.{name}, which is no part of an array')
    return self._known[module, name]


class _Kind:
  """Type of numbers, as a pickle builds it: a code, then the order of bytes."""

  __slots__ = ('dtype',)

  def __setstate__(self, state):
    self.dtype = self.dtype.newbyteorder({'<': '<', '>': '>', '|': '|'}[state[1]])


class _Array:
  """An array, as a pickle builds it: empty, then filled."""

  __slots__ = ('value',)

  def __setstate__(self, state):
    _, shape, kind, fortran, data = state
    self.value = _array(data, kind, shape, 'F' if fortran else 'C')


def _array(data, kind, shape, order):
  data = data.encode('latin1') if isinstance(data, str) else data  # Python 2 had no bytes.
  if not all(type(size) is int and size >= 0 for size in shape) or order not in ('C', 'F') or (
      len(data) != math.prod(shape) * kind.dtype.itemsize):
    raise ValueError('an array of another size than its data')
  return np.frombuffer(bytes(data), kind.dtype).reshape(shape, order=order)


def _functions():
  """Returns what each name stands for; made per file, so that no file can alter it for the next."""
  def dtype(code, *_):
    if not re.fullmatch('[<>|=]?[fiu][1248]', code):
      raise ValueError(f'an array of type {code!r}')
    kind = _Kind()
    kind.dtype = np.dtype(code)
    return kind

  def ndarray(*_):
    raise ValueError('an array made by hand')

  def reconstruct(*_):
    return _Array()

  def scalar(kind, data):
    return _array(data, kind, (), 'C').item()

  def frombuffer(data, kind, shape, order, *_):
    return _array(data, kind, shape, order)

  def encode(text, encoding):
    if encoding != 'latin1':
      raise ValueError('bytes in another encoding')
    return text.encode('latin1')

  return {('numpy', 'dtype'): dtype, ('numpy', 'ndarray'): ndarray, ('_codecs', 'encode'): encode,
          **{(module, '_reconstruct'): reconstruct for module in _MULTIARRAY},
          **{(module, 'scalar'): scalar for module in _MULTIARRAY},
          **{(module, '_frombuffer'): frombuffer for module in _NUMERIC}}


def _plain(content, depth=2):
  """Returns a dictionary with arrays for what stands for them, down to dictionaries in it."""
  def unwrap(value):
    if isinstance(value, _Array):
      return getattr(value, 'value', None)
    return _plain(value, depth - 1) if isinstance(value, dict) and depth > 1 else value
  return {key: unwrap(value) for key, value in content.items()}
