"""Trains the bundled denoiser of low noise levels, for early-stopped diffusion.

  python main.py --mode=train --config=configs/digits_early.py --workdir=DIR

Its levels end at sigma = 1, where digits are half hidden: sampling starts there, from another
generator's images with that noise (ES-DDPM, Lyu et al. 2022, arXiv:2205.12524). What is left to
learn is local, so that 41 % of the parameters will do.
"""

import ml_collections

from configs import digits


def get_config() -> ml_collections.ConfigDict:
  """Returns the config of the bundled denoiser for levels up to 1."""
  config = digits.get_config()
  config.train.sigma_max = 1.0
  config.train.network.num_blocks = 1
  config.train.network.model_channels = 24
  config.train.steps = 2500
  return config
