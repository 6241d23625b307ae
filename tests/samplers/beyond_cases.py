"""Reference runs of the solvers beyond the five seed systems: one check for every case."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from samplers import moments, table as table_lib
from tests import reference

MANIFEST, ARRAYS = reference.load('beyond_solvers')
CASES = {case['id']: case for case in MANIFEST['cases']}
SHAPE = 80, 5  # Rows and slots that all tables fit in, so that they share one program.
_DATA = 0.7, 0.5**2  # Mean and variance of the Gaussian data of a case's moments.


def family(name):
  """Returns the cases of a family, by id."""
  return {key: case for key, case in CASES.items() if case['family'] == name}


def grid(case):
  """Noise levels of a case, float64 (n + 1,)."""
  return ARRAYS['cases'][f'grid/{case["grid"]}']


def array(case, name):
  """An array of a case: 'final', 'linear_map', 'eval_sigma', 'eval_inputs'."""
  return ARRAYS['cases'][f'{case["id"]}/{name}']


def linear_map(table):
  """As `reference.linear_map`, with a column for every event: evaluations and draws in turn."""
  draws = np.any(table.noise != 0, axis=1)
  answers = np.isin(table.kind, (table_lib.DENOISE, table_lib.RAW))
  state = np.zeros((table.slots, 1 + answers.sum() + draws.sum()))
  state[0, 0] = table.sigma[0]
  inputs, column = [], 0
  for answers_now, mix, noise, drawn in zip(answers, table.mix, table.noise, draws, strict=True):
    answer = np.zeros((1, state.shape[1]))
    if answers_now:
      inputs.append(state[0])
      column += 1
      answer[0, column] = 1
    state = mix @ np.concatenate([state, answer])
    if drawn:
      column += 1
      state[:, column] += noise
  return np.stack([*inputs, state[0]])


@functools.cache
def _program():
  denoise = reference.mixture_denoiser(ARRAYS['mixture'])

  def sample(table, number, x, noise):
    return samplers.run(table, denoise, x, draw=lambda row, x: noise[number[row]])
  return jax.jit(sample)


def sample(table):
  """Samples of a table from the recorded latents, with the recorded draws in order."""
  table = samplers.pad(table, *SHAPE)
  number = np.maximum(np.cumsum(np.any(table.noise != 0, axis=1)) - 1, 0)
  x = table.sigma[0] * ARRAYS['latents']['latents']
  return np.asarray(_program()(table, number, x, jnp.asarray(ARRAYS['latents']['noise'])))


def check(table, case):
  """Cost, levels, places of the noise, the run as a matrix, moments, and samples of a case.

  The state has to start at table.sigma[0] times the latent.
  """
  assert table.nfe == case['nfe'] and table.slots <= 5
  np.testing.assert_allclose(reference.evaluation_levels(table), array(case, 'eval_sigma'),
                             rtol=1e-12)
  draws = np.any(table.noise != 0, axis=1)
  evaluations = np.cumsum(np.isin(table.kind, (table_lib.DENOISE, table_lib.RAW)))
  assert (evaluations[draws] - 1).tolist() == case['noise_rows']
  expected = array(case, 'linear_map')
  # Entries reach 80 on the first level, where rounding in another order is 1e-13.
  np.testing.assert_allclose(linear_map(table), expected, rtol=0, atol=1e-10)
  mean, variance = moments.gaussian_moments(table, *_DATA)
  gaussian = case['gaussian']
  np.testing.assert_allclose(mean, gaussian['const'], rtol=1e-9)
  np.testing.assert_allclose(variance, gaussian['latent']**2 + gaussian['variance'], rtol=1e-9)
  np.testing.assert_allclose(sample(table), array(case, 'final'), rtol=0, atol=case['atol'])
