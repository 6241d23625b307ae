"""The one trainer of everything that learns from a teacher: solvers with numbers in them, students.

A Lesson says who teaches, what is learned and what is to be small; here are the loop, the devices,
the optimizer, checkpoints and metrics. One sweep is one batch of latents: the teacher's answer is
computed once, then one update follows another, each from where the one before has arrived.

Sample j of sweep b draws all its noise from the seed and its own number, so that neither the number
of devices nor an interruption has a part in the result.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine import checkpoints, devices, plots, progress as progress_lib

METRICS, PLOT = 'metrics.jsonl', 'metrics.png'

_LATENT, _LABEL, _NOISE, _INITIAL = range(4)  # Streams of the seed.
_LARGEST = 1e5  # What an infinite gradient counts as.
_DIVERGED = 1e3  # Times the first loss.


Mean = Callable[[Any], Any]


class Batch(NamedTuple):
  """What one device sees of a sweep.

  Attributes:
    latents: standard normal, float32 (share, height, width, channels).
    labels: int32 (share,), below 0 without a class; None for a model without.
    keys: one typed key per sample, (share,), for noise of its own.
  """

  latents: jax.Array
  labels: jax.Array | None
  keys: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
  """What is learned, from whom, and by which measure; all functions are pure.

  Attributes:
    initial: initial(key) -> learned, a pytree of float arrays.
    teach: teach(constants, batch) -> what the student is compared with.
    begin: begin(constants, batch) -> carry, the state that the first update starts from.
    loss: loss(learned, constants, batch, target, carry, i) -> (loss, (carry, told)) of update i,
      perhaps traced; the loss is a mean over the batch, `told` has scalars to be seen, by name.
      The carry takes no gradient to the next update.
    updates: of one sweep.
    skips: the first updates that learn nothing: only their carry counts.
  """

  initial: Callable[[jax.Array], Any]
  teach: Callable[[Any, Batch], Any]
  begin: Callable[[Any, Batch], Any]
  loss: Callable[..., tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]
  updates: int
  skips: int = 0


class State(NamedTuple):
  """What a sweep changes; a checkpoint holds it whole.

  Attributes:
    sweep: sweeps done, int32 scalar.
    learned: pytree of arrays.
    optimizer: state of optax.
  """

  sweep: jax.Array
  learned: Any
  optimizer: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Course:
  """A training with nothing left to decide.

  Attributes:
    who: the job, for errors.
    lessons: of which `choose` takes one for every sweep; all learn the same.
    optimizer: of optax.
    constants: pytree of arrays, whole on every device: parameters of networks and the like.
    image_shape: (height, width, channels).
    classes: np.int32 (k,), which samples take in turn; None: drawn at random.
    num_classes: of the labels, 0 without.
    seed: of everything random.
    sweeps: number of batches.
    batch_size: trajectories of a sweep over all devices; their number divides it.
    log_every: sweeps between lines of metrics.
    checkpoint_every: sweeps between checkpoints.
    folder: where checkpoints and metrics go; it exists.
    remedy: what to do about a loss that diverges.
    choose: sweep number -> index of its lesson.
    describe: learned -> name -> array, also told in the metrics; or None.
    title: of the plot.
  """

  who: str
  lessons: Sequence[Lesson]
  optimizer: optax.GradientTransformation
  constants: Any
  image_shape: tuple[int, int, int]
  classes: np.ndarray | None
  num_classes: int
  seed: int
  sweeps: int
  batch_size: int
  log_every: int
  checkpoint_every: int
  folder: pathlib.Path
  remedy: str
  title: str
  choose: Callable[[int], int] = lambda sweep: 0
  describe: Callable[[Any], dict[str, Any]] | None = None


class Midway(NamedTuple):
  """What one update of a sweep hands to the next.

  Attributes:
    learned: as in State.
    optimizer: as in State.
    batch: of the sweep.
    target: what the teacher says.
    carry: the state that the next update starts from.
  """

  learned: Any
  optimizer: Any
  batch: Batch
  target: Any
  carry: Any


def begin(lesson: Lesson, state: State, constants: Any, batch: Batch, mean: Mean,
          ) -> tuple[Midway, list[dict[str, jax.Array]]]:
  """Asks the teacher, and goes through the updates that learn nothing; pure.

  Args:
    lesson: what is learned.
    state: before the sweep.
    constants: of the Course.
    batch: of this device.
    mean: takes the mean of a pytree over devices.

  Returns:
    (Midway, told): told has a dict of scalars for each of these updates, see `update`.
  """
  target = jax.lax.stop_gradient(lesson.teach(constants, batch))
  carry, told = lesson.begin(constants, batch), []
  for i in range(lesson.skips):
    loss, (carry, more) = lesson.loss(state.learned, constants, batch, target, carry, i)
    carry = jax.lax.stop_gradient(carry)
    told.append(mean({'loss': loss, **more}))
  return Midway(state.learned, state.optimizer, batch, target, carry), told


def update(lesson: Lesson, optimizer: optax.GradientTransformation, midway: Midway, constants: Any,
           i: jax.Array, mean: Mean) -> tuple[Midway, dict[str, jax.Array]]:
  """Does one update; pure, one program for all of a sweep.

  Gradients that are not finite are made so, as AMED's and SFD's trainings do: NaN counts as 0, an
  infinite one as 1e5.

  Args:
    lesson: what is learned.
    optimizer: of optax.
    midway: before.
    constants: of the Course.
    i: number of the update, perhaps traced.
    mean: takes the mean of a pytree over devices.

  Returns:
    (Midway after, told): told has 'loss' and what the lesson tells, scalars.
  """
  def learn(learned):
    return lesson.loss(learned, constants, midway.batch, midway.target, midway.carry, i)

  (loss, (carry, told)), gradient = jax.value_and_grad(learn, has_aux=True)(midway.learned)
  gradient, told = mean((gradient, {'loss': loss, **told}))
  gradient = jax.tree.map(
      lambda leaf: jnp.nan_to_num(leaf, nan=0.0, posinf=_LARGEST, neginf=-_LARGEST), gradient)
  updates, state = optimizer.update(gradient, midway.optimizer, midway.learned)
  learned = optax.apply_updates(midway.learned, updates)
  return midway._replace(learned=learned, optimizer=state,
                         carry=jax.lax.stop_gradient(carry)), told


def sweep(lesson: Lesson, optimizer: optax.GradientTransformation, state: State, constants: Any,
          batch: Batch) -> tuple[State, dict[str, jax.Array]]:
  """Does all updates of one batch on one device, by two programs: `begin` and `update`.

  A loop on the host, since XLA differentiates convolutions within a loop of its own slowly on a
  CPU: 30 times for the weights of a network, 3 times for its input.

  Args:
    lesson: what is learned.
    optimizer: of optax.
    state: before.
    constants: of the Course.
    batch: all of it.

  Returns:
    (State after, told), told: 'loss' and what the lesson tells, arrays (updates,).
  """
  midway, told = _run(_alone(lesson, optimizer), lesson, constants, (state, batch))
  told = jax.tree.map(lambda *values: jnp.stack(values), *told)
  return State(state.sweep + 1, midway.learned, midway.optimizer), told


class _Programs(NamedTuple):
  """The two programs of a sweep, compiled; on one device, or on all."""

  begin: Callable[..., Any]
  update: Callable[..., Any]


@functools.cache
def _alone(lesson, optimizer):
  return _Programs(*(jax.jit(piece) for piece in _pieces(lesson, optimizer, lambda tree: tree)))


def _pieces(lesson, optimizer, mean, draw=lambda batch: batch):
  """`begin` and `update` as functions of what all devices share and what each has."""
  def first(constants, parts):
    state, drawn_from = parts
    return begin(lesson, state, constants, draw(drawn_from), mean)

  def then(shared, midway):
    constants, i = shared
    return update(lesson, optimizer, midway, constants, i, mean)
  return first, then


def _run(programs, lesson, constants, parts):
  midway, told = programs.begin(constants, parts)
  for i in range(lesson.skips, lesson.updates):
    midway, more = programs.update((constants, np.int32(i)), midway)
    told.append(more)
  return midway, told


def first_state(lesson: Lesson, optimizer: optax.GradientTransformation,
                key: jax.Array) -> State:
  """Returns the State before the first sweep.

  Args:
    lesson: any of the Course.
    optimizer: of the Course.
    key: of the run.
  """
  learned = lesson.initial(jax.random.fold_in(key, _INITIAL))
  return State(jnp.zeros((), jnp.int32), learned, optimizer.init(learned))


def draw(course: Course, numbers: jax.Array) -> Batch:
  """Draws what one device sees of a sweep.

  Args:
    course: the training.
    numbers: of its samples, counted over all sweeps, integers (share,).

  Returns:
    The Batch.
  """
  root = jax.random.key(course.seed)
  def keys(stream):
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.fold_in(root, stream)))(
        numbers)
  latents = jax.vmap(lambda key: jax.random.normal(key, course.image_shape, jnp.float32))(
      keys(_LATENT))
  labels = None
  if course.num_classes and course.classes is not None:
    labels = jnp.asarray(course.classes)[numbers % len(course.classes)]
  elif course.num_classes:
    labels = jax.vmap(lambda key: jax.random.randint(key, (), 0, course.num_classes, jnp.int32))(
        keys(_LABEL))
  return Batch(latents, labels, keys(_NOISE))


def train(course: Course, progress: progress_lib.Progress = progress_lib.silent,
          ) -> tuple[Any, list[dict[str, Any]]]:
  """Trains from the last checkpoint on, and plots what the metrics tell.

  Args:
    course: the training.
    progress: how to show progress.

  Returns:
    (learned, lines): what was learned, NumPy arrays; lines of metrics.

  Raises:
    FloatingPointError: if the loss is not finite, or a thousand times what it was at first; the
      last good checkpoint stays.
    OSError: if a file cannot be written.
  """
  with checkpoints.opened(course.folder) as manager:
    key = jax.random.key(course.seed)
    state = checkpoints.restore(
        manager, functools.partial(first_state, course.lessons[0], course.optimizer), key)
    done = int(state.sweep)
    lines = checkpoints.kept_lines(course.folder / METRICS, done)
    size = course.batch_size
    with progress('training', course.sweeps * size, 'trajectories', done=done * size) as advance:
      for reached, count, told in _sweeps(course, state, lines, advance):
        for line in told:
          checkpoints.add_line(course.folder / METRICS, lines, line)
        if count % course.checkpoint_every == 0 or count == course.sweeps:
          kept = devices.first(reached)._replace(sweep=np.int32(count))
          _check_finite(course, kept.learned, count)
          checkpoints.save(course.who, manager, count, kept)
        state = reached
  plots.write_lessons(course.folder / PLOT, lines, course.title)
  learned = devices.first(state.learned) if course.sweeps > done else state.learned
  return jax.device_get(learned), lines


def _check_finite(course, learned, count):
  """Raises FloatingPointError if what the last update has made is no number."""
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learned)):
    raise FloatingPointError(f'{course.who}: what is learned must be finite, got a value that is '
                             f'not after sweep {count} of {course.sweeps}; {course.remedy}; the '
                             f'last good checkpoint stays in {course.folder}')


def _sweeps(course, state, lines, advance) -> Iterator[tuple[State, int, list[dict[str, Any]]]]:
  """Yields (state, sweeps done, lines of metrics) where there is something to write.

  The state lies on the devices, its `sweep` as it was at first: no program looks at it.
  """
  programs = [_spread(course, lesson) for lesson in course.lessons]
  constants = devices.replicate(course.constants)
  done, state = int(state.sweep), devices.copies(state)
  watch = _Watch(course, lines)
  queued = None
  for number in range(done, course.sweeps):
    which = course.choose(number)
    numbers = number * course.batch_size + np.arange(course.batch_size)
    midway, told = _run(programs[which], course.lessons[which], constants,
                        (state, devices.split(numbers.astype(np.uint32))))
    state = state._replace(learned=midway.learned, optimizer=midway.optimizer)
    if queued is not None:  # The sweep before: one is always queued behind it.
      watch.see(*queued)
    queued, count = (number, which, told), number + 1
    due = count % course.log_every == 0 or count == course.sweeps
    if due or count % course.checkpoint_every == 0:
      watch.see(*queued)  # Before a checkpoint: what is kept was good.
      queued = None
      yield state, count, watch.lines(count, state) if due else []
    advance(course.batch_size, **watch.shown())


def _spread(course, lesson):
  """The programs on all devices, each of which draws its own samples."""
  pieces = _pieces(lesson, course.optimizer, devices.mean,
                   functools.partial(draw, course))
  return _Programs(*(devices.spread(piece) for piece in pieces))


class _Watch:
  """Gathers what sweeps tell into lines of metrics, and stops a training that diverges."""

  def __init__(self, course, lines):
    self._course = course
    self._told = {}
    self._since = None
    self._before = lines[-1]['seconds'] if lines else 0.0
    self._started = time.perf_counter()
    self._loss = None
    self._first = {line['lesson']: line['loss'] for line in reversed(lines)}

  def see(self, number, which, told):
    told = [devices.first(values) for values in told]
    told = {name: np.concatenate([np.atleast_1d(values[name]) for values in told]).tolist()
            for name in told[0]}
    self._loss = sum(told['loss']) / len(told['loss'])
    first = self._first.setdefault(which, told['loss'])
    for i, (loss, before) in enumerate(zip(told['loss'], first, strict=True)):
      if not np.isfinite(loss) or loss > _DIVERGED * max(before, 1e-6 * max(first)):
        course = self._course
        raise FloatingPointError(
            f'{course.who}: loss must stay finite and near its start, got {loss:.4g} (at first '
            f'{before:.4g}) in sweep {number + 1} of {course.sweeps}, update {i + 1}; '
            f'{course.remedy}; the last good checkpoint stays in {course.folder}')
    self._told.setdefault(which, []).append(told)
    self._since = self._since or (number + 1, time.perf_counter())  # After the compilation.

  def shown(self):
    return {} if self._loss is None else {'loss': f'{self._loss:.4g}'}

  def lines(self, count, state):
    course, (since, started) = self._course, self._since
    now = time.perf_counter()
    rate = (count - since) * course.batch_size / (now - started) if count > since else None
    seconds = {'seconds': round(self._before + now - self._started, 1),
               'trajectories_per_second': rate and round(rate, 2)}
    described = {}
    if course.describe:
      described = {name: np.asarray(value).tolist()
                   for name, value in course.describe(devices.first(state.learned)).items()}
    lines = []
    for which, sweeps in sorted(self._told.items()):
      means = {name: np.mean([told[name] for told in sweeps], axis=0).tolist()
               for name in sweeps[0]}
      lines.append({'step': count, 'trajectories': count * course.batch_size, 'lesson': which,
                    **means, **described, **seconds})
    self._told, self._since = {}, (count, time.perf_counter())
    return lines
