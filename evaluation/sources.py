"""Image sets as folders, archives and arrays hold them, read as bytes.

  folder   PNG and JPEG files, also in folders below, in the order of their paths
  workdir  of a run of ours: the images alone, in the order of their seeds
  zip      PNG and JPEG files, and perhaps dataset.json as EDM's dataset_tool writes it:
           {"labels": [[name, label], ...]}
  npz      arr_0, uint8 (n, height, width, channels), and perhaps arr_1, n classes, as ADM has them

Everything that can be wrong with a set but for damaged pixels of a JPEG is found by `open`, which
reads each file once, for its header, its checksums and its hash.
"""

import hashlib
import io
import itertools
import json
import os
import pathlib
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from models import digits as digits_lib

SUFFIXES = '.png', '.jpg', '.jpeg'

_FORMATS = 'PNG', 'JPEG'  # Whatever a name says: Pillow would start Ghostscript for PostScript.
_THREADS = 8  # That read files; decoding and hashing let go of Python's lock.
_RUN = frozenset({'run.json', 'manifest.json'})  # One of them says that a run of ours was here.
_GRID = 'grid.png'  # What such a run writes beside its images.
_IN_RUN = re.compile(r'[0-9]{6,10}')  # Its folders of images.
_CHUNK = 2**22  # Bytes at a time of large files.

# Whatever a damaged picture makes Pillow raise; SyntaxError is what it has for broken PNG chunks.
_DAMAGED_PICTURE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError, zlib.error,
                    Image.DecompressionBombError)
_DAMAGED_ARCHIVE = (OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError, KeyError,
                    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error)


class ImageSet(NamedTuple):
  """Images by number.

  Attributes:
    path: where they come from, as it was given.
    kind: 'folder', 'workdir', 'zip', 'npz' or 'bundled'.
    count: number of images, n >= 1.
    shape: of one image, (height, width, 1 or 3).
    names: of the images within the set, n of them; numbers where they have no names.
    labels: classes, int32 (n,), or None.
    digest: SHA-256 of the names, the bytes of the files and the labels, in hex.
    take: numbers (k,) -> uint8 (k, *shape); safe to call from several threads. OSError if a file is
      damaged or gone.
  """

  path: str
  kind: str
  count: int
  shape: tuple[int, int, int]
  names: tuple[str, ...]
  labels: np.ndarray | None
  digest: str
  take: Callable[[np.ndarray], np.ndarray]


def open(path: str | pathlib.Path, who: str = 'sources') -> ImageSet:
  """Opens an image set of any kind.

  Args:
    path: a folder, a zip or an npz file; see the top of this file.
    who: asks, for errors.

  Returns:
    The ImageSet. Gray pictures among RGB ones are read as RGB.

  Raises:
    ValueError: if there is nothing of that name, no image in it, an image that cannot be read, two
      of different sizes, a mode other than 8-bit gray and RGB, labels that do not fit, or a damaged
      archive; the file is named.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return _folder(path, who)
  if not path.is_file():
    raise ValueError(f'{who}: must be a folder of pictures, a zip or an npz file, got {str(path)!r}'
                     f' ({"not a file" if path.exists() else "no such file"}); check the path')
  names = _members(path, who)
  if any(name.endswith('.npy') for name in names):
    return _npz(path, names, who)
  return _zip(path, who)


def digits() -> ImageSet:
  """Returns the bundled digits in all inks as an image set, uint8 (10782, 8, 8, 3).

  Raises:
    OSError: if the data file is missing.
    ValueError: if it is not the one this code was written for.
  """
  images, labels, _ = digits_lib.images()
  return of_arrays('digits', np.clip(images * np.float32(127.5) + 128, 0, 255).astype(np.uint8),
                   labels)


def of_arrays(name: str, images: np.ndarray, labels: np.ndarray | None = None) -> ImageSet:
  """Returns arrays in memory as an image set.

  Args:
    name: to call it by.
    images: uint8 (n, height, width, 1 or 3).
    labels: classes, integers (n,), or None.

  Raises:
    ValueError: if the arrays are not of this kind.
  """
  if images.dtype != np.uint8 or images.ndim != 4 or not images.size or (
      images.shape[-1] not in (1, 3)):
    raise ValueError(f'{name}: images must be uint8 (n, height, width, 1 or 3), got {images.dtype} '
                     f'{images.shape}; convert them first')
  digest = hashlib.sha256(repr(images.shape).encode())
  digest.update(np.ascontiguousarray(images))
  return ImageSet(name, 'bundled', len(images), images.shape[1:], _numbers(len(images)),
                  _checked_labels(name, labels, len(images), digest), digest.hexdigest(),
                  lambda numbers: images[numbers])


def ahead(read: Callable[[Any], Any], wanted: Iterable[Any], most: int = 4) -> Iterator[Any]:
  """Yields read(some) for every `some` in order, computed in threads before it is asked for.

  Args:
    read: called in threads.
    wanted: its arguments.
    most: results that may wait, and threads.

  Yields:
    What `read` returns.

  Raises:
    Exception: what `read` raised, in its turn.
  """
  wanted = iter(wanted)
  with futures.ThreadPoolExecutor(most) as threads:
    waiting = [threads.submit(read, some) for some in itertools.islice(wanted, most)]
    try:
      while waiting:
        result = waiting.pop(0).result()
        waiting += [threads.submit(read, some) for some in itertools.islice(wanted, 1)]
        yield result
    finally:  # Also when the caller stops half-way.
      threads.shutdown(cancel_futures=True)


def _folder(path, who):
  workdir = any((path / name).is_file() for name in _RUN)
  if workdir and (path / 'samples.npz').is_file():
    return open(path / 'samples.npz', who)._replace(path=str(path), kind='workdir')
  names = []
  for folder, below, files in os.walk(path):
    # A run of ours has a grid of its images beside them, and perhaps folders of other jobs.
    plain = _RUN.isdisjoint(files)
    below[:] = sorted(name for name in below if not name.startswith('.') and (
        plain or _IN_RUN.fullmatch(name)))
    names += [(pathlib.Path(folder) / name).relative_to(path).as_posix() for name in files
              if name.lower().endswith(SUFFIXES) and not name.startswith('.')
              and (plain or name != _GRID)]
  if not names:
    raise ValueError(f'{who}: folder must hold pictures ({", ".join(SUFFIXES)}), got none in '
                     f'{path}; check the path, or finish the run that was to make them')
  return _pictures(who, str(path), 'workdir' if workdir else 'folder', sorted(names, key=_order),
                   lambda name: (path / name).read_bytes(), None)


def _zip(path, who):
  archive = _open_archive(path, who)
  names = [name for name in archive.namelist() if name.lower().endswith(SUFFIXES)
           and not name.startswith('__MACOSX/')]
  if not names:
    raise ValueError(f'{who}: zip must hold pictures ({", ".join(SUFFIXES)}), got none in {path}; '
                     'check the path')
  names = sorted(names)
  labels = _dataset_labels(archive, path, names, who)
  return _pictures(who, str(path), 'zip', names, archive.read, labels)


def _pictures(who, path, kind, names, read, labels):
  """An image set of files; reads each once, to find its size and mode and the hash of all."""
  def header(name):
    try:
      content = read(name)
      with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
        mode, size = picture.mode, picture.size
        picture.verify()  # The checksums of PNG, so that damage is found before the long work.
    except (*_DAMAGED_PICTURE, *_DAMAGED_ARCHIVE) as error:
      raise ValueError(_damaged(who, path, name, error)) from None
    return mode, size, hashlib.sha256(content).digest()
  with futures.ThreadPoolExecutor(_THREADS) as threads:
    headers = list(threads.map(header, names))
  modes, sizes, hashes = zip(*headers, strict=True)
  for name, mode, size in zip(names, modes, sizes, strict=True):
    if mode not in ('L', 'RGB'):
      raise ValueError(f'{who}: pictures must be 8-bit gray or RGB, got mode {mode} in '
                       f'{_place(path, name)}; convert it first, without transparency or palette')
    if size != sizes[0]:
      raise ValueError(f'{who}: pictures must be of one size, got {_size(size)} in '
                       f'{_place(path, name)} and {_size(sizes[0])} in {_place(path, names[0])}; '
                       'resize them, or take out what does not belong to the set')
  mode = 'RGB' if 'RGB' in modes else 'L'
  shape = (*sizes[0][::-1], len(mode))
  digest = hashlib.sha256()
  for name, part in zip(names, hashes, strict=True):
    digest.update(name.encode() + b'\0' + part)

  def one(number):
    name = names[number]
    try:
      with Image.open(io.BytesIO(read(name)), formats=_FORMATS) as picture:
        return np.asarray(picture.convert(mode)).reshape(shape)
    except (*_DAMAGED_PICTURE, *_DAMAGED_ARCHIVE) as error:
      raise OSError(_damaged(who, path, name, error)) from None
  return ImageSet(path, kind, len(names), shape, tuple(names),
                  _checked_labels(f'{who}: {path}', labels, len(names), digest), digest.hexdigest(),
                  lambda numbers: np.stack([one(number) for number in numbers]))


def _npz(path, names, who):
  def wrong(got):
    return ValueError(f'{who}: npz must hold arr_0, uint8 (n, height, width, 1 or 3), and perhaps '
                      f'arr_1, its classes, got {got} in {path}; config.output.format=npz writes '
                      'such files')
  if 'arr_0.npy' not in names:
    raise wrong(', '.join(name.removesuffix('.npy') for name in names) or 'nothing')
  archive = _open_archive(path, who)
  try:
    digest = hashlib.sha256()
    with archive.open('arr_0.npy') as member:  # To its end: checks the archive's own checksum.
      while chunk := member.read(_CHUNK):
        digest.update(chunk)
    images = _mapped(path, archive)
    labels = None
    if 'arr_1.npy' in names:
      with archive.open('arr_1.npy') as member:
        labels = np.lib.format.read_array(member, allow_pickle=False)
  except _DAMAGED_ARCHIVE as error:
    raise ValueError(_damaged(who, None, path, error)) from None
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8 or images.ndim != 4 or not images.size or (
      images.shape[-1] not in (1, 3)):
    raise wrong(f'{images.dtype} {images.shape}')
  return ImageSet(str(path), 'npz', len(images), images.shape[1:], _numbers(len(images)),
                  _checked_labels(f'{who}: {path}', labels, len(images), digest),
                  digest.hexdigest(), lambda numbers: np.asarray(images[numbers]))


def _mapped(path, archive):
  """The array arr_0 of an npz file; mapped, not read, where it is stored without compression."""
  info = archive.getinfo('arr_0.npy')
  with archive.open(info) as member:
    if info.compress_type != zipfile.ZIP_STORED:
      return np.lib.format.read_array(member, allow_pickle=False)
    version = np.lib.format.read_magic(member)
    read = {(1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(member)
    header = member.tell()
  if dtype.hasobject:
    raise ValueError('objects in place of numbers')
  with path.open('rb') as file:  # Name and extra field of the local header may differ in length.
    file.seek(info.header_offset)
    local = file.read(30)
  start = info.header_offset + 30 + int.from_bytes(local[26:28], 'little') + int.from_bytes(
      local[28:30], 'little')
  return np.memmap(path, dtype, 'r', start + header, shape, 'F' if fortran else 'C')


def _dataset_labels(archive, path, names, who):
  """Labels of dataset.json for every picture; None without."""
  if 'dataset.json' not in archive.namelist():
    return None
  def wrong(got, remedy):
    return ValueError(f'{who}: dataset.json must give one label for every picture of the zip, got '
                      f'{got} in {path}; {remedy}')
  try:
    content = json.loads(archive.read('dataset.json'))
    pairs = content['labels'] if isinstance(content, dict) else ()
    given = None if pairs is None else {str(name): label for name, label in pairs}
  except (*_DAMAGED_ARCHIVE, UnicodeDecodeError) as error:
    raise wrong(f'something else ({type(error).__name__})', "write it as EDM's dataset_tool does"
                ) from None
  if given is None:
    return None
  if missing := sorted(given.keys() - set(names)):
    raise wrong(f'a label for {missing[0]}, which is not there ({len(missing)} such)',
                'make the zip again, or take the labels out')
  if missing := sorted(set(names) - given.keys()):
    raise wrong(f'none for {missing[0]} ({len(missing)} such)',
                'make the zip again, or write null for the labels')
  labels = [given[name] for name in names]
  if not all(isinstance(label, int) and not isinstance(label, bool) for label in labels):
    raise wrong('labels that are no integers', 'write null for the labels')
  return np.array(labels, np.int64)


def _members(path, who):
  """Names in an archive."""
  with _open_archive(path, who) as archive:
    return archive.namelist()


def _open_archive(path, who):
  try:
    return zipfile.ZipFile(path)
  except _DAMAGED_ARCHIVE as error:
    raise ValueError(_damaged(who, None, path, error)) from None


def _checked_labels(what, labels, count, digest):
  """Labels as int32, or None; they are part of the hash."""
  if labels is None:
    return None
  if labels.shape != (count,) or labels.dtype.kind not in 'iu' or labels.min() < 0:
    raise ValueError(f'{what}: labels must be integers from 0, one for each of {count} images, got '
                     f'{labels.dtype} {labels.shape}; write them anew')
  labels = labels.astype(np.int32)
  digest.update(labels.tobytes())
  return labels


def _damaged(who, path, name, error):
  reason = getattr(error, 'strerror', None) or 'damaged, or not what its name says'
  return (f'{who}: files must be readable, got {_place(path, name)} ({reason}); delete it and make '
          'it again, or fetch it again')


def _place(path, name):
  """Where a picture lies: below its folder, or in its archive."""
  return str(name) if path is None else f'{path}/{name}'


def _order(name):
  """Paths folder by folder, numbers by their value: seeds are written with six digits or more."""
  return [(part.rpartition('.')[0] or part).zfill(12) if part.rpartition('.')[0].isdigit() else part
          for part in name.split('/')], name


def _numbers(count):
  return tuple(str(number) for number in range(count))


def _size(size):
  return f'{size[0]} x {size[1]}'
