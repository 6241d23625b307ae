"""What is wrong with a command line, in one sentence."""

import pathlib

import pytest

from engine import commandline

DEFAULT = str(pathlib.Path(__file__).parent.parent.parent / 'configs' / 'default.py')


@pytest.mark.parametrize('field, near', [
    ('etta', 'solver.eta'), ('eta', 'solver.eta'), ('solver.etta', 'solver.eta'),
    ('modle.name', 'model.name'), ('batchsize', 'batch_size'), ('seed', 'seeds'),
    ('num_steps', 'schedule.num_steps'), ('seeds.x', 'seeds'), ('columns', 'output.grid.columns'),
])
def test_a_misspelt_field_names_the_nearest(field, near):
  text = commandline.explain(KeyError(field), ['main.py', f'--config.{field}=1'], DEFAULT)
  assert text == (f"unknown config field '{field}'; did you mean '{near}'? configs/default.py "
                  'explains all')


def test_a_field_like_no_other_is_unknown():
  text = commandline.explain(KeyError(), ['main.py', '--config.qqqq=1'], DEFAULT)
  assert text == "unknown config field 'qqqq'; configs/default.py explains all"


def test_fields_are_those_of_the_config_that_was_given(tmp_path):
  path = tmp_path / 'own.py'
  path.write_text('import ml_collections\n'
                  'def get_config(name):\n'
                  '  return ml_collections.ConfigDict({name: 1})\n')
  text = commandline.explain(KeyError(), ['main.py', f'--config={path}:colour', '--config.color=2'],
                             DEFAULT)
  assert "unknown config field 'color'; did you mean 'colour'?" in text


@pytest.mark.parametrize('code, error', [
    ('x = 1', "KeyError: 'get_config'"), ('def get_config():\n  1 / 0', 'ZeroDivisionError: div'),
    ('def', 'SyntaxError: invalid syntax')])
def test_a_config_that_fails_is_told_by_its_name(tmp_path, code, error):
  path = tmp_path / 'own.py'
  path.write_text(code)
  text = commandline.explain(Exception('inner'), ['main.py', '--config', str(path)], DEFAULT)
  assert text.startswith(f'--config: {path} must give a config by get_config(), got {error}')


@pytest.mark.parametrize('argv, what', [
    (['--config=nofile.py'], "nothing at 'nofile.py'"),
    (['--config', 'nofile.py'], "nothing at 'nofile.py'"),
    (['-config=no.py:x'], "nothing at 'no.py:x'"),
    (['--config=/'], "a folder at '/'"),
])
def test_a_missing_config_file_is_named(argv, what):
  text = commandline.find_problem(['main.py', *argv])
  assert text == (f'--config: must be a Python file with get_config(), got {what}; '
                  'configs/default.py is one')


def test_a_config_file_that_is_there_is_no_problem():
  given = ['main.py', f'--config={DEFAULT}:any', '--config.seeds=1']
  assert commandline.find_problem(given) is None
  assert commandline.find_problem(['main.py']) is None


@pytest.mark.parametrize('mode, given, expected', [
    ('generate', None, 'out'), ('train', None, 'out/train'), ('train', 'here', 'here'),
    ('generate', '', '')])  # An empty name is refused where the folder is checked.
def test_each_mode_writes_to_a_folder_of_its_own(mode, given, expected):
  assert commandline.workdir(mode, ('generate', 'train'), given) == expected


def test_a_misspelt_mode_is_told_the_nearest():
  with pytest.raises(ValueError, match="^unknown --mode 'trian'; did you mean train. known: gen"):
    commandline.workdir('trian', ('generate', 'train'), None)


@pytest.mark.parametrize('flag', ['schedule.num_steps=8', 'solver.name=heun'])
def test_a_predictor_leaves_nothing_to_say_about_its_solver(flag):
  argv = ['main.py', '--config.predictor.path=digits_amed', f'--config.{flag}']
  name = flag.split('=')[0]
  assert commandline.find_problem(argv) == (
      f'--config.{name}: must be left out with --config.predictor.path, whose predictor decides '
      f'schedule and solver, got --config.{flag}; train another for other settings')
  assert commandline.find_problem([argv[0], argv[2]]) is None
