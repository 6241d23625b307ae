"""What is wrong with a command line, in one sentence each."""

import difflib
import pathlib
import runpy
from collections.abc import Iterator, Sequence

import ml_collections

from samplers import checks

_SAMPLING = 'model', 'schedule', 'solver', 'predictor', 'guidance', 'condition', 'input', 'output'
"""Groups of the config that belong to no other job."""

NUMBERED = 'train_amed',
"""Modes that find a numbered folder of their own."""


def workdir(mode: str, modes: Sequence[str], given: str | None) -> str | None:
  """Returns the folder that a job writes to: as given, else 'out' for the first mode, 'out/MODE'.

  None leaves the folder to the job.

  Raises:
    ValueError: if there is no such mode, with the nearest.
  """
  if mode not in modes:
    raise ValueError(checks.unknown('--mode', mode, modes))
  if given is not None or mode in NUMBERED:
    return given
  return 'out' if mode == modes[0] else f'out/{mode}'


def find_problem(argv: Sequence[str]) -> str | None:
  """Returns what is wrong with the file that --config names, or with flags that do not go together.

  None if all is well; what fields hold is not its matter.
  """
  for given in _values(argv, 'config'):
    path = pathlib.Path(given.split(':')[0])  # A text after a colon is the file's own argument.
    if not path.is_file():
      what = 'a folder' if path.is_dir() else 'nothing'
      return (f'--config: must be a Python file with get_config(), got {what} at {given!r}; '
              'configs/default.py is one')
  if any(path != 'None' for path in _values(argv, 'config.predictor.path')):
    # Also where they repeat a default, which a job cannot tell from nothing.
    for arg in argv:
      name = arg.split('=')[0].lstrip('-')
      if name.startswith(('config.schedule.', 'config.solver.')):
        return (f'--{name}: must be left out with --config.predictor.path, whose predictor decides '
                f'schedule and solver, got {arg}; train another for other settings')
  return None


def explain(error: Exception, argv: Sequence[str], default: str) -> str:
  """Returns what is wrong with the config or its overrides.

  Args:
    error: what reading them raised.
    argv: the command line.
    default: config file where none is given.
  """
  file, *_ = [*_values(argv, 'config'), default]
  name, *argument = file.split(':', 1)
  try:
    fields = _fields(runpy.run_path(name)['get_config'](*argument))
  except Exception as inside:  # A program of the user's: anything can go wrong in it.
    return (f'--config: {name} must give a config by get_config(), got {type(inside).__name__}: '
            f'{inside}; configs/default.py is an example')
  known = list(fields)
  for arg in argv:
    field = arg.split('=')[0].removeprefix('--').removeprefix('-')
    if field.startswith('config.') and field.removeprefix('config.') not in known:
      return _unknown(field.removeprefix('config.'), known)
  given = ' '.join(arg for arg in argv if arg.startswith('--config'))
  return f'{given} does not fit: {error}; see configs/default.py for files, groups and fields'


def _unknown(name, known):
  """The sentence for an unknown field: the nearest by its whole name or by its last part."""
  known = sorted(known, key=_rank)  # Of several alike, that of the solver or of sampling.
  near = difflib.get_close_matches(name, known, 1)
  if '.' not in name:  # A whole field, or the last part of one.
    whole = difflib.get_close_matches(name, [field for field in known if '.' not in field], 1)
    same = [field for field in known if field.rsplit('.', 1)[-1] == name]
    near = whole or same[:1] or near
  if not near:
    last_parts = {field.rsplit('.', 1)[-1]: field for field in reversed(known)}
    near = [last_parts[part] for part in
            difflib.get_close_matches(name.rsplit('.', 1)[-1], last_parts, 1)]
  hint = f'; did you mean {near[0]!r}?' if near else ';'
  return f'unknown config field {name!r}{hint} configs/default.py explains all'


def _rank(field):
  group = field.split('.')[0]
  return _SAMPLING.index(group) if group in _SAMPLING else len(_SAMPLING)


def _values(argv, flag) -> Iterator[str]:
  """Values of a flag, written as --flag=value or --flag value."""
  for arg, following in zip(argv, [*argv[1:], ''], strict=True):
    name, equals, value = arg.partition('=')
    if name in (f'--{flag}', f'-{flag}'):
      yield value if equals else following


def _fields(config, above='') -> Iterator[str]:
  """Names of all fields and groups, such as 'solver' and 'solver.name'."""
  for name, value in config.items():
    yield f'{above}{name}'
    if isinstance(value, ml_collections.ConfigDict):
      yield from _fields(value, f'{above}{name}.')
