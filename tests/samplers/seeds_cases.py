"""What the tests of SEEDS share: reference entries as tables, and the variants under every law."""

import json

import numpy as np
import pytest

import samplers
from tests import reference

MOMENTS = json.loads((reference.GOLDEN / 'seeds' / 'moments.json').read_text())
STEP_MAPS = json.loads((reference.GOLDEN / 'seeds' / 'step_maps.json').read_text())

PREDICTED = ('data', 'noise', 'F')
VARIANTS = [{'order': 1}, {'order': 2}, {'order': 2, 'c2': 0.3}, {'order': 2, 'c2': 1.0},
            {'order': 2, 'butcher': 'b', 'c2': 0.7}, {'order': 3}, {'order': 3, 'c2': 0.5},
            {'order': 3, 'butcher': 'b'}]
over_variants = pytest.mark.parametrize('options', VARIANTS, ids=str)
over_predictions = pytest.mark.parametrize('prediction', PREDICTED)

PREDICTIONS = {'eps': 'noise', 'data': 'data', 'F': 'F'}


def make(case, sigmas, **more):
  """The Table of a reference entry, whose keys all three files share."""
  options = {'order': case['order'], 'prediction': PREDICTIONS[case['form']], 'c2': case['c2']}
  if case['order'] in (2, 3):
    options['butcher'] = case['tableau']
  if case.get('sigma_data'):
    options['sigma_data'] = case['sigma_data']
  return samplers.make('seeds' if case['stochastic'] else 'etd', sigmas, **options, **more)


def describe(case):
  parts = ['sde' if case['stochastic'] else 'ode', case['form'], case['order'], case['tableau'],
           case['c2'] and f'{case["c2"]:.2f}']
  return '-'.join(str(part) for part in parts if part)


def same_table(first, second):
  for field in ('sigma', 'mix', 'noise', 'level', 'interval'):
    np.testing.assert_allclose(getattr(first, field), getattr(second, field), rtol=1e-12,
                               atol=1e-14, err_msg=field)
