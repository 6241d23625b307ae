"""The trainer: what a sweep does, resuming to the same numbers, devices, and divergence."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from engine import checkpoints, trainer

ROOT = pathlib.Path(__file__).parents[2]


def scaling(updates=3, skips=0, factor=1.0):
  """A lesson that learns w: from x to w x in each update, where the teacher has x / 2^i."""
  def loss(learned, constants, batch, target, carry, i):
    x = learned['w'] * carry * constants
    value = factor * jnp.sum((x - target[i])**2) / len(x)
    return value, (x, {'w': learned['w']})
  return trainer.Lesson(
      initial=lambda key: {'w': jnp.ones(()) + 0.1 * jax.random.normal(key)},
      teach=lambda constants, batch: batch.latents[None] / 2.0**jnp.arange(
          1, updates + 1)[:, None, None, None, None],
      begin=lambda constants, batch: batch.latents, loss=loss, updates=updates, skips=skips)


def course(folder, lessons=None, **fields):
  defaults = {'optimizer': optax.adam(0.05), 'constants': np.float32(1), 'image_shape': (2, 2, 1),
              'classes': None, 'num_classes': 3, 'seed': 0, 'sweeps': 12, 'batch_size': 4,
              'log_every': 4, 'checkpoint_every': 3, 'remedy': 'lower it', 'title': 'w'}
  return trainer.Course(who='train_test', lessons=lessons or [scaling()], folder=folder,
                        **defaults | fields)


def batch(size=4):
  keys = jax.random.split(jax.random.key(1), size)
  return trainer.Batch(jax.random.normal(jax.random.key(0), (size, 2, 2, 1)), None, keys)


class Interrupt(Exception):
  """Stands for a kill."""


def interrupted_after(trajectories):
  @contextlib.contextmanager
  def progress(description, total, unit, done=0):
    seen = [done]
    def advance(count=1, **shown):
      seen[0] += count
      if seen[0] >= trajectories:
        raise Interrupt
    yield advance
  return progress


def test_updates_follow_each_other_from_where_the_last_has_arrived():
  lesson, optimizer = scaling(), optax.sgd(0.01)
  state = trainer.first_state(lesson, optimizer, jax.random.key(0))
  after, told = trainer.sweep(lesson, optimizer, state, 1.0, batch())
  w, x, target = float(state.learned['w']), batch().latents, lesson.teach(1.0, batch())
  for i in range(3):
    np.testing.assert_allclose(told['w'][i], w, rtol=1e-6)
    gradient = float(jnp.sum(2 * (w * x - target[i]) * x) / len(x))
    np.testing.assert_allclose(told['loss'][i], jnp.sum((w * x - target[i])**2) / 4, rtol=1e-5)
    x, w = w * x, w - 0.01 * gradient  # The state is of before the update, without its gradient.
  np.testing.assert_allclose(after.learned['w'], w, rtol=1e-6)
  assert int(after.sweep) == 1


def test_skipped_updates_move_the_state_and_learn_nothing():
  whole, skipping = scaling(), scaling(skips=1)
  state = trainer.first_state(whole, optax.sgd(0.01), jax.random.key(0))
  _, told = trainer.sweep(whole, optax.sgd(0.01), state, 1.0, batch())
  _, less = trainer.sweep(skipping, optax.sgd(0.01), state, 1.0, batch())
  assert less['loss'].shape == (3,)
  np.testing.assert_allclose(less['loss'][0], told['loss'][0], rtol=1e-6)
  assert float(less['w'][1]) == float(less['w'][0]) != float(told['w'][1])


@pytest.mark.parametrize('value, counts_as', [(np.nan, 0.0), (np.inf, 1e5), (-np.inf, -1e5)])
def test_a_gradient_that_is_not_finite_counts_as_a_number(value, counts_as):
  lesson = dataclasses.replace(scaling(updates=1), loss=lambda learned, constants, batch, target,
                               carry, i: (learned['w'] * constants, (carry, {})))
  state = trainer.first_state(lesson, optax.sgd(1.0), jax.random.key(0))
  after, _ = trainer.sweep(lesson, optax.sgd(1.0), state, jnp.float32(value), batch())
  np.testing.assert_allclose(after.learned['w'], state.learned['w'] - counts_as, rtol=1e-6)


def test_an_interrupted_training_ends_like_one_that_was_not(tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  whole.mkdir(), parts.mkdir()
  learned, lines = trainer.train(course(whole))
  with pytest.raises(Interrupt):
    trainer.train(course(parts), interrupted_after(32))  # After 8 sweeps; the checkpoint is of 6.
  assert not (parts / trainer.PLOT).exists()
  again, _ = trainer.train(course(parts))
  np.testing.assert_array_equal(again['w'], learned['w'])
  assert [line['step'] for line in lines] == [4, 8, 12]
  stored = [json.loads(line) for line in (parts / trainer.METRICS).read_text().splitlines()]
  assert [line['step'] for line in stored] == [4, 8, 12]
  assert stored[-1]['loss'] == pytest.approx(lines[-1]['loss']) and len(lines[-1]['loss']) == 3
  assert (parts / trainer.PLOT).exists()
  done, _ = trainer.train(course(parts))  # Killed before what was learned could be written.
  np.testing.assert_array_equal(done['w'], learned['w'])


def test_each_sweep_takes_the_lesson_that_is_chosen(tmp_path):
  lessons = [scaling(updates=2), scaling(updates=3)]
  _, lines = trainer.train(course(tmp_path, lessons, choose=lambda sweep: sweep % 2))
  assert [(line['lesson'], len(line['loss'])) for line in lines] == [(0, 2), (1, 3)] * 3


def test_labels_are_random_or_taken_in_turn(tmp_path):
  numbers = np.arange(600, dtype=np.uint32)
  drawn = trainer.draw(course(tmp_path), numbers)
  assert set(np.unique(drawn.labels)) == {0, 1, 2}
  turns = trainer.draw(course(tmp_path, classes=np.array([2, 0], np.int32)), numbers)
  np.testing.assert_array_equal(turns.labels[:3], [2, 0, 2])
  assert trainer.draw(course(tmp_path, num_classes=0), numbers).labels is None
  later = trainer.draw(course(tmp_path), numbers[300:])  # Its number makes a sample.
  np.testing.assert_array_equal(later.latents, drawn.latents[300:])


@pytest.mark.parametrize('rate, got', [(1e30, 'inf|nan'), (1e2, r'\d.*e[+]\d\d')])
def test_a_training_that_diverges_stops_and_keeps_its_last_good_checkpoint(tmp_path, rate, got):
  rates = optax.piecewise_constant_schedule(1e-3, {21: rate * 1e3})  # After seven sweeps.
  with pytest.raises(FloatingPointError, match=(
      rf'^train_test: loss must stay finite and near its start, got ({got}) \(at first .*\) in '
      rf'sweep (8|9|10) of 12, update \d; lower it; the last good checkpoint stays in ')):
    trainer.train(course(tmp_path, optimizer=optax.sgd(rates)))
  assert not (tmp_path / trainer.PLOT).exists()
  with checkpoints.opened(tmp_path) as manager:
    assert manager.latest_step() == 6
    kept = checkpoints.restore(manager, functools.partial(
        trainer.first_state, scaling(), optax.sgd(rates)), jax.random.key(0))
  assert 0 < kept.learned['w'] < 2


TWICE = '''
import pathlib, sys, numpy as np, jax
from engine import trainer
from tests.engine import test_trainer as tests
folder = pathlib.Path(sys.argv[1]); folder.mkdir()
learned, _ = trainer.train(tests.course(folder))
print(jax.local_device_count(), float(learned['w']))
'''


def test_the_number_of_devices_has_no_part_in_the_result(tmp_path):
  learned, _ = trainer.train(course(tmp_path))
  result = subprocess.run([sys.executable, '-c', TWICE, tmp_path / 'two'], cwd=ROOT, check=False,
                          capture_output=True, text=True, timeout=120,
                          env={**os.environ, 'JAX_NUM_CPU_DEVICES': '2'})
  assert result.returncode == 0, result.stderr
  count, w = result.stdout.split()
  assert count == '2'
  np.testing.assert_allclose(float(w), learned['w'], rtol=1e-5)  # Sums in another order.
