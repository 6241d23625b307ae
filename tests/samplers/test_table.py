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


def test_answers_are_told_by_the_shape():
  two = table(mix=np.ones((2, 1, 3)))
  assert (two.answers, two.slots, table().answers) == (2, 1, 1)
  assert samplers.pad(two, 3, 4).mix.shape == (3, 4, 6)


def test_is_a_pytree_of_arrays_alone():
  leaves, structure = jax.tree.flatten(table())
  assert len(leaves) == 6 and all(isinstance(leaf, np.ndarray) for leaf in leaves)
  assert structure == jax.tree.structure(samplers.make('heun', [3.0, 2.0, 1.0]))


@pytest.mark.parametrize('changes, message', [
    ({'mix': np.ones((2, 2, 2))}, r'mix must have shape \(rows, slots, slots \+ 1\).*got \(2, 2'),
    ({'mix': np.ones((2, 1, 4))}, r'mix .*got \(2, 1, 4\); .* the last two weigh the guided'),
    ({'mix': np.ones((0, 1, 2))}, 'mix must have shape .* rows and slots >= 1, got'),
    ({'sigma': np.ones(3)}, r'sigma must have shape \(2,\), got \(3,\); mix has shape \(2, 1, 2\)'),
    ({'noise': np.zeros(2)}, r'noise must have shape \(2, 1\)'),
    ({'level': np.zeros((2, 1))}, r'level must have shape \(2,\)'),
    ({'interval': np.zeros((3, 2))}, r'interval must have shape \(2, 2\)'),
    ({'kind': np.array([0, 4], np.int32)}, r'kind must be an integer, 0 .*, got \[0, 4\]; see'),
    ({'sigma': np.array([1.0, 0.0])}, 'sigma must be finite and > 0 in every row, got 0 in row 1'),
    ({'sigma': np.array([np.nan, 1.0])}, 'sigma must be .* got nan in row 0'),
    ({'mix': np.full((2, 1, 2), np.inf)}, 'mix must be finite, got inf in row 0; the levels'),
    ({'noise': np.full((2, 1), np.nan)}, 'noise must be finite'),
    ({'kind': np.array([0.0, 2.0])}, r'kind must be an integer, .* got \[0.0, 2.0\]'),
    ({'mix': 'ones'}, "mix must be a list of numbers, got 'ones'"),
    ({'level': np.array([np.nan, -1.0])}, 'level must be .* got -1 in row 1'),
])
def test_bad_fields(changes, message):
  with pytest.raises(ValueError, match='^Table: ' + message):
    table(**changes)


def test_lists_are_arrays_too():
  listed = samplers.Table(sigma=[2, 1], kind=[0, 2], mix=[[[1, 1]], [[1, 1]]], noise=[[0], [0]],
                          level=[float('nan'), 0.5])
  for field in dataclasses.fields(listed):
    np.testing.assert_array_equal(getattr(listed, field.name), getattr(table(), field.name))
  assert np.isnan(listed.interval).all() and listed.interval.shape == (2, 2)


def test_maps_over_tables_are_not_checked():
  """Stacks and differences of tables are pytrees of that structure, not tables to run."""
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), table(), table())
  assert stacked.mix.shape == (2, 2, 1, 2)
  assert jax.tree.map(np.subtract, table(), table()).sigma.tolist() == [0, 0]


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
  with pytest.raises(ValueError, match='pad: rows must be at least those of the table, 4, got 3; '):
    samplers.pad(small, 3, 2)
  with pytest.raises(ValueError, match='pad: slots must be at least those of the table, 2, got 1'):
    samplers.pad(small, 4, 1)
