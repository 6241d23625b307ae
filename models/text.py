"""The text encoder of Stable Diffusion: texts to what cross-attention reads, with its tokenizer.

The features of a text are the states of CLIP's text tower after its last norm, of all tokens, with
those that fill up a short text. Nothing is projected, and nothing masked but what comes later.

Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.3, with the encoder of Stable Diffusion v1.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models import clip, directory as directory_lib, parts, settings as settings_lib, tokens
from samplers import checks


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
  """A text tower with its parameters and its vocabulary.

  Attributes:
    config: what config.json tells, plain values.
    params: nested dicts of NumPy arrays, an argument of compiled functions.
    module: the tower, without parameters.
    tokenizer: of its vocabulary.
    sha256: hash of the parameters as stored.
  """

  config: dict[str, Any]
  params: Any
  module: clip.TextTower
  tokenizer: tokens.Tokenizer
  sha256: str

  def encode(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes texts; the features of one do not depend on the others.

    Args:
      texts: of any length. What does not fit between start and end is cut off: of 77 tokens,
        75 are of the text.

    Returns:
      np.float32 (n, tokens, width), tokens the most that the tower reads, 77 in published ones.

    Raises:
      ValueError: if the texts are no list of texts.
    """
    ids = self.tokenizer.encode(texts, self.module.context)
    known, params = {}, jax.device_put(self.params)
    for text, row in zip(texts, ids, strict=True):
      if text not in known:  # One at a time: equal to the last digit in any list.
        known[text] = np.asarray(_program(self.module)(params, row[None]))[0]
    shape = (len(ids), self.module.context, self.module.width)
    return np.stack([known[text] for text in texts]) if known else np.zeros(shape, np.float32)


def load_text_encoder(directory: str | os.PathLike, dtype: str = 'float32') -> TextEncoder:
  """Loads a text encoder.

  Args:
    directory: a model directory of kind 'text_encoder'.
    dtype: of the parameters, one of directory.DTYPES. Texts are encoded in float32 all the same.

  Returns:
    The TextEncoder.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is no such directory, it is incomplete, damaged, of a newer format, or
      holds another kind of model, or the vocabulary that follows from the merges has another size
      than the network's.
  """
  config = directory_lib.read_kind(directory, 'text_encoder', dtype)
  module = build(parts.settings('load', config, 'clip_text'))
  tokenizer = parts.tokenizer('load', config)
  params = directory_lib.read_params(directory, shapes(module), config['sha256'], dtype)
  return TextEncoder(config, params, module, tokenizer, config['sha256'])


def check_features(features: Any, empty: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns features of texts and those of the empty one as np.float32.

  Args:
    features: (n, tokens, width).
    empty: (tokens, width).
    width: that the network reads.

  Raises:
    ValueError: if they are not finite numbers of these shapes.
  """
  def numbers(name, value):
    try:
      array = np.asarray(value, np.float32)
    except (TypeError, ValueError):
      array = np.float32(np.nan)
    if not np.isfinite(array).all():
      raise ValueError(f'with_features: {name} must be an array of finite numbers, got others; '
                       'encode the texts again')
    return array
  features, empty = numbers('features', features), numbers('empty', empty)
  if features.ndim != 3 or features.shape[2] != width:
    raise ValueError(f'with_features: features must be of shape (n, tokens, {width}), as the '
                     f'network reads them, got {features.shape}; take those of its text encoder')
  if empty.shape != features.shape[1:]:
    raise ValueError(f'with_features: empty must be of the shape {features.shape[1:]} of each of '
                     f'the features, got {empty.shape}; encode the empty text as the others')
  return features, empty


def build(settings: Mapping[str, Any]) -> clip.TextTower:
  """Builds a text tower from plain values.

  Args:
    settings: attributes of clip.TextTower.

  Returns:
    The module, without parameters.

  Raises:
    ValueError: if a setting is unknown, missing or out of range.
  """
  def check(setting, value, known):
    least = 0 if setting == 'eos_token_id' else 1
    if known is int and (not checks.is_integer(value) or value < least):
      raise ValueError(f'clip_text: {setting} must be an integer of {least} or more, got '
                       f'{repr(value)[:80]}; see the attributes of TextTower')
  module = clip.TextTower(**settings_lib.read('clip_text', clip.TextTower, settings, check))
  checks.check_choice('clip_text', 'activation', module.activation, [*clip.ACTIVATIONS])
  if module.width % module.heads or module.context < 2:
    raise ValueError('clip_text: width must divide into its heads, and context hold start and end, '
                     f'got {module.width}, {module.heads} heads and {module.context}; choose other '
                     'settings')
  return module


@functools.cache
def numbered(evaluate: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function whose labels are numbers of texts; one function per argument.

  Args:
    evaluate: evaluate(params, x, sigma, features (batch, tokens, width), **call) -> anything.

  Returns:
    apply(params, x, sigma, labels=None, **call) -> the same; params are {'network': those of
    evaluate, 'features': (n + 1, tokens, width), first those of the empty text}; labels, (batch,),
    are integers below n, below 0 for the empty text, as is None. Others give NaN.

  Raises:
    ValueError: by apply, where labels are no integers.
  """
  def apply(params, x, sigma, labels=None, **call):
    labels = jnp.full(len(x), -1) if labels is None else jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
      raise ValueError('denoiser: labels of a model with prompts must be their numbers, got '
                       f'{labels.dtype} of shape {labels.shape}; features go to the model without')
    features = jnp.take(params['features'], jnp.maximum(labels, -1) + 1, axis=0, mode='fill')
    return evaluate(params['network'], x, sigma, features.astype(x.dtype), **call)
  return apply


@functools.cache
def shapes(module: clip.TextTower) -> Any:
  """Returns the shapes of a tower's parameters; nothing is computed.

  Args:
    module: the tower.

  Returns:
    Nested dicts of jax.ShapeDtypeStruct.
  """
  return jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 2), np.int32))['params']


@functools.cache
def _program(module) -> Callable[[Any, Any], jax.Array]:
  """Compiles a tower once; params are cast, as its precision is that of its first parameters."""
  def encode(params, ids):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return module.apply({'params': params}, ids).last
  return jax.jit(encode)
