"""ADM on ImageNet, 64 x 64, with classes, guided by its classifier.

Files: 64x64_diffusion.pt
and 64x64_classifier.pt
from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/
The paper's FID (arXiv:2105.05233, as its repository has it), 250 steps: 2.07, without guidance.

  python main.py --mode=convert --config=configs/adm_imagenet64.py \
    --workdir=checkpoints/64x64_diffusion
  python main.py --mode=convert --config.convert.source=64x64_classifier.pt \
    --workdir=checkpoints/64x64_classifier
  python main.py --config=configs/adm_imagenet64.py --workdir=out/adm_imagenet64

Without guidance: --config.guidance.classifier=None --config.guidance.scale=1. After a colon behind
the config stands a solver, if not ipndm, as in configs/adm_imagenet64.py:dpmpp.
"""

import ml_collections

from configs import published


def get_config(solver: str = 'ipndm') -> ml_collections.ConfigDict:
  """Returns the config for a solver, see above."""
  config = published.get_config('64x64_diffusion.pt', 64, solver)
  published.guide(config, '64x64_classifier.pt', scale=1.0)
  return config
