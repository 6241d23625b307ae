"""Schedules of ComfyUI and diffusers, of flows and students, against reference numbers."""

import collections

import numpy as np
import pytest

from samplers import (
  flow_grids,
  levels,
  quantile_grids,
  schedules,
  table_grids,
  timestep_grids,
)
from tests import reference

MANIFEST, _STORED = reference.load('beyond_schedules')
STORED = _STORED['schedules']
CASES = [case for case in MANIFEST['cases'] if case['kind'] != 'ld3']  # See test_learned_grid.py.
NAMES = {'sd': 'stable_diffusion', 'cosine': 'cosine', 'ddpm': 'ddpm'}  # Of the tables.

COUNTS = {
    'timestep_spacing': 26, 'beta': 18, 'simple': 13, 'sgm_uniform': 13, 'flow_dynamic': 12,
    'laplace': 10, 'kl_optimal': 8, 'flow_dpm': 8, 'flow_shift': 8, 'ays': 6, 'optimal_steps': 6,
    'ddim_uniform': 5, 'normal': 4, 'linear_quadratic': 4, 'df_karras': 4, 'df_lu_lambdas': 4,
    'df_exponential': 4, 'df_beta': 4, 'ld3': 4, 'lcm_timesteps': 3, 'sd_turbo': 2,
    'flow_shift_terminal': 2, 'pndm_timesteps': 2, 'zero_terminal_snr_alphas_cumprod': 1}

# Fields of a case that are options of the schedule of its kind.
OPTIONS = {'beta': ('alpha', 'beta'), 'laplace': ('mu', 'beta'), 'ays': ('model',),
           'optimal_steps': ('model',), 'linear_quadratic': ('threshold_noise', 'linear_steps'),
           'timestep_spacing': ('spacing', 'style', 'steps_offset', 'final', 'lambda_min_clipped'),
           'flow_dynamic': ('image_seq_len', 'mu', 'time_shift_type'),
           'flow_shift_terminal': ('shift', 'shift_terminal'), 'flow_dpm': ('shift',),
           'flow_shift': ('shift',)}


def grid(case):
  """The levels of a case."""
  kind, options = case['kind'], {}
  if kind.startswith('df_'):  # diffusers' grids between the ends of a table.
    kind, options = 'timestep_spacing', {'rescale': case['kind'][3:], 'final': case['final']}
  if case.get('table') == 'flow':
    options['shift'] = case['shift']
  elif 'table' in case:
    options['alphas_cumprod'] = NAMES[case['table']]
  options |= {option: case[option] for option in OPTIONS.get(kind, ()) if option in case}
  return schedules.schedule(kind, case['num_steps'], case.get('sigma_min'), case.get('sigma_max'),
                            **options)


def is_flow(case):
  return (case.get('table') == 'flow' or case['kind'].startswith('flow')
          or case['kind'] == 'optimal_steps')


def recorded_grid(case):
  """The stored levels; times of a flow as levels; and where the original leaves out a zero, one."""
  stored = STORED[case['id']]
  if case['kind'] == 'laplace':
    return np.append(stored, 0.0)
  if not is_flow(case):
    return stored
  infinite = stored > 1 - 1e-12
  return np.where(infinite, flow_grids.HIGHEST, stored / np.where(infinite, 1.0, 1 - stored))


def test_every_case_of_the_reference_set_is_checked():
  assert len(MANIFEST['cases']) == 171
  assert collections.Counter(case['kind'] for case in MANIFEST['cases']) == COUNTS


@pytest.mark.parametrize('case', CASES, ids=lambda case: case['id'])
def test_reference_numbers(case):
  kind, stored = case['kind'], STORED[case['id']]
  if kind == 'lcm_timesteps':
    timesteps = timestep_grids.lcm_timesteps(
        case['num_steps'], case['original_steps'], case['strength'])
    np.testing.assert_array_equal(timesteps, stored)
  elif kind == 'pndm_timesteps':
    np.testing.assert_array_equal(
        timestep_grids.pndm_timesteps(case['num_steps'], case['steps_offset']), stored)
  elif kind == 'zero_terminal_snr_alphas_cumprod':
    table = levels.zero_terminal_snr(levels.read_alphas_cumprod('test', NAMES[case['table']]))
    # Entries near the end are differences, of roots of 1e-1 with 1e-16 of rounding.
    np.testing.assert_allclose(table, stored, rtol=1e-10)
    assert table[-1] == 0
  else:
    np.testing.assert_allclose(grid(case), recorded_grid(case), rtol=1e-10)


@pytest.mark.parametrize('case', [case for case in CASES if case['kind'] == 'timestep_spacing'],
                         ids=lambda case: case['id'])
def test_timesteps(case):
  clipped = {'last': int(STORED[case['id'] + '/timesteps'][0]) + 1} if (
      'lambda_min_clipped' in case) else {}
  np.testing.assert_allclose(
      timestep_grids.spaced_timesteps(case['num_steps'], case['spacing'], case['style'],
                                      case['steps_offset'], **clipped),
      STORED[case['id'] + '/timesteps'], rtol=1e-13)


def test_published_lists_are_the_stored_ones():
  for model in ('FLUX', 'Wan', 'Chroma'):
    stored = STORED[f'optimal_steps_levels/{model}']
    sigmas = schedules.schedule('optimal_steps', model=model)
    assert len(sigmas) == len(stored)
    finite = stored[:-1] < 1
    np.testing.assert_allclose(sigmas[:-1][finite], (stored / (1 - stored + (stored == 1)))[:-1][
        finite], rtol=1e-13)


# A shift of times is a product of levels.

@pytest.mark.parametrize('name, options', [
    ('flow_shift', {}), ('flow_dpm', {}), ('simple', {}), ('beta', {}), ('ddim_uniform', {})])
def test_a_shift_multiplies_levels(name, options):
  plain, shifted = (schedules.schedule(name, 10, shift=shift, **options) for shift in (1.0, 2.5))
  finite = plain != flow_grids.HIGHEST
  assert finite.sum() >= 10
  np.testing.assert_allclose(shifted[finite], 2.5 * plain[finite], rtol=1e-13)


def test_kinds_of_shift_agree_where_they_mean_the_same():
  dynamic = schedules.schedule('flow_dynamic', 7, mu=3.0, time_shift_type='linear')
  np.testing.assert_allclose(
      schedules.schedule('flow_dynamic', 7, mu=np.log(3)), dynamic, rtol=1e-13)
  last = dynamic[-2] / (1 + dynamic[-2])  # Nothing to stretch.
  for name, options in (('flow_shift_terminal', {'shift': 3.0}),
                        ('flow_dynamic', {'mu': 3.0, 'time_shift_type': 'linear'})):
    same = schedules.schedule(name, 7, shift_terminal=last, **options)
    np.testing.assert_allclose(same, dynamic, rtol=1e-12)
  for steps in (2, 9):
    stretched = schedules.schedule('flow_dynamic', steps, shift_terminal=0.1)
    assert stretched[-2] == pytest.approx(0.1 / 0.9, rel=1e-12)


FROM_NOISE = [('flow_shift', {}), ('flow_dynamic', {}), ('flow_shift_terminal', {}),
              ('optimal_steps', {'model': 'Wan'}), ('simple', {'shift': 1.0}),
              ('normal', {'shift': 3.0}), ('sgm_uniform', {'shift': 0.5}), ('beta', {'shift': 1.0})]


@pytest.mark.parametrize('name, options', FROM_NOISE)
def test_the_infinite_level_of_a_flow(name, options):
  """It is a finite one, by default or as given, and above all others; these stay."""
  usual = schedules.schedule(name, 4, **options)
  assert usual[0] == flow_grids.HIGHEST == pytest.approx(4096, rel=1e-7)
  given = schedules.schedule(name, 4, 0.002, 1e3, **options)
  assert given[0] == 1e3
  np.testing.assert_array_equal(given[1:], usual[1:])
  with pytest.raises(ValueError, match=f'^{name}: sigma_max must be above the second level, .* a '
                     'flow, got 0.5; raise it, take fewer steps'):
    schedules.schedule(name, 4, 0.002, 0.5, **options)
  np.testing.assert_array_equal(schedules.schedule(name, 1, **options), [flow_grids.HIGHEST, 0])


def test_a_level_above_the_highest_is_still_below_the_first():
  """Many steps under a large shift: the second level is 4995 here."""
  grid = schedules.schedule('beta', 72, shift=5.0)
  assert grid[1] > flow_grids.HIGHEST and grid[0] == 2 * grid[1]


def test_quantiles_of_a_narrow_beta_distribution():
  """Its median is its mean by symmetry; the probability of what lies below 1 rounds to 1."""
  assert quantile_grids.beta_quantile(np.array([0.5]), 100.0, 100.0) == pytest.approx(0.5)
  np.testing.assert_array_equal(quantile_grids.beta_quantile(np.array([0.0, 1.0]), 0.1, 100.0),
                                [0, 1])


def test_normal_and_sgm_uniform_of_a_flow_share_their_steps():
  """The second is the first of one more level, but for its last."""
  normal = schedules.schedule('normal', 6, shift=3.0)
  np.testing.assert_allclose(schedules.schedule('sgm_uniform', 5, shift=3.0)[:-1], normal[:-2],
                             rtol=1e-13)
  # The lowest time of the table, 1/1000, is shifted twice.
  assert normal[-2] == pytest.approx(9 / 999, rel=1e-12)


# Tables and timesteps.

def test_zero_terminal_snr_by_name_ends_in_a_finite_level():
  for name, count in (('stable_diffusion', 1000), ('cosine:4000', 4000), ('ddpm:21', 21)):
    plain = levels.read_alphas_cumprod('test', name)
    table = levels.read_alphas_cumprod('test', name + ':zero_snr')
    assert len(table) == count and table[0] == pytest.approx(plain[0], rel=1e-12)
    assert np.all(np.diff(table) < 0) and 0 < table[-1] <= 2**-24
    np.testing.assert_array_equal(table[:-1], levels.zero_terminal_snr(plain)[:-1])
  sigmas = schedules.schedule('timestep_spacing', 5, spacing='trailing',
                              alphas_cumprod='stable_diffusion:zero_snr')
  assert sigmas[0] == pytest.approx(4096, rel=1e-7)


@pytest.mark.parametrize('style', timestep_grids.STYLES)
@pytest.mark.parametrize('spacing', timestep_grids.SPACINGS)
@pytest.mark.parametrize('num', [1000, 997])
def test_timesteps_decrease_within_training_and_are_as_many_as_asked_for(spacing, style, num):
  for steps in range(1, 400):  # 1000 / steps rounds to either side.
    timesteps = timestep_grids.spaced_timesteps(steps, spacing, style, num=num)
    assert len(timesteps) == steps
    assert timesteps[0] < num and timesteps[-1] >= 0 and np.all(np.diff(timesteps) < 0)
    if spacing == 'trailing':
      assert timesteps[0] == num - 1


@pytest.mark.parametrize('rescale', timestep_grids.RESCALES)
def test_rescaled_grids_lie_between_the_ends_of_the_table_or_of_the_timesteps(rescale):
  table = levels.table_sigmas(levels.read_alphas_cumprod('test', 'stable_diffusion'))
  for spacing in timestep_grids.SPACINGS:
    given = {'alphas_cumprod': 'stable_diffusion', 'spacing': spacing, 'rescale': rescale}
    dpm, euler = (schedules.schedule('timestep_spacing', 6, style=style, **given)
                  for style in ('dpm', 'euler'))
    timesteps = timestep_grids.spaced_timesteps(6, spacing, 'euler')[[0, -1]]
    np.testing.assert_allclose(dpm[[0, -2]], table[[-1, 0]], rtol=1e-12)
    np.testing.assert_allclose(euler[[0, -2]], np.interp(timesteps, np.arange(1000), table),
                               rtol=1e-12)


def test_students_are_asked_at_levels_of_their_teachers_steps():
  table = levels.table_sigmas(levels.read_alphas_cumprod('test', 'ddpm'))
  lcm = schedules.schedule('lcm', 4, alphas_cumprod='ddpm')
  np.testing.assert_array_equal(lcm, [*table[[999, 759, 499, 259]], 0])
  turbo = schedules.schedule('sd_turbo', 3, alphas_cumprod='ddpm', strength=0.5)
  np.testing.assert_array_equal(turbo, [*table[[499, 399, 299]], 0])
  pndm = schedules.schedule('pndm', 10, alphas_cumprod='ddpm', steps_offset=1)
  np.testing.assert_array_equal(pndm, [*table[901::-100], 0])
  evaluations = timestep_grids.pndm_timesteps(10, 1)
  assert set(table[evaluations]) >= set(pndm[:-1])


def test_ddim_uniform_has_its_own_number_of_levels():
  """As published: 8 of 1000 for 7 steps, and the first is a stride below the highest."""
  table = table_grids.read_levels('test', 'stable_diffusion', None)
  for steps, expected in ((7, 8), (8, 8), (1, 1), (5000, 999)):
    sigmas = schedules.schedule('ddim_uniform', steps, alphas_cumprod='stable_diffusion')
    assert len(sigmas) == expected + 1
    assert sigmas[-2] == table[1]
