"""The plots of --mode=search."""

import pathlib
from collections.abc import Mapping

import numpy as np
from matplotlib import colors, figure as figure_lib  # Without pyplot: files, never a window.

from engine import files
from samplers import dpm_v3

_TICKS = 9  # Labelled noise levels of an axis.


def write(path: pathlib.Path, cost: np.ndarray, sigmas: np.ndarray,
          grids: Mapping[int, np.ndarray], title: str) -> None:
  """Plots what every jump costs, and the points that were chosen, whole or not at all.

  Args:
    path: the PNG file.
    cost: (n + 1, n + 1), of which the part above the diagonal counts.
    sigmas: noise levels of the points, (n + 1,).
    grids: number of steps -> indices of its points.
    title: of the plot.

  Raises:
    OSError: if the file cannot be written.
  """
  n = len(sigmas) - 1
  figure = figure_lib.Figure(figsize=(7.6, 6.2 + 0.28 * len(grids)), layout='constrained')
  heat, rows = figure.subplots(2, 1, height_ratios=[5.4, 0.5 + 0.28 * len(grids)], sharex=True)
  points = np.arange(n + 1)
  jumps = np.where(points[:, None] < points, cost, np.nan)
  image = heat.imshow(jumps, cmap='cividis', norm=_scale(jumps), interpolation='nearest',
                      aspect='auto')
  shades = [f'C{i}' for i in range(10)]
  for i, indices in enumerate(grids.values()):
    style = {'color': shades[i % 10], 'markersize': 4.5}
    heat.plot(indices[1:], indices[:-1], marker='o', linewidth=1, **style)
    rows.plot(indices, np.full(len(indices), i), marker='o', linewidth=1, **style)
  figure.colorbar(image, ax=heat, label='cost of the jump', pad=0.01)
  ticks = np.unique(np.rint(np.linspace(0, n, min(_TICKS, n + 1))).astype(int))
  labels = [f'{sigmas[i]:.3g}' for i in ticks]
  heat.set(title=title, ylabel='from noise level', yticks=ticks, yticklabels=labels)
  rows.set(xlabel='to noise level', xticks=ticks, xticklabels=labels, ylabel='steps',
           yticks=range(len(grids)), yticklabels=grids, ylim=(len(grids) - 0.4, -0.6))
  rows.grid(axis='x', alpha=0.3)
  with files.replacing(path) as file:
    figure.savefig(file, format='png', dpi=110)


def write_statistics(path: pathlib.Path, statistics: dpm_v3.Statistics, title: str) -> None:
  """Plots what was measured over the noise level: the mean of all elements, and their range.

  Args:
    path: the PNG file, whole or not at all.
    statistics: what to show.
    title: of the plot.

  Raises:
    OSError: if the file cannot be written.
  """
  lam = -np.log(statistics.sigmas)
  figure = figure_lib.Figure(figsize=(7.6, 7.2), layout='constrained')
  panels = figure.subplots(3, 1, sharex=True)
  for axes, name, label in zip(panels, ('l', 's', 'b'), (
      'l, linear part of x - D', "s, of f' along f", "b, of f' alone"), strict=True):
    values = getattr(statistics, name).reshape(len(lam), -1)
    axes.axhline(0, color='0.75', linewidth=0.8)
    if values.shape[1] > 1:
      for share, shade in ((0, 0.15), (10, 0.3)):
        low, high = np.percentile(values, (share, 100 - share), axis=1)
        axes.fill_between(lam, low, high, color='C0', alpha=shade, linewidth=0,
                          label=f'{100 - 2 * share}% of the elements')
    axes.plot(lam, values.mean(axis=1), color='C0', linewidth=1.4,
              label='mean' if values.shape[1] > 1 else None)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
  if statistics.l[0].size > 1:
    panels[0].legend(loc='best', fontsize='small')
  ticks = np.linspace(0, len(lam) - 1, _TICKS).round().astype(int)
  above = panels[0].secondary_xaxis('top')
  above.set(xlabel='noise level', xticks=lam[ticks],
            xticklabels=[f'{statistics.sigmas[i]:.3g}' for i in ticks])
  panels[-1].set_xlabel('lambda = -log(noise level)')
  figure.suptitle(title, fontsize='medium')
  with files.replacing(path) as file:
    figure.savefig(file, format='png', dpi=110)


def _scale(jumps):
  """Colours by the order of magnitude, down to the least that can be told apart from 0."""
  size = np.nanmax(np.abs(jumps))
  return colors.SymLogNorm(max(size, 1e-12) * 1e-3, vmin=np.nanmin(jumps), vmax=np.nanmax(jumps))
