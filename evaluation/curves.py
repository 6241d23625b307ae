"""Curvature and torsion of sampled curves in space, by local cubic fits.

Source: Chen et al. 2024, arXiv:2405.11326; the estimator of Lewiner et al. 2005,
"Curvature and torsion estimators based on parametric curve fitting".
"""

import numpy as np

from samplers import checks


def arc_length(points: np.ndarray) -> np.ndarray:
  """Returns the length of the polygon up to each point, from 0.

  Args:
    points: (n, batch, 3).

  Returns:
    float64 (n, batch).
  """
  steps = np.linalg.norm(np.diff(np.asarray(points, np.float64), axis=0), axis=-1)
  return np.concatenate([np.zeros_like(steps[:1]), np.cumsum(steps, axis=0)])


def curvature_torsion(points: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
  """Estimates curvature and torsion at every point of curves.

  A cubic x(s) = x_i + a ds + b ds^2 / 2 + c ds^3 / 6 in the arc length s goes through point i and
  fits its neighbours by least squares; curvature = |a x b| / |a|^3, torsion = (a x b) . c /
  |a x b|^2, right-handed curves positive. Neighbours are the (window - 1) / 2 points on each side.
  At an end, what is missing of them is filled up from beyond the far side, as published: at the
  start the window is the first `window` points; at the end it is the last window - 1, of which one
  counts twice.

  Args:
    points: (n, batch, 3).
    window: points of a fit, odd, from 5 to n.

  Returns:
    (curvature, torsion), float64 (n, batch). A straight line has torsion 0. Torsion divides by the
    square of the curvature: where that is tiny it is noise.

  Raises:
    ValueError: if the window is not as above or the points are not.
  """
  points = np.asarray(points, np.float64)
  if points.ndim != 3 or points.shape[-1] != 3:
    raise ValueError('curvature_torsion: points must have shape (n, batch, 3), got '
                     f'{points.shape}; project trajectories first')
  check_window('curvature_torsion: window', window, len(points))
  neighbours = _windows(len(points), window)  # (n, window)
  length = arc_length(points)
  ds = np.moveaxis(length[neighbours] - length[:, None], 1, -1)  # (n, batch, window)
  away = np.moveaxis(points[neighbours] - points[:, None], 1, -2)  # (n, batch, window, 3)
  # In units of the widest neighbour all columns are of one size.
  unit = np.max(np.abs(ds), axis=-1, keepdims=True)
  unit = np.where(unit > 0, unit, 1)
  u = ds / unit
  design = np.stack([u, u**2 / 2, u**3 / 6], axis=-1)
  a, b, c = np.moveaxis(np.linalg.pinv(design) @ away, -2, 0)
  a, b, c = a / unit, b / unit**2, c / unit**3
  cross = np.cross(a, b)
  square = np.sum(cross**2, axis=-1)
  curvature = _divide(np.sqrt(square), np.linalg.norm(a, axis=-1)**3)
  return curvature, _divide(np.sum(cross * c, axis=-1), square)


def check_window(name: str, window: int, points: int) -> None:
  """Raises ValueError in the name of who asks unless a window is odd and from 5 to `points`."""
  if not checks.is_integer(window) or window % 2 == 0 or not 5 <= window <= points:
    raise ValueError(f'{name} must be an odd integer from 5 to the number of points, {points}, got '
                     f'{window!r}; a tenth of the points is usual')


def _windows(count, window):
  """Indices of the neighbours of each point, itself included, (count, window)."""
  half = window // 2
  order = np.arange(count)
  padded = np.concatenate([order[half + 1:2 * half + 1], order,
                           order[count - 2 * half:count - half]])
  return np.lib.stride_tricks.sliding_window_view(padded, window)


def _divide(value, by):
  return np.divide(value, by, out=np.zeros_like(value), where=by > 0)
