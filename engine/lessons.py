"""What the trainer needs to teach a learned solver: a teacher on a finer grid, and a loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from engine import trainer

Denoiser = Callable[[Any, jax.Array | None], Callable[..., Any]]
"""denoiser(constants, labels) -> denoise(x, sigma), as a solver asks it."""


def slices(table: samplers.Table, stride: int) -> Callable[..., jax.Array]:
  """Returns a teacher: a solver whose states at every stride-th level a student has to reach.

  Args:
    table: the teacher's, on the host.
    stride: steps of the teacher for one of the student.

  Returns:
    teach(denoise, x) -> states after each of the student's intervals, (n, *x.shape).
  """
  def teach(denoise, x):
    _, states = samplers.run(table, denoise, x, trajectory=True)
    return states[stride::stride]
  return teach


def of_intervals(design: samplers.learned.Design, teach: Callable[..., jax.Array],
                 asked: Denoiser, plain: Denoiser, sigma_first: float,
                 count: int) -> trainer.Lesson:
  """Returns the lesson of AMED: an update for each interval, whose end the teacher tells.

  The loss of an interval is the squared distance between its end and the teacher's, summed over
  pixels, mean over the batch. The next interval starts where the teacher was (designs whose
  `restarts` says so) or where the student has arrived.

  Source: Zhou et al. 2024 (AMED-Solver), arXiv:2312.00094, Alg. 1.

  Args:
    design: what is learned; it has a step.
    teach: what `slices` returns.
    asked: denoiser as the design asks it.
    plain: denoiser as the teacher asks it.
    sigma_first: first level of the grid.
    count: intervals.

  Returns:
    The Lesson.
  """
  def target(constants, batch):
    return teach(plain(constants, batch.labels), sigma_first * batch.latents)

  def begin(constants, batch):
    del constants
    return design.start(sigma_first * batch.latents)

  def loss(learned, constants, batch, target, carry, i):
    carry, told = design.step(learned, asked(constants, batch.labels), carry, i)
    value = jnp.sum((carry.x - target[i])**2) / len(carry.x)
    if design.restarts:
      carry = carry._replace(x=target[i])
    return value, (carry, {name: jnp.mean(values) for name, values in told.items()})
  return trainer.Lesson(jax.jit(design.initial), target, begin, loss, updates=count)


def of_end(design: samplers.learned.Design, teach: Callable[..., jax.Array], asked: Denoiser,
           plain: Denoiser, sigma_first: float, count: int, radius: float = 0.0,
           moves: int = 0) -> trainer.Lesson:
  """Returns the lesson of LD3 and S4S: one update through the whole run, whose end counts.

  The loss is the squared distance to the teacher's end, summed over pixels, mean over the batch.
  With a radius the teacher is soft: the student may start elsewhere within a ball around the
  teacher's start: where `moves` projected steps of gradient descent lead, if it is nearer there.
  What few evaluations cannot do from the same latent is then not asked of them.

  Source: Tong et al. 2024 (LD3), arXiv:2405.15506. There the starts of a fixed small set are kept
  and moved once in every epoch; here every batch is new, and its starts are found anew.

  Args:
    design: what is learned.
    teach: what `slices` returns.
    asked: denoiser as the design asks it.
    plain: denoiser as the teacher asks it.
    sigma_first: first level of the grid.
    count: intervals.
    radius: of the ball, per pixel, in units of sigma_first; 0: the start is the teacher's.
    moves: of the start.

  Returns:
    The Lesson.
  """
  def target(constants, batch):
    return teach(plain(constants, batch.labels), sigma_first * batch.latents)[-1]

  def solved(learned, constants, batch, start):
    """Where the run ends, and what its steps tell; steps one by one, see trainer.sweep."""
    denoise = asked(constants, batch.labels)
    if design.step is None:
      return design.solve(learned, denoise, start, batch.keys, unroll=True), {}
    carry, told = design.start(start), []
    for i in range(count):
      carry, more = design.step(learned, denoise, carry, i)
      told.append({name: jnp.mean(values) for name, values in more.items()})
    return carry.x, jax.tree.map(lambda *means: jnp.stack(means), *told)

  def distances(learned, constants, batch, target, start):
    end, told = solved(learned, constants, batch, start)
    return jnp.sum((end - target)**2, axis=(1, 2, 3)), told

  def begin(constants, batch):
    del constants, batch
    return ()

  def loss(learned, constants, batch, target, carry, i):
    del i
    start = sigma_first * batch.latents
    value, told = distances(learned, constants, batch, target, start)
    if moves:
      still = jax.lax.stop_gradient(learned)
      moved = _softened(lambda start: distances(still, constants, batch, target, start)[0].sum(),
                        start, radius * sigma_first * float(np.sqrt(start[0].size)), moves)
      value = jnp.minimum(value, distances(learned, constants, batch, target, moved)[0])
    return value.mean(), (carry, told)
  return trainer.Lesson(jax.jit(design.initial), target, begin, loss, updates=1)


def _softened(distance, start, radius, moves):
  """Starts within a ball around `start`, found by descent in steps of 2 radius / moves."""
  def norm(images):
    return jnp.sqrt(jnp.sum(images**2, axis=(1, 2, 3), keepdims=True) + 1e-24)

  offset = jnp.zeros_like(start)
  for _ in range(moves):
    gradient = jax.grad(lambda offset: distance(start + offset))(offset)
    offset = offset - 2 * radius / moves * gradient / norm(gradient)
    offset = offset * jnp.minimum(1, radius / norm(offset))
  return start + offset
