"""Learned solvers in general: the registry, options, and the two ways to make a design."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import learned, learned_grid, learned_table
from tests import reference

SIGMAS = samplers.schedule('polynomial', 4, 0.1, 10.0, rho=7)
DATA = reference.gaussian_denoiser(0.5, 0.2)
X = np.linspace(-15.0, 15.0, 8).reshape(2, 2, 2, 1)


class State(NamedTuple):
  x: jax.Array
  sum: jax.Array


@pytest.fixture
def scaled_euler(monkeypatch):
  """A design of our own: Euler steps, each times a learned number, and a carry with a memory."""
  def scaled_euler(sigmas, *, first: float = 1.0, mode: str = 'plain', afs: bool = False,
                   max_order: int | None = None):
    del mode, afs, max_order
    levels = jnp.asarray(sigmas)

    def step(learned, denoise, carry, i):
      eps = (carry.x - denoise(carry.x, levels[i])) / levels[i]
      x = carry.x + learned['scale'][i] * (levels[i + 1] - levels[i]) * eps
      return State(x, carry.sum + x), {'scale': jnp.full(len(x), learned['scale'][i])}

    count = len(sigmas) - 1
    return learned.stepwise(
        lambda key: {'scale': jnp.full(count, first)}, lambda x: State(x, jnp.zeros_like(x)), step,
        count, nfe=count, calls=count, learning_rate=0.1, loss='intervals')

  monkeypatch.setattr(learned, 'DESIGNS', dict(learned.DESIGNS))
  return learned.register(scaled_euler)


def test_register_names_a_design_after_its_function(scaled_euler):
  assert learned.DESIGNS['scaled_euler'] is scaled_euler
  assert learned.design_options('scaled_euler') == {
      'first': 1.0, 'mode': 'plain', 'afs': False, 'max_order': None}
  assert learned.design_option_types('scaled_euler') == {
      'first': float, 'mode': str, 'afs': bool, 'max_order': int}
  assert learned.DESIGNS['grid'] is learned_grid.grid
  assert learned.DESIGNS['coefficients'] is learned_table.coefficients


def test_an_option_means_the_same_type_in_all_designs():
  """Options are fields of one config group."""
  types = {}
  for name in learned.DESIGNS:
    for option, kind in learned.design_option_types(name).items():
      assert types.setdefault(option, kind) is kind, (name, option)
  assert types['max_order'] is int and types['afs'] is bool and types['window'] is float


@pytest.mark.parametrize('name', ['coefficients', 'grid'])
def test_designs_keep_the_contract(name):
  """What training, sampling and reports rely on."""
  design = learned.design(name, SIGMAS[:3])
  assert design.nfe <= design.calls and design.loss in learned.LOSSES and design.learning_rate > 0
  start = design.initial(jax.random.key(0))
  assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(start))
  assert (design.start is None) == (design.step is None)
  evaluations = []

  def denoise(x, sigma):
    jax.debug.callback(lambda: evaluations.append(1))
    return DATA(x, sigma)

  samples = jax.jit(lambda start, x: design.solve(start, denoise, x))(start, X)
  jax.effects_barrier()
  assert samples.shape == X.shape and np.isfinite(samples).all()
  assert len(evaluations) == design.calls
  described = jax.eval_shape(design.describe, start)
  assert all(len(values) in (2, 3) for values in described.values())


def test_stepwise_is_the_loop_over_its_step(scaled_euler):
  design = learned.design('scaled_euler', SIGMAS, first=0.9)
  start = design.initial(jax.random.key(0))
  carry, scales = design.start(jnp.asarray(X)), []
  for i in range(4):
    carry, told = jax.jit(lambda carry, i: design.step(start, DATA, carry, i))(carry, i)
    scales.append(told['scale'])
  samples = jax.jit(lambda x: design.solve(start, DATA, x))(X)
  np.testing.assert_allclose(samples, carry.x, rtol=1e-12)
  np.testing.assert_array_equal(np.stack(scales), np.full((4, 2), 0.9))
  plain = learned.design('scaled_euler', SIGMAS)
  np.testing.assert_allclose(
      jax.jit(lambda x: plain.solve(plain.initial(jax.random.key(0)), DATA, x))(X),
      reference.sampler(DATA)(samplers.make('euler', SIGMAS), X), rtol=1e-12)


def test_of_table_hands_keys_to_the_scan():
  table = samplers.make('ddim', SIGMAS, eta=0.5)
  design = learned.of_table(
      lambda key: {}, lambda numbers: table, nfe=4, learning_rate=0.1, draws=True)
  assert (design.calls, design.loss, design.draws, design.start) == (4, 'end', True, None)
  with pytest.raises(ValueError, match='run: a table with noise needs its source, got neither key'):
    design.solve({}, DATA, X)
  with pytest.raises(ValueError, match=r'run: key must be one typed key per sample, shape \(2,\)'):
    design.solve({}, DATA, X, jax.random.key(0))


@pytest.mark.parametrize('name, sigmas, options, message', [
    ('gird', SIGMAS, {}, "unknown design 'gird'; did you mean grid\\? known: .*coefficients"),
    (None, SIGMAS, {}, 'unknown design None; known'),
    ('grid', SIGMAS, {'windw': 0.5}, "grid: unknown option 'windw'; did you mean window\\? known"),
    ('grid', SIGMAS, {'afs': 'no'}, "grid: afs must be True or False, got 'no'; a text is neither"),
    ('grid', [3.0, 1.0, 0.0], {}, 'grid: sigmas must end above 0, got a last level 0; end the'),
    ('grid', [1.0, 2.0, 3.0], {}, 'grid: sigmas must decrease, got 2 after 1 at index 1; sort'),
    ('grid', [3.0, np.nan, 1.0], {}, 'grid: sigmas must be finite, .* got nan at index 1; check'),
    ('grid', 'levels', {}, "grid: sigmas must be a list of numbers, got 'levels'; give a list"),
])
def test_bad_input(name, sigmas, options, message):
  with pytest.raises(ValueError, match='^' + message):
    learned.design(name, sigmas, **options)


@pytest.mark.parametrize('function', [learned.design_options, learned.design_option_types])
def test_options_of_an_unknown_design(function):
  with pytest.raises(ValueError, match="^unknown design 'grids'; did you mean grid\\? known: "):
    function('grids')
