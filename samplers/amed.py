"""AMED-Solver and AMED-Plugin: one learned level within every interval, per sample.

Between sigma and sigma' a second evaluation is placed at

  sigma_mid = sigma'^r sigma^(1 - r),  0 < r < 1,                                            (1)

where a small network predicts r for each sample from the bottleneck of the denoiser's U-Net at
(x, sigma). Two more numbers may correct what comes of it: scale_dir = c multiplies the second
update, scale_time = a the level that the denoiser is told, not the one that is divided by:

  eps_mid = (x_mid - D(x_mid; a sigma_mid)) / sigma_mid.                                      (2)

The student says how the two slopes are used:

  amed:   x_mid = x + (sigma_mid - sigma) eps,  x' = x + c (sigma' - sigma) eps_mid;          (3)
  dpm:    the same with eps + (eps_mid - eps) / (2 r) for eps_mid: DPM-Solver-2 on a level of (1);
  euler:  two Euler steps, sigma to sigma_mid to sigma';
  ipndm:  two steps of Adams-Bashforth with the weights of equal steps, see `adams.ipndm`;
  dpmpp:  two steps of DPM-Solver++ (or DPM-Solver) of several steps, see `dpmpp.dpmpp`.

The last two remember the answers at all levels, those in between among them. In all of the last
three c multiplies the second step, without the part that scales x alone.

Coefficients per sample that depend on what the network has answered are no Table; so this file has
a scan of its own. The number of the interval may be traced: what depends on it is data.

Source: Zhou et al. 2024 (AMED-Solver), arXiv:2312.00094, Sec. 3.2 and 3.3; what their code does
is followed in all details but its known defects: here r is per sample also where both scales are
off, and iPNDM of order 1 is Euler.
"""

import functools
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import adams, checks, coefficients
from samplers.multistep import weighted

STUDENTS = MappingProxyType({'amed': 1, 'euler': 1, 'dpm': 1, 'dpmpp': 3, 'ipndm': 4})
"""Highest order by student; the first three have but one, whatever `max_order` says."""

Features = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""denoise_features(x, sigma) -> (D(x; sigma), bottleneck (batch, h, w)), sigma scalar or (batch,).
Limits on D are its own matter, see `guidance`."""

Predict = Callable[[jax.Array, jax.Array, jax.Array], tuple[Any, Any, Any]]
"""predict(bottleneck, sigma, sigma_next) -> (r, scale_dir, scale_time), each (batch,) or a scalar;
a scale that is off is 1."""


class Carry(NamedTuple):
  """What one interval hands to the next.

  Attributes:
    x: the state, (batch, height, width, channels).
    answers: max_order - 1 earlier answers like x, the newest first: eps or denoised images.
    levels: their noise levels, each (batch, 1, 1, 1).
  """

  x: jax.Array
  answers: tuple[jax.Array, ...]
  levels: tuple[jax.Array, ...]


def sample(denoise_features: Features, predict: Predict, x: jax.Array, sigmas: Any, *,
           student: str, afs: bool = False, max_order: int | None = None, predict_x0: bool = True,
           lower_order_final: bool = True, denoise_to_zero: bool = False,
           trajectory: bool = False) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Samples with a predictor: 2 n evaluations on n intervals, 2 n - 1 with `afs`.

  Pure, so that it may be compiled, differentiated and mapped.

  Args:
    denoise_features: the denoiser and its bottleneck.
    predict: the predictor.
    x: state at sigmas[0], x0 + sigma z, shape (batch, height, width, channels).
    sigmas: n + 1 strictly decreasing levels above 0, perhaps traced.
    student: a key of STUDENTS.
    afs: eps = x / sqrt(1 + sigma^2) in place of the first evaluation, whose bottleneck is then 0.
    max_order: of dpmpp (1 to 3) and ipndm (1 to 4); None: the highest.
    predict_x0: dpmpp on denoised images (DPM-Solver++), else on eps (DPM-Solver).
    lower_order_final: dpmpp ends with steps of lower order.
    denoise_to_zero: one more evaluation at the last level, before limits, whose D is the result.
    trajectory: also return the states at the grid points.

  Returns:
    Samples like x; with `trajectory` the pair (samples, states), states of shape
    (n + 1, *x.shape), the first being x; one more with `denoise_to_zero`.

  Raises:
    ValueError: if a setting is not one of the above, the grid does not decrease strictly to a level
      above 0 (a traced one is not checked), x is no batch of images of floats, or what a function
      returns has another shape than it should.
  """
  max_order = check_settings(student, max_order, afs, predict_x0, lower_order_final)
  checks.check_switch('amed', 'denoise_to_zero', denoise_to_zero)
  if not isinstance(sigmas, jax.Array):
    sigmas = check_levels(sigmas)
  if getattr(x, 'ndim', None) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError('amed: x must be floats of shape (batch, height, width, channels), got '
                     f'{getattr(x, "dtype", type(x))} of shape {jnp.shape(x)}; add missing axes')

  def one(carry, i):
    carry, _ = step(denoise_features, predict, carry, sigmas, i, student=student, afs=afs,
                    max_order=max_order, predict_x0=predict_x0,
                    lower_order_final=lower_order_final)
    return carry, carry.x if trajectory else None

  x = jnp.asarray(x)
  carry, states = jax.lax.scan(one, start(x, student=student, max_order=max_order),
                               jnp.arange(len(sigmas) - 1))
  ends = [carry.x]
  if denoise_to_zero:
    raw = getattr(denoise_features, 'raw', denoise_features)
    ends = [_evaluate(raw, carry.x, jnp.asarray(sigmas[-1]).astype(x.dtype))[0]]
  if trajectory:
    more = [end[None] for end in ends] if denoise_to_zero else []
    return ends[0], jnp.concatenate([x[None], states, *more])
  return ends[0]


def start(x: jax.Array, *, student: str, max_order: int | None = None) -> Carry:
  """Returns the Carry before the first interval: a state without a history.

  Args:
    x: state at the first level, (batch, height, width, channels).
    student: as `sample`.
    max_order: as `sample`.
  """
  depth = _order(student, max_order) - 1
  # Levels of answers that do not exist lie apart and above all others: what is computed from them
  # and not used stays finite, also its gradient.
  levels = (jnp.full((len(x), 1, 1, 1), 2.0**(j + 1) * checks.HIGHEST_SIGMA, x.dtype)
            for j in range(depth))
  return Carry(x, (jnp.zeros_like(x),) * depth, tuple(levels))


def step(denoise_features: Features, predict: Predict, carry: Carry, sigmas: Any, i: Any, *,
         student: str, afs: bool = False, max_order: int | None = None, predict_x0: bool = True,
         lower_order_final: bool = True) -> tuple[Carry, dict[str, jax.Array]]:
  """Takes the step from sigmas[i] to sigmas[i + 1], Eq. 1 to 3.

  Gradients flow through both evaluations and through sigma_mid wherever it stands, and not through
  the bottleneck into the denoiser.

  Args:
    denoise_features: as `sample`.
    predict: as `sample`.
    carry: from `start` or the step before.
    sigmas: all n + 1 levels, perhaps traced.
    i: number of the interval from 0, perhaps traced.
    student: as `sample`.
    afs: as `sample`; acts at i = 0.
    max_order: as `sample`.
    predict_x0: as `sample`.
    lower_order_final: as `sample`.

  Returns:
    (carry, told): the Carry at sigmas[i + 1]; told: 'r', 'scale_dir' and 'scale_time', (batch,).

  Raises:
    ValueError: if what a function returns has another shape than it should.
  """
  x, order = carry.x, _order(student, max_order)
  count = 2 * (len(sigmas) - 1)
  orders = jnp.asarray(_orders(count, order, student == 'dpmpp' and lower_order_final))
  sigmas = jnp.asarray(sigmas).astype(x.dtype)
  sigma, sigma_next = sigmas[i], sigmas[i + 1]
  denoised, eps, bottleneck = _first(denoise_features, x, sigma, afs, i)
  told = _predicted(predict(jax.lax.stop_gradient(bottleneck), sigma, sigma_next), x)
  r, scale_dir, scale_time = (told[name].reshape(-1, 1, 1, 1) for name in told)
  sigma_mid = sigma * (sigma_next / sigma)**r
  data = student == 'dpmpp' and predict_x0

  def advance(x, answers, levels, level_next, at, scale):
    if student == 'dpmpp':
      return _dpmpp(x, answers[:order], levels, level_next, orders[at], scale, data)
    weights = jnp.asarray(_EQUAL_STEPS, x.dtype)[orders[at] - 1]
    return x + scale * (level_next - levels[0]) * weighted(list(weights), answers[:order])

  answers = [denoised if data else eps, *carry.answers]
  levels = [jnp.broadcast_to(sigma, r.shape), *carry.levels]
  x_mid = advance(x, answers, levels, sigma_mid, 2 * i, 1.0)
  denoised, _ = _evaluate(denoise_features, x_mid, (scale_time * sigma_mid).reshape(-1))
  eps_mid = (x_mid - denoised) / sigma_mid
  answers = [denoised if data else eps_mid, *answers]
  levels = [sigma_mid, *levels]
  if student in ('amed', 'dpm'):
    slope = eps_mid if student == 'amed' else eps + (eps_mid - eps) / (2 * r)
    end = x + scale_dir * (sigma_next - sigma) * slope
  else:
    end = advance(x_mid, answers, levels, sigma_next, 2 * i + 1, scale_dir)
  return Carry(end, tuple(answers[:order - 1]), tuple(levels[:order - 1])), told


def check_settings(student: str, max_order: int | None = None, afs: bool = False,
                   predict_x0: bool = True, lower_order_final: bool = True) -> int:
  """Checks the settings of `sample`, those that the student has, and returns its order.

  Raises:
    ValueError: if one is not as `sample` says.
  """
  checks.check_choice('amed', 'student', student, STUDENTS)
  checks.check_switch('amed', 'afs', afs)
  order = _order(student, max_order)
  if STUDENTS[student] > 1:
    checks.check_order(f'amed: {student}', order, STUDENTS[student])
  if student == 'dpmpp':
    checks.check_switch('amed', 'predict_x0', predict_x0)
    checks.check_switch('amed', 'lower_order_final', lower_order_final)
  return order


def check_levels(sigmas: Any) -> np.ndarray:
  """Returns a grid as float64 after checking that it decreases strictly to a level above 0.

  Raises:
    ValueError: if it does not.
  """
  levels = checks.check_grid('amed', sigmas)
  if levels[-1] == 0:
    raise ValueError('amed: sigmas must end above 0, since a level is placed between any two by '
                     'the ratio of both, got a last level 0; end the grid at sigma_min')
  bad = np.flatnonzero(np.diff(levels) == 0)
  if bad.size:
    raise ValueError('amed: sigmas must decrease strictly, since every interval has a level of its '
                     f'own, got {levels[bad[0]]:g} twice from index {bad[0]}; take fewer steps or '
                     'a grid that is not rounded')
  return levels


# Row j holds the weights of order j + 1, zeros where there is no slope yet.
_EQUAL_STEPS = np.zeros((4, 4))
for _order_, _weights in adams.EQUAL_STEPS.items():
  _EQUAL_STEPS[_order_ - 1, :_order_] = _weights


def _order(student, max_order):
  """Answers that a step uses at most."""
  highest = STUDENTS[student]
  return highest if highest == 1 or max_order is None else max_order


def _orders(count, max_order, lower_order_final):
  """Order of each of `count` steps, as many answers as there are; the start outweighs the end."""
  number = np.arange(1, count + 1)
  last = np.minimum(max_order, count + 1 - number) if lower_order_final else max_order
  return np.where(number < max_order, number, last)


def _first(denoise_features, x, sigma, afs, i):
  """Returns D, eps and bottleneck of the first evaluation, or what AFS has in its place.

  AFS: see `table.first_step_for_free`, which also says why no limit on D would act on it.
  """
  def asked():
    denoised, bottleneck = _evaluate(denoise_features, x, sigma)
    return denoised, (x - denoised) / sigma, bottleneck

  if not afs or (checks.is_integer(i) and i > 0):
    return asked()
  like = jax.eval_shape(functools.partial(_evaluate, denoise_features), x, sigma)[1]

  def free():
    root = jnp.sqrt(1 + sigma**2)
    return x / (root * (root + sigma)), x / root, jnp.zeros(like.shape, like.dtype)
  if checks.is_integer(i):
    return free()
  return jax.lax.cond(i == 0, free, asked)  # What is not taken costs nothing.


def _evaluate(denoise_features, x, sigma):
  """Returns D and the bottleneck in the precision of x; their shapes have to fit it."""
  denoised, bottleneck = denoise_features(x, sigma)
  if jnp.shape(denoised) != x.shape:
    raise ValueError(f'amed: denoise_features must return D like x, shape {x.shape}, got '
                     f'{jnp.shape(denoised)}; keep batch, height, width and channels')
  if jnp.ndim(bottleneck) != 3 or len(bottleneck) != len(x):
    raise ValueError(f'amed: denoise_features must return a bottleneck of shape ({len(x)}, height, '
                     f'width), got {jnp.shape(bottleneck)}; take the mean over channels')
  return denoised.astype(x.dtype), bottleneck.astype(x.dtype)


def _predicted(predicted, x):
  """Returns what the predictor says by name, each of shape (batch,)."""
  names = 'r', 'scale_dir', 'scale_time'
  predicted = [jnp.asarray(value, x.dtype) for value in predicted]
  shapes = [value.shape for value in predicted]
  if len(shapes) != 3 or any(shape not in ((), (len(x),)) for shape in shapes):
    raise ValueError(f'amed: predict must return r, scale_dir and scale_time, scalars or of shape '
                     f'({len(x)},), got shapes {shapes}; a scale that is off is 1')
  return {name: jnp.broadcast_to(value, len(x)) for name, value in zip(names, predicted,
                                                                       strict=True)}


def _dpmpp(x, answers, levels, level_next, order, scale, data):
  """One step of `dpmpp.dpmpp` as published, with levels per sample and a traced order."""
  h = jnp.log(levels[0] / level_next)
  z, weight = (-h, h) if data else (h, -h * level_next)
  keep = level_next / levels[0] if data else 1.0
  phi1 = coefficients.phi(1, z, jnp)
  total = phi1 * answers[0]
  if len(answers) > 1:
    back = jnp.log(levels[1] / levels[0])
    d10 = (answers[0] - answers[1]) * (h / back)
    total = jnp.where(order == 2, total + phi1 / 2 * d10, total)
  if len(answers) > 2:
    further = jnp.log(levels[2] / levels[1])
    d11 = (answers[1] - answers[2]) * (h / further)
    d1 = d10 + back / (back + further) * (d10 - d11)
    d2 = (d10 - d11) * (h / (back + further))
    higher = coefficients.phi(2, z, jnp) * d1 + coefficients.phi(3, z, jnp) * d2
    total = jnp.where(order == 3, total + higher, total)
  return keep * x + scale * weight * total
