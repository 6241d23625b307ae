"""guided-diffusion's checkpoints: complete rules for published ones, numbers of small ones."""

import dataclasses
import functools
import gzip
import json
import lzma

import jax
import numpy as np
import pytest

import convert
from convert import adm, containers, published, rules
from models import networks
from samplers import levels
from tests import reference
from tests.convert import writing
from tests.models.test_edm_nets import quickly

CHECKPOINTS = {
    name: entry for name, entry in json.loads(gzip.decompress(
        (reference.GOLDEN / 'checkpoint_keys/checkpoints.json.gz').read_bytes())).items()
    if entry['family'] == 'adm'}
LISTED = [name for name, entry in CHECKPOINTS.items() if 'tensors' in entry]
NETS = reference.GOLDEN / 'adm_nets'
CASES = {case['id']: case for case in json.loads((NETS / 'manifest.json').read_text())['cases']}
FILES = [name for name, case in CASES.items() if 'checkpoint' in case]
SMALL = 'adm_uncond_ssn_updown'


@pytest.fixture
def unpacked(tmp_path):
  """A function that gives a checkpoint file by the name of its case."""
  def unpack(name):
    path = tmp_path / f'{name}.pt'
    path.write_bytes(lzma.decompress((NETS / CASES[name]['checkpoint']).read_bytes()))
    return path
  return unpack


def names_alone(name):
  """Of a checkpoint that is not listed, the tensors that tell what kind of network it is."""
  kind = CHECKPOINTS[name]['kind']
  channels = 6 if kind.startswith('super') else 3
  tensors = {'input_blocks.0.0.weight': np.zeros((1, channels, 3, 3))}
  return tensors | ({} if kind == 'classifier' else {'output_blocks.0': np.zeros(1)})


def test_every_published_checkpoint_is_in_the_table():
  assert published.ADM.keys() == CHECKPOINTS.keys()


@pytest.mark.parametrize('name', published.ADM)
def test_flags_give_the_published_arguments(name):
  flags = dict(published.ADM[name])
  schedule = flags.pop('noise_schedule', 'linear')
  expected = dict(CHECKPOINTS[name]['constructor'])
  for setting in ('use_checkpoint', 'use_fp16'):  # Of no effect on images or parameters.
    expected.pop(setting, None)
  given = adm.constructor(flags)
  assert {setting: given.get(setting, False) for setting in expected} == expected
  if 'diffusion' in CHECKPOINTS[name]:
    assert schedule == CHECKPOINTS[name]['diffusion']['noise_schedule']


@pytest.mark.parametrize('name', LISTED)
def test_rules_place_every_tensor_of_published_checkpoints(name):
  entry = CHECKPOINTS[name]
  tensors = {tensor: np.broadcast_to(np.float32(1), shape) for tensor, shape in entry['tensors']}
  config, order = adm.describe(tensors, published.ADM[name])
  network = networks.build(**config['network'])
  told, other_order = adm.describe(tensors, entry['constructor'])
  assert (networks.build(**told['network']), other_order) == (network, order)
  like = rules.shapes(network, config['image_shape'], len(tensors))
  rules.check(adm.key_rules(network, like, order), tensors, like)
  assert order == ('new' if name == '64x64_diffusion' else 'legacy')
  assert sum(leaf.size for leaf in jax.tree.leaves(like)) == entry['n_params']
  assert config['kind'] == ('classifier' if entry['kind'] == 'classifier' else 'denoiser')


@functools.cache
def shapes(network, image_shape):
  """Those of the parameters, once for checkpoints of one architecture."""
  return rules.shapes(network, image_shape, 1000)


@pytest.mark.parametrize('name', sorted(CHECKPOINTS.keys() - set(LISTED)))
def test_rules_exist_for_published_checkpoints_that_are_not_listed(name):
  config, order = adm.describe(names_alone(name), published.ADM[name])
  network = networks.build(**config['network'])
  like = shapes(dataclasses.replace(network, dropout=0.0), tuple(config['image_shape']))
  leaves = jax.tree.leaves(like)
  assert len(adm.key_rules(network, like, order)) == len(leaves)
  side = CHECKPOINTS[name]['constructor']['image_size']
  assert config['image_shape'] == [side, side, 3]


def test_levels_and_preconditioning():
  def read(**flags):
    config, _ = adm.describe(names_alone('256x256_diffusion'), {
        **published.ADM['256x256_diffusion'], **flags})
    return config['preconditioning'], config['sigma_min'], config['sigma_max']
  vp, low, high = read()
  assert vp == {'name': 'vp', 'settings': {'beta_d': 19.9, 'beta_min': 0.1, 'M': 1000}}
  np.testing.assert_allclose((low, high), np.load(NETS / 'cg_wrapper.npz')['sigma_min_max64'])
  cosine, low, high = read(noise_schedule='cosine')
  assert cosine == {'name': 'discrete', 'settings': {'alphas_cumprod': 'cosine'}}
  table = levels.table_sigmas(levels.cosine_alphas_cumprod())
  np.testing.assert_allclose((low, high), (table[0], table[-1]), rtol=1e-9)
  few, _, _ = read(noise_schedule='cosine', diffusion_steps=4000)
  assert len(few['settings']['alphas_cumprod']) == 4000


@pytest.mark.parametrize('name', FILES)
def test_converted_networks_give_the_recorded_numbers(name, unpacked):
  case, oracle = CASES[name], np.load(NETS / CASES[name]['file'])
  config, params = convert.load(unpacked(name), architecture=case['kwargs'])
  network = networks.build(**config['network'])
  classifier = config['kind'] == 'classifier'
  answer = quickly(lambda params, x, t: network.apply({'params': params}, x, t))(
      params, oracle['x'].astype(np.float32), oracle['t'].astype(np.float32))
  answer, expected = (answer, 'logits64') if classifier else (answer[0], 'out64')
  # Sums in another order than the original's, in a network of the same conditioning.
  assert abs(answer - oracle[expected]).max() < 4 * case['max_abs_err_float32_vs_float64']


def test_a_file_is_recognized_by_its_name():
  assert convert.find_architecture('somewhere/lsun_cat.pt') == published.ADM['lsun_cat']
  assert convert.find_architecture('lsun_cat2.pt') is None
  given = convert.find_architecture('lsun_cat.pt', '256x256_classifier')
  assert given == published.ADM['256x256_classifier']
  with pytest.raises(ValueError, match="unknown published checkpoint 'lsun_ca'; did you mean lsun"):
    convert.find_architecture('lsun_cat.pt', 'lsun_ca')
  with pytest.raises(ValueError, match='published and architecture must not be given both'):
    convert.find_architecture('lsun_cat.pt', 'lsun_cat', {})


def test_an_architecture_in_a_file(tmp_path, unpacked):
  path, file = tmp_path / 'flags.json', unpacked(SMALL)
  kwargs = CASES[SMALL]['kwargs']
  flags = {'image_size': 16, 'num_channels': 32, 'num_res_blocks': 1, 'learn_sigma': True,
           'attention_resolutions': '8', 'channel_mult': '1,1', 'num_head_channels': 16,
           'resblock_updown': True}
  expected = convert.load(file, architecture=kwargs)
  for content in (kwargs, flags):
    path.write_text(json.dumps(content))
    config, params = convert.load(file, 'adm', architecture=path)
    settings = config['network']['settings']
    # Where heads are told by their size, their number has no effect.
    assert {**settings, 'num_heads': 1} == expected[0]['network']['settings']
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])
  for content, match in (('{', 'must be a JSON file, got .*flags.json'), ('[]', 'got a list in')):
    path.write_text(content)
    with pytest.raises(ValueError, match=match):
      convert.load(file, architecture=path)


def test_safetensors_are_the_same(tmp_path, unpacked):
  file = unpacked(SMALL)
  path = tmp_path / 'model.safetensors'
  path.write_bytes(writing.safetensors(containers.read(file).data))
  expected = convert.load(file, architecture=CASES[SMALL]['kwargs'])
  config, params = convert.load(path, architecture=CASES[SMALL]['kwargs'])
  assert config == expected[0]
  jax.tree.map(np.testing.assert_array_equal, params, expected[1])


def test_tensors_alone_need_an_architecture(unpacked):
  with pytest.raises(ValueError, match=r'architecture must be given, .* 256x256_diffusion,'):
    convert.load(unpacked(SMALL))


def test_an_edm_file_needs_none():
  path = reference.GOLDEN / 'edm_pickles/edm_song_cond.pkl'
  with pytest.raises(ValueError, match='must be left out, as the file tells its own, got lsun_cat'):
    convert.load(path, published='lsun_cat')


@pytest.mark.parametrize('changes, match', [
    ({'image_size': 'large'}, 'image_size of the architecture must be an integer from 1 to'),
    ({'model_channels': 64}, r'time_embed.0.weight is \(128, 32\) and must be \(256, 64\)'),
    ({'num_res_blocks': 2}, 'missing input_blocks.4.0.emb_layers.1.bias'),
    ({'channel_mult': [1, 2]}, r'and must be \(64, '),
    ({'channel_mult': [1, 'x']}, 'channel_mult of the architecture must be numbers above 0'),
    ({'num_classes': 10}, r'got: missing label_emb.weight; choose'),
    ({'out_channels': 3}, r'got: out.2.weight is \(6, 32, 3, 3\) and must be \(3, 32, 3, 3\), out'),
    ({'resblock_updown': False}, 'missing input_blocks.2.0.op.bias, input_blocks.2.0.op.weight'),
    ({'attention_resolutions': [1, 2]}, 'missing input_blocks.1.1.norm.bias'),
    ({'num_chanels': 3}, "unknown setting of the architecture 'num_chanels'; did you mean "),
    ({'num_res_blocks': 10**9}, 'must have fewer blocks than'),
    ({'noise_schedule': 'cosin'}, "unknown noise_schedule 'cosin'; did you mean cosine"),
    ({'predict_xstart': True}, 'must have predict_xstart False'),
    ({'rescale_timesteps': True, 'diffusion_steps': 4000}, 'rescale_timesteps False unless'),
    ({'learn_sigma': True}, "constructor's out_channels or the flag learn_sigma"),
    ({'channel_mult': []}, 'channel_mult of the architecture must be given, got none'),
    ({'resblock_updown': 'yes'}, "resblock_updown must be True or False, got 'yes'"),
    ({'predict_xstart': 0}, 'predict_xstart must be True or False, got 0'),
    ({'model_channels': 2**80}, 'network must be one that can be built, got settings for which'),
    ({'num_head_channels': 24}, 'num_head_channels of the architecture must divide'),
])
def test_architectures_that_do_not_fit(changes, match, unpacked):
  file = unpacked(SMALL)
  with pytest.raises(ValueError, match=match) as error:
    convert.load(file, architecture={**CASES[SMALL]['kwargs'], **changes})
  assert str(error.value).startswith(f'convert: {file}: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('flags, match', [
    ({'image_size': 96, 'num_channels': 32}, 'only images of .64, 128, 256, 512. pixels have'),
    ({'image_size': 64, 'num_chanels': 32}, "unknown setting .* 'num_chanels'; did you mean"),
    ({'classifier_depth': 2, 'width': 3}, "unknown setting of the architecture 'width'"),
])
def test_flags_that_do_not_fit(flags, match):
  with pytest.raises(ValueError, match=match):
    adm.constructor(flags)


def test_arguments_that_are_missing():
  with pytest.raises(ValueError, match='must have num_res_blocks, attention_resolutions, got none'):
    adm.describe({}, {'image_size': 8, 'model_channels': 32, 'out_channels': 3})


@pytest.mark.parametrize('arrays, match', [
    ({'odd': np.zeros(3, np.float32)}, 'must be one of edm, sfd, adm, .*, got tensors such as odd'),
    ({'model.diffusion_model.out': np.zeros(3, np.float32)}, 'got tensors of latent diffusion'),
    ({}, 'source must be a dict of tensors, got'),
])
def test_files_of_no_family(arrays, match, tmp_path):
  path = tmp_path / 'x.safetensors'
  path.write_bytes(writing.safetensors(arrays))
  with pytest.raises(ValueError, match=match):
    convert.load(path)


def test_a_file_with_more_than_tensors(tmp_path):
  path = tmp_path / 'x.pt'
  path.write_bytes(writing.archive({'step': 3}, {}))
  with pytest.raises(ValueError, match="dict of tensors, got the keys 'step'; save the state_dict"):
    convert.load(path)


def test_a_wrong_family():
  path = reference.GOLDEN / 'edm_pickles/edm_song_cond.pkl'
  with pytest.raises(ValueError, match='family must be edm, as its tensors show, got adm; leave'):
    convert.load(path, 'adm', architecture={})
  with pytest.raises(ValueError, match="unknown family 'emd'; did you mean edm"):
    convert.load(path, 'emd')
