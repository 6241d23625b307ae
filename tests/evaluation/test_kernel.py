"""Kernel distance against extended precision on recorded subsets, and its own laws."""

import fractions
import functools
import json

import numpy as np
import pytest

from evaluation import kernel
from tests import reference

FOLDER = reference.GOLDEN / 'metrics'
CASES = {case['id']: case for case in json.loads((FOLDER / 'manifest.json').read_text())['cases']
         if case['id'].startswith('kid.')}
RTOL = 1e-10  # The recorded extended precision itself keeps 1e-11 of kid.offset; others: 1e-14.


@functools.cache
def arrays(stem):
  return dict(np.load(FOLDER / f'{stem}.npz'))


def features(case):
  return arrays('features')[CASES[case]['a']], arrays('features')[CASES[case]['b']]


def recorded(case, kind=''):
  stem = case.removeprefix('kid.')
  return list(zip(*(arrays('kid_indices')[f'{stem}.{kind}idx_{side}'] for side in 'ab'),
                  strict=True))


def as_written(a, b):
  """The estimate from the kernel as the paper has it, in extended precision."""
  a, b = a.astype(np.longdouble), b.astype(np.longdouble)
  def total(x, y):
    return np.sum((x @ y.T / x.shape[1] + 1)**3)
  def own(x):
    return (total(x, x) - sum((row @ row / len(row) + 1)**3 for row in x)) / (len(x) * (len(x) - 1))
  return float(own(a) + own(b) - 2 * total(a, b) / (len(a) * len(b)))


def in_rationals(a, b):
  """The same without any rounding."""
  a, b = ([[fractions.Fraction(float(x)) for x in row] for row in rows] for rows in (a, b))
  def total(pairs):
    return sum((sum(x * y for x, y in zip(u, v, strict=True)) / len(u) + 1)**3 for u, v in pairs)
  def own(rows):
    count = len(rows)
    return total((u, v) for i, u in enumerate(rows) for j, v in enumerate(rows) if i != j) / (
        count * (count - 1))
  return float(own(a) + own(b) - 2 * total((u, v) for u in a for v in b) / (len(a) * len(b)))


def test_no_case_is_left_out():
  assert len(CASES) == 5


@pytest.mark.parametrize('case', CASES)
def test_recorded_subsets(case):
  got, want = kernel.of_indices(*features(case), recorded(case)), CASES[case]
  scale = RTOL * np.abs(want['mmds']).max()
  np.testing.assert_allclose(got.subsets, want['mmds'], rtol=0, atol=scale)
  assert got.mean == pytest.approx(want['mean'], rel=0, abs=scale)
  assert got.std == pytest.approx(want['std'], rel=0, abs=scale)


@pytest.mark.parametrize('case', CASES)
def test_subsets_are_drawn_as_recorded(case):
  want = CASES[case]
  sizes = [len(rows) for rows in features(case)]
  draws = want['subsets'], want['subset_size'], want['rng_seed']
  np.testing.assert_array_equal(list(kernel.draws(*sizes, *draws)), recorded(case))
  np.testing.assert_array_equal(list(kernel.clean_fid_draws(*sizes, *draws)),
                                recorded(case, 'clean_'))
  assert kernel.kid(*features(case), *draws).mean == kernel.of_indices(
      *features(case), recorded(case)).mean


@pytest.mark.parametrize('case', CASES)
def test_other_libraries_in_float64(case):
  # Theirs cancel: with a mean of 300 the kernel is 1e15 and the estimate 1e7.
  rtol = 1e-6 if case == 'kid.offset' else 1e-10
  a, b = features(case)
  got = kernel.of_indices(a, b, recorded(case, 'clean_'))
  assert got.mean == pytest.approx(CASES[case]['clean_fid_float64'], rel=rtol)
  assert kernel.squared_mmd(a, b) == pytest.approx(
      CASES[case]['k_diffusion_all_samples_float64'], rel=rtol)


@pytest.mark.parametrize('case', CASES)
def test_estimate_of_all_rows_is_that_of_the_kernel_as_written(case):
  assert kernel.squared_mmd(*features(case)) == pytest.approx(as_written(*features(case)), rel=1e-9)


@pytest.mark.parametrize('case', CASES)
def test_no_digits_are_lost_to_a_common_offset(case):
  a, b = (rows[:8] for rows in features(case))
  # The terms of a few rows are some times the estimate; a kernel of 1e15 as written loses 8 digits.
  assert kernel.squared_mmd(a, b) == pytest.approx(in_rationals(a, b), rel=1e-12, abs=1e-14)


def test_blocks_do_not_matter(monkeypatch):
  want = kernel.squared_mmd(*features('kid.relu'))
  monkeypatch.setattr(kernel, '_ROWS', 7)
  assert kernel.squared_mmd(*features('kid.relu')) == pytest.approx(want, rel=1e-12)


def test_symmetry_rotation_and_order():
  a, b = (x.astype(np.float64) for x in features('kid.relu'))
  want = kernel.squared_mmd(a, b)
  rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0]
  for pair in ((b, a), (a @ rotation, b @ rotation), (a[::-1], b)):
    assert kernel.squared_mmd(*pair) == pytest.approx(want, rel=1e-11)


def test_estimate_has_no_bias():
  # Two halves of one set: the mean over many draws is zero within its error.
  rng = np.random.default_rng(0)
  values = [kernel.squared_mmd(*rng.standard_normal((2, 20, 4))) for _ in range(300)]
  assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
  assert min(values) < 0


def test_bad_input():
  a, b = features('kid.wide')
  with pytest.raises(ValueError, match='kid: size must be an integer from 2 to 24, the rows of the '
                     'smaller set, got 1000; take smaller subsets or more images'):
    kernel.kid(a, b)
  with pytest.raises(ValueError, match='kid: size must be .* got 1; '):
    kernel.kid(a, b, size=1)
  with pytest.raises(ValueError, match='kid: subsets must be an integer above 0, got 0; '):
    kernel.kid(a, b, subsets=0, size=10)
  with pytest.raises(ValueError, match='kid: subsets must be one or more, got none; '):
    kernel.of_indices(a, b, [])
  with pytest.raises(ValueError, match='kid: b must have 64 columns like a, got 32; '):
    kernel.squared_mmd(a, features('kid.relu')[0])
  with pytest.raises(ValueError, match='kid: b must have 2 rows or more, got 1; '):
    kernel.squared_mmd(a, b[:1])
