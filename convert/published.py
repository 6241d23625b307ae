"""What the published checkpoints of guided-diffusion were trained with: flags by name of the file.

Source: https://github.com/openai/guided-diffusion, README. A flag that is not here has the script's
default, see convert/adm.py.
"""

from types import MappingProxyType

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
