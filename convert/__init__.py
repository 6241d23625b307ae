"""Conversion of published checkpoints; nothing in a file is executed."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convert import (
    adm,
    amed,
    architectures,
    autoencoder,
    clip,
    cm,
    containers,
    diffusers,
    edm,
    inception,
    ldm,
    lpips,
    pickles,
    plain,
    text,
    torchscript,
)
from models import directory as directory_lib
from samplers import checks

__all__ = ['EMA_CHOICES', 'FAMILIES', 'Converted', 'check_family', 'digest', 'find_architecture',
           'is_folder', 'load', 'read', 'save']

# Networks of features: modules with matches(tensors) and convert(tensors).
_FEATURES = {'inception': inception, 'lpips': lpips, 'clip': clip}

FAMILIES = 'edm', 'sfd', 'adm', 'cm', 'ldm', 'sd', 'autoencoder', 'amed', *_FEATURES
"""EDM's networks; students of SFD; guided-diffusion's; consistency models and their teachers;
latent diffusion, without and with texts, and first stages alone; predictors of AMED; networks of
features."""

EMA_CHOICES = ldm.EMA_CHOICES
find_architecture = architectures.find
is_folder = diffusers.is_folder


class Converted(NamedTuple):
  """A checkpoint as a model, or as a predictor.

  Attributes:
    config: the fields of its directory, see models.directory.
    params: of its network, float32 NumPy arrays; by part where there are parts.
    source: where they come from, plain values, with the file's SHA-256.
    tensors: number of tensors in the file, or folder.
  """

  config: dict[str, Any]
  params: Any
  source: dict[str, Any]
  tensors: int


class _Given(NamedTuple):
  """What is told of a file beside its name, see `load`."""

  path: pathlib.Path
  published: str | None
  architecture: str | os.PathLike | Mapping[str, Any] | None
  tokenizer: str | os.PathLike | None
  ema: str


def load(path: str | os.PathLike, family: str | None = None, *, published: str | None = None,
         architecture: str | os.PathLike | Mapping[str, Any] | None = None,
         tokenizer: str | os.PathLike | None = None, ema: str = 'auto',
         ) -> tuple[dict[str, Any], Any]:
  """Loads a published checkpoint.

  Args:
    path: file of EDM or SFD (.pkl), of guided-diffusion or consistency models (.pt, or
      .safetensors), of latent diffusion or Stable Diffusion (.ckpt), of a first stage alone, of a
      predictor of AMED (.pkl), or of a network of features: an Inception of FID, LPIPS or a CLIP
      (.pth, .pkl, .pt of TorchScript, or .safetensors). Or a folder of diffusers, with
      model_index.json.
    family: one of FAMILIES; None: recognized.
    published: for a file that does not tell what its network is, the one that it is: a key of
      convert.published.KNOWN or ALIASES; None: recognized by the file's name, or by its shapes.
    architecture: for another file of guided-diffusion or consistency models its flags, or a JSON
      file with them, see adm.convert and cm.convert, the latter with training_mode; for one of
      latent diffusion its YAML file, or `params` under `model` of it, see ldm.convert; for a CLIP
      that is none of OpenAI's the config beside it, see clip.convert.
    tokenizer: for a Stable Diffusion, whose file has no vocabulary, that of CLIP: a folder with
      vocab.json and merges.txt, or OpenAI's bpe_simple_vocab_16e6.txt.gz.
    ema: for latent diffusion, one of ldm.EMA_CHOICES: which weights of the U-Net.

  Returns:
    (config, params): the fields of a model directory, and parameters in float32. A model in parts
    has their fields in config['parts'], and parameters of 'network', 'first_stage' and, where it
    reads texts, 'text'.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is no checkpoint of the family, is damaged, lacks a part, or does not fit its
      settings.
  """
  return read(path, family, published=published, architecture=architecture, tokenizer=tokenizer,
              ema=ema)[:2]


def read(path: str | os.PathLike, family: str | None = None, *, published: str | None = None,
         architecture: str | os.PathLike | Mapping[str, Any] | None = None,
         tokenizer: str | os.PathLike | None = None, ema: str = 'auto') -> Converted:
  """Loads a published checkpoint with what a report tells of it; see `load`."""
  given = _Given(pathlib.Path(path), published, architecture, tokenizer, ema)
  if family is not None:
    check_family(family)
  checks.check_choice('convert', 'ema', ema, ldm.EMA_CHOICES)
  find_architecture(path, published, architecture)  # Raises before a long file is read.
  if diffusers.is_folder(given.path):
    return _named(given.path, lambda: _read_folder(given, family))
  contents = containers.read(given.path)
  return _named(given.path, lambda: _read_file(given, family, contents))


def save(directory: str | os.PathLike, config: Mapping[str, Any], params: Any,
         source: Mapping[str, Any] | str, dtype: str = 'float32') -> None:
  """Writes a model directory, whole or not at all; see models.directory.save."""
  directory_lib.save(directory, config, params, source, dtype)


def digest(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, or of a folder of diffusers, see diffusers.Folder.

  Raises:
    OSError: if it cannot be read.
    ValueError: if a part of a folder is missing.
  """
  return diffusers.digest(path) if diffusers.is_folder(path) else containers.digest(path)


def check_family(family: str) -> None:
  """Raises ValueError unless a family is one of FAMILIES."""
  checks.check_choice('convert', 'family', family, FAMILIES)


def _named(path, function):
  """Calls a function; its errors tell the path."""
  try:
    return function()
  except plain.Problem as problem:
    raise ValueError(f'convert: {path}: source {problem}') from None
  except ValueError as error:
    raise ValueError(f'convert: {path}: {str(error).removeprefix("convert: ")}') from None


def _read_folder(given, family):
  """The Converted of a folder of diffusers."""
  _check_found('sd', family)
  _check_left_out('the folder', published=given.published, architecture=given.architecture,
                  tokenizer=given.tokenizer, ema=None if given.ema == 'auto' else given.ema)
  folder = diffusers.read(given.path)
  source = {'converted': given.path.resolve().name, 'sha256': folder.sha256, 'family': 'sd',
            'files': diffusers.files(given.path)}
  return Converted(*diffusers.convert(folder), source, sum(map(len, folder.tensors.values())))


def _read_file(given, family, contents):
  """The Converted of a file."""
  found, data, tensors = _recognize(contents.container, contents.data)
  _check_found(found, family)
  source = {'converted': given.path.name, 'sha256': contents.sha256, 'family': found}
  if found == 'lpips':  # Published as two files.
    tensors, others = lpips.beside(given.path, tensors, containers.read)
    data, source = tensors, source | ({'beside': others} if others else {})
  if found not in ('ldm', 'sd'):
    _check_left_out('this file', tokenizer=given.tokenizer,
                    ema=None if given.ema == 'auto' else given.ema)
  config, params, more = _convert(found, data, given)
  return Converted(config, params, source | more, len(tensors))


def _check_found(found, family):
  if family not in (None, found):
    raise ValueError(f'family must be {found}, as its tensors show, got {family}; leave it out')


def _check_left_out(what, **given):
  """Raises ValueError if something is given that a file tells itself, or has no use for."""
  for name, value in given.items():
    if value is not None:
      raise ValueError(f'{name} must be left out, as {what} tells all that is needed, got '
                       f'{str(value)[:80]}')


def _convert(found, data, given):
  """(config, params, what else the source is told to be) of a recognized file."""
  if found in architectures.FAMILIES:
    settings = architectures.find(given.path, given.published, given.architecture, found)
    return _CONVERT[found](data, settings, given)
  settings = architectures.find(given.path, None, given.architecture)
  if found in ('clip', 'autoencoder') and given.architecture:
    return *_BY_CONFIG[found].convert(data, settings), {'architecture': settings}
  if given.published or given.architecture:
    raise ValueError('published and architecture must be left out, as the file tells its own, '
                     f'got {given.published or "an architecture"}')
  if found in _FEATURES or found == 'autoencoder':
    return *(_FEATURES | _BY_CONFIG)[found].convert(data), {}
  if found == 'amed':
    return *amed.convert(*data), {'training': amed.training(*data)}
  return *edm.convert(data), ({'training': edm.training(data)} if found == 'sfd' else {})


def _convert_unet(tensors, settings, given, family):
  """Of guided-diffusion, or of consistency models."""
  if settings is None:
    raise ValueError('architecture must be given, as the file holds tensors alone, got none; '
                     'name it as published (--config.convert.published), one of '
                     f'{", ".join(architectures.FAMILIES[family])}, or give its flags '
                     '(--config.convert.architecture)')
  if family == 'adm':
    return *adm.convert(tensors, settings), {'architecture': settings}
  flags = dict(settings)
  mode = flags.pop('training_mode', _MODES.get(given.path.name.split('_')[0]))
  if mode not in _MODES.values():
    raise ValueError('training_mode of the architecture must be one of '
                     f'{", ".join(_MODES.values())}, got {mode!r}; it tells a teacher from a '
                     'consistency model')
  return *cm.convert(tensors, flags, mode != _MODES['edm']), {'architecture': settings}


def _convert_latent(tensors, settings, given, family):
  """Of latent diffusion, without or with texts."""
  told = {} if settings is None else {'architecture': settings}
  architecture = ldm.find(tensors) if settings is None else settings
  vocabulary = None
  if given.tokenizer is not None:
    if family == 'ldm':
      raise ValueError(f'tokenizer must be left out for a network without texts, got '
                       f'{given.tokenizer}')
    vocabulary = text.read_vocabulary(given.tokenizer)
    told['vocabulary'] = text.digest(vocabulary)
  config, params, weights = ldm.convert(tensors, architecture, vocabulary=vocabulary, ema=given.ema)
  return config, params, {**told, 'ema': given.ema, 'weights': weights}


_CONVERT = {'adm': functools.partial(_convert_unet, family='adm'),
            'cm': functools.partial(_convert_unet, family='cm'),
            'ldm': functools.partial(_convert_latent, family='ldm'),
            'sd': functools.partial(_convert_latent, family='sd')}
_BY_CONFIG = {'clip': clip, 'autoencoder': autoencoder}
_MODES = {'edm': 'edm', 'cd': 'consistency_distillation', 'ct': 'consistency_training'}


def _recognize(container, data):
  """(family, what its converter takes, tensors by name)."""
  if container == 'edm_pickle' and not _has_tensors(data):
    archives = pickles.archives(data)
    if len(archives) == 1:
      return _recognize(*containers.parse(bytes(archives[0])))
    module = pickles.only_module(data)
    family = module and _feature_family(module.tensors)
    if family:
      return family, module.tensors, module.tensors
    network = pickles.network(data)
    if network.class_name == amed.CLASS:
      return 'amed', (network, data), network.tensors
    return ('sfd' if edm.is_student(network) else 'edm'), network, network.tensors
  tensors = torchscript.tensors(data) if container == 'torchscript' else _state_dict(data)
  family = _feature_family(tensors) or _family(tensors)
  if family:
    return family, tensors, tensors
  if any(name.startswith('down_blocks.') for name in tensors):
    raise ValueError(f'family must be one of {", ".join(FAMILIES)}, got the U-Net of a folder of '
                     f'diffusers; give the whole folder, the one with {diffusers.INDEX}')
  raise ValueError(f'family must be one of {", ".join(FAMILIES)}, got tensors such as '
                   f'{", ".join([*tensors][:3])}; it is another network, or a part of one')


def _family(tensors):
  """The family of a network that makes images, by names and shapes; None: none."""
  if tensors.keys() >= {'time_embed.0.weight', 'input_blocks.0.0.weight'}:
    attention = [array.ndim for name, array in tensors.items() if name.endswith('.qkv.weight')]
    return 'cm' if 4 in attention else 'adm'
  starts = {start for start in (ldm.UNET, 'model_ema.', ldm.FIRST_STAGE, 'cond_stage_model.')
            if any(name.startswith(start) for name in tensors)}
  if starts & {ldm.UNET, 'model_ema.'}:
    return 'sd' if 'cond_stage_model.' in starts else 'ldm'
  return 'autoencoder' if tensors.keys() >= {
      'encoder.conv_in.weight', 'decoder.conv_in.weight'} else None


def _feature_family(tensors):
  """Which of _FEATURES tensors belong to by their names, or None."""
  return next((name for name, family in _FEATURES.items() if family.matches(tensors)), None)


def _has_tensors(data):
  return isinstance(data, dict) and any(isinstance(value, np.ndarray) for value in data.values())


def _state_dict(data):
  """The dict of tensors that a file holds, alone or among other things."""
  if isinstance(data, list | tuple) and lpips.matches(data):
    return lpips.named(data)
  if isinstance(data, dict) and isinstance(data.get('state_dict'), dict):
    data = data['state_dict']
  if not _has_tensors(data):
    found = f'the keys {", ".join(map(repr, [*data][:5]))}' if isinstance(
        data, dict) else f'a {type(data).__name__}'
    raise ValueError(f'source must be a dict of tensors, got {found}; save the state_dict of the '
                     'network')
  odd = [name for name, value in data.items()
         if not isinstance(name, str) or not isinstance(value, np.ndarray)]
  if odd:
    raise ValueError(f'source must be a dict of tensors alone, got something else as {odd[0]!r}; '
                     'save the state_dict of the network')
  return data
