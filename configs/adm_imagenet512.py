"""ADM on ImageNet, 512 x 512, with classes, guided by its classifier.

Files: 512x512_diffusion.pt
and 512x512_classifier.pt
from https://openaipublic.blob.core.windows.net/diffusion/jul-2021/
The paper's FID (arXiv:2105.05233, as its repository has it), 250 steps, at this scale: 7.72.

  python main.py --mode=convert --config=configs/adm_imagenet512.py \
    --workdir=checkpoints/512x512_diffusion
  python main.py --mode=convert --config.convert.source=512x512_classifier.pt \
    --workdir=checkpoints/512x512_classifier
  python main.py --config=configs/adm_imagenet512.py --workdir=out/adm_imagenet512

Without guidance: --config.guidance.classifier=None --config.guidance.scale=1. After a colon behind
the config stands a solver, if not ipndm, as in configs/adm_imagenet512.py:dpmpp.
"""

import ml_collections

from configs import published


def get_config(solver: str = 'ipndm') -> ml_collections.ConfigDict:
  """Returns the config for a solver, see above."""
  config = published.get_config('512x512_diffusion.pt', 512, solver)
  published.guide(config, '512x512_classifier.pt', scale=4.0)
  return config
