"""SA-Solver: reference runs, identities, the forms of tau, the end of a run, and bad input."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments
from tests import reference
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('sa_solver')
MEAN, VARIANCE = 0.7, 0.25
ORDERS = json.loads((reference.GOLDEN / 'beyond_solvers' / 'orders.json').read_text())
PER_STEP = 'predictor_orders', 'corrector_orders'  # What follows from the others.


def grid(n, low=0.1, high=10.0):
  return samplers.schedule('polynomial', n, low, high)


def make(sigmas, predictor_order=3, corrector_order=4, **options):
  return samplers.make('sa_solver', sigmas, predictor_order=predictor_order,
                       corrector_order=corrector_order, **options)


def test_every_case_is_here():
  assert len(FAMILY) == 14


@pytest.mark.parametrize('case', FAMILY)
def test_reference_run(case):
  case = FAMILY[case]
  options = {key: value for key, value in case['options'].items() if key not in PER_STEP}
  beyond_cases.check(make(beyond_cases.grid(case), **options), case)


# -- Order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [
    'p1 q0 PEC', 'p2 q0 PEC', 'p3 q0 PEC', 'p4 q0 PEC', 'p1 q2 PEC', 'p2 q2 PEC', 'p3 q4 PEC',
    'p2 q2 PECE', 'p3 q4 PECE', 'p2 q2 rescaled'])
@pytest.mark.parametrize('tau', [0, 1])
def test_measured_errors(name, tau):
  """Errors on Gaussian data as recorded for 64 steps from 10 to 0.1: start's weight, variance."""
  p, q, kind = name.split()
  expected = ORDERS['as_run']['solvers'][f'sa {name} tau{tau}']
  for grid_name, sigmas in (('log', np.geomspace(10.0, 0.1, 65)), ('rho7', grid(64))):
    table = make(sigmas, int(p[1:]), int(q[1:]), mode='PECE' if kind == 'PECE' else 'PEC', tau=tau,
                 rescale=kind == 'rescaled')
    alone = table.noise.copy()
    table.noise[:] = 0
    weight = np.sqrt(moments.gaussian_moments(table, 0.0, VARIANCE, start=(0.0, 1.0))[1])
    table.noise[:] = alone
    exact = ((VARIANCE + 0.1**2) / (VARIANCE + 10.0**2))**((1 + tau) / 2)
    # Three digits are recorded.
    assert abs(weight - exact) == pytest.approx(expected[grid_name]['mean_error_64'], rel=6e-3)


@pytest.mark.parametrize('options', [{}, {'corrector_order': 0}, {'mode': 'PECE'}, {
    'rescale': True, 'predictor_order': 2, 'corrector_order': 2}, {'prediction': 'noise'}], ids=str)
def test_variance_on_gaussian_data_converges(options):
  """Of second order at least."""
  def error(n):
    table = make(grid(n), tau=1.0, **options)
    first = MEAN, VARIANCE + 10.0**2
    mean, variance = moments.gaussian_moments(table, MEAN, VARIANCE, start=first)
    assert mean == pytest.approx(MEAN, rel=1e-10)  # At the mean D is the state itself.
    return abs(variance - VARIANCE - 0.1**2)
  assert error(160) < error(80) / 2**1.9


# -- Identities -----------------------------------------------------------------------------------


@pytest.mark.parametrize('prediction', ['data', 'noise'])
def test_predictor_of_the_ode_is_the_exact_third_order(prediction):
  """DPM-Solver(++) with its third order repaired, at most the last step of which is lower."""
  sigmas = grid(7, 0.05, 40.0)
  ours = make(sigmas, 3, 0, tau=0.0, prediction=prediction, rescale=False, lower_order_final=False)
  other = samplers.make('dpmpp', sigmas, max_order=3, predict_x0=prediction == 'data',
                        third='exact', lower_order_final=False)
  np.testing.assert_allclose(reference.linear_map(ours), reference.linear_map(other), atol=2e-11)


@pytest.mark.parametrize('eta', [0.3, 1.0])
def test_predictor_of_the_sde_is_dpmpp_2m_sde(eta):
  """But for the last step, which has no noise here."""
  sigmas = grid(6, 0.05, 40.0)
  ours = make(sigmas, 2, 0, tau=eta**0.5, rescale=False, lower_order_final=False)
  other = samplers.make('dpmpp_2m_sde', sigmas, eta=eta, solver_type='heun')
  np.testing.assert_allclose(ours.mix[:-1], other.mix[:-1], atol=1e-13)
  np.testing.assert_allclose(ours.noise[:-1], other.noise[:-1], rtol=1e-13)
  np.testing.assert_array_equal(ours.interval[:-1], other.interval[:-1])
  assert not ours.noise[-1].any()


@pytest.mark.parametrize('mode', ['PEC', 'PECE'])
def test_a_constant_answer_needs_no_corrector(mode):
  """All weights of a step have one sum: a constant D gives the exact mean at any order."""
  sigmas, tau = grid(6), np.array([0.5, 0.0, 1.0, 0.7, 0.0, 0.0])
  table = make(sigmas, tau=tau, mode=mode)
  table.noise[:] = 0
  start, *answers = reference.linear_map(table)[-1]
  kept = np.prod((sigmas[1:] / sigmas[:-1])**(1 + tau**2))
  assert start == pytest.approx(sigmas[0] * kept, rel=1e-12)
  assert sum(answers) == pytest.approx(1 - kept, rel=1e-12)


# -- Noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('mode, tau', [('PEC', 1.0), ('PEC', 0.4), ('PECE', '0.3:5:0.8')])
def test_noise_keeps_the_marginal_variance(mode, tau):
  """Data that are one point: at every level the state has the variance of the level."""
  sigmas = grid(6)
  for final in ('predict', 'correct_denoise'):
    for end in range(2, 7):
      table = make(sigmas[:end + 1], tau=tau, mode=mode, final=final)
      if final == 'correct_denoise':  # Without the denoised image of the end.
        table = samplers.Table(*(getattr(table, name)[:-1] for name in (
            'sigma', 'kind', 'mix', 'noise', 'level', 'interval')))
      variance = moments.gaussian_moments(table, MEAN, 0.0, start=(MEAN, sigmas[0]**2))[1]
      assert variance == pytest.approx(sigmas[end]**2, rel=1e-11)


def test_forms_of_tau():
  """A number, one per step, rows by level, and their texts; it counts at the end of a step."""
  sigmas = np.array([10.0, 5.0, 2.0, 1.0, 0.5, 0.1])
  steps = [0.0, 0.5, 1.0, 1.0, 0.0]
  forms = [steps, np.array(steps), tuple(steps), '0,0.5,1,1,0', '0, .5, 1, 1, 0',
           [(0.5, 1.0, 1.0), (1.0, 2.0, 0.5)], np.array([[0.5, 1.0, 1.0], [1.0, 2.0, 0.5]]),
           '0.5:1:1,1:2:0.5']
  tables = [make(sigmas, tau=tau) for tau in forms]
  for table in tables[1:]:
    np.testing.assert_array_equal(table.mix, tables[0].mix)
    np.testing.assert_array_equal(table.interval, tables[0].interval)
  drawn = tables[0].noise.any(axis=1)
  np.testing.assert_array_equal(tables[0].interval[drawn], [[5, 2], [2, 1], [1, 0.5]])
  assert not tables[0].noise[:, 1:].any()  # One draw, in the state alone.
  for text, number in (('0.7', 0.7), ('1', 1)):
    np.testing.assert_array_equal(make(sigmas, tau=text).mix, make(sigmas, tau=number).mix)
  default = samplers.make('sa_solver', sigmas)
  np.testing.assert_array_equal(default.mix, make(sigmas, tau=[1, 1, 1, 0, 0]).mix)
  assert samplers.option_types('sa_solver')['tau'] is str


@pytest.mark.parametrize('options', [{'tau': 0}, {'tau': '0:100:0'}, {'s_noise': 0.0}])
def test_what_is_known_to_be_0_is_not_drawn(options):
  table = make(grid(5), **options)
  assert not table.noise.any() and np.isnan(table.interval).all()


def test_short_steps_keep_their_digits():
  """tau = 1 adds sigma'^2 (1 - sigma'^2 / sigma^2), also where that nearly cancels."""
  sigmas = 3.0 * (1 - 2.0**-30)**np.arange(6)
  table = make(sigmas, tau=1.0)
  drawn = table.noise.any(axis=1)
  s, s1 = table.interval[drawn].T
  np.testing.assert_allclose(table.noise[drawn, 0], s1 / s * np.sqrt((s - s1) * (s + s1)),
                             rtol=1e-13)
  np.testing.assert_allclose(table.mix[:, 0].sum(axis=1), 1, atol=1e-12)


# -- The end of a run -----------------------------------------------------------------------------


@pytest.mark.parametrize('p, q', [(1, 0), (3, 0), (1, 1), (2, 2), (3, 4), (4, 4)])
@pytest.mark.parametrize('n', [1, 2, 3, 9])
def test_cost_slots_and_levels(p, q, n):
  sigmas = grid(n)
  for mode, final, zero in itertools.product(
      ('PEC', 'PECE'), ('predict', 'correct_denoise', 'zero'), (False, True)):
    if (final == 'zero') != zero and final != 'predict':
      continue
    levels = np.append(sigmas[:-1], 0.0) if zero else sigmas
    table = make(levels, p, q, mode=mode, final=final)
    twice = mode == 'PECE' and q > 0
    assert table.nfe == n + twice * (n - 1) + 2 * (final == 'correct_denoise')
    assert table.slots == (1 + max(p, q - 1) if q else p)
    reached = table.level[~np.isnan(table.level)]
    np.testing.assert_array_equal(reached, [*levels[1:], *[0] * (final == 'correct_denoise')])
    if zero:  # The image that the network sees last, without noise.
      np.testing.assert_array_equal(table.mix[-1, 0], np.eye(table.slots + 1)[-1])
      assert not table.noise[-1].any() and table.kind[-1] == 0
  assert samplers.option_types('sa_solver')['rescale'] is bool


@pytest.mark.parametrize('prediction', ['data', 'noise'])
def test_the_ode_leads_back(prediction):
  """The same formula inverts on the increasing grid: the error of both ways is of second order."""
  def error(n):
    weight = 1.0
    for sigmas in (grid(n), grid(n)[::-1]):
      table = make(sigmas, tau=0.0, prediction=prediction)
      weight *= np.sqrt(moments.gaussian_moments(table, 0.0, VARIANCE, start=(0.0, 1.0))[1])
    return abs(weight - 1)
  assert error(80) < error(40) / 3


# -- Traced tables, bad input ---------------------------------------------------------------------


@pytest.mark.parametrize('options', [
    {'tau': '0.5:5:0.6'}, {'tau': 0.5, 'mode': 'PECE', 'prediction': 'noise', 'predictor_order': 2,
                           'final': 'correct_denoise'}], ids=str)
def test_build_is_make_and_has_gradients(options):
  sigmas, step = np.array([20.0, 4.0, 1.0, 0.4, 0.1]), 1e-6
  way = sigmas * np.array([0.3, -0.2, 0.1, 0.4, -0.5])

  def numbers(sigmas, build=samplers.build):
    table = build('sa_solver', sigmas, **options)
    return jnp.concatenate([table.mix.ravel(), table.noise.ravel()])
  built, slopes = jax.jit(lambda sigmas, way: jax.jvp(numbers, (sigmas,), (way,)))(sigmas, way)
  made, ahead, back = (np.asarray(numbers(sigmas + shift * way, samplers.make))
                       for shift in (0, step, -step))
  np.testing.assert_allclose(built, made, rtol=1e-10, atol=1e-12)
  # Entries reach 20: differences leave 1e-14 / 1e-6 of rounding and 1e-11 of truncation.
  np.testing.assert_allclose(slopes, (ahead - back) / (2 * step), rtol=1e-6, atol=1e-7)


def test_tau_can_be_learned():
  """As one number, by step or by row; from 0 on, where the weight of the noise has a slope."""
  sigmas, step = np.array([20.0, 4.0, 1.0]), 1e-6

  def numbers(value, build=samplers.build, **given):
    tables = [build('sa_solver', sigmas, predictor_order=2, corrector_order=2, tau=tau,
                    final='correct_denoise', **given)
              for tau in (value, [value, 0.3], [(0.8, 5.0, value)])]
    return jnp.concatenate([jnp.ravel(leaf) for table in tables
                            for leaf in (table.mix, table.noise)])

  def slope(value):
    return jax.jvp(lambda value: numbers(value, final_zero=False), (value,), (1.0,))
  built, slopes = jax.jit(slope)(0.0)
  np.testing.assert_allclose(built, numbers(0.0, samplers.make), rtol=1e-10, atol=1e-12)
  ahead = np.asarray(numbers(step, samplers.make))
  # One-sided, since tau is not negative: half of a second derivative of up to 100 stays.
  np.testing.assert_allclose(slopes, (ahead - built) / step, atol=1e-4)
  assert abs(slopes).max() > 1


@pytest.mark.parametrize('options, message', [
    ({'predictor_order': 5}, 'predictor_order must be an integer from 1 to 4, got 5'),
    ({'predictor_order': 0}, 'predictor_order must be an integer from 1 to 4, got 0'),
    ({'corrector_order': 5}, 'corrector_order must be an integer from 0 to 4, got 5'),
    ({'corrector_order': 2.0}, 'corrector_order must be an integer from 0 to 4, got 2.0'),
    ({'mode': 'PC'}, "unknown mode 'PC'; did you mean PEC"),
    ({'final': 'denoise'}, "unknown final 'denoise'"),
    ({'prediction': 'eps'}, "unknown prediction 'eps'"),
    ({'rescale': 1}, 'rescale must be True or False, got 1'),
    ({'s_noise': -1}, 's_noise must be a finite number of at least 0, got -1'),
    ({'final': 'zero'}, "sigmas must end in 0 with final 'zero', got one above"),
    ({'tau': -0.5}, 'tau must be finite and at least 0, got -0.5; 0 is the ODE'),
    ({'tau': [0, 1, float('nan')]}, 'tau must be finite and at least 0, got nan'),
    ({'tau': '0.5:5:-1'}, 'tau must be finite and at least 0, got -1'),
    ({'tau': [1, 1]}, r'tau must be one number, one for each of 3 steps, .* shape \(2,\)'),
    ({'tau': '5:0.5:1'}, 'tau must be given from a low level >= 0 to a higher one, got 5 to 0.5'),
    ({'tau': 'middle'}, "tau must be numbers or low:high:value, .* got 'middle'"),
    ({'tau': '1,0.5:5:1'}, "tau must be numbers or low:high:value, .* got '1,0.5:5:1'"),
    ({'tau': None}, 'tau must be'),
])
def test_bad_options(options, message):
  with pytest.raises(ValueError, match='sa_solver: ' + message):
    make(grid(3), **options)


def test_grids_that_do_not_suit():
  with pytest.raises(ValueError, match="sa_solver: sigmas must end above 0 with final 'corr"):
    make([2.0, 1.0, 0.0], final='correct_denoise')
  with pytest.raises(ValueError, match='sa_solver: sigmas must decrease for a solver with noise'):
    make(grid(5)[::-1], tau=1.0)
  with pytest.raises(ValueError, match='sa_solver: tau must be 0 on an increasing grid, got 1.0'):
    make(grid(5)[::-1], tau=1.0, s_noise=0.0)
