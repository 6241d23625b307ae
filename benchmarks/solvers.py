"""Error of every solver against the number of evaluations, on a mixture known exactly.

  python -m benchmarks.solvers           prints the tables
  python -m benchmarks.solvers --write   also writes them and the plot into benchmarks/

The data are the mixture of Gaussians of the reference numbers (48 dimensions), whose denoiser is
exact. All solvers start from the same latents at sigma 80 and are compared at 0.002 with the end
point of the probability-flow ODE, found by a fine integration to 1e-10. One compiled program runs
all of them. About 10 seconds on 2 cores.
"""

import argparse
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from benchmarks.report import write_section
from models import mixture

HERE = pathlib.Path(__file__).parent
DATA = HERE.parent / 'tests' / 'golden' / 'ode' / 'mixture_small.npz'
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
SAMPLES = 64
BUDGETS = (3, 4, 5, 6, 8, 10, 12, 15, 20)
ROWS, SLOTS = 60, 5
SCHEDULES = {
    'polynomial, rho 7': ('polynomial', {}),
    'polynomial, rho 5': ('polynomial', {'rho': 5.0}),
    'logsnr': ('logsnr', {}),
    'time_uniform, rho 2': ('time_uniform', {'rho': 2.0}),
}
COMMON = 'polynomial, rho 7'
TITLE = 'Solvers: error against evaluations'


class Entry(NamedTuple):
  """A solver with the options that make it another one."""

  name: str
  options: dict

  def __str__(self):
    return ' '.join([self.name, *(f'{key}={value}' for key, value in self.options.items())])


# With their default options where nothing is said; every solver of the registry is here.
ENTRIES = [
    Entry('euler', {}), Entry('ddim', {}), Entry('heun', {}), Entry('edm', {}), Entry('dpm', {}),
    Entry('rk', {'c': 0.5}), Entry('rk', {'schedule': 'vp', 'scaling': 'vp'}),
    Entry('dpm_fast', {}), Entry('dpmpp_2m', {}), Entry('dpmpp', {'max_order': 2}),
    Entry('dpmpp', {'max_order': 3}), Entry('dpmpp', {'max_order': 3, 'third': 'exact'}),
    Entry('dpmpp', {'max_order': 3, 'predict_x0': False}), Entry('unipc', {'max_order': 2}),
    Entry('unipc', {'max_order': 3}), Entry('unipc', {'max_order': 3, 'variant': 'bh1'}),
    Entry('unipc', {'max_order': 3, 'predict_x0': False}), Entry('deis', {'max_order': 2}),
    Entry('deis', {'max_order': 3}), Entry('deis', {'max_order': 4}),
    Entry('ipndm', {'max_order': 2}), Entry('ipndm', {'max_order': 3}),
    Entry('ipndm', {'max_order': 4}), Entry('ipndm_v', {'max_order': 2}),
    Entry('ipndm_v', {'max_order': 4}), Entry('lms', {'order': 4}), Entry('plms', {'max_order': 4}),
    Entry('ltsp', {'order': 4}), Entry('stsp', {'order': 4}),
    *[Entry('etd', {'order': order}) for order in (1, 2, 3, 4)],
    Entry('exp_heun', {}), Entry('dpm_solver_singlestep', {}),
    Entry('dpm_solver_singlestep', {'order': 3}), Entry('res_multistep', {}),
    Entry('gradient_estimation', {}), Entry('gradient_estimation', {'gamma': 1.5}),
    Entry('pndm', {}), Entry('heunpp2', {}), Entry('flow_heun', {}),
]
_SHOWN = 3e-3, 4.0  # Errors in the plot: worse ones stand in the table alone.
PANELS = {
    'one-step': ('euler', 'ddim', 'heun', 'edm', 'dpm', 'rk', 'dpm_fast', 'dpm_solver_singlestep',
                 'heunpp2', 'flow_heun'),
    'DPM-Solver++': ('dpmpp', 'dpmpp_2m', 'res_multistep'),
    'UniPC and exponential Runge-Kutta': ('unipc', 'etd', 'exp_heun'),
    'Adams': ('deis', 'ipndm', 'ipndm_v', 'lms', 'plms', 'pndm', 'ltsp', 'stsp',
              'gradient_estimation'),
}


def main() -> None:
  """Measures, prints, and writes the report with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write README.md and the plot here')
  arguments = parser.parse_args()
  missing = deterministic() - {entry.name for entry in ENTRIES}
  if missing:
    raise SystemExit(f'solvers: the registry has {sorted(missing)}, which ENTRIES lacks; add them')
  with jax.enable_x64(True):
    errors, converged = measure()
  report = render(errors, converged)
  print(report)
  if arguments.write:
    plot(errors[COMMON], HERE / 'solvers.png')
    write_section(TITLE, report)


def deterministic() -> set[str]:
  """Returns the names of the solvers that draw no noise, unless they are asked to.

  Without those of CFG++: where nothing is guided they are the solvers that they are named after.
  """
  tables = {name: samplers.make(name, [3.0, 2.0, 1.0]) for name in samplers.SOLVERS}
  return {name for name, table in tables.items()
          if not table.noise.any() and table.answers == 1}


def measure() -> tuple[dict, float]:
  """Returns RMS errors[schedule][entry][budget], and how far the reference is converged."""
  data = np.load(DATA)
  params = mixture.mixture(data['mu'], data['s'], data['w'])
  sample = jax.jit(lambda table, x: samplers.run(
      table, lambda x, sigma: mixture.denoise(params, x, sigma), x))
  latents = np.random.default_rng(0).standard_normal((SAMPLES, *data['mu'].shape[1:]))
  x = jnp.asarray(latents * SIGMA_MAX)

  fine, finer = (sample(samplers.make('ipndm_v', samplers.schedule(
      'polynomial', n, SIGMA_MIN, SIGMA_MAX), max_order=4), x) for n in (8000, 16000))
  converged = float(jnp.abs(fine - finer).max())
  if converged > 1e-10:
    raise SystemExit(f'solvers: the reference must be converged to 1e-10, got {converged:.1e}')

  errors = {}
  for label, (name, options) in SCHEDULES.items():
    errors[label] = {}
    for entry in ENTRIES:
      row = errors[label][str(entry)] = {}
      for budget in BUDGETS:
        table = largest_table(entry, name, options, budget)
        if table is not None:
          end = sample(samplers.pad(table, ROWS, SLOTS), x)
          row[budget] = float(jnp.sqrt(jnp.mean((end - finer)**2)))
  return errors, converged


def largest_table(entry: Entry, name: str, options: dict, budget: int):
  """Returns the table with the most steps and exactly `budget` evaluations, None without one."""
  for num_steps in range(budget, 0, -1):
    sigmas = samplers.schedule(name, num_steps, SIGMA_MIN, SIGMA_MAX, **options)
    table = samplers.make(entry.name, sigmas, **entry.options)
    if table.nfe == budget:
      return table
  return None


def render(errors: dict, converged: float) -> str:
  """Returns the report as Markdown."""
  best = {entry: {budget: min(rows[entry][budget] for rows in errors.values())
                  for budget in row} for entry, row in errors[COMMON].items()}
  return f'''`python -m benchmarks.solvers --write` makes this section. Root-mean-square distance
per pixel to the exact end point of the probability-flow ODE at sigma {SIGMA_MIN}, from {SAMPLES}
latents at sigma {SIGMA_MAX:g}, on the mixture of Gaussians of
`tests/golden/ode/mixture_small.npz` with its exact denoiser, in 64 bit. The end point is the fine
integration of 16000 steps, within {converged:.0e} of the one of 8000. A blank: no such number of
evaluations. Bold: the lowest of the column. No afs, no denoise_to_zero.

The mixture is a smooth problem in 48 dimensions. It orders solvers by how well they integrate;
how good pictures of a network look is another question.

On one grid, {COMMON}:

{_markdown(errors[COMMON])}

![Error against evaluations](solvers.png)

Every solver on the best of {len(SCHEDULES)} grids for each budget ({'; '.join(SCHEDULES)}):

{_markdown(best)}

Equal rows are equal solvers: `ddim` without noise is `euler`, `edm` without churn is `heun`, `lms`
is `ipndm_v`, `ltsp` and `stsp` without guidance are `ipndm`. `dpm_fast` makes its own steps between
the ends of the grid.
'''


def _markdown(errors):
  lowest = {budget: min(row[budget] for row in errors.values() if budget in row)
            for budget in BUDGETS}

  def cell(row, budget):
    if budget not in row:
      return ''
    text = f'{row[budget]:#.2g}'
    return f'**{text}**' if row[budget] == lowest[budget] else text

  lines = ['| NFE | ' + ' | '.join(map(str, BUDGETS)) + ' |', '|---' * (len(BUDGETS) + 1) + '|']
  lines += [f'| {entry} | ' + ' | '.join(cell(row, budget) for budget in BUDGETS) + ' |'
            for entry, row in errors.items()]
  return '\n'.join(lines)


def plot(errors: dict, path: pathlib.Path) -> None:
  """Draws error against NFE on logarithmic axes, a panel per family; Euler is in all of them."""
  import matplotlib  # Only for this picture: the tables need no plotting library.
  matplotlib.use('Agg')
  from matplotlib import pyplot, ticker
  figure, panels = pyplot.subplots(2, 2, figsize=(12, 10), sharex=True, sharey=True,
                                   layout='constrained')
  for axes, (family, names) in zip(panels.flat, PANELS.items(), strict=True):
    axes.loglog(list(errors['euler']), list(errors['euler'].values()), color='0.8', lw=6)
    entries = [entry for entry in ENTRIES if entry.name in names]
    for i, entry in enumerate(entries):
      row = errors[str(entry)]
      axes.loglog(list(row), list(row.values()), marker='osD^v<>pP*Xh'[i % 12], label=str(entry),
                  ms=6, dashes=(4 + i, i))  # Equal solvers lie on one another: both show.
    axes.set(title=family, xticks=BUDGETS, ylim=_SHOWN)
    axes.xaxis.set_major_formatter(ticker.ScalarFormatter())
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(fontsize='small', loc='best')
  figure.supxlabel('network evaluations')
  figure.supylabel('RMS distance to the exact end point')
  figure.suptitle(f'Gaussian mixture, 48 dimensions, {COMMON}; wide gray line: euler')
  figure.savefig(path, dpi=90)
  pyplot.close(figure)


if __name__ == '__main__':
  main()
