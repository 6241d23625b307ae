"""Learned solvers: a solver with numbers in it that training finds, as pure functions.

A design is a function of a grid that says what is learned and how it is run; what it is trained
on, with which teacher and loss, is not its matter. Two builders make one: `of_table` from a
function of the learned numbers to a Table, `stepwise` from a step of its own.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from samplers import checks, table as table_lib
from samplers.run import run

DESIGNS: dict[str, Callable[..., 'Design']] = {}
"""Design by name: function(sigmas, *, options...) -> Design, see `register`."""

LOSSES = 'intervals', 'end'
"""What training compares with the teacher: every step on its own, or the end of the whole run."""


class Design(NamedTuple):
  """A solver with numbers to be learned, on one grid of n intervals.

  Attributes:
    initial: initial(key) -> learned, nested dicts of float arrays: where training starts.
    solve: solve(learned, denoise, x, key=None, unroll=1) -> samples like x, pure and differentiable
      in `learned`; `key` is one typed key per sample, for designs that draw noise; `unroll` as in
      `samplers.run`.
    nfe: evaluations one after the other; those that run at once count once.
    calls: evaluations of an image, all of them.
    learning_rate: of Adam, the usual one.
    loss: one of LOSSES, the usual one; 'intervals' needs start and step.
    start: start(x) -> carry, a NamedTuple with a field `x`, the state; or None.
    step: step(learned, denoise, carry, i) -> (carry, told), interval i, perhaps traced, from
      sigmas[i] to sigmas[i + 1]; told: name -> (batch,), what is to be seen in training; or None.
    restarts: whether an interval of training starts where the teacher was, not where the student
      has arrived: for steps that remember nothing.
    features: whether denoise has to return (D, bottleneck (batch, h, w)).
    draws: whether `solve` needs keys.
    describe: describe(learned) -> name -> array (n, ...), the learned numbers as users know them;
      or None where they depend on the sample.
  """

  initial: Callable[[jax.Array], Any]
  solve: Callable[..., jax.Array]
  nfe: int
  calls: int
  learning_rate: float
  loss: str
  start: Callable[[jax.Array], Any] | None = None
  step: Callable[..., Any] | None = None
  restarts: bool = False
  features: bool = False
  draws: bool = False
  describe: Callable[[Any], dict[str, jax.Array]] | None = None


def register(function: Callable[..., Design]) -> Callable[..., Design]:
  """Adds a design under its function's name; its keyword arguments are its options.

  The function gets `sigmas`, n + 1 decreasing levels above 0, of which only the number is known
  where they are traced.
  """
  DESIGNS[function.__name__] = function
  return function


def design_options(name: str) -> dict[str, Any]:
  """Returns the options of a design with their defaults, read from its signature.

  Raises:
    ValueError: if the name is unknown; it lists the known ones.
  """
  parameters = inspect.signature(checks.lookup('design', name, DESIGNS)).parameters.values()
  return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def design_option_types(name: str) -> dict[str, type]:
  """Returns the types of a design's options, see `checks.plain_types`; ValueError as above."""
  return checks.plain_types(DESIGNS.get(name), design_options(name))


def design(name: str, sigmas: Any, **options: Any) -> Design:
  """Returns a design on a grid.

  Args:
    name: a key of DESIGNS.
    sigmas: noise levels, shape (n + 1,), decreasing, above 0; perhaps traced.
    **options: the design's own, see `design_options`.

  Returns:
    The Design.

  Raises:
    ValueError: if the name or an option is unknown or out of range, or the grid ends in 0.
  """
  known = design_options(name)
  for option, value in options.items():
    if option not in known:
      raise ValueError(f'{name}: {checks.unknown("option", option, known)}')
    if isinstance(known[option], bool):
      checks.check_switch(name, option, value)
  if not isinstance(sigmas, jax.Array):
    sigmas = checks.check_grid(name, sigmas)
    if sigmas[-1] == 0:
      raise ValueError(f'{name}: sigmas must end above 0, got a last level 0; end the grid at '
                       'sigma_min')
  return DESIGNS[name](sigmas, **options)


def stepwise(initial: Callable[[jax.Array], Any], start: Callable[[jax.Array], Any],
             step: Callable[..., Any], count: int, **fields: Any) -> Design:
  """Makes a Design from a step: `solve` is the scan over all intervals.

  Args:
    initial: as in Design.
    start: as in Design.
    step: as in Design.
    count: intervals.
    **fields: the other fields of Design.

  Returns:
    The Design.
  """
  def solve(learned, denoise, x, key=None, unroll=1):
    del key
    def one(carry, i):
      return step(learned, denoise, carry, i)[0], None
    return jax.lax.scan(one, start(x), jnp.arange(count), unroll=unroll)[0].x
  return Design(initial, solve, start=start, step=step, **fields)


def of_table(initial: Callable[[jax.Array], Any], table: Callable[[Any], table_lib.Table],
             **fields: Any) -> Design:
  """Makes a Design from a function of the learned numbers to a Table, traced or not.

  Args:
    initial: as in Design.
    table: table(learned) -> Table.
    **fields: the other fields of Design; `loss` is 'end', `calls` is `nfe`.

  Returns:
    The Design.
  """
  def solve(learned, denoise, x, key=None, unroll=1):
    return run(table(learned), denoise, x, key=key, unroll=unroll)
  return Design(initial, solve, loss='end', calls=fields['nfe'], **fields)
