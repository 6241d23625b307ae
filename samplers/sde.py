"""DPM-Solver++ for the diffusion SDE, under k-diffusion's names and with its factor on the noise.

The multistep ones are `dpmpp` with noise; the one with two evaluations per step is its own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, dpmpp, levels as levels_lib, registry
from samplers.ancestral import check_noise, noise_of
from samplers.table import Row, Table, assemble


@registry.register
def dpmpp_sde(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0, r: float = 0.5,
              xp: Any = np) -> Table:
  """Builds DPM-Solver++ (SDE) steps with an inner level m = sigma'^r sigma^(1 - r).

  With down and up of a stretch as in `levels.ancestral_split` (eta > 1: at most down = 0),
    y = (down_m / sigma) x + (1 - down_m / sigma) D + up_m s_noise z_m,
    x' = (down / sigma) x + (1 - down / sigma) ((1 - 1 / (2 r)) D + D(y; m) / (2 r))
         + up s_noise z,
  where z_m acts from sigma to m and z from sigma to sigma'. On one Brownian path the two correlate,
  as published, and the solver has weak order 2 (on Gaussian data); with independent draws only 1.
  A step to 0 returns the denoised image.

  Source: k-diffusion's sample_dpmpp_sde; Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Sec. 5.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    r: place of the inner level in log sigma, 0 < r <= 1.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0) and 3 slots.

  Raises:
    ValueError: if eta or s_noise is below 0 or r is not within (0, 1].
  """
  check_noise('dpmpp_sde', eta, s_noise, xp)
  if xp is np:
    checks.check_node('dpmpp_sde', 'r', r, '0.5 is the midpoint')
  x, start, first, denoised = xp.eye(4)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    if checks.is_zero(s1):
      rows.append(Row(s, [denoised, start, first], s1))
      continue
    m = s * (s1 / s)**r
    down, up = levels_lib.ancestral_split(s, m, eta, xp=xp)
    rows.append(Row(s, [denoised + down / s * (x - denoised), x, denoised],
                    **noise_of(up, eta, s_noise, s, m)))
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    image = first + (denoised - first) / (2 * r)
    rows.append(Row(m, [image + down / s * (start - image), start, first], s1,
                    **noise_of(up, eta, s_noise, s, s1)))
  return assemble(rows, xp)


@registry.register
def dpmpp_2m_sde(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                 solver_type: str = 'midpoint', xp: Any = np) -> Table:
  """Builds DPM-Solver++(2M) for the SDE: one evaluation per step and the one before.

  `dpmpp` of order 2 without a lower last order, with a factor on the noise. Of order 2 for eta = 0,
  where 'midpoint' is `dpmpp_2m`. A step to 0 is the denoised image, also as the only one (where
  published code fails).

  Source: k-diffusion's sample_dpmpp_2m_sde; Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095, Sec.
  5.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    solver_type: 'midpoint' or 'heun'.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots.

  Raises:
    ValueError: if eta or s_noise is below 0 or solver_type is unknown.
  """
  return dpmpp.steps('dpmpp_2m_sde', levels, max_order=2, eta=eta, s_noise=s_noise,
                     solver_type=solver_type, xp=xp)


@registry.register
def dpmpp_3m_sde(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                 xp: Any = np) -> Table:
  """Builds DPM-Solver++(3M) for the SDE: one evaluation per step and the two before.

  `dpmpp` of the published order 3 with solver_type 'heun', without a lower last order, with a
  factor on the noise. A step to 0 is the denoised image, also as the only one (where published code
  fails).

  Source: k-diffusion's sample_dpmpp_3m_sde.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 3 slots.

  Raises:
    ValueError: if eta or s_noise is below 0.
  """
  return dpmpp.steps('dpmpp_3m_sde', levels, max_order=3, eta=eta, s_noise=s_noise,
                     solver_type='heun', xp=xp)
