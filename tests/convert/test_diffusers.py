"""Folders of diffusers: names of the published ones, and the parameters of the .ckpt."""

import functools
import gzip
import json
import lzma
import tarfile

import jax
import numpy as np
import pytest

import convert
from convert import containers, diffusers, ldm, published, rules
from tests import reference
from tests.convert import test_ldm, writing

FOLDER = reference.GOLDEN / 'ldm'
NAMES = json.loads(gzip.decompress(
    (reference.GOLDEN / 'checkpoint_keys/sd_v1_diffusers_names.json.gz').read_bytes()))
STARTS = {'unet': ldm.UNET, 'vae': ldm.FIRST_STAGE, 'text_encoder': ldm.TEXT}
WEIGHTS = 'vae/diffusion_pytorch_model.safetensors'


@pytest.fixture
def folder(tmp_path):
  """The folder as published."""
  path = tmp_path / 'sd'
  with tarfile.open(FOLDER / 'sd_diffusers.tar.xz') as tar:
    tar.extractall(path, filter='data')
  return path


@functools.cache
def expected():
  """(config, params) of the .ckpt with the same weights."""
  tensors = containers.parse(lzma.decompress((FOLDER / 'sd.ckpt.xz').read_bytes()))[1]['state_dict']
  with tarfile.open(FOLDER / 'sd_diffusers.tar.xz') as tar:
    lines = tar.extractfile('tokenizer/merges.txt').read().decode().split('\n')[1:]
  merges = [line for line in lines if line]
  vocabulary = {'merges': merges, 'pad': 513 + len(merges), 'convention': 'transformers'}
  return ldm.convert(tensors, test_ldm.architecture('sd'), vocabulary=vocabulary)[:2]


def check(path):
  """Asserts that a folder gives what the .ckpt gives, bit by bit; returns what it gives."""
  converted = convert.read(path)
  assert converted.config == expected()[0]
  jax.tree.map(np.testing.assert_array_equal, converted.params, expected()[1])
  assert {leaf.dtype for leaf in jax.tree.leaves(converted.params)} == {np.dtype('float32')}
  return converted


def change(path, **fields):
  """Changes fields of a JSON file; those that are None are taken out."""
  content = json.loads(path.read_text()) | fields
  path.write_text(json.dumps({name: value for name, value in content.items()
                              if value is not ...}))


def test_a_folder_is_its_ckpt(folder):
  converted = check(folder)
  assert converted.config['parts']['first_stage']['scale_factor'] == 0.18215
  source = converted.source
  assert (source['converted'], source['family']) == ('sd', 'sd')
  assert source['sha256'] == convert.digest(folder) and len(source['files']) == 12


def test_the_present_names_of_the_attention(folder):
  (folder / WEIGHTS).unlink()
  (folder / 'vae/new_names.safetensors').rename(folder / WEIGHTS)
  names = containers.read(folder / WEIGHTS).data
  assert 'encoder.mid_block.attentions.0.to_out.0.weight' in names
  check(folder)


def test_files_of_pytorch_and_fields_of_later_versions(folder):
  for part, name in (('unet', 'diffusion_pytorch_model'), ('text_encoder', 'model')):
    path = folder / part / f'{name}.safetensors'
    tensors = {key: np.array(value) for key, value in containers.read(path).data.items()}
    stored = {key: writing.tensor(writing.storage(str(i), value), value.shape)
              for i, (key, value) in enumerate(tensors.items())}
    arrays = {str(i): value for i, value in enumerate(tensors.values())}
    name = 'pytorch_model' if part == 'text_encoder' else name
    (folder / part / f'{name}.bin').write_bytes(writing.archive(stored, arrays))
    path.unlink()
  change(folder / 'unet/config.json', num_attention_heads=None, use_linear_projection=False,
         conv_in_kernel=3, addition_embed_type_num_heads=64, upcast_attention=False, dropout=0.0,
         resnet_time_scale_shift='default', class_embed_type=None, _name_or_path='x')
  change(folder / 'vae/config.json', scaling_factor=0.18215, force_upcast=True)
  change(folder / 'scheduler/scheduler_config.json', prediction_type='epsilon')
  check(folder)


def test_every_published_name_has_its_place():
  assert {part: len(names) for part, names in NAMES.items()} == {
      'unet': 686, 'vae': 248, 'text_encoder': 197}
  config = test_ldm.describe('sd_v1', published.LDM['sd_v1'])
  design, folder = (ldm.assemble(config, 10**4, naming) for naming in ('ldm', 'diffusers_old'))
  for part, names in NAMES.items():
    own = {'unet': 'network', 'vae': 'first_stage', 'text_encoder': 'text'}[part]
    tensors = {name: jax.ShapeDtypeStruct(tuple(shape), np.float32) for name, _, shape in names}
    if part == 'text_encoder':
      del tensors['text_model.embeddings.position_ids']
    named = folder.rules[own]
    if part == 'unet':
      named = {diffusers.unet_name(name, 2): rule for name, rule in named.items()}
    rules.check(named, tensors, {own: design.like[own]})
    # And it is the place of its name in the .ckpt.
    there = {STARTS[part] + name: rule.target for name, rule in design.rules[own].items()}
    places = {name: named[name].target for name in tensors}
    assert places == {name: there[other] for name, other, _ in names if name in places}


@pytest.mark.parametrize('file, fields, match', [
    ('unet/config.json', {'attention_head_dim': 5}, 'channels of a level must divide into its'),
    ('unet/config.json', {'use_linear_projection': True}, 'must have no use_linear_projection'),
    ('unet/config.json', {'act_fn': 'gelu'}, "must have act_fn 'silu', got 'gelu'"),
    ('unet/config.json', {'attention_head_dim': [4, 8]}, 'num_heads .* must be an integer'),
    ('unet/config.json', {'time_cond_proj_dim': 256}, 'must have no time_cond_proj_dim, got 256'),
    ('unet/config.json', {'sample_size': ...}, 'must have sample_size, got none'),
    ('unet/config.json', {'down_block_types': ['DownBlock2D'] * 3}, 'must have the same'),
    ('unet/config.json', {'block_out_channels': [32, 32, 96]}, r'unet/.* must be \(96,'),
    ('unet/config.json', {'layers_per_block': 2}, 'missing unet/down_blocks.0.attentions.1.norm'),
    ('unet/config.json', {'in_channels': 5}, 'latents of the first stage must have the 5 channels'),
    ('unet/config.json', {'cross_attention_dim': 32}, 'width of the text encoder must be the'),
    ('vae/config.json', {'block_out_channels': [32, 64]}, r'vae/.* and must be'),
    ('vae/config.json', {'sample_size': 15}, 'resolution of the first stage must be a multiple'),
    ('text_encoder/config.json', {'num_attention_heads': 5}, 'num_attention_heads .* must divide'),
    ('text_encoder/config.json', {'vocab_size': 600}, 'got vocab 600 and not 584'),
    ('scheduler/scheduler_config.json', {'prediction_type': 'v_prediction'},
     "prediction_type of scheduler/ must be 'epsilon', got 'v_prediction'"),
    ('scheduler/scheduler_config.json', {'beta_schedule': 'linear'}, "must be 'scaled_linear'"),
    ('scheduler/scheduler_config.json', {'beta_start': ...}, 'scheduler/ must tell beta_start'),
    ('model_index.json', {'text_encoder': ['transformers', 'T5EncoderModel']},
     "text_encoder in model_index.json must be a CLIPTextModel, got 'T5EncoderModel'"),
])
def test_configs_that_do_not_fit(file, fields, match, folder):
  change(folder / file, **fields)
  with pytest.raises(ValueError, match=match) as error:
    convert.load(folder)
  assert str(error.value).startswith(f'convert: {folder}: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('name', [
    'unet/config.json', 'unet/diffusion_pytorch_model.safetensors', WEIGHTS,
    'text_encoder/model.safetensors', 'text_encoder/config.json', 'tokenizer/merges.txt',
    'tokenizer/vocab.json', 'scheduler/scheduler_config.json'])
def test_folders_that_lack_a_part(name, folder):
  (folder / name).unlink()
  with pytest.raises(ValueError, match=f'whole folder of Stable Diffusion, .* without {name}; '):
    convert.load(folder)


def test_folders_that_are_damaged(folder):
  with pytest.raises(ValueError, match='tokenizer must be left out, as the folder tells all'):
    convert.load(folder, tokenizer=folder / 'tokenizer')
  with pytest.raises(ValueError, match='published must be left out, as the folder tells all'):
    convert.load(folder, published='sd-v1-4')
  with pytest.raises(ValueError, match='ema must be left out, as the folder tells all that'):
    convert.load(folder, ema='require')
  with pytest.raises(ValueError, match='family must be sd, as its tensors show, got adm'):
    convert.load(folder, 'adm')
  for name, content, match in (
      ('unet/config.json', b'{', 'unet/config.json must be JSON'),
      ('vae/config.json', b'[]', 'vae/config.json must be a JSON object, got a list'),
      (WEIGHTS, (folder / WEIGHTS).read_bytes()[:-100], 'must have .* bytes of tensors, got'),
      (WEIGHTS, b'<html>', 'must be a checkpoint, got a web page')):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
      convert.load(folder)
    (folder / name).write_bytes(whole)
  # A U-Net alone, and a folder without its index.
  with pytest.raises(ValueError, match='got the U-Net of a folder of diffusers; give the whole'):
    convert.load(folder / 'unet/diffusion_pytorch_model.safetensors')
  (folder / diffusers.INDEX).unlink()
  with pytest.raises(ValueError, match='source must be a file, got the folder'):
    convert.load(folder)
