"""Grids of noise levels at steps of a network's training.

The conventions are those of `grids`. A table is `alphas_cumprod`: alpha_bar by training step, or a
name, see `levels.read_alphas_cumprod`; or, where there is a `shift`, that of a flow, see
`flow_grids`. Index 0 is the lowest level.
"""

from collections.abc import Sequence

import numpy as np

from samplers import checks, flow_grids, grids, levels as levels_lib


def discrete(num_steps: int, sigma_min: float, sigma_max: float,
             alphas_cumprod: str | Sequence[float] | None = None, rho: float = 1,
             beta_d: float = levels_lib.ADM_BETA_D,
             beta_min: float = levels_lib.ADM_BETA_MIN) -> np.ndarray:
  """Returns levels equally spaced in (a network's time)^(1/rho), ending at sigma_min.

  u_i = (A + i/n (B - A))^rho, A = t(sigma_max)^(1/rho), B = t(sigma_min)^(1/rho), sigma_i =
  sigma(u_i). Published code leaves out the root in A: equal where t(sigma_max) = 1.

  Source: DPM-Solver, arXiv:2206.00927, Sec. 3.4; Zhou et al. 2024, arXiv:2312.00094 (its code).

  Args:
    num_steps: n.
    sigma_min: last level.
    sigma_max: first level.
    alphas_cumprod: the network's table; None for the analytic VP pair of ADM.
    rho: exponent, > 0.
    beta_d: slope of beta(t) of the analytic pair, > 0.
    beta_min: beta(0) of the analytic pair, > 0.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the table or an option is out of range, or sigma_min has no time above 0.
  """
  checks.check_positive('discrete', 'rho', rho, '1 is equal steps of time')
  if alphas_cumprod is None:
    checks.check_positive('discrete', 'beta_d', beta_d, '19.9 is the usual choice')
    checks.check_positive('discrete', 'beta_min', beta_min, '0.1 is the usual choice')
    pair = levels_lib.vp_time_of_sigma, levels_lib.sigma_of_vp_time
    constants = beta_d, beta_min
  else:
    pair = levels_lib.time_of_sigma, levels_lib.sigma_of_time
    constants = (levels_lib.read_alphas_cumprod('discrete', alphas_cumprod),)
  ends = pair[0](np.array([sigma_max, sigma_min]), *constants)
  if not ends[1] > 0:
    raise ValueError(f'discrete: sigma_min must be a level that the network reaches at a time '
                     f'above 0, got {sigma_min:g} (time {ends[1]:g}); raise sigma_min')
  first, last = ends**(1 / rho)
  grid = pair[1](np.linspace(first, last, num_steps + 1)**rho, *constants)
  grid[0], grid[-1] = sigma_max, sigma_min
  return grid


def iddpm(num_steps: int, sigma_min: float, sigma_max: float, C_1: float = 0.001,
          C_2: float = 0.008, M: int = 1000) -> np.ndarray:
  """Returns num_steps equally spaced ones of an iDDPM network's levels in the range, then 0.

  The level at position rint(i (K-1)/(n-1)) of the K levels u_j within [sigma_min, sigma_max], see
  `levels.iddpm_levels`; the ends of the range count with a margin of 1e-9.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, Table 1, column iDDPM.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: lower end of the range.
    sigma_max: upper end.
    C_1: lower bound of the ratio of neighbours, in (0, 1).
    C_2: offset of the cosine rule, > 0.
    M: number of training steps.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if an option is out of range, or the range holds fewer than num_steps levels.
  """
  checks.check_fraction('iddpm', 'C_1', C_1, '0.001 is the usual choice')
  checks.check_positive('iddpm', 'C_2', C_2, '0.008 is the usual choice')
  if not checks.is_integer(M) or M < 1:
    raise ValueError(f'iddpm: M must be an integer of at least 1, got {M!r}; 1000 is usual')
  table = levels_lib.iddpm_levels(C_1, C_2, M)
  table = table[(table >= sigma_min * (1 - 1e-9)) & (table <= sigma_max * (1 + 1e-9))]
  if num_steps > len(table):
    raise ValueError(f"iddpm: num_steps must be at most {len(table)}, the network's levels from "
                     f'{sigma_min:g} to {sigma_max:g}, got {num_steps}; ask for fewer or widen the '
                     'range')
  positions = np.linspace(0, len(table) - 1, num_steps)
  return grids.append_zero(table[np.rint(positions).astype(int)])


def normal(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
           alphas_cumprod: str | Sequence[float] | None = None,
           shift: float | None = None) -> np.ndarray:
  """Returns levels at equally spaced indices of a table, both ends included, then 0.

  Levels between entries are linear in log(sigma); of a flow they are those of the times between,
  see `flow_grids.even_indices`.

  Source: k-diffusion, DiscreteSchedule.get_sigmas; ComfyUI's scheduler 'normal'.

  Args:
    num_steps: number of positive levels.
    sigma_min: last positive level, clipped to the table; its smallest level if None. Unused by a
      flow.
    sigma_max: first level, clipped to the table; its largest if None. Of a flow, the level in place
      of the infinite one, see `flow_grids`.
    alphas_cumprod: the network's table.
    shift: of a flow's times, in place of a table; 1 leaves them as they are.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if there is neither a table nor a shift, or both, or one is out of range.
  """
  return _even('normal', num_steps, sigma_min, sigma_max, alphas_cumprod, shift, num_steps)


def sgm_uniform(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
                alphas_cumprod: str | Sequence[float] | None = None,
                shift: float | None = None) -> np.ndarray:
  """Returns levels at num_steps + 1 equally spaced indices of a table, the last replaced by 0.

  Source: ComfyUI's scheduler 'sgm_uniform', after Stability AI's generative models.

  Args:
    num_steps: number of positive levels.
    sigma_min: as in `normal`; here the level that 0 replaces.
    sigma_max: as in `normal`.
    alphas_cumprod: the network's table.
    shift: as in `normal`.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: as in `normal`.
  """
  return _even('sgm_uniform', num_steps, sigma_min, sigma_max, alphas_cumprod, shift, num_steps + 1)


def simple(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
           alphas_cumprod: str | Sequence[float] | None = None,
           shift: float | None = None) -> np.ndarray:
  """Returns entries of a table at equal strides from its highest level on, then 0.

  Of M entries, those at M - 1 - floor(i M / n), i = 0 ... n - 1.

  Source: ComfyUI's scheduler 'simple'.

  Args:
    num_steps: n, the number of positive levels.
    sigma_min: unused, the table gives it.
    sigma_max: of a flow, the level in place of the infinite one; else unused.
    alphas_cumprod: the network's table.
    shift: as in `normal`.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: as in `normal`, or if there are more steps than entries.
  """
  del sigma_min
  table = read_levels('simple', alphas_cumprod, shift)
  indices = len(table) - 1 - np.arange(num_steps) * len(table) // num_steps
  levels = table[grids.differing('simple', indices, f'take at most {len(table)} steps')]
  return flow_grids.finish('simple', levels, sigma_max)


def ddim_uniform(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
                 alphas_cumprod: str | Sequence[float] | None = None,
                 shift: float | None = None) -> np.ndarray:
  """Returns every s-th entry of a table, s = floor(M / num_steps), then 0.

  Entries 1, 1 + s, 1 + 2 s, ..., highest first: ceil((M - 1) / s) of them, which may be more than
  num_steps, and the first lies up to s entries below the table's highest level. So published;
  `respaced` and `timestep_spacing` give as many levels as are asked for.

  Source: ComfyUI's scheduler 'ddim_uniform', after the sampler of latent diffusion.

  Args:
    num_steps: number of positive levels, where it divides M.
    sigma_min: unused, the table gives it.
    sigma_max: of a flow, the level in place of the infinite one; else unused.
    alphas_cumprod: the network's table.
    shift: as in `normal`.

  Returns:
    np.float64, one level more than entries.

  Raises:
    ValueError: as in `normal`.
  """
  del sigma_min
  table = read_levels('ddim_uniform', alphas_cumprod, shift)
  levels = table[1::max(len(table) // num_steps, 1)][::-1]
  return flow_grids.finish('ddim_uniform', levels, sigma_max)


def read_levels(name: str, alphas_cumprod: str | Sequence[float] | None,
                shift: float | None) -> np.ndarray:
  """Returns the levels of a network's table, or, where there is a shift, of a flow's.

  Args:
    name: the schedule, for the error.
    alphas_cumprod: the network's table.
    shift: of a flow's times.

  Returns:
    np.float64 of shape (M,), increasing; the last one of a flow is infinite.

  Raises:
    ValueError: if there is neither or both, or one is out of range.
  """
  if shift is None:
    if alphas_cumprod is None:
      raise ValueError(f'{name}: alphas_cumprod must be given, got None; {TABLE_REMEDY}; or shift, '
                       'of a flow')
    return levels_lib.table_sigmas(levels_lib.read_alphas_cumprod(name, alphas_cumprod))
  if alphas_cumprod is not None:
    raise ValueError(f'{name}: shift must be left out with alphas_cumprod, got {shift!r}; a flow '
                     'has no such table')
  flow_grids.check_shift(name, shift)
  return flow_grids.table(shift)


TABLE_REMEDY = ("give the network's alpha_bar by training step, or one of "
                f'{", ".join(levels_lib.ALPHAS_CUMPROD)}')


def index_range(name: str, table: np.ndarray, sigma_min: float | None,
                sigma_max: float | None) -> tuple[float, float]:
  """Returns the indices of the ends of a range, clipped to the table; the whole table for None.

  Args:
    name: the schedule, for the error.
    table: levels, increasing.
    sigma_min: lower end.
    sigma_max: upper end.

  Raises:
    ValueError: if range and table do not overlap.
  """
  low = 0.0 if sigma_min is None else levels_lib.index_of_sigma(sigma_min, table)
  high = len(table) - 1.0 if sigma_max is None else levels_lib.index_of_sigma(sigma_max, table)
  if not low < high:
    raise ValueError(f"{name}: sigma_min and sigma_max must overlap the table's range, "
                     f'{table[0]:g} to {table[-1]:g}, got {sigma_min} and {sigma_max}; widen '
                     'the range')
  return low, high


def _even(name, num_steps, sigma_min, sigma_max, alphas_cumprod, shift, points):
  """The first num_steps of `points` levels at equally spaced indices, then 0."""
  table = read_levels(name, alphas_cumprod, shift)
  if shift is not None:
    return flow_grids.finish(name, flow_grids.even_indices(shift, points)[:num_steps], sigma_max)
  low, high = index_range(name, table, sigma_min, sigma_max)
  indices = np.linspace(high, low, points)[:num_steps]
  return grids.append_zero(levels_lib.sigma_of_index(indices, table))
