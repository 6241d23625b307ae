"""What a network of a checkpoint is, where the file does not tell: given, or known by its name."""

import json
import os
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import yaml

from convert import adm, published as published_lib
from samplers import checks

FAMILIES = MappingProxyType({'adm': published_lib.ADM, 'cm': published_lib.CM,
                             'ldm': published_lib.LDM, 'sd': published_lib.LDM})
"""Families whose files do not tell -> the published ones by name."""

_LONGEST = 10**6  # Characters of a YAML file; the published ones have some thousand.


def find(path: str | os.PathLike, published: str | None = None,
         architecture: str | os.PathLike | Mapping[str, Any] | None = None,
         family: str | None = None) -> dict[str, Any] | None:
  """Returns the architecture of a network, as given or told by the name of its file.

  Args:
    path: the file.
    published: the published one that it is, a key of published.KNOWN or published.ALIASES.
    architecture: flags, arguments or parameters, or a JSON or YAML file with them.
    family: of the file, whose published ones are meant where it has any; None: all.

  Returns:
    Plain values; None if nothing tells them.

  Raises:
    ValueError: if the published one is unknown or of another family, both are given, or a file
      cannot be read.
  """
  if published is not None and architecture is not None:
    raise ValueError('convert: published and architecture must not be given both, got '
                     f'{published!r} and an architecture; leave one out')
  known = FAMILIES.get(family, published_lib.KNOWN)
  aliases = {name: known[own] for name, own in published_lib.ALIASES.items() if own in known}
  known = {**known, **aliases}
  if published is not None:
    return dict(checks.lookup('published checkpoint', published, known))
  if architecture is None:
    found = known.get(pathlib.Path(path).stem)
    return None if found is None else dict(found)
  return _parameters(dict(architecture) if isinstance(architecture, Mapping)
                     else read(architecture))


def read(path: str | os.PathLike) -> dict[str, Any]:
  """Reads a JSON file, or a YAML file by its ending.

  Args:
    path: with flags or arguments; a YAML file may be the published one of a latent diffusion.

  Raises:
    ValueError: if it is not there, no JSON or YAML, or no mapping.
  """
  path = pathlib.Path(path)
  if path.suffix not in ('.yaml', '.yml'):
    return adm.read_architecture(path)
  try:
    with open(path, encoding='utf-8') as file:
      content = yaml.safe_load(file.read(_LONGEST))  # Builds plain values, nothing else.
  except (OSError, ValueError, yaml.YAMLError) as error:
    told = getattr(error, 'strerror', None) or getattr(error, 'problem', None) or error
    raise ValueError(f'convert: architecture must be a YAML file, got {path} ({told}); take the '
                     'one that the network was trained with') from None
  if not isinstance(content, dict):
    raise ValueError(f'convert: architecture must be a mapping, got a {type(content).__name__} in '
                     f'{path}; take the YAML file that the network was trained with')
  return content


def _parameters(content):
  """The parameters of the model, where a whole file of latent diffusion is given; plain values."""
  if isinstance(content.get('model'), Mapping):
    content = content['model'].get('params', {})
  try:
    plain = json.loads(json.dumps(content))
  except (TypeError, ValueError, RecursionError) as error:
    raise ValueError(f'convert: architecture must be of plain values, got others ({error}); take '
                     'out what is none') from None
  if not isinstance(plain, dict):
    raise ValueError('convert: model.params of the architecture must be a mapping, got a '
                     f'{type(plain).__name__}; take the YAML file that the network was trained '
                     'with')
  return plain
