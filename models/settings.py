"""Settings of a network as a config tells them: the attributes of its module, as plain values."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flax import linen as nn

from samplers import checks


def read(name: str, module: type[nn.Module], settings: Mapping[str, Any],
         check: Callable[[str, Any, Any], None]) -> dict[str, Any]:
  """Returns what a module is made with: the settings, lists as tuples.

  Args:
    name: of the network, for errors.
    module: the class.
    settings: attributes of the module.
    check: check(setting, value, type of the attribute) raises ValueError for a value out of range.

  Raises:
    ValueError: if a setting is unknown or missing, or as `check` does.
  """
  fields = {field.name: field for field in dataclasses.fields(module)
            if field.name not in ('parent', 'name')}
  for setting in settings:
    if setting not in fields:
      raise ValueError(f'{name}: {checks.unknown("setting", setting, fields)}')
  missing = [field.name for field in fields.values()
             if field.default is dataclasses.MISSING and field.name not in settings]
  if missing:
    raise ValueError(f'{name}: settings {", ".join(missing)} must be given, got none; add them')
  values = {setting: tuple(value) if isinstance(value, list) else value
            for setting, value in settings.items()}
  for setting, value in values.items():
    check(setting, value, fields[setting].type)
  return values
