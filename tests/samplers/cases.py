"""One row per solver and option that changes it: a new solver adds rows and is under all laws."""

from typing import Any, NamedTuple


class Case(NamedTuple):
  """A solver with options, its orders, and where it can go.

  Attributes:
    name: registry name.
    options: options of `samplers.make`.
    order: order of convergence of the formula, given exact starting values. (As run, a first step
      of order 1 limits multistep solvers to 2, or 3 with a corrector.)
    to_zero: whether a grid may end in 0.
    nfe: evaluations of n steps that end above 0.
  """

  name: str
  options: dict[str, Any]
  order: int
  to_zero: bool = True
  nfe: Any = staticmethod(lambda n: n)

  def __str__(self):
    return '-'.join([self.name, *(f'{key}={value}' for key, value in self.options.items())])


def _twice(n):
  return 2 * n


CASES = [
    Case('euler', {}, 1),
    Case('ddim', {}, 1),
    Case('heun', {}, 2, nfe=_twice),
    Case('edm', {}, 2, nfe=_twice),
    Case('dpm', {}, 2, nfe=_twice),
    Case('dpm', {'r': 0.7}, 2, nfe=_twice),
    Case('dpm', {'rho': 3.0}, 2, nfe=_twice),
    Case('rk', {'order': 1}, 1),
    # c = 1/2 is of order 3 on Gaussian data by accident of that problem.
    Case('rk', {'c': 0.6}, 2, nfe=_twice),
    Case('rk', {'c': 2 / 3, 'schedule': 've'}, 2, nfe=_twice),
    Case('rk', {'schedule': 'vp', 'scaling': 'vp'}, 2, nfe=_twice),
    Case('dpm_fast', {}, 2, to_zero=False),
    *[Case('ipndm_v', {'max_order': p}, p) for p in (1, 2, 3, 4)],
    Case('lms', {'order': 4}, 4),  # The weights of ipndm_v, as those of the next one.
    Case('deis', {'max_order': 3, 'mode': 'rhoab'}, 3),
    *[Case('deis', {'max_order': p, 'quadrature': 'exact', 'constants': constants}, p,
           to_zero=False) for p in (2, 3, 4) for constants in ('published', 'grid')],
    *[Case('dpmpp', {'max_order': p, 'predict_x0': data, 'third': 'exact'}, p)
      for p in (1, 2, 3) for data in (True, False)],
    Case('dpmpp_2m', {}, 2),
    *[Case('unipc', {'max_order': p, 'variant': variant, 'predict_x0': data}, p + 1)
      for p in (1, 2, 3) for variant, data in (('bh1', True), ('bh2', False))],
    Case('unipc', {}, 4),
    *[Case('unipc', {'max_order': p, 'corrector': False}, p) for p in (1, 2, 3)],
    Case('euler_ancestral', {'eta': 0.0}, 1),
    *[Case(name, {'eta': 0.0}, 2, nfe=_twice)
      for name in ('dpm_2_ancestral', 'dpmpp_2s_ancestral', 'dpmpp_sde')],
    Case('dpmpp_sde', {'eta': 0.0, 'r': 0.3}, 2, nfe=_twice),
    *[Case('dpmpp_2m_sde', {'eta': 0.0, 'solver_type': kind}, 2) for kind in ('midpoint', 'heun')],
    *[Case('etd', {'order': 1, 'prediction': given}, 1) for given in ('data', 'noise', 'F')],
    Case('etd', {}, 2, nfe=_twice), Case('etd', {'c2': 1.0}, 2, nfe=_twice),
    Case('etd', {'prediction': 'noise', 'butcher': 'b', 'c2': 0.7}, 2, nfe=_twice),
    Case('etd', {'prediction': 'F'}, 2, nfe=_twice),
    Case('dpmpp', {'solver_type': 'heun'}, 2), Case('res_multistep', {}, 2),
    Case('gradient_estimation', {}, 1), Case('gradient_estimation', {'gamma': 1.5}, 2),
    Case('exp_heun', {}, 2, nfe=_twice), Case('seeds', {'eta': 0.0}, 2, nfe=_twice),
    # Without guidance both answers are one, and these the solvers that they are named after.
    Case('euler_cfg_pp', {}, 1), Case('euler_ancestral_cfg_pp', {'eta': 0.0}, 1),
    Case('dpmpp_2m_cfg_pp', {}, 2),
    Case('dpmpp_2s_ancestral_cfg_pp', {'eta': 0.0}, 2, nfe=_twice),
    Case('gradient_estimation_cfg_pp', {}, 1),
    Case('gradient_estimation_cfg_pp', {'gamma': 1.5}, 2),
    Case('heunpp2', {}, 1, nfe=lambda n: 3 * n - 3),
    Case('pndm', {}, 2, nfe=lambda n: n + min(9, 3 * n)),
    Case('flow_heun', {}, 2, nfe=_twice), Case('euler_ancestral_rf', {'eta': 0.0}, 1),
    Case('tcd', {'gamma': 0.0}, 1), Case('dpm_solver_singlestep', {'order': 1}, 1),
    *[Case('dpm_solver_singlestep', {'prediction': given, 'solver': solver}, 2)
      for given in ('data', 'noise') for solver in ('dpmsolver', 'taylor')],
    # The last steps, of orders 2 and 1 where 3 divides n, leave order 2.
    *[Case('dpm_solver_singlestep', {'order': 3, **more}, 2)
      for more in ({}, {'prediction': 'noise', 'spacing': 'logsnr'}, {'solver': 'taylor'})],
    *[Case('er_sde', {'order': p, 'scale': 'ode'}, p) for p in (1, 2)],
    *[Case('sa_solver', {'tau': 0.0, 'predictor_order': p, 'corrector_order': q, 'rescale': False},
           max(p, q)) for p, q in ((1, 0), (2, 0), (3, 0), (1, 2), (2, 3), (3, 4))],
    Case('sa_solver', {'tau': 0.0, 'predictor_order': 2, 'corrector_order': 2}, 2),
    Case('sa_solver', {'tau': 0.0, 'prediction': 'noise'}, 4),
    Case('sa_solver', {'tau': 0.0, 'mode': 'PECE'}, 4, nfe=lambda n: 2 * n - 1),
]

# Weights for equal steps: order 1 and 2 hold on any smooth grid, since the step ratio is
# 1 + O(1/n); from order 3 on the same error of the weights leaves second order.
EQUAL_STEPS = [Case(name, {'max_order': p}, p, nfe=nfe) for p in (1, 2, 3, 4)
               for name, nfe in (('ipndm', lambda n: n), ('plms', lambda n: n + 1))]
EQUAL_STEPS += [Case(name, {'order': p}, p) for p in (1, 2, 3, 4) for name in ('ltsp', 'stsp')]
# The published sum counts both ends of every step whole, which adds an error of second order.
PUBLISHED_SUM = [Case('deis', {'max_order': p}, p, to_zero=False) for p in (2, 3, 4)]
# D2 is half of the second derivative.
PUBLISHED_THIRD = [*[Case('dpmpp', {'max_order': 3, 'predict_x0': data}, 2)
                     for data in (True, False)], Case('dpmpp_3m_sde', {'eta': 0.0}, 2),
                   Case('er_sde', {'scale': 'ode'}, 2)]  # Its first derivative is of first order.

# Too many rows for that law, on the number of steps that it takes: `test_seeds` has their order.
THREE_STAGES = [Case('etd', {'order': 3, 'prediction': given, 'butcher': letter}, 3,
                     nfe=lambda n: 3 * n)
                for given, letter in (('data', 'a'), ('noise', 'b'), ('F', 'a'))]

# Its error on that law's problem crosses 0 among its steps: `test_er_sde` has the order.
CORRECTED = [Case('er_sde', {'scale': 'ode', 'corrected': True}, 3)]

ALL = CASES + EQUAL_STEPS + PUBLISHED_SUM + PUBLISHED_THIRD + THREE_STAGES + CORRECTED


def with_full_order(case):
  """Options of the case without the low-order end that some solvers have by default."""
  lowered = case.name in ('unipc', 'dpmpp', 'sa_solver')
  return {**case.options, 'lower_order_final': False} if lowered else case.options


# Every solver that draws, with its noise turned on.
STOCHASTIC = [
    Case('ddim', {'eta': 1.0}, 1),
    Case('euler_ancestral', {}, 1), Case('euler_ancestral', {'eta': 0.5, 's_noise': 1.1}, 1),
    *[Case(name, {}, 2, nfe=_twice)
      for name in ('dpm_2_ancestral', 'dpmpp_2s_ancestral', 'dpmpp_sde')],
    *[Case('dpmpp_2m_sde', {'solver_type': kind}, 2) for kind in ('midpoint', 'heun')],
    Case('dpmpp_3m_sde', {}, 2), Case('dpm_fast', {'eta': 1.0}, 2, to_zero=False),
    *[Case(name, {'S_churn': 1.0}, 2, nfe=_twice) for name in ('heun', 'edm', 'dpm', 'rk')],
    Case('euler', {'S_churn': 1.0}, 1), Case('consistency', {}, 1),
    *[Case('ddpm', {'variance': variance}, 1) for variance in ('fixed_small', 'fixed_large')],
    *[Case('seeds', {'order': p, 'prediction': given}, min(p, 2)) for p in (1, 2, 3)
      for given in ('data', 'noise', 'F')],
    Case('seeds', {'c2': 1.0}, 2),
    Case('seeds', {'order': 3, 'butcher': 'b'}, 2),
    Case('dpmpp', {'eta': 0.5, 'max_order': 3}, 2),
    Case('dpmpp', {'eta': 1.0, 'predict_x0': False}, 2),
    Case('res_multistep', {'eta': 1.0}, 2), Case('exp_heun', {'eta': 0.5}, 2),
    Case('seeds', {'eta': 0.5}, 2),
    Case('seeds', {'eta': 0.5, 'order': 3, 'prediction': 'noise', 'c2': 0.25, 'c3': 0.7}, 2),
    Case('lcm', {}, 1), Case('tcd', {}, 1), Case('euler_ancestral_rf', {}, 1),
    Case('euler_ancestral_cfg_pp', {}, 1), Case('dpmpp_2s_ancestral_cfg_pp', {}, 2, nfe=_twice),
    Case('er_sde', {}, 2), Case('er_sde', {'order': 1, 'scale': 'sde'}, 1),
    Case('sa_solver', {'tau': 1.0}, 2),
    Case('sa_solver', {'predictor_order': 2, 'corrector_order': 2, 'tau': 0.7, 'mode': 'PECE'}, 2),
]

# Of those, the ones whose draws lie on one Brownian path: neither noise that raises the level nor
# noise that is new as a whole does. (dpm_fast's do, but it has 7 and 14 steps for 20 and 40 NFE.)
REFINES = [case for case in STOCHASTIC
           if 'S_churn' not in case.options and case.name not in (
               'consistency', 'lcm', 'tcd', 'dpm_fast')]
