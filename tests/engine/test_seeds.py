"""Seeds and labels as text, and the keys that come of them."""

import jax
import numpy as np
import pytest

from engine import devices, seeds, torch_rng


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


def labels(text, some, num_classes=10, source='jax'):
  """The class of each seed, from the text of a config."""
  classes = seeds.parse_labels(text, num_classes)
  return seeds.labels(classes, some, num_classes, (4, 4, 1), source)


def test_labels_of_each_form():
  some = np.array([0, 1, 2, 13], np.uint32)
  assert labels('3', some).tolist() == [3, 3, 3, 3]
  assert labels('none', some).tolist() == [-1, -1, -1, -1]
  assert labels('random', some, num_classes=0).tolist() == [-1, -1, -1, -1]
  assert labels('4,0-2', some).tolist() == [4, 0, 1, 0]  # By seed modulo 4.
  assert labels('balanced', some).tolist() == [0, 1, 2, 3]  # By seed modulo 10.
  assert labels('balanced', some, num_classes=0).tolist() == [-1, -1, -1, -1]
  assert labels('3', some).dtype == labels('random', some).dtype == np.int32


def test_labels_belong_to_the_seed_and_not_to_its_place():
  some = np.arange(200, dtype=np.uint32)
  for text in ('random', '1,5,8', 'balanced'):
    whole = labels(text, some)
    np.testing.assert_array_equal(labels(text, some[::-7]), whole[::-7])


@pytest.mark.parametrize('source', seeds.SOURCES)
def test_random_labels_are_spread_over_the_classes(source):
  drawn = labels('random', np.arange(200, dtype=np.uint32), source=source)
  assert drawn.dtype == np.int32 and set(drawn.tolist()) == set(range(10))
  # 20 expected of each class, with standard deviation 4.2.
  assert np.abs(np.bincount(drawn) - 20).max() < 20


def test_balanced_labels_are_as_many_of_each_class():
  some = seeds.parse('37-136')
  assert np.bincount(labels('balanced', some)).tolist() == [10] * 10


@pytest.mark.parametrize('device', torch_rng.DEVICES)
def test_labels_and_latents_of_torch_are_those_of_one_stream(device):
  some = np.arange(300, dtype=np.uint32)  # More than are drawn at a time.
  latents, drawn = torch_rng.draw(some, (4, 4, 1), 10, device)
  np.testing.assert_array_equal(labels('random', some, source=f'torch_{device}'), drawn)
  count = 300 // devices.count() * devices.count()
  ours = devices.merge(seeds.latents(some[:count], (4, 4, 1), f'torch_{device}'))
  np.testing.assert_array_equal(ours, latents[:count])


def test_latents_of_jax_are_those_of_the_key():
  some = np.array([7, 2**32 - 1] * devices.count(), np.uint32)
  drawn = devices.merge(seeds.latents(some, (5, 3, 2), 'jax'))
  for seed, latent in zip(some, drawn, strict=True):
    key = jax.random.fold_in(jax.random.key(np.uint32(seed)), seeds.LATENT)
    np.testing.assert_allclose(latent, jax.random.normal(key, (5, 3, 2)), rtol=1e-6)


def test_a_latent_of_jax_is_the_same_at_any_place():
  # An odd number of numbers each: no image falls on the same lanes of a processor twice.
  some = np.arange(16 * devices.count(), dtype=np.uint32)
  drawn = devices.merge(seeds.latents(some, (5, 3, 1), 'jax'))
  backwards = devices.merge(seeds.latents(some[::-1], (5, 3, 1), 'jax'))
  np.testing.assert_array_equal(drawn[::-1], backwards)


def test_an_unknown_source_is_refused():
  seeds.check_source('torch_cuda', (256, 256, 3))
  with pytest.raises(ValueError, match="unknown config.seeds_from 'tourch_cpu'; did you mean"):
    seeds.check_source('tourch_cpu', (8, 8, 3))
  with pytest.raises(ValueError, match='must have at most 196608 numbers, got 786432'):
    seeds.check_source('torch_cuda', (512, 512, 3))


@pytest.mark.parametrize('text, num_classes, message', [
    ('10', 10, "labels: classes must be from 0 to 9, got 10 in '10'"),
    ('0,3-12', 10, 'got 12'),
    ('three', 10, "labels: must be numbers and ranges .* 'balanced' or 'none', got 'three'"),
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
