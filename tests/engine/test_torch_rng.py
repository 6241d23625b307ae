"""Numbers of PyTorch's generators against recorded ones, and laws of the latents made of them."""

import json

import numpy as np
import pytest

from engine import torch_rng
from tests import reference

MANIFEST, ARRAYS = reference.load('torch_rng')
CASES, CPU = MANIFEST['cases'], ARRAYS['cpu']
FOLDER = reference.GOLDEN / 'torch_rng'
CUDA = json.loads((FOLDER / 'cuda.json').read_text())['known_values']
MORE = json.loads((FOLDER / 'more.json').read_text())

# The manifest's. PyTorch's float32 logarithm, sine and cosine are off by up to 5e-7.
TOLERANCE = 1e-6


def test_there_are_as_many_cases_as_recorded():
  assert len(CASES) == 36 and len(CPU) == 3 * 36
  assert {int(np.prod(case['shape'])) for case in CASES} == {8, 15, 17, 3072, 12288, 16384}
  assert len({case['seed'] for case in CASES}) == 6


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['id'])
def test_the_cpu_stream_gives_the_recorded_numbers_and_label(case):
  count = int(np.prod(case['shape']))
  normals, stream = torch_rng.cpu_randn(torch_rng.Stream(case['seed']), count)
  label, stream = torch_rng.cpu_randint(stream, 10)
  after, stream = torch_rng.cpu_randn(stream, count)
  index, randn, randn_after = (
      CPU[f'{case["id"]}/{name}'] for name in ('index', 'randn', 'randn_after_label'))
  assert normals.dtype == after.dtype == np.float32 and normals.shape == after.shape == (count,)
  np.testing.assert_allclose(normals[index], randn, rtol=0, atol=TOLERANCE)
  np.testing.assert_allclose(after[index], randn_after, rtol=0, atol=TOLERANCE)
  assert label == case['label_randint_10']
  # For the places between the recorded ones: one wrong number changes these by about 1.
  wide = normals.astype(np.float64)
  assert wide.sum() == pytest.approx(case['sum'], rel=0, abs=TOLERANCE * count)
  assert (wide**2).sum() == pytest.approx(case['sum_sq'], rel=0, abs=2 * TOLERANCE * count)


@pytest.mark.parametrize('shape', [(3, 32, 32), (3, 64, 64), (4, 64, 64), (2, 2, 2)])
def test_draw_gives_the_recorded_latents_and_labels(shape):
  cases = [case for case in CASES if tuple(case['shape']) == shape]
  assert len(cases) == 6
  channels, height, width = shape
  latents, labels = torch_rng.draw(np.array([case['seed'] for case in cases], np.uint32),
                                   (height, width, channels), 10, 'cpu')
  assert latents.shape == (6, height, width, channels) and latents.dtype == np.float32
  assert labels.tolist() == [case['label_randint_10'] for case in cases]
  assert labels.dtype == np.int32
  for case, latent in zip(cases, latents, strict=True):
    rows, columns = np.unravel_index(CPU[f'{case["id"]}/index'], shape)[1:]
    channel = CPU[f'{case["id"]}/index'] // (height * width)
    np.testing.assert_allclose(latent[rows, columns, channel], CPU[f'{case["id"]}/randn'],
                               rtol=0, atol=TOLERANCE)


def test_labels_of_a_thousand_classes_are_the_recorded_ones():
  recorded = MORE['cpu_labels']
  _, labels = torch_rng.draw(np.array(recorded['seeds'], np.uint32), (64, 64, 3), 1000, 'cpu')
  assert labels.tolist() == recorded['labels'] and len(labels) == 10


def test_a_spare_normal_waits_through_other_draws_and_a_draw_can_be_repeated():
  start = torch_rng.Stream(3)
  all_at_once, _ = torch_rng.cpu_randn(start, 10)
  first, stream = torch_rng.cpu_randn(start, 5)
  _, later = torch_rng.cpu_randn(stream, 20)  # Blocks leave the spare number alone.
  one, later = torch_rng.cpu_randn(later, 1)
  assert stream.spare is not None and later.spare is None
  np.testing.assert_array_equal(np.concatenate([first, one]), all_at_once[:6])
  np.testing.assert_array_equal(torch_rng.cpu_randn(start, 5)[0], first)


@pytest.mark.parametrize('counter, key, expected', [
    ('00000000 00000000 00000000 00000000', '00000000 00000000',
     '6627e8d5 e169c58d bc57ac4c 9b00dbd8'),
    ('ffffffff ffffffff ffffffff ffffffff', 'ffffffff ffffffff',
     '408f276d 41c83b0e a20bc7c6 6d5451fd'),
    ('243f6a88 85a308d3 13198a2e 03707344', 'a4093822 299f31d0',
     'd16cfe09 94fdcceb 5001e420 24126ea1'),
])
def test_philox_gives_the_vectors_of_its_authors(counter, key, expected):
  counter, key, expected = (
      [int(word, 16) for word in text.split()] for text in (counter, key, expected))
  assert [int(word) for word in torch_rng.philox(counter, key)] == expected


def test_cuda_gives_the_published_numbers():
  assert (CUDA['seed'], CUDA['offset'], len(CUDA['first_12'])) == (0, 0, 12)
  normals = torch_rng.cuda_randn(np.array([0], np.uint32), 12)
  assert normals.dtype == np.float32
  np.testing.assert_allclose(normals[0], CUDA['first_12'], rtol=0, atol=TOLERANCE)


def test_cuda_gives_the_printouts_of_cards():
  normals = torch_rng.cuda_randn(np.array([10], np.uint32), 3)[0]
  np.testing.assert_allclose(normals, MORE['cuda_seed_10']['randn'], rtol=0, atol=6e-5)
  # Three draws of one generator, so that offsets 1 and 2 are PyTorch's too.
  printed, seeds = MORE['cuda_three_draws'], np.array([0], np.uint32)
  a, b = (torch_rng.cuda_randn(seeds, 64, offset).reshape(8, 8) for offset in (0, 1))
  result = np.maximum(a + b / 2 + torch_rng.cuda_randn(seeds, 8, 2), 0)
  rows = slice(printed['first_row'], None)
  np.testing.assert_allclose(a[rows], printed['a'], rtol=0, atol=6e-5)  # 4 decimals are printed.
  np.testing.assert_allclose(result[rows], printed['result'], rtol=0, atol=6e-5)


def test_cuda_integers_are_first_words_modulo_the_range():
  printed = MORE['cuda_randint']
  words, *_ = torch_rng.philox((0, 0, np.arange(8), 0), (printed['seed'], 0))
  assert (words % np.uint64(printed['range'])).tolist() == printed['numbers']
  label = torch_rng.cuda_randint(np.array([printed['seed']], np.uint32), printed['range'])
  assert label.tolist() == printed['numbers'][:1] and label.dtype == np.int32


def test_cuda_labels_come_after_the_latent():
  seeds = np.arange(2000, dtype=np.uint32)
  latents, labels = torch_rng.draw(seeds, (2, 2, 1), 10, 'cuda')
  np.testing.assert_array_equal(labels, torch_rng.cuda_randint(seeds, 10, 1))
  assert labels.dtype == np.int32 and latents.shape == (2000, 2, 2, 1)
  # 200 expected of each class, with standard deviation 13.4.
  assert set(labels.tolist()) == set(range(10))
  assert np.abs(np.bincount(labels) - 200).max() < 67


def test_cuda_numbers_are_a_prefix_of_longer_draws_up_to_the_limit():
  seeds = np.array([0, 2**32 - 1], np.uint32)
  longest = torch_rng.cuda_randn(seeds, torch_rng.MOST_CUDA)
  np.testing.assert_array_equal(torch_rng.cuda_randn(seeds, 100), longest[:, :100])
  assert np.isfinite(longest).all()


@pytest.mark.parametrize('device', torch_rng.DEVICES)
def test_latents_are_standard_normal_and_differ_between_seeds(device):
  latents, labels = torch_rng.draw(np.arange(64, dtype=np.uint32), (32, 32, 3), 0, device)
  assert labels is None
  values = latents.reshape(64, -1).astype(np.float64)
  # Five standard deviations of each moment over 196,608 numbers.
  assert abs(values.mean()) < 5 * values.size**-0.5
  assert abs((values**2).mean() - 1) < 5 * (2 / values.size)**0.5
  assert abs((values**4).mean() - 3) < 5 * (96 / values.size)**0.5
  # Of 2016 pairs of seeds; a correlation over 3072 numbers has standard deviation 0.018.
  assert np.abs(np.corrcoef(values) - np.eye(64)).max() < 0.1


@pytest.mark.parametrize('device', torch_rng.DEVICES)
@pytest.mark.parametrize('shape', [(5, 3, 2), (2, 2, 1)])  # One with a rest of 14, one scalar.
def test_a_latent_belongs_to_its_seed_and_not_to_its_place(device, shape):
  seeds = np.array([3, 7, 2**32 - 1, 0], np.uint32)
  latents, labels = torch_rng.draw(seeds, shape, 10, device)
  for i, seed in enumerate(seeds):
    latent, label = torch_rng.draw(np.array([seed]), shape, 10, device)
    np.testing.assert_array_equal(latent[0], latents[i])
    assert label.tolist() == [labels[i]]
  backwards, _ = torch_rng.draw(seeds[::-1], shape, 0, device)
  np.testing.assert_array_equal(backwards, latents[::-1])


@pytest.mark.parametrize('device', torch_rng.DEVICES)
def test_channels_are_drawn_before_rows_and_columns(device):
  latents, _ = torch_rng.draw(np.array([5], np.uint32), (4, 6, 2), 0, device)
  drawn = (torch_rng.cuda_randn(np.array([5]), 48)[0] if device == 'cuda' else
           torch_rng.cpu_randn(torch_rng.Stream(5), 48)[0])
  np.testing.assert_array_equal(latents[0, :, :, 1].reshape(-1), drawn[24:])
  assert latents.flags.c_contiguous


@pytest.mark.parametrize('changed, message', [
    ({'device': 'tpu'}, "^draw: device must be 'cpu' or 'cuda', got 'tpu'; choose the one"),
    ({'seeds': np.array([4, -1])}, '^draw: seeds must be from 0 to 4294967295, got -1 at index 1;'),
    ({'seeds': np.array([2**32])}, 'got 4294967296 at index 0; take it modulo 2'),
    ({'shape': (32, 32)}, r'^draw: shape must be three positive numbers .*, got \(32, 32\);'),
    ({'shape': (0, 32, 3)}, r'got \(0, 32, 3\)'),
    ({'num_classes': -1}, '^draw: num_classes must be from 0 to 268435455, got -1; 0 draws no'),
    ({'num_classes': 2**28}, 'got 268435456'),
    ({'shape': (512, 512, 3)},
     '^cuda_randn: a tensor must have at most 196608 numbers, got 786432; .* depend on the card'),
])
def test_what_cannot_be_drawn_is_explained(changed, message):
  arguments = {'seeds': np.array([0]), 'shape': (2, 2, 1), 'num_classes': 0, 'device': 'cuda'}
  with pytest.raises(ValueError, match=message):
    torch_rng.draw(**{**arguments, **changed})
