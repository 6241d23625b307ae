"""A search of grids, end to end: what is found, resumed and refused."""

import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import samplers
from engine import generate, grid_files, search, seeds as seeds_lib
from samplers import gits
from tests.engine import sampling


def get_plan(workdir, **overrides):
  """A small search of the exact model; fields as keywords, '__' for the dots."""
  fields = {'batch_size': 4, 'model__name': 'digits_exact', 'search__warm_up': 6,
            'search__teacher_steps': 9, 'search__num_steps': '5,3', 'search__seed': 40, **overrides}
  return search.plan(sampling.get_config(**fields), str(workdir))


def read(folder):
  return json.loads((folder / 'search.json').read_text())


def costs(folder):
  with np.load(folder / 'costs.npz') as arrays:
    return arrays['cost']


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """The folder of one search, and what it said."""
  folder = tmp_path_factory.mktemp('search') / 'found'
  return folder, search.run(get_plan(folder))


def test_costs_are_those_of_the_seeds(found):
  """Against the same trajectories, one after the other, without devices and batches."""
  model, folder = models.load('digits_exact'), found[0]
  sigmas = samplers.schedule('polynomial', 9, model.sigma_min, model.sigma_max)
  table, seeds = gits.teacher('ipndm', sigmas), np.arange(40, 46, dtype=np.uint32)
  labels = seeds_lib.labels(None, seeds, model.num_classes, model.image_shape, 'jax')

  @jax.jit
  def cost(key, label):
    x = sigmas[0] * jax.random.normal(key, model.image_shape, jnp.float32)[None]
    states, eps = gits.follow(table, lambda x, sigma: model.denoise(x, sigma, label[None]), x)
    return gits.costs(states, eps, sigmas)[0]
  every = [cost(key, label) for key, label in zip(
      seeds_lib.keys(seeds, seeds_lib.LATENT), labels, strict=True)]
  np.testing.assert_allclose(costs(folder), np.mean(every, axis=0), rtol=1e-4, atol=1e-4)


def test_grids_are_the_best_ones_and_any_run_takes_them(found, tmp_path):
  folder, told = found
  manifest = read(folder)
  fine = samplers.schedule('polynomial', 9, 0.002, 80.0)
  np.testing.assert_allclose(manifest['fine_sigmas'], fine)
  assert [grid['num_steps'] for grid in manifest['grids']] == [3, 5] and manifest['nfe'] == 9
  for grid in manifest['grids']:
    steps = grid['num_steps']
    best = gits.search(costs(folder), steps, 1.15)
    assert grid['indices'] == best.tolist() and grid['sigmas'] == fine[best].tolist()
    assert grid['cost'] == gits.objective(costs(folder), best) <= grid['cost_of_even_points']
    assert f'{steps} steps: 80, ' in told
    for name in grid['files']:
      end = grid['sigmas'][-1] if name.endswith('.json') else 0.0
      np.testing.assert_array_equal(grid_files.read(folder / name), [*grid['sigmas'][:-1], end])
  assert (folder / 'costs.png').stat().st_size > 10_000
  assert sorted(path.suffix for path in folder.iterdir()) == sorted(
      ['.json'] * 4 + ['.txt'] * 4 + ['.npz', '.png'])
  sampled = sample_plan(told, tmp_path)
  np.testing.assert_array_equal(sampled.sigmas, grid_files.read(folder / 'grid-5.json'))
  assert sampled.solver.identity['name'] == 'ipndm' and sampled.model.name == 'digits_exact'


def sample_plan(told, folder):
  """Plans the command that a search has printed."""
  program, script, *flags = shlex.split(told.splitlines()[-1])
  assert (program, script) == ('python', 'main.py')
  fields = dict(flag.removeprefix('--config.').split('=', 1) for flag in flags)
  values = {name: {'True': True}.get(value, int(value) if value.isdigit() else value)
            for name, value in fields.items()}
  return generate.plan(sampling.get_config(**values), str(folder / 'sampled'))


def test_a_complete_run_is_not_repeated_and_another_one_refused(found, monkeypatch):
  folder, told = found
  monkeypatch.delattr(search.batches, 'run')
  again = search.run(get_plan(folder))
  assert 'nothing to do' in again and again.splitlines()[:2] == told.splitlines()[:2]
  with pytest.raises(ValueError, match=r'config.search.coeff 1.15 \(now 1.3\)'):
    get_plan(folder, search__coeff=1.3)


def test_a_killed_run_goes_on_to_the_same_grids(found, tmp_path, monkeypatch):
  plan = get_plan(tmp_path, batch_size=2)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(search.batches, 'run', sampling.interrupted(search.batches.run))
    search.run(plan)
  part, = (tmp_path / 'parts').iterdir()
  assert not (tmp_path / 'search.json').exists() and not list(tmp_path.glob('grid-*'))
  search.run(plan)
  # The batch size has no part in it but for rounding.
  np.testing.assert_allclose(costs(tmp_path), costs(found[0]), rtol=1e-4, atol=1e-4)
  assert not (tmp_path / 'parts').exists()
  (tmp_path / 'search.json').unlink()
  (tmp_path / 'parts').mkdir()
  part.write_bytes(b'PK')
  with pytest.raises(OSError, match='must be what a run wrote, .*; delete it and start'):
    search.run(plan)


def test_a_free_first_step_adds_a_level_and_no_evaluation(found, tmp_path):
  told = search.run(get_plan(tmp_path, search__afs=True, search__num_steps='3',
                             search__student='heun'))
  grid, = read(tmp_path)['grids']
  plain = read(found[0])['grids'][0]
  # Heun's first step is free for one of its two calls.
  assert grid['afs'] and len(grid['indices']) == 5 and grid['nfe'] == 2 * 4 - 1
  assert np.delete(grid['indices'], 1).tolist() == plain['indices']
  sampled = sample_plan(told, tmp_path)
  assert sampled.solver.nfe == 7 and len(sampled.sigmas) == 5


def test_without_room_for_a_free_step_there_is_none(tmp_path):
  told = search.run(get_plan(tmp_path, search__afs=True, search__num_steps='9'))
  grid, = read(tmp_path)['grids']
  assert not grid['afs'] and grid['indices'] == list(range(10)) and grid['nfe'] == 9
  assert 'afs' not in told


def test_guidance_and_limit_are_those_of_the_run(found, tmp_path):
  plan = get_plan(tmp_path, guidance__method='classifier_free', guidance__scale=3.0, limit='clip',
                  search__num_steps='3')
  assert plan.table.nfe == 2 * 9  # Slopes are those of what is said before the limit.
  told = search.run(plan)
  assert np.abs(costs(tmp_path) - costs(found[0])).max() > 0.1
  sampled = sample_plan(told.replace('scale=3.0', 'scale=3').replace('scale=3 ', ''), tmp_path)
  assert sampled.limit == 'clip' and sampled.guide.method.name == 'classifier_free'
  assert '--config.guidance.scale=3.0' in told


@pytest.mark.parametrize('fields, message', [
    ({'method': 'grid'}, "config.search: unknown method 'grid'.* known: dpm_v3, gits"),
    ({'metric': 'l3'}, "config.search: unknown metric 'l3'.* known: dev, l1, l2"),
    ({'coeff': 0.0}, 'config.search: coeff must be a finite number above 0, got 0.0'),
    ({'coeff': float('nan')}, 'coeff must be a finite number above 0, got nan'),
    ({'teacher_steps': 0}, 'config.search.teacher_steps: must be an integer from 1 to 1000, got 0'),
    ({'warm_up': 3}, 'config.search.warm_up: must be an integer from 4 .* got 3; it must fill a'),
    ({'seed': -1}, 'config.search.seed: must be an integer from 0 to .* got -1'),
    ({'seed': 2**32 - 1}, 'config.search.seed: must be an integer from 0 to 4294967290, got'),
    ({'num_steps': '4,10'}, 'config.search.num_steps: must be from 1 to 9, .* got 10; raise'),
    ({'num_steps': '0'}, 'config.search.num_steps: must be from 1 to 9, .* got 0; '),
    ({'num_steps': 'few'}, "config.search.num_steps: must be numbers of intervals .* got 'few'"),
    ({'teacher': 'ipmdn'}, "unknown solver 'ipmdn'; did you mean ipndm"),
    ({'teacher': 'dpm_adaptive'}, 'config.search.teacher: must be a table, .* got dpm_adaptive'),
    ({'teacher': 'ipndm(max_order=2|3)'}, 'config.search.teacher: must be one solver, got 2 in'),
    ({'teacher': 'ipndm(max_order=9)'}, 'ipndm: max_order must be an integer from 1 to 4, got 9'),
    ({'teacher': 'ddim(eta=1.0)'}, 'teacher: must follow the ODE, got ddim, which draws noise'),
    ({'teacher': 'dpm_fast'}, 'teacher: must step from each level to the next, got dpm_fast'),
    ({'student': 'nobody'}, "unknown solver 'nobody'"),
    ({'student': 'heun(afs=True)'}, 'student: must leave afs to config.search.afs, got heun'),
    ({'student': 'ddpm', 'afs': True}, 'student: must draw no noise where samples tell'),
])
def test_bad_fields(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    get_plan(tmp_path / 'out', **{f'search__{name}': value for name, value in fields.items()})
  assert '\n' not in str(error.value) and not (tmp_path / 'out').exists()


@pytest.mark.parametrize('fields, message', [
    ({'share': '0/2'}, 'config.share: must be 0/1 with --mode=search, got 0/2; all trajectories'),
    ({'input__images': 'gaussian_digits'}, 'config.input.images: must be None with --mode=search'),
    ({'condition__task': 'inpaint'}, 'config.condition.task: must be None with --mode=search'),
    ({'guidance__method': 'cfg_plus_plus'}, "must not be 'cfg_plus_plus' with --mode=search"),
    ({'model__path': 'nowhere'}, 'nowhere'),
    ({'schedule__name': 'edm', 'search__teacher': 'deis'}, 'deis: sigmas must end above 0'),
])
def test_what_a_search_has_no_use_for_is_refused(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **fields)
  assert not (tmp_path / 'out').exists()
