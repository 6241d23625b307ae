"""The predictor that comes with the project: what its training bought."""

import jax
import numpy as np

import models
import samplers
from engine import devices, generate, seeds as seeds_lib
from tests.engine import sampling


def test_it_is_nearer_to_the_solution_than_plain_ipndm_at_the_same_cost(tmp_path):
  plan = generate.plan(sampling.get_config(predictor__path='digits_amed', seeds='0-31'),
                       str(tmp_path))
  learned = sampling.samples(plan)
  model, seeds = models.load('digits'), plan.results.seeds
  latents = 80 * devices.merge(seeds_lib.latents(seeds, model.image_shape, 'jax'))

  @jax.jit
  def solve(table):
    return samplers.run(table, lambda x, sigma: model.denoise(x, sigma, plan.labels), latents)

  def end(count, rho):
    sigmas = samplers.schedule('polynomial', count, 0.002, 80.0, rho=rho)
    return np.asarray(solve(samplers.pad(samplers.make('ipndm', sigmas), 40, 4)))
  exact = end(40, 7)
  plain = min(np.sqrt(np.mean((end(5, rho) - exact)**2)) for rho in (5, 7, 9))
  # A ratio of 0.46 was measured on 256 seeds; 0.7 is what the training is meant to reach.
  assert plan.solver.nfe == 5
  assert np.sqrt(np.mean((learned - exact)**2)) <= 0.7 * plain
