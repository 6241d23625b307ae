"""Lists of settings as one line of text: 'euler; dpmpp(max_order=2|3, predict_x0=True|False)'."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from samplers import checks

_SETTING = re.compile(r'\s*(\w+)\s*(?:\(([^()]*)\))?\s*')
_SWITCHES = {'true': True, 'false': False}


class Setting(NamedTuple):
  """A name with the options that are not left to their defaults."""

  name: str
  options: dict[str, Any]

  @property
  def text(self) -> str:
    """As it is written: 'dpmpp(max_order=2)'."""
    inner = ', '.join(f'{option}={str(value).removesuffix(".0")}'
                      for option, value in self.options.items())
    return f'{self.name}({inner})' if inner else self.name


def parse(field: str, text: str,
          option_types: Callable[[str], Mapping[str, type]]) -> list[Setting]:
  """Reads a list of settings.

  Args:
    field: of the config, for errors.
    text: settings, separated by semicolons; options in brackets, separated by commas; values of an
      option, separated by bars.
    option_types: of a name, option -> type; ValueError if there is no such name.

  Returns:
    All combinations, in the order of the text, the last option changing fastest.

  Raises:
    ValueError: if the text is not of this form, a name or an option is unknown, a value is not of
      its option's type, or a setting occurs twice.
  """
  settings = []
  for part in text.split(';'):
    match = _SETTING.fullmatch(part)
    if not match:
      raise ValueError(f'{field}: a setting must be a name, perhaps with options in brackets, got '
                       f"{part.strip()!r}; such as 'euler; dpmpp(max_order=2|3)'")
    name, known = match[1], option_types(match[1])
    given = dict(_option(field, name, one, known)
                 for one in (match[2] or '').split(',') if one.strip())
    settings += [Setting(name, dict(zip(given, values, strict=True)))
                 for values in itertools.product(*given.values())]
  texts = [setting.text for setting in settings]
  for text in texts:
    if texts.count(text) > 1:
      raise ValueError(f'{field}: a setting must occur once, got {text} twice; take one out')
  return settings


def _option(field, name, text, known):
  """(option, its values)."""
  option, equals, values = (part.strip() for part in text.partition('='))
  if not equals or not values:
    raise ValueError(f"{field}: options of {name} must be written as option=value, got {text!r}; "
                     "such as max_order=2|3")
  if option not in known:
    raise ValueError(f'{field}: {name}: {checks.unknown("option", option, known)}')
  return option, [_value(field, name, option, one.strip(), known[option])
                  for one in values.split('|')]


def _value(field, name, option, text, kind):
  try:
    return _SWITCHES[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError):
    raise ValueError(f'{field}: {option} of {name} must be of type {kind.__name__}, got {text!r}; '
                     f'see configs/default.py') from None
