"""Colours a gray picture: 8 answers for a digit whose ink is not known.

  python main.py --config=configs/colorize.py --workdir=DIR

For a picture of your own, gray or in colours (whose mean is taken), add
--config.condition.image=PICTURE.png --config.model.path=MODEL. grid.png shows what is known, each
result, and the whole picture.

Source: Song et al. 2021, arXiv:2011.13456, App. I.3; Wizadwongsa & Suwajanakorn 2023,
arXiv:2301.11558, Sec. 4.
"""

import ml_collections

from configs import tasks


def get_config() -> ml_collections.ConfigDict:
  """Returns the task on the bundled model."""
  return tasks.get_config('colorize')
