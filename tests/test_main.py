"""The command line, end to end."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import samplers
from configs import default

ROOT = pathlib.Path(__file__).parent.parent


def run_main(folder, *flags):
  """Runs main.py in an empty folder, as a user would."""
  return subprocess.run([sys.executable, ROOT / 'main.py', *flags], cwd=folder, check=False,
                        capture_output=True, text=True, timeout=120)


def test_overrides_reach_the_files(tmp_path):
  result = run_main(
      tmp_path, '--config.seeds=5,8-9', '--config.labels=4', '--config.batch_size=2',
      '--config.solver.name=ddim', '--config.solver.eta=0.5', '--config.schedule.name=karras',
      '--config.schedule.num_steps=6', '--config.schedule.rho=5', '--config.limit=clip',
      '--workdir=a/b')
  assert result.returncode == 0, result.stderr
  assert result.stderr == ''
  line, = result.stdout.splitlines()
  assert line.startswith('3 images in a/b: ddim on karras, NFE 6, ')
  out = tmp_path / 'a' / 'b'
  assert sorted(path.name for path in out.iterdir()) == [
      '000005.png', '000008.png', '000009.png', 'grid.png', 'manifest.json']
  for name in ('000005.png', '000008.png', '000009.png'):
    with Image.open(out / name) as picture:
      pixels = np.asarray(picture)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and pixels.max() > 200
  manifest = json.loads((out / 'manifest.json').read_text())
  assert manifest['seeds'] == [5, 8, 9] and manifest['labels'] == [4, 4, 4]
  assert manifest['nfe'] == 6 and manifest['solver']['eta'] == 0.5
  assert manifest['config']['limit'] == 'clip'
  assert manifest['schedule']['rho'] == 5 and len(manifest['sigmas']) == 7


@pytest.mark.parametrize('flags, message', [
    (['--mode=dream'], "--mode must be one of: generate, got 'dream'"),
    (['--config.solver.etta=1'], "unknown config field 'etta', Did you mean \"eta\""),
    (['--config.seeds.x=1'], '--config.seeds.x=1 does not fit: string ind'),
    (['--config.solver.eta=much'], 'flag --config.solver.eta=much: could not convert'),
    (['--config.seeds=9-3'], "seeds: a range must run upwards, got '9-3'; write 3-9"),
    (['--config.solver=heun'], 'flag --config.solver=heun: is a group; set its fields, as in'),
    (['--config=file'], '--config=file does not fit: '),
    (['--workdir=file'], 'workdir: must be a folder, got the file file; choose another'),
])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, flags, message):
  (tmp_path / 'file').write_text('no config')
  result = run_main(tmp_path, *flags)
  assert result.returncode == 2 and result.stdout == ''
  line, = result.stderr.splitlines()
  assert line.startswith(f'main.py: {message}')
  assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_main_is_short():
  assert len((ROOT / 'main.py').read_text().splitlines()) < 80


def test_config_has_an_empty_field_for_every_option():
  config = default.get_config()
  for group, registry, options in ((config.solver, samplers.SOLVERS, samplers.options),
                                   (config.schedule, samplers.SCHEDULES,
                                    samplers.schedule_options)):
    for name in registry:
      for option in options(name):
        assert group[option] is None, (name, option)
  assert config.solver.get_type('max_order') is int
  assert config.solver.get_type('eta') is float
  assert config.solver.get_type('afs') is bool
  assert config.schedule.get_type('rho') is float  # Its default is an integer.
  assert config.schedule.get_type('linear_steps') is int
  assert config.schedule.get_type('sigmas') is str
  with pytest.raises(AttributeError, match='Did you mean "eta"'):
    config.solver.etta = 1.0
