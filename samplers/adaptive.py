"""DPM-Solver with adaptive steps: lower where the error is small, smaller where it is not.

With lam = -log(sigma) an attempt goes from lam by at most h with two orders of one family, whose
difference estimates the error:

  error = sqrt(mean(((low - high) / max(atol, rtol max(|low|, |low of the last accepted|)))^2)).

With v = 1 / (error + 1e-8), v1 and v2 those of the last two accepted attempts, and p the higher of
the orders, or 1.5 with noise,

  factor = 1 + arctan(v^b1 v1^b2 v2^b3 - 1),
  b1 = (pcoeff + icoeff + dcoeff) / p, b2 = -(pcoeff + 2 dcoeff) / p, b3 = dcoeff / p,

the attempt is accepted if factor >= accept_safety, and h <- factor h in any case. The samples are
those of the higher order.

The mean is over one sample: each has its own steps, and what is sampled beside it changes nothing.
Published code takes the mean over the batch, norm = 'batch' here.

Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, App. C (DPM-Solver-12 and -23); k-diffusion's
sample_dpm_adaptive (the controller, the noise).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, noise as noise_lib, registry, singlestep
from samplers.ancestral import check_noise

Denoise = Callable[[jax.Array, jax.Array], jax.Array]
"""denoise(x, sigma) -> denoised like x; sigma has shape (batch,)."""

_DONE = 1e-5  # Distance in lam from the end at which a sample counts as there.
_LEAST_ERROR = 1e-8
_ORDER_WITH_NOISE = 1.5  # For the controller: the strong order of the error of a step of an SDE.


class Options(NamedTuple):
  """Options of `sample` that an attempt needs; numbers of Python."""

  order: int = 3
  rtol: float = 0.05
  atol: float = 0.0078
  h_init: float = 0.05
  pcoeff: float = 0.0
  icoeff: float = 1.0
  dcoeff: float = 0.0
  accept_safety: float = 0.81
  eta: float = 0.0
  s_noise: float = 1.0
  max_steps: int = 1000
  norm: str = 'sample'


class State(NamedTuple):
  """Where each sample is after some attempts.

  Attributes:
    x: samples at their levels, (batch, height, width, channels).
    low: end of the last accepted step at the lower order, x at first.
    lam: -log(sigma) of each sample, (batch,).
    h: step that each tries next, (batch,).
    recent: v1 and v2 of the controller, (2, batch); 0 before the first attempt.
    error: estimate of the last attempt, (batch,).
    accepted: steps taken, (batch,) of int.
    rejected: attempts in vain, (batch,) of int.
  """

  x: jax.Array
  low: jax.Array
  lam: jax.Array
  h: jax.Array
  recent: jax.Array
  error: jax.Array
  accepted: jax.Array
  rejected: jax.Array


class Info(NamedTuple):
  """What sampling took, by sample, each of shape (batch,).

  Attributes:
    steps: attempts, accepted + rejected.
    accepted: steps taken.
    rejected: attempts in vain.
    nfe: evaluations, `order` per attempt.
    level: noise level that was reached.
    finished: whether that is sigma_min; False where max_steps or an error that is no number ended
      the sampling.
  """

  steps: jax.Array
  accepted: jax.Array
  rejected: jax.Array
  nfe: jax.Array
  level: jax.Array
  finished: jax.Array


@registry.register_loop('dpm_adaptive')
def sample(denoise: Denoise, x: jax.Array, sigma_max: float | jax.Array,
           sigma_min: float | jax.Array, *, order: int = 3, rtol: float = 0.05,
           atol: float = 0.0078, h_init: float = 0.05, pcoeff: float = 0.0, icoeff: float = 1.0,
           dcoeff: float = 0.0, accept_safety: float = 0.81, eta: float = 0.0,
           s_noise: float = 1.0, max_steps: int = 1000, norm: str = 'sample',
           key: jax.Array | None = None,
           draw: Callable[[jax.Array, jax.Array], jax.Array] | None = None
           ) -> tuple[jax.Array, Info]:
  """Runs DPM-Solver-12 or -23 with adaptive steps from sigma_max to sigma_min.

  Pure and a `while_loop`: to be compiled and mapped, not differentiated in reverse. The network
  runs on the whole batch until the last sample is there. A sample that is there, out of attempts,
  or whose error is no number stays as it is: look at `Info.finished`.

  Args:
    denoise: D(x; sigma), result like x; sigma has shape (batch,).
    x: states at sigma_max, x0 + sigma_max z, shape (batch, height, width, channels).
    sigma_max: first noise level.
    sigma_min: last one, above 0; may be traced, as the first.
    order: higher order of the two, 2 or 3: also the evaluations of an attempt.
    rtol: error allowed in a step, relative to the values of x.
    atol: error allowed in any case; 0.0078 is 1/256 of the range of an image.
    h_init: first step to try, in log sigma.
    pcoeff: proportional part of the controller.
    icoeff: integral part.
    dcoeff: derivative part.
    accept_safety: least factor of an attempt that is accepted, 0 to 1.
    eta: strength of the noise, >= 0, see `singlestep.split_above`.
    s_noise: factor on the noise, >= 0.
    max_steps: most attempts per sample.
    norm: 'sample', or 'batch': one error, and so the same steps, for all.
    key: one typed key per sample, (batch,), where there is noise: drawn along a Brownian path of
      its own, see `noise.brownian`.
    draw: draw(accepted, x) -> z like x, in place of a key; `accepted`, (batch,), counts the steps
      that each sample has taken before, and only those of accepted attempts count.

  Returns:
    Samples like x, and the Info.

  Raises:
    ValueError: if x is not a batch of images of floats, an option is out of range, or there is
      noise and neither a draw nor one typed key per sample.
  """
  options = Options(order, rtol, atol, h_init, pcoeff, icoeff, dcoeff, accept_safety, eta, s_noise,
                    max_steps, norm)
  check(options, sigma_max, sigma_min)
  attempt = functools.partial(step, options, denoise, source(options, x, key, draw), sigma_min)
  state = jax.lax.while_loop(
      lambda state: active(options, state, sigma_min).any(), attempt,
      start(options, x, sigma_max))
  steps = state.accepted + state.rejected
  lam_end = _lam_of(sigma_min, x.dtype)
  return state.x, Info(steps, state.accepted, state.rejected, order * steps, jnp.exp(-state.lam),
                       state.lam >= lam_end - _DONE)


def check(options: Options, sigma_max: Any, sigma_min: Any) -> None:
  """Checks options and, where they are not traced, the ends of the range.

  Raises:
    ValueError: if an option or an end is out of range.
  """
  name = 'dpm_adaptive'
  if not checks.is_integer(options.order) or options.order not in (2, 3):
    raise ValueError(f'{name}: order must be 2 or 3, got {options.order!r}; 3 is the default')
  for option, remedy in (('rtol', '0.05 is the default'), ('atol', '0.0078 is the default'),
                         ('h_init', '0.05 is the default')):
    checks.check_positive(name, option, getattr(options, option), remedy)
  for option in ('pcoeff', 'icoeff', 'dcoeff'):
    if not np.isfinite(checks.to_number(getattr(options, option))):
      raise ValueError(f'{name}: {option} must be a finite number, got '
                       f'{getattr(options, option)!r}; 0, 1 and 0 are the defaults of pcoeff, '
                       'icoeff and dcoeff')
  # The factor never reaches 1 + pi / 2, and is about 1 on average.
  checks.check_node(name, 'accept_safety', options.accept_safety, '0.81 is the default')
  check_noise(name, options.eta, options.s_noise, np)
  if not checks.is_integer(options.max_steps) or options.max_steps < 1:
    raise ValueError(f'{name}: max_steps must be an integer of at least 1, got '
                     f'{options.max_steps!r}; 1000 is the default')
  checks.check_choice(name, 'norm', options.norm, ('sample', 'batch'))
  ends = {'sigma_max': sigma_max, 'sigma_min': sigma_min}
  if not any(isinstance(end, jax.core.Tracer) for end in ends.values()):
    for option, end in ends.items():
      checks.check_positive(name, option, end, "the model's range is the usual choice")
    checks.check_range(name, float(sigma_min), float(sigma_max))


def start(options: Options, x: jax.Array, sigma_max: float | jax.Array) -> State:
  """Returns the State before the first attempt, all samples at sigma_max."""
  of_sample = jnp.zeros(x.shape[:1], x.dtype)
  count = jnp.zeros(x.shape[:1], jnp.int32)
  return State(x, x, of_sample + _lam_of(sigma_max, x.dtype), of_sample + options.h_init,
               jnp.zeros((2, *of_sample.shape), x.dtype), of_sample, count, count)


def active(options: Options, state: State, sigma_min: float | jax.Array) -> jax.Array:
  """Says which samples go on, (batch,): neither there nor out of attempts, and h is a number."""
  return ((state.lam < _lam_of(sigma_min, state.x.dtype) - _DONE) & jnp.isfinite(state.h)
          & (state.accepted + state.rejected < options.max_steps))


def step(options: Options, denoise: Denoise, noise: Callable[..., jax.Array],
         sigma_min: float | jax.Array, state: State) -> State:
  """Makes one attempt with every active sample; the others stay as they are.

  Args:
    options: of `sample`.
    denoise: D(x; sigma), sigma of shape (batch,).
    noise: what `source` returns.
    sigma_min: last noise level.
    state: State before.

  Returns:
    State after.
  """
  going = active(options, state, sigma_min)
  h = jnp.where(going, state.h, jnp.zeros_like(state.h))
  h = jnp.minimum(h, _lam_of(sigma_min, h.dtype) - state.lam)
  s, s1 = jnp.exp(-state.lam), jnp.exp(-(state.lam + h))
  h_down, share = h, None
  if options.eta:
    rest = jnp.maximum(_lam_of(sigma_min, h.dtype) - state.lam - h, 0.0)
    h_down, share = singlestep.split_above(h, rest, options.eta, jnp)
  low, high = _pair(options.order, denoise, state.x, s, h_down)
  error = _error(options, low, high, state.low)
  factor, accept, recent = _control(options, error, state.recent)
  accept = going & accept
  end = high
  if options.eta and options.s_noise:
    end = end + _wide(options.s_noise * share * s1) * noise(state.accepted, s, s1, high)

  def choose(mask, new, old):
    return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
  return State(
      x=choose(accept, end, state.x), low=choose(accept, low, state.low),
      lam=choose(accept, state.lam + h, state.lam), h=choose(going, state.h * factor, state.h),
      recent=jnp.where(going[None], recent, state.recent), error=choose(going, error, state.error),
      accepted=state.accepted + accept.astype(jnp.int32),
      rejected=state.rejected + (going & ~accept).astype(jnp.int32))


def source(options: Options, x: jax.Array, key: jax.Array | None,
           draw: Callable[[jax.Array, jax.Array], jax.Array] | None) -> Callable[..., jax.Array]:
  """Returns noise(accepted, s, s1, x) -> z like x for steps from s to s1, both of shape (batch,).

  Raises:
    ValueError: if x is not a batch of images of floats, or there is noise and neither a draw nor
      one typed key per sample.
  """
  if getattr(x, 'ndim', None) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    got = f'{x.dtype} of shape {x.shape}' if hasattr(x, 'shape') else type(x)
    raise ValueError('dpm_adaptive: x must be floats of shape (batch, height, width, channels), '
                     f'got {got}; add the missing axes')
  if draw is not None:
    return lambda accepted, s, s1, x: draw(accepted, x).astype(x.dtype)
  typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  if options.eta and options.s_noise and not (typed and key.shape == x.shape[:1]):
    got = f'{key.dtype} of shape {key.shape}' if hasattr(key, 'shape') else key
    raise ValueError('dpm_adaptive: noise needs a draw or one typed key per sample, shape '
                     f'{x.shape[:1]}, got key {got}; use '
                     f'jax.random.split(jax.random.key(0), {x.shape[0]})')

  def along_path(accepted, s, s1, x):
    del accepted
    def one(key, high, low):
      path = jax.random.fold_in(key, noise_lib.PATH)
      z = noise_lib.increment(path, high, low, x.shape[1:], x.dtype)
      # Levels that are one in float32 have no increment between them, nor noise to speak of.
      return jnp.where(high.astype(jnp.float32) > low.astype(jnp.float32), z, jnp.zeros_like(z))
    return jax.vmap(one)(key, s, s1)
  return along_path


def _pair(order, denoise, x, s, h):
  """Ends of a step at the lower and at the higher order."""
  def slope(x, s):
    return (x - denoise(x, s).astype(x.dtype)) / _wide(s)

  s, h, narrow = _wide(s), _wide(h), s
  eps = slope(x, narrow)
  r = 1 / order
  inner = singlestep.first(x, eps, s, r * h, jnp)
  eps_r = slope(inner, _level(s, r * h))
  if order == 2:
    return (singlestep.first(x, eps, s, h, jnp),
            singlestep.second(x, eps, eps_r, s, h, r, jnp))
  inner = singlestep.third(x, eps, eps_r, s, 2 * r * h, 0.5, jnp)
  eps_2r = slope(inner, _level(s, 2 * r * h))
  return (singlestep.second(x, eps, eps_r, s, h, r, jnp),
          singlestep.third(x, eps, eps_2r, s, h, 2 * r, jnp))


def _error(options, low, high, low_before):
  """Estimate of the module's docstring, (batch,)."""
  allowed = jnp.maximum(options.rtol * jnp.maximum(jnp.abs(low), jnp.abs(low_before)), options.atol)
  square = jnp.mean(((low - high) / allowed)**2, axis=(1, 2, 3))
  if options.norm == 'batch':
    square = jnp.full_like(square, square.mean())
  return jnp.sqrt(square)


def _control(options, error, recent):
  """Factor on h, whether the attempt is accepted, and the next v1 and v2."""
  order = _ORDER_WITH_NOISE if options.eta else options.order
  v = 1 / (error + _LEAST_ERROR)
  v1, v2 = jnp.where(recent == 0, v[None], recent)  # At the first attempt all are one.
  p, i, d = options.pcoeff, options.icoeff, options.dcoeff
  product = v**((p + i + d) / order) * v1**(-(p + 2 * d) / order) * v2**(d / order)
  factor = 1 + jnp.arctan(product - 1)
  accept = factor >= options.accept_safety
  return factor, accept, jnp.where(accept[None], jnp.stack([v, v1]), jnp.stack([v1, v2]))


def _lam_of(sigma, dtype):
  return -jnp.log(jnp.asarray(sigma, dtype))


def _level(s, h):
  """Level, (batch,), at h after s, both as `_wide` gives them."""
  return (s * jnp.exp(-h))[:, 0, 0, 0]


def _wide(values):
  """Numbers per sample, (batch,), so that they multiply images."""
  return values[:, None, None, None]
