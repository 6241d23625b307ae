"""Teachers of all trainings: a deterministic solver on a finer grid than the student's."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import samplers
from engine import settings as settings_lib


def parse(field: str, text: str, shared: Mapping[str, Any] | None = None) -> settings_lib.Setting:
  """Reads a solver with its options, such as 'dpmpp(max_order=3)'.

  Args:
    field: of the config, for errors.
    text: one setting.
    shared: options of the student, taken over where the solver has them and the text does not.

  Returns:
    The Setting.

  Raises:
    ValueError: if the text is no setting, or the solver no table that takes all steps.
  """
  setting, *more = settings_lib.parse(field, text, samplers.option_types)
  if more or setting.name in samplers.LOOPS:
    raise ValueError(f'{field}: must be one solver, a table, got {text!r}; such as heun or '
                     'ipndm(max_order=4)')
  if setting.options.get('afs') or setting.options.get('denoise_to_zero'):
    raise ValueError(f'{field}: must be without afs and denoise_to_zero, got {text!r}; a teacher '
                     'takes all steps')
  known = samplers.options(setting.name)
  options = {name: value for name, value in (shared or {}).items() if name in known}
  return setting._replace(options=options | setting.options)


def table(field: str, setting: settings_lib.Setting, fine: np.ndarray) -> samplers.Table:
  """Returns a teacher's table, whose steps end at the levels of its grid.

  Args:
    field: of the config, for errors.
    setting: the solver.
    fine: the grid, (m + 1,).

  Returns:
    The Table.

  Raises:
    ValueError: if the solver refuses the grid, draws noise, or steps elsewhere.
  """
  made = samplers.make(setting.name, fine, **setting.options)
  ends = made.level[~np.isnan(made.level)]
  if made.noise.any() or ends.shape != fine[1:].shape or not np.allclose(ends, fine[1:]):
    raise ValueError(f'{field}: must draw no noise and pass all levels of its grid, got '
                     f'{setting.text} on {len(fine) - 1} intervals; take heun or '
                     'dpmpp(max_order=3), and a grid that repeats no level')
  return made


def finer(schedule: Mapping[str, Any], sigmas: np.ndarray, stride: int) -> np.ndarray:
  """Returns a grid with stride - 1 more levels in each interval.

  Args:
    schedule: arguments of `samplers.schedule` that make `sigmas`; its own finer grid is taken if
      it has the levels of `sigmas`, else each interval is divided as polynomial does.
    sigmas: n + 1 decreasing levels.
    stride: intervals for each of the n.

  Returns:
    np.float64 (n stride + 1,).
  """
  count = (len(sigmas) - 1) * stride
  try:
    fine = samplers.schedule(**schedule | {'num_steps': count})
    if len(fine) == count + 1 and np.allclose(fine[::stride], sigmas, rtol=1e-9, atol=0):
      return fine
  except ValueError:
    pass
  return samplers.epd.refine(sigmas, stride)
