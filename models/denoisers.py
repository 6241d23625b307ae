"""From a network's own conventions of time, scale and prediction to D(x; sigma): here they end.

  D(x; sigma) = c_skip x + c_out F(c_in x, c_noise)                                          (1)

for the networks of the project, which are named in a model directory; `from_eps` and its neighbours
do the same for any function of a user.

Source: Karras et al. 2022, arXiv:2206.00364, Eq. 7 and Table 1.
"""

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from samplers import levels as levels_lib


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
  c_in = lax.rsqrt(total)
  return Coefficients(c_skip=sigma_data**2 / total, c_out=sigma * sigma_data * c_in, c_in=c_in,
                      c_noise=jnp.log(sigma) / 4)


def cm(sigma: jax.Array, sigma_data: float = 0.5, sigma_min: float | None = None) -> Coefficients:
  """Returns the coefficients of consistency models, or of their teachers.

  EDM's with the time 250 ln(sigma). A consistency model maps x to the start of its trajectory, at
  sigma_min: there D(x; sigma_min) = x.

  Source: Song et al. 2023, arXiv:2303.01469, App. C, Eq. 5, and its published code.

  Args:
    sigma: noise levels > 0, (batch,).
    sigma_data: standard deviation of the data.
    sigma_min: lowest level of a consistency model, 0.002 for the published ones; None: a teacher.

  Returns:
    The Coefficients.
  """
  teacher = edm(sigma, sigma_data)._replace(c_noise=250 * jnp.log(sigma))
  if sigma_min is None:
    return teacher
  above = sigma - sigma_min
  return teacher._replace(c_skip=sigma_data**2 / (above**2 + sigma_data**2),
                          c_out=sigma_data * above * teacher.c_in)


def vp(sigma: jax.Array, beta_d: float = levels_lib.ADM_BETA_D,
       beta_min: float = levels_lib.ADM_BETA_MIN,
       M: int = 1000) -> Coefficients:
  """Returns the coefficients of a network that predicts the noise of VP diffusion.

  Time runs over the M steps of its training and need not be whole.

  Source: Karras et al. 2022, Table 1, first column; with beta_d = 19.9, beta_min = 0.1 and M = 1000
  this is also how diff-sampler reads ADM.

  Args:
    sigma: noise levels > 0, (batch,).
    beta_d: slope of beta over time 0 to 1.
    beta_min: beta at time 0.
    M: number of steps.

  Returns:
    The Coefficients.
  """
  time = levels_lib.vp_time_of_sigma(sigma, beta_d, beta_min, jnp)
  return _predicts_eps(sigma, (M - 1) * time)


def ve(sigma: jax.Array) -> Coefficients:
  """Returns the coefficients of VE diffusion: Karras et al. 2022, Table 1, second column."""
  one = jnp.ones_like(sigma)
  return Coefficients(c_skip=one, c_out=sigma, c_in=one, c_noise=jnp.log(sigma / 2))


def iddpm(sigma: jax.Array, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000,
          u: Sequence[float] | None = None) -> Coefficients:
  """Returns the coefficients of iDDPM, whose time is the index of the nearest level it knows.

  Source: Karras et al. 2022, Table 1, third column, and Eq. 8.

  Args:
    sigma: noise levels >= 0, (batch,).
    C_1: least ratio of alpha_bar between steps.
    C_2: offset of the cosine.
    M: number of steps.
    u: the levels, M + 1 of them, highest first, as a checkpoint stores them (in float32 their
      recursion drifts by up to 5e-4); None: computed.

  Returns:
    The Coefficients.
  """
  levels = jnp.asarray(levels_lib.iddpm_levels(C_1, C_2, M) if u is None else u, sigma.dtype)
  index = levels_lib.nearest_index(sigma, levels, jnp)
  return _predicts_eps(sigma, (len(levels) - 2 - index).astype(sigma.dtype))


def discrete(sigma: jax.Array, alphas_cumprod: str | Sequence[float] = 'ddpm') -> Coefficients:
  """Returns the coefficients of a network that predicts the noise of discrete steps.

  Time is linear between steps in log alpha, see levels.network_index.

  Args:
    sigma: noise levels > 0, (batch,).
    alphas_cumprod: alpha_bar at each step of training, or a key of levels.ALPHAS_CUMPROD.

  Returns:
    The Coefficients.

  Raises:
    ValueError: if it is no decreasing list within 0 and 1, or the key is unknown.
  """
  return _predicts_eps(sigma, discrete_time(alphas_cumprod)(sigma))


PRECONDITIONING = MappingProxyType({'edm': edm, 'cm': cm, 'vp': vp, 've': ve, 'iddpm': iddpm,
                                    'discrete': discrete})
"""Name -> function of (sigma, **settings) that gives the Coefficients."""


def precondition(network: Callable[[jax.Array, jax.Array], Any],
                 coefficients: Callable[[jax.Array], Coefficients], x: jax.Array,
                 sigma: jax.Array | float) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Evaluates Eq. 1.

  Args:
    network: network(scaled x, c_noise (batch,)) -> (F, features). F has the channels of x; what
      comes after them does not enter D.
    coefficients: of the preconditioning, from levels (batch,).
    x: (batch, height, width, channels).
    sigma: noise level > 0, a scalar or (batch,).

  Returns:
    (D, rest, features): denoised images like x; the further channels of F, of which there may be
    none; what else the network gives.
  """
  c = coefficients(_levels(x, sigma))
  c_skip, c_out, c_in = (_over(x, scalar) for scalar in c[:3])
  answer, features = network(c_in * x, c.c_noise)
  answer, rest = jnp.split(answer.astype(x.dtype), [x.shape[-1]], axis=-1)
  return c_skip * x + c_out * answer, rest, features


Time = Callable[[jax.Array], jax.Array]


def from_eps(predict: Callable[..., jax.Array], time: Time,
             scaling: str = 'vp') -> Callable[..., jax.Array]:
  """Makes a denoiser of a function that predicts the noise: D = x - sigma eps.

  Example, for eps(x, t, text) trained on DDPM's steps with the given cumulative products:

    denoise = from_eps(eps, discrete_time(alphas_cumprod))
    samplers.run(table, lambda x, sigma: denoise(x, sigma, text), latents)

  Args:
    predict: predict(scaled x, time (batch,), *args) -> eps like x. The scaled x is
      x / sqrt(1 + sigma^2) under 'vp', x itself under 've'.
    time: of the network, a function from noise levels (batch,) to (batch,), such as
      discrete_time(alphas_cumprod).
    scaling: 'vp' or 've'.

  Returns:
    denoise(x, sigma, *args) -> D(x; sigma), x (batch, ...), sigma > 0 a scalar or (batch,).

  Raises:
    ValueError: if the scaling is unknown.
  """
  return _denoiser(predict, time, scaling, lambda x, sigma, eps, c_in: x - sigma * eps)


def from_v(predict: Callable[..., jax.Array], time: Time) -> Callable[..., jax.Array]:
  """Makes a denoiser of a function that predicts v = alpha eps - sqrt(1 - alpha^2) x0.

  alpha = 1 / sqrt(1 + sigma^2) is the scale of the VP image. D = alpha^2 x - alpha sigma v.

  Source: Salimans & Ho 2022, arXiv:2202.00512, App. D.

  Args:
    predict: as in from_eps under 'vp', -> v.
    time: as in from_eps.

  Returns:
    As from_eps.
  """
  return _denoiser(predict, time, 'vp',
                   lambda x, sigma, v, alpha: alpha**2 * x - alpha * sigma * v)


def from_x0(predict: Callable[..., jax.Array], time: Time,
            scaling: str = 'vp') -> Callable[..., jax.Array]:
  """Makes a denoiser of a function that predicts the clean image: D is its answer.

  Args:
    predict: as in from_eps, -> x0.
    time: as in from_eps.
    scaling: 'vp' or 've'.

  Returns:
    As from_eps.

  Raises:
    ValueError: as from_eps.
  """
  return _denoiser(predict, time, scaling, lambda x, sigma, x0, c_in: x0)


def from_flow(predict: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Makes a denoiser of a flow-matching (rectified-flow) velocity.

  The flow runs along x_t = (1 - t) x0 + t z with velocity v = z - x0, so that x = x_t / (1 - t) has
  the level sigma = t / (1 - t), and D = x_t - t v. Even steps of its time are the schedules
  `flow_*`. For a flow from noise at 0 to images at 1, give 1 - t and the velocity's opposite.

  Source: Lipman et al. 2023, arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003.

  Args:
    predict: predict(x_t, t (batch,), *args) -> v like x_t, t within 0 and 1.

  Returns:
    As from_eps.
  """
  def denoise(x, sigma, *args):
    t = flow_time(_levels(x, sigma))
    scaled = _over(x, 1 - t) * x
    return scaled - _over(x, t) * predict(scaled, t, *args)
  return denoise


def discrete_time(alphas_cumprod: str | Sequence[float] | np.ndarray) -> Time:
  """Returns the time of a network with discrete steps, from 0 and not whole, as a function.

  Args:
    alphas_cumprod: alpha_bar at each step of training, or a key of levels.ALPHAS_CUMPROD.

  Returns:
    A function from noise levels (batch,) to steps (batch,), see levels.network_index.

  Raises:
    ValueError: if it is no decreasing list within 0 and 1, or the key is unknown.
  """
  table = levels_lib.read_alphas_cumprod('discrete_time', alphas_cumprod)
  return lambda sigma: levels_lib.network_index(sigma, table, jnp)


def flow_time(sigma: Any) -> Any:
  """Returns the time of a flow, t = sigma / (1 + sigma): 0 at images, towards 1 at noise."""
  return sigma / (1 + sigma)


def flow_sigma(t: Any) -> Any:
  """Returns the noise level at time t < 1 of a flow, sigma = t / (1 - t)."""
  return t / (1 - t)


def _denoiser(predict, time, scaling, combine):
  if scaling not in ('vp', 've'):
    raise ValueError(f"scaling must be 'vp' or 've', got {scaling!r}; 'vp' where the network sees "
                     'images and noise of variance 1 together')
  def denoise(x, sigma, *args):
    levels = _levels(x, sigma)
    c_in = lax.rsqrt(1 + levels**2) if scaling == 'vp' else jnp.ones_like(levels)
    c_in, sigma = _over(x, c_in), _over(x, levels)
    return combine(x, sigma, predict(c_in * x, time(levels), *args).astype(x.dtype), c_in)
  return denoise


def _predicts_eps(sigma, c_noise):
  """VP scaling, D = x - sigma eps."""
  return Coefficients(c_skip=jnp.ones_like(sigma), c_out=-sigma, c_in=lax.rsqrt(1 + sigma**2),
                      c_noise=c_noise)


def _levels(x, sigma):
  """The level of each sample, (batch,), in the precision of x."""
  return jnp.broadcast_to(jnp.asarray(sigma).astype(x.dtype), x.shape[:1])


def _over(x, scalar):
  """One number per sample, (batch,), shaped to multiply x."""
  return scalar.reshape(-1, *[1] * (x.ndim - 1))
