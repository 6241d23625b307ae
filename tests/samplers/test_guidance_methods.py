"""Methods of guidance: recorded numbers, identities between them, history, and bad options."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import guidance
from tests import reference

MANIFEST, ARRAYS = reference.load('guidance')
CASES = {case['id']: case for case in MANIFEST['cases']}
INPUTS = ARRAYS['inputs']
COUNTS = {'cfg': 3, 'interval': 2, 'rescale': 4, 'apg': 5, 'autoguidance': 2, 'cfg_zero_star': 3,
          'tcfg': 2, 'mambo_g': 2, 'fresca': 2, 'cfg_norm': 1, 'perp_neg': 2, 'cfgpp_scale': 1}


def test_every_recorded_case_is_here():
  assert collections.Counter(case['method'] for case in CASES.values()) == COUNTS
  assert len(CASES) == 29


def guided_by(case, said, after):
  """The guided denoiser of a case at one level.

  Args:
    case: of the manifest.
    said: what each denoiser answers there, by name.
    after: the level and the one after it.
  """
  def stored(name):
    return lambda x, sigma: said[f'denoised_{name}']
  options, levels = dict(case['options']), INPUTS['sigma']
  cond, uncond, scale = stored('cond'), stored('uncond'), options.pop('scale')
  match case['method']:
    case 'cfg':
      return guidance.classifier_free(cond, uncond, scale)
    case 'interval':
      return guidance.classifier_free(cond, uncond, scale,
                                      (options['sigma_lo'], options['sigma_hi']))
    case 'autoguidance':
      return guidance.autoguidance(uncond, stored('bad'), scale)
    case 'cfgpp_scale':
      return guidance.cfg_plus_plus(cond, uncond, scale, after)
    case 'perp_neg':
      options['denoise_negative'] = stored('negative')
    case 'apg':
      options['momentum'] = options['momentum'] or 0.0
    case 'cfg_zero_star':
      steps = options.pop('zero_init_steps')
      options['zero_above'] = levels[steps] if steps else None
  return guidance.METHODS[case['method']](cond, uncond, scale, **options)


@functools.cache
def recorded():
  """Guided images of all cases at the five levels, by one program; histories go from one on."""
  following = CASES['cfgpp_scale_00']['options']['sigma_next']

  def level(memories, given):
    said, sigma_next = given
    images = {}
    for name, case in CASES.items():
      guided = guided_by(case, said, jnp.stack([said['sigma'], sigma_next]))
      images[name] = guided(said['x'], said['sigma'])
      if name in memories:
        images[name], _, memory = guided.answers(said['x'], said['sigma'], memories[name])
        memories = {**memories, name: memory}
    return memories, images
  start = {name: np.zeros(INPUTS['x'].shape[1:]) for name, case in CASES.items()
           if case['options'].get('momentum')}
  assert len(start) == 3
  return jax.jit(lambda given: jax.lax.scan(level, start, given)[1])((INPUTS, np.array(following)))


@pytest.mark.parametrize('name', CASES)
def test_recorded_numbers(name):
  np.testing.assert_allclose(recorded()[name], ARRAYS['cases'][name], rtol=0,
                             atol=CASES[name]['atol'])


# -- Laws -----------------------------------------------------------------------------------------

X, C, U, N = np.random.default_rng(0).standard_normal((4, 3, 5, 4, 2))
SCALES = np.array([1.5, 3.0, 6.0])
NEUTRAL = {'rescale': {'phi': 0.0}, 'apg': {'eta': 1.0}, 'mambo_g': {'alpha': 0.0},
           'fresca': {'scale_high': 1.0}, 'perp_neg': {'negative_scale': 0.0}}
every_method = pytest.mark.parametrize('name', sorted(guidance.METHODS))


def of(name, scale, answers=(C, U, N), **options):
  """A method on answers that do not depend on the state."""
  given = tuple(jnp.asarray(image) for image in answers)[:3 if name == 'perp_neg' else 2]
  return guidance.METHODS[name](lambda x, sigma: given, None, scale, **options)


@functools.cache
def laws():
  """What the tests below look at, of all methods, by one program."""
  def one(name, i, scale, options):
    part = slice(i, i + 1)
    return of(name, scale, (C[part], U[part], N[part]), **options)(X[part], 1.3)

  def slope(name):
    def end(x):
      return jnp.sum(of(name, 5.0, (x, x, x))(x, 1.3)**2)
    return jax.grad(end)(jnp.asarray(X))

  @jax.jit
  def everything(scales, options):
    return {
        'whole': {name: of(name, scales)(X, 1.3) for name in guidance.METHODS},
        'alone': {name: jnp.concatenate([one(name, i, scales[i], options[name]) for i in range(3)])
                  for name in guidance.METHODS},
        'by level': {name: of(name, lambda sigma: 2 + sigma)(X, 1.0) for name in guidance.METHODS},
        'scaled': {name: of(name, 3.0)(X, 1.0) for name in guidance.METHODS},
        'neutral': {name: of(name, 4.0, **NEUTRAL[name])(X, 1.3) for name in NEUTRAL},
        'same': {name: of(name, 5.0, (C, C, C))(X, 1.3) for name in guidance.METHODS},
        'slope': {name: slope(name) for name in guidance.METHODS},
        'tangential': of('tcfg', 3.0)(X, 1.3),
        'parallel': of('perp_neg', 4.0, (C, U, U + 0.7 * (C - U)))(X, 1.3)}
  options = {name: {option: value for option, value in guidance.options(name).items()
                    if isinstance(value, float) and option != 'momentum'}
             for name in guidance.METHODS}
  return jax.tree.map(np.asarray, everything(SCALES, options))


@every_method
def test_samples_do_not_act_on_each_other(name):
  """Nor does it matter whether scale and options are numbers, traced, or one for each sample."""
  np.testing.assert_allclose(laws()['whole'][name], laws()['alone'][name], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('name', NEUTRAL)
def test_neutral_options_leave_classifier_free_guidance(name):
  np.testing.assert_allclose(laws()['neutral'][name], U + 4.0 * (C - U), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize('name', sorted(guidance.METHODS.keys()))
def test_equal_answers_are_left_alone(name):
  np.testing.assert_allclose(laws()['same'][name], C, rtol=1e-7, atol=1e-7)  # 1e-8 of cfg_norm.


@every_method
def test_gradients_are_finite_where_answers_are_equal(name):
  """Lengths and ratios of images without a difference have no slope of their own."""
  assert np.isfinite(laws()['slope'][name]).all()


@every_method
def test_a_function_of_the_level_is_a_scale_of_every_method(name):
  np.testing.assert_allclose(laws()['by level'][name], laws()['scaled'][name], rtol=1e-12)


def test_tangential_guidance_is_the_projection_on_the_singular_vector():
  """By NumPy's decomposition of the two rows."""
  for x, c, u, ours in zip(X, C, U, laws()['tangential'], strict=True):
    rows = np.stack([(x - u).ravel(), (x - c).ravel()])
    first = np.linalg.svd(rows, full_matrices=False)[2][0]
    away = (rows[0] @ first) * first
    expected = x - (away + 3.0 * (rows[1] - away)).reshape(x.shape)
    np.testing.assert_allclose(ours, expected, rtol=1e-11, atol=1e-12)


def test_perpendicular_negative_ignores_what_agrees_with_the_condition():
  """A negative condition along the wanted one changes nothing."""
  np.testing.assert_allclose(laws()['parallel'], U + 4.0 * (C - U), rtol=1e-11, atol=1e-12)


def test_low_frequencies_of_a_plane_wave():
  """The halves of a real wave of two turns are at 2 and -2; a cutoff of two has -2 inside alone."""
  wave = np.broadcast_to(np.cos(np.pi / 2 * np.arange(8))[None, :, None, None], (1, 8, 6, 1))

  @jax.jit
  def amplitudes(wave):
    filtered = [guidance.fresca(lambda x, sigma: (wave, jnp.zeros_like(wave)), None, 2.0,
                                scale_low=0.5, scale_high=3.0, freq_cutoff=cutoff)(wave, 1.0)
                for cutoff in (1, 2, 3, 20)]
    return [2 * jnp.mean(image * wave) for image in filtered]
  np.testing.assert_allclose(amplitudes(wave), [2 * 3.0, 0.5 + 3.0, 2 * 0.5, 2 * 0.5], rtol=1e-12)


# -- History and two answers ----------------------------------------------------------------------


def test_momentum_is_handed_on_by_a_run():
  """On Gaussian data against a loop; rows without an evaluation and rows of padding keep it."""
  wide, narrow = (reference.gaussian_denoiser(std, mean) for std, mean in ((0.5, 0.7), (0.3, -0.2)))
  sigmas, momentum = [9.0, 4.0, 1.5, 0.6], -0.6
  guided = guidance.apg(narrow, wide, 4.0, eta=0.3, momentum=momentum)
  table = samplers.pad(samplers.make('heun', sigmas), 9, 3)
  end = jax.jit(lambda x: samplers.run(table, guided, x))(9 * X)
  running, state = 0.0, [9 * X, np.zeros_like(X), np.zeros_like(X)]
  for kind, sigma, mix in zip(table.kind, table.sigma, table.mix, strict=True):
    x, answer = state[0], np.zeros_like(X)
    if kind == 0:
      running = narrow(x, sigma) - wide(x, sigma) + momentum * running
      image = narrow(x, sigma)
      along = [np.vdot(d, c) / np.vdot(c, c) for d, c in zip(running, image, strict=True)]
      along = np.reshape(along, (-1, 1, 1, 1)) * image
      answer = image + 3.0 * (running - 0.7 * along)
    state = list(np.tensordot(mix, np.stack([*state, answer]), 1))
  np.testing.assert_allclose(end, state[0], rtol=1e-10, atol=1e-12)
  assert guidance.clip(guided).remembers and not guidance.apg(narrow, wide, 4.0).remembers


@functools.cache
def answered():
  """(guided, unguided, memory) of APG with a momentum, from the memory N, by one program."""
  apg = functools.partial(of, 'apg', 4.0, momentum=0.5)

  @jax.jit
  def everything(x, memory):
    plain = apg()
    pulled = guidance.classifier(plain, lambda x, sigma: x.sum((1, 2, 3)), 2.0)
    inside = apg(interval=(0.1, 1.0))
    return {name: guided.answers(x, sigma, memory) for name, guided, sigma in (
        ('plain', plain, 1.0), ('clipped', guidance.clip(plain), 1.0), ('pulled', pulled, 1.0),
        ('inside', inside, 1.0), ('outside', inside, 2.0))}
  return jax.tree.map(np.asarray, everything(X, N))


def test_outside_of_the_interval_nothing_is_remembered():
  for seen, expected in zip(answered()['outside'], (C, C, N), strict=True):
    np.testing.assert_array_equal(seen, expected)
  _, unguided, kept = answered()['inside']
  np.testing.assert_array_equal(unguided, U)
  np.testing.assert_allclose(kept, C - U + 0.5 * N, rtol=1e-14)


def test_limits_and_gradients_pass_answers_and_memory_on():
  guided, unguided, kept = answered()['plain']
  expected = {'clipped': (np.clip(guided, -1, 1), np.clip(unguided, -1, 1), kept),
              'pulled': (guided + 2.0, unguided, kept)}
  for name, images in expected.items():
    for seen, image in zip(answered()[name], images, strict=True):
      np.testing.assert_allclose(seen, image, rtol=1e-13)


# -- Scales that depend on the level --------------------------------------------------------------


@pytest.mark.parametrize('shape, middle', [('linear', 0.5), ('cosine', 0.5), (2.0, 0.25)])
def test_ramps(shape, middle):
  """From 1 to 5 over four decades: above them, at their ends, in the middle, and below."""
  levels = np.array([500.0, 100.0, 1.0, 0.01, 0.001])
  c, u = (np.broadcast_to(image[:1], (5, *image.shape[1:])) for image in (C, U))

  @jax.jit
  def guided(c, u):
    scale = guidance.ramp(5.0, 0.01, 100.0, shape)
    return guidance.classifier_free(lambda x, sigma: (c, u), None, scale)(c, levels)
  scales = np.array([1, 1, 1 + 4 * middle, 5, 5]).reshape(-1, 1, 1, 1)
  np.testing.assert_allclose(guided(c, u), u + scales * (c - u), rtol=1e-11, atol=1e-12)


# -- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name, options, message', [
    ('rescale', {'phi': 1.5}, 'phi must be from 0 to 1, got 1.5; 0.7 is usual'),
    ('rescale', {'space': 'x0'}, "unknown space 'x0'; known: denoised, eps, v, velocity"),
    ('apg', {'momentum': -1.0}, 'momentum must be between -1 and 1, got -1.0; -0.5 is usual'),
    ('apg', {'norm_threshold': -1.0}, 'norm_threshold must be a finite number of at least 0, got'),
    ('apg', {'eta': float('nan')}, 'eta must be a finite number, got nan; 0 is usual'),
    ('apg', {'eta': 'half'}, "eta must be a finite number, got 'half'"),
    ('cfg_zero_star', {'zero_above': 0.0}, 'zero_above must be a level above 0, got 0.0; leave'),
    ('mambo_g', {'alpha': -1.0}, 'alpha must be a finite number of at least 0, got -1.0; 8 is'),
    ('mambo_g', {'space': 'flow'}, "unknown space 'flow'; known: denoised"),
    ('fresca', {'freq_cutoff': 1.5}, 'freq_cutoff must be an integer of at least 0, got 1.5; 20'),
    ('fresca', {'scale_low': float('inf')}, 'scale_low must be a finite number, got inf; 1 chan'),
    ('cfg_norm', {'strength': 0.0}, 'strength must be a finite number above 0, got 0.0; 1 is'),
    ('perp_neg', {'negative_scale': None}, 'negative_scale must be a finite number, got None; 1'),
    ('tcfg', {'interval': (2.0, 1.0)}, 'interval must go from a level >= 0 up, got'),
])
def test_bad_options(name, options, message):
  with pytest.raises(ValueError, match=f'^{name}: {message}'):
    of(name, 2.0, **options)


def test_missing_answers():
  def one(x, sigma):
    return x
  with pytest.raises(ValueError, match='perp_neg: must have 3 denoisers, got 2; or give all'):
    guidance.perp_neg(one, one, 2.0)
  with pytest.raises(ValueError, match='perp_neg: must have 3 answers, got 2; give as many denois'):
    guidance.perp_neg(lambda x, sigma: (x, x), None, 2.0)(X, 1.0)
  with pytest.raises(ValueError, match='apg: must have 2 answers, got one denoiser; give as many'):
    guidance.apg(one, None, 2.0)(X[:2], 1.0)  # A batch of two images is not two answers.
  with pytest.raises(ValueError, match="unknown guidance 'cfg'; did you mean .*known: apg, cfg_n"):
    guidance.options('cfg')


@pytest.mark.parametrize('ends, shape, message', [
    ((0.0, 1.0), 'linear', 'sigma_min and sigma_max must be levels above 0, .* got 0.0 and 1.0'),
    ((2.0, 1.0), 'linear', '.*the lower one first, got 2.0 and 1.0; take those of the model'),
    ((0.1, 1.0), 'sine', "unknown shape 'sine'; .*known: cosine, linear"),
    ((0.1, 1.0), 0.0, 'shape must be a finite number above 0, got 0.0; a power, such as 2'),
])
def test_bad_ramps(ends, shape, message):
  with pytest.raises(ValueError, match='^ramp: ' + message):
    guidance.ramp(2.0, *ends, shape)
