"""A model whose density is known: a mixture of three wide components in two classes."""

import dataclasses

import numpy as np

import models
from models import mixture

MEANS = np.random.default_rng(0).uniform(-0.7, 0.7, (3, 8, 8, 3)).astype(np.float32)
WIDTHS = np.array([0.6, 0.5, 0.7])
LABELS = np.array([0, 1, 0])


def model():
  """The exact denoiser, in the range of the bundled models."""
  return dataclasses.replace(
      models.load('digits_exact'), params=mixture.mixture(MEANS, WIDTHS, labels=LABELS),
      num_classes=2)
