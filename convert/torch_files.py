"""PyTorch's files, .pt, .pth and .ckpt, without PyTorch: the ZIP form and the legacy stream.

ZIP, since PyTorch 1.6: one folder with `data.pkl` (the object, its storages as persistent ids),
`data/<key>` (the bytes of a storage) and `byteorder`; nothing is compressed. Legacy: five pickles
(a magic number, the version 1001, the system, the object, the keys of its storages), then for each
key the number of values, int64, and their bytes. Both are little-endian here.
"""

import struct
import zipfile
import zlib
from io import BytesIO
from typing import Any

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


def read_zip(data: memoryview, budget: plain.Budget, calls: plain.Calls) -> Any:
  """Reads the ZIP form.

  Args:
    data: all of the file, a view of bytes.
    budget: of the file.
    calls: as in opcodes.decode.

  Returns:
    The object.

  Raises:
    Problem: if it is damaged (each part has a CRC-32), compressed, big-endian, another kind of
      archive, or calls something else.
  """
  parts = _members(data)
  folders = [name[:-len('data.pkl')] for name in parts
             if name.endswith('/data.pkl') and name.count('/') == 1]
  if len(folders) != 1:
    shown = ', '.join(map(plain.describe, list(parts)[:3])) or 'nothing'
    raise plain.Problem('must be an archive of PyTorch with one data.pkl, got an archive of '
                        f'{shown}; unpack it if the checkpoint is inside')
  folder, = folders
  if any(name.startswith((f'{folder}code/', f'{folder}constants.pkl')) for name in parts):
    raise plain.Problem('must be a checkpoint of tensors, got a TorchScript archive, which is a '
                        'program; save the state_dict() of its module')
  if bytes(parts.get(f'{folder}byteorder', b'little')) != b'little':
    raise plain.Problem('must be little-endian, got another byte order; save it again on a '
                        'little-endian computer')
  found: dict[str, storages.Storage] = {}
  def read(pid):
    dtype, key, size, view = storages.identify(pid)
    name = f'{folder}data/{key}'
    if view is not None or name not in parts:
      raise plain.Problem(f'must hold the storage {plain.describe(key)}, got none; download it '
                          'again')
    return _known(found, key, dtype, size) or found.setdefault(
        key, storages.fill(dtype, size, parts[name]))
  program = parts[f'{folder}data.pkl']
  value, end = opcodes.decode(program, 0, budget, calls, read)
  if end != len(program):
    raise plain.Problem('must end data.pkl with its pickle, got more; download it again')
  unused = parts.keys() - {f'{folder}data/{key}' for key in found}
  unused = sorted(name for name in unused if name.startswith(f'{folder}data/'))
  if unused:
    raise plain.Problem(f'must use all of its storages, got {plain.describe(unused[0])} without a '
                        'tensor; download it again')
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
  """Name -> bytes of each file in an archive, as views; their checksums are right."""
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
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or (
        entry.file_size != entry.compress_size):
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
    content = _part(data, start, entry.file_size)
    if zlib.crc32(content) != entry.CRC:
      raise plain.Problem(f'must have the checksum {entry.CRC:#010x} in {plain.describe(name)}, '
                          'got another; download it again')
    if name in members:
      raise plain.Problem(f'must hold each file once, got {plain.describe(name)} twice; download '
                          'it again')
    members[name], end = content, start + entry.file_size
  return members
