"""Samplers: noise schedules, solvers as tables of coefficients, and the scan that runs them."""

from samplers import adams, dpmpp, guidance, runge_kutta, unipc  # noqa: F401 - their solvers register
from samplers.registry import SOLVERS, build, make, options
from samplers.run import run
from samplers.schedules import SCHEDULES, schedule, schedule_options
from samplers.table import Table, pad

__all__ = ['SCHEDULES', 'SOLVERS', 'Table', 'build', 'guidance', 'make', 'options', 'pad', 'run',
           'schedule', 'schedule_options']
