"""The fields of --mode=likelihood."""

import ml_collections
from ml_collections import config_dict


def get_group() -> ml_collections.ConfigDict:
  """Returns config.likelihood; docs/likelihood.md has the commands."""
  likelihood = ml_collections.ConfigDict()
  # 'ode': the density along the probability-flow ODE, from the lowest level to the first. 'bound':
  # the variational bound of the chain that the solver ddpm runs. None: 'bound' where config.solver
  # is ddpm, else 'ode'.
  likelihood.method = config_dict.placeholder(str)
  # Of 'ode', in place of config.solver. 'adaptive': steps in ln sigma that keep the tolerance, for
  # each image by itself; of config.schedule only the range counts. Or one on its levels: 'euler',
  # 'heun', 'rk4', and the same in ln sigma, 'euler_log', 'heun_log', 'rk4_log'.
  likelihood.solver = 'adaptive'
  likelihood.rtol = 1e-4  # Error of a step of 'adaptive', relative to the values of an image;
  likelihood.atol = 1e-4  # and what is allowed in any case.
  likelihood.max_steps = 10_000  # Most steps of 'adaptive' per image, those in vain included.
  # The divergence: estimated by random probes, 'rademacher' or 'gaussian', that belong to the
  # image's seed; or 'exact', at the cost of as many probes as an image has numbers.
  likelihood.divergence = 'rademacher'
  likelihood.probes = 2  # Per image; from 2 on the report tells their part of the standard error.
  return likelihood
