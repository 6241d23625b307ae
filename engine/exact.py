"""The reference solution of a comparison: the probability-flow ODE on a fine grid."""

from typing import NamedTuple

import numpy as np

import samplers
from engine import progress as progress_lib, trial as trial_lib

SOLVER = 'etd'
OPTIONS = {'order': 3}
SCHEDULE = 'polynomial'
SLOTS = samplers.make(SOLVER, [3.0, 2.0], **OPTIONS).mix.shape[1]
_FIRST, _LAST = 16, 1024  # Steps of the coarsest and the finest grid.
_CALLS = 3  # Of the network in a step.
_SAFE = 2**2 - 1


class Solution(NamedTuple):
  """Where each latent ends.

  Attributes:
    end: at the lowest level, float32 (n, height, width, channels).
    zero: at level 0, one denoising step below.
    error: RMS per pixel, an upper estimate.
    num_steps: of the grid.
    nfe: evaluations of the network on that grid.
  """

  end: np.ndarray
  zero: np.ndarray
  error: float
  num_steps: int
  nfe: int


def solve(trial: trial_lib.Trial, sigma_min: float, sigma_max: float, tolerance: float,
          progress: progress_lib.Progress) -> Solution:
  """Refines a grid until that moves the samples no longer.

  Exponential Runge-Kutta of order 3, on twice the steps each time. Where its order shows, the
  distance between the last two solutions is 2^3 - 1 times the error of the finer one. A third of
  it is stated, as if the order were 2: an upper estimate, also where the order is not reached yet.

  Args:
    trial: seeds and program; its tables have 3 rows or more.
    sigma_min: last level, above 0.
    sigma_max: first level.
    tolerance: of the stated error, RMS per pixel in model units.
    progress: how to show progress.

  Returns:
    The Solution, on the finest grid tried: its error is above the tolerance only where the last
    grid was not enough.

  Raises:
    FloatingPointError: if a sample is not finite.
  """
  sizes = [_FIRST * 2**i for i in range(int(np.log2(_LAST // _FIRST)) + 1)]
  before, error = None, float('inf')
  with progress('reference solution', sizes[-1], 'steps') as advance:
    for num_steps in sizes:
      grid = samplers.schedule(SCHEDULE, num_steps, sigma_min, sigma_max)
      end, _ = trial.run(_pieces(grid, trial.rows // _CALLS), sigma_max, len(trial.seeds))
      if not np.isfinite(end).all():
        raise FloatingPointError('compare: the reference solution must be finite, got a value that '
                                 'is not; lower config.guidance.scale, or look at the model')
      error = float('inf') if before is None else rms(end - before) / _SAFE
      before = end
      advance(num_steps if num_steps == _FIRST else num_steps // 2, error=f'{error:.1e}')
      if error <= tolerance:
        break
    advance(sizes[-1] - num_steps)
  last = samplers.make('euler', [sigma_min, 0.0])
  zero, _ = trial.run([last], 0, len(trial.seeds), start=end)
  return Solution(end, zero, error, num_steps, _CALLS * num_steps)


def _pieces(grid: np.ndarray, steps: int) -> list[samplers.Table]:
  """A one-step method may be cut anywhere: tables of at most so many steps."""
  return [samplers.make(SOLVER, grid[first:first + steps + 1], **OPTIONS)
          for first in range(0, len(grid) - 1, steps)]


def rms(difference: np.ndarray) -> float:
  """Returns the root mean square."""
  return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
