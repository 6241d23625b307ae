"""EPD-Solver and EPD-Plugin: several learned slopes per interval, evaluated at once.

Between two levels lie K inner levels with one number each for place, weight, length of the slope
and level shown to the network: 4 K numbers per interval, the same for every sample.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import adams, checks, grids, learned as learned_lib

STUDENTS = 'epd', 'ipndm'
"""EPD-Solver, and EPD-Plugin on iPNDM."""

TABLES = 'r_params', 'scale_dir_params', 'scale_time_params', 'weight_s'
"""Learned tables of shape (n, K), under their published names; `coefficients` reads them."""

MOST_POINTS = 16  # Of published solvers at most 3; each is one more image in memory.


class Carry(NamedTuple):
  """What one interval hands to the next.

  Attributes:
    x: the state.
    history: earlier slopes at grid points, the newest first; zeros where there are none yet.
  """

  x: jax.Array
  history: tuple[jax.Array, ...]


@learned_lib.register
def epd(sigmas: Any, *, student: str = 'epd', num_points: int = 2, scale_dir: float = 0.2,
        scale_time: float = 0.2, fcn: bool = False, afs: bool = False,
        max_order: int = 2) -> learned_lib.Design:
  """Makes EPD-Solver or EPD-Plugin: K parallel slopes per interval, from the same first one.

  With s and s' the levels of an interval, d = eps(x; s) and D the denoiser,

    m_k = s'^r_k s^(1 - r_k),  y_k = x + (m_k - s) d,  g_k = (y_k - D(y_k; a_k m_k)) / m_k,
    x' = x + (s' - s) sum_k w_k c_k g_k,

  r_k in (0, 1), sum_k w_k = 1, c_k within 1 +- scale_dir, a_k within 1 +- scale_time. The slope
  divides by m_k, not by the level a_k m_k shown to the network. With student 'ipndm' the y_k start
  along the Adams-Bashforth slope of order min(max_order, i + 1) in place of d. K = 1 without the
  two factors is AMED-Solver with one r for all samples.

  The K evaluations are one batched call of the denoiser: `jax.vmap` over the points, so that what
  it holds per image, such as labels, serves all of them (the published code does not repeat labels
  and fails for conditional networks).

  Training starts from `initial`, where the mean of the slopes is second-order accurate: far nearer
  to the solution than published code, which starts from random numbers, and than inner levels
  spread in log sigma.

  Source: Zhu et al. 2025 (EPD), arXiv:2507.14797, Sec. 3; its published code for the form of the
  learned numbers.

  Args:
    sigmas: n + 1 decreasing levels above 0, perhaps traced.
    student: 'epd', or 'ipndm' for the plugin.
    num_points: K, 1 to 16.
    scale_dir: how far c_k may be from 1, in [0, 1); 0 fixes it.
    scale_time: how far a_k may be from 1, in [0, 1); 0 fixes it.
    fcn: fixes c_k to 1 in the last interval.
    afs: whether the first slope is the analytical x / sqrt(1 + s^2).
    max_order: of 'ipndm', 1 to 4; unused by 'epd'.

  Returns:
    A Design whose nfe is 2 n and whose calls are (K + 1) n, both one less with afs.

  Raises:
    ValueError: if an option is out of range.
  """
  checks.check_choice('epd', 'student', student, STUDENTS)
  checks.check_order('epd', num_points, MOST_POINTS, 'num_points')
  checks.check_order('epd', max_order, 4)
  check_scale('epd', 'scale_dir', scale_dir)
  check_scale('epd', 'scale_time', scale_time)
  count, order = len(sigmas) - 1, max_order if student == 'ipndm' else 1
  weights = np.zeros((order, order))  # Adams-Bashforth of order j + 1 in row j.
  for row, known in zip(weights, adams.EQUAL_STEPS.values(), strict=False):
    row[:len(known)] = known

  def start(x):
    return Carry(x, (jnp.zeros_like(x),) * (order - 1))

  def step(learned, denoise, carry, i):
    x, history = carry
    levels = jnp.asarray(sigmas).astype(x.dtype)
    sigma, sigma_next = levels[i], levels[i + 1]
    tables = coefficients(learned, scale_dir, scale_time, fcn)
    r, weight, direction, time = (tables[name][i].astype(x.dtype)
                                  for name in ('r', 'weight', 'scale_dir', 'scale_time'))
    if afs:
      eps = jax.lax.cond(i == 0, lambda: x / jnp.sqrt(1 + sigma**2),
                         lambda: slope(denoise, x, sigma, sigma))
    else:
      eps = slope(denoise, x, sigma, sigma)
    slopes = eps, *history
    multistep = jnp.asarray(weights).astype(x.dtype)[jnp.minimum(i, order - 1)]
    first = sum(multistep[j] * each for j, each in enumerate(slopes))
    inner = sigma * (sigma_next / sigma)**r

    def at(m, a):
      return slope(denoise, x + (m - sigma) * first, m, a * m)
    parallel = jax.vmap(at)(inner, time)  # (K, *x.shape)
    mean = jnp.tensordot(weight * direction, parallel, 1, precision='highest')
    return Carry(x + (sigma_next - sigma) * mean, slopes[:order - 1]), {}

  return learned_lib.stepwise(
      lambda key: initial(sigmas, num_points), start, step, count, nfe=2 * count - afs,
      calls=(num_points + 1) * count - afs, learning_rate=0.1, loss='end',
      describe=lambda learned: coefficients(learned, scale_dir, scale_time, fcn))


def initial(sigmas: Any, num_points: int) -> dict[str, jax.Array]:
  """Returns TABLES to start from: m_k = s + k / (K + 1) (s' - s), equal weights, factors 1.

  Args:
    sigmas: n + 1 decreasing levels above 0, perhaps traced.
    num_points: K.

  Returns:
    Name -> array (n, K), floats of the default precision.
  """
  levels = jnp.asarray(sigmas).astype(float)[:, None]
  drop = 1 - levels[1:] / levels[:-1]
  shares = jnp.asarray(np.arange(1, num_points + 1) / (num_points + 1), float)[None]
  moves = drop > 0  # Levels that are equal have no logarithm between them.
  drop = jnp.where(moves, drop, 0.5)
  r = jnp.where(moves, jnp.log1p(-shares * drop) / jnp.log1p(-drop), shares)
  tables = {name: jnp.zeros_like(r) for name in TABLES}
  return tables | {'r_params': jnp.log(r / (1 - r))}


def coefficients(learned: dict[str, jax.Array], scale_dir: float, scale_time: float,
                 fcn: bool = False) -> dict[str, jax.Array]:
  """Returns the numbers of the formula from the learned tables.

  r = sigmoid(r_params), weight = softmax(weight_s) over the points, and each factor is
  2 a sigmoid(p / 2) + 1 - a = 1 + a tanh(p / 4) for a scale a.

  Args:
    learned: TABLES, each (n, K).
    scale_dir: as in `epd`.
    scale_time: as in `epd`.
    fcn: as in `epd`.

  Returns:
    'r', 'weight', 'scale_dir' and 'scale_time', each (n, K).
  """
  direction = 1 + scale_dir * jnp.tanh(learned['scale_dir_params'] / 4)
  return {'r': jax.nn.sigmoid(learned['r_params']),
          'weight': jax.nn.softmax(learned['weight_s'], axis=-1),
          'scale_dir': direction.at[-1].set(1.0) if fcn else direction,
          'scale_time': 1 + scale_time * jnp.tanh(learned['scale_time_params'] / 4)}


def refine(sigmas: np.ndarray, inner_steps: int = 2, rho: float = 7.0) -> np.ndarray:
  """Divides every interval of a grid as `grids.polynomial` would: the grid of EPD's teachers.

  A teacher is any solver on this grid; its state after every inner_steps steps is the one at a
  level of `sigmas`.

  Source: published code of EPD, arXiv:2507.14797, which counts the points of an interval, one more.

  Args:
    sigmas: n + 1 decreasing levels.
    inner_steps: intervals for each of the n, >= 1.
    rho: exponent, > 0.

  Returns:
    np.float64 of shape (n inner_steps + 1,); the given levels are among them as they are.

  Raises:
    ValueError: if the grid does not decrease, or inner_steps or rho is out of range.
  """
  levels = checks.check_grid('refine', sigmas)
  if not checks.is_integer(inner_steps) or inner_steps < 1:
    raise ValueError(f'refine: inner_steps must be an integer of at least 1, got {inner_steps!r}; '
                     '2 is the usual choice')
  parts = [grids.polynomial(inner_steps, low, high, rho)[:-1]
           for high, low in zip(levels, levels[1:], strict=False)]
  return np.concatenate([*parts, levels[-1:]])


def slope(denoise: Any, x: jax.Array, sigma: jax.Array, shown: jax.Array) -> jax.Array:
  """Returns (x - D(x; shown)) / sigma: eps where the network is shown the level of x itself."""
  return (x - jnp.asarray(denoise(x, shown)).astype(x.dtype)) / sigma


def check_scale(name: str, option: str, value: float) -> None:
  """Raises ValueError unless the scale of a learned factor is in [0, 1): the factor stays > 0."""
  if not 0 <= checks.to_number(value) < 1:
    raise ValueError(f'{name}: {option} must be at least 0 and below 1, got {value!r}; 0 fixes the '
                     'factor to 1')
