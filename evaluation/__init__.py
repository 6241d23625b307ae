"""Evaluation: image sets, features, statistics and the numbers made of them; trajectory geometry.

Arrays in, numbers out. `import evaluation; evaluation.frechet_distance(mu1, sigma1, mu2, sigma2)`.
"""

from evaluation import (
    bootstrap,
    frechet,
    geometry,
    inception_score,
    kernel,
    manifold,
    moments,
    sources,
    statistics,
)
from evaluation.frechet import frechet_distance
from evaluation.kernel import kid
from evaluation.manifold import prdc, precision_recall

__all__ = ['bootstrap', 'frechet', 'frechet_distance', 'geometry', 'inception_score', 'kernel',
           'kid', 'manifold', 'moments', 'prdc', 'precision_recall', 'sources', 'statistics']
