"""ADM on ImageNet, 128 x 128, with classes, guided by its classifier.

Files: 128x128_diffusion.pt
and 128x128_classifier.pt
from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/
The paper's FID (arXiv:2105.05233, as its repository has it), 250 steps, at this scale: 2.97.

  python main.py --mode=convert --config=configs/adm_imagenet128.py \
    --workdir=checkpoints/128x128_diffusion
  python main.py --mode=convert --config.convert.source=128x128_classifier.pt \
    --workdir=checkpoints/128x128_classifier
  python main.py --config=configs/adm_imagenet128.py --workdir=out/adm_imagenet128

Without guidance: --config.guidance.classifier=None --config.guidance.scale=1. After a colon behind
the config stands a solver, if not ipndm, as in configs/adm_imagenet128.py:dpmpp.
"""

import ml_collections

from configs import published


def get_config(solver: str = 'ipndm') -> ml_collections.ConfigDict:
  """Returns the config for a solver, see above."""
  config = published.get_config('128x128_diffusion.pt', 128, solver)
  published.guide(config, '128x128_classifier.pt', scale=0.5)
  return config
