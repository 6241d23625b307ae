"""Samplers of distilled networks, which jump to an answer and add new noise: LCM, TCD.

One step: down along the answer's line to a level m, then up to the next level s' by noise that is
as fresh as that of the start, no path over the step:

  x' = D + (m / s) (x - D) + sqrt(s'^2 - m^2) z.

m = 0 is LCM, and m = s' is Euler. `consistency` has the sampler of consistency models with a lowest
level; for a lowest level 0 on a grid that ends in 0 it is `lcm`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, churn, levels as levels_lib, middles, registry
from samplers.table import Row, Table, assemble

_ROUNDING = 1e-6  # Of a timestep that was read off a level; far less than half a step.


@registry.register
def lcm(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds sampling of latent consistency models: x' = D + s' z, and the last D is the result.

  Source: Luo et al. 2023 (LCM), arXiv:2310.04378, multistep sampling; diffusers' LCMScheduler.

  Args:
    levels: n + 1 decreasing noise levels; the result has none of the last one's noise.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.
  """
  return _jumps(levels, [(0.0, s1) for s1 in levels[1:]], xp)


@registry.register
def tcd(levels: Sequence[Any], *, gamma: float = 0.3, mid: Sequence[float] | str | None = None,
        alphas_cumprod: Sequence[float] | str | None = None, xp: Any = np) -> Table:
  """Builds sampling of trajectory consistency models: noise of a part gamma of every step.

  A step jumps to a level m below the next one s' and noise leads back up, see the module. By the
  network's table m is its level at timestep floor((1 - gamma) t'), t' being that of s'. Without a
  table it is gamma-sampling of a model that knows sigma alone: m = sqrt(1 - gamma^2) s', and the
  noise is gamma s' z. In both gamma = 0 is deterministic, and gamma = 1 has as much noise as `lcm`.
  The last step adds none and ends at the last level.

  Source: Zheng et al. 2024 (TCD), arXiv:2402.19159, strategic stochastic sampling, and diffusers'
  TCDScheduler (whose eta is gamma); without a table Kim et al. 2024 (CTM), arXiv:2310.02279,
  gamma-sampling.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    gamma: strength of the noise, 0 to 1.
    mid: level m of every step, or text with commas, instead of gamma and a table; the last step
      ends at the last of them.
    alphas_cumprod: table of the network, as in `levels.read_alphas_cumprod`; timesteps of levels
      between two of the table are linear in log sigma. None: the rule without one.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.

  Raises:
    ValueError: if gamma is not within 0 and 1, there is not one mid per step, from 0 to its end, or
      alphas_cumprod is no table.
  """
  if xp is np and not 0 <= checks.to_number(gamma) <= 1:
    raise ValueError(f'tcd: gamma must be between 0 and 1, got {gamma!r}; 0 is deterministic, 0.3 '
                     'the published default')
  ends = levels[1:]
  if mid is not None:
    lows = middles.given('tcd', mid, [(0.0, s1) for s1 in ends], False, xp)
  elif alphas_cumprod is not None:
    table = middles.table('tcd', alphas_cumprod)
    lows = [*[_part_of_the_way(s1, gamma, table, xp) for s1 in ends[:-1]], ends[-1]]
  else:
    down = churn.root((1 - gamma) * (1 + gamma), xp)
    return _jumps(levels, [*[(down * s1, gamma * s1) for s1 in ends[:-1]], (ends[-1], 0.0)], xp)
  return _jumps(levels, [(m, churn.root((s1 - m) * (s1 + m), xp))
                         for m, s1 in zip(lows, ends, strict=True)], xp)


def _part_of_the_way(sigma, gamma, table, xp):
  """The level at timestep floor((1 - gamma) t), at most sigma, t being the timestep of sigma.

  It is sigma itself for gamma = 0, also between two timesteps, and where only rounding on the way
  to the timestep and back lies between: neither is noise.
  """
  timestep = (1 - gamma) * levels_lib.index_of_sigma(sigma, table, xp=xp)
  low = levels_lib.sigma_of_index(xp.floor(timestep + _ROUNDING), table, xp)
  return xp.where((gamma == 0) | (low > (1 - _ROUNDING) * sigma), sigma, low)


def _jumps(levels, jumps, xp):
  """Rows of the module's steps; jumps are (m, deviation of the noise), of which the last has none.

  No row names an interval: such noise is not the increment of a path.
  """
  x, denoised = xp.eye(2)
  count = len(levels) - 1
  return assemble([
      Row(s, [denoised + low / s * (x - denoised)], level=s1, noise=up if i + 1 < count else 0.0)
      for i, (s, s1, (low, up)) in enumerate(zip(levels, levels[1:], jumps, strict=False))], xp)
