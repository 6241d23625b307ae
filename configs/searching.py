"""The fields of --mode=search."""

import ml_collections


def get_group() -> ml_collections.ConfigDict:
  """Returns config.search; docs/search.md has the commands."""
  search = ml_collections.ConfigDict()
  # 'gits': dynamic programming over the jumps between the points of a fine grid, config.schedule
  # with teacher_steps in place of num_steps. 'dpm_v3': what the solver dpm_solver_v3 has to know of
  # the model, over the range of config.schedule; of the fields below it has levels, statistics and
  # those of its data: warm_up samples of the teacher from seed on, or so many of config.input.
  search.method = 'gits'
  search.num_steps = '4,6,8,10'  # Intervals of the grids to be found.
  # The solver that follows the fine grid, without noise: 'heun', 'dpmpp(max_order=2)'.
  search.teacher = 'ipndm(max_order=4)'
  search.teacher_steps = 60  # Intervals of the fine grid.
  # What a jump costs: 'dev', how much further from the chord of the trajectory it ends than the
  # teacher, or its distance from the teacher, 'l1' or 'l2'.
  search.metric = 'dev'
  search.coeff = 1.15  # Weight of each jump over the one before: above 1 late jumps, at low noise.
  search.warm_up = 256  # Trajectories whose mean counts; config.batch_size at least.
  search.seed = 1_000_000  # Of the first trajectory; the others have the seeds that follow.
  # The solver that is to sample on the grids: for the printed command, and for afs.
  search.student = 'ipndm(max_order=4)'
  # One interval more at the start, paid for by an analytical first step: the first level at which
  # the student comes nearest to the teacher.
  search.afs = False
  search.levels = 120  # Of dpm_v3: intervals of log sigma between levels of the statistics.
  # Of dpm_v3: one number per 'element' of the image, as published, or one 'scalar' for all.
  search.statistics = 'element'
  return search
