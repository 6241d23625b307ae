"""Evaluates what a checkpoint was made into once, before it is written."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import convert
import samplers
from models import autoencoder, clip, feature_networks, networks, parts as parts_lib

ORACLE = '.expected.npz'
"""Ending of a file with reference numbers, in place of the source's own."""

_LATENT_SIDE = 8
# It runs once: a quick compilation is worth more than a quick program.
_COMPILER = {'xla_backend_optimization_level': 0}


def check(converted: convert.Converted, oracle: dict[str, np.ndarray] | None) -> str:
  """Evaluates a network once.

  Args:
    converted: the checkpoint as a model.
    oracle: what a denoiser must answer, arrays x, sigma and D_f32; None: unknown.

  Returns:
    What is to be told of it, a line.

  Raises:
    FloatingPointError: if an answer is not finite.
  """
  config = converted.config
  if config['kind'] == 'autoencoder' or 'parts' in config:
    return _check_parts(config, converted.params)
  if config['kind'] == 'features':
    return _check_features(config, converted.params)
  if config['kind'] == 'predictor':
    return _check_predictor(config, converted.params)
  network = networks.build(**config['network'])
  coefficients = networks.preconditioning(**config['preconditioning'])
  shape = tuple(config['image_shape'])
  x = np.asarray(jax.random.normal(jax.random.key(0), (1, *shape)))
  sigma, labels, call = np.ones(1, np.float32), None, {}
  if oracle:
    x, sigma, labels = (oracle.get(name) for name in ('x', 'sigma', 'class_index'))
  elif config['num_classes']:
    labels = np.zeros(1, np.int32)
  if getattr(network, 'low_res', False):
    call = {'low_res': x[:, ::2, ::2]}
  if config['kind'] == 'classifier':
    apply = jax.jit(networks.classifier(network, coefficients), compiler_options=_COMPILER)
    answer, expected = apply(converted.params, x, sigma), (len(x), config['num_classes'])
  else:
    evaluate = networks.select(networks.denoiser(network, coefficients), 0)
    apply = jax.jit(evaluate, compiler_options=_COMPILER)
    answer, expected = apply(converted.params, x, sigma, labels, **call), x.shape
  answer = np.asarray(answer)
  if answer.shape != expected or not np.isfinite(answer).all():
    raise FloatingPointError(f'convert: answer of the network must be finite and of shape '
                             f'{expected}, got {np.isfinite(answer).mean():.0%} finite of shape '
                             f'{answer.shape}; the checkpoint is damaged, nothing was written')
  if not oracle:
    return f'finite answer of shape {answer.shape} at sigma = 1'
  error = np.abs(answer - oracle['D_f32']).max()
  return f'largest error {error:.1e} against the reference numbers in *{ORACLE}'


def design(config: dict[str, Any]) -> Any:
  """Returns the design of a predictor, see samplers.learned.design."""
  told = config['design']
  return samplers.learned.design(told['name'], np.array(config['sigmas']), **told['settings'])


def _check_features(config, params):
  """Evaluates a network of features on gray; returns what is to be told of it."""
  module = feature_networks.build(**config['network'])
  apply = jax.jit(functools.partial(feature_networks.evaluate, module), compiler_options=_COMPILER)
  answer = jax.device_get(apply(params, *feature_networks.example(module)))
  bad = [name for name, values in answer.items() if not np.isfinite(values).all()]
  if bad:
    raise FloatingPointError(f'convert: features of a gray image must be finite, got others in '
                             f'{", ".join(bad)}; the checkpoint is damaged, nothing was written')
  return f'finite {", ".join(answer)} of a gray image'


def _check_predictor(config, params):
  """Samples with a predictor where a denoiser answers gray; returns what is to be told of it."""
  solver = design(config)
  bottleneck = np.zeros((1, 1, config['design']['settings']['bottleneck_size']), np.float32)
  def denoise(x, sigma):
    del sigma
    return 0 * x, bottleneck
  def solve(params, x):
    _, told = solver.step(params, denoise, solver.start(x), 0)
    return {**told, 'sample': solver.solve(params, denoise, x)}
  answer = jax.jit(solve, compiler_options=_COMPILER)(params, np.ones((1, 1, 1, 1), np.float32))
  bad = [name for name, values in answer.items() if not np.isfinite(values).all()]
  if bad:
    raise FloatingPointError(f'convert: answers of the predictor must be finite, got others in '
                             f'{", ".join(bad)}; the snapshot is damaged, nothing was written')
  first = ', '.join(f'{name} {float(values[0]):.3g}' for name, values in answer.items()
                    if name != 'sample')
  return f'finite sample, {first} in the first interval'


def _check_parts(config, params):
  """Evaluates all parts of a model, or a first stage; returns what is to be told of it."""
  alone = config['kind'] == 'autoencoder'
  stage = config if alone else config['parts']['first_stage']
  decoder = parts_lib.first_stage('convert', stage)
  def decode(params, z):  # Of a corner: any size will do.
    z = z[:, :_LATENT_SIDE, :_LATENT_SIDE]
    return {'picture': autoencoder.decode(decoder, params, z, stage['scale_factor'])}
  def evaluate(params, x):
    answer = {}
    if 'text' in params:
      answer['text'] = _encode(config['parts']['text'], params['text'])
    denoise = networks.denoiser(networks.build(**config['network']),
                                networks.preconditioning(**config['preconditioning']))
    z, _, _ = denoise(params['network'], x, jnp.ones(1), answer.get('text'))
    return {'denoised': z, **answer, **decode(params['first_stage'], z)}
  x = np.asarray(jax.random.normal(
      jax.random.key(0), (1, *config['latent_shape' if alone else 'image_shape'])))
  apply = jax.jit(decode if alone else evaluate, compiler_options=_COMPILER)
  answer = jax.device_get(apply(params, x))
  bad = [name for name, values in answer.items() if not np.isfinite(values).all()]
  if bad:
    raise FloatingPointError(f'convert: answers of the parts must be finite, got others in '
                             f'{", ".join(bad)}; the checkpoint is damaged, nothing was written')
  return 'finite ' + ', '.join(f'{name} {"x".join(map(str, values.shape[1:]))}'
                               for name, values in answer.items())


def _encode(fields, params):
  """The features of the empty text."""
  ids = parts_lib.tokenizer('convert', fields).encode([''])
  tower = clip.TextTower(**fields['network']['settings'])
  return tower.apply({'params': params}, ids[:, :tower.context]).last
