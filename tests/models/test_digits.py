"""The bundled data set: content, colours and what a classifier sees of it."""

import hashlib

import numpy as np
import pytest

import models
from models import digits


def test_the_data_is_the_uci_set():
  grays, labels = digits.grays()
  assert grays.shape == (1797, 8, 8) and grays.dtype == np.uint8
  assert grays.min() == 0 and grays.max() == 16
  assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
  # The first row of the UCI file: a zero.
  assert grays[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and labels[0] == 0


def test_every_digit_stands_in_every_ink():
  images, labels, inks = digits.images()
  assert images.shape == (10782, 8, 8, 3) and images.dtype == np.float32
  assert images.min() == -1 and images.max() == 1
  grays, classes = digits.grays()
  for index, color in enumerate(digits.INKS.values()):
    own = images[inks == index]
    np.testing.assert_array_equal(labels[inks == index], classes)
    np.testing.assert_array_equal((own + 1) * 8, grays[..., None] * np.array(color))


def test_luminance_returns_the_gray_level_whatever_the_ink():
  images, _, _ = digits.images()
  np.testing.assert_array_equal(digits.luminance(images), np.tile(digits.grays()[0], (6, 1, 1)))


def test_inks_are_bright_and_far_from_each_other():
  colors = np.array(list(digits.INKS.values()))
  assert (colors.max(-1) == 1).all()
  assert (colors @ [0.299, 0.587, 0.114] > 0.45).all()  # Rec. 601 luma; black has 0.
  distance = np.abs(colors[:, None] - colors[None]).max(-1)
  assert distance[~np.eye(6, dtype=bool)].min() >= 0.5


def test_shared_arrays_are_read_only():
  with pytest.raises(ValueError, match='read-only'):
    digits.grays()[0][0] = 1


@pytest.fixture
def data_file(monkeypatch, tmp_path):
  """A copy of the data file to damage."""
  path = tmp_path / 'digits.npz'
  path.write_bytes(digits.PATH.read_bytes())
  monkeypatch.setattr(digits, 'PATH', path)
  digits.grays.cache_clear()
  yield path
  digits.grays.cache_clear()


def test_a_damaged_data_file_is_named(data_file):
  data_file.write_bytes(data_file.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'digits\.npz must have SHA-256 .*1000 bytes.*restore'):
    digits.grays()


def test_a_missing_data_file_is_named(data_file):
  data_file.unlink()
  with pytest.raises(OSError, match=r'digits\.npz must be readable, got: No such file.*restore'):
    digits.grays()


def test_the_provenance_page_states_the_hash():
  text = (digits.PATH.parent / 'README.md').read_text()
  assert hashlib.sha256(digits.PATH.read_bytes()).hexdigest() in text and 'CC BY 4.0' in text


def test_the_bundled_model_reports_its_range_and_its_data():
  model = models.load('digits_exact')
  assert (model.sigma_min, model.sigma_max) == (0.002, 80.0)
  assert model.image_shape == (8, 8, 3) and model.num_classes == 10
  assert model.sha256 == hashlib.sha256(digits.PATH.read_bytes()).hexdigest()


def test_an_unknown_model_lists_those_there_are():
  with pytest.raises(ValueError, match="unknown model 'digit'; did you mean digits"):
    models.load('digit')
