"""CLIP's towers, projections and gradients against the reference numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import clip as convert_clip
from models import clip
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('clip_image')
CASES = {case['id']: case for case in MANIFEST['cases'] if 'recipe' in case}
RECIPES = recipe.load('clip_image/recipes.json.gz')
TINY = {'projection_dim': 6, 'image_width': 8, 'image_layers': 1, 'image_heads': 2, 'patch': 4,
        'image_size': 8, 'image_mlp': 16, 'text_width': 6, 'text_layers': 1, 'text_heads': 3,
        'context': 5, 'vocab': 11, 'text_mlp': 12}


@functools.cache
def convert(name):
  """(module, parameters as NumPy arrays) of a case."""
  case = CASES[name]
  config = {key: {'hidden_act': case['hidden_act'], **case[key]}
            for key in ('vision_config', 'text_config')}
  tensors = recipe.weights(RECIPES[case['recipe']], case['weight_tag'])
  config, params = convert_clip.convert(tensors, config)
  return clip.Clip(**config['network']['settings']), {'params': params}


def build(name, dtype):
  """(module, parameters) of a case in this precision."""
  module, variables = convert(name)
  return module, jax.tree.map(lambda array: jnp.asarray(array, dtype), variables)


@functools.cache
def evaluate(name):
  """({key: array} of a case in 64 bit, {key: gradient}), of one compilation."""
  arrays = ARRAYS[name]
  module, variables = build(name, np.float64)
  ids, text = arrays['input_ids'], jnp.asarray(arrays['text_embeds'][:1])
  def objective(x, same_size, resized):
    parts = module.bind(variables)
    image = parts.image(jnp.concatenate([x, *(
        clip.pixel_values(images, module.image_size) for images in (same_size, resized))]))
    embeds = parts.image_projection(image.pooled)
    losses = clip.spherical_loss(embeds[3:], text)
    states = parts.text(ids)
    text_embeds = parts.text_projection(states.pooled)
    cosine = clip.unit(embeds[:3]) @ clip.unit(text_embeds).T
    return cosine[:, 0].sum() + losses.sum(), {
        'image_embeds': embeds[:3], 'image_pooled': image.pooled[:3],
        'image_last_hidden_state': image.last[:3],
        'image_hidden_states': image.hidden_states[:, :3], 'text_embeds': text_embeds,
        'text_last_hidden_state': states.last, 'text_hidden_states': states.hidden_states,
        'cosine': cosine, 'spherical.same_size.loss': losses[:3],
        'spherical.resized.loss': losses[3:]}
  gradients, answers = quickly(jax.grad(objective, (0, 1, 2), has_aux=True))(
      arrays['pixel_values'], *(arrays[f'spherical.{kind}.image']
                                for kind in ('same_size', 'resized')))
  names = 'grad_cosine_pixel_values', 'spherical.same_size.grad', 'spherical.resized.grad'
  return answers, dict(zip(names, gradients, strict=True))


def tiny(**changes):
  """(module, parameters) of a small CLIP."""
  module = clip.Clip(**{**TINY, **changes})
  like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)),
                        jnp.zeros((1, 5), int))
  draw = np.random.default_rng(1)
  return module, jax.tree.map(
      lambda leaf: jnp.asarray(0.5 * draw.standard_normal(leaf.shape), leaf.dtype), like)


def embed_texts(module, variables, ids):
  return quickly(lambda ids: module.apply(variables, ids, method='embed_texts'))(jnp.array(ids))


def test_all_cases_of_the_reference_are_here():
  kinds = [case['id'].split('.')[0] for case in MANIFEST['cases']]
  assert [*CASES] == ['openai_style', 'laion_style', 'file']
  assert (len(kinds), kinds.count('preprocess')) == (9, 6)
  rules = {case['text_config']['eos_token_id'] == clip.LARGEST_ID for case in CASES.values()}
  assert rules == {True, False} and {case['hidden_act'] for case in CASES.values()} == {
      *clip.ACTIVATIONS}


@pytest.mark.parametrize('name', CASES)
def test_outputs_in_64_bit(name, x64):
  for key, answer in evaluate(name)[0].items():
    expected = ARRAYS[name][key]
    assert answer.dtype == np.float64 and answer.shape == expected.shape, key
    np.testing.assert_allclose(answer, expected, atol=1e-11, rtol=1e-10, err_msg=key)


@pytest.mark.parametrize('name', CASES)
def test_gradients_in_pixels(name, x64):
  for key, gradient in evaluate(name)[1].items():
    np.testing.assert_allclose(gradient, ARRAYS[name][key], atol=1e-12, rtol=1e-9, err_msg=key)


def test_logits_in_32_bit(name='laion_style'):
  arrays = ARRAYS[name]
  module, variables = build(name, np.float32)
  logits = quickly(lambda x, ids: module.apply(variables, x, ids))(
      arrays['pixel_values'].astype(np.float32), arrays['input_ids'].astype(np.int32))
  # The error of a cosine is that of the embeddings over their length, in sums in another order than
  # the original's.
  errors = [4 * CASES[name][f'{kind}_embeds_float32_minus_float64']
            / np.linalg.norm(arrays[f'{kind}_embeds'], axis=-1).min() for kind in ('image', 'text')]
  bound = np.sqrt(module.projection_dim) * sum(errors) * np.exp(4)
  assert abs(logits - arrays['logits_per_image']).max() < bound < 0.01


@pytest.mark.parametrize('eos, end', [(clip.LARGEST_ID, 10), (7, 7)])
def test_what_stands_behind_the_end_of_a_text_has_no_effect(eos, end):
  # The largest id of the second row stands behind its end under the second rule.
  texts = [[9, 3, end, 0, 0], [9, 3, end, 1, 8], [9, 3, end, end, end], [9, 4, end, 0, 0]]
  first, *others, last = embed_texts(*tiny(eos_token_id=eos), texts)
  for other in others:
    np.testing.assert_allclose(other, first, atol=1e-5 * abs(first).max())
  assert abs(last - first).max() > 0.01 * abs(first).max()


def test_texts_may_be_shorter_than_the_context():
  model = tiny()
  long, short = (embed_texts(*model, ids) for ids in ([[9, 3, 10, 0, 0]], [[9, 3, 10]]))
  np.testing.assert_allclose(short, long, atol=1e-5 * abs(long).max())


def test_the_text_tower_is_a_network_of_its_own():
  module, variables = tiny()
  alone = clip.TextTower(6, 1, 3, 5, 11, 12)
  ids = jnp.array([[1, 2, 10, 0, 0]])
  expected = quickly(lambda: module.apply(variables, ids, method=lambda m, ids: m.text(ids)))()
  answer = quickly(lambda: alone.apply({'params': variables['params']['text']}, ids))()
  jax.tree.map(np.testing.assert_array_equal, answer, expected)
  like = jax.eval_shape(alone.init, jax.random.key(0), ids)['params']
  assert jax.tree.structure(like) == jax.tree.structure(variables['params']['text'])


@pytest.mark.parametrize('bad', [-1, 11])
def test_ids_out_of_range_show(bad):
  embeds = embed_texts(*tiny(), [[1, bad, 10], [1, 2, 10]])
  assert np.isnan(embeds[0]).all() and np.isfinite(embeds[1]).all()


def test_inputs_of_another_shape():
  module, variables = tiny()
  with pytest.raises(ValueError, match=r'images must be of shape \(8, 8, 3\), got \(8, 4, 3\); '):
    module.apply(variables, jnp.zeros((1, 8, 4, 3)), method='embed_images')
  with pytest.raises(ValueError, match=r'texts must be of shape \(n, at most 5\), got \(1, 6\); '):
    module.apply(variables, jnp.zeros((1, 6), int), method='embed_texts')
  with pytest.raises(ValueError, match="unknown activation 'quick'; did you mean quick_gelu"):
    tiny(activation='quick')


def test_half_precision_stays_half():
  module, variables = tiny()
  embed = quickly(lambda x: module.apply(variables, x, method='embed_images'))
  x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
  exact, half = embed(x), embed(jnp.asarray(x, jnp.bfloat16))
  assert half.dtype == jnp.bfloat16  # Eight bits, in two dozen operations.
  np.testing.assert_allclose(half.astype(np.float32), exact, atol=0.05 * abs(exact).max())


def test_spherical_loss_is_half_the_squared_angle(x64):
  angles = jnp.asarray(np.array([0.0, 1e-9, 1e-4, 9.99e-4, 1.1e-3, 0.5, 3.0]))
  def loss(angles):
    u = 3 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    losses = clip.spherical_loss(u, jnp.array([[2.0, 0.0]]))
    return losses.sum(), losses
  slope, losses = quickly(jax.grad(loss, has_aux=True))(angles)
  np.testing.assert_allclose(losses, angles**2 / 2, rtol=1e-9, atol=1e-17)
  np.testing.assert_allclose(slope, angles, rtol=1e-6, atol=1e-12)


def test_a_zero_vector_has_no_direction():
  np.testing.assert_array_equal(clip.unit(jnp.zeros((1, 2))), np.zeros((1, 2)))
