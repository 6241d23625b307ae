"""Consistency models and their EDM teachers: LSUN bedroom and cat, 256 x 256, and ImageNet 64.

File: VARIANT.pt
from https://openaipublic.blob.core.windows.net/consistency/
The paper's FID (arXiv:2303.01469), teachers with Heun at 79 evaluations, distilled ones with 1 and
with 2: bedroom256 3.57, 7.80 and 5.22; cat256 6.69, 11.0 and 8.84; imagenet64 2.44, 6.20 and 4.70.

  python main.py --mode=convert --config=configs/cm.py:edm_bedroom256_ema \
    --workdir=checkpoints/edm_bedroom256_ema
  python main.py --config=configs/cm.py:edm_bedroom256_ema --workdir=out/cm

After the colon stands the name of the file without its ending: edm_DATA_ema (a teacher), cd_DATA_l2
or cd_DATA_lpips (distilled), ct_DATA (trained alone). A teacher also takes a solver, as in
edm_cat256_ema,dpmpp. The others sample in two steps, at the levels that the paper's code visits;
--config.schedule.name=polynomial --config.schedule.num_steps=1 makes it one.
"""

import ml_collections

from configs import published

_SIDES = {'imagenet64': 64, 'bedroom256': 256, 'cat256': 256}
_VISITED = {'imagenet64': '0,22,39', 'bedroom256': '0,17,39', 'cat256': '0,17,39'}  # Of 40 levels.

VARIANTS = tuple(f'{start}_{data}{end}' for start, end in (
    ('edm', '_ema'), ('cd', '_l2'), ('cd', '_lpips'), ('ct', '')) for data in _SIDES)


def get_config(arg: str = 'edm_bedroom256_ema') -> ml_collections.ConfigDict:
  """Returns the config of a variant, see above."""
  variant, solver = published.split(arg, VARIANTS)
  data = variant.split('_')[1]
  config = published.get_config(f'{variant}.pt', _SIDES[data], solver)
  if variant.startswith('edm_'):
    return config
  if ',' in arg:
    raise ValueError(f'variant must be without a solver for a consistency model, got {arg!r}; '
                     f'write {variant}')
  config.solver.name = 'consistency'
  config.schedule.name, config.schedule.num_steps = 'subset', 39
  config.schedule.rho, config.schedule.ts = 7.0, _VISITED[data]
  return config
