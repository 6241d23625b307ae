"""Lists of settings in one line of text."""

import pytest

import samplers
from engine import settings
from engine.settings import Setting


def parse(text):
  return settings.parse('solvers', text, samplers.option_types)


def test_every_combination_of_values_is_a_setting():
  assert parse('euler; dpmpp(max_order=2|3, predict_x0=True|False);dpm( r = 1 )') == [
      Setting('euler', {}),
      *[Setting('dpmpp', {'max_order': order, 'predict_x0': x0})
        for order in (2, 3) for x0 in (True, False)],
      Setting('dpm', {'r': 1.0})]


def test_the_text_of_a_setting_reads_as_the_same_setting():
  for text in ('euler', 'dpm(r=0.25)', 'dpmpp(max_order=2, predict_x0=False)',
               'edm(S_churn=10, S_min=0.05)'):
    setting, = parse(text)
    assert setting.text == text and parse(setting.text) == [setting]


@pytest.mark.parametrize('text, message', [
    ('euler; ', "a setting must be a name, perhaps with options in brackets, got ''; such as"),
    ('dpmpp(max_order=2', "must be a name, .*, got 'dpmpp.max_order=2'"),
    ('eulr', "unknown solver 'eulr'; did you mean euler"),
    ('dpmpp(order=2)', "solvers: dpmpp: unknown option 'order'; did you mean max_order"),
    ('dpmpp(max_order)', "options of dpmpp must be written as option=value, got 'max_order'"),
    ('dpmpp(max_order=two)', "max_order of dpmpp must be of type int, got 'two'; see"),
    ('dpmpp(predict_x0=2)', "predict_x0 of dpmpp must be of type bool, got '2'"),
    ('euler; heun; euler', 'a setting must occur once, got euler twice; take one out'),
    ('dpm(r=1|1.0)', r'a setting must occur once, got dpm\(r=1\) twice')])
def test_what_is_no_list_of_settings_is_one_line(text, message):
  with pytest.raises(ValueError, match=message) as caught:
    parse(text)
  assert '\n' not in str(caught.value)
