"""From a network's own conventions to D(x; sigma): here they end.

  D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)                                          (1)

Source: Karras et al. 2022, arXiv:2206.00364, Eq. 7 and Table 1.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Coefficients(NamedTuple):
  """The scalars of Eq. 1 at each sample's noise level, each of shape (batch,)."""

  c_skip: jax.Array
  c_out: jax.Array
  c_in: jax.Array
  c_noise: jax.Array


def edm(sigma: jax.Array, sigma_data: float = 0.5) -> Coefficients:
  """Returns EDM's coefficients: input and training target of F have unit variance at every level.

  Source: Karras et al. 2022, Table 1, last column.

  Args:
    sigma: noise levels > 0, (batch,).
    sigma_data: standard deviation of the data.

  Returns:
    The Coefficients.
  """
  total = sigma**2 + sigma_data**2
  # XLA makes this of 1 / sqrt, or not, depending on what is around it: an image would depend, in
  # its last digits, on the number of devices.
  c_in = jax.lax.rsqrt(total)
  return Coefficients(c_skip=sigma_data**2 / total, c_out=sigma * sigma_data * c_in, c_in=c_in,
                      c_noise=jnp.log(sigma) / 4)


PRECONDITIONING = MappingProxyType({'edm': edm})
"""Name -> function of (sigma, **settings) that gives the Coefficients."""


def precondition(network: Callable[[jax.Array, jax.Array], jax.Array],
                 coefficients: Callable[[jax.Array], Coefficients], x: jax.Array,
                 sigma: jax.Array | float) -> tuple[jax.Array, jax.Array]:
  """Evaluates Eq. 1.

  Args:
    network: network(scaled x, c_noise (batch,)) -> (F, features), F like x.
    coefficients: of the preconditioning, from levels (batch,).
    x: (batch, height, width, channels).
    sigma: noise level > 0, a scalar or (batch,).

  Returns:
    (D, features): denoised images like x, and what else the network gives.
  """
  c = coefficients(jnp.broadcast_to(jnp.asarray(sigma).astype(x.dtype), x.shape[:1]))
  c_skip, c_out, c_in = (scalar[:, None, None, None] for scalar in c[:3])
  answer, features = network(c_in * x, c.c_noise)
  return c_skip * x + c_out * answer.astype(x.dtype), features
