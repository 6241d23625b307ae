"""SA-Solver: Adams predictor and corrector for the reverse SDE, with its noise where it is wanted.

tau sets the noise of every step: eta = tau^2 is 0 for the probability-flow ODE and 1 for the
reverse SDE. With lam = -log(sigma), h the step in it, k = 1 + tau^2 and L_j the Lagrange basis on
the levels of the answers in use, a step from sigma to sigma' is

  data:   x' = (sigma'/sigma)^k x + sum_j D_j int k e^(-k (lam' - u)) L_j(u) du
               + sigma' sqrt(1 - (sigma'/sigma)^(2 tau^2)) z,
  noise:  x' = x - k sigma' sum_j eps_j int e^(lam' - u) L_j(u) du + tau sqrt(sigma^2 - sigma'^2) z.

The predictor takes the last answers, the corrector the one at the predicted point too, and both the
same z. The predicted point is made of the state before, the answers and z, so that nothing else
has to be remembered for the corrector: it replaces the answers' weights.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, coefficients, registry
from samplers.ancestral import check_noise, known_zero, noise_of
from samplers.multistep import weighted
from samplers.table import DENOISE, NOTHING, RAW, Row, Table, assemble

MIDDLE = '0.57:5.1:1'
"""The usual tau: 1 from timestep 200 to 800 of Stable Diffusion's 1000, given as noise levels."""


@registry.register
def sa_solver(levels: Sequence[Any], *, predictor_order: int = 3, corrector_order: int = 4,
              mode: str = 'PEC', final: str = 'predict', rescale: bool | None = None,
              prediction: str = 'data', tau: float | str | Sequence[Any] = MIDDLE,
              lower_order_final: bool = True, s_noise: float = 1.0, xp: Any = np) -> Table:
  """Builds SA-Solver: predict, evaluate, correct, and with 'PECE' evaluate once more.

  Orders 3 and 4 are for sampling without guidance, 2 and 2 for strong guidance. As any multistep
  solver that starts with a step of order 1 it is of order 2 as a whole, also in the variance.

  Step i = 0, 1, ... has orders min(predictor_order, i + 1) and min(corrector_order, i + 2); with
  lower_order_final also at most the number of steps left, itself included (one more for the
  corrector), but for the first steps, max(predictor_order, corrector_order - 1) - 1 of them. What
  happens at the end is `final`:
    'predict', for few steps: the last step has no corrector and tau = 0;
    'correct_denoise', for many: it has both, and the denoised image is the result, a row of kind 3.
      As published, the end is evaluated for the corrector also where there is none;
    'zero', for grids that end in 0: the last step is the denoised image, and the steps before it
      end with orders ..., 2, 1.
  A step to 0 always returns the denoised image; with 'PEC' its start is not corrected.

  tau is taken at the end of a step (diffusers takes it at the start). It may be one number; one for
  each step; or rows (low, high, value): the value of the first row with low <= sigma <= high, 0
  where there is none. As text: '1', '0,1,1,0' or '0.05:1:1,1:5:0.5'.

  Source: Xue et al. 2023 (SA-Solver), arXiv:2309.05019, Alg. 1, Eq. 14 to 18; `rescale` and the
  ends 'predict' and 'correct_denoise' are of its code, 'zero' is ComfyUI's.

  Args:
    levels: n + 1 decreasing noise levels; the last may be 0, but for 'correct_denoise'.
    predictor_order: 1 to 4.
    corrector_order: 1 to 4, or 0 for no corrector, whatever the mode.
    mode: 'PEC', whose answers are those at predicted points, or 'PECE'.
    final: 'predict', 'correct_denoise' or 'zero'.
    rescale: in steps of order 2 with data prediction, take k h / 2 for the first moment of the
      weight, an error of third order that helps at few steps. None: with 'predict' alone.
    prediction: what is interpolated, 'data' or 'noise'.
    tau: strength of the noise, >= 0, see above.
    lower_order_final: lower the order of the last steps.
    s_noise: factor on the noise, >= 0.
    xp: numpy or jax.numpy.

  Returns:
    A Table with 1 + max(predictor_order, corrector_order - 1) slots (predictor_order without a
    corrector). NFE n with 'PEC' (two more for 'correct_denoise'); 'PECE' n - 1 more.

  Raises:
    ValueError: if an option is not one of the above, `final` does not suit the end of the grid, or
      there is noise on an increasing grid.
  """
  twice = mode == 'PECE' and corrector_order != 0
  _check(levels, predictor_order, corrector_order, mode, final, rescale, prediction, xp)
  checks.check_switch('sa_solver', 'lower_order_final', lower_order_final)
  check_noise('sa_solver', 0.0, s_noise, xp)
  strengths = _strengths(levels, tau, xp)
  if final == 'predict':
    strengths[-1] = 0.0
  if xp is np and levels[-1] > levels[0] and any(strengths):
    raise ValueError(f'sa_solver: tau must be 0 on an increasing grid, got {tau!r}; invert without '
                     'noise')
  rescale = final == 'predict' if rescale is None else rescale
  orders = _orders(levels, predictor_order, corrector_order, final, twice, lower_order_final)
  steps = _steps(levels, orders, strengths, prediction == 'data', rescale, s_noise, xp)
  depth = max(predictor_order, corrector_order - 1) if corrector_order else predictor_order - 1
  return assemble(list(_rows(levels, steps, depth, prediction, final, twice, xp)), xp)


class _Step(NamedTuple):
  """Coefficients of a step: of the state, of the answers (newest first), and the draw."""

  ratio: Any
  predictor: Sequence[Any]
  corrector: Sequence[Any]  # Of the answer at the predicted point and those before; may be empty.
  draw: dict[str, Any]


def _rows(levels: Sequence[Any], steps: Sequence[_Step], depth: int, prediction: str, final: str,
          twice: bool, xp: Any) -> Iterator[Row]:
  """Yields the rows at each level. Slots: state or predicted point, answers (newest first)."""
  x, *memory, denoised = xp.eye(depth + 2)
  n = len(steps)
  for i, s in enumerate(levels[:n + 1 if final == 'correct_denoise' else n]):
    answer = denoised if prediction == 'data' else (x - denoised) / s
    known, kind = [answer, *memory], DENOISE
    if i > 0 and steps[i - 1].corrector:
      end = x + weighted(steps[i - 1].corrector, known) - weighted(steps[i - 1].predictor, memory)
      again = twice and i < n
      yield Row(s, [end, *(memory if again else known[:depth])], level=s)
      if not again:
        known, kind = memory, NOTHING
    elif i == n:
      yield Row(s, [x, *memory])
    if i < n:
      step, s1 = steps[i], levels[i + 1]
      end = denoised if checks.is_zero(s1) else step.ratio * x + weighted(step.predictor, known)
      yield Row(s, [end, *known[:depth]], level=np.nan if step.corrector else s1, kind=kind,
                **step.draw)
  if final == 'correct_denoise':
    yield Row(levels[-1], [denoised, *memory], level=0.0, kind=RAW)


def _steps(levels, orders, strengths, data, rescale, s_noise, xp):
  """Coefficients of all steps, given orders of predictor and corrector and tau of each."""
  if checks.is_zero(levels[-1]):
    last = [_Step(0.0, (), (), {})]
    return _steps(levels[:-1], orders, strengths, data, rescale, s_noise, xp) + last
  if len(levels) == 1:
    return []
  s, s1 = xp.stack(levels[:-1]), xp.stack(levels[1:])
  tau = xp.stack([xp.asarray(value, s.dtype) for value in strengths[:len(levels) - 1]])
  h, k = xp.log1p((s - s1) / s1), 1 + tau**2
  z, size = (-k * h, k * h) if data else (h, -k * s1 * h)
  # int_0^1 e^(z (1 - v)) v^m dv = m! phi_(m+1)(z), v counting the step from its start.
  moments = [size * math.factorial(m) * coefficients.phi(m + 1, z, xp)
             for m in range(max(max(pair) for pair in orders))]
  ratio = xp.exp(-k * h) if data else xp.ones_like(h)
  if any(not known_zero(value) for value in strengths):
    up = tau * (s1 * xp.sqrt(2 * h * coefficients.phi(1, -2 * tau**2 * h, xp)) if data
                else xp.sqrt((s - s1) * (s + s1)))  # In this form smooth at tau = 0.
  steps = []
  for i, (order, correcting) in enumerate(orders[:len(levels) - 1]):
    # Nodes: 0 for the start of the step, below 0 for the levels before, 1 for its end.
    count = max(order, correcting - 1)
    back = [xp.log1p((levels[i] - level) / level) / h[i] for level in levels[i::-1][:count]]

    def adams(nodes, i=i):
      given = [moment[i] for moment in moments[:len(nodes)]]
      if rescale and data and len(nodes) == 2:
        given[1] = k[i] * h[i] / 2
      return coefficients.lagrange_integrals(nodes, given, xp) if nodes else ()

    draw = {} if known_zero(strengths[i]) else noise_of(up[i], strengths[i], s_noise, s[i], s1[i])
    steps.append(_Step(ratio[i], adams(back[:order]),
                       adams([1.0, *back[:correcting - 1]][:correcting]), draw))
  return steps


def _orders(levels, p, q, final, twice, lowered):
  """Orders of predictor and corrector in each step; 0 is none."""
  n = len(levels) - 1
  ramp = max(p, q - 1)
  pairs = []
  for step in range(1, n + 1):
    order, correcting = min(p, step), min(q, step + 1)
    left = n - step
    if lowered and final == 'zero':
      order, correcting = min(order, left), min(correcting, left)
    elif lowered and step >= ramp:
      order, correcting = min(order, left + 1), min(correcting, left + 2)
    if (left == 0 and final != 'correct_denoise') or (
        left == 1 and not twice and checks.is_zero(levels[-1])):
      correcting = 0
    pairs.append((order, correcting))
  return pairs


def _strengths(levels: Sequence[Any], tau: Any, xp: Any) -> list[Any]:
  """Returns tau of every step, floats where they are known."""
  n = len(levels) - 1
  if isinstance(tau, str):
    tau = _parse(tau)
  traced = xp is not np and any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tau))
  values = jnp.asarray(tau) if traced else checks.to_array('sa_solver', 'tau', tau)
  if values.shape not in ((), (n,)) and (values.ndim != 2 or values.shape[1] != 3):
    raise ValueError(f'sa_solver: tau must be one number, one for each of {n} steps, or rows of '
                     f"low, high and value, got shape {values.shape}; such as '0,1,1,0' for 4 "
                     f'steps, or {MIDDLE!r}')
  if not traced:
    _check_strengths(values)
    values = values.tolist()
  if np.ndim(values) == 0:
    return [values] * n
  if np.ndim(values) == 1:
    return list(values)
  if not traced and not any(value for _, _, value in values):
    return [0.0] * n
  return [_piece(s1, values, xp) for s1 in levels[1:]]


def _piece(sigma, pieces, xp):
  """Value of the first of the rows (low, high, value) that holds at a level, else 0."""
  tau = 0.0
  for low, high, value in reversed(pieces):
    tau = xp.where((low <= sigma) & (sigma <= high), value, tau)
  return float(tau) if xp is np else tau


def _parse(text):
  """Numbers of '1', '0,1,1,0' or '0.05:1:1,1:5:0.5'."""
  try:
    rows = [[float(number) for number in part.split(':')] for part in text.split(',')]
  except ValueError:
    rows = []
  if {len(row) for row in rows} == {3}:
    return rows
  if {len(row) for row in rows} == {1}:
    return rows[0][0] if len(rows) == 1 else [row[0] for row in rows]
  raise ValueError("sa_solver: tau must be numbers or low:high:value, separated by commas, got "
                   f'{text!r}; such as 1, or {MIDDLE!r}')


def _check_strengths(values: np.ndarray) -> None:
  strengths = values[:, 2] if values.ndim == 2 else np.atleast_1d(values)
  bad = strengths[~((strengths >= 0) & (strengths < np.inf))]
  if bad.size:
    raise ValueError(f'sa_solver: tau must be finite and at least 0, got {bad[0]:g}; 0 is the ODE, '
                     '1 the reverse SDE')
  if values.ndim == 2:
    bad = values[~((values[:, 0] >= 0) & (values[:, 0] <= values[:, 1]))]
    if len(bad):
      raise ValueError('sa_solver: tau must be given from a low level >= 0 to a higher one, got '
                       f'{bad[0][0]:g} to {bad[0][1]:g}; swap them')


def _check(levels, predictor_order, corrector_order, mode, final, rescale, prediction, xp):
  """Raises ValueError unless the options are known and suit the end of the grid."""
  checks.check_order('sa_solver', predictor_order, 4, 'predictor_order')
  if not checks.is_integer(corrector_order) or not 0 <= corrector_order <= 4:
    raise ValueError('sa_solver: corrector_order must be an integer from 0 to 4, got '
                     f'{corrector_order!r}; 0 is no corrector')
  checks.check_choice('sa_solver', 'mode', mode, ('PEC', 'PECE'))
  checks.check_choice('sa_solver', 'final', final, ('predict', 'correct_denoise', 'zero'))
  checks.check_choice('sa_solver', 'prediction', prediction, ('data', 'noise'))
  if rescale is not None:
    checks.check_switch('sa_solver', 'rescale', rescale)
  ends_in_zero = checks.is_zero(levels[-1])
  if final == ('correct_denoise' if ends_in_zero else 'zero'):
    end, got = ('above 0', '0') if ends_in_zero else ('in 0', 'one above')
    raise ValueError(f'sa_solver: sigmas must end {end} with final {final!r}, got {got}; '
                     "take final 'predict', which suits both")
