"""guided-diffusion's networks (ADM): U-Nets, super-resolution, classifiers: settings and key rules.

Consistency models and latent diffusion have the same U-Net, with other arguments and layouts.

A file of guided-diffusion holds tensors alone. What its network is comes from the flags it was
trained with: those of convert/published.py, or the user's.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax
import flax.linen as nn
import numpy as np

from convert import arguments, rules
from models import networks
from samplers import checks, levels

UNET = MappingProxyType({
    'image_size': arguments.REQUIRED, 'in_channels': 3, 'model_channels': arguments.REQUIRED,
    'out_channels': arguments.REQUIRED, 'num_res_blocks': arguments.REQUIRED,
    'attention_resolutions': arguments.REQUIRED, 'dropout': 0.0, 'channel_mult': (1, 2, 4, 8),
    'conv_resample': True, 'dims': 2, 'num_classes': None, 'use_checkpoint': False,
    'use_fp16': False, 'num_heads': 1, 'num_head_channels': -1, 'num_heads_upsample': -1,
    'use_scale_shift_norm': False, 'resblock_updown': False, 'use_new_attention_order': False})
"""Arguments of UNetModel's constructor, argument -> default."""
LATENT_UNET = MappingProxyType({
    **UNET, 'num_heads': -1, 'use_spatial_transformer': False, 'transformer_depth': 1,
    'context_dim': None, 'n_embed': None, 'legacy': True})
"""The same of latent diffusion's; `legacy` has no effect on what is computed."""
_CLASSIFIER = {**UNET, 'pool': 'adaptive'}

# Flags of its scripts, flag -> default.
_DIFFUSION_FLAGS = {
    'learn_sigma': False, 'diffusion_steps': 1000, 'noise_schedule': 'linear',
    'timestep_respacing': '', 'use_kl': False, 'predict_xstart': False, 'rescale_timesteps': False,
    'rescale_learned_sigmas': False}
UNET_FLAGS = MappingProxyType({
    'image_size': 64, 'num_channels': 128, 'num_res_blocks': 2, 'num_heads': 4,
    'num_heads_upsample': -1, 'num_head_channels': -1, 'attention_resolutions': '16,8',
    'channel_mult': '', 'dropout': 0.0, 'class_cond': False, 'use_checkpoint': False,
    'use_scale_shift_norm': True, 'resblock_updown': False, 'use_fp16': False,
    'use_new_attention_order': False, 'learn_sigma': False, 'large_size': 0, 'small_size': 0})
"""Flags of a U-Net, flag -> default."""
_CLASSIFIER_FLAGS = {
    'image_size': 64, 'classifier_use_fp16': False, 'classifier_width': 128, 'classifier_depth': 2,
    'classifier_attention_resolutions': '32,16,8', 'classifier_use_scale_shift_norm': True,
    'classifier_resblock_updown': True, 'classifier_pool': 'attention'}
_CHANNEL_MULT = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4),
                 64: (1, 2, 3, 4)}  # By side, where none is given.
_IMAGENET_CLASSES = 1000

_BLOCK = {'norm0': 'in_layers.0', 'conv0': 'in_layers.2', 'affine': 'emb_layers.1',
          'norm1': 'out_layers.0', 'conv1': 'out_layers.3', 'skip': 'skip_connection'}
_ATTENTION = {'norm2': 'norm', 'qkv': 'qkv', 'proj': 'proj_out'}
_TRANSFORMER = {'norm': 'norm', 'proj_in': 'proj_in', 'proj_out': 'proj_out'}
_CROSS_ATTENTION = {'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'out': 'to_out.0'}
_TRANSFORMER_BLOCK = {
    ('norm1',): 'norm1', ('norm2',): 'norm2', ('norm3',): 'norm3', ('fc1',): 'ff.net.0.proj',
    ('fc2',): 'ff.net.2', **{(attention, ours): f'{attention}.{theirs}'
                             for attention in ('attn1', 'attn2')
                             for ours, theirs in _CROSS_ATTENTION.items()}}
_POOLS = {  # Layers after the middle.
    'attention': {'out_norm': 'out.0', 'pool_qkv': 'out.2.qkv_proj', 'pool_proj': 'out.2.c_proj'},
    'adaptive': {'out_norm': 'out.0', 'logits': 'out.3'},
    'spatial': {'hidden': 'out.0', 'logits': 'out.2'},
    'spatial_v2': {'hidden': 'out.0', 'out_norm': 'out.1', 'logits': 'out.3'}}


def convert(tensors: Mapping[str, np.ndarray], architecture: Mapping[str, Any],
            ) -> tuple[dict[str, Any], Any]:
  """Converts a network.

  Args:
    tensors: name -> array.
    architecture: flags of guided-diffusion's scripts, or arguments of a network's constructor with
      the flags of its diffusion, such as noise_schedule.

  Returns:
    (config, params): the fields of a model directory, and parameters in float32.

  Raises:
    ValueError: if a setting is unknown or out of range, or the tensors are not those of the
      settings.
  """
  config, order = describe(tensors, architecture)
  network = networks.build(**config['network'])
  like = rules.shapes(network, config['image_shape'], len(tensors))
  return config, rules.place(key_rules(network, like, order), tensors, like)


def describe(tensors: Mapping[str, np.ndarray], architecture: Mapping[str, Any],
             ) -> tuple[dict[str, Any], str]:
  """Returns what a network is.

  Args:
    tensors: name -> array, which tell a U-Net, one for super-resolution, and a classifier apart.
    architecture: as in `convert`.

  Returns:
    (config, order): the fields of a model directory, and the order of the attention's channels, see
    rules.Rule.

  Raises:
    ValueError: if a setting is unknown or out of range.
  """
  classifier = not any(name.startswith('output_blocks.') for name in tensors)
  flags = dict(architecture)
  diffusion = arguments.complete({name: flags.pop(name) for name in _DIFFUSION_FLAGS
                         if name in flags and name != 'learn_sigma'}, _DIFFUSION_FLAGS)
  if 'model_channels' not in flags:
    flags = constructor(flags)
  elif flags.pop('learn_sigma', None) is not None:
    raise ValueError("convert: architecture must have a constructor's out_channels or the flag "
                     'learn_sigma, got both; leave out learn_sigma')
  given = arguments.complete(flags, _CLASSIFIER if classifier else UNET)
  first = tensors.get('input_blocks.0.0.weight')
  low_res = first is not None and first.ndim == 4 and first.shape[1] == 2 * given['in_channels']
  order = 'new' if given['use_new_attention_order'] else 'legacy'
  return _config(given, diffusion, classifier, low_res), order


def read_architecture(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON file with flags or arguments, see `convert`.

  Raises:
    ValueError: if it is not there or no JSON object.
  """
  try:
    content = json.loads(pathlib.Path(path).read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'convert: architecture must be a JSON file, got {path} '
                     f'({getattr(error, "strerror", None) or error}); such as '
                     '{"image_size": 64, "num_channels": 192}') from None
  if not isinstance(content, dict):
    raise ValueError(f'convert: architecture must be a JSON object, got a {type(content).__name__} '
                     f'in {path}; such as {{"image_size": 64, "num_channels": 192}}')
  return content


def constructor(flags: Mapping[str, Any],
                known: Mapping[str, Any] = UNET_FLAGS) -> dict[str, Any]:
  """Returns the arguments of a network's constructor for flags of guided-diffusion's scripts.

  Args:
    flags: those that are not at their default.
    known: of a U-Net, flag -> default.

  Raises:
    ValueError: if a flag is unknown or has another form.
  """
  if any(name.startswith('classifier_') for name in flags):
    return _classifier_arguments(arguments.complete(flags, _CLASSIFIER_FLAGS))
  flags = arguments.complete(flags, known)
  large = flags.get('large_size', 0)
  side = arguments.whole(flags, 'large_size' if large else 'image_size')
  # The script of super-resolution gives 512 the levels of 256.
  mult = flags['channel_mult'] or _default_mult(256 if large == 512 else side)
  same = ('num_res_blocks', 'dropout', 'use_checkpoint', 'use_fp16', 'num_heads',
          'num_head_channels', 'num_heads_upsample', 'use_scale_shift_norm', 'resblock_updown',
          'use_new_attention_order')
  return {'image_size': side, 'in_channels': 3, 'model_channels': flags['num_channels'],
          'out_channels': 6 if flags['learn_sigma'] else 3,
          'attention_resolutions': arguments.factors(side, flags['attention_resolutions']),
          'channel_mult': arguments.numbers('channel_mult', mult),
          'num_classes': _IMAGENET_CLASSES if flags['class_cond'] else None,
          **{name: flags[name] for name in same}}


def _classifier_arguments(flags):
  side = arguments.whole(flags, 'image_size')
  return {'image_size': side, 'in_channels': 3, 'model_channels': flags['classifier_width'],
          'out_channels': _IMAGENET_CLASSES, 'num_res_blocks': flags['classifier_depth'],
          'attention_resolutions': arguments.factors(
              side, flags['classifier_attention_resolutions']),
          'channel_mult': _default_mult(side), 'num_head_channels': 64,
          'use_fp16': flags['classifier_use_fp16'],
          'use_scale_shift_norm': flags['classifier_use_scale_shift_norm'],
          'resblock_updown': flags['classifier_resblock_updown'], 'pool': flags['classifier_pool']}


def key_rules(network: nn.Module, like: Any, order: str = 'legacy',
              attention: str = 'conv1d') -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor.

  Args:
    network: an adm_unet or adm_classifier.
    like: its parameters, or their shapes.
    order: of the attention's channels, see rules.Rule.
    attention: layout of its kernels, a key of rules.LAYOUTS: 'conv1d', or 'conv'.
  """
  names, result = module_names(network), {}
  for path, leaf in flax.traverse_util.flatten_dict(like).items():
    if path == ('pool_position',):
      result['out.2.positional_embedding'] = rules.Rule(path, 'transposed')
      continue
    *modules, last = path
    rule = rules.Rule(path, 'same' if last != 'kernel' else
                      attention if modules[-1] in ('qkv', 'proj') else
                      _kernel_layout(network, modules[-1], leaf))
    if modules[-1] in ('qkv', 'pool_qkv'):
      heads = _heads(network, modules[0], leaf.shape[-1] // 3)
      own = order if modules[-1] == 'qkv' else 'new'  # The pool always has this one.
      rule = dataclasses.replace(rule, order=own, heads=heads)
    name = 'weight' if last in ('kernel', 'scale') else last
    result[f'{names[tuple(modules)]}.{name}'] = rule
  return result


def _kernel_layout(network, module, leaf):
  """The layout of a kernel, a key of rules.LAYOUTS."""
  if module == 'map_label':  # A table there, looked up by class.
    return 'same'
  if module == 'logits' and network.pool == 'adaptive':
    return 'conv_to_dense'
  own = {'pool_qkv': 'conv1d', 'pool_proj': 'conv1d_to_dense'}
  return own.get(module, 'conv' if len(leaf.shape) == 4 else 'transposed')


def module_names(network: nn.Module) -> dict[tuple[str, ...], str]:
  """Returns the names of modules, ours -> guided-diffusion's, of which not all need be there.

  Its blocks are counted through, each a sequence: a residual block, attention where the side has
  it, and, where a level of the decoder ends, what doubles the side.

  Args:
    network: an adm_unet or adm_classifier.
  """
  names = {('map_layer0',): 'time_embed.0', ('map_layer1',): 'time_embed.2',
           ('map_label',): 'label_emb'}
  def block(ours, theirs, index=0):
    for layer, name in _BLOCK.items():
      names[ours, layer] = f'{theirs}.{index}.{name}'
    for layer, name in _ATTENTION.items():
      names[ours, layer] = f'{theirs}.{index + 1}.{name}'
    transformer = f'{ours}_transformer'
    for layer, name in _TRANSFORMER.items():
      names[transformer, layer] = f'{theirs}.{index + 1}.{name}'
    for i in range(getattr(network, 'transformer_depth', 0)):
      for layer, name in _TRANSFORMER_BLOCK.items():
        names[transformer, f'block{i}', *layer] = (
            f'{theirs}.{index + 1}.transformer_blocks.{i}.{name}')
  sides = [network.img_resolution >> level for level in range(len(network.channel_mult))]
  count = 0
  for side in sides:
    part = f'enc_{side}x{side}'
    if not count:
      names[f'{part}_conv',] = 'input_blocks.0.0'
    else:
      block(f'{part}_down', f'input_blocks.{count}')
      names[f'{part}_down',] = f'input_blocks.{count}.0.op'
    for i in range(network.num_blocks):
      block(f'{part}_block{i}', f'input_blocks.{count + 1 + i}')
    count += 1 + network.num_blocks
  unet = hasattr(network, 'low_res')
  first, second = (f'dec_{side}x{side}_in{i}' for i in (0, 1)) if unet else ('middle0', 'middle1')
  block(first, 'middle_block')
  block(second, 'middle_block', 2)
  if not unet:
    return names | {(ours,): theirs for ours, theirs in _POOLS[network.pool].items()}
  for level, side in enumerate(reversed(sides)):
    first = level * (network.num_blocks + 1)
    if level:  # The end of the level before.
      index = 1 + (side // 2 in network.attn_resolutions)
      block(f'dec_{side}x{side}_up', f'output_blocks.{first - 1}', index)
      names[f'dec_{side}x{side}_up',] = f'output_blocks.{first - 1}.{index}.conv'
    for i in range(network.num_blocks + 1):
      block(f'dec_{side}x{side}_block{i}', f'output_blocks.{first + i}')
  return names | {('out_norm',): 'out.0', ('out_conv',): 'out.2'}


def _heads(network, module, channels):
  """Number of heads in a module with so many channels."""
  if network.channels_per_head:
    return channels // network.channels_per_head
  decoder = module.startswith('dec_') and '_block' in module
  return (decoder and network.num_heads_up) or network.num_heads


def unet_settings(given: Mapping[str, Any], side: int) -> dict[str, Any]:
  """Returns the settings of an adm_unet.

  Args:
    given: all arguments of the constructor, see UNET and LATENT_UNET.
    side: of the images, or latents.

  Raises:
    ValueError: if one is out of range, or asks for what the network does not have.
  """
  settings = _settings(given, side)
  if given.get('n_embed') is not None:
    raise ValueError('convert: n_embed of the architecture must be none, got '
                     f'{given["n_embed"]!r}; a network that predicts codes cannot be converted')
  settings |= {'out_channels': given['out_channels'], 'label_dim': given['num_classes'] or 0,
               'groups': 32, 'bottleneck': 'middle',
               'num_heads_up': max(arguments.whole(given, 'num_heads_upsample', -1), 0)}
  if given.get('use_spatial_transformer'):  # Its decoder has the encoder's number of heads.
    settings |= {'num_heads_up': 0,
                 'transformer_depth': arguments.whole(given, 'transformer_depth'),
                 'context_dim': arguments.whole(given, 'context_dim')}
  elif given.get('context_dim') is not None:
    raise ValueError('convert: context_dim of the architecture must be none without '
                     f'use_spatial_transformer, got {given["context_dim"]!r}; nothing would read '
                     'it')
  return settings


def _settings(given, side):
  """The settings that a U-Net and a classifier share."""
  arguments.whole(given, 'dims', 2, 2)
  resampling = 'conv' if given['conv_resample'] else 'none'
  size = max(arguments.whole(given, 'num_head_channels', -1), 0)
  settings = {
      'img_resolution': side, 'model_channels': given['model_channels'],
      'channel_mult': arguments.numbers('channel_mult', given['channel_mult']),
      'num_blocks': given['num_res_blocks'],
      'attn_resolutions': arguments.factors(side, given['attention_resolutions']),
      'dropout': given['dropout'], 'channels_per_head': size,
      # Where heads are told by their size, their number has no effect.
      'num_heads': 1 if size and given['num_heads'] == -1 else given['num_heads'],
      'adaptive_scale': given['use_scale_shift_norm'],
      'resampling': 'block' if given['resblock_updown'] else resampling}
  if not settings['channel_mult']:
    raise ValueError("convert: channel_mult of the architecture must be given, got none; such as "
                     "'1,2,4'")
  if size and (checks.is_integer(given['model_channels'])
               and given['model_channels'] * settings['channel_mult'][-1] % size):
    raise ValueError('convert: num_head_channels of the architecture must divide its channels, got '
                     f'{size} for {given["model_channels"]} times {settings["channel_mult"][-1]}; '
                     'take the settings that the network was trained with')
  return settings


def _config(given, diffusion, classifier, low_res):
  """Fields of the model directory."""
  side, channels = (arguments.whole(given, name) for name in ('image_size', 'in_channels'))
  if classifier:
    settings = _settings(given, side) | {'label_dim': arguments.whole(given, 'out_channels'),
                                         'pool': given['pool']}
  else:
    settings = unet_settings(given, side) | {'low_res': low_res}
  preconditioning, (low, high) = _preconditioning(diffusion)
  return {'kind': 'classifier' if classifier else 'denoiser',
          'network': {'name': 'adm_classifier' if classifier else 'adm_unet', 'settings': settings},
          'preconditioning': preconditioning, 'sigma_min': low, 'sigma_max': high,
          'image_shape': [side, side, channels], 'num_classes': settings['label_dim']}


def _preconditioning(diffusion):
  """The preconditioning of networks that predict the noise, and its range of levels."""
  steps = arguments.whole(diffusion, 'diffusion_steps', 2)
  if diffusion['predict_xstart']:
    raise ValueError('convert: architecture must have predict_xstart False, got True; only '
                     'networks that predict the noise can be converted')
  if diffusion['rescale_timesteps'] and steps != 1000:
    raise ValueError('convert: architecture must have rescale_timesteps False unless there are '
                     f'1000 diffusion_steps, got True and {steps}; such a network cannot be '
                     'converted')
  checks.check_choice('convert', 'noise_schedule', diffusion['noise_schedule'],
                      ('linear', 'cosine'))
  if diffusion['noise_schedule'] == 'cosine':
    table = levels.cosine_alphas_cumprod(steps)
    stored = 'cosine' if steps == 1000 else table.tolist()
    return ({'name': 'discrete', 'settings': {'alphas_cumprod': stored}}, levels.table_range(table))
  # As diff-sampler reads it, with its range.
  beta = levels.ADM_BETA_D, levels.ADM_BETA_MIN
  return ({'name': 'vp', 'settings': {'beta_d': beta[0], 'beta_min': beta[1], 'M': steps}},
          tuple(float(levels.sigma_of_vp_time(time, *beta)) for time in (1e-3, 1.0)))


def _default_mult(side):
  if side not in _CHANNEL_MULT:
    raise ValueError(f'convert: channel_mult of the architecture must be given, as only images of '
                     f'{sorted(_CHANNEL_MULT)} pixels have a usual one, got none for {side!r}; '
                     "such as '1,2,4'")
  return list(_CHANNEL_MULT[side])
