"""CLIP: settings and key rules of its two published layouts, OpenAI's and transformers'.

A file holds tensors alone. What they are of is read off their shapes. What shapes do not tell
(heads, activation, the end of a text) is read off a config beside the file, or is OpenAI's rule.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from convert import rules
from models import clip
from samplers import checks

_LARGEST_OPENAI = 1024  # Width of the image tower in OpenAI's largest.
_OPENAI_HEAD = 64  # Channels of a head, in all of OpenAI's.
_CONFIGS = 'config.json (transformers) or open_clip_config.json'

# Section of transformers' config -> values where it leaves them out, setting by its name.
_BOTH = {'hidden_size': 'width', 'num_hidden_layers': 'layers', 'num_attention_heads': 'heads',
         'intermediate_size': 'mlp'}
_SECTIONS = {
    'vision_config': ({'num_attention_heads': 12}, {
        **{name: f'image_{setting}' for name, setting in _BOTH.items()},
        'patch_size': 'patch', 'image_size': 'image_size'}),
    'text_config': ({'num_attention_heads': 8}, {
        **{name: f'text_{setting}' for name, setting in _BOTH.items()},
        'max_position_embeddings': 'context', 'vocab_size': 'vocab',
        'eos_token_id': 'eos_token_id'})}
# The same of open_clip's; fields of no effect on what the network computes are '_'.
_OPEN_CLIP = {
    'vision_cfg': {'width': 'image_width', 'layers': 'image_layers', 'patch_size': 'patch',
                   'image_size': 'image_size', 'head_width': '_', 'mlp_ratio': '_',
                   'patch_dropout': '_'},
    'text_cfg': {'width': 'text_width', 'layers': 'text_layers', 'heads': 'text_heads',
                 'context_length': 'context', 'vocab_size': 'vocab', 'mlp_ratio': '_',
                 'hf_tokenizer_name': '_'}}


class Layout(NamedTuple):
  """Names in a file.

  Attributes:
    towers: 'image' and 'text' -> prefix of the tower's blocks.
    block: start of a name in a block, before 'weight' or 'bias' -> part of models.clip.Block.
    tops: all other names -> path of the parameter, and a key of rules.LAYOUTS.
    ignored: names of what is no parameter.
  """

  towers: Mapping[str, str]
  block: Mapping[str, str]
  tops: Mapping[str, tuple[tuple[str, ...], str]]
  ignored: frozenset[str] = frozenset()


def _tops(names, norms):
  return {**names, **{f'{name}.{last}': ((*path, parameter), 'same')
                      for name, path in norms.items()
                      for last, parameter in (('weight', 'scale'), ('bias', 'bias'))}}


OPENAI = Layout(
    {'image': 'visual.transformer.resblocks.', 'text': 'transformer.resblocks.'},
    {'ln_1.': 'norm1', 'attn.in_proj_': 'qkv', 'attn.out_proj.': 'out', 'ln_2.': 'norm2',
     'mlp.c_fc.': 'fc1', 'mlp.c_proj.': 'fc2'},
    _tops({'visual.class_embedding': (('image', 'class_embedding'), 'same'),
           'visual.positional_embedding': (('image', 'position_embedding'), 'same'),
           'visual.conv1.weight': (('image', 'patch_kernel'), 'conv'),
           'visual.proj': (('image_projection', 'kernel'), 'same'),
           'token_embedding.weight': (('text', 'token_embedding'), 'same'),
           'positional_embedding': (('text', 'position_embedding'), 'same'),
           'text_projection': (('text_projection', 'kernel'), 'same'),
           'logit_scale': (('logit_scale',), 'same')},
          {'visual.ln_pre': ('image', 'pre_norm'), 'visual.ln_post': ('image', 'post_norm'),
           'ln_final': ('text', 'final_norm')}),
    frozenset({'input_resolution', 'context_length', 'vocab_size'}))
"""OpenAI's, and open_clip's: queries, keys and values are rows of one matrix."""

TRANSFORMERS = Layout(
    {'image': 'vision_model.encoder.layers.', 'text': 'text_model.encoder.layers.'},
    {'layer_norm1.': 'norm1', 'self_attn.q_proj.': 'q', 'self_attn.k_proj.': 'k',
     'self_attn.v_proj.': 'v', 'self_attn.out_proj.': 'out', 'layer_norm2.': 'norm2',
     'mlp.fc1.': 'fc1', 'mlp.fc2.': 'fc2'},
    _tops({'vision_model.embeddings.class_embedding': (('image', 'class_embedding'), 'same'),
           'vision_model.embeddings.position_embedding.weight': (
               ('image', 'position_embedding'), 'same'),
           'vision_model.embeddings.patch_embedding.weight': (('image', 'patch_kernel'), 'conv'),
           'visual_projection.weight': (('image_projection', 'kernel'), 'transposed'),
           'text_model.embeddings.token_embedding.weight': (('text', 'token_embedding'), 'same'),
           'text_model.embeddings.position_embedding.weight': (
               ('text', 'position_embedding'), 'same'),
           'text_projection.weight': (('text_projection', 'kernel'), 'transposed'),
           'logit_scale': (('logit_scale',), 'same')},
          {'vision_model.pre_layrnorm': ('image', 'pre_norm'),  # Misspelled in every file.
           'vision_model.post_layernorm': ('image', 'post_norm'),
           'text_model.final_layer_norm': ('text', 'final_norm')}),
    frozenset({'text_model.embeddings.position_ids', 'vision_model.embeddings.position_ids'}))
"""That of transformers, which keeps queries, keys and values apart."""


def matches(tensors: Mapping[str, Any]) -> bool:
  """Says whether tensors, by their names, are of a CLIP with both towers, in a known layout."""
  return all(any(name.startswith(start) for name in tensors) for start in (
      ('text_model.', 'vision_model.') if layout(tensors) is TRANSFORMERS else
      ('token_embedding.', 'visual.')))


def layout(tensors: Mapping[str, Any]) -> Layout:
  """Returns the layout of tensors by their names."""
  return TRANSFORMERS if any(name.startswith('text_model.') for name in tensors) else OPENAI


def convert(tensors: Mapping[str, np.ndarray], config: Mapping[str, Any] | None = None,
            ) -> tuple[dict[str, Any], Any]:
  """Converts both towers.

  Args:
    tensors: name -> array of any precision, in one of the layouts.
    config: of the file, parsed: see `told_settings`; None: OpenAI's rules, which are
      quick_gelu, 64 channels to a head, and the largest id at the end of a text.

  Returns:
    (config, params): kind and network of a model directory, and parameters in float32.

  Raises:
    ValueError: if the architecture cannot be told, the config is unknown or does not agree with the
      shapes, or tensors are missing, not used, misshaped or not finite.
  """
  names, settings = layout(tensors), describe(tensors, config)
  kept = {name: array for name, array in tensors.items() if name not in names.ignored}
  like = jax.eval_shape(clip.Clip(**settings).init, jax.random.key(0), *_inputs(settings))['params']
  if names is TRANSFORMERS:
    like = split(like)
  params = rules.place(key_rules(settings, names), kept, like, network='a CLIP of these shapes',
                       remedy='take a whole file of the two towers and nothing else')
  return ({'kind': 'features', 'network': {'name': 'clip', 'settings': settings}},
          fuse(params) if names is TRANSFORMERS else params)


def describe(tensors: Mapping[str, np.ndarray],
             config: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns the settings of models.clip.Clip.

  Args:
    tensors: as in `convert`.
    config: as in `convert`.

  Raises:
    ValueError: if the architecture cannot be told, or the config does not agree with it.
  """
  read = _read(tensors)
  told = told_settings(config or {})
  wrong = [f'{name} {told[name]!r} and not {value}' for name, value in read.items()
           if told.get(name, value) != value]
  if wrong:
    raise ValueError('convert: config must be that of the tensors, got one with '
                     f'{", ".join(wrong)}; take the one that came with the file')
  width = read['image_width']
  untold = [name for name in ('image_heads', 'text_heads', 'activation') if name not in told]
  if untold and width > _LARGEST_OPENAI:
    raise ValueError(f'convert: config must tell {", ".join(untold)} of a CLIP of width {width}, '
                     f"which is none of OpenAI's, got none; give the file's {_CONFIGS}")
  settings = {**read, 'image_heads': width // _OPENAI_HEAD,
              'text_heads': read['text_width'] // _OPENAI_HEAD,
              'eos_token_id': clip.LARGEST_ID, 'activation': 'quick_gelu', **told}
  checks.check_choice('convert', 'activation', settings['activation'], [*clip.ACTIVATIONS])
  for tower in ('image', 'text'):
    width, heads = settings[f'{tower}_width'], settings[f'{tower}_heads']
    if not checks.is_integer(heads) or heads < 1 or width % heads:
      raise ValueError(f'convert: {tower}_heads must divide the width {width}, got {heads!r}; give '
                       f"the file's {_CONFIGS}")
  if not checks.is_integer(settings['eos_token_id']):
    raise ValueError('convert: eos_token_id must be an integer, got '
                     f'{settings["eos_token_id"]!r}; take the config that came with the file')
  return settings


def told_settings(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the settings of models.clip.Clip that a config tells.

  Args:
    config: parsed from transformers' config.json or open_clip's open_clip_config.json, or settings
      themselves.

  Raises:
    ValueError: if a setting is unknown, or the config asks for what the network does not have.
  """
  if 'model_cfg' in config:
    return _told_by_open_clip(_section(config, 'model_cfg'))
  if _SECTIONS.keys() & config.keys():
    return _told_by_transformers(config)
  known = [field.name for field in dataclasses.fields(clip.Clip)
           if field.name not in ('parent', 'name')]
  for name in config:
    if name not in known:
      raise ValueError(f'convert: {checks.unknown("setting of CLIP", name, known)}')
  return dict(config)


def key_rules(settings: Mapping[str, Any], names: Layout) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor that is a parameter.

  Args:
    settings: of models.clip.Clip.
    names: the layout; with that of transformers, targets have q, k and v in place of qkv.
  """
  result = {name: rules.Rule(target, kind) for name, (target, kind) in names.tops.items()}
  for tower, prefix in names.towers.items():
    for i in range(settings[f'{tower}_layers']):
      for start, part in names.block.items():
        norm, path = part.startswith('norm'), (tower, f'block{i}', part)
        result[f'{prefix}{i}.{start}weight'] = rules.Rule(
            (*path, 'scale' if norm else 'kernel'), 'same' if norm else 'transposed')
        result[f'{prefix}{i}.{start}bias'] = rules.Rule((*path, 'bias'))
  return result


def split(like: Any) -> Any:
  """Returns shapes of parameters with a third of each qkv as q, k and v, as TRANSFORMERS needs."""
  result = {}
  for path, leaf in flax.traverse_util.flatten_dict(like).items():
    if 'qkv' not in path:
      result[path] = leaf
      continue
    shape = (*leaf.shape[:-1], leaf.shape[-1] // 3)
    for part in 'qkv':
      result[*path[:-2], part, path[-1]] = jax.ShapeDtypeStruct(shape, leaf.dtype)
  return flax.traverse_util.unflatten_dict(result)


def fuse(params: Any) -> Any:
  """Returns parameters with each q, k and v as one qkv: what `split` took apart."""
  result = {}
  for path, leaf in flax.traverse_util.flatten_dict(params).items():
    if path[-2:-1] not in (('q',), ('k',), ('v',)):
      result[path] = leaf
    else:
      result.setdefault((*path[:-2], 'qkv', path[-1]), {})[path[-2]] = leaf
  return flax.traverse_util.unflatten_dict({
      path: np.concatenate([leaf[part] for part in 'qkv'], axis=-1) if isinstance(leaf, dict)
      else leaf for path, leaf in result.items()})


def _read(tensors):
  """The settings that shapes tell."""
  names = layout(tensors)
  where = {path: name for name, (path, _) in names.tops.items()}
  first = {part: start for start, part in names.block.items()}['fc1']
  fc1 = {tower: f'{prefix}0.{first}weight' for tower, prefix in names.towers.items()}
  needed = {where['image', 'patch_kernel']: 4, where['image', 'position_embedding']: 2,
            where['text', 'token_embedding']: 2, where['text', 'position_embedding']: 2,
            where['text_projection', 'kernel']: 2, fc1['image']: 2, fc1['text']: 2}
  bad = [f'{name} is {tuple(tensors[name].shape)} and must have {axes} axes' if name in tensors
         else f'missing {name}' for name, axes in needed.items()
         if name not in tensors or tensors[name].ndim != axes]
  if bad:
    raise ValueError('convert: tensors must be those of a CLIP with a vision transformer, got: '
                     f'{", ".join(bad)}; take another CLIP, or a whole file')
  kernel, places, tokens, context, projection, image, text = (
      tuple(tensors[name].shape) for name in needed)
  width, channels, patch, other = kernel
  side = math.isqrt(max(places[0] - 1, 0))
  if channels != 3 or patch != other or side**2 + 1 != places[0] or not patch * side:
    raise ValueError('convert: image tower must have square patches of 3 channels, a square of '
                     f'them and one more token, got a kernel {kernel} and {places[0]} tokens; take '
                     'another CLIP')
  return {'projection_dim': projection[1 if names is OPENAI else 0],
          'image_width': width, 'image_layers': _count(tensors, names.towers['image']),
          'patch': patch, 'image_size': patch * side, 'image_mlp': image[0],
          'text_width': tokens[1], 'text_layers': _count(tensors, names.towers['text']),
          'context': context[0], 'vocab': tokens[0], 'text_mlp': text[0]}


def _told_by_transformers(config):
  told, activations = {}, {}
  for name, (defaults, settings) in _SECTIONS.items():
    section = {**defaults, **_section(config, name)}
    told |= {settings[field]: value for field, value in section.items() if field in settings}
    activations[name] = section.get('hidden_act', 'quick_gelu')
    epsilon = section.get('layer_norm_eps', clip.EPSILON)
    if epsilon != clip.EPSILON:
      raise ValueError(f'convert: layer_norm_eps in {name} must be {clip.EPSILON}, got '
                       f'{epsilon!r}; take another CLIP')
  image, text = activations.values()
  if image != text:
    raise ValueError(f'convert: hidden_act must be that of both towers, got {image!r} and '
                     f'{text!r}; take another CLIP')
  told |= {name: config[name] for name in ('projection_dim',) if name in config}
  return {**told, 'activation': text}


def _told_by_open_clip(config):
  told = {'activation': 'quick_gelu' if config.get('quick_gelu') else 'gelu'}
  if 'embed_dim' in config:
    told['projection_dim'] = config['embed_dim']
  for name, settings in _OPEN_CLIP.items():
    section = _section(config, name)
    for field, value in section.items():
      if field in settings:
        told[settings[field]] = value
      elif value:  # What is left out, or off, is as in OpenAI's.
        raise ValueError(f'convert: {name} must be that of a plain CLIP, got {field} {value!r}; '
                         'take another CLIP')
  told.pop('_', None)
  vision = config.get('vision_cfg', {})
  told.setdefault('text_heads', 8)
  width, head = told.get('image_width', 768), vision.get('head_width', _OPENAI_HEAD)
  if checks.is_integer(width) and checks.is_integer(head) and head > 0:
    told['image_heads'] = width // head
  return told


def _section(config, name):
  section = config.get(name, {})
  if not isinstance(section, Mapping):
    raise ValueError(f'convert: {name} of the config must be an object, got {section!r}; take the '
                     'config that came with the file')
  return section


def _count(tensors, prefix):
  """Blocks with this prefix; numbers that a damaged file leaves out are found missing later."""
  return len({name[len(prefix):].split('.')[0] for name in tensors if name.startswith(prefix)})


def _inputs(settings):
  side = settings['image_size']
  return jnp.zeros((1, side, side, 3)), jnp.zeros((1, settings['context']), int)
