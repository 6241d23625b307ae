"""The variational bound of the chain that the solver ddpm runs, one draw per step and image."""

import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

import models
import samplers
from engine import (
  devices,
  inputs as inputs_lib,
  likelihood_method,
  plots,
  resolve,
  sampler,
  seeds as seeds_lib,
)


def plan(config: ml_collections.ConfigDict, given: dict[str, Any], model: models.Model,
         sigmas: np.ndarray, schedule: dict[str, Any]) -> likelihood_method.Method:
  """Resolves the bound.

  Args:
    config: the fields of configs/default.py.
    given: those with a value.
    model: the denoiser.
    sigmas: noise levels of the chain, decreasing.
    schedule: what made them.

  Returns:
    The Method.

  Raises:
    ValueError: if the solver is not ddpm with at most a variance that the model has.
  """
  options = resolve.options(given['solver'])
  if config.solver.name != 'ddpm' or options.keys() - {'variance'}:
    raise ValueError('config.solver: must be ddpm, with no option but variance, for the bound of '
                     f'its chain, got {" ".join([config.solver.name, *options])}; set '
                     '--config.solver.name=ddpm, or --config.likelihood.method=ode')
  variance = options.get('variance', samplers.options('ddpm')['variance'])
  learned = variance == 'learned'
  if learned and model.apply_variance is None:
    raise ValueError("config.solver.variance: 'learned' must have a model that learned one, got "
                     f"{model.name}; take 'fixed_small' or 'fixed_large'")
  if sigmas[-1] > 0:
    sigmas = np.append(sigmas, 0.0)  # The last step leads to the image.
  coefficients = samplers.ddpm.coefficients(sigmas, variance)
  own = {'schedule': schedule, 'solver': {'name': 'ddpm', 'variance': variance}}

  def report(found):
    return {**{name: [some[name] for some in found] for name in ('bits_per_dim', 'prior')},
            'vb_by_step': np.mean([some['vb'] for some in found], 0).tolist()}

  def draw(path, found, title):
    plots.write_bound(path, sigmas[:-1], report(found)['vb_by_step'], title)

  return likelihood_method.Method(
      name='bound', identity=own,
      manifest={**own, 'sigmas': sigmas.tolist(), 'nfe': coefficients.nfe},
      constants=coefficients,
      program=_program(model.apply_variance if learned else model.apply, learned, config.limit),
      read=_read, report=report, draw=draw,
      say=lambda found: (f'at most, by the bound of {len(sigmas) - 1} steps, NFE '
                         f'{coefficients.nfe}'))


@functools.cache
def _program(apply: Callable[..., Any], learned: bool, limit: str) -> Callable[[Any, Any], Any]:
  def measure(whole, share):
    (params, coefficients), (pixels, seeds, labels) = whole, share

    def denoise(x, sigma):
      return apply(params, x, sigma, labels)
    denoise_variance = denoise if learned else samplers.ddpm.without_variance(denoise)
    return samplers.bound.bits_per_dim(
        coefficients, samplers.ddpm.change(denoise_variance, sampler.LIMITS[limit]),
        inputs_lib.to_model(pixels), key=seeds_lib.keys(seeds, seeds_lib.NOISE))
  return devices.spread(measure)


def _read(terms, seeds):
  """The numbers of each image."""
  likelihood_method.check('the bound', np.isfinite(terms.total), seeds, (
      'be finite, got a value that is not for image {seed}; start the grid at a higher level'))
  return [{'bits_per_dim': float(terms.total[i]), 'prior': float(terms.prior[i]),
           'vb': terms.vb[i].tolist()} for i in range(len(seeds))]
