"""Formulas that coefficients are made of, in NumPy on the host or in jax.numpy under a trace."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_TERMS = 20  # Of the series of phi below |z| = 1: the first one left out is below 1e-19.


def phi(k: int, z: Any, xp: Any = np) -> Any:
  """Returns phi_k(z) of exponential integrators, exact to rounding also near 0.

  phi_0(z) = e^z, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z, phi_k(0) = 1/k!.

  Source: Hochbruck and Ostermann 2010, Exponential integrators, Eq. 2.10 and 2.11.

  Args:
    k: index, >= 0.
    z: finite argument, a scalar or an array.
    xp: numpy or jax.numpy.

  Returns:
    phi_k(z), shaped like z.
  """
  if k == 0:
    return xp.exp(z)
  z = xp.asarray(z)
  near = xp.abs(z) < 1
  small = xp.where(near, z, xp.zeros_like(z))  # Keeps the unused branch finite, also its gradient.
  series = xp.zeros_like(z)
  for n in reversed(range(_TERMS)):
    series = series * small + 1 / math.factorial(n + k)
  large = xp.where(near, xp.ones_like(z), z)
  quotient = xp.expm1(large) / large
  for j in range(1, k):
    quotient = (quotient - 1 / math.factorial(j)) / large
  return xp.where(near, series, quotient)


def lagrange_integrals(nodes: Sequence[Any], moments: Sequence[Any], xp: Any = np) -> list[Any]:
  """Integrates the Lagrange basis on `nodes` against a weight given by its moments.

  w_j = int L_j(v) w(v) dv with L_j(v) = prod_{k != j} (v - v_k) / (v_j - v_k) expanded in powers
  of v. For a step from 0 and nodes v_k <= 0 all terms of the expansion have one sign: the weights
  are exact to rounding however uneven the grid.

  Args:
    nodes: distinct scalars v_k, the newest first.
    moments: int v^m w(v) dv for m = 0 .. len(nodes) - 1.
    xp: numpy or jax.numpy.

  Returns:
    The weights w_j, one per node.
  """
  weights = []
  for j, node in enumerate(nodes):
    powers = [xp.ones_like(xp.asarray(moments[0]))]  # Coefficients of L_j, lowest power first.
    for k, other in enumerate(nodes):
      if k != j:
        up, down = [0.0, *powers], [*powers, 0.0]
        powers = [(u - other * d) / (node - other) for u, d in zip(up, down, strict=True)]
    weights.append(sum(p * m for p, m in zip(powers, moments, strict=True)))
  return weights


def adams_bashforth(levels: Sequence[Any], end: Any, xp: Any = np) -> list[Any]:
  """Returns the exact variable-step Adams-Bashforth weights of the step levels[0] -> end.

  The integral over the step of the polynomial through the slopes at `levels`.

  Source: Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, Sec. III.5.

  Args:
    levels: noise levels of the slopes in use, the newest (the start of the step) first.
    end: noise level at which the step ends.
    xp: numpy or jax.numpy.

  Returns:
    Weights of the slopes, the step's length included.
  """
  step = end - levels[0]
  nodes = [(level - levels[0]) / step for level in levels]
  moments = [1 / (m + 1) for m in range(len(levels))]
  return [step * weight for weight in lagrange_integrals(nodes, moments, xp)]
