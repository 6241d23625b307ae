"""Schedules and what they need to be called, shared by the tests of all of them."""

from samplers import levels, schedules

SD = levels.ALPHAS_CUMPROD['stable_diffusion']()
RANGE = levels.table_range(SD)
TABLE = {'alphas_cumprod': SD}

OPTIONS = {
    'normal': TABLE, 'sgm_uniform': TABLE, 'simple': TABLE, 'ddim_uniform': TABLE,
    'respaced': TABLE, 'timestep_spacing': TABLE, 'pndm': TABLE,
    'ays': {'model': 'SD1'}, 'gits': {'model': 'cifar10'}, 'optimal_steps': {'model': 'FLUX'},
    'explicit': {'sigmas': [3.0, 2.0, 0.0]},
}
"""Options that have to be given; {} for all others."""

FREE = sorted(set(schedules.SCHEDULES) - {'explicit', 'gits', 'sd_turbo'})
"""Schedules of any number of steps."""

FLOW = sorted(name for name in schedules.SCHEDULES if name.startswith('flow_'))
"""Schedules of a flow's times alone."""


def grid(name, steps, low=RANGE[0], high=RANGE[1]):
  """A grid with default options; of a flow, from pure noise on."""
  high = None if name in FLOW else high
  return schedules.schedule(name, steps, low, high, **OPTIONS.get(name, {}))
