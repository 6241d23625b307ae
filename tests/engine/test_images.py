"""Bytes, pictures and the grid."""

import numpy as np
import pytest
from PIL import Image

from engine import images


def test_uint8_rules_at_their_ends_and_middle():
  values = np.array([-2.0, -1.0, 0.0, 0.9999, 1.0, 3.0], np.float32)
  # -127.5 + 128 = 0.5 truncates to 0; 255.5 clips to 255.
  assert images.to_uint8(values).tolist() == [0, 0, 128, 255, 255, 255]
  assert images.to_uint8(values).dtype == np.uint8
  # 127.5 truncates to 127, 254.99 to 254.
  assert images.to_uint8(values, 'truncate').tolist() == [0, 0, 127, 254, 255, 255]


def test_bytes_survive_the_way_through_model_units():
  every = np.arange(256)
  assert (images.to_uint8((every - 127.5) / 127.5) == every).all()
  # Between two bytes, one rule takes the nearest and the other the lower.
  between = (every[:-1] + 0.75 - 127.5) / 127.5
  assert (images.to_uint8(between, 'nearest') == every[1:]).all()
  assert (images.to_uint8(between, 'truncate') == every[:-1]).all()


@pytest.mark.parametrize('channels', [1, 3])
def test_png_holds_the_bytes(tmp_path, channels):
  image = np.random.default_rng(0).integers(0, 256, (4, 5, channels), np.uint8)
  images.write_png(tmp_path / 'a.png', image)
  with Image.open(tmp_path / 'a.png') as picture:
    decoded = np.asarray(picture)
  np.testing.assert_array_equal(decoded.reshape(image.shape), image)
  np.testing.assert_array_equal(images.read_png(tmp_path / 'a.png'), image)
  assert [path.name for path in tmp_path.iterdir()] == ['a.png']


def test_grid_shows_each_image_in_its_cell():
  colors = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255]], np.uint8)
  flat = np.broadcast_to(colors[:, None, None], (5, 8, 8, 3))
  picture = images.grid(flat, ['one', 'two', 'three', 'four', 'five'], columns=3, size=60)
  step_x = (picture.shape[1] - 6) // 3
  step_y = (picture.shape[0] - 6) // 2
  assert step_x == 64 + 6 and step_y > 64 + 6  # 60 is met by the whole factor 8; text below.
  for i, color in enumerate(colors):
    left, top = 6 + i % 3 * step_x, 6 + i // 3 * step_y
    assert (picture[top:top + 64, left:left + 64] == color).all()
    below = picture[top + 64:top + step_y - 6, left:left + 64]
    assert below.max() > 150  # A caption.
    assert (picture[top:top + 64, left + 64:left + 70] == picture[0, 0]).all()  # A separator.


def test_grid_enlarges_smoothly_and_keeps_large_images():
  ramp = np.zeros((1, 8, 8, 1), np.uint8)
  ramp[:, :, 4:] = 255
  picture = images.grid(ramp, ['ramp'], columns=8, size=96)
  row = picture[40, 6:6 + 96, 0].astype(int)
  assert row[0] == 0 and row[-1] == 255 and np.abs(np.diff(row)).max() < 40
  large = np.zeros((1, 200, 120, 3), np.uint8)
  assert images.grid(large, ['long text that does not fit'], 8, 96).shape[1] == 120 + 2 * 6


