"""An image depends on its seed alone: not on the batch size, and not on the number of devices."""

import itertools
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from engine import devices

ROOT = pathlib.Path(__file__).parent.parent.parent

# Another share sums in another order, and the solver carries the rounding of float32 along. The
# samples are of size 1; some 2e-6 was seen.
BOUND = 2e-5


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Samples of seeds 0-15 by (devices, batch size, share): a network, a solver with noise."""
  folder, started = tmp_path_factory.mktemp('devices'), []
  for count in (1, 2, 8):
    environment = {**os.environ, 'PYTHONPATH': str(ROOT),
                   'XLA_FLAGS': os.environ.get('XLA_FLAGS', '') +
                                f' --xla_force_host_platform_device_count={count}'}
    started.append(subprocess.Popen(
        [sys.executable, '-W', 'error', '-m', 'tests.engine.sampling', folder / 'out',
         folder / f'{count}.npz'], cwd=ROOT, env=environment))
  assert [process.wait(timeout=240) for process in started] == [0, 0, 0]
  found = {}
  for count in (1, 2, 8):
    with np.load(folder / f'{count}.npz') as arrays:
      assert arrays['devices'] == count
      found |= {(count, *map(int, name.split())): arrays[name] for name in arrays
                if name != 'devices'}
  return found


def test_every_combination_was_run(runs):
  assert len(runs) == 9
  assert {share for _, _, share in runs} == {1, 4, 7, 8, 32, 64}
  for samples in runs.values():
    assert samples.shape == (16, 8, 8, 3) and 0.1 < np.abs(samples).max() < 10


def test_samples_are_the_same_bit_for_bit_where_the_share_of_a_device_is(runs):
  pairs = [(a, b) for a, b in itertools.combinations(runs, 2) if a[2] == b[2]]
  assert ((1, 1, 1), (8, 1, 1)) in pairs and len(pairs) >= 6
  for a, b in pairs:
    np.testing.assert_array_equal(runs[a], runs[b], err_msg=f'{a} and {b}')


def test_samples_are_the_same_up_to_rounding_otherwise(runs):
  for a, b in itertools.combinations(runs, 2):
    np.testing.assert_allclose(runs[a], runs[b], rtol=0, atol=BOUND, err_msg=f'{a} and {b}')


def test_a_batch_is_split_in_order_and_merged_again():
  batch = np.arange(12 * devices.count()).reshape(-1, 3)
  shares = devices.split(batch)
  assert shares.shape == (devices.count(), 4, 3)
  np.testing.assert_array_equal(devices.merge(shares), batch)


def test_the_share_is_rounded_up():
  assert devices.share_of(devices.count() * 4) == 4
  assert devices.share_of(1) == 1 and devices.share_of(devices.count() + 1) == 2


def test_a_constant_lies_on_the_devices_once():
  tree = devices.replicate({'a': np.ones((2, 3), np.float32), 'b': np.float32(1)})
  assert all(leaf.sharding.is_fully_replicated for leaf in tree.values())
  program = devices.spread(lambda whole, share: whole['a'][0] * share)
  out = program(tree, np.ones((devices.count(), 3), np.float32))
  np.testing.assert_array_equal(devices.merge(out), np.ones(3 * devices.count()))
