"""Solvers of rectified flow, in its own time: Heun and ancestral Euler.

A flow goes from images x0 at t = 0 to noise z at t = 1 by u = (1 - t) x0 + t z. In x = u / (1 - t)
it is x0 + sigma z with sigma = t / (1 - t), and any solver here runs it (`denoisers.from_flow`).
Euler is the same in both; what follows is not, as it is straight in u: the velocity of the flow is

  du/dt = z - x0 = v = (u - D) / t = eps - D.

At t = 1 sigma is infinite, and a grid cannot start there. Start at the highest level that the
network is asked at, such as t = 0.999, sigma = 999, from sigma z: that leaves out x0 itself, a part
of 1 / sigma of the state.

Source: Liu et al. 2023 (rectified flow), arXiv:2209.03003; Lipman et al. 2023 (flow matching),
arXiv:2210.02747.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, churn, registry
from samplers.ancestral import check_noise, noise_of
from samplers.table import Row, Table, assemble


@registry.register
def flow_heun(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds Heun steps of a flow: the velocity is the mean of those at both ends. Order 2.

  u' = u + (t' - t) (v + v') / 2 with v' after a step of Euler. A step to 0 is Euler.

  Source: diffusers' FlowMatchHeunDiscreteScheduler; Karras et al. 2022 (EDM), arXiv:2206.00364,
  Alg. 1 with sigma(t) = t / (1 - t), s(t) = 1 - t.

  Args:
    levels: n + 1 decreasing noise levels sigma = t / (1 - t), or increasing ones; the last may be
      0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n (2 n - 1 if the grid ends in 0) and 2 slots.
  """
  x, velocity, denoised = xp.eye(3)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    if checks.is_zero(s1):
      rows.append(Row(s, [denoised, velocity], level=s1))
      continue
    # With u = x / (1 + s), v = (x - (1 + s) D) / s, and t' - t = (s' - s) / ((1 + s) (1 + s')).
    rows.append(Row(s, [denoised + s1 / s * (x - denoised), (x - denoised) / s - denoised]))
    change = (x - denoised) / s1 - denoised - velocity
    rows.append(Row(s1, [x + (s1 - s) / (2 * (1 + s)) * change, velocity], level=s1))
  return assemble(rows, xp)


@registry.register
def euler_ancestral_rf(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                       xp: Any = np) -> Table:
  """Builds ancestral Euler steps of a flow: down below the next time, then up to it by noise.

  t_down = t' (1 + (t' / t - 1) eta), which is t'^2 / t at eta = 1; with sigma_down its level,

    x' = D + (sigma_down / s) (x - D) + sqrt(s'^2 - sigma_down^2) s_noise z.

  Weak order 1. Above 1 eta adds more noise, up to sigma_down = 0.

  Source: ComfyUI's sample_euler_ancestral_RF.

  Args:
    levels: n + 1 decreasing noise levels sigma = t / (1 - t); the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.

  Raises:
    ValueError: if eta or s_noise is below 0.
  """
  check_noise('euler_ancestral_rf', eta, s_noise, xp)
  x, denoised = xp.eye(2)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    # (1 - t' / t) (1 + s') eta, then s' - sigma_down, without differences of times close to 1.
    part = eta * (s - s1) / s
    rise = 1 + s1 / (1 + s1) * part
    below = xp.minimum(s1 * part / rise, s1)
    down = s1 - below
    rows.append(Row(s, [denoised + down / s * (x - denoised)], level=s1,
                    **noise_of(churn.root(below * (s1 + down), xp), eta, s_noise, s, s1)))
  return assemble(rows, xp)
