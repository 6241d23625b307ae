"""Latent diffusion and Stable Diffusion: a U-Net of latents, its first stage, a text encoder.

A published .ckpt is a whole trainer: the U-Net twice, as trained and averaged (EMA), the first
stage (convert/autoencoder.py), for texts CLIP's encoder (convert/text.py), and the buffers of the
noise schedule. What they are comes from the yaml file that the training was configured with:
`params` of its `model`. The published ones are recognized by what shapes tell of the U-Net.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convert import adm, arguments, autoencoder, published, rules, text
from models import autoencoder as autoencoder_lib, networks, parts
from samplers import checks, levels

UNET, FIRST_STAGE, TEXT = ('model.diffusion_model.', 'first_stage_model.',
                           'cond_stage_model.transformer.')
"""What names of the three networks begin with."""

BUFFERS = frozenset({
    'betas', 'alphas_cumprod', 'alphas_cumprod_prev', 'sqrt_alphas_cumprod',
    'sqrt_one_minus_alphas_cumprod', 'log_one_minus_alphas_cumprod', 'sqrt_recip_alphas_cumprod',
    'sqrt_recipm1_alphas_cumprod', 'posterior_variance', 'posterior_log_variance_clipped',
    'posterior_mean_coef1', 'posterior_mean_coef2', 'scale_factor', 'logvar',
    'model_ema.decay', 'model_ema.num_updates', *(TEXT + name for name in text.IGNORED)})
"""Names of what is no parameter of a network."""

EMA_CHOICES = 'auto', 'require', 'ignore'
"""Averaged weights where there are any, as there must be unless the yaml file has use_ema false;
those or nothing; the weights as trained."""

_UNCONDITIONAL = '__is_unconditional__'

# Arguments of LatentDiffusion and DDPM, argument -> default; the last ones serve training.
_KNOWN = {
    'linear_start': 1e-4, 'linear_end': 2e-2, 'timesteps': 1000, 'beta_schedule': 'linear',
    'given_betas': None, 'parameterization': 'eps', 'image_size': arguments.REQUIRED,
    'channels': None, 'conditioning_key': None, 'scale_factor': 1.0, 'scale_by_std': False,
    'use_ema': True, 'unet_config': arguments.REQUIRED, 'first_stage_config': arguments.REQUIRED,
    'cond_stage_config': _UNCONDITIONAL,
    **dict.fromkeys((
        'first_stage_key', 'cond_stage_key', 'cond_stage_trainable', 'cond_stage_forward',
        'concat_mode', 'num_timesteps_cond', 'log_every_t', 'monitor', 'loss_type', 'ckpt_path',
        'ignore_keys', 'load_only_unet', 'clip_denoised', 'cosine_s', 'original_elbo_weight',
        'v_posterior', 'l_simple_weight', 'scheduler_config', 'use_positional_encodings',
        'learn_logvar', 'logvar_init'))}


# A U-Net is traced for seconds: once for a .ckpt and the folder of the same network.
_network_shapes = functools.lru_cache(4)(rules.shapes)


class Design(NamedTuple):
  """What the parameters of a latent diffusion are.

  Attributes:
    like: their shapes, by part; those of a text encoder as text.shapes.
    rules: by part, name -> Rule, for names as in a .ckpt without what they begin with.
  """

  like: dict[str, Any]
  rules: dict[str, dict[str, rules.Rule]]


def convert(tensors: Mapping[str, np.ndarray], architecture: Mapping[str, Any], *,
            vocabulary: Mapping[str, Any] | None = None, ema: str = 'auto',
            ) -> tuple[dict[str, Any], Any, str]:
  """Converts the state dict of a trainer.

  Args:
    tensors: name -> array.
    architecture: `params` under `model` of the yaml file. A text encoder that is none of OpenAI's
      is told by cond_stage_config.clip_text_config, fields of transformers' CLIPTextConfig.
    vocabulary: of the text encoder, see text.read_vocabulary; None where there is none.
    ema: one of EMA_CHOICES.

  Returns:
    (config, params, weights): the fields of a model directory, with `parts`; parameters in
    float32, by part; and 'averaged' or 'as trained', which weights of the U-Net they are.

  Raises:
    ValueError: if a setting is unknown or out of range, a part is missing, parts do not fit each
      other, or the tensors are not those of the settings.
  """
  checks.check_choice('convert', 'ema', ema, EMA_CHOICES)
  check_parts(tensors, architecture)
  config = describe(architecture, within(tensors, TEXT), vocabulary,
                    table=tensors.get('alphas_cumprod'), scale=tensors.get('scale_factor'))
  design = assemble(config, len(tensors))
  named, kept, weights = select(design, tensors, ema,
                                architecture.get('use_ema', _KNOWN['use_ema']))
  return config, place(design, named, kept), weights


def describe(architecture: Mapping[str, Any], text_tensors: Mapping[str, Any],
             vocabulary: Mapping[str, Any] | None, *, table: np.ndarray | None = None,
             scale: np.ndarray | None = None) -> dict[str, Any]:
  """Returns what a latent diffusion is, the fields of a model directory, with `parts`.

  Args:
    architecture: as in `convert`.
    text_tensors: of the text encoder, see text.describe.
    vocabulary: as in `convert`.
    table: alpha_bar as the file has it, float32 (steps,); None: the architecture tells.
    scale: scale_factor as the file has it; None: the architecture tells.

  Raises:
    ValueError: as `convert`, but for names and shapes of tensors.
  """
  given = arguments.complete(architecture, _KNOWN)
  unet = arguments.complete(_section(given, 'unet_config', 'params'), adm.LATENT_UNET)
  _check_unet(given, unet)
  config = denoiser_fields(unet, arguments.whole(given, 'image_size'),
                           alphas_cumprod(given, table))
  kind = autoencoder.kind_of(_section(given, 'first_stage_config').get('target'))
  stage = _section(given, 'first_stage_config', 'params')
  found = {'first_stage': autoencoder.fields(
      autoencoder.describe(stage, kind), stage['ddconfig']['resolution'],
      _scale_factor(given, scale))}
  if parts.context_width(config):
    condition = _section(given, 'cond_stage_config')
    told = _section(condition, 'clip_text_config') if 'clip_text_config' in condition else {}
    found['text'] = text.fields(text.describe(text_tensors, told), vocabulary)
  elif given['cond_stage_config'] not in (_UNCONDITIONAL, None):
    raise ValueError(f"convert: cond_stage_config of the architecture must be '{_UNCONDITIONAL}' "
                     'where the U-Net reads no context, got another; only unconditional networks '
                     'and those of texts can be converted')
  parts.check('convert', config, found)
  return {**config, 'parts': found}


def denoiser_fields(unet: Mapping[str, Any], side: int, table: np.ndarray) -> dict[str, Any]:
  """Returns the fields of a directory that concern the U-Net.

  Args:
    unet: arguments of its constructor, see adm.LATENT_UNET.
    side: of the latents.
    table: alpha_bar by training step.

  Raises:
    ValueError: if an argument is out of range, or asks for what the network does not have.
  """
  settings = adm.unet_settings(unet, side)
  settings['attn_resolutions'].sort(reverse=True)  # In any order in the yaml files.
  low, high = levels.table_range(table)
  return {'kind': 'denoiser', 'network': {'name': 'adm_unet', 'settings': settings},
          'preconditioning': {'name': 'discrete', 'settings': {'alphas_cumprod': table.tolist()}},
          'sigma_min': low, 'sigma_max': high,
          'image_shape': [side, side, arguments.whole(unet, 'in_channels')],
          'num_classes': settings['label_dim']}


def assemble(config: Mapping[str, Any], tensors: int, naming: str = 'ldm') -> Design:
  """Returns the shapes of all parameters and their rules.

  Args:
    config: what `describe` returns.
    tensors: number of tensors that there are.
    naming: of the first stage, a key of autoencoder.NAMINGS.

  Raises:
    ValueError: if the networks are too large.
  """
  found = config['parts']
  network = networks.build(**config['network'])
  stage = autoencoder_lib.build(found['first_stage']['network']['settings'])
  like = {'network': _network_shapes(network, tuple(config['image_shape']), tensors),
          'first_stage': autoencoder.shapes(stage, tensors)}
  own = {'network': adm.key_rules(network, like['network']),
         'first_stage': autoencoder.key_rules(stage, like['first_stage'], naming)}
  if 'text' in found:
    tower = found['text']['network']['settings']
    like['text'], own['text'] = text.shapes(tower), text.key_rules(tower)
  own = {part: {name: dataclasses.replace(rule, target=(part, *rule.target))
                for name, rule in its.items()} for part, its in own.items()}
  return Design(like, own)


def select(design: Design, tensors: Mapping[str, Any], ema: str, expected: bool,
           ) -> tuple[dict[str, rules.Rule], dict[str, Any], str]:
  """Chooses between averaged weights and those as trained, and leaves out what is ignored.

  Args:
    design: what the file holds.
    tensors: name -> array, or anything with a shape.
    ema: one of EMA_CHOICES.
    expected: averaged weights must be there with 'auto'.

  Returns:
    (name in the file -> Rule, name -> tensor of what is not ignored, 'averaged' or 'as trained').

  Raises:
    ValueError: if there are none that must be there.
  """
  plain = {UNET + name: rule for name, rule in design.rules['network'].items()}
  averaged = {ema_name(name): rule for name, rule in plain.items()}
  there = any(name in averaged for name in tensors)
  if not there and (ema == 'require' or (ema == 'auto' and expected)):
    why = 'as was asked' if ema == 'require' else 'as its architecture has use_ema'
    raise ValueError(f'convert: source must hold averaged weights, {why}, got none below '
                     'model_ema.; take the checkpoint that has them, or its weights as trained '
                     'with --config.convert.ema=ignore')
  average = there and ema != 'ignore'
  used, others = (averaged, plain) if average else (plain, averaged)
  prefixed = {start + name: rule
              for part, start in (('first_stage', FIRST_STAGE), ('text', TEXT))
              for name, rule in design.rules.get(part, {}).items()}
  kept = {name: array for name, array in tensors.items()
          if name not in BUFFERS and name not in others and not (
              name.startswith(FIRST_STAGE)
              and autoencoder.is_ignored(name.removeprefix(FIRST_STAGE)))}
  return {**used, **prefixed}, kept, 'averaged' if average else 'as trained'


def place(design: Design, named: Mapping[str, rules.Rule], tensors: Mapping[str, np.ndarray],
          ) -> dict[str, Any]:
  """Makes the parameters of all parts.

  Args:
    design: what they are.
    named: name in the file -> Rule.
    tensors: name -> array, without what is ignored.

  Returns:
    Parameters in float32, by part.

  Raises:
    ValueError: as rules.place.
  """
  params = rules.place(named, tensors, design.like, remedy=(
      'give the architecture of this checkpoint (--config.convert.architecture), or a whole file'))
  return {part: text.fuse(found) if part == 'text' else found for part, found in params.items()}


def within(tensors: Mapping[str, np.ndarray], start: str) -> dict[str, np.ndarray]:
  """Returns the tensors whose names begin so, by the rest of their names."""
  return {name.removeprefix(start): array for name, array in tensors.items()
          if name.startswith(start)}


def ema_name(name: str) -> str:
  """Returns the name of a weight's average: its own without dots, below model_ema."""
  return 'model_ema.' + name.removeprefix('model.').replace('.', '')


def alphas_cumprod(given: Mapping[str, Any], table: np.ndarray | None = None) -> np.ndarray:
  """Returns alpha_bar by training step, float32 values in float64, as the trainer's buffer has it.

  beta_k = (linear from sqrt(linear_start) to sqrt(linear_end))^2, which the yaml files call linear.

  Args:
    given: linear_start, linear_end, timesteps.
    table: the buffer of a file; None: computed.

  Raises:
    ValueError: if a setting is out of range, or the buffer is another table.
  """
  steps = arguments.whole(given, 'timesteps', 2, 10**6)
  start, end = (checks.to_number(given[name]) for name in ('linear_start', 'linear_end'))
  if not 0 < start < end < 1:
    raise ValueError('convert: linear_start and linear_end of the architecture must increase '
                     f'between 0 and 1, got {given["linear_start"]!r} and {given["linear_end"]!r}; '
                     'Stable Diffusion has 0.00085 and 0.012')
  computed = levels.scaled_linear_alphas_cumprod(start, end, steps).astype(np.float32)
  if table is not None and table.dtype.itemsize < 4:  # Of a file in half precision: too coarse.
    table = None
  if table is not None and (table.shape != computed.shape
                            or not np.allclose(table, computed, rtol=1e-4, atol=0)):
    raise ValueError('convert: linear_start, linear_end and timesteps of the architecture must be '
                     f'those of alphas_cumprod in the file, got {start:g}, {end:g} and {steps}, '
                     f'which end at {computed[-1]:.4g}, and there {table.size} entries that end at '
                     f'{table[..., -1:].sum():.4g}; take the yaml file of this checkpoint')
  stored = computed if table is None else table
  return levels.read_alphas_cumprod('convert', np.asarray(stored, np.float64))


def check_parts(tensors: Mapping[str, Any], architecture: Mapping[str, Any]) -> None:
  """Raises ValueError unless a file has the networks that the architecture names."""
  wanted = {'U-Net': (UNET, 'model_ema.'), 'first stage': (FIRST_STAGE,)}
  if architecture.get('cond_stage_config', _UNCONDITIONAL) not in (_UNCONDITIONAL, None):
    wanted['text encoder'] = (TEXT,)
  for part, starts in wanted.items():
    if not any(name.startswith(starts) for name in tensors):
      raise ValueError(f'convert: source must hold the {part}, names that begin with {starts[0]}, '
                       'got none; take the whole checkpoint, not a part of one')


def find(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the architecture of the published latent diffusion with the same U-Net.

  Args:
    tensors: name -> array, or anything with a shape, as in `convert`.

  Raises:
    ValueError: if there is none, as heads, sizes and levels cannot be told from shapes.
  """
  read = infer(within(tensors, UNET))
  for known in published.LDM.values():
    params = known['unet_config']['params']
    own = {**{name: default for name, default in adm.LATENT_UNET.items() if name in read}, **params}
    if not own.get('use_spatial_transformer'):
      own |= {'transformer_depth': 0}
    own['attention_resolutions'] = sorted(own['attention_resolutions'])
    if {name: own[name] for name in read} == read:
      return dict(known)
  told = ', '.join(f'{name} {read[name]}' for name in (
      'model_channels', 'channel_mult', 'num_res_blocks', 'context_dim'))
  raise ValueError('convert: architecture must be given for what is none of '
                   f'{", ".join(published.LDM)}, as its heads, sizes and levels are not in the '
                   f'file, got a U-Net with {told}; give the yaml file that it was trained with '
                   '(--config.convert.architecture)')


def infer(tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what names and shapes tell of the arguments of a U-Net.

  Args:
    tensors: name -> array, or anything with a shape, such as input_blocks.0.0.weight.

  Returns:
    in_channels, out_channels, model_channels, channel_mult, num_res_blocks, attention_resolutions
    in increasing order, use_scale_shift_norm, resblock_updown, conv_resample, transformer_depth
    (0: none), context_dim (None: none).

  Raises:
    ValueError: if a tensor that tells them is missing.
  """
  def size(name, axis):
    shape = tuple(tensors[name].shape) if name in tensors else ()
    if len(shape) <= axis or not shape[axis]:
      raise ValueError('convert: U-Net must be whole, got tensors of latent diffusion without '
                       f'{UNET}{name}; take a whole file')
    return shape[axis]
  decoder = [name.split('.', 3) for name in tensors if name.startswith('output_blocks.')]
  blocks = {name[1] for name in decoder}
  ups = {name[1] for name in decoder
         if name[2:3] != ['0'] and name[3:] in (['conv.weight'], ['in_layers.0.weight'])}
  count = 1 + len(ups)
  each = len(blocks) // count  # One more than in a level of the encoder.
  channels = size('input_blocks.0.0.weight', 0)
  ends = [f'input_blocks.{1 + level * each}' for level in range(count)]
  widths = [size(f'{end}.0.out_layers.3.weight', 0) for end in ends]
  attended = [end for end in ends if f'{end}.1.norm.weight' in tensors]
  depth = len({name.split('.')[3] for name in tensors
               if name.startswith('middle_block.1.transformer_blocks.')})
  read = 'middle_block.1.transformer_blocks.0.attn2.to_k.weight'
  down = f'input_blocks.{each}.0'  # Of a U-Net with two levels or more.
  return {'in_channels': size('input_blocks.0.0.weight', 1),
          'out_channels': size('out.2.weight', 0), 'model_channels': channels,
          'channel_mult': [width // channels for width in widths], 'num_res_blocks': each - 1,
          'attention_resolutions': [2**ends.index(end) for end in attended],
          'use_scale_shift_norm': size(f'{ends[0]}.0.emb_layers.1.weight', 0) == 2 * widths[0],
          'resblock_updown': count > 1 and f'{down}.in_layers.0.weight' in tensors,
          'conv_resample': count == 1 or f'{down}.in_layers.0.weight' in tensors
                           or f'{down}.op.weight' in tensors,
          'transformer_depth': depth, 'context_dim': size(read, 1) if depth else None}


def _check_unet(given, unet):
  """Raises ValueError for what the U-Net or its training has and no network here."""
  for name, value in (('parameterization', 'eps'), ('beta_schedule', 'linear'),
                      ('given_betas', None)):
    if given[name] != value:
      raise ValueError(f'convert: {name} of the architecture must be {value!r}, got '
                       f'{given[name]!r}; other trainings cannot be converted')
  mult = arguments.numbers('channel_mult', unet['channel_mult'])
  if mult[:1] != [1]:  # Its last layer has model_channels inputs, whatever comes before.
    raise ValueError('convert: channel_mult of the architecture must begin with 1, got '
                     f'{unet["channel_mult"]!r}; take the settings of this checkpoint')
  channels = given['channels']
  if channels not in (None, unet['in_channels']):
    raise ValueError(f'convert: channels of the architecture must be the in_channels of its U-Net, '
                     f'{unet["in_channels"]!r}, got {channels!r}; networks that read more than the '
                     'latent cannot be converted')


def _scale_factor(given, scale):
  """Latents over encodings, of the file or of the architecture."""
  if scale is not None:
    if np.size(scale) != 1:
      raise ValueError(f'convert: scale_factor in the file must be one number, got {np.size(scale)}'
                       '; take a whole file')
    return float(np.ravel(scale)[0])
  if given['scale_by_std'] and given['scale_factor'] == _KNOWN['scale_factor']:
    raise ValueError('convert: source must hold scale_factor, as its architecture has scale_by_std,'
                     ' got none; take the whole checkpoint, or give scale_factor in the '
                     'architecture')
  return given['scale_factor']


def _section(given, *names):
  """A mapping within the architecture."""
  found = given
  for i, name in enumerate(names):
    found = found.get(name)
    if not isinstance(found, Mapping):
      raise ValueError(f'convert: {".".join(names[:i + 1])} of the architecture must be given, got '
                       f'{"none" if found is None else repr(found)[:60]}; take `params` under '
                       '`model` of the yaml file')
  return found
