"""Trains the bundled denoiser on digits in six inks: 983,555 parameters.

  python main.py --mode=train --config=configs/digits.py --workdir=DIR

DIR/model is then the model directory. `python -m benchmarks.bundled` measures the one that comes
with the project, see benchmarks/README.md.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """Returns the default, whose `train` is this very model, saved in half precision."""
  config = default.get_config()
  config.train.dtype = 'float16'
  return config
