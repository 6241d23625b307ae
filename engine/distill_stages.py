"""The two stages of SFD: from a config to what the trainer needs, and who teaches on which grid."""

import pathlib
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
import samplers
from configs import default
from engine import (
  devices,
  distill_lesson as lesson_lib,
  lessons,
  resolve,
  sampler,
  seeds as seeds_lib,
  settings as settings_lib,
  teachers,
  trainer,
)
from models import networks

CONDITIONED = 4, 5, 6, 7
"""Numbers of grid points that a student with a step condition is trained for."""

_TEACHER = 'dpmpp(max_order=3)'
_SIGMA_MIN = 0.006  # Published in place of EDM's 0.002, or the model's own if that is higher.
_DRAWN = 1_000  # Stream of the seed: numbers of steps. The trainer has the first few.
_TOLD = 'max_order', 'predict_x0', 'lower_order_final'  # Options of published teachers.


class Stage(NamedTuple):
  """What is taught.

  Attributes:
    points: numbers of grid points of the student; every sweep has one of them.
    M: levels of the teacher within each interval.
    schedule: name and arguments of the grid, but for num_steps.
    afs: whether the student's first step is analytical.
    conditioned: whether the student is told the number of grid points.
    teacher: its solver, with options.
    asked: whether the teacher is told the number of its own grid points.
    limit: on what the teacher denoises, a key of sampler.LIMITS.
    second: whether this is the second stage.
    perceptual: what counts beside at the last step: None, 'mean_square', or a loaded LPIPS.
  """

  points: tuple[int, ...]
  M: int
  schedule: dict[str, Any]
  afs: bool
  conditioned: bool
  teacher: settings_lib.Setting
  asked: bool
  limit: str
  second: bool
  perceptual: Any

  @property
  def identity(self) -> dict[str, Any]:
    """What decides the result, plain values."""
    perceptual = getattr(self.perceptual, 'sha256', self.perceptual)
    return {**self._asdict(), 'points': list(self.points), 'teacher': self.teacher.text,
            'perceptual': perceptual}

  @property
  def training(self) -> dict[str, Any]:
    """What a student's `source` tells, under the names of the published code where it has any.

    `num_steps` counts grid points there, one more than the intervals of everything else here, and
    is None where the student serves several; `points` has them all, `schedule` the whole grid.
    """
    options = {name: self.teacher.options.get(name) for name in _TOLD}
    return {'num_steps': self.points[0] if len(self.points) == 1 else None,
            'points': list(self.points), 'sampler_tea': self.teacher.name, 'M': self.M,
            'schedule_type': self.schedule['name'], 'schedule_rho': self.schedule.get('rho'),
            'schedule': self.schedule, 'afs': self.afs, **options, 'limit': self.limit,
            'sigma_min': self.schedule['sigma_min'], 'sigma_max': self.schedule['sigma_max'],
            'use_step_condition': self.conditioned, 'is_second_stage': self.second,
            'guidance_type': None, 'guidance_rate': 0.0}

  def grid(self, points: int, finer: bool = False) -> np.ndarray:
    """Returns the levels of the student, or of the teacher."""
    count = (points - 1) * (self.M + 1 if finer else 1)
    return samplers.schedule(**self.schedule, num_steps=count)


def plan(config: ml_collections.ConfigDict, model: models.Model) -> Stage:
  """Resolves config.distill, the schedule and the limit.

  Args:
    config: the fields of configs/default.py, those of config.distill in range by themselves.
    model: to be distilled.

  Returns:
    The Stage; its grids and the teacher's tables are found to be good.

  Raises:
    OSError: if a file of the perceptual network cannot be read.
    ValueError: if the model cannot be distilled, or the fields do not go together.
  """
  network = model.config.get('network')
  if network is None or network['settings'].get('low_res'):
    raise ValueError('config.model: must be a network that needs nothing but the noisy image, got '
                     f'{model.name}; train or convert one')
  stage = (_second if config.distill.second_stage else _first)(config, model)
  for points in stage.points:
    sigmas, fine = stage.grid(points), stage.grid(points, finer=True)
    if fine.shape != ((points - 1) * (stage.M + 1) + 1,) or not np.allclose(
        fine[::stage.M + 1], sigmas, rtol=1e-9, atol=0):
      raise ValueError('config.schedule.name: must be a schedule whose finer grids have the levels '
                       f'of the coarser ones, got {stage.schedule["name"]}; take polynomial, '
                       'logsnr or time_uniform')
    _table(stage, points)
  return stage


def course(stage: Stage, distill: ml_collections.ConfigDict, labels: str, model: models.Model,
           folder: pathlib.Path) -> trainer.Course:
  """Returns what the trainer needs.

  Args:
    stage: what `plan` returns.
    distill: config.distill.
    labels: config.labels.
    model: to be distilled.
    folder: of checkpoints and metrics.

  Returns:
    The Course; lesson i is that of stage.points[i].

  Raises:
    ValueError: if the model has no such labels.
  """
  batch_size = devices.share_of(distill.batch_size) * devices.count()
  sweeps = -(-distill.trajectories // batch_size)
  own = [_lesson(stage, points, model) for points in stage.points]
  key = jax.random.fold_in(jax.random.key(distill.seed), _DRAWN)
  drawn = np.asarray(jax.random.randint(key, (sweeps,), 0, len(own)))
  drop = lesson_lib.updates_before_drop(
      [own[i].updates - own[i].skips for i in drawn], batch_size, distill.trajectories)
  told = ' or '.join(str(points - 1) for points in stage.points)
  return trainer.Course(
      who='distill', lessons=own,
      optimizer=lesson_lib.make_optimizer(distill.learning_rate, drop),
      constants=lesson_lib.Constants(model.params, getattr(stage.perceptual, 'params', None)),
      image_shape=model.image_shape, classes=seeds_lib.parse_labels(labels, model.num_classes),
      num_classes=model.num_classes, seed=distill.seed, sweeps=sweeps, batch_size=batch_size,
      log_every=distill.log_every, checkpoint_every=distill.checkpoint_every, folder=folder,
      remedy='lower config.distill.learning_rate', title=f'{model.name} for {told} steps',
      choose=lambda sweep: int(drawn[sweep]))


def student_config(stage: Stage, model: models.Model) -> dict[str, Any]:
  """Returns what goes into config.json of the student: the model's, for the range of the grid."""
  fields = {name: model.config[name] for name in (
      'kind', 'network', 'preconditioning', 'image_shape', 'num_classes')}
  return {**fields, 'network': _student_network(stage, model),
          'sigma_min': stage.schedule['sigma_min'], 'sigma_max': stage.schedule['sigma_max']}


def sampling(config: ml_collections.ConfigDict, stage: Stage) -> ml_collections.ConfigDict:
  """Returns the config of a run that samples the student with the fewest steps it knows.

  Args:
    config: of the distillation; its seeds, labels and batches are those of the samples too.
    stage: what `plan` returns.
  """
  run = default.get_config()
  for field in ('seeds', 'seeds_from', 'labels', 'batch_size'):
    run[field] = config[field]
  usual = samplers.schedule_options(stage.schedule['name'])
  options = {name: value for name, value in stage.schedule.items()
             if name in usual and value != usual[name]}
  with run.schedule.ignore_type():
    run.schedule.update(
        name=stage.schedule['name'], num_steps=min(stage.points) - 1,
        **{name: ','.join(map(repr, value)) if isinstance(value, list) else value
           for name, value in options.items()})
  run.solver.name, run.solver.afs = 'euler', stage.afs
  return run


def _first(config, model):
  """The stage whose teacher is the network as it was trained, with a solver of many steps."""
  distill = config.distill
  if model.step_condition:
    raise ValueError(f'config.model: must be no student with a step condition, got {model.name}; '
                     'distill it again with config.distill.second_stage=True')
  if distill.perceptual is not None:
    raise ValueError('config.distill.perceptual: must be left out in the first stage, got '
                     f'{distill.perceptual!r}; the second stage has it')
  if distill.step_condition and distill.num_steps is not None:
    raise ValueError('config.distill.num_steps: must be left out with step_condition, which draws '
                     f'it, got {distill.num_steps}; leave out either')
  points = CONDITIONED if distill.step_condition else ((distill.num_steps or 3) + 1,)
  text = _TEACHER if distill.teacher is None else distill.teacher
  setting = teachers.parse('config.distill.teacher', text)
  given = resolve.given(config)['schedule']
  given = {'sigma_min': max(_SIGMA_MIN, model.sigma_min)} | given | {'num_steps': points[0] - 1}
  _, schedule = resolve.sigmas(config.schedule.name, given, model)
  return Stage(points, 3 if distill.M is None else distill.M, _without_steps(schedule),
               distill.afs, distill.step_condition, setting, False, config.limit, False, None)


def _second(config, model):
  """The stage whose teacher is a student, run as it was trained to be."""
  distill, told = config.distill, _training(model)
  for field, usual in (('step_condition', False), ('teacher', None)):
    if distill[field] != usual:
      raise ValueError(f'config.distill.{field}: must be left out in the second stage, got '
                       f'{distill[field]}; it is that of the first stage')
  if config.limit != 'none':
    raise ValueError(f"config.limit: must be 'none' in the second stage, got {config.limit!r}; a "
                     'student is run without')
  schedule = told['schedule']
  for name, value in resolve.given(config)['schedule'].items():
    usual = default.get_config().schedule[name]
    if name != 'num_steps' and value not in (usual, schedule.get(name)):
      raise ValueError(f'config.schedule.{name}: must be left out in the second stage, got '
                       f'{value}; it is {schedule.get(name)}, that of the first stage')
  count, M = distill.num_steps or 2, 2 if distill.M is None else distill.M
  if count * (M + 1) + 1 not in told['points']:
    known = ' or '.join(str(points - 1) for points in told['points'])
    raise ValueError('config.distill.num_steps: must, times M + 1, give the number of steps that '
                     f'the first stage was trained for, {known}, got {count} times {M + 1}; '
                     'choose another M, or make a first stage with num_steps=6 for 2 steps here')
  return Stage((count + 1,), M, schedule, distill.afs, model.step_condition,
               settings_lib.Setting('euler', {'afs': told['afs']}), model.step_condition, 'none',
               True, _perceptual(distill.perceptual))


def _training(model):
  """How a student was trained: points, afs and schedule, from its `source`."""
  source = model.config.get('source')
  told = source.get('training') if isinstance(source, dict) else None
  needed = 'num_steps', 'afs', 'schedule_type', 'sigma_min', 'sigma_max'
  if not isinstance(told, dict) or not set(needed) <= told.keys():
    raise ValueError('config.model: must be a student for the second stage, of --mode=distill or '
                     f'converted, got {model.name}; give its folder as config.model.path')
  schedule = told.get('schedule')
  if schedule is None:
    schedule = {'name': told['schedule_type'], 'sigma_min': told['sigma_min'],
                'sigma_max': told['sigma_max']}
    known = samplers.schedule_options(schedule['name'])
    # The published code's only table.
    own = {'rho': told.get('schedule_rho'), 'alphas_cumprod': 'stable_diffusion'}
    schedule |= {name: value for name, value in own.items() if name in known and value is not None}
  points = told.get('points') or (CONDITIONED if model.step_condition else [told['num_steps']])
  return {'points': points, 'afs': bool(told['afs']), 'schedule': schedule}


def _perceptual(given):
  if given == 'none':
    return None
  if given is None:
    return 'mean_square'
  network = models.load_features(given)
  if network.name != 'lpips_vgg':
    raise ValueError(f'config.distill.perceptual: must be a converted LPIPS, got {network.name} in '
                     f'{given}; leave it out for a mean square in its place')
  return network


def _table(stage, points):
  """The teacher's table, whose every step ends at a level of the finer grid."""
  return teachers.table('config.distill.teacher', stage.teacher, stage.grid(points, finer=True))


def _lesson(stage, points, model):
  """The lesson of one number of grid points."""
  teacher = model.for_points((points - 1) * (stage.M + 1) + 1) if stage.asked else model
  module = networks.build(**_student_network(stage, model))

  def denoiser(constants, labels):
    return sampler.LIMITS[stage.limit](
        lambda x, sigma: teacher.apply(constants.teacher, x, sigma, labels))

  def initial(key):
    learned = {}
    if stage.conditioned and not model.step_condition:  # The step layers are new.
      learned = flax.traverse_util.flatten_dict(networks.initialize(module, model.image_shape, key))
    learned |= flax.traverse_util.flatten_dict(jax.tree.map(jnp.asarray, model.params))
    return flax.traverse_util.unflatten_dict(learned)
  perceptual = {None: None, 'mean_square': lesson_lib.mean_square}.get(
      stage.perceptual, lesson_lib.perceptual_distance)
  coefficients = networks.preconditioning(**model.config['preconditioning'])
  return lesson_lib.lesson(
      initial, networks.denoiser(module, coefficients), denoiser,
      lessons.slices(_table(stage, points), stage.M + 1), stage.grid(points), afs=stage.afs,
      points=points if stage.conditioned else None, perceptual=perceptual)


def _student_network(stage, model):
  network = model.config['network']
  if not stage.conditioned:
    return network
  return {**network, 'settings': {**network['settings'], 'step_condition': True}}


def _without_steps(schedule):
  return {name: value for name, value in schedule.items() if name != 'num_steps'}
