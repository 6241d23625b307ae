"""Fields of config.guidance: what each method takes, checked one by one."""

from typing import Any

import ml_collections
import numpy as np

import samplers

EULER = 'euler', 'ddim'
"""Solvers of one answer that CFG++ is a scale for each level of."""

DEFAULTS = {'scale': 1.0, 'calls': 1}
"""Of the fields that are not None where they are not given."""


def options(config: ml_collections.ConfigDict, name: str,
            solver: dict[str, Any]) -> dict[str, Any]:
  """Returns the options of the method that were given; a momentum of 0 is left out.

  Args:
    config: the fields of config.guidance.
    name: of the method.
    solver: name and options of the solver.

  Raises:
    ValueError: if the method does not know one or it is out of range, or a momentum is given with a
      solver that hands no history on.
  """
  methods = samplers.guidance.METHODS
  every = {option for method in methods for option in samplers.guidance.options(method)}
  given = {option: config[option] for option in sorted(every) if config[option] is not None}
  known = samplers.guidance.options(name) if name in methods else {}
  for option, value in given.items():
    if option not in known:
      owners = [method for method in methods if option in samplers.guidance.options(method)]
      raise ValueError(f'config.guidance.{option}: must be left out with the method {name!r}, got '
                       f'{value!r}; it is of {" and ".join(owners)}')
  if given:
    methods[name](lambda x, sigma: None, None, 1.0, **given)  # Checks them.
  if not given.get('momentum'):
    return {option: value for option, value in given.items() if option != 'momentum'}
  if solver['name'] not in samplers.SOLVERS or solver.get('variance') == 'learned':
    raise ValueError('config.guidance.momentum: must be 0 with a solver that is no table, got '
                     f'{given["momentum"]:g} with {solver["name"]}, which hands no history on; '
                     'leave it out')
  return given


def interval(text: str | None, name: str) -> tuple[float, float] | None:
  """Returns the guided levels of a text, None for all; ValueError if they are none.

  Args:
    text: such as '0.3,5', the lower level first.
    name: of the method.
  """
  if text is None:
    return None
  _refuse_scaling('interval', text, name)
  try:
    low, high = (float(part) for part in text.split(','))
  except ValueError:
    low = high = float('nan')
  if not 0 <= low < high:
    raise ValueError('config.guidance.interval: must be two noise levels, the lower one first, got '
                     f"{text!r}; such as '0.3,5'")
  return low, high


def ramp(text: str | None, name: str) -> str | float | None:
  """Returns a shape of samplers.guidance.ramp, None without one; ValueError if it is none.

  Args:
    text: 'linear', 'cosine' or a power.
    name: of the method.
  """
  if text is None:
    return None
  _refuse_scaling('ramp', text, name)
  if text in ('linear', 'cosine'):
    return text
  try:
    power = float(text)
  except ValueError:
    power = float('nan')
  if not 0 < power < np.inf:
    raise ValueError("config.guidance.ramp: must be 'linear', 'cosine' or a power above 0, got "
                     f"{text!r}; such as '2'")
  return power


def negative(label: int | None, name: str, num_classes: int) -> int | None:
  """Returns the label to lead away from, None where it is none at all.

  Args:
    label: number of a class or prompt.
    name: of the method.
    num_classes: of the model.

  Raises:
    ValueError: if there is no such class, the method takes none, or needs one.
  """
  if label is None:
    if name == 'perp_neg':
      raise ValueError("config.guidance.negative: must be given with the method 'perp_neg', got "
                       'none; give the number of a class or prompt')
    return None
  if name in ('classifier', 'autoguidance'):
    raise ValueError(f'config.guidance.negative: must be left out with the method {name!r}, got '
                     f'{label}; the other methods have it')
  if not 0 <= label < num_classes:
    raise ValueError('config.guidance.negative: must be the number of a class or prompt, 0 to '
                     f'{num_classes - 1}, got {label}; count from 0')
  return label


def check_plus_plus(name: str, solver: dict[str, Any]) -> None:
  """Raises ValueError unless method and solver are both of CFG++, or neither is.

  Args:
    name: of the method.
    solver: name and options of the solver.
  """
  plus_plus = solver['name'] in samplers.cfg_plus_plus.SOLVERS
  if name != 'cfg_plus_plus' and plus_plus:
    raise ValueError("config.guidance.method: must be 'cfg_plus_plus' with the solver "
                     f'{solver["name"]}, got {name!r}; or take '
                     f'{solver["name"].removesuffix("_cfg_pp")}')
  if name == 'cfg_plus_plus' and not plus_plus and (
      solver['name'] not in EULER or solver.get('eta') or solver.get('S_churn')):
    raise ValueError("config.guidance.method: 'cfg_plus_plus' must go with the solver euler or "
                     f"ddim, without noise, got {solver['name']} with eta {solver.get('eta', 0)} "
                     f"and S_churn {solver.get('S_churn', 0)}; choose so, "
                     f"{', '.join(samplers.cfg_plus_plus.SOLVERS)}, or 'classifier_free'")


def refuse_leftovers(config: ml_collections.ConfigDict) -> None:
  """Raises ValueError for a field that is given where there is no guidance."""
  for field in config:
    if field not in ('method', 'classifier') and config[field] != DEFAULTS.get(field):
      if field == 'scale':
        raise ValueError(f'config.guidance.scale: must be 1 without a classifier, got '
                         f'{config.scale}; set config.guidance.classifier or .method')
      raise ValueError(f'config.guidance.{field}: must be left out without guidance, got '
                       f'{config[field]}; set config.guidance.method')


def _refuse_scaling(field, value, name):
  if name in ('classifier', 'cfg_plus_plus'):
    raise ValueError(f'config.guidance.{field}: must be left out with the method {name!r}, got '
                     f'{value!r}; the other methods have it')
