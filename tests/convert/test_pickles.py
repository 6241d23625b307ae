"""EDM's pickles: inert data with the right numbers; nothing that a file holds is executed."""

import contextlib
import hashlib
import json
import os
import pickle
import struct
import sys
import time

import numpy as np
import pytest

from convert import containers, pickles
from tests import reference
from tests.convert import writing
from tests.convert.writing import Call, Id, Name

FOLDER = reference.GOLDEN / 'edm_pickles'
MANIFEST = json.loads((FOLDER / 'manifest.json').read_text())


@pytest.fixture
def write(tmp_path):
  """Writes a pickle, or bytes that are one, to a file."""
  def write(value, protocol=4):
    data = value if isinstance(value, bytes) else writing.dumps(value, protocol)
    (tmp_path / 'file').write_bytes(data)
    return tmp_path / 'file'
  return write


@pytest.mark.parametrize('case', MANIFEST['cases'], ids=lambda case: case['id'])
def test_published_pickles_load_to_the_recorded_values(case):
  contents = containers.read(FOLDER / case['file'])
  assert contents.container == 'edm_pickle' and contents.sha256 == case['sha256']
  assert list(contents.data) == case['top_level_keys']
  network = pickles.network(contents.data)
  assert network.class_name in case.get('precond', case.get('model_class'))
  if case['id'] != 'sfd_student':  # Its class keeps no arguments.
    assert (network.init_args, network.init_kwargs) == ((), case['init_kwargs'])
  if 'sigma_min' in case:
    assert network.attributes['sigma_min'] == case['sigma_min']
    assert network.attributes['sigma_max'] == float(case['sigma_max'])
  names = [name for name, *_ in case['tensors_name_shape_dtype_sha256prefix']]
  assert list(network.tensors) == names  # All of them, in order.
  for name, shape, dtype, digest in case['tensors_name_shape_dtype_sha256prefix']:
    tensor = network.tensors[name]
    assert (list(tensor.shape), tensor.dtype.name) == (shape, dtype)
    if 'sha256_note' in case:
      tensor = tensor.astype(np.float32)
    assert hashlib.sha256(tensor.tobytes()).hexdigest()[:16] == digest
  assert all(name.endswith(('resample_filter', 'freqs', 'u')) for name in network.buffers)


def test_half_precision_and_strided_tensors():
  network = pickles.network(containers.read(FOLDER / 'strided_half.pkl').data)
  with np.load(FOLDER / 'strided_half.expected.npz') as expected:
    names = [name for name in expected if name.startswith('sd:')]
    assert {network.tensors[name[3:]].dtype.name for name in names} >= {'float16', 'bfloat16'}
    assert any(not network.tensors[name[3:]].flags.c_contiguous for name in names)
    for name in names:
      np.testing.assert_array_equal(network.tensors[name[3:]].astype(np.float32), expected[name])


@pytest.mark.parametrize('case', MANIFEST['negative_cases'], ids=lambda case: case['id'])
def test_damaged_and_hostile_pickles(case, capfd):
  texts = {'bad_os_system': "call of 'posix.system'",
           'bad_os_system_proto0': 'must be a pickle of protocol 2 or later',
           'bad_builtins_exec': "call of 'builtins.exec'",
           'bad_getattr_chain': "call of 'builtins.__import__'",
           'bad_numpy_prefix': "call of 'numpy.testing._private.utils.runstring'",
           'bad_payload_in_storage': "call of 'posix.system'",
           'bad_storage_truncated': 'got its end where 16 bytes were to follow',
           'bad_view_out_of_bounds': r'within their storages, got one of shape \(4,\) .* of 2',
           'bad_truncated': 'must be a whole pickle', 'bad_empty': 'got an empty file',
           'bad_garbage': 'got the bytes',
           'bad_not_a_dict': "dictionary with a network under 'ema' or 'model', got a list",
           'bad_no_ema': "network under 'ema' or 'model', got 'G_ema'",
           'bad_meta_version': 'version 6, got 5'}
  def load():
    return pickles.network(containers.read(FOLDER / case['file']).data)
  if case['id'] in texts:
    with pytest.raises(ValueError, match=texts[case['id']]) as error:
      load()
    assert '\n' not in str(error.value) and str(error.value).startswith('convert: ')
  else:  # Well-formed: the error belongs to who knows the network, from what is found here.
    found = load()
    weight = found.tensors.get('model.map_layer0.weight')
    assert {'bad_unknown_class': found.class_name == 'SomethingElsePrecond',
            'bad_missing_tensor': weight is None,
            'bad_unexpected_tensor': 'model.extra' in found.tensors,
            'bad_wrong_shape': weight is not None and weight.shape == (4, 5)}[case['id']]
  assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_a_network_is_read_with_its_arguments_and_tensors(write, protocol):
  network, arrays = writing.small_network()
  found = pickles.network(containers.read(write({'ema': network}, protocol)).data)
  assert (found.class_name, found.init_args, found.init_kwargs) == ('Precond', (8, 3),
                                                                    {'kind': 'small'})
  assert found.attributes == {'training': False, 'sigma_min': 0.5}
  assert list(found.tensors) == list(arrays)
  assert found.buffers == {'mean', 'list.0.shift'}
  for name, array in arrays.items():
    np.testing.assert_array_equal(found.tensors[name], array, strict=True)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_plain_values_are_those_of_python(write, protocol):
  value = {'n': [0, -1, 255, 65535, 2**31, -2**63, 2**80], 'f': (1.5, float('inf'), True, None),
           'text': ['', 'ä€😀', 'x' * 300], 'bytes': b'\0\xff' * 9, 'set': {1, 'b'}, (1, 'a'): {},
           'nested': [[[{}], ()], ((1,), (1, 2), (1, 2, 3))], 'frozen': frozenset([3])}
  value['again'] = value['nested']
  found = containers.read(write(pickle.dumps(value, protocol))).data
  assert found == value and found['again'] is found['nested']


def test_values_of_numpy_and_dicts_of_other_kinds(write):
  dtype = Call(Name('numpy', 'dtype'), ('f8', False, True), state=(3, '<', None, None, None, -1, -1,
                                                                  0))
  scalar = Call(Name('numpy._core.multiarray', 'scalar'), (dtype, struct.pack('<d', 0.25)))
  found = containers.read(write({
      'scalar': scalar, 'easy': Call(Name('dnnlib.util', 'EasyDict'), (), True),
      'default': Call(Name('collections', 'defaultdict'), (Name('builtins', 'list'),)),
      'ordered': writing.ordered(b=1, a=2), 'device': Call(Name('torch', 'device'), ('cpu',)),
      'function': Name('solvers', 'euler')})).data
  assert {name: found[name] for name in ('scalar', 'easy', 'default', 'ordered')} == {
      'scalar': 0.25, 'easy': {}, 'default': {}, 'ordered': {'b': 1, 'a': 2}}
  assert found['device'].args == ('cpu',) and found['function'].name == 'solvers.euler'


class Payload:
  """What Python's pickle would run."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (self.path,)


@pytest.mark.parametrize('form', ['value', 'key', 'class', 'state', 'storage', 'archive', 'legacy'])
def test_nothing_is_executed(write, tmp_path, form):
  target = str(tmp_path / 'planted')
  mkdir = Call(Name('posix', 'mkdir'), (target,))
  network, _ = writing.small_network(hook=mkdir)
  data = {'value': pickle.dumps({'ema': [1, Payload(target)]}),
          'key': writing.dumps({mkdir: 1}),
          'class': writing.dumps([Call(mkdir, (), True)]),
          'state': writing.dumps({'ema': network}),
          'storage': writing.dumps(Call(Name('torch.storage', '_load_from_bytes'),
                                        (writing.legacy(mkdir, {}),))),
          'archive': writing.archive(mkdir, {}), 'legacy': writing.legacy(mkdir, {})}[form]
  with pytest.raises(ValueError, match="call of '(posix|nt).mkdir' .* was not executed"):
    containers.read(write(data))
  assert not os.path.exists(target)
  if form == 'value':
    pickle.loads(data)  # So the payload is a real one.
    assert os.path.exists(target)


@pytest.mark.parametrize('value', [
    Call(Name('builtins', 'getattr'), (Name('os', 'system'), '__call__')),
    Call(Name('builtins', 'eval'), ('1',)), Call(Name('torch', '_utils._rebuild_tensor_v2'), ()),
    Call(Name('torch._utils', '_rebuild_sparse_tensor'), ()), Call(Name('torch', 'load'), ('a',)),
    Call(Name('collections', 'OrderedDict.fromkeys'), ([1],)), Call(Name('numpy', 'load'), ('a',)),
    Call(Name('torch.storage', '_load_from_bytes.__globals__'), ())])
def test_only_exact_names_are_called(write, value):
  with pytest.raises(ValueError, match=f"call of '{value.function.module}.{value.function.name}"):
    containers.read(write(value))


@pytest.mark.parametrize('value', [
    Call(Call(Name('collections', 'OrderedDict'), ()), ()), Call(3, ()),
    Call(Name('collections', 'OrderedDict'), [1])])
def test_only_globals_are_called(write, value):
  with pytest.raises(ValueError, match='must be a whole pickle, got a call of'):
    containers.read(write(value))


@pytest.mark.parametrize('function, args', [
    ('_codecs.encode', ('ä', 'utf-8')), ('_codecs.encode', ('€', 'latin1')), ('_codecs.encode', ()),
    ('builtins.set', ('ab',)), ('collections.OrderedDict', ([['a', 1], ['a', 2]],)),
    ('collections.OrderedDict', ([['a', 1, 2]],)), ('collections.OrderedDict', (Name('a', 'b'),)),
    ('numpy.dtype', ('O8', False, True)),
    ('numpy.dtype', ('f8',)), ('numpy.core.multiarray.scalar', ('f8', b'12345678')),
    ('torch._utils._rebuild_tensor_v2', (b'bytes', 0, (1,), (1,))),
    ('torch._utils._rebuild_parameter', (3, True, {})), ('torch.storage._load_from_bytes', ('a',)),
    ('copyreg._reconstructor', (1, 2, 3)), ('torch.Size', (3,)),
    ('torch_utils.persistence._reconstruct_persistent_obj', ({'type': 'class', 'version': 6},)),
    ('torch_utils.persistence._reconstruct_persistent_obj', writing.persistent('A', {}, x=1).args)])
def test_known_calls_with_other_arguments(write, function, args):
  with pytest.raises(ValueError, match='must call .* as PyTorch or Python does, got other'):
    containers.read(write(Call(Name(*function.rsplit('.', 1)), args)))


def test_objects_filled_in_ways_that_python_does_not(write):
  for value in (Call(Name('collections', 'OrderedDict'), (), state={'keys': 1}),
                Call(Name('a', 'B'), (), True, Call(Name('a', 'B'), (), True, state=3)),
                Call(Name('numpy', 'dtype'), ('f8', False, True), state=(3, '>')),
                Call(Name('builtins', 'set'), (), state={})):
    if value.function.module != 'a':
      with pytest.raises(ValueError, match='with a state of its own'):
        containers.read(write(value))
    else:
      assert containers.read(write(value)).data.state.state == 3
  for data in (b'\x80\x02Nb.', b'\x80\x02ca\nB\n}b.', b'\x80\x02c__builtin__\ndict\n}b.',
               b'\x80\x02NNa.', b'\x80\x02(NNNs.', b'\x80\x02ca\nB\nNNs.', b'\x80\x02N(Ne.',
               b'\x80\x02ca\nB\n)\x81}b}b.'):
    with pytest.raises(ValueError, match='must be a whole pickle'):
      containers.read(write(data))


def test_unknown_opcodes_and_ends(write):
  for data in (b'\x80\x02.', b'\x80\x02NN.', b'\x80\x02(N.', b'\x80\x02N', b'\x80\x02I1\n.',
               b'\x80\x02\x82\x01.', b'\x80\x02(cos\nsystem\no.', b'\x80\x02(ios\nsystem\n.',
               b'\x80\x02h\0.', b'\x80\x02t.', b'\x80\x02Nq\x09.', b'\x80\x04N\x8c\x01a\x93.',
               b'\x80\x02X\x01\0\0\0\xff.', b'\x80\x02cos', b'\x80\x02K\x01Q.',
               b'\x80\x02}(K\x01u.', b'\x80\x02}(NNNNu.', b'\x80\x02c' + b'a' * 2000 + b'\nb\n.'):
    with pytest.raises(ValueError, match='must be a whole pickle'):
      containers.read(write(data))
  for size in (2, 12):  # A frame that ends within an opcode, and one within another.
    frame = b'\x95' + struct.pack('<q', size)
    with pytest.raises(ValueError, match='(the end of a frame|a frame) within an'):
      containers.read(write(b'\x80\x04' + frame + (b'J1234.' if size == 2 else frame + b'NNN.')))
  with pytest.raises(ValueError, match='protocol 2 to 5, got 6'):
    containers.read(write(b'\x80\x06N.'))
  with pytest.raises(ValueError, match='must end with its pickle, got 1 bytes after it'):
    containers.read(write(b'\x80\x02N..'))


def test_sizes_are_not_believed(write):
  for data in (b'B\xff\xff\xff\xff', b'\x8e' + b'\xff' * 8, b'X\xff\xff\xff\x7f',
               b'\x8d' + b'\xff' * 8, b'\x95' + b'\xff' * 8, b'\x8b\xff\xff\xff\x7f',
               b'r\xff\xff\xff\xff', b'\x8b' + struct.pack('<i', 5000) + b'1' * 5000):
    with pytest.raises(ValueError, match='must be a whole pickle'):
      containers.read(write(b'\x80\x04N' + data + b'.'))


@pytest.mark.parametrize('data, match', [
    (b'(' * 3 * 10**6 + b'N.', 'at most 2000000 opcodes'),
    (b'N' + b'\x85' * 10**5 + b'.', 'must nest at most 200 deep'),
    (b']' * 10**5 + b'a' * (10**5 - 1) + b'.', 'must nest at most 200 deep'),
    (b']q\x00h\x00a.', 'must not nest in itself, got a list'),
    (b'}q\x00K\x01h\x00s.', 'must not nest in itself, got a dict'),
    (b'}' + b'N' + b'\x85' * 10**5 + b'Ns.', 'must have plain keys .* got a tuple'),
    (b'}]Ns.', 'must have plain keys in dicts and sets, got a list'),
    (b'}\x8a\x09' + b'\0' * 8 + b'\x01Ns.', 'must have plain keys .* got a long integer'),
    (b'}(K\x01NK\x01Nu.', 'got the key 1 twice'),
    # The same megabyte turned into bytes again and again.
    (b'c_codecs\nencode\nX\0\0\x10\0' + b'a' * 2**20 + b'X\x06\0\0\0latin1\x86q\x010q\x02'
     + b'0h\x02h\x01R' * 50 + b'.', 'many times its own size'),
    # The same list turned into a set again and again.
    (b'c__builtin__\nset\nq\x00]q\x01(' + b'N' * 10**5 + b'e\x85q\x02R' + b'0h\x00h\x02R' * 50
     + b'.',
     'at most 2000000 opcodes')])
def test_work_and_memory_are_bounded(write, data, match):
  with pytest.raises(ValueError, match=match):
    containers.read(write(b'\x80\x02' + data))


def test_doubling_in_the_memo_stays_small(write):
  data = b'\x80\x02]' + b'2\x86' * 100 + b'.'  # ((x, x), (x, x)), ... 2^100 leaves, shared.
  value = containers.read(write(data)).data
  for _ in range(100):
    value, same = value
    assert value is same
  assert value == []


def test_modules_that_are_none(write):
  def check(match, **parts):
    network = {'ema': writing.persistent('A', {**writing.state(), **parts})}
    with pytest.raises(ValueError, match=f'convert: source must {match}'):
      pickles.network(containers.read(write(network)).data)
  check('have a tensor as w, got 3', _parameters={'w': 3})
  check('name modules and tensors by texts, got 1', _parameters={1: None})
  check("have modules of PyTorch in its network, got 'a.B' as 'm'", _modules={'m': Name('a', 'B')})
  check("have modules of PyTorch in its network, got an object of 'a.B' as 'm'",
        _modules={'m': Call(Name('a', 'B'), (), True)})
  check('have modules of PyTorch', _modules=[])
  check('have modules of PyTorch', _non_persistent_buffers_set=3)
  check('tell the arguments of its network', _init_args=3)
  twice = np.float32([1])
  check('name each tensor once', _parameters={'a.b': writing.parameter(twice)}, _modules={
      'a': writing.persistent('B', writing.state({'b': writing.parameter(twice)}))})
  loop = Call(Name('a', 'B'), (), True, writing.state())
  loop.state['_modules'] = {'m': loop}
  check('nest modules at most 50 deep', _modules={'m': loop})
  wide = Call(Name('a', 'B'), (), True, writing.state())
  for _ in range(40):
    wide = Call(Name('a', 'B'), (), True, writing.state(modules={'a': wide, 'b': wide}))
  check('have at most 100000 modules and tensors', _modules={'m': wide})
  odd = Call(Name('a', 'B'), (), True, {1: 2})
  for value, text in ('text', "'text'"), (odd, "an object of 'a.B'"):
    with pytest.raises(ValueError, match=f"must have a network under 'model', got {text}"):
      pickles.network(containers.read(write({'model': value})).data)


def test_a_persistent_id_belongs_to_a_file_of_pytorch(write):
  with pytest.raises(ValueError, match='got a persistent id'):
    containers.read(write(Id('0')))
  assert 'torch_utils' not in sys.modules and 'dnnlib' not in sys.modules


def test_sharing_does_not_multiply_work(write):
  # Values that are cheap to repeat in the file, and dear to look at each time.
  many = b'(' + b'K\x01' * 10**5
  start = time.perf_counter()
  for data in (b'}q\x000' + many + b'tq\x010' + b'}h\x01Ns0' * 5000 + b'N.',  # A key.
               many + b'tq\x000(' + b'h\x00' * 5000 + b't.',  # Its nesting.
               b']' + many + b'eq\x000(' + b'h\x00]h\x00a' * 5000 + b't.'):
    with contextlib.suppress(ValueError):
      containers.read(write(b'\x80\x02' + data))
  assert time.perf_counter() - start < 5
