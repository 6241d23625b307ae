"""From an image to its latent: solvers run up the grid of noise levels, and down again.

A table without noise is a formula for a step between any two levels, so the one that samples on a
decreasing grid inverts on the increasing one (`tables`, `encode`). Up and down differ by the error
of both runs, which vanishes with the order of the solver as steps are added.

Published inversions of DDIM evaluate at the level that a step leads to, since a network of VP
diffusion is called with that time step (`target_level`), and CFG++ inverts so, too
(`cfg_plus_plus`). Neither undoes its sampler: their round trip is off by the order of plain Euler.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from samplers import checks, guidance, registry, run as run_lib, table as table_lib


def tables(name: str, sigmas: Sequence[float] | np.ndarray, *, afs: bool = False,
           denoise_to_zero: bool = False, **options: Any
           ) -> tuple[table_lib.Table, table_lib.Table]:
  """Builds the tables of a solver from images up to latents, and down again.

  The way up starts at the lowest level above 0: there is no step from 0, and an image without
  noise is next to one with the least that a network knows. What belongs to an end of the way down,
  the analytical first step and the denoising last one, is left out of it.

  Args:
    name: a key of `samplers.SOLVERS`.
    sigmas: noise levels on the way down, decreasing; the last may be 0 where the solver allows it.
    afs: as `samplers.make`, on the way down.
    denoise_to_zero: likewise.
    **options: the solver's own.

  Returns:
    (up, down).

  Raises:
    ValueError: as `samplers.make`; or if the solver is no table or draws noise, or the grid has
      fewer than two levels above 0.
  """
  if name in registry.LOOPS:
    raise ValueError(f'inversion: solver must be a table, got {name}, which has a loop of '
                     'its own; take euler, heun or dpmpp')
  levels = checks.check_grid(name, sigmas)
  down = registry.make(name, levels, afs=afs, denoise_to_zero=denoise_to_zero, **options)
  if np.any(down.noise):
    raise ValueError(f'inversion: solver must draw no noise, got {name} with '
                     f'{options or "its defaults"}; take euler, heun or dpmpp')
  if len(np.unique(levels[levels > 0])) < 2:
    raise ValueError('inversion: sigmas must hold two levels above 0 or more, got '
                     f'{levels.tolist()}; take more steps')
  return registry.make(name, levels[levels > 0][::-1], **options), down


def encode(table: table_lib.Table, denoise: guidance.Denoiser, images: jax.Array) -> jax.Array:
  """Runs a table from images up to their states at the highest level.

  Args:
    table: of an increasing grid, as `tables` or `target_level` make it.
    denoise: D(x; sigma), result like x.
    images: in [-1, 1], shape (batch, height, width, channels); not checked where traced.

  Returns:
    States at the table's last level, like the images; divided by that level they are latents.

  Raises:
    ValueError: if a number is outside [-1, 1], or as `samplers.run`.
  """
  if not isinstance(images, jax.core.Tracer):
    check_images('encode', images)
  return run_lib.run(table, denoise, images)


def check_images(name: str, images: Any) -> None:
  """Raises ValueError unless all numbers of images lie in [-1, 1]."""
  values = checks.to_array(name, 'images', images)
  flat = values.ravel()
  bad = np.flatnonzero(~(np.abs(flat) <= 1))
  if bad.size:
    where = tuple(int(i) for i in np.unravel_index(bad[0], values.shape))
    raise ValueError(f'{name}: images must lie in [-1, 1], got {flat[bad[0]].item()!r} at {where}; '
                     '8-bit images come there as pixels / 127.5 - 1')


def target_level(sigmas: Sequence[float] | np.ndarray) -> table_lib.Table:
  """Builds DDIM inversion as published: the network at the level that each step leads to.

  From x at a to b with y = x sqrt((1 + b^2) / (1 + a^2)), the state of VP diffusion unchanged,

    x' = x + (b - a) (y - D(y; b)) / b.

  Source: Dhariwal & Nichol 2021, arXiv:2105.05233, App. F (the reverse ODE); Hertz et al. 2022,
  arXiv:2208.01626, Sec. 3.4; the levels are those of diffusers' DDIMInverseScheduler.

  Args:
    sigmas: noise levels, (n + 1,), increasing from above 0. A repeated level, as published grids
      start with, costs an evaluation and is the identity.

  Returns:
    A Table of one slot, NFE = n.

  Raises:
    ValueError: if the levels do not increase from above 0.
  """
  levels = _rising('target_level', sigmas)
  low, high = levels[:-1], levels[1:]
  grow = np.append(np.sqrt((1 + high**2) / (1 + low**2)), 1.0)  # The last state stays as it is.
  share = (high - low) / high
  rows = [table_lib.Row(levels[0], [[grow[0], 0.0]], kind=table_lib.NOTHING)]
  rows += [
      table_lib.Row(b, [[grow[i + 1] * (1 / grow[i] + share[i]), -grow[i + 1] * share[i]]], level=b)
      for i, b in enumerate(high)]
  return table_lib.assemble(rows)


def cfg_plus_plus(denoise: guidance.Denoiser, denoise_uncond: guidance.Denoiser, x: jax.Array,
                  sigmas: Sequence[float] | np.ndarray, scale: float | jax.Array) -> jax.Array:
  """Inverts the sampler CFG++ as published: two answers at the level that each step leads to.

  With y as in `target_level`, and e, e_uncond the answers (y - D) / b at (y, b),

    x' = x - a e_uncond + b (e_uncond + scale (e - e_uncond)).

  Source: Chung et al. 2024 (CFG++), arXiv:2406.08070, Alg. 3.

  Args:
    denoise: D(x; sigma) under the condition.
    denoise_uncond: without it.
    x: images, states at the first level, (batch, height, width, channels).
    sigmas: noise levels, (n + 1,), increasing from above 0; repeated ones are steps, too.
    scale: of the guidance, mostly 0 to 1.

  Returns:
    States at the last level, like x.

  Raises:
    ValueError: if the levels do not increase from above 0.
  """
  levels = _rising('cfg_plus_plus', sigmas)
  low, high = levels[:-1], levels[1:]
  rows = jnp.stack([jnp.asarray(part, x.dtype) for part in (
      high, np.sqrt((1 + high**2) / (1 + low**2)), (high - low) / high)], axis=1)

  def step(x, row):
    b, grow, share = row
    y = grow * x
    uncond = denoise_uncond(y, b).astype(x.dtype)
    guided = jnp.asarray(scale, x.dtype) * (denoise(y, b).astype(x.dtype) - uncond)
    return x + share * (y - uncond) - guided, None
  return jax.lax.scan(step, x, rows)[0]


def _rising(name, sigmas):
  """The grid as float64; repeated levels stay, unlike `checks.distinct`."""
  levels = checks.check_grid(name, sigmas, rising=True)
  if levels[-1] <= levels[0]:
    raise ValueError(f'{name}: sigmas must increase, got {levels[0]:g} first and {levels[-1]:g} '
                     'last; turn a grid for sampling around')
  return levels
