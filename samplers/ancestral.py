"""k-diffusion's ancestral solvers: a deterministic step below the next level, then noise up to it.

A step from sigma to sigma' splits sigma'^2 into down^2, where a step of an ODE solver ends, and
up^2, the variance of fresh noise, see `levels.ancestral_split`. eta = 0 has no noise, eta = 1 is
ancestral sampling. Above 1 eta adds more noise, up to down = 0: a step to the denoised image, with
one evaluation, and noise from there. In these variables dx/dsigma = eps = (x - D) / sigma.

Source: k-diffusion, https://github.com/crowsonkb/k-diffusion.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, levels as levels_lib, registry
from samplers.table import Row, Table, assemble


@registry.register
def euler_ancestral(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                    xp: Any = np) -> Table:
  """Builds ancestral Euler steps: `ddim` with noise eta, and a factor on the noise.

  x' = x + (down - sigma) eps + up s_noise z. Weak order 1.

  Source: k-diffusion's sample_euler_ancestral; Song et al. 2021 (DDIM), arXiv:2010.02502, Eq. 12.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 1 slot.

  Raises:
    ValueError: if eta or s_noise is below 0.
  """
  check_noise('euler_ancestral', eta, s_noise, xp)
  x, denoised = xp.eye(2)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    rows.append(Row(s, [denoised + down / s * (x - denoised)], s1,
                    **noise_of(up, eta, s_noise, s, s1)))
  return assemble(rows, xp)


@registry.register
def dpm_2_ancestral(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                    xp: Any = np) -> Table:
  """Builds ancestral DPM-Solver-2 steps with an inner level m = sqrt(sigma down).

  x' = x + (down - sigma) eps(x + (m - sigma) eps; m) + up s_noise z. Of order 2 for eta = 0, where
  it is `dpm`.

  Source: k-diffusion's sample_dpm_2_ancestral.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0; at most 1 for a traced table.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n, less one for each step with down = 0, as one to 0 is, and 2 slots.

  Raises:
    ValueError: if eta or s_noise is below 0, or eta above 1 where the levels are traced.
  """
  return _two_stages('dpm_2_ancestral', levels, eta, s_noise, _from_inner_slope, xp)


@registry.register
def dpmpp_2s_ancestral(levels: Sequence[Any], *, eta: float = 1.0, s_noise: float = 1.0,
                       xp: Any = np) -> Table:
  """Builds ancestral DPM-Solver++(2S) steps with an inner level m = sqrt(sigma down).

  x' = (down / sigma) x + (1 - down / sigma) D(y; m) + up s_noise z with
  y = (m / sigma) x + (1 - m / sigma) D. Of order 2 for eta = 0.

  Source: k-diffusion's sample_dpmpp_2s_ancestral; Lu et al. 2022 (DPM-Solver++), arXiv:2211.01095,
  Alg. 1.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    eta: strength of the noise, >= 0; at most 1 for a traced table.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE 2 n, less one for each step with down = 0, as one to 0 is, and 2 slots.

  Raises:
    ValueError: if eta or s_noise is below 0, or eta above 1 where the levels are traced.
  """
  return _two_stages('dpmpp_2s_ancestral', levels, eta, s_noise, _from_inner_image, xp)


def check_noise(name: str, eta: Any, s_noise: Any, xp: Any) -> None:
  """Raises ValueError unless eta and s_noise are finite numbers >= 0; traced ones are not seen."""
  for option, value in (('eta', eta), ('s_noise', s_noise)):
    if xp is np and not 0 <= checks.to_number(value) < np.inf:
      raise ValueError(f'{name}: {option} must be a finite number of at least 0, got {value!r}; 0 '
                       'is deterministic, 1 the usual strength')


def check_split(name: str, eta: Any, s_noise: Any, xp: Any) -> None:
  """As `check_noise`; and raises ValueError for an eta above 1 where the levels are traced.

  A step may then end at down = 0, which changes the rows or their formula: it has to be known.
  """
  check_noise(name, eta, s_noise, xp)
  if xp is not np and isinstance(eta, float | int) and eta > 1:
    raise ValueError(f'{name}: eta must be at most 1 where the levels are traced, got {eta!r}; '
                     'build the table on the host with make')


def known_zero(value: Any) -> bool:
  """Says whether a value is known to be 0; that of a traced one never is."""
  return isinstance(value, float | int) and value == 0


def noise_of(up: Any, eta: Any, s_noise: Any, s: Any, s1: Any) -> dict[str, Any]:
  """Returns what a Row needs to draw noise from s to s1, nothing where none is known to be drawn.

  Args:
    up: standard deviation of the noise.
    eta: strength of the noise, of which `up` is a multiple.
    s_noise: factor on the noise.
    s: level at the start of the step.
    s1: level at its end; nothing is added at 0.

  Returns:
    Keyword arguments of `table.Row`.
  """
  if any(known_zero(value) for value in (eta, s_noise, s1)):
    return {}
  return {'noise': s_noise * up, 'interval': (s, s1)}


def _two_stages(name, levels, eta, s_noise, advance, xp):
  """Steps with a stage at m; slots: state, start of the step."""
  check_split(name, eta, s_noise, xp)
  x, start, denoised = xp.eye(3)
  rows = []
  for s, s1 in zip(levels, levels[1:], strict=False):
    down, up = levels_lib.ancestral_split(s, s1, eta, xp=xp)
    draw = noise_of(up, eta, s_noise, s, s1)
    if checks.is_zero(down):
      rows.append(Row(s, [denoised, start], s1, **draw))
      continue
    m = xp.sqrt(s * down)
    rows.append(Row(s, [denoised + m / s * (x - denoised), x]))
    rows.append(Row(m, [advance(x, start, denoised, s, m, down), start], s1, **draw))
  return assemble(rows, xp)


def _from_inner_slope(x, start, denoised, s, m, down):
  return start + (down - s) / m * (x - denoised)


def _from_inner_image(x, start, denoised, s, m, down):
  del x, m
  return denoised + down / s * (start - denoised)
