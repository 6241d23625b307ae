"""EDM on ImageNet, 64 x 64, with classes, ADM's network.

File: edm-imagenet-64x64-cond-adm.pkl
from https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/
The paper's FID (arXiv:2206.00364): 1.36, with its stochastic sampler at 511 evaluations.

  python main.py --mode=convert --config=configs/edm_imagenet64.py:cond-adm \
    --workdir=checkpoints/edm-imagenet-64x64-cond-adm
  python main.py --config=configs/edm_imagenet64.py:cond-adm --workdir=out/edm_imagenet64

After the colon stands cond-adm, and, if not ipndm, a solver, as in cond-adm,dpmpp.
"""

import ml_collections

from configs import published

VARIANTS = ('cond-adm',)


def get_config(arg: str = 'cond-adm') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, solver = published.split(arg, VARIANTS)
  return published.get_config(f'edm-imagenet-64x64-{variant}.pkl', 64, solver)
