"""The files of a comparison: what was measured, and the report made of it.

run.json says which comparison it is. search/ has a file per setting, cells/ a file and a strip of
images per cell, each whole or not there. From them the report is made anew by each run:
compare.json, compare.csv, error.png, distance.png and index.html.
"""

import csv
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from engine import cells as cells_lib, compare_plots, exact, files, identity, orders, page

CELLS, SEARCH, REFERENCE = 'cells', 'search', 'reference'
PAGE, JSON, CSV = 'index.html', 'compare.json', 'compare.csv'

_SIDE = 128  # Of shown images, at most.
FORMAT = 1
"""Version of compare.json and of the files behind it."""

COLUMNS = ('id', 'solver', 'options', 'schedule', 'num_steps', 'nfe', 'rms', 'rms_low', 'rms_high',
           'frechet', 'frechet_low', 'frechet_high', 'frechet_gap', 'frechet_gap_low',
           'frechet_gap_high', 'seconds', 'images_per_second',
           'network_seconds', 'common', 'best', 'note', 'command')
"""Of compare.csv."""


def begin(folder: pathlib.Path, now: dict[str, Any]) -> None:
  """Makes a checked folder ready, which may hold the same comparison in any state.

  Args:
    folder: the workdir.
    now: the identity of the comparison.

  Raises:
    OSError: if something cannot be written.
  """
  identity.claim(folder, now)  # Before anything that would be somebody's without.
  for part in (folder, folder / CELLS, folder / SEARCH):
    part.mkdir(exist_ok=True)
    files.remove_partial(part)


def write_search(folder: pathlib.Path, cell: cells_lib.Cell,
                 scores: dict[str, float | None]) -> None:
  """Writes what the search found of two settings: evaluations -> score, the lower the better.

  Earlier numbers of the same settings stay.
  """
  name = f'{cells_lib.file_name(cell.solver, cell.schedule)}.json'
  before = identity.read_result(folder / SEARCH / name, ['scores']) or {'scores': {}}
  identity.write_json(folder / SEARCH / name, {
      'name': cell.title, 'solver': cell.solver.text, 'schedule': cell.schedule.text,
      'by': 'frechet' if cell.noisy else 'rms', 'scores': {**before['scores'], **scores}})


def read_search(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns what `write_search` wrote, in the order of the files' names."""
  return [identity.read_result(path, ('name', 'solver', 'schedule', 'scores'))
          for path in sorted((folder / SEARCH).glob('*.json'))]


def read_solution(path: pathlib.Path) -> exact.Solution | None:
  """Returns the stored reference solution, None if there is none.

  Raises:
    OSError: if the file is damaged.
  """
  try:
    with open(path, 'rb') as file, np.load(file, allow_pickle=False) as stored:
      return exact.Solution(**{
          name: stored[name] if name in ('end', 'zero') else stored[name].item()
          for name in exact.Solution._fields})
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise OSError(f'compare: {path} must be a reference solution, got {type(error).__name__}; '
                  'delete it and start the same command again') from None


def best(search: Sequence[dict[str, Any]]) -> dict[tuple[str, int], tuple[str, str]]:
  """Returns (title, evaluations) -> texts of the two settings that came nearest.

  Args:
    search: as `read_search` returns it.
  """
  found = {}
  for row in search:
    for nfe, score in row['scores'].items():
      key = row['name'], int(nfe)
      if score is not None and (key not in found or score < found[key][0]):
        found[key] = score, (row['solver'], row['schedule'])
  return {key: settings for key, (_, settings) in found.items()}


def write_cell(folder: pathlib.Path, record: dict[str, Any], strip: bytes) -> None:
  """Writes what was measured of a cell, its images first: a record that is there has its strip."""
  with files.replacing(folder / CELLS / f'{record["id"]}.png') as file:
    file.write(strip)
  identity.write_json(folder / CELLS / f'{record["id"]}.json', record)


def read_cells(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the records of all cells, in the order of the files' names."""
  return [identity.read_result(path, ('id', 'setting', 'frechet_gap_interval', 'command'))
          for path in sorted((folder / CELLS).glob('*.json'))]


def strip(images: np.ndarray) -> bytes:
  """Returns images side by side as a PNG file, large ones made smaller.

  Args:
    images: uint8 (n, height, width, 1 or 3).
  """
  row = np.concatenate(list(images), axis=1)
  picture = Image.fromarray(row[..., 0] if row.shape[-1] == 1 else row)
  longest = max(images.shape[1:3])
  if longest > _SIDE:
    size = (round(picture.width * _SIDE / longest), round(picture.height * _SIDE / longest))
    picture = picture.resize(size, Image.Resampling.LANCZOS)
  encoded = io.BytesIO()
  picture.save(encoded, format='png')
  return encoded.getvalue()


def report(folder: pathlib.Path, firsts: dict[str, tuple[str, str]], *,
           reference: dict[str, Any], **about: Any) -> dict[str, Any]:
  """Returns all that is known of a comparison, those cells included that earlier runs measured.

  Args:
    folder: the workdir.
    firsts: common settings of the solvers that this run compares, as in cells.Cells.
    reference: of the reference solution, with its 'error'.
    **about: further fields.

  Returns:
    Plain values, the content of compare.json.
  """
  chosen = best(read_search(folder))
  cells = read_cells(folder)
  for cell in cells:
    name, setting = cell['solver'], cell['setting']
    texts = setting['solver'], setting['schedule']
    if name in firsts:  # Another setting may have been named first by an earlier run.
      cell['common'] = texts == firsts[name]
    cell['best'] = texts == chosen.get((name, cell['nfe']))
    cell['strip'] = cell['id']
  order = [*firsts, *sorted({cell['solver'] for cell in cells} - firsts.keys())]
  cells.sort(key=lambda cell: (order.index(cell['solver']), cell['nfe'], not cell['common'],
                               cell['id']))
  return {'format': FORMAT, **about, 'reference': reference, 'cells': cells,
          'orders': orders.of_cells(cells, reference['error']), 'search': read_search(folder)}


def write(folder: pathlib.Path, made: dict[str, Any], reference: bytes) -> None:
  """Writes a report as JSON, as a table, as plots and as a page.

  Args:
    folder: the workdir.
    made: what `report` returns.
    reference: strip of the reference solution.

  Raises:
    OSError: if a file cannot be written.
  """
  strips = {cell['id']: (folder / CELLS / f'{cell["id"]}.png').read_bytes()
            for cell in made['cells']}
  compare_plots.write(folder, made)
  page_text = page.render(made, {**strips, REFERENCE: reference}, compare_plots.panels(made))
  table = io.StringIO()
  writer = csv.DictWriter(table, COLUMNS, extrasaction='ignore')
  writer.writeheader()
  for cell in made['cells']:
    writer.writerow({**cell, 'schedule': cell['setting']['schedule'],
                     'options': orders.setting(cell['options']),
                     **{f'{name}_{end}': bound for name in ('rms', 'frechet', 'frechet_gap')
                        for end, bound in zip(('low', 'high'), cell[f'{name}_interval'] or ('', ''),
                                              strict=True)}})
  for name, text in ((CSV, table.getvalue()), (PAGE, page_text),
                     (JSON, json.dumps(made, indent=1) + '\n')):
    with files.replacing(folder / name) as file:
      file.write(text.encode())


def summary(folder: pathlib.Path, made: dict[str, Any], refused: Sequence[str]) -> str:
  """Returns the page's short answer and the cells nearest to the reference, for the terminal.

  Args:
    folder: the workdir.
    made: what `report` returns.
    refused: a line for each pair of settings that could not be put together.
  """
  reference, frechet = made['reference'], made['frechet']
  lines = [f'{len(made["cells"])} cells in {folder}, each on {made["count"]} seeds; reference: '
           f'{reference["description"]}, RMS error about {reference["error"]:.1e}'
           + ('' if reference['converged'] else ', ABOVE THE TOLERANCE')]
  chosen = page.recommended(made['cells'])
  if chosen:
    lines.append(f'  short answer: {chosen["setting"]["solver"]} on '
                 f'{chosen["setting"]["schedule"]} at NFE {chosen["nfe"]}')
  for nfe in sorted({cell['nfe'] for cell in made['cells']}):
    row = [cell for cell in made['cells'] if cell['nfe'] == nfe and cell['rms'] is not None]
    if row:
      first = min(row, key=lambda cell: cell['rms'])
      judged = f', {frechet["name"]} {first["frechet"]:.4g}' if first['frechet'] else ''
      lines.append(f'  NFE {nfe:3d}: {first["setting"]["solver"]} on '
                   f'{first["setting"]["schedule"]}, RMS {first["rms"]:.3g}{judged}')
  if refused:
    lines.append(f'  left out: {len(refused)} pairs of settings, such as {refused[0]}')
  return '\n'.join([*lines, f'  see {folder / PAGE}'])
