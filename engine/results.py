"""The results of a run in its workdir, and how a run that was killed goes on.

At any moment a workdir is in one of these states, whatever killed the run:

  started   run.json says which run this is; images appear one by one, each whole or not there.
  packed    all images are there, grid.png, and samples.npz for the format npz.
  complete  manifest.json, written last, lists what is there. For npz the single images, which
            lay in samples.npz.parts/, go.

run.json holds the identity: all that decides what an image is, apart from its seed. A run of
another identity is refused. Three things are not in it:

  The batch size, devices and versions move the last digits of float32, so a byte here and there by
  one. Where they are equal, a run that was killed and started again ends with the same bytes as
  one that was not.
  The seeds: a list may grow, and images that are there are not made again. It may not shrink, so
  that a complete workdir holds the images of its manifest and no others.
  The grid is made from the images.
"""

import dataclasses
import pathlib
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from engine import files, identity, images

FORMATS = 'png', 'npz'

MANIFEST, _GRID, _NPZ = 'manifest.json', 'grid.png', 'samples.npz'
_PARTS = 'samples.npz.parts'  # Folder of the images that samples.npz is made of.
_IMAGE = re.compile(r'[0-9]{6,10}\.png')
_FOLDER = re.compile(r'[0-9]{6,10}')
_PER_FOLDER = 1000  # Seeds, where there are sub-folders.


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
  """Where and how images are kept.

  Attributes:
    folder: the workdir.
    identity: what decides the images apart from their seeds, nested dicts of plain values.
    format: one of FORMATS.
    subfolders: whether PNG files lie in folders of 1,000 seeds.
    grid: columns, rows and size of the grid of images.
    seeds: np.uint32 (n,).
  """

  folder: pathlib.Path
  identity: dict[str, Any]
  format: str
  subfolders: bool
  grid: dict[str, int]
  seeds: np.ndarray


def check(results: Results) -> None:
  """Refuses a workdir that holds something else; writes nothing.

  Args:
    results: of the run to start.

  Raises:
    OSError: if a manifest that has to be read is damaged.
    ValueError: if the folder holds results of another config, or images of other seeds.
  """
  folder = results.folder
  same, found = identity.check(folder, results.identity), _found(results)
  if not same:
    own = [folder / name for name in (MANIFEST, _GRID, _NPZ) if (folder / name).exists()]
    own += [path(results, seed) for seed in sorted(found)]
    if own:
      raise ValueError(f'workdir: must be empty or hold a run of the same config, got {own[0]} '
                       f'without {identity.NAME}; choose another --workdir')
    return
  others = found.difference(results.seeds.tolist())
  if others:
    raise ValueError(f'workdir: must hold no images of other seeds, got seed {min(others)} in '
                     f'{folder}; add it to config.seeds or choose another --workdir')


def begin(results: Results, alone: bool = True) -> bool:
  """Makes a checked workdir ready, which may hold an earlier run in any state.

  Args:
    results: of the run.
    alone: whether no other process writes there; else what looks left behind may be its work.

  Returns:
    Whether the run is complete; nothing is changed then.

  Raises:
    OSError: if a file cannot be read, written or removed.
  """
  folder = results.folder
  firsts = np.unique(results.seeds // _PER_FOLDER * _PER_FOLDER).tolist()
  image_folders = {path(results, seed).parent for seed in firsts}
  if alone:
    for some in {folder, *image_folders}:
      files.remove_partial(some)
  manifest = _manifest(folder)
  if manifest:
    _remove_parts(results)
    if is_complete(results):
      return True
  identity.claim(folder, results.identity)
  for some in image_folders:
    some.mkdir(parents=True, exist_ok=True)
  if manifest:
    if results.format == 'npz' and (folder / _NPZ).exists():
      _unpack(results, manifest['seeds'])
    (folder / MANIFEST).unlink()
  return False


def is_complete(results: Results) -> bool:
  """Says whether the manifest tells of these images, and all files are there."""
  manifest = _manifest(results.folder)
  return bool(manifest) and (
      (manifest.get('seeds'), manifest.get('grid')) == (results.seeds.tolist(), results.grid)
      and all((results.folder / name).exists() for name in [*manifest['files'], _GRID]))


def missing(results: Results) -> np.ndarray:
  """Returns the indices of the seeds whose images are not there yet, np.int64 (m,)."""
  found = _found(results)
  return np.array([i for i, seed in enumerate(results.seeds.tolist()) if seed not in found],
                  np.int64)


def path(results: Results, seed: int) -> pathlib.Path:
  """Returns the file of one image."""
  folder = results.folder / (_PARTS if results.format == 'npz' else '')
  if results.subfolders:
    folder = folder / f'{seed - seed % _PER_FOLDER:06d}'
  return folder / f'{seed:06d}.png'


Cell = tuple[str, np.ndarray]
"""A caption and a picture, uint8 (height, width, 1 or 3)."""


def pack(results: Results, labels: np.ndarray,
         beside: Callable[[int], tuple[list[Cell], list[Cell]]] = lambda seed: ([], []),
         captions: Mapping[int, str] | None = None) -> None:
  """Writes what is made of all images: the grid, and samples.npz for the format npz.

  Args:
    results: of the run; no image is missing.
    labels: np.int32 (n,), below 0 without a class.
    beside: what the grid shows before and after the image of a seed, the same number for all.
    captions: of the images by seed; None: label and seed.

  Raises:
    OSError: if a file cannot be read or written.
  """
  group = 1 + sum(len(cells) for cells in beside(int(results.seeds[0])))
  per_row = max(1, results.grid['columns'] // group)
  cells = []
  for seed, label in zip(results.seeds[:per_row * results.grid['rows']].tolist(), labels.tolist(),
                         strict=False):
    before, after = beside(seed)
    caption = captions[seed] if captions else say(seed, label)
    cells += [*before, (caption, images.read_png(path(results, seed))), *after]
  texts, pictures = zip(*cells, strict=True)
  images.write_png(results.folder / _GRID, images.grid(
      np.stack(pictures), texts, per_row * group, results.grid['size']))
  if results.format == 'npz':
    _write_npz(results, labels, pictures[0].shape)


def say(seed: int, label: int) -> str:
  """Returns the usual caption of an image; a label below 0 is no class."""
  return f'seed {seed}' if label < 0 else f'{label}, seed {seed}'


def complete(results: Results, manifest: dict[str, Any]) -> None:
  """Writes the manifest, which says that the run is complete.

  Args:
    results: of the run, packed.
    manifest: what else is to be told, plain values.

  Raises:
    OSError: if it cannot be written.
  """
  if results.format == 'npz':
    names = [_NPZ]
  else:
    names = [str(path(results, seed).relative_to(results.folder).as_posix())
             for seed in results.seeds.tolist()]
  identity.write_json(results.folder / MANIFEST, {
      **manifest, 'grid': results.grid, 'seeds': results.seeds.tolist(), 'files': names})
  _remove_parts(results)


def _remove_parts(results: Results) -> None:
  """Removes the images that samples.npz was made of."""
  if results.format == 'npz':
    shutil.rmtree(results.folder / _PARTS, ignore_errors=True)


def _found(results: Results) -> set[int]:
  """Seeds of all images in the workdir, also of those that are not asked for."""
  folder = path(results, 0).parent
  folders = [folder]
  if results.subfolders:
    folders = [some for some in folder.parent.glob('*') if _FOLDER.fullmatch(some.name)]
  found = {int(file.stem) for some in folders for file in some.glob('*.png')
           if _IMAGE.fullmatch(file.name)}
  if results.format == 'npz' and (results.folder / _NPZ).exists() and (
      manifest := _manifest(results.folder)):
    found.update(manifest['seeds'])
  return found


def _manifest(folder):
  """The manifest, None if there is none; OSError if it is damaged."""
  return identity.read_result(folder / MANIFEST, ('seeds', 'grid', 'files'))


def _write_npz(results: Results, labels: np.ndarray, shape: tuple[int, ...]) -> None:
  """Writes arr_0, the images, and arr_1, their classes if they have any; image by image."""
  seeds = results.seeds.tolist()
  with files.replacing(results.folder / _NPZ) as file, zipfile.ZipFile(file, 'w') as archive:
    with archive.open('arr_0.npy', 'w', force_zip64=True) as member:
      np.lib.format.write_array_header_1_0(
          member, {'descr': '|u1', 'fortran_order': False, 'shape': (len(seeds), *shape)})
      for seed in seeds:
        member.write(np.ascontiguousarray(images.read_png(path(results, seed))).data)
    if (labels >= 0).any():
      with archive.open('arr_1.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, labels.astype(np.int64))


def _unpack(results: Results, seeds: list[int]) -> None:
  """Turns samples.npz into single images again, for a run whose list of seeds has grown."""
  for seed, image in zip(seeds, _read_npz(results.folder / _NPZ), strict=True):
    images.write_png(path(results, seed), image)


def _read_npz(file: pathlib.Path) -> Iterator[np.ndarray]:
  with zipfile.ZipFile(file) as archive, archive.open('arr_0.npy') as member:
    np.lib.format.read_magic(member)
    (count, *shape), _, _ = np.lib.format.read_array_header_1_0(member)
    for _ in range(count):
      yield np.frombuffer(member.read(int(np.prod(shape))), np.uint8).reshape(shape)
