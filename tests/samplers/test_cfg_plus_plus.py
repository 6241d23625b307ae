"""CFG++ with two answers per evaluation: recorded runs, relatives, and what it asks of a run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import cfg_plus_plus, gits, guidance, learned, moments, table as table_lib
from tests import reference
from tests.samplers import beyond_cases

FAMILY = beyond_cases.family('cfgpp')
SHAPE = 16, 2  # Rows and slots that all tables here fit in.
MIXTURE = beyond_cases.ARRAYS['mixture']
WIDE, NARROW = (reference.gaussian_denoiser(std, mean) for std, mean in ((0.5, 0.7), (0.3, -0.2)))
GRIDS = {'open': [9.0, 4.0, 1.5, 0.6, 0.2], 'zero': [9.0, 4.0, 1.5, 0.6, 0.0]}
every_solver = pytest.mark.parametrize('name', cfg_plus_plus.SOLVERS)


def test_every_recorded_run_is_here():
  assert len(FAMILY) == 9 and {case['options']['kind'] + '_cfg_pp' for case in FAMILY.values()} == {
      *cfg_plus_plus.SOLVERS}


def make(case):
  options = {name: value for name, value in case['options'].items()
             if name not in ('kind', 'scale')}
  return samplers.make(case['options']['kind'] + '_cfg_pp', beyond_cases.grid(case), **options)


def linear_map(table, scale):
  """The run as a matrix on [latent, events in turn]: an evaluation is two, uncond then cond."""
  draws = np.any(table.noise != 0, axis=1)
  state = np.zeros((table.slots, 1 + 2 * table.nfe + draws.sum()))
  state[0, 0] = table.sigma[0]
  inputs, column = [], 0
  for mix, noise, drawn in zip(table.mix, table.noise, draws, strict=True):
    answers = np.zeros((2, state.shape[1]))
    inputs.append(state[0])
    answers[:, column + 1] = 1 - scale, 1  # Guided = (1 - scale) uncond + scale cond, and uncond.
    answers[0, column + 2] = scale
    column += 2
    state = mix @ np.concatenate([state, answers])
    if drawn:
      column += 1
      state[:, column] += noise
  return np.stack([*inputs, state[0]])


@pytest.mark.parametrize('case', FAMILY.values(), ids=FAMILY)
def test_recorded_coefficients(case):
  table = make(case)
  assert table.nfe == case['nfe'] and table.slots == case['slots'] and table.answers == 2
  np.testing.assert_allclose(reference.evaluation_levels(table),
                             beyond_cases.array(case, 'eval_sigma'), rtol=1e-12)
  assert np.flatnonzero(table.noise.any(1)).tolist() == case['noise_rows']
  # Entries reach the first level, 20, where rounding in another order is 1e-14.
  np.testing.assert_allclose(linear_map(table, case['options']['scale']),
                             beyond_cases.array(case, 'linear_map'), rtol=0, atol=1e-12)


@functools.cache
def mixture_program():
  uncond = reference.mixture_denoiser(MIXTURE)
  there = MIXTURE['w_cond'] > 0
  cond = reference.mixture_denoiser({'w': MIXTURE['w_cond'][there], 'mu': MIXTURE['mu'][there],
                                     's': MIXTURE['s'][there]})

  def sample(table, number, x, noise, scale):
    return samplers.run(table, guidance.classifier_free(cond, uncond, scale), x,
                        draw=lambda row, x: noise[number[row]])
  return jax.jit(sample)


@pytest.mark.parametrize('case', FAMILY.values(), ids=FAMILY)
def test_recorded_samples(case):
  table = samplers.pad(make(case), *SHAPE)
  number = np.maximum(np.cumsum(np.any(table.noise != 0, axis=1)) - 1, 0)
  latents = beyond_cases.ARRAYS['latents']
  samples = mixture_program()(table, number, table.sigma[0] * latents['latents'],
                              latents['noise'], case['options']['scale'])
  np.testing.assert_allclose(samples, beyond_cases.array(case, 'final'), rtol=0,
                             atol=case['atol'])


# -- Relatives ------------------------------------------------------------------------------------


@pytest.mark.parametrize('grid', GRIDS.values(), ids=GRIDS)
@every_solver
def test_with_one_image_for_both_answers_it_is_the_solver_that_it_is_named_after(name, grid):
  table, plain = samplers.make(name, grid), samplers.make(name.removesuffix('_cfg_pp'), grid)
  joined = np.concatenate([table.mix[..., :-2], table.mix[..., -2:].sum(-1, keepdims=True)], -1)
  one = samplers.Table(table.sigma, table.kind, joined, table.noise, table.level, table.interval)
  np.testing.assert_allclose(beyond_cases.linear_map(one), beyond_cases.linear_map(plain),
                             atol=1e-13)
  for ours, theirs in zip(moments.gaussian_moments(table, 0.7, 0.2),
                          moments.gaussian_moments(plain, 0.7, 0.2), strict=True):
    assert ours == pytest.approx(theirs, rel=1e-13)


def test_euler_is_euler_with_a_scale_for_each_level():
  """And that scale with the solver of two answers is CFG++ too, and not twice."""
  grid = GRIDS['zero']
  one, two = samplers.make('euler', grid), samplers.make('euler_cfg_pp', grid)

  @jax.jit
  def ends(x):
    by_level = guidance.cfg_plus_plus(NARROW, WIDE, 0.6, grid)
    return [samplers.run(table, denoise, x) for table, denoise in (
        (one, by_level), (two, by_level), (two, guidance.classifier_free(NARROW, WIDE, 0.6)))]
  expected, *others = ends(4.5 * X)
  for end in others:
    np.testing.assert_allclose(end, expected, rtol=1e-12)


# -- Two answers through all that a run does ------------------------------------------------------


X = np.random.default_rng(1).standard_normal((2, 3, 3, 1)) * 2


def by_hand(guided, unguided):
  """One step of Euler's from 2 to 0.5."""
  return guided + 0.25 * (X - unguided)


@functools.cache
def steps():
  """The same step with what may be around a guided denoiser, by one program."""
  def log_prob(x, sigma):
    return x.sum((1, 2, 3))
  limited = guidance.clip(guidance.classifier_free(lambda x, s: 3 * x, lambda x, s: 2 * x, 0.5))
  cases = {
      'limited': (limited, {}), 'limited, then raw': (limited, {'denoise_to_zero': True}),
      'gradient': (guidance.classifier(WIDE, log_prob, 0.3), {}), 'free': (WIDE, {'afs': True}),
      'gradient of guided': (guidance.classifier(guidance.classifier_free(NARROW, WIDE, 1.0),
                                                 log_prob, 0.3), {}),
      'outside': (guidance.classifier_free(NARROW, WIDE, 0.5, (0.1, 1.0)), {})}
  run = jax.jit(lambda x: {
      name: samplers.run(samplers.make('euler_cfg_pp', [2.0, 0.5], **options), denoise, x)
      for name, (denoise, options) in cases.items()})
  return jax.tree.map(np.asarray, run(X))


@pytest.mark.parametrize('name, guided, unguided', [
    ('limited', np.clip(2.5 * X, -1, 1), np.clip(2 * X, -1, 1)),  # A limit acts on both.
    ('gradient', WIDE(X, 2.0) + 1.2, WIDE(X, 2.0)),  # It moves the image and not the noise.
    ('gradient of guided', NARROW(X, 2.0) + 1.2, WIDE(X, 2.0)),
    ('outside', NARROW(X, 2.0), NARROW(X, 2.0)),  # Of the interval the noise is the image's own.
    ('free', X * (1 - 2 / 5**0.5), X * (1 - 2 / 5**0.5))])  # The analytical first step.
def test_both_answers_through_all_that_a_run_does(name, guided, unguided):
  np.testing.assert_allclose(steps()[name], by_hand(guided, unguided), rtol=1e-12)


def test_the_image_before_a_limit_is_the_guided_one():
  np.testing.assert_allclose(steps()['limited, then raw'], 2.5 * steps()['limited'], rtol=1e-12)


@functools.cache
def built():
  """Tables of traced grids, with all that all tables have, by one program."""
  def tables(grids):
    return {(name, end): samplers.build(name, grid, final_zero=end == 'zero', afs=True,
                                        denoise_to_zero=end != 'zero')
            for end, grid in grids.items() for name in cfg_plus_plus.SOLVERS}
  return jax.jit(tables)({end: np.array(grid) for end, grid in GRIDS.items()})


@every_solver
def test_padding_and_tracing(name):
  for end, grid in GRIDS.items():
    table = samplers.make(name, grid)
    padded = samplers.pad(table, 12, 4)
    assert padded.mix.shape == (12, 4, 6) and padded.nfe == table.nfe
    np.testing.assert_array_equal(linear_map_of_guided(padded), linear_map_of_guided(table))
    made = samplers.make(name, grid, afs=True, denoise_to_zero=end != 'zero')
    for field in ('sigma', 'kind', 'mix', 'noise', 'level', 'interval'):
      np.testing.assert_allclose(getattr(built()[name, end], field), getattr(made, field),
                                 rtol=1e-12, atol=1e-14)


def linear_map_of_guided(table):
  """What a constant guided and another constant unguided image make of each draw and the start."""
  state = np.zeros((table.slots, 3))
  state[0, 0] = 1
  for kind, mix in zip(table.kind, table.mix, strict=True):
    answers = np.eye(3)[1:] * (kind != table_lib.NOTHING)
    state = mix @ np.concatenate([state, answers])
  return state[0]


@every_solver
def test_constants_and_invariance(name):
  """Where both images are one constant the state stays it; without noise grids may rise."""
  for grid in GRIDS.values():
    state, guided, unguided = linear_map_of_guided(samplers.make(name, grid))
    assert state + guided + unguided == pytest.approx(1, abs=1e-13)
  quiet = {'eta': 0.0} if 'eta' in samplers.options(name) else {}
  rising = samplers.make(name, GRIDS['open'][::-1], **quiet)
  assert rising.level[~np.isnan(rising.level)].tolist() == GRIDS['open'][-2::-1]


@pytest.mark.parametrize('name, options, message', [
    ('euler_ancestral_cfg_pp', {'eta': -0.1}, 'eta must be a finite number of at least 0, got -0'),
    ('dpmpp_2s_ancestral_cfg_pp', {'s_noise': 'x'}, "s_noise must be a finite .*, got 'x'; 0 is"),
    ('gradient_estimation_cfg_pp', {'gamma': np.inf}, 'gamma must be a finite number, got inf; 1'),
])
def test_bad_options(name, options, message):
  with pytest.raises(ValueError, match=f'^{name}: {message}'):
    samplers.make(name, GRIDS['open'], **options)


def test_traced_levels_need_a_fixed_number_of_rows():
  with pytest.raises(ValueError, match='eta must be at most 1 where the levels are traced, got 2'):
    samplers.build('dpmpp_2s_ancestral_cfg_pp', jnp.asarray(GRIDS['open']), eta=2.0)


def test_other_readers_of_tables_see_the_guided_image():
  """The search for grids measures its slopes, and a learned grid takes the solver."""
  table = samplers.make('euler_cfg_pp', GRIDS['open'])
  watched = gits._with_slopes(table, GRIDS['open'], [False] * 4)
  assert watched.answers == 2 and watched.nfe == table.nfe
  assert learned.design('grid', GRIDS['open'], solver='euler_cfg_pp').nfe == 4
