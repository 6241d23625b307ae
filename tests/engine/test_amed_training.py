"""AMED's training replayed: losses, gradients and parameters of whole sweeps of the trainer."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samplers
from engine import lessons, trainer
from tests import reference
from tests.samplers import amed_cases

CASES = amed_cases.cases('training')


class Seen(NamedTuple):
  """State of an optimizer that also keeps what it was given and what came of it."""

  count: jax.Array
  gradients: jax.Array
  params: jax.Array
  inner: Any


def watched(optimizer, updates):
  def init(params):
    room = jnp.zeros((updates, *params.shape), params.dtype)
    return Seen(jnp.zeros((), int), room, room, optimizer.init(params))

  def update(gradient, seen, params):
    change, inner = optimizer.update(gradient, seen.inner, params)
    return change, Seen(seen.count + 1, seen.gradients.at[seen.count].set(gradient),
                        seen.params.at[seen.count].set(params + change), inner)
  return optax.flatten(optax.GradientTransformation(init, update))


def lesson_of(case, init, grid):
  denoise = amed_cases.plain(case['guidance_rate'], amed_cases.limited(case))
  features = amed_cases.features(case['guidance_rate'], amed_cases.limited(case))
  options = {name: case[name] for name in ('max_order', 'predict_x0', 'lower_order_final')
             if case[name] is not None and name in samplers.options(case['teacher'])}
  table = samplers.make(case['teacher'], amed_cases.grid(case, case['num_steps_teacher']),
                        **options)
  design = amed_cases.design(case, init, grid)
  return lessons.of_intervals(
      design, lessons.slices(table, case['M'] + 1), lambda constants, labels: features,
      lambda constants, labels: denoise, float(grid[0]), len(grid) - 1)


def test_every_recorded_training_is_replayed():
  assert [case['id'] for case in CASES] == [f'train{i:02d}' for i in range(8)]
  assert {(case['student'], case['teacher']) for case in CASES} == {
      ('amed', 'heun'), ('amed', 'dpm'), ('dpm', 'dpm'), ('euler', 'euler'), ('ipndm', 'ipndm'),
      ('dpmpp', 'dpmpp')}
  assert all(case['sweeps'] == 2 for case in CASES)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['id'])
def test_sweeps_match_the_reference(case):
  recorded = amed_cases.ARRAYS[case['id']]
  updates = case['num_steps'] - 1
  with jax.enable_x64(True):
    init = amed_cases.params(recorded, 'init/')
    unflat = jax.flatten_util.ravel_pytree(init)[1]
    grid = amed_cases.grid(case, case['num_steps'])
    lesson = lesson_of(case, init, grid)
    optimizer = watched(optax.adam(case['lr']), updates)
    # The generator of code that other tests are compiled by makes gradients that are not finite
    # here, which the published clean-up would turn to 0.
    sweep = reference.as_users_do(functools.partial(trainer.sweep, lesson, optimizer))
    state = trainer.State(jnp.zeros((), jnp.int32), init, optimizer.init(init))
    for number in range(case['sweeps']):
      prefix = f'sweep{number}/'
      batch = trainer.Batch(jnp.asarray(recorded[f'{prefix}x_T'] / grid[0]), None, None)
      state, told = sweep(state, None, batch)
      # Losses are differences of states that agree to 1e-12: some of their digits cancel.
      np.testing.assert_allclose(told['loss'], case['losses'][number], rtol=1e-9)
      for i in range(updates):
        names = ('r', *(name for name in ('scale_dir', 'scale_time') if case[name]))
        means = recorded[f'{prefix}step{i}/predictor_out'].mean(1)
        np.testing.assert_allclose([told[name][i] for name in names], means, rtol=1e-9)
        seen = jax.tree.leaves(state.optimizer, is_leaf=lambda node: isinstance(node, Seen))[0]
        if number == 0:
          same(unflat(seen.gradients[i]), amed_cases.params(recorded, f'{prefix}step{i}/grad/'))
        after = amed_cases.params(recorded, f'{prefix}step{i}/params_after/')
        if after:  # Large predictors are recorded after whole sweeps alone.
          same(unflat(seen.params[i]), after)
      state = state._replace(optimizer=restarted(state.optimizer))
      same(state.learned, amed_cases.params(recorded, f'{prefix}params_after/'))
  assert int(state.sweep) == case['sweeps']


def restarted(optimizer):
  """The same optimizer with its record empty."""
  return jax.tree.map(
      lambda node: node._replace(count=jnp.zeros_like(node.count)), optimizer,
      is_leaf=lambda node: isinstance(node, Seen))


def same(found, wanted):
  """Compares layer by layer, in units of a layer's largest entry."""
  assert jax.tree.structure(found) == jax.tree.structure(wanted)
  for path, value in jax.tree_util.tree_leaves_with_path(wanted):
    layer, kind = (key.key for key in path)
    assert amed_cases.relative(found[layer][kind], value) < 1e-8, path
