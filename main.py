"""Fast diffusion sampling: `python main.py` samples 64 images into out/.

Every field of the config can be overridden, as in --config.solver.name=heun; configs/default.py
names and explains them all.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from engine import generate

MODES = {'generate': generate}  # Jobs: modules with plan(config, workdir) and run(plan).

_CONFIG = config_flags.DEFINE_config_file(
    'config', help_string='Python file of the configuration; configs/default.py if not given.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string('workdir', 'out', 'Folder for everything that is written.')
_MODE = flags.DEFINE_string('mode', 'generate', f'Job, one of: {", ".join(MODES)}.')


def main(argv: list[str]) -> None:
  """Runs one job; what is wrong with its input is one line on stderr and exit code 2."""
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # JAX would tell which devices it did not find.
  if len(argv) > 1:
    _fail(f'takes flags only, got {argv[1]!r}; a flag starts with --')
  if _MODE.value not in MODES:
    _fail(f'--mode must be one of: {", ".join(MODES)}, got {_MODE.value!r}')
  job = MODES[_MODE.value]
  try:
    plan = job.plan(_CONFIG.value, _WORKDIR.value)
  except (ValueError, OSError) as error:
    _fail(error)
  try:
    print(job.run(plan))
  except (FloatingPointError, OSError) as error:
    _fail(error, code=1)


def _parse(argv):
  """Reads the flags; errors of theirs take the same form as all others."""
  try:
    # Here and not where the flag is defined, since this reads the overrides.
    flags.FLAGS.set_default('config', str(pathlib.Path(__file__).parent / 'configs/default.py'))
    return flags.FLAGS(argv)
  except flags.Error as error:
    if 'as a ConfigDict' in str(error):
      error = f'{str(error).split(":")[0]}: is a group; set its fields, as in --config.solver.name'
    _fail(f'{error}; see --help and configs/default.py')
  except Exception as error:  # The config is a program of the user's: anything can go wrong in it.
    inner = error.args[0] if error.args and isinstance(error.args[0], Exception) else error
    if isinstance(inner, KeyError):  # How a locked config refuses an unknown field.
      name = str(inner.args[0]).replace('\n', ', ')
      _fail(f'unknown config field {name}; configs/default.py lists them')
    given = ' '.join(arg for arg in argv if arg.startswith('--config'))
    _fail(f'{given} does not fit: {error}; see configs/default.py for files, groups and fields')


def _fail(message, code=2):
  print(f'main.py: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(code)


if __name__ == '__main__':
  app.run(main, flags_parser=_parse)
