"""Trajectories in three dimensions: the chord and the two widest directions across it.

Trajectories of one model look alike: after a rotation about the chord they nearly coincide,
whatever the start.

Source: Chen et al. 2024, arXiv:2405.11326; Chen et al. 2025, arXiv:2506.10177.
"""

from typing import NamedTuple

import numpy as np

from evaluation import geometry

_SHOWN = 10  # Principal components that are reported at most.


class Projection(NamedTuple):
  """Trajectories seen along axes of their own.

  Attributes:
    coordinates: along the chord and the two principal axes, the origin in the last state,
      (points, batch, 3).
    axes: unit vectors, (batch, 3, height, width, channels); zero where there is no such direction.
    explained: share of the variance across the chord that the first 1, 2, ... principal
      components have together, (batch, k), k = min(10, points, dimension).
    singular_values: of the centred remainder, (batch, k), decreasing.
  """

  coordinates: np.ndarray
  axes: np.ndarray
  explained: np.ndarray
  singular_values: np.ndarray


def project(x: np.ndarray) -> Projection:
  """Projects every trajectory to three axes of its own.

  The first axis is the unit vector from the first to the last state. What is left of the states
  without their part along it, centred over time, has principal axes, of which the first two are
  the others. Their signs: with m the state number points // 2 seen from the last one, the parts of
  m are below 0 on the first axis, above 0 on the second, below 0 on the third.

  Args:
    x: states, (points, batch, height, width, channels), points >= 3, images of three numbers or
      more.

  Returns:
    The Projection, float64.

  Raises:
    ValueError: if a shape is not as above.
  """
  x = np.asarray(x, np.float64)
  if x.ndim != 5 or x[0, 0].size < 3:
    raise ValueError('project: x must have shape (points, batch, height, width, channels) with '
                     f'three numbers an image or more, got {x.shape}; time comes first')
  geometry.check_points('project', len(x))
  # One by one: the decomposition of one trajectory is all that has to fit into memory.
  parts = [_project(x[:, i].reshape(len(x), -1)) for i in range(x.shape[1])]
  coordinates, axes, explained, values = (np.stack(part) for part in zip(*parts, strict=True))
  return Projection(np.moveaxis(coordinates, 0, 1), axes.reshape(len(parts), 3, *x.shape[2:]),
                    explained, values)


def trim(coordinates: np.ndarray, fraction: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
  """Leaves out the trajectories that bend the most and the least.

  Args:
    coordinates: of `project`, (points, batch, 3).
    fraction: of the trajectories to keep, above 0, at most 1.

  Returns:
    (kept, bend): floor(fraction * batch) indices from the middle of the ascending order of bend;
    bend = sum over time of y^2 + 10 z^2, (batch,).

  Raises:
    ValueError: if the fraction is out of range or leaves no trajectory.
  """
  bend = np.sum(coordinates[..., 1]**2 + 10 * coordinates[..., 2]**2, axis=0)
  kept = int(fraction * len(bend)) if 0 < fraction <= 1 else 0
  if not kept:
    raise ValueError('trim: fraction must be above 0, at most 1 and leave a trajectory, got '
                     f'{fraction} of {len(bend)}; take more trajectories')
  first = (len(bend) - kept) // 2
  return np.argsort(bend, kind='stable')[first:first + kept], bend


def align(curves: np.ndarray) -> np.ndarray:
  """Rotates or reflects each curve about the origin to lie as near as possible to the first.

  Minimizes |A O - B| over orthogonal O: O = U V^T with A^T B = U S V^T (Schoenemann 1966). The
  published notebook multiplies U by V instead, which agrees only where V is symmetric.

  Args:
    curves: (batch, points, k); for a rotation about the chord, the second and third coordinate.

  Returns:
    float64 of the same shape; the first curve as it was.
  """
  curves = np.asarray(curves, np.float64)
  u, _, vt = np.linalg.svd(np.swapaxes(curves, -1, -2) @ curves[0])
  return curves @ (u @ vt)


def _project(states):
  """`project` of one trajectory (points, d)."""
  chord = states[-1] - states[0]
  length = np.linalg.norm(chord)
  chord = chord / length if length > 0 else chord
  seen = states - states[-1]
  across = seen - np.outer(seen @ chord, chord)
  _, values, directions = np.linalg.svd(across - across.mean(0), full_matrices=False)
  # What is left by rounding alone may point anywhere, along the chord too: it is no direction.
  directions *= (values > len(states) * np.finfo(float).eps * length)[:, None]
  axes = np.stack([chord, *directions[:2]])
  parts = axes @ seen[len(states) // 2]
  axes = axes * np.where(parts * [-1, 1, -1] < 0, -1.0, 1.0)[:, None]
  total = np.sum(values**2)
  # A straight line has no variance to explain: all of it is.
  explained = np.cumsum(values**2) / total if total > 0 else np.ones_like(values)
  return seen @ axes.T, axes, explained[:_SHOWN], values[:_SHOWN]
