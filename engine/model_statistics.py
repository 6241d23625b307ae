"""What DPM-Solver-v3 has to know of a model, from noisy images.

With lam = -log(sigma) and expectations over noised data x = x0 + sigma z of a level,

  l = 1 - E[diag dD/dx] = 1 - E[v (dD/dx v)], v of random signs,                             (1)
  f = (1 - l) x - D,   f' = (1 - l) x' - l' x - dD/dlam,   x' = D - x,                       (2)
  s = cov(f, f') / var(f),   b = E[f'] - s E[f],                                             (3)

by element of the image, or over all of them: s f + b is then the best linear guess of f', which is
the derivative of f along the ODE. Derivatives of D are Jacobian-vector products; l' is taken of
log(l / (1 - l)) at neighbouring levels, since l is nearly sigma^2 / (v + sigma^2), for which that
is a straight line. Every image keeps its z and v at all levels, so that l is smooth.

Source: Zheng et al. 2023 (DPM-Solver-v3), arXiv:2310.13268, Sec. 3.1.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from engine import devices, sampler, seeds as seeds_lib

_STREAM = 3  # Of a seed, beside those of engine/seeds.py: z and v.
_ROUNDING = 16 * float(np.finfo(np.float32).eps)  # Of f, which is of the size of an image.
_RANGE = -3.0, 2.0  # Of s. Gaussian data of any covariance give -2 to 1; e^S has to stay a number.


class Shared(NamedTuple):
  """What all images of a measurement share.

  Attributes:
    sampler: what the denoiser needs.
    sigmas: levels, (m + 1,).
    l: (m + 1, ...), see Eq. 1; None where it is being measured.
    gradient: l', like l.
  """

  sampler: sampler.Constants
  sigmas: Any
  l: Any = None  # noqa: E741 - as in the paper
  gradient: Any = None


def fit(f: np.ndarray, derivative: np.ndarray, square: np.ndarray,
        product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Computes Eq. 3 from moments.

  Where f does not vary but for rounding, s is 0: a pixel that is black in all images. s is kept
  between -3 and 2, where it lies for any data but for errors of few samples.

  Args:
    f: E[f].
    derivative: E[f'].
    square: E[f^2].
    product: E[f f'].

  Returns:
    s and b, of the shape of the moments.
  """
  variance, covariance = square - f**2, product - f * derivative
  varies = variance > _ROUNDING**2
  s = np.where(varies, covariance / np.where(varies, variance, 1), 0).clip(*_RANGE)
  return s, derivative - s * f


def slope(linear: np.ndarray, lam: np.ndarray) -> np.ndarray:
  """Returns l', the derivative of l by lam; exact where log(l / (1 - l)) is a parabola.

  Where a value of few samples is not between 0 and 1, l itself is differentiated.

  Args:
    linear: l, (levels, ...), of three levels or more.
    lam: -log(sigma), (levels,), in equal steps.
  """
  inside = (linear > 0) & (linear < 1)
  safe = np.where(inside, linear, 0.5)
  by_logit = linear * (1 - linear) * _gradient(np.log(safe / (1 - safe)), lam)
  near = np.concatenate([inside[:1], inside, inside[-1:]])
  near = near[:-2] & near[1:-1] & near[2:]
  near[0], near[-1] = inside[:3].all(axis=0), inside[-3:].all(axis=0)
  return np.where(near, by_logit, _gradient(linear, lam))


def _gradient(values, lam):
  return np.gradient(values, lam, axis=0, edge_order=2)


def slopes(denoise: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, sigma: jax.Array,
           probe: jax.Array) -> jax.Array:
  """Returns probe (dD/dx probe), whose mean is the diagonal of dD/dx.

  Args:
    denoise: D(x; sigma).
    x: noisy images, (batch, height, width, channels).
    sigma: their levels, (batch,).
    probe: random signs like x.
  """
  return probe * jax.jvp(lambda x: denoise(x, sigma), (x,), (probe,))[1]


def values(denoise: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, sigma: jax.Array,
           linear: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns f and f', its derivative in lam along the ODE, Eq. 2.

  Args:
    denoise: D(x; sigma).
    x: noisy images, (batch, height, width, channels).
    sigma: their levels, (batch,).
    linear: l at these, like x or with axes of length 1.
    gradient: l', like `linear`.
  """
  change = denoise(x, sigma) - x
  # The compiler finds that both calls compute the same D.
  denoised, derivative = jax.jvp(denoise, (x, sigma), (change, -sigma))
  return (1 - linear) * x - denoised, (1 - linear) * change - gradient * x - derivative


@functools.cache
def program(method: sampler.Method, what: str) -> Callable[[Any, Any], Any]:
  """Returns the compiled measurement on all devices; equal arguments, one function.

  Args:
    method: of the denoiser.
    what: 'slopes', see `slopes`, or 'moments', see `values`.

  Returns:
    A function of (Shared, (seeds, images, places of their levels among all, labels)) as
    `devices.spread` describes, returning a tuple of arrays like the images.
  """
  def measure(shared, inputs):
    seeds, images, places, labels = inputs
    def draw(key):
      noise, signs = jax.random.split(key)
      return (jax.random.normal(noise, images.shape[1:], images.dtype),
              jax.random.rademacher(signs, images.shape[1:], images.dtype))
    z, probe = jax.vmap(draw)(seeds_lib.keys(seeds, _STREAM))
    denoise, _ = sampler.denoiser(shared.sampler, labels, method=method)
    sigma = shared.sigmas[places]
    x = images + sigma.reshape(-1, 1, 1, 1) * z
    if what == 'slopes':
      return slopes(denoise, x, sigma, probe),
    return values(denoise, x, sigma, shared.l[places], shared.gradient[places])
  return devices.spread(measure)
