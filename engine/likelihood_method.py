"""What the methods of `--mode=likelihood` have in common, and their statistics."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from engine import images, inputs as inputs_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
  """How images are measured, with nothing left to decide.

  Attributes:
    name: 'ode' or 'bound'.
    identity: what it adds to the config of run.json, plain values.
    manifest: what it adds to likelihood.json.
    constants: arrays that all images share, beside the model's.
    program: (constants, (pixels, seeds, labels)) -> pytree of arrays, as `devices.spread` makes it.
    read: (answers (k, ...) on the host, seeds (k,)) -> a dict of plain values for each image, with
      'bits_per_dim'; FloatingPointError if a number is not finite.
    report: those dicts of all images -> what it adds to likelihood.json.
    draw: (path, dicts of all images, a line of text) -> None, writes likelihood.png.
    say: those dicts -> how they were found, for the user's line.
  """

  name: str
  identity: dict[str, Any]
  manifest: dict[str, Any]
  constants: Any
  program: Callable[[Any, Any], Any]
  read: Callable[[Any, np.ndarray], list[dict[str, Any]]]
  report: Callable[[list[dict[str, Any]]], dict[str, Any]]
  draw: Callable[[pathlib.Path, list[dict[str, Any]], str], None]
  say: Callable[[list[dict[str, Any]]], str]


def statistics(found: Sequence[dict[str, Any]]) -> dict[str, float | None]:
  """Returns mean and standard error of bits per dimension.

  Args:
    found: 'bits_per_dim' of each image, and perhaps 'probe_error', its standard error.

  Returns:
    'mean'; 'standard_error' of the mean over all images there are, from the spread of those that
    were measured, in which the noise of probes and dequantization is included; 'probe_error', the
    part of it that more probes would take away. None where one image, or one probe, tells nothing.
  """
  bits = np.array([some['bits_per_dim'] for some in found])
  errors = [some.get('probe_error') for some in found]
  of_images = None if len(bits) < 2 else float(bits.std(ddof=1) / math.sqrt(len(bits)))
  of_probes = None if None in errors else float(math.sqrt(np.sum(np.square(errors))) / len(bits))
  return {'mean': float(bits.mean()), 'standard_error': of_images, 'probe_error': of_probes}


def say(found: Sequence[dict[str, Any]]) -> str:
  """Returns mean and standard errors as a text, '3.512 +- 0.021 (probes 0.004)'."""
  told = statistics(found)
  text = f'{told["mean"]:.3f}'
  if told['standard_error'] is not None:
    text += f' +- {told["standard_error"]:.3f}'
  if told['probe_error'] is not None:
    text += f' (probes {told["probe_error"]:.3f})'
  return text


def draw_in_order(path: pathlib.Path, found: Sequence[dict[str, Any]],
                  pictures: inputs_lib.Pictures, seeds: np.ndarray, grid: dict[str, int]) -> None:
  """Shows the images, the likeliest first; of too many, those at both ends.

  Args:
    path: the PNG file.
    found: 'bits_per_dim' of each image.
    pictures: where the images are.
    seeds: numbers of the images.
    grid: columns, rows and size of the picture.
  """
  order = np.argsort([some['bits_per_dim'] for some in found], kind='stable')
  most = grid['columns'] * grid['rows']
  if len(order) > most:
    order = np.concatenate([order[:most - most // 2], order[len(order) - most // 2:]])
  captions = [f'{found[i]["bits_per_dim"]:.3f} bits, {seeds[i]}' for i in order]
  images.write_png(path, images.grid(pictures.take(seeds[order]), captions, grid['columns'],
                                     grid['size']))


def check(name: str, good: np.ndarray, seeds: np.ndarray, rule: str) -> None:
  """Raises FloatingPointError with the first image of which something is not good.

  Args:
    name: of what is checked.
    good: bool (k,).
    seeds: numbers of the images, (k,).
    rule: what it must be, and the remedy.
  """
  bad = np.flatnonzero(~good)
  if bad.size:
    raise FloatingPointError(f'likelihood: {name} must {rule.format(seed=seeds[bad[0]])}')
