"""Exponential Runge-Kutta steps with and without noise, the machinery of SEEDS and its relatives.

With lambda a decreasing function of the noise level and G what the network's answer is turned into,
the solution at level b of the step from a is

  y(b) = A(a, b) y(a) + g(b) int_0^h exp(r (h - t)) G(lambda(a) + t) dt + n(b) W(h),

h = lambda(b) - lambda(a), with W the Gaussian integral of the noise (no such term for the ODE). A
form fixes G, lambda, A, g, r, n and W; a tableau replaces the integral by weights of the G's at a
few nodes, made of phi functions of z = r h; any tableau goes with any form.

A step goes from stage to stage: A and W of a step are those of its parts, so that a stage is the
one before it, carried on, plus a share of the answers, plus a draw over the gap between the two.
All stages see one Brownian path, the state alone holds it, and beside the state a step of s stages
needs no more than s // 2 slots, for answers or for what they give to later stages.

Source: Gonzalez et al. 2023 (SEEDS), arXiv:2305.14267; Hochbruck and Ostermann 2005, Explicit
exponential Runge-Kutta methods for semilinear parabolic problems (the tableaux).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from samplers import checks, coefficients
from samplers.ancestral import known_zero
from samplers.table import Row, Table, assemble


class Form(NamedTuple):
  """What turns the network's answer into a linear problem; functions of arrays of noise levels.

  Attributes:
    rate: r.
    growth: rate at which W(t) grows, as exp(growth t); not 0 where there is noise.
    answer: sigma -> (p, q) with G = p y + q D(y; sigma).
    span: (a, b) -> h, exact to rounding however short the step.
    level: (a, h, c) -> the noise level at lambda(a) + c h.
    decay: (a, b) -> A.
    gain: sigma -> g.
    spread: sigma -> n, the factor of W; None for the ODE.
  """

  rate: Any
  growth: Any
  answer: Callable[[Any], tuple[Any, Any]]
  span: Callable[[Any, Any], Any]
  level: Callable[[Any, Any, Any], Any]
  decay: Callable[[Any, Any], Any]
  gain: Callable[[Any], Any]
  spread: Callable[[Any], Any] | None


class Stage(NamedTuple):
  """One line of a tableau: Y = A y + g h sum_i phi_{k_i}(scale_i z) (weights_i . G) + noise.

  Attributes:
    node: c, its place within the step, in lambda: 0 is the start and 1 the end.
    terms: (k, scale, weights) of each phi function; weights of G_1, G_2, ... as far as known.
  """

  node: Any
  terms: Sequence[tuple[int, Any, Sequence[Any]]]


def form(prediction: str, eta: Any, sigma_data: Any, xp: Any) -> Form:
  """Returns the form of a prediction for noise of strength eta.

  With k = 1 + eta the drift is that of dx/dsigma = k eps: eta = 0 is the probability-flow ODE,
  eta = 1 the reverse SDE, and the marginals are those of both for any eta.

  Args:
    prediction: 'noise' (G = (y - D) / sigma), 'data' (G = D) or 'F' (G = (D - c_skip y) / c_out,
      the raw output of a network under EDM's preconditioning).
    eta: strength of the noise, >= 0; for 'F' 0 or 1, since in between the integrals over its clock
      are no elementary functions.
    sigma_data: standard deviation d of the data in c_skip and c_out.
    xp: numpy or jax.numpy.

  Returns:
    The Form.
  """
  silent, k = known_zero(eta), 1 + eta
  if prediction == 'F':
    return _preconditioned(not silent, sigma_data, xp)
  shared = {'span': lambda a, b: xp.log1p((a - b) / b),  # lambda = -log sigma
            'level': lambda a, h, c: a * xp.exp(-c * h)}
  if prediction == 'noise':
    return Form(rate=1, growth=1, answer=lambda sigma: (1 / sigma, -1 / sigma),
                decay=lambda a, b: xp.ones_like(b), gain=lambda sigma: -k * sigma,
                spread=None if silent else lambda sigma: xp.sqrt(eta) * sigma, **shared)
  return Form(rate=-k, growth=-eta,
              answer=lambda sigma: (xp.zeros_like(sigma), xp.ones_like(sigma)),
              decay=lambda a, b: (b / a)**k, gain=lambda sigma: k * xp.ones_like(sigma),
              spread=None if silent else lambda sigma: sigma, **shared)


def _preconditioned(stochastic, d, xp):
  """The F form: d sqrt(sigma^2 + d^2) is the scale of its noise, arctan(sigma / d) its clock."""
  def norm(sigma):
    return xp.sqrt(sigma**2 + d**2)

  def answer(sigma):
    return -d / (sigma * norm(sigma)), norm(sigma) / (sigma * d)

  if stochastic:
    # exp(-2 lambda) d^2 = sigma^2 / (sigma^2 + d^2), which saturates for sigma >> d.
    def span(a, b):
      return xp.log1p((a - b) / b * ((a + b) / b) / (1 + (a / d)**2)) / 2

    def level(a, h, c):
      return a * xp.exp(-c * h) / xp.sqrt(1 - (a / d)**2 * xp.expm1(-2 * c * h))

    def spread(sigma):
      return sigma * norm(sigma) / d
    return Form(1, 1, answer, span, level, decay=lambda a, b: (norm(b) / norm(a))**2,
                gain=lambda sigma: 2 * spread(sigma), spread=spread)

  # exp(-lambda) = arctan(sigma / d).
  def span(a, b):
    return xp.log1p(xp.arctan((a - b) * d / (d**2 + a * b)) / xp.arctan(b / d))

  def level(a, h, c):
    angle = xp.arctan(a / d)
    below = angle * xp.exp(-c * h)
    left = xp.arctan(d / a) - angle * xp.expm1(-c * h)  # Up to a right angle: exact for sigma >> d.
    return d * xp.where(below < left, xp.tan(below), 1 / xp.tan(left))

  return Form(1, 0, answer, span, level, decay=lambda a, b: norm(b) / norm(a),
              gain=lambda sigma: norm(sigma) * xp.arctan(sigma / d), spread=None)


def tableau(order: int, c2: Any, c3: Any, second: bool) -> list[Stage]:
  """Returns the stages after the first and, last, the end of the step.

  Args:
    order: 1 to 4.
    c2: node of the second stage at orders 2 and 3.
    c3: node of the third stage at order 3, which but for 2/3 leaves order 2.
    second: whether the variant b of orders 2 and 3, which at order 3 needs c2 = 1/3 and c3 = 2/3.

  Returns:
    A list of `order` Stages, 5 at order 4.
  """
  if order == 1:
    return [Stage(1, [(1, 1, [1])])]
  if order == 4:
    return _FOURTH
  middle = Stage(c2, [(1, c2, [c2])])
  if order == 2:
    if second:
      return [middle, Stage(1, [(1, 1, [1, 0]), (2, 1, [-1 / c2, 1 / c2])])]
    return [middle, Stage(1, [(1, 1, [1 - 0.5 / c2, 0.5 / c2])])]
  later = Stage(c3, [(1, c3, [c3, 0]), (2, c3, [-c3**2 / c2, c3**2 / c2])])
  if second:
    end = Stage(1, [(1, 1, [1, 0, 0]), (2, 1, [-4.5, 6, -1.5]), (3, 1, [9, -18, 9])])
  else:
    end = Stage(1, [(1, 1, [1, 0, 0]), (2, 1, [-1 / c3, 0, 1 / c3])])
  return [middle, later, end]


# The five-stage method of order 4 of Hochbruck and Ostermann.
_FOURTH = [
    Stage(0.5, [(1, 0.5, [0.5])]),
    Stage(0.5, [(1, 0.5, [0.5, 0]), (2, 0.5, [-1, 1])]),
    Stage(1, [(1, 1, [1, 0, 0]), (2, 1, [-2, 1, 1])]),
    Stage(0.5, [(1, 0.5, [0.5, 0, 0, 0]), (2, 0.5, [-0.75, 0.5, 0.5, -0.25]),
                (3, 0.5, [0.5, -0.5, -0.5, 0.5]), (2, 1, [-0.25, 0.25, 0.25, -0.25]),
                (3, 1, [1, -1, -1, 1])]),
    Stage(1, [(1, 1, [1, 0, 0, 0, 0]), (2, 1, [-3, 0, 0, -1, 4]), (3, 1, [4, 0, 0, 4, -8])]),
]


def exponential(levels: Sequence[Any], form: Form, stages: Sequence[Stage], xp: Any) -> Table:
  """Builds the Table of a tableau in a form; a step to 0 is the denoiser's answer.

  Args:
    levels: n + 1 decreasing noise levels; increasing ones will do without noise.
    form: see `form`.
    stages: see `tableau`; their nodes must not decrease where the form has noise.
    xp: numpy or jax.numpy.

  Returns:
    A Table with 1 + len(stages) // 2 slots, and len(stages) evaluations per step but one for a step
    to 0. A stage's draw acts on the interval from the stage's level to that of the next.
  """
  to_zero = checks.is_zero(levels[-1])
  sigmas = xp.stack([xp.asarray(level, float) for level in levels[:len(levels) - to_zero]])
  fields = _fields(sigmas[:-1], sigmas[1:], form, stages, xp)
  if to_zero:
    _, *memory, denoised = xp.eye(fields['mix'].shape[-1])
    last = assemble([Row(sigmas[-1], [denoised, *memory], level=0.0)], xp)
    for name, field in fields.items():
      join = np if name == 'kind' else xp
      fields[name] = join.concatenate([field, getattr(last, name)])
  return Table(**fields)


def _fields(a, b, form, stages, xp):
  """Fields of the Table of the steps a -> b, (n,) each; in the comments s is len(stages)."""
  n, s, h = len(a), len(stages), form.span(a, b)
  # A node that is known to be 1 is the end of the step, to the last digit.
  at_end = np.array([_is_one(stage.node) for stage in stages])
  nodes = _vector([stage.node for stage in stages], xp)
  inside = form.level(a[:, None], h[:, None], nodes[None])
  inside = xp.clip(inside, xp.minimum(a, b)[:, None], xp.maximum(a, b)[:, None])
  ends = xp.where(at_end[None], b[:, None], inside)  # (n, s): of the row, with its draw.
  starts = xp.concatenate([a[:, None], ends[:, :-1]], axis=1)

  decay = form.decay(starts, ends)
  weights = (form.gain(ends) * h[:, None])[..., None] * _weights(form.rate * h, stages, xp)
  carried = xp.concatenate([xp.zeros_like(weights[:, :1]), weights[:, :-1]], axis=1)
  mix = _chain(decay, weights - decay[..., None] * carried, form.answer(starts), xp)
  slots = mix.shape[2]

  noise, interval = xp.zeros((n, s)), xp.full((n, s, 2), np.nan)
  if form.spread is not None:
    # Between two stages at the end of a step there is nothing to draw.
    drawn = np.append(True, ~(at_end[:-1] & at_end[1:]))
    gaps = nodes - xp.concatenate([xp.zeros(1), nodes[:-1]])
    gaps = xp.where(drawn, gaps, 1.0)  # The root of 0 has no gradient.
    fresh = xp.sqrt(xp.abs(xp.expm1(2 * form.growth * h[:, None] * gaps[None])))
    noise = xp.where(drawn[None], form.spread(ends) * fresh, 0.0)
    interval = xp.where(drawn[None, :, None], xp.stack([starts, ends], axis=-1), np.nan)
  noise = noise[..., None] * np.eye(slots)[0][None, None]

  within = xp.full((n, s - 1), np.nan)
  level = xp.concatenate([within, b[:, None]], axis=1)
  return {'sigma': starts.reshape(-1), 'kind': np.zeros(n * s, np.int32),
          'mix': mix.reshape(n * s, slots, slots + 1), 'noise': noise.reshape(n * s, slots),
          'level': level.reshape(-1), 'interval': interval.reshape(n * s, 2)}


def _chain(decay, share, answer, xp):
  """The mix of each row: the next stage from the last one and the answers, in few slots.

  Args:
    decay: factor from a stage to the next, (n, row).
    share: what the next stage gets of each answer G beyond what the last one brings, (n, stage, G).
    answer: (p, q) of a form at the stages, (n, row) each.
    xp: numpy or jax.numpy.

  Returns:
    mix, (n, row, slot, slot + 1). As long as they are the fewer, slots 1, 2, ... keep the answers
    as they are, later what the stages still to come will get of them, the next one first.
  """
  s = decay.shape[1]
  unit = np.eye(2 + s // 2)
  share, of_state, of_denoised = share[..., None], answer[0][..., None], answer[1][..., None]
  rows, kept = [], []
  for j in range(s):
    new = of_state[:, j] * unit[:1] + of_denoised[:, j] * unit[-1:]
    if 2 * j <= s:  # The slots hold answers.
      kept = [xp.zeros_like(new) + unit[1 + i:2 + i] for i in range(j)]
      held = [sum(share[:, stage, i] * old for i, old in enumerate(kept)) for stage in range(j, s)]
    else:
      held = [unit[1 + i:2 + i] for i in range(s - j)]
    following = [old + share[:, j + i, j] * new for i, old in enumerate(held)]
    memory = [*kept, new] if 2 * (j + 1) <= s else following[1:]
    idle = [xp.zeros_like(new)] * (s // 2 - len(memory))
    rows.append(xp.stack([decay[:, j, None] * unit[:1] + following[0], *memory, *idle], axis=1))
  return xp.stack(rows, axis=1)


def _weights(z, stages, xp):
  """The tableau at z, (n,): weights of G_j in each stage over g h, (n, stage, j)."""
  s, total = len(stages), 0.0
  terms = [(i, *term) for i, stage in enumerate(stages) for term in stage.terms]
  for k in sorted({k for _, k, _, _ in terms}):  # Every phi function once, for all of its terms.
    lines, scales, given = zip(*[(i, c, w) for i, j, c, w in terms if j == k], strict=True)
    values = coefficients.phi(k, z[:, None] * _vector(scales, xp)[None], xp)
    placed = [[*w, *[0.0] * (s - len(w))] if i == line else [0.0] * s
              for line, w in zip(lines, given, strict=True) for i in range(s)]
    placed = _vector([weight for row in placed for weight in row], xp)
    total += xp.sum(values[..., None, None] * placed.reshape(1, len(lines), s, s), axis=1)
  return total


def _is_one(value):
  """Whether a value is the number 1; a traced one never is."""
  return isinstance(value, float | int) and value == 1


def _vector(values, xp):
  """A float vector of scalars, some of which may be traced."""
  if any(isinstance(value, jax.Array) for value in values):
    return xp.stack([xp.asarray(value, float) for value in values])
  return xp.asarray(np.array(values, float))
