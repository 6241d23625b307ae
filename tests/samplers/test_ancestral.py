"""k-diffusion's stochastic solvers: reference runs with their noise, laws of variance, identities.

The deterministic cases of other solvers are in test_parity, those with churn in test_churn, those
with adaptive steps in test_adaptive.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import moments, table as table_lib
from tests import reference

KD, KD_ARRAYS = reference.load('kdiffusion')
ARRAYS = KD_ARRAYS['cases']
ELSEWHERE = ('euler', 'heun', 'dpm_2', 'lms', 'dpmpp_2m', 'dpm_adaptive')
CASES = {case['id']: case for case in KD['cases']
         if case['function'].removeprefix('sample_') not in ELSEWHERE}
MIXTURE = reference.mixture_denoiser(KD_ARRAYS['mixture'])
MEAN, VARIANCE = 0.7, 0.25

ONE_STEP = [('euler_ancestral', {}), ('dpm_2_ancestral', {}), ('dpmpp_2s_ancestral', {}),
            ('dpmpp_sde', {}), ('dpmpp_sde', {'r': 1 / 3})]
MULTISTEP = [('dpmpp_2m_sde', {}), ('dpmpp_2m_sde', {'solver_type': 'heun'}), ('dpmpp_3m_sde', {})]
FAST = [('dpm_fast', {})]
every_solver = pytest.mark.parametrize('name, options', ONE_STEP + MULTISTEP + FAST)


def grid(n, low=0.1, high=10.0):
  return samplers.schedule('polynomial', n, low, high)


# -- Reference runs -------------------------------------------------------------------------------


def test_all_stochastic_cases_are_here():
  assert collections.Counter(case['function'] for case in CASES.values()) == {
      'sample_euler_ancestral': 5, 'sample_dpm_2_ancestral': 5, 'sample_dpmpp_2s_ancestral': 5,
      'sample_dpmpp_sde': 6, 'sample_dpmpp_2m_sde': 10, 'sample_dpmpp_3m_sde': 5,
      'sample_dpm_fast': 5}
  others = collections.Counter(case['function'].removeprefix('sample_') for case in KD['cases']
                               if case['id'] not in CASES)
  assert others == {'euler': 5, 'heun': 5, 'dpm_2': 5, 'lms': 5, 'dpmpp_2m': 4, 'dpm_adaptive': 4}
  assert len(CASES) + others.total() == len(KD['cases']) == 69


def make(case):
  options = dict(case['options'])
  name = case['function'].removeprefix('sample_')
  if name == 'dpm_fast':
    sigmas = samplers.schedule('logsnr', *(options.pop(key) for key in (
        'n', 'sigma_min', 'sigma_max')))
  else:
    sigmas = ARRAYS[f'grid/{case["grid"]}']
  return samplers.make(name, sigmas, **options)


def noise_rows(table):
  return np.flatnonzero(table.noise.any(axis=1))


def linear_map(table):
  """As `reference.linear_map`, with a column for every draw too, and D and N in their order."""
  asks = np.isin(table.kind, (table_lib.DENOISE, table_lib.RAW))
  draws = table.noise.any(axis=1)
  state = np.zeros((table.slots, 1 + asks.sum() + draws.sum()))
  state[0, 0] = table.sigma[0]
  inputs, events = [], ''
  for r, mix in enumerate(table.mix):
    answer = np.zeros_like(state[:1])
    if asks[r]:
      inputs.append(state[0])
      events += 'D'
      answer[0, len(events)] = 1
    state = mix @ np.concatenate([state, answer])
    if draws[r]:
      events += 'N'
      state[:, len(events)] += table.noise[r]
  return np.stack([*inputs, state[0]]), events


@functools.cache
def replay():
  def run(table, numbers, x):
    noise = jnp.asarray(KD_ARRAYS['latents']['noise'])
    return samplers.run(table, MIXTURE, x, draw=lambda r, x: noise[numbers[r]])
  return jax.jit(run)


@pytest.mark.parametrize('name', CASES)
def test_reference_run(name):
  """Coefficients of answers and draws, levels and intervals, samples with the recorded noise."""
  case = CASES[name]
  table = make(case)
  assert table.nfe == case['nfe']
  np.testing.assert_allclose(reference.evaluation_levels(table), ARRAYS[f'{name}/eval_sigma'],
                             rtol=1e-12)
  # The original also draws what it multiplies by 0: those draws have no place in our tables.
  expected = ARRAYS[f'{name}/linear_map']
  acts = expected.any(axis=0)[1:]
  kept = [i for i, event in enumerate(case['events']) if event == 'D' or acts[i]]
  ours, events = linear_map(table)
  assert events == ''.join(case['events'][i] for i in kept)
  np.testing.assert_allclose(ours, expected[:, [0, *(i + 1 for i in kept)]], rtol=0, atol=1e-11)

  numbers = [k for k, i in enumerate(np.flatnonzero(np.array([*case['events']]) == 'N')) if acts[i]]
  rows = noise_rows(table)
  if case['options'].get('eta') == 0:
    assert not rows.size and np.isnan(table.interval).all()
  if rows.size:
    np.testing.assert_allclose(table.interval[rows], ARRAYS[f'{name}/noise_interval'][numbers],
                               rtol=1e-12)

  drawn = np.zeros(reference.SHAPE[0], int)
  drawn[rows] = numbers
  x = jnp.asarray(KD_ARRAYS['latents']['latents'] * table.sigma[0])
  final = replay()(samplers.pad(table, *reference.SHAPE), drawn, x)
  np.testing.assert_allclose(final, ARRAYS[f'{name}/final'], rtol=0, atol=case['atol'])


# -- Laws of variance -----------------------------------------------------------------------------


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0, 1.7])
@every_solver
def test_noise_keeps_the_marginal_variance(name, options, eta):
  """Data that are one point: after every step the state has the variance of its level."""
  sigmas = grid(7)
  for end in range(2, 8):
    table = samplers.make(name, sigmas[:end + 1], eta=eta, **options)
    mean, variance = moments.gaussian_moments(table, MEAN, 0.0, start=(MEAN, sigmas[0]**2))
    assert mean == pytest.approx(MEAN, rel=1e-12)
    assert variance == pytest.approx(sigmas[end]**2, rel=1e-11)


@every_solver
def test_the_added_variance_scales_with_s_noise(name, options):
  """For data that are one point the share of the draws in the variance is s_noise^2 of itself."""
  def variance(s_noise):
    table = samplers.make(name, grid(6), eta=1.0, s_noise=s_noise, **options)
    return moments.gaussian_moments(table, 0.0, 0.0)[1]
  none, half, whole = (variance(s_noise) for s_noise in (0.0, 0.5, 1.0))
  assert whole > 1.1 * none
  assert half - none == pytest.approx((whole - none) / 4, rel=1e-10)


@pytest.mark.parametrize('eta', [0.0, 0.5, 1.0])
@every_solver
def test_variance_on_gaussian_data_converges(name, options, eta):
  """Weak order: 1 for Euler, 2 for all others, along a Brownian path."""
  def error(n):
    table = samplers.make(name, grid(n), eta=eta, **options)
    first = MEAN, VARIANCE + table.sigma[0]**2
    mean, variance = moments.gaussian_moments(table, MEAN, VARIANCE, start=first)
    assert mean == pytest.approx(MEAN, rel=1e-10)  # At the mean D is the state itself.
    return abs(variance - VARIANCE - 0.1**2)
  order = 1 if name == 'euler_ancestral' else 2
  if name == 'dpm_fast' and eta == 0:  # Of order 3 but for its last steps.
    assert error(481) < error(241) / 2**1.8
  else:
    assert np.log2(error(240) / error(480)) == pytest.approx(order, abs=0.12)


def test_nested_draws_have_to_correlate():
  """Drawn by row, independently, the solver with two draws per step is of weak order 1 only."""
  def error(n):
    table = samplers.make('dpmpp_sde', grid(n))
    alone = table_lib.Table(table.sigma, table.kind, table.mix, table.noise, table.level)
    first = MEAN, VARIANCE + table.sigma[0]**2
    return abs(moments.gaussian_moments(alone, MEAN, VARIANCE, start=first)[1] - VARIANCE - 0.1**2)
  assert np.log2(error(240) / error(480)) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize('name, options', [*ONE_STEP[:3], *MULTISTEP, *FAST])
def test_short_steps_keep_their_digits(name, options):
  """eta = 1 adds sigma'^2 (1 - sigma'^2 / sigma^2), also where that nearly cancels."""
  ratio = 1 - 2.0**-30
  sigmas = 3.0 * ratio**np.arange(7)
  table = samplers.make(name, sigmas, eta=1.0, **options)
  rows = noise_rows(table)
  s, s1 = table.interval[rows].T
  expected = s1 / s * np.sqrt((s - s1) * (s + s1))
  # The levels themselves are rounded to 1e-16, which is 1e-7 of a step.
  np.testing.assert_allclose(table.noise[rows, 0], expected, rtol=1e-6 if name == 'dpm_fast'
                             else 1e-13)
  assert len(rows) >= 2


# -- Identities -----------------------------------------------------------------------------------


def maps(name, sigmas, **options):
  return reference.linear_map(samplers.make(name, sigmas, **options))


@pytest.mark.parametrize('first, second', [
    (('euler_ancestral', {}), ('euler', {})), (('dpm_2_ancestral', {}), ('dpm', {})),
    (('dpmpp_2s_ancestral', {}), ('dpmpp_sde', {'eta': 0.0})),
    (('dpmpp_2m_sde', {}), ('dpmpp_2m', {}))])
@pytest.mark.parametrize('last', [0.0, 0.02])
def test_without_noise_these_are_known_solvers(first, second, last):
  sigmas = [*grid(6, 0.05, 40.0), last]
  np.testing.assert_allclose(maps(first[0], sigmas, eta=0.0, **first[1]),
                             maps(second[0], sigmas, **second[1]), atol=1e-12)


def test_without_noise_three_steps_are_published_dpmpp():
  """The third step on: the second one has the exact integral where `dpmpp` has the midpoint's."""
  sigmas = grid(6, 0.05, 40.0)
  ours = samplers.make('dpmpp_3m_sde', sigmas, eta=0.0)
  other = samplers.make('dpmpp', sigmas, max_order=3, lower_order_final=False)
  np.testing.assert_allclose(ours.mix[2:], other.mix[2:], atol=1e-12)
  exact = samplers.make('dpmpp', sigmas, max_order=3, third='exact', lower_order_final=False)
  heun = samplers.make('dpmpp_2m_sde', sigmas, eta=0.0, solver_type='heun')
  np.testing.assert_allclose(ours.mix[:2], exact.mix[:2], atol=1e-12)
  np.testing.assert_allclose(heun.mix[1, 0, :2], exact.mix[1, 0, :2], atol=1e-12)


@pytest.mark.parametrize('eta', [0.3, 1.0])
def test_ancestral_euler_is_ddim_with_noise(eta):
  sigmas = [*grid(6), 0.0]
  ours, other = (samplers.make(name, sigmas, eta=eta) for name in ('euler_ancestral', 'ddim'))
  np.testing.assert_allclose(ours.mix, other.mix, atol=1e-13)
  np.testing.assert_allclose(ours.noise, other.noise, atol=1e-13)


@every_solver
def test_one_positive_level(name, options):
  """One step: to 0 the denoised image without any noise, else a step of the lowest order."""
  if name != 'dpm_fast':
    table = samplers.make(name, [5.0, 0.0], **options)
    np.testing.assert_array_equal(reference.linear_map(table), [[5, 0], [0, 1]])
    assert not table.noise.any() and np.isnan(table.interval).all()
  table = samplers.make(name, [5.0, 2.0], eta=1.0, **options)
  assert np.isfinite(table.mix).all() and table.level[-1] == 2.0
  # The one step of the adaptive grid is its last, which has no noise.
  assert table.noise.any() == (name != 'dpm_fast')


@pytest.mark.parametrize('option', ['eta', 's_noise'])
@every_solver
def test_what_is_known_to_be_0_is_not_drawn(name, options, option):
  for zero in (0, 0.0):
    table = samplers.make(name, grid(6), **{'eta': 1.0, **options, option: zero})
    assert not table.noise.any() and np.isnan(table.interval).all()


# -- Strong noise, traced tables, bad input -------------------------------------------------------


@pytest.mark.parametrize('name', ['dpm_2_ancestral', 'dpmpp_2s_ancestral'])
def test_noise_that_leaves_nothing_of_a_step(name):
  """From down = 0 on a step is the denoised image and noise: one evaluation, one draw."""
  sigmas = [10.0, 1.0, 0.9, 0.5]
  table = samplers.make(name, sigmas, eta=1.2)
  assert table.nfe == 5  # From 10 to 1 eta^2 (1 - 1/100) exceeds 1.
  np.testing.assert_array_equal(table.mix[0, 0], [0, 0, 1])
  assert table.noise[0, 0] == 1.0 and table.interval[0].tolist() == [10.0, 1.0]
  with pytest.raises(ValueError, match=f'{name}: eta must be at most 1 where .*, got 1.2; build'):
    samplers.build(name, jnp.asarray(sigmas), eta=1.2)


@every_solver
def test_build_is_make_with_noise(name, options):
  for sigmas in [grid(7), *([] if name == 'dpm_fast' else [np.append(grid(6), 0.0)])]:
    given = {**options, 'eta': 0.6, 's_noise': 1.1}
    made = samplers.make(name, sigmas, **given)
    built = samplers.build(name, jnp.asarray(sigmas), **given)
    for field in ('sigma', 'kind', 'mix', 'noise', 'level', 'interval'):
      np.testing.assert_allclose(getattr(built, field), getattr(made, field), rtol=1e-10,
                                 atol=1e-12, err_msg=field)


@every_solver
def test_gradients_with_respect_to_the_noise(name, options):
  """The strength of the noise can be learned, on one draw for all rows."""
  x = jnp.full((1, 1, 1, 1), 11.0)
  denoise = reference.gaussian_denoiser(0.5, MEAN)

  def end(eta, s_noise):
    table = samplers.build(name, jnp.asarray(grid(3, 0.2, 5.0)), eta=eta, s_noise=s_noise,
                           **options)
    return samplers.run(table, denoise, x, draw=lambda r, x: jnp.ones_like(x)).sum()

  at, along, step = np.array([0.5, 0.9]), np.array([1.0, 0.3]), 1e-5
  _, slope = jax.jvp(end, (*at,), (*along,))
  difference = (end(*(at + step * along)) - end(*(at - step * along))).item() / (2 * step)
  assert slope == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize('options, message', [
    ({'eta': -0.1}, ': eta must be a finite number of at least 0, got -0.1; 0 is deterministic'),
    ({'eta': None}, ': eta must be a finite number of at least 0, got None'),
    ({'eta': float('inf')}, ': eta must be a finite number of at least 0, got inf'),
    ({'s_noise': -1.0}, ': s_noise must be a finite number of at least 0, got -1.0'),
    ({'s_noise': 'x'}, ": s_noise must be a finite number of at least 0, got 'x'")])
@pytest.mark.parametrize('name', sorted({name for name, _ in ONE_STEP + MULTISTEP + FAST}))
def test_bad_noise(name, options, message):
  with pytest.raises(ValueError, match=name + message):
    samplers.make(name, grid(5), **options)


def test_bad_options():
  with pytest.raises(ValueError, match="dpmpp_2m_sde: unknown solver_type 'Heun'; did you mean h"):
    samplers.make('dpmpp_2m_sde', grid(5), solver_type='Heun')
  with pytest.raises(ValueError, match='dpmpp_sde: r must be above 0 and at most 1, got 0.0; 0.5'):
    samplers.make('dpmpp_sde', grid(5), r=0.0)
  with pytest.raises(ValueError, match='dpmpp_sde: sigmas must decrease for a solver with noise'):
    samplers.make('dpmpp_sde', [1.0, 5.0])
  assert samplers.make('dpmpp_sde', [1.0, 2.0, 5.0], eta=0.0).nfe == 4  # Inversion.
