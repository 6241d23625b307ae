"""What the tests of AMED share: reference entries as grids, denoisers, predictors and designs."""

import functools

import jax.numpy as jnp
import numpy as np

import samplers
from models import amed_predictor, mixture
from samplers import learned as learned_lib, levels
from tests import reference

MANIFEST, ARRAYS = reference.load('amed')

_TABLE = levels.scaled_linear_alphas_cumprod(0.00085, 0.012)
_STUDENT_OPTIONS = ('max_order', 'predict_x0', 'lower_order_final')


def cases(kind):
  return [case for case in MANIFEST['cases'] if case['kind'] == kind]


def grid(case, points):
  """The schedule of an entry with `points` levels: an entry counts levels, not intervals."""
  name, more = case['schedule_type'], {}
  if name in ('polynomial', 'time_uniform', 'discrete'):
    more['rho'] = case['schedule_rho']
  if name == 'discrete':
    more['alphas_cumprod'] = _TABLE
  return samplers.schedule(name, points - 1, case['sigma_min'], case['sigma_max'], **more)


@functools.cache
def features(rate=None, limited=False):
  """denoise_features of the mixture: tanh(ln sigma) P x / sqrt(1 + sigma^2) + q, mean of channels.

  Args:
    rate: of classifier-free guidance, which leaves the feature alone; None: no guidance.
    limited: whether D is thresholded dynamically.
  """
  denoise = plain(rate, limited)
  arrays = ARRAYS['mixture_amed']
  matrix, offset = arrays['feat_P'].mean(2).reshape(64, -1).T, arrays['feat_q'].mean(2)

  def bottleneck(x, sigma):
    sigma = jnp.broadcast_to(sigma, len(x))
    flat = x.reshape(len(x), -1) / jnp.sqrt(1 + sigma**2)[:, None]
    values = (flat @ jnp.asarray(matrix, x.dtype)).reshape(-1, *offset.shape)
    return jnp.tanh(jnp.log(sigma))[:, None, None] * values + jnp.asarray(offset, x.dtype)[None]

  def asked(x, sigma):
    return denoise(x, sigma), bottleneck(x, sigma)
  asked.raw = lambda x, sigma: (plain(rate)(x, sigma), bottleneck(x, sigma))
  return asked


@functools.cache
def plain(rate=None, limited=False):
  """The same without the bottleneck, as teachers ask it."""
  arrays = ARRAYS['mixture_amed']
  denoise = _mixture(arrays['w'])
  if rate is not None:
    denoise = samplers.guidance.classifier_free(_mixture(arrays['w_cond']), denoise, rate)
  return samplers.guidance.dynamic_threshold(denoise) if limited else denoise


def _mixture(weights):
  arrays = ARRAYS['mixture_amed']
  return functools.partial(
      mixture.denoise, mixture.mixture(arrays['mu'], arrays['s'], weights))


def limited(case):
  """Whether an entry thresholds D: DPM-Solver++ does, on every network."""
  solver = case.get('student') or case['teacher']
  return solver == 'dpmpp' and bool(case.get('predict_x0'))


def params(arrays, prefix):
  """Parameters recorded under torch's names, weights as (out, in), as those of the Flax module."""
  found = {}
  for key, value in arrays.items():
    if key.startswith(prefix) and '.' in key[len(prefix):]:
      layer, name = key[len(prefix):].split('.')
      found.setdefault(layer, {})['kernel' if name == 'weight' else name] = value.T
  return found


def design(case, learned, sigmas):
  """The design of an entry; sizes are read from its parameters."""
  options = {name: case[name] for name in _STUDENT_OPTIONS if case.get(name) is not None}
  return learned_lib.design(
      'amed', sigmas, student=case['student'], afs=case['afs'], scale_dir=case['scale_dir'],
      scale_time=case['scale_time'], **options, **sizes(learned))


def sizes(learned):
  size, hidden = learned['enc_layer0']['kernel'].shape
  return {'hidden_dim': hidden, 'bottleneck_size': size,
          'bottleneck_output_dim': learned['enc_layer1']['kernel'].shape[1],
          'noise_channels': len(learned['map_layer0']['bias'])}


def predictor(learned, scale_dir, scale_time):
  found = sizes(learned)
  del found['bottleneck_size']
  return amed_predictor.AmedPredictor(scale_dir, scale_time, **found)


def relative(found, wanted):
  """Largest difference in units of the largest entry; of zeros as it is."""
  return float(np.max(np.abs(np.asarray(found) - wanted)) / (np.max(np.abs(wanted)) or 1.0))
