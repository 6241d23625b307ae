"""A tiny text-conditional denoiser of latents with its parts, and the published vocabulary."""

import functools
import json
import tarfile

import jax
import numpy as np

from models import autoencoder, networks, text
from tests import reference

MERGES = ['a t</w>', 'c at</w>', 'd o']
VOCAB = 514 + len(MERGES)
UNET = {'img_resolution': 4, 'out_channels': 4, 'model_channels': 32, 'channel_mult': [1],
        'num_blocks': 1, 'attn_resolutions': [], 'groups': 32, 'bottleneck': 'middle',
        'transformer_depth': 1, 'context_dim': 12, 'num_heads': 2, 'channels_per_head': 0}
FIRST_STAGE = {
    'kind': 'autoencoder', 'scale_factor': 0.5, 'image_shape': [16, 16, 3],
    'latent_shape': [8, 8, 4], 'network': {'name': 'autoencoder', 'settings': {
        'kind': 'kl', 'embed_dim': 4, 'z_channels': 4, 'model_channels': 32,
        'channel_mult': [1, 1], 'num_blocks': 1}}}
TEXT = {'kind': 'text_encoder', 'merges': MERGES, 'pad': VOCAB - 1, 'convention': 'transformers',
        'network': {'name': 'clip_text', 'settings': {
            'width': 12, 'layers': 1, 'heads': 2, 'context': 8, 'vocab': VOCAB, 'mlp': 16}}}
CONFIG = {'kind': 'denoiser', 'network': {'name': 'adm_unet', 'settings': UNET},
          'preconditioning': {'name': 'discrete', 'settings': {
              'alphas_cumprod': 'stable_diffusion'}},
          'sigma_min': 0.03, 'sigma_max': 14.6, 'image_shape': [4, 4, 4], 'num_classes': 0,
          'parts': {'first_stage': FIRST_STAGE, 'text': TEXT}}


@functools.cache
def params():
  """Random parameters of CONFIG by part, NumPy arrays; nothing is compiled."""
  network = networks.build(**CONFIG['network'])
  like = {'network': jax.eval_shape(functools.partial(networks.initialize, network, (4, 4, 4)),
                                    jax.random.key(0)),
          'first_stage': autoencoder.shapes(
              autoencoder.build(FIRST_STAGE['network']['settings'])),
          'text': text.shapes(text.build(TEXT['network']['settings']))}
  draw = np.random.default_rng(0)
  def values(leaf):  # Every layer, the last ones too, gives numbers of about 1.
    scale = np.prod(leaf.shape[:-1])**-0.5 if len(leaf.shape) > 1 else 1
    return (scale * draw.standard_normal(leaf.shape)).astype(np.float32)
  return jax.tree.map(values, like)


@functools.cache
def files():
  """Of the published folder: `vocab`, `merges` without their heading, and `text_encoder`."""
  with tarfile.open(reference.GOLDEN / 'ldm' / 'sd_diffusers.tar.xz') as tar:
    vocab, merges, config = (tar.extractfile(name).read() for name in (
        'tokenizer/vocab.json', 'tokenizer/merges.txt', 'text_encoder/config.json'))
  return {'vocab': json.loads(vocab), 'merges': merges.decode().strip().split('\n')[1:],
          'text_encoder': json.loads(config)}
