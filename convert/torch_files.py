"""PyTorch's files, .pt, .pth and .ckpt, without PyTorch: the ZIP form and the legacy stream.

ZIP, since PyTorch 1.6: one folder with `data.pkl` (the object, its storages as persistent ids),
`data/<key>` (the bytes of a storage) and `byteorder`, none of them compressed. TorchScript has its
program besides, see convert/torchscript.py. Legacy: five pickles (a magic number, the version 1001,
the system, the object, the keys of its storages), then for each key the number of values, int64,
and their bytes. Both are little-endian here.
"""

import struct
import zipfile
import zlib
from io import BytesIO
from typing import Any, NamedTuple

from convert import opcodes, plain, storages

MAGIC = 0x1950a86a20f9469cfc6c
_VERSION = 1001
_MEMBERS = 100_000  # Files in an archive; one for each tensor, and about six.


def read_legacy(data: memoryview, budget: plain.Budget, calls: plain.Calls) -> Any:
  """Reads a legacy stream.

  Args:
    data: all of it.
    budget: of the file.
    calls: as in opcodes.decode.

  Returns:
    The object.

  Raises:
    Problem: if it is damaged, big-endian, or calls something else.
  """
  header = []
  position = 0
  for _ in range(3):
    value, position = opcodes.decode(data, position, budget, {})
    header.append(value)
  match header:
    case [magic, version, {'little_endian': True}] if (magic, version) == (MAGIC, _VERSION):
      pass
    case _:
      raise plain.Problem(f'must be a little-endian file of PyTorch, version {_VERSION}, got '
                          f'{", ".join(map(plain.describe, header))}; save it again')

  # The bytes come after the object: a first pass tells the storages, a second one makes tensors.
  found: dict[str, storages.Storage] = {}
  def note(pid):
    dtype, key, size, view = storages.identify(pid)
    if view is not None:
      raise plain.Problem(f'must have storages that are whole, got a view as {plain.describe(key)};'
                          ' save it again with a newer PyTorch')
    return _known(found, key, dtype, size) or found.setdefault(
        key, storages.Storage(dtype, size, None))
  start = position
  _, position = opcodes.decode(data, start, budget, calls, note)
  keys, position = opcodes.decode(data, position, budget, {})
  if type(keys) is not list or not all(isinstance(key, str) for key in keys) or (
      sorted(keys) != sorted(found)):
    raise plain.Problem(f'must list its {len(found)} storages once each, got another list; '
                        'download it again')
  for key in keys:
    storage, position = found[key], position + 8
    count, = struct.unpack('<q', _part(data, position - 8, 8))
    if count != storage.size:
      raise plain.Problem(f'must have {storage.size} values in storage {plain.describe(key)}, got '
                          f'{count}; download it again')
    part = _part(data, position, count * storage.dtype.itemsize)
    found[key], position = storages.fill(storage.dtype, count, part), position + len(part)
  if position != len(data):
    raise plain.Problem(f'must end with its last storage, got {len(data) - position} bytes after '
                        'it; download it again')
  return opcodes.decode(data, start, budget, calls, lambda pid: found[pid[2]])[0]


class Archive(NamedTuple):
  """A ZIP file of PyTorch's.

  Attributes:
    folder: the one that all of it lies in, with a slash.
    parts: name within the folder -> bytes, views into the file.
    program: names of what belongs to a program, TorchScript; none in a checkpoint.
  """

  folder: str
  parts: dict[str, memoryview]
  program: list[str]


def open_zip(data: memoryview) -> Archive:
  """Reads the list of files in an archive.

  Args:
    data: all of it, a view of bytes.

  Returns:
    The Archive.

  Raises:
    Problem: if it is damaged (each part has a CRC-32), compressed beyond its program, big-endian or
      another kind of archive.
  """
  members = _members(data)
  folders = [name[:-len('data.pkl')] for name in members
             if name.endswith('/data.pkl') and name.count('/') == 1]
  if len(folders) != 1:
    shown = ', '.join(map(plain.describe, list(members)[:3])) or 'nothing'
    if any(name.endswith('/model.json') for name in members):
      raise plain.Problem('must be an archive of PyTorch 1.4 or later, got TorchScript of an older '
                          'one; load it with such a version and save the state_dict() of its '
                          'module')
    raise plain.Problem('must be an archive of PyTorch with one data.pkl, got an archive of '
                        f'{shown}; unpack it if the checkpoint is inside')
  folder, = folders
  names = {name.removeprefix(folder): name for name in members if name.startswith(folder)}
  archive = Archive(
      folder, {name: members[whole] for name, whole in names.items() if members[whole] is not None},
      [name for name in names if name.startswith(('code/', 'constants'))])
  if bytes(archive.parts.get('byteorder', b'little')) != b'little':
    raise plain.Problem('must be little-endian, got another byte order; save it again on a '
                        'little-endian computer')
  return archive


def read_zip(archive: Archive, budget: plain.Budget, calls: plain.Calls) -> Any:
  """Reads the object of an archive.

  Args:
    archive: of `open_zip`; its program, if it has one, is left alone.
    budget: of the file.
    calls: as in opcodes.decode.

  Returns:
    The object.

  Raises:
    Problem: if it is damaged, has a storage too few or too many, or calls something else.
  """
  parts, found = archive.parts, {}
  def read(pid):
    dtype, key, size, view = storages.identify(pid)
    if view is not None or f'data/{key}' not in parts:
      raise plain.Problem(f'must hold the storage {plain.describe(key)}, got none; download it '
                          'again')
    return _known(found, key, dtype, size) or found.setdefault(
        key, storages.fill(dtype, size, parts[f'data/{key}']))
  program = parts['data.pkl']
  value, end = opcodes.decode(program, 0, budget, calls, read)
  if end != len(program):
    raise plain.Problem('must end data.pkl with its pickle, got more; download it again')
  unused = sorted(name for name in parts
                  if name.startswith('data/') and name.removeprefix('data/') not in found)
  if unused:
    raise plain.Problem('must use all of its storages, got '
                        f'{plain.describe(archive.folder + unused[0])} without a tensor; download '
                        'it again')
  return value


def _known(found, key, dtype, size):
  """The storage under a key if there is one already, which is then of this type and size."""
  known = found.get(key)
  if known and (known.dtype, known.size) != (dtype, size):
    raise plain.Problem(f'must tell one type and size of storage {plain.describe(key)}, got two; '
                        'download it again')
  return known


def _part(data, start, size):
  if min(start, size) < 0 or start + size > len(data):
    raise plain.Problem(f'must be complete, got its end where {size} bytes were to follow byte '
                        f'{start}; download it again')
  return data[start:start + size]


def _members(data):
  """Name -> bytes of each file in an archive, as views; their checksums are right.

  None in place of a compressed file, if it is of no use here: nothing is ever unpacked.
  """
  if data.obj.count(b'PK\x01\x02') > _MEMBERS:  # Before the directory is read: one for each file.
    raise plain.Problem(f'must hold at most {_MEMBERS} files, got more; it is no network')
  try:
    with zipfile.ZipFile(BytesIO(data.obj)) as archive:
      entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
  except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError,
          struct.error) as error:
    raise plain.Problem(f'must be a whole ZIP archive, got {str(error)[:80]!r}; download it again'
                        ) from None
  members, end = {}, 0
  for entry in entries:
    name = entry.orig_filename
    stored = (entry.compress_type == zipfile.ZIP_STORED and not entry.flag_bits & 1
              and entry.file_size == entry.compress_size)
    if not stored and name.partition('/')[2].startswith(('data.pkl', 'data/', 'byteorder')):
      raise plain.Problem(f'must hold files as they are, got {plain.describe(name)} compressed or '
                          'encrypted; save it again with PyTorch')
    # A file begins with a header of its own: a signature, ..., two lengths, its name, padding.
    header = _part(data, entry.header_offset, 30)
    length, padding = struct.unpack('<2H', header[26:])
    title = _part(data, entry.header_offset + 30, length)
    start = entry.header_offset + 30 + length + padding
    if header[:4] != b'PK\x03\x04' or entry.header_offset < end or (
        bytes(title) != name.encode('utf-8' if entry.flag_bits & 0x800 else 'cp437')):
      raise plain.Problem(f'must have its files one after the other, got {plain.describe(name)} '
                          'elsewhere; download it again')
    content = _part(data, start, entry.compress_size)
    if stored and zlib.crc32(content) != entry.CRC:
      raise plain.Problem(f'must have the checksum {entry.CRC:#010x} in {plain.describe(name)}, '
                          'got another; download it again')
    if name in members:
      raise plain.Problem(f'must hold each file once, got {plain.describe(name)} twice; download '
                          'it again')
    members[name], end = content if stored else None, start + entry.compress_size
  return members
