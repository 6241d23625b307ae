"""Grids of noise levels that authors print for given models.

The conventions are those of `grids`.
"""

import numpy as np

from samplers import checks, flow_grids, grids

AYS_LEVELS = {
    'SD1': (14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092,
            0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    'SDXL': (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141,
             0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    'SVD': (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
    'stable_diffusion_1': (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152,
                           0.029),
    'stable_diffusion_xl': (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.38, 0.234, 0.113,
                            0.029),
    'stable_video_diffusion': (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173,
                               0.034, 0.002),
}
"""Align Your Steps: the short names as ComfyUI computes them from the published timesteps, the long
ones rounded as the authors print them."""

GITS_LEVELS = {
    'cifar10': {6: (80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002)},
}
"""Grids that the authors of GITS print, by data set and number of steps."""

OPTIMAL_STEPS_TIMES = {
    'FLUX': (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    'Wan': (1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973, 0.968, 0.96,
            0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208, 0.001),
    'Chroma': (0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931,
               0.917, 0.9, 0.881, 0.858, 0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55,
               0.501, 0.451, 0.402, 0.355, 0.311, 0.27, 0.232, 0.199, 0.169, 0.143, 0.12, 0.101,
               0.084, 0.07, 0.058, 0.048, 0.001),
}
"""Optimal Steps: times of a flow, as ComfyUI prints them."""


def ays(num_steps: int | None = None, sigma_min: float | None = None,
        sigma_max: float | None = None, *, model: str) -> np.ndarray:
  """Returns the published Align Your Steps levels of a model, the last replaced by 0.

  For another number of steps than 10, log(sigma) is interpolated linearly over num_steps + 1
  equally spaced positions before the last level is replaced.

  Source: Sabour et al. 2024 (Align Your Steps), arXiv:2404.14507, and the authors' quick start.

  Args:
    num_steps: number of positive levels; 10 if None.
    sigma_min: unused, the list gives it.
    sigma_max: unused.
    model: a key of AYS_LEVELS.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the model is unknown.
  """
  del sigma_min, sigma_max
  checks.check_choice('ays', 'model', model, tuple(AYS_LEVELS))
  return grids.append_zero(_resample(AYS_LEVELS[model], num_steps))


def optimal_steps(num_steps: int | None = None, sigma_min: float | None = None,
                  sigma_max: float | None = None, *, model: str) -> np.ndarray:
  """Returns the published Optimal Steps of a flow as noise levels, the last replaced by 0.

  For another number of steps than the published one, ln(t) is interpolated linearly over
  num_steps + 1 equally spaced positions before the last time is replaced.

  Source: Pei et al. 2025, Optimal Stepsize for Diffusion Sampling, arXiv:2503.21774; the lists are
  those of ComfyUI's node OptimalStepsScheduler.

  Args:
    num_steps: number of positive levels; the list's own if None.
    sigma_min: unused, the list gives it.
    sigma_max: level in place of the infinite one of 'Wan', see `flow_grids`; else unused.
    model: a key of OPTIMAL_STEPS_TIMES.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the model is unknown, or sigma_max is not above the second level.
  """
  del sigma_min
  checks.check_choice('optimal_steps', 'model', model, tuple(OPTIMAL_STEPS_TIMES))
  times = _resample(OPTIMAL_STEPS_TIMES[model], num_steps)
  return flow_grids.finish('optimal_steps', flow_grids.sigma_of_rest(1 - times), sigma_max)


def gits(num_steps: int | None = None, sigma_min: float | None = None,
         sigma_max: float | None = None, *, model: str) -> np.ndarray:
  """Returns a published GITS grid: the steps that a search chose for a data set, for iPNDM.

  A search depends on the number of steps, so there is no grid in between; `samplers.gits` searches
  one for any number and model.

  Source: Chen et al. 2024 (GITS), arXiv:2405.11326; the list is in the README of its code. It is
  the 61-point polynomial grid of rho 7 at the points 0, 19, 27, 33, 39, 45 and 60, to 4 decimals.

  Args:
    num_steps: intervals, one of those published; may be None where there is but one.
    sigma_min: unused, the list gives it.
    sigma_max: unused.
    model: a key of GITS_LEVELS.

  Returns:
    np.float64 of shape (num_steps + 1,), ending at sigma_min.

  Raises:
    ValueError: if the model is unknown, or there is no grid of so many steps.
  """
  del sigma_min, sigma_max
  checks.check_choice('gits', 'model', model, tuple(GITS_LEVELS))
  published = GITS_LEVELS[model]
  if num_steps is None and len(published) == 1:
    num_steps, = published
  if num_steps not in published:
    raise ValueError(f'gits: num_steps must be a published one, {", ".join(map(str, published))} '
                     f'for {model}, got {num_steps}; search a grid for another')
  return np.array(published[num_steps])


def _resample(published, num_steps):
  """A list without its last entry, of num_steps, geometric between neighbours."""
  published = np.array(published)
  if num_steps is None or num_steps == len(published) - 1:
    return published[:-1]
  positions = np.linspace(0, len(published) - 1, num_steps + 1)[:-1]
  return np.exp(np.interp(positions, np.arange(len(published)), np.log(published)))
