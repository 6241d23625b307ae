"""EDM's pickles: which calls they may make, and the objects of NVlabs' torch_utils.persistence.

Such an object is saved with the source text of its class, to be executed when it is loaded. Here
the text is dropped, the only thing that is, and what remains is data: the name of the class, the
arguments it was made from, and its state, in which the tensors are found by the names that torch's
`state_dict()` gives them.
"""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import numpy as np

from convert import opcodes, plain, storages, torch_files

_META = {'type', 'version', 'module_src', 'class_name', 'state'}
_VERSION = 6
_DEEPEST = 50  # Modules within modules.
_NAMES = 100_000  # Of modules and tensors.


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Persistent:
  """An object with embedded source, as inert data.

  Attributes:
    class_name: of its class, without the module.
    state: its instance dictionary.
  """

  class_name: str
  state: dict[str, Any]

  @property
  def init_args(self) -> tuple[Any, ...]:
    """Positional arguments that it was made from."""
    return self.state.get('_init_args', ())

  @property
  def init_kwargs(self) -> dict[str, Any]:
    """Keyword arguments that it was made from."""
    return self.state.get('_init_kwargs', {})

  @property
  def attributes(self) -> dict[str, Any]:
    """Its plain attributes, without those that begin with an underscore."""
    return {name: value for name, value in self.state.items() if not name.startswith('_')}

  @functools.cached_property
  def tensors(self) -> dict[str, np.ndarray]:
    """Dotted name -> values, in the order of torch's state_dict(); ValueError if it is none."""
    return {name: value for name, value, _ in self._entries}

  @functools.cached_property
  def buffers(self) -> frozenset[str]:
    """Dotted names of those tensors that are buffers."""
    return frozenset(name for name, _, buffer in self._entries if buffer)

  @functools.cached_property
  def _entries(self):
    entries = list(_walk(self, '', 0, itertools.count(1)))
    if len({name for name, _, _ in entries}) != len(entries):
      raise plain.Problem('must name each tensor once, got a name twice; download it again')
    return entries

  def __repr__(self) -> str:
    return f'Persistent({self.class_name!r})'


def read(data: memoryview, budget: plain.Budget, calls: plain.Calls) -> Any:
  """Reads a file that is one pickle.

  Args:
    data: all of it.
    budget: of the file.
    calls: as in opcodes.decode.

  Returns:
    The object.

  Raises:
    Problem: if it is damaged, or calls something else.
  """
  value, end = opcodes.decode(data, 0, budget, calls)
  if end != len(data):
    raise plain.Problem(f'must end with its pickle, got {len(data) - end} bytes after it; download '
                        'it again')
  return value


def network(data: Any) -> Persistent:
  """Finds the network in what was read: under 'ema', or else 'model'.

  Args:
    data: of containers.Contents.

  Returns:
    The network. One of a class without embedded source (SFD's students) is told in the same way.

  Raises:
    ValueError: if there is none, or it is no module with tensors.
  """
  try:
    return _network(data)
  except plain.Problem as problem:
    raise ValueError(f'convert: source {problem}') from None


def archives(data: Any) -> list[bytes | memoryview]:
  """Finds byte strings that begin as a ZIP file: an object may hold its network as TorchScript.

  Args:
    data: of containers.Contents.

  Returns:
    Each of them once, at any depth, in no order.
  """
  found, seen, rest = [], set(), [data]
  while rest:
    value = rest.pop()
    if id(value) in seen:
      continue
    seen.add(id(value))
    if isinstance(value, bytes | memoryview) and value[:4] == b'PK\x03\x04':
      found.append(value)
    elif isinstance(value, dict | list | tuple | set | frozenset | plain.Placeholder | Persistent):
      rest += plain.parts(value)
  return found


def only_module(data: Any) -> Persistent | None:
  """Finds the module in what was read, if it is all, or the only one in a dict.

  Args:
    data: of containers.Contents.

  Returns:
    The module, without the name of its class; None if there is none or several. Its tensors may
    yet turn out to be none.
  """
  values = data.values() if isinstance(data, dict) else [data]
  states = [getattr(value, 'state', None) for value in values]
  modules = [state for state in states
             if _is_state(state) and state.keys() >= {'_parameters', '_modules'}]
  return Persistent('', modules[0]) if len(modules) == 1 else None


def _network(data):
  if not isinstance(data, dict) or not data.keys() & {'ema', 'model'}:
    found = ', '.join(map(plain.describe, list(data)[:10])) or 'no keys' if isinstance(
        data, dict) else plain.describe(data)
    raise plain.Problem(f"must be a dictionary with a network under 'ema' or 'model', got {found}; "
                        'check that it is a snapshot of a network')
  name = 'ema' if 'ema' in data else 'model'
  found = data[name]
  if isinstance(found, plain.Placeholder) and _is_state(found.state):
    found = Persistent(found.pair[1], found.state)
  if not isinstance(found, Persistent):
    raise plain.Problem(f'must have a network under {name!r}, got {plain.describe(found)}; check '
                        'that it is a snapshot of a network')
  if not isinstance(found.init_args, tuple) or not isinstance(found.init_kwargs, dict):
    raise plain.Problem('must tell the arguments of its network, got others; download it again')
  _ = found.tensors
  return found


def _walk(module, prefix, depth, counter) -> Iterator[tuple[str, np.ndarray, bool]]:
  """Yields (dotted name, values, is a buffer) of a module and those below."""
  state = getattr(module, 'state', None)
  hidden = state.get('_non_persistent_buffers_set', set()) if isinstance(state, dict) else None
  if not isinstance(hidden, set) or not all(
      isinstance(state.get(group), dict) for group in ('_parameters', '_buffers', '_modules')):
    raise plain.Problem(f'must have modules of PyTorch in its network, got '
                        f'{plain.describe(module)} as {prefix[:-1] or "the network"!r}; check that '
                        'it is a snapshot of a network')
  if depth > _DEEPEST:
    raise plain.Problem(f'must nest modules at most {_DEEPEST} deep, got more; it is no network')
  for group in ('_parameters', '_buffers'):
    for name, value in state[group].items():
      _check_name(name, prefix, counter)
      if value is None or (group == '_buffers' and name in hidden):
        continue
      if not isinstance(value, np.ndarray):
        raise plain.Problem(f'must have a tensor as {prefix}{name}, got {plain.describe(value)}; '
                            'download it again')
      yield f'{prefix}{name}', value, group == '_buffers'
  for name, child in state['_modules'].items():
    _check_name(name, prefix, counter)
    if child is not None:
      yield from _walk(child, f'{prefix}{name}.', depth + 1, counter)


def _check_name(name, prefix, counter):
  if next(counter) > _NAMES:
    raise plain.Problem(f'must have at most {_NAMES} modules and tensors, got more; it is no '
                        'network')
  if not isinstance(name, str) or len(prefix) + len(name) > 1000:
    raise plain.Problem(f'must name modules and tensors by texts, got {plain.describe(name)}; '
                        'download it again')


def _is_state(value):
  return isinstance(value, dict) and all(isinstance(name, str) for name in value)


def _wrong(name):
  return plain.Problem(f'must call {name} as PyTorch or Python does, got other arguments; download '
                       'it again')


def _persistent(args, budget):
  match args:
    case [{'type': 'class', 'version': int(version), 'class_name': str(name), 'state': dict(state),
           'module_src': str()} as meta] if meta.keys() == _META:
      if version != _VERSION:
        raise plain.Problem(f'must hold persistent objects of version {_VERSION}, got '
                            f'{plain.describe(version)}; save it again with a newer torch_utils')
      budget.spend(steps=len(state))
      if _is_state(state):
        return Persistent(name, state)
  raise _wrong('_reconstruct_persistent_obj')


def _load_from_bytes(args, budget):
  match args:
    case [bytes() | memoryview() as data]:
      budget.spend(values=len(data))
      storage = torch_files.read_legacy(memoryview(data), budget, {})
      if isinstance(storage, storages.Storage):
        return storage
  raise _wrong('_load_from_bytes')


def _tensor(args, budget):
  match args:
    case [storages.Storage() as storage, int(offset), tuple(shape), tuple(strides), *_]:
      return storages.view(storage, offset, shape, strides, budget)
  raise _wrong('_rebuild_tensor')


def _parameter(args, budget):
  match args:
    case [np.ndarray() as tensor, bool(), _]:
      return tensor
  raise _wrong('_rebuild_parameter')


def _encode(args, budget):
  match args:
    case [str(text), 'latin1' | 'latin-1']:
      budget.spend(values=len(text))
      with contextlib.suppress(UnicodeEncodeError):
        return text.encode('latin-1')
  raise _wrong('encode')


def _set(args, budget, kind=set):
  match args:
    case []:
      return kind()
    case [list() | tuple() as values]:
      budget.spend(steps=len(values))
      return kind(map(plain.key, values))
  raise _wrong('set')


def _dict(args, budget):
  match args:
    case []:
      return {}
    case [list(pairs)]:
      budget.spend(steps=len(pairs))
      if all(type(pair) in (list, tuple) and len(pair) == 2 for pair in pairs):
        values = {plain.key(name): value for name, value in pairs}
        if len(values) == len(pairs):
          return values
  raise _wrong('OrderedDict')


def _default_dict(args, budget):
  match args:
    case [] | [None] | [plain.Placeholder(instance=False)]:  # What would make missing values.
      return {}
  raise _wrong('defaultdict')


def _dtype(args, budget):
  match args:
    case [str(name), bool() | int(), bool() | int()] if name in _DTYPES:
      return np.dtype(name)
  raise _wrong('numpy.dtype')


def _scalar(args, budget):
  match args:
    case [np.dtype() as dtype, bytes() | memoryview() as data] if len(data) == dtype.itemsize:
      storages.check_bools(dtype, memoryview(data))
      return np.frombuffer(data, dtype)[0].item()
  raise _wrong('numpy.scalar')


def _size(args, budget):
  match args:
    case [tuple() | list() as lengths]:
      budget.spend(steps=len(lengths))
      return tuple(lengths)
  raise _wrong('torch.Size')


def _object(module, name):
  """Stands for a call that makes an object of no use here: it is kept as a Placeholder."""
  return lambda args, budget: plain.Placeholder((module, name), True, args)


def _reconstructor(args, budget):
  match args:
    case [plain.Placeholder(instance=False) as kind, _, _]:
      return plain.Placeholder(kind.pair, True, args)
  raise _wrong('_reconstructor')


_DTYPES = {f'{kind}{size}' for kind, sizes in {'f': '248', 'i': '1248', 'u': '1248'}.items()
           for size in sizes} | {'b1'}

CALLS = MappingProxyType({
    ('torch_utils.persistence', '_reconstruct_persistent_obj'): _persistent,
    ('torch.storage', '_load_from_bytes'): _load_from_bytes,
    ('torch._utils', '_rebuild_tensor'): _tensor,
    ('torch._utils', '_rebuild_tensor_v2'): _tensor,
    ('torch._utils', '_rebuild_parameter'): _parameter,
    ('torch', 'Size'): _size,
    ('torch', 'device'): _object('torch', 'device'),
    ('collections', 'OrderedDict'): _dict,
    ('collections', 'defaultdict'): _default_dict,
    ('builtins', 'set'): _set,
    ('builtins', 'frozenset'): functools.partial(_set, kind=frozenset),
    ('copyreg', '_reconstructor'): _reconstructor,
    ('_codecs', 'encode'): _encode,
    ('numpy', 'dtype'): _dtype,
    **{(module, 'scalar'): _scalar for module in ('numpy.core.multiarray',
                                                  'numpy._core.multiarray')},
    **{(module, '_reconstruct'): _object('numpy', 'ndarray')
       for module in ('numpy.core.multiarray', 'numpy._core.multiarray')},
})
"""(module, name) of all globals that a file may call -> what stands for the call."""
