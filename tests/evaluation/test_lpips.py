"""LPIPS of sets of images: published pipelines, batches, bad input."""

import types

import numpy as np
import pytest

from evaluation import lpips
from tests.models import test_lpips as network_tests

pytestmark = pytest.mark.float32

ARRAYS, CASES = network_tests.ARRAYS, network_tests.CASES


@pytest.fixture
def network():
  return types.SimpleNamespace(name='lpips_vgg', params=network_tests.params(np.float32))


def test_bytes_are_scaled_as_torch_fidelity_does(network):
  case = CASES['lpips.torch_fidelity_float32']
  values, layers = lpips.distance(network, ARRAYS['a2'], ARRAYS['b2'], batch_size=2)
  assert values.dtype == layers.dtype == np.float64
  np.testing.assert_allclose(values, case['values'], rtol=case['tolerance'])
  np.testing.assert_allclose(values, CASES['lpips.plain_max']['values'], rtol=1e-5)
  np.testing.assert_allclose(layers, ARRAYS['plain_max.layers'], rtol=1e-5)


@pytest.mark.parametrize('name, pair', [
    ('sfd_right_range', 0), *(pytest.param(name, pair, marks=pytest.mark.slow)
                              for name in ('sfd_right_range', 'sfd_as_run') for pair in (0, 1)
                              if (name, pair) != ('sfd_right_range', 0))])
def test_the_pipeline_of_sfd(name, pair, network, monkeypatch):
  a, b = network_tests.images(np.float32, pair, 'a b')
  if name == 'sfd_as_run':  # Out of range, so refused; the numbers show that the rest is the same.
    a, b = 2 * a - 1, 2 * b - 1
    with pytest.raises(ValueError, match=r'images must lie in \[0, 1\], got -1 to'):
      lpips.distance(network, a, b)
    monkeypatch.setattr(lpips, '_check', lambda a, b: None)
  values, layers = lpips.distance(network, a, b, replace_pooling=True, size=lpips.SFD_SIZE,
                                  batch_size=1)
  case = CASES[f'lpips.{name}']
  assert (case['resize'], case['pooling']) == (lpips.SFD_SIZE, 'average')
  np.testing.assert_allclose(values, case['values'][pair], rtol=1e-5)
  np.testing.assert_allclose(layers[0], ARRAYS[f'{name}.layers'][pair], rtol=1e-5)


def test_batches_have_no_effect(network):
  a, b = np.random.default_rng(0).integers(0, 256, (2, 3, 48, 40, 1), np.uint8)
  values, layers = lpips.distance(network, a, b, batch_size=2)
  assert values.shape == (3,) and layers.shape == (3, 5) and (values > 0).all()
  np.testing.assert_allclose(layers.sum(-1), values, rtol=1e-6)
  swapped = [np.repeat(images[::-1], 3, -1) for images in (b, a)]  # In colors, and reversed.
  np.testing.assert_allclose(lpips.distance(network, *swapped, batch_size=2).values[::-1], values,
                             rtol=1e-5)
  floats = lpips.distance(network, *(np.float32(images) / np.float32(255) for images in (a, b)),
                          batch_size=2)
  np.testing.assert_array_equal(floats.values, values)


GOOD = np.zeros((2, 16, 16, 3), np.uint8)


@pytest.mark.parametrize('a, b, options, match', [
    (GOOD, GOOD[:1], {}, r'both sets must be of one shape and type, got uint8 \(2, 16, 16, 3\) '),
    (GOOD, GOOD / 255, {}, r'one shape and type, got uint8 .* and float64'),
    (GOOD[:0], GOOD[:0], {}, r'must be of shape .*, n above 0, got \(0, 16, 16, 3\); stack them'),
    (GOOD[0], GOOD[0], {}, r'got \(16, 16, 3\); stack them'),
    (GOOD[..., :2], GOOD[..., :2], {}, r'got \(2, 16, 16, 2\)'),
    (GOOD.astype(int), GOOD.astype(int), {}, 'must be uint8, or floating-point in .*, got int64'),
    (GOOD - 1.0, GOOD - 1.0, {}, r'images must lie in \[0, 1\], got -1 to -1; scale them'),
    (GOOD + np.nan, GOOD + np.nan, {}, r'images must lie in \[0, 1\], got nan to nan'),
    (GOOD[:, :8], GOOD[:, :8], {}, r'at least 16 pixels on a side, got .*\(32, 8, 16, 3\)'),
    (GOOD, GOOD, {'batch_size': 0}, 'batch_size must be an integer of 1 or more, got 0; 32 is'),
    (GOOD, GOOD, {'size': 1.5}, 'size must be an integer of 1 or more, got 1.5; 224 is usual'),
])
def test_images_of_another_form(a, b, options, match, network):
  with pytest.raises(ValueError, match=match) as error:
    lpips.distance(network, a, b, **options)
  assert str(error.value).startswith('lpips: ') and '\n' not in str(error.value)


def test_another_network():
  with pytest.raises(ValueError, match='network must be lpips_vgg, got clip; convert'):
    lpips.distance(types.SimpleNamespace(name='clip', params={}), GOOD, GOOD)


