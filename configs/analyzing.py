"""The fields of --mode=analyze."""

import ml_collections


def get_group() -> ml_collections.ConfigDict:
  """Returns config.analyze; model, schedule, solver, seeds and labels are those of every run."""
  analyze = ml_collections.ConfigDict()
  # States of a trajectory: config.solver on config.schedule with one step less than this.
  analyze.num_points = 51
  analyze.window = 11  # Points of a fit of curvature and torsion: odd, from 5 to num_points.
  # The steps of config.schedule.num_steps are measured against a solution with each of them cut
  # into this many, an even number.
  analyze.substeps = 12
  # Images that the optimal denoiser and the Gaussian approximations know: 'digits' (those that the
  # model was trained on), a .npz file or a folder as config.input.images takes. 'auto': the digits
  # for a model of them, None for others; None: without.
  analyze.data = 'auto'
  analyze.save_trajectories = False  # Also write trajectories.npz: x, denoised, sigmas, seeds.
  return analyze
