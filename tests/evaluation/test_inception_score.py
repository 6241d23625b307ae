"""Inception Score against reference numbers in both customs of chunks, and closed forms."""

import functools
import json

import numpy as np
import pytest

from evaluation import inception_score
from tests import reference

FOLDER = reference.GOLDEN / 'metrics'
CASES = {case['id']: case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']
         if case['id'].startswith('is.')}
SPLIT = [case for case in CASES if case.startswith('is.torch_fidelity.')]
SIZED = [case for case in CASES if case.startswith('is.adm.')]
RTOL = 1e-12  # All is float64 here and there.


@functools.cache
def arrays():
  return dict(np.load(FOLDER / 'logits.npz'))


def logits(case):
  return arrays()[f'logits.{CASES[case]["logits"]}']


def test_no_case_is_left_out():
  assert (len(SPLIT), len(SIZED), len(CASES)) == (20, 12, 32)


@pytest.mark.parametrize('case', SPLIT)
def test_scores_over_splits(case):
  want = CASES[case]
  got = inception_score.inception_score(logits(case), want['splits'],
                                        want['rng_seed'] if want['shuffle'] else None)
  assert got.mean == pytest.approx(want['mean'], rel=RTOL)
  assert got.std == pytest.approx(want['std'], rel=RTOL, abs=RTOL * want['mean'])
  assert len(got.parts) == want['splits']


@pytest.mark.parametrize('case', SIZED)
def test_scores_over_parts_of_a_size(case):
  got = inception_score.by_size(logits(case), CASES[case]['split_size'])
  np.testing.assert_allclose(got.parts, CASES[case]['scores'], rtol=RTOL)
  assert got.mean == pytest.approx(CASES[case]['mean_exact'], rel=RTOL)


@pytest.mark.parametrize('name', ['moderate', 'peaked', 'uniform', 'underflow'])
def test_rows_are_shuffled_as_recorded(name):
  rows, order = arrays()[f'logits.{name}'], arrays()[f'torch_fidelity_permutation.{name}']
  np.testing.assert_array_equal(inception_score.inception_score(rows, 7).parts,
                                inception_score.inception_score(rows[order], 7, None).parts)


def test_certain_and_different_classes_score_their_number():
  # Logits so far apart that every other probability, and the mean of some, underflow in float64.
  rows = np.concatenate([2000 * np.eye(8), 2000 * np.eye(8)])[:, :8]
  assert inception_score.inception_score(rows, 1).mean == pytest.approx(8, rel=1e-13)
  rows = np.concatenate([rows, np.full((16, 3), -2000.0)], 1)
  assert inception_score.inception_score(rows, 1).mean == pytest.approx(8, rel=1e-13)


def test_a_constant_in_a_row_changes_nothing():
  rows = arrays()['logits.moderate'].astype(np.float64)
  shift = np.random.default_rng(0).uniform(-1e4, 1e4, (len(rows), 1)).round()
  np.testing.assert_allclose(inception_score.inception_score(rows + shift).parts,
                             inception_score.inception_score(rows).parts, rtol=1e-10)


def test_a_file_sorted_by_class_scores_too_low_in_parts():
  rows = np.repeat(50 * np.eye(4), 20, axis=0)
  assert inception_score.by_size(rows, 20).mean == pytest.approx(1)
  assert inception_score.by_size(rows).mean == pytest.approx(4)


@pytest.mark.parametrize('splits', [0, 31, 2.0, True])
def test_bad_splits(splits):
  with pytest.raises(ValueError, match='splits must be an integer from 1 to the number of images, '
                     f'30, got {splits}; 10 is usual'):
    inception_score.inception_score(arrays()['logits.uniform'], splits)


def test_bad_input():
  with pytest.raises(ValueError, match='size must be an integer above 0, got 0; 5000 is usual'):
    inception_score.by_size(arrays()['logits.uniform'], 0)
  with pytest.raises(ValueError, match='logits must be finite.*in 1 of 2 rows, the first at row 1'):
    inception_score.inception_score(np.array([[0, 1], [0, np.inf]]), 1)
  with pytest.raises(ValueError, match='logits must have 1 rows or more, got 0; '):
    inception_score.by_size(np.zeros((0, 5)))
