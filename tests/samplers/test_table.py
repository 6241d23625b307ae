"""The Table itself: what it refuses, what it counts, and padding."""

import dataclasses

import jax
import numpy as np
import pytest

import samplers


def table(**changes):
  fields = {'sigma': np.array([2.0, 1.0]), 'kind': np.array([0, 2], np.int32),
            'mix': np.ones((2, 1, 2)), 'noise': np.zeros((2, 1)), 'level': np.array([np.nan, 0.5])}
  return samplers.Table(**{**fields, **changes})


def test_counts():
  everything = table(kind=np.array([0, 3], np.int32))
  assert (everything.nfe, everything.rows, everything.slots) == (2, 2, 1)
  assert table(kind=np.array([1, 2], np.int32)).nfe == 0


def test_is_a_pytree_of_arrays_alone():
  leaves, structure = jax.tree.flatten(table())
  assert len(leaves) == 6 and all(isinstance(leaf, np.ndarray) for leaf in leaves)
  assert structure == jax.tree.structure(samplers.make('heun', [3.0, 2.0, 1.0]))


@pytest.mark.parametrize('changes, message', [
    ({'mix': np.ones((2, 2, 2))}, r'mix must have shape \(rows, slots, slots \+ 1\).*got \(2, 2'),
    ({'mix': np.ones((0, 1, 2))}, 'mix must have shape .* rows and slots >= 1, got'),
    ({'sigma': np.ones(3)}, r'sigma must have shape \(2,\) beside mix of shape .* got \(3,\)'),
    ({'noise': np.zeros(2)}, r'noise must have shape \(2, 1\)'),
    ({'level': np.zeros((2, 1))}, r'level must have shape \(2,\)'),
    ({'interval': np.zeros((3, 2))}, r'interval must have shape \(2, 2\)'),
    ({'kind': np.array([0, 4], np.int32)}, r'kind must be 0, 1, 2 or 3, got \[0, 4\]'),
    ({'sigma': np.array([1.0, 0.0])}, 'sigma must be finite and > 0 in every row, got 0 in row 1'),
    ({'sigma': np.array([np.nan, 1.0])}, 'sigma must be .* got nan in row 0'),
    ({'mix': np.full((2, 1, 2), np.inf)}, 'mix must be finite, got a value that is not in row 0'),
    ({'noise': np.full((2, 1), np.nan)}, 'noise must be finite'),
    ({'level': np.array([np.nan, -1.0])}, 'level must be .* got -1 in row 1'),
])
def test_bad_fields(changes, message):
  with pytest.raises(ValueError, match='^Table: ' + message):
    table(**changes)


def test_pad():
  small = samplers.make('unipc', [3.0, 2.0, 1.0, 0.5])
  large = samplers.pad(small, 12, 7)
  assert (large.rows, large.slots, large.nfe) == (12, 7, small.nfe)
  assert set(large.kind[small.rows:]) == {2}
  same = samplers.pad(small, small.rows, small.slots)
  for field in dataclasses.fields(small):
    np.testing.assert_array_equal(getattr(same, field.name), getattr(small, field.name))


def test_pad_to_less():
  small = samplers.make('heun', [3.0, 2.0, 1.0])
  with pytest.raises(ValueError, match='pad: rows must be at least those of the table, 4, got 3'):
    samplers.pad(small, 3, 2)
  with pytest.raises(ValueError, match='pad: slots must be at least those of the table, 2, got 1'):
    samplers.pad(small, 4, 1)
