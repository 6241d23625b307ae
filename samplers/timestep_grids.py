"""Grids of noise levels at chosen steps of training: the timesteps of published schedulers.

A network of M steps of training has the levels of its table at the timesteps 0 (lowest) to M - 1;
between them they are linear in sigma. Functions ending in `_timesteps` give the timesteps, highest
first; the schedules give the levels, then a final one. The conventions are those of the second
group of `grids`.
"""

from collections.abc import Callable, Sequence

import numpy as np

from samplers import checks, grids, levels as levels_lib, quantile_grids

SPACINGS = 'linspace', 'leading', 'trailing'
STYLES = 'dpm', 'euler'
FINALS = 'zero', 'sigma_min'

RESCALES: dict[str, Callable[[int, float, float], np.ndarray]] = {
    'karras': grids.karras,
    'exponential': grids.exponential,
    'lu_lambdas': grids.exponential,  # Lu's steps are equal in ln(sigma), and so are these.
    'beta': quantile_grids.beta,
}
"""Grids that diffusers puts between two levels, in place of those of the timesteps."""


def timestep_spacing(num_steps: int, sigma_min: float | None = None,
                     sigma_max: float | None = None, *, alphas_cumprod: str | Sequence[float],
                     spacing: str = 'linspace', style: str = 'dpm', steps_offset: int = 0,
                     final: str = 'zero', lambda_min_clipped: float | None = None,
                     rescale: str | None = None) -> np.ndarray:
  """Returns the levels of diffusers' timesteps, or a grid between the highest and lowest of them.

  Rescaled grids lie between the ends of the table in the style 'dpm', between the highest and the
  lowest level of the timesteps in 'euler'. With final = 'sigma_min' they hold that level twice, as
  published: the last step is the identity, which solvers leave out.

  Source: diffusers, timestep_spacing, steps_offset, final_sigmas_type, lambda_min_clipped and
  use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas, use_beta_sigmas of its schedulers.

  Args:
    num_steps: number of timesteps.
    sigma_min: unused, the table gives it.
    sigma_max: unused.
    alphas_cumprod: the network's table.
    spacing: 'linspace', 'leading' or 'trailing', see `spaced_timesteps`.
    style: 'dpm', as in DPMSolverMultistepScheduler, UniPC, DEIS and SA-Solver, or 'euler', as in
      EulerDiscreteScheduler, Heun, LMS and DPM2.
    steps_offset: added to the timesteps of 'leading', >= 0; 1 for Stable Diffusion.
    final: last level, 'zero' or 'sigma_min', the lowest of the table.
    lambda_min_clipped: in the style 'dpm', least -ln(sigma) of a timestep: entries of the table
      above that level are not used; -5.1 for a cosine table. None: all are.
    rescale: a key of RESCALES; None: the levels of the timesteps.

  Returns:
    np.float64, one level more than timesteps: num_steps but for 'trailing' on a clipped table,
    which may have fewer.

  Raises:
    ValueError: if a name is unknown, an option is out of range, or the timesteps repeat.
  """
  del sigma_min, sigma_max
  who = 'timestep_spacing'
  table = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod(who, alphas_cumprod))
  checks.check_choice(who, 'final', final, FINALS)
  last = len(table)
  if lambda_min_clipped is not None:
    last = _unclipped(table, lambda_min_clipped, style)
  timesteps = spaced_timesteps(num_steps, spacing, style, steps_offset, len(table), last)
  levels = np.interp(timesteps, np.arange(len(table)), table)
  if rescale is not None:
    checks.check_choice(who, 'rescale', rescale, tuple(RESCALES))
    low, high = (table if style == 'dpm' else levels[::-1])[[0, -1]]
    levels = RESCALES[rescale](num_steps, low, high)[:-1]
  return np.append(levels, 0.0 if final == 'zero' else table[0])


def spaced_timesteps(num_steps: int, spacing: str = 'linspace', style: str = 'dpm',
                     steps_offset: int = 0, num: int = 1000, last: int | None = None,
                     name: str = 'timestep_spacing') -> np.ndarray:
  """Returns diffusers' timesteps.

  With n steps of M, L = last, rounding half to even:

  - linspace: rint(k (L - 1) / n), k = n ... 1, in 'dpm'; k (M - 1) / (n - 1), k = n - 1 ... 0, not
    whole, in 'euler', which is 0 for a single step, as published;
  - leading: k floor(L / (n + 1)) + steps_offset, k = n ... 1, in 'dpm'; k floor(M / n) +
    steps_offset, k = n - 1 ... 0, in 'euler';
  - trailing: rint(L - k M / n) - 1, k = 0, 1, ..., while L - k M / n > 0.

  Source: diffusers, set_timesteps of its schedulers; Lin et al. 2023, arXiv:2305.08891, Table 2.
  Its 'trailing' may have a timestep -1 too many by rounding, which is left out here.

  Args:
    num_steps: n.
    spacing: 'linspace', 'leading' or 'trailing'.
    style: 'dpm' or 'euler', see `timestep_spacing`.
    steps_offset: of 'leading', >= 0.
    num: M.
    last: L, number of the timesteps in use in 'dpm'; None: M.
    name: the schedule, for the error.

  Returns:
    Timesteps of shape (num_steps,), decreasing; fewer may come of 'trailing' with last < M.

  Raises:
    ValueError: if a name is unknown, steps_offset leads out of training, or timesteps repeat.
  """
  checks.check_choice(name, 'spacing', spacing, SPACINGS)
  checks.check_choice(name, 'style', style, STYLES)
  if not checks.is_integer(steps_offset) or steps_offset < 0:
    raise ValueError(f'{name}: steps_offset must be an integer of at least 0, got '
                     f'{steps_offset!r}; 1 is that of Stable Diffusion, 0 of most others')
  last = num if last is None else last
  points = num_steps + (style == 'dpm')  # 'dpm' leaves out the lowest of one more.
  if spacing == 'trailing':
    count = -(-last * num_steps // num)
    timesteps = np.maximum(np.rint(np.arange(last, 0, -num / num_steps)[:count]) - 1, 0)
  elif spacing == 'leading':
    timesteps = np.arange(points)[::-1] * (last // points) + steps_offset
  else:
    timesteps = np.linspace(0, last - 1, points)[::-1]
    timesteps = np.rint(timesteps) if style == 'dpm' else timesteps
  timesteps = timesteps[:num_steps]
  if timesteps[0] > num - 1:
    raise ValueError(f'{name}: steps_offset must leave the first timestep below {num}, got '
                     f'{steps_offset} and {timesteps[0]:g}; lower it')
  return grids.differing(name, timesteps, f'take fewer steps of the {last} of training')


def lcm(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
        alphas_cumprod: str | Sequence[float] = 'stable_diffusion', original_steps: int = 50,
        strength: float = 1.0) -> np.ndarray:
  """Returns the levels of the timesteps of latent consistency models, then 0; TCD has the same.

  Source: Luo et al. 2023 (LCM), arXiv:2310.04378, Sec. 4.3; see `lcm_timesteps`.

  Args:
    num_steps: number of positive levels, at most original_steps * strength.
    sigma_min: unused, the table gives it.
    sigma_max: unused.
    alphas_cumprod: the network's table.
    original_steps: number of steps of the solver in distillation.
    strength: share of the noise to start from, above 0, at most 1.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: as `lcm_timesteps`, or if the table is none.
  """
  del sigma_min, sigma_max
  table = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod('lcm', alphas_cumprod))
  return grids.append_zero(
      table[lcm_timesteps(num_steps, original_steps, strength, len(table))])


def lcm_timesteps(num_steps: int, original_steps: int = 50, strength: float = 1.0,
                  num: int = 1000) -> np.ndarray:
  """Returns num_steps of the timesteps that a student was distilled at.

  Those are j floor(M / original_steps) - 1, j = K ... 1, K = floor(original_steps * strength), in
  descending order; taken are the positions floor(i K / num_steps).

  Source: diffusers, LCMScheduler.set_timesteps; TCDScheduler.set_timesteps.

  Args:
    num_steps: number of timesteps.
    original_steps: number of steps of the solver in distillation, 1 to M.
    strength: share of the noise to start from, above 0, at most 1.
    num: number M of training steps.

  Returns:
    Integers of shape (num_steps,), decreasing.

  Raises:
    ValueError: if an option is out of range, or there are fewer than num_steps of them.
  """
  if not checks.is_integer(original_steps) or not 1 <= original_steps <= num:
    raise ValueError(f'lcm: original_steps must be an integer from 1 to {num}, got '
                     f'{original_steps!r}; 50 is the usual choice')
  checks.check_node('lcm', 'strength', strength, '1 starts from noise alone')
  count = int(original_steps * strength)
  _check_count('lcm', num_steps, count, 'raise original_steps or strength, or take fewer')
  distilled = np.arange(count, 0, -1) * (num // original_steps) - 1
  return distilled[np.linspace(0, count, num_steps, endpoint=False).astype(int)]


def sd_turbo(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
             alphas_cumprod: str | Sequence[float] = 'stable_diffusion',
             strength: float = 1.0) -> np.ndarray:
  """Returns the levels of the timesteps 999, 899, 799, ..., then 0: those of SD-Turbo's students.

  Source: ComfyUI's node SDTurboScheduler, where strength is called denoise; Sauer et al. 2023
  (Adversarial Diffusion Distillation), arXiv:2311.17042.

  Args:
    num_steps: number of positive levels, at most 10 strength.
    sigma_min: unused, the table gives it.
    sigma_max: unused.
    alphas_cumprod: the network's table; of M steps, those at j M / 10 - 1 are taken.
    strength: share of the timesteps to start from, above 0, at most 1.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the table is none, strength is out of range, or there are fewer timesteps.
  """
  del sigma_min, sigma_max
  table = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod('sd_turbo', alphas_cumprod))
  checks.check_node('sd_turbo', 'strength', strength, '1 starts from noise alone')
  count = int(10 * strength)
  _check_count('sd_turbo', num_steps, count, 'take fewer, or raise strength')
  if len(table) < 10:
    raise ValueError(f'sd_turbo: alphas_cumprod must have at least 10 entries, got {len(table)}; '
                     "'stable_diffusion' is the usual table")
  timesteps = np.arange(count, count - num_steps, -1) * len(table) // 10 - 1
  return grids.append_zero(table[timesteps])


def pndm(num_steps: int, sigma_min: float | None = None, sigma_max: float | None = None, *,
         alphas_cumprod: str | Sequence[float], steps_offset: int = 0) -> np.ndarray:
  """Returns the levels of PNDM's steps, `timestep_spacing` of 'leading' and 'euler', then 0.

  `pndm_timesteps` are those of its evaluations, the ones within its first three steps included.

  Source: Liu et al. 2022 (PNDM), arXiv:2202.09778; diffusers, PNDMScheduler.

  Args:
    num_steps: number of positive levels.
    sigma_min: unused, the table gives it.
    sigma_max: unused.
    alphas_cumprod: the network's table.
    steps_offset: added to the timesteps, >= 0; 1 for Stable Diffusion.

  Returns:
    np.float64 of shape (num_steps + 1,).

  Raises:
    ValueError: if the table is none, steps_offset leads out of training, or there are more steps
      than entries.
  """
  del sigma_min, sigma_max
  table = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod('pndm', alphas_cumprod))
  return grids.append_zero(table[_pndm_steps(num_steps, steps_offset, len(table))])


def pndm_timesteps(num_steps: int, steps_offset: int = 0, num: int = 1000) -> np.ndarray:
  """Returns the timesteps of PNDM's evaluations: four in each of three steps, then one in each.

  With r = floor(M / n) and t_j = (n - 1 - j) r + steps_offset: t_j, twice t_(j+1) + floor(r / 2),
  and t_(j+1) for j = 0, 1, 2; then t_3, t_4, ...

  Source: Liu et al. 2022 (PNDM), arXiv:2202.09778, Alg. 2; diffusers, PNDMScheduler.

  Args:
    num_steps: n, at least 4.
    steps_offset: added to all, >= 0.
    num: number M of training steps.

  Returns:
    Integers of shape (num_steps + 9,).

  Raises:
    ValueError: if there are fewer than 4 steps, or an option is out of range.
  """
  if not checks.is_integer(num_steps) or num_steps < 4:
    raise ValueError(f'pndm: num_steps must be an integer of at least 4, got {num_steps!r}; its '
                     'multistep formula has four terms, which three steps of warm-up provide')
  steps = _pndm_steps(num_steps, steps_offset, num)
  half = num // num_steps // 2
  warm_up = [(t, after + half, after + half, after)
             for t, after in zip(steps[:3], steps[1:4], strict=True)]
  return np.concatenate([np.ravel(warm_up), steps[3:]])


def _pndm_steps(num_steps, steps_offset, num):
  return spaced_timesteps(num_steps, 'leading', 'euler', steps_offset, num, name='pndm')


def _unclipped(table, lambda_min_clipped, style):
  """Number of entries of a table with -ln(sigma) of at least a bound."""
  least = checks.to_number(lambda_min_clipped)
  with np.errstate(divide='ignore'):  # A table may start at level 0.
    count = np.count_nonzero(-np.log(table) >= least)
  if style != 'dpm' or count < 2:  # NaN is above nothing.
    raise ValueError('timestep_spacing: lambda_min_clipped must be a number that leaves two or '
                     f"more entries of the table, in the style 'dpm', got {lambda_min_clipped!r} "
                     f'in {style!r}; -5.1 is usual for a cosine table')
  return count


def _check_count(name, num_steps, count, remedy):
  if num_steps > count:
    raise ValueError(f'{name}: num_steps must be at most {count}, the timesteps there are, got '
                     f'{num_steps}; {remedy}')
