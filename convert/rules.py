"""Key rules: which tensor of a checkpoint becomes which parameter, and in which layout.

A family gives a dict {name in the file: Rule} and one of constants {name: value}, both generated
from the architecture; `place` follows them, or says at once all that does not fit.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import numpy as np

from models import networks

_SHOWN = 4  # Names of each kind in an error.

_DESCRIBED = 'the network that the settings describe'
_CHOOSE = 'choose the settings of this checkpoint, or a whole file'


class Layout(NamedTuple):
  """A layout of PyTorch's.

  Attributes:
    convert: array in the file -> parameter.
    original: shape of the parameter -> shape in the file.
  """

  convert: Callable[[np.ndarray], np.ndarray]
  original: Callable[[tuple[int, ...]], tuple[int, ...]]


LAYOUTS = MappingProxyType({
    'same': Layout(lambda a: a, lambda s: s),
    'transposed': Layout(lambda a: a.T, lambda s: s[::-1]),
    # (out, in, height, width) -> (height, width, in, out).
    'conv': Layout(lambda a: a.transpose(2, 3, 1, 0), lambda s: (s[3], s[2], s[0], s[1])),
    # (out, in, 1), a product over channels at every place -> (1, 1, in, out).
    'conv1d': Layout(lambda a: a[..., 0].T[None, None], lambda s: (s[3], s[2], 1)),
    # The same as a product with a vector, (in, out).
    'conv1d_to_dense': Layout(lambda a: a[..., 0].T, lambda s: (s[1], s[0], 1)),
    'conv_to_dense': Layout(lambda a: a[..., 0, 0].T, lambda s: (s[1], s[0], 1, 1)),
})
"""Name -> Layout; the parameter's is that of models/layers.py."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """Where a tensor goes, and how.

  Attributes:
    target: path of the parameter.
    layout: a key of LAYOUTS.
    order: of its first axis, where that is queries, keys and values of an attention: 'same' (that
      of layers.attention), 'legacy' (head, q or k or v, channel) or 'new' (q or k or v, head,
      channel).
    heads: number of heads, where the order is not 'same'.
  """

  target: tuple[str, ...]
  layout: str = 'same'
  order: str = 'same'
  heads: int = 1

  def convert(self, array: np.ndarray) -> np.ndarray:
    """Returns the parameter, float32, of an array in the file."""
    if self.order != 'same':
      legacy = self.order == 'legacy'
      size = len(array) // 3 // self.heads
      split = array.reshape(self.heads if legacy else 3, 3 if legacy else self.heads, size,
                            *array.shape[1:])
      axes = (0, 2, 1) if legacy else (1, 2, 0)  # To (head, channel, q or k or v).
      array = split.transpose(*axes, *range(3, split.ndim)).reshape(array.shape)
    # Always a copy: a view would keep the whole file in memory.
    return np.array(LAYOUTS[self.layout].convert(array), np.float32, order='C')


def shapes(network: nn.Module, image_shape: Sequence[int], tensors: int) -> Any:
  """Returns the shapes of a network's parameters; nothing is computed.

  Args:
    network: a module of networks.NETWORKS.
    image_shape: (height, width, channels).
    tensors: number of tensors that there are for it.

  Returns:
    Nested dicts of jax.ShapeDtypeStruct.

  Raises:
    ValueError: if the network has more blocks than there are tensors, or it cannot be that large.
  """
  blocks = network.num_blocks * len(network.channel_mult) + getattr(
      network, 'transformer_depth', 0)
  if blocks > tensors:  # Else settings of a damaged file could keep us busy for ever.
    raise ValueError(f'convert: network must have fewer blocks than the {tensors} tensors there '
                     f'are, got {blocks}; choose the settings of this checkpoint, or a whole file')
  initialize = functools.partial(networks.initialize, network, tuple(image_shape))
  try:
    return jax.eval_shape(initialize, jax.random.key(0))
  except (TypeError, ValueError, ArithmeticError) as error:
    raise ValueError('convert: network must be one that can be built, got settings for which '
                     f'{str(error).splitlines()[0]}; choose those of this checkpoint') from None


def place(rules: Mapping[str, Rule], tensors: Mapping[str, np.ndarray], like: Any,
          constants: Mapping[str, np.ndarray] = MappingProxyType({}), *,
          network: str = _DESCRIBED, remedy: str = _CHOOSE) -> Any:
  """Makes parameters of tensors.

  Args:
    rules: name in the file -> Rule, for all parameters.
    tensors: name -> array.
    like: nested dicts of arrays or shapes that the network needs.
    constants: name -> value of tensors that the architecture determines and the network needs not;
      they may be missing.
    network: what `like` belongs to, for the error.
    remedy: what to do about tensors that do not fit, for the error.

  Returns:
    Parameters like `like`, float32 NumPy arrays.

  Raises:
    ValueError: if a tensor is missing, not used, of another shape, or a constant of another value,
      with all such names; or if values are not finite, with their names.
  """
  check(rules, tensors, like, constants, network=network, remedy=remedy)
  params, bad = {}, []
  for name, rule in rules.items():
    params[rule.target] = rule.convert(tensors[name])
    if not np.isfinite(params[rule.target]).all():
      bad.append(name)
  if bad:
    raise ValueError(f'convert: weights must be finite, got NaN or infinity in {_some(bad)}; the '
                     'training failed or the file is damaged, take another one')
  return flax.traverse_util.unflatten_dict(params)


def check(rules: Mapping[str, Rule], tensors: Mapping[str, Any], like: Any,
          constants: Mapping[str, np.ndarray] = MappingProxyType({}), *,
          network: str = _DESCRIBED, remedy: str = _CHOOSE) -> None:
  """Checks that the rules place every tensor and fill every parameter, by names and shapes.

  Args:
    rules: as in `place`.
    tensors: as in `place`; of those that have rules, the shape is enough.
    like: as in `place`.
    constants: as in `place`.
    network: as in `place`.
    remedy: as in `place`.

  Raises:
    ValueError: as `place`, for all but the values.
  """
  needed = {path: tuple(leaf.shape) for path, leaf in flax.traverse_util.flatten_dict(like).items()}
  unfilled = needed.keys() - {rule.target for rule in rules.values()}
  assert not unfilled, f'no rule for {sorted(unfilled)}'
  missing = sorted(rules.keys() - tensors.keys())
  unused = [name for name in tensors if name not in rules and name not in constants]
  misshaped = []
  for name, tensor in tensors.items():  # In the file's order: the first ones say the most.
    shape = tuple(tensor.shape)
    if name in rules:
      expected = LAYOUTS[rules[name].layout].original(needed[rules[name].target])
      if shape != expected:
        misshaped.append(f'{name} is {shape} and must be {expected}')
    elif name in constants:
      value = constants[name]
      if shape != value.shape or not np.allclose(tensor, value, atol=1e-6):
        misshaped.append(f'{name} of shape {shape} is another filter than one with '
                         f'{value[0, 0, 0].round(4).tolist()}')
  wrong = [text for names, text in ((missing, f'missing {_some(missing)}'),
                                    (unused, f'not used {_some(unused)}'),
                                    (misshaped, _some(misshaped))) if names]
  if wrong:
    raise ValueError(f'convert: tensors must be those of {network}, got: {"; ".join(wrong)}; '
                     f'{remedy}')


def _some(names):
  more = f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''
  return f'{", ".join(names[:_SHOWN])}{more}'
