"""First stages: complete rules for the published ones in three namings, and what is refused."""

import gzip
import io
import json
import tarfile

import jax
import numpy as np
import pytest

from convert import autoencoder, containers, rules
from models import autoencoder as model
from tests import reference
from tests.models.test_autoencoder import CASES, tensors

KEYS = reference.GOLDEN / 'checkpoint_keys'
LISTS = json.loads(gzip.decompress((KEYS / 'checkpoints.json.gz').read_bytes()))
VAE = json.loads(gzip.decompress((KEYS / 'sd_v1_diffusers_names.json.gz').read_bytes()))['vae']
PREFIX = 'first_stage_model.'
WHOLE = {name for name, entry in LISTS.items() if 'first_stage_config' in entry.get('config', {})}
ALONE = {name for name, entry in LISTS.items() if entry['kind'] == 'first stage'}
COUNTS = {'vq': 55_322_782, 'kl': 83_653_863}

CONFIG = CASES['ldm_kl']['config']['first_stage_config']['params']
CONFIG_VQ = CASES['ldm_vq']['config']['first_stage_config']['params']
DIFFUSERS = {
    '_class_name': 'AutoencoderKL', 'act_fn': 'silu', 'block_out_channels': [32, 64, 64],
    'down_block_types': ['DownEncoderBlock2D'] * 3, 'in_channels': 3, 'latent_channels': 4,
    'layers_per_block': 2, 'norm_num_groups': 32, 'out_channels': 3, 'sample_size': 32,
    'up_block_types': ['UpDecoderBlock2D'] * 3}


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, np.float32)


def listed(name):
  """Tensors of the first stage in a published list, {relative name: shape}."""
  prefix = PREFIX if name in WHOLE else ''
  return {tensor.removeprefix(prefix): shape(*sizes)
          for tensor, sizes, *_ in LISTS[name].get('tensors', []) if tensor.startswith(prefix)}


def described(name):
  """Settings that the yaml of a published checkpoint gives."""
  config = LISTS[name]['config']
  if name in ALONE:
    return autoencoder.describe(config, 'vq' if 'n_embed' in config else 'kl')
  stage = config['first_stage_config']
  return autoencoder.describe(stage['params'], autoencoder.kind_of(stage['target']))


def place(settings, naming='ldm'):
  """(rules, shapes of parameters) of a network."""
  module = model.build(settings)
  like = autoencoder.shapes(module, 1000)
  return autoencoder.key_rules(module, like, naming), like


def file_of(settings, naming):
  """Tensors of a file of this network, by shapes."""
  placed, like = place(settings, naming)
  def leaf(path):
    inner = like
    for name in path:
      inner = inner[name]
    return inner.shape
  return {name: shape(*rules.LAYOUTS[rule.layout].original(leaf(rule.target)))
          for name, rule in placed.items()}


def test_all_published_lists_are_here():
  assert sorted(WHOLE) == ['celebahq_ldm_vq4', 'ffhq_ldm_vq4', 'lsun_bedrooms_ldm_vq4',
                           'lsun_churches_ldm_kl8', 'sd_v1']
  assert sorted(ALONE) == ['kl-f8', 'vq-f4']


@pytest.mark.parametrize('name', sorted(WHOLE | ALONE))
def test_rules_place_every_tensor_of_published_checkpoints(name):
  settings = described(name)
  # Those that are not listed have the network of one that is.
  stored = listed(name) or listed({'vq': 'vq-f4', 'kl': 'kl-f8'}[settings['kind']])
  placed, like = place(settings)
  rules.check(placed, stored, like)
  assert autoencoder.settings_from(stored) == settings
  assert sum(leaf.size for leaf in jax.tree.leaves(like)) == COUNTS[settings['kind']]


def test_rules_place_every_tensor_of_the_folder():
  settings, stored = described('sd_v1'), {name: shape(*sizes) for name, _, sizes in VAE}
  placed, like = place(settings, 'diffusers_old')
  assert autoencoder.naming_of(stored) == 'diffusers_old'
  rules.check(placed, stored, like)
  assert autoencoder.settings_from(stored) == settings
  single, _ = place(settings)
  for name, other, _ in VAE:  # A tensor goes where that of the single file goes.
    assert placed[name].target == single[other.removeprefix(PREFIX)].target


def test_the_folder_gives_the_same_parameters(tmp_path):
  _, expected = autoencoder.convert(tensors('sd'))
  with tarfile.open(fileobj=io.BytesIO(
      (reference.GOLDEN / 'ldm/sd_diffusers.tar.xz').read_bytes()), mode='r:xz') as archive:
    def read(name):
      return archive.extractfile(next(member for member in archive.getnames()
                                      if member.endswith(f'vae/{name}'))).read()
    config = json.loads(read('config.json'))
    files = {name: read(f'{name}.safetensors')
             for name in ('diffusion_pytorch_model', 'new_names')}
  namings = set()
  for name, content in files.items():
    path = tmp_path / f'{name}.safetensors'
    path.write_bytes(content)
    stored = containers.read(path).data
    namings.add(autoencoder.naming_of(stored))
    assert autoencoder.settings_from(stored) == autoencoder.describe_diffusers(config)
    fields, params = autoencoder.convert(stored, config)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert fields['image_shape'] == [16, 16, 3] and fields['latent_shape'] == [8, 8, 4]
  assert namings == {'diffusers', 'diffusers_old'}


@pytest.mark.parametrize('naming, name', [
    ('ldm', 'decoder.up.1.attn.2.proj_out.weight'),
    ('diffusers', 'decoder.up_blocks.2.attentions.2.to_out.0.weight'),
    ('diffusers_old', 'decoder.up_blocks.2.attentions.2.proj_attn.weight')])
def test_attention_within_levels(naming, name):
  ddconfig = {**CONFIG['ddconfig'], 'attn_resolutions': [16, 5], 'ch_mult': [1, 2, 2, 4]}
  settings = autoencoder.describe({**CONFIG, 'ddconfig': ddconfig}, 'kl')
  assert settings['attn_levels'] == [1]
  stored = file_of(settings, naming)
  assert name in stored and autoencoder.naming_of(stored) == naming
  assert autoencoder.settings_from(stored) == settings
  blocks = [f'{start}{kind}Block2D' for kind, start in
            [('DownEncoder', ''), ('DownEncoder', 'Attn'), *[('DownEncoder', '')] * 2]]
  config = {**DIFFUSERS, 'block_out_channels': [32, 64, 64, 128], 'down_block_types': blocks,
            'up_block_types': [block.replace('DownEn', 'UpDe') for block in blocks[::-1]]}
  assert autoencoder.describe_diffusers(config) == settings


def test_a_codebook_in_a_folder():
  config = {**DIFFUSERS, '_class_name': 'VQModel', 'num_vq_embeddings': 64, 'latent_channels': 3,
            'block_out_channels': [32, 32], 'layers_per_block': 1,
            'down_block_types': ['DownEncoderBlock2D'] * 2,
            'up_block_types': ['UpDecoderBlock2D'] * 2}
  settings = autoencoder.describe_diffusers(config)
  assert settings == autoencoder.describe(CONFIG_VQ, 'vq')
  assert autoencoder.settings_from(file_of(settings, 'diffusers')) == settings


def test_multipliers_that_are_not_whole():
  settings = autoencoder.describe_diffusers({**DIFFUSERS, 'block_out_channels': [64, 96, 128]})
  assert settings['channel_mult'] == [1, 1.5, 2]
  assert autoencoder.settings_from(file_of(settings, 'diffusers')) == settings


def test_only_what_training_left_is_ignored():
  stored = tensors('ldm_vq')
  expected = autoencoder.convert(stored, CONFIG_VQ)
  left = {'loss.discriminator.main.0.weight': np.zeros((64, 3, 4, 4)),
          'loss.perceptual_loss.lin0.model.1.weight': np.zeros((1, 64, 1, 1))}
  config, params = autoencoder.convert({**stored, **left}, CONFIG_VQ)
  assert config == expected[0]
  jax.tree.map(np.testing.assert_array_equal, params, expected[1])
  for name in ('model_ema.decay', 'lossy', 'quantize.used', 'encoder.loss.weight'):
    with pytest.raises(ValueError, match=f'got: not used {name}; choose'):
      autoencoder.convert({**stored, name: np.zeros(1)}, CONFIG_VQ)


def test_fields_of_the_part():
  settings = autoencoder.describe(CONFIG, 'kl')
  fields = autoencoder.fields(settings, 32, 0.18215)
  assert fields == {'kind': 'autoencoder', 'scale_factor': 0.18215, 'image_shape': [32, 32, 3],
                    'network': {'name': 'autoencoder', 'settings': settings},
                    'latent_shape': [8, 8, 4]}
  assert json.loads(json.dumps(fields)) == fields
  with pytest.raises(ValueError, match='resolution .* must be a multiple of 4, .* got 30'):
    autoencoder.fields(settings, 30)
  with pytest.raises(ValueError, match='scale_factor must be a finite number above 0, got nan'):
    autoencoder.fields(settings, 32, float('nan'))


@pytest.mark.parametrize('changes, match', [
    ({'ch': 'wide'}, "ch of the first stage must be an integer from 1 to 1048576, got 'wide'"),
    ({'ch': 48}, 'channels of a level must be a multiple of 32, got 48'),
    ({'ch': 64}, r'encoder.conv_in.weight is \(32, 3, 3, 3\) and must be \(64, 3, 3, 3\)'),
    ({'ch_mult': [1, 2]}, 'not used encoder.down.1.downsample.conv.weight'),
    ({'ch_mult': 2}, 'ch_mult of the first stage must be a list, got 2'),
    ({'ch_mult': [1, 'x']}, 'channel_mult must be a list of one or more numbers'),
    ({'num_res_blocks': 3}, 'missing decoder.up.0.block.3.conv1.bias'),
    ({'num_res_blocks': 10**6}, 'first stage must have fewer blocks than'),
    ({'attn_resolutions': [8]}, 'missing decoder.up.2.attn.0.k.bias'),
    ({'z_channels': 8}, r'decoder.conv_in.weight is \(64, 4, 3, 3\) and must be \(64, 8, 3, 3\)'),
    ({'double_z': False}, 'double_z of ddconfig must be True, got False; another network'),
    ({'tanh_out': True}, 'tanh_out of ddconfig must be False, got True'),
    ({'num_res_block': 2}, "unknown setting of ddconfig 'num_res_block'; did you mean num_res"),
    ({'resolution': 30}, 'resolution of the first stage must be a multiple of 4, .* got 30'),
])
def test_yaml_settings_that_do_not_fit(changes, match):
  config = {**CONFIG, 'ddconfig': {**CONFIG['ddconfig'], **changes}}
  with pytest.raises(ValueError, match=match) as error:
    autoencoder.convert(tensors('ldm_kl'), config)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('changes, match', [
    ({'_class_name': 'AutoencoderTiny'}, "unknown class of first stage 'AutoencoderTiny'"),
    ({'_class_name': None}, 'unknown class of first stage None'),
    ({'norm_num_groups': 16}, 'norm_num_groups of the config must be 32, got 16'),
    ({'shift_factor': 0.1}, 'shift_factor of the config must be None, got 0.1'),
    ({'use_quant_conv': False}, 'use_quant_conv of the config must be True, got False'),
    ({'block_out_channels': [32, 'x']}, 'block_out_channels of the first stage must be integers'),
    ({'block_out_channels': [32, 64]}, 'one per level'),
    ({'up_block_types': ['UpBlock2D'] * 3}, 'down_block_types and up_block_types of the first'),
    ({'up_block_types': [*DIFFUSERS['up_block_types'][:2], 'AttnUpDecoderBlock2D']}, 'or both'),
    ({'layers_per_block': None}, 'layers_per_block of the first stage must be an integer'),
])
def test_folders_that_do_not_fit(changes, match):
  with pytest.raises(ValueError, match=match):
    autoencoder.describe_diffusers({**DIFFUSERS, **changes})


def test_kinds_and_namings():
  assert autoencoder.kind_of('ldm.models.autoencoder.VQModelInterface') == 'vq'
  for target in ('ldm.models.autoencoder.IdentityFirstStage', None):
    with pytest.raises(ValueError, match='unknown class of first stage'):
      autoencoder.kind_of(target)
  with pytest.raises(ValueError, match="unknown kind of first stage 'gan'"):
    autoencoder.describe(CONFIG, 'gan')
  with pytest.raises(ValueError, match='ddconfig of the first stage must be given, got none'):
    autoencoder.describe({'embed_dim': 4}, 'kl')
  with pytest.raises(ValueError, match='n_embed of the first stage must be an integer'):
    autoencoder.describe({'embed_dim': 3, 'ddconfig': CONFIG_VQ['ddconfig']}, 'vq')
  with pytest.raises(ValueError, match="unknown naming 'ldmm'; did you mean ldm"):
    autoencoder.key_rules(model.build(autoencoder.describe(CONFIG, 'kl')), {}, 'ldmm')


@pytest.mark.parametrize('name', ['encoder.conv_in.weight', 'post_quant_conv.weight',
                                  'decoder.conv_out.weight', 'encoder.down.0.block.0.conv1.weight'])
def test_tensors_that_tell_no_settings(name):
  stored = tensors('ldm_kl')
  for others in ({}, {name: np.zeros(3)}):
    cut = {tensor: array for tensor, array in stored.items() if tensor != name} | others
    with pytest.raises(ValueError, match='convert: tensors must be those of a first stage, with'):
      autoencoder.convert(cut)
