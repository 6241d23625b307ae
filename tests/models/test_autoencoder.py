"""First stages against the reference numbers; the codebook; sizes, memory and bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import autoencoder as convert_autoencoder
from models import autoencoder
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('ldm')
CASES = {case['id']: case for case in MANIFEST['cases'] if 'first_stage_config' in
         case.get('config', {})}
RECIPES = recipe.load('ldm/recipes.json.gz')
PREFIX = 'first_stage_model.'

SMALL = {'kind': 'kl', 'embed_dim': 4, 'z_channels': 4, 'model_channels': 32,
         'channel_mult': [1, 2, 2], 'num_blocks': 1}
PUBLISHED = {'kind': 'kl', 'embed_dim': 4, 'z_channels': 4}


@functools.cache
def tensors(name):
  """The first stage in the checkpoint of a case, {relative name: array}."""
  entries = [entry for entry in RECIPES[name] if entry[0].startswith(PREFIX)]
  weights = recipe.weights(entries, CASES[name]['weight_tag'])
  return {tensor.removeprefix(PREFIX): array for tensor, array in weights.items()}


def build(name, dtype):
  """(module, parameters) of a case."""
  params = CASES[name]['config']['first_stage_config']['params']
  config, weights = convert_autoencoder.convert(tensors(name), params)
  module = autoencoder.build(config['network']['settings'])
  return module, jax.tree.map(lambda array: jnp.asarray(array, dtype), weights)


def answers(name, dtype):
  """What we give for the recorded arrays of a case, by their names; in 64 bit for all of them."""
  arrays, scale, exact = ARRAYS[name], CASES[name]['scale_factor'], dtype == np.float64
  module, params = build(name, dtype)
  @quickly
  def evaluate(params, image, z):
    latent = autoencoder.encode(module, params, image, scale)
    given = {'decoded64': autoencoder.decode(module, params, z, scale)}
    if module.kind == 'vq':
      given['quantised64'], given['codebook_index'] = module.apply(
          {'params': params}, z / scale, method='quantize')
      given['encoded64'] = latent / scale
      return given | ({'decoded_not_quantised64': autoencoder.decode(
          module, params, z, scale, quantize=False)} if exact else {})
    given['latent_of_mean64'] = latent
    if exact:
      given['moments64'] = module.apply({'params': params}, image, method='encode')
      given['posterior_std64'] = autoencoder.posterior(given['moments64'])[1]
      if 'posterior_noise' in arrays:
        given['latent_of_sample64'] = autoencoder.encode(module, params, image, scale,
                                                         arrays['posterior_noise'])
    return given
  return evaluate(params, *(jnp.asarray(arrays[field], dtype) for field in ('image', 'z')))


def test_all_cases_of_the_reference_are_here():
  assert [*CASES] == ['ldm_vq', 'ldm_kl', 'sd']


@pytest.mark.parametrize('name, dtype, count', [
    ('ldm_vq', np.float64, 5), ('ldm_kl', np.float64, 4), ('sd', np.float64, 5),
    ('ldm_vq', np.float32, 4), ('ldm_kl', np.float32, 2), ('sd', np.float32, 2)])
def test_first_stage(name, dtype, count):
  arrays = ARRAYS[name]
  with jax.enable_x64(dtype == np.float64):
    given = answers(name, dtype)
  assert len(given) == count
  # 32 bit: 4 times what the original's own decoding was off by; where that is not recorded, the
  # error of its U-Net, whose sums are as long.
  own = (abs(arrays['decoded32'] - arrays['decoded64']).max() if 'decoded32' in arrays else
         CASES[name]['eps_max_abs_err_float32_vs_float64'])
  bound = 1e-9 if dtype == np.float64 else 4 * own
  for field, ours in given.items():
    if field == 'codebook_index':
      np.testing.assert_array_equal(ours, arrays[field])
      continue
    assert ours.dtype == dtype
    assert abs(np.float64(ours) - arrays[field]).max() < bound, field


def test_the_nearest_vector_and_the_first_of_several():
  codebook = jnp.asarray([[1, 0], [0, 1], [1, 0], [-1, 0], [0, -1]], jnp.float32)
  z = jnp.asarray([[0, 0], [1, 0], [0.1, 0.2], [-3, 2]], jnp.float32).reshape(1, 2, 2, 2)
  np.testing.assert_array_equal(autoencoder.nearest(codebook, z).reshape(-1), [0, 0, 1, 3])


def test_every_latent_finds_its_own_vector():
  z, codebook = (jax.random.normal(jax.random.key(i), size)
                 for i, size in enumerate([(2, 3, 5, 3), (40, 3)]))
  distance = np.linalg.norm(np.asarray(z)[..., None, :] - np.asarray(codebook), axis=-1)
  np.testing.assert_array_equal(autoencoder.nearest(codebook, z), distance.argmin(-1))


def test_near_vectors_far_from_zero_are_told_apart():
  # Squares around 1e6 leave float32 steps of 0.06: an expanded square could not see these.
  codebook = jnp.asarray([[1000.0, 0], [1000.01, 0], [1000.02, 0]], jnp.float32)
  np.testing.assert_array_equal(autoencoder.nearest(codebook, codebook[None, None])[0, 0],
                                [0, 1, 2])


def test_the_variance_of_a_latent_has_a_range():
  mean, std = autoencoder.posterior(jnp.asarray([[7.0, 8.0, 9.0, -100.0, 0.0, 100.0]]))
  np.testing.assert_array_equal(mean[0], [7, 8, 9])
  np.testing.assert_allclose(std[0], [np.exp(-15), 1, np.exp(10)], rtol=1e-6)


@pytest.mark.parametrize('size', [(1, 1), (3, 5), (64, 48)])
def test_latents_of_any_size(size):
  module = autoencoder.build(SMALL)
  params = autoencoder.shapes(module)
  z = jax.ShapeDtypeStruct((2, *size, 4), np.float32)
  images = jax.eval_shape(functools.partial(autoencoder.decode, module), params, z)
  assert images.shape == (2, 4 * size[0], 4 * size[1], 3)
  assert autoencoder.picture_shape(module, (*size, 4)) == images.shape[1:]
  back = jax.eval_shape(functools.partial(autoencoder.encode, module), params, images)
  assert back.shape == z.shape
  assert autoencoder.latent_shape(module, images.shape[1:]) == z.shape[1:]


def test_memory_of_decoding_is_bounded():
  module = autoencoder.build({**SMALL, 'channel_mult': [1, 2, 4, 4]})
  size = 16, 12, 4
  z = jax.ShapeDtypeStruct((1, *size), np.float32)
  compiled = quickly(functools.partial(autoencoder.decode, module)).lower(
      autoencoder.shapes(module), z).compile()
  used = compiled.memory_analysis().temp_size_in_bytes
  assert used < autoencoder.decode_bytes(module, size) < 4 * used


def test_memory_of_published_decoders():
  published = autoencoder.build(PUBLISHED)
  assert autoencoder.decode_bytes(published, (64, 64, 4)) == 5120 * 512 * 512
  # Where there is one level, the attention over its pixels counts.
  single = autoencoder.build({**SMALL, 'channel_mult': [1]})
  assert autoencoder.decode_bytes(single, (32, 32, 4)) == 4 * (2 * 1024**2 + 8 * 1024 * 32)


@pytest.mark.parametrize('changes, match', [
    ({'kind': 'vae'}, "kind must be one of kl and vq, got 'vae'"),
    ({'kind': 'vq'}, 'n_embed must be the size of the codebook for vq and 0 for kl, got 0 for vq'),
    ({'n_embed': 5}, 'and 0 for kl, got 5 for kl'),
    ({'embed_dim': 0}, "embed_dim must be an integer of 1 or more, got '0'"),
    ({'channel_mult': []}, 'channel_mult must be a list of one or more numbers above 0'),
    ({'channel_mult': [1, 1.2]}, 'must be a multiple of 32, got 38.4'),
    ({'attn_levels': [3]}, 'attn_levels must be below the number of levels, 3, got 3'),
    ({'attn_levels': 2}, 'attn_levels must be a list of integers of 0 or more'),
    ({'num_block': 2}, "unknown setting 'num_block'; did you mean num_blocks"),
])
def test_settings_that_do_not_fit(changes, match):
  with pytest.raises(ValueError, match=match) as error:
    autoencoder.build({**SMALL, **changes})
  assert str(error.value).startswith('autoencoder: ') and '\n' not in str(error.value)


def test_settings_that_are_missing_or_too_large():
  with pytest.raises(ValueError, match='settings embed_dim, z_channels must be given, got none'):
    autoencoder.build({'kind': 'kl'})
  with pytest.raises(ValueError, match='settings must be those of a network that can be built'):
    autoencoder.shapes(autoencoder.build({**SMALL, 'model_channels': 2**80}))


def test_arrays_that_do_not_fit():
  module = autoencoder.build(SMALL)
  with pytest.raises(ValueError, match=r'with 4 channels, got shape \(1, 8, 8, 3\); take the'):
    autoencoder.decode(module, {}, jnp.zeros((1, 8, 8, 3)))
  with pytest.raises(ValueError, match=r'multiples of 4, got shape \(1, 8, 10, 3\); resize'):
    autoencoder.encode(module, {}, jnp.zeros((1, 8, 10, 3)))
  with pytest.raises(ValueError, match=r'3 channels and sides .* got shape \(1, 8, 8, 1\)'):
    autoencoder.encode(module, {}, jnp.zeros((1, 8, 8, 1)))
  codebook = autoencoder.build({**SMALL, 'kind': 'vq', 'n_embed': 7})
  with pytest.raises(ValueError, match='noise must be None for a codebook'):
    autoencoder.encode(codebook, {}, jnp.zeros((1, 8, 8, 3)), noise=jnp.zeros((1, 2, 2, 4)))
