"""Statistics of a model for DPM-Solver-v3: what is measured, written, resumed, read and refused."""

import dataclasses
import itertools
import json
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from engine import (
  generate,
  inputs,
  model_statistics,
  search,
  search_statistics,
  seeds as seeds_lib,
  solvers,
  statistics_files,
)
from tests.engine import sampling


def get_plan(workdir, **overrides):
  """A small measurement of the exact model; fields as keywords, '__' for the dots."""
  fields = {'batch_size': 4, 'model__name': 'digits_exact', 'input__images': 'gaussian_digits',
            'search__method': 'dpm_v3', 'search__warm_up': 5, 'search__levels': 4,
            'search__teacher_steps': 3, **overrides}
  return search.plan(sampling.get_config(**fields), str(workdir))


@pytest.fixture(scope='module')
def found(tmp_path_factory):
  """The folder of one measurement, and what it said."""
  folder = tmp_path_factory.mktemp('search') / 'found'
  return folder, search.run(get_plan(folder))


def read(folder):
  """The statistics in a folder, of no matter which model."""
  return statistics_files.read(folder / 'statistics.npz', None)


def test_statistics_of_gaussian_data_are_the_exact_ones(x64):
  """All probes of random signs, and points with the mean and covariance of the noisy data."""
  rng = np.random.default_rng(0)
  mean, root = rng.normal(size=4), rng.normal(size=(4, 4))
  data = root @ root.T / 4
  probes = np.array(list(itertools.product((-1.0, 1.0), repeat=4))).reshape(-1, 2, 2, 1)

  spread, axes = np.linalg.eigh(data)

  def denoise(x, level):
    away = (x.reshape(-1, 4) - jnp.asarray(mean)[None]) @ axes
    kept = away * (spread[None] / (spread[None] + level[:, None]**2))
    return (jnp.asarray(mean)[None] + kept @ axes.T).reshape(x.shape)

  for sigma in (5.0, 0.2):
    total = data + sigma**2 * np.eye(4)
    P = sigma**2 * np.linalg.inv(total)  # x - D = P (x - mean).
    change = 2 * (P @ P - P)  # dP / dlam.
    l, slope = np.diag(P), np.diag(change)  # noqa: E741
    linear = 1 - model_statistics.slopes(denoise, jnp.ones_like(probes), jnp.full(16, sigma),
                                         jnp.asarray(probes)).mean(0)
    np.testing.assert_allclose(linear.ravel(), l, rtol=1e-9)
    steps = 2 * np.linalg.cholesky(total).T
    x = (mean + np.concatenate([steps, -steps])).reshape(-1, 2, 2, 1)
    f, derivative = model_statistics.values(
        denoise, jnp.asarray(x), jnp.full(8, sigma), linear[None],
        jnp.asarray(slope).reshape(1, 2, 2, 1))
    s, b = model_statistics.fit(*(np.mean(values, axis=0).ravel() for values in (
        f, derivative, f**2, f * derivative)))
    F, A = P - np.diag(l), change - P @ P - np.diag(slope) + np.diag(l) @ P
    exact = np.diag(F @ total @ A.T) / np.diag(F @ total @ F.T)
    np.testing.assert_allclose(s, exact, rtol=1e-6)
    assert exact.min() >= -2 and exact.max() <= 1
    np.testing.assert_allclose(b, (exact * l - slope) * mean, rtol=1e-6)


def test_slope_is_exact_for_a_gaussian_and_takes_values_outside():
  sigmas = np.geomspace(80, 0.002, 6)
  linear = sigmas**2 / (0.25 + sigmas**2)
  np.testing.assert_allclose(model_statistics.slope(linear, -np.log(sigmas)),
                             -2 * linear * (1 - linear), rtol=1e-9)
  linear[2] = 1.01
  rough = np.gradient(linear, -np.log(sigmas), edge_order=2)
  mixed = model_statistics.slope(linear, -np.log(sigmas))
  np.testing.assert_allclose(mixed[:4], rough[:4])
  np.testing.assert_allclose(mixed[4:], (-2 * linear * (1 - linear))[4:], rtol=1e-9)


def test_what_does_not_vary_has_no_slope_along_itself():
  """A pixel that is black in all images; and a slope that only few samples can have."""
  s, b = model_statistics.fit(np.array([0.5, 0.0]), np.array([-0.1, 0.0]),
                              np.array([0.25 + 1e-14, 1e-6]), np.array([-0.05, 1e-4]))
  assert s.tolist() == [0, 2] and b.tolist() == [-0.1, 0]


def test_measured_is_what_the_seeds_say(found):
  """The linear part against the same images, level by level, without devices and batches."""
  folder, told = found
  model = models.load('digits_exact')
  statistics, sha256 = read(folder)
  seeds = np.arange(5, dtype=np.uint32)
  labels = seeds_lib.labels(None, seeds, 10, model.image_shape, 'jax')
  images = inputs.to_model(inputs.GENERATORS['gaussian_digits']().take(seeds))

  @jax.jit
  def diagonal(params, sigma):
    def draw(key):
      noise, signs = jax.random.split(key)
      return (jax.random.normal(noise, model.image_shape),
              jax.random.rademacher(signs, model.image_shape, jnp.float32))
    z, probe = jax.vmap(draw)(seeds_lib.keys(seeds, 3))
    return model_statistics.slopes(lambda x, sigma: model.apply(params, x, sigma, labels),
                                   images + sigma * z, jnp.full(5, sigma), probe).mean(0)
  np.testing.assert_allclose(statistics.sigmas, np.geomspace(80, 0.002, 5))
  for sigma, linear in zip(statistics.sigmas, statistics.l, strict=True):
    np.testing.assert_allclose(linear, 1 - diagonal(model.params, np.float32(sigma)),
                               rtol=1e-4, atol=1e-5)
  manifest = json.loads((folder / 'search.json').read_text())
  assert manifest['statistics'] == sha256 and manifest['model']['sha256'] == model.sha256
  assert (manifest['levels'], manifest['samples']) == (4, 5) and manifest['seconds'] > 0
  assert (folder / 'statistics.png').stat().st_size > 10_000
  assert {path.name for path in folder.iterdir()} == {
      'run.json', 'search.json', 'statistics.npz', 'statistics.png'}
  assert 'digits_exact at 5 levels, 80 to 0.002, on 5 images gaussian_digits' in told


def test_a_run_takes_them(found, tmp_path):
  """The command that is printed, on a grid whose levels are not those of the statistics."""
  folder, told = found
  flags = shlex.split(told.splitlines()[-1].removeprefix('sample with them: python main.py '))
  fields = dict(flag.removeprefix('--config.').split('=', 1) for flag in flags)
  assert fields.pop('schedule.name') == 'polynomial'
  plan = sampling.get_plan(tmp_path, **{
      name.replace('.', '__'): value for name, value in fields.items()}, seeds='0-2',
                           schedule__name='polynomial', schedule__num_steps=4)
  assert plan.solver.nfe == 4 and plan.solver.identity['statistics'] == read(folder)[1]
  assert not plan.solver.projects
  assert 'dpm_solver_v3 on polynomial, NFE 4' in generate.run(plan)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['nfe'] == 4 and manifest['solver']['order'] == 3


def test_a_killed_measurement_goes_on(found, tmp_path, monkeypatch):
  plan = get_plan(tmp_path)
  # In the second level, after the first was written.
  stopped = sampling.interrupted(search_statistics.batches.run, after=7)
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(search_statistics.batches, 'run', stopped)
    search.run(plan)
  part, = (tmp_path / 'parts').iterdir()
  assert part.name == 'slopes-00000.npz' and not (tmp_path / 'statistics.npz').exists()
  search.run(plan)
  for mine, other in zip(read(tmp_path)[0], read(found[0])[0], strict=True):
    # What goes on is batched otherwise: float64 sums in another order, kept as float32.
    np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-9)
  assert not (tmp_path / 'parts').exists()
  (tmp_path / 'search.json').unlink()
  (tmp_path / 'parts').mkdir()
  part.write_bytes(b'PK')
  with pytest.raises(OSError, match='must be what a run wrote, .*; delete it and start'):
    search.run(plan)


def test_a_complete_one_is_not_repeated_and_another_refused(found, monkeypatch):
  folder, _ = found
  monkeypatch.delattr(search_statistics.batches, 'run')
  assert 'nothing to do' in search.run(get_plan(folder))
  with pytest.raises(ValueError, match=r'config.search.levels 4 \(now 5\)'):
    get_plan(folder, search__levels=5)


def test_scalars_of_samples_of_the_model(tmp_path):
  told = search.run(get_plan(tmp_path, input__images=None, search__statistics='scalar',
                             search__warm_up=4))
  statistics, _ = read(tmp_path)
  assert statistics.l.shape == (5, 1, 1, 1) and 'on 4 images of its own' in told
  assert 0.99 < statistics.l[0] < 1 and 0 < statistics.l[-1] < 0.01


@pytest.mark.parametrize('fields, message', [
    ({'search__levels': 1}, 'config.search.levels: must be an integer from 2 to 10000, got 1; 120'),
    ({'search__warm_up': 1}, 'config.search.warm_up: must be an integer from 2 to .* got 1; 256'),
    ({'search__seed': -1}, 'config.search.seed: must be an integer from 0 to .* got -1'),
    ({'search__statistics': 'pixel'}, "unknown statistics 'pixel'; known: element, scalar"),
    ({'search__method': 'dpm_v4'}, "unknown method 'dpm_v4'; did you mean dpm_v3"),
    ({'search__teacher': 'ddim(eta=1.0)'}, 'config.search.teacher: must draw no noise'),
    ({'share': '0/2'}, 'config.share: must be 0/1 with --mode=search'),
    ({'condition__task': 'inpaint'}, 'config.condition.task: must be left out with --mode=search'),
    ({'guidance__method': 'cfg_plus_plus'}, "must not be 'cfg_plus_plus' with --mode=search"),
    ({'input__images': 'nowhere'}, "config.input.images: must be .* got 'nowhere'"),
])
def test_bad_fields(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    get_plan(tmp_path / 'out', **fields)
  assert '\n' not in str(error.value) and not (tmp_path / 'out').exists()


def test_too_few_images(tmp_path):
  np.savez(tmp_path / 'few.npz', arr_0=np.zeros((3, 8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match='warm_up: must be at most the number of images, 3 in'):
    get_plan(tmp_path / 'out', input__images=str(tmp_path / 'few.npz'))


def test_statistics_of_something_else_are_refused(found, tmp_path):
  """Before any work: another model, resolution or range, and what is no such file."""
  path, model = str(found[0] / 'statistics.npz'), models.load('digits_exact')

  def plan(path=path, model=model, sigma=80.0):
    return solvers.plan('dpm_solver_v3', {} if path is None else {'statistics': path},
                        np.array([sigma, 1.0, 0.002]), 'brownian', model)
  assert plan().nfe == 2
  other = dataclasses.replace(model, name='other', sha256='0')
  larger = dataclasses.replace(model, image_shape=(16, 16, 3))
  with np.load(path) as arrays:
    contents = dict(arrays)
  for name, fields in (('nan', {'l': contents['l'] * np.nan}), ('whole', {'s': np.ones(5, int)}),
                       ('crop', {k: contents[k][:, :4] for k in 'lsb'}),
                       ('other', {'about': np.array('{}')})):
    np.savez(tmp_path / f'{name}.npz', **{**contents, **fields})
  (tmp_path / 'text.npz').write_text('no zip')
  for arguments, message in (
      ({'model': other}, 'must be of the model, other, got those of digits_exact in .*; --mode='),
      ({'model': larger}, r'of the shape of the model, \(16, 16, 3\), got \(8, 8, 3\) in'),
      ({'sigma': 81.0}, 'sigmas must lie within those of the statistics, 0.002 to 80, got 81'),
      ({'path': None}, 'config.solver.statistics: must name the statistics of the model'),
      ({'path': str(tmp_path / 'none.npz')}, 'statistics: must be a file that is there, got'),
      ({'path': str(tmp_path)}, 'statistics: must be a file of statistics, got .* directory'),
      ({'path': str(tmp_path / 'text.npz')}, 'must be a file of statistics, got .*text.npz'),
      ({'path': str(tmp_path / 'nan.npz')}, r'got .*nan.npz \(l of the statistics must be finite'),
      ({'path': str(tmp_path / 'whole.npz')}, r'got .*whole.npz \(arrays that are no floats\)'),
      ({'path': str(tmp_path / 'crop.npz')}, r'crop.npz \(shape \(4, 8, 3\) for images of \(8, 8'),
      ({'path': str(tmp_path / 'other.npz')}, r'other.npz \(another format\)')):
    with pytest.raises(ValueError, match=message) as error:
      plan(**arguments)
    assert '\n' not in str(error.value)
