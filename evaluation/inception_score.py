"""Inception Score: exp of the mean KL divergence of class probabilities from their mean.

Salimans et al. 2016, arXiv:1606.03498, Sec. 4: exp(E_x KL(p(y | x) || p(y))), natural logarithm.
Everything is taken from logits through log-softmax in float64, so that a probability too small for
its type is an exact 0 of the sum and not a NaN.

Two customs of chunks differ and so do their numbers: torch-fidelity shuffles the images, then cuts
them into a number of parts; the evaluator of guided diffusion cuts the file in its own order into
parts of 5000. In a file sorted by class the latter sees few classes per part and is wrong: shuffle
first.
"""

from typing import NamedTuple

import numpy as np

from evaluation import moments
from samplers import checks


class Score(NamedTuple):
  """An Inception Score over parts of the images.

  Attributes:
    mean: over the parts.
    std: population standard deviation over the parts.
    parts: score of each part, float64 (parts,).
  """

  mean: float
  std: float
  parts: np.ndarray


def inception_score(logits: np.ndarray, splits: int = 10, seed: int | None = 2020) -> Score:
  """Computes the score as torch-fidelity does.

  Args:
    logits: of the class probabilities, (n, classes).
    splits: number of parts; part i has the rows i n // splits to (i + 1) n // splits.
    seed: of NumPy's RandomState, which permutes the rows first; None: rows stay in order.

  Returns:
    The Score.

  Raises:
    ValueError: if logits are no matrix of finite numbers, or there are fewer rows than parts.
  """
  logits = moments.check_features('inception_score', logits, 1, 'logits')
  count = len(logits)
  if not checks.is_integer(splits) or not 1 <= splits <= count:
    raise ValueError('inception_score: splits must be an integer from 1 to the number of images, '
                     f'{count}, got {splits!r}; 10 is usual')
  order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
  return _score(logits[order[i * count // splits:(i + 1) * count // splits]]
                for i in range(splits))


def by_size(logits: np.ndarray, size: int = 5000) -> Score:
  """Computes the score as the evaluator of guided diffusion does: in order, by parts of one size.

  Args:
    logits: of the class probabilities, (n, classes).
    size: rows per part; the last part may be shorter and counts as much as the others.

  Returns:
    The Score; `mean` is what the evaluator prints.

  Raises:
    ValueError: if logits are no matrix of finite numbers, or `size` is below 1.
  """
  logits = moments.check_features('inception_score', logits, 1, 'logits')
  if not checks.is_integer(size) or size < 1:
    raise ValueError(f'inception_score: size must be an integer above 0, got {size!r}; 5000 is '
                     'usual')
  return _score(logits[start:start + size] for start in range(0, len(logits), size))


def _score(parts):
  scores = np.array([_of_part(part.astype(np.float64)) for part in parts])
  return Score(float(scores.mean()), float(scores.std()), scores)


def _of_part(logits):
  log_p = logits - _log_sum_exp(logits, axis=1)
  # The mean probability by log-sum-exp too: it stays above 0 where each p underflows.
  log_mean = _log_sum_exp(log_p, axis=0) - np.log(len(logits))
  return np.exp(np.mean(np.sum(np.exp(log_p) * (log_p - log_mean), 1)))


def _log_sum_exp(values, axis):
  largest = values.max(axis, keepdims=True)
  return largest + np.log(np.exp(values - largest).sum(axis, keepdims=True))
