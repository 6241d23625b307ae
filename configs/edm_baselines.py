"""The baselines of EDM: networks of earlier papers, with their own preconditioning.

File: baseline-VARIANT.pkl
from https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/baseline/
The paper's FID (arXiv:2206.00364) on ImageNet-64 with EDM's sampler at its best: 1.55.

  python main.py --mode=convert --config=configs/edm_baselines.py:cifar10-32x32-uncond-vp \
    --workdir=checkpoints/baseline-cifar10-32x32-uncond-vp
  python main.py --config=configs/edm_baselines.py:cifar10-32x32-uncond-vp --workdir=out/baselines

After the colon stands {cifar10-32x32-uncond,cifar10-32x32-cond,ffhq-64x64-uncond,
afhqv2-64x64-uncond}-{vp,ve} or imagenet-64x64-cond-adm; and, if not ipndm, a solver, as in
cifar10-32x32-uncond-vp,dpmpp.
"""

import ml_collections

from configs import published

_STARTS = 'cifar10-32x32-uncond', 'cifar10-32x32-cond', 'ffhq-64x64-uncond', 'afhqv2-64x64-uncond'
VARIANTS = (*(f'{start}-{network}' for start in _STARTS for network in ('vp', 've')),
            'imagenet-64x64-cond-adm')


def get_config(arg: str = 'cifar10-32x32-uncond-vp') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, solver = published.split(arg, VARIANTS)
  resolution = 32 if '32x32' in variant else 64
  return published.get_config(f'baseline-{variant}.pkl', resolution, solver)
