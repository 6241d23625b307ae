"""Parts of a model directory: what surrounds a denoiser of latents, and what fits together.

A denoiser of latents has a first stage, which makes pictures of latents, and where it reads texts,
the encoder of texts. Each is a model directory of its own kind inside the denoiser's. Here are the
rules between them, on the plain values of their configs alone.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from models import autoencoder, tokens
from samplers import checks

PARTS = MappingProxyType({'first_stage': 'autoencoder', 'text': 'text_encoder'})
"""Name of a part, and of its folder -> its kind."""

_REMEDY = 'take all parts from one checkpoint'


def check(who: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]) -> None:
  """Checks that parts fit a denoiser.

  Args:
    who: asks, for the error.
    config: fields of the denoiser's directory.
    parts: name -> fields of the part's directory, all that its kind has.

  Raises:
    ValueError: if a part is unknown or of another kind, it is wrong in itself (see `first_stage`
      and `tokenizer`), the latents of the first stage have other channels than the denoiser's, or
      the width of the text encoder is not that of what the denoiser reads.
  """
  for name, fields in parts.items():
    check_kind(who, name, fields)
  if 'first_stage' in parts:
    channels, own = first_stage(who, parts['first_stage']).embed_dim, config['image_shape'][-1]
    if channels != own:
      raise ValueError(f'{who}: latents of the first stage must have the {own} channels of the '
                       f'denoiser, got {channels}; {_REMEDY}')
  if 'text' in parts:
    tokenizer(who, parts['text'])
    width, own = settings(who, parts['text']).get('width'), context_width(config)
    if not own:
      raise ValueError(f'{who}: denoiser must read texts to have a text encoder, got one without '
                       f'context_dim; {_REMEDY}')
    if width != own:
      raise ValueError(f'{who}: width of the text encoder must be the context_dim of the denoiser, '
                       f'{own}, got {_short(width)}; {_REMEDY}')


def check_kind(who: str, name: str, fields: Mapping[str, Any]) -> None:
  """Raises ValueError unless a part of this name, with these fields, is of the kind it must be."""
  if name not in PARTS:
    raise ValueError(f'{who}: {checks.unknown("part", name, PARTS)}')
  kind = PARTS[name]
  if fields['kind'] != kind:
    raise ValueError(f'{who}: part {name} must be of the kind {kind}, got {_short(fields["kind"])};'
                     f' {_REMEDY}')


def first_stage(who: str, fields: Mapping[str, Any]) -> autoencoder.Autoencoder:
  """Returns the network of a first stage.

  Args:
    who: asks, for the error.
    fields: of the first stage's directory.

  Raises:
    ValueError: if the settings are out of range, the scale is no number above 0, or latents of
      latent_shape do not become pictures of image_shape.
  """
  module = autoencoder.build(settings(who, fields, 'autoencoder'))
  checks.check_positive(who, 'scale_factor of the first stage', fields['scale_factor'],
                        '1 leaves the latents as they are')
  image, latent = (fields[name] for name in ('image_shape', 'latent_shape'))
  whole = all(isinstance(shape, list | tuple) and len(shape) == 3
              and all(checks.is_integer(size) and size > 0 for size in shape)
              for shape in (image, latent))
  if (not whole or latent[-1] != module.embed_dim
      or tuple(image) != autoencoder.picture_shape(module, latent)):
    raise ValueError(f'{who}: latent_shape of the first stage must have {module.embed_dim} '
                     f'channels, and image_shape {autoencoder.factor(module)} times its sides and '
                     f'{module.out_channels} channels, got {_short(latent)} and {_short(image)}; '
                     'make the model again')
  return module


def tokenizer(who: str, fields: Mapping[str, Any]) -> tokens.Tokenizer:
  """Returns the tokenizer of a text encoder.

  Args:
    who: asks, for the error.
    fields: of the encoder's directory.

  Raises:
    ValueError: if the merges are no list of merges, or the vocabulary that follows from them has
      another size than the network's.
  """
  merges, vocab = fields['merges'], settings(who, fields, 'clip_text').get('vocab')
  if isinstance(merges, list | tuple) and vocab != 514 + len(merges):
    raise ValueError(f'{who}: vocab of the text encoder must be {514 + len(merges)}, 514 and its '
                     f'{len(merges)} merges, got {_short(vocab)}; give the tokenizer that it was '
                     'trained with')
  return tokens.Tokenizer.from_merges(merges, fields['pad'], fields['convention'])


def settings(who: str, fields: Mapping[str, Any], name: str | None = None) -> dict[str, Any]:
  """Returns the settings of a part's network.

  Args:
    who: asks, for the error.
    fields: of the part's directory.
    name: that the network must have; None: any.

  Raises:
    ValueError: if it has another one, or is not told by name and settings.
  """
  match fields['network']:
    case {'name': str(own), 'settings': dict(found), **rest} if not rest and name in (None, own):
      return found
  what = f"the name '{name}' and settings" if name else 'a name and settings'
  raise ValueError(f'{who}: network of the {fields["kind"]} must be {what}, got '
                   f'{_short(fields["network"])}; make the model again')


def context_width(config: Mapping[str, Any]) -> int:
  """Returns the width of the text features that a denoiser reads, 0 where it reads none.

  Args:
    config: fields of its directory.
  """
  match config.get('network'):
    case {'settings': {'context_dim': int(width)}}:
      return width
  return 0


def _short(value):
  return re.sub(r'\s+', ' ', repr(value))[:80]
