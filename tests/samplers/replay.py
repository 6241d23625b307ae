"""Replays of recorded noise, one draw per step of a solver."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from samplers import table as table_lib

SHAPE = 60, 2  # Rows and slots that all replayed tables fit in.


def steps_of_rows(table):
  """Number of the step that each row belongs to."""
  ends = ~np.isnan(table.level)
  return np.cumsum(ends) - ends


@functools.cache
def _program(denoise):
  def sample(table, steps, noise, x):
    return samplers.run(table, denoise, x, draw=lambda r, x: noise[steps[r]])
  return jax.jit(sample)


def sample(table, denoise, x, noise):
  """Samples where step i draws noise[i]; the tables of a denoiser share one program."""
  table = samplers.pad(table, *SHAPE)
  return np.asarray(_program(denoise)(table, steps_of_rows(table), jnp.asarray(noise), x))


def trajectory(table, denoise, x, noise):
  """States at the grid points, the first included."""
  steps, noise = steps_of_rows(table), jnp.asarray(noise)
  return np.asarray(samplers.run(table, denoise, x, trajectory=True,
                                 draw=lambda r, x: noise[jnp.asarray(steps)[r]])[1])


def states(table, denoise, x, noise):
  """The same from samples of the first steps alone, which share the program of `sample`."""
  ends = np.flatnonzero(~np.isnan(table.level)) + 1
  firsts = (table_lib.Table(*(field[:end] for field in (
      table.sigma, table.kind, table.mix, table.noise, table.level, table.interval)))
            for end in ends)
  return np.stack([np.asarray(x), *(sample(first, denoise, x, noise) for first in firsts)])
