"""Seeds and labels as text, and the keys that come of them."""

import jax
import numpy as np
import pytest

from engine import seeds


@pytest.mark.parametrize('text, expected', [
    ('0-3', [0, 1, 2, 3]),
    ('7', [7]),
    ('5,0-2, 9 ,4294967295', [5, 0, 1, 2, 9, 4294967295]),
    ('3-3', [3]),
])
def test_seeds_are_numbers_and_inclusive_ranges_in_the_order_given(text, expected):
  parsed = seeds.parse(text)
  assert parsed.dtype == np.uint32 and parsed.tolist() == expected


@pytest.mark.parametrize('text, message', [
    ('', r"^seeds: must be numbers and ranges .* such as '0-63,70', got an empty text$"),
    ('1,,2', "got '' in '1,,2'"),
    ('a', "got 'a' in 'a'"),
    ('-5', "got '-5' in '-5'"),
    ('1-2-3', "got '1-2-3'"),
    ('1.5', "got '1.5'"),
    ('9-3', "a range must run upwards, got '9-3'; write 3-9"),
    ('1,5-8,7', 'every seed must occur once, got 7 twice'),
    ('4294967296', 'every seed must be from 0 to 4294967295, got 4294967296'),
    ('0-4294967295', 'at most 10000000 in one run, got 4294967296; split'),
])
def test_a_bad_list_of_seeds_is_explained(text, message):
  with pytest.raises(ValueError, match=message):
    seeds.parse(text)


def labels(text, some, num_classes=10):
  """The class of each seed, from the text of a config."""
  return seeds.labels(seeds.parse_labels(text, num_classes), some, num_classes)


def test_labels_of_each_form():
  some = np.array([0, 1, 2, 13], np.uint32)
  assert labels('3', some).tolist() == [3, 3, 3, 3]
  assert labels('none', some).tolist() == [-1, -1, -1, -1]
  assert labels('random', some, num_classes=0).tolist() == [-1, -1, -1, -1]
  assert labels('4,0-2', some).tolist() == [4, 0, 1, 0]  # By seed modulo 4.
  assert labels('3', some).dtype == labels('random', some).dtype == np.int32


def test_labels_belong_to_the_seed_and_not_to_its_place():
  some = np.arange(200, dtype=np.uint32)
  for text in ('random', '1,5,8'):
    whole = labels(text, some)
    np.testing.assert_array_equal(labels(text, some[::-7]), whole[::-7])
  drawn = labels('random', some)
  assert set(drawn.tolist()) == set(range(10))
  # 20 expected of each class, with standard deviation 4.2.
  assert np.abs(np.bincount(drawn) - 20).max() < 20


@pytest.mark.parametrize('text, num_classes, message', [
    ('10', 10, "labels: classes must be from 0 to 9, got 10 in '10'"),
    ('0,3-12', 10, 'got 12'),
    ('three', 10, "labels: must be numbers and ranges .* 'random' or 'none', got 'three'"),
    ('', 10, 'got an empty text'),
    ('3', 0, "labels: classes must be 'none' for a model without any, got 3"),
])
def test_a_bad_label_is_explained(text, num_classes, message):
  with pytest.raises(ValueError, match=message):
    seeds.parse_labels(text, num_classes)


def test_keys_are_the_streams_of_each_seed():
  some = np.array([0, 5, 2**32 - 1], np.uint32)
  for stream in (seeds.LATENT, seeds.LABEL, seeds.NOISE):
    expected = [jax.random.fold_in(jax.random.key(np.uint32(seed)), stream) for seed in some]
    np.testing.assert_array_equal(jax.random.key_data(seeds.keys(some, stream)),
                                  [jax.random.key_data(key) for key in expected])
  np.testing.assert_array_equal(jax.random.key_data(seeds.keys([5], 0))[0],
                                jax.random.key_data(jax.random.fold_in(jax.random.key(5), 0)))
