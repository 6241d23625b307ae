"""The solver of a run: a table, or one of the loops that have to look at what the network says."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import models
import samplers
from engine import statistics_files
from samplers import checks, dpm_v3, noise, table as table_lib


class Solver(NamedTuple):
  """A solver with nothing left to decide.

  Attributes:
    identity: its name and options, defaults filled in.
    arrays: pytree of coefficients, an argument of the program.
    solve: solve(arrays, denoise, x, *, keys, guide, project) -> (samples, evaluations per image or
      None); equal settings give the same function.
    nfe: evaluations of the network per image; None: they depend on the image.
    splits: whether it takes the gradient's part of the guidance in rows of its own.
    asks: what denoise has to return beside D: 'variance' (D, v), 'features' (D, bottleneck), or
      None.
    projects: whether it can impute where its steps end.
    calls: evaluations per image where some run at once, which nfe counts as one; None: nfe.
  """

  identity: dict[str, Any]
  arrays: Any
  solve: Callable[..., Any]
  nfe: int | None
  splits: bool = False
  asks: str | None = None
  projects: bool = True
  calls: int | None = None


def plan(name: str, given: dict[str, Any], sigmas: np.ndarray, source: str,
         model: models.Model | None = None) -> Solver:
  """Resolves config.solver.

  Args:
    name: of the solver, a key of samplers.SOLVERS or samplers.LOOPS.
    given: its options that are not left to their defaults.
    sigmas: noise levels.
    source: of the noise, a key of samplers.noise.SOURCES.
    model: to be sampled from, whose statistics or discrete times a solver may need; None: not
      known.

  Returns:
    The Solver.

  Raises:
    ValueError: if a name is unknown, the solver cannot do what is asked, or it is given the
      statistics of another model.
  """
  known = samplers.options(name)
  own = model and model.config.get('preconditioning', {}).get('settings', {}).get('alphas_cumprod')
  if own and 'alphas_cumprod' in known and not {'alphas_cumprod', 'mid'} & set(given):
    given = {**given, 'alphas_cumprod': own}  # Half steps in the network's times.
  identity = {'name': name, **{option: _plain(value) for option, value in {
      **known, **given}.items()}}
  for option in given:
    if option not in known:
      raise ValueError(f'{name}: {checks.unknown("option", option, known)}')
  if name == 'dpm_adaptive':
    return _adaptive(identity, given, sigmas, source)
  if name == dpm_v3.NAME:
    return _with_statistics(identity, given, sigmas, model)
  if name == 'ddpm' and given.get('variance') == 'learned':
    return _learned(identity, given, sigmas, source)
  table = samplers.make(name, sigmas, **given)
  draws = bool(table.noise.any())
  if draws:
    identity['noise'] = source
  return Solver(identity, table, of_table(source if draws else None), table.nfe,
                splits=bool(np.isin(table.kind, table_lib.GUIDE).any()))


@functools.cache
def of_table(source: str | None) -> Callable[..., Any]:
  """Returns `solve` of tables, see Solver; equal sources give the same function.

  Args:
    source: of the noise, a key of samplers.noise.SOURCES; None: for tables that draw none.
  """
  def solve(table, denoise, x, *, keys, guide, project):
    if source is None:  # Nothing to compile for a table that draws nothing.
      draw = lambda row, x: jnp.zeros_like(x)  # noqa: E731
    else:
      draw = noise.SOURCES[source](keys, table)
    return samplers.run(table, denoise, x, key=keys, draw=draw, guide=guide, project=project), None
  return solve


def _adaptive(identity, given, sigmas, source):
  """DPM-Solver with adaptive steps, from the grid's first level to its last above 0."""
  ends = sigmas[0], sigmas[sigmas > 0][-1]
  samplers.adaptive.check(samplers.adaptive.Options(**given), *ends)
  if identity['eta'] > 0:
    identity = {**identity, 'noise': _along_path('dpm_adaptive', source)}
  return Solver(identity, np.float32(ends), _of_adaptive(tuple(sorted(given.items()))), None,
                projects=False)


@functools.cache
def _of_adaptive(given):
  def solve(ends, denoise, x, *, keys, guide, project):
    del guide, project
    samples, info = samplers.adaptive.sample(denoise, x, *ends, **dict(given), key=keys)
    # What did not arrive is no sample, and is reported as one that is not finite.
    arrived = info.finished.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(arrived, samples, jnp.nan), info.nfe
  return solve


def _with_statistics(identity, given, sigmas, model):
  """DPM-Solver-v3, whose coefficients are arguments, those of the statistics among them."""
  options = {option: value for option, value in given.items() if option != 'statistics'}
  statistics, sha256 = statistics_files.read(given.get('statistics'), model)
  coefficients = dpm_v3.coefficients(statistics, sigmas, **options)
  # Not where the file lies, but what is in it decides the samples.
  return Solver({**identity, 'statistics': sha256}, coefficients, _follow, coefficients.nfe,
                projects=False)


def _follow(coefficients, denoise, x, *, keys, guide, project):
  del keys, guide, project
  return dpm_v3.run(coefficients, denoise, x), None


def _learned(identity, given, sigmas, source):
  """The ancestral sampler of a network that tells its variance."""
  for option in ('afs', 'denoise_to_zero'):
    if given.get(option):
      raise ValueError(f'config.solver.{option}: must be left out with a learned variance; the '
                       'solver is no table')
  coefficients = samplers.ddpm.coefficients(sigmas, 'learned')
  identity = {**identity, 'noise': _along_path('ddpm with a learned variance', source)}
  return Solver(identity, coefficients, _ancestral, coefficients.nfe, splits=True,
                asks='variance')


def _ancestral(coefficients, denoise_variance, x, *, keys, guide, project):
  return samplers.ddpm.sample(coefficients, denoise_variance, x, key=keys, guide=guide,
                              project=project), None


def _along_path(who, source):
  """The source of noise of the loops, which know but one."""
  if source != 'brownian':
    raise ValueError(f"config.noise: must be 'brownian' for {who}, got {source!r}; it draws along "
                     'a path by itself')
  return source


def _plain(value):
  """A value as JSON knows it: it has no infinity."""
  return str(value) if isinstance(value, float) and not np.isfinite(value) else value
