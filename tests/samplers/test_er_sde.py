"""ER-SDE-Solver: reference runs, its integrals, its noise, its order, and bad input."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import er_sde, moments
from tests import reference
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('er_sde')
MEAN, VARIANCE = 0.7, 0.25
ORDERS = json.loads(
    (reference.GOLDEN / 'beyond_solvers' / 'orders.json').read_text())['as_run']['solvers']
FUNCTIONS = {
    'ode': lambda x: x, 'sde': lambda x: x**2, 'sde1': lambda x: x * (np.exp(-1 / x) + 10),
    'sde2': lambda x: x**1.5, 'sde3': lambda x: x**2.5,
    'sde4': lambda x: x**0.9 * np.log10(1 + 100 * x**1.5),
    'sde5': lambda x: x * (np.exp(x**0.3) + 10)}
every_scale = pytest.mark.parametrize('scale', FUNCTIONS)


def grid(n, low=0.1, high=10.0):
  return samplers.schedule('polynomial', n, low, high)


def test_every_case_is_here():
  assert len(FAMILY) == 13 and set(FUNCTIONS) == set(er_sde.SCALES)


@pytest.mark.parametrize('case', FAMILY)
def test_reference_run(case):
  case = FAMILY[case]
  table = samplers.make('er_sde', beyond_cases.grid(case), **case['options'])
  assert table.slots == case['slots']
  beyond_cases.check(table, case)


# -- Coefficients ---------------------------------------------------------------------------------


def panels(function, low, high):
  """int function(u) du by 20 points on each of 400 panels that are equal in log u."""
  points, weights = np.polynomial.legendre.leggauss(20)
  ends = np.geomspace(low, high, 401)
  width = np.diff(ends)[:, None] / 2
  u = ends[:-1, None] + width * (1 + points)
  return np.sum(width * weights * function(u))


@pytest.mark.parametrize('levels', [(12.0, 10.0, 7.0, 3.0), (200.0, 100.0, 80.0, 0.002),
                                    (0.1, 0.05, 0.03, 0.02)])
@every_scale
def test_integrals_of_the_formula(scale, levels):
  """As the specification writes them, by a much finer rule: also of one step from 80 to 0.002."""
  p, (a, b, s, s1) = FUNCTIONS[scale], levels
  table = samplers.make('er_sde', levels, scale=scale, s_noise=0.0)
  ratio = p(s1) / p(s)
  first = (s1 - s) + p(s1) * panels(lambda u: 1 / p(u), s1, s)
  second = (s1 - s)**2 / 2 + p(s1) * panels(lambda u: (u - s) / p(u), s1, s)
  slope = np.array([0, -1, 1]) / (s - b)
  before = np.array([-1, 1, 0]) / (b - a)
  answers = np.array([0, 0, 1 - ratio]) + first * slope + second * 2 * (slope - before) / (s - a)
  # Slots of the last row: state, D(b), D(a); the answer is last.
  np.testing.assert_allclose(table.mix[-1, 0], [ratio, answers[1], answers[0], answers[2]],
                             rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('scale, power', [('ode', 1), ('sde', 2), ('sde2', 1.5), ('sde3', 2.5)])
@pytest.mark.parametrize('order', [1, 2, 3])
def test_polynomials_in_sigma_are_integrated_exactly(scale, power, order):
  """For D = sigma^m, whatever x, a step solves dx = (p'/p) (x - D) dsigma up to m = order - 1.

  Order 3 does if corrected alone.
  """
  a, b, s, s1 = levels = 5.0, 3.0, 2.0, 0.3
  slots = np.array([*[b, a][:order - 1], s])  # Of the answers in the last row.
  errors = []
  for corrected, m in [(True, m) for m in range(order)] + [(False, 2)]:
    table = samplers.make('er_sde', levels, scale=scale, order=order, corrected=corrected)
    end = table.mix[-1, 0] @ [0.4, *slots**m]
    # x / p has the slope -(p' / p^2) D, and p(u) = u^power.
    integral = panels(lambda u, m=m: power * u**(m - 1.0 - power), s1, s)
    errors.append(end - 0.4 * (s1 / s)**power - s1**power * integral)
  np.testing.assert_allclose(errors[:-1], 0, atol=1e-13)
  assert abs(errors[-1]) > 1e-2


def test_short_steps_keep_their_digits():
  """The correction is of order h^2, and the noise of 'sde' s1 sqrt(1 - (s1 / s)^2)."""
  sigmas = 3.0 * (1 - 2.0**-30)**np.arange(3)
  s, s1 = sigmas[1:]
  table = samplers.make('er_sde', sigmas, order=2, scale='ode')
  h = np.log1p((s - s1) / s1)
  # s1 (h - expm1(h)) = -s1 (h^2 / 2 + ...) times the slope, whose length is one step too.
  weight = -s1 * (h**2 / 2 + h**3 / 6) / (s - sigmas[0])
  assert table.mix[1, 0, 1] == pytest.approx(-weight, rel=1e-12)
  noise = samplers.make('er_sde', sigmas, scale='sde').noise[1, 0]
  assert noise == pytest.approx(s1 / s * np.sqrt((s - s1) * (s + s1)), rel=1e-13)


# -- Noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('order', [1, 3])
@every_scale
def test_noise_keeps_the_marginal_variance(scale, order):
  """Data that are one point: after every step the state has the variance of its level."""
  sigmas = grid(6, 0.002, 80.0)
  for end in range(2, 7):
    table = samplers.make('er_sde', sigmas[:end + 1], order=order, scale=scale)
    assert table.noise.any() == (scale != 'ode')
    mean, variance = moments.gaussian_moments(table, MEAN, 0.0, start=(MEAN, sigmas[0]**2))
    assert mean == pytest.approx(MEAN, rel=1e-12)
    assert variance == pytest.approx(sigmas[end]**2, rel=1e-11)


def test_small_variances_are_kept():
  """p(x) / x of 'sde1' grows by e^(-1/x) beside 10: 1e-22 of the variance at 0.02, not nothing."""
  table = samplers.make('er_sde', [0.03, 0.02], scale='sde1')
  growth = (np.exp(-1 / 0.03) - np.exp(-1 / 0.02)) / (10 + np.exp(-1 / 0.02))
  assert table.noise[0, 0] == pytest.approx(0.02 * np.sqrt(2 * growth), rel=1e-12)


def test_noise_scales_with_s_noise_and_lies_on_the_path():
  plain, half = (samplers.make('er_sde', grid(5), s_noise=factor) for factor in (1.0, 0.5))
  np.testing.assert_allclose(half.noise, plain.noise / 2)
  np.testing.assert_array_equal(plain.interval, np.stack([grid(5)[:-1], grid(5)[1:]], axis=1))
  none = samplers.make('er_sde', grid(5), s_noise=0.0)
  assert not none.noise.any() and np.isnan(none.interval).all()


# -- Order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize('order, corrected', [(1, False), (2, False), (3, False), (3, True)])
@pytest.mark.parametrize('grid_name', ['log', 'rho7'])
def test_measured_errors_of_the_ode(order, corrected, grid_name):
  """Error of the start's weight on Gaussian data, as recorded for 64 steps from 10 to 0.1."""
  name = f'er_sde {order} ode' + ' corrected' * corrected
  sigmas = np.geomspace(10.0, 0.1, 65) if grid_name == 'log' else grid(64)
  table = samplers.make('er_sde', sigmas, order=order, scale='ode', corrected=corrected)
  weight = np.sqrt(moments.gaussian_moments(table, 0.0, VARIANCE, start=(0.0, 1.0))[1])
  exact = np.sqrt((VARIANCE + 0.1**2) / (VARIANCE + 10.0**2))
  # Three digits are recorded.
  assert abs(weight - exact) == pytest.approx(ORDERS[name][grid_name]['mean_error_64'], rel=6e-3)


@pytest.mark.parametrize('options, order', [
    ({'order': 1}, 1), ({'order': 2}, 2), ({}, 2), ({'corrected': True}, 3)], ids=str)
def test_order_of_the_formula(options, order):
  """Of the ODE on Gaussian data, from exact first answers."""
  def error(n):
    sigmas = np.geomspace(10.0, 0.1, n + 1)
    table = samplers.make('er_sde', sigmas, scale='ode', **options)
    exact = np.sqrt((VARIANCE + sigmas**2) / (VARIANCE + 100))
    share = VARIANCE / (VARIANCE + sigmas**2)
    state = np.array([exact[2], *(share * exact)[1::-1]])[:table.slots]
    for r in range(2, n):
      state = table.mix[r] @ [*state, share[r] * state[0]]
    return abs(state[0] - exact[-1])
  assert np.log2(error(160) / error(320)) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize('order, scale', [(1, 'sde'), (1, 'sde5'), (2, 'sde2'), (2, 'sde4'),
                                          (3, 'sde3'), (3, 'sde5')])
def test_variance_on_gaussian_data_converges(order, scale):
  def error(n):
    table = samplers.make('er_sde', grid(n), order=order, scale=scale)
    first = MEAN, VARIANCE + 10.0**2
    mean, variance = moments.gaussian_moments(table, MEAN, VARIANCE, start=first)
    assert mean == pytest.approx(MEAN, rel=1e-10)  # At the mean D is the state itself.
    return abs(variance - VARIANCE - 0.1**2)
  assert np.log2(error(120) / error(240)) == pytest.approx(min(order, 2), abs=0.15)


# -- Grids, traced tables, bad input --------------------------------------------------------------


@pytest.mark.parametrize('last', [0.0, 0.02])
def test_order_1_of_the_ode_is_euler(last):
  sigmas = [*grid(6, 0.05, 40.0), last]
  ours, euler = (reference.linear_map(samplers.make(name, sigmas, **options)) for name, options in (
      ('er_sde', {'order': 1, 'scale': 'ode'}), ('euler', {})))
  np.testing.assert_allclose(ours, euler, atol=1e-12)


def test_the_ode_leads_back():
  """The same formula inverts on the increasing grid: the error of both ways is of second order."""
  def error(n):
    weight = 1.0
    for sigmas in (grid(n), grid(n)[::-1]):
      table = samplers.make('er_sde', sigmas, order=2, scale='ode')
      weight *= np.sqrt(moments.gaussian_moments(table, 0.0, VARIANCE, start=(0.0, 1.0))[1])
    return abs(weight - 1)
  assert error(80) < error(40) / 2**1.8
  with pytest.raises(ValueError, match='er_sde: sigmas must decrease for a solver with noise'):
    samplers.make('er_sde', [1.0, 2.0, 5.0])


@pytest.mark.parametrize('scale', ['sde', 'sde1', 'sde4', 'sde5'])
def test_build_is_make_and_has_gradients(scale):
  """Down to where the variance of 'sde1' is 0 in double precision."""
  sigmas, step = np.array([50.0, 3.0, 0.2, 1e-3, 8e-4]), 1e-6
  way = sigmas * np.array([0.3, -0.2, 0.1, 0.4, -0.5])

  def numbers(sigmas, build=samplers.build):
    table = build('er_sde', sigmas, scale=scale, corrected=True)
    return jnp.concatenate([table.mix.ravel(), table.noise.ravel()])
  built, slopes = jax.jit(lambda sigmas, way: jax.jvp(numbers, (sigmas,), (way,)))(sigmas, way)
  made, ahead, back = (np.asarray(numbers(sigmas + shift * way, samplers.make))
                       for shift in (0, step, -step))
  np.testing.assert_allclose(built, made, rtol=1e-10, atol=1e-12)
  # Entries reach 40: differences leave 1e-14 / 1e-6 of rounding and 1e-11 of truncation.
  np.testing.assert_allclose(slopes, (ahead - back) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('options, message', [
    ({'order': 4}, 'er_sde: order must be an integer from 1 to 3, got 4'),
    ({'order': True}, 'er_sde: order must be an integer from 1 to 3, got True'),
    ({'scale': 'sde6'}, "er_sde: unknown scale 'sde6'; did you mean sde"),
    ({'corrected': 1}, 'er_sde: corrected must be True or False, got 1'),
    ({'s_noise': -1.0}, 'er_sde: s_noise must be a finite number of at least 0, got -1.0'),
    ({'scale': 'sde4'}, "er_sde: sigmas must be at most 1022.4 with scale 'sde4', got 2000; p"),
])
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    samplers.make('er_sde', [2000.0, 1.0], **options)
