"""What the tasks with an image given in part share."""

import pathlib

import ml_collections

from configs import default

EXAMPLES = pathlib.Path(__file__).parent.parent / 'models/assets/examples'


def get_config(task: str) -> ml_collections.ConfigDict:
  """Returns the default with a task on the bundled example, a digit kept from training.

  Args:
    task: a value of config.condition.task.

  Returns:
    The config.
  """
  config = default.get_config()
  config.seeds = '0-7'
  config.labels = 'none'
  config.condition.task = task
  config.condition.image = str(EXAMPLES / 'three.png')
  # Replaced pixels and the others have to meet: noise at every step lets them.
  config.solver.name = 'ddpm'
  config.schedule.name = 'edm'  # It ends in 0, where what is known is exact.
  config.schedule.num_steps = 100
  config.output.grid.columns = 6
  return config
