"""UniPC: a multistep predictor whose next evaluation also corrects it, at no extra cost."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, registry
from samplers.multistep import weighted
from samplers.table import NOTHING, Row, Table, assemble


@registry.register
def unipc(levels: Sequence[Any], *, max_order: int = 3, variant: str = 'bh2',
          predict_x0: bool = True, lower_order_final: bool = True, corrector: bool = True,
          xp: Any = np) -> Table:
  """Builds multistep UniPC.

  Step i predicts x at sigma' from the last `order` answers, evaluates there, and corrects with
  that answer; the corrected state starts the next step, while the answer remembered is the one at
  the predicted point. The last step only predicts. With hh = -h (data) or h (noise),
  h = lam' - lam, r_k = (lam_{i-k} - lam_i) / h and differences D_k = (m_k - m_0) / r_k, r = 1 for
  the new answer:
    x' = base - c B(hh) sum_k rho_k D_k,   sum_k r_k^{j-1} rho_k = j! hh phi_{j+1}(hh) / B(hh),
  B(hh) = hh ('bh1') or e^hh - 1 ('bh2'), c = 1 (data) or sigma' (noise). As published, rho = 1/2
  for the predictor of order 2 and the corrector of order 1. Order min(max_order, i + 1), and at
  most the number of steps left with lower_order_final. A step to 0 is of order 1.

  Source: Zhao et al. 2023 (UniPC), arXiv:2302.04867, Alg. 5 to 8, Eq. 3 to 6.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    max_order: 1, 2 or 3.
    variant: 'bh1' or 'bh2'.
    predict_x0: data prediction, else noise prediction.
    lower_order_final: lower the order of the last steps, for few steps.
    corrector: False leaves the predictor alone (UniP).
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n, 2 n - 1 rows (the corrected state passes through slot 0 in a row of kind 2)
    and max_order + 2 slots: state, last corrected state, answers.

  Raises:
    ValueError: if max_order is not 1, 2 or 3, or the variant is unknown.
  """
  checks.check_order('unipc', max_order, 3)
  checks.check_choice('unipc', 'variant', variant, ('bh1', 'bh2'))
  n = len(levels) - 1
  x, start, *memory, denoised = xp.eye(max_order + 3)

  def order_of(i):
    if checks.is_zero(levels[i + 1]):
      return 1
    return min(max_order, i + 1, n - i if lower_order_final else max_order)

  def advance(i, x, m, new=None):
    """Formula of step i from state x and answers m; `new` is the answer at its end, if known."""
    order, s, s1 = order_of(i), levels[i], levels[i + 1]
    base = m[0] + s1 / s * (x - m[0]) if predict_x0 else x + (s1 - s) * m[0]
    if order == 1 and new is None:
      return base
    h = xp.log(s / s1)
    hh = -h if predict_x0 else h
    size = hh if variant == 'bh1' else hh * coefficients.phi(1, hh, xp)
    r = [xp.log(levels[i] / levels[i - k]) / h for k in range(1, order)]
    differences = [(m[k] - m[0]) / r[k - 1] for k in range(1, order)]
    if new is not None:
      r, differences = [*r, 1.0], [*differences, new - m[0]]
    scale = 1.0 if predict_x0 else s1
    return base - scale * size * weighted(_rho(r, hh, size, xp), differences)

  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    answer = denoised if predict_x0 else (x - denoised) / s
    remembered = [answer, *memory[:-1]]
    if i == 0 or not corrector:
      rows.append(Row(s, [advance(i, x, [answer, *memory]), x, *remembered], level=s1 if (
          not corrector or n == 1) else np.nan))
      continue
    rows.append(Row(s, [advance(i - 1, start, memory, answer), start, *remembered], level=s))
    rows.append(Row(s, [advance(i, x, memory), x, *memory], kind=NOTHING,
                    level=s1 if i == n - 1 else np.nan))
  return assemble(rows, xp)


def _rho(r, hh, size, xp):
  """Solves for the weights of the differences; one or two unknowns have the published 1/2."""
  if len(r) == 1:
    return [0.5]
  powers = xp.stack([xp.stack([xp.asarray(node, float)**j for node in r]) for j in range(len(r))])
  right = xp.stack([math.factorial(j) * hh * coefficients.phi(j + 1, hh, xp) / size
                    for j in range(1, len(r) + 1)])
  return list(xp.linalg.solve(powers, right))
