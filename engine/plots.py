"""Plots of jobs."""

import pathlib
from collections.abc import Mapping, Sequence

from matplotlib import figure as figure_lib  # Without pyplot: files, never a window.

from engine import files


def write_training(path: pathlib.Path, lines: Sequence[Mapping[str, float]], title: str) -> None:
  """Plots the losses of a training run over the images seen, whole or not at all.

  Args:
    path: the PNG file.
    lines: of metrics.jsonl, one or more.
    title: of the plot.
  """
  figure = figure_lib.Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  images = [line['images'] for line in lines]
  for name, label in (('loss', 'training'), ('held_out_loss', 'held out, averaged parameters')):
    if name in lines[0]:
      axes.plot(images, [line[name] for line in lines], label=label)
  axes.set(title=title, xlabel='images seen', ylabel='loss', yscale='log')
  axes.legend()
  _write(path, figure, axes)


def write_bound(path: pathlib.Path, sigmas: Sequence[float], bits: Sequence[float],
                title: str) -> None:
  """Plots what each step of a chain adds to the bound, whole or not at all.

  Args:
    path: the PNG file.
    sigmas: noise level at which each step starts.
    bits: per dimension, like `sigmas`.
    title: of the plot.
  """
  figure = figure_lib.Figure(figsize=(7, 4), layout='constrained')
  axes = figure.subplots()
  axes.plot(sigmas, bits, marker='.')
  axes.set(title=title, xlabel='noise level where the step starts', xscale='log',
           ylabel='bits per dimension of the step', yscale='log')
  _write(path, figure, axes)


def _write(path, figure, axes):
  axes.grid(which='both', alpha=0.3)
  with files.replacing(path) as file:
    figure.savefig(file, format='png', dpi=120)
