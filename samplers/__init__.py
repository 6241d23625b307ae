"""Samplers: noise schedules, solvers as tables of coefficients, and the scan that runs them."""

from samplers import (  # noqa: F401 - the solvers among them register
  adams,
  adaptive,
  ancestral,
  consistency,
  ddpm,
  dpmpp,
  guidance,
  imputation,
  noise,
  runge_kutta,
  seeds,
  singlestep,
  splitting,
  unipc,
)
from samplers.registry import SOLVERS, build, make, options
from samplers.run import run
from samplers.schedules import SCHEDULES, schedule, schedule_options
from samplers.table import Table, pad

__all__ = ['SCHEDULES', 'SOLVERS', 'Table', 'adaptive', 'build', 'consistency', 'ddpm', 'guidance',
           'imputation', 'make', 'noise', 'options', 'pad', 'run', 'schedule', 'schedule_options']
