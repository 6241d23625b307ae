"""Early-stopped diffusion from a GAN's images: ImageNet 64 x 64, LSUN bedroom, LSUN cat.

Files: the model, and the images under ref_batches/ there, from
https://openaipublic.blob.core.windows.net/diffusion/jul-2021/

  imagenet64    64x64_diffusion.pt, imagenet/64/biggan_deep_imagenet64.npz
  lsun_bedroom  lsun_bedroom.pt, lsun/bedroom/stylegan_lsun_bedroom.npz
  lsun_cat      lsun_cat.pt, lsun/cat/stylegan2_lsun_cat.npz

  python main.py --mode=convert --config=configs/es_ddpm.py:imagenet64 \
    --workdir=checkpoints/64x64_diffusion
  python main.py --config=configs/es_ddpm.py:imagenet64 --workdir=out/es_imagenet64

The images get the noise of about 100 of 1,000 training steps and are denoised by the last steps of
a chain: 25 of 250 for ImageNet, 100 of 1,000 for LSUN. Other counts: --config.schedule.respacing
and --config.schedule.reverse_steps; with respacing=ddim200 and --config.solver.name=ddim
--config.solver.variance=None it is DDIM. A classifier guides with --config.guidance.classifier. On
four machines with a common workdir each gets its --config.share, '0/4' to '3/4'; the last to finish
writes samples.npz.

Source: Lyu et al. 2022 (ES-DDPM), arXiv:2205.12524, and the commands of its repository.
"""

import ml_collections

from configs import published

VARIANTS = {
    'imagenet64': ('64x64_diffusion.pt', 64, 'biggan_deep_imagenet64.npz', 'cosine', '250', 25),
    'lsun_bedroom': ('lsun_bedroom.pt', 256, 'stylegan_lsun_bedroom.npz', 'ddpm', '1000', 100),
    'lsun_cat': ('lsun_cat.pt', 256, 'stylegan2_lsun_cat.npz', 'ddpm', '1000', 100),
}
"""Model, its resolution, images, alpha_bar of its training, chain, and steps of the chain run."""


def get_config(variant: str = 'imagenet64') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  if variant not in VARIANTS:
    raise ValueError(f'variant must be one of {", ".join(VARIANTS)}, got {variant!r}; such as '
                     'configs/es_ddpm.py:lsun_cat')
  file, resolution, images, alphas_cumprod, respacing, reverse_steps = VARIANTS[variant]
  config = published.get_config(file, resolution, 'euler')
  config.seeds = 'all'
  config.labels = 'given' if variant == 'imagenet64' else 'none'
  config.input.images = images
  config.solver.name = 'ddpm'
  config.solver.variance = 'learned'
  config.limit = 'clip'
  config.schedule.name = 'respaced'
  config.schedule.rho = None
  config.schedule.alphas_cumprod = alphas_cumprod
  config.schedule.respacing = respacing
  config.schedule.reverse_steps = reverse_steps
  config.output.format = 'npz'
  config.output.uint8_rule = 'truncate'
  return config
