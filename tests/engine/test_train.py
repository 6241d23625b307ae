"""Training: what a step does, resuming to the same parameters, bad input, and from main.py on."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import models
from configs import default, digits_classifier, digits_early
from engine import identity, losses, train
from models import networks

MAIN = pathlib.Path(__file__).parents[2] / 'main.py'
TINY = {'network.model_channels': 4, 'network.channel_mult': (1,), 'network.num_blocks': 1,
        'batch_size': 8, 'steps': 12, 'warmup': 2, 'log_every': 4, 'checkpoint_every': 5}


def configured(fields, config=None):
  config = config or default.get_config()
  with config.unlocked():
    config.update_from_flattened_dict({f'train.{name}': value for name, value in fields.items()})
  return config


def tiny(folder, config=None, **fields):
  return train.plan(configured(TINY | fields, config), str(folder))


class Layer(nn.Module):
  """Stands for a network where it does not matter which one: it compiles in a moment."""

  label_dim = 0

  @nn.compact
  def __call__(self, x, noise, train=False):
    x = nn.Dense(x.shape[-1])(x) * jnp.cos(noise)[:, None, None, None]
    return nn.Dropout(0.1, deterministic=not train)(x), None


def one_layer(folder, config=None, **fields):
  """A plan as `tiny` that trains one layer."""
  plan = tiny(folder, config, **fields)
  evaluate = networks.denoiser(Layer(), networks.preconditioning('edm', {'sigma_data': 0.5}))
  return dataclasses.replace(plan, network=Layer(), loss=losses.denoising(evaluate, 0.5))


def result(folder):
  return json.loads((folder / 'model' / 'config.json').read_text())


class Interrupt(Exception):
  """Stands for a kill at a chosen step."""


def interrupted_at(step):
  """A progress that ends the run at its n-th step."""
  @contextlib.contextmanager
  def progress(description, total, unit, done=0):
    seen = [done]
    def advance(count=1, **shown):
      seen[0] += count
      if seen[0] == step:
        raise Interrupt
    yield advance
  return progress


def step_inputs(**fields):
  """Arguments of `update` for a network that is one number, and what its loss was given."""
  settings = configured(TINY | fields).train
  seen = {}
  def loss(params, x0, labels, sigma, z, train, rngs):
    assert train and 'dropout' in rngs
    seen.update(x0=x0, labels=labels, sigma=sigma, z=z)
    return (params - x0.mean((1, 2, 3)) - sigma)**2
  optimizer = optax.sgd(0.1)
  params = jnp.zeros(())
  state = train.State(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))
  images = jnp.arange(40.0).reshape(40, 1, 1, 1) * jnp.ones((1, 2, 2, 1))
  return (loss, optimizer, settings, state, jax.random.key(0), images, jnp.arange(40)), seen


def test_step_draws_from_seed_and_step_alone():
  inputs, seen = step_inputs()
  train.update(*inputs)
  first = dict(seen)
  train.update(*inputs)
  for name, value in first.items():
    np.testing.assert_array_equal(value, seen[name])
  later = inputs[3]._replace(step=jnp.ones((), jnp.int32))
  train.update(*inputs[:3], later, *inputs[4:])
  assert all((value != seen[name]).any() for name, value in first.items())
  train.update(*inputs[:4], jax.random.key(1), *inputs[5:])
  assert all((value != seen[name]).any() for name, value in first.items())


def test_step_descends_and_averages():
  inputs, seen = step_inputs()
  state, value = train.update(*inputs)
  target = seen['x0'].mean((1, 2, 3)) + seen['sigma']
  np.testing.assert_allclose(value, jnp.mean(target**2), rtol=1e-6)
  np.testing.assert_allclose(state.params, 0.1 * 2 * target.mean(), rtol=1e-6)
  decay = train.losses.ema_decay(0, 8, 30_000)
  np.testing.assert_allclose(state.ema, (1 - decay) * state.params, rtol=1e-6)
  assert int(state.step) == 1


def test_labels_go_with_their_images_and_some_are_left_out():
  inputs, seen = step_inputs(batch_size=2000, label_dropout=0.25)
  train.update(*inputs)
  own = seen['x0'][:, 0, 0, 0].astype(int)
  kept = seen['labels'] >= 0
  np.testing.assert_array_equal(seen['labels'][kept], own[kept])
  # Four standard errors: 4 sqrt(0.25 * 0.75 / 2000) = 0.039.
  assert abs(float(kept.mean()) - 0.75) < 0.039
  assert len(np.unique(own)) == 40


def test_levels_of_early_stopped_training_stay_below_the_inner_one():
  inputs, seen = step_inputs(batch_size=500, sigma_max=0.2)
  train.update(*inputs)
  assert 0.15 < seen['sigma'].max() <= 0.2


def test_learning_rate_warms_up_and_falls():
  settings = configured(TINY | {'learning_rate': 0.1, 'warmup': 4, 'steps': 20}).train
  optimizer = train.make_optimizer(settings)
  state, rates = optimizer.init(jnp.zeros(())), []
  for _ in range(20):  # Adam's steps have the size of the rate while the gradient is constant.
    update, state = optimizer.update(jnp.ones(()), state)
    rates.append(-float(update))
  np.testing.assert_allclose(rates[:5], [0, 0.025, 0.05, 0.075, 0.1], atol=1e-6)
  assert np.all(np.diff(rates[5:]) < 0) and rates[-1] < 0.002


def test_interrupted_runs_end_with_the_same_parameters(tmp_path):
  whole = one_layer(tmp_path / 'whole')
  assert '12 steps' in train.run(whole)
  lines = (tmp_path / 'whole' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines] == [4, 8, 12]
  parts = tmp_path / 'parts'
  for step in (3, 9):  # Before the first checkpoint; after one, and after a line of metrics.
    with pytest.raises(Interrupt):
      train.run(one_layer(parts), interrupted_at(step))
    assert not (parts / 'model').exists()
  with open(parts / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 1')  # A line that was cut.
  train.run(one_layer(parts))
  assert result(parts) == result(tmp_path / 'whole')
  steps = [json.loads(line)['step'] for line in (parts / 'metrics.jsonl').read_text().splitlines()]
  assert steps == [4, 8, 12]
  assert sorted(path.name for path in parts.iterdir()) == [
      'checkpoints', 'metrics.jsonl', 'metrics.png', 'model', 'run.json']
  assert not list(parts.rglob('*tmp*'))
  before = (parts / 'model' / 'config.json').stat().st_mtime_ns
  assert 'complete' in train.run(one_layer(parts))
  assert (parts / 'model' / 'config.json').stat().st_mtime_ns == before


def test_model_of_an_inner_range_and_classifier_are_what_they_say(tmp_path):
  train.run(one_layer(tmp_path / 'early', digits_early.get_config(), steps=3, held_out=0))
  early = result(tmp_path / 'early')
  assert (early['sigma_min'], early['sigma_max'], early['num_classes']) == (0.002, 1.0, 10)
  line = json.loads((tmp_path / 'early' / 'metrics.jsonl').read_text())
  assert 'held_out_loss' not in line
  fields = TINY | {'steps': 3}
  config = configured(fields, digits_classifier.get_config())
  train.run(train.plan(config, str(tmp_path / 'classifier')))
  classifier = models.load_classifier(tmp_path / 'classifier' / 'model')
  log_prob = classifier.log_prob(jnp.zeros((2, 8, 8, 3)), 1.0)
  np.testing.assert_allclose(jnp.exp(log_prob).sum(1), 1, rtol=1e-5)
  with pytest.raises(ValueError, match='must be a denoiser, got the classifier'):
    models.load(tmp_path / 'classifier' / 'model')


def test_own_data_without_classes(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 1), np.uint8)
  np.savez(tmp_path / 'mine.npz', arr_0=images)
  train.run(one_layer(tmp_path / 'out', data=str(tmp_path / 'mine.npz'), held_out=5, steps=3))
  model = result(tmp_path / 'out')
  assert model['image_shape'] == [4, 4, 1] and model['num_classes'] == 0
  np.savez(tmp_path / 'mine.npz', arr_0=images[:9])
  with pytest.raises(ValueError, match='workdir: must be empty .* with data_sha256'):
    tiny(tmp_path / 'out', data=str(tmp_path / 'mine.npz'), held_out=5, steps=3)


def test_diverging_run_stops_with_the_remedy(tmp_path):
  with pytest.raises(FloatingPointError, match='lower config.train.learning_rate'):
    train.run(one_layer(tmp_path, learning_rate=1e30, warmup=0))
  assert not (tmp_path / 'model').exists()


@pytest.mark.parametrize('fields, match', [
    ({'kind': 'gan'}, "unknown kind 'gan'"),
    ({'decay': 'cosin'}, "unknown decay 'cosin'; did you mean cosine"),
    ({'dtype': 'float8'}, "unknown dtype 'float8'"),
    ({'network.name': 'unet'}, "unknown network 'unet'"),
    ({'network.name': 'noise_classifier'}, 'must be song_unet for a denoiser'),
    ({'kind': 'classifier', 'network.name': 'noise_classifier', 'network.encoder_type': 'skip'},
     "noise_classifier: unknown setting 'encoder_type'"),
    ({'network.model_channels': 6}, 'channels of a level must be a multiple of 4'),
    ({'steps': 0}, 'config.train.steps: must be an integer of 1 or more, got 0'),
    ({'batch_size': -1}, 'config.train.batch_size: must be an integer of 1 or more, got -1'),
    ({'warmup': 12}, 'config.train.warmup: must be below config.train.steps, got 12 of 12'),
    ({'learning_rate': 0.0}, 'learning_rate must be a finite number above 0'),
    ({'label_dropout': 1.0}, 'config.train.label_dropout: must be from 0 to below 1, got 1.0'),
    ({'network.dropout': -0.1}, 'config.train.network.dropout: must be from 0 to below 1'),
    ({'sigma_max': 0.001}, 'sigma_max must be above sigma_min, got 0.001 and 0.002'),
    ({'data': 'faces'}, "must be 'digits' or a .npz file"),
    ({'held_out': 1}, 'must be 0 or from 2'),
])
def test_bad_input_is_refused_before_anything_is_written(tmp_path, fields, match):
  with pytest.raises(ValueError, match=match):
    tiny(tmp_path / 'out', **fields)
  assert not (tmp_path / 'out').exists()


def test_folder_of_another_run_is_refused_with_the_difference(tmp_path):
  plan = tiny(tmp_path)
  identity.write(tmp_path, plan.identity)
  tiny(tmp_path, checkpoint_every=7)  # Has no part in the result.
  with pytest.raises(ValueError, match=r'with train.learning_rate 0.002 \(now 0.1\); choose'):
    tiny(tmp_path, learning_rate=0.1)
  identity.write(tmp_path, {'mode': 'generate'})
  with pytest.raises(ValueError, match=r"with mode 'generate' \(now 'train'\)"):
    tiny(tmp_path)
  (tmp_path / 'run.json').unlink()
  (tmp_path / 'model').mkdir()
  with pytest.raises(ValueError, match=r'model without run.json; choose another'):
    tiny(tmp_path)


def test_killed_run_of_main_goes_on(tmp_path):
  """SIGKILL in the middle, and start again, through main.py."""
  cache = jax.config.jax_compilation_cache_dir
  environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': cache}
  fields = TINY | {'steps': 60, 'checkpoint_every': 20}
  command = [sys.executable, MAIN, '--mode=train', '--workdir=killed',
             *(f'--config.train.{name}={value}' for name, value in fields.items())]
  process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
  checkpoint, deadline = tmp_path / 'killed' / 'checkpoints' / '20', time.monotonic() + 300
  while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  assert checkpoint.exists() and not (tmp_path / 'killed' / 'model').exists()
  def run(*flags):
    return subprocess.run([sys.executable, MAIN, *flags], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=300, check=True)
  again = run(*command[2:])
  assert again.stdout.startswith('denoiser in killed/model: 60 steps, loss ')
  assert again.stderr == ''
  train.run(tiny(tmp_path / 'whole', **{**fields, 'checkpoint_every': 60}))
  assert result(tmp_path / 'killed') == result(tmp_path / 'whole')
  model = models.load(tmp_path / 'killed' / 'model')
  assert (model.sigma_min, model.sigma_max, model.num_classes) == (0.002, 80.0, 10)
