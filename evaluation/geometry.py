"""Geometry of sampling trajectories: lengths, distances and angles, from arrays alone.

A trajectory is an array (points, batch, height, width, channels) whose first axis is time: the
state at the first, highest noise level comes first. Numbers are float64 whatever the arrays are.

Observed for the probability-flow ODE in x = x0 + sigma z: the norm of the state shrinks, that of
the denoised image grows, that of eps stays near sqrt(dimension); a trajectory keeps close to the
chord between its ends; eps points away from the end, where the trajectory arrives.

Source: Chen et al. 2023, arXiv:2305.19947; Chen et al. 2024, arXiv:2405.11326.
"""

from typing import NamedTuple

import numpy as np


class Observations(NamedTuple):
  """What one looks at along n points, each of shape (rows, batch).

  Attributes:
    mag_x: norm of the states, n rows.
    mag_denoised: norm of the denoised images, n - 1 rows.
    mag_eps: norm of eps, n - 1 rows.
    dev_x: distance of the inner states from the chord of all states, n - 2 rows.
    dev_denoised: the same of the denoised images, n - 3 rows.
    dist_x: distance of the states to the last one, n rows.
    dist_denoised: distance of the denoised images to the last of them, n - 1 rows.
    cos: cosine between eps and the way back from the last state, n - 1 rows.
  """

  mag_x: np.ndarray
  mag_denoised: np.ndarray
  mag_eps: np.ndarray
  dev_x: np.ndarray
  dev_denoised: np.ndarray
  dist_x: np.ndarray
  dist_denoised: np.ndarray
  cos: np.ndarray


def observe(x: np.ndarray, denoised: np.ndarray, eps: np.ndarray) -> Observations:
  """Measures trajectories.

  Args:
    x: states, (n, batch, height, width, channels), n >= 3.
    denoised: D(x_i; sigma_i) of all states but the last, (n - 1, batch, ...). Published curves of
      two-call solvers show the answer to the second call of the step instead.
    eps: (x_i - D) / sigma_i of the same states, see `eps_of`.

  Returns:
    Observations.

  Raises:
    ValueError: if a shape is not as above.
  """
  x, denoised, eps = (_check('observe', name, array) for name, array in (
      ('x', x), ('denoised', denoised), ('eps', eps)))
  check_points('observe', len(x))
  for name, array in (('denoised', denoised), ('eps', eps)):
    if array.shape != (len(x) - 1, *x.shape[1:]):
      raise ValueError(f'observe: {name} must have shape {(len(x) - 1, *x.shape[1:])}, one point '
                       f'less than x, got {array.shape}; leave the last level out')
  return Observations(magnitude(x), magnitude(denoised), magnitude(eps), chord_deviation(x),
                      chord_deviation(denoised), distance_to_end(x), distance_to_end(denoised),
                      cosine(eps, x[:-1] - x[-1]))


def eps_of(x: np.ndarray, denoised: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
  """Returns eps = (x - denoised) / sigma = dx/dsigma at points of a trajectory.

  Args:
    x: states, (points, batch, height, width, channels); those without a denoised image are left
      out.
    denoised: of the first k states, (k, batch, ...).
    sigmas: noise levels of the points, those of the first k above 0.

  Returns:
    np.float64 (k, batch, height, width, channels).
  """
  count = len(denoised)
  sigmas = np.asarray(sigmas, np.float64)[:count, None, None, None, None]
  return (np.asarray(x[:count], np.float64) - np.asarray(denoised, np.float64)) / sigmas


def magnitude(images: np.ndarray) -> np.ndarray:
  """Returns the L2 norm over the last three axes, float64."""
  return np.sqrt(np.sum(np.asarray(images, np.float64)**2, axis=(-3, -2, -1)))


def chord_deviation(points: np.ndarray) -> np.ndarray:
  """Returns the distance of the inner points from the straight line through first and last.

  Source: Chen et al. 2023, arXiv:2305.19947.

  Args:
    points: (n, batch, height, width, channels), n >= 2.

  Returns:
    (n - 2, batch). Where first and last point coincide, the distance from that point.
  """
  points = _check('chord_deviation', 'points', points)
  chord = points[-1] - points[0]
  square = np.sum(chord**2, axis=(-3, -2, -1), keepdims=True)
  away = points[1:-1] - points[0]
  along = np.sum(away * chord, axis=(-3, -2, -1), keepdims=True) / np.where(square > 0, square, 1)
  return magnitude(away - along * chord)


def distance_to_end(points: np.ndarray) -> np.ndarray:
  """Returns the distance of every point (n, batch, ...) to the last one, (n, batch)."""
  points = _check('distance_to_end', 'points', points)
  return magnitude(points - points[-1])


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the cosine of the angle between images, over the last three axes.

  Args:
    a: (..., height, width, channels).
    b: the same shape.

  Returns:
    float64, the leading shape; NaN where one of them is zero and there is no angle.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  product = np.sum(a * b, axis=(-3, -2, -1))
  lengths = magnitude(a) * magnitude(b)
  return np.divide(product, lengths, out=np.full_like(lengths, np.nan), where=lengths > 0)


def check_points(name: str, points: int) -> None:
  """Raises ValueError in the name of who asks unless there are three points or more."""
  if points < 3:
    raise ValueError(f'{name}: a trajectory must have at least 3 points, since two make a straight '
                     f'line, got {points}; take more steps')


def _check(who, name, array):
  array = np.asarray(array, np.float64)
  if array.ndim != 5:
    raise ValueError(f'{who}: {name} must have shape (points, batch, height, width, channels), got '
                     f'{array.shape}; time comes first')
  return array
