"""Plots of jobs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, figure as figure_lib  # Without pyplot: files, never a window.

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


def write_lessons(path: pathlib.Path, lines: Sequence[Mapping[str, Any]], title: str) -> None:
  """Plots what a trainer's metrics tell, a panel for each quantity, whole or not at all.

  Args:
    path: the PNG file.
    lines: of metrics.jsonl, one or more; lists are drawn as one curve for each entry.
    title: of the plot.
  """
  lines = [line for line in lines if line['lesson'] == lines[-1]['lesson']]
  names = [name for name, value in lines[0].items() if isinstance(value, list)]
  figure = figure_lib.Figure(figsize=(5 * min(len(names), 2), 3.2 * -(-len(names) // 2)),
                             layout='constrained')
  seen = [line['trajectories'] for line in lines]
  panels = figure.subplots(-(-len(names) // 2), min(len(names), 2), squeeze=False).ravel()
  for axes in panels[len(names):]:
    axes.remove()
  for axes, name in zip(panels, names, strict=False):
    values = np.array([line[name] for line in lines])
    for index in np.ndindex(values.shape[1:]):
      label = ', '.join(str(i + 1) for i in index)
      axes.plot(seen, values[(slice(None), *index)], label=label, marker='.', markersize=3,
                color=_color(index[0], values.shape[1]))
    axes.set(title=name.replace('_', ' '), xlabel='trajectories seen')
    if name in ('loss', 'sigma'):
      axes.set_yscale('log')
    axes.grid(which='both', alpha=0.3)
    if 1 < values[0].size <= 12:
      axes.legend(title='interval', fontsize='small', title_fontsize='small')
  figure.suptitle(title)
  with files.replacing(path) as file:
    figure.savefig(file, format='png', dpi=120)


def _color(i, count):
  """From early to late intervals, dark to light."""
  return colormaps['viridis'](i / max(count - 1, 1) * 0.9)


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
