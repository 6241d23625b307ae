"""Exact mean and variance of what a Table makes of Gaussian data, without sampling."""

from typing import Any

import numpy as np

from samplers import table as table_lib


def gaussian_moments(table: table_lib.Table, mean: Any, variance: Any, *,
                     start: tuple[Any, Any] | None = None) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and variance of a solver's samples where the data are Gaussian.

  For data N(mu, v) the denoiser is affine, D(x; sigma) = (v x + sigma^2 mu) / (v + sigma^2), and so
  is the whole table: its result is a number plus a weighted sum of independent normal variables,
  the start and the draws. Draws with intervals are increments of one Brownian path, see
  `noise.brownian`: correlated where their intervals overlap. The others are independent. Nothing
  is guided: both answers of a table of two are D.

  Args:
    table: a Table on the host.
    mean: mu of the data, a scalar or one number per independent dimension.
    variance: v of the data, >= 0, likewise.
    start: (mean, variance) of the state at the table's first level; None: (0, sigma[0]^2), where
      samplers start. The diffused data themselves have (mu, v + sigma[0]^2).

  Returns:
    Mean and variance of the result, shaped like the data's.

  Raises:
    ValueError: if a variance is not a finite number >= 0.
  """
  mean, variance = np.broadcast_arrays(np.asarray(mean, float), np.asarray(variance, float))
  first = (0.0, table.sigma[0]**2) if start is None else start
  for what, value in (('variance', variance), ('start[1]', np.asarray(first[1], float))):
    bad = value[~((value >= 0) & (value < np.inf))]
    if bad.size:
      raise ValueError(f'gaussian_moments: {what} must be finite and >= 0, got {bad[0]:g}; it is '
                       'the square of a standard deviation')
  pieces = _pieces(table)
  # Each slot as a constant, and its weights on the start's noise and on the pieces of the draws.
  state = np.zeros((table.slots, 2 + pieces.shape[1], *mean.shape))
  state[0, 0], state[0, 1] = first[0], np.sqrt(first[1])
  for r in range(table.rows):
    answer = np.zeros_like(state[:1])
    if table.kind[r] in (table_lib.DENOISE, table_lib.RAW):
      share = variance / (variance + table.sigma[r]**2)
      answer = share * state[:1]
      answer[0, 0] += (1 - share) * mean
    state = np.tensordot(table.mix[r], np.concatenate([state, *[answer] * table.answers]), 1)
    draw = pieces[r].reshape(-1, *[1] * mean.ndim)
    state[:, 2:] += table.noise[r].reshape(-1, *[1] * draw.ndim) * draw
  return state[0, 0], np.sum(state[0, 1:]**2, axis=0)


def _pieces(table):
  """Weights of every row's draw on independent normal variables, (rows, variables).

  The ends of all intervals cut the path into pieces, whose increments are independent.
  """
  drawn = np.flatnonzero(np.any(table.noise != 0, axis=1))
  low, high = np.sort(table.interval[drawn], axis=1).T  # NaN stays NaN.
  alone = np.isnan(low)
  ends = np.unique(np.concatenate([low[~alone], high[~alone]]))
  lengths = np.diff(ends)
  inside = (low[:, None] <= ends[:-1]) & (ends[1:] <= high[:, None])
  with np.errstate(invalid='ignore'):
    shared = np.where(inside, np.sqrt(lengths / (high - low)[:, None]), 0.0)
  weights = np.zeros((table.rows, shared.shape[1] + alone.sum()))
  weights[drawn] = np.concatenate([shared, np.eye(len(drawn))[:, alone]], axis=1)
  return weights
