"""What the configs of published models share: files, variants, and a schedule for each solver."""

import ml_collections

from configs import default

SCHEDULES = {
    'ipndm': ('polynomial', {'rho': 7.0}),
    'dpmpp': ('logsnr', {}),
    'unipc': ('logsnr', {}),
    'deis': ('time_uniform', {'rho': 2.0}),
    'euler': ('polynomial', {'rho': 7.0}),
    'heun': ('polynomial', {'rho': 7.0}),
    'dpm': ('polynomial', {'rho': 7.0}),
    'ipndm_v': ('polynomial', {'rho': 7.0}),
}
"""Solver -> (schedule, its options) that it was published with on pixel models: diff-sampler's
recommendation, https://github.com/zju-pi/diff-sampler."""

EDM_URL = 'https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/'
ADM_URL = 'https://openaipublic.blob.core.windows.net/diffusion/jul-2021/'


def get_config(file: str, resolution: int, solver: str = 'ipndm') -> ml_collections.ConfigDict:
  """Returns the config of a published model: how it is converted and sampled.

  --mode=convert reads `file` from the folder where main.py runs; the model directory is expected in
  checkpoints/, under the name of the file without its ending.

  Args:
    file: name of the published file.
    resolution: side of its images in pixels.
    solver: a key of SCHEDULES.

  Returns:
    The config: 10 steps of the solver on the schedule that it was published with.

  Raises:
    ValueError: if the solver is none of them.
  """
  if solver not in SCHEDULES:
    raise ValueError(f'solver must be one of {", ".join(SCHEDULES)}, got {solver!r}; another is '
                     'chosen by --config.solver.name, with its --config.schedule')
  config = default.get_config()
  config.convert.source = file
  config.convert.resolution = resolution
  config.model.path = f'checkpoints/{file.rsplit(".", 1)[0]}'
  config.solver.name = solver
  config.schedule.name, options = SCHEDULES[solver]
  config.schedule.num_steps = 10
  config.schedule.update(options)
  return config


def guide(config: ml_collections.ConfigDict, file: str, scale: float) -> None:
  """Adds guidance by a published classifier, and guided-diffusion's limit on the denoised image.

  Args:
    config: what `get_config` returns.
    file: name of the published file of the classifier.
    scale: of the guidance.
  """
  config.guidance.classifier = f'checkpoints/{file.rsplit(".", 1)[0]}'
  config.guidance.scale = scale
  config.limit = 'clip'
  config.schedule.name = 'time_uniform'  # With rho 1, diff-sampler's choice under guidance.
  config.schedule.rho = 1.0


def in_latents(config: ml_collections.ConfigDict, max_order: int) -> ml_collections.ConfigDict:
  """Sets what DPM-Solver++ was published with on latents, and returns the config.

  Source: https://github.com/zju-pi/diff-sampler, its recommendation for latent diffusion.

  Args:
    config: what `get_config` returns.
    max_order: of the solver.
  """
  config.schedule.name, config.schedule.rho = 'discrete', 1.0
  config.solver.max_order, config.solver.predict_x0 = max_order, False
  config.solver.lower_order_final = True
  return config


def split(text: str, variants: tuple[str, ...]) -> tuple[str, str]:
  """Splits 'variant' or 'variant,solver', a config's own argument.

  Args:
    text: what follows the colon of --config=file.py:text.
    variants: those of the config.

  Returns:
    (variant, solver), the solver 'ipndm' where none is given.

  Raises:
    ValueError: if it names another variant.
  """
  variant, _, solver = text.partition(',')
  if variant not in variants:
    raise ValueError(f'variant must be one of {", ".join(variants)}, got {variant!r}; such as '
                     f'{variants[0]} or {variants[0]},dpmpp')
  return variant, solver or 'ipndm'
