"""Latent diffusion on LSUN bedrooms, FFHQ and CelebA-HQ, 256 x 256, without classes.

File: model.ckpt, in VARIANT.zip
from https://ommer-lab.com/files/latent-diffusion/
The paper's FID (arXiv:2112.10752), 200 steps of DDIM: lsun_bedrooms 2.95, ffhq 4.98, and celeba
5.11 with 500.

  python main.py --mode=convert --config=configs/ldm.py:lsun_bedrooms \
    --workdir=checkpoints/lsun_bedrooms
  python main.py --config=configs/ldm.py:lsun_bedrooms --workdir=out/ldm

after unpacking the archive as lsun_bedrooms/. After the colon stands lsun_bedrooms, ffhq or celeba.
The grid has diff-sampler's settings for these models: the network's own discrete times, and
DPM-Solver++ of noise.
"""

import ml_collections

from configs import published

VARIANTS = 'lsun_bedrooms', 'ffhq', 'celeba'


def get_config(arg: str = 'lsun_bedrooms') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, _ = published.split(arg, VARIANTS)
  config = published.get_config(f'{variant}/model.ckpt', 256, 'dpmpp')
  config.convert.published = f'{"celebahq" if variant == "celeba" else variant}_ldm_vq4'
  config.model.path = f'checkpoints/{variant}'
  return published.in_latents(config, max_order=3)
