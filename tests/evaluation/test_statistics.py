"""Files of statistics: every published layout, damage of all kinds, and nothing executed."""

import json
import os
import pickle
import tracemalloc

import numpy as np
import pytest

from evaluation import array_pickle, frechet, moments, sources, statistics
from tests import reference

FOLDER = reference.GOLDEN / 'metrics'
CASES = {case['id']: case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']
         if case['id'].startswith('file.')}


def path(case):
  return FOLDER / CASES[f'file.{case}']['file']


def check_from(mu, sigma, name):
  """Stored numbers are those of a set of features; ADM's mean went through float32."""
  want = moments.of(np.load(FOLDER / 'features.npz')[name])
  assert mu.dtype == sigma.dtype == np.float64
  np.testing.assert_allclose(mu, want.mean, rtol=0, atol=1e-6 * np.abs(want.mean).max())
  covariance = moments.covariance(want)
  np.testing.assert_allclose(sigma, covariance, rtol=0, atol=1e-12 * covariance.max())


def small():
  """Statistics in both parts, that mean nothing."""
  rng = np.random.default_rng(0)
  def part(width):
    rows = rng.standard_normal((9, width))
    return rows.mean(0), np.cov(rows.T)
  return statistics.Statistics(*part(4), *part(3), rng.integers(0, 256, (5, 8, 8, 3), np.uint8), 9)


def check_one_line(error):
  assert '\n' not in str(error.value)


def test_no_case_is_left_out():
  assert len(CASES) == 5


def test_edm_reference():
  got = statistics.read(path('edm_reference'))
  check_from(got.mu, got.sigma, 'relu_a')
  assert got[2:] == (None, None, None, None, None)


def test_adm_virtual_reference():
  got = statistics.read(path('adm_virtual_reference'))
  check_from(got.mu, got.sigma, 'relu_a')
  check_from(got.mu_s, got.sigma_s, 'spatial_a')
  assert got.images.shape == (9, 16, 16, 3) and len(got.images) == 9 and not got.images.labelled
  with np.load(path('adm_virtual_reference')) as file:
    np.testing.assert_array_equal(np.asarray(got.images), file['arr_0'])
  assert got.num_images is None  # Those of the file are some of those behind the statistics.


@pytest.mark.parametrize('case, count, labelled', [('adm_samples_labelled', 9, True),
                                                   ('adm_samples_unlabelled', 4, False)])
def test_adm_samples_are_images_and_no_statistics(case, count, labelled):
  got = statistics.read(path(case))
  assert got.mu is None and got.sigma is None and got.mu_s is None
  assert got.images.shape == (count, 16, 16, 3) and got.images.labelled is labelled
  images = sources.open(path(case))
  with np.load(path(case)) as file:
    np.testing.assert_array_equal(images.take(np.arange(images.count)), file['arr_0'])
    assert (images.labels is None) != labelled
    if labelled:
      np.testing.assert_array_equal(images.labels, file['arr_1'])


def test_edm2_reference():
  got = statistics.read(path('edm2_reference'))
  check_from(got.mu, got.sigma, 'relu_a')
  assert got.num_images == 200
  other = statistics.read(path('edm2_reference'), 'fd_dinov2')
  check_from(other.mu, other.sigma, 'wide_a')
  with pytest.raises(ValueError, match="statistics: unknown metric 'fd_dino'; did you mean "
                     'fd_dinov2. known: fd_dinov2, fid, in .*edm2_reference.pkl'):
    statistics.read(path('edm2_reference'), 'fd_dino')


def test_statistics_give_the_distance_of_their_features():
  a, b = statistics.read(path('edm_reference')), statistics.read(path('edm2_reference'))
  assert frechet.frechet_distance(a.mu, a.sigma, b.mu, b.sigma) == pytest.approx(0, abs=1e-11)


def test_images_are_not_read_before_they_are_asked_for(tmp_path):
  images = np.zeros((64, 128, 128, 3), np.uint8)
  np.savez(tmp_path / 'a.npz', arr_0=images, mu=np.zeros(2), sigma=np.eye(2))
  tracemalloc.start()
  try:
    got = statistics.read(tmp_path / 'a.npz')
    assert tracemalloc.get_traced_memory()[1] < images.nbytes / 2
  finally:
    tracemalloc.stop()
  np.testing.assert_array_equal(got.images, images)


@pytest.mark.parametrize('layout', statistics.LAYOUTS)
def test_what_is_written_is_read_back_bit_for_bit(layout, tmp_path):
  given = small()
  file = tmp_path / 'without suffix'
  for _ in range(2):  # Also over an older one.
    statistics.write(file, given, layout)
  got = statistics.read(file)
  fields = ('mu', 'sigma') if layout == 'edm' else ('mu', 'sigma', 'mu_s', 'sigma_s', 'images')
  for field in given._fields:
    if field in fields:
      np.testing.assert_array_equal(getattr(got, field), getattr(given, field))
    else:
      assert getattr(got, field) == (9 if field == 'num_images' else None)
  assert os.listdir(tmp_path) == [file.name]
  with np.load(file, allow_pickle=False) as arrays:  # As the published evaluators read it.
    assert {'mu', 'sigma', 'num_images'} <= set(arrays)
    assert ('arr_0' in arrays) == (layout == 'adm')


RECIPE = {'pipeline': {'network': 'inception', 'sha256': 'c0ffee', 'name': 'tf1'},
          'shape': [8, 8, 3], 'count': 9, 'uint8': None}


@pytest.mark.parametrize('layout', statistics.LAYOUTS)
def test_the_recipe_goes_along(layout, tmp_path):
  statistics.write(tmp_path / 'a.npz', small()._replace(recipe=RECIPE), layout)
  assert statistics.read(tmp_path / 'a.npz').recipe == RECIPE
  with np.load(tmp_path / 'a.npz', allow_pickle=False) as arrays:
    assert arrays['recipe'].shape == () and arrays['recipe'].dtype.kind == 'U'


@pytest.mark.parametrize('recipe', [
    np.array('{"pipeline"'), np.array('[1]'), np.array('[' * 100_000), np.zeros(3),
    np.array(json.dumps(RECIPE | {'shape': [8, 8]})),
    np.array(json.dumps(RECIPE | {'shape': ['8', 8, 3]})),
    np.array(json.dumps(RECIPE | {'pipeline': 'tf1'})), np.array([json.dumps(RECIPE)] * 2)])
def test_a_damaged_recipe_is_one_line(recipe, tmp_path):
  np.savez(tmp_path / 'a.npz', mu=np.zeros(3), sigma=np.eye(3), recipe=recipe)
  with pytest.raises(ValueError, match='statistics: recipe must be JSON .*a.npz; make') as error:
    statistics.read(tmp_path / 'a.npz')
  check_one_line(error)


@pytest.mark.parametrize('case', ['edm_reference', 'adm_virtual_reference', 'edm2_reference'])
def test_published_files_are_copied_without_loss(case, tmp_path):
  given = statistics.read(path(case))
  layout = 'edm' if given.mu_s is None else 'adm'
  statistics.write(tmp_path / 'a.npz', given, layout)
  got = statistics.read(tmp_path / 'a.npz')
  for a, b in zip(got, given, strict=True):
    assert (a is None) == (b is None)
    if a is not None:
      np.testing.assert_array_equal(a, b)


def test_single_precision_becomes_double(tmp_path):
  given = small()
  np.savez(tmp_path / 'a.npz', mu=given.mu.astype(np.float32),
           sigma=given.sigma.astype(np.float32))
  got = statistics.read(tmp_path / 'a.npz')
  assert got.mu.dtype == got.sigma.dtype == np.float64


def test_a_write_that_fails_leaves_the_older_file(tmp_path, monkeypatch):
  file = tmp_path / 'a.npz'
  statistics.write(file, small())
  before = file.read_bytes()
  def fail(*_, **__):
    raise OSError('no space left')
  monkeypatch.setattr(np, 'savez', fail)
  with pytest.raises(OSError, match='no space left'):
    statistics.write(file, small())
  assert file.read_bytes() == before and os.listdir(tmp_path) == ['a.npz']


def test_bad_statistics_are_not_written(tmp_path):
  with pytest.raises(ValueError, match="statistics.write: unknown layout 'edm2'; did you mean edm"):
    statistics.write(tmp_path / 'a', small(), 'edm2')
  with pytest.raises(ValueError, match='adm must have mu_s and sigma_s, got None; write edm, or'):
    statistics.write(tmp_path / 'a', small()._replace(mu_s=None), 'adm')
  with pytest.raises(ValueError, match='write: sigma must be finite, got nan at index 0, 0; '):
    statistics.write(tmp_path / 'a', small()._replace(sigma=np.full((4, 4), np.nan)))
  with pytest.raises(ValueError, match='statistics.write: arr_0 must be images, uint8 .* float64'):
    statistics.write(tmp_path / 'a', small()._replace(images=np.zeros((2, 8, 8, 3))), 'adm')
  assert os.listdir(tmp_path) == []


EYE, ZEROS = np.eye(3), np.zeros(3)
BAD = {
    'nothing': ({}, 'must be a .npz file with mu and sigma .*, got nothing in '),
    'other names': ({'feats': EYE}, 'must be a .npz file with mu and sigma .*, got feats in '),
    'mu alone': ({'mu': ZEROS}, 'got mu: mu and sigma belong together in '),
    'spatial alone': ({'mu_s': ZEROS, 'sigma_s': EYE, 'arr_0': np.zeros((1, 8, 8, 3), np.uint8)},
                      'got mu_s, sigma_s, arr_0 in '),
    'shape': ({'mu': ZEROS, 'sigma': np.eye(2)}, r'sigma must be square, \(3, 3\) as mu has 3'),
    'NaN': ({'mu': ZEROS + np.nan, 'sigma': EYE}, 'mu must be finite, got nan at index 0; '),
    'asymmetric': ({'mu': ZEROS, 'sigma': EYE, 'mu_s': ZEROS, 'sigma_s': EYE + np.eye(3, k=1)},
                   'sigma_s must be symmetric, got 1 and 0 at 0, 1 and across; '),
    'integers': ({'mu': ZEROS.astype(int), 'sigma': EYE}, 'mu must be an array of floats, got int'),
    'objects': ({'mu': np.array([{}, {}, {}]), 'sigma': EYE},
                r'must be a whole .npz file of plain arrays, got .* \(ValueError: Object arrays'),
    'float images': ({'arr_0': np.zeros((2, 8, 8, 3))}, 'arr_0 must be images, .* got float64 '),
    'count': ({'mu': ZEROS, 'sigma': EYE, 'num_images': np.int64(0)},
              'num_images must be an integer above 0, got 0 in '),
}


@pytest.mark.parametrize('arrays, text', BAD.values(), ids=BAD)
def test_bad_files(arrays, text, tmp_path):
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(ValueError, match=f'^statistics: .*{text}') as error:
    statistics.read(tmp_path / 'a.npz')
  check_one_line(error)
  assert str(tmp_path / 'a.npz') in str(error.value)


@pytest.mark.parametrize('case', ['adm_samples_labelled', 'edm_reference', 'edm2_reference'])
def test_any_damage_is_one_line(case, tmp_path):
  content = path(case).read_bytes()
  file = tmp_path / 'a.npz'
  step = max(1, len(content) // 40)
  damaged = [content[:length] for length in range(0, len(content), step)]
  for place in range(0, len(content), step):
    damaged.append(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1:])
  refused = 0
  for data in damaged:
    file.write_bytes(data)
    try:
      got = statistics.read(file)
      if got.images is not None:
        np.asarray(got.images)
    except ValueError as error:
      refused += 1
      assert str(error).startswith('statistics: ') and '\n' not in str(error)
  # A pickle has no check sum: some of its numbers may change unseen. All that is cut is refused.
  assert refused >= len(damaged) / 2


def test_no_file_and_other_files(tmp_path):
  with pytest.raises(ValueError, match=r'statistics: must be a file, got .*none.npz \(No such'):
    statistics.read(tmp_path / 'none.npz')
  with pytest.raises(ValueError, match=r'statistics: must be a file, got .* \(Is a directory\)'):
    statistics.read(tmp_path)
  np.save(tmp_path / 'a.npy', EYE)
  with pytest.raises(ValueError, match='must be a .npz file .*, or a pickle .*, got neither'):
    statistics.read(tmp_path / 'a.npy')


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_pickles_of_every_protocol(protocol, tmp_path):
  content = {'num_images': np.int64(7), 'fid': {'mu': np.arange(3.0), 'sigma': np.asfortranarray(
      [[2.0, 1, 0], [1, 2, 0], [0, 0, 1]]).astype('>f4')}}
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps(content, protocol))
  got = statistics.read(tmp_path / 'a.pkl')
  np.testing.assert_array_equal(got.mu, content['fid']['mu'])
  np.testing.assert_array_equal(got.sigma, content['fid']['sigma'])
  assert got.num_images == 7


class Call:
  """Pickles as a call."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('call', [Call(os.mkdir, 'made'), Call(eval, '1'), Call(np.load, 'a'),
                                  Call(getattr, 1, 'real'),
                                  np.array([Call(os.mkdir, 'made')])])
def test_nothing_in_a_pickle_is_executed(call, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps({'fid': {'mu': call, 'sigma': EYE}}))
  with pytest.raises(ValueError, match=r'must be a pickle of a dict of arrays, got .*a.pkl '
                     r'\((it names .*, which is no part of an array|an array of type)') as error:
    statistics.read(tmp_path / 'a.pkl')
  check_one_line(error)
  assert os.listdir() == ['a.pkl']


def test_traps_in_a_pickle_are_sprung_by_no_one(tmp_path):
  traps = {
      b'\x80\x02}r\xff\xff\xff\xff.': 'memo 4294967295 in 9 bytes',
      (b'\x80\x04\x8c\x05numpy\x8c\x05dtype\x93N}\x8c\x0c__defaults__K\x01\x85s\x86b.'):
          'got function',
      pickle.dumps([1]): 'got list',
      pickle.dumps({'fid': 3, ('a',): 4}): '',
  }
  for data, text in traps.items():
    (tmp_path / 'a.pkl').write_bytes(data)
    with pytest.raises(ValueError, match='^statistics: ') as error:
      statistics.read(tmp_path / 'a.pkl')
    check_one_line(error)
    assert text in str(error.value)
  # An altered function is that of one file.
  assert array_pickle.load('a', path('edm2_reference'))['num_images'] == 200
