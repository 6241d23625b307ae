"""LPIPS against the reference numbers, with gradients."""

import functools

import jax
import numpy as np
import pytest

from convert import lpips as convert_lpips
from models import lpips
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

MANIFEST, FILES = reference.load('lpips')
CASES = {case['id']: case for case in MANIFEST['cases'] if case['id'].startswith('lpips.')}
ARRAYS = FILES['lpips']
PAIRS = [0, pytest.param(1, marks=pytest.mark.slow)]  # The pairs do not meet in the network.


@functools.cache
def tensors():
  """The content of both published files, {name: array}, with the recipe's weights."""
  return recipe.weights(recipe.load('lpips/lpips_recipe.json.gz')['lpips_v'], 'lpips_v')


@functools.cache
def params(dtype):
  return jax.tree.map(lambda array: array.astype(dtype), convert_lpips.convert(tensors())[1])


def images(dtype, pair, names='a2 b2'):
  """A pair in [0, 1]."""
  return [ARRAYS[name][pair:pair + 1].astype(dtype) / dtype(255) for name in names.split()]


def test_all_cases_of_the_reference_are_here():
  assert [*CASES] == ['lpips.sfd_as_run', 'lpips.sfd_right_range', 'lpips.plain_average',
                      'lpips.plain_max', 'lpips.torch_fidelity_float32', 'lpips.grad']


@quickly
@functools.partial(jax.grad, has_aux=True)
def gradient(a, params, b):
  """Of the sum of distances with means in place of maxima; and the answer."""
  values, parts = lpips.apply(params, a, b, replace_pooling=True)
  return values.sum(), (values, parts)


@pytest.mark.parametrize('pair', PAIRS)
def test_average_pooling_and_its_gradient_in_64_bit(pair, x64):
  a, b = images(np.float64, pair)
  slope, (values, parts) = gradient(a, params(np.float64), b)
  np.testing.assert_allclose(values, ARRAYS['plain_average.y'][pair:pair + 1], rtol=1e-10)
  np.testing.assert_allclose(parts, ARRAYS['plain_average.layers'][pair:pair + 1], rtol=1e-10)
  expected = ARRAYS['plain_average.grad'][pair:pair + 1]
  np.testing.assert_allclose(slope, expected, atol=1e-10 * abs(expected).max())


@pytest.mark.parametrize('pair', PAIRS)
def test_max_pooling_in_64_bit(pair, x64):
  values, parts = quickly(lpips.apply)(params(np.float64), *images(np.float64, pair))
  np.testing.assert_allclose(values, ARRAYS['plain_max.y'][pair:pair + 1], rtol=1e-10)
  np.testing.assert_allclose(parts, ARRAYS['plain_max.layers'][pair:pair + 1], rtol=1e-10)


def test_equal_images_have_no_distance_and_a_gradient(x64):
  assert (ARRAYS['identical.y'] == 0).all()
  # Vectors of channels of which none is active: their length has no slope.
  dead = {**params(np.float64), 'conv28': {'kernel': np.zeros((3, 3, 512, 512)),
                                           'bias': np.full(512, -1.0)}}
  a, _ = images(np.float64, 0)
  slope, (values, parts) = gradient(a, dead, a)
  assert values == 0 and (parts == 0).all() and (slope == 0).all()


def test_images_of_another_form():
  for shapes in (((1, 16, 15, 3), (1, 16, 15, 3)), ((1, 16, 16, 3), (2, 16, 16, 3)),
                 ((1, 16, 16, 1), (1, 16, 16, 1))):
    with pytest.raises(ValueError, match='must be two arrays of one shape .n, height, width, 3.'):
      lpips.apply(params(np.float32), *map(np.zeros, shapes))
