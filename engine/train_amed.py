"""Trains solvers with learned numbers: `plan` checks everything, `run` does the work.

AMED is one of them; samplers.DESIGNS has them all. What is learned becomes a predictor, a folder
that sampling needs nothing else than.
"""

import dataclasses
import pathlib
import re
from typing import Any

import ml_collections
import numpy as np
import optax

import models
import samplers
from configs import default
from engine import (
  devices,
  files,
  guides,
  identity,
  lessons,
  predictors,
  progress as progress_lib,
  resolve,
  sampler,
  seeds as seeds_lib,
  settings as settings_lib,
  teachers,
  trainer,
)
from models import directory
from samplers import checks

_LEAST = {'num_steps': 1, 'M': 0, 'trajectories': 1, 'batch_size': 1, 'log_every': 1,
          'checkpoint_every': 1, 'seed': 0, 'moves': 0}
_DECAYS = 'constant', 'cosine'
_END = 0.05  # Of the learning rate, where it falls.
_SHARED = 'max_order', 'predict_x0', 'lower_order_final'  # Options that a teacher takes over.


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A training with nothing left to decide.

  Attributes:
    course: what the trainer needs.
    design: the solver, on its grid.
    teacher: evaluations of the teacher for one trajectory.
    predictor: config.json of what will be written.
    identity: what decides the result, plain values.
    folder: of all output.
  """

  course: trainer.Course
  design: samplers.learned.Design
  teacher: int
  predictor: dict[str, Any]
  identity: dict[str, Any]
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str | None) -> Plan:
  """Resolves a config and checks it; nothing is compiled before all of it is found good.

  Args:
    config: the fields of configs/default.py, of which `learn` counts.
    workdir: folder of all output; None: a numbered one in exps/, that of an unfinished run of the
      same config if there is one. Made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of a network cannot be read.
    ValueError: if a field is out of range, or the folder cannot be written to or holds another run.
  """
  config = resolve.read_none(config)
  learn, given = config.learn, resolve.given(config)
  _check(learn)
  resolve.check_names(config)
  resolve.refuse(config, 'train_amed', guided=True)
  model = resolve.model(config.model, latent=True)
  resolve.check_latent(config, model)
  sigmas, schedule = _grid(config, given['schedule'], model)
  named = {'name': learn.design, 'settings': _settings(learn, model)}
  design = predictors.design(named, sigmas)
  guide = guides.plan(config.guidance, model, {'name': learn.design}, sigmas)
  loss = learn.loss or design.loss
  checks.check_choice('config.learn', 'loss', loss, samplers.learned.LOSSES)
  if loss == 'intervals' and design.step is None:
    raise ValueError(f"config.learn.loss: must be 'end' for {learn.design}, whose intervals belong "
                     f'together, got {loss!r}; leave it out')
  if loss == 'intervals' and learn.moves:
    raise ValueError("config.learn.moves: must be 0 with config.learn.loss='intervals', whose "
                     f"start is given, got {learn.moves}; take 'end'")
  shared = {option: learn[option] for option in _SHARED if learn[option] is not None}
  teacher = teachers.parse('config.learn.teacher', learn.teacher, shared)
  table = teachers.table('config.learn.teacher', teacher,
                         teachers.finer(schedule, sigmas, learn.M + 1))
  classes = seeds_lib.parse_labels(config.labels, guide.num_classes if guide else model.num_classes)
  if guide and classes is not None:
    guides.check_labels(guide, classes, config.labels)
  lesson = _lesson(loss, design, table, learn, model, config.limit, guide, sigmas)
  own = {'mode': 'train_amed', 'design': named, 'loss': loss, 'schedule': schedule,
         'teacher': teacher.text, 'limit': config.limit, 'labels': config.labels,
         **{field: learn[field] for field in ('M', 'radius', 'moves', 'seed', 'trajectories',
                                              'decay')},
         'batch_size': devices.share_of(learn.batch_size) * devices.count(),
         'learning_rate': learn.learning_rate or design.learning_rate,
         'model': model.identity, **(guide.identity if guide else {})}
  folder = _folder(workdir, own, sigmas, design, model)
  sweeps = -(-learn.trajectories // own['batch_size'])
  constants = sampler.Constants(model.params, None, np.float32(sigmas[0]),
                                guide and guide.constants)
  course = trainer.Course(
      who='train_amed', lessons=[lesson],
      optimizer=_optimizer(own['learning_rate'], learn.decay, sweeps * lesson.updates),
      constants=constants, image_shape=model.image_shape, classes=classes,
      num_classes=guide.num_classes if guide else model.num_classes, seed=learn.seed,
      sweeps=sweeps, batch_size=own['batch_size'], log_every=learn.log_every,
      checkpoint_every=learn.checkpoint_every, folder=folder,
      remedy='lower config.learn.learning_rate, in another --workdir', describe=design.describe,
      title=f'{_title(named)} on {model.name}, {design.nfe} evaluations')
  predictor = {
      'kind': predictors.FOLDER, 'design': named, 'schedule': schedule, 'sigmas': sigmas.tolist(),
      'limit': config.limit, 'guidance': _guidance(config.guidance) if guide else None,
      'model': {'name': model.name, 'path': _absolute(config.model.path), 'sha256': model.sha256,
                'image_shape': list(model.image_shape)}}
  files.check_folder(folder)
  return Plan(course=course, design=design, teacher=table.nfe, predictor=predictor, identity=own,
              folder=folder)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Trains from the last checkpoint on, and writes the predictor last.

  Args:
    plan: what `plan` returns.
    progress: shows how far the run is.

  Returns:
    A few lines for the user: what was learned, at which cost, and how to sample with it.

  Raises:
    FloatingPointError: if the loss diverges.
    OSError: if a file cannot be written.
  """
  target = plan.folder / predictors.FOLDER
  if target.exists():
    return f'{target} is complete; nothing was left to do\n{_command(plan)}'
  files.remove_partial(plan.folder)
  identity.claim(plan.folder, plan.identity)
  learned, lines = trainer.train(plan.course, progress)
  seconds = lines[-1]['seconds']
  trajectories = plan.course.sweeps * plan.course.batch_size
  runs = 1 + (plan.identity['moves'] + 1 if plan.identity['moves'] else 0)  # Of the student.
  calls = trajectories * (plan.teacher + runs * plan.design.calls)
  directory.save(target, plan.predictor, learned, {
      'trained': plan.identity, 'trajectories': trajectories, 'evaluations': calls,
      'seconds': seconds})
  loss = ', '.join(f'{value:.4g}' for value in lines[-1]['loss'])
  return (f'predictor in {target}: {_title(plan.predictor["design"])}, {plan.design.nfe} '
          f'evaluations, {trajectories} trajectories ({calls} evaluations), loss {loss}, '
          f'{seconds:.0f} s; see {trainer.PLOT}\n{_command(plan)}')


def _lesson(loss, design, table, learn, model, limit, guide, sigmas):
  """The lesson: teacher and student see the network through the same guidance and limit."""
  def denoiser(asks):
    method = sampler.Method(sampler.apply_of(model, asks), None, False, asks, limit,
                            guide and guide.method)
    return lambda constants, labels: sampler.denoiser(constants, labels, method=method)[0]
  asked = denoiser('features' if design.features else None)
  teach = lessons.slices(table, learn.M + 1)
  if loss == 'intervals':
    return lessons.of_intervals(design, teach, asked, denoiser(None), float(sigmas[0]),
                                len(sigmas) - 1)
  return lessons.of_end(design, teach, asked, denoiser(None), float(sigmas[0]), len(sigmas) - 1,
                        learn.radius, learn.moves)


def _settings(learn, model):
  """All options of the design: those given, its defaults, and what the network decides."""
  known = samplers.learned.design_options(learn.design)
  given = {option: learn[option] for option in _options() if learn[option] is not None}
  for option in given:
    if option not in known:
      raise ValueError(f'config.learn: {learn.design}: {checks.unknown("option", option, known)}')
  if 'bottleneck_size' in known:
    size = predictors.bottleneck_size(model)
    if given.get('bottleneck_size', size) != size:
      raise ValueError(f'config.learn.bottleneck_size: must be {size} for {model.name}, got '
                       f'{given["bottleneck_size"]}; leave it out')
    given['bottleneck_size'] = size
  return {**known, **given}


def _options():
  return {option for name in samplers.learned.DESIGNS
          for option in samplers.learned.design_options(name)}


def _grid(config, given, model):
  """The student's levels, and the arguments that made them."""
  learn, usual = config.learn, default.get_config().schedule
  ends = {field: given[field] for field in ('sigma_min', 'sigma_max') if field in given}
  count = {'num_steps': learn.num_steps}
  untouched = {field: value for field, value in given.items() if field not in (*ends, *count)} == {
      'name': usual.name}
  if learn.schedule is None or not untouched:
    sigmas, schedule = resolve.sigmas(config.schedule.name, given | count, model)
    if len(sigmas) != learn.num_steps + 1:
      raise ValueError(f'config.learn.num_steps: must be {len(sigmas) - 1}, as the schedule '
                       f'{schedule["name"]} has it, got {learn.num_steps}; set it so, or choose '
                       'another schedule')
    return sigmas, schedule
  setting, *more = settings_lib.parse('config.learn.schedule', learn.schedule,
                                      samplers.schedule_option_types)
  if more:
    raise ValueError(f'config.learn.schedule: must be one schedule, got {learn.schedule!r}; such '
                     'as polynomial(rho=7)')
  return resolve.sigmas(setting.name, ends | setting.options | count, model)


def _optimizer(rate, decay, updates):
  """Adam as AMED is trained with, perhaps with a falling rate."""
  if decay == 'cosine':
    rate = optax.cosine_decay_schedule(rate, updates, alpha=_END)
  return optax.adam(rate)


def _folder(workdir, own, sigmas, design, model):
  """The folder of the run; without a workdir the experiment of this config, or a new number."""
  if workdir is not None:
    folder = pathlib.Path(workdir)
    identity.check_product(folder, own, predictors.FOLDER)
    return folder
  text = _described(own, sigmas, design, model)
  numbered = predictors.experiments()
  for path in (path for number in sorted(numbered, reverse=True) for path in numbered[number]):
    begun = (path / identity.NAME).exists()
    if _same(path, own) if begun else path.name[6:] == text and not any(path.iterdir()):
      return path
  return predictors.EXPERIMENTS / f'{max(numbered, default=-1) + 1:05d}-{text}'


def _described(own, sigmas, design, model):
  """What follows the number of an experiment: of what, on how many steps, from whom."""
  schedule, settings = own['schedule'], own['design']['settings']
  rho = schedule.get('rho')
  grid = {'polynomial': 'poly', 'time_uniform': 'uni'}.get(schedule['name'], schedule['name'])
  parts = [pathlib.Path(model.name).name, len(sigmas) - 1, design.nfe,
           settings.get('student', own['design']['name']), own['teacher'].split('(')[0], own['M'],
           grid + (f'{rho:g}' if rho else '')]
  text = '-'.join(re.sub(r'[^\w.]+', '_', str(part)).strip('_') for part in parts)
  return text + ('-afs' if settings.get('afs') else '')


def _same(path, own):
  try:
    return identity.check(path, own)
  except ValueError:
    return False


def _guidance(config):
  """The fields of config.guidance that were given; a network's folder as others find it."""
  given = {field: value for field, value in config.items() if value is not None}
  bundled = {*models.BUNDLED, *models.BUNDLED_CLASSIFIERS}
  return {field: _absolute(value) if field in ('classifier', 'weak') and value not in bundled
          else value for field, value in given.items()}


def _absolute(path):
  return None if path is None else str(pathlib.Path(path).absolute())


def _title(named):
  student = named['settings'].get('student')
  return named['name'] + (f' ({student})' if student and student != named['name'] else '')


def _command(plan):
  return f'python main.py --config.predictor.path={plan.folder}'


def _check(learn):
  """Raises ValueError for the first field of config.learn that is out of range."""
  checks.lookup('config.learn.design', learn.design, samplers.learned.DESIGNS)
  resolve.check_least('learn', learn, _LEAST, 'learning.py')
  checks.check_choice('config.learn', 'decay', learn.decay, _DECAYS)
  if learn.learning_rate is not None:
    checks.check_positive('config.learn', 'learning_rate', learn.learning_rate,
                          'None takes the usual one of the design')
  if not 0 <= checks.to_number(learn.radius) < 10 or bool(learn.moves) != bool(learn.radius):
    raise ValueError('config.learn.radius: must be from 0 to below 10, and above 0 just where '
                     f'config.learn.moves is, got {learn.radius!r} with {learn.moves} moves; 0 '
                     'with 0 is usual')
