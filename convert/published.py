"""What published checkpoints were trained with, by name: flags, or parameters of a yaml file.

Sources: the READMEs of https://github.com/openai/guided-diffusion and of
https://github.com/openai/consistency_models; the yaml files of
https://github.com/CompVis/latent-diffusion (models/ldm) and of
https://github.com/CompVis/stable-diffusion (configs/stable-diffusion/v1-inference.yaml). What is
not here has the default of the script or class, see convert/adm.py and convert/ldm.py.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_UNET = {'attention_resolutions': '32,16,8', 'class_cond': True, 'learn_sigma': True,
         'resblock_updown': True, 'use_scale_shift_norm': True}
_WIDE = {**_UNET, 'num_channels': 256, 'num_res_blocks': 2}
_LARGE = {**_WIDE, 'image_size': 256, 'num_head_channels': 64}
_LSUN = {**_LARGE, 'class_cond': False, 'dropout': 0.1}
_UPSAMPLER = {**_UNET, 'num_channels': 192, 'num_res_blocks': 2}

ADM = MappingProxyType({
    '64x64_diffusion': {**_UNET, 'image_size': 64, 'num_channels': 192, 'num_head_channels': 64,
                        'num_res_blocks': 3, 'dropout': 0.1, 'use_new_attention_order': True,
                        'noise_schedule': 'cosine'},
    '128x128_diffusion': {**_WIDE, 'image_size': 128, 'num_heads': 4},
    '256x256_diffusion': _LARGE,
    '256x256_diffusion_uncond': {**_LARGE, 'class_cond': False},
    '512x512_diffusion': {**_LARGE, 'image_size': 512},
    'lsun_bedroom': _LSUN,
    'lsun_cat': _LSUN,
    'lsun_horse': _LSUN,
    'lsun_horse_nodropout': {**_LSUN, 'dropout': 0.0},
    '64_256_upsampler': {**_UPSAMPLER, 'large_size': 256, 'small_size': 64, 'num_heads': 4},
    '128_512_upsampler': {**_UPSAMPLER, 'large_size': 512, 'small_size': 128,
                          'attention_resolutions': '32,16', 'num_head_channels': 64},
    '64x64_classifier': {'image_size': 64, 'classifier_depth': 4, 'noise_schedule': 'cosine'},
    '128x128_classifier': {'image_size': 128, 'classifier_depth': 2},
    '256x256_classifier': {'image_size': 256, 'classifier_depth': 2},
    '512x512_classifier': {'image_size': 512, 'classifier_depth': 2},
})
"""Name of the file without .pt -> flags."""

_EDM = {'attention_resolutions': '32,16,8', 'num_head_channels': 64, 'resblock_updown': True,
        'use_fp16': True, 'training_mode': 'edm'}
_IMAGENET = {**_EDM, 'class_cond': True, 'image_size': 64, 'num_channels': 192, 'num_res_blocks': 3,
             'use_scale_shift_norm': True}
_LSUN_CM = {**_EDM, 'class_cond': False, 'image_size': 256, 'num_channels': 256,
            'num_res_blocks': 2, 'use_scale_shift_norm': False}
_DISTILLED, _TRAINED = ({'training_mode': f'consistency_{mode}', 'dropout': 0.0}
                        for mode in ('distillation', 'training'))

CM = MappingProxyType({
    f'{start}_{data}{end}': {**flags, **mode}
    for data, flags in (('imagenet64', _IMAGENET), ('bedroom256', _LSUN_CM), ('cat256', _LSUN_CM))
    for start, end, mode in (('edm', '_ema', {'dropout': 0.1}), ('cd', '_l2', _DISTILLED),
                             ('cd', '_lpips', _DISTILLED), ('ct', '', _TRAINED))})
"""Name of the file without .pt -> flags."""


def _first_stage(kind: str, channels: int, **ddconfig: Any) -> dict[str, Any]:
  """The first_stage_config of a yaml file, of pictures of 256 x 256 in training."""
  own = {'VQModelInterface': {'n_embed': 8192}, 'AutoencoderKL': {}}[kind]
  return {'target': f'ldm.models.autoencoder.{kind}', 'params': {
      'embed_dim': channels, **own, 'ddconfig': {
          'double_z': kind == 'AutoencoderKL', 'z_channels': channels, 'resolution': 256,
          'in_channels': 3, 'out_ch': 3, 'ch': 128, 'num_res_blocks': 2, 'attn_resolutions': [],
          'dropout': 0.0, **ddconfig}}}


def _latent(start: float, end: float, side: int, unet: Mapping[str, Any],
            first_stage: Mapping[str, Any], **more: Any) -> dict[str, Any]:
  """The parameters of a latent diffusion, as in a yaml file."""
  channels = first_stage['params']['embed_dim']
  params = {'image_size': side, 'in_channels': channels, 'out_channels': channels,
            'num_res_blocks': 2, **unet}
  return {'linear_start': start, 'linear_end': end, 'timesteps': 1000, 'image_size': side,
          'channels': channels, 'unet_config': {'params': params},
          'first_stage_config': first_stage, 'cond_stage_config': '__is_unconditional__', **more}


_VQ4 = _latent(
    0.0015, 0.0195, 64,
    {'model_channels': 224, 'attention_resolutions': [8, 4, 2], 'channel_mult': [1, 2, 3, 4],
     'num_head_channels': 32}, _first_stage('VQModelInterface', 3, ch_mult=[1, 2, 4]))
_KL8 = _first_stage('AutoencoderKL', 4, ch_mult=[1, 2, 4, 4])

LDM = MappingProxyType({
    'lsun_bedrooms_ldm_vq4': _VQ4,
    'ffhq_ldm_vq4': _VQ4,
    'celebahq_ldm_vq4': _VQ4,
    'lsun_churches_ldm_kl8': _latent(
        0.0015, 0.0155, 32,
        {'model_channels': 192, 'attention_resolutions': [1, 2, 4, 8],
         'channel_mult': [1, 2, 2, 4, 4], 'num_heads': 8, 'use_scale_shift_norm': True,
         'resblock_updown': True}, _KL8, scale_by_std=True),
    'sd_v1': _latent(
        0.00085, 0.012, 64,
        {'model_channels': 320, 'attention_resolutions': [4, 2, 1], 'channel_mult': [1, 2, 4, 4],
         'num_heads': 8, 'use_spatial_transformer': True, 'transformer_depth': 1,
         'context_dim': 768, 'legacy': False}, _KL8, conditioning_key='crossattn',
        scale_factor=0.18215, use_ema=False,
        cond_stage_config={'target': 'ldm.modules.encoders.modules.FrozenCLIPEmbedder'}),
})
"""Name -> parameters of the model. Those that are published as model.ckpt are inferred."""

_SD_FILES = (*(f'sd-v1-{i}{end}' for i in (1, 2, 3, 4) for end in ('', '-full-ema')),
             'v1-5-pruned', 'v1-5-pruned-emaonly')

ALIASES = MappingProxyType({
    **dict.fromkeys(_SD_FILES, 'sd_v1'), 'lsun_bedrooms': 'lsun_bedrooms_ldm_vq4',
    'ffhq': 'ffhq_ldm_vq4', 'celeba': 'celebahq_ldm_vq4',
    'lsun_churches': 'lsun_churches_ldm_kl8'})
"""Name of a published file, or of the archive that it comes in -> key of LDM."""

KNOWN: Mapping[str, Mapping[str, Any]] = MappingProxyType({**ADM, **CM, **LDM})
"""Name -> flags, or parameters, of all families."""
