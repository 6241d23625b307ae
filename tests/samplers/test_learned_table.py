"""Learned coefficients: the start at iPNDM and DPM++, consistency by construction, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import samplers
from samplers import adams, learned, learned_table
from tests import reference

SIGMAS = samplers.schedule('polynomial', 4, 0.02, 20.0, rho=7)
DATA = reference.gaussian_denoiser(0.5, 0.2)
X = np.linspace(-30.0, 30.0, 8).reshape(2, 2, 2, 1)
STARTS = ('ipndm', 4, False), ('ipndm', 3, True), ('dpmpp', 3, False), ('dpmpp', 2, True)


def solve(design, numbers):
  return jax.jit(lambda numbers, x: design.solve(numbers, DATA, x))(numbers, X)


def perturbed(design, size):
  """The numbers of a design, anywhere around their start."""
  rng = np.random.default_rng(2)
  start = design.initial(jax.random.key(0))
  return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, size, leaf.shape), start)


@pytest.mark.parametrize('solver, max_order, learn_grid', STARTS)
def test_starts_as_the_plain_solver(solver, max_order, learn_grid):
  for afs in (False, True):
    design = learned.design('coefficients', SIGMAS, solver=solver, max_order=max_order, afs=afs,
                            learn_grid=learn_grid)
    plain = samplers.make(solver, SIGMAS, max_order=max_order, afs=afs)
    assert (design.nfe, design.calls, design.loss) == (plain.nfe, plain.nfe, 'end')
  np.testing.assert_allclose(solve(design, design.initial(jax.random.key(0))),
                             reference.sampler(DATA)(plain, X), rtol=1e-12)


@pytest.mark.parametrize('solver, max_order, learn_grid', STARTS)
def test_is_consistent_whatever_the_numbers(solver, max_order, learn_grid):
  """A constant eps (ipndm) or D (dpmpp) is solved exactly, by any weights on any grid."""
  design = learned.design('coefficients', SIGMAS, solver=solver, max_order=max_order,
                          learn_grid=learn_grid)
  numbers, start = perturbed(design, 1.0), design.initial(jax.random.key(0))
  constant = np.linspace(-1.0, 1.0, 8).reshape(X.shape)
  if solver == 'ipndm':  # On x = X + (sigma - sigma_0) eps a constant eps is a constant D too.
    denoised, expected = X - SIGMAS[0] * constant, X + (SIGMAS[-1] - SIGMAS[0]) * constant
  else:
    denoised, expected = constant, constant + SIGMAS[-1] / SIGMAS[0] * (X - constant)

  @jax.jit
  def sample(numbers, wave):
    """`wave` is 0 for a constant answer; else the answers differ from step to step."""
    def denoise(x, sigma):
      return jnp.asarray(denoised) + wave * jnp.sin(x / 3 + sigma)
    return design.solve(numbers, denoise, jnp.asarray(X))

  np.testing.assert_allclose(sample(numbers, 0.0), expected, rtol=1e-10)
  assert np.abs(sample(numbers, 1.0) - sample(start, 1.0)).max() > 0.1


def test_describes_the_weights_of_each_step():
  start = learned.design('coefficients', SIGMAS, max_order=3, afs=True)
  weights = jax.jit(start.describe)(start.initial(jax.random.key(0)))['weights']
  rows = [adams.EQUAL_STEPS[order] + (0,) * (3 - order) for order in (1, 2, 3, 3)]
  np.testing.assert_allclose(weights, rows, atol=1e-14)
  changes = np.arange(8.0).reshape(4, 2)  # Those of answers that do not exist count for nothing.
  weights = jax.jit(start.describe)({'weights': changes})['weights']
  changes[0], changes[1, 1] = 0, 0
  changed = np.array(rows) + np.concatenate([-changes.sum(1, keepdims=True), changes], axis=1)
  np.testing.assert_allclose(weights, changed, atol=1e-13)


def test_describes_the_grid_where_it_is_learned():
  design = learned.design('coefficients', SIGMAS, solver='dpmpp', learn_grid=True)
  described = jax.jit(design.describe)(design.initial(jax.random.key(0)))
  np.testing.assert_allclose(described['sigma'], SIGMAS, rtol=1e-12)
  np.testing.assert_array_equal(described['shown'], described['sigma'])
  np.testing.assert_allclose(described['weights'].sum(1), 1, rtol=1e-13)
  # The first and, with lower_order_final, the last step have order 1.
  np.testing.assert_allclose(described['weights'][jnp.array([0, 3])], [[1, 0, 0]] * 2, atol=1e-13)


@functools.cache
def lesson(solver, learn_grid):
  """A design, and the gradient of its distance to the exact end in all that is learned."""
  sigmas, max_order = (SIGMAS[1:], 2) if learn_grid else (SIGMAS, 3)
  design = learned.design('coefficients', sigmas, solver=solver, max_order=max_order,
                          learn_grid=learn_grid)
  exact = reference.gaussian_flow(X, sigmas[0], sigmas[-1], 0.5, 0.2)

  def loss(learned, x):
    return jnp.sum((design.solve(learned, DATA, x) - exact)**2)
  compiled = jax.jit(jax.value_and_grad(loss))
  return design, lambda learned: compiled(learned, X)


@pytest.mark.parametrize('solver, learn_grid', [('ipndm', False), ('dpmpp', True)])
def test_gradients(solver, learn_grid):
  """Against central differences in random directions; what has no effect has no gradient."""
  design, loss = lesson(solver, learn_grid)
  numbers = perturbed(design, 0.1)
  _, gradient = loss(numbers)
  for seed in range(3):
    rng = np.random.default_rng(seed)
    way = jax.tree.map(lambda leaf, rng=rng: rng.standard_normal(leaf.shape), numbers)
    low, high = (loss(jax.tree.map(lambda leaf, step, sign=sign: leaf + sign * 1e-5 * step,
                                   numbers, way))[0].item() for sign in (-1, 1))
    slope = sum(np.sum(np.asarray(leaf) * step) for leaf, step in zip(
        jax.tree.leaves(gradient), jax.tree.leaves(way), strict=True))
    assert slope == pytest.approx((high - low) / 2e-5, rel=1e-6)
  weights = np.asarray(gradient['weights'])
  np.testing.assert_array_equal(weights != 0, np.tri(*weights.shape, -1, bool))


@pytest.mark.parametrize('solver, learn_grid', [('ipndm', False), ('dpmpp', True)])
def test_training_comes_closer_to_the_exact_end(solver, learn_grid):
  design, loss = lesson(solver, learn_grid)
  optimizer = optax.adam(design.learning_rate)
  with jax.numpy_dtype_promotion('standard'):  # Optimizers rely on it.
    @jax.jit
    def update(gradient, state, numbers):
      change, state = optimizer.update(gradient, state)
      return state, optax.apply_updates(numbers, change)

    values, numbers = [], design.initial(jax.random.key(0))
    state = optimizer.init(numbers)
    for _ in range(30):
      value, gradient = loss(numbers)
      values.append(value.item())
      state, numbers = update(gradient, state, numbers)
  assert values[-1] < 0.5 * values[0]


def test_reweighing_by_nothing_changes_nothing():
  for solver, data in (('ipndm', False), ('dpmpp', True)):
    table = samplers.make(solver, SIGMAS, max_order=3, afs=True)
    same = jax.jit(learned_table.reweigh, static_argnames='data')(
        table, SIGMAS, np.zeros((4, 2)), data=data)
    np.testing.assert_array_equal(same.mix, table.mix)
    np.testing.assert_array_equal(same.kind, table.kind)


@pytest.mark.parametrize('sigmas, options, message', [
    (SIGMAS, {'solver': 'unipc'}, "unknown solver 'unipc'; known: dpmpp, ipndm"),
    (SIGMAS, {'max_order': 5}, 'max_order must be an integer from 1 to 4, got 5'),
    (SIGMAS, {'solver': 'dpmpp', 'max_order': 4}, 'max_order must be .* from 1 to 3, got 4'),
    (SIGMAS, {'max_order': 1}, 'max_order must be at least 2, got 1; order 1 has no free'),
    (SIGMAS, {'learn_grid': 'no'}, "learn_grid must be True or False, got 'no'"),
    (SIGMAS[-2:], {}, 'sigmas must hold three or more levels, got 2; one step'),
    ([3.0, 2.0, 2.0, 1.0], {}, 'sigmas must differ, got 2 twice at index 1; '),
])
def test_bad_input(sigmas, options, message):
  with pytest.raises(ValueError, match='^coefficients: ' + message):
    learned.design('coefficients', sigmas, **options)
