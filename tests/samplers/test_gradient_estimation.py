"""Gradient estimation: recorded runs, the solvers it contains, bad input."""

import numpy as np
import pytest

import samplers
from tests import reference
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('gradient_estimation')


def test_every_case_is_here():
  assert sorted(case['options']['gamma'] for case in FAMILY.values()) == [1.3, 1.5, 2.0]


@pytest.mark.parametrize('name', FAMILY)
def test_recorded_run(name):
  case = FAMILY[name]
  table = samplers.make('gradient_estimation', beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


@pytest.mark.parametrize('gamma, name, options', [
    (1.0, 'euler', {}), (1.5, 'ipndm', {'max_order': 2})])
def test_members_with_names_of_their_own(gamma, name, options):
  """Constant weights: on any grid, also where they are not those of its steps."""
  sigmas = samplers.schedule('polynomial', 7, 0.02, 80.0)
  ours = samplers.make('gradient_estimation', sigmas, gamma=gamma)
  # 80 is the size of the entries.
  np.testing.assert_allclose(reference.linear_map(ours),
                             reference.linear_map(samplers.make(name, sigmas, **options)),
                             atol=1e-12)


def test_a_step_to_0_is_the_denoised_image():
  table = samplers.make('gradient_estimation', [9.0, 3.0, 1.0, 0.0])
  np.testing.assert_allclose(table.mix[-1, 0], [0, 0, 1], atol=1e-15)


@pytest.mark.parametrize('gamma', ['two', None, float('nan'), float('inf')])
def test_gamma_has_to_be_a_number(gamma):
  with pytest.raises(ValueError, match='gradient_estimation: gamma must be a finite number, got '
                     f'{gamma!r}; 1.5 is of second order'):
    samplers.make('gradient_estimation', [3.0, 1.0, 0.3], gamma=gamma)
