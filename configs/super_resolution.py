"""Enlarges a picture: 8 answers for a digit of 4x4 pixels.

  python main.py --config=configs/super_resolution.py --workdir=DIR

For a picture of your own, of the model's size or smaller by --config.condition.factor, add
--config.condition.image=PICTURE.png --config.model.path=MODEL; --config.condition.kernel=bicubic
for one that was made smaller so. grid.png shows what is known, each result, and the whole picture.

Source: Wizadwongsa & Suwajanakorn 2023, arXiv:2301.11558, Sec. 4; Choi et al. 2021 (ILVR),
arXiv:2108.02938, for bicubic.
"""

import ml_collections

from configs import tasks


def get_config() -> ml_collections.ConfigDict:
  """Returns the task on the bundled model."""
  return tasks.get_config('super_resolution')
