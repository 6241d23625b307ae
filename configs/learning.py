"""The fields of --mode=train_amed, which trains AMED and all other solvers that learn numbers."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.learn; the defaults train AMED-Plugin on iPNDM for 5 evaluations.

  The network is config.model's; guidance and limit act on teacher and student alike.
  """
  learn = ml_collections.ConfigDict()
  # What is learned, a key of samplers.DESIGNS: 'amed' (per sample, by a small network), 'epd'
  # (several evaluations at once), 'grid' (noise levels), 'coefficients' (of a multistep solver),
  # 'adasde' (noise). Its options follow below; None is the design's own default.
  learn.design = 'amed'
  # The grid: a schedule, with options in brackets, where config.schedule is left as it is, else
  # that; None: that in any case. The number of its intervals is always this one.
  learn.schedule = 'time_uniform'
  learn.num_steps = 3

  # The teacher: a solver, with options in brackets, on a grid with M more levels in each interval.
  learn.teacher = 'ipndm(max_order=3)'
  learn.M = 5
  # What is compared: 'intervals' (each on its own, as AMED was published: least memory) or 'end'
  # (of the run, through all of it). None: the design's usual.
  learn.loss = 'end'
  # Of 'end': the student may start elsewhere within this distance per pixel, in units of the first
  # level, in as many moves; 0: from the teacher's latent.
  learn.radius = 0.0
  learn.moves = 0

  learn.seed = 0  # Of everything random; sweeps are reproducible one by one.
  learn.trajectories = 10_000  # In all; rounded up to whole sweeps.
  # Of a sweep, over all devices; rounded up to a multiple of their number.
  learn.batch_size = 32
  learn.learning_rate = config_dict.placeholder(float)  # Of Adam; None: the design's usual one.
  learn.decay = 'cosine'  # Of the rate: 'cosine' to a twentieth, or 'constant', as published.
  learn.log_every = 10  # Sweeps between lines of metrics.jsonl.
  learn.checkpoint_every = 50  # Sweeps between checkpoints; a killed run goes on from the last.
  return learn
