"""Sources of noise: standard normal draws of a solver's rows, from one key per sample.

A row that names an interval draws from a Brownian path W over noise levels, one path per key:
z = (W(a) - W(b)) / sqrt(a - b) for the interval from a down to b. Draws of disjoint intervals are
independent, those of a finer grid add up to those of a coarser one, and so a seed shows the same
image at 20 and at 40 steps. Other rows draw by their number.

W is a virtual Brownian tree: any point of it is computed from the key alone, in the time and memory
of its depth. Between two powers of 2 it is a Brownian bridge, halved once per bit of a float32's
fraction: every float32 is a point of the path, at any scale and whatever the grid.

Source: Li et al. 2020, Scalable gradients for stochastic differential equations, arXiv:2001.01328,
Sec. 4 (the tree); k-diffusion's BrownianTreeNoiseSampler (the normalised increments).
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Draw = Callable[[jax.Array, jax.Array], jax.Array]
"""draw(row, x) -> standard normals like x."""

# Streams of a key: rows are numbered from 0, the path has one of the last numbers.
_PATH_STREAM = 2**31 - 2
_FRACTION_BITS = 23  # Of a float32.
_EXPONENT_BIAS = 127
_LOWEST = np.float32(2.0**-64)  # The path rests below: no schedule goes there.


def by_row(keys: jax.Array) -> Draw:
  """Returns independent standard normal draws, one per row and key.

  Args:
    keys: one typed key per sample, (batch,).

  Returns:
    draw(row, x) -> z like x.
  """
  return _rows(keys, jax.random.normal)


def two_point(keys: jax.Array) -> Draw:
  """Returns draws of -1 and 1 with equal chances: enough for weak order 1.

  Source: Kloeden and Platen 1992, Numerical Solution of Stochastic Differential Equations, Sec.
  14.1; SEEDS, arXiv:2305.14267, uses it.

  Args:
    keys: one typed key per sample, (batch,).

  Returns:
    draw(row, x) -> z like x, of mean 0 and variance 1.
  """
  return _rows(keys, jax.random.rademacher)


def three_point(keys: jax.Array) -> Draw:
  """Returns draws of -sqrt(3), 0 and sqrt(3) with chances 1/6, 2/3, 1/6: enough for weak order 2.

  Their moments are those of a normal variable up to the fifth.

  Source: Kloeden and Platen 1992, Eq. 14.2.2.

  Args:
    keys: one typed key per sample, (batch,).

  Returns:
    draw(row, x) -> z like x, of mean 0 and variance 1.
  """
  def one(key, shape, dtype):
    face = jax.random.randint(key, shape, 0, 6)
    return jnp.asarray(3**0.5, dtype) * ((face == 5).astype(dtype) - (face == 0).astype(dtype))
  return _rows(keys, one)


def brownian(keys: jax.Array, interval: Any) -> Draw:
  """Returns draws along one Brownian path per key, by row where a row names no interval.

  Args:
    keys: one typed key per sample, (batch,).
    interval: noise levels from which and to which each row's draw acts, (rows, 2), NaN without.

  Returns:
    draw(row, x) -> z like x.
  """
  paths = jax.vmap(lambda key: jax.random.fold_in(key, _PATH_STREAM))(keys)
  independent = by_row(keys)
  interval = jax.lax.stop_gradient(jnp.asarray(interval).astype(jnp.float32))

  def draw(row, x):
    high, low = jnp.max(interval[row]), jnp.min(interval[row])

    def along_path():
      def one(key):
        return increment(key, high, low, x.shape[1:], x.dtype)
      return jax.vmap(one)(paths)
    # Levels that float32 cannot tell apart have no increment, and next to no weight.
    return jax.lax.cond(high > low, along_path, lambda: independent(row, x))
  return draw


def increment(key: jax.Array, high: Any, low: Any, shape: tuple[int, ...],
              dtype: Any = jnp.float32) -> jax.Array:
  """Returns (W(high) - W(low)) / sqrt(high - low) of the Brownian path of a key.

  Levels are rounded to float32; one below 2^-64 counts as 2^-64.

  Args:
    key: one typed key: the path.
    high: noise level, a scalar above `low`.
    low: noise level, a scalar >= 0.
    shape: of the path's points.
    dtype: of the result.

  Returns:
    Standard normal draws; NaN where the interval is empty.
  """
  ends = jnp.maximum(jnp.stack([jnp.asarray(high, jnp.float32), jnp.asarray(low, jnp.float32)]),
                     _LOWEST)
  bits = jax.lax.bitcast_convert_type(ends, jnp.int32)
  octave, fraction = bits >> _FRACTION_BITS, bits & (2**_FRACTION_BITS - 1)
  above = jax.vmap(lambda k, m: _within(key, k, m, shape, dtype))(octave, fraction)
  # W at the power of 2 below `high`, as seen from the one below `low`.
  between = jax.lax.fori_loop(
      octave[1], octave[0], lambda k, sum_: sum_ + _octave(key, k, shape, dtype),
      jnp.zeros(shape, dtype))
  length = ends[0].astype(dtype) - ends[1].astype(dtype)
  return (above[0] - above[1] + between) / jnp.sqrt(length)


def _octave(key, octave, shape, dtype):
  """W(2^(k + 1)) - W(2^k), of variance 2^k; `octave` is k as a float32 stores it, biased."""
  z = jax.random.normal(jax.random.fold_in(key, octave), shape, dtype)
  return _root_of_power(octave, dtype) * z


def _root_of_power(octave, dtype):
  return jnp.exp2((octave - _EXPONENT_BIAS).astype(dtype) / 2)


def _within(key, octave, fraction, shape, dtype):
  """W(2^k (1 + fraction / 2^23)) - W(2^k): the bridge over the octave, halved bit by bit."""
  nodes = jax.random.fold_in(jax.random.fold_in(key, octave), 2**31 - 1)
  deviation = _root_of_power(octave, dtype) / 2  # Of the midpoint given the ends: sqrt(length) / 2.

  def halve(depth, state):
    left, right = state
    prefix = fraction >> (_FRACTION_BITS - depth)  # Numbers the node within its generation.
    z = jax.random.normal(jax.random.fold_in(nodes, (1 << depth) + prefix), shape, dtype)
    middle = (left + right) / 2 + deviation * jnp.exp2(-depth.astype(dtype) / 2) * z
    upper = (fraction >> (_FRACTION_BITS - 1 - depth)) & 1
    return jnp.where(upper, middle, left), jnp.where(upper, right, middle)
  start = jnp.zeros(shape, dtype), _octave(key, octave, shape, dtype)
  return jax.lax.fori_loop(0, _FRACTION_BITS, halve, start)[0]


def _rows(keys, one):
  def draw(row, x):
    def of_key(key):
      return one(jax.random.fold_in(key, row), x.shape[1:], x.dtype)
    return jax.vmap(of_key)(keys)
  return draw


SOURCES = MappingProxyType({
    'brownian': lambda keys, table: brownian(keys, table.interval),
    'gaussian': lambda keys, table: by_row(keys),
    'two_point': lambda keys, table: two_point(keys),
    'three_point': lambda keys, table: three_point(keys),
})
"""Source of noise by name, a function of keys (batch,) and table -> draw."""
