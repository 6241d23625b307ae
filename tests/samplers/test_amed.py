"""AMED-Solver and AMED-Plugin: reference numbers, the tables they become for constant r, costs."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from models import amed_predictor
from samplers import amed, table as table_lib
from tests import reference
from tests.samplers import amed_cases

SAMPLERS = amed_cases.cases('sampler')
RECORDED = amed_cases.ARRAYS['samplers']
over_samplers = pytest.mark.parametrize('case', SAMPLERS, ids=lambda case: case['id'])
over_teachers = pytest.mark.parametrize('case', amed_cases.cases('teacher'),
                                        ids=lambda case: case['id'])


def test_every_recorded_case_is_replayed():
  kinds = collections.Counter(case['kind'] for case in amed_cases.MANIFEST['cases'])
  assert kinds == {'sampler': 21, 'teacher': 9, 'training': 8}
  students = collections.Counter(case['student'] for case in SAMPLERS)
  assert students == {'amed': 5, 'euler': 2, 'dpm': 2, 'ipndm': 5, 'dpmpp': 7}


@functools.cache
def _features(*settings):
  """One program for all cases of a denoiser: steps run one operation at a time."""
  return jax.jit(amed_cases.features(*settings))


@functools.partial(jax.jit, static_argnames='predictor')
def _predict(params, bottleneck, sigma, sigma_next, predictor):
  return amed_predictor.predict(params, bottleneck, sigma, sigma_next, predictor)


def _setting(case):
  """Grid, start, options and predictor of a case."""
  grid = amed_cases.grid(case, case['num_steps'])
  params = amed_cases.params(amed_cases.ARRAYS['sampler_predictors'], case['predictor'] + '/')
  module = amed_cases.predictor(params, case['scale_dir'], case['scale_time'])
  options = {name: case[name] for name in ('max_order', 'predict_x0', 'lower_order_final')
             if case.get(name) is not None}
  options.update(student=case['student'], afs=case['afs'])
  predict = functools.partial(_predict, params, predictor=module)
  return grid, jnp.asarray(RECORDED['z'][:case['batch']] * grid[0]), options, predict


@over_samplers
def test_steps_match_the_reference(case):
  key = case['key']
  grid, x, options, predict = _setting(case)
  # Published grids of 'time_uniform' lose digits where ours do not: hence 1e-10.
  np.testing.assert_allclose(grid, RECORDED[f'{key}/t_steps'], rtol=1e-10)
  denoise = _features(case.get('guidance_rate'), amed_cases.limited(case))
  seen, calls = [], []

  def asked(x, sigma):
    if not isinstance(x, jax.core.Tracer):  # With AFS the shape of the bottleneck is asked, too.
      calls.append(sigma)
    return denoise(x, sigma)

  def predicted(bottleneck, sigma, sigma_next):
    seen.append(bottleneck)
    return predict(bottleneck, sigma, sigma_next)

  carry = amed.start(x, student=case['student'], max_order=case.get('max_order'))
  for i in range(len(grid) - 1):
    carry, told = amed.step(asked, predicted, carry, grid, i, **options)
    assert amed_cases.relative(carry.x, RECORDED[f'{key}/traj'][i + 1]) < 1e-9
    assert amed_cases.relative(np.stack(list(told.values())),
                               RECORDED[f'{key}/r_dir_time'][i]) < 1e-9
    np.testing.assert_allclose(seen[i], RECORDED[f'{key}/bottleneck_mean'][i], atol=1e-9)
  assert list(told) == ['r', 'scale_dir', 'scale_time']
  asked_more = int(case['denoise_to_zero'])
  assert len(calls) + asked_more == case['network_calls']


def test_the_scan_takes_the_same_steps():
  case = next(case for case in SAMPLERS if case['denoise_to_zero'])
  grid, x, options, predict = _setting(case)
  denoise = amed_cases.features()

  @jax.jit
  def sample(x, sigmas):  # The grid is an argument: levels and numbers of intervals are traced.
    return amed.sample(denoise, predict, x, sigmas, denoise_to_zero=True, trajectory=True,
                       **options)
  samples, states = sample(x, grid)
  wanted = RECORDED[f'{case["key"]}/traj']
  assert states.shape == wanted.shape == (len(grid) + 1, *x.shape)
  assert amed_cases.relative(states, wanted) < 1e-9
  assert amed_cases.relative(samples, wanted[-1]) < 1e-9


@over_teachers
def test_teachers_match_the_reference(case):
  arrays, key = amed_cases.ARRAYS['teachers'], case['key']
  grid = amed_cases.grid(case, case['num_steps_teacher'])
  np.testing.assert_allclose(grid, arrays[f'{key}/t_steps_teacher'], rtol=1e-10)
  np.testing.assert_allclose(amed_cases.grid(case, case['num_steps']),
                             grid[::case['M'] + 1], rtol=1e-10)
  table = samplers.make(case['teacher'], grid, **case['options'])
  assert table.nfe == case['network_calls']
  run = reference.sampler(amed_cases.plain(None, amed_cases.limited(
      {**case, **case['options']})))
  x = jnp.asarray(arrays['z'] * case['sigma_max'])
  for step, row in enumerate(np.flatnonzero(~np.isnan(table.level)), start=1):
    first = table_lib.Table(*(field[:row + 1] for field in (
        table.sigma, table.kind, table.mix, table.noise, table.level, table.interval)))
    assert amed_cases.relative(run(first, x), arrays[f'{key}/full'][step]) < 1e-9
  assert case['slice_indices'] == list(range(case['M'] + 1, len(grid), case['M'] + 1))
  np.testing.assert_array_equal(arrays[f'{key}/slices'],
                                arrays[f'{key}/full'][case['slice_indices']])


# Two samples, each with a level of its own in every interval.
R = np.array([0.3, 0.6])
GRID = samplers.schedule('polynomial', 3, 0.1, 20.0)
EXACT = reference.gaussian_denoiser(0.5, 0.2)


def plain_features(x, sigma):
  sigma = jnp.reshape(sigma, (-1, 1, 1, 1))
  return EXACT(x, sigma), jnp.zeros((len(x), 2, 2), x.dtype)


def constant(bottleneck, sigma, sigma_next):
  return jnp.asarray(R, bottleneck.dtype), 1.0, 1.0


def start():
  return GRID[0] * np.random.default_rng(0).standard_normal((2, 2, 2, 1))


def walk(x, sigmas, predict=constant, **options):
  """The steps one by one, which need no compilation of their own."""
  x = jnp.asarray(x)
  start_options = {name: options[name] for name in ('student', 'max_order') if name in options}
  carry = amed.start(x, **start_options)
  for i in range(len(sigmas) - 1):
    carry, _ = amed.step(plain_features, predict, carry, sigmas, i, **options)
  return carry.x


@pytest.mark.parametrize('student, options', [
    ('euler', {}),
    ('dpm', {}),
    *(('ipndm', {'max_order': order}) for order in (1, 2, 3, 4)),
    *(('dpmpp', {'max_order': order, 'predict_x0': data, 'lower_order_final': lower})
      for order in (1, 2, 3) for data in (True, False) for lower in (True, False)),
], ids=str)
@pytest.mark.parametrize('afs', [False, True])
def test_without_scales_a_plugin_is_its_solver_on_the_finer_grid(student, options, afs):
  x = start()
  found = walk(x, GRID, student=student, afs=afs, **options)
  for r, image, end in zip(R, x, found, strict=True):
    finer = np.sort([*GRID, *(GRID[1:]**r * GRID[:-1]**(1 - r))])[::-1]
    if student == 'dpm':  # There the level in between is the solver's own.
      table = samplers.make('dpm', GRID, r=r, afs=afs)
    else:
      table = samplers.make(student, finer, afs=afs, **options)
    wanted = reference.sampler(EXACT)(table, image[None])[0]
    assert amed_cases.relative(end, np.asarray(wanted)) < 1e-12


@pytest.mark.parametrize('student, order', [('amed', 2), ('dpm', 2), ('euler', 1)])
def test_global_error_has_the_order_of_the_method(student, order):
  def error(count):  # Midpoints in log sigma are those in sigma on short intervals.
    sigmas = np.geomspace(2.0, 0.5, count + 1)
    found = walk(jnp.ones((2, 1, 1, 1)), sigmas, lambda *_: (0.5, 1.0, 1.0), student=student)
    wanted = reference.gaussian_flow(1.0, 2.0, 0.5, 0.5, 0.2)
    return float(jnp.max(jnp.abs(found - wanted)))
  assert np.log2(error(16) / error(32)) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize('afs, denoise_to_zero, wanted', [
    (False, False, 6), (True, True, 6)])
def test_evaluations_are_those_that_happen(afs, denoise_to_zero, wanted):
  calls = collections.Counter()

  def counted(x, sigma):
    jax.debug.callback(lambda: calls.update(['network']))
    return plain_features(x, sigma)
  result = jax.jit(lambda x: amed.sample(counted, constant, x, GRID, student='ipndm', afs=afs,
                                         denoise_to_zero=denoise_to_zero))(start())
  jax.block_until_ready(result)
  jax.effects_barrier()
  assert calls['network'] == wanted


@pytest.mark.parametrize('student, options', [('ipndm', {'max_order': 4}),
                                              ('dpmpp', {'max_order': 2, 'afs': True})])
def test_gradients_of_whole_runs_are_those_of_differences(student, options):
  x = start()

  @jax.jit
  @jax.value_and_grad
  def loss(numbers, sigmas):
    def predict(bottleneck, sigma, sigma_next):
      return tuple(numbers)
    end = amed.sample(plain_features, predict, jnp.asarray(x), sigmas, student=student, **options)
    return jnp.sum(end**2)

  point, step = np.array([[0.4, 0.6], [0.98, 1.01], [1.1, 0.9]]), 1e-5
  value, gradient = loss(point, GRID)
  alone = walk(x, GRID, lambda *_: tuple(jnp.asarray(point)), student=student, **options)
  assert float(value) == pytest.approx(float(jnp.sum(alone**2)), rel=1e-12)
  for index in np.ndindex(point.shape):
    shift = np.zeros_like(point)
    shift[index] = step
    difference = (loss(point + shift, GRID)[0] - loss(point - shift, GRID)[0]) / (2 * step)
    # Central differences: relative error about step^2.
    assert float(gradient[index]) == pytest.approx(float(difference), rel=1e-6, abs=1e-8)


def test_no_gradient_reaches_the_network_through_the_bottleneck():
  x = start()

  def end(weight, through):
    def features(x, sigma):
      denoised, bottleneck = plain_features(x, sigma)
      return denoised, bottleneck + weight

    def predict(bottleneck, sigma, sigma_next):
      seen = jnp.mean(bottleneck, (1, 2))
      return jax.nn.sigmoid(through * seen), 1.0, 1.0
    carry = amed.start(jnp.asarray(x), student='amed')
    return jnp.sum(amed.step(features, predict, carry, GRID, 0, student='amed')[0].x)
  by_weight, by_predictor = jax.jit(jax.grad(end, (0, 1)))(1.0, 2.0)
  assert by_weight == 0 and abs(by_predictor) > 1e-3


@pytest.mark.float32
def test_single_precision_stays_near_double():
  x = start()
  found = jax.jit(lambda x: amed.sample(plain_features, constant, x, GRID, student='ipndm'))(
      jnp.asarray(x, jnp.float32))
  assert found.dtype == jnp.float32
  with jax.enable_x64(True):
    wanted = np.asarray(walk(x, GRID, student='ipndm', max_order=4))
  # Six steps round states of up to 3 * 20, and weights up to 59 / 24 enlarge what slopes lose.
  assert np.max(np.abs(np.asarray(found, np.float64) - wanted)) < 6 * 60 * 6e-8 * 59 / 24


def flat_features(x, sigma):
  return plain_features(x, sigma)[0], jnp.zeros((len(x), 4), x.dtype)


def small_features(x, sigma):
  return x[:, :1], plain_features(x, sigma)[1]


@pytest.mark.parametrize('changes, match', [
    ({'student': 'heun'}, "amed: unknown student 'heun'.*known: amed, dpm, dpmpp, euler, ipndm"),
    ({'student': 'dpmpp', 'max_order': 4}, 'amed: dpmpp: max_order must be an integer from 1 to 3'),
    ({'student': 'ipndm', 'max_order': 5}, 'amed: ipndm: max_order must be an integer from 1 to 4'),
    ({'student': 'ipndm', 'max_order': 0}, 'amed: ipndm: max_order .* got 0'),
    ({'afs': 'yes'}, "amed: afs must be True or False, got 'yes'"),
    ({'student': 'dpmpp', 'predict_x0': 1}, 'amed: predict_x0 must be True or False, got 1'),
    ({'denoise_to_zero': 0}, 'amed: denoise_to_zero must be True or False'),
    ({'sigmas': [2.0, 1.0, 0.0]}, 'amed: sigmas must end above 0.*end the grid at sigma_min'),
    ({'sigmas': [2.0, 1.0, 1.0]}, 'amed: sigmas must decrease strictly.* got 1 twice from index 1'),
    ({'sigmas': [1.0, 2.0]}, 'amed: sigmas must decrease'),
    ({'x': jnp.ones((2, 2, 2))}, 'amed: x must be floats of shape'),
    ({'x': jnp.ones((2, 2, 2, 1), int)}, 'amed: x must be floats.* got int'),
    ({'denoise_features': small_features}, 'amed: denoise_features must return D like x'),
    ({'denoise_features': flat_features}, r'of shape \(2, height, width\), got \(2, 4\)'),
    ({'predict': lambda *_: (jnp.ones(3), 1.0, 1.0)}, 'amed: predict must return r, scale_dir and'),
], ids=lambda part: part if isinstance(part, str) else next(iter(part)))
def test_bad_input_is_explained(changes, match):
  arguments = {'denoise_features': plain_features, 'predict': constant, 'x': jnp.ones((2, 2, 2, 1)),
               'sigmas': GRID, 'student': 'amed', **changes}
  with pytest.raises(ValueError, match=match):
    amed.sample(**arguments)
