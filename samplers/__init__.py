"""Samplers: noise schedules, solvers as tables of coefficients, and the scan that runs them."""

from samplers import (  # noqa: F401 - the solvers among them register
  adams,
  adaptive,
  adasde,
  amed,
  ancestral,
  bound,
  cfg_plus_plus,
  chains,
  consistency,
  ddpm,
  dpm_v3,
  dpmpp,
  epd,
  er_sde,
  few_step,
  flow,
  gits,
  gradient_estimation,
  guidance,
  heunpp,
  imputation,
  inversion,
  learned,
  learned_grid,
  learned_table,
  likelihood,
  likelihood_adaptive,
  moments,
  noise,
  pndm,
  res,
  runge_kutta,
  sa_solver,
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
           'build', 'chains', 'ddpm', 'dpm_v3', 'gits', 'guidance', 'imputation', 'inversion',
           'learned', 'likelihood', 'make', 'moments', 'noise', 'option_types', 'options', 'pad',
           'run', 'schedule', 'schedule_option_types', 'schedule_options']
