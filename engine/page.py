"""The page of a comparison: one HTML document that needs no other file and no network."""

import base64
import hashlib
import html
import json
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine import compare_plots, orders

_ASSETS = pathlib.Path(__file__).parent / 'assets'
_DASH = '\N{EN DASH}'  # Where there is no number.
_SIGNS = {'o': '●○', 's': '■□', '^': '▲△', 'D': '◆◇', 'v': '▼▽', 'P': '✚✛', 'X': '✖✕'}


class Winner(NamedTuple):
  """The best cells at one NFE.

  Attributes:
    nfe: evaluations of the network.
    closest: the cell with the lowest RMS distance to the reference solution, or None.
    lowest: the cell with the lowest Frechet distance, or None.
    ties: other solvers with a cell whose Frechet interval overlaps that of `lowest`.
  """

  nfe: int
  closest: Mapping[str, Any] | None
  lowest: Mapping[str, Any] | None
  ties: tuple[str, ...]


def winners(cells: Sequence[Mapping[str, Any]]) -> list[Winner]:
  """Returns the best cells at each NFE, lowest NFE first."""
  found = []
  for nfe in sorted({cell['nfe'] for cell in cells}):
    here = [cell for cell in cells if cell['nfe'] == nfe]
    lowest = _least(here, 'frechet')
    ties = dict.fromkeys(cell['solver'] for cell in here if lowest and _overlap(cell, lowest)
                         and cell['solver'] != lowest['solver'])
    found.append(Winner(nfe, _least(here, 'rms'), lowest, tuple(ties)))
  return found


def recommended(cells: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
  """Returns the cell that the page puts first.

  The fewest evaluations whose lowest Frechet distance cannot be told apart from the lowest of all
  cells: their intervals overlap. Without Frechet distances, the cell closest to the reference
  solution.
  """
  best = _least(cells, 'frechet')
  if best is None:
    return _least(cells, 'rms')
  return next(winner.lowest for winner in winners(cells)
              if winner.lowest and _overlap(winner.lowest, best))


def render(report: Mapping[str, Any], strips: Mapping[str, bytes],
           plots: Mapping[str, bytes]) -> str:
  """Returns the page.

  Args:
    report: of a comparison, plain values; a number that is not finite is shown as a dash.
    strips: PNG bytes by the names that cells and the reference solution have in 'strip', each the
      shown seeds side by side; a cell without its strip has no pictures.
    plots: SVG by METRIC-SETTING, as `compare_plots.panels` draws them, or PNG by any name.

  Returns:
    An HTML document. Its policy forbids the browser to load anything and to run any script but its
    own, so a text in the report stays a text.
  """
  report = _finite(report)
  used = {cell.get('strip') for cell in report['cells']} | {report['reference'].get('strip')}
  script = _asset('compare.js')
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  parts = {
      'title': html.escape(report['title']),
      'policy': "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
                f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'",
      'style': _asset('compare.css'),
      'facts': _facts(report),
      'answer': _answer(report),
      'legend': _legend(report),
      'plots': ''.join(_plot(name, content) for name, content in plots.items()),
      'plots_note': _plots_note(report),
      'recipe': _recipe(report),
      'report': _json(report),
      'strips': _json({name: _data_uri(content) for name, content in strips.items()
                       if name in used}),
      'script': script,
  }
  # In one pass, so that braces in a text of the report stay as they are.
  return re.sub(r'{{(\w+)}}', lambda match: parts[match[1]], _asset('compare.html'))


def number(value: float | None) -> str:
  """Returns three digits of a number, as the page shows them; a dash for None."""
  if value is None:
    return _DASH
  if abs(value) >= 100:
    return f'{value:,.0f}'
  if value and abs(value) < 1e-4:
    mantissa, exponent = f'{value:.1e}'.split('e')
    return f'{mantissa}e{int(exponent)}'
  return f'{value:.3g}'


def _least(cells, field):
  return min((cell for cell in cells if cell[field] is not None), key=lambda cell: cell[field],
             default=None)


def _overlap(cell, best):
  """Whether a cell's Frechet distance may be as low as that of the best cell.

  By the distances above that of the reference solution from the same seeds, where they are known:
  what the seeds do to all cells alike is not in their intervals.
  """
  if cell['frechet'] is None:
    return False
  field = 'frechet_gap' if None not in (
      cell.get('frechet_gap'), best.get('frechet_gap')) else 'frechet'
  lower = (cell.get(f'{field}_interval') or [cell[field]])[0]
  return lower <= (best.get(f'{field}_interval') or [best[field]])[-1]


def _finite(value):
  """The value without NaN and infinity, which JSON does not know."""
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  if isinstance(value, Mapping):
    return {key: _finite(one) for key, one in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(one) for one in value]
  return value


def _json(value):
  """JSON that cannot end the script element around it."""
  text = json.dumps(value, allow_nan=False, separators=(',', ':'))
  return text.replace('<', '\\u003c').replace('>', '\\u003e').replace('&', '\\u0026')


def _asset(name):
  return (_ASSETS / name).read_text(encoding='utf-8')


def _data_uri(png):
  return f'data:image/png;base64,{base64.b64encode(png).decode()}'


def _text(value):
  return html.escape(str(value))


def _interval(bounds):
  return f' <span class="interval">[{number(bounds[0])}, {number(bounds[1])}]</span>' if (
      bounds) else ''


def _where(cell):
  """Options and schedule of a cell, as HTML."""
  parts = orders.setting(cell['options']), orders.setting(cell['schedule'])
  return ' · '.join(_text(part) for part in parts if part)


def _facts(report):
  cells = report['cells']
  solvers = len({cell['solver'] for cell in cells})
  facts = [report['model']['name'], f'{report["count"]} seeds ({report["seeds"]})',
           f'{len(cells)} cells of {solvers} solvers', report['machine']['device']]
  return ''.join(f'<span>{_text(fact)}</span>' for fact in facts)


def _answer(report):
  cells, frechet = report['cells'], report.get('frechet')
  chosen = recommended(cells)
  if chosen is None:
    return '<p>No cell has a distance yet.</p>'
  stats = [(_text(frechet['name']), number(chosen['frechet'])
            + _interval(chosen.get('frechet_interval')))] if frechet else []
  stats += [('RMS to reference', number(chosen['rms']) + _interval(chosen.get('rms_interval'))),
            ('Images/s', number(chosen['images_per_second']))]
  listed = ''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in stats)
  command = _text(chosen['command'])
  return (
      f'<div data-nfe="{chosen["nfe"]}"><p class="kicker">The short answer</p>'
      f'<p class="pick">{_text(chosen["solver"])} <span>at</span> NFE&nbsp;{chosen["nfe"]}</p>'
      f'<p class="soft">{_where(chosen)}</p><dl class="stats">{listed}</dl>'
      f'<p class="soft">{_reason(report, chosen)}</p>'
      f'<div class="command"><pre>{command}</pre><button type="button" class="quiet copy" '
      f'data-text="{command}">Copy</button></div></div>'
      f'<div>{_winners_table(report, chosen)}</div>')


def _reason(report, chosen):
  cells, frechet = report['cells'], report.get('frechet')
  best = _least(cells, 'frechet')
  if best is None:
    return f'The closest of all {len(cells)} cells to the reference solution.'
  name = _text(frechet['name'])
  if chosen is best:
    return (f'The lowest {name} of all {len(cells)} cells; none with fewer evaluations has an '
            'interval that reaches it.')
  paired = best.get('frechet_gap') is not None
  field = 'frechet_gap' if paired else 'frechet'
  return (f'The fewest evaluations whose {name} cannot be told apart from the lowest of '
          f'all {len(cells)} cells: '
          + (f'it is {number(chosen[field])}{_interval(chosen[f"{field}_interval"])} above that of '
             'the reference solution from the same seeds, and this ' if paired else 'the ')
          + f'{_percent(frechet)} interval reaches that of {_text(best["solver"])} at NFE '
          f'{best["nfe"]}, {number(best[field])}{_interval(best.get(f"{field}_interval"))}.')


def _percent(frechet):
  return f'{100 * frechet["level"]:g}&nbsp;%'


def _winners_table(report, chosen):
  frechet = report.get('frechet')
  headings = ['NFE', 'Closest to the reference']
  if frechet:
    headings.append(f'Lowest {frechet["name"]}')
  rows = []
  for winner in winners(report['cells']):
    entries = [_winner(winner.closest, 'rms', headings[1], ())]
    if frechet:
      entries.append(_winner(winner.lowest, 'frechet', headings[2], winner.ties))
    mark = ' class="chosen"' if winner.nfe == chosen['nfe'] else ''
    rows.append(f'<tr{mark}><td>{winner.nfe}</td>{"".join(entries)}</tr>')
  top = ''.join(f'<th scope="col">{_text(heading)}</th>' for heading in headings)
  return (f'<table class="winners"><thead><tr>{top}</tr></thead>'
          f'<tbody>{"".join(rows)}</tbody></table>')


def _winner(cell, field, label, ties):
  if cell is None:
    return f'<td data-label="{_text(label)}">{_DASH}</td>'
  tied = f'<span class="where">or {_text(_some(ties))}: intervals overlap</span>' if ties else ''
  return (f'<td data-label="{_text(label)}"><b>{_text(cell["solver"])}</b> {number(cell[field])}'
          f'{_interval(cell.get(f"{field}_interval"))}'
          f'<span class="where">{_where(cell)}</span>{tied}</td>')


def _some(names, most=3):
  more = len(names) - most
  return ', '.join(names[:most]) + (f' and {more} more' if more > 0 else '')


def _legend(report):
  buttons = []
  for solver, style in compare_plots.styles(report).items():
    order = (report.get('orders') or {}).get(solver)
    sign = _SIGNS[style.marker][0 if style.filled else 1]
    note = (f' <span class="interval" title="measured with {_text(order["setting"])} at NFE '
            f'{_text(", ".join(map(str, order["nfe"])))}">order {order["order"]:.2f}</span>'
            if order else '')
    buttons.append(f'<button type="button" aria-pressed="false" data-solver="{_text(solver)}">'
                   f'<b style="color:{style.color}">{sign}</b>{_text(solver)}{note}</button>')
  return ''.join(buttons)


def _plot(name, content):
  if content.lstrip().startswith(b'<'):
    setting = name.rpartition('-')[2]
    which = f' data-setting="{setting}"' if setting in compare_plots.SETTINGS else ''
    return f'<figure{which}>{content.decode()}</figure>'
  return f'<figure><img src="{_data_uri(content)}" alt="{_text(name)}"></figure>'


def _plots_note(report):
  notes = ['Shaded, where the axis reaches it: the error of the reference solution itself, '
           f'{number(report["reference"]["error"])}. A measured order is the slope over the steps '
           'of the three finest common cells, where it shows.']
  frechet = report.get('frechet')
  if frechet:
    notes.append(f'Bars: {_percent(frechet)} intervals, set side by side.')
    if frechet.get('floor') is not None:
      notes.append(f'Dashed: {number(frechet["floor"])}, real images of the same number.')
  return ' '.join(notes)


def _recipe(report):
  model, machine, reference = report['model'], report['machine'], report['reference']
  shape = ' \N{MULTIPLICATION SIGN} '.join(map(str, model['image_shape']))
  parts = [
      _list('Model', {'name': model['name'], 'sha256': model['sha256'], 'images': shape}),
      _list('Seeds', {'all': report['seeds'], 'count': report['count'],
                      'shown': ', '.join(map(str, report['shown_seeds']))}),
      _list('Reference solution', {'what': reference['description'], 'NFE': reference['nfe'],
                                   'error': f'{number(reference["error"])}, RMS per pixel, '
                                            'estimated'},
            'RMS distances are per pixel and channel, of images from -1 to 1, between the samples '
            'of the same seeds. A solver that draws noise has no single solution to be compared '
            'with.'),
  ]
  frechet = report.get('frechet')
  if frechet:
    floor = frechet.get('floor')
    parts.append(_list(frechet['name'], {
        'what': frechet['description'], **frechet['pipeline'],
        'real images': 'not measured' if floor is None else f'{number(floor)} at the same count',
        'reference solution': number(frechet.get('solution')),
        'intervals': f'{100 * frechet["level"]:g} %, bootstrap over seeds, '
                     f'{frechet["resamples"]} resamples'},
        'The smaller the number of images, the higher the distance: compare at one count alone.'))
  if report.get('settings'):
    parts.append(_list('Settings', report['settings']))
  parts.append(_list('Machine', {'device': machine['device'], **machine['versions']}))
  parts.append('<div><h3>Settings of solvers</h3><p><b>Common</b>: one schedule for all solvers, '
               'each with its usual options. <b>Best</b>: the setting of this solver that came '
               'nearest to the reference solution in the search at this NFE, or has the lowest '
               'Fréchet distance where it draws noise; every solver had the same search.</p></div>')
  return f'<div class="recipe">{"".join(parts)}</div>'


def _list(title, entries, note=''):
  lines = ''.join(f'<dt>{_text(name)}</dt><dd>{_text(_value(value))}</dd>'
                  for name, value in entries.items())
  return (f'<div><h3>{_text(title)}</h3><dl>{lines}</dl>'
          f'{f"<p class=soft>{_text(note)}</p>" if note else ""}</div>')


def _value(value):
  if value is None:
    return _DASH
  if isinstance(value, Mapping):
    return ', '.join(f'{name}: {_value(one)}' for name, one in value.items())
  return orders.plain(value)
