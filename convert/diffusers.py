"""Stable Diffusion as the library diffusers publishes it: a folder with a part in each subfolder.

The networks are those of convert/ldm.py under other names, and the parameters come out the same.
Safetensors or PyTorch's files are read, whichever there are, by the reader of all checkpoints.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convert import adm, arguments, autoencoder, containers, ldm, plain, text
from models import parts, tokens

INDEX = 'model_index.json'
"""The file that a folder of this kind has."""

_WEIGHTS = {'unet': 'diffusion_pytorch_model', 'vae': 'diffusion_pytorch_model',
            'text_encoder': 'model'}
_ENDINGS = '.safetensors', '.bin', '.fp16.safetensors', '.fp16.bin'  # The first one that is there.
_CONFIGS = {**{part: f'{part}/config.json' for part in _WEIGHTS},
            'scheduler': 'scheduler/scheduler_config.json'}
_CLASSES = {'unet': ('UNet2DConditionModel',), 'vae': ('AutoencoderKL',),
            'text_encoder': ('CLIPTextModel',), 'tokenizer': ('CLIPTokenizer', 'CLIPTokenizerFast')}
_VOCABULARY = 'vocab.json', 'merges.txt', 'special_tokens_map.json', 'tokenizer_config.json'
_PARTS = {'network': 'unet', 'first_stage': 'vae', 'text': 'text_encoder'}  # Ours -> the folder.
_SCALE = 0.18215  # Where the config has none: of the first stage that all v1 models have.

# Fields of a U-Net's config with the values that the network here has. Others must be off.
_FIXED = {
    'act_fn': 'silu', 'downsample_padding': 1, 'flip_sin_to_cos': True, 'mid_block_scale_factor': 1,
    'norm_eps': 1e-5, 'norm_num_groups': 32, 'conv_in_kernel': 3, 'conv_out_kernel': 3,
    'attention_type': 'default', 'resnet_time_scale_shift': 'default',
    'time_embedding_type': 'positional', 'mid_block_type': 'UNetMidBlock2DCrossAttn',
    'resnet_out_scale_factor': 1.0}
_READ = ('sample_size', 'in_channels', 'out_channels', 'block_out_channels', 'layers_per_block',
         'down_block_types', 'up_block_types', 'cross_attention_dim', 'attention_head_dim',
         'num_attention_heads', 'transformer_layers_per_block', 'dropout', 'upcast_attention',
         'addition_embed_type_num_heads')  # The last three are of no effect on what is computed.

_RESIDUAL = {'in_layers.0': 'norm1', 'in_layers.2': 'conv1', 'emb_layers.1': 'time_emb_proj',
             'out_layers.0': 'norm2', 'out_layers.3': 'conv2', 'skip_connection': 'conv_shortcut'}
_MIDDLE = {'0': 'resnets.0', '1': 'attentions.0', '2': 'resnets.1'}
_ENDS = {'time_embed.0': 'time_embedding.linear_1', 'time_embed.2': 'time_embedding.linear_2',
         'input_blocks.0.0': 'conv_in', 'out.0': 'conv_norm_out', 'out.2': 'conv_out'}


class Folder(NamedTuple):
  """What a folder holds.

  Attributes:
    configs: 'unet', 'vae', 'text_encoder' and 'scheduler' -> its config.
    tensors: 'unet', 'vae' and 'text_encoder' -> name -> array.
    vocabulary: see text.read_vocabulary.
    sha256: of the list of files with their hashes, as sha256sum prints it, in order of the names.
  """

  configs: dict[str, dict[str, Any]]
  tensors: dict[str, dict[str, np.ndarray]]
  vocabulary: dict[str, Any]
  sha256: str


def is_folder(path: str | os.PathLike) -> bool:
  """Says whether a path is a folder of this kind."""
  return (pathlib.Path(path) / INDEX).is_file()


def read(path: str | os.PathLike) -> Folder:
  """Reads a folder; nothing in it is executed.

  Args:
    path: the folder, with model_index.json, unet/, vae/, text_encoder/, tokenizer/, scheduler/.

  Returns:
    The Folder.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if a part is missing, damaged, or of another pipeline.
  """
  folder = pathlib.Path(path)
  names = files(folder)
  configs = {part: tokens.read_object(folder / name, 'convert')
             for part, name in _CONFIGS.items()}
  _check_classes(tokens.read_object(folder / INDEX, 'convert'))
  tensors, hashes = {}, {}
  for part in _WEIGHTS:
    name = next(name for name in names
                if name.startswith(f'{part}/') and name != _CONFIGS[part])
    contents = containers.read(folder / name)
    tensors[part], hashes[name] = _tensors(folder / name, contents.data), contents.sha256
  vocabulary = text.read_vocabulary(folder / 'tokenizer')
  return Folder(configs, tensors, vocabulary, _digest(folder, names, hashes))


def files(path: str | os.PathLike) -> list[str]:
  """Returns the names of the files that are read, relative to the folder, in order.

  Raises:
    ValueError: if a part is missing.
  """
  folder = pathlib.Path(path)
  names = [INDEX, *_CONFIGS.values()]
  names += [f'tokenizer/{name}' for name in _VOCABULARY[:2]]
  missing = [name for name in names if not (folder / name).is_file()]
  names += [f'tokenizer/{name}' for name in _VOCABULARY[2:]
            if (folder / 'tokenizer' / name).is_file()]
  for part, stem in _WEIGHTS.items():
    stems = (stem, 'pytorch_model') if part == 'text_encoder' else (stem,)
    found = [f'{part}/{one}{ending}' for ending in _ENDINGS for one in stems
             if (folder / part / f'{one}{ending}').is_file()]
    missing += [] if found else [f'{part}/{stem}{_ENDINGS[0]}']
    names += found[:1]
  if missing:
    raise ValueError(f'convert: source must be a whole folder of Stable Diffusion, got {folder} '
                     f'without {", ".join(missing)}; download all of it')
  return sorted(names)


def digest(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a folder, see Folder.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if a part is missing.
  """
  return _digest(pathlib.Path(path), files(path), {})


def convert(folder: Folder) -> tuple[dict[str, Any], Any]:
  """Converts a folder.

  Args:
    folder: what `read` returns.

  Returns:
    (config, params): the fields of a model directory, with `parts`, and parameters in float32, by
    part.

  Raises:
    ValueError: if a setting is unknown or out of range, parts do not fit each other, or the tensors
      are not those of the settings.
  """
  config = describe(folder)
  design = ldm.assemble(config, sum(map(len, folder.tensors.values())),
                        autoencoder.naming_of(folder.tensors['vae']))
  settings = config['network']['settings']
  named = {f'unet/{unet_name(name, settings["num_blocks"])}': rule
           for name, rule in design.rules['network'].items()}
  for part in ('first_stage', 'text'):
    named |= {f'{_PARTS[part]}/{name}': rule for name, rule in design.rules[part].items()}
  tensors = {f'{part}/{name}': array for part, its in folder.tensors.items()
             for name, array in its.items() if part != 'text_encoder' or name not in text.IGNORED}
  return config, ldm.place(design, named, tensors)


def describe(folder: Folder) -> dict[str, Any]:
  """Returns what the networks in a folder are, the fields of a model directory, with `parts`.

  Raises:
    ValueError: as `convert`, but for names and shapes of tensors.
  """
  unet, vae = folder.configs['unet'], folder.configs['vae']
  given = unet_arguments(unet)
  config = ldm.denoiser_fields(given, given['image_size'], _table(folder.configs['scheduler']))
  scale = vae.get('scaling_factor')
  found = {
      'first_stage': autoencoder.fields(
          autoencoder.describe_diffusers(vae), vae.get('sample_size', autoencoder.RESOLUTION),
          _SCALE if scale is None else scale),
      'text': text.fields(text.describe(folder.tensors['text_encoder'],
                                        folder.configs['text_encoder']), folder.vocabulary)}
  parts.check('convert', config, found)
  return {**config, 'parts': found}


def unet_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the arguments of latent diffusion's U-Net for unet/config.json.

  Its attention_head_dim is, despite its name, the number of heads.

  Args:
    config: of a UNet2DConditionModel.

  Raises:
    ValueError: if a field is missing, or asks for what the network does not have.
  """
  for name, value in config.items():
    off = value in (None, False, 0, 'default') or name in _READ or name.startswith('_')
    if name in _FIXED and value != _FIXED[name]:
      raise _other(f'{name} {_FIXED[name]!r}', f'{value!r}')
    if name not in _FIXED and not off:
      raise _other(f'no {name}', f'{value!r}')
  missing = [name for name in _READ[:9] if name not in config]
  if missing:
    raise _other(', '.join(missing), 'none')
  channels = arguments.numbers('block_out_channels', config['block_out_channels'])
  downs, ups = (list(map(str, config[name])) if isinstance(config[name], list) else []
                for name in ('down_block_types', 'up_block_types'))
  attended = [name == 'CrossAttnDownBlock2D' for name in downs]
  blocks = {'DownBlock2D', 'CrossAttnDownBlock2D'}, {'UpBlock2D', 'CrossAttnUpBlock2D'}
  if not (set(downs) <= blocks[0] and set(ups) <= blocks[1] and len(downs) == len(channels)
          and [name == 'CrossAttnUpBlock2D' for name in reversed(ups)] == attended):
    raise _other('the same blocks down and up, one for each of block_out_channels',
                 f'{downs} and {ups}')
  heads = config.get('num_attention_heads') or config['attention_head_dim']
  unet = {'image_size': config['sample_size'], 'in_channels': config['in_channels'],
          'out_channels': config['out_channels'], 'model_channels': channels[0],
          'channel_mult': [width / channels[0] for width in channels],
          'num_res_blocks': config['layers_per_block'],
          'attention_resolutions': [2**level for level, there in enumerate(attended) if there],
          'num_heads': heads, 'use_spatial_transformer': True,
          'transformer_depth': config.get('transformer_layers_per_block', 1),
          'context_dim': config['cross_attention_dim']}
  for name in ('image_size', 'num_res_blocks', 'num_heads', 'out_channels'):
    arguments.whole(unet, name)
  return arguments.complete(unet, adm.LATENT_UNET)


def unet_name(name: str, num_blocks: int) -> str:
  """Returns diffusers' name of a tensor of the U-Net.

  Args:
    name: in latent diffusion, such as input_blocks.1.0.in_layers.0.weight.
    num_blocks: residual blocks of a level of the encoder.
  """
  module, _, last = name.rpartition('.')
  if module in _ENDS:
    return f'{_ENDS[module]}.{last}'
  if module.startswith('middle_block.'):
    index, rest = module.split('.', 2)[1:]
    return f'mid_block.{_MIDDLE[index]}.{_RESIDUAL.get(rest, rest)}.{last}'
  side, count, index, rest = module.split('.', 3)
  level, i = divmod(int(count) - (side == 'input_blocks'), num_blocks + 1)
  start = f'{"down" if side == "input_blocks" else "up"}_blocks.{level}'
  if rest in ('op', 'conv'):  # What ends a level.
    return f'{start}.{"down" if rest == "op" else "up"}samplers.0.conv.{last}'
  kind = 'resnets' if index == '0' else 'attentions'
  return f'{start}.{kind}.{i}.{_RESIDUAL.get(rest, rest)}.{last}'


def _table(config):
  """alpha_bar of a scheduler's config, in the precision of latent diffusion's."""
  wanted = {'beta_schedule': 'scaled_linear', 'trained_betas': None, 'prediction_type': 'epsilon',
            'rescale_betas_zero_snr': False}
  for name, value in wanted.items():
    if config.get(name, None if name == 'beta_schedule' else value) != value:
      raise ValueError(f'convert: {name} of scheduler/ must be {value!r}, got '
                       f'{config.get(name)!r}; only networks that predict the noise on the '
                       'schedule of latent diffusion can be converted')
  names = {'beta_start': 'linear_start', 'beta_end': 'linear_end',
           'num_train_timesteps': 'timesteps'}
  missing = [name for name in names if name not in config]
  if missing:
    raise ValueError(f'convert: scheduler/ must tell {", ".join(missing)}, got none; download it '
                     'again')
  return ldm.alphas_cumprod({ours: config[name] for name, ours in names.items()})


def _check_classes(index):
  """Raises ValueError unless the parts are those of a Stable Diffusion v1."""
  for part, known in _CLASSES.items():
    found = index.get(part)
    name = found[1] if isinstance(found, list) and len(found) == 2 else found
    if name not in known:
      raise ValueError(f'convert: {part} in {INDEX} must be a {known[0]}, got {name!r}; take the '
                       'folder of a Stable Diffusion v1')


def _tensors(path, data):
  """The dict of tensors that a file holds."""
  if not isinstance(data, dict) or not all(
      isinstance(name, str) and isinstance(value, np.ndarray) for name, value in data.items()):
    raise ValueError(f'convert: {path} must hold a dict of tensors, got {plain.describe(data)} '
                     'with something else; download it again')
  return data


def _digest(folder, names, known):
  """SHA-256 of the list of hashes, of which some are known."""
  lines = []
  for name in names:
    lines.append(f'{known.get(name) or containers.digest(folder / name)}  {name}\n')
  return hashlib.sha256(''.join(lines).encode()).hexdigest()


def _other(wanted, got):
  return ValueError(f'convert: unet/config.json must have {wanted}, got {got}; only the U-Nets of '
                    'Stable Diffusion v1 can be converted')
