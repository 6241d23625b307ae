"""The fields of --mode=distill."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.distill; the defaults make the bundled model one of 2 evaluations.

  Model, labels and kind of grid are those of the whole config; config.limit is the teacher's.
  """
  distill = ml_collections.ConfigDict()
  # Intervals of the student's grid, in place of config.schedule.num_steps, one Euler step each.
  # None: 3, in the second stage 2; with step_condition every batch draws 3 to 6.
  distill.num_steps = config_dict.placeholder(int)
  distill.afs = True  # The first step is analytical: one evaluation less.
  # The student is told its number of grid points, so that one serves 3 to 6 steps (SFD-v).
  distill.step_condition = False
  # The teacher: a solver, with options in brackets, on a grid with M more levels in each interval.
  distill.teacher = config_dict.placeholder(str)  # None: 'dpmpp(max_order=3)'.
  distill.M = config_dict.placeholder(int)  # None: 3, in the second stage 2.

  # Distill a student again, with its own sampler as the teacher: config.model.path is a student, of
  # --mode=distill or converted. The first stage of one for 1 evaluation has num_steps=6.
  distill.second_stage = False
  # Of the second stage, a distance that counts beside at the last step: the folder of a converted
  # LPIPS; 'none'; or None for what stands for it, a mean square of the enlarged images.
  distill.perceptual = config_dict.placeholder(str)

  distill.seed = 0  # Of everything random; sweeps are reproducible one by one.
  distill.trajectories = 20_000  # In all; rounded up to whole sweeps.
  # Of a sweep, over all devices; rounded up to a multiple of their number.
  distill.batch_size = 64
  # Of Adam; a tenth of it after half of the trajectories. Published: 5e-5 for networks of 50
  # million parameters, 5e-4 in the second stage.
  distill.learning_rate = 5e-4
  distill.log_every = 20  # Sweeps between lines of metrics.jsonl.
  distill.checkpoint_every = 100  # Sweeps between checkpoints; a killed run goes on from the last.
  distill.dtype = 'float32'  # Precision of the saved parameters; 'float16' halves the file.
  return distill
