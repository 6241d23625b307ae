"""The fields of --mode=train_amed, which trains AMED and all other solvers that learn numbers."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.learn; the defaults train AMED-Plugin on iPNDM for 5 evaluations.

  The kind of grid is config.schedule's, the network config.model's; guidance and limit act on
  teacher and student alike.
  """
  learn = ml_collections.ConfigDict()
  # What is learned, a key of samplers.DESIGNS: 'amed' (per sample, by a small network), 'epd'
  # (several evaluations at once), 'grid' (noise levels), 'coefficients' (of a multistep solver),
  # 'adasde' (noise). Its options follow below; None is the design's own default.
  learn.design = 'amed'
  learn.num_steps = 3  # Intervals of the grid, in place of config.schedule.num_steps.

  # The teacher: a solver, with options in brackets, on a grid with M more levels in each interval.
  learn.teacher = 'ipndm(max_order=4)'
  learn.M = 2
  # What is compared: 'intervals' (each on its own) or 'end' (of the run). None: the design's usual.
  learn.loss = config_dict.placeholder(str)
  # Of 'end': the student may start elsewhere within this distance per pixel, in units of the first
  # level, in as many moves; 0: from the teacher's latent.
  learn.radius = 0.0
  learn.moves = 0

  learn.seed = 0  # Of everything random; sweeps are reproducible one by one.
  learn.trajectories = 10_000  # In all; rounded up to whole sweeps.
  # Of a sweep, over all devices; rounded up to a multiple of their number.
  learn.batch_size = 128
  learn.learning_rate = config_dict.placeholder(float)  # Of Adam; None: the design's usual one.
  learn.decay = 'constant'  # Of the rate: 'constant', or 'cosine' to a twentieth.
  learn.log_every = 5  # Sweeps between lines of metrics.jsonl.
  learn.checkpoint_every = 20  # Sweeps between checkpoints; a killed run goes on from the last.
  return learn
