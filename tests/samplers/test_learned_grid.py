"""Learned grids: LD3's parametrisation, the start at the given grid, and what gradients may do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samplers
from samplers import learned, learned_grid
from tests import reference

SIGMAS = samplers.schedule('polynomial', 5, 0.02, 20.0, rho=7)
DATA = reference.gaussian_denoiser(0.5, 0.2)
X = np.linspace(-30.0, 30.0, 8).reshape(2, 2, 2, 1)

levels_of_gaps = jax.jit(learned_grid.levels_of_gaps, static_argnames='mode')
shown_levels = jax.jit(learned_grid.shown_levels, static_argnames=('mode', 'window'))


@pytest.mark.parametrize('mode, count', [('time', 2), ('lambda', 2)])
def test_recorded_grids(mode, count):
  manifest, arrays = reference.load('beyond_schedules')
  cases = [case for case in manifest['cases'] if case['kind'] == 'ld3' and case['mode'] == mode]
  assert len(cases) == count
  for case in cases:
    recorded = {name: arrays['schedules'][case['id'] + name]
                for name in ('', '/network_levels', '/params1', '/params2')}
    ends = jnp.asarray([case['sigma_max'], case['sigma_min']])
    sigma = levels_of_gaps(jnp.asarray(recorded['/params1']), ends, mode)
    shown = shown_levels(
        sigma, jnp.asarray(recorded['/params2']), mode, case['window_rate'])
    assert len(sigma) == case['num_steps'] + 1
    np.testing.assert_allclose(sigma, recorded[''], rtol=1e-10)
    np.testing.assert_allclose(shown, recorded['/network_levels'], rtol=1e-10)


@pytest.mark.parametrize('mode', learned_grid.MODES)
def test_starts_at_the_given_grid(mode):
  uneven = np.array([80.0, 79.9, 3.0, 0.5, 0.002])

  def start(sigmas):
    design = learned.design('grid', sigmas, mode=mode)
    return design.describe(design.initial(jax.random.key(0)))

  for described in (jax.jit(lambda: start(uneven))(), jax.jit(start)(uneven)):  # Known and traced.
    np.testing.assert_allclose(described['sigma'], uneven, rtol=1e-12)
    np.testing.assert_array_equal(described['shown'], described['sigma'])
    assert (described['sigma'][0], described['sigma'][-1]) == (uneven[0], uneven[-1])


@pytest.mark.float32
@pytest.mark.parametrize('mode', learned_grid.MODES)
def test_starts_at_the_given_grid_in_single_precision(mode):
  """To the rounding of an exponential of up to log(40000), also at levels far below the first."""
  sigmas = samplers.schedule('polynomial', 18, 0.002, 80.0, rho=7)
  design = learned.design('grid', sigmas, mode=mode)
  described = jax.jit(design.describe)(design.initial(jax.random.key(0)))
  assert described['sigma'].dtype == jnp.float32
  np.testing.assert_allclose(described['sigma'], sigmas, rtol=3e-6)


@pytest.mark.parametrize('solver, afs', [
    ('ipndm', True), ('dpmpp', False), ('unipc', True), ('dpm', False), ('ddim', False)])
def test_starts_as_the_plain_solver(solver, afs):
  options = {'max_order': 3} if 'max_order' in samplers.options(solver) else {}
  design = learned.design('grid', SIGMAS[:4], solver=solver, afs=afs)
  plain = samplers.make(solver, SIGMAS[:4], afs=afs, **options)
  samples = jax.jit(lambda learned, x: design.solve(learned, DATA, x))(
      design.initial(jax.random.key(0)), X)
  np.testing.assert_allclose(samples, reference.sampler(DATA)(plain, X), rtol=1e-12)


def test_takes_every_solver_without_noise():
  tables = {name: samplers.make(name, SIGMAS) for name in samplers.SOLVERS}
  taken = {name for name, table in tables.items() if not table.noise.any()}
  assert {'ipndm', 'deis', 'unipc', 'dpm_fast', 'ddim', 'etd', 'stsp'} <= taken < set(tables)
  for name in taken:
    design = learned.design('grid', SIGMAS, solver=name)
    assert (design.nfe, design.calls, design.loss) == (tables[name].nfe, tables[name].nfe, 'end')
  for name in set(tables) - taken:
    with pytest.raises(ValueError, match=f"grid: solver must be one without noise, got '{name}'"):
      learned.design('grid', SIGMAS, solver=name)


@pytest.mark.parametrize('mode', learned_grid.MODES)
def test_levels_decrease_whatever_the_numbers(mode):
  ends = jnp.asarray([80.0, 0.002])
  for seed in range(20):
    rng = np.random.default_rng(seed)
    gaps, offsets = (jnp.asarray(rng.normal(0, size, 9)) for size in (3.0, 100.0))
    sigma = levels_of_gaps(gaps, ends, mode)
    shown = shown_levels(sigma, offsets, mode, 0.49)
    for levels in (sigma, shown):
      assert np.all(np.diff(levels) < 0)
      np.testing.assert_array_equal(levels[jnp.array([0, -1])], ends)
    # What acts on nothing: a common constant, and the first entry.
    same = levels_of_gaps((gaps + 5).at[0].set(7.0), ends, mode)
    np.testing.assert_allclose(same, sigma, rtol=1e-12)


def test_shifts_are_bounded_by_the_smallest_gap():
  sigma = jnp.asarray([8.0, 4.0, 3.0, 1.0])
  shown = shown_levels(sigma, jnp.asarray([9.0, 9.0, -0.1, 9.0]), 'time', 0.5)
  np.testing.assert_allclose(shown, [8.0, 4.5, 2.9, 1.0], rtol=1e-15)
  shown = shown_levels(sigma, jnp.asarray([9.0, 9.0, -0.1, 9.0]), 'lambda', 0.5)
  np.testing.assert_allclose(
      shown, [8.0, 4 * np.sqrt(3 / 4), 3 * np.exp(0.1), 1.0], rtol=1e-15)


@pytest.mark.parametrize('mode, share', [('lambda', 0.5), ('time', 2 - np.sqrt(2))])
def test_stages_between_levels_move_with_them(mode, share):
  """The stages of dpm, geometric means, are at `share` of a step that halves the level."""
  sigma, shown = jnp.asarray([8.0, 4.0, 2.0, 1.0]), jnp.asarray([8.0, 4.2, 1.9, 1.0])
  table = samplers.make('dpm', sigma, r=0.5)
  moved = jax.jit(learned_grid.show, static_argnames='mode')(table, sigma, shown, mode)
  np.testing.assert_allclose(moved.sigma[::2], shown[:-1], rtol=1e-14)
  if mode == 'lambda':
    expected = np.sqrt(shown[:-1] * shown[1:])
  else:
    shift = shown - sigma
    expected = table.sigma[1::2] + (1 - share) * shift[:-1] + share * shift[1:]
  np.testing.assert_allclose(moved.sigma[1::2], expected, rtol=1e-14)
  np.testing.assert_array_equal(moved.mix, table.mix)


@functools.cache
def lesson():
  """A design, and the gradient of its distance to the exact end in all that is learned."""
  sigmas = SIGMAS[2:]
  design = learned.design('grid', sigmas, max_order=2, afs=True)
  exact = reference.gaussian_flow(X, sigmas[0], sigmas[-1], 0.5, 0.2)

  def loss(learned, x):
    return jnp.sum((design.solve(learned, DATA, x) - exact)**2)
  compiled = jax.jit(jax.value_and_grad(loss))
  return design, lambda learned: compiled(learned, X)


def difference(function, numbers):
  """Central differences of a function of `gaps` and `shifts`, stacked: d/dnumber first."""
  def at(numbers):
    return np.asarray(function({'gaps': numbers[:4], 'shifts': numbers[4:]}))
  return np.array([(at(numbers + step) - at(numbers - step)) / 2e-5 for step in 1e-5 * np.eye(8)])


DEAD = [0, 4, 7]  # What acts on nothing, of 4 gaps and 4 shifts: see `grid`.


def test_gradients():
  """Against differences, through the grid, the solver on it, and what the network is shown."""
  _, loss = lesson()
  numbers = np.random.default_rng(1).normal(0, 0.3, 8)
  _, gradient = loss({'gaps': numbers[:4], 'shifts': numbers[4:]})
  gradient = np.concatenate([gradient['gaps'], gradient['shifts']])
  assert not gradient[DEAD].any()
  assert np.abs(np.delete(gradient, DEAD)).min() > 1e-3 * np.abs(gradient).max()
  # Differences: 1e-10 of truncation, 1e-11 of rounding, relative to the largest.
  np.testing.assert_allclose(gradient, difference(lambda learned: loss(learned)[0], numbers),
                             atol=1e-8 * np.abs(gradient).max())


@pytest.mark.parametrize('mode', learned_grid.MODES)
def test_gradients_of_levels(mode):
  @jax.jit
  def levels(learned):
    return jnp.stack(learned_grid.levels_of(learned, SIGMAS[2:], mode, 0.5))

  numbers = np.random.default_rng(1).normal(0, 0.3, 8)
  slopes = jax.jit(jax.jacfwd(levels))({'gaps': numbers[:4], 'shifts': numbers[4:]})
  slopes = np.concatenate([slopes['gaps'], slopes['shifts']], axis=-1)
  assert not slopes[..., DEAD].any() and not slopes[:, [0, -1]].any()  # The ends stay.
  np.testing.assert_allclose(np.moveaxis(slopes, -1, 0), difference(levels, numbers), atol=1e-8)


def test_grids_of_one_length_share_a_program():
  """In sampling, what was learned and the grid are arguments."""
  traces = []

  @jax.jit
  def sample(numbers, sigmas, x):
    traces.append(sigmas.shape)
    return learned.design('grid', sigmas, solver='dpmpp').solve(numbers, DATA, x)

  for high in (20.0, 40.0):
    sigmas = samplers.schedule('polynomial', 4, 0.02, high)
    design = learned.design('grid', sigmas, solver='dpmpp')
    numbers = design.initial(jax.random.key(0))
    expected = reference.sampler(DATA)(samplers.make('dpmpp', sigmas, max_order=3), X)
    np.testing.assert_allclose(sample(numbers, sigmas, X), expected, rtol=1e-12)
  assert traces == [(5,)]


def test_training_comes_closer_to_the_exact_end():
  design, loss = lesson()
  optimizer = optax.adam(design.learning_rate)
  with jax.numpy_dtype_promotion('standard'):  # Optimizers rely on it.
    @jax.jit
    def update(gradient, state, learned):
      change, state = optimizer.update(gradient, state)
      return state, optax.apply_updates(learned, change)

    values, learned_numbers = [], design.initial(jax.random.key(0))
    state = optimizer.init(learned_numbers)
    for _ in range(30):
      value, gradient = loss(learned_numbers)
      values.append(value.item())
      state, learned_numbers = update(gradient, state, learned_numbers)
  assert values[-1] < 0.5 * values[0]


@pytest.mark.parametrize('sigmas, options, message', [
    (SIGMAS, {'solver': 'ipmdn'}, "unknown solver 'ipmdn'; did you mean ipndm\\? known: "),
    (SIGMAS, {'solver': 'adaptive'}, "unknown solver 'adaptive'"),
    (SIGMAS, {'mode': 'sigma'}, "unknown mode 'sigma'; known: lambda, time"),
    (SIGMAS, {'window': 1.0}, 'window must be at least 0 and below 1, got 1.0; 0.5 is usual'),
    (SIGMAS, {'window': -0.1}, 'window must be .* got -0.1; '),
    (SIGMAS, {'window': 'wide'}, "window must be .* got 'wide'; "),
    (SIGMAS[:2], {}, 'sigmas must hold three or more levels, got 2; one step between'),
    ([3.0, 2.0, 2.0, 1.0], {}, 'sigmas must differ, got 2 twice at index 1; '),
])
def test_bad_input(sigmas, options, message):
  with pytest.raises(ValueError, match='^grid: ' + message):
    learned.design('grid', sigmas, **options)


@pytest.mark.parametrize('solver, highest', [('ipndm', 4), ('dpmpp', 3), ('unipc', 3)])
def test_orders_are_those_of_the_solver(solver, highest):
  learned.design('grid', SIGMAS, solver=solver, max_order=highest)
  with pytest.raises(ValueError, match=f'{solver}: max_order must be an integer from 1 to'):
    learned.design('grid', SIGMAS, solver=solver, max_order=highest + 1)
