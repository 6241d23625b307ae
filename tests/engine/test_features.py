"""Features in parts: resumed after a kill, shared by machines, and never those of another set."""

import os
import time

import jax.numpy as jnp
import numpy as np
import pytest

from engine import features
from evaluation import extractors, moments, sources

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 4, 3), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(48, 5)).astype(np.float32)


def apply(params, x):
  flat = x.reshape(len(x), -1)
  return {'pool': flat @ params, 'spatial': jnp.tanh(flat)}


def prepare(images):
  return images.astype(np.float32) / np.float32(255)


def extractor(**fields):
  return extractors.Extractor('tiny', {'name': 'tiny', 'layers': ['pool', 'spatial']},
                              {'pool': 5, 'spatial': 48}, prepare, WEIGHTS,
                              apply)._replace(**fields)


def expected():
  return prepare(IMAGES).reshape(23, -1) @ WEIGHTS


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
  monkeypatch.setattr(features, 'PART', 6)


def extract(folder, batch_size=4, images=IMAGES, own=None, share=(0, 1)):
  own, images = own or extractor(), sources.of_arrays('set', images)
  planned = features.plan(own, images, folder)
  features.extract(planned, own, images, batch_size, share)
  return planned


@pytest.mark.parametrize('batch_size', [1, 4, 7, 64])
def test_rows_belong_to_their_images(tmp_path, batch_size):
  planned = extract(tmp_path, batch_size)
  np.testing.assert_allclose(features.matrix(planned, 'pool'), expected(), rtol=1e-5, atol=1e-5)
  assert features.matrix(planned, 'spatial').shape == (23, 48)
  assert [len(part) for part in features.parts(planned, 'pool')] == [6, 6, 6, 5]


def test_moments_by_part_are_those_of_all(tmp_path):
  planned = extract(tmp_path)
  own, whole = features.moments(planned, 'pool'), moments.of(features.matrix(planned, 'pool'))
  assert own.count == 23
  np.testing.assert_allclose(own.mean, whole.mean, rtol=1e-10)
  np.testing.assert_allclose(own.scatter, whole.scatter, rtol=1e-10, atol=1e-10)


def stamps(planned):
  return {path.name: path.stat().st_ino for path in planned.folder.glob('*.npy')}


def test_a_killed_run_goes_on_behind_the_last_part(tmp_path):
  images = sources.of_arrays('set', IMAGES)
  def killed(numbers):
    if numbers.max() >= 16:
      raise KeyboardInterrupt
    return images.take(numbers)
  planned = features.plan(extractor(), images, tmp_path)
  with pytest.raises(KeyboardInterrupt):
    features.extract(planned, extractor(), images._replace(take=killed), 4)
  before = stamps(planned)
  assert set(before) == {f'{name}_{part:05d}.npy' for name in ('pool', 'spatial')
                         for part in (0, 1)}
  for name, age in (('old', 7200), ('young', 60)):  # The young one may still be written to.
    path = planned.folder / f'.pool_00002.npy.{name}.partial'
    path.write_bytes(b'left behind')
    os.utime(path, (time.time() - age,) * 2)
  extract(tmp_path)
  after = stamps(planned)
  assert before.items() <= after.items() and len(after) == 8  # None was made again.
  np.testing.assert_allclose(features.matrix(planned, 'pool'), expected(), rtol=1e-5, atol=1e-5)
  assert [path.name for path in planned.folder.glob('.*.partial')] == [
      '.pool_00002.npy.young.partial']


def test_machines_share_the_parts(tmp_path):
  planned = extract(tmp_path / 'shared', share=(1, 3))
  assert features.missing(planned).tolist() == [0, 1]
  extract(tmp_path / 'shared', share=(0, 3))
  extract(tmp_path / 'shared', share=(2, 3))  # Four parts in shares of two: none is left for it.
  assert not features.missing(planned).size
  np.testing.assert_array_equal(features.matrix(planned, 'pool'),
                                features.matrix(extract(tmp_path / 'alone'), 'pool'))


def test_other_sets_and_pipelines_have_other_folders(tmp_path):
  planned = extract(tmp_path)
  other = extract(tmp_path, images=IMAGES[::-1].copy())
  third = extract(tmp_path, own=extractor(pipeline={'name': 'wide'}))
  assert len({planned.folder, other.folder, third.folder}) == 3
  fewer = extractor(pipeline={'name': 'tiny', 'layers': ['pool']}, dims={'pool': 5})
  again = features.plan(fewer, sources.of_arrays('set', IMAGES), tmp_path)
  assert again.folder == planned.folder and not features.missing(again).size


def test_parts_of_another_set_are_refused(tmp_path):
  planned, other = extract(tmp_path), extract(tmp_path, images=IMAGES[::-1].copy())
  (planned.folder / 'identity.json').write_bytes((other.folder / 'identity.json').read_bytes())
  with pytest.raises(ValueError, match='must hold features of the same images and pipeline'):
    extract(tmp_path)


def test_a_damaged_part_is_named(tmp_path):
  planned = extract(tmp_path)
  path = planned.folder / 'pool_00001.npy'
  path.write_bytes(path.read_bytes()[:40])
  with pytest.raises(OSError, match='pool_00001.npy must be what a run wrote'):
    features.matrix(planned, 'pool')


def test_features_that_are_not_finite_name_the_image(tmp_path):
  def broken(params, x):
    return {name: jnp.where(jnp.arange(len(x))[:, None] == 1, jnp.nan, rows)
            for name, rows in apply(params, x).items()}
  with pytest.raises(FloatingPointError, match='must be finite, got .* for image 1;'):
    extract(tmp_path, own=extractor(apply=broken))


def test_the_program_compiles_once(tmp_path):
  traced = []

  def counted(params, x):
    traced.append(x.shape)
    return apply(params, x)
  own = extractor(apply=counted)
  extract(tmp_path / 'a', own=own)
  extract(tmp_path / 'b', own=own)
  assert len(traced) == 1
