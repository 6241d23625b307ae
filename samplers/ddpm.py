"""DDPM's ancestral sampling over a chain of levels, with fixed and with learned variances.

DDPM writes y = x / sqrt(1 + sigma^2), alpha_bar = 1 / (1 + sigma^2), and a step from sigma to
sigma' has beta = 1 - alpha_bar / alpha_bar'. Its step is, here in x,

  x' = r x + (1 - r) D + sqrt((1 + sigma'^2) v) z,   r = sigma'^2 / sigma^2,                     (1)

without noise where sigma' = 0. The variance v, in units of y, lies between two bounds, the variance
of y' given y where the data is a single point and where its variance is 1:

  lower = beta (1 - alpha_bar') / (1 - alpha_bar),   upper = beta.                               (2)

In the step to 0, where the lower bound vanishes, it is that of the step before: v is then no
variance of a draw, but that of the likelihood and the strength of the guidance.

Sources: Ho et al. 2020 (DDPM), arXiv:2006.11239, Eq. 6, 7 and Sec. 3.2; Nichol & Dhariwal 2021
(iDDPM), arXiv:2102.09672, Eq. 15 (learned variance) and Sec. 4 (chains); Dhariwal & Nichol 2021
(guided-diffusion), arXiv:2105.05233, Alg. 1 (guidance).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, noise as noise_lib, registry
from samplers.table import GUIDE, Row, Table, assemble

VARIANCES = ('fixed_small', 'fixed_large', 'learned')
"""Lower bound, upper bound, and what the network places between the two."""

DenoiseVariance = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""(x, sigma) -> (denoised, v), both like x; v from -1, the lower bound, to 1, the upper one."""


@registry.register
def ddpm(levels: Sequence[Any], *, variance: str = 'fixed_small', xp: Any = np) -> Table:
  """Builds ancestral DDPM steps, Eq. 1, with a fixed variance.

  'fixed_small' is DDIM with eta = 1 up to the guidance. A guide shifts the mean of a step by
  v grad_y log p, evaluated at the x where the step starts; under 'fixed_small' the step to 0 is
  not guided. Few steps want the small variance: the large one leaves noise behind.

  Source: Ho et al. 2020 (DDPM), arXiv:2006.11239, Alg. 2; Dhariwal & Nichol 2021,
  arXiv:2105.05233, Alg. 1, for the guide. Learned variances: `sample`.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0.
    variance: 'fixed_small' or 'fixed_large', the bounds of Eq. 2.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots, and one guidance term per guided step.

  Raises:
    ValueError: if the variance is not one of the above; a learned one needs `sample`.
  """
  checks.check_choice('ddpm', 'variance', variance, VARIANCES)
  if variance == 'learned':
    raise ValueError("ddpm: variance must be 'fixed_small' or 'fixed_large' in a table, got "
                     "'learned'; samplers.ddpm.sample asks the network for it")
  x, mean, answer = xp.eye(3)
  rows = []
  for s, s1, above in zip(levels, levels[1:], [None, *levels], strict=False):
    last = checks.is_zero(s1)
    bounds = _bounds(s, s1, above, xp)
    v = bounds[0] if last or variance == 'fixed_small' else bounds[1]
    next_x = answer + (s1 / s)**2 * (x - answer)
    draw = {} if last else {'noise': xp.sqrt((1 + s1**2) * v), 'interval': (s, s1)}
    if last and variance == 'fixed_small':
      rows.append(Row(s, [next_x, mean], s1, **draw))
      continue
    rows.append(Row(s, [x, next_x]))
    guided = mean - v * _guide_weight(s, s1, xp) * answer
    rows.append(Row(s, [guided, mean], s1, GUIDE, **draw))
  return assemble(rows, xp)


class Coefficients(NamedTuple):
  """The steps of a chain, arrays of shape (rows,): an argument of compiled functions.

  Attributes:
    sigma: noise level at which a step starts, > 0.
    level: level at which it ends.
    keep: weight of x, sigma'^2 / sigma^2.
    pull: weight of D, 1 - keep.
    log_posterior: logarithm of the variance of q(y' | y, x0), the lower bound of Eq. 2.
    log_lower: of the variance, in units of y, where the network answers -1.
    log_upper: where it answers 1; both are one and the same for a fixed variance.
    noise: scale of the draw's standard deviation, sqrt(1 + sigma'^2); 0 in the step to 0.
    guide: weight of the guidance term per variance.
    active: whether there is a step; False in rows that `pad` added.
  """

  sigma: Any
  level: Any
  keep: Any
  pull: Any
  log_posterior: Any
  log_lower: Any
  log_upper: Any
  noise: Any
  guide: Any
  active: Any

  @property
  def nfe(self) -> int:
    """Number of network evaluations; of coefficients on the host."""
    return int(np.sum(self.active))


def coefficients(sigmas: Sequence[float] | np.ndarray, variance: str = 'learned',
                 above: float = np.inf) -> Coefficients:
  """Computes what the steps of a chain need beside the network, on the host in float64.

  Args:
    sigmas: noise levels, shape (n + 1,), decreasing; the last may be 0. A repeated one counts once.
    variance: one of VARIANCES. A fixed one is both bounds: v of the network does not matter then.
    above: the chain's next level above the grid, for a grid of one step to 0: its variance is
      (1 - sigma^2 / above^2) sigma^2 / (1 + sigma^2).

  Returns:
    The Coefficients, of n rows.

  Raises:
    ValueError: if the grid is not such, the variance is unknown, or `above` is not above the grid.
  """
  levels = list(checks.distinct('ddpm', checks.check_grid('ddpm', sigmas)))
  checks.check_choice('ddpm', 'variance', variance, VARIANCES)
  if not checks.to_number(above) > levels[0]:
    raise ValueError(f'ddpm: above must be a level above the first one, {levels[0]:g}, got '
                     f'{above!r}; leave it out where the chain has no such level')
  rows = []
  for s, s1, higher in zip(levels, levels[1:], [above, *levels], strict=False):
    posterior, upper = _bounds(s, s1, higher, np)
    last = s1 == 0
    # Of the fixed ones the last is always the lower bound.
    lower = upper if variance == 'fixed_large' and not last else posterior
    upper = upper if variance == 'learned' else lower
    unguided = last and variance == 'fixed_small'
    rows.append((s, s1, (s1 / s)**2, (s - s1) * (s + s1) / s**2,
                 *np.log([posterior, lower, upper]), 0.0 if last else np.sqrt(1 + s1**2),
                 0.0 if unguided else _guide_weight(s, s1, np)))
  columns = np.array(rows, np.float64).T
  return Coefficients(*columns, active=np.ones(len(rows), bool))


def pad(coefficients: Coefficients, rows: int) -> Coefficients:
  """Appends rows without a step: chains padded to one length share one compiled program.

  Args:
    coefficients: on the host.
    rows: number of rows of the result.

  Returns:
    Coefficients that give the same samples at the same cost.

  Raises:
    ValueError: if there are more rows than asked for.
  """
  have = len(coefficients.sigma)
  if have > rows:
    raise ValueError(f'ddpm: rows must be at least those of the chain, {have}, got {rows}; pad to '
                     'the longest of the chains that share a program')
  fill = Coefficients(1.0, 0.0, 1.0, *[0.0] * 6, active=False)
  return Coefficients(*(np.concatenate([column, np.full(rows - have, value, column.dtype)])
                        for column, value in zip(coefficients, fill, strict=True)))


def sample(coefficients: Coefficients, denoise_variance: DenoiseVariance, x: jax.Array, *,
           key: jax.Array | None = None,
           draw: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
           guide: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
           project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
           project_draw: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
           trajectory: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Samples with Eq. 1, where log v = f log upper + (1 - f) log lower, f = (answer + 1) / 2.

  Pure; compile it with the coefficients as an argument.

  Args:
    coefficients: what `coefficients` or `pad` returns.
    denoise_variance: (x, sigma) -> (D(x; sigma), v), sigma a scalar. Published networks were
      sampled with D clipped: `change(denoise_variance, guidance.clip)`.
    x: state at the first level, shape (batch, height, width, channels).
    key: one typed key per sample, (batch,): the same noise as `samplers.run` draws for 'ddpm'.
    draw: draw(step, x) -> z like x, in place of a key; steps count from 0.
    guide: guidance term in units of eps, guide(x, sigma) = -scale sigma grad_x log p; None is
      unguided.
    project: imputation where a step ends, project(x, sigma, z) -> x.
    project_draw: draw of the imputation's own noise, in place of a key.
    trajectory: also return the states.

  Returns:
    Samples like x; with `trajectory` the pair (samples, states), states of shape
    (rows + 1, *x.shape), the first being x.

  Raises:
    ValueError: if x is not a batch of images of floats, or there is neither a key per sample nor a
      draw, of each noise.
  """
  steps = cast(coefficients, x)
  draw = source('ddpm', steps, x, key, draw, noise_lib.brownian)
  if project is not None:
    project_draw = source('ddpm', steps, x, key, project_draw,
                          lambda keys, interval: noise_lib.of_imputation(keys))

  def step(x, row):
    r, c = row

    def advance():
      denoised, v = denoise_variance(x, c.sigma)
      log_variance = interpolate(c, v.astype(x.dtype))
      mean = c.keep * x + c.pull * denoised.astype(x.dtype)
      if guide is not None:
        term = guide(x, c.sigma).astype(x.dtype)
        mean = mean - c.guide * jnp.exp(log_variance) * term
      z = jax.lax.cond(c.noise > 0, lambda: draw(r, x).astype(x.dtype), lambda: jnp.zeros_like(x))
      end = mean + c.noise * jnp.exp(log_variance / 2) * z
      return end if project is None else project(end, c.level, project_draw(r, x)).astype(x.dtype)
    x = jax.lax.cond(c.active, advance, lambda: x)
    return x, x if trajectory else None

  end, states = jax.lax.scan(step, x, (jnp.arange(len(steps.sigma)), steps))
  return (end, jnp.concatenate([x[None], states])) if trajectory else end


def change(denoise_variance: DenoiseVariance,
           to: Callable[[Callable], Callable]) -> DenoiseVariance:
  """Returns the network with its denoised image changed, its variance as it is.

  Args:
    denoise_variance: (x, sigma) -> (D(x; sigma), v).
    to: a function from denoiser to denoiser, such as guidance.clip.

  Returns:
    (x, sigma) -> (changed D, v), with one evaluation.
  """
  def changed(x, sigma):
    denoised, v = denoise_variance(x, sigma)
    return to(lambda x, sigma: denoised)(x, sigma), v
  return changed


def without_variance(denoise: Callable[[jax.Array, jax.Array], jax.Array]) -> DenoiseVariance:
  """Returns a denoiser in the form that a network with a learned variance has.

  For coefficients of a fixed variance; others give it the geometric mean of the bounds.
  """
  def denoise_variance(x, sigma):
    denoised = denoise(x, sigma)
    return denoised, jnp.zeros_like(denoised)
  return denoise_variance


def interpolate(steps: Coefficients, v: jax.Array) -> jax.Array:
  """Returns the log-variance of a step for v of the network: Nichol & Dhariwal 2021, Eq. 15."""
  return steps.log_lower + (v + 1) / 2 * (steps.log_upper - steps.log_lower)


def cast(coefficients: Coefficients, x: jax.Array) -> Coefficients:
  """Returns the coefficients on the device in the precision of x, after checking x."""
  if getattr(x, 'ndim', None) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError('ddpm: x must be floats of shape (batch, height, width, channels), got '
                     f'{getattr(x, "dtype", type(x))} of shape {jnp.shape(x)}; scale images to '
                     '[-1, 1]')
  return Coefficients(*(jnp.asarray(column).astype(x.dtype) for column in coefficients[:-1]),
                      active=jnp.asarray(coefficients.active))


def source(name: str, steps: Coefficients, x: jax.Array, key: jax.Array | None,
           draw: noise_lib.Draw | None, of_keys: Callable[..., noise_lib.Draw]) -> noise_lib.Draw:
  """Returns the draws of a chain's steps: those given, or those of one key per sample.

  Raises:
    ValueError: if there is no draw, and not one typed key per sample.
  """
  if draw is not None:
    return draw
  typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  if not typed or key.shape != x.shape[:1]:
    got = f'{key.dtype} of shape {key.shape}' if hasattr(key, 'shape') else key
    raise ValueError(f'{name}: noise needs a draw or one typed key per sample, shape '
                     f'{x.shape[:1]}, got key {got}; use '
                     f'jax.random.split(jax.random.key(0), {x.shape[0]})')
  return of_keys(key, jnp.stack([steps.sigma, steps.level], axis=1))


def _bounds(s, s1, above, xp):
  """Both bounds of the variance of a step; `above` is the level before s, None at the first."""
  gap = (s - s1) * (s + s1)
  if checks.is_zero(s1):
    alone = above is None or (isinstance(above, float) and np.isinf(above))
    share = 1.0 if alone else (above - s) * (above + s) / above**2
    lower = share * s**2 / (1 + s**2)
  else:
    lower = (s1 / s)**2 * gap / (1 + s1**2)
  return lower, gap / (1 + s**2)


def _guide_weight(s, s1, xp):
  """Weight in x' of a guide, -sigma grad_x log p, per variance of y'; one root is from grad_y."""
  return xp.sqrt((1 + s**2) * (1 + s1**2)) / s
