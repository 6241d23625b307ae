"""CLIP score and the preparation of its images against the reference numbers."""

import types

import numpy as np
import pytest

from evaluation import clip_score
from tests import reference
from tests.models import test_clip as network_tests

MANIFEST, ARRAYS = reference.load('clip_image')
CASES = {case['id'].removeprefix('preprocess.'): case for case in MANIFEST['cases']
         if case['id'].startswith('preprocess.')}
METRICS, FILES = reference.load('lpips')
PIXELS = ARRAYS['preprocess']


@pytest.fixture
def network():
  module, variables = network_tests.convert('file')
  return types.SimpleNamespace(name='clip', module=module, params=variables['params'])


def test_score():
  cases = [case for case in METRICS['cases'] if case['id'].startswith('clip_score')]
  arrays = FILES['clip_score']
  assert len(cases) == 1 and arrays['image_features'].shape == (cases[0]['n'], cases[0]['d'])
  score = clip_score.score(arrays['image_features'], arrays['text_features'])
  np.testing.assert_allclose(score.cosines, arrays['cosine'], rtol=1e-12, atol=1e-15)
  np.testing.assert_allclose(score.value, cases[0]['mean_100_cosine'], rtol=1e-13)
  clamped = clip_score.score(arrays['image_features'], arrays['text_features'], clamp=True)
  np.testing.assert_allclose(clamped.value, cases[0]['mean_100_cosine_clamped_at_zero'], rtol=1e-13)
  # The original sums in float32.
  np.testing.assert_allclose(score.value, cases[0]['original_float32'], rtol=1e-6)


def test_lengths_have_no_effect():
  features = FILES['clip_score']['image_features'].astype(np.float64)
  assert clip_score.score(features, 7 * features).value == pytest.approx(100, rel=1e-14)
  assert clip_score.score(features, -features).value == pytest.approx(-100, rel=1e-14)
  assert clip_score.score(features, -features, clamp=True).value == 0


def test_all_cases_of_the_preparation_are_here():
  assert len(CASES) == 6 and {f'{name}.image' for name in CASES} == {
      name for name in PIXELS if name.endswith('.image')}


@pytest.mark.parametrize('name', CASES)
def test_preparation_is_exact(name):
  case = CASES[name]
  images = PIXELS[f'{name}.image'][None]
  pixels = clip_score.preprocess(np.concatenate([images, images]), case['size'])
  assert pixels.dtype == np.float32 and pixels.shape == (2, case['size'], case['size'], 3)
  # One grey level would be 0.014; float32 divisions are all that may differ.
  for one in pixels:
    np.testing.assert_allclose(one, PIXELS[f'{name}.pixel_values'], atol=1e-6)


@pytest.mark.parametrize('height, width, top, left', [
    (32, 35, 0, 2), (33, 32, 0, 0), (37, 32, 2, 0), (32, 39, 0, 4), (32, 32, 0, 0)])
def test_the_centre_is_cut_out_half_to_even(height, width, top, left):
  images = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
  expected = clip_score.preprocess(images[:, top:top + 32, left:left + 32], 32)
  np.testing.assert_array_equal(clip_score.preprocess(images, 32), expected)


@pytest.mark.float32
def test_embeddings_of_images_and_texts(network):
  images = np.random.default_rng(0).integers(0, 256, (3, 32, 36, 3), np.uint8)
  ids = ARRAYS['file']['input_ids'][:3]
  def embed(some):
    x = clip_score.preprocess(some, network.module.image_size)
    return np.asarray(clip_score.embedding(network.module, 'embed_images')(network.params, x))
  embeds = embed(images)
  cut = images[::-1, :, 2:34]  # What is cut out has no effect, nor has the order.
  np.testing.assert_allclose(embed(cut)[::-1], embeds, atol=1e-5 * abs(embeds).max())
  texts = clip_score.embed_texts(network, ids, batch_size=2)
  np.testing.assert_allclose(texts, ARRAYS['file']['text_embeds'][:3], atol=1e-5)
  assert embeds.dtype == texts.dtype == np.float32


@pytest.mark.parametrize('images, texts, match', [
    (np.ones((2, 3)), np.ones((3, 3)), r'one text for each image, got features \(2, 3\) of images'),
    (np.ones((0, 3)), np.ones((0, 3)), r'image_features must be of shape \(n, d\), .* \(0, 3\)'),
    (np.ones((2, 3)), np.ones(3), r'text_features must be of shape \(n, d\), .* got \(3,\); give'),
    (np.eye(3)[:2] * [[1], [np.nan]], np.ones((2, 3)), 'image_features must be finite .* row 1'),
    (np.ones((2, 3)), np.zeros((2, 3)), 'text_features must be finite and not zero, .* row 0 and 1')
])
def test_features_that_have_no_score(images, texts, match):
  with pytest.raises(ValueError, match=match) as error:
    clip_score.score(images, texts)
  assert str(error.value).startswith('clip_score: ') and '\n' not in str(error.value)


@pytest.mark.parametrize('call, match', [
    (lambda n: clip_score.preprocess(np.zeros((1, 4, 4, 3)), 4), 'images must be uint8 of shape'),
    (lambda n: clip_score.preprocess(np.zeros((4, 4, 3), np.uint8), 4), r'got uint8 \(4, 4, 3\)'),
    (lambda n: clip_score.preprocess(np.zeros((1, 4, 4, 3), np.uint8), 0), 'size must be an integ'),
    (lambda n: clip_score.embed_texts(n, np.zeros((0, 4), int)), r'got int64 \(0, 4\); encode'),
    (lambda n: clip_score.embed_texts(n, np.zeros((1, 4), int), 0), 'batch_size must'),
    (lambda n: clip_score.embed_texts(n, np.array([[0, 40]])), 'ids must be from 0 to 39, got'),
    (lambda n: clip_score.embed_texts(n, np.zeros((1, 4))), 'ids must be integers of shape'),
    (lambda n: clip_score.embed_texts(types.SimpleNamespace(name='inception'), []),
     'network must be clip, got inception; convert'),
])
def test_inputs_of_another_form(call, match, network):
  with pytest.raises(ValueError, match=match) as error:
    call(network)
  assert str(error.value).startswith('clip_score: ') and '\n' not in str(error.value)
