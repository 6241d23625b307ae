"""ADM on LSUN, 256 x 256, without classes.

File: lsun_VARIANT.pt
from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/
The paper's FID (arXiv:2105.05233, as its repository has it), 1,000 steps: bedroom 1.90, cat 5.57,
horse 2.57.

  python main.py --mode=convert --config=configs/adm_lsun.py:bedroom \
    --workdir=checkpoints/lsun_bedroom
  python main.py --config=configs/adm_lsun.py:bedroom --workdir=out/adm_lsun

After the colon stands bedroom, cat, horse or horse_nodropout; and, if not ipndm, a solver, as in
bedroom,dpmpp.
"""

import ml_collections

from configs import published

VARIANTS = ('bedroom', 'cat', 'horse', 'horse_nodropout')


def get_config(arg: str = 'bedroom') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, solver = published.split(arg, VARIANTS)
  return published.get_config(f'lsun_{variant}.pt', 256, solver)
