"""Local truncation error of any solver, against a fine solution of the same ODE.

Step i of a solver starts from the exact state x(sigma_i), and its result is compared with
x(sigma_{i+1}). A multistep solver also looks back: its steps are taken in a row, and after each of
them the state, slot 0 of its table, is put back on the solution. The answers that it remembers are
then those of states on the solution, at the solver's own earlier levels: the history of a solver
that made no error so far. Answers at points within a step, Runge-Kutta stages and UniPC's predicted
points, are where the solver's own formula puts them from the exact state. Starting steps of low
order are measured as they are, since they are part of the solver.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from samplers import checks, table as table_lib

REFERENCE = 'unipc'
"""Solver of fine solutions: with its defaults, of order 3, on `refine`d levels."""


def refine(sigmas: np.ndarray, substeps: int) -> np.ndarray:
  """Puts levels between those of a grid, evenly in sigma^(1/7).

  Source of the spacing: Karras et al. 2022, arXiv:2206.00364, Eq. 5: polynomial of rho 7.

  Args:
    sigmas: decreasing levels above 0, (n + 1,).
    substeps: parts of each interval, 1 or more.

  Returns:
    np.float64 (substeps * n + 1,); every `substeps`-th one is exactly a level of the grid.

  Raises:
    ValueError: if a level is not above 0 or the number of parts is not a positive integer.
  """
  sigmas = checks.check_grid('refine', sigmas)
  if sigmas[-1] == 0:
    raise ValueError('refine: sigmas must be above 0, got 0 at the end; the ODE of a network has '
                     'no solution below the lowest level it was trained for')
  if not checks.is_integer(substeps) or substeps < 1:
    raise ValueError(f'refine: substeps must be an integer of at least 1, got {substeps!r}; 12 is '
                     'usual')
  roots = sigmas**(1 / 7)
  part = np.arange(substeps) / substeps
  fine = (roots[:-1, None] + part * np.diff(roots)[:, None])**7
  fine[:, 0] = sigmas[:-1]
  return np.append(fine.ravel(), sigmas[-1])


def reference_table(sigmas: np.ndarray, substeps: int) -> samplers.Table:
  """Returns the Table of a fine solution; every `substeps`-th step ends on a level of `sigmas`.

  Raises:
    ValueError: as `refine`.
  """
  return samplers.make(REFERENCE, refine(sigmas, substeps))


def ends(table: samplers.Table) -> np.ndarray:
  """Returns the rows of a table on the host after which slot 0 is at a grid point."""
  return np.flatnonzero(~np.isnan(table.level))


class Replay(NamedTuple):
  """What a table did, row by row.

  Attributes:
    states: slot 0 after the row, before it is put back, (rows, batch, height, width, channels); the
      rows of `ends` are those to look at.
    answers: what the denoiser said in the row, like `states`. With restarts and one call a step
      these are the denoised images of the exact states.
  """

  states: jax.Array
  answers: jax.Array


def replay(table: samplers.Table, denoise: Callable[[jax.Array, jax.Array], jax.Array],
           x: jax.Array, exact: jax.Array, restart: jax.Array | bool) -> Replay:
  """Runs a table without noise or guidance, each step from the exact state if asked to; pure.

  The table and the states are arguments of a compiled function, so that solvers and references
  that are padded to one shape share a program.

  Args:
    table: a Table without noise, traced or not. Rows of the guidance term answer 0, as without a
      guide.
    denoise: denoise(x, sigma) -> D(x; sigma).
    x: state at the table's first level, (batch, height, width, channels).
    exact: state of the solution where each step ends, (steps, batch, ...), one or more; steps
      beyond take the last.
    restart: whether slot 0 is put on the solution after every step; else this is `samplers.run`.

  Returns:
    The Replay.
  """
  sigma, mix, level = (jnp.asarray(array).astype(x.dtype) for array in (
      table.sigma, table.mix, table.level))
  raw = getattr(denoise, 'raw', denoise)
  count = mix.shape[2] - mix.shape[1]  # Two answers are one where nothing guides.

  def nothing(x, sigma):
    del sigma
    return jnp.zeros_like(x)

  def row(state, inputs):
    sigma, kind, mix, ended, index = inputs
    answer = jax.lax.switch(kind, branches, state[0], sigma)
    parts = jnp.concatenate([state, *[answer[None]] * count])
    state = jnp.einsum('ij,j...->i...', mix, parts, precision='highest')
    back = jnp.where(ended & jnp.asarray(restart), exact[index], state[0])
    return state.at[0].set(back), Replay(state[0], answer)

  branches = [denoise, nothing, nothing, raw]
  kind = jnp.asarray(table.kind)
  if raw is denoise:  # One copy of the network in the program instead of two.
    branches = branches[:3]
    kind = jnp.where(kind == table_lib.RAW, table_lib.DENOISE, kind)
  ended = ~jnp.isnan(level)
  index = jnp.clip(jnp.cumsum(ended) - 1, 0, len(exact) - 1)
  slots = jnp.zeros((mix.shape[1], *x.shape), x.dtype).at[0].set(x)
  return jax.lax.scan(row, slots, (sigma, kind, mix, ended, index))[1]


def errors(states: np.ndarray, exact: np.ndarray) -> np.ndarray:
  """Returns the root mean square difference over an image, (steps, batch), float64.

  Args:
    states: of `replay` where steps end, (steps, batch, height, width, channels).
    exact: the solution there, like `states`.
  """
  away = np.asarray(states, np.float64) - np.asarray(exact, np.float64)
  return np.sqrt(np.mean(away**2, axis=(-3, -2, -1)))
