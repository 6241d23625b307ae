"""Bad input to the schedules: one line with who, the rule, the value and the remedy."""

import pytest

from samplers import levels, schedules, timestep_grids
from tests.samplers.schedule_cases import OPTIONS, RANGE, SD

NAN, INF = float('nan'), float('inf')
TABLE = {'alphas_cumprod': 'stable_diffusion'}


@pytest.mark.parametrize('args, message', [
    ((0, 0.002, 80.0), 'polynomial: num_steps must be an integer of at least 1, got 0; it counts'),
    ((-3, 0.002, 80.0), 'num_steps must be .* got -3; '),
    ((2.5, 0.002, 80.0), 'num_steps must be .* got 2.5; '),
    ((True, 0.002, 80.0), 'num_steps must be .* got True; '),
    ((None, 0.002, 80.0), 'num_steps must be .* got None; '),
    ((5, NAN, 80.0), 'sigma_min must be a finite number above 0, got nan; '),
    ((5, 0.0, 80.0), 'sigma_min must be .* got 0.0; '),
    ((5, -0.1, 80.0), 'sigma_min must be .* got -0.1; '),
    ((5, None, 80.0), 'sigma_min must be .* got None; '),
    ((5, 'low', 80.0), "sigma_min must be .* got 'low'; "),
    ((5, 0.002, INF), 'sigma_max must be a finite number above 0, got inf; '),
    ((5, 0.002, NAN), 'sigma_max must be .* got nan; '),
    ((5, 0.002, None), 'sigma_max must be .* got None; '),
    ((5, 2.0, 2.0), 'sigma_max must be above sigma_min, got 2 and 2; '),
    ((5, 80.0, 0.002), 'sigma_max must be above sigma_min, got 0.002 and 80; '),
])
def test_bad_ranges(args, message):
  with pytest.raises(ValueError, match=f'^(polynomial: )?.*{message}') as error:
    schedules.schedule('polynomial', *args)
  assert str(error.value).startswith('polynomial: ')
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', sorted(schedules.SCHEDULES))
def test_every_schedule_refuses_a_bad_range_that_is_given(name):
  with pytest.raises(ValueError, match=f'^{name}: num_steps must .* got 0; '):
    schedules.schedule(name, 0, *RANGE, **OPTIONS.get(name, {}))
  with pytest.raises(ValueError, match=f'^{name}: sigma_min must .* got nan; '):
    schedules.schedule(name, 5, NAN, 80.0, **OPTIONS.get(name, {}))
  with pytest.raises(ValueError, match=f'^{name}: sigma_max must be above sigma_min, got 1 and 3;'):
    schedules.schedule(name, 5, 3.0, 1.0, **OPTIONS.get(name, {}))


@pytest.mark.parametrize('name', ['polynomial', 'time_uniform', 'discrete', 'edm', 'karras',
                                  'polyexponential'])
@pytest.mark.parametrize('rho', [0, -1, NAN, INF, 'seven'])
def test_bad_rho(name, rho):
  with pytest.raises(ValueError, match=f'^{name}: rho must be a finite number above 0, got .*; '):
    schedules.schedule(name, 5, *RANGE, rho=rho)


@pytest.mark.parametrize('table, message', [
    ([], r'must be a list of two or more entries, got shape \(0,\); '),
    ([0.9], r'must be a list of two or more entries, got shape \(1,\); '),
    ([0.9, 0.5, 0.5], 'must decrease strictly, got 0.5 after 0.5 at index 2; '),
    ([0.5, 0.9], 'must decrease strictly, got 0.9 after 0.5 at index 1; '),
    ([1.2, 0.9], r'must lie in \(0, 1\], got 1.2 at index 0; '),
    ([0.9, 0.0], r'must lie in \(0, 1\], got 0.0 at index 1; '),
    ([0.9, NAN], r'must lie in \(0, 1\], got nan at index 1; '),
    (['a', 'b'], 'must be a list of numbers, got'),
    ('stable_difusion', 'did you mean stable_diffusion'),
])
@pytest.mark.parametrize('name', [
    'discrete', 'normal', 'sgm_uniform', 'simple', 'ddim_uniform', 'beta', 'timestep_spacing',
    'lcm', 'sd_turbo', 'pndm', 'respaced'])
def test_bad_tables(name, table, message):
  with pytest.raises(ValueError, match=f'^{name}: .*alphas_cumprod.*{message}'):
    schedules.schedule(name, 5, *RANGE, alphas_cumprod=table)


@pytest.mark.parametrize('sigmas, message', [
    ([1.0], 'two or more levels, got shape .1,.; '),
    ([], 'two or more levels, got shape .0,.; '),
    ([1.0, 2.0], 'must decrease, got 2 after 1 at index 1; '),
    ([0.0, 0.0], 'must start above 0, got 0 at index 0; '),
    ([2.0, -1.0], 'must not go below 0, got -1 at index 1; '),
    ([2.0, NAN, 1.0], 'must be finite, .* got nan at index 1; '),
    ([INF, 1.0], 'must be finite, .* got inf at index 0; '),
    ('10, 3, 0', "must be a list of numbers, got '10, 3, 0'; "),
    (None, 'must be given, got None; '),
])
def test_bad_lists(sigmas, message):
  with pytest.raises(ValueError, match=f'^explicit: sigmas .*{message}'):
    schedules.schedule('explicit', sigmas=sigmas)


@pytest.mark.parametrize('name, options, message', [
    ('time_uniform', {'epsilon_s': 0.0}, 'epsilon_s must be strictly between 0 and 1, got 0.0; '),
    ('vp', {'epsilon_s': 1.0}, 'epsilon_s must be strictly between 0 and 1, got 1.0; '),
    ('kvp', {'eps_s': NAN}, 'eps_s must be strictly between 0 and 1, got nan; '),
    ('kvp', {'beta_d': -1.0}, 'beta_d must be a finite number above 0, got -1.0; '),
    ('kvp', {'beta_min': 0}, 'beta_min must be a finite number above 0, got 0; '),
    ('discrete', {'beta_d': 0}, 'beta_d must be a finite number above 0, got 0; '),
    ('beta', {'alpha': 0}, 'alpha must be a number from 0.01 to 100, got 0; '),
    ('beta', {'beta': INF}, 'beta must be a number from 0.01 to 100, got inf; '),
    ('beta', {'alpha': 1e6, 'beta': 1e6}, 'alpha must be a number from 0.01 to 100, got 1000000.0'),
    ('iddpm', {'C_1': 0}, 'C_1 must be strictly between 0 and 1, got 0; '),
    ('iddpm', {'C_2': -1}, 'C_2 must be a finite number above 0, got -1; '),
    ('iddpm', {'M': 0}, 'M must be an integer of at least 1, got 0; '),
    ('iddpm', {'M': 4}, 'num_steps must be at most 3, .* got 5; '),
    ('linear_quadratic', {'threshold_noise': 1.5}, 'threshold_noise must be strictly .* got 1.5; '),
    ('linear_quadratic', {'threshold_noise': 0.9}, 'threshold_noise must leave .* got 0.9 in 2 of'),
    ('linear_quadratic', {'linear_steps': 5}, 'linear_steps must be .* = 4, got 5; '),
    ('linear_quadratic', {'linear_steps': 0}, 'linear_steps must be .* got 0; '),
    ('ays', {'model': 'SD2'}, "unknown model 'SD2'.*known: SD1, SDXL, SVD, "),
    ('ays', {}, 'model must be given, got None; choose one of .*SDXL'),
    ('gits', {'model': 'cifar10'}, 'num_steps must be a published one, 6 for cifar10, got 5; '),
    ('gits', {'model': 'cifar'}, "unknown model 'cifar'; did you mean cifar10"),
    ('gits', {}, 'model must be given, got None; choose one of cifar10'),
    ('normal', {}, 'alphas_cumprod must be given, got None; .*latent_diffusion'),
    ('sgm_uniform', {'alphas_cumprod': None}, 'alphas_cumprod must be given, got None; '),
    ('simple', {}, 'alphas_cumprod must be given, got None; .*latent_diffusion.*; or shift, of a'),
    ('ddim_uniform', {'shift': -1.0}, 'shift must be a finite number above 0, got -1.0; '),
    ('simple', {'shift': 1.0, 'alphas_cumprod': 'ddpm'}, 'shift must be left out with alphas_c'),
    ('flow_shift', {'shift': 0.0}, 'shift must be a finite number above 0, got 0.0; 1 leaves'),
    ('flow_dpm', {'shift': NAN}, 'shift must be .* got nan; '),
    ('flow_shift_terminal', {'shift': 'three'}, "shift must be .* got 'three'; "),
    ('flow_shift_terminal', {'shift_terminal': 1.0}, 'shift_terminal must be strictly .* got 1.0'),
    ('flow_dynamic', {'shift_terminal': 0.0}, 'shift_terminal must be strictly .* got 0.0; '),
    ('flow_dynamic', {'time_shift_type': 'cubic'}, "unknown time_shift_type 'cubic'; .* linear"),
    ('flow_dynamic', {'time_shift_type': 'linear', 'mu': 0.0}, 'mu must be above 0 .* got 0.0; '),
    ('flow_dynamic', {'mu': NAN}, 'mu must be above -20 and at most 20 .* got nan; '),
    ('flow_dynamic', {'image_seq_len': 0}, 'image_seq_len must be an integer .* got 0; '),
    ('optimal_steps', {'model': 'flux'}, "unknown model 'flux'.*known: Chroma, FLUX, Wan"),
    ('optimal_steps', {}, 'model must be given, got None; choose one of FLUX, Wan, Chroma'),
    ('laplace', {'mu': NAN}, 'mu must be a finite number, got nan; '),
    ('laplace', {'beta': 0.0}, 'beta must be a finite number above 0, got 0.0; '),
    ('laplace', {'mu': 9.0}, 'num_steps must leave levels that differ, got 5, .* index 0 and 1; '),
    ('timestep_spacing', {}, 'alphas_cumprod must be given, got None; '),
    ('timestep_spacing', TABLE | {'spacing': 'leadin'}, "unknown spacing 'leadin'; did you mean"),
    ('timestep_spacing', TABLE | {'style': 'ddim'}, "unknown style 'ddim'.* known: dpm, euler"),
    ('timestep_spacing', TABLE | {'final': '0'}, "unknown final '0'.* known: sigma_min, zero"),
    ('timestep_spacing', TABLE | {'rescale': 'kerras'}, "unknown rescale .*did you mean karras"),
    ('timestep_spacing', TABLE | {'steps_offset': -1}, 'steps_offset must be an integer of at le'),
    ('timestep_spacing', TABLE | {'steps_offset': 200, 'spacing': 'leading', 'style': 'euler'},
     'steps_offset must leave the first timestep below 1000, got 200 and 1000; lower it'),
    ('timestep_spacing', TABLE | {'lambda_min_clipped': NAN}, 'lambda_min_clipped must .* got nan'),
    ('timestep_spacing', TABLE | {'lambda_min_clipped': 9.0}, 'lambda_min_clipped must .* got 9.0'),
    ('timestep_spacing', TABLE | {'lambda_min_clipped': -1.0, 'style': 'euler'},
     "lambda_min_clipped must .* in the style 'dpm', got -1.0 in 'euler'; "),
    ('lcm', {'original_steps': 0}, 'original_steps must be an integer from 1 to 1000, got 0; '),
    ('lcm', {'original_steps': 4}, 'num_steps must be at most 4, the timesteps there are, got 5; '),
    ('lcm', {'strength': 0.0}, 'strength must be above 0 and at most 1, got 0.0; '),
    ('sd_turbo', {'strength': 0.4}, 'num_steps must be at most 4, .* got 5; take fewer'),
    ('sd_turbo', {'strength': 2.0}, 'strength must be above 0 and at most 1, got 2.0; '),
    ('sd_turbo', {'alphas_cumprod': [0.9, 0.1]}, 'alphas_cumprod must have at least 10 .* got 2; '),
    ('pndm', TABLE | {'steps_offset': 0.5}, 'steps_offset must be an integer .* got 0.5; '),
    ('karras', {'roh': 5}, "unknown option 'roh'; did you mean rho.* known: rho"),
    ('logsnr', {'rho': 5}, "unknown option 'rho'.* known: none"),
    ('edm', {'levels': []}, 'levels must be a list of finite numbers'),
    ('edm', {'levels': [1.0, NAN]}, 'levels must be .* got nan at index 1; '),
    ('edm', {'levels': [0.0]}, 'levels must be .* one of them above 0'),
])
def test_bad_options(name, options, message):
  with pytest.raises(ValueError, match=f'^{name}: {message}'):
    schedules.schedule(name, 5, 0.002, 80.0, **options)


def test_ranges_that_a_schedule_cannot_serve():
  with pytest.raises(ValueError, match='^vp: sigma_min and sigma_max must be far enough apart .* '
                     'got 0.5 and 1; raise epsilon_s'):
    schedules.schedule('vp', 5, 0.5, 1.0)
  with pytest.raises(ValueError, match='^discrete: sigma_min must be a level .* got 0.001 .*; '):
    schedules.schedule('discrete', 5, 1e-3, 80.0, alphas_cumprod=[0.5, 0.3])
  with pytest.raises(ValueError, match="^normal: .* must overlap the table's range, 0.029.* got "):
    schedules.schedule('normal', 5, 20.0, 80.0, alphas_cumprod=SD)
  with pytest.raises(ValueError, match='^beta: sigma_min and sigma_max must be .* None'):
    schedules.schedule('beta', 5)
  with pytest.raises(ValueError, match='^linear_quadratic: sigma_max must be .* None; '):
    schedules.schedule('linear_quadratic', 5)


def test_unknown_schedules_name_the_nearest_and_all_known():
  with pytest.raises(ValueError, match="unknown schedule 'karas'; did you mean karras"):
    schedules.schedule('karas', 5, 0.002, 80.0)
  for call in (schedules.schedule, schedules.schedule_options):
    with pytest.raises(ValueError, match='^schedule: unknown schedule') as error:
      call('no such thing')
    assert all(name in str(error.value) for name in schedules.SCHEDULES)


@pytest.mark.parametrize('name, steps, options', [
    ('simple', 1001, TABLE), ('simple', 1001, {'shift': 1.0}), ('pndm', 1001, TABLE),
    ('timestep_spacing', 1000, TABLE),  # 'dpm' leaves out the lowest of one more.
    ('timestep_spacing', 1001, TABLE | {'spacing': 'trailing'}),
    ('timestep_spacing', 1001, TABLE | {'spacing': 'leading', 'style': 'euler'})])
def test_schedules_that_would_repeat_levels(name, steps, options):
  with pytest.raises(ValueError, match=f'^{name}: num_steps must leave levels that differ, got '
                     f'{steps}, and equal ones at index .*; '):
    schedules.schedule(name, steps, 0.002, 80.0, **options)


def test_timesteps_of_pndm_need_its_warm_up():
  with pytest.raises(ValueError, match='^pndm: num_steps must be an integer .* 4, got 3; '):
    timestep_grids.pndm_timesteps(3)


@pytest.mark.parametrize('table', ['ddpm:zero', 'ddpm:100:zero', 'ddpm:zero_snr:100', 'ddpm:',
                                   'ddpm:5:zero_snr', 'ddpm:1000:1000'])
def test_names_of_tables_that_say_something_else(table):
  with pytest.raises(ValueError, match='^normal: alphas_cumprod must name 21 to .* training steps, '
                     f"got '{table}'; 'ddpm:1000' is"):
    schedules.schedule('normal', 5, alphas_cumprod=table)


def test_tables_that_end_in_noise_alone_are_told_a_level_for_it():
  with pytest.raises(ValueError, match=r'got 0.0 at index 999; .*2\*\*-24 in place of a last 0'):
    schedules.schedule('normal', 5, alphas_cumprod=levels.zero_terminal_snr(SD))
