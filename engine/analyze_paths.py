"""The trajectories of --mode=analyze: what runs on the devices, and what is kept of it.

All that a model does here is one program, compiled once: tables are padded to one shape, and
whether steps start from given states is a number. The states of a trajectory are denoised by
Euler's table put back on each of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from engine import devices, sampler
from evaluation import geometry, optimal, projection, truncation

EULER = 'euler'
"""Solver that the others are compared with."""


@dataclasses.dataclass(frozen=True, eq=False)
class Grids:
  """Tables of one shape, and the rows after which their steps end.

  Attributes:
    sigmas: levels of the measured steps, above 0, np.float64 (n + 1,).
    points: levels of the trajectory, np.float64 (num_points,), the last perhaps 0.
    tables: name -> Table: 'trajectory', the solver on all points; 'points', Euler on them;
      'steps' and 'steps_euler', the solver and Euler on the measured grid; 'reference' and 'half',
      the fine solution and one with half as many substeps.
    rows: name -> rows of the grid points after the first, padded with the last to one length.
    first: name -> first noise level, np.float32.
  """

  sigmas: np.ndarray
  points: np.ndarray
  tables: Mapping[str, samplers.Table]
  rows: Mapping[str, np.ndarray]
  first: Mapping[str, np.float32]


def plan(solver: str, options: dict[str, Any], sigmas: np.ndarray, points: np.ndarray,
         substeps: int) -> Grids:
  """Builds the tables.

  Args:
    solver: name of a solver.
    options: of it.
    sigmas: grid whose steps are measured; a last level 0 is left out, see truncation.refine.
    points: grid of the trajectory.
    substeps: of the fine solution, even.

  Returns:
    Grids.

  Raises:
    ValueError: if the solver refuses a grid, or no step of it ends above 0.
  """
  tables = {'trajectory': samplers.make(solver, points, **options),
            'steps': samplers.make(solver, sigmas, **options)}
  # Of the grid, unless the solver divides the range by itself, as dpm_fast does.
  points, sigmas = (np.append(grid[0], table.level[truncation.ends(table)]) for grid, table in (
      (points, tables['trajectory']), (sigmas, tables['steps'])))
  positive = sigmas[sigmas > 0]
  if len(positive) < 2:
    raise ValueError(f'config.schedule: must have two or more levels above 0 where steps of '
                     f'{solver} end, got {sigmas.tolist()}; raise num_steps')
  steps = len(positive) - 1
  tables |= {'points': samplers.make(EULER, points),
             'steps_euler': samplers.make(EULER, positive),
             'reference': truncation.reference_table(positive, substeps),
             'half': truncation.reference_table(positive, substeps // 2)}
  rows = {name: truncation.ends(table) for name, table in tables.items()}
  for name, every in (('reference', substeps), ('half', substeps // 2)):
    rows[name] = rows[name][every - 1::every]
  rows['steps'] = rows['steps'][:steps]
  longest = max(map(len, rows.values()))
  shape = max(table.rows for table in tables.values()), max(
      table.slots for table in tables.values())
  first = {name: np.float32(points[0] if name in ('trajectory', 'points') else positive[0])
           for name in tables}
  return Grids(positive, points, {name: samplers.pad(table, *shape)
                                  for name, table in tables.items()},
               {name: np.pad(ends, (0, longest - len(ends)), mode='edge')
                for name, ends in rows.items()}, first)


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A denoiser on the devices; build one with `place`.

  Attributes:
    apply: apply(params, x, sigma, labels) -> D(x; sigma).
    params: whole on every device.
    limit: on the denoised image, a key of sampler.LIMITS.
    by_class: whether it takes labels.
  """

  apply: Callable[..., jax.Array]
  params: Any
  limit: str
  by_class: bool


def place(apply: Callable[..., jax.Array], params: Any, limit: str, by_class: bool) -> Network:
  """Puts a denoiser on the devices, see Network."""
  return Network(apply, devices.replicate(params), limit, by_class)


def follow(network: Network, grids: Grids, name: str, latents: jax.Array,
           labels: jax.Array | None, exact: jax.Array | None = None) -> truncation.Replay:
  """Runs a table from noise; comes back when the work is queued.

  Args:
    network: the denoiser.
    grids: the tables.
    name: of the table.
    latents: (devices, share, height, width, channels), standard normal.
    labels: (devices, share), or None.
    exact: states that `follow` gave, (devices, share, 1 + steps, ...), of which each step starts
      from the one at its first level; None: from where the last step ended.

  Returns:
    The first state and those where steps end, (devices, share, 1 + steps, ...), and what the
    denoiser said last in each step, (devices, share, steps, ...). Steps of the longest table;
    a shorter one repeats its last.
  """
  restart = exact is not None
  if not restart:  # Not looked at, but one program does for both.
    exact = jnp.broadcast_to(latents[:, :, None], (
        *latents.shape[:2], 1 + len(grids.rows[name]), *latents.shape[2:]))
  how = devices.replicate((grids.tables[name], grids.rows[name], grids.first[name],
                           np.bool_(restart)))
  return _program(network.apply, network.limit)(
      (network.params, *how), (latents, exact, labels if network.by_class else None))


def denoise(network: Network, grids: Grids, states: jax.Array, latents: jax.Array,
            labels: jax.Array | None) -> jax.Array:
  """Denoises a trajectory on all points but the last; comes back when the work is queued.

  Args:
    network: the denoiser.
    grids: its levels.
    states: of `follow` on the table 'trajectory'.
    latents: where it started.
    labels: (devices, share), or None.

  Returns:
    (devices, share, steps, ...), see `follow`.
  """
  return follow(network, grids, 'points', latents, labels, states).answers


def start(model: Network, oracles: Mapping[str, Network], grids: Grids, latents: jax.Array,
          labels: jax.Array, data_labels: jax.Array) -> dict[str, jax.Array]:
  """Queues all that is looked at of a batch.

  Args:
    model: the model.
    oracles: denoisers of the data, see analyze_data.oracles.
    grids: the tables.
    latents: (devices, share, height, width, channels), standard normal.
    labels: classes for the model, (devices, share).
    data_labels: the same classes as the data numbers them.

  Returns:
    name -> states or denoised images, (devices, share, points, ...), see `follow`.
  """
  def states_of(network, name, classes, exact=None):
    return follow(network, grids, name, latents, classes, exact).states

  x, exact = (states_of(model, name, labels) for name in ('trajectory', 'reference'))
  found = {'x': x, 'denoised': denoise(model, grids, x, latents, labels), 'reference': exact,
           'half': states_of(model, 'half', labels)}
  for name in ('steps', 'steps_euler'):
    found[name] = states_of(model, name, labels)
    found[f'{name}_local'] = states_of(model, name, labels, exact)
  for name, oracle in oracles.items():
    found[f'{name}_on_x'] = denoise(oracle, grids, x, latents, data_labels)
  if 'optimal' in oracles:
    best = oracles['optimal']
    x_opt = states_of(best, 'trajectory', data_labels)
    found |= {'x_opt': x_opt, 'denoised_opt': denoise(best, grids, x_opt, latents, data_labels),
              'model_on_x_opt': denoise(model, grids, x_opt, latents, labels)}
  return found


def reduce(states: Mapping[str, np.ndarray], grids: Grids) -> dict[str, np.ndarray]:
  """Turns the states of a batch into numbers of each image.

  Args:
    states: what `start` gave, on the host, (batch, points, ...).
    grids: the tables.

  Returns:
    name -> float64 (batch, ...): observations, coordinates, explained, differences from the data's
    denoisers, and the errors of steps.
  """
  count, steps = len(grids.points), len(grids.sigmas) - 1
  swapped = {name: np.moveaxis(array, 1, 0) for name, array in states.items()}
  for name in swapped:  # Without what the longest table adds.
    if name in ('x', 'x_opt'):
      swapped[name] = swapped[name][:count]
    elif 'on_x' in name or 'denoised' in name:
      swapped[name] = swapped[name][:count - 1]
    else:
      swapped[name] = swapped[name][1:1 + steps]
  x, denoised = swapped['x'], swapped['denoised']
  observed = geometry.observe(x, denoised, geometry.eps_of(x, denoised, grids.points))
  seen = projection.project(x)
  numbers = {**observed._asdict(), 'coordinates': seen.coordinates}
  for name in ('steps', 'steps_local', 'steps_euler', 'steps_euler_local', 'half'):
    numbers[f'error_{name}'] = truncation.errors(swapped[name], swapped['reference'])
  if 'x_opt' in swapped:
    numbers |= {f'optimal_{name}': array for name, array in optimal.differences(
        x, denoised, swapped['x_opt'], swapped['denoised_opt'],
        swapped['optimal_on_x'], swapped['model_on_x_opt'])._asdict().items()}
  for name in ('gaussian', 'class_gaussians'):
    if f'{name}_on_x' in swapped:
      numbers[f'{name}_on_x'] = geometry.magnitude(
          swapped[f'{name}_on_x'].astype(np.float64) - denoised)
  return {**{name: np.moveaxis(array, 1, 0) for name, array in numbers.items()},
          'explained': seen.explained}


@functools.cache
def _program(apply: Callable[..., jax.Array], limit: str) -> Callable[[Any, Any], Any]:
  def run(whole, share):
    (params, table, rows, first, restart), (latents, exact, labels) = whole, share
    denoise = sampler.LIMITS[limit](lambda x, sigma: apply(params, x, sigma, labels))
    x = first * latents
    states, answers = truncation.replay(table, denoise, x, jnp.moveaxis(exact, 1, 0)[1:], restart)
    return truncation.Replay(jnp.moveaxis(jnp.concatenate([x[None], states[rows]]), 0, 1),
                             jnp.moveaxis(answers[rows], 0, 1))
  return devices.spread(run)
