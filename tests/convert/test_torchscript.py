"""TorchScript archives: their tensors by name, and never their program."""

import io
import json
import sys
import time
import zipfile

import numpy as np
import pytest

import convert
from convert import containers, torchscript
from tests import reference
from tests.convert import test_fuzz, writing
from tests.convert.writing import Call, Name, storage, tensor

# Made with PyTorch 2.13: a scripted module with attributes of every kind and a part that is shared;
# a traced one in half precision; the first one frozen. expected.npz has their state_dict().
FOLDER = reference.GOLDEN / 'torchscript'
ARRAYS = {'0': np.arange(6, dtype=np.float32), '1': np.float16([0.5, 3])}


def module(name, **attributes):
  """A module of a program."""
  return Call(Name(f'__torch__.{name}', 'Module'), (), True,
              {'training': False, '_is_full_backward_hook': None, **attributes})


def network(**attributes):
  """A module with tensors of ARRAYS."""
  inner = module('inner', weight=tensor(storage('0', ARRAYS['0']), (2, 3)),
                 sizes=Call(Name('torch.jit._pickle', 'build_intlist'), ([1, 2],)))
  return module('outer', inner=inner, again=inner, none=None, eps=1e-3,
                scale=tensor(storage('1', ARRAYS['1']), (2,)), **attributes)


def archive(value, arrays=ARRAYS, code='', constants=b'', packed=(), folder='net', **more):
  """An archive of a value, as torch.jit.save makes them: the code is compressed."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as members:
    for name, content in {
        **{f'data/{key}': array.tobytes() for key, array in arrays.items()},
        'data.pkl': value if isinstance(value, bytes) else writing.dumps(value),
        'code/__torch__.py': code, 'code/__torch__.py.debug_pkl': b'\x80\x02.',
        'constants.pkl': constants, 'version': b'3\n', 'byteorder': b'little', **more}.items():
      kind = zipfile.ZIP_DEFLATED if name.startswith('code/') or name in packed else 0
      members.writestr(f'{folder}/{name}', content, kind)
  return file.getvalue()


@pytest.fixture
def read(tmp_path):
  """Reads the tensors of a file of these bytes."""
  def read(data):
    (tmp_path / 'file').write_bytes(data)
    contents = containers.read(tmp_path / 'file')
    assert contents.container == 'torchscript'
    return torchscript.tensors(contents.data)
  return read


@pytest.mark.parametrize('name, count', [('scripted', 9), ('traced_half', 6)])
def test_archives_of_pytorch_read_to_their_state_dict(name, count, read):
  with np.load(FOLDER / 'expected.npz') as recorded:
    expected = {key.partition('|')[2]: recorded[key] for key in recorded
                if key.startswith(f'{name}|')}
  found = read((FOLDER / f'{name}.pt').read_bytes())
  assert found.keys() == expected.keys() and len(found) == count
  for key, array in expected.items():
    np.testing.assert_array_equal(found[key], array, strict=True)
    assert not found[key].flags.writeable


def test_the_program_is_not_run(read, tmp_path):
  canary = tmp_path / 'canary'
  code = f'import pathlib\npathlib.Path({str(canary)!r}).touch()\n'
  constants = writing.dumps((Call(Name('builtins', 'exec'), (code,)),))
  data = archive(network(), code=code, constants=constants)
  assert {name: array.tolist() for name, array in read(data).items()} == {
      'scale': [0.5, 3], 'inner.weight': [[0, 1, 2], [3, 4, 5]],
      'again.weight': [[0, 1, 2], [3, 4, 5]]}
  with pytest.raises(ValueError, match="got a call of 'builtins.exec' .* was not executed"):
    read(archive(network(more=Call(Name('builtins', 'exec'), (code,)))))
  with pytest.raises(ValueError, match="got a call of '__torch__.Color' .* was not executed"):
    read(archive(network(more=Call(Name('__torch__', 'Color'), (1,)))))
  assert not canary.exists() and not any(name.startswith('__torch__') for name in sys.modules)
  exec(code)  # It would have done something.
  assert canary.exists()


def test_any_name_of_the_folder_will_do_and_the_rest_is_left_alone(read):
  found = read(archive(network(), folder='a folder', **{
      'extra/notes': 'text', 'constants/0': b'1234', 'traced_inputs.pkl': b'no pickle',
      '.data/serialization_id': b'12'}))
  assert list(found) == ['scale', 'inner.weight', 'again.weight']


def test_attributes_that_are_no_tensors_have_no_names(read):
  def call(name, *args):
    return Call(Name('torch.jit._pickle', name), args)
  one = tensor(storage('0', ARRAYS['0']), (1,))
  found = read(archive(network(
      listed=call('build_tensorlist', [one]), by_name=call('restore_type_tag', {'a': one}, 'Dict'),
      texts=call('restore_type_tag', ['a'], 'List[str]'), pair=(1, one), text='text',
      numbers=call('build_doublelist', [1.5]), flags=call('build_boollist', [True]),
      device=Call(Name('torch', 'device'), ('cpu',)))))
  assert list(found) == ['scale', 'inner.weight', 'again.weight']


def loop():
  """A module within itself."""
  made = module('a')
  made.state['m'] = made
  return made


def wide():
  """A module with 2^40 modules below it, each one shared by two."""
  made = module('a')
  for _ in range(40):
    made = module('a', x=made, y=made)
  return made


@pytest.mark.parametrize('value, match', [
    ({'a': 1}, 'must be a checkpoint of tensors or a module, got a TorchScript archive of a dict'),
    (Name('__torch__', 'Net'), "got a TorchScript archive of '__torch__.Net'; save the module"),
    (Call(Name('torch.nn', 'Linear'), (), True, {}), "archive of an object of 'torch.nn.Linear'"),
    (module('a', text='text'), 'must be a module with tensors, got TorchScript without any'),
    (module('a', p=Call(Name('__torch__.torch.classes.quantized', 'Packed'), (), True, (1, 2))),
     r"got an object of '__torch__.*.Packed' as 'p', which keeps its own; save the state_dict"),
    (Call(Name('__torch__', 'Net'), (), True), "got an object of '__torch__.Net' as 'the module'"),
    (module('a', **{'b.c': 1}), "must name attributes by texts, got 'b.c' in an object of '__tor"),
    (Call(Name('__torch__', 'Net'), (), True, {1: 2}), 'must name attributes by texts, got 1 in'),
    (loop(), 'must nest modules at most 50 deep'), (wide(), 'must have at most 100000 attributes'),
    (module('a', b=Call(Name('torch.jit._pickle', 'build_intlist'), ([1.5],))),
     'must call build_intlist as TorchScript does'),
    (module('a', b=Call(Name('torch.jit._pickle', 'build_tensorlist'), (3,))),
     'must call build_tensorlist as TorchScript does'),
    (module('a', b=Call(Name('torch.jit._pickle', 'restore_type_tag'), ([1],))),
     'must call restore_type_tag as TorchScript does'),
    (b'\x80\x02N.N', 'must end data.pkl with its pickle')])
def test_archives_of_something_else(value, match, read):
  with pytest.raises(ValueError, match=match) as error:
    read(archive(value, {}))
  assert str(error.value).isprintable()


def test_a_frozen_module_has_no_names(read):
  with pytest.raises(ValueError, match='got a frozen one whose 10 tensors are constants of its pr'):
    read((FOLDER / 'frozen.pt').read_bytes())
  with pytest.raises(ValueError, match=r'convert: .*frozen.pt: source must be a module with named'):
    convert.load(FOLDER / 'frozen.pt')


def test_unsound_archives(read):
  whole = network()
  with pytest.raises(ValueError, match="must hold the storage '1', got none"):
    read(archive(whole, {'0': ARRAYS['0']}))
  with pytest.raises(ValueError, match="must use all of its storages, got 'net/data/7'"):
    read(archive(whole, ARRAYS | {'7': ARRAYS['0']}))
  with pytest.raises(ValueError, match='must be little-endian'):
    read(archive(whole, byteorder=b'big'))
  for name in 'data.pkl', 'data/0', 'byteorder':
    with pytest.raises(ValueError, match=f"got 'net/{name}' compressed"):
      read(archive(whole, packed=[name]))
  with pytest.raises(ValueError, match='must be an archive of PyTorch 1.4 or later, got TorchScr'):
    read(archive(whole, **{'model.json': json.dumps({})}).replace(b'data.pkl', b'data.pkk'))
  with pytest.raises(ValueError, match='tensors of many times its own size'):
    read(archive(module('a', w=tensor(storage('0', ARRAYS['0']), (2000, 2000), (0, 0)))))
  data = archive(whole)
  with pytest.raises(ValueError, match='must have the checksum'):
    read(data.replace(ARRAYS['0'].tobytes(), ARRAYS['0'][::-1].tobytes()))


def test_a_network_that_is_not_known(tmp_path):
  (tmp_path / 'net.pt').write_bytes(archive(network()))
  with pytest.raises(ValueError, match=r'net.pt: family must be one of edm, .*inception.*, got tens'
                                       r'ors such as scale, inner.weight, again.weight; it is ano'):
    convert.load(tmp_path / 'net.pt')


def test_damaged_modules_are_read_or_refused(read):
  # The checksums of a ZIP file would refuse all damage: here they are made for what is damaged.
  whole, read_as_before, refused = writing.dumps(network()), 0, 0
  for seed in range(400):
    start = time.perf_counter()
    try:
      found = read(archive(test_fuzz.damage(whole, np.random.default_rng([3, seed]))))
      read_as_before += found.keys() == {'scale', 'inner.weight', 'again.weight'}
      assert all(isinstance(array, np.ndarray) for array in found.values())
    except ValueError as error:
      assert str(error).isprintable()
      refused += 1
    assert time.perf_counter() - start < test_fuzz.SECONDS
  assert read_as_before > 10 and refused > 100  # Both happen.
