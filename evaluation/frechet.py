"""Frechet distance between two sets of features: FID, sFID and their kin.

Two Gaussians with the sets' means and covariances lie at the squared Wasserstein-2 distance

  |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

(Dowson and Landau 1982; FID: Heusel et al. 2017, arXiv:1706.08500, Eq. 6; S with n - 1).

With S1 = F1^T F1 and S2 = F2^T F2 the last trace is the sum of the singular values of F1 F2^T: no
root of a general matrix and no root of a difference of rounding errors. That is the whole rule for
singular covariances, and it needs no epsilon on a diagonal:

- From features, F is the centred matrix over sqrt(n - 1), or its triangular factor where there are
  more rows than columns. Constant or repeated columns and fewer images than dimensions lose no
  digits: about 1e-13 of the traces.
- From stored covariances, F is the symmetric square root up to a rotation, which changes no
  singular value: by eigenvectors, with eigenvalues below 0 taken as 0. Storing has moved each
  eigenvalue by some 1e-16 of the largest, so a zero may have become 1e-16 and its root 1e-8: where
  covariances are singular the result is good to d * sqrt(1e-16 |S1| |S2|) only. Keep features, or
  take more images, where that matters.

A distance of few images is too large: the estimate falls towards its limit roughly as 1 / n (Chong
and Forsyth 2020, arXiv:1911.07023), and with n <= d images the covariance has rank n - 1 at most,
however rich the images are. Compare numbers of the same n only.
"""

import numpy as np

from evaluation import moments
from samplers import checks

_ASYMMETRY = 1e-5  # Of the largest entry: what float32 arithmetic may leave.
_NEGATIVE = 1e-2  # Of the largest eigenvalue: what half precision may leave, and no covariance has.


def frechet_distance(mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray,
                     sigma2: np.ndarray) -> float:
  """Computes the Frechet distance from means and covariances.

  The module's docstring has the formula and the rule for singular covariances.

  Args:
    mu1: mean of one set, (d,).
    sigma1: its covariance, (d, d).
    mu2: mean of the other set, (d,).
    sigma2: its covariance, (d, d).

  Returns:
    The squared distance, >= 0: rounding below 0 is given as 0.

  Raises:
    ValueError: if shapes do not fit, an entry is not finite, or a sigma is no covariance: not
      symmetric, or with an eigenvalue far below 0.
  """
  name = 'frechet_distance'
  mu1, sigma1 = check_statistics(name, mu1, sigma1, '1')
  mu2, sigma2 = check_statistics(name, mu2, sigma2, '2')
  if len(mu1) != len(mu2):
    raise ValueError(f'{name}: mu2 must have {len(mu1)} numbers like mu1, got {len(mu2)}; these '
                     'are statistics of another network or layer')
  return _distance(mu1, factor(name, 'sigma1', sigma1), mu2, factor(name, 'sigma2', sigma2),
                   np.trace(sigma1) + np.trace(sigma2))


def of_moments(a: moments.Moments, b: moments.Moments) -> float:
  """Computes the Frechet distance between two sets of which the moments are known.

  Args:
    a: of one set.
    b: of the other.

  Returns:
    As `frechet_distance`.

  Raises:
    ValueError: as `frechet_distance`, or if one of them is of fewer than two rows.
  """
  return frechet_distance(a.mean, moments.covariance(a), b.mean, moments.covariance(b))


def of_features(a: np.ndarray, b: np.ndarray) -> float:
  """Computes the Frechet distance between two sets of features, to full precision.

  For sFID features are the flattened spatial ones. Fewer rows than columns are exact and cheap: the
  work is a decomposition of (min(n1, d), min(n2, d)) numbers, after one of (n, d) for a set with n
  above d.

  Args:
    a: features of one set, (n1, d).
    b: of the other, (n2, d).

  Returns:
    As `frechet_distance`.

  Raises:
    ValueError: if one of them is no matrix of finite numbers with two rows or more, or the columns
      differ in number.
  """
  a, b = moments.check_pair('frechet.of_features', a, b)
  mu1, factor1 = _factor(a)
  mu2, factor2 = _factor(b)
  traces = np.vdot(factor1, factor1) + np.vdot(factor2, factor2)
  return _distance(mu1, factor1, mu2, factor2, traces)


def factor(name: str, option: str, sigma: np.ndarray) -> np.ndarray:
  """Returns F with F^T F = sigma, (d, d), for a checked covariance; see the module's docstring.

  Args:
    name: who asks, for the error.
    option: what the covariance is called in the error.
    sigma: symmetric, (d, d).

  Returns:
    float64 (d, d).

  Raises:
    ValueError: if an eigenvalue is far below 0.
  """
  values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
  if values[0] < -_NEGATIVE * max(values[-1], 0):
    raise ValueError(f'{name}: {option} must be a covariance, got an eigenvalue of {values[0]:g} '
                     f'where the largest is {values[-1]:g}; check how it was made and stored')
  return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


def check_statistics(name: str, mu: np.ndarray, sigma: np.ndarray,
                     suffix: str = '') -> tuple[np.ndarray, np.ndarray]:
  """Checks a mean and a covariance, up to the signs of its eigenvalues.

  Args:
    name: who asks, for the error.
    mu: the mean, (d,).
    sigma: the covariance, (d, d).
    suffix: of both names in the error.

  Returns:
    Both in float64.

  Raises:
    ValueError: if shapes do not fit, an entry is not finite, or sigma is not symmetric.
  """
  mu_name, sigma_name = f'mu{suffix}', f'sigma{suffix}'
  mu = np.atleast_1d(checks.to_array(name, mu_name, mu))
  sigma = np.atleast_2d(checks.to_array(name, sigma_name, sigma))
  if mu.ndim != 1 or not mu.size:
    raise ValueError(f'{name}: {mu_name} must be a vector, got shape {mu.shape}; it is the mean '
                     'over images')
  if sigma.shape != (len(mu), len(mu)):
    raise ValueError(f'{name}: {sigma_name} must be square, {(len(mu), len(mu))} as {mu_name} has '
                     f'{len(mu)} numbers, got shape {sigma.shape}; both belong to one set')
  for option, array in ((mu_name, mu), (sigma_name, sigma)):
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
      raise ValueError(f'{name}: {option} must be finite, got {array[tuple(bad[0])]} at index '
                       f'{", ".join(map(str, bad[0]))}; make the statistics again')
  gap = np.abs(sigma - sigma.T)
  if gap.max() > _ASYMMETRY * np.abs(sigma).max():
    row, column = np.unravel_index(gap.argmax(), gap.shape)
    raise ValueError(f'{name}: {sigma_name} must be symmetric, got {sigma[row, column]:g} and '
                     f'{sigma[column, row]:g} at {row}, {column} and across; check how it was made '
                     'and stored')
  return mu, sigma


def _factor(features):
  """Returns (mean, F) with F^T F the covariance; F has min(n, d) rows."""
  count, width = features.shape
  mean = moments.mean(features)
  if count <= width:
    return mean, (features - mean) / np.sqrt(count - 1)
  # Q drops out of singular values. By blocks, so that memory is bounded: the factor of what came
  # before stands in for it.
  triangle = np.empty((0, width))
  rows = 4 * width
  for start in range(0, count, rows):
    block = features[start:start + rows] - mean
    triangle = np.linalg.qr(np.concatenate([triangle, block]), mode='r')
  return mean, triangle / np.sqrt(count - 1)


def _distance(mu1, factor1, mu2, factor2, traces):
  singular = np.linalg.svd(factor1 @ factor2.T, compute_uv=False)
  difference = mu1 - mu2
  return max(0.0, float(difference @ difference + traces - 2 * singular.sum()))
