"""Plots of a comparison of solvers: distances against NFE, as files and as parts of the page."""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib import figure as figure_lib, ticker  # Without pyplot: files, never a window.

from engine import files

SETTINGS = ('common', 'best')
"""The setting that all solvers share, and the best one of each: fields of a cell."""

_TITLES = {'common': 'the same setting for all', 'best': "each solver's best setting"}
_COLORS = ('#3b82f6', '#f97316', '#10b981', '#e11d48', '#8b5cf6', '#b58900', '#06b6d4', '#ec4899',
           '#65a30d', '#94603f')  # Of middle lightness: to be seen on white and on black.
_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')  # Their number shares no factor with the colours'.
_INK = '#7b8190'  # Of texts and axes in the page, whose own colour takes its place.
_DODGE = 0.006  # Between the bars of neighbouring solvers, as a share of the axis.
_WIDEST = 0.06  # Of all bars at one NFE: half the way to the next, at most.


class Style(NamedTuple):
  """How a solver is drawn: a colour, a marker, and whether the marker is filled."""

  color: str
  marker: str
  filled: bool


class Metric(NamedTuple):
  """What a plot shows: the field of a cell, its label, and the level nothing falls below."""

  field: str
  label: str
  floor: float | None
  floor_label: str


def styles(report: Mapping[str, Any]) -> dict[str, Style]:
  """Returns the style of each solver, in the order of its first cell; 70 of them are distinct."""
  solvers = dict.fromkeys(cell['solver'] for cell in report['cells'])
  return {solver: Style(_COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)],
                        i // len(_COLORS) % 2 == 0) for i, solver in enumerate(solvers)}


def metrics(report: Mapping[str, Any]) -> dict[str, Metric]:
  """Returns what can be plotted: 'error' and 'distance', each if a cell has a number for it."""
  found = {}
  cells, frechet = report['cells'], report.get('frechet')
  if any(_drawable(cell['rms']) for cell in cells):
    found['error'] = Metric('rms', 'RMS distance to the reference solution',
                            report['reference'].get('error'), 'error of the reference')
  if frechet and any(_drawable(cell['frechet']) for cell in cells):
    found['distance'] = Metric('frechet', frechet['name'], frechet.get('floor'), 'real images')
  return found


def error(report: Mapping[str, Any]) -> figure_lib.Figure:
  """Plots the RMS distance to the reference solution against NFE, both axes logarithmic.

  One panel for the setting that all solvers share, one for the best setting of each; the error of
  the reference itself is shaded, and a measured order stands in the legend.

  Args:
    report: of a comparison, with a number in the 'rms' of at least one cell.

  Returns:
    The figure.
  """
  return _figure(report, metrics(report)['error'])


def distance(report: Mapping[str, Any]) -> figure_lib.Figure:
  """Plots the Frechet distance with its intervals against NFE, and the value of real images.

  Args:
    report: of a comparison, with a number in the 'frechet' of at least one cell.

  Returns:
    The figure, with panels as in `error`.
  """
  return _figure(report, metrics(report)['distance'])


def write(folder: pathlib.Path, report: Mapping[str, Any]) -> list[pathlib.Path]:
  """Writes error.png and distance.png, each if there are numbers for it, whole or not at all.

  Args:
    folder: there already.
    report: of a comparison.

  Returns:
    The files written.

  Raises:
    OSError: if one cannot be written.
  """
  paths = []
  for name, metric in metrics(report).items():
    paths.append(folder / f'{name}.png')
    with files.replacing(paths[-1]) as file:
      _figure(report, metric).savefig(file, format='png', dpi=140)
  return paths


def panels(report: Mapping[str, Any]) -> dict[str, bytes]:
  """Draws the plots for the page: one SVG per metric and setting, without legend or title.

  Their texts and axes have the colour of the text around them, so they suit a light and a dark
  page, and are texts still. The line of a solver is a group named METRIC-SETTING-SOLVER.

  Args:
    report: of a comparison.

  Returns:
    SVG documents by METRIC-SETTING, such as 'error-common'; those with numbers alone.
  """
  drawn = {}
  for name, metric in metrics(report).items():
    for setting in SETTINGS:
      if not _series(report, metric.field, setting):
        continue
      figure = figure_lib.Figure(figsize=(4.9, 3.5), layout='constrained')
      figure.patch.set_visible(False)
      axes = figure.subplots()
      _draw(axes, report, metric, setting, prefix=f'{name}-{setting}-')
      for text in (axes.xaxis.label, axes.yaxis.label, *axes.texts):
        text.set(color=_INK, fontsize=9)
      axes.tick_params(which='both', colors=_INK)
      axes.patch.set_visible(False)
      drawn[f'{name}-{setting}'] = _svg(figure, f'{name}-{setting}')
  return drawn


def _figure(report, metric):
  solvers = styles(report)
  figure = figure_lib.Figure(figsize=(12.5, max(4.6, 1.4 + 0.24 * len(solvers))),
                             layout='constrained')
  shown = [setting for setting in SETTINGS if _series(report, metric.field, setting)]
  handles: dict[str, Any] = {}
  row = figure.subplots(1, max(len(shown), 1), sharex=True, sharey=True, squeeze=False)[0]
  for axes, setting in zip(row, shown, strict=False):
    axes.set_title(_TITLES[setting], fontsize=10)
    handles = _draw(axes, report, metric, setting, prefix='') | handles
    axes.label_outer()
  # In the order of the styles, though a solver may be missing from a panel.
  names = [name for name in (*solvers, metric.floor_label) if name in handles]
  figure.legend([handles[name] for name in names], [_legend_text(report, metric, name)
                                                    for name in names],
                loc='outside right upper', frameon=False, fontsize=9)
  figure.suptitle(report['title'], fontsize=11)
  return figure


def _legend_text(report, metric, name):
  order = (report.get('orders') or {}).get(name) if metric.field == 'rms' else None
  return f'{name} (order {order["order"]:.2f})' if order else name


def _drawable(value: float | None) -> bool:
  """Says whether a number has a place on a logarithmic axis."""
  return value is not None and 0 < value < math.inf


def _series(report: Mapping[str, Any], field: str, setting: str) -> dict[str, list[Any]]:
  """Returns the cells of each solver that can be drawn, lowest NFE first."""
  series: dict[str, list[Any]] = {cell['solver']: [] for cell in report['cells']}
  for cell in sorted(report['cells'], key=lambda cell: cell['nfe']):
    if cell[setting] and _drawable(cell[field]):
      series[cell['solver']].append(cell)
  return {solver: cells for solver, cells in series.items() if cells}


def _draw(axes, report, metric, setting, prefix):
  """Draws one panel; returns the handles of its legend by name."""
  handles = {}
  looks, series = styles(report), _series(report, metric.field, setting)
  span = _ranges(report, metric)
  width = math.log(span.nfe[1] / span.nfe[0])
  dodge = min(_DODGE, _WIDEST / len(series)) if series else 0
  for index, (solver, cells) in enumerate(series.items()):
    style = looks[solver]
    # Side by side, since solvers are measured at the same NFE and their bars would coincide.
    shift = 0 if metric.field == 'rms' else (index - (len(series) - 1) / 2) * dodge
    x = [cell['nfe'] * math.exp(shift * width) for cell in cells]
    y = [cell[metric.field] for cell in cells]
    handles[solver], = axes.plot(
        x, y, color=style.color, linewidth=1.5, marker=style.marker, markersize=4.5,
        markerfacecolor=style.color if style.filled else 'none', zorder=3, gid=prefix + solver)
    bars = [cell.get(f'{metric.field}_interval') for cell in cells]
    if metric.field == 'frechet' and any(bars):
      lower, upper = zip(*(bar or (value, value) for bar, value in zip(bars, y, strict=True)),
                         strict=True)
      axes.vlines(x, [max(value, span.value[0]) for value in lower], upper, alpha=0.45,
                  color=style.color, linewidth=1.2, zorder=2, gid=f'{prefix}{solver}-bars')
  axes.set(xscale='log', yscale='log', xlim=span.nfe, ylim=span.value,
           xlabel='NFE, evaluations of the network', ylabel=metric.label)
  if metric.floor and metric.floor > span.value[0]:
    handles[metric.floor_label] = _draw_floor(axes, metric, span.value[0])
  _tick(axes, sorted({cell['nfe'] for cell in report['cells']}), width)
  few = span.value[1] < 200 * span.value[0]  # Then decades alone would leave an axis bare.
  axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if few else (1,)))
  axes.yaxis.set_major_formatter(ticker.FormatStrFormatter('%g'))
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())
  axes.grid(which='major', alpha=0.25, linewidth=0.6)
  axes.spines[['top', 'right']].set_visible(False)
  for spine in axes.spines.values():
    spine.set_color(_INK)
  return handles


def _draw_floor(axes, metric, bottom):
  if metric.field == 'rms':
    return axes.axhspan(bottom, metric.floor, color=_INK, alpha=0.25, linewidth=0)
  return axes.axhline(metric.floor, color=_INK, linestyle=(0, (5, 4)), linewidth=1.2)


class _Ranges(NamedTuple):
  nfe: tuple[float, float]
  value: tuple[float, float]


def _ranges(report, metric) -> _Ranges:
  """Limits that all panels of a metric share, so that they compare."""
  shown = [cell for cell in report['cells'] if _drawable(cell[metric.field]) and
           any(cell[setting] for setting in SETTINGS)]
  values = [cell[metric.field] for cell in shown]
  uppers = [bar[1] for cell in shown if (bar := cell.get(f'{metric.field}_interval'))]
  lowest, highest = min(values), max([*values, *uppers])
  # A floor far below all numbers would squeeze them into a corner; then it is not shown.
  bottom = min(lowest, metric.floor) if lowest / 30 < (metric.floor or 0) else lowest
  nfe = [cell['nfe'] for cell in shown]
  return _Ranges((min(nfe) / 1.15, max(nfe) * 1.15), (bottom / 1.4, highest * 1.4))


def _tick(axes, nfe: Sequence[int], width: float) -> None:
  """Labels the NFE measured, leaving out those whose labels would touch."""
  kept: list[int] = []
  for value in nfe:
    if not kept or math.log(value / kept[-1]) > 0.06 * width:
      kept.append(value)
  axes.xaxis.set_major_locator(ticker.FixedLocator(kept))
  axes.xaxis.set_major_formatter(ticker.FormatStrFormatter('%d'))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.tick_params(labelsize=8.5)


def _svg(figure, name: str) -> bytes:
  """Returns a figure as SVG with texts as texts, the same bytes each time."""
  encoded = io.BytesIO()
  # The salt makes names of parts repeatable, and different in each plot of a page.
  with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name}):
    figure.savefig(encoded, format='svg', transparent=True, metadata={'Date': None})
  text = encoded.getvalue().decode()
  return text[text.index('<svg'):].replace(_INK, 'currentColor').encode()
