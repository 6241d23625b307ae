"""The scan: kinds of rows, noise, imputation, trajectories, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import table as table_lib
from tests import reference

SHAPE = (3, 4, 4, 2)
RNG = np.random.default_rng(0)
DENOISE = reference.gaussian_denoiser(0.5, 0.2)


def images(scale=1.0, shape=SHAPE):
  return jnp.asarray(RNG.standard_normal(shape) * scale)


def random_table(rows=6, slots=3, noisy=True, seed=0):
  """Any coefficients with all kinds of rows: the scan must not depend on what they mean."""
  rng = np.random.default_rng(seed)
  return samplers.Table(
      sigma=rng.uniform(0.1, 2, rows), kind=np.arange(rows, dtype=np.int32) % 4,
      mix=rng.standard_normal((rows, slots, slots + 1)) / 2,
      noise=rng.standard_normal((rows, slots)) * noisy,
      level=np.where(np.arange(rows) % 2, np.linspace(2, 1, rows), np.nan))


def loop(table, denoise, raw, guide, project, x, z, project_z):
  """The definition, row by row in NumPy: what `run` is, without scan, switch or cond."""
  state = np.zeros((table.slots, *x.shape))
  state[0] = x
  states = [np.asarray(x)]
  for r in range(table.rows):
    function = (denoise, guide, lambda x, sigma: np.zeros(x.shape), raw)[table.kind[r]]
    answer = np.asarray(function(jnp.asarray(state[0]), jnp.asarray(table.sigma[r])))
    state = np.tensordot(table.mix[r], np.concatenate([state, answer[None]]), 1)
    state = state + table.noise[r][:, None, None, None, None] * z[r]
    if not np.isnan(table.level[r]):
      state[0] = project(state[0], table.level[r], project_z[r])
      states.append(state[0])
  return state[0], np.stack(states)


def test_run_is_its_definition():
  table, x = random_table(), images()
  z, project_z = RNG.standard_normal((2, 6, *SHAPE))
  denoise = samplers.guidance.clip(DENOISE)

  def guide(x, sigma):
    return jnp.tanh(x) * sigma

  def project(x, sigma, z):
    return 0.7 * x + sigma * 0.1 * z

  out, states = samplers.run(table, denoise, x, draw=lambda r, x: jnp.asarray(z)[r], guide=guide,
                             project=project, project_draw=lambda r, x: jnp.asarray(project_z)[r],
                             trajectory=True)
  expected, expected_states = loop(table, denoise, DENOISE, guide, project, np.asarray(x), z,
                                   project_z)
  np.testing.assert_allclose(out, expected, rtol=1e-12)
  np.testing.assert_allclose(states, expected_states, rtol=1e-12)


def test_what_gives_one_image_gives_both_answers():
  """Of a row of any kind: the two columns of the answers count together."""
  table, x = random_table(noisy=False), images()
  share = np.random.default_rng(1).random((6, 3, 1))
  two = dataclasses.replace(table, mix=np.concatenate(
      [table.mix[..., :-1], share * table.mix[..., -1:], (1 - share) * table.mix[..., -1:]], -1))
  ends = [samplers.run(either, samplers.guidance.clip(DENOISE), x, guide=lambda x, sigma: x * sigma)
          for either in (table, two)]
  np.testing.assert_allclose(*ends, rtol=1e-12)


def one_row(kind):
  """x <- x + answer, on one slot."""
  return samplers.Table(sigma=np.ones(1), kind=np.array([kind], np.int32),
                        mix=np.ones((1, 1, 2)), noise=np.zeros((1, 1)), level=np.zeros(1))


@pytest.mark.parametrize('kind, gain', [(0, 0.5), (1, 3.0), (2, 0.0), (3, 2.0)])
def test_who_answers_a_row(kind, gain):
  def denoise(x, sigma):
    return x * 0.5
  denoise.raw = lambda x, sigma: x * 2.0
  x = images()
  out = samplers.run(one_row(kind), denoise, x, guide=lambda x, sigma: x * 3.0)
  np.testing.assert_allclose(out, x * (1 + gain), rtol=1e-14)


def test_without_a_guide_the_run_is_unguided():
  x = images()
  np.testing.assert_array_equal(samplers.run(one_row(1), DENOISE, x), x)


def test_without_a_limit_raw_is_the_denoiser():
  x = images()
  np.testing.assert_array_equal(samplers.run(one_row(3), DENOISE, x),
                                samplers.run(one_row(0), DENOISE, x))


def test_denoise_to_zero_returns_the_image_before_thresholding():
  sigmas, x = samplers.schedule('polynomial', 4, 0.1, 5.0), images(20.0)
  wide = reference.gaussian_denoiser(5.0)
  table = samplers.make('dpmpp', sigmas, denoise_to_zero=True)
  limited = samplers.guidance.dynamic_threshold(wide)
  out, states = samplers.run(table, limited, x, trajectory=True)
  np.testing.assert_allclose(out, wide(states[-2], sigmas[-1]), rtol=1e-12)
  assert abs(out).max() > 1.5


def test_trajectory_holds_the_grid_points_and_ends_with_the_sample():
  sigmas, x = samplers.schedule('karras', 5, 0.1, 10.0), images(10.0)
  out, states = samplers.run(samplers.make('unipc', sigmas), DENOISE, x, trajectory=True)
  assert states.shape == (6, *SHAPE)
  np.testing.assert_array_equal(states[0], x)
  np.testing.assert_array_equal(states[-1], out)


# -- Noise ----------------------------------------------------------------------------------------


def keys(seeds):
  return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def stochastic_table(name):
  return samplers.make(name, samplers.schedule('karras', 5, 0.1, 10.0), eta=1.0)


def test_a_sample_depends_on_its_own_key_alone():
  """One solver here; `test_noise` has all of the registry."""
  table, x = stochastic_table('ddim'), images(10.0)
  whole = samplers.run(table, DENOISE, x, key=keys([5, 6, 7]))
  part = samplers.run(table, DENOISE, x[1:2], key=keys([6]))
  np.testing.assert_allclose(whole[1:2], part, rtol=1e-12)
  other = samplers.run(table, DENOISE, x, key=keys([5, 99, 7]))
  np.testing.assert_allclose(other[::2], whole[::2], rtol=1e-12)
  assert abs(other[1] - whole[1]).max() > 0.1


def test_keys_and_padding():
  """More rows and slots leave every draw where it was."""
  table, x = stochastic_table('ddim'), images(10.0)
  run = reference.as_users_do(functools.partial(samplers.run, denoise=DENOISE))
  np.testing.assert_array_equal(run(table, x=x, key=keys([1, 2, 3])),
                                run(samplers.pad(table, 9, 4), x=x, key=keys([1, 2, 3])))


def test_draws_of_rows_are_independent_standard_normals():
  """Two rows that each write their draw into the state: moments over 9600 values."""
  count = 2
  mix = np.zeros((count, 2, 3))
  mix[0, 0, 0] = mix[1, 1, 0] = 1  # The second row keeps the first one's state in slot 1.
  table = samplers.Table(np.ones(count), np.full(count, 2, np.int32), mix,
                         np.array([[1.0, 0.0], [1.0, 0.0]]), np.ones(count))
  x = jnp.zeros((100, 8, 4, 3))
  _, states = samplers.run(table, DENOISE, x, key=keys(np.arange(100)), trajectory=True)
  first, second = np.asarray(states[1]).ravel(), np.asarray(states[2]).ravel()
  # Four standard errors of 9600 samples: 0.04 for mean and correlation, 0.06 for the variance.
  assert abs(first.mean()) < 0.04 and abs(second.mean()) < 0.04
  assert abs(first.var() - 1) < 0.06 and abs(second.var() - 1) < 0.06
  assert abs(np.mean(first * second)) < 0.04


def test_imputation_noise_is_a_stream_of_its_own():
  table, x = stochastic_table('ddim'), images(10.0)
  seen = []

  def project(state, sigma, z):
    jax.debug.callback(lambda z: seen.append(np.asarray(z)), z)
    return state

  plain = samplers.run(table, DENOISE, x, key=keys([1, 2, 3]))
  same = samplers.run(table, DENOISE, x, key=keys([1, 2, 3]), project=project)
  jax.effects_barrier()
  np.testing.assert_allclose(plain, same, rtol=1e-14)
  assert len(seen) == 5 and abs(np.corrcoef(seen[0].ravel(), seen[1].ravel())[0, 1]) < 0.5
  own = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 0), SHAPE[1:]))(
      keys([1, 2, 3]))
  assert abs(own - seen[0]).max() > 0.1


def test_projection_ends_every_step():
  """A projection onto known pixels leaves them in the sample, to 0 noise at level 0."""
  known = images()
  mask = jnp.asarray(RNG.random((1, 4, 4, 1)) < 0.5)

  def project(x, sigma, z):
    return jnp.where(mask, known + sigma * z, x)

  table = samplers.make('heun', samplers.schedule('karras', 6, 0.1, 10.0))
  out = samplers.run(table, DENOISE, images(10.0), key=keys([1, 2, 3]), project=project)
  np.testing.assert_array_equal(jnp.where(mask, out, 0), jnp.where(mask, known, 0))


def test_traced_noise_without_a_source_is_nan():
  table, x = stochastic_table('ddim'), images(10.0)
  out = jax.jit(lambda table, x: samplers.run(table, DENOISE, x))(table, x)
  assert np.isnan(out).all()


# -- Precision and differentiation ----------------------------------------------------------------


def test_state_stays_in_its_own_precision():
  table = samplers.make('heun', samplers.schedule('karras', 4, 0.1, 10.0))
  x = images(10.0).astype(jnp.float32)

  def half(x, sigma):
    return DENOISE(x, sigma).astype(jnp.bfloat16)

  out = samplers.run(table, half, x)
  assert out.dtype == jnp.float32
  assert abs(out - samplers.run(table, DENOISE, x)).max() < 0.05  # Half precision of the answers.


def test_gradient_with_respect_to_the_state():
  """On Gaussian data a sampler is affine: its derivative is the difference of two runs."""
  table = samplers.make('dpmpp', samplers.schedule('karras', 6, 0.1, 10.0))
  x = images(10.0)
  run = functools.partial(samplers.run, table, DENOISE)
  gradient = jax.grad(lambda x: run(x).sum())(x)
  np.testing.assert_allclose(gradient, run(x + 1.0) - run(x), rtol=1e-10)


# -- Bad input ------------------------------------------------------------------------------------


def test_bad_state():
  table = one_row(0)
  with pytest.raises(ValueError, match=r'x must have shape \(batch, height, width, channels\), '
                                       r'got \(4, 4, 2\)'):
    samplers.run(table, DENOISE, images()[0])
  with pytest.raises(ValueError, match='x must be an array of floats, got uint8'):
    samplers.run(table, DENOISE, jnp.zeros(SHAPE, jnp.uint8))


def test_noise_without_a_source():
  with pytest.raises(ValueError, match='noise needs its source, got neither key nor draw; pass'):
    samplers.run(stochastic_table('ddim'), DENOISE, images())


def test_projection_without_a_source():
  with pytest.raises(ValueError, match='project needs a source of noise, got neither key nor'):
    samplers.run(one_row(0), DENOISE, images(), project=lambda x, sigma, z: x)


@pytest.mark.parametrize('key', [jax.random.key(0), jax.random.split(jax.random.key(0), 2),
                                 jax.random.PRNGKey(0)])
def test_bad_keys(key):
  with pytest.raises(ValueError, match=r'one typed key per sample, shape \(3,\), got .*; use'):
    samplers.run(stochastic_table('ddim'), DENOISE, images(), key=key)


def test_answers_of_another_shape():
  with pytest.raises(ValueError, match=r'denoise must return an image batch like x, shape '
                                       r'\(3, 4, 4, 2\), got \(3, 4, 4, 1\)'):
    samplers.run(one_row(0), lambda x, sigma: x[..., :1], images())
  with pytest.raises(ValueError, match='guide must return an image batch like x'):
    samplers.run(one_row(1), DENOISE, images(), guide=lambda x, sigma: x[0])


def test_memories_of_another_shape():
  def guided(x, sigma):
    return x
  guided.answers, guided.remembers = lambda x, sigma, memory: (x, x, memory[..., :1]), True
  with pytest.raises(ValueError, match='memory of denoise must return an image batch like x'):
    samplers.run(one_row(0), guided, images())


def test_draws_and_projections_of_another_shape():
  table, x = stochastic_table('ddim'), images()
  with pytest.raises(ValueError, match=r'draw must return an image batch .* got \(4, 4, 2\)'):
    samplers.run(table, DENOISE, x, draw=lambda r, x: x[0])
  with pytest.raises(ValueError, match='project must return an image batch like x'):
    samplers.run(one_row(0), DENOISE, x, project=lambda x, sigma, z: x[0],
                 project_draw=lambda r, x: x)
  with pytest.raises(ValueError, match='project_draw must return an image batch like x'):
    samplers.run(one_row(0), DENOISE, x, project=lambda x, sigma, z: x,
                 project_draw=lambda r, x: x[0])


def test_numpy_states_are_taken_in_the_precision_of_the_mode():
  with jax.enable_x64(False):
    out = samplers.run(one_row(0), DENOISE, np.ones(SHAPE))
  assert out.dtype == jnp.float32


def test_trajectory_of_a_traced_table():
  run = jax.jit(lambda table, x: samplers.run(table, DENOISE, x, trajectory=True))
  with pytest.raises(ValueError, match='trajectory=True needs a table on the host'):
    run(one_row(0), images())


def test_interval_marks_draws_of_weight_zero():
  """A row with an interval draws even where its weight is 0, so that the weight has a gradient."""
  table = dataclasses.replace(one_row(2), interval=np.array([[2.0, 1.0]]))
  x = images()

  def end(weight):
    traced = dataclasses.replace(jax.tree.map(jnp.asarray, table), noise=weight.reshape(1, 1))
    return samplers.run(traced, DENOISE, x, draw=lambda r, x: jnp.ones_like(x)).sum()

  assert jax.grad(end)(jnp.zeros(())) == x.size
  assert table_lib.NOTHING == 2
