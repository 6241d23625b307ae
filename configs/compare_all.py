"""Every solver of the registry on the bundled model, with and without noise, on one page.

  python main.py --mode=search --config.search.method=dpm_v3 --workdir=out/statistics
  python main.py --mode=compare --config=configs/compare_all.py:out/statistics/statistics.npz \
    --workdir=out/compare_all

and the same under guidance, whose statistics are others:

  python main.py --mode=compare --config=configs/compare_all.py --workdir=out/compare_guided \
    --config.guidance.method=classifier_free --config.guidance.scale=2 --config.labels=balanced \
    --config.compare.seeds=0-255 --config.compare.search=128

A killed run goes on where it was. docs/choosing_a_solver.md tells what came out.
"""

import ml_collections

import samplers
from configs import default

SETTINGS = {
    'dpmpp': 'dpmpp(max_order=3|2); dpmpp(predict_x0=False)',
    'unipc': 'unipc(max_order=3|2); unipc(predict_x0=False)',
    'deis': 'deis(max_order=3|4)', 'ipndm': 'ipndm(max_order=4|3|2)',
    'ipndm_v': 'ipndm_v(max_order=4|3)', 'rk': 'rk(c=0.5)', 'etd': 'etd(order=2|3)',
    'dpm_solver_singlestep': 'dpm_solver_singlestep(order=2|3)',
    'gradient_estimation': 'gradient_estimation(gamma=2|1.5)',
    'er_sde': 'er_sde; er_sde(scale=ode)', 'seeds': 'seeds(order=1|2|3)',
    'res_multistep': 'res_multistep; res_multistep(eta=1)', 'edm': 'edm(S_churn=10|3)',
}
"""Solver -> its settings, where another than the default may be the better one."""

LEFT_OUT = {
    'ddim': 'euler', 'lms': 'ipndm_v', 'dpmpp_2m': 'dpmpp', 'ltsp': 'ipndm', 'stsp': 'ipndm',
}
"""Solver -> the one that it is in other words; so are those of CFG++ where nothing is guided."""


def get_config(statistics: str | None = None) -> ml_collections.ConfigDict:
  """Returns the config, see above.

  Args:
    statistics: file of the model's statistics, for dpm_solver_v3; None: without that solver.
  """
  config = default.get_config()
  solvers = [SETTINGS.get(name, name) for name in samplers.SOLVERS
             if name not in LEFT_OUT and not name.endswith('_cfg_pp')]
  if statistics:
    solvers.append(f'dpm_solver_v3(statistics={statistics}); '
                   f'dpm_solver_v3(statistics={statistics}, p_pseudo=True)')
  config.compare.solvers = '; '.join(solvers)
  config.compare.nfe = '3,5,6,8,10,15,20'
  # What draws noise is judged by its images: that takes more of them than a distance to a solution.
  config.compare.seeds, config.compare.search = '0-1023', 128
  return config
