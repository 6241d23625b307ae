"""EDM's networks with its preconditionings, and SFD's students: settings and key rules.

Parameters here have EDM's names (models/edm_unet.py, models/adm_unet.py), so the rules are read off
the parameters. A file of EDM holds the arguments that its network was built with; one of SFD does
not, and they are read off its tensors. Every student has layers for a step condition; only where
it was trained with them are they kept, so `step_condition` of the settings says whether to give it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import flax
import flax.linen as nn
import numpy as np

from convert import pickles, rules
from models import networks
from samplers import checks, levels

_COMMON = 'img_resolution', 'img_channels', 'label_dim', 'use_fp16'
ARGUMENTS = MappingProxyType({
    'EDMPrecond': (*_COMMON, 'sigma_min', 'sigma_max', 'sigma_data', 'model_type'),
    'VPPrecond': (*_COMMON, 'beta_d', 'beta_min', 'M', 'epsilon_t', 'model_type'),
    'VEPrecond': (*_COMMON, 'sigma_min', 'sigma_max', 'model_type'),
    'iDDPMPrecond': (*_COMMON, 'C_1', 'C_2', 'M', 'model_type'),
})
"""Preconditionings, name -> arguments of the constructor in order; others are the network's."""

_NETWORKS = {'SongUNet': 'song_unet', 'DhariwalUNet': 'adm_unet'}
_TYPES = {'EDMPrecond': 'DhariwalUNet', 'VPPrecond': 'SongUNet', 'VEPrecond': 'SongUNet',
          'iDDPMPrecond': 'DhariwalUNet'}  # Where none is given.
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0  # Of EDM's networks, trained on all levels, in diff-sampler.
_MOST_TAPS = 16
_TRAINING_ONLY = 'label_dropout', 'use_fp16'


def convert(network: pickles.Persistent) -> tuple[dict[str, Any], Any]:
  """Converts a network.

  Args:
    network: as pickles.network returns it.

  Returns:
    (config, params): the fields of a model directory, and parameters in float32.

  Raises:
    ValueError: if the class or a setting is unknown or out of range, or the tensors are not those
      of the settings.
  """
  config = describe(network)
  module = networks.build(**config['network'])
  like = rules.shapes(module, config['image_shape'], len(network.tensors))
  tensors = {name: array for name, array in _used(network).items() if name != 'u'}  # In config.
  return config, rules.place(key_rules(like), tensors, like, constants(module))


def describe(network: pickles.Persistent) -> dict[str, Any]:
  """Returns the fields of the model directory of a network.

  Args:
    network: as pickles.network returns it.

  Raises:
    ValueError: if the class or an argument is unknown or out of range.
  """
  own = checks.lookup('class of network', network.class_name, ARGUMENTS)
  given = {**dict(zip(own, network.init_args, strict=False)), **network.init_kwargs}
  given = given or {**infer(_used(network)), **_dropout(network)}
  given = {name: _plain(value) for name, value in given.items()}
  side, channels, classes = (_whole(given, name) for name in _COMMON[:3])
  settings = {name: value for name, value in given.items()
              if name not in own and name not in _TRAINING_ONLY}
  taps = settings.get('resample_filter', [])
  if isinstance(taps, list) and len(taps) > _MOST_TAPS:
    raise ValueError(f'convert: resample_filter of the network must have at most {_MOST_TAPS} '
                     f'taps, got {len(taps)}; take another file')
  learned = network.class_name == 'iDDPMPrecond'  # Half of its answer is a variance.
  settings |= {'img_resolution': side, 'out_channels': channels * (1 + learned),
               'label_dim': classes}
  name = checks.lookup('type of network', given.get('model_type', _TYPES[network.class_name]),
                       _NETWORKS)
  preconditioning, sigma_min, sigma_max = _preconditioning(network, given)
  if not 0 < sigma_min < sigma_max < np.inf:
    raise ValueError(f'convert: noise levels of the network must be above 0 and finite, got '
                     f'{sigma_min} to {sigma_max}; take another file')
  return {'kind': 'denoiser', 'network': {'name': name, 'settings': settings},
          'preconditioning': preconditioning, 'sigma_min': sigma_min, 'sigma_max': sigma_max,
          'image_shape': [side, side, channels], 'num_classes': classes}


def is_student(network: pickles.Persistent) -> bool:
  """Says whether a network is a student of SFD."""
  return isinstance(network.attributes.get('training_kwargs'), dict) or any(
      name.startswith('model.map_step_') for name in network.tensors)


def training(network: pickles.Persistent) -> dict[str, Any]:
  """Returns what the file of an SFD student tells of its training, and so of its sampling.

  Args:
    network: as pickles.network returns it.

  Returns:
    Plain values under the names of the published code (diff-sampler): num_steps, the number of grid
    points, one more than the intervals, which a student of SFD-v leaves open; afs; schedule_type
    and schedule_rho; sigma_min and sigma_max; use_step_condition; is_second_stage; the teacher
    (sampler_tea, M, max_order, predict_x0, lower_order_final); dataset_name, model_source,
    guidance_type and guidance_rate.
  """
  told = network.attributes.get('training_kwargs')
  return {name: value for name, value in (told if isinstance(told, dict) else {}).items()
          if isinstance(name, str) and isinstance(value, str | int | float | None)}


def key_rules(like: Any) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor that is a parameter.

  Args:
    like: parameters of a song_unet or adm_unet, or their shapes.
  """
  result = {}
  for path, leaf in flax.traverse_util.flatten_dict(like).items():
    *modules, last = path
    layout = 'same'
    if last == 'kernel':
      layout = 'conv' if len(leaf.shape) == 4 else 'transposed'
    name = 'weight' if last in ('kernel', 'scale') else last
    result[f'model.{_dotted(modules)}.{name}'] = rules.Rule(path, layout)
  return result


def constants(network: nn.Module) -> dict[str, np.ndarray]:
  """Returns the tensors that the architecture determines: filters of the layers that resample.

  Args:
    network: a song_unet or adm_unet.
  """
  taps = np.asarray(getattr(network, 'resample_filter', (1, 1)), np.float64)
  weights = np.outer(taps, taps)[None, None] / taps.sum()**2
  sides = [network.img_resolution >> level for level in range(len(network.channel_mult))]
  layers = [f'enc.{side}x{side}_down.{layer}' for side in sides[1:] for layer in ('conv0', 'skip')]
  layers += [f'dec.{side}x{side}_up.{layer}' for side in sides[:-1] for layer in ('conv0', 'skip')]
  own = {'residual': 'aux_residual', 'skip': 'aux_down'}.get(
      getattr(network, 'encoder_type', 'standard'))
  if own:
    layers += [f'enc.{side}x{side}_{own}' for side in sides[1:]]
  if getattr(network, 'decoder_type', 'standard') == 'skip':
    layers += [f'dec.{side}x{side}_aux_up' for side in sides[:-1]]
  return {f'model.{layer}.resample_filter': weights for layer in layers}


def infer(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the arguments of a network from its tensors.

  Args:
    tensors: name -> array.

  Raises:
    ValueError: if one that tells them is not there, or of an impossible shape.
  """
  shapes = {name.removeprefix('model.'): array.shape for name, array in tensors.items()}
  def size(name, axis):
    if len(shapes.get(name, ())) <= axis or not shapes[name][axis]:
      raise ValueError(f'convert: tensors must tell the settings of their network, got no model.'
                       f'{name}; take a whole file')
    return shapes[name][axis]
  def sides(ending):
    named = [name.split('.')[1].split('_')[0].split('x')[0] for name in shapes
             if name[:4] in ('enc.', 'dec.') and name.endswith(ending)]
    return sorted({int(side) for side in named if side.isdecimal()}, reverse=True)
  levels_ = sides('_block0.norm0.weight') or [0]
  blocks = {side: f'enc.{side}x{side}_block' for side in levels_}
  first = f'enc.{levels_[0]}x{levels_[0]}_conv.weight'
  noise, emb = size('map_layer0.weight', 1), size('map_layer0.weight', 0)
  song = 'out_conv.weight' not in shapes
  channels = size(first, 0) if song else noise  # A DhariwalUNet may scale its first level.
  found = {
      'model_type': 'SongUNet' if song else 'DhariwalUNet', 'img_resolution': levels_[0],
      'img_channels': size(first, 1), 'model_channels': channels,
      'channel_mult': [size(f'{block}0.conv0.weight', 0) // channels for block in blocks.values()],
      'channel_mult_emb': emb // channels,
      'num_blocks': sum(name.startswith(blocks[levels_[0]]) and name.endswith('.norm0.weight')
                        for name in shapes),
      'attn_resolutions': [side for side in levels_ if f'{blocks[side]}0.qkv.weight' in shapes],
      'step_condition': 'map_step_layer0.weight' in shapes}
  for name in ('label', 'augment'):
    stored = f'map_{name}.weight'
    found[f'{name}_dim'] = size(stored, 1) if stored in shapes else 0
  if song:
    found |= {
        'embedding_type': 'fourier' if 'map_noise.freqs' in shapes else 'positional',
        'channel_mult_noise': noise // channels,
        'encoder_type': ('residual' if sides('_aux_residual.weight') else
                         'skip' if sides('_aux_skip.weight') else 'standard'),
        'decoder_type': 'skip' if len(sides('_aux_conv.weight')) > 1 else 'standard',
        'resample_filter': _taps(tensors)}
  return found


def _taps(tensors):
  """Taps of the first filter, the outermost 1."""
  for name, array in tensors.items():
    if name.endswith('.resample_filter') and array.ndim == 4 and array.size and array.all():
      row = np.asarray(array, np.float64)[0, 0, 0]
      return np.round(row / row[0], 4).tolist()
  return [1, 1]


def _used(network):
  """Tensors that answers depend on: without the step layers of a student that never read them.

  The published second stage notes use_step_condition = False for a student of SFD-v too. Where the
  layers began with biases of 0, in a SongUNet, other ones show that they were trained after all; in
  a DhariwalUNet nothing does, and the note is believed.
  """
  steps = {name: array for name, array in network.tensors.items()
           if name.startswith('model.map_step_') or '.affine_step.' in name}
  told = training(network)
  used = told.get('use_step_condition', True) or (
      told.get('is_second_stage') and 'model.out_conv.weight' not in network.tensors
      and any(array.any() for name, array in steps.items() if name.endswith('.bias')))
  return {name: array for name, array in network.tensors.items() if used or name not in steps}


def _dropout(network):
  """{'dropout': rate} as a block has it, for training; {} where none tells."""
  modules = {'': network}
  for name in ('', 'model', 'enc'):
    state = getattr(modules.get(name), 'state', None)
    modules = state.get('_modules', {}) if isinstance(state, dict) else {}
  states = [getattr(block, 'state', None) for block in modules.values()]
  rates = [state['dropout'] for state in states if isinstance(state, dict) and 'dropout' in state]
  return {'dropout': rates[0]} if rates else {}


def _preconditioning(network, given):
  """The preconditioning, and the lowest and highest level it is for."""
  told = {name: value for name, value in training(network).items() if value is not None}
  attributes = network.attributes | {
      name: told[name] for name in ('sigma_min', 'sigma_max') if name in told}
  def number(name, default):
    value = given.get(name, _plain(attributes.get(name, default)))
    if np.isnan(checks.to_number(value)):
      raise ValueError(f'convert: {name} of the network must be a number, got {value!r}; take '
                       'another file')
    return value
  if network.class_name == 'EDMPrecond':
    return ({'name': 'edm', 'settings': {'sigma_data': number('sigma_data', 0.5)}},
            max(_SIGMA_MIN, float(number('sigma_min', 0))),
            min(_SIGMA_MAX, float(number('sigma_max', np.inf))))
  if network.class_name == 'VEPrecond':
    return ({'name': 've', 'settings': {}}, float(number('sigma_min', 0.02)),
            float(number('sigma_max', 100)))
  if network.class_name == 'VPPrecond':
    settings = {'beta_d': number('beta_d', levels.ADM_BETA_D),
                'beta_min': number('beta_min', levels.ADM_BETA_MIN), 'M': number('M', 1000)}
    # By the formula: the attribute sigma_min of the file has cancelled in float32.
    low, high = (float(levels.sigma_of_vp_time(time, settings['beta_d'], settings['beta_min']))
                 for time in (number('epsilon_t', 1e-5), 1.0))
    return {'name': 'vp', 'settings': settings}, low, high
  settings = {'C_1': number('C_1', 0.001), 'C_2': number('C_2', 0.008), 'M': number('M', 1000)}
  table = network.tensors.get('u', np.zeros(0))
  if table.shape != (settings['M'] + 1,):
    raise ValueError(f'convert: u, the levels of iDDPM, must be of shape {(settings["M"] + 1,)}, '
                     f'got {table.shape}; take a whole file')
  settings['u'] = [float(level) for level in table]
  return {'name': 'iddpm', 'settings': settings}, settings['u'][-2], settings['u'][0]


def _whole(given, name):
  value = given.get(name, 0 if name == 'label_dim' else None)
  if not checks.is_integer(value) or value < (name != 'label_dim'):
    raise ValueError(f'convert: {name} of the network must be an integer above 0, got '
                     f'{"none" if value is None else repr(value)}; take a whole file')
  return value


def _plain(value):
  """A value in config.json for one in the file."""
  if isinstance(value, tuple | list):
    return [_plain(one) for one in value]
  return value.item() if isinstance(value, np.generic) else value


def _dotted(modules):
  """('enc_8x8_conv', 'qkv') -> 'enc.8x8_conv.qkv'."""
  first = modules[0]
  if first[:4] in ('enc_', 'dec_'):
    first = f'{first[:3]}.{first[4:]}'
  return '.'.join((first, *modules[1:]))
