"""What the README says is so."""

import copy
import importlib
import json
import pathlib
import re
import shlex
import shutil
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

import main
import models
import samplers
from configs import default
from engine import commandline, generate, statistics_files
from samplers import dpm_v3
from tests.engine.test_convert import convert

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / 'README.md').read_text()
COMMANDS = re.findall(r'^python main.py (.*)$', README, re.MULTILINE)


def example(start):
  """The one Python example that starts so."""
  code, = re.findall(rf'```python\n({re.escape(start)}.*?)```', README, re.DOTALL)
  return code


def test_links_and_installed_files_exist():
  links = re.findall(r'\]\(([^)#]+)', README)
  files = [*links, *re.findall(r'requirements[\w-]*\.txt', README)]
  assert len(links) > 8 and [name for name in files if not (ROOT / name).exists()] == []


def test_links_into_pages_have_their_headings():
  anchors = re.findall(r'\]\(([^)#]*)#([^)]+)\)', README)
  assert anchors
  for name, anchor in anchors:
    headings = re.findall(r'^#+ (.*)$', (ROOT / (name or 'README.md')).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r'[^\w -]', '', title).lower().replace(' ', '-')
                      for title in headings}, anchor


def test_test_command_is_what_a_fresh_environment_runs():
  # Stealing: each worker has a contiguous half, so that fixtures of modules are made once.
  command, = re.findall(r'^(python3 -m venv .* -m pytest -n 2 --dist worksteal)$', README,
                        re.MULTILINE)
  assert command in (ROOT / '.ci' / 'run').read_text().splitlines()


def test_quick_start_tells_the_default():
  config = default.get_config()
  steps, solver = re.search(r'with (\d+) evaluations each \(.*`(\w+)`\)', README).groups()
  sigmas = samplers.schedule(config.schedule.name, config.schedule.num_steps, 0.002, 80.0)
  assert samplers.make(config.solver.name, sigmas).nfe == int(steps)
  assert (config.solver.name, config.model.name) == (solver, 'digits')


def test_a_function_of_the_user_is_sampled_in_ten_lines():
  code = example('import jax, models, samplers\n')
  assert len([line for line in code.splitlines() if line]) <= 10
  names = {}
  exec(code, names)
  # Of data N(0.3, 0.2^2) the ODE is solved exactly.
  ratio = np.sqrt((0.2**2 + 0.002**2) / (0.2**2 + 80.0**2))
  exact = 0.3 + ratio * (np.asarray(names['x']) - 0.3)
  assert names['images'].shape == (16, 32, 32, 3) and names['table'].nfe == 20
  np.testing.assert_allclose(names['images'], exact, atol=0.002)


def test_example_of_a_bundled_model_samples_the_classes_asked_for():
  names = {}
  exec(example('import jax\nimport models'), names)
  assert names['images'].shape == (10, 8, 8, 3) and abs(names['images']).max() < 1.3
  assert (jnp.argmax(names['log_p'], axis=1) == names['labels']).all()


def test_distances_are_those_of_the_benchmark():
  report = (ROOT / 'benchmarks' / 'README.md').read_text()
  measured = [re.search(rf'^\| {row} \| polynomial \| {nfe} \| (.*?) \|', report, re.MULTILINE)[1]
              for row, nfe in (('dpmpp', 8), ('heun', 36), ('exact denoiser, heun', 36))]
  told = re.search(r'distance of ([\d.]+) to .*?36 has ([\d.]+); .* leaves ([\d.]+)\.\n', README,
                   re.DOTALL).groups()
  assert list(told) == measured


def test_table_of_bundled_models_is_complete():
  listed = dict(re.findall(r'^\| `(\w+)` \| .* \| ([\d,]+|none) \|$', README, re.MULTILINE))
  assert set(listed) == {*models.BUNDLED, *models.BUNDLED_CLASSIFIERS}
  for name, count in listed.items():
    if count != 'none':
      load = models.load if name in models.BUNDLED else models.load_classifier
      params = jax.tree.leaves(load(name).params)
      assert sum(array.size for array in params) == int(count.replace(',', '')), name


def test_example_of_a_solver_is_a_solver():
  names = {'np': samplers.registry.np, 'Row': samplers.table.Row,
           'assemble': samplers.table.assemble}
  exec(example('@registry.register').replace('@registry.register\n', ''), names)
  ours, theirs = names['euler']([3.0, 1.0, 0.0]), samplers.make('euler', [3.0, 1.0, 0.0])
  assert (ours.mix == theirs.mix).all()


def test_solver_table_names_every_solver_option_and_default():
  rows = re.findall(r'^\| (`.*?`) \|(.*?)\| .*? \| .*\|$', README, re.MULTILINE)
  listed = {name: options for names, options in rows for name in re.findall(r'`(\w+)`', names)}
  assert set(listed) == set(samplers.SOLVERS)
  churn = re.search(r'Churn: (.*?)\. ', README, re.DOTALL)[1]
  for name, text in listed.items():
    text = f'{text}, {churn}' if 'churn' in text else text
    own = set(samplers.options(name)) - {'afs', 'denoise_to_zero'}
    for option, default_value in re.findall(r'`(\w+)=([\w.:]+)', text):
      if option in own:
        assert str(samplers.options(name)[option]) in (default_value, f'{default_value}.0'), name
    # Left out: the constants of rk's vp schedule and of deis, which few runs change.
    assert own - set(re.findall(r'`(\w+)=', text)) <= {'sigma_min', 'sigma_max', 'epsilon_s'}, name


def test_command_lines_do_not_meet_in_one_workdir():
  workdirs = re.findall(r'--workdir=(\S+)', '\n'.join(COMMANDS))
  assert len(set(workdirs)) == len(COMMANDS) > 5 and 'out' not in workdirs


@pytest.mark.filterwarnings('ignore:the load_module')  # How ml_collections reads a config.
@pytest.mark.parametrize('line', COMMANDS)
def test_command_lines_make_a_plan(line, tmp_path, monkeypatch):
  # The files that the lines speak of.
  np.savez(tmp_path / 'images.npz', np.zeros((16, 8, 8, 3), np.uint8), np.arange(16) % 4)
  shutil.copytree(ROOT / 'configs', tmp_path / 'configs')
  shutil.copytree(models.model.ASSETS / 'examples', tmp_path / 'models' / 'assets' / 'examples')
  if '--workdir=mine' not in line:
    shutil.copytree(models.model.ASSETS / 'digits', tmp_path / 'mine' / 'model')
  if '--mode=convert' in line:  # A small one in place of the published file.
    shutil.copy(ROOT / 'tests' / 'golden' / 'edm_pickles' / 'edm_song_cond.pkl',
                tmp_path / 'edm-cifar10-32x32-uncond-vp.pkl')
  else:
    shutil.copytree(models.model.ASSETS / 'digits',
                    tmp_path / 'checkpoints' / 'edm-cifar10-32x32-uncond-vp')
  if 'sd_v1' in line:
    with tarfile.open(ROOT / 'tests/golden/ldm/sd_diffusers.tar.xz') as tar:
      tar.extractall(tmp_path, filter='data')
    source = next(path.parent for path in tmp_path.rglob('model_index.json'))
    convert(source, tmp_path / 'checkpoints' / 'sd-v1-4', self_check=False)
  if 'solver.statistics=' in line:
    levels, ones = np.geomspace(80, 0.002, 5), np.ones((5, 1, 1, 1))
    (tmp_path / 'statistics').mkdir()
    statistics_files.write(tmp_path / 'statistics' / 'statistics.npz', dpm_v3.Statistics(
        levels, ones, 0 * ones, 0 * ones), models.load('digits'), {})
  if '--mode=evaluate' in line:
    config = default.get_config()
    config.model.name, config.solver.name, config.seeds = 'digits_exact', 'euler', '0-3'
    generate.run(generate.plan(config, str(tmp_path / 'out')))
  monkeypatch.chdir(tmp_path)
  values = parsed(line, monkeypatch)
  if values.mode == 'convert':
    assert values.config.convert.resolution == 32
    values.config.convert.resolution = 8  # Of the small one.
  workdir = commandline.workdir(values.mode, main.MODES, values.workdir)
  plan = importlib.import_module(f'engine.{values.mode}').plan(values.config, workdir)
  if values.mode in ('invert', 'likelihood'):
    assert plan.sigmas[0] == 80
  elif values.mode == 'evaluate':
    assert plan.metrics == ('fid', 'kid')
  elif values.mode == 'compare':
    assert len(plan.asked.cells) > 10 and not plan.asked.refused
  elif values.mode in ('analyze', 'distill', 'search'):
    assert plan.folder.name == values.workdir
  elif values.mode == 'train_amed':
    assert plan.design.nfe in (3, 5)
  elif values.mode == 'generate':
    assert plan.solver.nfe or plan.solver.identity['name'] in samplers.LOOPS
  elif values.mode == 'convert':
    assert plan.converted.config['network']['name'] == 'song_unet'
  elif '--config=' in line:  # What it would make is what comes with the project.
    stored = json.loads((models.model.ASSETS / values.workdir / 'config.json').read_text())
    assert stored['source'] == json.loads(json.dumps({'trained': plan.identity}))
    assert {field: stored[field] for field in plan.model} == plan.model
  else:
    assert plan.model['num_classes'] == 4


def parsed(line, monkeypatch):
  """The flags as main.py gets them."""
  argv = ['main.py', *shlex.split(line)]
  monkeypatch.setattr(sys, 'argv', argv)  # Overrides of a config are read from there.
  values = flags.FlagValues()
  for flag in flags.FLAGS.get_flags_for_module(main):
    if flag.name != 'config':
      values[flag.name] = copy.deepcopy(flag)
  config_flags.DEFINE_config_file('config', str(ROOT / 'configs' / 'default.py'),
                                  flag_values=values)
  assert values(argv) == ['main.py']
  return values
