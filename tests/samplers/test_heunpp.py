"""Heun++ 2: reference runs, its short ends, its weights on an increasing grid."""

import numpy as np
import pytest

import samplers
from tests import reference
from tests.samplers import beyond_cases

CASES = beyond_cases.family('heunpp2')


def test_every_case_is_here():
  assert len(CASES) == 2


@pytest.mark.parametrize('name', CASES)
def test_published_runs(name):
  case = CASES[name]
  table = samplers.make('heunpp2', beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


def test_the_last_steps_have_fewer_slopes():
  sigmas = [9.0, 4.0, 1.0, 0.2]
  for last in (0.2, 0.0):
    for count, nfe in ((1, 1), (2, 3), (3, 6)):
      table = samplers.make('heunpp2', [*sigmas[3 - count:3], last])
      assert table.nfe == table.rows == nfe
  # The only step, and the last of any grid, is Euler.
  for last in (1.0, 0.0):
    np.testing.assert_allclose(
        *(reference.linear_map(samplers.make(name, [4.0, last])) for name in ('heunpp2', 'euler')),
        atol=1e-15)


def test_weights_stay_within_0_and_1_up_and_down():
  """They are shares of the highest level: on the way up, of the last one."""
  sigmas = np.geomspace(0.01, 80.0, 6)
  for grid in (sigmas, sigmas[::-1]):
    table = samplers.make('heunpp2', grid)
    # The sum in slot 1 and then the state take up a weight with every answer of a step.
    starts = np.flatnonzero(np.append(True, ~np.isnan(table.level[:-1])))
    for first, s, s1 in zip(starts[:4], grid, grid[1:], strict=False):
      share = -table.mix[first, 1, -1] * s / (s1 - s)
      assert 1 / 3 - 1e-12 <= share <= 1
