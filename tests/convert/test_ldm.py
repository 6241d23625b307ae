"""Latent diffusion's checkpoints: complete rules for published ones, numbers of small ones."""

import functools
import gzip
import json
import lzma
import tarfile

import jax
import numpy as np
import pytest
import yaml

import convert
from convert import containers, ldm, plain, published, rules, text
from models import autoencoder, clip, networks, parts
from tests import recipe, reference
from tests.convert import writing
from tests.models.test_edm_nets import quickly

CHECKPOINTS = {
    name: entry for name, entry in json.loads(gzip.decompress(
        (reference.GOLDEN / 'checkpoint_keys/checkpoints.json.gz').read_bytes())).items()
    if entry['family'] == 'ldm' and entry['kind'] == 'latent diffusion'}
LISTED = [name for name, entry in CHECKPOINTS.items() if 'tensors' in entry]
FOLDER = reference.GOLDEN / 'ldm'
CASES = {case['id']: case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']}
FILES = 'ldm_vq', 'sd'
SCHEDULE = ldm.BUFFERS - {'scale_factor', 'logvar', ldm.TEXT + next(iter(text.IGNORED))}


def architecture(name):
  """The parameters that a small model was made with."""
  config = CASES[name]['config']
  if name != 'sd':
    return config
  return {**config, 'cond_stage_config': {**config['cond_stage_config'],
                                          'clip_text_config': CASES['sd']['clip_config']}}


@functools.cache
def packed(name):
  return lzma.decompress((FOLDER / CASES[name]['checkpoint']).read_bytes())


def state_dict(name):
  """The tensors of a small model, those that are no parameters of a network left out for some."""
  if name in FILES:
    return dict(containers.parse(packed(name))[1]['state_dict'])
  return recipe.weights(recipe.load('ldm/recipes.json.gz')[name], name) | {
      'scale_factor': np.float32(CASES[name]['scale_factor']).reshape(())}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with the small checkpoints and, below tokenizer/, their vocabulary."""
  path = tmp_path_factory.mktemp('ldm')
  for name in FILES:
    (path / f'{name}.ckpt').write_bytes(packed(name))
  with tarfile.open(FOLDER / 'sd_diffusers.tar.xz') as tar:
    tar.extractall(path, [one for one in tar if one.name.startswith('tokenizer')], filter='data')
  return path


def listed(name):
  """Shapes of the tensors of a published checkpoint."""
  return {tensor[0]: jax.ShapeDtypeStruct(tuple(tensor[1]), np.float32)
          for tensor in CHECKPOINTS[name]['tensors']}


def vocabulary(count):
  """One with so many ids."""
  return {'merges': [f'a{i} b' for i in range(count - 514)], 'pad': 0,
          'convention': 'transformers'}


def describe(name, told):
  """What a published checkpoint is, by its parameters."""
  own = listed(name) if name == 'sd_v1' else {}
  # This one has its scale in the file.
  scale = np.float32(0.22) if name == 'lsun_churches_ldm_kl8' else None
  return ldm.describe(told, ldm.within(own, ldm.TEXT), vocabulary(49408) if own else None,
                      scale=scale)


@functools.cache
def design(name):
  return ldm.assemble(describe(name, published.LDM[name]), 10**4)


def yaml_of(name):
  """The yaml file's parameters as listed."""
  config = CHECKPOINTS[name]['config']
  told = config['cond_stage_config']
  return {**config, 'cond_stage_config': told if isinstance(told, str) else {
      'target': told['target'], 'clip_text_config': told['clip_text_config']}}


def count(like):
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(like))


def test_every_published_checkpoint_is_in_the_table():
  assert published.LDM.keys() == CHECKPOINTS.keys() and len(CHECKPOINTS) == 5
  assert set(published.ALIASES.values()) == CHECKPOINTS.keys()


@pytest.mark.parametrize('name', published.LDM)
def test_the_table_tells_what_the_yaml_files_tell(name):
  config = describe(name, published.LDM[name])
  assert config == describe(name, yaml_of(name))
  assert config['parts']['first_stage']['image_shape'] == [256, 256, 3]
  assert config['parts'].keys() == (
      {'first_stage', 'text'} if name == 'sd_v1' else {'first_stage'})


@pytest.mark.parametrize('name', LISTED)
def test_every_tensor_of_published_checkpoints_has_its_place(name):
  tensors, entry = listed(name), CHECKPOINTS[name]
  named, kept, weights = ldm.select(design(name), tensors, 'auto', 'use_ema' not in entry['config'])
  rules.check(named, kept, design(name).like)
  assert weights == ('as trained' if name == 'sd_v1' else 'averaged')
  ignored = tensors.keys() - kept.keys()
  trained = {tensor for tensor in tensors if tensor.startswith(ldm.UNET)}
  buffers = {tensor for tensor in tensors if '.' not in tensor}
  assert len(buffers) == 12
  assert ignored == buffers | (
      {'cond_stage_model.transformer.text_model.embeddings.position_ids'} if name == 'sd_v1' else
      {'model_ema.decay', 'model_ema.num_updates', *trained})
  counts, told = {part: count(like) for part, like in design(name).like.items()}, entry[
      'n_params_by_prefix']
  assert (counts['network'], counts['first_stage']) == (told['model.'], told['first_stage_model.'])
  if name == 'sd_v1':
    assert told['model.'] == 859_520_964 and told['first_stage_model.'] == 83_653_863
    assert counts['text'] + 77 == told['cond_stage_model.'] == 123_060_557  # With position_ids.


def test_averages_of_the_full_stable_diffusion_have_their_place():
  # The published -full-ema and v1-5-pruned have them beside the weights as trained.
  tensors = listed('sd_v1')
  tensors |= {ldm.ema_name(name): leaf for name, leaf in tensors.items()
              if name.startswith(ldm.UNET)}
  assert len(tensors) == 1143 + 686
  for choice, expected, start in (('auto', 'averaged', 'model_ema.'),
                                  ('ignore', 'as trained', ldm.UNET)):
    named, kept, weights = ldm.select(design('sd_v1'), tensors, choice, False)
    rules.check(named, kept, design('sd_v1').like)
    assert weights == expected and sum(name.startswith(start) for name in kept) == 686


@pytest.mark.parametrize('name', LISTED)
def test_published_checkpoints_are_known_by_their_shapes(name):
  assert ldm.find(listed(name)) == published.LDM[name]


@pytest.mark.parametrize('name', ['ldm_vq', 'ldm_kl', 'sd'])
def test_shapes_tell_the_arguments_of_a_unet(name):
  told = ldm.infer(ldm.within(state_dict(name), ldm.UNET))
  given = CASES[name]['config']['unet_config']['params']
  expected = {'use_scale_shift_norm': False, 'resblock_updown': False, 'conv_resample': True,
              'transformer_depth': 0, 'context_dim': None} | given
  expected['attention_resolutions'] = sorted(expected['attention_resolutions'])
  assert told == {argument: expected[argument] for argument in told}
  assert len(told) == 11


def evaluate(config, params, x, sigma, z, context=None):
  """(denoised, pictures), with as many evaluations as there are images."""
  network = networks.denoiser(networks.build(**config['network']),
                              networks.preconditioning(**config['preconditioning']))
  stage = config['parts']['first_stage']
  module = parts.first_stage('test', stage)
  def both(params, x, sigma, z, context):
    return (network(params['network'], x, sigma, context)[0],
            autoencoder.decode(module, params['first_stage'], z, stage['scale_factor']))
  return quickly(both)(params, *(None if value is None else np.float32(value)
                                 for value in (x, sigma, z, context)))


def test_a_trainer_becomes_its_averaged_network_and_first_stage(folder):
  case, oracle = CASES['ldm_vq'], np.load(FOLDER / 'ldm_vq.npz')
  converted = convert.read(folder / 'ldm_vq.ckpt', architecture=architecture('ldm_vq'))
  config, params = converted.config, converted.params
  assert {part: count(own) for part, own in params.items()} == {
      'network': case['n_params_unet'], 'first_stage': case['n_params_first_stage']}
  callback, = containers.parse(packed('ldm_vq'))[1]['callbacks']  # Lightning's, of no effect.
  assert isinstance(callback, plain.Placeholder)
  source = converted.source
  assert (source['family'], source['weights'], source['ema']) == ('ldm', 'averaged', 'auto')
  assert source['architecture'] == architecture('ldm_vq')
  sigma = np.repeat(oracle['sigma'], 2)
  denoised, decoded = evaluate(config, params, oracle['x'].reshape(-1, 8, 8, 3), sigma, oracle['z'])
  # Sums in another order than the original's, in a network of the same conditioning.
  error = abs(denoised.reshape(oracle['x'].shape) - oracle['denoised64']).max()
  assert error < 4 * case['denoised_max_abs_err_float32_vs_float64']
  assert abs(decoded - oracle['decoded64']).max() < (
      4 * case['decoded_max_abs_err_float32_vs_float64'])


def test_weights_as_trained_are_others(folder):
  averaged, trained = (
      convert.load(folder / 'ldm_vq.ckpt', 'ldm', architecture=architecture('ldm_vq'), ema=choice)
      for choice in ('require', 'ignore'))
  assert averaged[0] == trained[0]
  jax.tree.map(np.testing.assert_array_equal, averaged[1]['first_stage'],
               trained[1]['first_stage'])
  raw = state_dict('ldm_vq')['model.diffusion_model.out.2.bias']
  np.testing.assert_array_equal(trained[1]['network']['out_conv']['bias'], raw)
  assert (averaged[1]['network']['out_conv']['bias'] != raw).any()


def test_a_scale_in_the_file():
  case, tensors = CASES['ldm_kl'], state_dict('ldm_kl')
  config, params, weights = ldm.convert(tensors, architecture('ldm_kl'))
  assert weights == 'averaged'
  np.testing.assert_array_equal(params['network']['out_conv']['bias'],
                                tensors['model_ema.diffusion_modelout2bias'])
  stage = config['parts']['first_stage']
  assert stage['scale_factor'] == case['scale_factor'] and config['num_classes'] == 0
  assert (stage['image_shape'], stage['latent_shape']) == ([32, 32, 3], [8, 8, 4])
  del tensors['scale_factor']
  with pytest.raises(ValueError, match='source must hold scale_factor, as its architecture has'):
    ldm.convert(tensors, architecture('ldm_kl'))
  given = ldm.convert(tensors, {**architecture('ldm_kl'), 'scale_factor': 0.5})[0]
  assert given['parts']['first_stage']['scale_factor'] == 0.5


def test_stable_diffusion_reads_texts_and_makes_pictures(folder):
  case, oracle = CASES['sd'], np.load(FOLDER / 'sd.npz')
  converted = convert.read(folder / 'sd.ckpt', architecture=architecture('sd'),
                           tokenizer=folder / 'tokenizer')
  config, params = converted.config, converted.params
  assert (converted.source['family'], converted.source['weights']) == ('sd', 'as trained')
  assert {part: count(own) for part, own in params.items()} == {
      'network': case['n_params_unet'], 'first_stage': case['n_params_first_stage'],
      'text': case['n_params_text']}
  ids = parts.tokenizer('test', config['parts']['text']).encode(case['prompts'])
  np.testing.assert_array_equal(ids, oracle['input_ids'])
  tower = clip.TextTower(**config['parts']['text']['network']['settings'])
  states = quickly(lambda params, ids: tower.apply({'params': params}, ids).last)(
      params['text'], ids)
  assert abs(states - oracle['context64']).max() < 2e-5  # Norms of size 1, float32.
  rows = [case['prompts'].index(prompt) for prompt in case['condition_prompts']]
  context = np.tile(np.concatenate([oracle['context64'][rows], oracle['context64'][[0, 0]]]),
                    (3, 1, 1))
  x, sigma = np.concatenate([oracle['x']] * 2, axis=1), np.repeat(oracle['sigma'], 4)
  denoised, decoded = evaluate(config, params, x.reshape(-1, 8, 8, 4), sigma, oracle['z'], context)
  conditional, unconditional = np.split(denoised.reshape(x.shape), 2, axis=1)
  rate = oracle['guidance_rate'][:, None, None, None, None, None]
  guided = unconditional + rate * (conditional - unconditional)
  scale = 4 * case['denoised_max_abs_err_float32_vs_float64']
  assert abs(guided - oracle['denoised64']).max() < scale * oracle['guidance_rate'].max()
  assert abs(decoded - oracle['decoded64']).max() < 2e-5  # Pictures of size 1, float32.


@pytest.mark.parametrize('name', ['ldm', 'sd'])
def test_levels_are_those_of_the_trainer(name):
  told, oracle = CASES['noise_tables'][name], np.load(FOLDER / 'noise_tables.npz')
  table = ldm.alphas_cumprod(told)
  file = state_dict({'ldm': 'ldm_vq', 'sd': 'sd'}[name])['alphas_cumprod']
  np.testing.assert_array_equal(table, file)  # In float64, all digits of float32.
  # A table in half precision, too coarse for levels, is not believed.
  for stored in (file, file.astype(np.float16)):
    np.testing.assert_array_equal(ldm.alphas_cumprod(told, stored), table)
  sigmas = np.sqrt((1 - table) / table)
  np.testing.assert_allclose(sigmas[[0, -1]], oracle[f'{name}_sigma_min_max64'], rtol=1e-9)
  np.testing.assert_array_equal(table, oracle[f'{name}_alphas_cumprod'])


def test_an_architecture_in_a_yaml_file(folder, tmp_path):
  whole = {'model': {'base_learning_rate': 1e-4, 'target': 'ldm.models.LatentDiffusion',
                     'params': architecture('ldm_vq')}, 'data': {'target': 'main.Data'}}
  (tmp_path / 'config.yaml').write_text(yaml.safe_dump(whole))
  (tmp_path / 'config.json').write_text(json.dumps(whole['model']['params']))
  expected = convert.load(folder / 'ldm_vq.ckpt', architecture=architecture('ldm_vq'))
  for path in (tmp_path / 'config.yaml', tmp_path / 'config.json'):
    config, params = convert.load(folder / 'ldm_vq.ckpt', architecture=path)
    assert config == expected[0]
    jax.tree.map(np.testing.assert_array_equal, params, expected[1])
  for content, match in ((': [', 'must be a YAML file, got .*config.yaml'),
                         ('!!python/object/apply:os.getcwd []', 'must be a YAML file'),
                         ('- 1', 'must be a mapping, got a list'),
                         ('model: {params: 3}', 'model.params of the architecture must be a map')):
    (tmp_path / 'config.yaml').write_text(content)
    with pytest.raises(ValueError, match=match):
      convert.load(folder / 'ldm_vq.ckpt', architecture=tmp_path / 'config.yaml')


def test_names_of_published_files():
  for stem in ('sd-v1-4', 'v1-5-pruned', 'v1-5-pruned-emaonly', 'sd-v1-1-full-ema', 'sd_v1'):
    assert convert.find_architecture(f'x/{stem}.ckpt') == published.LDM['sd_v1']
  assert convert.find_architecture('model.ckpt') is None
  assert convert.find_architecture('a.ckpt', 'ffhq') == published.LDM['ffhq_ldm_vq4']
  # A name means what it means in the family of the file.
  assert convert.find_architecture('ffhq.pt', family='adm') is None


def section(name, **changes):
  """Changes within a section of the architecture."""
  def change(told):
    own = told[name]
    return {**told, name: {**own, 'params': {**own['params'], **changes}}}
  return change


def stage(**changes):
  """Changes within ddconfig."""
  def change(told):
    ddconfig = told['first_stage_config']['params']['ddconfig']
    return section('first_stage_config', ddconfig={**ddconfig, **changes})(told)
  return change


BAD = [
    (lambda told: {**told, 'image_sise': 8}, "unknown setting of .* 'image_sise'; did you"),
    (lambda told: {**told, 'image_size': None}, 'image_size of the architecture must be an'),
    (lambda told: {**told, 'parameterization': 'v'}, "parameterization .* must be 'eps', got 'v'"),
    (lambda told: {**told, 'beta_schedule': 'cosine'}, "beta_schedule .* must be 'linear', got"),
    (lambda told: {**told, 'linear_end': 0.012}, 'must be those of alphas_cumprod in the file'),
    (lambda told: {**told, 'linear_end': 0.0}, 'linear_start and linear_end .* must increase'),
    (lambda told: {**told, 'timesteps': 999}, 'must be those of alphas_cumprod in the file'),
    (lambda told: {**told, 'channels': 4}, 'channels of the architecture must be the in_channels'),
    (lambda told: {**told, 'unet_config': None}, 'unet_config of the architecture must be given'),
    (lambda told: {**told, 'cond_stage_config': {'target': 'ClassEmbedder'}},
     'source must hold the text encoder, names that begin with cond_stage_model.transformer.'),
    (section('unet_config', channel_mult=[2, 4]), 'channel_mult .* must begin with 1'),
    (section('unet_config', num_head=2), "unknown setting of .* 'num_head'; did you"),
    (section('unet_config', num_res_blocks=10**9), 'must have fewer blocks than the'),
    (section('unet_config', model_channels=64), r'embed0weight is \(128, 32\) and must be'),
    (section('unet_config', context_dim=24), 'context_dim .* must be none without'),
    (section('first_stage_config', embed_dim=4), 'latents of the first stage must have the 3 chan'),
    (stage(ch_mult=[1, 2]), r'first_stage_model.encoder.down.1.* and must be'),
    (stage(ch_mult=[1, 1, 1]), 'missing first_stage_model.decoder.up.2'),
]


@pytest.mark.parametrize('change, match', BAD)
def test_architectures_that_do_not_fit(change, match, folder):
  path = folder / 'ldm_vq.ckpt'
  with pytest.raises(ValueError, match=match) as error:
    convert.load(path, architecture=change(architecture('ldm_vq')))
  assert str(error.value).startswith(f'convert: {path}: ') and '\n' not in str(error.value)


def without(start):
  return lambda tensors: {name: array for name, array in tensors.items()
                          if not name.startswith(start)}


@pytest.mark.parametrize('name, change, options, match', [
    ('ldm_vq', without('first_stage_model.'), {}, 'must hold the first stage, names that begin'),
    ('ldm_vq', without('model_ema.'), {}, 'averaged weights, as its architecture has use_ema, got'),
    ('ldm_vq', without('model_ema.'), {'ema': 'require'}, 'averaged weights, as was asked, got'),
    ('sd', dict, {'ema': 'require'}, 'averaged weights, as was asked, got none below model_ema'),
    ('sd', dict, {'ema': 'all'}, "unknown ema 'all'"),
    ('sd', without('cond_stage_model.'), {}, 'source must hold the text encoder'),
    ('sd', without('model.diffusion_model.out'), {}, 'missing model.diffusion_model.out.0.bias'),
    ('ldm_vq', lambda tensors: tensors | {'extra': np.zeros(2)}, {}, 'not used extra'),
    ('ldm_vq', lambda tensors: tensors | {'model_ema.a': np.zeros(2)}, {}, 'not used model_ema.a'),
    ('ldm_vq', lambda tensors: tensors | {'first_stage_model.loss.x': np.zeros(2)}, {}, None),
    ('ldm_vq', lambda tensors: tensors | {'logvar': np.zeros(1000)}, {}, None),
    ('ldm_vq', without('model.'), {}, None),  # Averaged ones alone will do.
    ('ldm_vq', without('model_ema.'), {'ema': 'ignore'}, None),
])
def test_files_with_less_or_more(name, change, options, match):
  tensors = change(state_dict(name))
  def load():
    return ldm.convert(tensors, architecture(name), vocabulary=vocabulary(584), **options)
  if match is None:
    load()
    return
  with pytest.raises(ValueError, match=match):
    load()


def test_files_that_are_none_of_the_published(tmp_path, folder):
  with pytest.raises(ValueError, match='architecture must be given for what is none of lsun_bed.*'
                                       'got a U-Net with model_channels 32, channel_mult .1, 2.,'):
    convert.load(folder / 'ldm_vq.ckpt')
  with pytest.raises(ValueError, match='heads of a text encoder of width 24 must be told'):
    convert.load(folder / 'sd.ckpt', published='sd-v1-4', tokenizer=folder / 'tokenizer')
  with pytest.raises(ValueError, match='family must be ldm, as its tensors show, got sd'):
    convert.load(folder / 'ldm_vq.ckpt', 'sd')
  with pytest.raises(ValueError, match='tokenizer must be left out for a network without texts'):
    convert.load(folder / 'ldm_vq.ckpt', architecture={}, tokenizer=folder / 'tokenizer')
  (tmp_path / 'cut.ckpt').write_bytes(packed('ldm_vq')[:-1000])
  with pytest.raises(ValueError, match='cut.ckpt must be a whole ZIP archive'):
    convert.load(tmp_path / 'cut.ckpt', architecture=architecture('ldm_vq'))
  file = tmp_path / 'other.safetensors'
  file.write_bytes(writing.safetensors({'odd': np.zeros(2, np.float32)}))
  with pytest.raises(ValueError, match='family must be one of edm, sfd, adm, cm, ldm, sd, '):
    convert.load(file)


@pytest.mark.parametrize('change, match', [
    ({'tokenizer': None}, 'tokenizer must be given, as the file has no vocabulary.*bpe_simple_voc'),
    ({'tokenizer': 'nowhere'}, 'tokenizer must be a folder or a file, got nothing at nowhere'),
    ({'clip_text_config': {}}, 'heads of a text encoder of width 24 must be told'),
    ({'clip_text_config': {'num_attention_heads': 5}}, 'num_attention_heads .* must divide'),
    ({'clip_text_config': 'openai'}, "clip_text_config .* must be given, got 'openai'"),
    ({'clip_text_config': {'hidden_size': 32}}, 'got width 32 and not 24'),
    ({'clip_text_config': {'hidden_act': 'relu', 'num_attention_heads': 3}}, "hidden_act .*'relu'"),
])
def test_texts_that_cannot_be_read(change, match, folder):
  told = architecture('sd')
  if 'clip_text_config' in change:
    told['cond_stage_config'] = {**told['cond_stage_config'], **change}
  with pytest.raises(ValueError, match=match):
    convert.load(folder / 'sd.ckpt', architecture=told,
                 tokenizer=change.get('tokenizer', folder / 'tokenizer'))


def test_texts_of_another_width_or_vocabulary():
  told, tensors = architecture('sd'), state_dict('sd')
  with pytest.raises(ValueError, match='width of the text encoder must be the context_dim'):
    ldm.convert(tensors, section('unet_config', context_dim=32)(told), vocabulary=vocabulary(584))
  with pytest.raises(ValueError, match='vocab of the text encoder must be 600, .* got 584'):
    ldm.convert(tensors, told, vocabulary=vocabulary(600))
