"""DPM-Solver-v3: several steps of the ODE, with functions of the noise level measured on the model.

With lam = -log(sigma) and three functions l, s, b of lam, of one number or of one per element of an
image, the probability-flow ODE is

  dx/dlam = -(x - D) = -l x - f,   f = (1 - l) x - D,   df/dlam = s f + b + rest.              (1)

From a to t, with L, S and beta the integrals of l, s and e^-S b from a on,

  x(t) = e^-L(t) [ x(a) - int_a^t e^(L + S) (g + beta) dlam ],   g = e^-S f - beta,            (2)

where g is constant as far as `rest` is 0: a polynomial through its values at several levels stands
for it. Any l, s, b give a solver of the same order; those of `engine.search_statistics` make what
the polynomial leaves small. l = 1, s = 0, b = 0 give DPM-Solver++; l = 0, s = -1, b = 0 give the
noise prediction of DPM-Solver.

Integrals are trapezoid sums over the levels of the statistics, as published. Published code moves
the levels of a run to the nearest of these. Here l, s and b are interpolated instead, and the
levels of the run are nodes of the sums as well: a run on levels of the statistics is the same, any
other one has the levels that were asked for.

Coefficients per element and a constant term are no Table; so this file has a scan of its own.

Source: Zheng et al. 2023 (DPM-Solver-v3), arXiv:2310.13268, Sec. 3.1 to 3.3 and App. B.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, registry

NAME = 'dpm_solver_v3'

_MEMORY = 4  # Values of f that a step may use: of order 3, and one more for c_pseudo.
_SLACK = 1e-6  # Of levels at the ends of the statistics, relative.


class Statistics(NamedTuple):
  """What was measured on a model, on the host.

  Attributes:
    sigmas: noise levels, float64 (m + 1,), decreasing, above 0; many more than those of a run.
    l: linear part of x - D, float64 (m + 1, height, width, channels), or (m + 1, 1, 1, 1).
    s: linear part of df/dlam, like l.
    b: constant part of df/dlam, like l.
  """

  sigmas: np.ndarray
  l: np.ndarray  # noqa: E741 - as in the paper
  s: np.ndarray
  b: np.ndarray


class Update(NamedTuple):
  """Eq. 2 for every row: weights of x and of values of f, and a constant.

  Attributes:
    x: (rows, 1, height, width, channels) or (rows, 1, 1, 1, 1), as all shapes here.
    f: (rows, 4, 1, height, width, channels), the newest value first.
    shift: like x.
  """

  x: Any
  f: Any
  shift: Any


class Coefficients(NamedTuple):
  """The steps of a run, a row per evaluation: an argument of compiled functions.

  Attributes:
    sigma: noise level of the evaluation, (rows,).
    rest: 1 - l there, (rows, 1, height, width, channels).
    keep: 1 where the state is not corrected, else 0, (rows, 1, 1, 1, 1).
    corrector: from the last state to this one once more; 0 where the state is not corrected.
    predictor: from this state to the next.
  """

  sigma: Any
  rest: Any
  keep: Any
  corrector: Update
  predictor: Update

  @property
  def nfe(self) -> int:
    """Number of network evaluations."""
    return len(self.sigma)


@registry.register_loop(NAME)
def sample(denoise: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array,
           sigmas: Sequence[float] | np.ndarray, *, statistics: str | Statistics | None = None,
           order: int = 3, p_pseudo: bool = False, use_corrector: bool = True,
           c_pseudo: bool = False, lower_order_final: bool = True) -> jax.Array:
  """Runs DPM-Solver-v3; `coefficients` and `run` are its two halves, on the host and compiled.

  Args:
    denoise: D(x; sigma), result like x; sigma is a scalar.
    x: state at the first level, x0 + sigma z, shape (batch, height, width, channels).
    sigmas: as in `coefficients`.
    statistics: of the model; on a command line the file that --mode=search wrote.
    order: as in `coefficients`, as all that follow.
    p_pseudo: see there.
    use_corrector: see there.
    c_pseudo: see there.
    lower_order_final: see there.

  Returns:
    Samples like x.

  Raises:
    ValueError: as `coefficients`, or if the statistics are not of images like x.
  """
  return run(coefficients(statistics, sigmas, order=order, p_pseudo=p_pseudo,
                          use_corrector=use_corrector, c_pseudo=c_pseudo,
                          lower_order_final=lower_order_final), denoise, x)


def coefficients(statistics: Statistics, sigmas: Sequence[float] | np.ndarray, *, order: int = 3,
                 p_pseudo: bool = False, use_corrector: bool = True, c_pseudo: bool = False,
                 lower_order_final: bool = True) -> Coefficients:
  """Computes the steps of a run, on the host in float64.

  Args:
    statistics: of the model.
    sigmas: noise levels, shape (n + 1,), decreasing, or increasing for the way up; all within the
      range of the statistics but for a last level 0, in which the result is the last answer.
    order: values of f that a step uses, 1 to 3; also its order as long as nothing is pseudo.
    p_pseudo: scaled divided differences in place of the polynomial's derivatives, in the steps:
      order 2 at most, and less noise from few steps. Published runs on CIFAR-10 have it on up to
      5 evaluations.
    use_corrector: repeat each step of order 2 and more when the value of f at its end is known.
      The state is corrected and f stays as it is, so nothing is evaluated again. Strong guidance
      does better without.
    c_pseudo: the same as p_pseudo in the corrector, which then uses one value of f more.
    lower_order_final: lower the order at the end to the number of steps that are left.

  Returns:
    Coefficients with n rows: NFE n.

  Raises:
    ValueError: if an option is out of range, the grid is none or leaves the range of the
      statistics, or the statistics are none.
  """
  checks.check_order(NAME, order, 3, 'order')
  for option, value in (('p_pseudo', p_pseudo), ('use_corrector', use_corrector),
                        ('c_pseudo', c_pseudo), ('lower_order_final', lower_order_final)):
    checks.check_switch(NAME, option, value)
  statistics = check(statistics)
  levels = checks.distinct(NAME, checks.check_grid(NAME, sigmas, rising=True))
  places, nodes = _integrate(statistics, levels)
  last, steps = levels[-1] == 0, len(levels) - 1
  rows, used = [], 0
  for i in range(steps):
    corrected = use_corrector and used + c_pseudo > 1 and not (last and i == steps - 1)
    corrector = _nothing(nodes)
    if corrected:
      points = [places[i - 1], places[i], *places[:i - 1][::-1]][:used + c_pseudo]
      corrector = _update(nodes, points, places[i], c_pseudo)
      corrector = corrector._replace(f=[corrector.f[1], corrector.f[0], *corrector.f[2:]])
    used = min(order, i + 1, steps - i if lower_order_final else order)
    rest = 1 - nodes.l[places[i]]
    if last and i == steps - 1:  # D itself: f = rest x - D.
      predictor = _nothing(nodes)._replace(x=rest)
      predictor.f[0] = np.ones_like(rest)
    else:
      predictor = _update(nodes, places[:i + 1][::-1][:used], places[i + 1], p_pseudo)
    rows.append((levels[i], rest, np.full((1, 1, 1), float(not corrected)), corrector, predictor))
  sigma, rest, keep, corrector, predictor = zip(*rows, strict=True)
  return Coefficients(np.array(sigma), _stack(rest), _stack(keep), _join(corrector),
                      _join(predictor))


def run(coefficients: Coefficients, denoise: Callable[[jax.Array, jax.Array], jax.Array],
        x: jax.Array, *, trajectory: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Runs the steps from the state x at the first level.

  Pure, so that it may be compiled, differentiated and mapped; with the coefficients as an argument
  all runs of as many steps share a program, whatever the options and the statistics.

  Args:
    coefficients: of `coefficients`, on the host or traced.
    denoise: D(x; sigma), result like x; sigma is a scalar.
    x: floats (batch, height, width, channels).
    trajectory: also return the states that the denoiser sees, and the result.

  Returns:
    Samples like x; with `trajectory` the pair (samples, states), states (rows + 1, *x.shape).

  Raises:
    ValueError: if x is not a batch of images of floats, or the statistics are of other images.
  """
  shape = coefficients.rest.shape[2:]
  if getattr(x, 'ndim', None) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    got = f'{x.dtype} of shape {x.shape}' if hasattr(x, 'shape') else type(x)
    raise ValueError(f'{NAME}: x must be floats of shape (batch, height, width, channels), got '
                     f'{got}; add the missing axes')
  if shape not in ((1, 1, 1), x.shape[1:]):
    raise ValueError(f'{NAME}: x must be images of the shape of the statistics, {shape}, got '
                     f'{x.shape[1:]}; measure this model')
  coefficients = jax.tree.map(lambda array: jnp.asarray(array).astype(x.dtype), coefficients)

  def update(row, x, values):
    return functools.reduce(jnp.subtract, [
        weight * value for weight, value in zip(row.f, values, strict=True)],
                            row.x * x - row.shift)

  def step(state, row):
    x, before, values = state
    denoised = jnp.asarray(denoise(x, row.sigma)).astype(x.dtype)
    values = [row.rest * x - denoised, *values]
    corrected = row.keep * x + update(row.corrector, before, values)
    return (update(row.predictor, corrected, values), corrected, values[:-1]), x

  zero = jnp.zeros_like(x)
  (end, _, _), states = jax.lax.scan(step, (x, zero, [zero] * (_MEMORY - 1)), coefficients)
  return (end, jnp.concatenate([states, end[None]])) if trajectory else end


def check(statistics: Statistics) -> Statistics:
  """Returns statistics as float64 after checking them.

  Raises:
    ValueError: if they are none, their levels do not decrease above 0, their shapes disagree, or a
      value is not a finite number.
  """
  if not isinstance(statistics, Statistics):
    got = repr(statistics) if isinstance(statistics, str | None) else type(statistics).__name__
    raise ValueError(f'{NAME}: statistics must be those of the model, got {got}; '
                     '--mode=search --config.search.method=dpm_v3 measures them')
  statistics = Statistics(*(checks.to_array(NAME, f'{name} of the statistics', value)
                            for name, value in statistics._asdict().items()))
  levels = checks.check_grid(f'{NAME}: statistics', statistics.sigmas)
  if levels[-1] == 0 or np.any(np.diff(levels) == 0):
    raise ValueError(f'{NAME}: sigmas of the statistics must decrease strictly and end above 0, '
                     f'got {levels[-1]:g} after {levels[-2]:g}; measure the model again')
  shape = statistics.l.shape
  for name, value in statistics._asdict().items():
    if name != 'sigmas' and not (len(shape) == 4 and len(value) == len(levels)
                                 and value.shape == shape and np.isfinite(value).all()):
      raise ValueError(f'{NAME}: {name} of the statistics must be finite, of shape '
                       f'({len(levels)}, height, width, channels), got shape {value.shape} beside '
                       f'l of {shape}; measure the model again')
  return statistics


class _Nodes(NamedTuple):
  """Statistics and their integrals at all levels of statistics and run, each (nodes, ...)."""

  lam: np.ndarray
  l: np.ndarray  # noqa: E741
  big_l: np.ndarray
  big_s: np.ndarray
  big_b: np.ndarray


def _integrate(statistics, levels):
  """Places of the levels above 0 among the nodes, and the nodes; integrals from the first one."""
  lam, asked = -np.log(statistics.sigmas), -np.log(levels[levels > 0])
  ends = statistics.sigmas[[-1, 0]]
  bad = levels[(levels > 0) & ~((levels >= ends[0] * (1 - _SLACK))
                                & (levels <= ends[1] * (1 + _SLACK)))]
  if bad.size:
    raise ValueError(f'{NAME}: sigmas must lie within those of the statistics, {ends[0]:g} to '
                     f'{ends[1]:g}, got {bad[0]:g}; set sigma_min and sigma_max of the schedule, '
                     'or measure the model on a wider range')
  nodes = np.unique(np.concatenate([lam, asked]))
  right = np.clip(np.searchsorted(lam, nodes), 1, len(lam) - 1)
  share = np.clip((nodes - lam[right - 1]) / (lam[right] - lam[right - 1]), 0, 1)
  share = share.reshape(-1, 1, 1, 1)
  linear, s, b = ((1 - share) * value[right - 1] + share * value[right]
                  for value in statistics[1:])
  big_s = _running(s, nodes)
  # A node is its own place, so that equal levels are equal.
  return np.searchsorted(nodes, asked).tolist(), _Nodes(
      nodes, linear, _running(linear, nodes), big_s, _running(np.exp(-big_s) * b, nodes))


def _running(values, lam):
  """Trapezoid sums from the first node to each."""
  pieces = np.diff(lam).reshape(-1, 1, 1, 1) * (values[1:] + values[:-1]) / 2
  return np.concatenate([np.zeros_like(values[:1]), np.cumsum(pieces, axis=0)])


def _update(nodes, points, end, pseudo):
  """Eq. 2 from points[0] to `end`, with the polynomial through g at the points.

  Args:
    nodes: what `_integrate` returns.
    points: places of the values of f in use, the start of the step first.
    end: place of the end; below the start on the way up.
    pseudo: whether differences stand for derivatives.

  Returns:
    An Update of one row, f a list of length _MEMORY in the order of the points.
  """
  start = points[0]
  way = np.arange(start, end + 1) if end > start else np.arange(start, end - 1, -1)
  def beta(place):
    return np.exp(nodes.big_s[start]) * (nodes.big_b[place] - nodes.big_b[start])

  growth = np.exp(nodes.big_l[way] - nodes.big_l[start] + nodes.big_s[way] - nodes.big_s[start])
  step = nodes.lam[end] - nodes.lam[start]
  along = (nodes.lam[way] - nodes.lam[start]).reshape(-1, 1, 1, 1) / step  # From 0 to 1.
  def integral(values):
    return _running(growth * values, nodes.lam[way])[-1]

  weights = _derivatives((nodes.lam[points] - nodes.lam[start]) / step, pseudo)
  moments = [integral(along**n / math.factorial(n)) for n in range(len(points))]
  shift, values = integral(beta(way)), []
  for point, own in zip(points, weights.T, strict=True):
    total = sum(weight * moment for weight, moment in zip(own, moments, strict=True))
    values.append(total * np.exp(nodes.big_s[start] - nodes.big_s[point]))
    shift = shift - total * beta(point)
  scale = np.exp(nodes.big_l[start] - nodes.big_l[end])
  idle = [np.zeros_like(scale)] * (_MEMORY - len(points))
  return Update(scale, [scale * value for value in values] + idle, scale * shift)


def _derivatives(places, pseudo):
  """Weights [n, k] of the values in the n-th derivative at the first place, which is 0."""
  count = len(places)
  weights = np.zeros((count, count))
  weights[0, 0] = 1
  if pseudo:
    for n in range(1, count):
      for k in range(n + 1):
        others = np.delete(places[:n + 1], k)
        weights[n, k] = math.factorial(n) / np.prod(places[k] - others)
  elif count > 1:
    powers = np.arange(1, count)
    factorials = np.array([math.factorial(n) for n in powers], float)
    weights[1:, 1:] = np.linalg.inv(places[1:, None]**powers / factorials)
    weights[1:, 0] = -weights[1:, 1:].sum(1)
  return weights


def _nothing(nodes):
  zero = np.zeros_like(nodes.l[0])
  return Update(zero, [zero] * _MEMORY, zero)


def _stack(values):
  """(rows, 1, height, width, channels): beside a batch."""
  return np.stack(values)[:, None]


def _join(updates):
  """The rows of an Update."""
  return Update(_stack([update.x for update in updates]),
                np.stack([_stack(update.f) for update in updates]),
                _stack([update.shift for update in updates]))
