"""Log-likelihood of images by the probability-flow ODE, with steps that fit a tolerance.

Dormand and Prince's pair of orders 5 and 4 in u = ln sigma, for the state and the integral of
`likelihood`, Eq. 2. With e the difference of both orders over a step, an attempt's error is

  max(sqrt(mean((e_x / (atol + rtol max(|x|, |x'|)))^2)), |e_I| / (atol + rtol max(|I|, |I'|))),

the mean over an image, I the integral per dimension by any of the probes. It is accepted up to 1,
and the step then tried is 0.9 error^(-1/5) times the last, between a fifth and five times.

Each image has steps of its own, and what is measured beside it changes nothing. Published code has
one error for the whole batch.

Source: Dormand & Prince 1980, doi:10.1016/0771-050X(80)90013-3, the pair of seven stages; Hairer,
Norsett & Wanner, Solving ODEs I, Sec. II.4 (control of the step).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, likelihood as likelihood_lib

# Of the seven stages; the last is the end of the step, of order 5, and the first of the next step.
_NODES = np.array([0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
# What leads to the stages after the first.
_STAGES = np.array([
    [1 / 5, 0, 0, 0, 0, 0, 0],
    [3 / 40, 9 / 40, 0, 0, 0, 0, 0],
    [44 / 45, -56 / 15, 32 / 9, 0, 0, 0, 0],
    [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729, 0, 0, 0],
    [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656, 0, 0],
    [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0],
])
# Order 5 less order 4.
_DIFFERENCE = np.array([71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40])
_FIRST_STEP = 0.1
_SAFETY, _LEAST, _MOST = 0.9, 0.2, 5.0


class Info(NamedTuple):
  """What it took, by image, each of shape (batch,).

  Attributes:
    accepted: steps taken.
    rejected: attempts in vain.
    nfe: evaluations, one and six per attempt.
    finished: whether sigma_max was reached; False where max_steps or a number that is not finite
      ended it.
  """

  accepted: jax.Array
  rejected: jax.Array
  nfe: jax.Array
  finished: jax.Array


class _State(NamedTuple):
  """Where each image is after some attempts."""

  x: jax.Array
  integral: jax.Array  # (probes, batch)
  u: jax.Array  # ln(sigma / sigma_min), (batch,).
  h: jax.Array
  accepted: jax.Array
  rejected: jax.Array


class _Attempt(NamedTuple):
  """What is known of the attempt that is under way, by all images at once."""

  stage: jax.Array  # To be evaluated next, a scalar.
  at: jax.Array  # Where.
  slopes: jax.Array  # dx/du of the stages before, (stages, *x.shape).
  rates: jax.Array  # Divergence there, (stages, probes, batch).


def integrate(denoise: likelihood_lib.Denoise, x: jax.Array, sigma_min: float | jax.Array,
              sigma_max: float | jax.Array, probes: jax.Array | None = None, *,
              rtol: float | jax.Array = 1e-5, atol: float | jax.Array = 1e-5,
              max_steps: int | jax.Array = 1000) -> tuple[likelihood_lib.Likelihood, Info]:
  """Follows images from sigma_min up to sigma_max.

  Pure and a `while_loop`: to be compiled and mapped. The network runs on the whole batch until the
  last image is there; look at `Info.finished`.

  Args:
    denoise: D(x; sigma), result like x, differentiable in forward mode; sigma has shape (batch,).
    x: images at sigma_min, (batch, height, width, channels).
    sigma_min: lowest noise level, above 0; this and what follows may be traced.
    sigma_max: highest one.
    probes: as `likelihood.along`.
    rtol: error allowed in a step, relative to state and integral.
    atol: error allowed in any case, in units of x, and of nats per dimension.
    max_steps: most attempts per image.

  Returns:
    The Likelihood and the Info.

  Raises:
    ValueError: if x or the probes are not as above, or a number that is not traced is out of range.
  """
  likelihood_lib.check_images(x, probes)
  check(sigma_min, sigma_max, rtol, atol, max_steps)
  low, high, rtol, atol = (jnp.asarray(value, x.dtype) for value in (
      sigma_min, sigma_max, rtol, atol))
  end = jnp.log(high / low)

  nodes, stages = (jnp.asarray(part, x.dtype) for part in (_NODES, _STAGES))

  def active(state):
    return (state.u < end) & jnp.isfinite(state.h) & (state.accepted + state.rejected < max_steps)

  def step_of(state):
    return jnp.where(active(state), jnp.minimum(state.h, end - state.u), 0)

  def finish(state, attempt):
    """Takes or refuses the step; the last slope of one that is taken is the next one's first."""
    h, going = step_of(state), active(state)
    integral = likelihood_lib.combine(state.integral, _times(stages[-1], h, 0), attempt.rates)
    error = _error(state, attempt, integral, h, rtol, atol)
    # An error that is no number makes a step that is none, where the image stops.
    factor = jnp.clip(_SAFETY * error**-0.2, _LEAST, _MOST)
    accept = going & (error <= 1)

    def choose(new, old, mask=accept):
      return jnp.where(mask.reshape(-1, *[1] * 3) if new.ndim == 4 else mask, new, old)
    # Numbers of an attempt in vain may be infinite, and would stay in sums with weight 0.
    attempt = attempt._replace(slopes=_only(choose(attempt.slopes[-1], attempt.slopes[0])),
                               rates=_only(choose(attempt.rates[-1], attempt.rates[0])))
    return _State(
        choose(attempt.at, state.x), choose(integral, state.integral),
        choose(jnp.where(state.h >= end - state.u, end, state.u + h), state.u),
        choose(h * factor, state.h, going), state.accepted + accept.astype(jnp.int32),
        state.rejected + (going & ~accept).astype(jnp.int32)), attempt

  def evaluation(carry):  # The loop is one over evaluations: the program holds the network once.
    state, attempt = carry
    i = attempt.stage
    slope, rate = likelihood_lib.slope_and_divergence(
        denoise, attempt.at, low * jnp.exp(state.u + nodes[i] * step_of(state)), probes)
    attempt = attempt._replace(slopes=attempt.slopes.at[i].set(slope),
                               rates=attempt.rates.at[i].set(rate))
    last = i == len(_STAGES)
    state, attempt = jax.lax.cond(last, finish, lambda *both: both, state, attempt)
    leads = stages[jnp.where(last, 0, i)]
    at = likelihood_lib.combine(state.x, _times(leads, step_of(state), 3), attempt.slopes)
    return state, attempt._replace(stage=jnp.where(last, 1, i + 1), at=at)

  of_image, count = jnp.zeros(len(x), x.dtype), jnp.zeros(len(x), jnp.int32)
  integral = jnp.zeros((1 if probes is None else len(probes), len(x)), x.dtype)
  state, _ = jax.lax.while_loop(
      lambda carry: active(carry[0]).any(), evaluation,
      (_State(x, integral, of_image, of_image + _FIRST_STEP, count, count),
       _Attempt(jnp.zeros((), jnp.int32), x, _only(jnp.zeros_like(x)),
                _only(jnp.zeros_like(integral)))))
  nfe = 1 + len(_STAGES) * (state.accepted + state.rejected)
  return (likelihood_lib.result(state.x, state.integral, high),
          Info(state.accepted, state.rejected, nfe, state.u >= end))


def check(sigma_min: float, sigma_max: float, rtol: float, atol: float, max_steps: int) -> None:
  """Checks numbers of `integrate` that are not traced.

  Raises:
    ValueError: if one is out of range.
  """
  name = 'likelihood'
  for option, value, remedy in (
      ('rtol', rtol, '1e-5 is the default'), ('atol', atol, '1e-5 is the default'),
      ('sigma_min', sigma_min, "the network's lowest level is the usual one"),
      ('sigma_max', sigma_max, "the network's highest level is the usual one")):
    if not isinstance(value, jax.core.Tracer):
      checks.check_positive(name, option, value, remedy)
  if not any(isinstance(value, jax.core.Tracer) for value in (sigma_min, sigma_max)):
    checks.check_range(name, float(sigma_min), float(sigma_max))
  if not isinstance(max_steps, jax.Array) and (not checks.is_integer(max_steps) or max_steps < 1):
    raise ValueError(f'{name}: max_steps must be an integer of at least 1, got {max_steps!r}; 1000 '
                     'is the default')


def _error(state, attempt, integral, h, rtol, atol):
  """The error of the module's docstring, (batch,)."""
  x, size = attempt.at, math.prod(attempt.at.shape[1:])
  weights = jnp.asarray(_DIFFERENCE, h.dtype)
  off = likelihood_lib.combine(jnp.zeros_like(x), _times(weights, h, 3), attempt.slopes)
  allowed = atol + rtol * jnp.maximum(jnp.abs(x), jnp.abs(state.x))
  of_state = jnp.sqrt(jnp.mean((off / allowed)**2, axis=(1, 2, 3)))
  off = likelihood_lib.combine(jnp.zeros_like(integral), _times(weights, h, 0), attempt.rates)
  allowed = atol + rtol * jnp.maximum(jnp.abs(integral), jnp.abs(state.integral)) / size
  return jnp.maximum(of_state, jnp.max(jnp.abs(off) / size / allowed, axis=0))


def _times(weights, h, axes):
  """Weights times each step, for parts (stages, batch, ...), or without axes (stages, ., batch)."""
  h = h.reshape(1, -1, *[1] * axes) if axes else h.reshape(1, 1, -1)
  return weights.reshape(-1, *[1] * (h.ndim - 1)) * h


def _only(first):
  """The slopes of an attempt of which the first is known."""
  return jnp.zeros((len(_NODES), *first.shape), first.dtype).at[0].set(first)
