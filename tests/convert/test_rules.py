"""Key rules: layouts, orders of attention channels, and what does not fit told at once."""

import jax
import numpy as np
import pytest

from convert import rules
from models import layers, networks

LIKE = {'conv': {'kernel': np.zeros((3, 3, 2, 5)), 'bias': np.zeros(5)}}
RULES = {'conv.weight': rules.Rule(('conv', 'kernel'), 'conv'),
         'conv.bias': rules.Rule(('conv', 'bias'))}


def tensors(**changes):
  """Tensors that the rules place."""
  rng = np.random.default_rng(0)
  return {'conv.weight': rng.normal(size=(5, 2, 3, 3)).astype(np.float32),
          'conv.bias': rng.normal(size=5).astype(np.float32), **changes}


@pytest.mark.parametrize('name', rules.LAYOUTS)
def test_layouts_say_what_shape_they_come_from(name):
  layout, rng = rules.LAYOUTS[name], np.random.default_rng(0)
  shape = {'conv': (3, 3, 2, 5), 'conv1d': (1, 1, 2, 5)}.get(name, (2, 5))
  array = rng.normal(size=layout.original(shape))
  assert layout.convert(array).shape == shape
  assert sorted(layout.convert(array).ravel()) == sorted(array.ravel())


def test_a_convolution_is_the_same_function():
  given = tensors()
  params = rules.place(RULES, given, LIKE)
  x = np.random.default_rng(1).normal(size=(4, 4, 2)).astype(np.float32)
  ours = layers.Conv(5).apply({'params': params['conv']}, x[None])[0]
  padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
  # At pixel (2, 1): out = sum over in, row and column of weight[out, in, row, column] * window.
  expected = np.einsum('oirc,rci->o', given['conv.weight'], padded[2:5, 1:4]) + given['conv.bias']
  np.testing.assert_allclose(ours[2, 1], expected, atol=1e-5)


@pytest.mark.parametrize('order', ['same', 'legacy', 'new'])
def test_orders_of_attention_channels(order):
  heads, size = 2, 3
  rows = np.arange(3 * heads * size)
  head, part, channel = {  # Of each row there, by the definition of the order.
      'same': (rows // (3 * size), rows % 3, rows // 3 % size),
      'legacy': (rows // (3 * size), rows // size % 3, rows % size),
      'new': (rows // size % heads, rows // (heads * size), rows % size)}[order]
  stored = (100 * head + 10 * part + channel)[:, None, None] * np.ones((1, 4, 1))
  rule = rules.Rule(('qkv', 'kernel'), 'conv1d', order, heads)
  ours = rule.convert(stored)[0, 0, 0].reshape(heads, size, 3)
  for index in np.ndindex(heads, size, 3):
    assert ours[index] == 100 * index[0] + 10 * index[2] + index[1]
  bias = rules.Rule(('qkv', 'bias'), 'same', order, heads).convert(stored[:, 0, 0])
  np.testing.assert_array_equal(bias, ours.ravel())


def test_parameters_are_copies_in_float32():
  given = {name: array.astype(np.float16) for name, array in tensors().items()}
  params = rules.place(RULES, given, LIKE)
  assert all(leaf.dtype == np.float32 and leaf.flags.c_contiguous and leaf.base is None
             for leaf in jax.tree.leaves(params))
  given = tensors()  # Of the right type and order already, on a file that is to be forgotten.
  assert not np.shares_memory(rules.place(RULES, given, LIKE)['conv']['bias'], given['conv.bias'])


def test_missing_unused_and_misshaped_come_together():
  given = tensors(extra=np.zeros(1), **{'conv.weight': np.zeros((5, 2, 3))})
  del given['conv.bias']
  with pytest.raises(ValueError, match=r'got: missing conv.bias; not used extra; conv.weight is '
                                       r'\(5, 2, 3\) and must be \(5, 2, 3, 3\); choose'):
    rules.place(RULES, given, LIKE)


def test_long_lists_are_cut():
  given = tensors(**{f'extra{i}': np.zeros(1) for i in range(9)})
  with pytest.raises(ValueError, match='not used extra0, .*, extra3 and 5 more; choose'):
    rules.place(RULES, given, LIKE)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(value):
  bias = np.zeros(5, np.float32)
  bias[3] = value
  with pytest.raises(ValueError, match='must be finite, got NaN or infinity in conv.bias;'):
    rules.place(RULES, tensors(**{'conv.bias': bias}), LIKE)


def test_constants_are_checked_and_may_be_missing():
  constants = {'filter': np.full((1, 1, 2, 2), 0.25)}
  rules.place(RULES, tensors(), LIKE, constants)
  rules.place(RULES, tensors(filter=np.full((1, 1, 2, 2), 0.25, np.float32)), LIKE, constants)
  for other in (np.full((1, 1, 4, 4), 1 / 16), np.full((1, 1, 2, 2), 0.5)):
    with pytest.raises(ValueError, match='got: filter of shape .* is another filter than'):
      rules.place(RULES, tensors(filter=other), LIKE, constants)


def test_shapes_of_an_absurd_network_are_refused_before_they_cost():
  network = networks.build('song_unet', {'img_resolution': 8, 'out_channels': 3,
                                         'num_blocks': 10**9})
  with pytest.raises(ValueError, match='fewer blocks than the 100 tensors there are, got 4000000'):
    rules.shapes(network, (8, 8, 3), 100)
