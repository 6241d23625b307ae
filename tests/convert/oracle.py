"""What the bytes of a file say, by Python's own unpickler and plain arithmetic on indices.

It is for comparison alone and bounds nothing: it is given only files that the reader took.
"""

import collections
import io
import json
import pickle

import ml_dtypes
import numpy as np

from convert import pickles, plain
from tests.convert import writing

_DTYPES = {f'{kind}Storage': np.dtype(getattr(ml_dtypes, name, name))
           for name, kind in writing.KINDS.items()}


class _Inert:
  """An object of a class that is not there."""

  pair, instance, items, state = None, True, (), None

  def __new__(cls, *args):
    made = super().__new__(cls)
    made.args, made.items = args, []
    return made

  def __setstate__(self, state):
    self.state = state

  def __setitem__(self, key, value):
    self.items.append((key, value))

  def append(self, value):
    self.items.append(value)

  def extend(self, values):
    self.items.extend(values)

  add = append


class _Bytes:
  """The values of a storage, which a legacy stream tells only after its tensors."""

  def __init__(self, dtype):
    self.dtype, self.values = dtype, None


class _Tensor:
  def __init__(self, storage, offset, shape, strides, *_):
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self):
    index = np.full(self.shape, self.offset)
    for axis, (length, stride) in enumerate(zip(self.shape, self.strides, strict=True)):
      steps = np.arange(length) * (stride if length > 1 else 0)
      index = index + steps.reshape(-1, *[1] * (len(self.shape) - axis - 1))
    return self.storage.values[index]


class _Dict(dict):
  pass


def _persistent(meta):
  return pickles.Persistent(meta['class_name'], meta['state'])


class _Unpickler(pickle.Unpickler):
  """Stands in for every global; `load_from_bytes` and `storages` fill the arrays."""

  def __init__(self, file):
    super().__init__(file, encoding='utf-8')
    self.storages, self.classes = {}, {}

  def find_class(self, module, name):
    module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
    known = {'torch_utils.persistence._reconstruct_persistent_obj': _persistent,
             'torch.storage._load_from_bytes': legacy, 'torch._utils._rebuild_tensor_v2': _Tensor,
             'torch._utils._rebuild_tensor': _Tensor,
             'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
             'collections.OrderedDict': collections.OrderedDict, 'dnnlib.util.EasyDict': _Dict,
             'builtins.set': set, '_codecs.encode': lambda text, _: text.encode('latin1')}
    made = type('Made', (_Inert,), {'pair': (module, name)})
    return known.get(f'{module}.{name}') or self.classes.setdefault((module, name), made)

  def persistent_load(self, pid):
    _, kind, key, *_ = pid
    return self.storages.setdefault(key, _Bytes(_DTYPES[kind.pair[1]]))


def pickled(data):
  """What a pickle says."""
  return _Unpickler(io.BytesIO(data)).load()


def legacy(data):
  """What a legacy stream says."""
  file = io.BytesIO(data)
  for _ in range(3):
    _Unpickler(file).load()
  reader = _Unpickler(file)
  value = reader.load()
  for key in _Unpickler(file).load():
    storage = reader.storages[key]
    count = int.from_bytes(file.read(8), 'little')
    storage.values = np.frombuffer(file.read(count * storage.dtype.itemsize), storage.dtype)
  return value


def safetensors(data):
  """What a safetensors file says."""
  size = int.from_bytes(data[:8], 'little')
  kinds = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': ml_dtypes.bfloat16,
           'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8', 'U8': 'uint8',
           'BOOL': 'bool'}
  def array(entry):
    start, end = entry['data_offsets']
    return np.frombuffer(data[8 + size + start:8 + size + end], kinds[entry['dtype']]).reshape(
        entry['shape'])
  return {name: array(entry) for name, entry in json.loads(data[8:8 + size]).items()
          if name != '__metadata__'}


def is_same(ours, theirs):
  """Whether what the project read is what the oracle says, to the last bit and in order."""
  if isinstance(theirs, _Tensor | np.ndarray):
    values = theirs.array() if isinstance(theirs, _Tensor) else theirs
    return (isinstance(ours, np.ndarray) and ours.dtype == values.dtype
            and ours.shape == values.shape and ours.tobytes() == values.tobytes())
  if isinstance(theirs, dict):
    return type(ours) is dict and is_same([*ours.items()], [*theirs.items()])
  if isinstance(theirs, list | tuple):
    return type(ours) is type(theirs) and len(ours) == len(theirs) and all(map(
        is_same, ours, theirs))
  if isinstance(theirs, set | frozenset):
    return type(ours) is type(theirs) and len(ours) == len(theirs)
  if isinstance(theirs, pickles.Persistent):
    return ours.class_name == theirs.class_name and is_same(ours.state, theirs.state)
  if callable(theirs) or isinstance(theirs, _Inert):  # A global, or an object.
    return (isinstance(ours, plain.Placeholder) and ours.instance == isinstance(theirs, _Inert)
            and ours.pair == getattr(theirs, 'pair', ours.pair)
            and (callable(theirs) or is_same([ours.args, ours.state, ours.items],
                                             [theirs.args, theirs.state, theirs.items])))
  if isinstance(theirs, bytes):
    return bytes(ours) == theirs
  return type(ours) is type(theirs) and repr(ours) == repr(theirs)
