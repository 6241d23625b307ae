"""CFG++: solvers that move to the guided image and keep the unguided noise.

With U the denoised image without guidance, G the guided one, G = U + scale (C - U), and
e = (x - U) / sigma, a step takes its noise from U alone: a scale of 0 to 1 is enough, and no state
is pushed off the noise level that it is meant to be at. An evaluation has two answers, G and U, see
`table.Table`; any guidance of `samplers.guidance` gives both. Without guidance they are equal, and
each solver here is the one that it is named after.

Guidance is added once per step and not per unit of time: the result depends on the number of steps,
and has no limit as that grows. (`guidance.cfg_plus_plus` is Euler's for tables of one answer.)

Source: Chung et al. 2024 (CFG++), arXiv:2406.08070, Alg. 2, and the code published with it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import ancestral, checks, levels as levels_lib, registry
from samplers.table import Row, Table, assemble

SOLVERS = ('euler_cfg_pp', 'euler_ancestral_cfg_pp', 'dpmpp_2m_cfg_pp', 'dpmpp_2s_ancestral_cfg_pp',
           'gradient_estimation_cfg_pp')
"""Names of the solvers here."""


@registry.register
def euler_cfg_pp(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds Euler steps of CFG++: x' = G + sigma' e.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table of two answers with NFE n and 1 slot.
  """
  x, guided, unguided = xp.eye(3)
  return assemble([Row(s, [guided + s1 / s * (x - unguided)], s1)
                   for s, s1 in zip(levels, levels[1:], strict=False)], xp)


@registry.register
def euler_ancestral_cfg_pp(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                           xp: Any = np) -> Table:
  """Builds ancestral Euler steps of CFG++: x' = G + down e + up s_noise z.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0, see `ancestral`.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table of two answers with NFE n and 1 slot.

  Raises:
    ValueError: if eta or s_noise is below 0.
  """
  ancestral.check_noise('euler_ancestral_cfg_pp', eta, s_noise, xp)
  x, guided, unguided = xp.eye(3)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    rows.append(Row(s, [guided + down / s * (x - unguided)], s1,
                    **ancestral.noise_of(up, eta, s_noise, s, s1)))
  return assemble(rows, xp)


@registry.register
def dpmpp_2m_cfg_pp(levels: Sequence[Any], *, xp: Any = np) -> Table:
  """Builds DPM-Solver++(2M) steps of CFG++.

  x' = G + sigma' e + (1 - sigma' / sigma) (G - U_before) / (2 r), r the step in ln sigma before
  this one over this one; the first step and one to 0 are Euler's.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table of two answers with NFE n and 2 slots.
  """
  x, before, guided, unguided = xp.eye(4)
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    step = guided + s1 / s * (x - unguided)
    if i and not checks.is_zero(s1):
      r = xp.log(levels[i - 1] / s) / xp.log(s / s1)
      step = step + (1 - s1 / s) / (2 * r) * (guided - before)
    rows.append(Row(s, [step, unguided], s1))
  return assemble(rows, xp)


@registry.register
def dpmpp_2s_ancestral_cfg_pp(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                              xp: Any = np) -> Table:
  """Builds ancestral DPM-Solver++(2S) steps of CFG++, with an inner level m = sqrt(sigma down).

  x' = G(y; m) + (down / sigma) (x - U(y; m)) + up s_noise z with y = U + (m / sigma) (x - U). The
  guided image is that of the second evaluation; a step with down = 0 ends at the first one's.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0, see `ancestral`; at most 1 for a traced table.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table of two answers with NFE 2 n, less one for each step with down = 0, as one to 0 is, and
    2 slots.

  Raises:
    ValueError: if eta or s_noise is below 0, or eta above 1 where the levels are traced.
  """
  ancestral.check_split('dpmpp_2s_ancestral_cfg_pp', eta, s_noise, xp)
  x, start, guided, unguided = xp.eye(4)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    draw = ancestral.noise_of(up, eta, s_noise, s, s1)
    if checks.is_zero(down):
      rows.append(Row(s, [guided, start], s1, **draw))
      continue
    m = xp.sqrt(s * down)
    rows.append(Row(s, [unguided + m / s * (x - unguided), x]))
    rows.append(Row(m, [guided + down / s * (start - unguided), start], s1, **draw))
  return assemble(rows, xp)


@registry.register
def gradient_estimation_cfg_pp(levels: Sequence[Any], *, gamma: float = 2.0, xp: Any = np) -> Table:
  """Builds gradient-estimation steps of CFG++.

  x' = G + sigma' e + (gamma - 1) (sigma' - sigma) (e - e_before); the first step is Euler's, a step
  to 0 the guided image.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    gamma: weight of the new slope, a finite number, see `gradient_estimation`.
    xp: numpy or jax.numpy.

  Returns:
    A Table of two answers with NFE n and 2 slots.

  Raises:
    ValueError: if gamma is not a finite number.
  """
  if xp is np and not np.isfinite(checks.to_number(gamma)):
    raise ValueError(f'gradient_estimation_cfg_pp: gamma must be a finite number, got {gamma!r}; '
                     '1 is Euler, 2 is usual')
  x, before, guided, unguided = xp.eye(4)
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    slope = (x - unguided) / s
    step = guided + s1 * slope
    if i and not checks.is_zero(s1):
      step = step + (gamma - 1) * (s1 - s) * (slope - before)
    rows.append(Row(s, [step, slope], s1))
  return assemble(rows, xp)
