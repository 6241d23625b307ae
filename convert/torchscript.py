"""TorchScript archives, what torch.jit.save writes, read as data: the program in them never runs.

An archive is a ZIP file of PyTorch's. `data.pkl` is the module: an object of a class in `__torch__`
whose state is a dict of its attributes, plain values, tensors and further modules. `code/` is the
source of these classes, compressed, and `constants.pkl` what the source refers to by number; both
are left alone. So the tensors are found by the names that torch's `state_dict()` of the loaded
module gives them: there, too, every attribute that is a tensor counts as a parameter or a buffer.
"""

import itertools
from collections.abc import Iterator
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from convert import plain, torch_files

_DEEPEST = 50  # Modules within modules.
_NAMES = 100_000  # Of attributes, counted wherever a module appears.


class Program(NamedTuple):
  """A TorchScript archive as inert data.

  Attributes:
    module: the outermost one; its attributes are its state.
    constants: number of tensors that the source refers to, which have no names.
  """

  module: plain.Placeholder
  constants: int


def read(archive: torch_files.Archive, budget: plain.Budget, calls: plain.Calls) -> Program:
  """Reads the module of an archive.

  Args:
    archive: of torch_files.open_zip.
    budget: of the file.
    calls: as in opcodes.decode; those that TorchScript's own pickles make are added.

  Returns:
    The Program.

  Raises:
    Problem: if it is damaged, holds something else than a module, or calls something else.
  """
  value = torch_files.read_zip(archive, budget, {**calls, **CALLS})
  if not _is_module(value):
    raise plain.Problem('must be a checkpoint of tensors or a module, got a TorchScript archive of '
                        f'{plain.describe(value)}; save the module with torch.jit.save')
  return Program(value, sum(name.startswith('constants/') for name in archive.parts))


def tensors(program: Program) -> dict[str, np.ndarray]:
  """Returns the tensors of a module and those below by dotted names, as torch's state_dict().

  Args:
    program: what `read` returned.

  Returns:
    Name -> read-only array, in the order of the archive, a module's own before those of its
    modules. Tensors in lists or dicts have no names of their own and are left out.

  Raises:
    Problem: if there are none, or an object keeps its tensors in a way of its own.
  """
  found = dict(_walk(program.module, '', 0, itertools.count(1)))
  if not found and program.constants:
    raise plain.Problem(f'must be a module with named tensors, got a frozen one whose '
                        f'{program.constants} tensors are constants of its program; save it '
                        'without torch.jit.freeze')
  if not found:
    raise plain.Problem('must be a module with tensors, got TorchScript without any; it is no '
                        'network')
  return found


def _is_module(value):
  return (isinstance(value, plain.Placeholder) and value.instance
          and value.pair[0].split('.')[0] == '__torch__')


def _walk(module, prefix, depth, counter) -> Iterator[tuple[str, np.ndarray]]:
  if depth > _DEEPEST:
    raise plain.Problem(f'must nest modules at most {_DEEPEST} deep, got more; it is no network')
  where = f'{plain.describe(module)} as {plain.describe(prefix[:-1] or "the module")}'
  if not isinstance(module.state, dict) or module.items:  # A __getstate__: packed, quantized.
    raise plain.Problem(f'must be made of modules with attributes, got {where}, which keeps its '
                        'own; save the state_dict() of a module of plain tensors')
  inner = []
  for name, value in module.state.items():
    if not isinstance(name, str) or len(prefix) + len(name) > 1000 or not name or '.' in name:
      raise plain.Problem(f'must name attributes by texts, got {plain.describe(name)} in {where}; '
                          'download it again')
    if next(counter) > _NAMES:
      raise plain.Problem(f'must have at most {_NAMES} attributes, got more; it is no network')
    if isinstance(value, np.ndarray):
      yield f'{prefix}{name}', value
    elif _is_module(value):
      inner.append((name, value))
  for name, value in inner:
    yield from _walk(value, f'{prefix}{name}.', depth + 1, counter)


def _list(name, *kinds):
  """Stands for a list with a declared type of its elements."""
  def make(args, budget):
    match args:
      case [list() as values] if all(type(value) in kinds for value in values):
        budget.spend(steps=len(values))
        return list(values)
    raise plain.Problem(f'must call {name} as TorchScript does, got other arguments; download it '
                        'again')
  return make


def _tagged(args, budget):
  """Stands for a container with its type as a text, which says nothing more."""
  del budget
  match args:
    case [list() | dict() as value, str()]:
      return value
  raise plain.Problem('must call restore_type_tag as TorchScript does, got other arguments; '
                      'download it again')


CALLS = MappingProxyType({
    **{('torch.jit._pickle', name): _list(name, *kinds) for name, kinds in {
        'build_intlist': (int,), 'build_doublelist': (float,), 'build_boollist': (bool,),
        'build_tensorlist': (np.ndarray,)}.items()},
    ('torch.jit._pickle', 'restore_type_tag'): _tagged,
})
"""(module, name) of what only these archives may call -> what stands for the call."""
