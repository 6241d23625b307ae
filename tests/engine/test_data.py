"""Data to train on: the split, and files of others."""

import numpy as np
import pytest

from engine import data
from models import digits

GOOD = np.zeros((2, 4, 4, 3), np.uint8)


def test_digits_are_held_out_in_all_inks():
  training, held_out = data.load('digits', 8)
  assert len(held_out.images) == 224 * 6 and len(training.images) == 1573 * 6
  assert training.num_classes == held_out.num_classes == 10
  gray = digits.luminance(training.images).reshape(6, 1573, -1)
  np.testing.assert_array_equal(gray[0], gray[5])  # The same digits in every ink.
  own = {row.tobytes() for row in gray[0]}
  other = digits.luminance(held_out.images).reshape(6, 224, -1)[0]
  assert not any(row.tobytes() in own for row in other)


def test_nothing_is_held_out_with_0():
  training, held_out = data.load('digits', 0)
  assert held_out is None and len(training.images) == 1797 * 6


@pytest.mark.parametrize('labels', [np.array([0, 2, 1, 0]), None])
def test_file_of_images(tmp_path, labels):
  images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
  arrays = {'arr_0': images} | ({} if labels is None else {'arr_1': labels})
  np.savez(tmp_path / 'mine.npz', **arrays)
  training, held_out = data.load(str(tmp_path / 'mine.npz'), 4)
  assert training.images.dtype == np.float32 and len(training.images) == 3
  # Bytes come back through the rule that writes them.
  back = np.clip(training.images * 127.5 + 128, 0, 255).astype(np.uint8)
  np.testing.assert_array_equal(back, images[:3])
  assert training.num_classes == (0 if labels is None else 3)
  assert labels is None or held_out.labels.tolist() == [0]


@pytest.mark.parametrize('arrays, match', [
    ({'arr_0': np.zeros((2, 4, 4, 3))}, r'got float64 \(2, 4, 4, 3\)'),
    ({'arr_0': np.zeros((2, 4, 5, 3), np.uint8)}, r'got uint8 \(2, 4, 5, 3\)'),
    ({'images': GOOD}, 'KeyError'),
    ({'arr_0': GOOD, 'arr_1': np.array([0, -1])}, 'got labels int64'),
    ({'arr_0': GOOD, 'arr_1': np.zeros(3, int)}, r'labels int64 \(3,\)'),
])
def test_file_of_something_else(tmp_path, arrays, match):
  np.savez(tmp_path / 'bad.npz', **arrays)
  with pytest.raises(ValueError, match=match):
    data.load(str(tmp_path / 'bad.npz'), 0)


def test_no_file_and_no_images_file(tmp_path):
  with pytest.raises(ValueError, match="must be 'digits' or a .npz file .* got 'digit'"):
    data.load('digit', 0)
  (tmp_path / 'text.npz').write_text('no zip')
  with pytest.raises(ValueError, match='output.format=npz writes such files'):
    data.load(str(tmp_path / 'text.npz'), 0)
  with pytest.raises(ValueError, match='must be 0 or from 2 to the number of images, got 1'):
    data.load('digits', 1)
