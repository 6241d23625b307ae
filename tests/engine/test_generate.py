"""The job from a config to files: what it writes, what it refuses, what an image depends on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import samplers
from configs import default
from engine import generate, images
from models import digits


def get_plan(workdir, **overrides):
  """Plans a small run; fields of the config as keywords, '__' for the dots."""
  config = default.get_config()
  fields = {'seeds': '0-4', 'batch_size': 4, **overrides}
  config.update_from_flattened_dict({name.replace('__', '.'): v for name, v in fields.items()})
  return generate.plan(config, str(workdir))


def read(path):
  """Pixels of a picture file."""
  with Image.open(path) as picture:
    return np.asarray(picture)


def sample(plan):
  """All samples of a plan in one batch of the size of its seeds."""
  return np.asarray(generate.sample(
      plan.model.params, plan.table, np.float32(plan.sigmas[0]), plan.seeds, plan.labels,
      apply=plan.model.apply, limit=plan.limit, shape=plan.model.image_shape))


def test_run_writes_images_grid_and_manifest(tmp_path):
  plan = get_plan(tmp_path / 'out', seeds='3,0-1,70000', labels='none', output__grid__columns=3)
  summary = generate.run(plan)
  assert f'4 images in {tmp_path / "out"}: unipc' in summary and 'NFE 8' in summary
  names = ['000003.png', '000000.png', '000001.png', '070000.png']
  assert sorted(path.name for path in plan.workdir.iterdir()) == sorted(
      [*names, 'grid.png', 'manifest.json'])
  expected = images.to_uint8(sample(plan))
  for name, pixels in zip(names, expected, strict=True):
    np.testing.assert_array_equal(read(plan.workdir / name), pixels)
  height, width, _ = read(plan.workdir / 'grid.png').shape
  assert width == 3 * 96 + 4 * 6 and height > 2 * 96  # Three and one, each with its caption.


def test_manifest_tells_the_whole_run(tmp_path):
  plan = get_plan(tmp_path, solver__name='heun', schedule__name='karras', schedule__num_steps=3,
                  schedule__rho=5.0, labels='7,1')
  generate.run(plan)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['config']['solver'] == {'name': 'heun'}  # As given.
  assert manifest['solver'] == {'name': 'heun', 'afs': False, 'denoise_to_zero': False}
  assert manifest['schedule'] == {'name': 'karras', 'num_steps': 3, 'sigma_min': 0.002,
                                  'sigma_max': 80.0, 'rho': 5.0}
  assert manifest['sigmas'] == samplers.schedule('karras', 3, 0.002, 80.0, rho=5).tolist()
  assert manifest['nfe'] == 5  # Two per step, one for the step to 0.
  assert manifest['model']['name'] == 'digits_exact'
  assert manifest['model']['sha256'] == digits.SHA256
  assert manifest['seeds'] == [0, 1, 2, 3, 4] and manifest['labels'] == [7, 1, 7, 1, 7]
  assert manifest['files'] == [f'00000{seed}.png' for seed in range(5)]
  assert manifest['uint8_rule'].startswith('clip(x * 127.5 + 128, 0, 255)')
  assert manifest['versions']['jax'] == jax.__version__
  assert manifest['images_per_second'] > 0


@pytest.mark.parametrize('solver', [{'solver__name': 'dpmpp'},
                                    {'solver__name': 'ddim', 'solver__eta': 1.0}])
def test_an_image_depends_on_its_seed_alone(tmp_path, solver):
  whole = sample(get_plan(tmp_path, seeds='0-15', **solver))
  # Bit for bit at any place in a batch of the same size, whatever else is in it.
  other = sample(get_plan(tmp_path, seeds='40-47,15,5,0,60-64', **solver))
  np.testing.assert_array_equal(other[8:11], whole[[15, 5, 0]])
  # Another batch size sums in another order: float32 rounding, carried along by the solver.
  few = sample(get_plan(tmp_path, seeds='5-8', **solver))
  np.testing.assert_allclose(few, whole[5:9], atol=1e-3)


def test_files_do_not_depend_on_the_batch_size(tmp_path):
  for batch_size in (1, 4):
    generate.run(get_plan(tmp_path / str(batch_size), batch_size=batch_size))
  for name in [f'00000{seed}.png' for seed in range(5)]:
    one, four = (read(tmp_path / size / name).astype(int) for size in ('1', '4'))
    assert np.abs(one - four).max() <= 1  # Where rounding crosses a step of 1 / 127.5.


def test_samples_are_digits_of_their_class(tmp_path):
  plan = get_plan(tmp_path, seeds='0-19', labels='0-9')
  pictures, labels, _ = digits.images()
  distance = ((sample(plan)[:, None] - pictures[None, :])**2).sum((2, 3, 4))
  assert labels[distance.argmin(1)].tolist() == 2 * list(range(10))
  # Within the width of 0.05 per pixel of an image of the data set.
  assert np.sqrt(distance.min(1) / pictures[0].size).max() < 0.1


def counting(plan, count):
  """The plan with a model that counts how often it is traced."""
  def apply(*arguments):
    count.append(1)
    return plan.model.apply(*arguments)
  return apply


def test_batches_and_grids_share_one_compiled_program(tmp_path):
  count = []
  plan = get_plan(tmp_path, batch_size=2)  # Three batches.
  apply = counting(plan, count)
  def run(plan):
    generate.run(dataclasses.replace(plan, model=dataclasses.replace(plan.model, apply=apply)))
    return len(count)
  once = run(plan)
  assert once == run(get_plan(tmp_path, batch_size=2, seeds='90-99', labels='3',
                              schedule__name='logsnr', schedule__sigma_max=40.0))
  assert run(get_plan(tmp_path, batch_size=2, schedule__num_steps=5)) > once  # Another shape.


def test_manifest_comes_last_and_an_old_one_goes_first(tmp_path, monkeypatch):
  generate.run(get_plan(tmp_path))
  def fail(*arguments):
    raise OSError(28, 'No space left on device')
  monkeypatch.setattr(images, 'grid', fail)
  with pytest.raises(OSError, match='No space'):
    generate.run(get_plan(tmp_path))
  assert not (tmp_path / 'manifest.json').exists()
  assert not list(tmp_path.glob('*.partial')) + list(tmp_path.glob('.*'))


def test_samples_that_are_not_finite_name_the_seed_and_are_not_written(tmp_path):
  plan = get_plan(tmp_path, seeds='7-9')
  broken = dataclasses.replace(
      plan.model, apply=lambda params, x, sigma, labels: x.at[1].set(np.nan))
  with pytest.raises(FloatingPointError, match='must be finite, got .* for seed 8; take more'):
    generate.run(dataclasses.replace(plan, model=broken))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('limit, value', [('none', 3.0), ('clip', 1.0), ('dynamic', 1.0)])
def test_limits_on_the_denoised_image(tmp_path, limit, value):
  plan = get_plan(tmp_path, limit=limit, solver__name='euler', schedule__name='karras')
  bright = dataclasses.replace(
      plan.model, apply=lambda params, x, sigma, labels: np.float32(3) + 0 * x)
  np.testing.assert_allclose(sample(dataclasses.replace(plan, model=bright)), value, rtol=1e-5)


def test_a_model_without_classes_gets_no_labels(tmp_path):
  plan = get_plan(tmp_path)
  def apply(params, x, sigma, labels):
    assert labels is None
    return 0.5 + 0 * x
  generate.run(dataclasses.replace(plan, model=dataclasses.replace(
      plan.model, num_classes=0, apply=apply), labels=np.full(5, -1, np.int32)))
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['labels'] == [None] * 5 and len(manifest['files']) == 5


def test_lists_are_text_on_the_command_line(tmp_path):
  plan = get_plan(tmp_path, schedule__name='explicit', schedule__sigmas='80,5, 0.5,0')
  assert plan.sigmas.tolist() == [80.0, 5.0, 0.5, 0.0]
  plan = get_plan(tmp_path, schedule__name='sgm_uniform', schedule__num_steps=4,
                  schedule__alphas_cumprod='stable_diffusion')
  assert plan.sigmas[0] == pytest.approx(14.6146, abs=1e-4) and len(plan.sigmas) == 5


@pytest.mark.parametrize('overrides, message', [
    ({'seeds': '1,1'}, 'seeds: every seed must occur once, got 1'),
    ({'labels': '11'}, 'labels: classes must be from 0 to 9, got 11'),
    ({'batch_size': 0}, 'config.batch_size: must be an integer from 1 to 65536, got 0; '),
    ({'output__grid__size': 32}, 'grid.size: must be an integer from 64 to 512, got 32'),
    ({'limit': 'hard'}, "config.limit: must be one of: none, clip, dynamic, got 'hard'"),
    ({'model__name': 'digit'}, "model must be one of: digits_exact, got 'digit'"),
    ({'solver__name': 'dpmp'}, "unknown solver 'dpmp'.* dpmpp"),
    ({'solver__eta': 0.5}, "unipc: unknown option 'eta'.* max_order"),
    ({'solver__max_order': 9}, 'max_order must be an integer from 1 to 3, got 9'),
    ({'schedule__name': 'kara'}, "unknown schedule 'kara'.* karras"),
    ({'schedule__num_steps': 0}, 'num_steps must be an integer of at least 1, got 0'),
    ({'schedule__sigma_max': 0.001}, 'sigma_max must be above sigma_min, got 0.001 and 0.002'),
    ({'schedule__alpha': 0.6}, "time_uniform: unknown option 'alpha'"),
    ({'schedule__name': 'explicit', 'schedule__sigmas': '8,x'},
     "schedule: sigmas must be numbers separated by commas, got '8,x'"),
])
def test_bad_input_is_explained_before_any_work(tmp_path, overrides, message):
  with pytest.raises(ValueError, match=message) as caught:
    get_plan(tmp_path / 'out', **overrides)
  assert '\n' not in str(caught.value)
  assert not (tmp_path / 'out').exists()
