"""Samplers: noise schedules, solvers as tables of coefficients, and the scan that runs them."""

from samplers import (  # noqa: F401 - the solvers among them register
  adams,
  adaptive,
  adasde,
  amed,
  ancestral,
  bound,
  chains,
  consistency,
  ddpm,
  dpmpp,
  epd,
  gits,
  guidance,
  imputation,
  learned,
  learned_grid,
  learned_table,
  moments,
  noise,
  runge_kutta,
  sde,
  seeds,
  singlestep,
  splitting,
  unipc,
)
from samplers.learned import DESIGNS
from samplers.registry import LOOPS, SOLVERS, build, make, option_types, options
from samplers.run import run
from samplers.schedules import SCHEDULES, schedule, schedule_option_types, schedule_options
from samplers.table import Table, pad

__all__ = ['DESIGNS', 'LOOPS', 'SCHEDULES', 'SOLVERS', 'Table', 'adaptive', 'amed', 'bound',
           'build', 'chains', 'ddpm', 'gits', 'guidance', 'imputation', 'learned', 'make',
           'moments', 'noise', 'option_types', 'options', 'pad', 'run', 'schedule',
           'schedule_option_types', 'schedule_options']
