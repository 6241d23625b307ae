"""The Table: a solver written down as data.

Every sampler here is one machine: `slots` image-sized memories, of which slot 0 is the state that
the network sees, one answer per row, and a linear mix of memories and answer between two answers:

  answer = D(state[0]; sigma[r])
  state <- mix[r] @ [state; answer] + noise[r] * z_r,   z_r standard normal.

A solver is therefore a function from a grid of noise levels to these arrays. It writes a step as
the paper does, on vectors over the basis [slot 0, slot 1, ..., answer]: with
`x, memory, denoised = xp.eye(3)` the sum `x + dsigma * (x - denoised) / sigma` is a row of `mix`.

A solver may also weigh two answers of one evaluation, the guided image and the unguided one: CFG++
does. Its `mix` has one column more, which is all that tells it from the others.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks

DENOISE, GUIDE, NOTHING, RAW = 0, 1, 2, 3
"""Kinds of row: what the answer is. See `Table`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
  """A general linear method on `slots` images with one answer per row.

  The state starts as x in slot 0 and zeros elsewhere; the result is slot 0 after the last row. A
  Table is a pytree of arrays: an argument of a compiled function, never a constant in it. It is
  checked where it is built on the host; with a jax array among its fields, or by a map over
  pytrees, it is not.

  Attributes:
    sigma: noise level at which slot 0 is evaluated, shape (rows,), > 0.
    kind: what answers, shape (rows,): 0 the denoiser; 1 the guidance term (0 without a guide);
      2 nothing, the answer is 0 and costs nothing; 3 the denoiser before thresholding.
    mix: linear update, shape (rows, slots, slots + 1); the last column weighs the answer. Of shape
      (rows, slots, slots + 2) the last two weigh the guided answer and the unguided one.
    noise: weight of the row's one standard normal draw in each slot, shape (rows, slots).
    level: noise level of slot 0 after the row where that is a grid point, else NaN, (rows,).
    interval: noise levels between which the row's draw acts, shape (rows, 2), NaN without a draw;
      None: NaN everywhere. A row with an interval draws even where its weight is 0.

  Raises:
    ValueError: if shapes disagree, a coefficient is not a finite number, a level is not positive
      or a kind is unknown.
  """

  sigma: np.ndarray
  kind: np.ndarray
  mix: np.ndarray
  noise: np.ndarray
  level: np.ndarray
  interval: np.ndarray | None = None

  def __post_init__(self):
    if self.interval is None:
      object.__setattr__(self, 'interval', np.full((len(self.sigma), 2), np.nan))
    if not any(isinstance(leaf, jax.Array) for leaf in vars(self).values()):
      for name, leaf in vars(self).items():
        array = np.asarray(leaf) if name == 'kind' else checks.to_array('Table', name, leaf)
        object.__setattr__(self, name, array)
      _check(self)

  @property
  def rows(self) -> int:
    """Number of rows, evaluations and free rows together."""
    return self.mix.shape[0]

  @property
  def slots(self) -> int:
    """Number of image-sized memories."""
    return self.mix.shape[1]

  @property
  def answers(self) -> int:
    """Number of images that an evaluation answers with: 1, or 2, guided and unguided."""
    return self.mix.shape[2] - self.mix.shape[1]

  @property
  def nfe(self) -> int:
    """Number of network evaluations: the rows of kind 0 and 3."""
    return int(np.isin(np.asarray(self.kind), (DENOISE, RAW)).sum())


_FIELDS = tuple(field.name for field in dataclasses.fields(Table))


def _flatten(table):
  return [(jax.tree_util.GetAttrKey(name), getattr(table, name)) for name in _FIELDS], None


def _unflatten(_, leaves):
  """Without the checks: leaves may be stacked tables, differences of tables, or no arrays."""
  table = object.__new__(Table)
  for name, leaf in zip(_FIELDS, leaves, strict=True):
    object.__setattr__(table, name, leaf)
  return table


jax.tree_util.register_pytree_with_keys(Table, _flatten, _unflatten)


class Row(NamedTuple):
  """One row of a Table as a solver writes it; `assemble` stacks them.

  Attributes:
    sigma: noise level of the evaluation, a scalar > 0.
    mix: new content of each slot, `slots` vectors of length slots + 1, or + 2 for two answers.
    level: noise level that slot 0 reaches, NaN within a step.
    kind: one of DENOISE, GUIDE, NOTHING, RAW.
    noise: weight of the row's draw in slot 0 (a scalar) or in every slot (a sequence).
    interval: noise levels between which the draw acts.
  """

  sigma: Any
  mix: Sequence[Any]
  level: Any = np.nan
  kind: int = DENOISE
  noise: Any = 0.0
  interval: tuple[Any, Any] = (np.nan, np.nan)


def assemble(rows: Sequence[Row], xp: Any = np) -> Table:
  """Stacks rows into a Table.

  Args:
    rows: at least one Row, all with the same numbers of slots and answers.
    xp: numpy for a checked float64 table on the host, jax.numpy for a traced one.

  Returns:
    The Table.

  Raises:
    ValueError: if xp is numpy and the rows do not make a valid Table.
  """
  slots = len(rows[0].mix)

  def spread(noise):
    return noise if isinstance(noise, Sequence) else [noise] + [0.0] * (slots - 1)

  if xp is np:
    def array(values):
      return np.array(values, np.float64)
  else:
    def array(values):
      leaves = [jnp.asarray(value, float) for value in jax.tree.leaves(values)]
      return jnp.concatenate([leaf.reshape(-1) for leaf in leaves])

  count = len(rows)
  return Table(
      sigma=array([row.sigma for row in rows]).reshape(count),
      kind=np.array([row.kind for row in rows], np.int32),
      mix=array([list(row.mix) for row in rows]).reshape(count, slots, -1),
      noise=array([spread(row.noise) for row in rows]).reshape(count, slots),
      level=array([row.level for row in rows]).reshape(count),
      interval=array([list(row.interval) for row in rows]).reshape(count, 2))


def pad(table: Table, rows: int, slots: int) -> Table:
  """Extends a table by rows of kind 2 and idle slots; what it computes stays the same, bit for bit.

  Tables padded to the same `rows` and `slots` share one compiled program, whatever their NFE; those
  of two answers share another.

  Args:
    table: a Table on the host.
    rows: number of rows of the result.
    slots: number of slots of the result.

  Returns:
    A Table of rows x slots with the same samples, NFE and trajectory.

  Raises:
    ValueError: if the table has more rows or slots than asked for.
  """
  for what, have, want in (('rows', table.rows, rows), ('slots', table.slots, slots)):
    if have > want:
      raise ValueError(f'pad: {what} must be at least those of the table, {have}, got {want}; pad '
                       'to the largest of the tables that share a program')
  more = rows - table.rows
  mix = np.zeros((rows, slots, slots + table.answers))
  mix[:, np.arange(slots), np.arange(slots)] = 1  # Idle slots and rows keep what they hold.
  mix[:table.rows, :table.slots, :table.slots] = table.mix[:, :, :table.slots]
  mix[:table.rows, :table.slots, slots:] = table.mix[:, :, table.slots:]

  def extend(values, fill):
    return np.concatenate([values, np.full((more, *values.shape[1:]), fill, values.dtype)])

  noise = np.pad(table.noise, [(0, more), (0, slots - table.slots)])
  return Table(extend(table.sigma, 1.0), extend(table.kind, NOTHING), mix, noise,
               extend(table.level, np.nan), extend(table.interval, np.nan))


def first_step_for_free(table: Table, xp: Any = np) -> Table:
  """Replaces the first evaluation by the analytical one (AFS): eps = x / sqrt(1 + sigma^2).

  At a high first level x is almost pure noise, and so eps nearly x / sigma; divided by
  sqrt(1 + sigma^2) instead it has unit variance for data of unit variance, and the two agree as
  sigma grows. The answer D = x - sigma eps is linear in x, so it folds into the mix of a row of
  kind 2; where there are two answers it is both. A threshold on D would not act here: for
  x = sigma z, |D| <= 0.301 |z| at any sigma.

  Source: Dockhorn et al. 2022 (GENIE), arXiv:2210.05475, Sec. 3.2.

  Args:
    table: a Table that evaluates the denoiser first, rows of the guidance term apart.
    xp: numpy or jax.numpy.

  Returns:
    A Table with one evaluation less.

  Raises:
    ValueError: if another row comes first.
  """
  first = int(np.argmax(table.kind != GUIDE))  # Splitting solvers guide before they evaluate.
  if table.kind[first] != DENOISE:
    raise ValueError('afs: the table must start with an evaluation of the denoiser, got a row of '
                     f'kind {table.kind[first]}; leave afs out')
  sigma = table.sigma[first]
  root = xp.sqrt(1 + sigma**2)
  denoised = 1 / (root * (root + sigma))  # D / x = 1 - sigma / root, without its cancellation.
  head, slots = table.mix[first], table.slots
  answered = xp.sum(head[:, slots:], axis=1, keepdims=True)
  head = xp.concatenate([head[:, :1] + denoised * answered, head[:, 1:slots],
                         xp.zeros_like(head[:, slots:])], axis=1)
  kind = table.kind.copy()
  kind[first] = NOTHING
  mix = xp.concatenate([table.mix[:first], head[None], table.mix[first + 1:]])
  return dataclasses.replace(table, kind=kind, mix=mix)


def denoise_at_end(table: Table, sigma: Any, xp: Any = np) -> Table:
  """Appends one evaluation at the last level whose answer, before thresholding, is the result.

  Of two answers the guided one is.

  Args:
    table: a Table that ends at a level > 0.
    sigma: that level.
    xp: numpy or jax.numpy.

  Returns:
    A Table with one more row, of kind 3, which ends at level 0.
  """
  basis = xp.eye(table.slots + table.answers)
  memory, denoised = basis[1:table.slots], basis[table.slots]
  last = assemble([Row(sigma, [denoised, *memory], level=0.0, kind=RAW)], xp)

  def append(name):
    join = np if name == 'kind' else xp
    return join.concatenate([getattr(table, name), getattr(last, name)])
  return Table(**{name: append(name) for name in _FIELDS})


def _check(table: Table) -> None:
  if table.mix.ndim != 3 or table.answers not in (1, 2) or not table.mix.size:
    raise ValueError('Table: mix must have shape (rows, slots, slots + 1) with rows and slots >= 1'
                     f', got {table.mix.shape}; the last column weighs the answer, and of slots + '
                     '2 the last two weigh the guided and the unguided one')
  rows, slots = table.rows, table.slots
  shapes = {'sigma': (rows,), 'kind': (rows,), 'noise': (rows, slots), 'level': (rows,),
            'interval': (rows, 2)}
  for name, shape in shapes.items():
    if getattr(table, name).shape != shape:
      raise ValueError(f'Table: {name} must have shape {shape}, got {getattr(table, name).shape}; '
                       f'mix has shape {table.mix.shape}')
  if not (np.issubdtype(table.kind.dtype, np.integer) and np.isin(
      table.kind, (DENOISE, GUIDE, NOTHING, RAW)).all()):
    raise ValueError('Table: kind must be an integer, 0 (denoiser), 1 (guide), 2 (nothing) or 3 '
                     f'(before thresholding), got {sorted(set(table.kind.tolist()))}; see Table')
  bad = np.flatnonzero(~(np.isfinite(table.sigma) & (table.sigma > 0)))
  if bad.size:
    raise ValueError('Table: sigma must be finite and > 0 in every row, got '
                     f'{table.sigma[bad[0]]:g} in row {bad[0]}; a row of kind 2 may name any level')
  for name in ('mix', 'noise'):
    bad = np.argwhere(~np.isfinite(getattr(table, name)))
    if len(bad):
      raise ValueError(f'Table: {name} must be finite, got {getattr(table, name)[tuple(bad[0])]} '
                       f'in row {bad[0][0]}; the levels around it are too close or too far apart '
                       'for the formula')
  bad = np.flatnonzero((table.level < 0) | np.isinf(table.level))
  if bad.size:
    raise ValueError('Table: level must be finite and >= 0, got '
                     f'{table.level[bad[0]]:g} in row {bad[0]}; use NaN within a step')
