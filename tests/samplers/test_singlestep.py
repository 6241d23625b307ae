"""DPM-Solver in single steps: reference runs, budgets, orders, the solvers it must agree with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments, singlestep
from tests import reference
from tests.samplers import beyond_cases

CASES = beyond_cases.family('dpm_solver_singlestep')
GRID = samplers.schedule('polynomial', 9, 0.05, 20.0)


def make(sigmas, **options):
  return samplers.make('dpm_solver_singlestep', sigmas, **options)


def maps(name, sigmas, **options):
  return reference.linear_map(samplers.make(name, sigmas, **options))


def test_every_case_is_here():
  assert len(CASES) == 8


@pytest.mark.parametrize('name', CASES)
def test_published_runs(name):
  case = CASES[name]
  table = make(beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


# -- Budgets --------------------------------------------------------------------------------------


@pytest.mark.parametrize('order, count, orders', [
    (3, 12, [3, 3, 3, 2, 1]), (3, 10, [3, 3, 3, 1]), (3, 11, [3, 3, 3, 2]), (3, 3, [2, 1]),
    (3, 2, [2]), (3, 1, [1]), (2, 6, [2, 2, 2]), (2, 7, [2, 2, 2, 1]), (2, 1, [1]),
    (1, 3, [1, 1, 1])])
def test_budget(order, count, orders):
  assert singlestep.budget(order, count) == orders


def test_a_budget_keeps_the_levels_where_its_steps_end():
  table = make(GRID, order=3)  # Orders 3, 3, 2, 1.
  assert table.nfe == 9
  np.testing.assert_array_equal(table.level[~np.isnan(table.level)], GRID[[3, 6, 8, 9]])
  own = make(GRID[[0, 3, 6, 8, 9]], orders=[3, 3, 2, 1])
  np.testing.assert_array_equal(table.mix, own.mix)
  equal = make(GRID, order=3, spacing='logsnr')
  ends = equal.level[~np.isnan(equal.level)]
  np.testing.assert_allclose(ends, np.geomspace(20.0, 0.05, 5)[1:], rtol=1e-13)
  assert ends[-1] == GRID[-1]


@pytest.mark.parametrize('prediction', ['data', 'noise'])
def test_a_step_to_0_is_the_denoised_image(prediction):
  """It takes the last evaluation of the budget; the other steps are those of the grid before."""
  to_zero = np.append(GRID, 0.0)
  for spacing in ('grid', 'logsnr'):
    options = {'order': 3, 'spacing': spacing, 'prediction': prediction}
    table, before = make(to_zero, **options), make(GRID, **options)
    assert table.nfe == 10 and table.level[-1] == 0
    np.testing.assert_array_equal(table.mix[:-1], before.mix)
    np.testing.assert_array_equal(table.mix[-1, 0], [0, 0, 1])
    np.testing.assert_array_equal(make([5.0, 0.0], **options).mix[:, 0], [[0, 0, 1]])
  explicit = make([8.0, 1.0, 0.0], orders=[3, 1], prediction=prediction)
  assert explicit.nfe == 4 and explicit.level[-1] == 0


# -- Identities -----------------------------------------------------------------------------------


@pytest.mark.parametrize('sigmas', [GRID, GRID[::-1]], ids=['down', 'up'])
@pytest.mark.parametrize('prediction', ['data', 'noise'])
@pytest.mark.parametrize('order, solver, r1, other', [
    (1, 'dpmsolver', None, {}), (2, 'dpmsolver', None, {'butcher': 'a'}),
    (2, 'taylor', 0.7, {'butcher': 'b', 'c2': 0.7}), (3, 'dpmsolver', 0.4, {'c2': 0.4}),
    (3, 'taylor', None, {'butcher': 'b'})])
def test_steps_are_those_of_exponential_integrators(sigmas, prediction, order, solver, r1, other):
  """Of their tableaux, which reach the same weights by another way."""
  ours = maps('dpm_solver_singlestep', sigmas, orders=[order] * 9, prediction=prediction,
              solver=solver, r1=r1)
  theirs = maps('etd', sigmas, order=order, prediction=prediction, **other)
  # Up, the state grows from 0.05 to 20.
  np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


def test_dpm_fast_is_the_budget_of_order_3_in_equal_steps():
  for count in (1, 2, 7, 8, 9):
    sigmas = GRID[:count + 1]
    np.testing.assert_allclose(
        maps('dpm_fast', sigmas), maps('dpm_solver_singlestep', sigmas, order=3,
                                       prediction='noise', spacing='logsnr'), atol=1e-12)


def test_solvers_that_are_named_otherwise():
  for name, options, prediction in (('dpm', {}, 'noise'),
                                    ('dpmpp_2s_ancestral', {'eta': 0.0}, 'data')):
    ours = maps('dpm_solver_singlestep', GRID, orders=[2] * 9, prediction=prediction)
    np.testing.assert_allclose(ours, maps(name, GRID, **options), atol=1e-12)


# -- Orders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize('solver', ['dpmsolver', 'taylor'])
@pytest.mark.parametrize('r1, r2, order', [(None, None, 3), (0.25, None, 3), (0.4, 0.8, 2)])
def test_order_3_needs_its_last_place(solver, r1, r2, order):
  """The state of Gaussian data, of variance v + sigma^2 at every level, without a network."""
  errors = []
  for n in (64, 128):
    table = make(np.geomspace(10.0, 0.1, n + 1), orders=[3] * n, solver=solver, r1=r1, r2=r2)
    variance = moments.gaussian_moments(table, 0.0, 0.25, start=(0.0, 100.25))[1]
    errors.append(abs(np.sqrt(variance) - np.sqrt(0.26)))
  assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.15)


# -- Traced tables and bad input ------------------------------------------------------------------


def test_places_may_be_learned():
  """A traced table is the checked one, and its slope that of differences."""
  options = {'orders': [3, 2], 'solver': 'taylor'}

  def build(r):
    return samplers.build('dpm_solver_singlestep', jnp.asarray(GRID[:3]), r1=r, r2=1 - r, **options)

  def made(r):
    return make(GRID[:3], r1=r, r2=1 - r, **options).mix

  built, slope = jax.jit(lambda r: jax.jvp(build, (r,), (1.0,)))(0.3)
  np.testing.assert_allclose(built.mix, made(0.3), atol=1e-13)
  step = 1e-5  # Third derivatives of 1 / (r (1 - 2 r)) reach 1e4.
  np.testing.assert_allclose(slope.mix, (made(0.3 + step) - made(0.3 - step)) / (2 * step),
                             rtol=1e-5, atol=1e-6)


def test_orders_may_be_text():
  np.testing.assert_array_equal(make(GRID[:4], orders='3, 2,1').mix,
                                make(GRID[:4], orders=(3, 2, 1)).mix)


@pytest.mark.parametrize('options, message', [
    ({'order': 4}, 'order must be an integer from 1 to 3, got 4'),
    ({'orders': [3, 2]}, r'orders must be 1, 2 or 3 for each of 3 steps, got \[3, 2\]; leave'),
    ({'orders': [3, 2.5, 1]}, 'orders must be 1, 2 or 3 for each of 3 steps'),
    ({'orders': '3,2,x'}, 'orders must be a list of numbers'),
    ({'prediction': 'eps'}, "unknown prediction 'eps'"), ({'solver': 'exact'}, 'unknown solver'),
    ({'spacing': 'logSNR'}, "unknown spacing 'logSNR'; known: grid, logsnr"),
    ({'r1': 0.0}, 'r1 must be above 0 and at most 1, got 0.0; 1/2 at order 2'),
    ({'r2': 1.5}, 'r2 must be above 0 and at most 1, got 1.5; 2/3 is usual'),
    ({'orders': [3, 1, 1], 'r1': 2 / 3}, 'r2 must differ from r1 in steps of order 3, got None'),
])
def test_bad_options_are_explained(options, message):
  with pytest.raises(ValueError, match=f'^dpm_solver_singlestep: {message}'):
    make(GRID[:4], **options)


def test_an_order_above_1_has_no_step_to_0():
  with pytest.raises(ValueError, match=r'orders must end in 1 on a grid that ends in 0, .* \[2, 2'):
    make([8.0, 1.0, 0.0], orders=[2, 2])
