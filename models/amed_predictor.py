"""The predictor of AMED-Solver and AMED-Plugin, and the design that trains and runs it.

With g from the bottleneck of the denoiser and e(sigma) an embedding of a level,

  g = W1 silu(W0 bottleneck),  e(sigma) = silu(M [sin(sigma f), cos(sigma f)]),              (1)
  o = [g, e(sigma), e(sigma')],  r = sigmoid(fc_r o),                                        (2)
  scale = 1 + s (2 sigmoid(fc_scale o) - 1),                                                 (3)

where s = scale_dir or scale_time bounds how far a scale leaves 1; s = 0 leaves it out. The levels
enter as they are, not their logarithms.

Source: Zhou et al. 2024 (AMED-Solver), arXiv:2312.00094, Sec. 3.3, and the code published with it,
whose names the parameters bear. There a predictor without scales reads r of other samples as
scales where the batch has two or three; here r is per sample always.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from models import layers
from samplers import amed as amed_lib, checks, learned

_normal = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')


class AmedPredictor(nn.Module):
  """r, scale_dir and scale_time of an interval, Eq. 1 to 3.

  Attributes:
    scale_dir: farthest that the scale of the direction leaves 1, at least 0 and below 1; 0: off.
    scale_time: the same for the scale of the level.
    hidden_dim: size of the layer over the bottleneck.
    bottleneck_output_dim: size of g.
    noise_channels: size of e, even, at least 4.
  """

  scale_dir: float = 0.01
  scale_time: float = 0.0
  hidden_dim: int = 128
  bottleneck_output_dim: int = 4
  noise_channels: int = 8

  @nn.compact
  def __call__(self, bottleneck: jax.Array, sigma: jax.Array,
               sigma_next: jax.Array) -> tuple[Any, Any, Any]:
    """Predicts for each sample.

    Args:
      bottleneck: mean over channels, (batch, height, width).
      sigma: level at the start of the interval, a scalar or (batch,).
      sigma_next: level at its end, a scalar or (batch,).

    Returns:
      (r, scale_dir, scale_time), each (batch,); a scale that is off is the number 1.
    """
    encoded = bottleneck.reshape(len(bottleneck), -1)
    encoded = nn.silu(layers.Dense(self.hidden_dim, init=_normal, name='enc_layer0')(encoded))
    encoded = layers.Dense(self.bottleneck_output_dim, init=_normal, name='enc_layer1')(encoded)
    levels = jnp.concatenate([jnp.broadcast_to(jnp.asarray(level, encoded.dtype), len(encoded))
                              for level in (sigma, sigma_next)])
    cosines, sines = jnp.split(
        layers.positional_embedding(levels, self.noise_channels, endpoint=True), 2, axis=-1)
    embedded = nn.silu(layers.Dense(self.noise_channels, name='map_layer0')(
        jnp.concatenate([sines, cosines], axis=-1)))
    joined = jnp.concatenate([encoded, *jnp.split(embedded, 2)], axis=-1)

    def head(name):
      return nn.sigmoid(layers.Dense(1, init=_normal, name=name)(joined))[:, 0]

    def scale(name, width):
      return 1 + width * (2 * head(name) - 1) if width else 1.0
    return (head('fc_r'), scale('fc_scale_dir', self.scale_dir),
            scale('fc_scale_time', self.scale_time))


def predict(params: Any, bottleneck: jax.Array, sigma: jax.Array, sigma_next: jax.Array,
            predictor: AmedPredictor) -> tuple[Any, Any, Any]:
  """Predicts with given parameters; products are exact to float32 on accelerators too.

  Args:
    params: of the predictor, nested dicts.
    bottleneck: (batch, height, width), of as many values as the predictor was made for.
    sigma: level at the start of the interval, a scalar or (batch,).
    sigma_next: level at its end.
    predictor: the module.

  Returns:
    As the module's call.

  Raises:
    ValueError: if the bottleneck has another number of values.
  """
  size, wanted = bottleneck[0].size, params['enc_layer0']['kernel'].shape[0]
  if size != wanted:
    raise ValueError(f'amed: bottleneck must have {wanted} values, as the predictor was made for, '
                     f'got {size} (shape {bottleneck.shape[1:]}); take the model that it was '
                     'trained with, or train one for this model')
  with jax.default_matmul_precision('highest'):
    return predictor.apply({'params': params}, bottleneck, sigma, sigma_next)


@learned.register
def amed(sigmas: Any, *, student: str = 'ipndm', scale_dir: float = 0.2, scale_time: float = 0.2,
         afs: bool = True, max_order: int = 2, predict_x0: bool = True,
         lower_order_final: bool = True, hidden_dim: int = 128, bottleneck_output_dim: int = 4,
         noise_channels: int = 8, bottleneck_size: int = 64) -> learned.Design:
  """Designs AMED-Solver (student 'amed') and AMED-Plugin (the others), see `samplers.amed`.

  Source: Zhou et al. 2024 (AMED-Solver), arXiv:2312.00094. The defaults are those that serve the
  bundled model, see benchmarks/README.md; published ones are in docs/learned_solvers.md.

  Args:
    sigmas: n + 1 strictly decreasing levels above 0, perhaps traced.
    student: a key of `samplers.amed.STUDENTS`.
    scale_dir: farthest that the scale of the direction leaves 1, at least 0 and below 1; 0: off.
    scale_time: the same for the level that the denoiser is told.
    afs: the first slope is x / sqrt(1 + sigma^2), and costs nothing.
    max_order: of dpmpp (1 to 3) and ipndm (1 to 4); the others have none.
    predict_x0: dpmpp on denoised images, else on eps.
    lower_order_final: dpmpp ends with steps of lower order.
    hidden_dim: size of the predictor's layer over the bottleneck.
    bottleneck_output_dim: size of what it makes of the bottleneck.
    noise_channels: size of its embedding of a level, even, at least 4.
    bottleneck_size: values of the denoiser's bottleneck, height times width.

  Returns:
    A Design with NFE 2 n, or 2 n - 1 with `afs`.

  Raises:
    ValueError: if an option is out of range or the grid does not decrease strictly to a level
      above 0.
  """
  amed_lib.check_settings(student, max_order, afs, predict_x0, lower_order_final)
  _check_sizes(hidden_dim, bottleneck_output_dim, noise_channels, bottleneck_size)
  for option, value in (('scale_dir', scale_dir), ('scale_time', scale_time)):
    if not 0 <= checks.to_number(value) < 1:
      raise ValueError(f'amed: {option} must be at least 0 and below 1, got {value!r}; 0 leaves it '
                       'out')
  if not isinstance(sigmas, jax.Array):
    sigmas = amed_lib.check_levels(sigmas)
  predictor = AmedPredictor(scale_dir, scale_time, hidden_dim, bottleneck_output_dim,
                            noise_channels)

  def initial(key):
    bottleneck = jnp.zeros((1, 1, bottleneck_size))
    return predictor.init(key, bottleneck, jnp.ones(()), jnp.ones(()))['params']

  def start(x):
    return amed_lib.start(x, student=student, max_order=max_order)

  def step(params, denoise, carry, i):
    def asked(bottleneck, sigma, sigma_next):
      return predict(params, bottleneck, sigma, sigma_next, predictor)
    return amed_lib.step(denoise, asked, carry, sigmas, i, student=student, afs=afs,
                         max_order=max_order, predict_x0=predict_x0,
                         lower_order_final=lower_order_final)

  count = len(sigmas) - 1
  calls = 2 * count - bool(afs)
  return learned.stepwise(initial, start, step, count, nfe=calls, calls=calls, learning_rate=0.03,
                          loss='intervals', restarts=amed_lib.STUDENTS[student] == 1,
                          features=True)


def _check_sizes(hidden_dim, bottleneck_output_dim, noise_channels, bottleneck_size):
  sizes = {'hidden_dim': hidden_dim, 'bottleneck_output_dim': bottleneck_output_dim,
           'noise_channels': noise_channels, 'bottleneck_size': bottleneck_size}
  for option, value in sizes.items():
    if not checks.is_integer(value) or value < 1:
      raise ValueError(f'amed: {option} must be an integer of 1 or more, got {value!r}; leave it '
                       'out for the published size')
  if noise_channels % 2 or noise_channels < 4:
    raise ValueError('amed: noise_channels must be even and at least 4, since it holds sines and '
                     f'cosines of two or more frequencies, got {noise_channels}; 8 is published')
