"""Lessons: slices of a teacher, and what training on the end of a run asks."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samplers
from engine import lessons, trainer
from samplers import learned

ROOT = pathlib.Path(__file__).parents[2]
SIGMAS = np.array([10.0, 2.0, 0.5])


def denoiser(constants, labels):
  del labels
  return lambda x, sigma: constants * x / (1 + sigma**2)


@pytest.fixture
def scaled_euler(monkeypatch):
  """The design that docs/learned_solvers.md adds."""
  monkeypatch.setattr(learned, 'DESIGNS', dict(learned.DESIGNS))
  text, = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/learned_solvers.md').read_text(), re.S)
  scope = {}
  exec(compile(text, 'docs/learned_solvers.md', 'exec'), scope)
  assert learned.design_options('scaled_euler') == {'afs': False}
  return scope['scaled_euler']


@pytest.fixture(scope='module')
def batch():
  keys = jax.random.split(jax.random.key(1), 4)
  return trainer.Batch(jax.random.normal(jax.random.key(0), (4, 2, 2, 1)), None, keys)


def teacher(stride):
  fine = np.concatenate([np.geomspace(10, 2, stride + 1), np.geomspace(2, 0.5, stride + 1)[1:]])
  return lessons.slices(samplers.make('heun', fine), stride)


def test_slices_are_the_teachers_states_at_the_students_levels(batch):
  x = 10 * batch.latents
  states = teacher(16)(denoiser(1.0, None), x)
  assert states.shape == (2, *x.shape)
  exact = x * np.sqrt((1 + SIGMAS[1:]**2) / (1 + SIGMAS[0]**2))[:, None, None, None, None]
  np.testing.assert_allclose(states, exact, rtol=2e-3)  # Of 16 steps of order 2.


def test_a_soft_teacher_asks_for_less_and_never_for_more(batch, scaled_euler):
  design = scaled_euler(SIGMAS)
  numbers = design.initial(None)
  def loss(radius, moves):
    lesson = lessons.of_end(design, teacher(16), denoiser, denoiser, 10.0, 2, radius, moves)
    @jax.jit
    def value(batch):
      target = lesson.teach(1.0, batch)
      return lesson.loss(numbers, 1.0, batch, target, lesson.begin(1.0, batch), 0)[0]
    return float(value(batch))
  hard = loss(0.0, 0)
  end = design.solve(numbers, denoiser(1.0, None), 10 * batch.latents)
  distance = jnp.sum((end - teacher(16)(denoiser(1.0, None), 10 * batch.latents)[-1])**2) / 4
  np.testing.assert_allclose(hard, distance, rtol=1e-6)
  softer = [loss(radius, 4) for radius in (0.001, 0.01, 0.1)]
  assert hard > softer[0] > softer[1] > softer[2]
  assert loss(1e-9, 4) == pytest.approx(hard, rel=1e-4)


def test_the_design_of_the_docs_learns(scaled_euler, tmp_path):
  lesson = lessons.of_end(scaled_euler(SIGMAS), teacher(16), denoiser, denoiser, 10.0, 2)
  course = trainer.Course(who='test', lessons=[lesson], optimizer=optax.adam(0.02),
                  constants=np.float32(1), image_shape=(2, 2, 1), classes=None, num_classes=0,
                  seed=0, sweeps=60, batch_size=8, log_every=20, checkpoint_every=60,
                  folder=tmp_path, remedy='', title='')
  numbers, lines = trainer.train(course)
  assert lines[-1]['loss'][0] < 0.05 * lines[0]['loss'][0]
  assert np.abs(numbers['scale']).max() > 0.01
