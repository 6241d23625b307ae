"""Bits per dimension by the probability-flow ODE, with uniform noise on the 8-bit values."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

import models
from engine import (
  devices,
  inputs as inputs_lib,
  likelihood_method,
  resolve,
  sampler,
  seeds as seeds_lib,
)
from samplers import checks, likelihood as likelihood_lib, likelihood_adaptive

ADAPTIVE = 'adaptive'

_PROBES, _DEQUANTIZE = 3, 4  # Streams of a seed, after those of engine.seeds.


def plan(config: ml_collections.ConfigDict, model: models.Model, sigmas: np.ndarray,
         schedule: dict[str, Any], pictures: inputs_lib.Pictures, seeds: np.ndarray,
         grid: dict[str, int]) -> likelihood_method.Method:
  """Resolves the measurement along the ODE.

  Args:
    config: the fields of configs/default.py.
    model: the denoiser.
    sigmas: noise levels, decreasing; a last level 0 is left out.
    schedule: what made them.
    pictures: to be measured.
    seeds: numbers of the images.
    grid: of config.output.grid.

  Returns:
    The Method.

  Raises:
    ValueError: if a field of config.likelihood is out of range.
  """
  own = config.likelihood
  levels = sigmas[sigmas > 0][::-1]
  checks.check_choice('config.likelihood', 'solver', own.solver,
                      (ADAPTIVE, *likelihood_lib.SOLVERS))
  checks.check_choice('config.likelihood', 'divergence', own.divergence,
                      likelihood_lib.DIVERGENCES)
  exact = own.divergence == 'exact'
  resolve.check_least('likelihood', own, {'max_steps': 1, **({} if exact else {'probes': 1})},
                      'measuring.py')
  for field in ('rtol', 'atol'):
    checks.check_positive('config.likelihood', field, own[field], '1e-4 is the usual one')
  if len(levels) < 2:
    raise ValueError('config.schedule: must have two levels above 0 or more, got '
                     f'{sigmas.tolist()}; take more steps')
  count = 0 if exact else own.probes
  identity = {'likelihood': {
      'method': 'ode', 'solver': own.solver, 'divergence': own.divergence, 'probes': count}}
  if own.solver == ADAPTIVE:
    identity['likelihood'] |= {'rtol': own.rtol, 'atol': own.atol, 'sigma_min': float(levels[0]),
                               'sigma_max': float(levels[-1])}
    how = {'sigma_min': np.float32(levels[0]), 'sigma_max': np.float32(levels[-1]),
           'rtol': np.float32(own.rtol), 'atol': np.float32(own.atol),
           'max_steps': np.int32(own.max_steps)}
    manifest = identity  # Without max_steps: an image that has arrived does not depend on it.
  else:
    how = likelihood_lib.steps(levels, own.solver)
    identity['schedule'] = schedule
    manifest = {**identity, 'sigmas': levels.tolist()}

  def draw(path, found, title):
    del title
    likelihood_method.draw_in_order(path, found, pictures, seeds, grid)

  return likelihood_method.Method(
      name='ode', identity=identity, manifest=manifest, constants=how,
      program=_program(model.apply, config.limit, own.solver == ADAPTIVE, own.divergence, count),
      read=_read, report=_report, draw=draw,
      say=lambda found: (f'by the ODE, {own.solver}, divergence {own.divergence}, NFE '
                         f'{np.mean([some["nfe"] for some in found]):.0f} with {_follow(count)}'))


@functools.cache
def _program(apply: Callable[..., jax.Array], limit: str, adaptive: bool, divergence: str,
             count: int) -> Callable[[Any, Any], Any]:
  def measure(whole, share):
    (params, how), (pixels, seeds, labels) = whole, share
    x = likelihood_lib.dequantize(pixels, seeds_lib.keys(seeds, _DEQUANTIZE))
    denoise = sampler.LIMITS[limit](lambda x, sigma: apply(params, x, sigma, labels))
    probes = likelihood_lib.draw_probes(
        seeds_lib.keys(seeds, _PROBES), count, x.shape[1:], divergence) if count else None
    if adaptive:
      found, info = likelihood_adaptive.integrate(denoise, x, probes=probes, **how)
      nfe, finished = info.nfe, info.finished
    else:
      found = likelihood_lib.along(how, denoise, x, probes)
      nfe = jnp.full(len(x), how.nfe, jnp.int32)
      finished = jnp.ones(len(x), bool)
    size = math.prod(x.shape[1:])
    by_probe = likelihood_lib.bits_per_dim(found.prior + found.by_probe, size)
    return {'bits_per_dim': found.bits_per_dim, 'by_probe': by_probe.T, 'nfe': nfe,
            'finished': finished, 'log_prior': found.prior, 'integral': found.integral}
  return devices.spread(measure)


def _read(answers, seeds):
  """The numbers of each image."""
  likelihood_method.check('the density', np.isfinite(answers['bits_per_dim']), seeds, (
      'be finite, got a value that is not for image {seed}; start at a higher '
      'config.schedule.sigma_min, or look at the model'))
  likelihood_method.check('the ODE', answers['finished'], seeds, (
      'reach the highest level, got image {seed} that did not within config.likelihood.max_steps; '
      'raise it, or in another --workdir rtol and atol'))
  names = 'bits_per_dim', 'log_prior', 'integral'
  return [{**{name: float(answers[name][i]) for name in names}, 'nfe': int(answers['nfe'][i]),
           'probe_error': _error(answers['by_probe'][i])} for i in range(len(seeds))]


def _error(bits):
  """Standard error of the mean over the probes, None of one."""
  if len(bits) < 2:
    return None
  return float(np.std(bits, ddof=1, dtype=np.float64) / math.sqrt(len(bits)))


def _report(found):
  return {**{name: [some[name] for some in found]
             for name in ('bits_per_dim', 'log_prior', 'integral', 'nfe')},
          'probe_errors': [some['probe_error'] for some in found]}


def _follow(count):
  if not count:
    return 'all directions each'
  return f'{count} probe{"" if count == 1 else "s"} each'
