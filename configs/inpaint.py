"""Completes a picture of which a part is known: 8 answers for a digit without its lower half.

  python main.py --config=configs/inpaint.py --workdir=DIR

For a picture and a mask (white where it is known) of your own, of the model's size, add
--config.condition.image=PICTURE.png --config.condition.mask=MASK.png --config.model.path=MODEL.
grid.png shows what is known, each result, and the whole picture.

Source: Song et al. 2021, arXiv:2011.13456, App. I.2; Wizadwongsa & Suwajanakorn 2023,
arXiv:2301.11558, Sec. 4.
"""

import ml_collections

from configs import tasks


def get_config() -> ml_collections.ConfigDict:
  """Returns the task on the bundled model."""
  config = tasks.get_config('inpaint')
  config.condition.mask = str(tasks.EXAMPLES / 'upper_half.png')
  return config
