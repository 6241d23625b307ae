"""The plots of --mode=analyze."""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from matplotlib import figure as figure_lib, ticker  # Without pyplot: files, never a window.
from matplotlib.backends import backend_agg
from PIL import Image, ImageDraw, ImageFont

from engine import files, images

OVERVIEW = 'analysis.png'
"""All plots in one file."""

_BLUE, _ORANGE, _GREEN, _PURPLE, _GRAY = '#2166ac', '#d6721e', '#2f8f5b', '#93478f', '#8a8a8a'
_LINES = 60  # Trajectories that one plot shows at most.
_DPI, _WIDTH, _HEIGHT, _TITLE = 120, 5.2, 4.0, 0.3  # Inches of a panel, and of the line above.
_COLUMNS, _SHRINK = 4, 0.65  # Of the overview.


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
  """What the plots show.

  Attributes:
    numbers: name -> numbers of all images, image first; see analyze_paths.reduce.
    points: noise levels of the trajectory, the last perhaps 0.
    steps: noise levels of the measured steps.
    solver: its name.
    title: what was looked at, in one line.
  """

  numbers: Mapping[str, np.ndarray]
  points: np.ndarray
  steps: np.ndarray
  solver: str
  title: str


def write(folder: pathlib.Path, look: Look) -> list[str]:
  """Writes a PNG file for each plot, and one with all of them; each whole or not at all.

  Args:
    folder: for the files.
    look: what they show.

  Returns:
    Names of the files.

  Raises:
    OSError: if one cannot be written.
  """
  shown = {name: parts for name, parts in PLOTS.items()
           if name != 'optimal' or 'optimal_on_x' in look.numbers}
  pictures = {name: _render(parts, look) for name, parts in shown.items()}
  for name, picture in pictures.items():
    images.write_png(folder / f'{name}.png', picture)
  overview = _arrange(list(pictures.values()), look.title)
  with files.replacing(folder / OVERVIEW) as file:
    overview.save(file, format='png', optimize=True)
  return [f'{name}.png' for name in shown] + [OVERVIEW]


def _render(parts, look):
  """Panels side by side under a line that says what they show, uint8 (height, width, 3)."""
  width = _WIDTH * len(parts)
  figure = figure_lib.Figure(figsize=(width, _HEIGHT), dpi=_DPI)
  canvas = backend_agg.FigureCanvasAgg(figure)
  # Margins in inches instead of a layout engine, which would draw everything twice.
  figure.subplots_adjust(left=0.85 / width, right=1 - 0.15 / width, bottom=0.55 / _HEIGHT,
                         top=1 - (_TITLE + 0.32) / _HEIGHT, wspace=1.0 / (_WIDTH - 1.0))
  for draw, axes in zip(parts, figure.subplots(1, len(parts), squeeze=False)[0], strict=True):
    draw(axes, look)
    axes.minorticks_off()
    axes.grid(alpha=0.25, linewidth=0.6)
  figure.suptitle(look.title, fontsize=9, y=1 - 0.08 / _HEIGHT)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())[..., :3]


def _arrange(pictures, title):
  """All plots, smaller, in rows under one title; nothing is drawn again."""
  cut = round(_TITLE * _DPI)
  small = [Image.fromarray(picture[cut:]).resize(
      (round(picture.shape[1] * _SHRINK), round((picture.shape[0] - cut) * _SHRINK)),
      Image.Resampling.LANCZOS) for picture in pictures]
  column, row, top = round(_WIDTH * _DPI * _SHRINK), small[0].height, 30
  places, used = [], 0
  for picture in small:
    places.append(divmod(used, _COLUMNS))
    used += round(picture.width / column)
  canvas = Image.new('RGB', (_COLUMNS * column, top + (places[-1][0] + 1) * row), 'white')
  for picture, (line, place) in zip(small, places, strict=True):
    canvas.paste(picture, (place * column, top + line * row))
  ImageDraw.Draw(canvas).text((canvas.width / 2, top / 2), title, fill='black', anchor='mm',
                              font=ImageFont.load_default(size=15))
  # A palette takes half the bytes; this method keeps thin lines in their colour.
  return canvas.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)


def _curve(axes, sigmas, values, label, color, **style):
  """The mean over the images, and from the tenth to the ninetieth percentile as a band."""
  above = sigmas > 0  # The axis has no place for 0.
  sigmas, values = sigmas[above], values[:, above]
  axes.plot(sigmas, np.nanmean(values, 0), label=label, color=color, **style)
  low, high = np.nanpercentile(values, (10, 90), axis=0)
  axes.fill_between(sigmas, low, high, color=color, alpha=0.18, linewidth=0)


def _over_levels(axes, title, ylabel, yscale='linear', legend=True):
  """Noise levels from the first to the last, left to right, as one samples."""
  axes.set(title=title, ylabel=ylabel, xlabel='noise level, as sampling goes', xscale='log',
           yscale=yscale)
  if not axes.xaxis_inverted():
    axes.invert_xaxis()
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
  if legend:
    axes.legend(fontsize=8)


def _magnitudes(axes, look):
  for name, label, color in (('x', 'state', _BLUE), ('denoised', 'denoised', _ORANGE),
                             ('eps', 'eps', _GREEN)):
    values = look.numbers[f'mag_{name}']
    _curve(axes, look.points[:values.shape[1]], values, label, color)
  _over_levels(axes, 'Magnitudes', 'norm', 'log')


def _deviation(axes, look):
  for name, label, color in (('x', 'states', _BLUE), ('denoised', 'denoised images', _ORANGE)):
    values = look.numbers[f'dev_{name}']
    _curve(axes, look.points[1:1 + values.shape[1]], values, label, color)
  _over_levels(axes, 'Deviation from the chord', 'distance to the chord')


def _distance(axes, look):
  for name, label, color in (('x', 'states', _BLUE), ('denoised', 'denoised images', _ORANGE)):
    values = look.numbers[f'dist_{name}'][:, :-1]  # The last one is 0 away from itself.
    _curve(axes, look.points[:values.shape[1]], values, label, color)
  _over_levels(axes, 'Distance to the end', 'distance', 'log')


def _cosine(axes, look):
  values = look.numbers['cos']
  _curve(axes, look.points[:values.shape[1]], values, 'eps', _GREEN)
  _over_levels(axes, 'Angle between eps and the way back', 'cosine', legend=False)


def _explained(axes, look):
  values = 100 * look.numbers['explained']
  count = np.arange(1, 1 + values.shape[1])
  low, high = np.percentile(values, (10, 90), axis=0)
  axes.errorbar(count, values.mean(0), [values.mean(0) - low, high - values.mean(0)], color=_BLUE,
                marker='o', markersize=4, capsize=3, linewidth=1.2)
  axes.set(title='Variance across the chord', xlabel='principal components',
           ylabel='explained together, %')
  axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))


def _plane(axes, look):
  """The first of the curves is the one that the others are aligned to."""
  aligned = look.numbers['aligned']
  for curve in aligned[_LINES:0:-1]:
    axes.plot(curve[:, 0], curve[:, 1], color=_BLUE, alpha=0.35, linewidth=0.8)
  axes.plot(*aligned[0].T, color=_ORANGE, linewidth=1.6, label='the others are aligned to')
  axes.plot(*aligned[0, 0], 'o', color='black', markersize=4, label='start and end')
  axes.plot(*aligned[0, -1], 'o', color='black', markersize=4)
  axes.set(title='Across the chord, aligned', xlabel='first principal axis',
           ylabel='second principal axis')
  axes.legend(fontsize=8)


def _side(axes, look):
  kept = look.numbers['kept'][:_LINES]
  for index in kept:
    along, across, _ = look.numbers['coordinates'][index].T
    axes.plot(-along, across, color=_BLUE, alpha=0.35, linewidth=0.8)
  axes.set(title='Along the chord', xlabel='distance to the end along the chord',
           ylabel='first principal axis')
  # The trajectory is long where nothing bends; both scales are linear about the end.
  axes.set_xscale('symlog', linthresh=1.0, linscale=0.5)
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
  axes.invert_xaxis()


def _bend(axes, look):
  _over_length(axes, look, 'curvature', 'Curvature', _BLUE)
  axes.set_yscale('log')


def _twist(axes, look):
  _over_length(axes, look, 'torsion', 'Torsion', _PURPLE)
  axes.set_yscale('symlog', linthresh=1e-3, linscale=0.5)


def _over_length(axes, look, name, title, color):
  """Against the arc length that is left: all that bends is near the end of a long way."""
  length, values = (look.numbers[part][look.numbers['kept']] for part in ('arc_length', name))
  left = (length[:, -1:] - length)[:, :-1]
  values = values[:, :-1]
  for some, value in zip(left[:_LINES], values, strict=False):
    axes.plot(some, value, color=color, alpha=0.25, linewidth=0.8)
  # Torsion is noise where the curvature is tiny: the mean would be that of a few outliers.
  axes.plot(np.median(left, 0), np.median(values, 0), color='black', linewidth=1.4, label='median')
  axes.set(title=title, xlabel='arc length to the end', ylabel=title.lower(), xscale='log')
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
  axes.invert_xaxis()
  axes.legend(fontsize=8)


def _steps(axes, look):
  sigmas = look.steps[1:]
  named = [('steps', look.solver, _BLUE)]
  if look.solver != 'euler':
    named.append(('steps_euler', 'euler', _ORANGE))
  for name, label, color in named:
    _curve(axes, sigmas, look.numbers[f'error_{name}_local'], f'{label}, one step', color,
           marker='o', markersize=4)
    axes.plot(sigmas, look.numbers[f'error_{name}'].mean(0), color=color, linestyle='--',
              linewidth=1, label=f'{label}, all steps so far')
  axes.plot(sigmas, look.numbers['error_half'].mean(0), color=_GRAY, linestyle=':',
            label='the reference itself')
  _over_levels(axes, 'Error of each step', 'RMS at the end of the step', 'log')


def _optimal_on_paths(axes, look):
  for name, label, color in (('optimal_on_x', "optimal, on the model's way", _BLUE),
                             ('optimal_on_x_opt', 'optimal, on its own way', _ORANGE),
                             ('gaussian_on_x', 'one Gaussian', _GREEN),
                             ('class_gaussians_on_x', 'a Gaussian per class', _PURPLE)):
    if name in look.numbers:
      values = look.numbers[name]
      _curve(axes, look.points[:values.shape[1]], values, label, color)
  _over_levels(axes, 'Model against denoisers of the data', 'distance of denoised images')


def _apart(axes, look):
  for name, label, color in (('optimal_sample', 'states', _BLUE),
                             ('optimal_denoised', 'denoised images', _ORANGE)):
    values = look.numbers[name]
    _curve(axes, look.points[:values.shape[1]], values, label, color)
  _over_levels(axes, 'Model and optimal, each on its way', 'distance')


PLOTS = MappingProxyType({
    'magnitudes': (_magnitudes,), 'deviation': (_deviation, _distance), 'cosine': (_cosine,),
    'explained': (_explained,), 'projection': (_plane, _side), 'truncation': (_steps,),
    'curvature': (_bend, _twist), 'optimal': (_optimal_on_paths, _apart)})
"""Functions that draw on axes, by file, so that they fill the rows of the overview."""
