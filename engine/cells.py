"""What --mode=compare compares: every solver on every schedule at every number of evaluations."""

import bisect
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

import models
import samplers
from engine import resolve, settings, solvers

_MOST = 1000  # Evaluations of a cell.
_FINE = np.geomspace(80, 0.002, 21)  # Levels on which a solver that draws noise does draw some.


class Cell(NamedTuple):
  """A setting of a solver on a setting of a schedule, at one number of evaluations.

  Attributes:
    solver: the setting.
    schedule: the setting.
    num_steps: intervals of the grid.
    sigmas: the grid, np.float64 (n + 1,).
    run: the solver on this grid.
    title: what the solver is called; settings with noise and without are two.
    noisy: whether the setting of the solver draws noise on any grid: it is judged by its images.
    common: whether both settings are the first ones of the title, those that all are compared at.
  """

  solver: settings.Setting
  schedule: settings.Setting
  num_steps: int
  sigmas: np.ndarray
  run: solvers.Solver
  title: str = ''
  noisy: bool = False
  common: bool = False

  @property
  def nfe(self) -> int:
    """Evaluations of the network."""
    return self.run.nfe

  @property
  def draws(self) -> bool:
    """Whether the solver draws noise: then there is no one solution that it should come to."""
    return self.is_table and bool(np.any(self.run.arrays.noise))

  @property
  def is_table(self) -> bool:
    """Whether the solver is a table, and not a loop with coefficients of its own."""
    return isinstance(self.run.arrays, samplers.Table)

  @property
  def last_level(self) -> float:
    """Noise level of the samples."""
    if not self.is_table:
      return self.sigmas[-1]
    levels = np.asarray(self.run.arrays.level)
    return levels[~np.isnan(levels)][-1]

  @property
  def id(self) -> str:
    """Names the cell; also a file's name."""
    return f'{file_name(self.solver, self.schedule)}-{self.nfe}'


def file_name(*parts: settings.Setting) -> str:
  """Returns settings as the name of a file: 'unipc_max_order=3-logsnr'."""
  return '-'.join(re.sub(r'[^\w.=-]+', '_', part.text).strip('_') for part in parts)


class Cells(NamedTuple):
  """What a config asks to compare.

  Attributes:
    cells: all of them.
    refused: a line for each pair of settings that cannot be put together.
    schedule: text of the common schedule.
    firsts: title of a solver -> texts of its common settings of solver and schedule.
  """

  cells: list[Cell]
  refused: list[str]
  schedule: str
  firsts: dict[str, tuple[str, str]]


def plan(config: ml_collections.ConfigDict, model: models.Model) -> Cells:
  """Resolves the lists of config.compare.

  Args:
    config: the fields of configs/default.py.
    model: to be sampled from.

  Returns:
    The Cells.

  Raises:
    ValueError: if a list is not as configs/comparing.py says, or a solver can do no cell.
  """
  own = config.compare
  solver_settings = settings.parse('config.compare.solvers', own.solvers,
                                   samplers.option_types)
  schedule_settings = settings.parse('config.compare.schedules', own.schedules,
                                     samplers.schedule_option_types)
  budgets = _budgets(own.nfe)
  if any(setting.name == 'dpm_adaptive' for setting in solver_settings):
    raise ValueError('config.compare.solvers: the evaluations of solvers must be known, got '
                     'dpm_adaptive, which chooses its steps as it goes; take it out')
  cells, refused, counts = [], [], {}
  for solver in solver_settings:
    for schedule in schedule_settings:
      try:
        cells += _row(config, model, solver, schedule, budgets, counts)
      except ValueError as error:
        refused.append(f'{solver.text} on {schedule.text}: {error}')
  for name in dict.fromkeys(solver.name for solver in solver_settings):
    if not any(cell.solver.name == name for cell in cells):
      reasons = [line for line in refused if line.startswith(name)]
      got = reasons[0] if reasons else f'{own.nfe} for {name}, which can do none of them'
      raise ValueError(f'config.compare.solvers: every solver must have a cell, got {got}; change '
                       'config.compare.nfe or take the solver out')
  schedule = schedule_settings[0].text
  firsts = {}
  drawing = {cell.solver.text for cell in cells if cell.draws}
  titles = {text: _title(name, text in drawing)
            for text, name in {cell.solver.text: cell.solver.name for cell in cells}.items()}
  for text, title in titles.items():
    firsts.setdefault(title, (text, schedule))
  cells = [cell._replace(
      title=titles[cell.solver.text], noisy=cell.solver.text in drawing,
      common=firsts[titles[cell.solver.text]] == (cell.solver.text, cell.schedule.text))
           for cell in cells]
  return Cells(cells, refused, schedule, firsts)


def _title(name, noisy):
  """What a setting is called: what judges it is not what judges the others of the same solver."""
  usual = name in samplers.SOLVERS and samplers.make(name, _FINE).noise.any()
  return name + ('' if noisy == usual else ', with noise' if noisy else ', no noise')


def _row(config, model, solver, schedule, budgets, counts):
  """The cells of two settings, at all numbers of evaluations that they can meet.

  Args:
    config: of the run.
    model: of the run.
    solver: a setting.
    schedule: a setting.
    budgets: numbers of evaluations.
    counts: evaluations that are known, by solver, end and steps; grows, and saves most of the work.
  """
  given = {name: config.schedule[name] for name in ('sigma_min', 'sigma_max')
           if config.schedule[name] is not None}

  def build(num_steps):
    arguments = {**given, **schedule.options, 'num_steps': num_steps}
    sigmas, _ = resolve.sigmas(schedule.name, arguments, model)
    return sigmas, solvers.plan(solver.name, solver.options, sigmas, config.noise, model)

  ends_in_zero = build(1)[0][-1] == 0

  def nfe(num_steps):
    key = solver.text, ends_in_zero, num_steps
    if key not in counts:
      run = build(num_steps)[1]
      if run.asks:
        raise ValueError(f'config.compare.solvers: must be solvers that ask for D alone, got a '
                         f'learned {run.asks}; take it out')
      counts[key] = run.nfe
    return counts[key]

  cells = []
  for budget in budgets:
    # Evaluations grow with the steps; the first one may be free, and the last one may be two.
    num_steps = bisect.bisect_right(range(1, budget + 2), budget, key=nfe)
    if num_steps and nfe(num_steps) == budget:
      sigmas, run = build(num_steps)
      if run.nfe == budget:  # Some schedules make fewer steps than they are asked for.
        cells.append(Cell(solver, schedule, num_steps, sigmas, run))
  return cells


def _budgets(text: str) -> Sequence[int]:
  parts = [part.strip() for part in str(text).split(',')]
  numbers = [int(part) for part in parts if re.fullmatch('[0-9]{1,6}', part)]
  if len(numbers) != len(parts) or len({*numbers}) != len(numbers) or not all(
      1 <= number <= _MOST for number in numbers):
    raise ValueError(f'config.compare.nfe: must be different integers from 1 to {_MOST}, separated '
                     f"by commas, got {text!r}; such as '3,5,8,10'")
  return sorted(numbers)


def record(cell: Cell, others: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a report says of a cell before anything is measured.

  Args:
    cell: what to tell of.
    others: fields of the config that all cells share, 'model.name' -> value.

  Returns:
    Plain values; 'config' has the fields that make its samples with --mode=generate, and 'command'
    is the line that gives them.
  """
  fields = dict(others)
  for group, setting in (('schedule', cell.schedule), ('solver', cell.solver)):
    fields[f'{group}.name'] = setting.name
    fields |= {f'{group}.{option}': value for option, value in setting.options.items()}
  fields['schedule.num_steps'] = cell.num_steps
  flags = [f'--config.{name}={value}' for name, value in sorted(fields.items())]
  command = ' '.join(['python main.py', *map(shlex.quote, [*flags, f'--workdir=out/{cell.id}'])])
  return {'id': cell.id, 'solver': cell.title, 'options': cell.solver.options,
          'schedule': {'name': cell.schedule.name, **cell.schedule.options},
          'setting': {'solver': cell.solver.text, 'schedule': cell.schedule.text},
          'num_steps': cell.num_steps, 'nfe': cell.nfe, 'draws': cell.draws,
          'common': cell.common,
          # The file of statistics may change; other solvers have none.
          **{name: value for name, value in cell.run.identity.items() if name == 'statistics'},
          'command': command, 'config': fields}
