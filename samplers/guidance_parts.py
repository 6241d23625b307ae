"""What guidance is made of: answers of networks side by side, and a rule that makes one of them.

A guided denoiser is a function denoise(x, sigma) -> D(x; sigma) with attributes, all of which the
functions of `guidance` pass on:

  raw: the same guidance of what the networks said before any limit; only where there is a limit.
  answers: answers(x, sigma, memory) -> (guided, unguided, memory), what tables of two answers and
    guidance with a history ask: the guided image, the image that it leads away from, and what the
    next evaluation is to remember. Where nothing is guided the two images are equal.
  remembers: whether there is a memory: an image batch like x, zeros before the first evaluation.
    `samplers.run` hands it on from row to row. Else it is None; called as a function of (x, sigma)
    alone, a denoiser has no history.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from samplers import checks

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
Several = Callable[[jax.Array, jax.Array], tuple[jax.Array, ...]]
"""All answers at once: that which is wanted, then those to get away from. See `paired`."""
Scale = float | jax.Array | Callable[[jax.Array], Any]
"""Of the guidance: a number, one for each sample (batch,), or a function of sigma that gives it."""
Rule = Callable[..., tuple[jax.Array, Any]]
"""rule(x, sigma, memory, wanted, other, ...) -> (guided, memory)."""

METHODS: dict[str, Callable[..., Denoiser]] = {}
"""Method by name: function(denoise, denoise_uncond, scale, *, options..., interval)."""

_NO_OPTIONS = 'interval', 'denoise_negative'


def register(function: Callable[..., Denoiser]) -> Callable[..., Denoiser]:
  """Adds a method of guidance under its function's name; its other keywords are its options."""
  METHODS[function.__name__] = function
  return function


def options(name: str) -> dict[str, Any]:
  """Returns the options of a method with their defaults, read from its signature.

  Args:
    name: a key of METHODS.

  Raises:
    ValueError: if the name is unknown; it lists the known ones.
  """
  parameters = inspect.signature(checks.lookup('guidance', name, METHODS)).parameters.values()
  return {p.name: p.default for p in parameters
          if p.kind is p.KEYWORD_ONLY and p.name not in _NO_OPTIONS}


def option_types(name: str) -> dict[str, type]:
  """Returns the types of a method's options, see `checks.plain_types`; ValueError as `options`."""
  return checks.plain_types(METHODS.get(name), options(name))


def paired(evaluate: Callable[[jax.Array, jax.Array, Any], jax.Array], condition: Any,
           no_condition: Any, calls: int = 1, *, negative: Any = None) -> Several:
  """Returns the answers of one network under several conditions, in place of several denoisers.

  Args:
    evaluate: evaluate(x, sigma, condition) -> D(x; sigma) under the condition of each sample.
    condition: labels or features, an array (batch, ...) or a tree of them.
    no_condition: the same for the other answer.
    calls: of the network: 1, with a batch of twice the size, or 2, which needs less memory; with
      `negative` 1 or 3.
    negative: the same for a third answer, as `perp_neg` takes; None: there are two.

  Returns:
    several(x, sigma) -> (D under `condition`, D under `no_condition`), or these and D under
    `negative`.

  Raises:
    ValueError: if calls is neither 1 nor the number of answers.
  """
  conditions = [condition, no_condition] + ([] if negative is None else [negative])
  count = len(conditions)
  if calls not in (1, count):
    raise ValueError(f'paired: calls must be 1 or {count}, got {calls!r}; 1 is faster, {count} '
                     'needs less memory')
  if calls > 1:
    def under(own):
      return lambda x, sigma: evaluate(x, sigma, own)
    return together(*map(under, conditions))

  def several(x, sigma):
    batch, all_conditions = jax.tree.map(lambda *parts: jnp.concatenate(parts), *[
        (x, own) for own in conditions])
    levels = jnp.concatenate([sigma] * count) if jnp.ndim(sigma) else sigma
    images = evaluate(batch, levels, all_conditions)
    return tuple(images[i * len(x):(i + 1) * len(x)] for i in range(count))
  return several


def together(*denoisers: Denoiser) -> Several:
  """Returns the answers of several denoisers; `raw`, those of what they were before limits."""
  def several(x, sigma):
    return tuple(denoise(x, sigma) for denoise in denoisers)
  raws = tuple(map(raw_of, denoisers))
  if raws != denoisers:
    several.raw = together(*raws)
  return several


def guide(name: str, denoise: Denoiser | Several, others: tuple[Denoiser | None, ...], rule: Rule,
          interval: Any = None, remembers: bool = False) -> Denoiser:
  """Returns the denoiser that a rule makes of several answers.

  Args:
    name: who asks, for the error.
    denoise: D under the condition; or all answers, see `paired`, where the others are None.
    others: denoisers to lead away from.
    rule: what makes the guided image of the answers.
    interval: (low, high): guided where low < sigma <= high, else the wanted answer alone, which no
      memory takes note of; None: everywhere.
    remembers: whether the rule has a memory; without a history it gets None for it.

  Returns:
    The guided denoiser, with the attributes above.

  Raises:
    ValueError: if the interval does not go from a level >= 0 up; one that is traced is not checked.
  """
  traced = any(isinstance(end, jax.Array) for end in jax.tree.leaves(interval))
  if interval is not None and not traced and not 0 <= interval[0] < interval[1]:
    raise ValueError(f'{name}: interval must go from a level >= 0 up, got {interval}; put the '
                     'lower level first')
  given = [other for other in others if other is not None]
  if given and len(given) < len(others):
    raise ValueError(f'{name}: must have {len(others) + 1} denoisers, got {len(given) + 1}; or '
                     'give all answers by one function, see guidance.paired')
  return _guided(name, together(denoise, *given) if given else denoise, len(others), rule, interval,
                 remembers)


def _guided(name, several, count, rule, interval, remembers):
  def answers(x, sigma, memory):
    found = several(x, sigma)
    if not isinstance(found, tuple | list) or len(found) != count + 1:
      got = len(found) if isinstance(found, tuple | list) else 'one denoiser'
      raise ValueError(f'{name}: must have {count + 1} answers, got {got}; give as many denoisers, '
                       'or see guidance.paired')
    wanted, *rest = found
    other = rest[0]
    moved, kept = rule(x, sigma, memory, wanted, *rest)
    if interval is None:
      return moved, other, kept
    level, (low, high) = column(sigma, x), (column(end, x) for end in interval)
    inside = (low < level) & (level <= high)
    return (jnp.where(inside, moved, wanted), jnp.where(inside, other, wanted),
            None if memory is None else jnp.where(inside, kept, memory))

  raw = raw_of(several)
  return with_answers(answers, remembers, None if raw is several else _guided(
      name, raw, count, rule, interval, remembers))


def with_answers(answers: Callable[..., tuple], remembers: bool,
                 raw: Denoiser | None = None) -> Denoiser:
  """Returns the denoiser of a function `answers`, with the attributes of a guided one."""
  def denoise(x, sigma):
    return answers(x, sigma, None)[0]
  denoise.answers, denoise.remembers = answers, remembers
  if raw is not None:
    denoise.raw = raw
  return denoise


def changed(denoise: Denoiser, change: Callable[..., jax.Array], *, both: bool = False,
            guides: bool = False) -> Denoiser:
  """Returns a denoiser whose image goes through a function; it has the attributes, but no `raw`.

  Args:
    denoise: D(x; sigma), guided or not.
    change: change(x, sigma, image) -> image.
    both: whether the unguided image goes through it too.
    guides: whether the change is guidance: a plain denoiser then becomes a guided one.
  """
  inner = getattr(denoise, 'answers', None)
  if inner is None:
    if not guides:
      return lambda x, sigma: change(x, sigma, denoise(x, sigma))

    def inner(x, sigma, memory):
      image = denoise(x, sigma)
      return image, image, memory

  def answers(x, sigma, memory):
    guided, unguided, memory = inner(x, sigma, memory)
    return (change(x, sigma, guided), change(x, sigma, unguided) if both else unguided, memory)
  return with_answers(answers, getattr(denoise, 'remembers', False))


def raw_of(function: Any) -> Any:
  """Returns a denoiser, or several answers, before any limit."""
  return getattr(function, 'raw', function)


def column(values: Any, x: jax.Array) -> jax.Array:
  """Returns noise levels or scales, a scalar or (batch,), as they multiply images."""
  return jnp.asarray(values).astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def scale_at(scale: Scale, x: jax.Array, sigma: Any) -> jax.Array:
  """Returns the scale of the guidance at a level, as it multiplies images."""
  return column(scale(jnp.asarray(sigma)) if callable(scale) else scale, x)


def apart(wanted: jax.Array, other: jax.Array, factor: Any) -> jax.Array:
  """Returns other + factor (wanted - other)."""
  return other + factor * (wanted - other)


def dot(a: jax.Array, b: jax.Array) -> jax.Array:
  """Returns <a, b> of each sample, (batch, 1, 1, 1)."""
  return jnp.sum(a * b, axis=(1, 2, 3), keepdims=True)


def norm(image: jax.Array) -> jax.Array:
  """Returns the root of <a, a> of each sample, (batch, 1, 1, 1)."""
  return root(dot(image, image))


def root(square: jax.Array) -> jax.Array:
  """Returns the square root; its slope at 0 is 0 and not infinite."""
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def ratio(over: jax.Array, under: jax.Array) -> jax.Array:
  """Returns over / under, and 0 where the part below is 0: between images that do not differ."""
  return jnp.where(under > 0, over / jnp.where(under > 0, under, 1), 0)


def check(name: str, option: str, value: Any, good: Callable[[float], Any], rule: str,
          remedy: str) -> None:
  """Raises ValueError unless a number on the host is good; one that is traced is not seen."""
  if not isinstance(value, jax.Array) and not good(checks.to_number(value)):
    raise ValueError(f'{name}: {option} must {rule}, got {value!r}; {remedy}')
