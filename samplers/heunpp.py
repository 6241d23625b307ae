"""Heun++: Heun's method with slopes of the steps ahead, weighted by their noise levels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import registry
from samplers.table import Row, Table, assemble


@registry.register
def heunpp2(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds Heun++ 2: a mean of the slopes at the start of a step, at its end and one step further.

  With e_1 the slope at the start, e_2 at s' where Euler leads, e_3 at s'' where it leads from there
  in the step after,

    x' = x + (s' - s) ((1 - w_2 - w_3) e_1 + w_2 e_2 + w_3 e_3),
    w_2 = s' / (3 S), w_3 = s'' / (3 S), S the highest level of the grid.

  The last step but one has two slopes, w_2 = s' / (2 S), and the last is Euler. These weights do
  not satisfy the condition of order 2: a method of order 1 at three evaluations per step, for
  comparison.

  Source: ComfyUI's sample_heunpp2, without its churn. On an increasing grid, where its weights by
  the first level would reach thousands, S is the last.

  Args:
    levels: n + 1 decreasing noise levels, or increasing ones; the last may be 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 3 n - 3 (1 for n = 1) and 2 slots.
  """
  highest = xp.maximum(levels[0], levels[-1])
  x, total, denoised = xp.eye(3)  # The state evaluated, and the step's end as far as it is known.
  rows = []
  steps = len(levels) - 1
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    stages = list(levels[i:i + min(3, steps - i)])
    weights = [level / (len(stages) * highest) for level in stages[1:]]
    weights = [1 - sum(weights), *weights]
    for j, (stage, weight) in enumerate(zip(stages, weights, strict=True)):
      eps = (x - denoised) / stage
      end = (x if j == 0 else total) + weight * (s1 - s) * eps
      if j + 1 < len(stages):
        rows.append(Row(stage, [x + (stages[j + 1] - stage) * eps, end]))
      else:
        rows.append(Row(stage, [end, total], level=s1))
  return assemble(rows, xp)
