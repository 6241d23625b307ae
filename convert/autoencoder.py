"""First stages of latent diffusion: settings and key rules of their three published namings.

'ldm' is that of latent diffusion and Stable Diffusion, 'diffusers' that of the library's folders,
whose older ones name the attention in another way ('diffusers_old'). Names are relative to the
first stage, without what a file of a whole model puts before them.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax
import numpy as np

from convert import rules
from models import autoencoder
from samplers import checks

RESOLUTION = 256
"""Side of the images that all published first stages were trained on."""

_LDM = {'encoder': 'down.{level}', 'decoder': 'up.{level}', 'block': 'block.{i}',
        'attention': 'attn.{i}', 'down': 'downsample.conv', 'up': 'upsample.conv',
        'middle0': 'mid.block_1', 'middle_attention': 'mid.attn_1', 'middle1': 'mid.block_2',
        'out_norm': 'norm_out', 'skip': 'nin_shortcut', 'norm': 'norm', 'q': 'q', 'k': 'k',
        'v': 'v', 'out': 'proj_out'}
_DIFFUSERS = {'encoder': 'down_blocks.{level}', 'decoder': 'up_blocks.{reverse}',
              'block': 'resnets.{i}', 'attention': 'attentions.{i}', 'down': 'downsamplers.0.conv',
              'up': 'upsamplers.0.conv', 'middle0': 'mid_block.resnets.0',
              'middle_attention': 'mid_block.attentions.0', 'middle1': 'mid_block.resnets.1',
              'out_norm': 'conv_norm_out', 'skip': 'conv_shortcut', 'norm': 'group_norm',
              'q': 'to_q', 'k': 'to_k', 'v': 'to_v', 'out': 'to_out.0'}
_SAME = {'conv_in': 'conv_in', 'out_conv': 'conv_out', 'norm0': 'norm1', 'conv0': 'conv1',
         'norm1': 'norm2', 'conv1': 'conv2'}

NAMINGS = MappingProxyType({
    'ldm': {**_SAME, **_LDM}, 'diffusers': {**_SAME, **_DIFFUSERS},
    'diffusers_old': {**_SAME, **_DIFFUSERS, 'q': 'query', 'k': 'key', 'v': 'value',
                      'out': 'proj_attn'}})
"""Name -> {module here: module there}; in a level, templates of its number and of a block's."""

_CODEBOOK = 'quantize.embedding.weight'

_KINDS = {'AutoencoderKL': 'kl', 'VQModel': 'vq', 'VQModelInterface': 'vq'}

# ddconfig of a yaml: name -> the values that the network here has, where it has but these.
_NETWORK = ('ch', 'ch_mult', 'num_res_blocks', 'attn_resolutions', 'in_channels', 'out_ch',
            'z_channels', 'resolution')
_FIXED = {'resamp_with_conv': True, 'tanh_out': False, 'give_pre_end': False,
          'use_linear_attn': False, 'attn_type': 'vanilla'}
_KNOWN = (*_NETWORK, *_FIXED, 'double_z', 'dropout')

# The same of a config.json of diffusers; what is missing has this value.
_FIXED_DIFFUSERS = {
    'act_fn': 'silu', 'norm_num_groups': autoencoder.GROUPS, 'mid_block_add_attention': True,
    'use_quant_conv': True, 'use_post_quant_conv': True, 'shift_factor': None,
    'latents_mean': None, 'latents_std': None, 'norm_type': 'group', 'lookup_from_codebook': False}

_TAKE = 'take one of latent diffusion or Stable Diffusion v1'


def convert(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None,
            ) -> tuple[dict[str, Any], Any]:
  """Converts a file of a first stage alone.

  Args:
    tensors: name -> array, in any of NAMINGS.
    config: params of the yaml beside it, with ddconfig, or the config.json of diffusers; None: read
      off the tensors, for images of RESOLUTION.

  Returns:
    (config, params): the fields of a part of a model directory, see `fields`, with a scale_factor
    of 1, as that belongs to a diffusion model; and parameters in float32.

  Raises:
    ValueError: if a setting is unknown or out of range, or the tensors are not those of the
      settings.
  """
  kept = {name: array for name, array in tensors.items() if not is_ignored(name)}
  if config is None:
    settings, resolution = settings_from(kept), RESOLUTION
  elif 'ddconfig' in config:
    settings = describe(config, 'vq' if 'n_embed' in config else 'kl')
    resolution = config['ddconfig']['resolution']
  else:
    settings = describe_diffusers(config)
    resolution = config.get('sample_size', RESOLUTION)
  module = autoencoder.build(settings)
  like = shapes(module, len(kept))
  params = rules.place(key_rules(module, like, naming_of(kept)), kept, like)
  return fields(settings, resolution), params


def fields(settings: Mapping[str, Any], resolution: int, scale_factor: float = 1.0,
           ) -> dict[str, Any]:
  """Returns the fields of the part of a model directory that holds a first stage.

  Args:
    settings: of autoencoder.Autoencoder.
    resolution: side of the images in training.
    scale_factor: latents of the diffusion model over those of the first stage.

  Raises:
    ValueError: if a setting is out of range, the side does not halve often enough, or the scale is
      no number above 0.
  """
  module = autoencoder.build(settings)
  factor = autoencoder.factor(module)
  if not checks.is_integer(resolution) or resolution < 1 or resolution % factor:
    raise ValueError(f'convert: resolution of the first stage must be a multiple of {factor}, as '
                     f'each of its levels but one halves it, got {resolution!r}; take the settings '
                     'that it was trained with')
  checks.check_positive('convert', 'scale_factor', scale_factor, 'take that of the checkpoint')
  shape = [int(resolution), int(resolution), module.out_channels]
  return {'kind': 'autoencoder',
          'network': {'name': 'autoencoder', 'settings': dict(settings)},
          'scale_factor': float(scale_factor), 'image_shape': shape,
          'latent_shape': [*autoencoder.latent_shape(module, shape)]}


def kind_of(target: str) -> str:
  """Returns the kind of the class that a yaml or a config.json names, such as AutoencoderKL.

  Raises:
    ValueError: if it is another class.
  """
  name = target.rpartition('.')[2] if isinstance(target, str) else target
  return checks.lookup('class of first stage', name, _KINDS)


def describe(params: Mapping[str, Any], kind: str) -> dict[str, Any]:
  """Returns the settings of the network for the params of first_stage_config in a yaml.

  Args:
    params: with ddconfig, embed_dim and, for 'vq', n_embed; what else there is concerns training.
    kind: one of autoencoder.KINDS.

  Raises:
    ValueError: if a setting is missing, unknown, out of range, or of a network that is none here.
  """
  checks.check_choice('convert', 'kind of first stage', kind, autoencoder.KINDS)
  given = params.get('ddconfig')
  if not isinstance(given, Mapping):
    raise ValueError('convert: ddconfig of the first stage must be given, got '
                     f'{"none" if given is None else type(given).__name__}; {_TAKE}')
  for name in given:
    if name not in _KNOWN:
      raise ValueError(f'convert: {checks.unknown("setting of ddconfig", name, _KNOWN)}')
  _check_fixed('ddconfig', given, {**_FIXED, 'double_z': kind == 'kl'})
  side, levels = _whole(given, 'resolution'), _list(given, 'ch_mult')
  settings = {
      'kind': kind, 'embed_dim': _whole(params, 'embed_dim'),
      'z_channels': _whole(given, 'z_channels'),
      'n_embed': _whole(params, 'n_embed') if kind == 'vq' else 0,
      'in_channels': _whole(given, 'in_channels'), 'out_channels': _whole(given, 'out_ch'),
      'model_channels': _whole(given, 'ch'), 'channel_mult': levels,
      'num_blocks': _whole(given, 'num_res_blocks'),
      'attn_levels': [level for level in range(len(levels))
                      if side >> level in _list(given, 'attn_resolutions')]}
  autoencoder.build(settings)
  return settings


def describe_diffusers(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings of the network for a config.json of diffusers, vae/ or vqvae/.

  Args:
    config: of an AutoencoderKL or VQModel.

  Raises:
    ValueError: as `describe`.
  """
  kind = kind_of(config.get('_class_name', 'AutoencoderKL'))
  _check_fixed('the config', config, _FIXED_DIFFUSERS)
  channels = _list(config, 'block_out_channels')
  if not all(checks.is_integer(one) and one >= 1 for one in channels):
    raise ValueError('convert: block_out_channels of the first stage must be integers of 1 or '
                     f'more, got {channels}; {_TAKE}')
  downs, ups = (_list(config, name) for name in ('down_block_types', 'up_block_types'))
  plain = ['DownEncoderBlock2D', 'UpDecoderBlock2D']
  wrong = [name for name in (*downs, *ups) if name not in (*plain, *(f'Attn{name}'
                                                                     for name in plain))]
  attended = [name.startswith('Attn') for name in map(str, downs)]
  if wrong or attended != [name.startswith('Attn') for name in map(str, reversed(ups))] or len(
      downs) != len(channels):
    raise ValueError('convert: down_block_types and up_block_types of the first stage must be '
                     f'{plain[0]} and {plain[1]}, or both with Attn before it, one per level, got '
                     f'{downs} and {ups}; {_TAKE}')
  embed = 'vq_embed_dim' if config.get('vq_embed_dim') is not None else 'latent_channels'
  settings = {
      'kind': kind, 'embed_dim': _whole(config, embed),
      'z_channels': _whole(config, 'latent_channels'),
      'n_embed': _whole(config, 'num_vq_embeddings') if kind == 'vq' else 0,
      'in_channels': _whole(config, 'in_channels'), 'out_channels': _whole(config, 'out_channels'),
      'model_channels': channels[0], 'channel_mult': _ratios(channels, channels[0]),
      'num_blocks': _whole(config, 'layers_per_block'),
      'attn_levels': [level for level, there in enumerate(attended) if there]}
  autoencoder.build(settings)
  return settings


def settings_from(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Infers the settings of the network from names and shapes of its tensors.

  Args:
    tensors: name -> array, or anything with a shape, in any of NAMINGS.

  Returns:
    What `describe` or `describe_diffusers` gives.

  Raises:
    ValueError: if a tensor that tells a setting is missing or of another rank.
  """
  names = NAMINGS[naming_of(tensors)]
  def size(name, axis, rank=4):
    shape = tuple(tensors[name].shape) if name in tensors else ()
    if len(shape) != rank or not all(shape):
      raise ValueError(f'convert: tensors must be those of a first stage, with {name} of {rank} '
                       f'axes, got {shape or "none"}; take a whole file')
    return shape[axis]
  def level_name(level, role, i=0):
    return f'encoder.{names["encoder"]}.{names[role]}'.format(level=level, i=i)
  def count(name):
    return next(i for i in range(len(tensors) + 1) if name(i) not in tensors)
  def conv(level, i=0):
    return f'{level_name(level, "block", i)}.conv1.weight'
  levels = count(conv) or 1
  first = size('encoder.conv_in.weight', 0)
  channels = [size(conv(level), 0) for level in range(levels)]
  attended = [level for level in range(levels)
              if f'{level_name(level, "attention")}.{names["norm"]}.weight' in tensors]
  vq = _CODEBOOK in tensors
  settings = {
      'kind': 'vq' if vq else 'kl', 'embed_dim': size('post_quant_conv.weight', 1),
      'z_channels': size('post_quant_conv.weight', 0),
      'n_embed': size(_CODEBOOK, 0, 2) if vq else 0,
      'in_channels': size('encoder.conv_in.weight', 1),
      'out_channels': size('decoder.conv_out.weight', 0), 'model_channels': first,
      'channel_mult': _ratios(channels, first),
      'num_blocks': count(lambda i: conv(0, i)),
      'attn_levels': attended}
  autoencoder.build(settings)
  return settings


def is_ignored(name: str) -> bool:
  """Says whether a tensor is no part of a first stage: the discriminator and VGG of its training.

  A file of a first stage alone may have them, all below 'loss.'.
  """
  return name.startswith('loss.')


def naming_of(tensors: Mapping[str, Any]) -> str:
  """Returns which of NAMINGS the tensors have, by their names."""
  if any(name.startswith('encoder.down_blocks.') for name in tensors):
    old = any(name.endswith('.attentions.0.query.weight') for name in tensors)
    return 'diffusers_old' if old else 'diffusers'
  return 'ldm'


def shapes(module: autoencoder.Autoencoder, tensors: int) -> Any:
  """Returns the shapes of the parameters.

  Args:
    module: the first stage.
    tensors: number of tensors that there are for it.

  Returns:
    Nested dicts of jax.ShapeDtypeStruct.

  Raises:
    ValueError: if it has more blocks than there are tensors, or it cannot be that large.
  """
  blocks = module.num_blocks * len(module.channel_mult)
  if blocks > tensors:  # Else settings of a damaged file could keep us busy for ever.
    raise ValueError(f'convert: first stage must have fewer blocks than the {tensors} tensors '
                     f'there are, got {blocks}; choose the settings of this checkpoint, or a whole '
                     'file')
  return autoencoder.shapes(module)


def key_rules(network: autoencoder.Autoencoder, like: Any, naming: str = 'ldm',
              ) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor, by its name relative to the first stage.

  Args:
    network: the first stage.
    like: its parameters, or their shapes.
    naming: a key of NAMINGS.

  Raises:
    ValueError: if the naming is unknown.
  """
  names, result = checks.lookup('naming', naming, NAMINGS), {}
  levels = len(network.channel_mult)
  for path, leaf in flax.traverse_util.flatten_dict(like).items():
    if path == ('codebook',):
      result[_CODEBOOK] = rules.Rule(path)
      continue
    *modules, last = path
    layout = 'same'
    if last == 'kernel':  # The attention's: of 1x1 convolutions, or of linear layers.
      dense = 'conv_to_dense' if naming == 'ldm' else 'transposed'
      layout = 'conv' if len(leaf.shape) == 4 else dense
    name = 'weight' if last in ('kernel', 'scale') else last
    result[f'{_module_name(modules, names, levels)}.{name}'] = rules.Rule(path, layout)
  return result


def _module_name(modules, names, levels):
  """The dotted name of a module, such as ['encoder', 'level0_block1', 'conv0']."""
  part, *inner = modules
  if not inner:  # The convolutions around the latents.
    return part
  found = re.fullmatch(r'level(\d+)_([a-z]+)(\d*)', inner[0])
  if not found:
    return '.'.join([part, *(names[module] for module in inner)])
  level, role, i = int(found[1]), found[2], found[3]
  own = f'{names[part]}.{names[role]}'.format(level=level, reverse=levels - 1 - level, i=i)
  return '.'.join([part, own, *(names[module] for module in inner[1:])])


def _check_fixed(what, given, fixed):
  """Raises ValueError unless settings that cannot be chosen here are as they must be."""
  for name, value in fixed.items():
    if given.get(name, value) != value:
      raise ValueError(f'convert: {name} of {what} must be {value}, got {given[name]!r}; another '
                       f'network cannot be converted, {_TAKE}')


def _ratios(channels, first):
  """Channels of levels as multipliers, whole where they are."""
  return [size // first if size % first == 0 else size / first for size in channels]


def _whole(given, name):
  value = given.get(name)
  if not checks.is_integer(value) or not 1 <= value <= 2**20:
    raise ValueError(f'convert: {name} of the first stage must be an integer from 1 to {2**20}, '
                     f'got {value!r}; {_TAKE}')
  return value


def _list(given, name):
  value = given.get(name)
  if not isinstance(value, list | tuple) or (not value and name != 'attn_resolutions'):
    raise ValueError(f'convert: {name} of the first stage must be a list, got {value!r}; {_TAKE}')
  return [*value]
