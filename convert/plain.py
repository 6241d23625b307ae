"""What a file may be read as: plain values, inert placeholders, and bounds on both."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

_STEPS = 2_000_000  # Opcodes of one file; a published network of 600 tensors has about 10^5.
_DEEPEST = 200  # Containers within containers.
_LONGEST = 100  # Elements of a tuple that is a key.


class Problem(ValueError):
  """What is wrong with a file: 'must <rule>, got <value>; <remedy>'."""


@dataclasses.dataclass
class Budget:
  """What one file may still cost, over all streams within it.

  Attributes:
    values: elements that tensors may still show, and bytes that calls may still make.
    steps: opcodes, and elements copied by calls.
  """

  values: int
  steps: int = _STEPS

  def spend(self, steps: int = 0, values: int = 0) -> None:
    """Takes from the budget, or raises Problem if there is not enough."""
    self.steps -= steps
    self.values -= values
    if self.steps < 0:
      raise Problem(f'must be made of at most {_STEPS} opcodes, got more; it is no network')
    if self.values < 0:
      raise Problem('must not describe tensors of many times its own size, got more; views that '
                    'repeat their storage must be copied before they are saved')


@dataclasses.dataclass(eq=False, repr=False)
class Placeholder:
  """A global that the file names, or an object of such a class: a name and data, nothing else.

  Attributes:
    pair: (module, qualified name).
    instance: an object of the class, not the global itself.
    args: arguments that the object was to be made from.
    state: what was to be its state, None if nothing was given.
    items: what was to be added to it: elements of a list, or (key, value) of a dict.
  """

  pair: tuple[str, str]
  instance: bool = False
  args: tuple[Any, ...] = ()
  state: Any = None
  items: list[Any] = dataclasses.field(default_factory=list)

  @property
  def name(self) -> str:
    """The name with its module, 'collections.OrderedDict'."""
    return '.'.join(self.pair)

  def __repr__(self) -> str:
    return f'Placeholder({self.name!r}, instance={self.instance})'


Calls = Mapping[tuple[str, str], Callable[[tuple[Any, ...], Budget], Any]]
"""(module, name) -> function(arguments, budget) that stands for a call of that global."""


def key(value: Any) -> Any:
  """Returns a value if it may be a key of a dict or in a set, or raises Problem.

  Plain values, short flat tuples of them and Placeholders may: hashing them is cheap. Integers are
  held to 64 bits, for larger ones can be made to collide.
  """
  for part in value if type(value) is tuple and len(value) <= _LONGEST else (value,):
    if type(part) not in (str, int, float, bool, bytes, type(None), Placeholder) or (
        type(part) is int and not -2**63 <= part < 2**63):
      raise Problem(f'must have plain keys in dicts and sets, got {describe(part)}; download it '
                    'again')
  return value


def describe(value: Any) -> str:
  """Returns a short text for a value of any kind or depth."""
  if isinstance(value, str | bytes):
    return repr(value[:60]) + ('...' if len(value) > 60 else '')
  if isinstance(value, Placeholder):
    return f'{"an object of " if value.instance else ""}{value.name[:120]!r}'
  if isinstance(value, int) and abs(value) >= 2**64:
    return 'a long integer'
  if isinstance(value, int | float | type(None)):
    return repr(value)
  return f'a {type(value).__name__}'


def check_nesting(root: Any) -> None:
  """Raises Problem if plain containers nest too deeply, or contain themselves.

  So whoever walks them may recurse. What belongs to a Placeholder begins anew: objects may refer
  to each other in circles.

  Args:
    root: what `decode` returned.
  """
  heights: dict[int, int] = {}  # By identity; 0 while the container is being walked.
  roots = [[root]]
  while roots:
    path = [[None, iter(roots.pop()), 0]]  # Container, what is left of it, its height so far.
    while path:
      container, rest, height = path[-1]
      for child in rest:
        is_object = hasattr(child, 'state')  # Placeholder, and what else holds an object's state.
        if not is_object and not isinstance(child, dict | list | tuple | set | frozenset):
          continue
        if id(child) not in heights:
          heights[id(child)] = 0
          if is_object:
            roots.append(parts(child))
          else:
            path.append([child, iter(parts(child)), 0])
            break
        elif not is_object and not heights[id(child)]:
          raise Problem(f'must not nest in itself, got a {type(child).__name__} that does; it is '
                        'no network')
        path[-1][2] = height = max(height, heights[id(child)])
      else:
        path.pop()
        if path:
          heights[id(container)] = height + 1
          path[-1][2] = max(path[-1][2], height + 1)
      if len(path) > _DEEPEST or height >= _DEEPEST:
        raise Problem(f'must nest at most {_DEEPEST} deep, got more; it is no network')


def parts(value: Any) -> Any:
  """Returns what a container or an object, such as a Placeholder, holds, to iterate over."""
  if isinstance(value, dict):
    return [*value, *value.values()]
  if hasattr(value, 'state'):
    return [value.state, *getattr(value, 'args', ()), *getattr(value, 'items', ())]
  return value
