"""Log-likelihood of images by the probability-flow ODE.

With u = ln sigma the ODE is dx/du = x - D(x; sigma), and the density of the noised data along it

  d log p(x(u); u) / du = -div(x - D) = -(n - tr J),   J = dD/dx,   n dimensions,             (1)

so an image x at sigma_0, followed up to its latent z at sigma_N, has

  log p(x) = log N(z; 0, sigma_N^2 I) + integral of (n - tr J) du:                             (2)

the density of what a sampler makes of its start N(0, sigma_N^2 I), without noise of its own. The
divergence is exact, by n directions, or estimated by probes v of mean 0 and covariance I,

  n - tr J = E[v.v - v.J v],                                                                   (3)

each probe fixed along the whole trajectory, so that a solver with error control sees one ODE.

Bits per dimension are those of 8-bit data. A pixel k of 0..255 with u uniform in [0, 1) becomes
x = 2 (k + u) / 256 - 1, and a density in x is one in k + u after division by 128 per dimension:

  bits = -log2 p(x) / n + 7,                                                                   (4)

on average over u an upper bound on -log2 P(k) / n, P(k) the integral of the density over the bin.

Source: Song et al. 2021 (score SDE), arXiv:2011.13456, Eq. 39 and App. D.2; Grathwohl et al. 2019
(FFJORD), arXiv:1810.01367, Eq. 7; Theis et al. 2016, arXiv:1511.01844, Sec. 3.1 (dequantization).
Published code integrates in sigma, where small levels take many steps; in ln sigma Runge-Kutta of
order 4 is more exact by orders of magnitude at the same cost.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks

Denoise = Callable[[jax.Array, jax.Array], jax.Array]

BITS_OF_SCALE = 7
"""Of Eq. 4: log2 of the 128 steps of 8-bit values in a unit of x."""

DIVERGENCES = 'rademacher', 'gaussian', 'exact'
"""Kinds of probes, and no probes."""

# Weights of stage i + 1 on the slopes before it; the last row is that of the end.
_TABLEAUS = {
    'euler': ([0.0], [[1.0]]),
    'heun': ([0.0, 1.0], [[1.0, 0.0], [0.5, 0.5]]),
    'rk4': ([0.0, 0.5, 0.5, 1.0], [[0.5, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, 0.0],
                                   [0.0, 0.0, 1.0, 0.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]),
}
SOLVERS = (*_TABLEAUS, *(f'{name}_log' for name in _TABLEAUS))
"""Solvers on a grid: Runge-Kutta methods in sigma, and in ln sigma."""

_DIRECTIONS = 16  # Of the exact divergence, followed at once.


class Steps(NamedTuple):
  """A solver on a grid, as data: for x and the integral of Eq. 2 alike.

  Attributes:
    sigma: noise level of each evaluation, (n, stages).
    weights: of the slopes dx/du, (n, stages, stages): row i < stages - 1 leads to the input of
      stage i + 1, the last one to the next level.
    sigma_max: last level, a scalar.
  """

  sigma: np.ndarray
  weights: np.ndarray
  sigma_max: np.ndarray

  @property
  def nfe(self) -> int:
    """Evaluations of the denoiser; each also follows every probe, or n directions."""
    return math.prod(self.sigma.shape)


class Likelihood(NamedTuple):
  """What is known of each image; nats, but for `bits_per_dim`.

  Attributes:
    log_likelihood: Eq. 2, mean over the probes, (batch,).
    bits_per_dim: Eq. 4, (batch,).
    prior: log N(z; 0, sigma_N^2 I), (batch,).
    integral: the other term, mean over the probes, (batch,).
    by_probe: the integral by each probe, (probes, batch); one row where it is exact.
    latent: z, state at the highest level, like the images.
  """

  log_likelihood: jax.Array
  bits_per_dim: jax.Array
  prior: jax.Array
  integral: jax.Array
  by_probe: jax.Array
  latent: jax.Array


def steps(sigmas: Sequence[float] | np.ndarray, solver: str = 'rk4_log') -> Steps:
  """Builds the coefficients of a solver on a grid, on the host, in float64.

  Args:
    sigmas: noise levels, (n + 1,), increasing from above 0.
    solver: one of SOLVERS; those in ln sigma have their middle stages at geometric means.

  Returns:
    The Steps.

  Raises:
    ValueError: if the solver is unknown, or the levels do not increase strictly from above 0.
  """
  checks.check_choice('likelihood', 'solver', solver, SOLVERS)
  sigmas = checks.to_array('likelihood', 'sigmas', sigmas)
  if sigmas.ndim != 1 or len(sigmas) < 2:
    raise ValueError('likelihood: sigmas must be a list of two or more levels, got shape '
                     f'{sigmas.shape}; num_steps = 1 makes two')
  bad = np.flatnonzero(~((sigmas > 0) & (sigmas <= checks.HIGHEST_SIGMA)))
  if bad.size:
    raise ValueError(f'likelihood: sigmas must be above 0 and at most {checks.HIGHEST_SIGMA:g}, '
                     f'got {sigmas[bad[0]]:g} at index {bad[0]}; data without noise have no '
                     'density, start at the lowest level of the network')
  bad = np.flatnonzero(np.diff(sigmas) <= 0)
  if bad.size:
    raise ValueError(f'likelihood: sigmas must increase, got {sigmas[bad[0] + 1]:g} after '
                     f'{sigmas[bad[0]]:g} at index {bad[0] + 1}; the image is at the lowest level, '
                     'turn a grid for sampling around')
  nodes, tableau = (np.array(part) for part in _TABLEAUS[solver.removesuffix('_log')])
  low, high = sigmas[:-1, None], sigmas[1:, None]
  if solver.endswith('_log'):
    h = np.log(high / low)
    levels, per_slope = low * np.exp(nodes * h), np.ones_like(low)
  else:
    h = high - low
    levels = low + nodes * h
    per_slope = levels  # dx/dsigma = (dx/du) / sigma.
  levels = np.where(nodes == 1, high, levels)
  weights = (h / per_slope)[:, None] * tableau
  return Steps(levels, weights, sigmas[-1])


def along(steps: Steps, denoise: Denoise, x: jax.Array,
          probes: jax.Array | None = None) -> Likelihood:
  """Follows images up a grid.

  Pure: compile it with the Steps as an argument, and solvers of as many stages share the program
  on grids of one length.

  Args:
    steps: what `steps` returns.
    denoise: D(x; sigma), result like x, differentiable in forward mode; sigma is a scalar. One
      sample's answer may not depend on the others.
    x: images at the first level, (batch, height, width, channels).
    probes: (probes, *x.shape), see `draw_probes`; None: the exact divergence, at the cost of
      height x width x channels directions.

  Returns:
    The Likelihood.

  Raises:
    ValueError: if x is not a batch of images of floats, or the probes are not like it.
  """
  check_images(x, probes)
  sigma, weights, sigma_max = (jnp.asarray(part).astype(x.dtype) for part in steps)

  def step(state, row):
    (x, integral), (sigma, weights) = state, row

    def stage(carry, row):  # A loop, so that the program holds the network once.
      (at, slopes, rates), (i, level, to) = carry, row
      slope, rate = slope_and_divergence(denoise, at, level, probes)
      slopes, rates = slopes.at[i].set(slope), rates.at[i].set(rate)
      return (combine(x, to, slopes), slopes, rates), None

    count = len(sigma)
    blank = jnp.zeros((count, *x.shape), x.dtype), jnp.zeros((count, *integral.shape), x.dtype)
    (x, _, rates), _ = jax.lax.scan(stage, (x, *blank), (jnp.arange(count), sigma, weights))
    return (x, combine(integral, weights[-1], rates)), None

  start = jnp.zeros((1 if probes is None else len(probes), len(x)), x.dtype)
  (latent, integral), _ = jax.lax.scan(step, (x, start), (sigma, weights))
  return result(latent, integral, sigma_max)


def slope_and_divergence(denoise: Denoise, x: jax.Array, sigma: jax.Array,
                         probes: jax.Array | None) -> tuple[jax.Array, jax.Array]:
  """Returns dx/du = x - D and its divergence by Eq. 3, (probes, batch), or (1, batch) if exact."""
  def slope(x):
    return x - denoise(x, sigma).astype(x.dtype)

  def follow(v):
    """The slope, and v.v - v.J v."""
    value, change = jax.jvp(slope, (x,), (v,))
    return value, jnp.sum(v * change, axis=(1, 2, 3))

  if probes is not None:
    return jax.vmap(follow, out_axes=(None, 0))(probes)
  size = math.prod(x.shape[1:])

  def diagonal(i):
    unit = (jnp.arange(size) == i).astype(x.dtype).reshape(1, *x.shape[1:])
    return follow(jnp.broadcast_to(unit, x.shape))[1]  # No sample sees the unit of another.
  parts = jax.lax.map(diagonal, jnp.arange(size), batch_size=_DIRECTIONS)
  return slope(x), parts.sum(0)[None]


def result(latent: jax.Array, integral: jax.Array, sigma_max: jax.Array) -> Likelihood:
  """Puts Eq. 2 and 4 together.

  Args:
    latent: states at sigma_max, (batch, height, width, channels).
    integral: of the divergence, by probe, (probes, batch).
    sigma_max: highest level, a scalar.

  Returns:
    The Likelihood.
  """
  size = math.prod(latent.shape[1:])
  # In units of sigma_max: squares of 80 over a whole image would cost float32 digits.
  square = jnp.sum((latent / sigma_max)**2, axis=(1, 2, 3))
  prior = -size * (jnp.log(sigma_max) + math.log(2 * math.pi) / 2) - square / 2
  mean = integral.mean(0)
  return Likelihood(prior + mean, bits_per_dim(prior + mean, size), prior, mean, integral, latent)


def bits_per_dim(log_likelihood: jax.Array, size: int) -> jax.Array:
  """Returns Eq. 4.

  Args:
    log_likelihood: log p(x) in nats, any shape.
    size: dimensions of an image.
  """
  return BITS_OF_SCALE - log_likelihood / (size * math.log(2))


def dequantize(pixels: jax.Array, key: jax.Array) -> jax.Array:
  """Returns 8-bit images with uniform noise as numbers in [-1, 1], x = 2 (pixel + u) / 256 - 1.

  Args:
    pixels: uint8 (batch, height, width, channels).
    key: one typed key per image, (batch,).

  Returns:
    float32 of the same shape.

  Raises:
    ValueError: if the images are of another type.
  """
  if pixels.dtype != jnp.uint8:
    raise ValueError(f'dequantize: pixels must be uint8, got {pixels.dtype}; leave it out for '
                     'images that are no 8-bit ones')
  u = jax.vmap(lambda key: jax.random.uniform(key, pixels.shape[1:], jnp.float32))(key)
  return (pixels.astype(jnp.float32) + u) / 128 - 1


def draw_probes(key: jax.Array, count: int, shape: Sequence[int], kind: str = 'rademacher',
                dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """Draws the probes of each image from its own key; the first ones stay where there are more.

  Rademacher's, of signs, leave no error of the diagonal of J and so have the least variance.

  Args:
    key: one typed key per image, (batch,).
    count: of probes, at least 1.
    shape: of an image, (height, width, channels).
    kind: 'rademacher' or 'gaussian'.
    dtype: of the probes.

  Returns:
    (count, batch, *shape).

  Raises:
    ValueError: if the kind is unknown, or the count no integer of at least 1.
  """
  checks.check_choice('likelihood', 'probes', kind, DIVERGENCES[:2])
  if not checks.is_integer(count) or count < 1:
    raise ValueError(f'likelihood: probes must be an integer of 1 or more, got {count!r}; more of '
                     'them tell how far the estimate is off')
  draw = {'rademacher': jax.random.rademacher, 'gaussian': jax.random.normal}[kind]

  def one(number):
    return jax.vmap(lambda key: draw(jax.random.fold_in(key, number), tuple(shape), dtype))(key)
  return jnp.stack([one(number) for number in range(count)])


def combine(start: jax.Array, weights: jax.Array, parts: jax.Array) -> jax.Array:
  """Returns start + sum_i weights[i] parts[i], in order; weights broadcast against the parts."""
  return functools.reduce(
      jnp.add, (weights[i] * parts[i] for i in range(len(parts))), start)


def check_images(x: jax.Array, probes: jax.Array | None) -> None:
  """Checks shapes of images and probes.

  Raises:
    ValueError: if x is not a batch of images of floats, or the probes are not like it.
  """
  if getattr(x, 'ndim', None) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    got = f'{x.dtype} of shape {x.shape}' if hasattr(x, 'shape') else type(x)
    raise ValueError('likelihood: x must be floats of shape (batch, height, width, channels), got '
                     f'{got}; dequantize makes them of 8-bit images')
  if probes is not None and (jnp.ndim(probes) != 5 or probes.shape[1:] != x.shape
                             or not len(probes) or probes.dtype != x.dtype):
    raise ValueError(f'likelihood: probes must be {x.dtype} of shape (probes, '
                     f'{", ".join(map(str, x.shape))}), got {getattr(probes, "dtype", None)} of '
                     f'shape {jnp.shape(probes)}; see draw_probes')
