"""Conversion of published checkpoints; nothing in a file is executed."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convert import (
    adm,
    amed,
    clip,
    containers,
    edm,
    inception,
    lpips,
    pickles,
    plain,
    published as published_lib,
    torchscript,
)
from models import directory as directory_lib
from samplers import checks

__all__ = ['FAMILIES', 'Converted', 'check_family', 'find_architecture', 'load', 'read', 'save']

# Networks of features: modules with matches(tensors) and convert(tensors).
_FEATURES = {'inception': inception, 'lpips': lpips, 'clip': clip}

FAMILIES = 'edm', 'sfd', 'adm', 'amed', *_FEATURES
"""EDM's networks; students of SFD; guided-diffusion's; predictors of AMED; networks of features."""

_PUBLISHED_ELSEWHERE = {'model.diffusion_model.': 'latent diffusion', 'down_blocks.': 'diffusers'}


class Converted(NamedTuple):
  """A checkpoint as a model, or as a predictor.

  Attributes:
    config: the fields of its directory, see models.directory.
    params: of its network, float32 NumPy arrays.
    source: where they come from, plain values, with the file's SHA-256.
    tensors: number of tensors in the file.
  """

  config: dict[str, Any]
  params: Any
  source: dict[str, Any]
  tensors: int


def load(path: str | os.PathLike, family: str | None = None, *, published: str | None = None,
         architecture: str | os.PathLike | Mapping[str, Any] | None = None,
         ) -> tuple[dict[str, Any], Any]:
  """Loads a published checkpoint.

  Args:
    path: file of EDM or SFD (.pkl), of guided-diffusion (.pt, or .safetensors), of a predictor of
      AMED (.pkl), or of a network of features: an Inception of FID, LPIPS or a CLIP (.pth, .pkl,
      .pt of TorchScript, or .safetensors).
    family: one of FAMILIES; None: recognized.
    published: for a file of guided-diffusion, which holds tensors alone, the one that it is: a key
      of convert.published.ADM; None: recognized by the file's name.
    architecture: for another file of guided-diffusion its flags, or a JSON file with them, see
      adm.convert; for a CLIP that is none of OpenAI's the config beside it, see clip.convert.

  Returns:
    (config, params): the fields of a model directory, and parameters in float32.

  Raises:
    OSError: if the file cannot be read.
    ValueError: if it is no checkpoint of the family, is damaged, or does not fit its settings.
  """
  return read(path, family, published=published, architecture=architecture)[:2]


def read(path: str | os.PathLike, family: str | None = None, *, published: str | None = None,
         architecture: str | os.PathLike | Mapping[str, Any] | None = None) -> Converted:
  """Loads a published checkpoint with what a report tells of it; see `load`."""
  path = pathlib.Path(path)
  if family is not None:
    check_family(family)
  settings = find_architecture(path, published, architecture)
  contents = containers.read(path)
  try:
    found, data, tensors = _recognize(contents.container, contents.data)
    if family not in (None, found):
      raise ValueError(f'family must be {found}, as its tensors show, got {family}; leave it out')
    source = {'converted': path.name, 'sha256': contents.sha256, 'family': found}
    if found == 'lpips':  # Published as two files.
      tensors, others = lpips.beside(path, tensors, containers.read)
      data, source = tensors, source | ({'beside': others} if others else {})
    config, params, more = _convert(found, data, settings, published, architecture)
    source |= more
  except plain.Problem as problem:
    raise ValueError(f'convert: {path}: source {problem}') from None
  except ValueError as error:
    raise ValueError(f'convert: {path}: {str(error).removeprefix("convert: ")}') from None
  return Converted(config, params, source, len(tensors))


def save(directory: str | os.PathLike, config: Mapping[str, Any], params: Any,
         source: Mapping[str, Any] | str, dtype: str = 'float32') -> None:
  """Writes a model directory, whole or not at all; see models.directory.save."""
  directory_lib.save(directory, config, params, source, dtype)


def find_architecture(path: str | os.PathLike, published: str | None = None,
                      architecture: str | os.PathLike | Mapping[str, Any] | None = None,
                      ) -> dict[str, Any] | None:
  """Returns the flags of a network of guided-diffusion, as given or told by the name of its file.

  Args:
    path: as in `load`.
    published: as in `load`.
    architecture: as in `load`.

  Returns:
    The flags; None if nothing tells them.

  Raises:
    ValueError: if the published one is unknown, both are given, or a JSON file cannot be read.
  """
  if published is not None and architecture is not None:
    raise ValueError('convert: published and architecture must not be given both, got '
                     f'{published!r} and an architecture; leave one out')
  if published is not None:
    return dict(checks.lookup('published checkpoint', published, published_lib.ADM))
  if architecture is None:
    flags = published_lib.ADM.get(pathlib.Path(path).stem)
    return None if flags is None else dict(flags)
  return (dict(architecture) if isinstance(architecture, Mapping)
          else adm.read_architecture(architecture))


def check_family(family: str) -> None:
  """Raises ValueError unless a family is one of FAMILIES."""
  checks.check_choice('convert', 'family', family, FAMILIES)


def _convert(found, data, settings, published, architecture):
  """(config, params, what else the source is told to be) of a recognized file."""
  if found == 'adm':
    if settings is None:
      raise ValueError('architecture must be given, as the file holds tensors alone, got none; '
                       'name it as published (--config.convert.published), one of '
                       f'{", ".join(published_lib.ADM)}, or give its flags '
                       '(--config.convert.architecture)')
    return *adm.convert(data, settings), {'architecture': settings}
  if found == 'clip' and architecture:
    return *clip.convert(data, settings), {'architecture': settings}
  if published or architecture:
    raise ValueError('published and architecture must be left out, as the file tells its own, '
                     f'got {published or "an architecture"}')
  if found in _FEATURES:
    return *_FEATURES[found].convert(data), {}
  if found == 'amed':
    return *amed.convert(*data), {'training': amed.training(*data)}
  return *edm.convert(data), ({'training': edm.training(data)} if found == 'sfd' else {})


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
  family = _feature_family(tensors)
  if family:
    return family, tensors, tensors
  if 'time_embed.0.weight' in tensors and 'input_blocks.0.0.weight' in tensors:
    return 'adm', tensors, tensors
  for start, kind in _PUBLISHED_ELSEWHERE.items():
    if any(name.startswith(start) for name in tensors):
      raise ValueError(f'family must be one of {", ".join(FAMILIES)}, got tensors of {kind}; it '
                       'cannot be converted yet')
  raise ValueError(f'family must be one of {", ".join(FAMILIES)}, got tensors such as '
                   f'{", ".join([*tensors][:3])}; it is another network, or a part of one')


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
