"""Stable Diffusion v1, 512 x 512, from texts.

File: sd-v1-4.ckpt
from https://huggingface.co/CompVis/stable-diffusion-v-1-4-original/
and v1-5-pruned-emaonly.ckpt
from https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5/
The vocabulary is in neither: merges.txt (with vocab.json), into clip_tokenizer/
from https://huggingface.co/openai/clip-vit-large-patch14/

  python main.py --mode=convert --config=configs/sd_v1.py:sd-v1-4 --workdir=checkpoints/sd-v1-4
  python main.py --config=configs/sd_v1.py:sd-v1-4 --config.model.prompts='a photo of a cat' \
    --workdir=out/sd

After the colon stands sd-v1-4 or v1-5-pruned-emaonly. The grid has diff-sampler's settings for
these models: the network's own discrete times, DPM-Solver++ of noise, and guidance of 7.5.
"""

import ml_collections

from configs import published

VARIANTS = 'sd-v1-4', 'v1-5-pruned-emaonly'


def get_config(arg: str = 'sd-v1-4') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, _ = published.split(arg, VARIANTS)
  config = published.get_config(f'{variant}.ckpt', 512, 'dpmpp')
  config.convert.tokenizer = 'clip_tokenizer'
  config.guidance.method, config.guidance.scale = 'classifier_free', 7.5
  config.seeds, config.batch_size = '0-3', 1
  return published.in_latents(config, max_order=2)
