"""Fast diffusion sampling: `python main.py` samples 64 images into out/.

Fields are overridden as in --config.solver.name=heun; configs/default.py explains them all.
"""

import importlib
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

# Modules of engine with plan(config, workdir) and run(plan, progress), imported when asked for.
MODES = ('generate', 'train', 'train_amed', 'distill', 'search', 'convert', 'invert', 'likelihood',
         'evaluate', 'compare', 'analyze')

_DEFAULT = str(pathlib.Path(__file__).parent / 'configs/default.py')
_CONFIG = config_flags.DEFINE_config_file('config', lock_config=True, help_string=(
    'Python file of the configuration; configs/default.py if not given.'))
_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder for all output, where an interrupted run '
                               'goes on; out if not given, for other modes out/MODE.')
_MODE = flags.DEFINE_string('mode', 'generate', f'Job, one of: {", ".join(MODES)}.')
_QUIET = flags.DEFINE_bool('quiet', False, 'No progress bar, also on a terminal.')
_CACHE = flags.DEFINE_bool('compilation_cache', True, 'Keep compiled programs for the next run, in '
                           '~/.cache/fewstep or where JAX_COMPILATION_CACHE_DIR says.')


def main(argv: list[str]) -> None:
  """Runs one job; what is wrong with its input is one line on stderr and exit code 2."""
  from engine import cache, commandline, devices, progress  # JAX loads, where Ctrl-C is heard.
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # JAX would tell which devices it did not find.
  if len(argv) > 1:
    _fail(f'takes flags only, got {argv[1]!r}; a flag starts with --')
  devices.use_cores()
  note = cache.enable() if _CACHE.value else cache.disable()
  if note:
    print(f'main.py: {note}', file=sys.stderr)
  try:
    workdir = commandline.workdir(_MODE.value, MODES, _WORKDIR.value)
    job = importlib.import_module(f'engine.{_MODE.value}')
    plan = job.plan(_CONFIG.value, workdir)
  except (ValueError, OSError) as error:
    _fail(error)
  try:
    print(job.run(plan, progress.choose(_QUIET.value)))
  except (FloatingPointError, OSError) as error:
    _fail(error, code=1)


def _parse(argv):
  """Reads the flags; errors of theirs take the same form as all others."""
  from engine import commandline
  if problem := commandline.find_problem(argv):
    _fail(problem)
  try:
    # Here and not where the flag is defined, since this reads the overrides.
    flags.FLAGS.set_default('config', _DEFAULT)
    return flags.FLAGS(argv)
  except flags.Error as error:
    if 'parsing config file' in str(error):  # With a traceback of the user's program.
      _fail(commandline.explain(error, argv, _DEFAULT))
    if 'as a ConfigDict' in str(error):
      error = f'{str(error).split(":")[0]}: is a group; set its fields, as in --config.solver.name'
    _fail(f'{error}; see --help and configs/default.py')
  except Exception as error:  # The config is a program of the user's: anything can go wrong in it.
    _fail(commandline.explain(error, argv, _DEFAULT))


def _fail(message, code=2):
  print(f'main.py: {" ".join(str(message).split())}', file=sys.stderr)
  sys.exit(code)


if __name__ == '__main__':
  try:
    app.run(main, flags_parser=_parse)
  except KeyboardInterrupt:
    _fail('interrupted; finished files stay, and the same command goes on from there', code=130)
