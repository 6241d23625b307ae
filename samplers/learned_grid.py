"""Learned grids (LD3): the noise levels of a plain solver, found by a gradient through the scan.

The solver computes with levels sigma_0 > ... > sigma_n, whose ends stay, and the network may be
shown others close to them: with few steps, what it is shown and where the state stands need not
agree to be best. Both are learned, in a variable of the level: 'lambda', -log(sigma), or 'time',
sigma itself (EDM's time).

Source: Tong et al. 2024 (LD3), arXiv:2405.15506, Sec. 3 and its code. The code measures the largest
shift in 'lambda' on the raw parameters, whose differences are 0 at the start, so that nothing may
be shifted; here it is measured on the grid in both, as the code does in 'time'.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, learned as learned_lib, registry, table as table_lib

MODES = 'lambda', 'time'


@learned_lib.register
def grid(sigmas: Any, *, solver: str = 'ipndm', max_order: int = 3, afs: bool = False,
         mode: str = 'lambda', window: float = 0.5) -> learned_lib.Design:
  """Learns the levels of a plain solver and those that the network is shown.

  learned['gaps'], (n + 1,), are logarithms of the distances of neighbours, see `levels_of_gaps`;
  learned['shifts'], (n + 1,), move what the network is shown, in units of the largest shift, see
  `shown_levels`: one learning rate suits both. They start at the given grid and at 0, the plain
  solver itself. Entry 0 of the gaps and the two ends of the shifts act on nothing and stay 0.

  Args:
    sigmas: n + 1 >= 3 different noise levels, decreasing, above 0, perhaps traced.
    solver: a key of SOLVERS without noise.
    max_order: of the solver, where it has that option; others take no notice.
    afs: replace the first evaluation by the analytical one.
    mode: variable of the distances, 'lambda' or 'time'.
    window: largest shift as a share of the smallest gap, 0 to below 1; the levels shown stay
      in order up to 1/2, and are the solver's own at 0.

  Returns:
    A Design with the cost of the solver.

  Raises:
    ValueError: if the solver is unknown, is no table or has noise, another option is out of range,
      or the grid has fewer than three levels or one of them twice.
  """
  options = solver_options('grid', solver, max_order) | {'afs': afs}
  plain = plain_table('grid', sigmas, solver, options)
  checks.check_choice('grid', 'mode', mode, MODES)
  if not 0 <= checks.to_number(window) < 1:
    raise ValueError(f'grid: window must be at least 0 and below 1, got {window!r}; 0.5 is usual, '
                     '0 shows the network the levels of the solver')

  def levels(learned):
    return levels_of(learned, sigmas, mode, window)

  def table(learned):
    sigma, shown = levels(learned)
    return show(registry.build(solver, sigma, final_zero=False, **options), sigma, shown, mode)

  return learned_lib.of_table(
      lambda key: initial(sigmas, mode), table, nfe=plain.nfe, learning_rate=0.05,
      describe=lambda learned: dict(zip(('sigma', 'shown'), levels(learned), strict=True)))


def solver_options(name: str, solver: str, max_order: int) -> dict[str, Any]:
  """Returns max_order as an option of a solver if it has it; ValueError if there is no such one."""
  checks.check_choice(name, 'solver', solver, tuple(registry.SOLVERS))
  return {'max_order': max_order} if 'max_order' in registry.options(solver) else {}


def plain_table(name: str, sigmas: Any, solver: str, options: dict[str, Any]) -> table_lib.Table:
  """Returns the Table of a solver with as many steps as a grid, for its numbers of rows and NFE.

  Raises:
    ValueError: if the grid has fewer than three levels or one twice, or the solver has noise or
      refuses its options.
  """
  if len(sigmas) < 3:
    raise ValueError(f'{name}: sigmas must hold three or more levels, got {len(sigmas)}; one step '
                     'between fixed ends leaves nothing to learn')
  if not isinstance(sigmas, jax.Array):
    twice = np.flatnonzero(np.diff(sigmas) == 0)
    if twice.size:
      raise ValueError(f'{name}: sigmas must differ, got {sigmas[twice[0]]:g} twice at index '
                       f'{twice[0]}; a step of length 0 cannot be learned, leave it out')
  plain = registry.make(solver, np.geomspace(10.0, 0.1, len(sigmas)), **options)
  if np.any(plain.noise):
    raise ValueError(f'{name}: solver must be one without noise, got {solver!r}; ipndm, dpmpp and '
                     'unipc are')
  return plain


def initial(sigmas: Any, mode: str) -> dict[str, jax.Array]:
  """Returns what is learned at its start: the inverse of `levels_of`, nothing shifted.

  A constant added to all gaps acts on nothing: they start with a mean of 0.

  Args:
    sigmas: n + 1 different noise levels, decreasing, above 0.
    mode: as in `grid`.

  Returns:
    'gaps' and 'shifts', each (n + 1,).
  """
  xp = jnp if isinstance(sigmas, jax.Array) else np  # A grid on the host keeps its float64.
  high, low = sigmas[:-1], sigmas[1:]
  gaps = xp.log(xp.log(high / low) if mode == 'lambda' else (high - low)[::-1])
  gaps = xp.concatenate([xp.zeros_like(gaps[:1]), gaps - gaps.mean()])
  return {'gaps': jnp.asarray(gaps, float), 'shifts': jnp.zeros(len(sigmas), float)}


def levels_of(learned: dict[str, jax.Array], sigmas: Any, mode: str,
              window: float) -> tuple[jax.Array, jax.Array]:
  """Returns the solver's and the network's levels of learned numbers, each (n + 1,).

  Args:
    learned: 'gaps' and 'shifts', see `grid`.
    sigmas: a grid with the same ends.
    mode: as in `grid`.
    window: as in `grid`.
  """
  ends = jnp.asarray(sigmas, learned['gaps'].dtype)[jnp.array([0, -1])]
  sigma = levels_of_gaps(learned['gaps'], ends, mode)
  offsets = learned['shifts'] * largest_shift(sigma, mode, window)
  return sigma, shown_levels(sigma, offsets, mode, window)


def levels_of_gaps(gaps: jax.Array, ends: jax.Array, mode: str) -> jax.Array:
  """Returns the levels that learned gaps stand for: decreasing whatever the numbers.

  With p = cumsum(softmax(gaps)) and q = (p - p_0) / (p_n - p_0), level i is at the share q_i of the
  way from the first to the last in 'lambda', and level n - i at the share q_i from the last to the
  first in 'time'. Entry 0 cancels from q.

  Source: LD3, the discretization of its code.

  Args:
    gaps: real numbers, (n + 1,).
    ends: first and last level, (2,).
    mode: 'lambda' or 'time'.

  Returns:
    Noise levels, (n + 1,), the ends exactly as given.
  """
  first, last = ends
  # q directly: p - p_0 would cancel, which float32 could not afford at the last levels of 'time'.
  share = jnp.cumsum(jax.nn.softmax(gaps[1:]))[:-1]
  if mode == 'lambda':
    inner = first * jnp.exp(share * jnp.log(last / first))
  else:
    inner = (last + share * (first - last))[::-1]
  return jnp.concatenate([ends[:1], inner, ends[1:]])


def largest_shift(sigma: jax.Array, mode: str, window: float) -> jax.Array:
  """Returns `window` times the smallest distance of neighbours in the variable of `mode`."""
  distances = jnp.log(sigma[:-1] / sigma[1:]) if mode == 'lambda' else sigma[:-1] - sigma[1:]
  return window * jnp.min(distances)


def shown_levels(sigma: jax.Array, offsets: jax.Array, mode: str, window: float) -> jax.Array:
  """Returns the levels that the network is shown in place of the solver's.

  Each is moved by its offset, clipped to +-`largest_shift`; the ends stay.

  Source: LD3, Sec. 3 (decoupled time steps).

  Args:
    sigma: levels of the solver, (n + 1,), decreasing.
    offsets: in units of -log(sigma) in 'lambda', of sigma in 'time', (n + 1,).
    mode: 'lambda' or 'time'.
    window: as in `grid`.

  Returns:
    Noise levels, (n + 1,).
  """
  most = largest_shift(sigma, mode, window)
  offsets = jnp.clip(offsets, -most, most).at[jnp.array([0, -1])].set(0)
  return sigma * jnp.exp(-offsets) if mode == 'lambda' else sigma + offsets


def show(table: table_lib.Table, sigma: jax.Array, shown: jax.Array,
         mode: str) -> table_lib.Table:
  """Returns a Table whose evaluations are shown other levels; its steps stay.

  A stage between two levels of the grid is moved with them, linearly in the variable of `mode`.

  Args:
    table: a Table on the grid `sigma`.
    sigma: levels of the solver, (n + 1,), decreasing.
    shown: levels that the network is shown at these, (n + 1,).
    mode: 'lambda' or 'time'.

  Returns:
    The Table with other `sigma`.
  """
  variable = jnp.log if mode == 'lambda' else (lambda level: level)
  # The shift is interpolated and not the level: where nothing is shifted, all stays bit for bit.
  shift = jnp.log(shown / sigma) if mode == 'lambda' else shown - sigma
  nodes = variable(sigma)
  passed = (variable(table.sigma)[:, None] - nodes[None, :-1]) / jnp.diff(nodes)[None]
  shift = jnp.sum(jnp.clip(passed, 0, 1) * jnp.diff(shift)[None], axis=1)  # The first one is 0.
  moved = table.sigma * jnp.exp(shift) if mode == 'lambda' else table.sigma + shift
  return dataclasses.replace(table, sigma=moved)
