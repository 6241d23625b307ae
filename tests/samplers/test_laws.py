"""Laws that every solver of the registry obeys; only the identities between them name any."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from tests import reference
from tests.samplers import cases, schedule_cases

ROWS, SLOTS = 1500, 5
HIGH, LOW = 10.0, 0.1
MEAN, STD = 0.7, 0.5
DATA = reference.gaussian_denoiser(STD, MEAN)
MIXTURE = reference.mixture_denoiser(reference.load('ode')[1]['mixture_small'])
START = np.full((1, 1, 1, 1), 11.0)

every_case = pytest.mark.parametrize('case', cases.ALL, ids=str)
# For laws of the traced code that options share, whose tests take a second each.
every_solver = pytest.mark.parametrize(
    'case', {case.name: case for case in cases.ALL}.values(), ids=str)


def free_first(x, sigma):
  """A denoiser that answers by the formula of AFS at the first level."""
  return jnp.where(sigma == FREE_GRID[0], x - sigma * x / jnp.sqrt(1 + sigma**2), DATA(x, sigma))


def constant(x, sigma):
  del sigma
  return jnp.full_like(x, 0.7)


def grid(n, low=LOW, high=HIGH, rho=7):
  return samplers.schedule('polynomial', n, low, high, rho=rho)


FREE_GRID = grid(6)


def test_every_solver_has_a_case():
  assert {case.name for case in cases.ALL + cases.STOCHASTIC} == set(samplers.SOLVERS)


# -- Order of convergence -------------------------------------------------------------------------


@functools.cache
def gaussian_run():
  """run(table, x, first, exact_above): the states at levels from exact_above on are exact."""
  def run(table, x, first, exact_above):
    def project(state, sigma, z):
      del z
      scale = jnp.sqrt((STD**2 + sigma**2) / (STD**2 + first**2))
      return jnp.where(sigma >= exact_above, MEAN + (x - MEAN) * scale, state)
    return samplers.run(table, DATA, x, project=project, project_draw=lambda r, x: x)
  return jax.jit(run)


def gaussian_error(case, sigmas, exact_start=True):
  """Error at the last level, given exact states up to the fourth step's end or the start alone."""
  table = samplers.make(case.name, sigmas, **cases.with_full_order(case))
  exact_above = sigmas[4] if exact_start else np.inf
  end = gaussian_run()(samplers.pad(table, ROWS, SLOTS), jnp.asarray(START), sigmas[0], exact_above)
  return abs(end.item() - reference.gaussian_flow(START, sigmas[0], sigmas[-1], STD, MEAN).item())


def measured_order(case, make_grid, n=240):
  return np.log2(gaussian_error(case, make_grid(n)) / gaussian_error(case, make_grid(2 * n)))


@pytest.mark.parametrize('case', cases.CASES + cases.PUBLISHED_THIRD, ids=str)
def test_order_of_convergence(case):
  assert measured_order(case, grid) == pytest.approx(case.order, abs=0.2)


@pytest.mark.parametrize('case', cases.EQUAL_STEPS, ids=str)
def test_order_of_the_weights_for_equal_steps(case):
  """The full order on the grid that the weights were made for; on a smooth other one at most 2.

  There the step ratio is 1 + O(1/n), so that the weights are wrong by O(1/n) and their error
  meets a first difference of eps, O(1/n) too: second order is left from order 2 on.
  """
  uniform = functools.partial(grid, low=1.0, high=4.0, rho=1)
  assert measured_order(case, uniform) == pytest.approx(case.order, abs=0.2)
  assert measured_order(case, grid) == pytest.approx(min(case.order, 2), abs=0.2)


@pytest.mark.parametrize('case', cases.PUBLISHED_SUM, ids=str)
def test_order_of_the_published_deis_sum(case):
  """The order of the formula at first; what the sum adds is of second order and takes over later.

  At order 4 the slopes measured from 60, 120 and 240 steps on are 3.94, 3.76 and 3.30. The gap to
  the exact integrals stays below 1e-4 of Euler's error.
  """
  assert measured_order(case, grid, n=60) == pytest.approx(case.order, abs=0.2)
  exact = case._replace(options={**case.options, 'quadrature': 'exact'})

  def ends(n):
    tables = [samplers.make(c.name, grid(n), **c.options) for c in (case, exact)]
    return [gaussian_run()(samplers.pad(table, ROWS, SLOTS), jnp.asarray(START), HIGH,
                           np.inf).item() for table in tables]

  gaps = [abs(np.subtract(*ends(n))) for n in (30, 60)]
  assert np.log2(gaps[0] / gaps[1]) == pytest.approx(2, abs=0.2)
  assert gaps[1] < 1e-4 * gaussian_error(cases.CASES[0], grid(60))


# -- Identities -----------------------------------------------------------------------------------


def maps(name, sigmas, **options):
  return reference.linear_map(samplers.make(name, sigmas, **options))


@pytest.mark.parametrize('last', [0.0, 0.002])
@pytest.mark.parametrize('name, options', [
    ('ddim', {}), ('dpmpp', {'max_order': 1}), ('dpmpp', {'max_order': 1, 'predict_x0': False}),
    ('ipndm', {'max_order': 1}), ('ipndm_v', {'max_order': 1}), ('lms', {'order': 1}),
    ('deis', {'max_order': 1, 'mode': 'rhoab'}), ('rk', {'order': 1}),
    ('unipc', {'max_order': 1, 'corrector': False}),
    ('unipc', {'max_order': 1, 'corrector': False, 'predict_x0': False})])
def test_first_order_members_are_euler(name, options, last):
  sigmas = [*grid(6, 0.01, 80.0), last]
  # 80 is the size of the entries, and lam differences of a noise prediction carry it as rounding.
  np.testing.assert_allclose(maps(name, sigmas, **options), maps('euler', sigmas), atol=1e-12)


@pytest.mark.parametrize('first, second', [
    (('unipc', {'max_order': 2, 'corrector': False, 'lower_order_final': True}),
     ('dpmpp', {'max_order': 2, 'lower_order_final': True})),
    (('unipc', {'max_order': 2, 'corrector': False, 'predict_x0': False}),
     ('dpmpp', {'max_order': 2, 'predict_x0': False})),
    (('lms', {'order': 4}), ('ipndm_v', {'max_order': 4})),
    (('deis', {'max_order': 3, 'mode': 'rhoab'}), ('ipndm_v', {'max_order': 3})),
    (('edm', {}), ('heun', {})), (('rk', {}), ('heun', {})),
    (('dpmpp_2m', {}), ('dpmpp', {'max_order': 2, 'lower_order_final': False}))])
def test_two_names_of_one_solver(first, second):
  sigmas = grid(7, 0.02, 80.0)
  np.testing.assert_allclose(maps(first[0], sigmas, **first[1]),
                             maps(second[0], sigmas, **second[1]), atol=1e-11)


@pytest.mark.parametrize('order', [2, 3, 4])
def test_weights_for_equal_steps_are_exact_on_a_uniform_grid(order):
  sigmas = grid(9, 1.0, 4.0, rho=1)
  np.testing.assert_allclose(maps('ipndm', sigmas, max_order=order),
                             maps('ipndm_v', sigmas, max_order=order), atol=1e-12)


# -- Invariants -----------------------------------------------------------------------------------


def grids_of(case, n=6):
  positive = grid(n, 0.05, 20.0)
  return [positive, np.append(positive[:-1], 0.0)] if case.to_zero else [positive]


@every_case
def test_nfe_and_levels(case):
  """Evaluations are as announced, and the steps end at the grid (at their own for some)."""
  for n in (2, 6, 11):
    sigmas = grid(n)
    table = samplers.make(case.name, sigmas, **case.options)
    assert table.nfe == case.nfe(n)
    assert table.nfe == np.isin(table.kind, (0, 3)).sum()
    ends = table.level[~np.isnan(table.level)]
    if case.name == 'dpm_fast':
      assert ends[-1] == sigmas[-1] and len(ends) == n // 3 + 1
    elif case.name == 'dpm_solver_singlestep':  # Its steps pass levels by.
      assert ends[-1] == sigmas[-1] and len(ends) <= n
    else:
      np.testing.assert_array_equal(ends, sigmas[1:])


@every_case
def test_constants_are_preserved(case):
  """Where the denoiser always answers c, the state c stays c: the coefficients sum to one.

  Not under vp scaling: there Runge-Kutta integrates c s(t), which is no polynomial in t. Nor with
  F prediction, where c = c_skip x + c_out F holds F constant at no level.
  """
  if case.options.get('scaling') == 'vp' or case.options.get('prediction') == 'F':
    pytest.skip('a constant is not constant in these coordinates')
  value = jnp.full((1, 2, 2, 1), 0.7)
  for sigmas in grids_of(case):
    table = samplers.make(case.name, sigmas, **case.options)
    end = reference.sampler(constant)(table, value)
    np.testing.assert_allclose(end, value, rtol=1e-12)


@every_case
def test_first_step_for_free(case):
  """AFS is the plain table where the denoiser itself answers by its formula at the first level."""
  plain, free = (samplers.make(case.name, FREE_GRID, **case.options, afs=afs)
                 for afs in (False, True))
  assert free.nfe == plain.nfe - 1
  sample = reference.sampler(free_first)
  np.testing.assert_allclose(*[sample(table, jnp.asarray(START)) for table in (plain, free)],
                             rtol=1e-12)


@every_case
def test_denoise_to_zero(case):
  """One more evaluation, at the last level; its answer is the result."""
  sigmas, x = grid(6), jnp.asarray(START)
  plain, zero = (samplers.make(case.name, sigmas, **case.options, denoise_to_zero=more)
                 for more in (False, True))
  assert zero.nfe == plain.nfe + 1
  sample = reference.sampler(DATA)
  np.testing.assert_allclose(sample(zero, x), DATA(sample(plain, x), sigmas[-1]), rtol=1e-12)


@functools.cache
def gaussian_sampler():
  """run(table, x=x), which compiles once per shape of a table."""
  return jax.jit(functools.partial(samplers.run, denoise=DATA))


@every_case
def test_padding_changes_nothing_bit_for_bit(case):
  x = np.random.default_rng(0).standard_normal((3, 4, 4, 3)).astype(np.float32) * 20
  table = samplers.make(case.name, grid(5, 0.05, 20.0), **case.options)
  run = gaussian_sampler()
  plain = run(table, x=x)
  padded = run(samplers.pad(table, 30, SLOTS + 1), x=x)
  np.testing.assert_array_equal(np.asarray(plain), np.asarray(padded))


# -- Traced tables --------------------------------------------------------------------------------


@every_case
def test_make_and_build_agree(case):
  first = next(other for other in cases.ALL if other.name == case.name)
  for sigmas in grids_of(case, n=4)[:2 if case is first else 1]:
    ends_in_zero = sigmas[-1] == 0
    more = {'afs': True, 'denoise_to_zero': not ends_in_zero}
    made = samplers.make(case.name, sigmas, **case.options, **more)
    built = samplers.build(case.name, jnp.asarray(sigmas), **case.options, **more)
    for field in ('sigma', 'kind', 'mix', 'noise', 'level', 'interval'):
      np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-10,
                                 atol=1e-12, err_msg=field)


@functools.cache
def gaussian_slope():
  """slope(table, slopes, x): of the sampler's end; compiles once per shape of a table."""
  def slope(table, slopes, x):
    return jax.jvp(lambda table: samplers.run(table, DATA, x), (table,), (slopes,))[1]
  return jax.jit(slope)


@every_solver
def test_gradient_with_respect_to_the_grid(case):
  """Forward through a traced table and the scan, against a central difference."""
  sigmas, direction = jnp.asarray(grid(4, 0.2, 5.0)), jnp.asarray([0.3, -0.2, 0.1, 0.05, 0.02])

  def build(step):
    return samplers.build(case.name, sigmas + step * direction, final_zero=False, **case.options)

  def value(step):
    table = samplers.make(case.name, np.asarray(sigmas + step * direction), **case.options)
    return reference.sampler(DATA)(table, jnp.asarray(START) / 2).item()

  step = 1e-5
  table, slopes = jax.jvp(build, (0.0,), (1.0,))
  slope = gaussian_slope()(table, slopes, jnp.asarray(START) / 2)
  # Central differences: 1e-10 of truncation and 1e-15 / 1e-5 of rounding.
  assert slope.item() == pytest.approx((value(step) - value(-step)) / (2 * step), rel=1e-6)


@pytest.mark.parametrize('case', {case.name: case for case in cases.ALL if case.name in (
    'deis', 'dpmpp', 'unipc')}.values(), ids=str)
def test_reverse_gradient_inside_jit(case):
  """The way a grid is learned: one compiled gradient, equal to the forward one."""
  sigmas = jnp.asarray(grid(3, 0.2, 5.0))

  def end(sigmas):
    table = samplers.build(case.name, sigmas, **case.options)
    return samplers.run(table, DATA, jnp.asarray(START) / 2).sum()

  _, forward = jax.jvp(end, (sigmas,), (jnp.ones_like(sigmas),))
  backward = jax.jit(jax.grad(end))(sigmas).sum()
  assert backward.item() == pytest.approx(forward.item(), rel=1e-9)


@pytest.mark.parametrize('name, option, value', [
    ('dpm', 'r', 0.4), ('rk', 'c', 0.7), ('ddim', 'eta', 0.0), ('ddim', 'eta', 0.5)])
def test_gradient_with_respect_to_free_coefficients(name, option, value):
  sigmas = jnp.asarray(grid(4, 0.2, 5.0))

  def end(value):
    table = samplers.build(name, sigmas, **{option: value})
    end = samplers.run(table, DATA, jnp.asarray(START), draw=lambda r, x: jnp.ones_like(x))
    return end.sum()

  step = 1e-5
  difference = (end(value + step) - end(value - step)).item() / (2 * step)
  assert jax.grad(end)(value) == pytest.approx(difference, rel=1e-6)


# -- Precision and compilation --------------------------------------------------------------------


# Largest rounding errors seen, over the options of a solver; most of what is left is the mixture's.
FLOAT32_ERRORS = {
    'euler': 1.3e-7, 'ddim': 1.3e-7, 'heun': 3.3e-7, 'edm': 3.3e-7, 'dpm': 3.1e-7, 'rk': 2.4e-7,
    'dpm_fast': 1.3e-6, 'deis': 8.3e-7, 'dpmpp': 8.8e-7, 'dpmpp_2m': 1.5e-7, 'ipndm': 1.3e-6,
    'ltsp': 1.3e-6, 'stsp': 1.3e-6, 'ipndm_v': 1.6e-7, 'lms': 1.6e-7, 'plms': 1.4e-6,
    'unipc': 1.7e-6, 'etd': 2.8e-7, 'euler_ancestral': 1.3e-7, 'dpm_2_ancestral': 4.1e-7,
    'dpmpp_2s_ancestral': 7e-8, 'dpmpp_sde': 2.7e-7, 'dpmpp_2m_sde': 1.7e-7, 'dpmpp_3m_sde': 5.7e-7,
    'res_multistep': 1.7e-7, 'gradient_estimation': 2.7e-7, 'exp_heun': 1.4e-7, 'seeds': 1.4e-7,
    'euler_cfg_pp': 1.2e-7, 'euler_ancestral_cfg_pp': 1.2e-7, 'dpmpp_2m_cfg_pp': 2.6e-7,
    'dpmpp_2s_ancestral_cfg_pp': 1.1e-7, 'gradient_estimation_cfg_pp': 2.2e-7,
    'heunpp2': 1.7e-7, 'pndm': 1.1e-6, 'flow_heun': 2.7e-7, 'euler_ancestral_rf': 1.3e-7,
    'tcd': 1.3e-7, 'dpm_solver_singlestep': 1.3e-6,
    'er_sde': 1.9e-7, 'sa_solver': 4.7e-7, 'sa_solver-tau=0.0-prediction=noise': 9.8e-6,
    # Noise prediction of order 3: its first steps from 80 take differences of eps a hundredfold.
    'unipc-max_order=3-variant=bh2-predict_x0=False': 1.1e-5,
}


@every_case
def test_float32_follows_float64(case):
  """On the mixture, from 80 to 0.002 in 10 steps; values are of size 1."""
  table = samplers.make(case.name, grid(10, 0.002, 80.0), **case.options)
  x = np.random.default_rng(1).standard_normal((2, 4, 4, 3)) * 80.0
  double = np.asarray(reference.sampler(MIXTURE)(table, jnp.asarray(x)))
  with jax.enable_x64(False):
    single = np.asarray(reference.sampler(MIXTURE)(table, jnp.asarray(x)))
  assert single.dtype == np.float32
  seen = FLOAT32_ERRORS.get(str(case), FLOAT32_ERRORS[case.name])
  np.testing.assert_allclose(single, double, rtol=0, atol=20 * seen)


def test_one_compilation_serves_all_solvers_grids_and_nfe():
  traces = []

  @jax.jit
  def sample(table, x):
    traces.append(1)
    return samplers.run(table, DATA, x)

  # LOW is too high for time_uniform and vp, whose range must be that of a VP process.
  grids = {n: [schedule_cases.grid(name, n, 0.01, HIGH) for name in schedule_cases.FREE]
           for n in (3, 10, 20)}
  seen = set()
  for index, case in enumerate(cases.ALL):
    for n in (3, 10, 20):
      possible = [sigmas for sigmas in grids[n] if sigmas[-1] > 0 or case.to_zero]
      table = samplers.make(case.name, possible[index % len(possible)], **case.options)
      if 3 <= table.nfe <= 20 and table.answers == 1:  # Two answers are another program.
        end = sample(samplers.pad(table, *reference.SHAPE), jnp.asarray(START))
        assert np.isfinite(end).all()
        seen.add(table.nfe)
  assert seen >= {3, 5, 6, 10, 19, 20}
  assert len(traces) == 1 and sample._cache_size() == 1
