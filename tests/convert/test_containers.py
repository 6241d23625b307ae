"""Files of PyTorch and safetensors: what they hold, and one clear line for what is wrong."""

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest

from convert import containers, plain
from tests import reference
from tests.convert import writing

FOLDER = reference.GOLDEN / 'checkpoint_keys'
CASES = [case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']
         if case['file'].startswith('containers/')]
GOOD = [case for case in CASES if case['expect'].startswith('load')]
VALUES = np.arange(24, dtype=np.float32)


@pytest.fixture
def write(tmp_path):
  """Writes bytes to a file of no telling name."""
  def write(data):
    (tmp_path / 'file').write_bytes(data)
    return tmp_path / 'file'
  return write


def leaves(value, path=()):
  """Yields (path, array) of nested dicts and lists."""
  if isinstance(value, np.ndarray):
    yield '/'.join(map(str, path)), value
  elif isinstance(value, dict | list):
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
      yield from leaves(child, (*path, key))


@pytest.mark.parametrize('case', GOOD, ids=lambda case: case['id'])
def test_published_containers_load_to_the_recorded_values(case):
  contents = containers.read(FOLDER / case['file'])
  assert contents.container == ('torch_zip' if case['format'] == 'zip' else 'torch_legacy')
  found = dict(leaves(contents.data))
  assert case['tensors'].keys() <= found.keys() and len(found) - len(case['tensors']) <= 1
  with np.load(FOLDER / 'containers' / 'expected.npz') as expected:
    for name, entry in case['tensors'].items():
      assert (found[name].dtype.name, list(found[name].shape)) == (entry['dtype'], entry['shape'])
      recorded = expected[f'{case["id"]}|{name.replace("/", "|")}']
      np.testing.assert_array_equal(found[name].astype(recorded.dtype), recorded)


@pytest.mark.parametrize('case', GOOD, ids=lambda case: case['id'])
def test_values_are_those_of_pytorch(case):
  torch = pytest.importorskip('torch')
  if 'foreign' in case['id']:
    pytest.skip('PyTorch refuses it')
  theirs = torch.load(FOLDER / case['file'], weights_only=True)
  for name, array in leaves(containers.read(FOLDER / case['file']).data):
    value = theirs
    for key in name.split('/'):
      value = value[int(key) if isinstance(value, list) else key]
    np.testing.assert_array_equal(array.astype(np.float64), value.detach().double().numpy())


def test_foreign_classes_are_placeholders():
  by_class = containers.read(FOLDER / 'containers/foreign_class_key_zip.pt').data['callbacks']
  (key, value), = by_class.items()
  assert isinstance(key, plain.Placeholder) and not key.instance and list(value) == ['best']
  assert key.name == 'pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint'
  value = containers.read(FOLDER / 'containers/foreign_instance_zip.pt').data['hyper_parameters']
  assert value.instance and value.name == key.name and value.state == {'path': 'x'}
  assert key.pair[0] not in sys.modules


@pytest.mark.parametrize('form', ['zip', 'legacy'])
def test_calls_that_are_not_known_are_refused(form, capfd):
  with pytest.raises(ValueError, match="call of 'builtins.print' .* not executed"):
    containers.read(FOLDER / f'containers/forbidden_call_{form}.pt')
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('form', [writing.archive, writing.legacy])
def test_views_of_one_storage_share_its_bytes(write, form):
  stored = writing.storage('0', VALUES, (None,) if form is writing.legacy else ())
  read = containers.read(write(form({
      'all': writing.tensor(stored, (4, 6)), 'turned': writing.tensor(stored, (6, 4), (1, 6)),
      'part': writing.tensor(stored, (2, 2), (12, 3), 7), 'again': writing.tensor(stored, (3, 2),
                                                                                 (0, 0), 23),
      'one': writing.tensor(stored, (1, 1), (10**15, 10**15), 5),
      'none': writing.tensor(stored, (0, 7), (7, 1), 24)}, {'0': VALUES}))).data
  grid = VALUES.reshape(4, 6)
  for name, expected in {'all': grid, 'turned': grid.T, 'part': [[7, 10], [19, 22]],
                         'again': np.full((3, 2), 23), 'one': [[5]], 'none': np.zeros((0, 7))
                         }.items():
    np.testing.assert_array_equal(read[name], np.asarray(expected, np.float32), strict=True)
    assert not read[name].flags.writeable or not read[name].size
  assert np.shares_memory(read['all'], read['part'])


@pytest.mark.parametrize('offset, shape, strides', [
    (0, (25,), (1,)), (24, (1,), (1,)), (0, (4, 6), (6, 2)), (1, (4, 6), (6, 1)), (-1, (1,), (1,)),
    (0, (2,), (-1,)), (0, (2**62, 4), (0, 0)), (0, (2**33, 2**33), (0, 0)), (0, (2,), (2**63,)),
    (25, (0,), (1,)), (0, (2, 2), (1,)), (0, (1,) * 33, (1,) * 33), (0, ('2',), (1,)),
    (0, (0, 2**62), (1, 1)), (0, (True,), (1,))])
def test_views_outside_of_their_storage_are_refused(write, offset, shape, strides):
  value = [writing.tensor(writing.storage('0', VALUES), shape, strides, offset)]
  with pytest.raises(ValueError, match='must have (tensors (within|that)|an offset, shape and st)'):
    containers.read(write(writing.archive(value, {'0': VALUES})))


def test_repeating_views_are_bounded_by_the_size_of_the_file(write):
  stored = writing.storage('0', VALUES)
  value = [writing.tensor(stored, (10**5,), (0,)) for _ in range(20)]
  with pytest.raises(ValueError, match='tensors of many times its own size'):
    containers.read(write(writing.archive(value, {'0': VALUES})))


@pytest.mark.parametrize('more, match', [
    ({'byteorder': b'big'}, 'must be little-endian'),
    ({'constants.pkl': b''}, 'got a TorchScript archive of a ndarray'),
    ({'code/model.py': b'import os'}, 'got a TorchScript archive of a ndarray'),
    ({'data/7': b'1234'}, "must use all of its storages, got 'archive/data/7'")])
def test_archives_with_more_than_a_checkpoint(write, more, match):
  value = writing.tensor(writing.storage('0', VALUES), (24,))
  with pytest.raises(ValueError, match=match):
    containers.read(write(writing.archive(value, {'0': VALUES}, **more)))


def test_other_and_unsound_archives(write):
  value = writing.tensor(writing.storage('0', VALUES), (24,))
  with pytest.raises(ValueError, match="must hold the storage '0', got none"):
    containers.read(write(writing.archive(value, {})))
  with pytest.raises(ValueError, match='96 bytes for a storage of 24 values of float32, got 20'):
    containers.read(write(writing.archive(value, {'0': VALUES[:5]})))
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('model/data.pkl', b'\x80\x02' + b'N0' * 10**6 + b'N.')
  with pytest.raises(ValueError, match="got 'model/data.pkl' compressed"):
    containers.read(write(packed.getvalue()))
  with zipfile.ZipFile(packed, 'w') as archive:
    archive.writestr('model.ckpt', b'text')
  with pytest.raises(ValueError, match="got an archive of 'model.ckpt'; unpack it"):
    containers.read(write(packed.getvalue()))
  with zipfile.ZipFile(packed, 'a') as archive, pytest.warns(UserWarning, match='Duplicate'):
    archive.writestr('model.ckpt', b'text')
  with pytest.raises(ValueError, match="must hold each file once, got 'model.ckpt' twice"):
    containers.read(write(packed.getvalue()))
  with pytest.raises(ValueError, match='must hold at most 100000 files'):
    containers.read(write(packed.getvalue() + b'PK\x01\x02' * 10**5))
  whole = writing.archive(value, {'0': VALUES})
  place = whole.index(VALUES.tobytes())
  with pytest.raises(ValueError, match='must have the checksum'):
    containers.read(write(whole[:place + 9] + b'\xff' + whole[place + 10:]))


@pytest.mark.parametrize('change, match', [
    (lambda data: data[:-1], 'must be complete, got its end where 96 bytes were to follow'),
    (lambda data: data + b'\0', 'must end with its last storage, got 1 bytes after it'),
    (lambda data: data.replace(struct.pack('<q', 24), struct.pack('<q', 23)),
     "24 values in storage '0', got 23"),
    (lambda data: data.replace(b'\x88', b'\x89', 1), 'must be a little-endian file of PyTorch'),
    (lambda data: data.replace(b'FloatStorage', b'floatStorage'), 'storages of FloatStorage, '),
    (lambda data: data.replace(b'X\x01\0\0\x000q\x01a.', b'X\x01\0\0\x001q\x01a.'),
     'must list its 1 storages')])
def test_damaged_legacy_streams(write, change, match):
  data = writing.legacy(writing.tensor(writing.storage('0', VALUES, (None,)), (24,)), {'0': VALUES})
  assert containers.read(write(data)).data.shape == (24,) and change(data) != data
  with pytest.raises(ValueError, match=match):
    containers.read(write(change(data)))


def test_safetensors_load_to_their_values(write):
  arrays = {'b': VALUES.reshape(2, 12), 'a': VALUES[:3].astype(ml_dtypes.bfloat16),
            'none': np.zeros((0, 2), np.float32), 'n': np.array(7), 'yes': np.array([True, False])}
  contents = containers.read(write(writing.safetensors(arrays, __metadata__={'format': 'pt'})))
  assert contents.container == 'safetensors' and list(contents.data) == list(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(contents.data[name], array, strict=True)


@pytest.mark.parametrize('header, match', [
    ({'b': {'dtype': 'F32', 'shape': [24], 'data_offsets': [0, 96]}}, 'got .b. at 0 instead of 96'),
    ({'b': {'dtype': 'F32', 'shape': [1], 'data_offsets': [96, 100]}}, 'must have 100 bytes of te'),
    ({'a': {'dtype': 'F32', 'shape': [23], 'data_offsets': [4, 96]}}, 'got .a. at 4 instead of 0'),
    ({'a': {'dtype': 'F32', 'shape': [23], 'data_offsets': [0, 92]}}, 'got 4 bytes after it'),
    ({'a': {'dtype': 'F32', 'shape': [23], 'data_offsets': [0, 96]}}, 'must tell a type, a shape'),
    ({'a': {'dtype': 'F32', 'shape': [-24], 'data_offsets': [0, 96]}}, 'must tell a type, a shape'),
    ({'a': {'dtype': 'F8', 'shape': [96], 'data_offsets': [0, 96]}}, "of F64.* got 'F8' for 'a'"),
    ({'a': {'dtype': 'BOOL', 'shape': [96], 'data_offsets': [0, 96]}}, 'must have 0 or 1 for a bo'),
    ({'a': {'dtype': 'F32', 'shape': [0, 2**62, 4], 'data_offsets': [0, 0]}}, 'must tell a type'),
    ({'a': 3}, 'must tell a type'), ({'__metadata__': {'x': 1}}, 'must have texts as its meta')])
def test_headers_that_do_not_fit_their_bytes(write, header, match):
  with pytest.raises(ValueError, match=match):
    containers.read(write(writing.safetensors({'a': VALUES}, **header)))


@pytest.mark.parametrize('text, match', [
    (b'{"a": 1, "a": 2}', 'got a name twice'), (b'{"a": ', 'a header in JSON'),
    (b'{"a": ' + b'[' * 10**5, 'a header in JSON'), (b'{"a": 1' + b'0' * 5000, 'a header in JSON'),
    (b'{"\xff": 1}', 'a header in JSON')])
def test_headers_that_are_no_descriptions(write, text, match):
  with pytest.raises(ValueError, match=match):
    containers.read(write(struct.pack('<Q', len(text)) + text))
  with pytest.raises(ValueError, match=r'must have its header of \d+ bytes'):
    containers.read(write(struct.pack('<Q', len(text) + 1) + text))


def tar():
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('model.pt'))
  return file.getvalue()


@pytest.mark.parametrize('data, match', [
    (b'', 'got an empty file; download it again'),
    (b'\n<!DOCTYPE html><html>', 'got a web page; download the file itself'),
    (b'<HTML>', 'got a web page'),
    (b'version https://git-lfs.github.com/spec/v1\noid', "pointer of Git LFS; run 'git lfs pull'"),
    (b'\xfd7zXZ\0\0', 'packed with xz; unpack it first'), (b'\x1f\x8b\x08', 'packed with gzip'),
    (tar(), 'got a tar archive; unpack it first'), (b'\x80', 'must be a whole pickle'),
    (b'PK\x03\x04', 'must be a whole ZIP archive'), (b'cos\nsystem\n', 'got the bytes 63 6f 73'),
    (b'\x89HDF\r\n', 'got the bytes 89 48')])
def test_files_that_are_no_checkpoints(write, data, match):
  with pytest.raises(ValueError, match=match) as error:
    containers.read(write(data))
  assert '\n' not in str(error.value) and str(error.value).startswith('convert: ')


def test_what_is_no_file(tmp_path, write):
  with pytest.raises(ValueError, match='must be a file, got the folder'):
    containers.read(tmp_path)
  with pytest.raises(OSError, match='got .*nowhere .No such file or directory.; check'):
    containers.read(tmp_path / 'nowhere')
  os.mkfifo(tmp_path / 'pipe')
  with pytest.raises(ValueError, match='got the device or pipe'):
    containers.read(tmp_path / 'pipe')
  with pytest.raises(ValueError, match=r'got 5 bytes in .* and 4 bytes of memory; free some'):
    containers.read(write(b'12345'), memory=4)
  with open(tmp_path / 'huge', 'wb') as file:
    file.truncate(2**43)  # A hole: nothing is on the disk.
  with pytest.raises(ValueError, match=r'got 8192.0 GiB in .* GiB of memory'):
    containers.read(tmp_path / 'huge')


def test_reading_needs_no_torch():
  code = ('import sys; sys.modules["torch"] = None; from convert import containers; '
          f'print(containers.read({str(FOLDER / "containers/dtypes_zip.pt")!r}).container)')
  result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          cwd=reference.GOLDEN.parent.parent)
  assert result.stdout == 'torch_zip\n'
