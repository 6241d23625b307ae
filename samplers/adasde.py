"""AdaSDE: EPD's learned slopes, and before each step as much fresh noise as was learned."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import (
  checks,
  churn,
  epd as epd_lib,
  learned as learned_lib,
  noise as noise_lib,
  run as run_lib,
  table as table_lib,
)
from samplers.table import NOTHING, Row, Table, assemble

NUMBERS = 'r', 'weight', 'scale_dir', 'scale_time', 'gamma'
"""What `steps` takes: the numbers of each interval and inner level."""


@learned_lib.register
def adasde(sigmas: Any, *, num_points: int = 1, scale_dir: float = 0.05, scale_time: float = 0.2,
           gamma: float = 0.02, afs: bool = False) -> learned_lib.Design:
  """Makes AdaSDE: the steps of `steps`, with learned numbers.

  Those of EPD-Solver (`epd.coefficients`), and gamma_k = gamma sigmoid(p) between 0 and the given
  bound, which starts in the middle. The noise sqrt(s^^2 - s^2) z has a gradient in p, since z does
  not depend on it. A table evaluates its rows in turn: K points take K evaluations, one after the
  other.

  Noise repairs errors of the distribution, not of one path: a loss that compares with the teacher's
  path from the same start only ever sees it as an error, and learns gamma towards 0.

  Source: Wang et al. 2025 (AdaSDE), arXiv:2510.23285. Its published code keeps gamma above 2e-4,
  starts from random numbers and has factors 1 + a tanh(p / 2); here they are EPD's, with p / 4.

  Args:
    sigmas: n + 1 decreasing levels above 0, perhaps traced.
    num_points: K, 1 to 16.
    scale_dir: how far the factor of a slope may be from 1, in [0, 1); 0 fixes it.
    scale_time: how far the factor of a level may be from 1, in [0, 1); 0 fixes it.
    gamma: bound of the share by which a level is raised, in [0, 1); 0: no noise.
    afs: whether the first slope is the analytical x / sqrt(1 + s^2).

  Returns:
    A Design with (K + 1) n evaluations, one less with afs; it draws noise unless gamma is 0 or n 1.

  Raises:
    ValueError: if an option is out of range.
  """
  checks.check_order('adasde', num_points, epd_lib.MOST_POINTS, 'num_points')
  for option, value in (('scale_dir', scale_dir), ('scale_time', scale_time), ('gamma', gamma)):
    epd_lib.check_scale('adasde', option, value)
  count = len(sigmas) - 1
  draws = gamma > 0 and count > 1

  def initial(key):
    del key
    return epd_lib.initial(sigmas, num_points) | {'gamma_params': jnp.zeros((count, num_points))}

  def numbers(learned):
    raised = gamma * jax.nn.sigmoid(learned['gamma_params'])
    return epd_lib.coefficients(learned, scale_dir, scale_time) | {'gamma': raised.at[0].set(0.0)}

  def table(learned):
    built = steps(jnp.asarray(sigmas), **numbers(learned), noise=draws, xp=jnp)
    return table_lib.first_step_for_free(built, jnp) if afs else built

  def solve(learned, denoise, x, key=None, unroll=1):
    if not draws:
      return run_lib.run(table(learned), denoise, x, unroll=unroll)
    if key is None:
      raise ValueError('adasde: key must be one typed key per sample, got None; pass '
                       'jax.random.split(jax.random.key(0), batch), or set gamma to 0')
    # No row names an interval; a Brownian path would be compiled for nothing.
    return run_lib.run(table(learned), denoise, x, draw=noise_lib.by_row(key), unroll=unroll)

  return learned_lib.of_table(
      initial, table, nfe=(num_points + 1) * count - afs, learning_rate=0.1, draws=draws,
      describe=numbers)._replace(solve=solve)


def steps(levels: Any, *, r: Any, weight: Any, scale_dir: Any, scale_time: Any, gamma: Any,
          noise: bool = True, xp: Any = np) -> Table:
  """Builds AdaSDE's steps from its numbers, each given per interval and inner level.

  A step from s to s' first raises the level to s^ = (1 + G) s, G = sum_k gamma_k w_k, by
  x <- x + sqrt(s^^2 - s^2) z; the first step, whose state is noise anyway, does not (G = 0). Then
  with d = eps(x; s^)

    m_k = s'^r_k s^^(1 - r_k),  y_k = x + (m_k - s^) d,  g_k = (y_k - D(y_k; a_k m_k)) / m_k,
    x' = x + (s' - s^) sum_k w_k c_k g_k.

  Published numbers, which go by the interval of the grid they were learned on, are run by this. The
  registry does not have it: at r = 1/2, w = c = a = 1, gamma = 0, for want of others, it is `dpm`.

  Source: Wang et al. 2025 (AdaSDE), arXiv:2510.23285.

  Args:
    levels: n + 1 decreasing levels above 0.
    r: places of the inner levels in log sigma, within 0 and 1, (n, K) as all that follow.
    weight: w, summing to 1 over K.
    scale_dir: c, factors of the slopes.
    scale_time: a, factors of the levels shown to the network.
    gamma: shares by which the level is raised, >= 0; the first row is ignored.
    noise: whether any level is raised; False leaves gamma out.
    xp: numpy for a checked table, jax.numpy for a traced one.

  Returns:
    A Table with NFE (K + 1) n and 3 slots, or 2 for K = 1. The row that raises a level is of kind 2
    and ends at no grid point, so that trajectories hold the state before it.

  Raises:
    ValueError: if xp is numpy, and the grid ends in 0, the numbers are not shaped (n, K), one is
      out of range or not finite, or what they make is no Table.
  """
  if xp is np:
    if checks.is_zero(levels[-1]):
      raise ValueError('adasde: sigmas must end above 0, got a last level 0; end the grid at '
                       'sigma_min, where numbers were learned')
    r, weight, scale_dir, scale_time, gamma = _checked(
        len(levels) - 1, dict(zip(NUMBERS, (r, weight, scale_dir, scale_time, gamma), strict=True)))
  points = r.shape[1]
  # Slots: the state evaluated, the sum so far, and the first slope if more than one point needs it.
  x, *memory, denoised = xp.eye(3 if points == 1 else 4)
  total = memory[0]
  rows = []
  for i, (s, s1) in enumerate(zip(levels, levels[1:], strict=False)):
    raised = s
    if noise and i > 0:
      share = xp.sum(gamma[i] * weight[i])
      raised = (1 + share) * s
      rows.append(Row(s, [x, *memory], kind=NOTHING,
                      noise=s * churn.root(share * (2 + share), xp)))
    inner = raised * (s1 / raised)**r[i]
    eps = (x - denoised) / raised
    rows.append(Row(raised, [x + (inner[0] - raised) * eps, x, eps][:len(memory) + 1]))
    for k in range(points):
      m = inner[k]
      pull = (s1 - raised) * weight[i, k] * scale_dir[i, k] * (x - denoised) / m
      if k == points - 1:
        rows.append(Row(scale_time[i, k] * m, [total + pull, *memory], level=s1))
      else:
        following = x + (inner[k + 1] - m) * memory[1]
        rows.append(Row(scale_time[i, k] * m, [following, total + pull, memory[1]]))
  return assemble(rows, xp)


def _checked(count, numbers):
  """The numbers as float64 arrays (n, K), in the order of NUMBERS."""
  arrays = {name: checks.to_array('adasde', name, value) for name, value in numbers.items()}
  shape = arrays['r'].shape
  for name, array in arrays.items():
    if array.ndim != 2 or array.shape != (count, *shape[1:]) or not array.size:
      raise ValueError(f'adasde: {name} must have a row for each of {count} intervals and a column '
                       f'for each point, got shape {array.shape}; r has shape {shape}')
    if not np.isfinite(array).all():
      raise ValueError(f'adasde: {name} must be finite, got {array[~np.isfinite(array)][0]}; the '
                       'numbers were not learned to the end')
  for name, low, high in (('r', 0, 1), ('scale_time', np.finfo(np.float64).tiny, np.inf)):
    bad = arrays[name][(arrays[name] < low) | (arrays[name] > high)]
    if bad.size:
      rule = 'within 0 and 1' if name == 'r' else 'above 0'
      raise ValueError(f'adasde: {name} must be {rule}, got {bad[0]:g}; 0.5 and 1 are the usual '
                       'start of r and scale_time')
  if arrays['gamma'].min() < 0:
    raise ValueError(f'adasde: gamma must be at least 0, got {arrays["gamma"].min():g}; 0 adds no '
                     'noise')
  return arrays.values()
