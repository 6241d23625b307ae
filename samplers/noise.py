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

PATH, PROJECT = 2**31 - 2, 2**31 - 1
"""Streams of a key, folded in: the Brownian path, and imputation. Rows are numbered from 0."""

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


def of_imputation(keys: jax.Array) -> Draw:
  """Returns the draws of imputation, a stream apart from that of the solver."""
  return by_row(jax.vmap(lambda key: jax.random.fold_in(key, PROJECT))(keys))


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
  paths = jax.vmap(lambda key: jax.random.fold_in(key, PATH))(keys)
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

  def above(end):  # W at one end, as seen from the power of 2 below `low`.
    return _walk(key, octave[1], *end, shape, dtype)
  values = jax.lax.map(above, (octave, fraction))
  return (values[0] - values[1]) / jnp.sqrt(ends[0].astype(dtype) - ends[1].astype(dtype))


def _walk(key, first, octave, fraction, shape, dtype):
  """W(2^k (1 + fraction / 2^23)) - W(2^first); k is `octave`, and both as a float32 stores them.

  Octave by octave up to k, whose increments have variance 2^octave, then down its bridge, which is
  halved bit by bit. One loop, since each place that draws is dear to compile.
  """
  def step(i, state):
    base, left, right = state
    depth = i - octave  # In the bridge; 0 is the octave as a whole, and so it is below it.
    inside = jnp.maximum(depth - 1, 0)
    prefix = fraction >> (_FRACTION_BITS - inside)  # Numbers the node within its generation.
    node = jnp.where(depth > 0, (1 << inside) + prefix, 0)
    of_octave = jax.random.fold_in(key, jnp.minimum(i, octave))
    z = jax.random.normal(jax.random.fold_in(of_octave, node), shape, dtype)
    root = jnp.exp2((jnp.minimum(i, octave) - _EXPONENT_BIAS).astype(dtype) / 2)
    middle = (left + right) / 2 + root / 2 * jnp.exp2(-inside.astype(dtype) / 2) * z
    upper = (fraction >> (_FRACTION_BITS - 1 - inside)) & 1
    halved = jnp.where(upper, middle, left), jnp.where(upper, right, middle)
    whole = jnp.zeros_like(z), root * z
    left, right = (jnp.where(depth > 0, half, all_) for half, all_ in zip(halved, whole,
                                                                          strict=True))
    return jnp.where(depth < 0, base + right, base), left, right
  zeros = jnp.zeros(shape, dtype)
  base, left, _ = jax.lax.fori_loop(first, octave + 1 + _FRACTION_BITS, step,
                                    (zeros, zeros, zeros))
  return base + left


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
