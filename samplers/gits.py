"""GITS: the best few steps of a fine grid, found by dynamic programming.

A teacher follows the ODE on a fine grid sigma_0 > ... > sigma_n. Going from point i straight to
point j costs how far that misses the teacher; of all ways from 0 to n in a given number of jumps
the cheapest is the grid to sample on. One matrix of costs serves every number of jumps.

Source: Chen et al. 2024 (GITS), arXiv:2405.11326, Sec. 3 and 4.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, registry, table as table_lib
from samplers.run import run

METRICS = 'dev', 'l1', 'l2'
"""How far a jump misses the teacher, see `costs`."""

_IMAGE = (-3, -2, -1)  # Axes of height, width and channels.


def teacher(name: str, sigmas: Sequence[float] | np.ndarray, *, afs: bool = False,
            limited: bool = False, **options: Any) -> table_lib.Table:
  """Builds a solver whose trajectory also visits the slopes: for `follow`.

  The slope at a grid point is eps = (x - D) / sigma of the state there. Most solvers evaluate it
  first in every step; a slot more keeps it, which costs nothing. Two kinds of teacher ask for it in
  a row of its own, and the table's NFE says so: UniPC and others whose steps start otherwise, and
  all of a denoiser with a limit, since D here is what the network says before it.

  Args:
    name: of a solver without noise.
    sigmas: the fine grid, n + 1 decreasing levels, each once; only the last may be 0.
    afs: take x / sqrt(1 + sigma^2) for the first slope. The published code does so whenever the
      student does; the first jump then costs nothing by construction, so leave it out.
    limited: whether the denoiser has a limit, and so an attribute `raw`.
    **options: of the solver.

  Returns:
    A Table whose trajectory is x_0, x_1, eps_0, x_2, eps_1, ...

  Raises:
    ValueError: as `registry.make`, or if the solver draws noise or does not step on this grid.
  """
  table = registry.make(name, sigmas, **options)
  sigmas = np.asarray(sigmas, np.float64)
  if np.any(table.noise):
    raise ValueError(f'teacher: must follow the ODE, got {name}, which draws noise; take ipndm')
  reached = table.level[~np.isnan(table.level)]
  if not np.array_equal(reached, sigmas[1:]):
    raise ValueError(f'teacher: must step from each level to the next, got {name}, which ends '
                     f'{len(reached)} steps at other levels; take ipndm')
  table = _with_slopes(table, sigmas, [limited] * len(sigmas[1:]) if not afs else
                       [False] + [limited] * len(sigmas[2:]))
  return table_lib.first_step_for_free(table) if afs else table


def follow(table: table_lib.Table, denoise: Callable[[jax.Array, jax.Array], jax.Array],
           x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Runs a teacher.

  Args:
    table: of `teacher`; its `level` on the host, the other fields traced or not.
    denoise: D(x; sigma).
    x: state at the first level, (batch, height, width, channels).

  Returns:
    States x_0 to x_n, (n + 1, *x.shape), and slopes eps_0 to eps_{n-1}, (n, *x.shape).
  """
  _, visited = run(table, denoise, x, trajectory=True)
  return jnp.concatenate([visited[:1], visited[1::2]]), visited[2::2]


def deviation(points: jax.Array, first: jax.Array, last: jax.Array) -> jax.Array:
  """Returns the distance of points from the straight line through two states.

  Args:
    points: (..., batch, height, width, channels).
    first: start of the chord, (batch, height, width, channels).
    last: its end, like `first`.

  Returns:
    (..., batch); exactly 0 at the end. Where both ends are the same, the distance from them.
  """
  first, last = (end.reshape((1,) * (points.ndim - end.ndim) + end.shape) for end in (first, last))
  chord = last - first
  square = jnp.sum(chord**2, _IMAGE, keepdims=True)
  away = last - points
  along = jnp.sum(away * chord, _IMAGE, keepdims=True) / jnp.where(square > 0, square, 1)
  return jnp.sqrt(jnp.sum((away - along * chord)**2, _IMAGE))


def costs(states: jax.Array, eps: jax.Array, sigmas: jax.Array,
          metric: str = 'dev') -> jax.Array:
  """Returns what every jump of each sample costs.

  The jump from i to j > i is one Euler step, x_ij = x_i + (sigma_j - sigma_i) eps_i, whatever
  solver is to sample later.

    l1, l2: the norm of x_ij - x_j over the image.
    dev: dev(x_ij) - dev(x_j), how much further the jump ends from the chord of the trajectory, the
      line through x_0 and x_n, than the teacher's state. It may be negative: a jump that cuts the
      corner ends nearer to the chord.

  Args:
    states: the teacher's, x_0 to x_n, (n + 1, batch, height, width, channels).
    eps: its slopes at x_0 to x_{n-1}, (n, batch, height, width, channels); one more, at x_n, has
      no use.
    sigmas: noise levels, (n + 1,).
    metric: one of METRICS.

  Returns:
    (batch, n + 1, n + 1), [b, i, j] the cost from i to j; 0 for j <= i.

  Raises:
    ValueError: if the metric is unknown or the shapes do not fit.
  """
  checks.check_choice('costs', 'metric', metric, METRICS)
  n = len(states) - 1
  fits = len(eps) in (n, n + 1) and eps.shape[1:] == states.shape[1:]
  if n < 1 or not fits or jnp.shape(sigmas) != (n + 1,):
    raise ValueError('costs: states, eps and sigmas must have n + 1, n and n + 1 entries, got '
                     f'shapes {states.shape}, {eps.shape} and {jnp.shape(sigmas)}; a slope belongs '
                     'to every state but the last')
  sigmas = jnp.asarray(sigmas).astype(states.dtype)
  ends = states[0], states[-1]
  reached = deviation(states, *ends)
  points = jnp.arange(n + 1)

  def from_point(i, x, slope):
    length = (sigmas - sigmas[i]).reshape(-1, 1, 1, 1, 1)
    jumps = x[None] + length * slope[None]
    if metric == 'dev':
      missed = deviation(jumps, *ends) - reached
    elif metric == 'l1':
      missed = jnp.sum(jnp.abs(jumps - states), _IMAGE)
    else:
      missed = jnp.sqrt(jnp.sum((jumps - states)**2, _IMAGE))
    return jnp.where((points > i)[:, None], missed, 0)

  # One start at a time: all pairs at once would hold n^2 batches of images.
  _, rows = jax.lax.scan(lambda _, inputs: (None, from_point(*inputs)), None,
                         (points[:-1], states[:-1], eps[:n]))
  rows = jnp.concatenate([rows, jnp.zeros_like(rows[:1])])
  return jnp.moveaxis(rows, 2, 0)


def cost_matrix(states: jax.Array, eps: jax.Array, sigmas: jax.Array,
                metric: str = 'dev') -> jax.Array:
  """Returns the mean over the batch of `costs`, (n + 1, n + 1); arguments and errors as there."""
  return jnp.mean(costs(states, eps, sigmas, metric), axis=0)


def values(cost: np.ndarray, num_steps: int, coeff: float = 1.15) -> np.ndarray:
  """Returns the least cost from every point to the last in every number of jumps.

  V[i, 1] = cost[i, n] and V[i, k] = min over i < j < n of cost[i, j] + coeff V[j, k - 1], Bellman's
  equation of the objective of `search`. Source: arXiv:2405.11326, Algorithm 1.

  Args:
    cost: (n + 1, n + 1), of which the part above the diagonal counts.
    num_steps: most jumps, K, from 1 to n.
    coeff: as in `search`.

  Returns:
    np.float64 (n + 1, K + 1); infinite where there is no way, as in column 0.

  Raises:
    ValueError: if an argument is out of range.
  """
  cost, num_steps = _check(cost, num_steps, coeff)
  value = np.full((len(cost), num_steps + 1), np.inf)
  value[:, 1] = cost[:, -1]
  for k in range(2, num_steps + 1):
    value[:, k] = np.min(_through(cost, coeff, value[:, k - 1]), axis=1)
  return value


def search(cost: np.ndarray, num_steps: int, coeff: float = 1.15) -> np.ndarray:
  """Finds the cheapest way from the first point to the last in a number of jumps.

  The objective of a way is the sum over its jumps, n = 1 to num_steps, of coeff^(n - 1) times the
  cost of jump n. Above 1, coeff gives weight to late jumps, at low noise, and so moves points there
  from high noise; below 1 the other way round; 1 is the plain sum.

  Args:
    cost: of `cost_matrix`, (n + 1, n + 1).
    num_steps: jumps, from 1 to n.
    coeff: weight of a jump over the one before, above 0; published grids have 1.1 to 1.2.

  Returns:
    np.int64 (num_steps + 1,), increasing from 0 to n; of several best ways the one that goes
    through the smallest index first.

  Raises:
    ValueError: if an argument is out of range.
  """
  value = values(cost, num_steps, coeff)
  cost = np.asarray(cost, np.float64)
  indices = [0]
  for k in range(num_steps, 1, -1):
    row = _through(cost, coeff, value[:, k - 1])[indices[-1]]
    indices.append(int(np.argmin(row)))
  return np.array([*indices, len(cost) - 1])


def objective(cost: np.ndarray, indices: Sequence[int], coeff: float = 1.15) -> float:
  """Returns what `search` minimizes, for any way through the points."""
  indices = np.asarray(indices)
  jumps = np.asarray(cost, np.float64)[indices[:-1], indices[1:]]
  return float(np.sum(jumps * float(coeff)**np.arange(len(jumps))))


def afs_candidates(indices: Sequence[int]) -> np.ndarray:
  """Returns the ways with one more point between the first two.

  With an analytical first step (AFS) the first slope is free; a point more between the first two
  keeps the cost and shortens the jump that is taken on that slope. Which one is best, `insert_afs`
  says from samples of the student itself.

  Args:
    indices: of `search`.

  Returns:
    np.int64 (m, num_steps + 2), one for each of the m points skipped by the first jump.
  """
  indices = np.asarray(indices)
  return np.array([[indices[0], k, *indices[1:]] for k in range(indices[0] + 1, indices[1])],
                  np.int64).reshape(-1, len(indices) + 1)


def insert_afs(indices: Sequence[int], distances: Sequence[float]) -> np.ndarray:
  """Returns the best of the ways with one more point.

  Args:
    indices: of `search`.
    distances: of the student's samples from the teacher's, with AFS on each of the grids of
      `afs_candidates`: (m,), the mean over the batch of the norm of the difference.

  Returns:
    np.int64 (num_steps + 2,); without candidates `indices`. The published code samples with AFS
    then too, one evaluation below what was asked for; leave AFS out to keep the cost.

  Raises:
    ValueError: if there is not one distance for each candidate.
  """
  candidates = afs_candidates(indices)
  distances = np.asarray(distances, np.float64)
  if distances.shape != (len(candidates),):
    raise ValueError(f'insert_afs: distances must be one for each of {len(candidates)} candidates, '
                     f'got shape {distances.shape}; see afs_candidates')
  return candidates[np.argmin(distances)] if len(candidates) else np.asarray(indices)


def distance(samples: jax.Array, ends: jax.Array) -> jax.Array:
  """Returns the norm of the difference of images (..., height, width, channels), (...)."""
  return jnp.sqrt(jnp.sum((samples - ends)**2, _IMAGE))


def _with_slopes(table, sigmas, raw):
  """The table with one slot more, the slope, which slot 0 shows for a moment after each step.

  `raw` tells of every step whether its slope is that of the answer before a limit.
  """
  count = table.slots + 1
  basis = np.eye(count + table.answers)
  slots, answer = basis[:count], basis[count]  # Of two answers, the guided one.
  swapped = [slots[-1], *slots[1:-1], slots[0]]
  rows, step, begins = [], 0, True
  for r in range(table.rows):
    slope = slots[-1]
    if begins:
      sigma, kind = sigmas[step], table_lib.RAW if raw[step] else table_lib.DENOISE
      slope = (slots[0] - answer) / sigma
      if table.kind[r] != kind or table.sigma[r] != sigma:
        rows.append(table_lib.Row(sigma, [*slots[:-1], slope], kind=kind))
        slope = slots[-1]
    mix = np.insert(table.mix[r], table.slots, 0.0, axis=1)  # No weight on the slope.
    rows.append(table_lib.Row(table.sigma[r], [*mix, slope], table.level[r], table.kind[r]))
    begins = not np.isnan(table.level[r])
    if begins:  # The level of these rows only marks them for the trajectory.
      rows.append(table_lib.Row(sigma, swapped, sigma, table_lib.NOTHING))
      rows.append(table_lib.Row(sigma, swapped, kind=table_lib.NOTHING))
      step += 1
  return table_lib.assemble(rows)


def _through(cost, coeff, value):
  """[i, j]: cost of the jump from i to j and the best way on, with i < j < n; else infinite."""
  points = np.arange(len(cost))
  allowed = (points[:, None] < points) & (points < len(cost) - 1)
  return np.where(allowed, cost + coeff * value, np.inf)


def _check(cost, num_steps, coeff):
  cost = checks.to_array('search', 'cost', cost)
  if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or len(cost) < 2:
    raise ValueError('search: cost must have shape (n + 1, n + 1) with n >= 1, got '
                     f'{cost.shape}; cost_matrix makes one')
  bad = np.argwhere(~np.isfinite(np.triu(cost, 1)))
  if len(bad):
    i, j = bad[0]
    raise ValueError(f'search: cost must be finite, got {cost[i, j]} from {i} to {j}; the teacher '
                     'has left what float holds')
  if not checks.is_integer(num_steps) or not 1 <= num_steps < len(cost):
    raise ValueError(f'search: num_steps must be an integer from 1 to {len(cost) - 1}, the '
                     f'intervals of the fine grid, got {num_steps!r}; take a finer teacher for '
                     'more')
  checks.check_positive('search', 'coeff', coeff, '1.15 is usual')
  return cost, int(num_steps)
