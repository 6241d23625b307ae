"""Grids of flow-matching networks: times from 1, noise alone, to 0, as noise levels.

A flow runs along x_t = (1 - t) x0 + t z, so that x = x_t / (1 - t) is x0 + sigma z with
sigma = t / (1 - t). In this coordinate a shift of times is a product: t' = a t / (1 + (a - 1) t)
has the level a sigma. Source: Esser et al. 2024 (Stable Diffusion 3), arXiv:2403.03206, Eq. 23.

At time 1 the level is infinite. A grid that starts there starts at `sigma_max` instead, or, where
none is given, at HIGHEST, or at twice the second level where that is higher. As x is then taken for
noise alone, the first step to sigma' misses denoised * sigma' / HIGHEST, a share of 1e-2 for
sigma' = 40. Levels below are never changed, and so sigma_min, which these grids take for the sake
of all others, is unused.

The conventions are those of the second group of `grids`: num_steps positive levels, then 0.
"""

import math

import numpy as np

from samplers import checks, grids, levels as levels_lib

STEPS = 1000
"""Training steps of a flow: the published tables hold the times k / 1000."""

HIGHEST = float(levels_lib.table_sigmas(levels_lib.LOWEST_ALPHA_BAR))
"""Level in place of an infinite one, 4096: single precision has 4 digits of 1 - t = 2.4e-4."""

_TERMINAL_USUAL = '0.1 is usual'


def flow_shift(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
               shift: float = 1.0) -> np.ndarray:
  """Returns the shifted levels of equal steps of time from 1 to 1/1000, then 0.

  Published code builds its list between ends that are shifted already and shifts it as a whole, so
  that the lowest level is shifted twice; here once.

  Source: diffusers, FlowMatchEulerDiscreteScheduler and FlowMatchHeunDiscreteScheduler.

  Args:
    num_steps: number of positive levels.
    sigma_min: unused.
    sigma_max: first level, in place of an infinite one; HIGHEST if None.
    shift: a, > 0, by which all levels are multiplied; 3 is that of Stable Diffusion 3.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if shift is not above 0, or sigma_max is not above the second level.
  """
  del sigma_min
  check_shift('flow_shift', shift)
  # 1 - t is exact near t = 1, where levels are most sensitive.
  levels = shift * sigma_of_rest(np.linspace(0, 1 - 1 / STEPS, num_steps))
  return finish('flow_shift', levels, sigma_max)


def flow_dpm(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
             shift: float = 1.0) -> np.ndarray:
  """Returns the shifted levels of equal steps of time from 999/1000 to 0.

  The first level is 999 a: the one grid here that starts at a time below 1 of its own.

  Source: diffusers, use_flow_sigmas of DPMSolverMultistepScheduler, UniPCMultistepScheduler and
  their kin, where the shift is called flow_shift.

  Args:
    num_steps: number of positive levels.
    sigma_min: unused.
    sigma_max: unused.
    shift: a, > 0, by which all levels are multiplied.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if shift is not above 0.
  """
  del sigma_min, sigma_max
  check_shift('flow_dpm', shift)
  return grids.append_zero(shift * sigma_of_rest(np.linspace(1 / STEPS, 1, num_steps + 1)[:-1]))


def flow_dynamic(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
                 image_seq_len: int = 4096, mu: float | None = None,
                 time_shift_type: str = 'exponential',
                 shift_terminal: float | None = None) -> np.ndarray:
  """Returns levels at the times 1, 1 - 1/n, ..., 1/n, shifted by the size of the image, then 0.

  The shift is a = exp(mu) or a = mu, with mu = 0.5 + 0.65 (image_seq_len - 256) / 3840.

  Source: diffusers, use_dynamic_shifting of FlowMatchEulerDiscreteScheduler, and its pipeline of
  FLUX; Esser et al. 2024, arXiv:2403.03206, Sec. 5.3.2, for the dependence on the size.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: unused.
    sigma_max: first level, in place of an infinite one; HIGHEST if None.
    image_seq_len: tokens of the image, >= 1; 4096 are 1024 x 1024 pixels of FLUX.
    mu: the shift itself, in place of the image's.
    time_shift_type: 'exponential', mu within +-20, or 'linear', mu > 0.
    shift_terminal: time of the last positive level, see `flow_shift_terminal`; None: as it comes.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range or unknown, or sigma_max is not above the second level.
  """
  del sigma_min
  checks.check_choice('flow_dynamic', 'time_shift_type', time_shift_type, tuple(_SHIFTS))
  if not checks.is_integer(image_seq_len) or image_seq_len < 1:
    raise ValueError('flow_dynamic: image_seq_len must be an integer of at least 1, got '
                     f'{image_seq_len!r}; 4096 tokens are an image of 1024 x 1024 pixels')
  if mu is None:
    mu = 0.5 + (1.15 - 0.5) * (image_seq_len - 256) / (4096 - 256)
  low, shift_of = _SHIFTS[time_shift_type]
  if not low < checks.to_number(mu) <= 20:
    raise ValueError(f'flow_dynamic: mu must be above {low} and at most 20 for the '
                     f'{time_shift_type} shift, got {mu!r}; 1.15 is usual, or leave it to '
                     'image_seq_len')
  return _even('flow_dynamic', num_steps, sigma_max, shift_of(mu), shift_terminal)


_SHIFTS = {'exponential': (-20, math.exp), 'linear': (0, float)}  # Type -> lowest mu, shift of mu.


def flow_shift_terminal(num_steps: int, sigma_min: float | None = None,
                        sigma_max: float | None = None, *, shift: float = 1.0,
                        shift_terminal: float = 0.1) -> np.ndarray:
  """Returns levels at the times 1, 1 - 1/n, ..., 1/n, shifted, stretched to a last time, then 0.

  1 - t' = (1 - t) (1 - shift_terminal) / (1 - t_last): the last positive level is at time
  shift_terminal, whatever the number of steps. A single step has nothing to stretch.

  Source: diffusers, shift_terminal of FlowMatchEulerDiscreteScheduler, as used for LTX-Video.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: unused.
    sigma_max: first level, in place of an infinite one; HIGHEST if None.
    shift: a, > 0, by which all levels are multiplied before.
    shift_terminal: time of the last positive level, in (0, 1).

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range, or sigma_max is not above the second level.
  """
  del sigma_min
  check_shift('flow_shift_terminal', shift)
  checks.check_fraction('flow_shift_terminal', 'shift_terminal', shift_terminal, _TERMINAL_USUAL)
  return _even('flow_shift_terminal', num_steps, sigma_max, shift, shift_terminal)


def table(shift: float) -> np.ndarray:
  """Returns the levels of the times k / 1000 of a flow, increasing; the last one is infinite."""
  return shift * sigma_of_rest(1 - np.arange(1, STEPS + 1) / STEPS)


def even_indices(shift: float, points: int) -> np.ndarray:
  """Returns shifted levels at `points` equal steps of time, from 1 to the table's lowest.

  As published, the lowest time of the table is a shifted one and is shifted again.

  Source: ComfyUI, normal_scheduler with ModelSamplingDiscreteFlow.

  Args:
    shift: a, > 0.
    points: number of levels.

  Returns:
    np.float64 of shape (points,), decreasing; the first one is infinite.
  """
  lowest = shift / (STEPS - 1)  # Level of the time 1/1000, shifted.
  return shift * sigma_of_rest(np.linspace(0, 1 / (1 + lowest), points))


def check_shift(name: str, shift: float) -> None:
  """Raises ValueError unless a shift is a finite number above 0."""
  checks.check_positive(name, 'shift', shift, '1 leaves the times as they are, 3 is usual for '
                        'large images')


def sigma_of_rest(rest: np.ndarray) -> np.ndarray:
  """Returns the levels (1 - r) / r of the times 1 - r; infinite at r = 0."""
  rest = np.asarray(rest, np.float64)
  return np.divide(1 - rest, rest, out=np.full(rest.shape, np.inf), where=rest > 0)


def finish(name: str, levels: np.ndarray, sigma_max: float | None) -> np.ndarray:
  """Returns a grid of levels that may start at infinity: a finite start, and 0 at the end.

  Args:
    name: the schedule, for the error.
    levels: positive levels, decreasing; only the first may be infinite.
    sigma_max: level in place of the infinite one; None: HIGHEST, or twice the second level where
      many steps or a large shift lead higher.

  Returns:
    np.float64, one level more.

  Raises:
    ValueError: if a level that is given is not above the second.
  """
  if np.isfinite(levels[0]):
    return grids.append_zero(levels)
  first = sigma_max
  if first is None:
    first = max([HIGHEST, *2 * levels[1:2]])
  if len(levels) > 1 and not first > levels[1]:
    raise ValueError(f'{name}: sigma_max must be above the second level, {levels[1]:g}, since it '
                     f'stands for the infinite one at time 1 of a flow, got {first:g}; raise it, '
                     'take fewer steps or a smaller shift')
  return np.concatenate([[first], levels[1:], [0.0]])


def _even(name, num_steps, sigma_max, shift, shift_terminal):
  """Levels of the times 1, 1 - 1/n, ..., 1/n, shifted and perhaps stretched."""
  levels = shift * sigma_of_rest(np.linspace(0, 1 - 1 / num_steps, num_steps))
  if shift_terminal is not None:
    checks.check_fraction(name, 'shift_terminal', shift_terminal, _TERMINAL_USUAL)
    rest = 1 / (1 + levels)
    if num_steps > 1:
      levels = sigma_of_rest(rest * ((1 - shift_terminal) / rest[-1]))
  return finish(name, levels, sigma_max)
