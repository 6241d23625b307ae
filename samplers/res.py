"""RES: exponential multistep steps below the next level, then noise up to it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, levels as levels_lib, registry
from samplers.ancestral import check_split, noise_of
from samplers.dpmpp import log_step
from samplers.table import Row, Table, assemble


@registry.register
def res_multistep(levels: Sequence[Any], *, eta: float = 0.0, s_noise: float = 1.0,
                  xp: Any = np) -> Table:
  """Builds RES multistep: order 2 from the last two denoised images, with ancestral noise.

  With down and up as in `levels.ancestral_split`, h = log(sigma / down) and c = log(sigma_before /
  down_before) / h, where down_before ended the step before it was noised,
    x' = e^(-h) x + h ((phi_1(-h) + phi_2(-h) / c) D - phi_2(-h) / c D_before) + up s_noise z.
  The first step, and one with down = 0, is Euler's to down. A step to 0 is the denoised image.

  eta = 0 and eta = 1 are `dpmpp_2m_sde` with solver_type 'heun', of order 2 and of weak order 2.
  Between the two the split makes it weak order 1 (of the SDE of strength eta^2, to which it tends):
  take `dpmpp` with eta there.

  Source: Zhang et al. 2023 (RES), arXiv:2308.02157, Alg. 2; ComfyUI's res_multistep_ancestral.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0; at most 1 for a traced table.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots.

  Raises:
    ValueError: if eta or s_noise is below 0, or eta above 1 where the levels are traced.
  """
  check_split('res_multistep', eta, s_noise, xp)
  x, before, denoised = xp.eye(3)
  rows, past = [], None
  for s, s1 in zip(levels, levels[1:], strict=False):
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    end = denoised + down / s * (x - denoised)
    ends_clean = checks.is_zero(down)
    h = None if ends_clean else log_step(s, down, xp)
    if past is not None and not ends_clean:
      end = end + h**2 / past * coefficients.phi(2, -h, xp) * (denoised - before)
    rows.append(Row(s, [end, denoised], s1, **noise_of(up, eta, s_noise, s, s1)))
    past = h  # A step to down = 0 is infinitely long: the answer before it counts nothing.
  return assemble(rows, xp)
