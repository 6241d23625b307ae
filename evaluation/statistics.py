"""Files of reference statistics, in the layouts in which they are published.

- edm, which pytorch-fid, jax-fid and clean-fid share: .npz with mu (d,) and sigma (d, d).
- adm, the virtual reference of guided diffusion: .npz with mu and sigma (2048 pool features), mu_s
  and sigma_s (2023 spatial ones) of all images, and arr_0: some of the images, which are for
  precision and recall only.
- edm2: a pickle of a dict with num_images, and mu and sigma for each of 'fid', 'fd_dinov2', ...

What --mode=evaluate writes tells its recipe too: a member that other readers pass over.

A file of samples of guided diffusion (.npz: arr_0 uint8 (n, height, width, 3), perhaps arr_1) is
read as what it is: images without statistics. Nothing in a file is executed: .npz files are read
without pickle, and in a pickle no name but those of NumPy's arrays stands for anything.
"""

import dataclasses
import json
import os
import pathlib
import secrets
import zipfile
import zlib
from typing import Any, NamedTuple

import numpy as np

from evaluation import array_pickle, frechet
from samplers import checks

LAYOUTS = 'edm', 'adm'
"""Layouts that `write` knows."""

_ZIP, _PICKLE = b'PK', b'\x80'  # First bytes; protocol 2 and above, as every writer of these has.
_DAMAGED = (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, MemoryError,
            NotImplementedError, OverflowError, RuntimeError, SyntaxError, zipfile.BadZipFile,
            zlib.error)  # What NumPy and zipfile raise for bytes that are no .npz.


@dataclasses.dataclass(frozen=True)
class Images:
  """Images in a .npz file, not read before they are asked for: 10000 of 256 x 256 are 2 GB.

  Attributes:
    path: the file; `np.asarray` reads its arr_0.
    shape: (n, height, width, channels), of uint8.
    labelled: whether the file has arr_1.
  """

  path: pathlib.Path
  shape: tuple[int, ...]
  labelled: bool

  def __len__(self) -> int:
    """Returns the number of images."""
    return self.shape[0]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """Reads the images, as NumPy asks for them; there is no copy to avoid."""
    del copy
    return _members(self.path, ('arr_0',))['arr_0'].astype(dtype or np.uint8, copy=False)


class Statistics(NamedTuple):
  """What a file of statistics or samples holds; None where it does not.

  Attributes:
    mu: mean of the pool features, float64 (d,).
    sigma: their covariance, float64 (d, d).
    mu_s: mean of the spatial features, float64 (e,).
    sigma_s: their covariance, float64 (e, e).
    images: of the file, read by `np.asarray(images)`. Beside statistics they are but some of the
      images that those are of.
    num_images: how many images the statistics are of, where the file says so.
    recipe: how they were made, plain values: 'pipeline', that of the extractor with its 'network'
      and 'sha256', 'shape', (height, width, channels) of the images, and what else `write` was
      given; published files have none.
  """

  mu: np.ndarray | None
  sigma: np.ndarray | None
  mu_s: np.ndarray | None = None
  sigma_s: np.ndarray | None = None
  images: Images | np.ndarray | None = None
  num_images: int | None = None
  recipe: dict[str, Any] | None = None


def read(path: str | os.PathLike[str], metric: str = 'fid') -> Statistics:
  """Reads a file of statistics, or of samples, in any of the module's layouts.

  Args:
    path: the file; its content decides, not its name.
    metric: which statistics of an edm2 pickle; other layouts have but one.

  Returns:
    Statistics in float64, whatever the file's precision.

  Raises:
    ValueError: if there is no such file, it is damaged or holds something else, shapes do not fit,
      an entry is not finite, or a sigma is not symmetric.
  """
  path = pathlib.Path(path)
  try:
    with open(path, 'rb') as file:
      start = file.read(2)
  except OSError as error:
    raise ValueError(f'statistics: must be a file, got {path} ({error.strerror}); check the '
                     'path') from None
  if start == _ZIP:
    return _from_npz(path)
  if start[:1] == _PICKLE:
    return _from_pickle(path, metric)
  raise _wrong(path, 'neither of both')


def write(path: str | os.PathLike[str], statistics: Statistics, layout: str = 'edm') -> None:
  """Writes statistics that `read` gives back bit for bit; the file is whole or not there.

  Args:
    path: the file, under exactly this name; replaced if it is there.
    statistics: at least mu and sigma. The layout edm has no place for spatial features and images;
      adm must have the former, and the published evaluator wants images too. num_images and recipe
      go along in both, where other readers pass them over.
    layout: 'edm' or 'adm'.

  Raises:
    ValueError: if the layout is unknown, or statistics are missing or wrong.
    OSError: if the file cannot be written.
  """
  checks.check_choice('statistics.write', 'layout', layout, LAYOUTS)
  suffixes = ('', '_s') if layout == 'adm' else ('',)
  arrays = {}
  for suffix in suffixes:
    given = [getattr(statistics, stem + suffix) for stem in ('mu', 'sigma')]
    if any(array is None for array in given):
      raise ValueError(f'statistics.write: layout {layout} must have mu{suffix} and sigma{suffix}, '
                       'got None; '
                       + ('write edm, or extract spatial features' if suffix else 'compute them'))
    mu, sigma = frechet.check_statistics('statistics.write', *given, suffix)
    arrays.update({f'mu{suffix}': mu, f'sigma{suffix}': sigma})
  if layout == 'adm' and statistics.images is not None:
    arrays['arr_0'] = np.asarray(statistics.images)
    _check_images('statistics.write', arrays['arr_0'].dtype, arrays['arr_0'].shape)
  if statistics.num_images is not None:
    arrays['num_images'] = np.int64(statistics.num_images)
  if statistics.recipe is not None:
    arrays['recipe'] = np.array(json.dumps(statistics.recipe))
  path = pathlib.Path(path)
  # Another process may be writing the same file: each has a name of its own.
  temporary = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.partial')
  try:
    with open(temporary, 'wb') as file:
      np.savez(file, **arrays)
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _from_npz(path):
  headers = _headers(path)
  images = None
  if 'arr_0' in headers:
    shape, dtype = headers['arr_0']
    _check_images('statistics', dtype, shape, f' in {path}')
    images = Images(path, shape, 'arr_1' in headers)
  wanted = [name for name in ('mu', 'sigma', 'mu_s', 'sigma_s', 'num_images', 'recipe')
            if name in headers]
  arrays = _members(path, wanted)
  for suffix in '', '_s':
    present = [f'{stem}{suffix}' in arrays for stem in ('mu', 'sigma')]
    if any(present) and not all(present):
      raise _wrong(path, f'{", ".join(headers)}: mu{suffix} and sigma{suffix} belong together')
  if 'mu' not in arrays and (images is None or 'mu_s' in arrays):
    raise _wrong(path, ', '.join(headers) or 'nothing')
  pairs = [_checked(path, arrays, suffix) if f'mu{suffix}' in arrays else (None, None)
           for suffix in ('', '_s')]
  return Statistics(*pairs[0], *pairs[1], images, _count(path, arrays.get('num_images')),
                    _recipe(path, arrays.get('recipe')))


def _from_pickle(path, metric):
  content = array_pickle.load('statistics', path)
  names = [name for name in content if isinstance(name, str)]
  known = [name for name in names
           if isinstance(content[name], dict) and {'mu', 'sigma'} <= content[name].keys()]
  if not known:
    raise _wrong(path, f'a pickle with {", ".join(names) or "nothing"}')
  if metric not in known:
    raise ValueError(f'statistics: {checks.unknown("metric", metric, known)}, in {path}')
  return Statistics(*_checked(path, content[metric]),
                    num_images=_count(path, content.get('num_images')))


def _checked(path, arrays, suffix=''):
  for name in (f'mu{suffix}', f'sigma{suffix}'):
    if not isinstance(arrays[name], np.ndarray) or arrays[name].dtype.kind != 'f':
      raise ValueError(f'statistics: {name} must be an array of floats, got '
                       f'{getattr(arrays[name], "dtype", type(arrays[name]).__name__)} in {path}; '
                       'make the statistics again')
  try:
    return frechet.check_statistics('statistics', arrays[f'mu{suffix}'], arrays[f'sigma{suffix}'],
                                    suffix)
  except ValueError as error:
    raise ValueError(f'{error} ({path})') from None


def _count(path, value):
  if value is None:
    return None
  value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
  if not checks.is_integer(value) or value < 1:
    raise ValueError(f'statistics: num_images must be an integer above 0, got '
                     f'{value if checks.is_integer(value) else type(value).__name__} in {path}; '
                     'make the statistics again')
  return int(value)


def _recipe(path, array):
  if array is None:
    return None
  try:
    recipe = json.loads(array.item()) if array.dtype.kind == 'U' else None
    height, width, channels = recipe['shape']
    known = isinstance(recipe['pipeline']['sha256'], str) and all(
        checks.is_integer(size) and size > 0 for size in (height, width, channels))
  except (ValueError, TypeError, KeyError, RecursionError):  # Of bytes that are none of ours.
    known = False
  if not known:
    raise ValueError('statistics: recipe must be JSON of a pipeline and the shape of images, got '
                     f'something else in {path}; make the statistics again')
  return recipe


def _check_images(name, dtype, shape, where=''):
  if dtype != np.uint8 or len(shape) != 4 or not shape[0] or shape[3] not in (1, 3):
    raise ValueError(f'{name}: arr_0 must be images, uint8 (n, height, width, 1 or 3), got {dtype} '
                     f'{shape}{where}; write 8-bit images')


def _headers(path):
  """Returns {name: (shape, dtype)} of the arrays in a .npz file, without reading them."""
  headers = {}
  try:
    with zipfile.ZipFile(path) as archive:
      for member in archive.namelist():
        if member.endswith('.npy'):
          with archive.open(member) as file:
            read_header = {(1, 0): np.lib.format.read_array_header_1_0,
                           (2, 0): np.lib.format.read_array_header_2_0}[
                               np.lib.format.read_magic(file)]
            shape, _, dtype = read_header(file)
            headers[member.removesuffix('.npy')] = shape, dtype
  except _DAMAGED as error:
    raise _damaged(path, error) from None
  return headers


def _members(path, names):
  try:
    with np.load(path, allow_pickle=False) as file:
      return {name: file[name] for name in names}
  except _DAMAGED as error:
    raise _damaged(path, error) from None


def _damaged(path, error):
  return ValueError(f'statistics: must be a whole .npz file of plain arrays, got {path} '
                    f'({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""});'
                    ' download or make it again')


def _wrong(path, got):
  return ValueError(f'statistics: must be a .npz file with mu and sigma or images as arr_0, or a '
                    f'pickle of a dict with them, got {got} in {path}; --mode=evaluate writes such '
                    'files')
