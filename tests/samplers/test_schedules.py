"""Schedules against reference numbers, their laws over the registry, and their errors."""

import collections
import json
import pathlib

import numpy as np
import pytest

from samplers import levels, quantile_grids, schedules
from tests.samplers import schedule_cases
from tests.samplers.schedule_cases import OPTIONS, RANGE, SD

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / 'golden' / 'schedules'
ARRAYS = dict(np.load(GOLDEN / 'schedules.npz'))
CASES = json.loads((GOLDEN / 'manifest.json').read_text())['cases']

COUNTS = {
    'diff-sampler/polynomial': 45, 'diff-sampler/time_uniform': 30, 'diff-sampler/discrete': 30,
    'edm/ablation grid': 24, 'diff-sampler/logsnr': 15, 'k-diffusion/get_sigmas_karras': 12,
    'k-diffusion/get_sigmas_polyexponential': 12, 'diff-sampler/discrete (ADM wrapper)': 10,
    'k-diffusion/get_sigmas_exponential': 6, 'edm/range': 4, 'input table': 2,
    'discrete/sigma_of_t': 2, 'discrete/t_of_sigma': 2, 'discrete/network_time': 2,
    'discrete/range': 2, 'edm/edm_sampler grid': 2, 'k-diffusion/get_sigmas_vp': 2,
    'k-diffusion/DiscreteSchedule.get_sigmas': 2, 'adm/range': 1, 'adm/sigma_of_t': 1,
    'adm/t_of_sigma': 1, 'gits/selected': 1, 'edm/iddpm table': 1, 'edm/round_sigma iddpm': 1,
    'k-diffusion/DiscreteSchedule.sigma_to_t': 1, 'k-diffusion/DiscreteSchedule.t_to_sigma': 1,
    'k-diffusion/get_ancestral_step': 1}


def grid_of(name, case, steps, *options):
  """The grid of a case: `steps` intervals, options under the names that the case uses."""
  names = {'schedule_rho': 'rho'}
  given = {names.get(option, option): case[option] for option in options}
  return schedules.schedule(name, steps, case.get('sigma_min'), case.get('sigma_max'), **given)


def ablation(case, array):
  """Levels before and after rounding, and the integration times of EDM's ablation sampler."""
  low, high = case['sigma_range_used']
  options = {'rho': case['rho']} if case['discretization'] == 'edm' else (
      {'epsilon_s': case['epsilon_s']} if case['discretization'] == 'vp' else {})
  network = {'levels': levels.iddpm_levels()} if case['network'] == 'iddpm' else {}
  name, steps = case['discretization'], case['num_steps']
  plain = schedules.schedule(name, steps, low, high, **options)
  rounded = schedules.schedule(name, steps, low, high, **options, **network)
  constants = levels.vp_constants(low, high, case['epsilon_s'])
  np.testing.assert_allclose(constants, (case['vp_beta_d'], case['vp_beta_min']), rtol=1e-10)
  time = {'vp': lambda: levels.vp_time_of_sigma(rounded, *constants),
          've': lambda: rounded**2, 'linear': lambda: rounded}[case['schedule']]()
  return [(plain, array[0]), (rounded, array[1]), (time, array[2])]


def table_levels(case):
  return levels.table_sigmas(ARRAYS[case['table']])


def iddpm_rounding(array):
  table = levels.iddpm_levels()
  return [(levels.nearest_index(array[0], table), array[1], 0),
          (levels.round_to_levels(array[0], table), array[2])]


def discrete_index(case, array):
  return [(levels.index_of_sigma(array[0], table_levels(case)), array[1]),
          (levels.index_of_sigma(array[0], table_levels(case), quantize=True), array[2], 0)]


# Kind -> function(case, stored array) -> list of (computed, expected[, rtol[, atol]]).
CHECKS = {
    'diff-sampler/polynomial': lambda c, a: [
        (grid_of('polynomial', c, c['num_steps'] - 1, 'schedule_rho'), a)],
    'diff-sampler/logsnr': lambda c, a: [(grid_of('logsnr', c, c['num_steps'] - 1), a)],
    'diff-sampler/time_uniform': lambda c, a: [
        (grid_of('time_uniform', c, c['num_steps'] - 1, 'schedule_rho', 'epsilon_s'), a)],
    'diff-sampler/discrete': lambda c, a: [
        (schedules.schedule('discrete', c['num_steps'] - 1, c['sigma_min'], c['sigma_max'],
                            alphas_cumprod=ARRAYS[c['table']], rho=c['schedule_rho']), a)],
    'diff-sampler/discrete (ADM wrapper)': lambda c, a: [
        (grid_of('discrete', c, c['num_steps'] - 1, 'schedule_rho'), a)],
    'input table': lambda c, a: [(levels.scaled_linear_alphas_cumprod(
        c['beta_start'], c['beta_end'], c['num_train_timesteps']), a)],
    'discrete/sigma_of_t': lambda c, a: [(levels.sigma_of_time(a[0], ARRAYS[c['table']]), a[1])],
    'discrete/t_of_sigma': lambda c, a: [(levels.time_of_sigma(a[0], ARRAYS[c['table']]), a[1])],
    'discrete/network_time': lambda c, a: [
        (levels.network_index(a[0], ARRAYS[c['table']]), a[1], 1e-10, 1e-12)],  # It crosses 0.
    'discrete/range': lambda c, a: [(levels.table_range(ARRAYS[c['table']]), a)],
    'adm/range': lambda c, a: [(levels.sigma_of_vp_time(
        np.array([c['epsilon_t'], 1.0]), c['beta_d'], c['beta_min']), a)],
    'adm/sigma_of_t': lambda c, a: [
        (levels.sigma_of_vp_time(a[0], c['beta_d'], c['beta_min']), a[1])],
    'adm/t_of_sigma': lambda c, a: [
        (levels.vp_time_of_sigma(a[0], c['beta_d'], c['beta_min']), a[1])],
    'gits/selected': lambda c, a: [
        (grid_of('polynomial', c, c['num_steps_teacher'] - 1, 'schedule_rho')[c['indices']], a)],
    'edm/range': lambda c, a: [(levels.preconditioning_range(c['preconditioning']), a)],
    'edm/iddpm table': lambda c, a: [
        (levels.iddpm_levels(C_1=c['C_1'], C_2=c['C_2'], M=c['M']), a)],
    'edm/round_sigma iddpm': lambda c, a: iddpm_rounding(a),
    'edm/ablation grid': ablation,
    'edm/edm_sampler grid': lambda c, a: [(grid_of('edm', c, c['num_steps'], 'rho'), a)],
    'k-diffusion/get_sigmas_karras': lambda c, a: [(grid_of('karras', c, c['n'], 'rho'), a)],
    'k-diffusion/get_sigmas_exponential': lambda c, a: [(grid_of('exponential', c, c['n']), a)],
    'k-diffusion/get_sigmas_polyexponential': lambda c, a: [
        (grid_of('polyexponential', c, c['n'], 'rho'), a)],
    'k-diffusion/get_sigmas_vp': lambda c, a: [
        (grid_of('kvp', c, c['n'], 'beta_d', 'beta_min', 'eps_s'), a)],
    'k-diffusion/DiscreteSchedule.get_sigmas': lambda c, a: [
        (schedules.schedule('normal', c['n'], alphas_cumprod=ARRAYS[c['table']]), a)],
    'k-diffusion/DiscreteSchedule.sigma_to_t': discrete_index,
    'k-diffusion/DiscreteSchedule.t_to_sigma': lambda c, a: [
        (levels.sigma_of_index(a[0], table_levels(c)), a[1])],
    'k-diffusion/get_ancestral_step': lambda c, a: [
        (levels.ancestral_split(*a[:, :3].T), a[:, 3:].T)],
}


def test_every_case_of_the_reference_set_is_checked():
  assert len(CASES) == 213
  assert len({case['id'] for case in CASES}) == 213
  assert collections.Counter(case['kind'] for case in CASES) == COUNTS
  assert set(CHECKS) == set(COUNTS)
  assert {case['id'] for case in CASES} == set(ARRAYS)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['id'])
def test_reference_numbers(case):
  for got, expected, *tolerance in CHECKS[case['kind']](case, ARRAYS[case['id']]):
    rtol, atol = [*tolerance, *(1e-10, 0)[len(tolerance):]]
    assert np.shape(got) == expected.shape
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize('model', ['stable_diffusion_1', 'stable_diffusion_xl',
                                   'stable_video_diffusion'])
def test_published_lists_are_given_as_printed(model):
  published = json.loads((GOLDEN / 'published_grids.json').read_text())['ays'][model]['sigmas']
  np.testing.assert_array_equal(schedules.schedule('ays', model=model), published)
  twice = schedules.schedule('ays', 20, model=model)
  np.testing.assert_allclose(twice[::2], published, rtol=1e-14)
  np.testing.assert_allclose(twice[1:-3:2]**2, twice[:-4:2] * twice[2:-2:2], rtol=1e-13)


def test_the_published_grid_of_gits_lies_on_its_fine_grid():
  published = json.loads((GOLDEN.parent / 'gits' / 'anchors.json').read_text())['published_grids']
  printed = published['readme_cifar10_num_steps_7']
  grid = schedules.schedule('gits', 6, model='cifar10')
  np.testing.assert_array_equal(grid, printed['t'])
  np.testing.assert_array_equal(schedules.schedule('gits', model='cifar10'), grid)
  fine = schedules.schedule('polynomial', 60, 0.002, 80.0, rho=7)
  np.testing.assert_allclose(fine[printed['indices_in_the_61_point_polynomial_rho7_grid']], grid,
                             atol=5e-5)


# Laws over the registry.

ENDS_AT_SIGMA_MIN = ('polynomial', 'logsnr', 'time_uniform', 'discrete', 'subset')
LENGTHS = (1, 2, 3, 10, 37)


@pytest.mark.parametrize('name', schedule_cases.FREE)
@pytest.mark.parametrize('steps', LENGTHS)
def test_grids_decrease_over_the_right_number_of_levels(name, steps):
  grid = schedule_cases.grid(name, steps)
  assert grid.dtype == np.float64
  assert grid.shape == (steps + 1,)
  assert np.all(np.diff(grid) < 0)
  if name in ENDS_AT_SIGMA_MIN:
    assert grid[-1] == RANGE[0]
  else:
    assert grid[-1] == 0
    assert grid[-2] > 0


# Those from one end of the range to the other, the whole table included.
BOTH_ENDS = ('polynomial', 'logsnr', 'time_uniform', 'discrete', 'edm', 'vp', 've', 'karras',
             'exponential', 'polyexponential', 'normal', 'beta', 'kl_optimal', 'laplace',
             'respaced', 'subset')


@pytest.mark.parametrize('name', BOTH_ENDS)
@pytest.mark.parametrize('steps', [1, 10])
def test_grids_reach_both_ends_of_the_range(name, steps):
  grid = schedule_cases.grid(name, steps)
  positive = grid[grid > 0]
  assert grid[0] == pytest.approx(RANGE[1], rel=1e-12)
  if len(positive) > 1:
    assert positive[-1] == pytest.approx(RANGE[0], rel=1e-12)


@pytest.mark.parametrize('rho', [1, 5, 7.5])
def test_karras_is_edm_is_polynomial_with_a_zero(rho):
  edm = schedules.schedule('edm', 9, 0.002, 80.0, rho=rho)
  np.testing.assert_array_equal(schedules.schedule('karras', 9, 0.002, 80.0, rho=rho), edm)
  np.testing.assert_array_equal(schedules.schedule('polynomial', 8, 0.002, 80.0, rho=rho), edm[:-1])


def test_logsnr_is_exponential_and_ve_without_the_zero():
  plain = schedules.schedule('logsnr', 8, 0.002, 80.0)
  for name in ('exponential', 've', 'polyexponential'):
    np.testing.assert_allclose(schedules.schedule(name, 9, 0.002, 80.0)[:-1], plain, rtol=1e-13)
  np.testing.assert_allclose(plain[1:] / plain[:-1], 40000**-0.125, rtol=1e-13)


def test_polynomial_with_rho_1_has_equal_steps_and_tends_to_logsnr():
  steps = np.diff(schedules.schedule('polynomial', 16, 0.1, 12.0, rho=1))
  np.testing.assert_allclose(steps, -11.9 / 16, rtol=1e-12)
  np.testing.assert_allclose(schedules.schedule('polynomial', 16, 0.1, 12.0, rho=1e6),
                             schedules.schedule('logsnr', 16, 0.1, 12.0), rtol=1e-4)


@pytest.mark.parametrize('rho', [1, 2])
def test_time_uniform_on_the_range_of_adm_is_discrete_without_a_table(rho):
  low, high = levels.sigma_of_vp_time(np.array([1e-3, 1.0]), 19.9, 0.1)
  uniform = schedules.schedule('time_uniform', 12, low, high, rho=rho)
  discrete = schedules.schedule('discrete', 12, low, high, rho=rho)
  np.testing.assert_allclose(uniform, discrete, rtol=1e-10)
  if rho == 1:
    vp = schedules.schedule('vp', 13, low, high)
    np.testing.assert_allclose(vp[:-1], uniform, rtol=1e-12)
    np.testing.assert_allclose(schedules.schedule('kvp', 13), vp, rtol=1e-10)


def test_discrete_steps_are_equal_powers_of_time_inside_the_range_of_the_table():
  low, high = 3 * RANGE[0], RANGE[1] / 2.5
  grid = schedules.schedule('discrete', 9, low, high, alphas_cumprod=SD, rho=2)
  roots = np.sqrt(levels.time_of_sigma(grid, SD))
  np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 9, rtol=1e-9)
  assert (grid[0], grid[-1]) == (high, low)


def test_discrete_of_a_whole_number_of_training_steps_hits_the_table():
  grid = schedules.schedule('discrete', 9, *RANGE, alphas_cumprod='stable_diffusion')
  np.testing.assert_allclose(grid[::-1], levels.table_sigmas(SD)[::111], rtol=1e-10)


def test_table_schedules_keep_to_a_range_inside_the_table():
  beta = schedules.schedule('beta', 40, 0.1, 5.0, alphas_cumprod=SD)
  assert beta[0] == pytest.approx(5.0, rel=2e-3)  # It takes entries of the table.
  assert 0.1 < beta[-2] < 0.12
  wide = schedules.schedule('sgm_uniform', 7, 1e-3, 80.0, alphas_cumprod=SD)
  np.testing.assert_array_equal(wide, schedules.schedule('sgm_uniform', 7, alphas_cumprod=SD))


def test_beta_with_a_table_keeps_equal_neighbours_once():
  grid = schedules.schedule('beta', 400, alphas_cumprod=SD)
  assert len(grid) < 401
  assert np.all(np.isin(grid[:-1], levels.table_sigmas(SD)))


@pytest.mark.parametrize('a, b', [
    (0.6, 0.6), (0.5, 0.5), (1, 1), (2, 1), (1, 3), (0.3, 1), (40, 1)])
def test_beta_quantile_agrees_with_closed_forms(a, b):
  p = np.concatenate([[0.0, 1e-12, 1e-5, 0.5, 1 - 1e-9, 1.0], np.linspace(0.01, 0.99, 33)])
  x = quantile_grids.beta_quantile(p, a, b)
  if (a, b) == (0.5, 0.5):  # The arcsine law.
    np.testing.assert_allclose(x, np.sin(np.pi / 2 * p)**2, rtol=1e-12)
  elif b == 1:
    np.testing.assert_allclose(x, p**(1 / a), rtol=1e-13)
  elif a == 1:
    np.testing.assert_allclose(x, 1 - (1 - p)**(1 / b), rtol=1e-12, atol=1e-15)
  else:
    np.testing.assert_allclose(x + quantile_grids.beta_quantile(1 - p, b, a), 1, rtol=1e-13)
    assert x[3] == 0.5


@pytest.mark.parametrize('a', [0.1, 0.3, 0.6, 0.7, 1.3, 2.5, 4, 11.1])
def test_the_median_of_a_symmetric_beta_is_exactly_one_half(a):
  # Half way up a table of 1000 entries is a tie of rounding, 499.5.
  assert quantile_grids.beta_quantile(0.5, a, a) == 0.5


def test_beta_quantile_has_the_density_of_the_distribution():
  a, b = 0.6, 2.7
  p = np.linspace(0.05, 0.95, 19)
  below, x, above = (quantile_grids.beta_quantile(p + shift, a, b) for shift in (-1e-5, 0, 1e-5))
  slope, density = above - below, x**(a - 1) * (1 - x)**(b - 1)
  assert np.ptp(slope * density) < 1e-6 * np.mean(slope * density)


@pytest.mark.parametrize('name', ['edm', 'polynomial', 'vp'])
def test_rounding_gives_levels_of_the_network_in_any_order_and_never_a_positive_zero(name):
  network = levels.iddpm_levels()
  shuffled = np.random.default_rng(0).permutation(network)
  grid = schedules.schedule(name, 12, 0.002, 81.0, levels=shuffled)
  np.testing.assert_array_equal(grid, schedules.schedule(name, 12, 0.002, 81.0, levels=network))
  assert np.all(np.isin(grid, network))
  assert np.all(grid[:12] > 0)  # 0.002 is nearer to 0 than to the lowest level, 0.0064.
  plain = schedules.schedule(name, 12, 0.002, 81.0)
  coarse = plain > 0.05  # Neighbours of the network are then at most 20% apart.
  assert np.max(np.abs(grid[coarse] / plain[coarse] - 1)) < 0.1


def test_rounding_may_repeat_a_level():
  """More steps than the network has levels: the grid keeps its length, solvers stand still."""
  grid = schedules.schedule('edm', 5, 0.5, 20.0, levels=[20.0, 1.0])
  np.testing.assert_array_equal(grid, [20, 1, 1, 1, 1, 0])


def test_iddpm_counts_the_ends_of_the_range_whatever_their_last_digits():
  low, high = levels.preconditioning_range('iddpm')
  exact = schedules.schedule('iddpm', 20, low, high)
  assert (exact[0], exact[-2]) == (high, low)
  near = schedules.schedule('iddpm', 20, low * (1 + 1e-12), high * (1 - 1e-12))
  np.testing.assert_array_equal(near, exact)


def test_explicit_takes_its_list_and_ignores_the_rest():
  grid = schedules.schedule('explicit', 50, 0.002, 80.0, sigmas=(10, 3, 0))
  assert grid.dtype == np.float64
  assert grid.tolist() == [10.0, 3.0, 0.0]
  given = np.array([10.0, 1.0])
  assert schedules.schedule('explicit', sigmas=given).tolist() == [10.0, 1.0]


def test_options_are_those_of_the_signatures():
  assert schedules.schedule_options('time_uniform') == {'rho': 1, 'epsilon_s': 1e-3}
  assert schedules.schedule_options('logsnr') == {}
  assert schedules.schedule_options('explicit') == {'sigmas': None}
  for name in schedules.SCHEDULES:
    given = schedules.schedule_options(name) | OPTIONS.get(name, {})
    np.testing.assert_array_equal(
        schedules.schedule(name, 6, RANGE[0], 1e3, **given),
        schedules.schedule(name, 6, RANGE[0], 1e3, **OPTIONS.get(name, {})))
