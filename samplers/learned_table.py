"""Learned coefficients (S4S): the free entries of a multistep table, found by a gradient.

A step of a linear multistep solver weighs the newest answers, in one of two forms:

  eps:  x' = x + (sigma' - sigma) sum_j w_j eps_j,                                               (1)
  data: x' = (sigma'/sigma) x + (1 - sigma'/sigma) sum_j w_j D_j,                                (2)

j = 0 the newest. With sum_j w_j = 1 a constant eps, or a constant D, is solved exactly by any grid:
the solver is consistent. What is learned are changes of the weights of the earlier answers; the
newest one takes the opposite of their sum, so that every set of numbers is a consistent solver.

Source: Frankel et al. 2025 (S4S), arXiv:2502.17423.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, learned as learned_lib, learned_grid, registry, table as table_lib

HIGHEST_ORDERS = {'ipndm': 4, 'dpmpp': 3}
"""Solvers that the coefficients may start from, Eq. 1 and Eq. 2, with their highest orders."""

_MODE, _WINDOW = 'lambda', 0.5  # Of a grid that is learned too, see `learned_grid.grid`.


@learned_lib.register
def coefficients(sigmas: Any, *, solver: str = 'ipndm', max_order: int = 3, afs: bool = False,
                 learn_grid: bool = False) -> learned_lib.Design:
  """Learns the weights of a multistep solver, step by step, and perhaps the grid with them.

  learned['weights'], (n, max_order - 1), are added to the solver's own weights of the earlier
  answers; they start at 0, the solver itself. Step i has i earlier answers: the other entries act
  on nothing and stay 0. All that a step can reach is free, also in the last steps, whose order
  DPM-Solver++ lowers. S4S-Alt learns the grid in turns with the weights; with `learn_grid` both are
  learned at once, learned['grid'] being as in `learned_grid.grid`, and the solver's own weights
  follow the grid.

  Args:
    sigmas: n + 1 >= 3 different noise levels, decreasing, above 0, perhaps traced.
    solver: where to start: 'ipndm' (Eq. 1) or 'dpmpp' (Eq. 2).
    max_order: answers that a step weighs at most, from 2 to 4 (3 for dpmpp).
    afs: replace the first evaluation by the analytical one.
    learn_grid: whether the noise levels are learned too.

  Returns:
    A Design with n evaluations, n - 1 with afs.

  Raises:
    ValueError: if an option is out of range, or the grid has fewer than three levels or one of them
      twice.
  """
  checks.check_choice('coefficients', 'solver', solver, tuple(HIGHEST_ORDERS))
  checks.check_order('coefficients', max_order, HIGHEST_ORDERS[solver])
  if max_order == 1:
    raise ValueError('coefficients: max_order must be at least 2, got 1; order 1 has no free '
                     'weights, use the design grid to learn the levels alone')
  options = {'max_order': max_order, 'afs': afs}
  plain = learned_grid.plain_table('coefficients', sigmas, solver, options)
  data = solver == 'dpmpp'
  count = len(sigmas) - 1

  def initial(key):
    del key
    weights = {'weights': jnp.zeros((count, max_order - 1))}
    return weights | ({'grid': learned_grid.initial(sigmas, _MODE)} if learn_grid else {})

  def levels(learned):
    if learn_grid:
      return learned_grid.levels_of(learned['grid'], sigmas, _MODE, _WINDOW)
    return (jnp.asarray(sigmas, float),) * 2

  def solver_table(learned, sigma):
    table = registry.build(solver, sigma, final_zero=False, **options)
    return reweigh(table, sigma, learned['weights'], data)

  def table(learned):
    sigma, shown = levels(learned)
    return learned_grid.show(solver_table(learned, sigma), sigma, shown, _MODE)

  def describe(learned):
    sigma, shown = levels(learned)
    weights = weights_of(solver_table(learned, sigma), sigma, data)
    return {'weights': weights} | ({'sigma': sigma, 'shown': shown} if learn_grid else {})

  return learned_lib.of_table(initial, table, nfe=plain.nfe, learning_rate=0.05, describe=describe)


def reweigh(table: table_lib.Table, sigma: jax.Array, weights: jax.Array,
            data: bool) -> table_lib.Table:
  """Returns a multistep Table with other weights, which sum to what they did.

  Args:
    table: of `samplers.multistep`, one row per step; slot j holds the j-th answer before.
    sigma: its grid, (n + 1,).
    weights: what is added to w_1, w_2, ... in Eq. 1 or 2, (n, slots - 1); w_0 loses their sum.
      Answers of which step i has none are left out.
    data: whether the slots hold denoised images, Eq. 2, else eps, Eq. 1.

  Returns:
    The Table with another `mix`.
  """
  rows, slots = table.mix.shape[:2]
  exist = np.arange(1, slots) <= np.arange(rows)[:, None]
  changes = jnp.where(exist, weights, 0) * step_lengths(sigma, data)[:, None]
  newest = -jnp.sum(changes, axis=1)  # Times D, or (x - D) / sigma.
  own = jnp.zeros(rows) if data else newest / sigma[:-1]
  denoised = newest if data else -own
  change = jnp.concatenate([own[:, None], changes, denoised[:, None]], axis=1)
  return dataclasses.replace(table, mix=table.mix.at[:, 0].add(change))


def weights_of(table: table_lib.Table, sigma: jax.Array, data: bool) -> jax.Array:
  """Returns the weights w_0, w_1, ... of Eq. 1 or 2 of each step of a Table, (n, slots)."""
  earlier = table.mix[:, 0, 1:-1] / step_lengths(sigma, data)[:, None]
  return jnp.concatenate([1 - jnp.sum(earlier, axis=1, keepdims=True), earlier], axis=1)


def step_lengths(sigma: jax.Array, data: bool) -> jax.Array:
  """Returns what multiplies the sum of Eq. 2 (data) or Eq. 1 in each step, (n,)."""
  return 1 - sigma[1:] / sigma[:-1] if data else sigma[1:] - sigma[:-1]
