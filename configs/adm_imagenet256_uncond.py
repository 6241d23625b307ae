"""ADM on ImageNet, 256 x 256, without classes, guided by its classifier.

Files: 256x256_diffusion_uncond.pt
and 256x256_classifier.pt
from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/
The paper's FID (arXiv:2105.05233, Table 4), 250 steps, at this scale: 12.00.

  python main.py --mode=convert --config=configs/adm_imagenet256_uncond.py \
    --workdir=checkpoints/256x256_diffusion_uncond
  python main.py --mode=convert --config.convert.source=256x256_classifier.pt \
    --workdir=checkpoints/256x256_classifier
  python main.py --config=configs/adm_imagenet256_uncond.py --workdir=out/adm_imagenet256_uncond

Without guidance: --config.guidance.classifier=None --config.guidance.scale=1. After a colon behind
the config stands a solver, if not ipndm, as in configs/adm_imagenet256_uncond.py:dpmpp.
"""

import ml_collections

from configs import published


def get_config(solver: str = 'ipndm') -> ml_collections.ConfigDict:
  """Returns the config for a solver, see above."""
  config = published.get_config('256x256_diffusion_uncond.pt', 256, solver)
  published.guide(config, '256x256_classifier.pt', scale=10.0)
  return config
