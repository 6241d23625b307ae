"""The safetensors format: a header in JSON, then the bytes of all tensors, one after the other."""

import json
import math
from types import MappingProxyType

import ml_dtypes
import numpy as np

from convert import plain, storages

DTYPES = MappingProxyType({name: np.dtype(dtype) for name, dtype in {
    'F64': '<f8', 'F32': '<f4', 'F16': '<f2', 'BF16': ml_dtypes.bfloat16, 'I64': '<i8',
    'I32': '<i4', 'I16': '<i2', 'I8': 'i1', 'U8': 'u1', 'BOOL': '?'}.items()})
"""Name in the header -> type, little-endian."""

LONGEST = 10_000_000
"""Bytes of a header; one of 2,500 tensors has about 300,000."""


def read(data: memoryview, budget: plain.Budget, calls: plain.Calls) -> dict[str, np.ndarray]:
  """Reads all tensors; the texts under `__metadata__`, which no network needs, are left out.

  Args:
    data: all of the file.
    budget: not needed: each byte belongs to one tensor.
    calls: not needed: nothing can be called.

  Returns:
    Name -> read-only view, in the order of the header.

  Raises:
    Problem: if the header is no such description, or does not fit the bytes.
  """
  del budget, calls
  size = int.from_bytes(data[:8], 'little')
  if size > min(LONGEST, len(data) - 8):
    raise plain.Problem(f'must have its header of {size} bytes, got {len(data) - 8}, and at most '
                        f'{LONGEST} are known; download it again')
  header = _parse(bytes(data[8:8 + size]))
  metadata = header.pop('__metadata__', {})
  if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
    raise plain.Problem('must have texts as its metadata, got others; download it again')
  content = data[8 + size:]
  entries = {name: _entry(name, entry) for name, entry in header.items()}
  position = 0
  for start, end, name in sorted((*entry[2:], name) for name, entry in entries.items()):
    if end > len(content):
      raise plain.Problem(f'must have {end} bytes of tensors, got {len(content)}; download it '
                          'again')
    if start != position:
      raise plain.Problem(f'must have its tensors one after the other, got {plain.describe(name)} '
                          f'at {start} instead of {position}; download it again')
    position = end
  if position != len(content):
    raise plain.Problem(f'must end with its last tensor, got {len(content) - position} bytes after '
                        'it; download it again')
  tensors = {}
  for name, (dtype, shape, start, end) in entries.items():
    storages.check_bools(dtype, content[start:end])
    tensors[name] = np.ndarray(shape, dtype, content[start:end]) if start < end else np.empty(
        shape, dtype)
  return tensors


def _parse(text):
  def unique(pairs):
    if len(dict(pairs)) != len(pairs):
      raise plain.Problem('must name each tensor once in its header, got a name twice; download it '
                          'again')
    return dict(pairs)
  try:
    header = json.loads(text.decode(), object_pairs_hook=unique)
  except plain.Problem:
    raise
  except (ValueError, RecursionError) as error:
    raise plain.Problem(f'must have a header in JSON, got {str(error)[:80]!r}; download it again'
                        ) from None
  if not isinstance(header, dict):
    raise plain.Problem(f'must have a dictionary as its header, got {plain.describe(header)}; '
                        'download it again')
  return header


def _entry(name, entry):
  """Returns (dtype, shape, start, end) of an entry of the header."""
  match entry:
    case {'dtype': str(kind), 'shape': list(shape), 'data_offsets': [start, end], **rest} if (
        not rest and len(shape) <= 32
        and all(type(number) is int and 0 <= number < 2**59 for number in (*shape, start, end))):
      if kind not in DTYPES:
        raise plain.Problem(f'must have tensors of {", ".join(DTYPES)}, got {plain.describe(kind)} '
                            f'for {plain.describe(name)}; save it again in such a type')
      dtype = DTYPES[kind]
      if (math.prod(shape) * dtype.itemsize == end - start
          and math.prod(max(length, 1) for length in shape) < 2**59):
        return dtype, tuple(shape), start, end
  raise plain.Problem(f'must tell a type, a shape and its place for each tensor, got others for '
                      f'{plain.describe(name)}; download it again')
