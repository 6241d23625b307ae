"""Distillation against the reference numbers of SFD: whole trainings, and the step embedding."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samplers
from engine import distill_lesson, lessons, sampler, trainer
from models import networks
from tests import reference
from tests.models import torch_layout

MANIFEST, ARRAYS = reference.load('sfd')
CASES = {case['id']: case for case in MANIFEST['cases']}
EMBEDDINGS = {case['id']: case for case in MANIFEST['step_embedding']}
TOLERANCE = 1e-9  # The manifest's, in 64 bit.

# Everything here compiles for longer than it runs.
quickly = functools.partial(jax.jit, compiler_options={'xla_backend_optimization_level': 0})


def conv(x, kernel, bias):
  """A convolution with zeros around, kernel (out, in, height, width)."""
  return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=(
      'NHWC', 'OIHW', 'NHWC')) + bias[None, None, None]


def network(params, x, sigma, labels=None, step_condition=None, train=False, rngs=None):
  """The manifest's network, called as networks.denoiser's evaluate: (D, nothing else)."""
  del labels, train, rngs
  c_in = jax.lax.rsqrt(sigma**2 + 0.25)
  shift = params['noise_weight'] * jnp.log(sigma) / 4
  if step_condition is not None:
    shift = shift + params['step_weight'] * (step_condition / 10)
  h = conv(c_in * x, params['conv0_weight'], params['conv0_bias']) + shift[None, None, None]
  out = conv(jax.nn.silu(h), params['conv1_weight'], params['conv1_bias'])
  return (0.25 * c_in**2 * x + 0.5 * sigma * c_in * out,)


class Records(NamedTuple):
  """State of an optimizer that also keeps what it is given and what comes of it."""

  inner: Any
  count: jax.Array
  gradients: Any
  params: Any


def recorded(optimizer, updates):
  """The optimizer, keeping gradients and parameters of the last sweep, leaves (updates, ...)."""
  def init(params):
    empty = jax.tree.map(lambda leaf: jnp.zeros((updates, *leaf.shape), leaf.dtype), params)
    return Records(optimizer.init(params), jnp.zeros((), jnp.int32), empty, empty)

  def update(gradient, state, params):
    changes, inner = optimizer.update(gradient, state.inner, params)
    def keep(all_of_them, new):
      return all_of_them.at[state.count % updates].set(new)
    return changes, Records(
        inner, state.count + 1, jax.tree.map(keep, state.gradients, gradient),
        jax.tree.map(keep, state.params, optax.apply_updates(params, changes)))
  return optax.GradientTransformation(init, update)


def watched_sweep(lesson, optimizer, state, constants, batch):
  """A sweep of the trainer, and what its teacher says."""
  return (*trainer.sweep(lesson, optimizer, state, constants, batch),
          lesson.teach(constants, batch))


def told(case):
  """What teacher and student are told of the number of grid points: function of theirs."""
  first = case['first_stage'] or {}
  asked = case['use_step_condition'] or first.get('use_step_condition')
  student = (lambda points: points) if asked else (lambda points: None)
  teacher = (lambda points: points) if first.get('use_step_condition') else (lambda points: None)
  return student, teacher


def lesson_of(case, points, substeps):
  """The Lesson of a case for one number of grid points, and its grid."""
  student, teacher = told(case)
  options = {'sigma_min': case['sigma_min'], 'sigma_max': case['sigma_max'],
             'rho': case['schedule_rho']}
  fine = samplers.schedule(case['schedule_type'], substeps * (points - 1), **options)
  solver = {name: case[name] for name in ('max_order', 'predict_x0', 'lower_order_final')
            if name in samplers.options(case['teacher']) and case[name] is not None}
  if case['first_stage']:
    solver['afs'] = case['first_stage']['afs']
  teach = lessons.slices(samplers.make(case['teacher'], fine, **solver), substeps)
  # The published solver limits its data predictions.
  limit = sampler.LIMITS['dynamic' if case['teacher'] == 'dpmpp' and case['predict_x0'] else 'none']
  def denoiser(constants, labels):
    told = teacher(substeps * (points - 1) + 1)
    return limit(lambda x, sigma: network(constants.teacher, x, sigma, labels, told)[0])
  sigmas = samplers.schedule(case['schedule_type'], points - 1, **options)
  return distill_lesson.lesson(
      lambda key: None, network, denoiser, teach, sigmas, afs=case['afs'],
      points=student(points),
      perceptual=distill_lesson.mean_square if case['perceptual_term'] == 'stand-in' else None,
      ), sigmas


def test_all_cases_of_the_reference_are_here():
  kinds = [(case['second_stage'], case['use_step_condition'], case['perceptual_term'])
           for case in CASES.values()]
  assert {kind: kinds.count(kind) for kind in kinds} == {
      (False, False, 'none'): 3, (False, True, 'none'): 1, (True, False, 'none'): 2,
      (True, False, 'stand-in'): 1}
  assert {case['teacher'] for case in CASES.values()} == {'dpmpp', 'ipndm', 'heun', 'euler'}
  assert sorted(EMBEDDINGS) == ['dhariwal', 'songunet']


@pytest.mark.parametrize('name', CASES)
def test_training_is_that_of_the_reference(name):
  """Teacher, losses, gradients and parameters of every update, through the one trainer."""
  case, arrays = CASES[name], ARRAYS[name]
  skips = int(case['afs'])
  numbers = case['num_steps_per_sweep']
  drop = distill_lesson.updates_before_drop([n - 1 - skips for n in numbers], case['batch'],
                                            len(numbers) * case['batch'])
  rates = [case['lr'] if count < drop else case['lr'] / 10
           for count in range(sum(numbers) - len(numbers) * (1 + skips))]
  np.testing.assert_allclose(rates, case['lr_per_update'], rtol=1e-15)
  optimizer = distill_lesson.make_optimizer(case['lr'], drop)
  # Parity is in 64 bit; optax mixes precisions, so promotion stays as it is.
  with jax.enable_x64(True):
    names = sorted(key.removeprefix('init/') for key in arrays if key.startswith('init/'))
    assert len(names) == 6
    learned = {leaf: jnp.asarray(arrays[f'init/{leaf}']) for leaf in names}
    constants = distill_lesson.Constants(learned)
    state, programs = trainer.State(jnp.zeros((), jnp.int32), learned, optimizer.init(learned)), {}
    for number, (points, substeps) in enumerate(zip(numbers, case['M_per_sweep'], strict=True)):
      lesson, sigmas = lesson_of(case, points, substeps + 1)
      np.testing.assert_allclose(sigmas, arrays[f'sweep{number}/t_steps'], rtol=1e-9)
      recorder = recorded(optimizer, points - 1 - skips)
      if (points, substeps) not in programs:
        programs[points, substeps] = quickly(functools.partial(watched_sweep, lesson, recorder))
      batch = trainer.Batch(jnp.asarray(arrays[f'sweep{number}/x_T'] / sigmas[0]), None,
                            jax.random.split(jax.random.key(0), case['batch']))
      records = recorder.init(state.learned)._replace(inner=state.optimizer)
      state, seen, target = programs[points, substeps](
          state._replace(optimizer=records), constants, batch)
      records = jax.device_get(state.optimizer)
      state = state._replace(optimizer=state.optimizer.inner)
      np.testing.assert_allclose(seen['loss'], case['losses'][number], rtol=TOLERANCE)
      np.testing.assert_allclose(target, arrays[f'sweep{number}/teacher_slices'], rtol=TOLERANCE,
                                 atol=TOLERANCE)
      assert records.count == points - 1 - skips
      check_updates(records, names, arrays, number, skips)
    assert number + 1 == case['sweeps']


def check_updates(records, names, arrays, number, skips):
  """Compares gradients and parameters of the updates of a sweep."""
  for i in range(records.count):
    step = f'sweep{number}/step{i + skips}'
    for leaf in names:
      expected = arrays[f'{step}/params_after/{leaf}']
      np.testing.assert_allclose(records.params[leaf][i], expected, rtol=TOLERANCE, atol=TOLERANCE,
                                 err_msg=f'{step} {leaf}')
      # Without a step condition its weight has no gradient.
      expected = arrays.get(f'{step}/grad/{leaf}', np.zeros(expected.shape))
      assert leaf == 'step_weight' or f'{step}/grad/{leaf}' in arrays
      np.testing.assert_allclose(records.gradients[leaf][i], expected, rtol=TOLERANCE,
                                 atol=TOLERANCE * abs(expected).max(), err_msg=f'{step} {leaf}')


@pytest.mark.parametrize('family', EMBEDDINGS)
def test_step_embedding_of_both_families(x64, family):
  case = EMBEDDINGS[family]
  arrays = {name.removeprefix(f'{family}/'): value
            for name, value in ARRAYS['step_embedding'].items() if name.startswith(f'{family}/')}
  settings = {name: case[name] for name in (
      'img_resolution', 'out_channels', 'model_channels', 'channel_mult', 'num_blocks',
      'attn_resolutions', 'dropout')}
  module = networks.build({'songunet': 'song_unet', 'dhariwal': 'adm_unet'}[family],
                          settings | {'step_condition': True})
  weights = {name.removeprefix('params/'): value for name, value in arrays.items()
             if name.startswith('params/')}
  params = torch_layout.params(weights, np.float64)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case['num_parameters']
  x, c_noise = jnp.asarray(arrays['x']), jnp.asarray(arrays['noise_labels'])
  plain = quickly(lambda: module.apply({'params': params}, x, c_noise)[0])()
  np.testing.assert_allclose(plain, arrays['out_without_step'], rtol=TOLERANCE, atol=TOLERANCE)
  apply = quickly(lambda steps: module.apply({'params': params}, x, c_noise,
                                             step_condition=steps)[0])
  assert len(arrays['steps']) == 4
  for steps, expected in zip(arrays['steps'].tolist(), arrays['out_with_step'], strict=True):
    np.testing.assert_allclose(apply(jnp.asarray(float(steps))), expected, rtol=TOLERANCE,
                               atol=TOLERANCE)
