"""The text encoder of latent diffusion: CLIP's text tower alone, in transformers' layout."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from convert import clip, rules
from models import clip as clip_lib, tokens
from samplers import checks

IGNORED = frozenset({'text_model.embeddings.position_ids'})
"""Names of what is no parameter."""

PUBLISHED = ('the folder tokenizer/ of a published Stable Diffusion, or OpenAI\'s '
             'bpe_simple_vocab_16e6.txt.gz, https://github.com/openai/CLIP/tree/main/clip')
"""Where the vocabulary is found."""

_HEAD = 64  # Channels of a head in all of OpenAI's.
_LAYOUT = clip.TRANSFORMERS._replace(
    towers={'text': clip.TRANSFORMERS.towers['text']},
    tops={name: top for name, top in clip.TRANSFORMERS.tops.items() if top[0][0] == 'text'})

# transformers' CLIPTextConfig: setting by the name of its field.
_FIELDS = {'hidden_size': 'width', 'num_hidden_layers': 'layers', 'num_attention_heads': 'heads',
           'intermediate_size': 'mlp', 'max_position_embeddings': 'context', 'vocab_size': 'vocab',
           'hidden_act': 'activation'}


def describe(tensors: Mapping[str, np.ndarray],
             config: Mapping[str, Any] | None = None) -> dict[str, Any]:
  """Returns the settings of models.clip.TextTower.

  The end of a text is not told: it serves what pools the states, which latent diffusion does not.

  Args:
    tensors: name -> array, such as text_model.final_layer_norm.weight.
    config: fields of transformers' CLIPTextConfig; None, or what it leaves out: as OpenAI's, with
      quick_gelu and 64 channels to a head.

  Raises:
    ValueError: if the settings cannot be told, or the config does not agree with the tensors.
  """
  embeddings = 'text_model.embeddings.{}_embedding.weight'
  layer = _LAYOUT.towers['text']
  needed = embeddings.format('token'), embeddings.format('position'), f'{layer}0.mlp.fc1.weight'
  missing = [name for name in needed if name not in tensors or tensors[name].ndim != 2]
  if missing:
    raise ValueError('convert: text encoder must be that of a CLIP in the layout of transformers, '
                     f'got none of {", ".join(missing)}; take a whole file')
  (vocab, width), (context, _), (mlp, _) = (tensors[name].shape for name in needed)
  blocks = {name[len(layer):].split('.')[0] for name in tensors if name.startswith(layer)}
  read = {'width': width, 'layers': len(blocks), 'context': context, 'vocab': vocab, 'mlp': mlp}
  told = {_FIELDS[name]: value for name, value in (config or {}).items() if name in _FIELDS}
  wrong = [f'{name} {told[name]!r} and not {value}' for name, value in read.items()
           if told.get(name, value) != value]
  if wrong:
    raise ValueError(f'convert: config of the text encoder must be that of its tensors, got '
                     f'{", ".join(wrong)}; take the one that came with the file')
  if 'heads' not in told and (width < _HEAD or width % _HEAD):
    raise ValueError(f'convert: heads of a text encoder of width {width} must be told, as only '
                     f"OpenAI's have {_HEAD} channels each, got none; give its config as "
                     'cond_stage_config.clip_text_config of the architecture, such as '
                     '{"num_attention_heads": 12}')
  settings = {**read, 'heads': width // _HEAD, 'eos_token_id': clip_lib.LARGEST_ID,
              'activation': 'quick_gelu', **told}
  checks.check_choice('convert', 'hidden_act of the text encoder', settings['activation'],
                      [*clip_lib.ACTIVATIONS])
  heads = settings['heads']
  if not checks.is_integer(heads) or heads < 1 or width % heads:
    raise ValueError(f'convert: num_attention_heads of the text encoder must divide its width '
                     f'{width}, got {heads!r}; take the config that came with the file')
  epsilon = (config or {}).get('layer_norm_eps', clip_lib.EPSILON)
  if epsilon != clip_lib.EPSILON:
    raise ValueError(f'convert: layer_norm_eps of the text encoder must be {clip_lib.EPSILON}, got '
                     f'{epsilon!r}; take another checkpoint')
  return settings


def fields(settings: Mapping[str, Any], vocabulary: Mapping[str, Any] | None) -> dict[str, Any]:
  """Returns the fields of the part of a model directory that holds a text encoder.

  Args:
    settings: of models.clip.TextTower.
    vocabulary: `merges`, `pad` and `convention`, see read_vocabulary.

  Raises:
    ValueError: if there is no vocabulary.
  """
  if vocabulary is None:
    raise ValueError('convert: tokenizer must be given, as the file has no vocabulary, got none; '
                     f'name {PUBLISHED} (--config.convert.tokenizer)')
  return {'kind': 'text_encoder', 'network': {'name': 'clip_text', 'settings': dict(settings)},
          **vocabulary}


def shapes(settings: Mapping[str, Any]) -> Any:
  """Returns the shapes of the parameters, with q, k and v apart as in a file; see `fuse`."""
  tower = clip_lib.TextTower(**settings)
  ids = jnp.zeros((1, settings['context']), int)
  return clip.split(jax.eval_shape(tower.init, jax.random.key(0), ids)['params'])


def key_rules(settings: Mapping[str, Any]) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor that is a parameter."""
  found = clip.key_rules({'text_layers': settings['layers']}, _LAYOUT)
  return {name: dataclasses.replace(rule, target=rule.target[1:]) for name, rule in found.items()}


def fuse(params: Any) -> Any:
  """Returns parameters of models.clip.TextTower of those that have the shapes of `shapes`."""
  return clip.fuse(params)


def read_vocabulary(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a vocabulary for the convention of Stable Diffusion's pipelines, which is transformers'.

  Args:
    path: see tokens.Tokenizer.load.

  Returns:
    `merges`, `pad` and `convention`, see models.text.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is none, or it is none of a CLIP.
  """
  if not pathlib.Path(path).exists():
    raise ValueError(f'convert: tokenizer must be a folder or a file, got nothing at {path}; name '
                     f'{PUBLISHED}')
  tokenizer = tokens.Tokenizer.load(path, 'transformers')
  return {'merges': tokenizer.merges(), 'pad': tokenizer.pad, 'convention': tokenizer.convention}


def digest(vocabulary: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of a vocabulary, in hex."""
  return hashlib.sha256(json.dumps(dict(vocabulary), sort_keys=True).encode()).hexdigest()
