"""Early-stopped diffusion: runs that start from images, and machines that share a run."""

import json

import numpy as np
import pytest

import models
from engine import generate, inputs, results as results_lib, seeds as seeds_lib
from models import digits
from tests.engine.sampling import get_plan, samples

EARLY = {'input__images': 'gaussian_digits', 'labels': 'given', 'schedule__sigma_max': 1.0,
         'schedule__num_steps': 4, 'solver__name': 'dpmpp'}


def write(path, count=6, **more):
  pixels = inputs.load('test', 'gaussian_digits', (8, 8, 3)).take(np.arange(count))
  np.savez(path, arr_0=pixels, **more)
  return pixels


def test_starts_at_the_image_with_the_noise_of_the_first_level(tmp_path):
  """A step of a denoiser that keeps its input: what went in, D = x, comes out."""
  plan = get_plan(tmp_path, **EARLY, solver__max_order=1)
  constants = {'scale': 0.0}
  same = plan.model.__class__(**{**vars(plan.model), 'apply': keep, 'params': constants})
  plan = plan.__class__(**{**vars(plan), 'model': same})
  started = inputs.to_model(plan.start.take(plan.results.seeds))
  noise = samples(plan) - started
  latents = np.asarray(seeds_lib.latents(plan.results.seeds, (8, 8, 3), 'jax')).reshape(noise.shape)
  np.testing.assert_allclose(noise, latents, atol=1e-5)  # sigma = 1.


def keep(params, x, sigma, labels=None):
  del params, sigma, labels
  return x


def test_blurry_digits_become_sharp_ones(tmp_path):
  """With the full model and with the one for low levels: nearer to real digits than the start."""
  real = digits.grays()[0].reshape(-1, 64).astype(float)

  def distance(images):
    grays = np.clip(digits.luminance(images), 0, 16).reshape(-1, 1, 64)
    return np.median(np.sqrt(((grays - real)**2).sum(-1).min(1)))
  for name in ('digits', 'digits_early'):
    plan = get_plan(tmp_path / name, **{**EARLY, 'model__name': name}, seeds='0-29', batch_size=32)
    before = distance(inputs.to_model(plan.start.take(np.arange(30))))
    after = distance(samples(plan))
    assert before > 18 and after < 0.87 * before  # 0.74 and 0.82 were seen.


def test_every_image_of_a_file_in_one_npz(tmp_path):
  write(tmp_path / 'start.npz', arr_1=np.array([0, 1, 2, 3, 4, 5]))
  run = {**EARLY, 'input__images': str(tmp_path / 'start.npz'), 'seeds': 'all',
         'output__format': 'npz', 'solver__name': 'ddim', 'solver__eta': 1.0}
  told = generate.run(get_plan(tmp_path / 'out', **run))
  assert '6 images' in told and 'started from' in told
  with np.load(tmp_path / 'out' / 'samples.npz') as arrays:
    assert arrays['arr_0'].shape == (6, 8, 8, 3)
    np.testing.assert_array_equal(arrays['arr_1'], np.arange(6))
  manifest = json.loads((tmp_path / 'out' / 'manifest.json').read_text())
  assert manifest['input']['images'].endswith('start.npz') and manifest['solver']['noise']
  write(tmp_path / 'start.npz', 5, arr_1=np.arange(5))
  with pytest.raises(ValueError, match=r'hold a run of the same config, .*input\.sha256'):
    get_plan(tmp_path / 'out', **{**run, 'seeds': '0-4'})


def test_shares_together_are_the_whole_run(tmp_path):
  """Three machines in any order; the last one packs. The bytes are those of a single machine."""
  run = {**EARLY, 'seeds': '0-6', 'output__format': 'npz', 'batch_size': 2}
  alone = tmp_path / 'alone'
  generate.run(get_plan(alone, **run))
  shared = tmp_path / 'shared'
  told = [generate.run(get_plan(shared, **run, share=f'{index}/3')) for index in (2, 0)]
  assert told[0].startswith('share 2/3 is complete; of the 7 images') and '6 are still' in told[0]
  assert '3 are still missing' in told[1] and not (shared / 'manifest.json').exists()
  assert '7 images' in generate.run(get_plan(shared, **run, share='1/3'))
  assert 'nothing to do' in generate.run(get_plan(shared, **run, share='0/3'))
  with np.load(alone / 'samples.npz') as one, np.load(shared / 'samples.npz') as other:
    # Another batch size moves the last digits, and so a byte by one here and there.
    assert abs(one['arr_0'].astype(int) - other['arr_0']).max() <= 1


def test_shares_are_contiguous_and_cover_all():
  """The slices of ES-DDPM's work list: 10 images over 4 machines."""
  slices = [seeds_lib.of_share(10, (index, 4)) for index in range(4)]
  assert [(part[0], part[-1] + 1) for part in slices] == [(0, 3), (3, 6), (6, 9), (9, 10)]
  few = [seeds_lib.of_share(3, (index, 8)) for index in range(8)]  # Some have nothing to do.
  np.testing.assert_array_equal(np.concatenate(few), np.arange(3))


def test_a_share_leaves_the_files_of_others_alone(tmp_path):
  plan = get_plan(tmp_path, **EARLY, share='0/2')
  other = tmp_path / '.000004.png.0123abcd.partial'
  other.write_bytes(b'being written')
  results_lib.begin(plan.results, alone=False)
  assert other.exists()
  results_lib.begin(plan.results)
  assert not other.exists()


@pytest.mark.parametrize('fields, message', [
    ({'seeds': 'all', 'input__images': None}, "seeds: 'all' must go with a file .* got None"),
    ({'seeds': 'all'}, "seeds: 'all' must go with a file or folder .* got gaussian_digits"),
    ({'input__images': None}, "labels: 'given' must go with images that have classes"),
    ({'seeds': '3-9', 'input__images': 'START'}, 'seeds: must be numbers of images, from 0 to 5'),
    ({'input__images': 'START'}, "labels: 'given' must go with .* classes .* got .*start.npz"),
    ({'input__images': 'HIGH', 'seeds': 'all'}, 'labels: classes must be from 0 to 9, got 12 in'),
    ({'input__images': 'nowhere.npz'}, 'input.images: must be .* got .*No such file'),
    ({'share': '4/4'}, "share: must be the machine's number from 0, .* got '4/4'; such as"),
    ({'model__name': 'digits_early', 'schedule__sigma_max': 2.0},
     'schedule: must start at a level that the model knows, up to 1, got 2; set sigma_max'),
    ({'share': 'first'}, "share: must be .* got 'first'"),
    ({'schedule__name': 'respaced', 'schedule__num_steps': 10, 'schedule__reverse_steps': 11,
      'schedule__sigma_max': None}, 'reverse_steps must be an integer from 1 to the 10 steps'),
])
def test_bad_starts_are_refused(tmp_path, fields, message):
  write(tmp_path / 'start.npz')
  write(tmp_path / 'high.npz', arr_1=np.arange(6) + 7)
  fields = {name: {'START': str(tmp_path / 'start.npz'), 'HIGH': str(tmp_path / 'high.npz')}.get(
      value, value) for name, value in fields.items()}
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **{**EARLY, **fields})
  assert not (tmp_path / 'out').exists()


def test_the_early_model_is_there():
  assert models.load('digits_early').sigma_max == 1.0
