"""EDM on CIFAR-10, 32 x 32, with and without classes, DDPM++ (vp) or NCSN++ (ve).

File: edm-cifar10-32x32-VARIANT.pkl
from https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/
The paper's FID (arXiv:2206.00364, Table 2), Heun at 35 evaluations: uncond 1.97 (vp) and 1.98 (ve),
cond 1.79 and 1.79.

  python main.py --mode=convert --config=configs/edm_cifar10.py:uncond-vp \
    --workdir=checkpoints/edm-cifar10-32x32-uncond-vp
  python main.py --config=configs/edm_cifar10.py:uncond-vp --workdir=out/edm_cifar10

After the colon stands uncond-vp, uncond-ve, cond-vp or cond-ve; and, if not ipndm, a solver, as in
uncond-vp,dpmpp.
"""

import ml_collections

from configs import published

VARIANTS = ('uncond-vp', 'uncond-ve', 'cond-vp', 'cond-ve')


def get_config(arg: str = 'uncond-vp') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, solver = published.split(arg, VARIANTS)
  return published.get_config(f'edm-cifar10-32x32-{variant}.pkl', 32, solver)
