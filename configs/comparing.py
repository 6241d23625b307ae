"""The fields of --mode=compare."""

import ml_collections


def get_group() -> ml_collections.ConfigDict:
  """Returns config.compare.

  The model, labels, limit, guidance and noise are those of the whole config. A list of settings is
  separated by semicolons; an option in brackets may have several values, separated by bars, and
  each combination is a setting: 'euler; dpmpp(max_order=2|3, predict_x0=True|False)'.
  """
  compare = ml_collections.ConfigDict()
  # Settings of solvers; the first one of each solver is its common setting. Settings with noise are
  # judged by their images, others by a distance: as two solvers, where one has both.
  compare.solvers = ('euler; heun; dpm; dpmpp(max_order=3|2); unipc(max_order=3|2); '
                     'deis(max_order=3|4); ipndm(max_order=4|3); ipndm_v(max_order=4|3)')
  # Settings of schedules; the first one is common to all solvers.
  compare.schedules = 'polynomial(rho=7|5); logsnr; time_uniform'
  compare.nfe = '3,4,5,6,8,10,15'  # Evaluations of the network; each solver takes those it can.
  compare.seeds = '0-255'
  # Of these seeds, as many as tell which setting is best; all seeds go into what is reported.
  compare.search = 32
  compare.shown = 12  # Seeds on the page.
  # The reference solution is refined until its RMS error per pixel is at most this.
  compare.tolerance = 1e-3
  compare.resamples = 200  # Of the bootstrap behind each interval.
  return compare
