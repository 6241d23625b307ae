"""Results of ours: what is there is read, what is damaged can be made again."""

import pytest

from engine import identity


def test_a_result_is_read_with_its_fields(tmp_path):
  file = tmp_path / 'result.json'
  assert identity.read_result(file, ['value']) is None
  identity.write_json(file, {'value': 3, 'name': 'a'})
  assert identity.read_result(file, ['value', 'name']) == {'value': 3, 'name': 'a'}
  with pytest.raises(OSError, match='result.json must be what a run wrote, .*; delete it'):
    identity.read_result(file, ['value', 'other'])


def test_a_result_cut_anywhere_is_named(tmp_path):
  file = tmp_path / 'result.json'
  identity.write_json(file, {'value': 3})
  whole = file.read_bytes()
  for length in range(len(whole) - 2):  # Without its last line break it is whole.
    file.write_bytes(whole[:length])
    with pytest.raises(OSError, match='delete it and start the same command again') as caught:
      identity.read_result(file, ['value'])
    assert '\n' not in str(caught.value)
