"""Images that runs start from: what is read, what is refused, and what a number means."""

import io

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from engine import images as images_lib, inputs
from models import digits

SHAPE = 8, 8, 3
FIELD = 'config.input.images'


def pictures(count=3, shape=SHAPE):
  return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def save(path, **arrays):
  np.savez(path, **arrays)
  return str(path)


def test_npz_with_classes(tmp_path):
  pixels = pictures()
  name = save(tmp_path / 'a.npz', arr_0=pixels, arr_1=np.array([4, 0, 9]))
  loaded = inputs.load(FIELD, name, SHAPE)
  assert (loaded.count, loaded.shape, loaded.name) == (3, SHAPE, name)
  np.testing.assert_array_equal(loaded.take(np.array([2, 0])), pixels[[2, 0]])
  np.testing.assert_array_equal(loaded.labels(np.array([2, 0])), [9, 4])
  assert inputs.load(FIELD, save(tmp_path / 'b.npz', arr_0=pixels), SHAPE).labels is None
  assert inputs.load(FIELD, str(tmp_path / 'b.npz'), SHAPE).sha256 != loaded.sha256


def test_gray_npz_without_a_channel_axis(tmp_path):
  name = save(tmp_path / 'a.npz', arr_0=pictures(shape=(8, 8)))
  assert inputs.load(FIELD, name, (8, 8, 1)).shape == (8, 8, 1)


def test_folder_in_the_order_of_names_with_the_classes_in_them(tmp_path):
  pixels = pictures()
  for number, image, label in zip((10, 2, 7), pixels, (3, 1, 8), strict=True):
    images_lib.write_png(tmp_path / f'{number:06d}_label_{label}.png', image)
  (tmp_path / 'notes.txt').write_text('no picture')
  loaded = inputs.load(FIELD, str(tmp_path), SHAPE)
  np.testing.assert_array_equal(loaded.take(np.arange(3)), pixels[[1, 2, 0]])
  np.testing.assert_array_equal(loaded.labels(np.arange(3)), [1, 8, 3])


def test_a_picture_is_one_image(tmp_path):
  images_lib.write_png(tmp_path / 'a.png', pictures()[0])
  loaded = inputs.load(FIELD, str(tmp_path / 'a.png'), SHAPE)
  assert (loaded.count, loaded.labels) == (1, None)
  np.testing.assert_array_equal(loaded.take(np.array([0]))[0], pictures()[0])


def test_bytes_become_model_units():
  np.testing.assert_allclose(inputs.to_model(np.array([0, 255], np.uint8)), [-1, 1])
  every = np.arange(256, dtype=np.uint8)  # And back, by the rule that does not truncate.
  np.testing.assert_array_equal(images_lib.to_uint8(inputs.to_model(every)), every)


def test_gaussian_digits_belong_to_their_numbers_and_look_like_their_class():
  loaded = inputs.load(FIELD, 'gaussian_digits', SHAPE)
  numbers = np.arange(200)
  pixels, classes = loaded.take(numbers), loaded.labels(numbers)
  np.testing.assert_array_equal(classes, numbers % 10)
  np.testing.assert_array_equal(loaded.take(numbers[[7, 3]]), pixels[[7, 3]])
  grays = digits.luminance(inputs.to_model(pixels)).reshape(200, 64)
  real, labels = digits.grays()
  means = np.stack([real[labels == k].reshape(-1, 64).mean(0) for k in range(10)])
  nearest = np.argmin(((grays[:, None] - means)**2).sum(-1), axis=1)
  assert np.mean(nearest == classes) > 0.75  # Of real digits, 0.9 are nearest to their own mean.


def png(mode):
  file = io.BytesIO()
  Image.new(mode, (8, 8)).save(file, format='png')
  return file.getvalue()


@pytest.mark.parametrize('write, message', [
    (lambda path: None, 'must be a folder of pictures, a picture, a .npz .* got .*No such file'),
    (lambda path: path.write_bytes(b'no zip'), 'must be .* arr_0, uint8'),
    (lambda path: np.savez(path, images=pictures()), 'arr_0.* got .* with images'),
    (lambda path: np.savez(path, arr_0=pictures() / 255), r'got float64 \(3, 8, 8, 3\)'),
    (lambda path: np.savez(path, arr_0=pictures(shape=(8, 8, 4))), r'got uint8 \(3, 8, 8, 4\)'),
    (lambda path: np.savez(path, arr_0=pictures(0)), r'got uint8 \(0, 8, 8, 3\)'),
    (lambda path: np.savez(path, arr_0=pictures(), arr_1=np.ones(2, int)), r'labels int64 \(2,\)'),
    (lambda path: np.savez(path, arr_0=pictures(), arr_1=-np.ones(3, int)), r'labels int64 \(3,\)'),
    (lambda path: np.savez(path, arr_0=np.array([None])), 'arr_0.*ValueError'),
    (lambda path: np.savez(path, arr_0=pictures(shape=(4, 8, 3))),
     r'shape of the model, \(8, 8, 3\), got \(4, 8, 3\)'),
])
def test_bad_npz(tmp_path, write, message):
  path = tmp_path / 'a.npz'
  write(path)
  with pytest.raises(ValueError, match=f'^{FIELD}: .*{message}') as error:
    inputs.load(FIELD, str(path), SHAPE)
  assert '; ' in str(error.value)


@pytest.mark.parametrize('mode', ['RGBA', 'P', 'I;16', '1', 'LA'])
def test_pictures_of_other_kinds_are_refused(tmp_path, mode):
  (tmp_path / 'a.png').write_bytes(png(mode))
  with pytest.raises(ValueError, match=f'must be an 8-bit gray or RGB picture, got mode {mode}'):
    inputs.load(FIELD, str(tmp_path / 'a.png'), SHAPE)


def damage(path, start):
  content = bytearray(path.read_bytes())
  content[start:start + 8] = bytes(8)
  path.write_bytes(bytes(content))


def test_damaged_files_are_one_clear_error(tmp_path):
  """Wherever eight bytes were lost: never another kind of error."""
  np.savez_compressed(tmp_path / 'a.npz', arr_0=pictures())
  (tmp_path / 'a.png').write_bytes(png('RGB'))
  for name in ('a.npz', 'a.png'):
    whole = (tmp_path / name).read_bytes()
    refused = 0
    for start in range(0, len(whole) - 8, 3):
      damage(tmp_path / name, start)
      try:
        inputs.load(FIELD, str(tmp_path / name), SHAPE)
      except ValueError as error:
        refused += str(error).startswith(FIELD)
      (tmp_path / name).write_bytes(whole)
    assert refused > len(whole) / 10


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'


def test_postscript_with_another_name_is_not_run(tmp_path, monkeypatch):
  def started(*args, **kwargs):
    pytest.fail('Ghostscript')
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', started)
  (tmp_path / 'x.png').write_bytes(EPS)
  with pytest.raises(ValueError, match='x.png .not a picture, or a damaged one'):
    inputs.load(FIELD, str(tmp_path / 'x.png'), SHAPE)


def test_bad_folders(tmp_path):
  with pytest.raises(ValueError, match='folder must hold pictures .* got none'):
    inputs.load(FIELD, str(tmp_path), SHAPE)
  (tmp_path / 'a.png').write_bytes(png('RGB'))
  images_lib.write_png(tmp_path / 'b.png', pictures(shape=(4, 4, 3))[0])
  with pytest.raises(ValueError, match=r'pictures must be of one shape, got \(4, 4, 3\)'):
    inputs.load(FIELD, str(tmp_path), SHAPE)
  (tmp_path / 'b.png').write_bytes(b'broken')
  with pytest.raises(ValueError, match='must be a PNG or JPEG picture, got .*b.png'):
    inputs.load(FIELD, str(tmp_path), SHAPE)
