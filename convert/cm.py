"""The U-Nets of consistency models and of their teachers: settings and key rules.

The network is guided-diffusion's but for its attention, whose two convolutions are 2-D and whose
channels are queries, then keys, then values, whatever the flag use_new_attention_order says: the
published code ignores it. A file holds tensors alone; what its network is comes from the flags.

Source: Song et al. 2023, arXiv:2303.01469, and its published code, consistency_models.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import numpy as np

from convert import adm, arguments, rules
from models import networks
from samplers import checks

# Flags of its scripts beside those of the U-Net, flag -> default.
_DIFFUSION_FLAGS = {'sigma_min': 0.002, 'sigma_max': 80.0, 'weight_schedule': 'karras'}
_UNET_FLAGS = MappingProxyType({
    **{name: default for name, default in adm.UNET_FLAGS.items()
       if name not in ('large_size', 'small_size')},
    'attention_resolutions': '32,16,8'})


def convert(tensors: Mapping[str, np.ndarray], architecture: Mapping[str, Any],
            distilled: bool) -> tuple[dict[str, Any], Any]:
  """Converts a network.

  Args:
    tensors: name -> array.
    architecture: flags of the scripts of consistency_models, or arguments of the network's
      constructor.
    distilled: it is a consistency model (cd_* and ct_*), else a teacher (edm_*), see denoisers.cm.

  Returns:
    (config, params): the fields of a model directory, and parameters in float32.

  Raises:
    ValueError: if a setting is unknown or out of range, or the tensors are not those of the
      settings.
  """
  config = describe(architecture, distilled)
  network = networks.build(**config['network'])
  like = rules.shapes(network, config['image_shape'], len(tensors))
  return config, rules.place(key_rules(network, like), tensors, like)


def describe(architecture: Mapping[str, Any], distilled: bool) -> dict[str, Any]:
  """Returns what a network is, the fields of a model directory.

  Args:
    architecture: as in `convert`.
    distilled: as in `convert`.

  Raises:
    ValueError: if a setting is unknown or out of range.
  """
  flags = dict(architecture)
  diffusion = {name: flags.pop(name, default) for name, default in _DIFFUSION_FLAGS.items()}
  low, high = (checks.to_number(diffusion[name]) for name in ('sigma_min', 'sigma_max'))
  if not 0 < low < high < np.inf:
    raise ValueError('convert: sigma_min and sigma_max of the architecture must increase and be '
                     f'above 0, got {diffusion["sigma_min"]!r} and {diffusion["sigma_max"]!r}; the '
                     'published networks have 0.002 and 80')
  if 'model_channels' not in flags:
    flags = adm.constructor(flags, _UNET_FLAGS)
  given = arguments.complete(flags, adm.UNET)
  if given['out_channels'] != given['in_channels']:
    raise ValueError('convert: out_channels of the architecture must be the '
                     f'{given["in_channels"]!r} of the images, got {given["out_channels"]!r}; '
                     'these networks learn no variance, leave learn_sigma out')
  side, channels = (arguments.whole(given, name) for name in ('image_size', 'in_channels'))
  settings = adm.unet_settings(given, side)
  return {'kind': 'denoiser', 'network': {'name': 'adm_unet', 'settings': settings},
          'preconditioning': {'name': 'cm', 'settings': {'sigma_min': low} if distilled else {}},
          'sigma_min': low, 'sigma_max': high, 'image_shape': [side, side, channels],
          'num_classes': settings['label_dim']}


def key_rules(network: nn.Module, like: Any) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor.

  Args:
    network: an adm_unet.
    like: its parameters, or their shapes.
  """
  return adm.key_rules(network, like, 'new', 'conv')
