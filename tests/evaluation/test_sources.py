"""Image sets of every kind hold the same images, and what is wrong with one is named."""

import io
import json
import threading
import zipfile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from evaluation import sources

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
LABELS = np.array([3, 0, 1, 1, 2])


def encode(image, kind='png'):
  file = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format=kind)
  return file.getvalue()


def write_folder(folder, images, name='{:06d}.png'):
  for i, image in enumerate(images):
    path = folder / name.format(i)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(image))
  return folder


def write_zip(path, images, labels=None, extra=None):
  with zipfile.ZipFile(path, 'w') as archive:
    names = [f'{i // 3:05d}/img{i:08d}.png' for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
      archive.writestr(name, encode(image))
    content = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
    archive.writestr('dataset.json', json.dumps({'labels': extra or content}))
  return path


def make(kind, folder):
  """IMAGES as a set of this kind, with the labels that it can hold."""
  if kind == 'folder':
    return write_folder(folder / 'flat', IMAGES), None
  if kind == 'sub-folders':
    return write_folder(folder / 'deep', IMAGES, '{0:06d}/{0:06d}.png'), None
  if kind == 'workdir':
    path = write_folder(folder / 'run', IMAGES)
    (path / 'manifest.json').write_text('{}')
    (path / 'evaluate').mkdir()
    for name in 'grid.png', 'evaluate/plot.png':  # Are none of its images.
      (path / name).write_bytes(encode(np.zeros((9, 9, 3), np.uint8)))
    return path, None
  if kind == 'zip':
    return write_zip(folder / 'set.zip', IMAGES, LABELS.tolist()), LABELS
  if kind == 'zip without labels':
    return write_zip(folder / 'set.zip', IMAGES), None
  path = folder / 'set.npz'
  save = np.savez_compressed if kind == 'compressed npz' else np.savez
  save(path, arr_0=IMAGES, arr_1=LABELS)
  return path, LABELS


@pytest.mark.parametrize('kind', ['folder', 'sub-folders', 'workdir', 'zip', 'zip without labels',
                                  'npz', 'compressed npz'])
def test_every_kind_holds_the_same_images(tmp_path, kind):
  path, labels = make(kind, tmp_path)
  images = sources.open(path)
  assert (images.count, images.shape, len(images.names)) == (5, (4, 6, 3), 5)
  np.testing.assert_array_equal(images.take(np.arange(5)), IMAGES)
  np.testing.assert_array_equal(images.take(np.array([4, 0, 4])), IMAGES[[4, 0, 4]])
  if labels is None:
    assert images.labels is None
  else:
    np.testing.assert_array_equal(images.labels, labels)
    assert images.labels.dtype == np.int32


@pytest.mark.parametrize('kind', ['folder', 'zip', 'npz'])
def test_digest_is_of_the_content(tmp_path, kind):
  (tmp_path / 'other').mkdir()
  (path, _), (copy, _) = make(kind, tmp_path), make(kind, tmp_path / 'other')
  before = sources.open(path).digest
  assert sources.open(copy).digest == before
  changed = IMAGES.copy()
  changed[2, 1, 1, 1] ^= 1
  if kind == 'folder':
    write_folder(copy, changed)
  elif kind == 'zip':
    write_zip(copy, changed, LABELS.tolist())
  else:
    np.savez(copy, arr_0=changed, arr_1=LABELS)
  assert sources.open(copy).digest != before


def test_labels_are_part_of_the_digest(tmp_path):
  one = write_zip(tmp_path / 'one.zip', IMAGES, LABELS.tolist())
  other = write_zip(tmp_path / 'other.zip', IMAGES, LABELS[::-1].tolist())
  assert sources.open(one).digest != sources.open(other).digest


def test_gray_pictures_stay_gray_unless_others_are_colored(tmp_path):
  gray = IMAGES[..., :1]
  images = sources.open(write_folder(tmp_path / 'gray', gray))
  assert images.shape == (4, 6, 1)
  np.testing.assert_array_equal(images.take(np.arange(5)), gray)
  write_folder(tmp_path / 'both', gray)
  (tmp_path / 'both' / 'last.png').write_bytes(encode(IMAGES[0]))
  images = sources.open(tmp_path / 'both')
  np.testing.assert_array_equal(images.take(np.array([0]))[0], np.repeat(gray[0], 3, -1))
  np.savez(tmp_path / 'gray.npz', arr_0=gray[..., 0])
  assert sources.open(tmp_path / 'gray.npz').shape == (4, 6, 1)


def test_seeds_with_more_digits_come_last(tmp_path):
  for i, name in enumerate(['999999.png', '1000000.png', '000002.png']):
    (tmp_path / name).write_bytes(encode(IMAGES[i]))
  assert sources.open(tmp_path).names == ('000002.png', '999999.png', '1000000.png')


def test_jpeg_is_read(tmp_path):
  (tmp_path / 'a.JPG').write_bytes(encode(np.full((8, 8, 3), 200, np.uint8), 'jpeg'))
  np.testing.assert_allclose(sources.open(tmp_path).take(np.array([0])), 200, atol=2)


def test_digits_are_the_bundled_ones():
  images = sources.digits()
  assert (images.count, images.shape) == (10782, (8, 8, 3))
  assert images.labels.max() == 9
  grays = images.take(np.arange(10))[..., 0]  # White ink comes first; its 17 levels, rounded.
  assert len(np.unique(grays)) <= 17 and (grays.min(), grays.max()) == (0, 255)


def test_reading_happens_ahead_and_in_order():
  begun, gate = [], threading.Event()

  def read(number):
    begun.append(number)
    if number:
      gate.wait(5)
    return number
  results = sources.ahead(read, range(6), most=3)
  assert next(results) == 0
  assert set(begun) >= {0, 1, 2}  # Nobody has asked for these yet.
  gate.set()
  assert list(results) == [1, 2, 3, 4, 5]


def test_an_error_ahead_comes_in_its_turn():
  def read(number):
    if number == 2:
      raise ValueError('two')
    return number
  results = sources.ahead(read, range(4))
  assert [next(results), next(results)] == [0, 1]
  with pytest.raises(ValueError, match='two'):
    next(results)


def damaged(name):
  """A function that damages a folder of pictures."""
  def damage(folder):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
  return damage


def cut(folder):
  path = folder / '000003.png'
  path.write_bytes(path.read_bytes()[:60])


def replace(content, name='000002.png'):
  return lambda folder: (folder / name).write_bytes(content)


def palette():
  file = io.BytesIO()
  Image.fromarray(IMAGES[0]).convert('P').save(file, format='png')
  return file.getvalue()


@pytest.mark.parametrize('damage, message', [
    (damaged('000001.png'), r'flat/000001.png \(damaged.*; delete it and make it again'),
    (cut, 'flat/000003.png .*delete it and make it again'),
    (replace(b'no picture'), 'flat/000002.png .*damaged, or not what its name says'),
    (replace(b''), 'flat/000002.png'),
    (replace(encode(IMAGES[0, :2])), r'one size, got 6 x 2 in .*000002.png and 6 x 4 in '
                                     r'.*000000.png'),
    (replace(palette()), '8-bit gray or RGB, got mode P in .*000002.png'),
])
def test_bad_pictures_are_named(tmp_path, damage, message):
  folder = write_folder(tmp_path / 'flat', IMAGES)
  damage(folder)
  with pytest.raises(ValueError, match=message) as caught:
    sources.open(folder, 'images')
  assert str(caught.value).startswith('images: ') and '\n' not in str(caught.value)


def test_a_picture_lost_after_opening_is_named(tmp_path):
  images = sources.open(write_folder(tmp_path / 'flat', IMAGES))
  (tmp_path / 'flat' / '000004.png').unlink()
  with pytest.raises(OSError, match='000004.png'):
    images.take(np.arange(3, 5))


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'


def test_postscript_with_another_name_is_not_run(tmp_path, monkeypatch):
  def started(*args, **kwargs):
    pytest.fail('Ghostscript')
  monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', started)
  (tmp_path / 'x.png').write_bytes(EPS)
  with pytest.raises(ValueError, match='x.png .damaged, or not what its name says'):
    sources.open(tmp_path)


def test_bad_paths(tmp_path):
  (tmp_path / 'text.txt').write_text('hello')
  for path, message in ((tmp_path / 'none', 'no such file'), (tmp_path, 'got none in'),
                        (tmp_path / 'text.txt', 'text.txt .*damaged')):
    with pytest.raises(ValueError, match=message):
      sources.open(path)


@pytest.mark.parametrize('labels, message', [
    ([['lost.png', 3]], r'a label for lost.png, which is not there \(1 such\)'),
    ([['00000/img00000000.png', 3]], r'none for 00000/img00000001.png \(4 such\)'),
    ([[f'{i // 3:05d}/img{i:08d}.png', 0.5] for i in range(5)], 'labels that are no integers'),
    ([1, 2], 'something else'),
])
def test_bad_labels_of_a_zip(tmp_path, labels, message):
  path = write_zip(tmp_path / 'set.zip', IMAGES, extra=labels)
  with pytest.raises(ValueError, match=message):
    sources.open(path)


def test_damaged_archives(tmp_path):
  path, _ = make('npz', tmp_path)
  content = bytearray(path.read_bytes())
  content[300] ^= 255  # In the pixels: the archive's checksum tells.
  path.write_bytes(content)
  with pytest.raises(ValueError, match='set.npz .*fetch it again'):
    sources.open(path)
  path.write_bytes(content[:200])
  with pytest.raises(ValueError, match='set.npz .*fetch it again'):
    sources.open(path)
  path, _ = make('zip', tmp_path)
  content = bytearray(path.read_bytes())
  content[content.index(b'IDAT') + 10] ^= 255
  path.write_bytes(content)
  with pytest.raises(ValueError, match='set.zip/00000/img00000000.png'):
    sources.open(path)


@pytest.mark.parametrize('arrays, message', [
    ({'images': IMAGES}, 'must hold arr_0, .* got images'),
    ({'arr_0': IMAGES / 255}, 'got float64'),
    ({'arr_0': IMAGES[..., :2]}, r'got uint8 \(5, 4, 6, 2\)'),
    ({'arr_0': IMAGES[:0]}, r'got uint8 \(0, 4, 6, 3\)'),
    ({'arr_0': IMAGES, 'arr_1': LABELS[:3]}, 'labels must be integers from 0, one for each of 5'),
    ({'arr_0': IMAGES, 'arr_1': -LABELS}, 'labels must be integers from 0'),
])
def test_bad_arrays(tmp_path, arrays, message):
  np.savez(tmp_path / 'set.npz', **arrays)
  with pytest.raises(ValueError, match=message):
    sources.open(tmp_path / 'set.npz')


def test_objects_in_arrays_are_not_loaded(tmp_path):
  np.savez(tmp_path / 'set.npz', arr_0=np.array([{}, []], dtype=object))
  with pytest.raises(ValueError, match='set.npz'):
    sources.open(tmp_path / 'set.npz')
