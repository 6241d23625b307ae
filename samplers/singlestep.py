"""DPM-Solver of orders 1 to 3 in single steps: on a grid, on a budget, and DPM-Solver-fast.

A step goes from s down by h in lam = -log(sigma). The answer m, the slope eps = (x - D) / s or the
image D, is taken for a polynomial in lam, and what remains is solved exactly:

  x' = base x + A_1 m + A_2 m' + A_3 m'' + ...,
  base = 1, A_k = -s e^(-h) h phi_k(h) for slopes,  base = e^(-h), A_k = h phi_k(-h) for images,

with m', m'' the derivatives at s in units of h. Steps differ in the differences of answers that
they take for m' and m''. `first`, `second`, `third` and `taylor` are their ends, on images or on
rows of a table alike.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from samplers import checks, coefficients, registry
from samplers.ancestral import check_noise, known_zero, noise_of
from samplers.table import Row, Table, assemble


@registry.register
def dpm_solver_singlestep(levels: Sequence[Any], *, order: int = 2,
                          orders: Sequence[int] | str | None = None, spacing: str = 'grid',
                          prediction: str = 'data', solver: str = 'dpmsolver',
                          r1: float | None = None, r2: float | None = None,
                          xp: Any = np) -> Table:
  """Builds DPM-Solver in single steps: no memory of earlier steps, up to three evaluations in each.

  The grid's n steps are a budget of n evaluations, see `budget`: a step of order p takes p of them,
  and passes p - 1 levels by. With `orders` instead each step of the grid has its own order, for as
  many evaluations as that makes. Order 3 needs r2 = 2/3, else it is 2; r1 is free.

  A step to 0 has no inner levels. It is of order 1 and gives the denoised image, and the budget of
  a grid that ends in 0 keeps its last evaluation for it.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Alg. 1, 4 and 5 and Sec. 3.4; Lu et al.
  2022 (DPM-Solver++), arXiv:2211.01095, Alg. 1; with the published code's budget and options.

  Args:
    levels: n + 1 decreasing noise levels, or increasing ones; the last may be 0.
    order: 1 to 3, of the steps that the budget allows it; 3 is meant for networks without guidance.
    orders: order of every step of the grid, or text with commas; None: by the budget.
    spacing: 'grid' (levels of the grid) or 'logsnr' (the same number of equal steps of log sigma
      between the first level and the last one above 0).
    prediction: the answer that is taken for a polynomial, 'data' (D; DPM-Solver++) or 'noise' (eps;
      DPM-Solver).
    solver: 'dpmsolver' (fewest terms) or 'taylor' (all derivatives that the answers give).
    r1: place of the second evaluation of a step in log sigma, above 0 and at most 1; None: 1/2, in
      steps of order 3 1/3.
    r2: place of the third one; None: 2/3.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n, or the sum of `orders`, and 2 slots.

  Raises:
    ValueError: if an option is not one of the above, r1 and r2 agree where a step is of order 3,
      there is not one of `orders` per step, or that of a step to 0 is not 1.
  """
  who = 'dpm_solver_singlestep'
  checks.check_choice(who, 'prediction', prediction, ('data', 'noise'))
  checks.check_choice(who, 'solver', solver, ('dpmsolver', 'taylor'))
  checks.check_choice(who, 'spacing', spacing, ('grid', 'logsnr'))
  checks.check_order(who, order, 3, 'order')
  count = len(levels) - 1
  to_zero = int(checks.is_zero(levels[-1]))
  if orders is None:
    orders = budget(order, count - to_zero) + [1] * to_zero
    levels = [levels[i] for i in np.cumsum([0, *orders])]
  else:
    orders = _checked_orders(who, orders, count, to_zero)
  if xp is np:
    _check_places(who, r1, r2, 3 in orders)
  if spacing == 'logsnr' and len(levels) > 2:
    inner = len(orders) - to_zero
    levels = [*_equal_steps(levels[0], levels[inner], inner, xp)[0], *levels[inner + 1:]]
  form = {'data': prediction == 'data', 'by_taylor': solver == 'taylor', 'r1': r1, 'r2': r2}
  rows = []
  for p, s, s1 in zip(orders, levels, levels[1:], strict=False):
    if checks.is_zero(s1):
      start, denoised = xp.eye(3)[1:]
      rows.append(Row(s, [denoised, start], level=s1))
      continue
    *stages, last = _rows(p, s, xp.log1p((s - s1) / s1), xp, **form)
    rows += [*stages, last._replace(level=s1)]
  return assemble(rows, xp)


@registry.register
def dpm_fast(levels: Sequence[Any], *, eta: float = 0.0, s_noise: float = 1.0,
             xp: Any = np) -> Table:
  """Builds DPM-Solver-fast: singlestep orders 3, ..., 3 and a lower end for a budget of n NFE.

  The grid gives the budget n (its number of steps) and the range; the levels are the method's own,
  n // 3 + 1 equal steps of log sigma, of the orders of `budget`. Order 2 as a whole (3 if
  n mod 3 = 2). Without eta it is `dpm_solver_singlestep` for noise, of order 3 and spacing logsnr;
  with it a step goes to a lower level, see `split_above`, and noise leads back up; the last has
  none.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Sec. 3.4; k-diffusion's sample_dpm_fast.

  Args:
    levels: n + 1 decreasing noise levels; the last must be above 0.
    eta: strength of the noise, >= 0.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with NFE n and 2 slots.

  Raises:
    ValueError: if the grid ends in 0, or eta or s_noise is below 0.
  """
  if checks.is_zero(levels[-1]):
    raise ValueError('dpm_fast: sigmas must end above 0 since its steps are equal in log sigma, '
                     'got a last level 0; end at sigma_min and add denoise_to_zero')
  check_noise('dpm_fast', eta, s_noise, xp)
  orders = budget(3, len(levels) - 1)
  grid, h = _equal_steps(levels[0], levels[-1], len(orders), xp)
  rows = []
  for i, (order, s, s1) in enumerate(zip(orders, grid, grid[1:], strict=False)):
    h_down, draw = h, {}
    if i + 1 < len(orders) and not known_zero(eta):
      h_down, share = split_above(h, h * (len(orders) - 1 - i), eta, xp)
      draw = noise_of(share * s1, eta, s_noise, s, s1)
    *stages, last = _rows(order, s, h_down, xp)
    rows += [*stages, last._replace(level=s1, **draw)]
  return assemble(rows, xp)


def budget(order: int, count: int) -> list[int]:
  """Returns the orders of single steps that make up a number of evaluations.

  All of the given order but for the end: the remainder if there is one, and for order 3 without a
  remainder orders 2 and 1 in place of a last 3.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Sec. 3.4.

  Args:
    order: 1 to 3.
    count: number of evaluations, >= 0.

  Returns:
    Orders, which sum to `count`.
  """
  if order == 3 and count and count % 3 == 0:
    return [3] * (count // 3 - 1) + [2, 1]
  return [order] * (count // order) + [count % order] * (count % order > 0)


def split_above(h: Any, rest: Any, eta: Any, xp: Any = np) -> tuple[Any, Any]:
  """Splits a step as `levels.ancestral_split` does, in lam, and goes no lower than the grid.

  Of sigma'^2 the noise has the part min(eta^2 (1 - e^(-2 h)), 1 - e^(-2 rest)), and the
  deterministic step leads to a level whose square is what is left of it.

  Source: k-diffusion's sample_dpm_fast and sample_dpm_adaptive.

  Args:
    h: length of the step to sigma' in lam, >= 0.
    rest: distance in lam from sigma' to the last level, >= 0.
    eta: strength of the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    Length of the deterministic step in lam, from h to h + rest, and the standard deviation of the
    noise in units of sigma'.
  """
  added = xp.minimum(-eta**2 * xp.expm1(-2 * h), -xp.expm1(-2 * rest))
  kept = xp.maximum((1 - eta) * (1 + eta) + (eta * xp.exp(-h))**2, xp.exp(-2 * rest))
  # Both are log(1 - added), each where it does not cancel.
  log_kept = xp.where(added < 0.5, xp.log1p(-xp.minimum(added, 0.5)), xp.log(kept))
  return h - log_kept / 2, xp.sqrt(added)


def first(x: Any, answer: Any, s: Any, h: Any, xp: Any = np, data: bool = False) -> Any:
  """Returns the end of a step of DPM-Solver-1, Euler: x + (s e^(-h) - s) eps = D + e^(-h) (x - D).

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Eq. 3.7; with images Lu et al. 2022
  (DPM-Solver++), arXiv:2211.01095, Sec. 4.

  Args:
    x: state at s.
    answer: slope eps there.
    s: noise level.
    h: length of the step in lam.
    xp: numpy or jax.numpy.
    data: whether the answer is the denoised image instead.

  Returns:
    The state at s e^(-h).
  """
  if data:
    return xp.exp(-h) * x - xp.expm1(-h) * answer
  return x + s * xp.expm1(-h) * answer


def second(x: Any, answer: Any, answer_r: Any, s: Any, h: Any, r: Any, xp: Any = np,
           data: bool = False) -> Any:
  """Returns the end of a step of DPM-Solver-2.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Alg. 4.

  Args:
    x: state at s.
    answer: slope there, or image with `data`.
    answer_r: the same after r h, at the end of a step of order 1.
    s: noise level.
    h: length of the step in lam.
    r: place of the second answer in the step.
    xp: numpy or jax.numpy.
    data: whether the answers are denoised images.

  Returns:
    The state at s e^(-h).
  """
  return first(x, answer + (answer_r - answer) / (2 * r), s, h, xp, data)


def third(x: Any, answer: Any, answer_r: Any, s: Any, h: Any, r: Any, xp: Any = np,
          data: bool = False) -> Any:
  """Returns the end of a step of DPM-Solver-3: base x + A_1 m + A_2 (m_r - m) / r.

  A step has r = 2/3; its stage there is such a step itself, of length 2/3 h with an answer
  half-way, which a step of order 1 leads to. After a stage of order 1 it is of order 2, the form
  of DPM-Solver-2 by Taylor's formula.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, Alg. 5.

  Args:
    x: state at s.
    answer: slope there, or image with `data`.
    answer_r: the same after r h.
    s: noise level.
    h: length of the step in lam.
    r: place of the second answer in the step.
    xp: numpy or jax.numpy.
    data: whether the answers are denoised images.

  Returns:
    The state at s e^(-h).
  """
  return first(x, answer, s, h, xp, data) + _weight(2, s, h, xp, data) / r * (answer_r - answer)


def taylor(x: Any, answers: Sequence[Any], s: Any, h: Any, r1: Any, r2: Any, xp: Any = np,
           data: bool = False) -> Any:
  """Returns the end of a step of DPM-Solver-3 with both derivatives of the answer.

  base x + A_1 m_0 + A_2 m' + A_3 m'', of the parabola through the three answers. r2 = 2/3 alone
  makes it of order 3, as the answer there has an error of order 2 by itself.

  Source: Lu et al. 2022 (DPM-Solver), arXiv:2206.00927, the published code's type taylor.

  Args:
    x: state at s.
    answers: slopes, or images with `data`, at s, after r1 h and after r2 h.
    s: noise level.
    h: length of the step in lam.
    r1: place of the second answer in the step.
    r2: place of the third one, another.
    xp: numpy or jax.numpy.
    data: whether the answers are denoised images.

  Returns:
    The state at s e^(-h).
  """
  start, inner, outer = answers
  near, far = (inner - start) / r1, (outer - start) / r2
  slope, bend = (r2 * near - r1 * far) / (r2 - r1), 2 * (far - near) / (r2 - r1)
  return (first(x, start, s, h, xp, data) + _weight(2, s, h, xp, data) * slope
          + _weight(3, s, h, xp, data) * bend)


def _weight(k, s, h, xp, data):
  """A_k of a step of length h."""
  if data:
    return h * coefficients.phi(k, -h, xp)
  return -s * xp.exp(-h) * h * coefficients.phi(k, h, xp)


def _rows(order, s, h, xp, data=False, by_taylor=False, r1=None, r2=None):
  """Rows of a step of length h from s, the last without its level; slots: state, start or sum."""
  x, start, denoised = xp.eye(3)

  def answer(level):
    return denoised if data else (x - denoised) / level

  if order == 1:
    return [Row(s, [first(x, answer(s), s, h, xp, data), start])]
  r1 = 1 / order if r1 is None else r1
  r2 = 2 / 3 if r2 is None else r2
  m1, m2 = s * xp.exp(-r1 * h), s * xp.exp(-r2 * h)
  rows = [Row(s, [first(x, answer(s), s, r1 * h, xp, data), x])]
  # The first answer needs no slot: state and start are ends of a step that it has made.
  known = (x - first(start, 0.0, s, r1 * h, xp, data)) / first(0.0, 1.0, s, r1 * h, xp, data)
  if order == 2:
    end = third if by_taylor else second
    return [*rows, Row(m1, [end(start, known, answer(m1), s, h, r1, xp, data), start])]

  def end(x, answers):
    if by_taylor:
      return taylor(x, answers, s, h, r1, r2, xp, data)
    return third(x, answers[0], answers[2], s, h, r2, xp, data)
  stage = third(start, known, answer(m1), s, r2 * h, r1 / r2, xp, data)
  rows.append(Row(m1, [stage, end(start, [known, answer(m1), 0.0])]))
  return [*rows, Row(m2, [start + end(0.0, [0.0, 0.0, answer(m2)]), start])]


def _equal_steps(high, low, count, xp):
  """The levels of equal steps of log sigma, both ends to the last digit, and their length."""
  h = xp.log1p((high - low) / low) / count
  return [*[high * xp.exp(-h * i) for i in range(count)], low], h


def _checked_orders(who, orders, count, to_zero):
  """The orders as a list of integers, one per step, that of a step to 0 being 1."""
  given = checks.to_array(who, 'orders', orders.split(',') if isinstance(orders, str) else orders)
  if given.shape != (count,) or not np.isin(given, (1, 2, 3)).all():
    raise ValueError(f'{who}: orders must be 1, 2 or 3 for each of {count} steps, got {orders!r}; '
                     'leave it out to spend one evaluation per step of the grid')
  if to_zero and given[-1] != 1:
    raise ValueError(f'{who}: orders must end in 1 on a grid that ends in 0, where eps and log '
                     f'sigma are not defined, got {orders!r}; or end the grid at sigma_min')
  return [int(order) for order in given]


def _check_places(who, r1, r2, both):
  """Checks the places of the inner evaluations, and that they differ where a step has both."""
  for option, place, usual in (('r1', r1, '1/2 at order 2 and 1/3 at order 3 are'),
                               ('r2', r2, '2/3 is')):
    if place is not None:
      checks.check_node(who, option, place, f'{usual} usual')
  if both and abs((r1 or 1 / 3) - (r2 or 2 / 3)) < 1e-6:
    raise ValueError(f'{who}: r2 must differ from r1 in steps of order 3, got {r2!r} and {r1!r}; '
                     '1/3 and 2/3 are usual')
