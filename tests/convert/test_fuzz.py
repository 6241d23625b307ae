"""Damaged files: each loads to what its bytes say, or ends in the project's own error."""

import contextlib
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from convert import containers, pickles
from tests.convert import oracle, writing
from tests.convert.writing import Call, Name, storage, tensor

SECONDS, BYTES = 2.0, 8 * 2**20  # A file may take; it has about 5,000 bytes.


def bases():
  """Sound files of a few kilobytes, and what tells the content of a file by its container."""
  arrays = {'0': np.arange(12, dtype=np.float32), '1': np.arange(5).astype(ml_dtypes.bfloat16),
            '2': np.array([True, False])}
  def value(view=()):
    stored = {key: storage(key, array, view) for key, array in arrays.items()}
    return {'epoch': 3, 'state_dict': {
        'a.weight': tensor(stored['0'], (2, 3), (3, 1), 6), 'a.bias': tensor(stored['0'], (3, 2),
                                                                            (1, 3)),
        'half': tensor(stored['1'], (5,)), 'mask': tensor(stored['2'], (2, 1))},
            'callbacks': {Name('lightning', 'Checkpoint'): [1.5, (None, True, -2**40)]},
            'extra': Call(Name('lightning', 'Config'), (), True, {'path': 'x'})}
  network, _ = writing.small_network(sigma=float('inf'))
  archive = writing.archive(value(), arrays)
  named = {'weight': arrays['0'].reshape(3, 4), 'half': arrays['1'], 'mask': arrays['2']}
  # A ZIP file has checksums: what loads is what was written.
  written = oracle.legacy(writing.legacy(value((None,)), arrays))
  files = {'zip': archive, 'legacy': writing.legacy(value((None,)), arrays),
           'edm_2': writing.dumps({'ema': network, 'n': [1, {2}]}, 2),
           'edm_4': writing.dumps({'ema': network, 'n': [1, {2}]}, 4),
           'safetensors': writing.safetensors(named, __metadata__={'a': 'b'})}
  return files, {'torch_zip': lambda data: written, 'torch_legacy': oracle.legacy,
                 'edm_pickle': oracle.pickled, 'safetensors': oracle.safetensors}


def damage(data, rng):
  """Changes a file in one to three places."""
  data = bytearray(data)
  for _ in range(rng.choice([1, 1, 1, 2, 3])):
    at, size = int(rng.integers(len(data) + 1)), int(rng.choice([1, 1, 2, 4, 8, 50]))
    kind = rng.integers(8)
    if kind <= 1 and at < len(data):
      data[at] ^= 1 << int(rng.integers(8))
    elif kind == 2:
      data[at:at + 1] = rng.bytes(1)
    elif kind == 3 and rng.random() < 0.3:
      del data[at:]
    elif kind == 4:
      del data[at:at + size]
    elif kind == 5:
      data[at:at] = data[at - size:at]
    elif kind == 6:  # A size or offset, of any width and order of bytes.
      number = int(rng.choice([0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**62]))
      width = int(rng.choice([1, 2, 4, 8]))
      data[at:at + width] = (number % 2**(8 * width)).to_bytes(width, 'little')
    else:
      other = int(rng.integers(len(data) + 1))
      data[at:at + size] = data[other:other + size]
  return bytes(data)


def check(path, data, expected):
  """Returns whether a file loads, to what is expected, within bounds (of memory if traced)."""
  path.write_bytes(data)
  start = time.perf_counter()
  tracemalloc.reset_peak()
  before = tracemalloc.get_traced_memory()[0]
  try:
    contents = containers.read(path)
    if contents.container == 'edm_pickle' and isinstance(contents.data, dict):
      pickles.network(contents.data)
  except ValueError as error:
    assert str(error).startswith('convert: ') and str(error).isprintable(), repr(str(error))
    contents = None
  assert time.perf_counter() - start < SECONDS
  assert tracemalloc.get_traced_memory()[1] - before < BYTES
  if contents is not None:
    assert oracle.is_same(contents.data, expected[contents.container](data))
  return contents is not None


def run(path, count, seed):
  """Damages `count` files; returns how many still loaded."""
  files, expected = bases()
  loaded = 0
  for name, data in files.items():
    assert check(path, data, expected)
    for i in range(count // len(files)):
      try:
        loaded += check(path, damage(data, np.random.default_rng([seed, i])), expected)
      except BaseException as error:
        error.add_note(f'{name}, damaged by the seed {[seed, i]}')
        raise
  return loaded


@contextlib.contextmanager
def tracing():
  """Lets `check` see how much memory is taken."""
  tracemalloc.start()
  try:
    yield
  finally:
    tracemalloc.stop()


def test_damaged_files_load_right_or_are_refused(tmp_path):
  loaded = run(tmp_path / 'file', 1500, seed=0)
  assert 50 < loaded < 1450  # Both happen.
  with tracing():
    run(tmp_path / 'file', 500, seed=1)


@pytest.mark.slow
def test_many_damaged_files_load_right_or_are_refused(tmp_path):
  with tracing():
    run(tmp_path / 'file', 50_000, seed=2)


def test_every_single_byte_matters_or_does_no_harm(tmp_path):
  files, expected = bases()
  data = files['zip']
  with tracing():
    for at in range(0, len(data), 3):
      check(tmp_path / 'file', data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1:], expected)
