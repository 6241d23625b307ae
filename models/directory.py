"""Model directories: config.json beside an Orbax checkpoint of the parameters.

config.json names what the parameters belong to: `format`, `kind` ('denoiser', 'classifier',
'features', 'autoencoder', 'text_encoder' or 'predictor'), `network` and `preconditioning` (name and
settings), `sigma_min`, `sigma_max`, `image_shape`, `num_classes`, `source` (where it comes from,
plain values), and `sha256` of the parameters. A network of features, which knows no noise, has
neither preconditioning nor levels.

A denoiser may have parts, see models.parts: `parts` gives the `sha256` of each, and the folder of
that name inside is its model directory. An autoencoder tells, beside its network, its
`scale_factor`, latents over encodings, and `image_shape` and `latent_shape` at the resolution of
its training. A text encoder tells its tokenizer: the `merges` that its vocabulary follows from,
`pad`, the id that short texts are filled up with, and the `convention` of models.tokens.

A predictor, the learned numbers of a solver, belongs to a grid and a model: `design` (name and
settings, see samplers.learned), `schedule` (name and arguments of samplers.schedule), `sigmas` (its
levels), `limit` and `guidance` of the denoiser in training (config.limit; method and scale, or
null), and `model` (`name`, `path` and `sha256`, null where unknown, and `image_shape`).
"""

import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import flax
import jax
import numpy as np
import orbax.checkpoint as ocp

from models import parts as parts_lib
from samplers import checks

FORMAT = 1
"""Version of the layout; a reader knows its own and all before."""

FIELDS = ('kind', 'network', 'preconditioning', 'sigma_min', 'sigma_max', 'image_shape',
          'num_classes')

FEATURE_FIELDS = 'kind', 'network'
"""Those of kind 'features', in place of FIELDS."""

AUTOENCODER_FIELDS = 'kind', 'network', 'scale_factor', 'image_shape', 'latent_shape'
"""Those of kind 'autoencoder'."""

TEXT_FIELDS = 'kind', 'network', 'merges', 'pad', 'convention'
"""Those of kind 'text_encoder'."""

PREDICTOR_FIELDS = 'kind', 'design', 'schedule', 'sigmas', 'limit', 'guidance', 'model'
"""Those of kind 'predictor'."""

DTYPES = 'float32', 'float16', 'bfloat16'

_PARAMS = 'params'


def save(directory: str | os.PathLike, config: Mapping[str, Any], params: Any,
         source: Mapping[str, Any] | str, dtype: str = 'float32') -> None:
  """Writes a model directory, whole or not at all.

  Args:
    directory: the new folder; the one above it exists.
    config: the FIELDS, or those of its kind, plain values. A denoiser may have the field `parts`:
      name, a key of parts.PARTS -> fields of the part.
    params: pytree of arrays, nested dicts. With parts: {'network': those of the denoiser,
      name: those of the part}.
    source: where the parameters come from, plain values.
    dtype: precision on disk, 'float32', 'float16' or 'bfloat16'; they are float32 again when read.

  Raises:
    OSError: if it cannot be written.
    ValueError: if the folder exists, the config is not made of these fields, or parts do not fit.
  """
  path = pathlib.Path(directory).absolute()
  config, parts = _split_parts(config)
  for name, fields in {'': config, **parts}.items():
    _check_fields(name, fields)
  parts_lib.check('save', config, parts)
  if path.exists():
    raise ValueError(f'save: directory must not exist, got {path}; choose another or delete it')
  if parts and sorted(params) != sorted(['network', *parts]):
    raise ValueError(f'save: params must be those of network, {", ".join(parts)}, got '
                     f'{", ".join(params) or "none"}; give them under these names')
  temporary = path.with_name(f'.{path.name}.partial')
  shutil.rmtree(temporary, ignore_errors=True)
  try:
    own = _write(temporary, params['network'] if parts else params, dtype)
    hashes = {}
    for name, fields in parts.items():
      hashes[name] = _write(temporary / name, params[name], dtype)
      _write_config(temporary / name, fields, source, hashes[name])
    _write_config(temporary, {**config, 'parts': hashes} if parts else config, source, own)
    temporary.rename(path)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
  """Reads config.json.

  Args:
    directory: a model directory.

  Returns:
    Its fields.

  Raises:
    ValueError: if the folder or the file is missing, not of this form, or of a newer format.
  """
  path = pathlib.Path(directory)
  if not path.is_dir():
    what = 'a file' if path.exists() else 'nothing'
    raise ValueError(f'load: model must be a folder with config.json and {_PARAMS}/, got {what} at '
                     f'{path}; --mode=train and --mode=convert make one')
  try:
    config = json.loads((path / 'config.json').read_text())
  except FileNotFoundError:
    raise ValueError(f'load: model must be a folder with config.json and {_PARAMS}/, got {path} '
                     'without config.json; make it again') from None
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f'load: {path / "config.json"} must be JSON, got {error}; make it again'
                     ) from None
  version = config.get('format') if isinstance(config, dict) else None
  if not isinstance(version, int) or version < 1:
    raise ValueError(f'load: {path / "config.json"} must have a format number, got {version!r}; it '
                     'may belong to another program')
  if version > FORMAT:
    raise ValueError(f'load: format of {path} must be at most {FORMAT}, got {version}; update '
                     'fewstep to read it')
  missing = [field for field in (*_fields(config), 'sha256') if field not in config]
  if missing:
    raise ValueError(f'load: {path / "config.json"} must have all fields, got none for '
                     f'{", ".join(missing)}; make it again')
  return config


def read_kind(directory: str | os.PathLike, kind: str, dtype: str) -> dict[str, Any]:
  """Reads config.json of a directory that has to be of one kind.

  Args:
    directory: a model directory.
    kind: that it must be of.
    dtype: that its parameters will be asked for in, one of DTYPES.

  Returns:
    As `read_config`.

  Raises:
    ValueError: as `read_config`, and if it is of another kind, or the dtype is unknown.
  """
  checks.check_choice('load', 'dtype', dtype, DTYPES)
  config = read_config(directory)
  if config['kind'] != kind:
    article = 'an' if kind[0] in 'aeiou' else 'a'
    told = {'features': 'a network of features'}.get(kind, f'{article} {kind}')
    raise ValueError(f'load: model must be {told}, got the {config["kind"]} {directory}; choose '
                     'another, or make one by --mode=train or --mode=convert')
  return config


def read_params(directory: str | os.PathLike, like: Any, sha256: str,
                dtype: str = 'float32') -> Any:
  """Reads the parameters.

  Args:
    directory: a model directory.
    like: pytree of arrays or shapes that the network needs.
    sha256: of config.json.
    dtype: that they are cast to, one of DTYPES.

  Returns:
    Parameters like `like`, NumPy arrays of this type.

  Raises:
    ValueError: if they are missing or damaged, or their names, shapes or hash are not as expected;
      names that are missing, not used or of another shape are told together.
  """
  path = pathlib.Path(directory).absolute() / _PARAMS
  if not (path / '_METADATA').is_file():  # Orbax would log a warning of its own.
    raise _damaged(path, OSError('no parameters there'))
  try:
    with ocp.StandardCheckpointer() as checkpointer:
      stored = checkpointer.metadata(path).item_metadata
      have = {'.'.join(name): leaf for name, leaf in flax.traverse_util.flatten_dict(
          dict(stored)).items()}
      need = {'.'.join(name): leaf for name, leaf in flax.traverse_util.flatten_dict(like).items()}
      _compare(path, have, need)
      target = flax.traverse_util.unflatten_dict(
          {tuple(name.split('.')): np.zeros(leaf.shape, leaf.dtype) for name, leaf in have.items()})
      params = checkpointer.restore(path, target)
  except ValueError as error:
    if str(error).startswith('load: '):
      raise
    raise _damaged(path, error) from None
  except (OSError, KeyError, TypeError, AttributeError) as error:
    raise _damaged(path, error) from None
  if digest(params) != sha256:
    raise ValueError(f'load: parameters in {path} must have SHA-256 {sha256[:12]}..., got '
                     f'{digest(params)[:12]}...; make the model again')
  leaves, tree = jax.tree.flatten(params)
  del params
  for i, value in enumerate(leaves):  # One at a time: no second copy of all.
    leaves[i] = value.astype(dtype, copy=False)
  return jax.tree.unflatten(tree, leaves)


def digest(params: Any) -> str:
  """Returns the SHA-256 of names, types, shapes and values, in the order of names."""
  total = hashlib.sha256()
  for name, value in sorted(flax.traverse_util.flatten_dict(params, sep='.').items()):
    total.update(f'{name} {value.dtype} {value.shape}\n'.encode())
    total.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
  return total.hexdigest()


def _split_parts(config):
  """(fields of a config that is to be saved without those of its parts, these by name)."""
  if config.get('kind') != 'denoiser':
    return config, {}
  parts = config.get('parts', {})
  if not isinstance(parts, Mapping) or not all(isinstance(one, Mapping) for one in parts.values()):
    raise ValueError('save: parts must be the fields of each part by its name, got '
                     f'{str(parts)[:80]!r}; see models.parts')
  return {field: value for field, value in config.items() if field != 'parts'}, parts


def _check_fields(part, config):
  """Raises ValueError unless a config has the fields of its kind."""
  fields = _fields(config)
  if sorted(config) != sorted(fields):
    what = f'config of the part {part}' if part else 'config'
    raise ValueError(f'save: {what} must have the fields {", ".join(fields)}, got '
                     f'{", ".join(config) or "none"}; add what is missing, take out the rest')


def _write(folder, params, dtype):
  """Writes parameters; returns their hash."""
  params = jax.tree.map(lambda value: np.asarray(value).astype(dtype, copy=False), params)
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder / _PARAMS, params)
  # Orbax's mark of a whole checkpoint, with the path it was written under: renaming the folder says
  # the same without the path.
  (folder / _PARAMS / 'commit_success.txt').unlink(missing_ok=True)
  return digest(params)


def _write_config(folder, config, source, sha256):
  text = json.dumps({'format': FORMAT, **config, 'source': source, 'sha256': sha256}, indent=1)
  (folder / 'config.json').write_text(text + '\n')


def _fields(config):
  """Names of the fields that a config of this kind must have."""
  others = {'features': FEATURE_FIELDS, 'predictor': PREDICTOR_FIELDS,
            'autoencoder': AUTOENCODER_FIELDS, 'text_encoder': TEXT_FIELDS}
  return next((fields for kind, fields in others.items() if config.get('kind') == kind), FIELDS)


def _compare(path, have, need):
  wrong = [f'missing {name}' for name in sorted(need.keys() - have.keys())]
  wrong += [f'not used {name}' for name in sorted(have.keys() - need.keys())]
  wrong += [f'{name} is {tuple(have[name].shape)} and must be {tuple(need[name].shape)}'
            for name in sorted(need.keys() & have.keys())
            if tuple(have[name].shape) != tuple(need[name].shape)]
  if wrong:
    shown = '; '.join(wrong[:6]) + (f'; and {len(wrong) - 6} more' if len(wrong) > 6 else '')
    raise ValueError(f'load: parameters in {path} must be those of the network in config.json, '
                     f'got: {shown}; make the model again')


def _damaged(path, error):
  return ValueError(f'load: {path} must be a whole checkpoint, got '
                    f'{type(error).__name__}: {str(error)[:200]}; make the model again')
