"""Distillation: the lesson, both stages, students with a step condition, and what is refused."""

import functools
import json
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from engine import distill, distill_lesson, distill_stages, resolve, trainer
from evaluation import lpips
from models import directory, lpips as lpips_network, networks
from tests.engine.sampling import get_config

TINY = {'seeds': '0-1', 'batch_size': 2, 'distill__num_steps': 2, 'distill__M': 1,
        'distill__teacher': 'euler', 'distill__trajectories': 8, 'distill__batch_size': 4,
        'distill__log_every': 1, 'distill__checkpoint_every': 1}
POINTS = {'source': {'training': {
    'num_steps': 7, 'afs': True, 'schedule_type': 'polynomial', 'schedule_rho': 7,
    'sigma_min': 0.006, 'sigma_max': 80.0, 'use_step_condition': False}}}


def planned(model, folder, **fields):
  return distill.plan(get_config(**{'model__path': str(model), **TINY, **fields}), str(folder))


class Layer(nn.Module):
  """Stands for a network where it does not matter which one: it compiles in a moment."""

  img_resolution: int
  out_channels: int
  label_dim: int = 0
  model_channels: int = 4
  channel_mult: tuple[int, ...] = (1,)
  dropout: float = 0.1
  step_condition: bool = False

  @nn.compact
  def __call__(self, x, c_noise, class_labels=None, train=False, step_condition=None):
    label = jnp.zeros_like(c_noise) if class_labels is None else class_labels.sum(-1)
    numbers = jnp.stack([c_noise, label], -1)
    h = nn.Dense(4)(x) + nn.Dense(4, name='map')(numbers)[:, None, None]
    if step_condition is not None or (self.step_condition and self.is_initializing()):
      steps = jnp.full((len(x), 1), 0 if step_condition is None else step_condition, x.dtype)
      h = h + nn.Dense(4, name='map_step')(steps / 10)[:, None, None]
    h = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(h))
    return nn.Dense(self.out_channels)(h), h.mean(-1)


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A model directory whose network is one layer."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(networks, 'NETWORKS', {**networks.NETWORKS, 'layer': Layer})
    network = {'name': 'layer', 'settings': {
        'img_resolution': 8, 'out_channels': 3, 'label_dim': 10}}
    params = jax.jit(functools.partial(networks.initialize, networks.build(**network), (8, 8, 3)))(
        jax.random.key(0))
    folder = tmp_path_factory.mktemp('distill') / 'base'
    directory.save(folder, {
        'kind': 'denoiser', 'network': network,
        'preconditioning': {'name': 'edm', 'settings': {'sigma_data': 0.5}}, 'sigma_min': 0.002,
        'sigma_max': 80.0, 'image_shape': [8, 8, 3], 'num_classes': 10}, params, 'random')
    yield folder


@pytest.fixture(scope='module')
def first(base, tmp_path_factory):
  """A first stage for 4 steps: (its folder, what it told)."""
  folder = tmp_path_factory.mktemp('first')
  return folder, distill.run(planned(base, folder, distill__num_steps=4))


def a_batch():
  return trainer.Batch(jnp.ones((2, 4, 4, 3)), jnp.zeros(2, jnp.int32),
                       jax.random.split(jax.random.key(1), 2))


def a_lesson(student, **options):
  """A lesson of 3 steps whose teacher says 0."""
  teach = lambda denoise, x: jnp.zeros((3, *x.shape))  # noqa: E731
  return distill_lesson.lesson(lambda key: None, student, lambda constants, labels: None, teach,
                               np.array([9.0, 3.0, 1.0, 0.5]), **options)


def test_student_is_trained_with_dropout_a_mask_for_each_step_and_its_condition():
  seen = []
  def student(params, x, sigma, labels, *, train, rngs, step_condition):
    seen.append((train, step_condition, jax.random.key_data(rngs['dropout']).tolist()))
    return (params * x,)
  batch, lesson = a_batch(), a_lesson(student, afs=True, points=4)
  x = lesson.begin(None, batch)
  np.testing.assert_array_equal(x, 9 * batch.latents)
  assert (lesson.updates, lesson.skips) == (3, 1)
  target = jnp.zeros((3, *x.shape))
  loss, (after, _) = lesson.loss(0.5, None, batch, target, x, 0)
  np.testing.assert_allclose(after, x - 6 * x / np.sqrt(1 + 9**2), rtol=1e-6)
  assert not seen and float(loss) == pytest.approx(abs(after).sum() / 2)
  for i in (1, 2):
    lesson.loss(0.5, None, batch, target, x, i)
  other = batch._replace(keys=jax.random.split(jax.random.key(2), 2))
  lesson.loss(0.5, None, other, target, x, 2)
  assert all(train and points == 4 for train, points, _ in seen)
  assert len({str(key) for _, _, key in seen}) == 3


def test_perceptual_distance_counts_at_the_last_step_once_for_each_entry():
  student = lambda params, x, *_, **call: (params * x,)  # noqa: E731
  batch, target = a_batch(), jnp.zeros((3, 2, 4, 4, 3))
  def losses(i, **options):
    lesson = a_lesson(student, **options)
    return lesson.loss(0.5, distill_lesson.Constants(None), batch, target, batch.latents, i)
  distance = lambda params, images, targets: jnp.array([1.0, 3.0])  # noqa: E731
  for i in range(3):
    plain, with_it = losses(i)[0], losses(i, perceptual=distance)
    shift = 2.0 if i == 2 else 0.0
    np.testing.assert_allclose(with_it[0] - plain, shift * 4 * 4 * 3, rtol=1e-6, atol=1e-6)
    assert float(with_it[1][1]['perceptual']) == shift


def test_mean_square_is_that_of_resized_images(x64):
  a, b = np.random.default_rng(0).standard_normal((2, 3, 8, 6, 3))
  def both(a, b):
    resized = [lpips_network.resize(x, 224) for x in (a, b)]
    return (distill_lesson.mean_square(None, a, b),
            jnp.mean((resized[0] - resized[1])**2, (1, 2, 3)))
  own, expected = jax.jit(both)(a, b)
  np.testing.assert_allclose(own, expected, rtol=1e-12)


def test_lpips_is_given_what_it_was_made_for(monkeypatch):
  """Images in [0, 1], not as published in [-1, 1]; gray as three channels; means for maxima."""
  seen = {}
  def compare(params, a, b, replace_pooling, size):
    seen.update(params=params, a=a, b=b, replace_pooling=replace_pooling, size=size)
    return jnp.arange(2.0), None
  monkeypatch.setattr(lpips, 'compare', compare)
  out = distill_lesson.perceptual_distance('p', -jnp.ones((2, 8, 8, 1)), jnp.ones((2, 8, 8, 1)))
  np.testing.assert_array_equal(out, [0, 1])
  assert (seen['params'], seen['replace_pooling'], seen['size']) == ('p', True, 224)
  assert seen['a'].shape == (2, 8, 8, 3) and (seen['a'] == 0).all() and (seen['b'] == 1).all()


def test_first_stage_is_a_model_that_tells_its_training(first, base, tmp_path):
  folder, told = first
  student, teacher = models.load(folder / 'model'), models.load(base)
  training = student.config['source']['training']
  expected = {'num_steps': 5, 'points': [5], 'M': 1, 'afs': True, 'schedule_type': 'polynomial',
              'schedule_rho': 7.0, 'sampler_tea': 'euler', 'use_step_condition': False,
              'is_second_stage': False, 'sigma_min': 0.006, 'sigma_max': 80.0}
  assert {name: training[name] for name in expected} == expected
  assert (student.sigma_min, student.sigma_max, student.num_classes) == (0.006, 80.0, 10)
  moved = jax.tree.map(lambda a, b: abs(a - b).max(), student.params, teacher.params)
  assert 0 < max(jax.tree.leaves(moved)) < 6e-3  # Six updates of Adam, at most 5e-4 each.
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
  assert [line['trajectories'] for line in lines] == [4, 8] and len(lines[0]['loss']) == 4
  # The command that is told samples on the very grid of the training.
  words = told.splitlines()[-1].split()
  fields = dict(word.removeprefix('--config.').split('=') for word in words[2:])
  assert fields == {'model.path': str(folder / 'model'), 'solver.name': 'euler',
                    'solver.afs': 'True', 'schedule.num_steps': '4'}
  manifest = json.loads((folder / 'samples' / 'manifest.json').read_text())
  assert manifest['nfe'] == 3 and manifest['sigmas'][-1] == 0.006
  assert (folder / 'metrics.png').exists() and (folder / 'samples' / 'grid.png').exists()
  again = planned(base, folder, distill__num_steps=4)
  assert 'nothing was left to train' in distill.run(again)
  with pytest.raises(ValueError, match='run of the same config, got .* learning_rate'):
    planned(base, folder, distill__num_steps=4, distill__learning_rate=1e-3)


def test_killed_run_ends_with_the_same_student(first, base, tmp_path, monkeypatch):
  """What a killed run wrote up to its last checkpoint is all that the next one needs."""
  save = trainer.checkpoints.save
  def save_once(who, manager, step, state):
    save(who, manager, step, state)
    raise KeyboardInterrupt
  with monkeypatch.context() as patch:
    patch.setattr(trainer.checkpoints, 'save', save_once)
    with pytest.raises(KeyboardInterrupt):
      distill.run(planned(base, tmp_path, distill__num_steps=4))
  assert not (tmp_path / 'model').exists()
  distill.run(planned(base, tmp_path, distill__num_steps=4))
  assert models.load(tmp_path / 'model').sha256 == models.load(first[0] / 'model').sha256


def test_second_stage_takes_grid_and_sampler_of_the_first(first, tmp_path):
  folder, _ = first
  plan = planned(folder / 'model', tmp_path, distill__second_stage=True, distill__teacher=None)
  stage = plan.identity
  assert (stage['teacher'], stage['points'], stage['perceptual']) == (
      'euler(afs=True)', [3], 'mean_square')
  distill.run(plan)
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert all(line['perceptual'][0] == 0 < line['perceptual'][1] for line in lines)
  training = models.load(tmp_path / 'model').config['source']['training']
  assert (training['num_steps'], training['is_second_stage']) == (3, True)
  assert json.loads((tmp_path / 'samples' / 'manifest.json').read_text())['nfe'] == 1


def test_teacher_of_the_second_stage_runs_as_it_was_trained():
  told = models.Model('x', POINTS, None, None, 0.006, 80.0, (8, 8, 3), 0, '')
  assert distill_stages._training(told) == {
      'points': [7], 'afs': True,
      'schedule': {'name': 'polynomial', 'sigma_min': 0.006, 'sigma_max': 80.0, 'rho': 7}}


def test_student_with_a_step_condition_serves_several_numbers_of_steps(base, tmp_path):
  plan = planned(base, tmp_path, distill__num_steps=None, distill__step_condition=True,
                 distill__trajectories=4)
  course = plan.course
  assert [lesson.updates for lesson in course.lessons] == [3, 4, 5, 6]
  learned = jax.jit(course.lessons[0].initial)(jax.random.key(0))
  for name, params in models.load(base).params.items():
    np.testing.assert_array_equal(learned.pop(name)['kernel'], params['kernel'])
  assert list(learned) == ['map_step'] and abs(learned['map_step']['kernel']).max() > 0
  told = distill.run(plan)
  assert 'num_steps from 3 to 6' in told
  student = models.load(tmp_path / 'model')
  training = student.config['source']['training']
  assert (training['num_steps'], training['points'], training['use_step_condition']) == (
      None, [4, 5, 6, 7], True)
  x = np.random.default_rng(0).standard_normal((1, 8, 8, 3), np.float32)
  answers = jax.jit(lambda x: [student.for_points(n).denoise(x, 1.0) for n in (4, 7)])(x)
  assert abs(answers[0] - answers[1]).max() > 1e-6
  assert student.for_points(4).apply is student.for_points(4).apply  # One compilation.
  with pytest.raises(ValueError, match='got the student of SFD-v .*; --mode=generate samples'):
    resolve.model(get_config(model__path=str(tmp_path / 'model')).model)
  with pytest.raises(ValueError, match='no student with a step condition'):
    planned(tmp_path / 'model', tmp_path / 'again')
  again = planned(tmp_path / 'model', tmp_path / 'again', distill__second_stage=True,
                  distill__teacher=None, distill__M=2)
  assert again.identity['conditioned'] and again.identity['asked']
  assert again.training['points'] == [3]


def test_number_of_steps_is_drawn_from_the_seed_and_the_rate_falls_after_half(base, tmp_path):
  def course(**fields):
    return planned(base, tmp_path, distill__num_steps=None, distill__step_condition=True,
                   distill__trajectories=400, **fields).course
  drawn = [[one.choose(sweep) for sweep in range(100)] for one in (
      course(), course(), course(distill__seed=1))]
  assert drawn[0] == drawn[1] != drawn[2] and set(drawn[0]) == {0, 1, 2, 3}
  one = course()
  updates = [one.lessons[i].updates - 1 for i in drawn[0]]
  full = sum(updates[:51])  # The sweep that began at half is the last with the full rate.
  moves = []
  for count in (full - 1, full):
    leaves, tree = jax.tree.flatten(one.optimizer.init(jnp.zeros(())))
    state = tree.unflatten([jnp.full_like(leaf, count) if leaf.dtype == jnp.int32 else leaf
                            for leaf in leaves])
    moves.append(float(one.optimizer.update(jnp.ones(()), state)[0]))
  assert moves[0] / moves[1] == pytest.approx(10, rel=0.01)


def test_models_without_a_condition_are_the_same_for_all_points(base):
  model = models.load(base)
  assert model.for_points(4) is model and not model.step_condition
  exact = models.load('digits_exact')
  assert exact.for_points(4) is exact


@pytest.mark.parametrize('fields, message', [
    ({'distill__M': -1}, 'distill.M: must be an integer of 0 or more, got -1'),
    ({'distill__num_steps': 1}, 'num_steps: must be an integer of 2 or more, as a step has to be'),
    ({'distill__trajectories': 3}, 'trajectories: must be config.distill.batch_size or more'),
    ({'distill__learning_rate': 0.0}, 'learning_rate must be a finite number above 0, got 0.0'),
    ({'distill__dtype': 'int8'}, "unknown dtype 'int8'"),
    ({'distill__teacher': 'heun; euler'}, 'distill.teacher: must be one solver, a table'),
    ({'distill__teacher': 'dpm_adaptive'}, 'distill.teacher: must be one solver, a table'),
    ({'distill__teacher': 'heun(afs=True)'}, 'must be without afs and denoise_to_zero'),
    ({'distill__teacher': 'ddpm'}, 'must draw no noise and pass all levels of its grid, got ddpm'),
    ({'distill__teacher': 'hun'}, "unknown solver 'hun'; did you mean heun"),
    ({'distill__step_condition': True}, 'num_steps: must be left out with step_condition'),
    ({'distill__perceptual': 'none'}, 'perceptual: must be left out in the first stage'),
    ({'schedule__name': 'edm'}, 'must be a schedule whose finer grids have the levels of the'),
    ({'guidance__method': 'classifier'}, 'must be left out with --mode=distill, got classifier'),
    ({'labels': '12'}, 'classes must be from 0 to 9, got 12'),
    ({'distill__second_stage': True, 'distill__teacher': None},
     'config.model: must be a student for the second stage'),
])
def test_bad_input_is_one_clear_line(base, tmp_path, fields, message):
  with pytest.raises(ValueError, match=message) as error:
    planned(base, tmp_path / 'new', **fields)
  assert '\n' not in str(error.value) and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('fields, message', [
    ({'distill__num_steps': 3}, 'of steps that the first stage was trained for, 4, got 3'),
    ({'distill__teacher': 'heun'}, 'teacher: must be left out in the second stage, got heun'),
    ({'distill__step_condition': True}, 'step_condition: must be left out in the second stage'),
    ({'limit': 'clip'}, "config.limit: must be 'none' in the second stage, got 'clip'"),
    ({'schedule__rho': 5.0}, 'schedule.rho: must be left out in the second stage, got 5.0;'),
    ({'distill__perceptual': 'BASE'}, 'load: model must be a network of features, got the'),
    ({'distill__perceptual': '/nowhere'}, 'load: model must be a folder .* nothing at /nowhere'),
])
def test_bad_second_stage_is_one_clear_line(first, base, tmp_path, fields, message):
  if fields.get('distill__perceptual') == 'BASE':
    fields = {'distill__perceptual': str(base)}
  with pytest.raises(ValueError, match=message) as error:
    planned(first[0] / 'model', tmp_path / 'new',
            **{'distill__second_stage': True, 'distill__teacher': None, **fields})
  assert '\n' not in str(error.value) and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('name, message', [
    ('digits_exact', 'config.model: must be a network that needs nothing but the noisy image'),
    ('digits_classifier', 'load: model must be a denoiser, got the classifier'),
])
def test_models_that_cannot_be_distilled(tmp_path, name, message):
  path = str(models.model.ASSETS / name) if name == 'digits_classifier' else None
  config = get_config(**{**TINY, 'model__name': 'digits_exact', 'model__path': path})
  with pytest.raises(ValueError, match=message):
    distill.plan(config, str(tmp_path / 'new'))


def test_another_network_of_features_is_no_lpips(first, tmp_path, monkeypatch):
  monkeypatch.setattr(models, 'load_features', lambda path: types.SimpleNamespace(name='inception'))
  with pytest.raises(ValueError, match='config.distill.perceptual: must be a converted LPIPS, got '
                                       'inception in x; leave it out'):
    planned(first[0] / 'model', tmp_path / 'new', distill__second_stage=True,
            distill__teacher=None, distill__perceptual='x')
