"""PyTorch's storages, flat runs of values, and tensors as views into them."""

import dataclasses
import math
from types import MappingProxyType

import ml_dtypes
import numpy as np

from convert import plain

DTYPES = MappingProxyType({name: np.dtype(dtype) for name, dtype in {
    'FloatStorage': '<f4', 'HalfStorage': '<f2', 'BFloat16Storage': ml_dtypes.bfloat16,
    'DoubleStorage': '<f8', 'LongStorage': '<i8', 'IntStorage': '<i4', 'ShortStorage': '<i2',
    'ByteStorage': 'u1', 'CharStorage': 'i1', 'BoolStorage': '?'}.items()})
"""Class of a storage in module torch -> type of its values, little-endian."""

_AXES = 32  # NumPy's limit in its first versions.


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
  """A flat run of values.

  Attributes:
    dtype: of a value.
    size: number of values.
    data: their bytes, None where these are not known yet.
  """

  dtype: np.dtype
  size: int
  data: memoryview | None


def identify(pid: object) -> tuple[np.dtype, str, int, object]:
  """Returns (dtype, key, size, view) of the persistent id that stands for a storage in a pickle.

  Args:
    pid: ('storage', class, key, device, size), and in the old format what it is a view of.

  Raises:
    Problem: if it is of another form, or the class of the storage is not known.
  """
  match pid:
    case ('storage', plain.Placeholder(pair=('torch', kind), instance=False), str(name), str(),
          int(size), *rest) if kind in DTYPES and 0 <= size < 2**59 and len(rest) <= 1:
      return DTYPES[kind], name, size, rest[0] if rest else None
    case ('storage', plain.Placeholder() as kind, *_):
      raise plain.Problem(f'must have storages of {", ".join(DTYPES)}, got {plain.describe(kind)}; '
                          'save it again with values of such a type')
  raise plain.Problem(f'must name a storage, got {plain.describe(pid)}; download it again')


def fill(dtype: np.dtype, size: int, data: memoryview) -> Storage:
  """Makes a storage of its bytes.

  Raises:
    Problem: if there are too few or too many bytes, or some of a bool are neither 0 nor 1.
  """
  if len(data) != size * dtype.itemsize:
    raise plain.Problem(f'must have {size * dtype.itemsize} bytes for a storage of {size} values '
                        f'of {dtype}, got {len(data)}; download it again')
  check_bools(dtype, data)
  return Storage(dtype, size, data)


def check_bools(dtype: np.dtype, data: memoryview) -> None:
  """Raises Problem if these are bools and one is neither 0 nor 1."""
  if dtype == np.bool_ and len(data) and np.frombuffer(data, np.uint8).max() > 1:
    raise plain.Problem('must have 0 or 1 for a bool, got another byte; download it again')


def view(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...],
         budget: plain.Budget) -> np.ndarray:
  """Makes a tensor, after checking that it lies within its storage.

  Args:
    storage: the values.
    offset: where the tensor begins, in values.
    shape: its shape.
    strides: between neighbours along each axis, in values, >= 0; 0 repeats.
    budget: of the file.

  Returns:
    A read-only view; an empty array if the bytes of the storage are not known yet.

  Raises:
    Problem: if it is no view, reaches past the end, or is much larger than the file.
  """
  if len(shape) != len(strides) or len(shape) > _AXES or any(
      type(number) is not int or not 0 <= number < 2**63 for number in (offset, *shape, *strides)):
    raise plain.Problem(f'must have an offset, shape and strides of integers >= 0 for each tensor '
                        f'and at most {_AXES} axes, got others; download it again')
  if math.prod(max(length, 1) for length in shape) >= 2**59:  # NumPy counts bytes in 64 bits.
    raise plain.Problem(f'must have tensors that a computer can hold, got one of shape '
                        f'{_short(shape)}; download it again')
  count = math.prod(shape)
  last = offset + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True))
  if (last >= storage.size) if count else (offset > storage.size):
    raise plain.Problem(f'must have tensors within their storages, got one of shape '
                        f'{_short(shape)} and strides {_short(strides)} from value {offset} of '
                        f'{storage.size}; download it again')
  if storage.data is None:
    return np.empty(0, storage.dtype)
  budget.spend(values=count)
  if not count:
    return np.empty(shape, storage.dtype)
  # A stride over a single element is never taken, and may be any number.
  steps = [stride * storage.dtype.itemsize if length > 1 else 0
           for length, stride in zip(shape, strides, strict=True)]
  return np.ndarray(shape, storage.dtype, storage.data, offset * storage.dtype.itemsize, steps)


def _short(numbers):
  return str(numbers) if len(str(numbers)) <= 60 else f'{str(numbers)[:60]}...'
