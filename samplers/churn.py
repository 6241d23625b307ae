"""Churn: fresh noise before a step, which then starts from a higher noise level."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from samplers import checks, levels as levels_lib
from samplers.table import NOTHING, Row

_MOST = 2**0.5 - 1  # Of gamma: then the added noise has the deviation of the noise before.


class Churn(NamedTuple):
  """How much noise is added before the steps of a solver.

  Before a step from sigma, if S_min <= sigma <= S_max, the level goes up to

    sigma_hat = sigma (1 + gamma),  gamma = min(S_churn / n, sqrt(2) - 1),

  by x <- x + sqrt(sigma_hat^2 - sigma^2) S_noise z, n being the number of steps. A level that
  is repeated counts as one.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Alg. 2.

  Attributes:
    S_churn: overall amount, >= 0; 0 is none. What is best depends on the model: 0 to 80.
    S_min: lowest level that is raised, >= 0.
    S_max: highest level that is raised, >= S_min.
    S_noise: factor on the added noise, >= 0; slightly above 1 makes up for what D takes away.
    round_levels: levels of a network that knows no others, or text with commas: sigma_hat becomes
      the nearest positive one. Where that is not above sigma nothing is added (published code has
      the root of a negative number, or lowers the level of a state as noisy as before).
  """

  S_churn: Any = 0.0
  S_min: Any = 0.0
  S_max: Any = float('inf')
  S_noise: Any = 1.0
  round_levels: Sequence[float] | str | None = None


def starts(name: str, levels: Sequence[Any], churn: Churn, slots: int,
           xp: Any = np) -> list[tuple[Any, list[Row]]]:
  """Returns where the steps on a grid start after churn.

  On the host a step has a row only where its level is raised, so that no draw is made in vain, and
  none at all for S_churn = 0. Which levels a traced grid raises is not known: there every step has
  the row, with weight 0 where it is not needed.

  Args:
    name: solver that asks, for errors.
    levels: n + 1 noise levels.
    churn: a Churn.
    slots: number of slots of the solver's rows.
    xp: numpy or jax.numpy.

  Returns:
    For each of the n steps the level it starts at and the rows, none or one, that lead there. Such
    a row ends at no grid point, so that trajectories hold the state before it.

  Raises:
    ValueError: if xp is numpy and an option is out of range, or the grid increases.
  """
  known = _known(name, churn.round_levels)
  if xp is np:
    _check(name, levels, churn)
  if not isinstance(churn.S_churn, jax.Array) and churn.S_churn == 0:
    return [(sigma, []) for sigma in levels[:-1]]
  gamma = xp.minimum(churn.S_churn / (len(levels) - 1), _MOST)
  slots_kept = list(xp.eye(slots + 1)[:slots])
  steps = []
  for sigma in levels[:-1]:
    raised = sigma * (1 + gamma)
    if known is not None:
      raised = levels_lib.round_to_levels(raised, known, xp)
    raise_it = (churn.S_min <= sigma) & (sigma <= churn.S_max) & (raised > sigma)
    if xp is np and not raise_it:
      steps.append((sigma, []))
      continue
    raised = xp.where(raise_it, raised, sigma)
    weight = churn.S_noise * root((raised - sigma) * (raised + sigma), xp)
    steps.append((raised, [Row(sigma, slots_kept, kind=NOTHING, noise=weight)]))
  return steps


def root(square: Any, xp: Any = np) -> Any:
  """Returns sqrt(square), 0 below 0, with derivative 0 there instead of one without bounds."""
  above = square > 0
  return xp.where(above, xp.sqrt(xp.where(above, square, xp.ones_like(square))),
                  xp.zeros_like(square))


def _known(name, levels):
  """The positive levels of a network; its level 0 does not count, since a step starts above 0."""
  if levels is None:
    return None
  levels = levels.split(',') if isinstance(levels, str) else levels
  known = checks.to_array(name, 'round_levels', levels)
  if known.ndim != 1 or not np.all(np.isfinite(known) & (known >= 0)) or not np.any(known > 0):
    raise ValueError(f'{name}: round_levels must be a list of finite numbers >= 0, one of them '
                     f"above 0, got {known}; give the network's own levels")
  return known[known > 0]


def _check(name, levels, churn):
  for option, remedy in (('S_churn', '0 is no churn'), ('S_min', '0 is no lower limit'),
                         ('S_noise', '1 keeps the level')):
    value = getattr(churn, option)
    if not 0 <= checks.to_number(value) < np.inf:
      raise ValueError(f'{name}: {option} must be a finite number >= 0, got {value!r}; {remedy}')
  if not checks.to_number(churn.S_max) >= churn.S_min:
    raise ValueError(f'{name}: S_max must not be below S_min = {churn.S_min:g}, got '
                     f'{churn.S_max!r}; inf is no upper limit')
  if churn.S_churn > 0 and levels[-1] > levels[0]:
    raise ValueError(f'{name}: S_churn must be 0 on an increasing grid, got {churn.S_churn!r}; '
                     'invert without noise')
