"""Local truncation errors: closed forms on Gaussian data, and laws over all solvers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from evaluation import truncation
from tests import reference

STD = 0.5
DENOISE = reference.gaussian_denoiser(STD)
# All deterministic tables with their defaults; equal shapes share a program.
SOLVERS = [name for name in samplers.SOLVERS
           if not samplers.make(name, [80.0, 9.0, 1.0, 0.1]).noise.any()]
SHAPE = 80, 8
_REPLAY = jax.jit(lambda table, x, exact, restart: truncation.replay(
    table, DENOISE, x, exact, restart))


def solution(sigmas):
  """The exact trajectory of N(0, STD^2) from one start, (points, batch, height, width, 1)."""
  x = sigmas[0] * np.random.default_rng(0).standard_normal((2, 3, 3, 1))
  return np.stack([reference.gaussian_flow(x, sigmas[0], sigma, STD) for sigma in sigmas])


def replay(table, x, exact, restart):
  rows = truncation.ends(table)
  return np.asarray(_REPLAY(samplers.pad(table, *SHAPE), x, exact, restart).states)[rows]


@pytest.mark.parametrize('name', SOLVERS)
def test_without_restarts_it_is_the_sampler(name):
  sigmas = samplers.schedule('polynomial', 6, 0.05, 20.0)
  table, exact = samplers.make(name, sigmas), solution(sigmas)
  want = reference.sampler(DENOISE)(table, jnp.asarray(exact[0]))
  got = replay(table, exact[0], exact[1:], False)
  np.testing.assert_allclose(got[-1], want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('name', ['euler', 'heun', 'dpm'])
def test_a_one_step_solver_makes_the_same_step_alone(name):
  sigmas = samplers.schedule('polynomial', 6, 0.05, 20.0)
  exact = solution(sigmas)
  got = replay(samplers.make(name, sigmas), exact[0], exact[1:], True)
  for i in range(6):
    alone = reference.sampler(DENOISE)(samplers.make(name, sigmas[i:i + 2]), jnp.asarray(exact[i]))
    np.testing.assert_allclose(got[i], alone, rtol=1e-12)


@pytest.mark.parametrize('name, options, order', [
    ('euler', {}, 1), ('heun', {}, 2), ('dpmpp', {'max_order': 2, 'lower_order_final': False}, 2),
    ('ipndm_v', {'max_order': 3}, 3), ('lms', {'order': 3}, 3)])
def test_local_error_has_one_order_more_than_the_solver(name, options, order):
  def error(num_steps):
    sigmas = np.geomspace(2.0, 0.2, num_steps + 1)
    exact = solution(sigmas)
    states = replay(samplers.make(name, sigmas, **options), exact[0], exact[1:], True)
    return truncation.errors(states, exact[1:])[num_steps // 2].mean()  # With all its history.
  assert np.log2(error(20) / error(40)) == pytest.approx(order + 1, abs=0.25)


def test_euler_against_its_closed_form():
  sigmas = np.array([4.0, 2.0, 0.5])
  exact = solution(sigmas)
  got = truncation.errors(replay(samplers.make('euler', sigmas), exact[0], exact[1:], True),
                          exact[1:])
  s, s1 = sigmas[:-1], sigmas[1:]
  # x' = x + (s1 - s) s x / (s^2 + STD^2) on both sides of the exact factor.
  step = 1 + (s1 - s) * s / (s**2 + STD**2) - np.sqrt((s1**2 + STD**2) / (s**2 + STD**2))
  rms = np.sqrt(np.mean(exact[:-1]**2, axis=(-3, -2, -1)))
  np.testing.assert_allclose(got, np.abs(step)[:, None] * rms, rtol=1e-10)


def test_reference_passes_through_the_grid_and_converges():
  sigmas = samplers.schedule('edm', 6, 0.05, 20.0)[:-1]
  fine = truncation.refine(sigmas, 12)
  np.testing.assert_array_equal(fine[::12], sigmas)
  assert np.all(np.diff(fine) < 0)
  exact = solution(sigmas)
  x, solve = jnp.asarray(exact[0]), reference.sampler(DENOISE)
  def error(table):
    return truncation.errors(np.asarray(solve(table, x)), exact[-1]).max()
  six, twelve = (error(truncation.reference_table(sigmas, substeps)) for substeps in (3, 6))
  assert six > 4 * twelve  # Of order 3; fewer substeps have not settled to a factor of 8.
  assert twelve < 1e-2 * error(samplers.make('euler', sigmas))


def test_answers_of_euler_on_a_trajectory_are_its_denoised_images():
  sigmas = samplers.schedule('polynomial', 6, 0.05, 20.0)
  exact = solution(sigmas)
  table = samplers.pad(samplers.make('euler', sigmas), *SHAPE)
  answers = np.asarray(_REPLAY(table, exact[0], exact[1:], True).answers)[:6]
  for state, sigma, answer in zip(exact[:-1], sigmas[:-1], answers, strict=True):
    np.testing.assert_allclose(answer, DENOISE(state, sigma), rtol=1e-12)


@pytest.mark.parametrize('call, message', [
    (lambda: truncation.refine([1.0, 0.1, 0.0], 4), 'refine: sigmas must be above 0, got 0'),
    (lambda: truncation.refine([1.0, 0.1], 0), 'substeps must be an integer of at least 1, got 0'),
    (lambda: truncation.refine([0.1, 1.0], 4), 'refine: sigmas must decrease'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
