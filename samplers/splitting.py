"""Operator splitting for guided sampling: LTSP and STSP.

A guided sampler follows dx/dsigma = eps(x, sigma) + a(x, sigma), where a = -scale sigma grad_x
log p(y | x; sigma) is the guidance term. Its gradient is rough, and high orders suffer from it.
Splitting takes it out: steps of Euler for a alone, and steps of high order for eps alone, whose
history never sees it.

Source: Wizadwongsa & Suwajanakorn 2023, Accelerating Guided Diffusion Sampling with Splitting
Numerical Methods, arXiv:2301.11558.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, registry
from samplers.adams import EQUAL_STEPS
from samplers.multistep import weighted
from samplers.table import GUIDE, Row, Table, assemble


@registry.register
def ltsp(levels: Sequence[Any], *, order: int = 4, xp: Any = np) -> Table:
  """Builds Lie-Trotter splitting: each step a guidance step at its start, then Adams-Bashforth.

  x <- x + h a(x, sigma), x' = x + h sum_j w_j eps_{i-j}, h = sigma' - sigma, eps taken at the x
  that the guidance has moved. The weights are those of equal steps, of order min(order, i + 1) at
  step i. Without a guide it is Adams-Bashforth (`ipndm`); guided it is of order 1.

  Source: arXiv:2301.11558, Alg. 1 (LTSP), and the code published with it: guidance comes first.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    order: 1 to 4, of Adams-Bashforth.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n, n evaluations of the guide, and `order` slots.

  Raises:
    ValueError: if order is not 1, 2, 3 or 4.
  """
  checks.check_order('ltsp', order, 4, 'order')
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    rows.append(_push(s, s1 - s, order, xp))
    rows.append(_adams_bashforth(i, s, s1, order, xp)._replace(level=s1))
  return assemble(rows, xp)


@registry.register
def stsp(levels: Sequence[Any], *, order: int = 4, xp: Any = np) -> Table:
  """Builds Strang splitting: half a guidance step, Adams-Bashforth, half a guidance step.

  The second half takes the gradient where the step ends and its prefactor at the middle level m =
  (sigma + sigma') / 2, as the authors' code does in variance-preserving variables: x' <- x' + h / 2
  m / sigma' sqrt((1 + sigma'^2) / (1 + m^2)) a(x', sigma'). A step to 0 takes it at the level
  where it began, of the image as a variance-preserving state there, x' sqrt(1 + sigma^2): the guide
  knows no level 0. Without a guide it is Adams-Bashforth; guided it is of order 1, for the halves
  are steps of Euler, with an error some times smaller than that of `ltsp` on smooth fields.

  Source: arXiv:2301.11558, Alg. 2 (STSP) and the code published with it.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    order: 1 to 4, of Adams-Bashforth.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n, 2 n evaluations of the guide, and `order` slots.

  Raises:
    ValueError: if order is not 1, 2, 3 or 4.
  """
  checks.check_order('stsp', order, 4, 'order')
  x, *memory, answer = xp.eye(order + 1)
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    half, middle = (s1 - s) / 2, (s + s1) / 2
    rows.append(_push(s, half, order, xp))
    step = _adams_bashforth(i, s, s1, order, xp)
    prefactor = half * middle / xp.sqrt(1 + middle**2)
    if checks.is_zero(s1):
      root = xp.sqrt(1 + s**2)
      rows.append(step._replace(mix=[root * step.mix[0], *step.mix[1:]]))
      rows.append(Row(s, [x / root + prefactor * root / s * answer, *memory], s1, GUIDE))
    else:
      rows.append(step)
      rows.append(Row(s1, [x + prefactor * xp.sqrt(1 + s1**2) / s1 * answer, *memory], s1, GUIDE))
  return assemble(rows, xp)


def _push(s, h, order, xp):
  """A step of Euler along the guidance term."""
  x, *memory, answer = xp.eye(order + 1)
  return Row(s, [x + h * answer, *memory], kind=GUIDE)


def _adams_bashforth(i, s, s1, order, xp):
  """A step along eps; slots 1 to order - 1 keep the earlier eps, the newest first."""
  x, *memory, denoised = xp.eye(order + 1)
  eps = [(x - denoised) / s, *memory]
  weights = EQUAL_STEPS[min(order, i + 1)]
  return Row(s, [x + (s1 - s) * weighted(weights, eps), *eps[:order - 1]])
