"""CLIP's two published layouts become the same parameters; what does not fit is told at once."""

import gzip
import json
import lzma

import jax
import numpy as np
import pytest

from convert import clip, containers
from tests import reference
from tests.models import test_clip as network_tests
from tests.models.test_clip import CASES, RECIPES

FOLDER = reference.GOLDEN / 'clip_image'
MAPS = json.loads(gzip.decompress((FOLDER / 'name_maps.json.gz').read_bytes()))
CONFIG = json.loads((FOLDER / 'transformers_config.json').read_text())
FILES = CASES['file']['files']


def published(name):
  """Tensors of a case in transformers' names."""
  return network_tests.recipe.weights(RECIPES[CASES[name]['recipe']],
                                      CASES[name]['weight_tag'])


def renamed(name):
  """The same in OpenAI's names, by the published map."""
  tensors, parts = {}, {}
  own = published(name)
  for ours, theirs, operation in MAPS[name]:
    if operation.startswith('rows third'):
      parts.setdefault(theirs, {})[int(operation[-1])] = own[ours]
    else:
      tensors[theirs] = own[ours].T if operation == 'transpose' else own[ours]
  return tensors | {theirs: np.concatenate([rows[i] for i in range(3)])
                    for theirs, rows in parts.items()}


def read(path, name):
  target = path / name.removesuffix('.xz')
  target.write_bytes(lzma.decompress((FOLDER / name).read_bytes()))
  return containers.read(target).data


@pytest.mark.parametrize('file, config', [
    ('openai_layout', None), ('transformers_layout', CONFIG), ('transformers_layout', None)])
def test_files_of_both_layouts(file, config, tmp_path):
  tensors = read(tmp_path, FILES[file])
  assert clip.matches(tensors)
  halves = [name for name, array in tensors.items() if array.dtype == np.float16]
  assert sorted(halves) == (FILES['half_precision_tensors'] if file == 'openai_layout' else [])
  converted, params = clip.convert(tensors, config)
  module, expected = network_tests.convert('file')
  assert converted['kind'] == 'features' and converted['network']['name'] == 'clip'
  assert converted['network']['settings'] == {
      name: getattr(module, name) for name in converted['network']['settings']}
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
  jax.tree.map(np.testing.assert_array_equal, params, expected['params'])


@pytest.mark.parametrize('name', CASES)
def test_names_of_openai_by_the_published_map(name):
  module, expected = network_tests.convert(name)
  own = {'image_heads': module.image_heads, 'text_heads': module.text_heads, 'activation': 'gelu',
         'eos_token_id': module.eos_token_id}
  config, params = clip.convert(renamed(name), own if name == 'laion_style' else None)
  assert module == type(module)(**config['network']['settings'])
  jax.tree.map(np.testing.assert_array_equal, params, expected['params'])


def test_config_of_open_clip():
  module, _ = network_tests.convert('openai_style')
  vision = {'image_size': 32, 'layers': 2, 'width': 128, 'head_width': 32, 'patch_size': 8}
  text = {'context_length': 16, 'vocab_size': 99, 'width': 64, 'heads': 4, 'layers': 2}
  config = {'model_cfg': {'embed_dim': 48, 'vision_cfg': vision, 'text_cfg': text},
            'preprocess_cfg': {}}
  tensors = renamed('openai_style')
  settings = clip.describe(tensors, config)
  assert settings == {**clip.describe(tensors), 'image_heads': 4, 'text_heads': 4,
                      'activation': 'gelu'}
  config['model_cfg']['quick_gelu'] = True
  assert clip.describe(tensors, config)['activation'] == module.activation == 'quick_gelu'
  vision['timm_model_name'] = 'vit'
  with pytest.raises(ValueError, match='vision_cfg must be that of a plain CLIP, got timm_'):
    clip.describe(tensors, config)


@pytest.mark.parametrize('layout', [renamed, published])
def test_all_that_does_not_fit_is_told_at_once(layout):
  tensors = layout('file')
  names = clip.layout(tensors)
  norm, bias = (next(name for name in tensors if part in name) for part in
                ('ln_final' if layout is renamed else 'final_layer_norm', 'bias'))
  qkv = next(name for name in tensors if 'in_proj_weight' in name or 'k_proj.weight' in name)
  tensors |= {'odd.weight': np.zeros(3), qkv: tensors[qkv][:-1],
              **{name: np.zeros((), int) for name in names.ignored}}
  del tensors[norm]
  with pytest.raises(ValueError, match=f'missing {norm}; not used odd.weight; {qkv} is .* must be'):
    clip.convert(tensors)
  finite = layout('file')
  finite[bias] = np.full_like(finite[bias], np.nan)
  with pytest.raises(ValueError, match=f'weights must be finite, got NaN or infinity in {bias}'):
    clip.convert(finite)


def test_the_ignored_names_are_exactly_those_of_the_layout():
  for layout, foreign in ((renamed, 'text_model.embeddings.position_ids'),
                          (published, 'input_resolution')):
    tensors = layout('file')
    for name in clip.layout(tensors).ignored:
      clip.convert({**tensors, name: np.zeros((), int)})
    if layout is published:
      with pytest.raises(ValueError, match=f'not used {foreign}'):
        clip.convert({**tensors, foreign: np.zeros((), int)})


def test_other_networks_are_told_apart():
  tensors = published('file')
  assert not clip.matches({name: 0 for name in tensors if name.startswith('text_')})
  assert not clip.matches({'features.0.weight': 0})
  resnet = {'visual.layer1.0.conv1.weight': np.zeros((1, 1, 1, 1)),
            'visual.conv1.weight': np.zeros((8, 3, 3, 3)),
            'token_embedding.weight': np.zeros((9, 4))}
  assert clip.matches(resnet)
  with pytest.raises(ValueError, match='a CLIP with a vision transformer, got: missing visual.pos'):
    clip.convert(resnet)


def wide(name='file', width=1280):
  """Tensors whose image tower claims another width."""
  tensors = renamed(name)
  kernel = tensors['visual.conv1.weight']
  return {**tensors, 'visual.conv1.weight': np.broadcast_to(kernel[:1], (width, *kernel.shape[1:]))}


@pytest.mark.parametrize('tensors, config, match', [
    (wide(), None, 'config must tell image_heads, text_heads, activation of a CLIP of width 1280'),
    (renamed('laion_style'), None, 'image_heads must divide the width 48, got 0; give the file'),
    (renamed('file'), {'image_heads': 7}, 'image_heads must divide the width 64, got 7; give'),
    (renamed('file'), {'activation': 'relu'}, "unknown activation 'relu'"),
    (renamed('file'), {'heads': 1}, "unknown setting of CLIP 'heads'"),
    (renamed('file'), {'eos_token_id': 'x'}, "eos_token_id must be an integer, got 'x'"),
    (published('file'), CONFIG | {'text_config': CONFIG['text_config'] | {'vocab_size': 41}},
     'config must be that of the tensors, got one with vocab 41 and not 40; take'),
    (published('file'), {'vision_config': CONFIG['vision_config'] | {'hidden_act': 'gelu'}},
     "hidden_act must be that of both towers, got 'gelu' and 'quick_gelu'"),
    (published('file'), {'vision_config': {'layer_norm_eps': 1e-6}},
     'layer_norm_eps in vision_config must be 1e-05, got 1e-06; take another CLIP'),
    (published('file'), {'vision_config': 3}, 'vision_config of the config must be an object, got'),
    ({**renamed('file'), 'visual.positional_embedding': np.zeros((4, 64))}, None,
     r'image tower must have square patches .*, got a kernel \(64, 3, 16, 16\) and 4 tokens'),
    ({**renamed('file'), 'text_projection': np.zeros(3)}, None,
     r'text_projection is \(3,\) and must have 2 axes; take'),
])
def test_what_cannot_be_told(tensors, config, match):
  with pytest.raises(ValueError, match=match) as error:
    clip.convert(tensors, config)
  assert str(error.value).startswith('convert: ') and '\n' not in str(error.value)
