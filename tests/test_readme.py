"""What the README says is so."""

import pathlib
import re
import shlex

import jax
import pytest

import samplers
from configs import default
from engine import generate

README = (pathlib.Path(__file__).parent.parent / 'README.md').read_text()


def test_python_example_samples_digits():
  code, = re.findall(r'```python\n(import jax\n.*?)```', README, re.DOTALL)
  names = {}
  exec(code, names)
  assert names['table'].nfe == 8
  assert names['images'].shape == (4, 8, 8, 3) and abs(names['images']).max() < 1.3


def test_example_of_a_solver_is_a_solver():
  code, = re.findall(r'```python\n@registry.register\n(def euler.*?)```', README, re.DOTALL)
  names = {'np': samplers.registry.np, 'Row': samplers.table.Row,
           'assemble': samplers.table.assemble}
  exec(code, names)
  ours, theirs = names['euler']([3.0, 1.0, 0.0]), samplers.make('euler', [3.0, 1.0, 0.0])
  assert (ours.mix == theirs.mix).all()


def test_solver_table_names_every_solver_option_and_default():
  rows = re.findall(r'^\| (`.*?`) \|(.*?)\| .*? \| .*\|$', README, re.MULTILINE)
  listed = {name: options for names, options in rows for name in re.findall(r'`(\w+)`', names)}
  assert set(listed) == set(samplers.SOLVERS)
  for name, text in listed.items():
    own = set(samplers.options(name)) - {'afs', 'denoise_to_zero'}
    for option, default_value in re.findall(r'`(\w+)=([\w.]+)', text):
      if option in own:
        assert str(samplers.options(name)[option]) in (default_value, f'{default_value}.0'), name
    # Left out: the constants of rk's vp schedule and of deis, which few runs change.
    assert own - set(re.findall(r'`(\w+)=', text)) <= {'sigma_min', 'sigma_max', 'epsilon_s'}, name


@pytest.mark.parametrize('line', re.findall(r'^python main.py (.*)$', README, re.MULTILINE))
def test_command_lines_make_a_plan(line, tmp_path):
  config = default.get_config()
  flags = dict(word.removeprefix('--').split('=', 1) for word in shlex.split(line))
  for name, value in flags.items():
    if name.startswith('config.'):
      field = name.removeprefix('config.')
      kind = config.get_type(field) if '.' not in field else _group(config, field)
      config.update_from_flattened_dict({field: kind(value)})
  plan = generate.plan(config, str(tmp_path))
  assert plan.table.nfe > 0
  assert jax.tree.leaves(plan.table)


def _group(config, field):
  group, name = field.rsplit('.', 1)
  return config[group].get_type(name)
