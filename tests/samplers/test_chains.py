"""Chains of discrete steps: which steps a respacing takes, and the schedule of their levels."""

import numpy as np
import pytest

import samplers
from samplers import chains, levels
from tests import reference

TABLES = reference.load('ddpm')[1]['tables']
TIMESTEPS = {key: value for key, value in TABLES.items() if key.startswith('timesteps.')}
CHAINS = {key.removesuffix('.timestep_map'): value for key, value in TABLES.items()
          if key.endswith('.timestep_map')}
BETAS = {key: value for key, value in TABLES.items() if key.startswith('betas.')}
RULES = {'linear': 'ddpm', 'cosine': 'cosine'}


def test_every_table_is_checked():
  assert (len(TIMESTEPS), len(CHAINS), len(BETAS)) == (21, 3, 4)
  assert len(TABLES) == 21 + 4 + 3 * 11


@pytest.mark.parametrize('name', TIMESTEPS)
def test_respacing(name):
  _, num, respacing = name.split('.')
  got = chains.respace(int(num), '' if respacing == 'none' else respacing)
  np.testing.assert_array_equal(got, TIMESTEPS[name])


@pytest.mark.parametrize('name', BETAS)
def test_tables_of_alpha_bar(name):
  _, rule, num = name.split('.')
  alpha_bar = levels.read_alphas_cumprod('test', f'{RULES[rule]}:{num}')
  # The last ones of the cosine rule are of order 1e-9 and carry the rounding of 1 - beta.
  np.testing.assert_allclose(alpha_bar, np.cumprod(1 - BETAS[name]),
                             rtol=1e-8 if rule == 'cosine' else 1e-12)


@pytest.mark.parametrize('name', CHAINS)
def test_levels_of_a_chain(name):
  _, rule, num, respacing = name.split('.')
  sigmas = samplers.schedule('respaced', alphas_cumprod=f'{RULES[rule]}:{num}',
                             respacing=respacing)
  np.testing.assert_array_equal(chains.respace(int(num), respacing), CHAINS[name])
  np.testing.assert_allclose(sigmas[-2::-1], TABLES[f'{name}.sqrt_recipm1_alphas_cumprod'],
                             rtol=1e-8 if rule == 'cosine' else 1e-11)
  assert sigmas[-1] == 0


def test_names_of_tables_are_for_1000_steps_unless_they_say_otherwise():
  for name in levels.ALPHAS_CUMPROD:
    table = levels.read_alphas_cumprod('test', name)
    np.testing.assert_array_equal(levels.read_alphas_cumprod('test', f'{name}:1000'), table)
    assert len(levels.read_alphas_cumprod('test', f'{name}:250')) == 250
  np.testing.assert_array_equal(levels.read_alphas_cumprod('test', 'ddpm'),
                                levels.linear_alphas_cumprod())


@pytest.mark.parametrize('num', [1, 2, 7, 50, 1000])
def test_a_stride_is_found_if_and_only_if_there_is_one(num):
  strided = {len(range(0, num, s)): np.arange(0, num, s) for s in range(num, 0, -1)}
  for count in range(1, num + 2):
    if count in strided:  # The least stride comes last above.
      np.testing.assert_array_equal(chains.respace(num, f'ddim{count}'), strided[count])
      continue
    with pytest.raises(ValueError, match=f'got .ddim{count}.; the nearest are ') as error:
      chains.respace(num, f'ddim{count}')
    near = str(error.value).split('nearest are ')[1].replace('ddim', '').split(' and ')
    below = max((c for c in strided if c < count), default=None)
    above = min((c for c in strided if c > count), default=None)
    assert {int(part) for part in near} == {below, above} - {None}


@pytest.mark.parametrize('respacing', ['1', '2', '17', '30', '8,5,3', '10,10,10', '0,4,0'])
def test_steps_lie_in_their_sections_and_are_distinct(respacing):
  num, counts = 31, [int(part) for part in respacing.split(',')]
  steps = chains.respace(num, respacing)
  sections = np.array_split(np.arange(num), len(counts))
  assert [np.isin(steps, section).sum() for section in sections] == counts
  assert np.all(np.diff(steps) > 0)
  for section, count in zip(sections, counts, strict=True):
    own = steps[np.isin(steps, section)]
    assert count == 0 or own[0] == section[0]
    assert count < 2 or own[-1] == section[-1]


def test_numbers_do_for_text():
  for text, number in (('250', 250), ('10,10,5', [10, 10, 5]), (' 10, 10 ,5', (10.0, 10.0, 5.0)),
                       ('', [])):
    np.testing.assert_array_equal(chains.respace(1000, number), chains.respace(1000, text))


def test_the_number_of_steps_is_a_respacing():
  np.testing.assert_array_equal(samplers.schedule('respaced', 20, 0.3, 5.0),
                                samplers.schedule('respaced', respacing='20'))
  table = levels.table_sigmas(levels.linear_alphas_cumprod())
  np.testing.assert_array_equal(samplers.schedule('respaced', 1), [table[-1], 0])
  # The published rule takes the least noisy step of a section where it takes one.
  np.testing.assert_array_equal(samplers.schedule('respaced', respacing='1'), [table[0], 0])
  np.testing.assert_array_equal(samplers.schedule('respaced', respacing=''), [*table[::-1], 0])


def test_an_inner_start_is_the_end_of_the_chain():
  whole = samplers.schedule('respaced', respacing='250')
  for count in (1, 25, 250):
    inner = samplers.schedule('respaced', respacing='250', reverse_steps=count)
    np.testing.assert_array_equal(inner, whole[-count - 1:])


@pytest.mark.parametrize('num, respacing, message', [
    (1000, 'ddim300', 'must be ddimN with N steps at a whole stride of the 1000, got .ddim300.; '
     'the nearest are ddim250 and ddim334$'),
    (1000, 'ddim501', 'must be ddimN .* nearest are ddim500 and ddim1000$'),
    (1000, 'ddim2000', 'must be ddimN .* nearest are ddim1000$'),
    (1000, 'ddim', "must be 'ddim' and a number of at least 1, got 'ddim'; "),
    (1000, 'ddim0', "must be 'ddim' and .* got 'ddim0'; "),
    (1000, 'ddim-5', "must be 'ddim' and .* got 'ddim-5'; "),
    (1000, '1001', 'must take at most the 1000 of 1000 steps that section 0 has, got 1001 in '),
    (10, '2,6', "must take at most the 5 of 10 steps that section 1 has, got 6 in '2,6'; "),
    (2, '1,1,1', 'must take at most the 0 of 2 steps that section 2 has, got 1'),
    (1000, '0', "must leave at least one step, got '0'; "),
    (1000, 'fast', "must be '', whole numbers separated by commas or 'ddimN', got 'fast'; "),
    (1000, '10,,5', "must be '', whole numbers .* got '10,,5'; "),
    (1000, '-5', "must be '', whole numbers .* got '-5'; "),
    (1000, [2.5], r"must be '', whole numbers .* got \[2.5\]; "),
    (1000, True, "must be '', whole numbers .* got True; "),
    (1000, None, "must be '', whole numbers .* got None; "),
])
def test_bad_respacing(num, respacing, message):
  with pytest.raises(ValueError, match=f'^respace: respacing {message}') as error:
    chains.respace(num, respacing)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('num', [0, 1.5, None])
def test_bad_number_of_training_steps(num):
  with pytest.raises(ValueError, match='^respace: num must be an integer of at least 1, got '):
    chains.respace(num)


@pytest.mark.parametrize('options, message', [
    ({'reverse_steps': 251}, 'reverse_steps must be an integer from 1 to the 250 steps of the '
     'chain, got 251; they are counted in the chain'),
    ({'reverse_steps': 0}, 'reverse_steps must be an integer from 1 to the 250 .* got 0; '),
    ({'reverse_steps': 2.5}, 'reverse_steps must be .* got 2.5; '),
    ({'alphas_cumprod': 'linear'}, "unknown alphas_cumprod 'linear'.* known: cosine, ddpm, "),
    ({'alphas_cumprod': 'ddpm:'}, 'alphas_cumprod must name 21 to 1000000 training steps, got '
     "'ddpm:'; "),
    ({'alphas_cumprod': 'cosine:many'}, "alphas_cumprod must name .* 'cosine:many'; 'cosine:1000'"),
    ({'alphas_cumprod': 'ddpm:20'}, "alphas_cumprod must name .* got 'ddpm:20'; "),
    ({'respacing': None}, 'num_steps must be given without a respacing, got None; '),
])
def test_bad_schedules(options, message):
  with pytest.raises(ValueError, match=f'^respaced: {message}'):
    samplers.schedule('respaced', **{'respacing': '250', **options})
