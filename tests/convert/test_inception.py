"""The Inception of FID: every tensor of both published layouts, in every container."""

import functools

import flax
import jax
import numpy as np
import pytest

import convert
from convert import inception, torchscript
from tests import recipe
from tests.convert import test_torchscript, writing
from tests.convert.writing import Call, Name

KEYS = recipe.load('inception/keys.json.gz')
SHAPES = {layout: {name: tuple(shape) for name, shape in KEYS[layout]}
          for layout in ('pth', 'detector')}
PARTS = {'.weight': '.conv.weight', '.beta': '.bn.bias', '.mean': '.bn.running_mean',
         '.var': '.bn.running_var'}
TO_PTH = {theirs + end: ours + PARTS[end] for ours, theirs, _ in KEYS['map'] for end in PARTS} | {
    theirs: ours for ours, theirs, _ in KEYS['fc_map']}
POSITIVE = 4096  # Values of POOL that may be moments and scales, the most that a tensor needs.


@functools.cache
def pool():
  """Values that all tensors of a small file share: some around 1, then ones like weights."""
  rng = np.random.default_rng(0)
  values = rng.standard_normal(1008 * 2048 + 2 * POSITIVE, np.float32) * np.float32(0.02)
  values[:POSITIVE] = 1 + rng.random(POSITIVE, np.float32) / 2
  return values


def place(layout, name):
  """Where in the pool a tensor begins: each at another number."""
  names = [*SHAPES[layout]]
  return names.index(name) + (POSITIVE if len(SHAPES[layout][name]) > 1 else 0)


@functools.cache
def arrays(layout):
  """Name -> array, views into the pool."""
  return {name: pool()[place(layout, name):][:np.prod(shape)].reshape(shape)
          for name, shape in SHAPES[layout].items()}


def stored(layout, storage):
  """Name -> tensor of a file, views of one storage."""
  return {name: writing.tensor(storage, shape, offset=place(layout, name))
          for name, shape in SHAPES[layout].items()}


def tree(tensors, make):
  """Modules of dotted names: make(attributes, modules)."""
  own, inner = {}, {}
  for name, value in tensors.items():
    head, _, rest = name.partition('.')
    if rest:
      inner.setdefault(head, {})[rest] = value
    else:
      own[head] = value
  return make(own, {head: tree(below, make) for head, below in inner.items()})


def check(params, layout):
  """Compares parameters with the arrays, by the names and layouts of the .pth file."""
  found = flax.traverse_util.flatten_dict(params, sep='.')
  names = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
           'var': 'running_var'}
  expected = dict(arrays(layout))
  if layout == 'detector':
    expected = {TO_PTH[name]: array for name, array in expected.items()}
  assert len(found) == len(SHAPES['pth']) == 472
  for path, value in found.items():
    start, _, last = path.rpartition('.')
    if last == 'scale' and layout == 'detector':
      np.testing.assert_array_equal(value, np.ones(SHAPES['pth'][f'{start}.weight'], np.float32))
      continue
    array = expected.pop(f'{start}.{names[last]}')
    if last == 'kernel':
      array = array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(value, array, strict=True)
  assert not expected


def test_the_lists_are_whole():
  assert [len(SHAPES[layout]) for layout in ('pth', 'detector')] == [472, 378]
  assert len(TO_PTH) == 378 and len(KEYS['pth_num_batches_tracked']) == 94
  assert {SHAPES['pth'][TO_PTH[name]] == shape for name, shape in SHAPES['detector'].items()} == {
      True}


@pytest.mark.parametrize('layout', SHAPES)
def test_every_tensor_reaches_its_parameter(layout):
  counters = dict.fromkeys(KEYS['pth_num_batches_tracked'], np.array(7))
  tensors = arrays(layout) | (counters if layout == 'pth' else {})
  assert inception.matches(tensors)
  config, params = inception.convert(tensors)
  assert config == {'kind': 'features', 'network': {'name': 'inception', 'settings': {}}}
  check(params, layout)


def pth(form):
  """A file of the plain state dict, with the counters of one that was saved again."""
  storage = writing.storage('0', pool(), (None,) if form is writing.legacy else ())
  count = writing.storage('1', np.array([5]), (None,) if form is writing.legacy else ())
  tensors = stored('pth', storage) | {name: writing.tensor(count, ()) for name in
                                      KEYS['pth_num_batches_tracked']}
  return form(writing.ordered(**tensors), {'0': pool(), '1': np.array([5])})


def program():
  """A TorchScript archive of the detector."""
  def make(own, modules):
    return test_torchscript.module('layer', size=3, **own, **modules)
  return test_torchscript.archive(tree(stored('detector', writing.storage('0', pool())), make),
                                  {'0': pool()}, code='raise SystemExit')


def persistent():
  """An object of NVIDIA's with the tensors of the detector."""
  data = writing.legacy(writing.storage('94', pool(), (None,)), {'94': pool()})
  storage = Call(Name('torch.storage', '_load_from_bytes'), (data,))
  def make(own, modules):
    return writing.persistent('InceptionV3', writing.state(buffers=own, modules=modules))
  return tree(stored('detector', storage), make)


FILES = {
    'state dict': ('pth', lambda: pth(writing.archive)),
    'legacy state dict': ('pth', lambda: pth(writing.legacy)),
    'detector state dict': ('detector', lambda: writing.archive(
        {'state_dict': stored('detector', writing.storage('0', pool()))}, {'0': pool()})),
    'TorchScript': ('detector', program),
    'persistent object': ('detector', lambda: writing.dumps(persistent(), 4)),
    'dict with it': ('detector', lambda: writing.dumps({'detector': persistent(), 'n': 1}, 4)),
    'TorchScript in a pickle': ('detector', lambda: writing.dumps(
        writing.persistent('Detector', writing.state(source=program())), 4)),
}


@pytest.mark.parametrize('name', FILES)
def test_files_load(name, tmp_path):
  layout, make = FILES[name]
  path = tmp_path / 'file'
  path.write_bytes(make())
  converted = convert.read(path)
  assert converted.source['family'] == 'inception' and converted.config['kind'] == 'features'
  check(converted.params, layout)
  with pytest.raises(ValueError, match='family must be inception, as its tensors show, got clip'):
    convert.read(path, 'clip')
  with pytest.raises(ValueError, match='published and architecture must be left out'):
    convert.read(path, architecture={'image_size': 64})


def changed(layout, drop=(), **more):
  return {name: array for name, array in arrays(layout).items() if name not in drop} | more


def bad(name, layout='pth'):
  array = arrays(layout)[name].copy()
  array.flat[3] = np.nan
  return {name: array}


@pytest.mark.parametrize('tensors, match', [
    (changed('pth', ['fc.bias', 'Mixed_5b.branch1x1.bn.weight']),
     'those of the Inception of 2015-12-05, got: missing Mixed_5b.branch1x1.bn.weight, fc.bias; t'),
    (changed('detector', ['output.bias', 'layers.mixed_9.tower_conv.beta']),
     'got: missing layers.mixed_9.tower_conv.beta, output.bias; take pt_inception-2015'),
    (changed('pth', **{'fc.weight': np.zeros((1001, 2048))}),
     r'got: fc.weight is \(1001, 2048\) and must be \(1008, 2048\)'),
    (changed('pth', **{'fc.num_batches_tracked': np.array(1)}), 'not used fc.num_batches_tracked;'),
    (changed('pth', ['fc.bias'], extra=np.zeros(2), **{'Mixed_7c.branch1x1.conv.weight':
                                                      np.zeros((2, 2, 1, 1))}),
     r'missing fc.bias; not used extra; Mixed_7c.branch1x1.conv.weight is \(2, 2, 1, 1\) and must'),
    (changed('detector', **{'layers.conv.gamma': np.ones(32)}), 'not used layers.conv.gamma'),
    ({**arrays('pth'), **arrays('detector')}, 'not used Conv2d_1a_3x3.conv.weight, .* 468 more'),
    (changed('pth', **{'fc.weight': np.zeros((1000, 2048))}), 'got the Inception-v3 of torchvis'),
    (changed('pth', **{'AuxLogits.fc.bias': np.zeros(1000)}),
     'with 1008 classes and no AuxLogits, got the Inception-v3 of torchvision, .* others; take pt'),
    (changed('pth', **bad('fc.bias')), 'got NaN or infinity in fc.bias'),
])
def test_what_is_not_this_network_is_told_in_one_line(tensors, match):
  assert inception.matches(tensors)
  with pytest.raises(ValueError, match=match) as error:
    inception.convert(tensors)
  assert '\n' not in str(error.value)


def test_other_networks_do_not_match():
  assert not inception.matches({'layers.0.weight': np.zeros(1), 'fc.weight': np.zeros(1)})
  assert not inception.matches({'layers.conv.weight': np.zeros(1)})


def test_pickles_of_programs_that_cannot_be_told_apart(tmp_path):
  small = test_torchscript.archive(test_torchscript.network())
  for value, match in (
      ([small, small + b'\0'], "must be a dictionary with a network under 'ema' or 'model', got a"),
      ([small], 'got tensors such as scale, inner.weight'),
      ([small[:-30]], 'source must be a whole ZIP archive'),
      (writing.persistent('A', writing.state()), "under 'ema' or 'model', got a Persistent"),
      (Name('a', 'B'), "under 'ema' or 'model', got 'a.B'")):
    (tmp_path / 'net.pkl').write_bytes(writing.dumps(value, 4))
    with pytest.raises(ValueError, match=match):
      convert.load(tmp_path / 'net.pkl')


def test_the_tensors_of_a_program_are_the_states(tmp_path):
  (tmp_path / 'file').write_bytes(program())
  found = torchscript.tensors(convert.containers.read(tmp_path / 'file').data)
  jax.tree.map(np.testing.assert_array_equal, found, arrays('detector'))
