"""Seeds and labels: from the text of a config to one key and one class per image.

Everything random about image i comes from its own seed: `jax.random.key(seed)` folded with the
number of a stream. Batch size, order and the other seeds have no part in it. To repeat published
pictures, latents and random labels can also be drawn as PyTorch does for the same seeds.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine import devices, torch_rng
from models import mixture
from samplers import checks

LATENT, LABEL, NOISE = 0, 1, 2
"""Streams of a seed: the latent, the random label, the noise of the solver."""

SOURCES = ('jax', *(f'torch_{device}' for device in torch_rng.DEVICES))
"""Where latents and random labels come from. The noise of a solver is always JAX's."""

HIGHEST = 2**32 - 1
MOST = 10_000_000  # Images of one run; more is a mistake.

_RANGE = re.compile(r'([0-9]+)(?:-([0-9]+))?')


def parse(text: str) -> np.ndarray:
  """Reads a list of seeds such as '0-63,70,80-99'; ranges include both ends.

  Args:
    text: numbers and ranges, separated by commas.

  Returns:
    np.uint32 (n,), in the order given, n >= 1.

  Raises:
    ValueError: if the text is empty or not of this form, a range runs backwards, a seed is above
      2^32 - 1 or occurs twice, or there are more than MOST.
  """
  ranges = _ranges('seeds', text, '0-63,70')
  for _, last in ranges:
    if last > HIGHEST:
      raise ValueError(f'seeds: every seed must be from 0 to {HIGHEST}, got {last}; '
                       'choose a smaller one')
  count = sum(last - first + 1 for first, last in ranges)
  if count > MOST:
    raise ValueError(f'seeds: there must be at most {MOST} in one run, got {count}; split them '
                     'over several runs')
  seeds = np.concatenate([np.arange(first, last + 1, dtype=np.uint32) for first, last in ranges])
  values, counts = np.unique(seeds, return_counts=True)
  if len(values) < len(seeds):
    raise ValueError(f'seeds: every seed must occur once, got {values[counts > 1][0]} twice or '
                     'more; one seed makes one image, take the repeat out')
  return seeds


def parse_labels(text: str, num_classes: int) -> np.ndarray | None:
  """Reads which classes to sample.

  Args:
    text: 'random', 'balanced' (all classes in turn), 'none', one class ('3'), or a list of classes
      and ranges ('0-4,7').
    num_classes: of the model, 0 if it has none; 'random' and 'balanced' are then 'none'.

  Returns:
    np.int32 (k,), the classes that seeds take in turn, `mixture.UNCONDITIONAL` for 'none'; or None
    for classes drawn at random.

  Raises:
    ValueError: if the text is not of this form, or the model does not have such a class.
  """
  if text == 'none' or (text in ('random', 'balanced') and num_classes == 0):
    return np.array([mixture.UNCONDITIONAL], np.int32)
  if text == 'random':
    return None
  if text == 'balanced':
    return np.arange(num_classes, dtype=np.int32)
  ranges = _ranges('labels', text, "0-4,7', 'random', 'balanced' or 'none")
  highest = max(last for _, last in ranges)
  if highest >= num_classes:
    have = f'be from 0 to {num_classes - 1}' if num_classes else "be 'none' for a model without any"
    raise ValueError(f'labels: classes must {have}, got {highest} in {text!r}; see the classes of '
                     'config.model.name')
  return np.concatenate([np.arange(first, last + 1, dtype=np.int32) for first, last in ranges])


def parse_share(text: str) -> tuple[int, int]:
  """Reads which of how many shares of the seeds a machine has, such as '0/4'.

  Args:
    text: index, a slash, count.

  Returns:
    (index, count).

  Raises:
    ValueError: if it is not of this form, or the index is not below the count.
  """
  match = re.fullmatch(r'([0-9]{1,6})/([0-9]{1,6})', str(text).strip())
  index, count = (int(match[1]), int(match[2])) if match else (0, 0)
  if not index < count:
    raise ValueError("config.share: must be the machine's number from 0, a slash and their count, "
                     f"got {text!r}; such as '0/4' to '3/4' for four machines")
  return index, count


def of_share(count: int, share: tuple[int, int]) -> np.ndarray:
  """Returns the indices of one share: contiguous, all of one size but for the last ones.

  Args:
    count: of all images.
    share: (index, count of shares).

  Returns:
    np.int64 (k,); empty where there are too few images for all shares.
  """
  size = -(-count // share[1])
  return np.arange(min(share[0] * size, count), min((share[0] + 1) * size, count))


def check_source(source: str, shape: tuple[int, int, int]) -> None:
  """Finds out whether latents can be drawn.

  Args:
    source: who is to draw.
    shape: of an image, (height, width, channels).

  Raises:
    ValueError: if the source is unknown, or PyTorch's numbers would depend on the card, see
      torch_rng.MOST_CUDA.
  """
  if source not in SOURCES:
    raise ValueError(checks.unknown('config.seeds_from', source, SOURCES))
  if source != 'jax':
    torch_rng.draw(np.zeros(1, np.uint32), shape, 0, _torch_device(source))


def labels(classes: np.ndarray | None, seeds: np.ndarray, num_classes: int,
           shape: tuple[int, int, int], source: str) -> np.ndarray:
  """Gives every seed its class: entry s modulo k of the k classes, or one drawn from the seed.

  Args:
    classes: what `parse_labels` returns.
    seeds: np.uint32 (n,).
    num_classes: of the model.
    shape: of an image, (height, width, channels).
    source: who draws, one of SOURCES; PyTorch draws a label after the latent.

  Returns:
    np.int32 (n,).
  """
  if classes is not None:
    return classes[seeds % len(classes)]
  if source != 'jax':
    # In pieces, since the latents that come first are large.
    return np.concatenate([torch_rng.draw(some, shape, num_classes, _torch_device(source))[1]
                           for some in np.split(seeds, np.arange(256, len(seeds), 256))])
  return np.asarray(_random_labels(seeds, num_classes))


def latents(seeds: np.ndarray, shape: tuple[int, int, int], source: str) -> jax.Array:
  """Draws the latent of every seed, each on the device that will use it.

  Args:
    seeds: np.uint32 (batch,); the number of devices divides the batch.
    shape: of an image, (height, width, channels).
    source: who draws, one of SOURCES.

  Returns:
    float32 (devices, share, *shape), standard normal; see engine/devices.py.
  """
  if source == 'jax':
    return _normal(shape)((), devices.split(seeds))
  return devices.split(torch_rng.draw(seeds, shape, 0, _torch_device(source))[0])


@functools.partial(jax.jit, static_argnames='num_classes')
def _random_labels(seeds, num_classes):
  def draw(key):
    return jax.random.randint(key, (), 0, num_classes, jnp.int32)
  return jax.vmap(draw)(keys(seeds, LABEL))


@functools.cache
def _normal(shape: tuple[int, int, int]) -> Callable[[Any, Any], Any]:
  def draw(_, seeds):
    return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys(seeds, LATENT))
  return devices.spread(draw)


def _torch_device(source):
  return source.removeprefix('torch_')


def keys(seeds: jax.Array | np.ndarray, stream: int) -> jax.Array:
  """Returns one typed key per seed for one of the streams LATENT, LABEL, NOISE.

  Args:
    seeds: uint32 (n,).
    stream: number of the stream.

  Returns:
    fold_in(key(seed), stream), shape (n,).
  """
  return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), stream))(
      jnp.asarray(seeds, jnp.uint32))


def _ranges(what, text, example):
  """Splits '1-3,7' into [(1, 3), (7, 7)]."""
  ranges = []
  for part in str(text).split(','):
    match = _RANGE.fullmatch(part.strip())
    if not match:
      problem = f'got {part.strip()!r} in {text!r}' if str(text).strip() else 'got an empty text'
      raise ValueError(f'{what}: must be numbers and ranges separated by commas, such as '
                       f"'{example}', {problem}")
    first = int(match[1])
    last = first if match[2] is None else int(match[2])
    if last < first:
      raise ValueError(f'{what}: a range must run upwards, got {part.strip()!r}; write '
                       f'{last}-{first}')
    ranges.append((first, last))
  return ranges
