"""Writes checkpoint files as PyTorch and NVlabs' code do, and hostile ones, without either."""

import dataclasses
import io
import json
import pickle
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

KINDS = {'float32': 'Float', 'float16': 'Half', 'bfloat16': 'BFloat16', 'float64': 'Double',
         'int64': 'Long', 'int32': 'Int', 'int16': 'Short', 'uint8': 'Byte', 'int8': 'Char',
         'bool': 'Bool'}


@dataclasses.dataclass(frozen=True)
class Name:
  """A global."""

  module: str
  name: str


@dataclasses.dataclass(eq=False)
class Call:
  """A call of a global, or with `new` an object of that class with a state."""

  function: Name
  args: tuple
  new: bool = False
  state: Any = None


@dataclasses.dataclass(eq=False)
class Id:
  """A persistent id."""

  pid: Any


class Writer(pickle._Pickler):
  """Python's own pickler, which writes the above without looking them up."""

  def save(self, value, save_persistent_id=True):
    if not isinstance(value, Name | Call | Id) or id(value) in self.memo:
      return super().save(value, save_persistent_id)
    if isinstance(value, Name):
      if self.proto >= 4:
        self.save(value.module)
        self.save(value.name)
        self.write(pickle.STACK_GLOBAL)
      else:
        self.write(pickle.GLOBAL + f'{value.module}\n{value.name}\n'.encode())
    elif isinstance(value, Id):
      self.save(value.pid)
      self.write(pickle.BINPERSID)
    else:
      self.save(value.function)
      self.save(value.args)
      self.write(pickle.NEWOBJ if value.new else pickle.REDUCE)
    self.memoize(value)
    if isinstance(value, Call) and value.state is not None:
      self.save(value.state)
      self.write(pickle.BUILD)


def dumps(value, protocol=2):
  """Returns a pickle."""
  file = io.BytesIO()
  Writer(file, protocol).dump(value)
  return file.getvalue()


def storage(key, values, view=()):
  """The persistent id of a storage."""
  return Id(('storage', Name('torch', f'{KINDS[values.dtype.name]}Storage'), key, 'cpu',
             values.size, *view))


def tensor(stored, shape, strides=None, offset=0):
  """A tensor on a storage, contiguous unless strides are given."""
  if strides is None:
    strides = tuple(int(np.prod(shape[i + 1:])) for i in range(len(shape)))
  return Call(Name('torch._utils', '_rebuild_tensor_v2'),
              (stored, offset, tuple(shape), tuple(strides), False, ordered()))


def ordered(**values):
  """An OrderedDict, of texts to values."""
  return Call(Name('collections', 'OrderedDict'), ([[*pair] for pair in values.items()],))


def legacy(value, arrays):
  """A legacy stream of a value with storages under the keys of `arrays`."""
  sizes = {'short': 2, 'int': 4, 'long': 4}
  parts = [dumps(0x1950a86a20f9469cfc6c), dumps(1001),
           dumps({'protocol_version': 1001, 'little_endian': True, 'type_sizes': sizes}),
           dumps(value), dumps(sorted(arrays))]
  for _, array in sorted(arrays.items()):
    parts += [struct.pack('<q', array.size), array.tobytes()]
  return b''.join(parts)


def archive(value, arrays, folder='archive', **more):
  """A ZIP file of a value with storages under the keys of `arrays`, and further members."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as members:
    members.writestr(f'{folder}/data.pkl', value if isinstance(value, bytes) else dumps(value))
    for name, content in {'byteorder': b'little', 'version': b'3\n', **more}.items():
      members.writestr(f'{folder}/{name}', content)
    for key, array in arrays.items():
      members.writestr(f'{folder}/data/{key}', array.tobytes())
  return file.getvalue()


def safetensors(arrays, **header):
  """A safetensors file of named arrays, with changes to its header."""
  names = {'float32': 'F32', 'bfloat16': 'BF16', 'int64': 'I64', 'bool': 'BOOL'}
  entries, position = {}, 0
  for name, array in arrays.items():
    entries[name] = {'dtype': names[array.dtype.name], 'shape': array.shape,
                     'data_offsets': [position, position + array.nbytes]}
    position += array.nbytes
  text = json.dumps({**entries, **header}).encode()
  return struct.pack('<Q', len(text)) + text + b''.join(map(np.ndarray.tobytes, arrays.values()))


def parameter(values, shape=None):
  """A parameter as within EDM's pickles: its storage is bytes that hold a legacy stream."""
  data = legacy(storage('94', values, (None,)), {'94': values})
  stored = Call(Name('torch.storage', '_load_from_bytes'), (data,))
  return Call(Name('torch._utils', '_rebuild_parameter'),
              (tensor(stored, values.shape if shape is None else shape), True, ordered()))


def state(parameters=(), buffers=(), modules=(), hidden=(), **attributes):
  """The instance dictionary of a module."""
  return {'training': False, '_parameters': ordered(**dict(parameters)),
          '_buffers': ordered(**dict(buffers)), '_non_persistent_buffers_set': set(hidden),
          '_forward_hooks': ordered(), '_modules': ordered(**dict(modules)), **attributes}


def persistent(name, instance, **meta):
  """An object of torch_utils.persistence, with changes to what is told of it."""
  return Call(Name('torch_utils.persistence', '_reconstruct_persistent_obj'),
              ({'type': 'class', 'version': 6, 'module_src': 'raise SystemExit', 'class_name': name,
                'state': instance, **meta},))


def small_network(**attributes):
  """A network of three modules, and its arrays by name."""
  arrays = {'scale': np.float32([1, 2, 4]), 'mean': np.float16([[0.5, 3]]),
            'inner.weight': np.arange(6, dtype=np.float32).reshape(2, 3),
            'list.0.shift': np.arange(4).astype(ml_dtypes.bfloat16)}
  inner = persistent('Linear', state({'weight': parameter(arrays['inner.weight']), 'bias': None}))
  first = Call(Name('models', 'Shift'), (), True, state(
      buffers={'shift': parameter(arrays['list.0.shift']),
               'hidden': parameter(np.float32([9]))}, hidden=['hidden']))
  several = Call(Name('torch.nn.modules.container', 'ModuleList'), (), True,
                 state(modules={'0': first}))
  return persistent('Precond', state(
      {'scale': parameter(arrays['scale'])}, {'mean': parameter(arrays['mean'])},
      {'inner': inner, 'list': several, 'none': None}, sigma_min=0.5, _init_args=(8, 3),
      _init_kwargs={'kind': 'small'}, **attributes)), arrays
