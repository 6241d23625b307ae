"""What the trainer needs to distill a network into a student for few steps: SFD and SFD-v.

Source: Zhou et al. 2024 (SFD), arXiv:2409.19681, Alg. 1, and its published code.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from engine import lessons, trainer
from evaluation import lpips

Perceptual = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""perceptual(params, images, targets) -> distances (batch,) of images in [-1, 1]."""


class Constants(NamedTuple):
  """What a sweep needs beside the student.

  Attributes:
    teacher: parameters of the teacher's network.
    perceptual: those of the perceptual distance, None without.
  """

  teacher: Any
  perceptual: Any = None


def lesson(initial: Callable[[jax.Array], Any], student: Callable[..., Any],
           teacher: lessons.Denoiser, teach: Callable[..., jax.Array], sigmas: np.ndarray, *,
           afs: bool = False, points: int | None = None, perceptual: Perceptual | None = None,
           ) -> trainer.Lesson:
  """Returns the lesson of SFD: an update for each Euler step of the student.

    x' = x + (sigma_next - sigma) eps,   eps = (x - D(x; sigma)) / sigma

  starts where the step before has arrived, without a gradient to it, and is compared with the
  teacher's state at sigma_next. The loss is |x' - teacher|, summed over entries, mean over the
  batch. With afs the first step takes eps = x / sqrt(1 + sigma^2) and trains nothing. A perceptual
  distance p, mean over the batch, counts at the last step: it is added to every entry, so that the
  loss gains p times their number.

  The network's dropout is on, as in its training.

  Args:
    initial: initial(key) -> parameters of the student.
    student: as networks.denoiser gives it; the first of what it returns is D.
    teacher: denoiser(constants, labels) -> denoise(x, sigma), with the limit of its solver.
    teach: teach(denoise, x) -> states after each of the student's steps, see lessons.slices.
    sigmas: levels of the student, (n + 1,), the first also the teacher's.
    afs: whether the first step is analytical.
    points: what a student with a step condition is told; None for others.
    perceptual: of the last step, None without.

  Returns:
    The Lesson, whose constants are Constants and whose carry is the state.
  """
  count = len(sigmas) - 1
  condition = {} if points is None else {'step_condition': points}

  def target(constants, batch):
    return teach(teacher(constants, batch.labels), begin(constants, batch))

  def begin(constants, batch):
    del constants
    return jnp.asarray(sigmas[0], batch.latents.dtype) * batch.latents

  def slope(learned, batch, x, sigma, i):
    if afs and isinstance(i, int) and i == 0:  # The trainer's skipped update, which is not traced.
      return x / jnp.sqrt(1 + sigma**2)
    # Devices have samples of their own, so masks of their own.
    key = jax.random.fold_in(batch.keys[0], i)
    denoised = student(learned, x, sigma, batch.labels, train=True, rngs={'dropout': key},
                       **condition)[0]
    return (x - denoised) / sigma

  def loss(learned, constants, batch, target, x, i):
    levels = jnp.asarray(sigmas, x.dtype)
    sigma, sigma_next = levels[i], levels[i + 1]
    x = x + (sigma_next - sigma) * slope(learned, batch, x, sigma, i)
    value = jnp.sum(jnp.abs(x - target[i])) / len(x)
    if perceptual is None:
      return value, (x, {})
    shift = jax.lax.cond(
        i == count - 1, lambda: jnp.mean(perceptual(constants.perceptual, x, target[i])),
        lambda: jnp.zeros((), x.dtype))
    return value + x[0].size * shift, (x, {'perceptual': shift})
  return trainer.Lesson(initial, target, begin, loss, updates=count, skips=int(afs))


def mean_square(params: Any, images: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns what stands for LPIPS where there is none: the mean square at LPIPS's size.

  Both images are resized as LPIPS is given them, and their squared difference averaged. Resizing is
  a linear map of each axis, R, so that the square needs but its Gram matrix R' R, and no image of
  that size is made.

  Args:
    params: none.
    images: (batch, height, width, channels) in [-1, 1].
    targets: like `images`.

  Returns:
    Distances, (batch,).
  """
  del params
  difference = images - targets
  rows, columns = (_gram(size, images.dtype) for size in images.shape[1:3])
  blurred = jnp.einsum('ih,bhwc,wj->bijc', rows, difference, columns, precision='highest')
  return jnp.sum(difference * blurred, (1, 2, 3)) / images.shape[-1]


def perceptual_distance(params: Any, images: jax.Array, targets: jax.Array) -> jax.Array:
  """Returns LPIPS as SFD takes it: at 224 pixels, with means in place of VGG's maxima.

  The published code gives it images in [-1, 1] where [0, 1] is meant; that is not copied.

  Args:
    params: of LPIPS, as models.load_features gives them.
    images: (batch, height, width, 3 or 1) in [-1, 1]; gray becomes RGB.
    targets: like `images`.

  Returns:
    Distances, (batch,).
  """
  pair = (jnp.broadcast_to((x + 1) / 2, (*x.shape[:-1], 3)) for x in (images, targets))
  return lpips.compare(params, *pair, replace_pooling=True, size=lpips.SFD_SIZE)[0]


def make_optimizer(learning_rate: float, drop: int) -> optax.GradientTransformation:
  """Returns Adam whose learning rate falls to a tenth.

  Args:
    learning_rate: at first.
    drop: updates before it falls, see `updates_before_drop`.

  Returns:
    The optimizer.
  """
  return optax.adam(lambda count: jnp.where(count < drop, learning_rate, learning_rate / 10))


def updates_before_drop(updates: Sequence[int], batch_size: int, trajectories: float) -> int:
  """Returns how many updates have the full learning rate.

  As published: the rate falls after the first sweep that began with half of all trajectories seen.

  Args:
    updates: that train, of each sweep.
    batch_size: trajectories of a sweep.
    trajectories: of the whole training.
  """
  return sum(updates[:math.ceil(trajectories / 2 / batch_size) + 1])


def _gram(size, dtype):
  """R' R over the pixels of the result, R the linear map of an axis of so many pixels."""
  resize = jax.image.resize(jnp.eye(size, dtype=dtype), (lpips.SFD_SIZE, size), 'linear',
                            antialias=False)
  return resize.T @ resize / lpips.SFD_SIZE
