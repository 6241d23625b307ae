"""Adams-Bashforth solvers: polynomials through the last slopes eps, integrated over the step.

They differ in the variable of the polynomial: steps counted as equal (iPNDM, PLMS), the noise
level (iPNDM_v, LMS, DEIS rhoAB), or the time of a variance-preserving process (DEIS tAB).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, levels as levels_lib, registry
from samplers.multistep import multistep, weighted
from samplers.table import Row, Table, assemble

EQUAL_STEPS = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
"""Weights of the last slopes by order, the newest first, where all steps are of one size."""

_DEIS_POINTS = 10000  # Of the published sum, both ends included.
_DEIS_RANGE = (0.002, 80.0)  # Levels of the published time variable, whatever the grid.
# Nodes and weights in log sigma: 64 give 1e-16 for a single step from 80 to 0.002.
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(64)


@registry.register
def ipndm(levels: Sequence[Any], *, max_order: int = 4, xp: Any = np) -> Table:
  """Builds iPNDM: Adams-Bashforth on eps with the weights of equal steps, whatever the grid.

  x' = x + (sigma' - sigma) sum_j w_j eps_{i-j}; order min(max_order, i + 1) at step i. On a grid
  that is not uniform in sigma the weights of orders 3 and 4 leave second order.

  Source: Zhang and Chen 2023 (DEIS), arXiv:2204.13902, App. D; Liu et al. 2022 (PNDM),
  arXiv:2202.09778, Eq. 12.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    max_order: 1 to 4.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and max_order slots.

  Raises:
    ValueError: if max_order is not 1, 2, 3 or 4.
  """
  checks.check_order('ipndm', max_order, 4)

  def advance(i, x, eps):
    return x + (levels[i + 1] - levels[i]) * weighted(EQUAL_STEPS[len(eps)], eps)
  return multistep(levels, max_order, False, advance, xp)


@registry.register
def ipndm_v(levels: Sequence[Any], *, max_order: int = 4, xp: Any = np) -> Table:
  """Builds iPNDM_v: Adams-Bashforth on eps with the exact weights of the grid's own steps.

  The published code's weights of orders 3 and 4 are not those integrals (a product where a
  difference belongs, and h1/h2 for h2/h3); here all orders are exact.

  Source: Zhou et al. 2024 (AMED), arXiv:2312.00094, App. B; Hairer et al., Sec. III.5.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    max_order: 1 to 4.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and max_order slots.

  Raises:
    ValueError: if max_order is not 1, 2, 3 or 4.
  """
  checks.check_order('ipndm_v', max_order, 4)
  return _variable_steps(levels, max_order, xp)


@registry.register
def lms(levels: Sequence[Any], *, order: int = 4, xp: Any = np) -> Table:
  """Builds k-diffusion's linear multistep sampler: the weights of `ipndm_v`, also in a step to 0.

  Source: Karras et al. 2022 (EDM), arXiv:2206.00364, variables; k-diffusion's sample_lms, whose
  numerical quadrature is replaced by the closed form.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    order: 1 to 4.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and `order` slots.

  Raises:
    ValueError: if order is not 1, 2, 3 or 4.
  """
  checks.check_order('lms', order, 4, 'order')
  return _variable_steps(levels, order, xp)


@registry.register
def plms(levels: Sequence[Any], *, max_order: int = 4, xp: Any = np) -> Table:
  """Builds PLMS: a Heun step, then Adams-Bashforth with the weights of equal steps.

  A step to 0 is Euler. Order 1 starts with the Heun step as well.

  Source: Liu et al. 2022 (PNDM), arXiv:2202.09778, Sec. 3.3, with the second-order start of the
  latent-diffusion and split-diffusion codes (Wizadwongsa and Suwajanakorn 2023, arXiv:2301.11558).

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    max_order: 1 to 4.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n + 1 (n for a single step to 0) and max(max_order, 2) slots.

  Raises:
    ValueError: if max_order is not 1, 2, 3 or 4.
  """
  checks.check_order('plms', max_order, 4)
  x, *memory, denoised = xp.eye(max(max_order, 2) + 1)
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    answers = [(x - denoised) / s, *memory]
    shifted = answers[:len(memory)]
    if checks.is_zero(s1):
      rows.append(Row(s, [denoised, *shifted], level=s1))
    elif i == 0:
      rows.append(Row(s, [denoised + s1 / s * (x - denoised), *shifted]))
      corrected = x + (s1 - s) / 2 * ((x - denoised) / s1 - memory[0])
      rows.append(Row(s1, [corrected, *memory], level=s1))
    else:
      weights = EQUAL_STEPS[min(max_order, i + 1)]
      rows.append(Row(s, [x + (s1 - s) * weighted(weights, answers), *shifted], level=s1))
  return assemble(rows, xp)


@registry.register
def deis(levels: Sequence[Any], *, max_order: int = 3, mode: str = 'tab',
         quadrature: str = 'published', constants: str = 'published',
         epsilon_s: float = 1e-3, xp: Any = np) -> Table:
  """Builds DEIS: Adams-Bashforth on eps with a polynomial in another variable.

  'tab': in the time u of a VP process, c_j = int_{u_i}^{u_{i+1}} (dsigma/du) L_j(u) du. 'rhoab': in
  sigma, where DEIS is `ipndm_v`. Order min(max_order, i + 1); the first step is Euler.

  The published code approximates the integrals by a sum over 10000 points, both ends included
  (relative error 1e-6 to 4e-4), and fixes the VP process to sigma(epsilon_s) = 0.002 and
  sigma(1) = 80 whatever the grid. Both are the defaults here, since published results used them.

  Source: Zhang and Chen 2023 (DEIS), arXiv:2204.13902, Eq. 14 and 15, App. B.

  Args:
    levels: n + 1 decreasing noise levels; with 'tab' the last must be above 0.
    max_order: 1 to 4.
    mode: 'tab' or 'rhoab'.
    quadrature: 'published' (the sum) or 'exact' (Gauss-Legendre in log sigma), for 'tab'.
    constants: VP process of 'tab': 'published' (0.002 to 80) or 'grid' (the grid's own ends).
    epsilon_s: time of the lowest level of the VP process.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and max_order slots.

  Raises:
    ValueError: if an option is not one of the above, a 'tab' grid ends in 0, where dsigma/du is
      infinite, or epsilon_s is not between 0 and 1.
  """
  checks.check_order('deis', max_order, 4)
  checks.check_choice('deis', 'mode', mode, ('tab', 'rhoab'))
  checks.check_choice('deis', 'quadrature', quadrature, ('published', 'exact'))
  checks.check_choice('deis', 'constants', constants, ('published', 'grid'))
  if mode == 'rhoab':
    return _variable_steps(levels, max_order, xp)
  if checks.is_zero(levels[-1]):
    raise ValueError("deis: sigmas must end above 0 with mode 'tab', got a last level 0; end at "
                     "sigma_min and add denoise_to_zero, or use mode='rhoab'")
  low, high = _DEIS_RANGE if constants == 'published' else (
      (levels[-1], levels[0]) if xp is not np else (min(levels), max(levels)))  # It may rise.
  if xp is np:
    levels_lib.check_vp_range('deis', low, high, epsilon_s)
  beta = levels_lib.vp_constants(low, high, epsilon_s, xp=xp)
  times = [levels_lib.vp_time_of_sigma(level, *beta, xp=xp) for level in levels]
  integrate = _published_sum if quadrature == 'published' else _gauss_legendre

  def advance(i, x, eps):
    if len(eps) == 1:
      return x + (levels[i + 1] - levels[i]) * eps[0]
    nodes = [times[i - j] for j in range(len(eps))]
    return x + weighted(integrate(nodes, times[i + 1], levels[i], levels[i + 1], beta, xp), eps)
  return multistep(levels, max_order, False, advance, xp)


def _variable_steps(levels, order, xp):
  def advance(i, x, eps):
    newest_first = [levels[i - j] for j in range(len(eps))]
    return x + weighted(coefficients.adams_bashforth(newest_first, levels[i + 1], xp), eps)
  return multistep(levels, order, False, advance, xp)


def _published_sum(nodes, end, sigma, sigma_next, beta, xp):
  """DEIS's own quadrature: step / N times the sum over N points, which counts both ends whole."""
  u = nodes[0] + (end - nodes[0]) * xp.linspace(0.0, 1.0, _DEIS_POINTS)
  level = levels_lib.sigma_of_vp_time(u, *beta, xp=xp)
  slope = 0.5 * (beta[0] * u + beta[1]) * (level + 1 / level)
  width = (end - nodes[0]) / _DEIS_POINTS
  return [width * xp.sum(slope * basis) for basis in _lagrange(nodes, u)]


def _gauss_legendre(nodes, end, sigma, sigma_next, beta, xp):
  """int L_j(u(sigma)) dsigma over the step, with sigma = e^y: smooth where dsigma/du is not."""
  length = xp.log(sigma_next / sigma)
  level = sigma * xp.exp(length * xp.asarray((_GAUSS_NODES + 1) / 2))
  u = levels_lib.vp_time_of_sigma(level, *beta, xp=xp)
  measure = length / 2 * xp.asarray(_GAUSS_WEIGHTS) * level
  return [xp.sum(measure * basis) for basis in _lagrange(nodes, u)]


def _lagrange(nodes, u):
  """Values of the Lagrange basis on `nodes` at the points u, one array per node."""
  values = []
  for j, node in enumerate(nodes):
    factors = [(u - other) / (node - other) for k, other in enumerate(nodes) if k != j]
    value = factors[0]
    for factor in factors[1:]:
      value = value * factor
    values.append(value)
  return values
