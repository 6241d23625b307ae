"""phi functions and Lagrange integrals against closed forms in exact arithmetic."""

import fractions
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from samplers import coefficients


def exact_phi(k, z):
  """phi_k by its power series in rational arithmetic."""
  z = fractions.Fraction(z)
  return float(sum(z**n / math.factorial(n + k) for n in range(120)))


@pytest.mark.parametrize('k', [0, 1, 2, 3, 4])
def test_phi(k):
  z = np.concatenate([[0.0], np.geomspace(1e-12, 10, 40), -np.geomspace(1e-12, 10, 40)])
  expected = [exact_phi(k, value) for value in z]
  np.testing.assert_allclose(coefficients.phi(k, z), expected, rtol=2e-14)
  np.testing.assert_allclose(coefficients.phi(k, jnp.asarray(z), jnp), expected, rtol=2e-14)


@pytest.mark.parametrize('z', [-2.0, -0.5, 0.0, 1e-9, 0.999, 1.001, 3.0])
def test_gradient_of_phi(z):
  """Finite and right on both sides of the switch between series and quotient, and at 0."""
  slope = jax.grad(lambda z: coefficients.phi(2, z, jnp))(z)
  difference = (exact_phi(2, z + 1e-5) - exact_phi(2, z - 1e-5)) / 2e-5
  assert slope == pytest.approx(difference, rel=1e-8)


def test_lagrange_integrals_are_exact_for_polynomials():
  nodes, moments = [0.0, -0.3, -40.0, -41.0], [1 / (m + 1) for m in range(4)]
  weights = coefficients.lagrange_integrals(nodes, moments)
  for power in range(4):
    integral = sum(w * v**power for w, v in zip(weights, nodes, strict=True))
    size = sum(abs(w * v**power) for w, v in zip(weights, nodes, strict=True))
    assert integral == pytest.approx(1 / (power + 1), abs=1e-15 * size)


def test_adams_bashforth_on_equal_steps():
  weights = coefficients.adams_bashforth([3.0, 4.0, 5.0, 6.0], 2.0)
  np.testing.assert_allclose(weights, np.array([-55, 59, -37, 9]) / 24, rtol=1e-14)
