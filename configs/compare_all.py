"""Every solver of the registry on the bundled model, with and without noise, on one page.

  python main.py --mode=compare --config=configs/compare_all.py --workdir=out/compare_all

and the same under guidance:

  python main.py --mode=compare --config=configs/compare_all.py --workdir=out/compare_guided \
    --config.guidance.method=classifier_free --config.guidance.scale=2 --config.labels=balanced

A killed run goes on where it was. docs/choosing_a_solver.md tells what came out.
"""

import ml_collections

import samplers
from configs import default

SETTINGS = {
    'dpmpp': 'dpmpp(max_order=3|2)', 'unipc': 'unipc(max_order=3|2)', 'deis': 'deis(max_order=3|4)',
    'ipndm': 'ipndm(max_order=4|3)', 'ipndm_v': 'ipndm_v(max_order=4|3)',
    'er_sde': 'er_sde; er_sde(scale=ode)', 'seeds': 'seeds(order=1|2)',
    'gradient_estimation': 'gradient_estimation(gamma=2|1.5)',
}
"""Solver -> its settings, where another than the default may be the better one."""

LEFT_OUT = {
    'ddim': 'euler', 'edm': 'heun', 'lms': 'ipndm_v', 'dpmpp_2m': 'dpmpp', 'ltsp': 'ipndm',
    'stsp': 'ipndm',
}
"""Solver -> the one that it is in other words; so are those of CFG++ where nothing is guided."""


def get_config() -> ml_collections.ConfigDict:
  """Returns the config, see above."""
  config = default.get_config()
  config.compare.solvers = '; '.join(
      SETTINGS.get(name, name) for name in samplers.SOLVERS
      if name not in LEFT_OUT and not name.endswith('_cfg_pp'))
  config.compare.schedules = 'polynomial(rho=7); logsnr; time_uniform'
  config.compare.nfe = '3,5,6,8,10,15,20'
  return config
