"""Samplers: noise schedules, solvers as tables of coefficients, and the scan that runs them."""

from samplers import (  # noqa: F401 - the solvers among them register
  adams,
  adaptive,
  ancestral,
  bound,
  chains,
  consistency,
  ddpm,
  dpmpp,
  guidance,
  imputation,
  moments,
  noise,
  runge_kutta,
  sde,
  seeds,
  singlestep,
  splitting,
  unipc,
)
from samplers.registry import LOOPS, SOLVERS, build, make, option_types, options
from samplers.run import run
from samplers.schedules import SCHEDULES, schedule, schedule_option_types, schedule_options
from samplers.table import Table, pad

__all__ = ['LOOPS', 'SCHEDULES', 'SOLVERS', 'Table', 'adaptive', 'bound', 'build', 'chains', 'ddpm',
           'guidance', 'imputation', 'make', 'moments', 'noise', 'option_types', 'options', 'pad',
           'run', 'schedule', 'schedule_option_types', 'schedule_options']
