"""PNDM: Adams-Bashforth on eps with the weights of equal steps, after a Runge-Kutta start."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, levels as levels_lib, middles, registry
from samplers.adams import EQUAL_STEPS
from samplers.multistep import weighted
from samplers.table import Row, Table, assemble

_WARM_UP = 3  # Steps of Runge-Kutta, for the three earlier slopes that Adams-Bashforth needs.


@registry.register
def pndm(levels: Sequence[Any], *, mid: Sequence[float] | str | None = None,
         alphas_cumprod: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds PNDM: three Runge-Kutta steps of four evaluations, then one evaluation per step.

  A Runge-Kutta step from s to s' with a level m between them is the classical one:
    e_1 = eps(x; s), e_2 = eps(x + (m - s) e_1; m), e_3 = eps(x + (m - s) e_2; m),
    e_4 = eps(x + (s' - s) e_3; s'), x' = x + (s' - s) (e_1 + 2 e_2 + 2 e_3 + e_4) / 6;
  m is the network's level at the middle timestep, not the mean of s and s'. The slopes e_1 start
  the history of Adams-Bashforth with weights (55, -59, 37, -9) / 24, which goes on to 0 as well.
  Since neither m nor those weights know the grid's own spacing, the order is 2. A Runge-Kutta step
  to 0 (n <= 3) is Euler instead, as eps is not defined there.

  `plms` starts with one Heun step instead, `ipndm` with lower orders.

  Source: Liu et al. 2022 (PNDM), arXiv:2202.09778, Sec. 3.3 and App. A; diffusers' PNDMScheduler.
  Where half a step is no whole number of timesteps it asks the network at the timestep below the
  level that the state is at; here both are the same level.

  Args:
    levels: n + 1 decreasing noise levels, or increasing ones; the last may be 0.
    mid: level m of every Runge-Kutta step, or text with commas; None: from alphas_cumprod.
    alphas_cumprod: table of the network, as in `levels.read_alphas_cumprod`: m is at the mean of
      the timesteps of s and s', linear in log sigma between two of the table. None, and where both
      are beyond the table: m = sqrt(s s').
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n + 9 (4 n for n <= 3, less 3 if that ends in 0) and 5 slots.

  Raises:
    ValueError: if there is not one mid for each Runge-Kutta step, within the range of the grid, or
      alphas_cumprod is no table.
  """
  steps = list(zip(levels, levels[1:], strict=False))
  warm = [step for step in steps[:_WARM_UP] if not checks.is_zero(step[1])]
  if mid is None:
    mids = _middles(warm, alphas_cumprod, xp)
  else:  # `make` also builds the table of an increasing grid's mirror image, with the same mids.
    mids = middles.given('pndm', mid, [(levels[0], levels[-1])] * len(warm), True, xp)
    for i, (m, (s, s1)) in enumerate(zip(mids, warm, strict=True) if xp is np else ()):
      if m in (s, s1):
        raise ValueError(f'pndm: mid must differ from the levels at the ends of step {i}, {s:g} '
                         f'and {s1:g}, got {m:g}; leave it out for the default')
  # The state evaluated, the step's start or its end as far as it is known, slopes, newest first.
  x, start, *past, denoised = xp.eye(6)
  rows = []
  for i, (s, s1) in enumerate(steps):
    eps, dsigma = (x - denoised) / s, s1 - s
    newer = [eps, *past[:2]]
    if i >= len(warm):
      end = denoised if i < _WARM_UP else x + dsigma * weighted(EQUAL_STEPS[4], [eps, *past])
      rows.append(Row(s, [end, start, *newer], level=s1))
      continue
    m = mids[i]
    inner = (x - denoised) / m  # e2 in the second row, e3 in the third, where the state tells e2.
    total = start + dsigma / 6 * (past[0] + 2 * (x - start) / (m - s) + 2 * inner)
    rows += [
        Row(s, [x + (m - s) * eps, x, *newer]),
        Row(m, [start + (m - s) * inner, start, *past]),
        Row(m, [start + dsigma * inner, total, *past]),
        Row(s1, [start + dsigma / 6 * (x - denoised) / s1, start, *past], level=s1)]
  return assemble(rows, xp)


def _middles(steps, alphas_cumprod, xp):
  """A level within each of the steps."""
  means = [xp.sqrt(s * s1) for s, s1 in steps]
  if alphas_cumprod is None:
    return means
  table = middles.table('pndm', alphas_cumprod)
  chosen = []
  for (s, s1), mean in zip(steps, means, strict=True):
    index = [levels_lib.index_of_sigma(level, table, xp=xp) for level in (s, s1)]
    m = levels_lib.sigma_of_index((index[0] + index[1]) / 2, table, xp)
    chosen.append(xp.where((m - s) * (m - s1) < 0, m, mean))
  return chosen
