"""Consistency models' checkpoints: complete rules for published ones, numbers of a small one."""

import functools
import gzip
import json
import lzma

import jax
import numpy as np
import pytest

from convert import cm, containers, rules
from models import networks
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

CHECKPOINTS = {
    name: entry for name, entry in json.loads(gzip.decompress(
        (reference.GOLDEN / 'checkpoint_keys/checkpoints.json.gz').read_bytes())).items()
    if entry['family'] == 'cm'}
NETS = reference.GOLDEN / 'cm_nets'
CASES = {case['id']: case for case in json.loads((NETS / 'manifest.json').read_text())['cases']}
RECIPES = recipe.load('cm_nets/recipes.json.gz')
SMALL = 'cm_lsun_style'
shapes = functools.cache(rules.shapes)  # Many of the published networks are the same.


def listed(name):
  """The tensors of a published checkpoint, without values."""
  entry = CHECKPOINTS[name]
  entry = CHECKPOINTS[entry.get('same_tensors_as', name)]
  return {tensor: np.broadcast_to(np.float32(1), shape) for tensor, shape in entry['tensors']}


@functools.cache
def small():
  """The tensors of the small checkpoint."""
  return recipe.weights(RECIPES[CASES[SMALL]['recipe']], CASES[SMALL]['weight_tag'])


def test_every_published_checkpoint_is_listed():
  assert len(CHECKPOINTS) == 12
  assert {name for name in CHECKPOINTS if name.startswith('edm_')} == {
      'edm_imagenet64_ema', 'edm_bedroom256_ema', 'edm_cat256_ema'}


@pytest.mark.parametrize('name', CHECKPOINTS)
def test_rules_place_every_tensor_of_published_checkpoints(name):
  entry, tensors = CHECKPOINTS[name], listed(name)
  distilled = not name.startswith('edm_')
  of_flags, of_arguments = (cm.describe(entry[told], distilled)
                            for told in ('flags', 'constructor'))
  of_flags['network']['settings']['dropout'] = entry['constructor']['dropout']  # For training.
  assert of_flags == of_arguments
  network = networks.build(**of_flags['network'])
  like = shapes(network, tuple(of_flags['image_shape']), len(tensors))
  rules.check(cm.key_rules(network, like), tensors, like)
  assert sum(leaf.size for leaf in jax.tree.leaves(like)) == entry['n_params']
  # A teacher is EDM's, a consistency model leaves images at its lowest level as they are.
  assert of_flags['preconditioning'] == {
      'name': 'cm', 'settings': {'sigma_min': 0.002} if distilled else {}}
  assert ('boundary' in entry['preconditioning']) == distilled
  assert (of_flags['sigma_min'], of_flags['sigma_max']) == (0.002, 80)


def test_flags_have_the_defaults_of_their_own_scripts():
  given = {'image_size': 256, 'channel_mult': '1,1,2,2,4,4'}
  settings = cm.describe(given, True)['network']['settings']
  assert settings['attn_resolutions'] == [32, 16, 8]  # guided-diffusion's end at 16.
  assert (settings['adaptive_scale'], settings['num_heads']) == (True, 4)
  told = cm.describe({**given, 'sigma_min': 0.01, 'sigma_max': 50, 'weight_schedule': 'snr'}, True)
  assert told['preconditioning']['settings'] == {'sigma_min': 0.01}
  assert (told['sigma_min'], told['sigma_max']) == (0.01, 50)


def test_a_converted_file_gives_the_recorded_numbers(tmp_path):
  case, oracle = CASES[SMALL], np.load(NETS / CASES[SMALL]['file'])
  path = tmp_path / 'model.pt'
  path.write_bytes(lzma.decompress((NETS / case['checkpoint']).read_bytes()))
  tensors = containers.read(path).data
  config, params = cm.convert(tensors, case['kwargs'], distilled=True)
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == case['n_params']
  network = networks.build(**config['network'])
  coefficients = networks.preconditioning(**config['preconditioning'])
  denoised, _, _ = quickly(networks.denoiser(network, coefficients))(
      params, oracle['x'][1].astype(np.float32), np.float32(oracle['sigma'][1]))
  # Sums in another order than the original's, in a network of the same conditioning.
  bound = 4 * case['denoised_max_abs_err_float32_vs_float64']
  assert abs(denoised - oracle['denoised_boundary64'][1]).max() < bound


def test_the_order_of_the_attention_is_its_own_whatever_the_flags_say():
  kwargs = CASES[SMALL]['kwargs']
  assert cm.describe({**kwargs, 'use_new_attention_order': True}, True) == cm.describe(kwargs, True)
  network = networks.build(**cm.describe(kwargs, True)['network'])
  rule = cm.key_rules(network, shapes(network, (16, 16, 3), 100))[
      'middle_block.1.qkv.weight']
  assert (rule.order, rule.layout, rule.heads) == ('new', 'conv', 4)


@pytest.mark.parametrize('changes, match', [
    ({'learn_sigma': True}, "unknown setting of the architecture 'learn_sigma'"),
    ({'out_channels': 6}, 'out_channels .* must be the 3 of the images, got 6; these networks'),
    ({'sigma_min': 90}, 'sigma_min and sigma_max .* must increase and be above 0, got 90 and 80.0'),
    ({'sigma_max': 'high'}, "above 0, got 0.002 and 'high'"),
    ({'model_channels': 64}, r'time_embed.0.weight is \(128, 32\) and must be \(256, 64\)'),
    ({'num_classes': 10}, 'got: missing label_emb.weight; choose'),
    ({'use_scale_shift_norm': True}, r'emb_layers.1.weight is \(32, 128\) and must be \(64, 128\)'),
    ({'small_size': 64}, "unknown setting of the architecture 'small_size'"),
])
def test_architectures_that_do_not_fit(changes, match):
  kwargs = CASES[SMALL]['kwargs']
  cm.convert(small(), kwargs, distilled=False)
  with pytest.raises(ValueError, match=match) as error:
    cm.convert(small(), {**kwargs, **changes}, distilled=False)
  assert '\n' not in str(error.value)
