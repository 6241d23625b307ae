"""The reference solution of a comparison: the probability-flow ODE on a fine grid."""

from typing import NamedTuple

import numpy as np

import samplers
from engine import trial as trial_lib

SOLVER = 'etd'
OPTIONS = {'order': 3}
SCHEDULE = 'polynomial'
SLOTS = samplers.make(SOLVER, [3.0, 2.0], **OPTIONS).mix.shape[1]
LAST = 1024  # Steps of the finest grid.
_FIRST = 8  # Of the coarsest.
_CALLS = 3  # Of the network in a step.
_MOST = 3.0  # Of r - 1, see `refine`.


class Solution(NamedTuple):
  """Where each latent ends.

  Attributes:
    end: at the lowest level, float32 (n, height, width, channels).
    zero: at level 0, one denoising step below.
    difference: RMS distance per pixel to the solution on half as many steps; infinite at first.
    error: RMS per pixel, estimated.
    num_steps: of the grid.
  """

  end: np.ndarray
  zero: np.ndarray
  difference: float
  error: float
  num_steps: int

  @property
  def nfe(self) -> int:
    """Evaluations of the network on the grid."""
    return _CALLS * self.num_steps


def is_enough(solution: Solution | None, tolerance: float) -> bool:
  """Says whether a solution need not, or cannot, be refined."""
  return solution is not None and (
      solution.error <= tolerance or solution.num_steps >= LAST)


def refine(trial: trial_lib.Trial, sigma_min: float, sigma_max: float,
           coarse: Solution | None) -> Solution:
  """Solves on twice as many steps, by an exponential Runge-Kutta method of order 3.

  The error is told by how much that moves the samples, d. Where the step before has moved them by
  r d, halving the steps divides the error by r, and d / (r - 1) is left. Of r - 1, no less than 1
  and no more than 3 counts, though it is 7 where the order shows: an upper estimate.

  Args:
    trial: seeds and program; its tables have 3 rows or more.
    sigma_min: last level, above 0.
    sigma_max: first level.
    coarse: the solution to refine; None: the first.

  Returns:
    The Solution.

  Raises:
    FloatingPointError: if a sample is not finite.
  """
  num_steps = 2 * coarse.num_steps if coarse else _FIRST
  grid = samplers.schedule(SCHEDULE, num_steps, sigma_min, sigma_max)
  end, _ = trial.run(_pieces(grid, trial.rows // _CALLS), sigma_max, len(trial.seeds))
  if not np.isfinite(end).all():
    raise FloatingPointError('compare: the reference solution must be finite, got a value that is '
                             'not; lower config.guidance.scale, or look at the model')
  last = samplers.make('euler', [sigma_min, 0.0])
  zero, _ = trial.run([last], 0, len(trial.seeds), start=end)
  difference = rms(end - coarse.end) if coarse else float('inf')
  falls = coarse.difference / difference - 1 if coarse and difference else _MOST
  falls = falls if np.isfinite(falls) else 1.0
  return Solution(end, zero, difference, difference / min(max(falls, 1.0), _MOST), num_steps)


def _pieces(grid: np.ndarray, steps: int) -> list[samplers.Table]:
  """A one-step method may be cut anywhere: tables of at most so many steps."""
  return [samplers.make(SOLVER, grid[first:first + steps + 1], **OPTIONS)
          for first in range(0, len(grid) - 1, steps)]


def rms(difference: np.ndarray) -> float:
  """Returns the root mean square."""
  return float(np.sqrt(np.mean(np.square(difference, dtype=np.float64))))
