"""Extractors: pipelines and features in float32, the bundled classifier's, and bad input."""

import functools

import jax
import numpy as np
import pytest

import models
from evaluation import extractors
from tests import reference
from tests.models import test_inception
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('inception')
CASES = {case['id']: case for case in MANIFEST['cases'] if 'kind' not in case}
PUBLISHED = {'tf1': test_inception.PTH, 'pytorch_fid': test_inception.PTH,
             'edm': test_inception.DETECTOR, 'clean': test_inception.DETECTOR}
# Largest rounding error of the original in float32, as the manifest names it.
RECORDED = {('tf1', 'pool'): 'pool', ('tf1', 'spatial'): 'spatial',
            ('tf1', 'logits_unbiased'): 'logits_unbiased', ('edm', 'pool'): 'edm_pool',
            ('pytorch_fid', 'pool'): 'pytorch_fid_pool'}
SHOWN = 'rgb32b', 'gray28'  # 64 bit runs all; these show the rounding of 32 bit.
LAYERS = 'pool', 'spatial', 'logits_unbiased', 'dims64', 'dims192', 'dims768'

pytestmark = pytest.mark.float32


def network(name='inception', tag=None):
  params = tag and test_inception.params(tag)
  return models.FeatureNetwork(name, {}, params, None, 'abc')


@functools.cache
def compiled(apply):
  return quickly(apply)


def stored(pipeline, image, layer):
  file = 'detector_other_inputs' if pipeline == 'clean' else pipeline
  return ARRAYS[file].get(f'{image}.{pipeline}.{layer}')


def test_all_pipelines_are_covered():
  assert {*PUBLISHED} == {*extractors.PIPELINES}
  assert len(CASES) == 6 and {*SHOWN} <= {*CASES}


@pytest.mark.parametrize('pipeline', PUBLISHED)
def test_float32_features_are_as_near_as_the_originals(pipeline):
  extractor = extractors.inception(network(tag=PUBLISHED[pipeline]), pipeline, LAYERS)
  x = np.concatenate([extractor.prepare(ARRAYS['images'][image][None]) for image in SHOWN])
  assert x.dtype == np.float32 and x.shape == (2, 299, 299, 3)
  out = compiled(extractor.apply)(extractor.params, x)
  assert {name: array.shape for name, array in out.items()} == {
      name: (2, dim) for name, dim in extractor.dims.items()}
  checked = 0
  for i, image in enumerate(SHOWN):
    for layer, values in out.items():
      expected = stored(pipeline, image, layer)
      if expected is None:
        continue
      error = abs(np.float64(values[i]) - expected.ravel())
      # The original's own error is up to 4e-6 where features are about 1.
      assert np.linalg.norm(error) < 1e-5 * np.linalg.norm(expected), (image, layer)
      if (pipeline, layer) in RECORDED:
        bound = CASES[image]['float32_minus_float64'][RECORDED[pipeline, layer]]
        assert error.max() < 8 * bound, (image, layer)  # Sums in another order: up to 2.6 here.
      checked += 1
  assert checked == {'tf1': 6, 'pytorch_fid': 8, 'edm': 4, 'clean': 2}[pipeline]


def test_inputs_are_scaled_as_described():
  black_and_white = np.stack([np.zeros((4, 4, 1), np.uint8), np.full((4, 4, 1), 255, np.uint8)])
  for name, highest in (('tf1', 127 / 128), ('edm', 127 / 128), ('clean', 127 / 128),
                        ('pytorch_fid', 1)):
    x = extractors.inputs(name, black_and_white)
    np.testing.assert_allclose(x[0], -1, atol=1e-6)
    np.testing.assert_allclose(x[1], highest, atol=1e-6)


def test_gray_images_become_three_equal_channels():
  gray = ARRAYS['images']['gray28'][None]
  for name in extractors.PIPELINES:
    np.testing.assert_array_equal(extractors.inputs(name, gray),
                                  extractors.inputs(name, np.repeat(gray, 3, -1)))


def test_an_extractor_says_what_made_its_numbers():
  extractor = extractors.inception(network(), 'clean', ('spatial', 'pool'))
  assert extractor.pipeline == {
      'network': 'inception', 'sha256': 'abc', 'name': 'clean',
      'resize': 'Pillow bicubic antialiased, float32, clipped to 299x299',
      'scaling': '(x - 128) / 128', 'layers': ['spatial', 'pool']}
  assert extractor.dims == {'spatial': 2023, 'pool': 2048}
  described = [extractors.inception(network(), name).pipeline for name in extractors.PIPELINES]
  assert len({(one['resize'], one['scaling']) for one in described}) == 4


def test_sizes_of_all_layers_are_those_of_the_network():
  extractor = extractors.inception(network(), layers=tuple(extractors.LAYERS))
  x = jax.ShapeDtypeStruct((3, 299, 299, 3), np.float32)
  out = jax.eval_shape(extractor.apply, test_inception.params(test_inception.PTH), x)
  assert {name: leaf.shape for name, leaf in out.items()} == {
      name: (3, dim) for name, dim in extractors.LAYERS.items()}
  assert list(extractor.dims) == list(extractors.LAYERS) and len(extractors.LAYERS) == 7


def test_equal_extractors_share_one_compilation():
  one, other = (extractors.inception(network(), name, ('pool',)) for name in ('tf1', 'clean'))
  assert one.apply is other.apply
  assert extractors.digits().apply is extractors.digits().apply


def test_digits_reads_what_the_classifier_reads_last():
  extractor = extractors.digits()
  images, labels, _ = models.digits.images()
  pixels = np.round((images[::30] + 1) * 127.5).astype(np.uint8)
  assert extractor.dims == {'pool': 64} and extractor.pipeline['sigma'] == 0.002
  x = extractor.prepare(pixels)
  assert x.dtype == np.float32 and x.min() == -1 and x.max() == 1
  features = compiled(extractor.apply)(extractor.params, x)['pool']
  assert features.shape == (len(x), 64)

  classifier = models.load_classifier('digits_classifier')
  last = classifier.params['logits']
  own = jax.nn.log_softmax(features @ last['kernel'] + last['bias'])
  expected = quickly(classifier.apply)(classifier.params, x, classifier.sigma_min)
  # Rounding of float32 in sums of 64 products of sizes up to some tens.
  np.testing.assert_allclose(own, expected, atol=1e-4)
  assert (np.argmax(own, -1) == labels[::30]).mean() > 0.99


def test_digits_of_one_channel_are_white():
  grays = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
  x = extractors.digits().prepare(grays)
  np.testing.assert_allclose(x, np.repeat(grays, 3, -1) / 127.5 - 1, atol=1e-6)


@pytest.mark.parametrize('shape, dtype, message', [
    ((1, 8, 8, 2), np.uint8, r'got uint8 \(1, 8, 8, 2\); convert them to 8-bit gray or RGB'),
    ((1, 8, 8, 4), np.uint8, r'got uint8 \(1, 8, 8, 4\); convert'),
    ((8, 8, 3), np.uint8, r'got uint8 \(8, 8, 3\); convert'),
    ((1, 0, 8, 3), np.uint8, r'got uint8 \(1, 0, 8, 3\); convert'),
    ((1, 8, 8, 3), np.float32, r'got float32 \(1, 8, 8, 3\); convert')])
@pytest.mark.parametrize('name', ['inception', 'digits'])
def test_images_of_another_form_are_refused(name, shape, dtype, message):
  extractor = extractors.digits() if name == 'digits' else extractors.inception(network())
  with pytest.raises(ValueError, match=rf'{name}: images must be uint8 \(n, height, width, 1 or 3'
                                       rf'\), {message}'):
    extractor.prepare(np.zeros(shape, dtype))


def test_images_that_are_no_digits_are_refused():
  with pytest.raises(ValueError, match='digits: images must be 8x8 as the bundled digits, got '
                                       '32x28; take Inception for other images'):
    extractors.digits().prepare(np.zeros((1, 32, 28, 3), np.uint8))


def test_unknown_choices_are_refused():
  with pytest.raises(ValueError, match=r"unknown pipeline 'tf2'; did you mean tf1\?"):
    extractors.inception(network(), 'tf2')
  with pytest.raises(ValueError, match=r"unknown layer 'pol'; did you mean pool\?"):
    extractors.inception(network(), layers=('pol',))
  with pytest.raises(ValueError, match='inception: layers must name a feature, got none; known'):
    extractors.inception(network(), layers=())
  with pytest.raises(ValueError, match='inception: network must be inception, got clip; convert'):
    extractors.inception(network('clip'))
