"""Runs any Table with any denoiser: the one `jax.lax.scan` behind every sampler."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from samplers import noise as noise_lib, table as table_lib


def run(table: table_lib.Table,
        denoise: Callable[[jax.Array, jax.Array], jax.Array],
        x: jax.Array,
        *,
        key: jax.Array | None = None,
        draw: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        guide: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        project: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None,
        project_draw: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
        trajectory: bool = False,
        unroll: int | bool = 1) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Runs a table from the state x at its first noise level.

  The same as this loop, where `state` has shape (slots, *x.shape):

    state = [x, 0, 0, ...]
    for r in range(rows):
      answer = (denoise, guide, zero, denoise.raw)[kind[r]](state[0], sigma[r])
      state = mix[r] @ [state; answer] + noise[r] * draw(r, x)
      if level[r] is a grid point:
        state[0] = project(state[0], level[r], project_draw(r, x))
    return state[0]

  Functions of `guidance` carry an attribute `answers` for tables that ask more: the unguided image
  beside the guided one, and a memory of earlier evaluations, see `guidance_parts`. What gives but
  one image gives it for both answers of such a table: without guidance the two are equal.

  Pure, so that it may be compiled, differentiated and mapped; compile it with the table as an
  argument and every table of the same numbers of rows and slots shares the program. The mix is a
  sum in a fixed order and in the precision of x, whatever the network computes in.

  Args:
    table: a Table, on the host or traced.
    denoise: D(x; sigma), result like x; sigma is a scalar. Rows of kind 3 ask its attribute `raw`
      where it has one (thresholding and clipping carry it).
    x: state at the table's first level, x0 + sigma z, shape (batch, height, width, channels).
    key: one typed key per sample, shape (batch,): noise along a Brownian path of its own where the
      table names intervals, see `noise.brownian`. A sample's noise depends on its key alone.
    draw: draw(row, x) -> z like x, in place of a key: another of `noise`, or recorded noise.
    guide: guidance term in units of eps for rows of kind 1, guide(x, sigma); None is unguided.
    project: imputation where a step ends, project(x, sigma, z) -> x.
    project_draw: draw of the imputation's own noise, in place of a key.
    trajectory: also return the states at the grid points; needs a table on the host.
    unroll: rows that are compiled apart, True for all: slower to compile, and for a gradient on a
      CPU three times as fast to run.

  Returns:
    Samples like x; with `trajectory` the pair (samples, states), states of shape
    (steps + 1, *x.shape), the first being x.

  Raises:
    ValueError: if x is not a batch of images of floats, if `key` is not one typed key per sample,
      if the table has noise and neither key nor draw is given, if `project` has no noise, or if
      what a function returns is not shaped like x.
  """
  x = _check_state(x)
  keys = _check_key(key, x)
  sigma, mix, noise, level = (jnp.asarray(a).astype(x.dtype) for a in (
      table.sigma, table.mix, table.noise, table.level))
  count = table.mix.shape[2] - table.mix.shape[1]
  answer = _answer(denoise, guide, x, count)
  add_noise = _noise_source(table, keys, draw, x)
  project_draw = _project_source(project, project_draw, keys)
  steps = _steps(table.level) if trajectory else None

  def imputed(image, r, level):
    z = _like_state('project_draw', project_draw(r, x), x)
    return _like_state('project', project(image, level, z), x)

  def step(carry, row):
    state, memory = carry
    r, sigma, kind, mix, noise, drawn, level = row
    # The answer first, then the slots in order: slots that a table was padded with add exact
    # zeros at the end of each sum and leave its rounding alone.
    answers, memory = answer(kind, state[0], sigma, memory)
    parts = [*answers, *state]
    state = [functools.reduce(jnp.add, (w[j - count] * part for j, part in enumerate(parts)))
             for w in mix]
    state = add_noise(state, r, noise, drawn)
    if project is not None:
      end = jax.lax.cond(jnp.isnan(level), lambda: state[0], lambda: imputed(state[0], r, level))
      state = [end, *state[1:]]
    return (state, memory), state[0] if trajectory else None

  state = [x] + [jnp.zeros_like(x)] * (table.mix.shape[1] - 1)
  memory = jnp.zeros_like(x) if getattr(denoise, 'remembers', False) else None
  # A row that names an interval has a draw, even if its weight is 0: a gradient may depend on it.
  drawn = jnp.any(noise != 0, axis=1) | ~jnp.isnan(jnp.asarray(table.interval)).any(axis=1)
  rows = (jnp.arange(table.mix.shape[0]), sigma, jnp.asarray(table.kind), mix, noise, drawn, level)
  (state, _), states = jax.lax.scan(step, (state, memory), rows, unroll=unroll)
  if trajectory:
    return state[0], jnp.concatenate([x[None], states[steps]])
  return state[0]


def _answer(denoise, guide, x, count):
  """Returns answer(kind, x, sigma, memory) -> (images, memory), `count` images.

  They are checked to be shaped like x and cast to its precision.
  """
  def checked(name, function):
    def one(x, sigma, memory):
      return (_like_state(name, function(x, sigma), x),) * count, memory

    def several(x, sigma, memory):
      *images, memory = function.answers(x, sigma, memory)
      if memory is not None:
        memory = _like_state(f'memory of {name}', memory, x)
      return tuple(_like_state(name, image, x) for image in images[:count]), memory
    return several if hasattr(function, 'answers') else one

  def nothing(x, sigma, memory):
    del sigma
    return (jnp.zeros_like(x),) * count, memory

  raw = getattr(denoise, 'raw', denoise)
  branches = [checked('denoise', denoise), checked('guide', guide) if guide else nothing, nothing]
  if raw is not denoise:
    branches.append(checked('denoise.raw', raw))

  def answer(kind, x, sigma, memory):
    if raw is denoise:  # One copy of the network in the program instead of two.
      kind = jnp.where(kind == table_lib.RAW, table_lib.DENOISE, kind)
    return jax.lax.switch(kind, branches, x, sigma, memory)
  return answer


def _noise_source(table, keys, draw, x):
  """Returns add_noise(state, r, noise, drawn); rows that are not `drawn` cost nothing."""
  traced = isinstance(table.noise, jax.core.Tracer)
  if not traced and not np.any(np.asarray(table.noise)):
    return lambda state, r, noise, drawn: state
  if draw is None and keys is not None:
    draw = noise_lib.brownian(keys, table.interval)
  if draw is None and not traced:
    raise ValueError('run: a table with noise needs its source, got neither key nor draw; pass '
                     'key=jax.random.split(jax.random.key(0), batch) or a draw')

  def sourceless(state, r, noise, drawn):
    # Whether a traced table has noise is not known: noise that nobody supplies shows as NaN.
    del r, drawn
    return [part + jnp.where(weight == 0, weight, jnp.nan)
            for part, weight in zip(state, noise, strict=True)]

  def add_noise(state, r, noise, drawn):
    z = jax.lax.cond(drawn, lambda: _like_state('draw', draw(r, x), x), lambda: jnp.zeros_like(x))
    return [part + weight * z for part, weight in zip(state, noise, strict=True)]
  return sourceless if draw is None else add_noise


def _project_source(project, project_draw, keys):
  if project is None or project_draw is not None:
    return project_draw
  if keys is None:
    raise ValueError('run: project needs a source of noise, got neither key nor project_draw; pass '
                     'one of them (a projection without noise may ignore its z)')
  return noise_lib.of_imputation(keys)


def _steps(level) -> np.ndarray:
  if isinstance(level, jax.core.Tracer):
    raise ValueError('run: trajectory=True needs a table on the host, since the number of steps '
                     'is a shape, got a traced one; close over the table instead')
  return np.flatnonzero(~np.isnan(np.asarray(level)))


def _like_state(name, out, x):
  """What a user's function returned, in the precision of x; its shape has to be that of x."""
  if jnp.shape(out) != x.shape:
    raise ValueError(f'run: {name} must return an image batch like x, shape {x.shape}, got '
                     f'{jnp.shape(out)}; keep batch, height, width and channels')
  return jnp.asarray(out).astype(x.dtype)


def _check_state(x) -> jax.Array:
  if getattr(x, 'ndim', None) != 4:
    raise ValueError('run: x must have shape (batch, height, width, channels), got '
                     f'{getattr(x, "shape", type(x))}; add the missing axes')
  if not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(f'run: x must be an array of floats, got {x.dtype}; scale images to [-1, 1]')
  return jnp.asarray(x)


def _check_key(key, x):
  if key is None:
    return None
  typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
  if not typed or key.shape != (x.shape[0],):
    raise ValueError(f'run: key must be one typed key per sample, shape ({x.shape[0]},), got '
                     f'{getattr(key, "dtype", type(key))} of shape {jnp.shape(key)}; use '
                     f'jax.random.split(jax.random.key(0), {x.shape[0]})')
  return key
