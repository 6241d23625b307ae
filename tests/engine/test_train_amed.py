"""Learned solvers: training, predictors, and sampling with nothing else given."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import models
from configs import default
from engine import generate, images, predictors, train_amed
from tests.engine import learning, sampling

MAIN = pathlib.Path(__file__).parents[2] / 'main.py'


@pytest.fixture(scope='module', autouse=True)
def layer():
  with pytest.MonkeyPatch.context() as patch:
    learning.stand_in(patch)
    yield


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return learning.save_model(tmp_path_factory.mktemp('model') / 'tiny')


@pytest.fixture(scope='module')
def amed(tmp_path_factory, model):
  """A trained predictor's folder."""
  folder = tmp_path_factory.mktemp('amed') / 'run'
  learning.trained(folder, model, learn__student='ipndm', learn__afs=True)
  return folder


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  """An empty current folder, with no experiments."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def sampled(folder, **fields):
  return generate.plan(sampling.get_config(seeds='0-4', batch_size=4, **fields), str(folder))


DESIGNS = {
    'amed': {'learn__student': 'dpmpp', 'learn__max_order': 2, 'learn__predict_x0': False},
    'epd': {'learn__num_points': 2, 'learn__loss': 'end'},
    'grid': {'learn__solver': 'ipndm', 'learn__max_order': 2, 'learn__loss': None},
    'coefficients': {'learn__solver': 'ipndm', 'learn__max_order': 2, 'learn__loss': None},
    'adasde': {'learn__loss': None},
}


def test_every_design_is_trained_here():
  from samplers import learned
  assert DESIGNS.keys() == learned.DESIGNS.keys()


def test_on_the_end_of_a_run_metrics_tell_every_interval_too(model, tmp_path):
  learning.trained(tmp_path / 'run', model, learn__student='ipndm', learn__loss='end')
  line = json.loads((tmp_path / 'run/metrics.jsonl').read_text().splitlines()[-1])
  assert {name: len(line[name]) for name in ('loss', 'r', 'scale_dir', 'scale_time')} == {
      'loss': 1, 'r': 2, 'scale_dir': 2, 'scale_time': 2}


@pytest.mark.parametrize('design', DESIGNS)
def test_a_design_is_trained_and_samples_with_its_predictor_alone(design, model, tmp_path):
  text = learning.trained(tmp_path / 'run', model, learn__design=design, **DESIGNS[design])
  assert text.startswith(f'predictor in {tmp_path}/run/predictor: {design}')
  assert text.endswith(f'python main.py --config.predictor.path={tmp_path}/run')
  lines = [json.loads(line) for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()]
  assert [line['trajectories'] for line in lines] == [4, 8, 12, 16]
  assert np.isfinite([line['loss'] for line in lines]).all()
  assert (tmp_path / 'run/metrics.png').stat().st_size > 10_000
  predictor = predictors.load(tmp_path / 'run')
  start = predictor.design.initial(jax.random.key(0))
  assert any(np.abs(predictor.learned[name] - value).max() > 1e-4 for name, value in start.items()
             if isinstance(value, jax.Array)) or design == 'amed'
  plan = sampled(tmp_path / 'out', predictor__path=str(tmp_path / 'run'))
  assert plan.model.sha256 == models.load(model).sha256  # The predictor knows its model.
  assert plan.solver.nfe == predictor.design.nfe
  generate.run(plan)
  manifest = json.loads((tmp_path / 'out/manifest.json').read_text())
  assert manifest['solver']['name'] == design and manifest['nfe'] == plan.solver.nfe
  assert manifest['solver']['predictor'] == predictor.config['sha256']
  assert manifest['schedule']['num_steps'] == 2
  assert start.keys() == predictor.learned.keys()
  assert len(list((tmp_path / 'out').glob('0*.png'))) == 5


def test_amed_metrics_tell_what_is_predicted_for_each_interval(amed):
  line = json.loads((amed / 'metrics.jsonl').read_text().splitlines()[-1])
  for name in ('loss', 'r', 'scale_dir', 'scale_time'):
    assert len(line[name]) == 2
  assert all(0 < r < 1 for r in line['r'])


def test_a_complete_training_is_not_repeated(amed, model):
  text = learning.trained(amed, model, learn__student='ipndm', learn__afs=True)
  assert 'is complete; nothing was left to do' in text and 'config.predictor.path' in text


def test_an_experiment_is_named_by_its_number(elsewhere, model):
  def folder(**fields):
    return train_amed.plan(learning.configured(model, **fields), None).folder
  first = folder(learn__student='ipndm', learn__afs=True)
  assert str(first) == 'exps/00000-tiny-2-3-ipndm-euler-1-poly7-afs'
  train_amed.run(train_amed.plan(learning.configured(
      model, learn__student='ipndm', learn__afs=True), None))
  assert folder(learn__student='ipndm', learn__afs=True) == first  # The same config, its own run.
  assert folder(learn__student='euler').name.startswith('00001-')
  assert predictors.find('0') == predictors.find('00000') == first / 'predictor'
  assert sampled(elsewhere / 'out', predictor__path='0').solver.nfe == 3
  with pytest.raises(ValueError, match=(
      'number of one folder in exps/, got 7, which is that of no folder; there are: 0')):
    predictors.find('7')


BAD = {
    'config.learn.M: must be an integer of 0 or more, got -1': {'learn__M': -1},
    'config.learn.num_steps: must be an integer of 1 or more, got 0': {'learn__num_steps': 0},
    'unknown config.learn.design .amd.; did you mean amed': {'learn__design': 'amd'},
    'unknown student .ipdm.': {'learn__student': 'ipdm'},
    'config.learn: amed: unknown option .num_points.': {'learn__num_points': 2},
    'amed: scale_dir must be .* got 1.5': {'learn__scale_dir': 1.5},
    "config.learn.loss: must be 'end' for grid": {'learn__design': 'grid'},
    'config.learn.teacher: must be one solver, a table, got .dpm_adaptive.': {
        'learn__teacher': 'dpm_adaptive'},
    'config.learn.teacher: must draw no noise .* got ddpm': {'learn__teacher': 'ddpm'},
    'config.learn.teacher: must .* pass all levels of its grid, got dpm_fast': {
        'learn__teacher': 'dpm_fast'},
    "config.learn.moves: must be 0 with config.learn.loss='intervals'": {
        'learn__moves': 2, 'learn__radius': 0.1},
    'config.learn.num_steps: must be 3, as the schedule explicit has it, got 2': {
        'schedule__name': 'explicit', 'schedule__sigmas': '80,5,1,0.01'},
    'config.condition.task: must be left out with --mode=train_amed': {
        'condition__task': 'colorize'},
    'unknown solver .huen.; did you mean heun': {'learn__teacher': 'huen'},
    'config.learn: learning_rate must be a finite number above 0, got -1': {
        'learn__learning_rate': -1.0},
    'config.learn.radius: must be from 0 .* got 0.1 with 0 moves': {'learn__radius': 0.1},
    'amed: sigmas must end above 0': {'learn__schedule': 'karras'},
    'config.model: must be a network, whose bottleneck learned solvers read, got digits_exact': {
        'model__path': None, 'model__name': 'digits_exact'},
    'unknown config.limit': {'limit': 'hard'},
    "labels: classes must be from 0 to 9, got 12": {'labels': '12'},
}


@pytest.mark.parametrize('message', BAD)
def test_bad_input_is_refused_before_any_work(message, model, tmp_path):
  with pytest.raises(ValueError, match=message) as error:
    train_amed.plan(learning.configured(model, **BAD[message]), str(tmp_path / 'run'))
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


def test_a_workdir_of_another_training_is_refused(amed, model):
  with pytest.raises(ValueError, match='workdir: must be empty or hold .*M'):
    train_amed.plan(learning.configured(model, learn__student='ipndm', learn__afs=True,
                                        learn__M=3), str(amed))


def test_a_predictor_decides_schedule_and_solver(amed, tmp_path):
  for field, value in (('schedule__num_steps', 5), ('schedule__rho', 5.0), ('solver__name', 'heun'),
                       ('limit', 'clip'), ('guidance__scale', 2.0), ('noise', 'gaussian')):
    name = field.replace('__', '.')
    with pytest.raises(ValueError, match=rf'^config\.{name}: must be left out with a predictor'):
      sampled(tmp_path / 'out', predictor__path=str(amed), **{field: value})
  same = sampled(tmp_path / 'out', predictor__path=str(amed), schedule__num_steps=2)
  assert same.sigmas.shape == (3,)


def test_a_predictor_for_another_model_is_refused(amed, tmp_path):
  other = learning.save_model(tmp_path / 'other', seed=1)
  with pytest.raises(ValueError, match='must be a predictor for .*other, got .* made for .* with '
                                       'SHA-256 .* train a predictor for this one'):
    sampled(tmp_path / 'out', predictor__path=str(amed), model__path=str(other))


def test_what_is_no_predictor_is_refused(model, amed, tmp_path):
  for path, message in ((tmp_path / 'nothing', 'got nothing at'),
                        (model, 'must be a predictor, got the denoiser'),
                        (tmp_path, 'without config.json')):
    with pytest.raises(ValueError, match=message):
      sampled(tmp_path / 'out', predictor__path=str(path))


def test_imputation_by_replacement_does_not_go_with_a_predictor(amed, tmp_path):
  picture = tmp_path / 'picture.png'
  images.write_png(picture, np.zeros((8, 8, 3), np.uint8))
  with pytest.raises(ValueError, match="config.condition.method: must be 'gradient' with amed"):
    sampled(tmp_path / 'out', predictor__path=str(amed), condition__task='colorize',
            condition__image=str(picture))


def test_the_bundled_predictor_is_what_the_defaults_train(tmp_path):
  plan = sampled(tmp_path / 'out', predictor__path='digits_amed')
  assert plan.model.name == 'digits' and plan.solver.nfe == 5 and plan.solver.asks == 'features'
  trained = predictors.load('digits_amed').config['source']['trained']
  ours = train_amed.plan(default.get_config(), str(tmp_path / 'run')).identity
  assert trained == json.loads(json.dumps(ours))


def main(folder, *flags):
  return subprocess.Popen([sys.executable, MAIN, *flags], cwd=folder, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env={**os.environ})


def test_a_killed_training_goes_on_and_its_predictor_samples_by_number(tmp_path):
  flags = ('--mode=train_amed', '--config.model.name=digits_early', '--config.learn.num_steps=1',
           '--config.learn.trajectories=24', '--config.learn.batch_size=4',
           '--config.learn.teacher=euler', '--config.learn.M=1', '--config.learn.afs=False',
           '--config.learn.checkpoint_every=2')
  killed = main(tmp_path, *flags)
  experiment = tmp_path / 'exps/00000-digits_early-1-2-ipndm-euler-1-uni1'
  deadline = time.monotonic() + 300
  while not (experiment / 'checkpoints/2').exists() and killed.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.02)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert not (experiment / 'predictor').exists()
  process = main(tmp_path, *flags)
  out, error = process.communicate(timeout=300)
  assert process.returncode == 0 and error == '', error
  assert [path.name for path in (tmp_path / 'exps').iterdir()] == [experiment.name]
  assert out.startswith(f'predictor in exps/{experiment.name}/predictor: amed (ipndm), 2 '
                        'evaluations, 24 trajectories ')
  lines = (experiment / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['trajectories'] for line in lines] == [24]  # The last.
  process = main(tmp_path, '--config.predictor.path=0', '--config.seeds=0-7')
  out, error = process.communicate(timeout=300)
  assert process.returncode == 0 and error == '', error
  assert out.startswith('8 images in out: amed on time_uniform, NFE 2, ')
