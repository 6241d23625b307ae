"""Grid files: written, exported, read back by any mode, refused in one line."""

import ast
import json
import re

import numpy as np
import pytest

import models
from engine import grid_files, resolve

LEVELS = [80.0, 2.515218976147159, 0.31828, 1.5e-05]


@pytest.fixture(scope='module')
def model():
  return models.load('digits_exact')


def put(folder, text):
  path = folder / 'levels'
  path.write_text(text)
  return path


def test_a_grid_is_read_back_bit_for_bit_and_its_exports_end_in_zero(tmp_path):
  names = grid_files.write(tmp_path, 3, LEVELS, {'num_steps': 3})
  assert names == ['grid-3.json', 'grid-3.diffusers.txt', 'grid-3.comfyui.txt']
  assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
  np.testing.assert_array_equal(grid_files.read(tmp_path / names[0]), LEVELS)
  assert json.loads((tmp_path / names[0]).read_text())['num_steps'] == 3
  for name in names[1:]:
    np.testing.assert_array_equal(grid_files.read(tmp_path / name), [*LEVELS[:-1], 0.0])


def test_exports_have_the_form_that_the_other_programs_take():
  levels = [80.0, 3.0, 2e-05, 1e-05]
  assert ast.literal_eval(grid_files.export(levels, 'diffusers')) == [80.0, 3.0, 2e-05, 0.0]
  text = grid_files.export(levels, 'comfyui')
  # ComfyUI's node takes digits with a point for numbers, and knows no exponent.
  assert [float(number) for number in re.findall(r'[-+]?(?:\d*\.*\d+)', text)] == [
      80.0, 3.0, 2e-05, 0.0]


@pytest.mark.parametrize('text', [
    '80, 3, 0.5', '80 3\n0.5\n', '[80.0, 3.0, 0.5]', '(80, 3, 0.5,)', '80;3;0.5', '[80 3 0.5]',
    '{"sigmas": [80, 3, 0.5], "more": {}}', '["80", "3", "0.5"]'])
def test_lists_of_many_forms_are_read(tmp_path, text):
  assert grid_files.read(put(tmp_path, text)).tolist() == [80.0, 3.0, 0.5]


@pytest.mark.parametrize('text, message', [
    ('', 'sigmas must be a list of two or more levels'),
    ('80', 'sigmas must be a list of two or more levels'),
    ('[]', 'sigmas must be a list of two or more levels'),
    ('80, 90', 'sigmas must decrease, got 90 after 80 at index 1'),
    ('80, -1', 'sigmas must not go below 0, got -1'),
    ('0, 0', 'sigmas must start above 0'),
    ('eighty, 3', "must be a file of noise levels, .* got 'eighty' in"),
    ('80, nan', "got 'nan' in"), ('[80, true]', "got 'True' in"), ('[80, [3]]', r"got '\[3\]' in"),
    ('{"levels": [80, 3]}', "got an object without a list 'sigmas' in"),
    ('{"sigmas": "80, 3"}', "got an object without a list 'sigmas' in"),
    ('[' * 100_000, 'must be a file of noise levels'),
])
def test_what_is_no_grid_is_one_clear_line(tmp_path, text, message):
  with pytest.raises(ValueError, match=f'^config.schedule.path: .*{message}') as error:
    grid_files.read(put(tmp_path, text))
  assert '\n' not in str(error.value) and str(tmp_path) in str(error.value)
  assert len(str(error.value)) < 400


def test_files_that_cannot_be_read_are_explained(tmp_path):
  with pytest.raises(ValueError, match='^config.schedule.path: must be a file that can be read, '
                     r'got .*nowhere \(No such file or directory\); --mode=search writes one'):
    grid_files.read(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='must be a file that can be read, .*directory'):
    grid_files.read(tmp_path)
  (tmp_path / 'bytes').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match='got bytes that are no text'):
    grid_files.read(tmp_path / 'bytes')
  put(tmp_path, ' ' * 2**21)
  with pytest.raises(ValueError, match='must be a file of at most'):
    grid_files.read(tmp_path / 'levels')


def test_any_run_takes_a_file_and_is_known_by_its_levels(tmp_path, model):
  first, second = tmp_path / 'a', tmp_path / 'b'
  first.write_text('80, 3, 0.5')
  second.write_text('[80.0, 3.0, 0.5]')
  given = {'num_steps': 8, 'path': str(first)}
  sigmas, arguments = resolve.sigmas('explicit', given, model)
  assert sigmas.tolist() == [80.0, 3.0, 0.5] and given == {'num_steps': 8, 'path': str(first)}
  assert arguments['sigmas'] == [80.0, 3.0, 0.5] and 'path' not in arguments
  assert resolve.sigmas('explicit', {'num_steps': 8, 'path': str(second)}, model)[1] == arguments


@pytest.mark.parametrize('name, given, message', [
    ('polynomial', {}, "config.schedule.name: must be explicit with a file .* got 'polynomial'"),
    ('explicit', {'sigmas': '80,3'}, "config.schedule.sigmas: must be None with a file .*'80,3'"),
])
def test_a_file_goes_with_no_other_levels(tmp_path, model, name, given, message):
  path = put(tmp_path, '80, 3, 0.5')
  with pytest.raises(ValueError, match=message):
    resolve.sigmas(name, {'path': str(path), **given}, model)
