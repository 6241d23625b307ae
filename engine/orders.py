"""Orders of convergence, read off measured errors where they show."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_NUM_POINTS = 3
_ABOVE_REFERENCE = 5  # Below this many times the reference's own error, its error bends the slope.
_SPREAD = 0.3  # Slopes between neighbours must agree to this share, or nothing shows yet.


def measured(num_steps: Sequence[float], errors: Sequence[float | None],
             floor: float | None = 0.0) -> tuple[float, list[int]] | None:
  """Measures the order p of errors that fall like num_steps^-p, where one shows.

  Least squares of log error over log num_steps, on the three finest grids whose error lies at
  least 5 times above that of the reference. The order shows if the two slopes between neighbours
  are positive and within 30 % of it (0.3 where the order is below 1): so no number comes from a
  solver that is not yet, or no longer, in the range where its order governs the error.

  Args:
    num_steps: intervals of each grid, each > 0, any order.
    errors: of each grid; None where there is none.
    floor: the error of the reference solution, >= 0; None or 0 where it has none.

  Returns:
    (order, indices of the three grids used, coarsest first), or None if none shows.
  """
  usable = sorted((steps, index) for index, (steps, error) in enumerate(zip(
      num_steps, errors, strict=True)) if error and error >= _ABOVE_REFERENCE * (floor or 0))
  indices = [index for _, index in usable[-_NUM_POINTS:]]
  if len({num_steps[index] for index in indices}) < _NUM_POINTS:
    return None
  x = np.log([num_steps[index] for index in indices])
  y = np.log([errors[index] for index in indices])
  order = -float(np.polyfit(x, y, 1)[0])
  slopes = -np.diff(y) / np.diff(x)
  if slopes.min() <= 0 or np.abs(slopes - order).max() > _SPREAD * max(order, 1):
    return None
  return order, indices


def of_cells(cells: Sequence[Mapping[str, Any]],
             floor: float | None = 0.0) -> dict[str, dict[str, Any] | None]:
  """Measures every solver's order at the setting that all solvers share.

  Over steps rather than evaluations: a step of a Runge-Kutta method costs several of them, and a
  last step that ends early would bend the slope.

  Args:
    cells: of a comparison, with 'solver', 'common', 'num_steps', 'nfe', 'rms' (None where the
      solver draws noise) and 'schedule' {'name', options}.
    floor: as in `measured`.

  Returns:
    By solver: {'order', 'nfe' of the three cells used, 'setting' as text}, or None if none shows.
  """
  orders: dict[str, dict[str, Any] | None] = {}
  for solver in dict.fromkeys(cell['solver'] for cell in cells):
    of_solver = [cell for cell in cells if cell['solver'] == solver and cell['common']]
    found = measured([cell['num_steps'] for cell in of_solver],
                     [cell['rms'] for cell in of_solver], floor)
    orders[solver] = found and {'order': found[0],
                                'nfe': [of_solver[index]['nfe'] for index in found[1]],
                                'setting': setting(of_solver[found[1][-1]]['schedule'])}
  return orders


def setting(options: Mapping[str, Any]) -> str:
  """Returns a schedule, or the options of a solver, in one line: 'polynomial rho=7'."""
  texts = [f'{key}={plain(value)}' for key, value in options.items() if key != 'name']
  return ' '.join([options['name'], *texts] if 'name' in options else texts)


def plain(value: Any) -> str:
  """Returns a value of a config as short as it can be written: 7.0 as 7, a list in brackets."""
  if isinstance(value, float):
    return f'{value:g}'
  if isinstance(value, list | tuple):
    return f'[{", ".join(map(plain, value))}]'
  return str(value)
