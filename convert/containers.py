"""Published checkpoint files as plain data; nothing in a file is executed or imported.

The kind of a file is told by its first bytes, never by its name. Arrays are read-only views into
one copy of the file in memory. Left out is only what says nothing of a network: source text that
EDM's objects carry, versions of modules in a state dict, devices, hooks and gradient flags of
tensors, the factory of a defaultdict, the texts under safetensors' `__metadata__`, and the program
of a TorchScript archive.
"""

import contextlib
import hashlib
import os
import pathlib
import re
from typing import Any, NamedTuple

from convert import pickles, plain, safetensors, torch_files, torchscript


class Contents(NamedTuple):
  """What a file holds.

  Attributes:
    container: 'edm_pickle', 'torch_zip', 'torch_legacy', 'torchscript' or 'safetensors'.
    data: dicts, lists, tuples and sets of plain values, np.ndarray (bfloat16 as that of
      ml_dtypes), plain.Placeholder and pickles.Persistent. Long byte strings are memoryviews. Of
      'torchscript': a torchscript.Program.
    sha256: of the file, in hex.
  """

  container: str
  data: Any
  sha256: str


def _read_archive(data, budget, calls):
  archive = torch_files.open_zip(data)
  read = torchscript.read if archive.program else torch_files.read_zip
  return read(archive, budget, calls)


_READERS = {'edm_pickle': pickles.read, 'torch_zip': _read_archive,
            'torch_legacy': torch_files.read_legacy, 'safetensors': safetensors.read}

_PACKED = {b'\xfd7zXZ\0': 'xz', b'\x1f\x8b': 'gzip', b'BZh': 'bzip2', b'7z\xbc\xaf\x27\x1c': '7z',
           b'Rar!': 'RAR', b'\x28\xb5\x2f\xfd': 'zstd'}


def read(path: str | os.PathLike, memory: int | None = None) -> Contents:
  """Reads a checkpoint file.

  Args:
    path: the file.
    memory: bytes it may take; None: what the computer has available.

  Returns:
    The Contents.

  Raises:
    OSError: if it cannot be read.
    ValueError: if it is no checkpoint of a known kind, damaged, calls what is not known, or is too
      large. The text is one line with the remedy.
  """
  path = pathlib.Path(path)
  data = _bytes(path, memory)
  try:
    container, value = parse(data)
  except plain.Problem as problem:
    raise ValueError(f'convert: {path} {problem}') from None
  return Contents(container, value, hashlib.sha256(data).hexdigest())


def digest(path: str | os.PathLike) -> str:
  """Returns the SHA-256 of a file, in hex, without keeping it in memory.

  Raises:
    OSError: if it cannot be read.
  """
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def parse(data: bytes) -> tuple[str, Any]:
  """Reads the bytes of a file.

  Args:
    data: all of it.

  Returns:
    (container, data) of Contents.

  Raises:
    Problem: as the ValueError of `read`.
  """
  container = recognize(data)
  # Every value four times as a tensor of bytes: views that share a storage are common.
  budget = plain.Budget(values=4 * len(data) + 2**20)
  value = _READERS[container](memoryview(data), budget, pickles.CALLS)
  plain.check_nesting(value)
  return 'torchscript' if isinstance(value, torchscript.Program) else container, value


def recognize(data: bytes) -> str:
  """Tells the container of a file.

  Args:
    data: all of it.

  Returns:
    A value of Contents.container; 'torch_zip' for TorchScript, too.

  Raises:
    Problem: if it is none of the known ones, with what it seems to be.
  """
  start = data[:512].lstrip(b'\xef\xbb\xbf \t\r\n').lower()
  if not data:
    raise plain.Problem('must be a checkpoint, got an empty file; download it again')
  if start.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
    raise plain.Problem('must be a checkpoint, got a web page; download the file itself, not the '
                        'page that shows it')
  if start.startswith(b'version https://git-lfs'):
    raise plain.Problem("must be a checkpoint, got a pointer of Git LFS; run 'git lfs pull' where "
                        'it came from')
  for magic, kind in _PACKED.items():
    if data.startswith(magic):
      raise plain.Problem(f'must be a checkpoint, got a file packed with {kind}; unpack it first')
  if data[257:262] == b'ustar':
    raise plain.Problem('must be a checkpoint, got a tar archive; unpack it first')
  if data.startswith(b'PK\x03\x04'):
    return 'torch_zip'
  if data[:1] == b'\x80':
    magic = torch_files.MAGIC.to_bytes(10, 'little')
    return 'torch_legacy' if magic in data[:32] else 'edm_pickle'
  if len(data) > 8 and data[8:9] == b'{' and int.from_bytes(data[:8], 'little') < 2**40:
    return 'safetensors'
  raise plain.Problem('must be a pickle of protocol 2 or later, a file of PyTorch or safetensors, '
                      f'got the bytes {data[:8].hex(" ")}; check that it is a checkpoint, or '
                      'download it again')


def _bytes(path, memory):
  """The content of a file that fits into memory."""
  try:
    if path.is_dir():
      raise ValueError(f'convert: source must be a file, got the folder {path}; name a file in it')
    if path.exists() and not path.is_file():
      raise ValueError(f'convert: source must be a file, got the device or pipe {path}; copy it to '
                       'a file first')
    size = path.stat().st_size
    memory = _available() if memory is None else memory
    if size > memory:
      raise ValueError(f'convert: source must fit into the available memory, got {_units(size)} in '
                       f'{path} and {_units(memory)} of memory; free some or use a larger computer')
    return path.read_bytes()
  except OSError as error:
    raise OSError(f'convert: source must be a file that can be read, got {path} '
                  f'({error.strerror or error}); check the name and its permissions') from None


def _available():
  """Bytes of memory that programs may still take."""
  sizes = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  for file, pattern, unit in (('/proc/meminfo', r'MemAvailable:\s+(\d+) kB', 1024),
                              ('/sys/fs/cgroup/memory.max', r'(\d+)', 1)):  # Of a container.
    with contextlib.suppress(OSError):
      sizes += [int(size) * unit for size in re.findall(pattern, pathlib.Path(file).read_text())]
  return min(sizes)


def _units(size):
  return f'{size / 2**30:.1f} GiB' if size >= 2**30 else f'{size} bytes'
