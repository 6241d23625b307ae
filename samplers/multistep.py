"""One evaluation per step and a memory of earlier answers: what all multistep solvers share."""

from collections.abc import Callable, Sequence
from typing import Any

from samplers.table import Row, Table, assemble


def multistep(levels: Sequence[Any], depth: int, data: bool,
              advance: Callable[[int, Any, list[Any]], Any], xp: Any) -> Table:
  """Builds the Table of a multistep solver from its update formula.

  Slot 0 is the state, slots 1 to depth - 1 the earlier answers, the newest first.

  Args:
    levels: n + 1 decreasing noise levels.
    depth: number of answers that the formula uses at most, the current one included.
    data: whether an answer is remembered as the denoised image (else as eps).
    advance: advance(i, x, answers) -> x', on vectors; answers are the current one and up to
      depth - 1 earlier ones, as many as there are at step i.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and `depth` slots.
  """
  x, *memory, denoised = xp.eye(depth + 1)
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    answers = [denoised if data else (x - denoised) / s, *memory]
    rows.append(Row(s, [advance(i, x, answers[:i + 1]), *answers[:depth - 1]], level=s1))
  return assemble(rows, xp)


def weighted(weights: Sequence[Any], answers: Sequence[Any]) -> Any:
  """Returns sum_j weights[j] answers[j] over the weights given."""
  return sum(weight * answer for weight, answer in zip(weights, answers, strict=False))
