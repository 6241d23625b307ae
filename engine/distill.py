"""Distills a network into a student for few steps: `plan` checks everything, `run` does the work.

The student is a model directory like any other, to be sampled by Euler steps on the grid that it
was trained on; its `source` tells which. See docs/distillation.md.
"""

import dataclasses
import pathlib
from typing import Any

import ml_collections

from engine import (
  devices,
  distill_stages as stages,
  files,
  generate,
  identity,
  progress as progress_lib,
  resolve,
  trainer,
)
from models import directory
from samplers import checks

_MODEL, _SAMPLES = 'model', 'samples'
_LEAST = {'trajectories': 1, 'batch_size': 1, 'log_every': 1, 'checkpoint_every': 1,
          'seed': 0}


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A distillation with nothing left to decide.

  Attributes:
    course: what the trainer needs.
    model: what goes into config.json of the student's directory.
    training: what its `source` tells of its training, and so of its sampling.
    identity: what decides the result, plain values.
    sampling: config of a run that samples the student, but for its path.
    dtype: of the saved parameters.
    folder: of all output.
  """

  course: trainer.Course
  model: dict[str, Any]
  training: dict[str, Any]
  identity: dict[str, Any]
  sampling: ml_collections.ConfigDict
  dtype: str
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it; nothing is compiled before all of it is found good.

  Args:
    config: the fields of configs/default.py, of which `distill` counts.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of a model cannot be read.
    ValueError: if a field is out of range, the model cannot be distilled, or the folder cannot be
      written to or holds another run.
  """
  config = resolve.read_none(config)
  distill = config.distill
  resolve.check_names(config)
  resolve.refuse(config, 'distill')
  _check(distill)
  resolve.batch_size(config)
  model = resolve.model(config.model, conditioned=True)
  resolve.labels(config, resolve.seeds(config.seeds, None), model.num_classes, None,
                 model.image_shape)
  stage = stages.plan(config, model)
  own = {'mode': 'distill', **stage.identity, 'labels': config.labels,
         **{field: distill[field] for field in ('seed', 'trajectories', 'learning_rate', 'dtype')},
         'batch_size': devices.share_of(distill.batch_size) * devices.count(),
         'seeds_from': config.seeds_from,
         'model': model.identity}
  folder = pathlib.Path(workdir)
  identity.check_product(folder, own, _MODEL)
  course = stages.course(stage, distill, config.labels, model, folder)
  files.check_folder(workdir)
  return Plan(course=course, model=stages.student_config(stage, model),
              training=stage.training | {'dataset_name': model.name}, identity=own,
              sampling=stages.sampling(config, stage), dtype=distill.dtype, folder=folder)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Trains from the last checkpoint on, writes the student, and samples from it.

  Args:
    plan: what `plan` returns.
    progress: shows how far the run is.

  Returns:
    A few lines for the user: what was made, at which cost, and how to sample with it.

  Raises:
    FloatingPointError: if the loss diverges.
    OSError: if a file cannot be written.
  """
  student = plan.folder / _MODEL
  if student.exists():
    told = f'{student} is complete; nothing was left to train'
  else:
    files.remove_partial(plan.folder)
    identity.claim(plan.folder, plan.identity)
    learned, lines = trainer.train(plan.course, progress)
    seconds = lines[-1]['seconds']
    trajectories = plan.course.sweeps * plan.course.batch_size
    directory.save(student, plan.model, learned, {
        'family': 'sfd', 'training': plan.training, 'distilled': plan.identity,
        'trajectories': trajectories, 'seconds': seconds}, plan.dtype)
    loss = ', '.join(f'{value:.4g}' for value in lines[-1]['loss'])
    told = (f'student in {student}: {trajectories} trajectories, loss {loss}, {seconds:.0f} s; see '
            f'{trainer.PLOT}')
  with plan.sampling.unlocked():
    plan.sampling.model.path = str(student)
  samples = generate.run(generate.plan(plan.sampling, str(plan.folder / _SAMPLES)), progress)
  return f'{told}\n{samples}\n{_command(plan, student)}'


def _command(plan, student):
  """How to sample from the student."""
  sampling = plan.sampling
  fields = [('model.path', student), ('solver.name', sampling.solver.name),
            ('solver.afs', sampling.solver.afs),
            *((f'schedule.{name}', value) for name, value in sampling.schedule.items()
              if value is not None and (name, value) != ('name', 'polynomial'))]
  text = 'python main.py ' + ' '.join(f'--config.{name}={value}' for name, value in fields)
  points = plan.training['points']
  if len(points) > 1:
    text += f' (num_steps from {points[0] - 1} to {points[-1] - 1})'
  return text


def _check(distill):
  """Raises ValueError for the first field of config.distill that is out of range by itself."""
  resolve.check_least('distill', distill, {
      **({} if distill.M is None else {'M': 0}), **_LEAST}, 'distilling.py')
  least = 1 + distill.afs
  if distill.num_steps is not None and (
      not checks.is_integer(distill.num_steps) or distill.num_steps < least):
    raise ValueError(f'config.distill.num_steps: must be an integer of {least} or more, as a step '
                     f'has to be learned, got {distill.num_steps!r}; 3 is usual')
  if distill.trajectories < distill.batch_size:
    raise ValueError('config.distill.trajectories: must be config.distill.batch_size or more, got '
                     f'{distill.trajectories} with batches of {distill.batch_size}; lower the '
                     'batch size')
  checks.check_positive('config.distill', 'learning_rate', distill.learning_rate, '5e-4 is usual')
  checks.check_choice('config.distill', 'dtype', distill.dtype, directory.DTYPES)
