"""Trains the bundled classifier of noisy digits, log p(y | x; sigma), for classifier guidance.

  python main.py --mode=train --config=configs/digits_classifier.py --workdir=DIR

Levels are spread wider than for a denoiser: guidance asks at all of them, with equal right.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
  """Returns the config of the bundled classifier."""
  config = digits.get_config()
  config.train.kind = 'classifier'
  config.train.network.name = 'noise_classifier'
  config.train.network.num_blocks = 1
  config.train.network.dropout = 0.1
  config.train.P_mean = -0.5
  config.train.P_std = 1.8
  config.train.learning_rate = 1e-3
  config.train.steps = 1500
  return config
