"""Names, options and grids: what `make` and `build` refuse, and what a table costs."""

import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from tests import reference

GRID = [5.0, 3.0, 1.0, 0.3, 0.1]
TO_ZERO = [5.0, 3.0, 1.0, 0.0]


def test_options_are_the_signatures_defaults():
  for name, function in samplers.SOLVERS.items():
    options = samplers.options(name)
    keywords = [p for p in inspect.signature(function).parameters.values()
                if p.kind is p.KEYWORD_ONLY]
    assert set(options) == {p.name for p in keywords} - {'xp'} | {'afs', 'denoise_to_zero'}
    assert inspect.Parameter.empty not in options.values()
    samplers.make(name, GRID, **options)


@pytest.mark.parametrize('name, sigmas, options, message', [
    ('dpmp', GRID, {}, "unknown solver 'dpmp'; did you mean dpm[a-z]*\\? known: .*ddim, "),
    ('zzz', GRID, {}, "unknown solver 'zzz'; known: .*ddim, "),
    ('heun', GRID, {'max_order': 2}, "heun: unknown option 'max_order'; known: .*afs, denoise_to"),
    ('unipc', GRID, {'varient': 'bh1'}, "unipc: unknown option 'varient'; did you mean variant"),
    ('unipc', GRID, {'variant': 'bh3'}, "unipc: unknown variant 'bh3'; did you mean bh[12]"),
    ('unipc', GRID, {'max_order': 4}, 'unipc: max_order must be an integer from 1 to 3, got 4'),
    ('dpmpp', GRID, {'max_order': 0}, 'dpmpp: max_order must be an integer from 1 to 3, got 0'),
    ('dpmpp', GRID, {'max_order': 2.0}, 'max_order must be an integer from 1 to 3, got 2.0'),
    ('dpmpp', GRID, {'max_order': True}, 'max_order must be an integer from 1 to 3, got True'),
    ('dpmpp', GRID, {'third': 'best'}, "dpmpp: unknown third 'best'; known: exact, published"),
    ('ipndm', GRID, {'max_order': 5}, 'ipndm: max_order must be an integer from 1 to 4, got 5'),
    ('lms', GRID, {'order': -1}, 'lms: order must be an integer from 1 to 4, got -1'),
    ('rk', GRID, {'order': 3}, 'rk: order must be an integer from 1 to 2, got 3'),
    ('rk', GRID, {'c': 0.0}, 'rk: c must be above 0 and at most 1, got 0.0; 1 is Heun'),
    ('rk', GRID, {'schedule': 'cosine'}, "rk: unknown schedule 'cosine'; known: linear, ve, vp"),
    ('dpm', GRID, {'r': 1.5}, 'dpm: r must be above 0 and at most 1, got 1.5; 0.5 is'),
    ('dpm', GRID, {'r': 'half'}, "dpm: r must be above 0 and at most 1, got 'half'; 0.5 is"),
    ('rk', GRID, {'c': None}, 'rk: c must be above 0 and at most 1, got None; 1 is Heun'),
    ('rk', GRID, {'schedule': 'vp', 'sigma_min': -3.0}, 'rk: sigma_min must be .* got -3.0; '),
    ('rk', GRID, {'schedule': 'vp', 'sigma_max': 2.0}, "not be below the grid's first level 5,"),
    ('rk', GRID, {'schedule': 'vp', 'epsilon_s': 0.0}, 'epsilon_s must be strictly .* got 0.0; '),
    ('deis', GRID, {'epsilon_s': 0.0}, 'deis: epsilon_s must be strictly between .* got 0.0; '),
    ('dpmpp', GRID, {'predict_x0': 'no'}, "dpmpp: predict_x0 must be True or False, got 'no'; "),
    ('euler', GRID, {'afs': 'no'}, "euler: afs must be True or False, got 'no'; a text is neither"),
    (['euler'], GRID, {}, r"unknown solver \['euler'\]; did you mean euler\? known"),
    ('ddim', GRID, {'eta': None}, 'ddim: eta must be between 0 and 1, got None; 0 is'),
    ('ddim', GRID, {'eta': -0.1}, 'ddim: eta must be between 0 and 1, got -0.1; 0 is'),
    ('deis', GRID, {'mode': 'xyz'}, "deis: unknown mode 'xyz'; known: rhoab, tab"),
    ('deis', TO_ZERO, {}, "sigmas must end above 0 with mode 'tab', got a last level 0; end at"),
    ('dpm_fast', TO_ZERO, {}, 'dpm_fast: sigmas must end above 0 .*; end at sigma_min'),
    ('heun', TO_ZERO, {'denoise_to_zero': True}, 'denoise_to_zero needs a grid that ends above 0'),
    ('euler', [5.0], {}, r'sigmas must be a list of two or more levels, got shape \(1,\); num'),
    ('euler', [], {}, r'euler: sigmas must be a list of two or more levels, got shape \(0,\)'),
    ('euler', 3.0, {}, r'euler: sigmas must be a list of two or more levels, got shape \(\)'),
    ('euler', [[3.0, 2.0]], {}, r'sigmas must be a list of two or more levels, got shape \(1, 2\)'),
    ('euler', [5.0, float('nan'), 1.0], {}, 'sigmas must be finite, .* got nan at index 1; check'),
    ('euler', [float('inf'), 1.0], {}, 'sigmas must be finite, at most 1e.18, got inf at index 0'),
    ('euler', [5.0, 1.0, -0.5], {}, 'sigmas must not go below 0, got -0.5 at index 2; end the'),
    ('euler', [5.0, 5.0], {}, 'sigmas must hold two different levels, got 5 alone; widen'),
    ('euler', [5.0, 1.0, 2.0], {}, 'sigmas must decrease, got 2 after 1 at index 2; sort the'),
    ('euler', [0.0, 5.0], {}, 'sigmas must start above 0, got 0 at index 0; a solver'),
    ('ddim', [1.0, 5.0], {'eta': 1.0}, 'ddim: sigmas must decrease for a solver with noise, got'),
])
def test_bad_input(name, sigmas, options, message):
  with pytest.raises(ValueError, match=message) as error:
    samplers.make(name, sigmas, **options)
  assert '\n' not in str(error.value) and ('; ' in str(error.value))


@pytest.mark.parametrize('name', sorted(samplers.SOLVERS))
def test_a_repeated_level_counts_once(name):
  """A step of length 0 is the identity: rounding to the levels of a network makes such steps."""
  once, twice = (samplers.make(name, sigmas) for sigmas in (
      [5.0, 3.0, 2.0, 1.0], [5.0, 5.0, 3.0, 2.0, 2.0, 2.0, 1.0]))
  for left, right in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
    np.testing.assert_array_equal(left, right)


def test_levels_that_are_not_numbers():
  with pytest.raises(ValueError, match="sigmas must be a list of numbers, got .*'high'.*; give"):
    samplers.make('euler', ['high', 1.0])


def test_a_free_first_step_needs_an_evaluation():
  twice_free = samplers.make('euler', GRID, afs=True)
  assert twice_free.kind[0] == 2
  with pytest.raises(ValueError, match='afs: the table must start with an evaluation'):
    samplers.table.first_step_for_free(twice_free)


def test_build_checks_what_is_known_while_tracing():
  with pytest.raises(ValueError, match=r'euler: sigmas must have shape \(n \+ 1,\) .* got \(1,\)'):
    samplers.build('euler', jnp.ones(1))
  with pytest.raises(ValueError, match="unknown option 'order'"):
    samplers.build('euler', jnp.asarray(GRID), order=2)
  assert samplers.build('heun', jnp.asarray(TO_ZERO)).nfe == 5
  with pytest.raises(ValueError, match='must end above 0'):
    jax.jit(lambda s: samplers.build('dpm_fast', s, final_zero=True))(jnp.asarray(TO_ZERO))


def test_tables_are_float64_on_the_host():
  table = samplers.make('unipc', np.asarray(GRID, np.float32))
  assert {leaf.dtype for leaf in (table.sigma, table.mix, table.noise, table.level)} == {
      np.dtype(np.float64)}


def test_nfe_of_all_announced_runs():
  """256 rows of announced network passes; text models with guidance make two per evaluation."""
  announced = json.loads((reference.GOLDEN / 'schedules' / 'nfe.json').read_text())
  assert len(announced['rows']) == 256
  for row in announced['rows']:
    case = dict(zip(announced['columns'], row, strict=True))
    # A grid of num_steps points; a searched one has a point more for the free first step.
    points = case['num_steps'] + (case['gits_search'] and case['afs'])
    table = samplers.make(case['solver'], samplers.schedule('polynomial', points - 1, 0.002, 80.0),
                          afs=case['afs'], denoise_to_zero=case['denoise_to_zero'])
    passes = 2 if case['text_to_image'] and case['guidance_rate'] != 1 else 1
    assert passes * table.nfe == case['nfe'], case
