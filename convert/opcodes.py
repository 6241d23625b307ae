"""Pickle streams read as plain data, by an interpreter that has no way to run anything.

A pickle is a program for a small stack machine. Python's own machine imports what the program
names and calls it; this one knows no import and calls nothing but the functions of a table that
its caller hands in, found by the exact (module, name). Any other name is an inert Placeholder:
it may stand in the data as a value, a key or the class of an object, and a call of it is refused.

Known are the opcodes that Python writes with protocol 2 to 5. Work and memory are bounded by the
size of the file and a Budget: no size in a file is believed before that many bytes are there.
"""

import dataclasses
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from convert import plain

_LONGEST = 1024  # Bytes of an integer, or of the name of a global.
_MODULES = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # Python 2's names.


def decode(data: memoryview, start: int, budget: plain.Budget, calls: plain.Calls,
           persistent: Callable[[Any], Any] | None = None) -> tuple[Any, int]:
  """Reads one pickle.

  Args:
    data: the bytes; long byte strings of the result are views into them.
    start: where the pickle begins.
    budget: of the file.
    calls: what stands for the globals that may be called.
    persistent: what stands for a persistent id; None: there must be none.

  Returns:
    (value, end): dicts, lists, tuples, sets, plain values, Placeholders, and what `calls` and
    `persistent` returned; the place after the pickle.

  Raises:
    Problem: if the stream is damaged, calls another global or costs too much.
  """
  machine = _Machine(data, start, calls, persistent, budget)
  if _take(machine, 1) != b'\x80':
    raise plain.Problem(f'must have a pickle of protocol 2 or later at byte {start}, got none; '
                        'download it again')
  protocol = _uint(machine, 1)
  if not 2 <= protocol <= 5:
    raise plain.Problem(f'must be a pickle of protocol 2 to 5, got {protocol}; download it again')
  while True:
    budget.spend(steps=1)
    machine.opcode = machine.position
    code = _uint(machine, 1)
    if code == _STOP:
      break
    if code not in _OPCODES:
      raise _damaged(machine, f'the unknown opcode {code:#04x}')
    _OPCODES[code](machine)
  if len(machine.stack) != 1 or machine.marks:
    raise _damaged(machine, f'an end with {len(machine.stack)} values')
  return machine.stack[0], machine.position


@dataclasses.dataclass
class _Machine:
  data: memoryview
  position: int
  calls: plain.Calls
  persistent: Callable[[Any], Any] | None
  budget: plain.Budget
  opcode: int = 0  # Where the current one stands, for errors.
  frame: int = 0  # Where the last frame ends; no opcode lies across it.
  stack: list[Any] = dataclasses.field(default_factory=list)
  marks: list[int] = dataclasses.field(default_factory=list)  # Heights of the stack.
  memo: dict[int, Any] = dataclasses.field(default_factory=dict)
  names: dict[tuple[str, str], plain.Placeholder] = dataclasses.field(default_factory=dict)


def _damaged(machine, got):
  return plain.Problem(f'must be a whole pickle, got {got} at byte {machine.opcode}; download it '
                       'again')


def _take(machine, size):
  end = machine.position + size
  if end > len(machine.data):
    raise _damaged(machine, f'its end where {size} bytes were to follow')
  if machine.position < machine.frame < end:
    raise _damaged(machine, 'the end of a frame within an opcode')
  view = machine.data[machine.position:end]
  machine.position = end
  return view


def _uint(machine, size):
  return int.from_bytes(_take(machine, size), 'little')


def _text(machine, view):
  try:
    return str(view, 'utf-8', 'surrogatepass')
  except UnicodeDecodeError:
    raise _damaged(machine, 'text that is not UTF-8') from None


def _pop(machine):
  if len(machine.stack) <= (machine.marks[-1] if machine.marks else 0):
    raise _damaged(machine, 'too few values')
  return machine.stack.pop()


def _pop_to_mark(machine):
  if not machine.marks:
    raise _damaged(machine, 'no mark')
  height = machine.marks.pop()
  values = machine.stack[height:]
  del machine.stack[height:]
  return values


def _top(machine, *kinds):
  """The value on top of the stack, which is of one of these kinds or an object to be filled."""
  value = _pop(machine)
  machine.stack.append(value)
  if type(value) not in kinds and not (isinstance(value, plain.Placeholder) and value.instance):
    raise _damaged(machine, f'{plain.describe(value)} that was to be filled')
  return value


def _frame(machine):
  size = _uint(machine, 8)
  if machine.position < machine.frame:
    raise _damaged(machine, 'a frame within another')
  machine.frame = machine.position + size
  if machine.frame > len(machine.data):
    raise _damaged(machine, 'its end within a frame')


def _long(machine, size):
  if size > _LONGEST:
    raise _damaged(machine, f'an integer of {size} bytes')
  machine.stack.append(int.from_bytes(_take(machine, size), 'little', signed=True))


def _duplicate(machine):
  value = _pop(machine)
  machine.stack += [value, value]


def _tuple(machine, size):
  values = [_pop(machine) for _ in range(size)]
  machine.stack.append(tuple(reversed(values)))


def _append(machine, values):
  target = _top(machine, list)
  (target.items if isinstance(target, plain.Placeholder) else target).extend(values)


def _add(machine):
  values = _pop_to_mark(machine)
  target = _top(machine, set)
  if isinstance(target, plain.Placeholder):
    target.items.extend(values)
  else:
    target.update(map(plain.key, values))


def _set_items(machine, values):
  target = _top(machine, dict)
  if len(values) % 2:
    raise _damaged(machine, 'a key without a value')
  for name, value in zip(values[::2], values[1::2], strict=True):
    if isinstance(target, plain.Placeholder):
      target.items.append((name, value))
    elif plain.key(name) in target:
      raise _damaged(machine, f'the key {plain.describe(name)} twice')
    else:
      target[name] = value


def _set_item(machine):
  value, name = _pop(machine), _pop(machine)
  _set_items(machine, [name, value])


def _global(machine, module, name):
  if not isinstance(module, str) or not isinstance(name, str):
    raise _damaged(machine, f'{plain.describe(name)} as the name of a global')
  if len(module) + len(name) > _LONGEST:
    raise _damaged(machine, f'a name of {len(module) + len(name)} letters')
  pair = _MODULES.get(module, module), name
  machine.stack.append(machine.names.setdefault(pair, plain.Placeholder(pair)))


def _global_lines(machine):
  lines = bytes(machine.data[machine.position:machine.position + _LONGEST]).split(b'\n', 2)
  if len(lines) < 3:
    raise _damaged(machine, 'a global without a name')
  machine.position += len(lines[0]) + len(lines[1]) + 2
  _global(machine, _text(machine, lines[0]), _text(machine, lines[1]))


def _stack_global(machine):
  name, module = _pop(machine), _pop(machine)
  _global(machine, module, name)


def _callee(machine):
  """The global and the arguments on the stack."""
  args, function = _pop(machine), _pop(machine)
  if not isinstance(function, plain.Placeholder) or function.instance or type(args) is not tuple:
    raise _damaged(machine, f'a call of {plain.describe(function)}')
  return function, args


def _reduce(machine):
  function, args = _callee(machine)
  if function.pair not in machine.calls:
    raise plain.Problem('must call none but the known globals, got a call of '
                        f'{function.name[:120]!r} at byte {machine.opcode}, which was not '
                        'executed; do not trust it, or save its tensors alone')
  machine.stack.append(machine.calls[function.pair](args, machine.budget))


def _new_object(machine):
  cls, args = _callee(machine)
  if cls.pair in DICTS and not args:
    machine.stack.append({})
  else:
    machine.stack.append(plain.Placeholder(cls.pair, True, args))


DICTS = {('collections', 'OrderedDict'), ('dnnlib.util', 'EasyDict')}
"""Classes whose objects are read as dicts."""


def _build(machine):
  """Gives an object its state.

  A dict's can only be what torch notes in a state dict: versions of modules, of no use here. A
  dtype's is of no use either, unless it says that bytes are swapped.
  """
  state = _pop(machine)
  target = _pop(machine)
  machine.stack.append(target)
  match target, state:
    case plain.Placeholder(instance=True, state=None), _:
      target.state = state
    case dict(), None:
      pass
    case dict(), dict() if state.keys() <= {'_metadata'}:
      pass
    case np.dtype(), (int(), '<' | '|', *_):
      pass
    case _:
      raise _damaged(machine, f'{plain.describe(target)} with a state of its own')


def _persistent(machine):
  if machine.persistent is None:
    raise _damaged(machine, 'a persistent id')
  machine.stack.append(machine.persistent(_pop(machine)))


def _get(machine, size):
  index = _uint(machine, size)
  if index not in machine.memo:
    raise _damaged(machine, f'nothing in the memo under {index}')
  machine.stack.append(machine.memo[index])


def _put(machine, index):
  # Numbered as they come, by Python 2 from 1.
  if index > len(machine.memo) + 1:
    raise _damaged(machine, f'number {index} for value {len(machine.memo)} of the memo')
  machine.memo[index] = _pop(machine)
  machine.stack.append(machine.memo[index])


def _pushes(make):
  return lambda machine: machine.stack.append(make(machine))


def _texts(size):
  return _pushes(lambda machine: _text(machine, _take(machine, _uint(machine, size))))


def _views(size):
  return _pushes(lambda machine: _take(machine, _uint(machine, size)))


_STOP = ord('.')

_OPCODES = {
    ord('('): lambda machine: machine.marks.append(len(machine.stack)),
    ord('0'): _pop,
    ord('1'): _pop_to_mark,
    ord('2'): _duplicate,
    ord('N'): _pushes(lambda machine: None),
    0x88: _pushes(lambda machine: True),
    0x89: _pushes(lambda machine: False),
    ord('J'): lambda machine: _long(machine, 4),
    ord('K'): _pushes(lambda machine: _uint(machine, 1)),
    ord('M'): _pushes(lambda machine: _uint(machine, 2)),
    0x8a: lambda machine: _long(machine, _uint(machine, 1)),
    0x8b: lambda machine: _long(machine, _uint(machine, 4)),
    ord('G'): _pushes(lambda machine: struct.unpack('>d', _take(machine, 8))[0]),
    ord('U'): _texts(1),  # Python 2's strings are texts, as names are.
    ord('T'): _texts(4),
    0x8c: _texts(1),
    ord('X'): _texts(4),
    0x8d: _texts(8),
    ord('C'): _pushes(lambda machine: bytes(_take(machine, _uint(machine, 1)))),
    ord('B'): _views(4),
    0x8e: _views(8),
    ord(')'): lambda machine: _tuple(machine, 0),
    0x85: lambda machine: _tuple(machine, 1),
    0x86: lambda machine: _tuple(machine, 2),
    0x87: lambda machine: _tuple(machine, 3),
    ord('t'): _pushes(lambda machine: tuple(_pop_to_mark(machine))),
    ord(']'): _pushes(lambda machine: []),
    ord('a'): lambda machine: _append(machine, [_pop(machine)]),
    ord('e'): lambda machine: _append(machine, _pop_to_mark(machine)),
    ord('}'): _pushes(lambda machine: {}),
    ord('s'): _set_item,
    ord('u'): lambda machine: _set_items(machine, _pop_to_mark(machine)),
    0x8f: _pushes(lambda machine: set()),
    0x90: _add,
    0x91: _pushes(lambda machine: frozenset(map(plain.key, _pop_to_mark(machine)))),
    ord('c'): _global_lines,
    0x93: _stack_global,
    ord('R'): _reduce,
    0x81: _new_object,
    ord('b'): _build,
    ord('Q'): _persistent,
    ord('h'): lambda machine: _get(machine, 1),
    ord('j'): lambda machine: _get(machine, 4),
    ord('q'): lambda machine: _put(machine, _uint(machine, 1)),
    ord('r'): lambda machine: _put(machine, _uint(machine, 4)),
    0x94: lambda machine: _put(machine, len(machine.memo)),
    0x95: _frame,
}
