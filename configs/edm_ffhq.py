"""EDM on FFHQ, 64 x 64, without classes, DDPM++ (vp) or NCSN++ (ve).

File: edm-ffhq-64x64-VARIANT.pkl
from https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/
The paper's FID (arXiv:2206.00364, Table 2), Heun at 79 evaluations: 2.39 (vp) and 2.53 (ve).

  python main.py --mode=convert --config=configs/edm_ffhq.py:uncond-vp \
    --workdir=checkpoints/edm-ffhq-64x64-uncond-vp
  python main.py --config=configs/edm_ffhq.py:uncond-vp --workdir=out/edm_ffhq

After the colon stands uncond-vp or uncond-ve; and, if not ipndm, a solver, as in
uncond-vp,dpmpp.
"""

import ml_collections

from configs import published

VARIANTS = ('uncond-vp', 'uncond-ve')


def get_config(arg: str = 'uncond-vp') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, solver = published.split(arg, VARIANTS)
  return published.get_config(f'edm-ffhq-64x64-{variant}.pkl', 64, solver)
