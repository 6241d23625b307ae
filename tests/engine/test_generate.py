"""The job from a config to files: what it writes, what it refuses, what an image depends on."""

import dataclasses
import json
import threading
import time

import jax
import numpy as np
import pytest

import samplers
from engine import devices, generate, images, results, sampler, seeds
from models import digits
from tests.engine.sampling import get_plan, samples


def with_apply(plan, apply, **changes):
  """The plan with another network."""
  return dataclasses.replace(plan, model=dataclasses.replace(plan.model, apply=apply, **changes))


def read(plan):
  """Images of all seeds of a finished run, uint8 (n, height, width, channels)."""
  return np.stack([images.read_png(results.path(plan.results, seed))
                   for seed in plan.results.seeds.tolist()])


def names(folder):
  """All files under a folder."""
  return sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file())


def test_run_writes_images_grid_and_manifest(tmp_path):
  plan = get_plan(tmp_path / 'out', seeds='3,0-1,70000', labels='none', output__grid__columns=3)
  summary = generate.run(plan)
  assert f'4 images in {tmp_path / "out"}: unipc' in summary and 'NFE 8' in summary
  assert names(tmp_path / 'out') == ['000000.png', '000001.png', '000003.png', '070000.png',
                                     'grid.png', 'manifest.json', 'run.json']
  np.testing.assert_array_equal(read(plan), images.to_uint8(samples(plan)))
  height, width, _ = images.read_png(tmp_path / 'out' / 'grid.png').shape
  assert width == 3 * 96 + 4 * 6 and height > 2 * 96  # Three and one, each with its caption.


def test_manifest_tells_the_whole_run(tmp_path):
  plan = get_plan(tmp_path, solver__name='heun', schedule__name='karras', schedule__num_steps=3,
                  schedule__rho=5.0, labels='7,1', output__uint8_rule='truncate')
  generate.run(plan)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['config']['solver'] == {'name': 'heun'}  # As given.
  assert manifest['solver'] == {'name': 'heun', **samplers.options('heun'), 'S_max': 'inf'}
  assert manifest['schedule'] == {'name': 'karras', 'num_steps': 3, 'sigma_min': 0.002,
                                  'sigma_max': 80.0, 'rho': 5.0}
  assert manifest['sigmas'] == samplers.schedule('karras', 3, 0.002, 80.0, rho=5).tolist()
  assert manifest['nfe'] == 5  # Two per step, one for the step to 0.
  assert manifest['model']['name'] == 'digits_exact'
  assert manifest['model']['sha256'] == digits.SHA256
  assert manifest['seeds'] == [0, 1, 2, 3, 4] and manifest['labels'] == [7, 1, 7, 1, 7]
  assert manifest['files'] == [f'00000{seed}.png' for seed in range(5)]
  assert manifest['uint8_rule'] == 'clip((x + 1) * 127.5, 0, 255), truncated'
  assert manifest['versions']['jax'] == jax.__version__
  assert manifest['devices']['images_per_device'] * devices.count() == 4
  assert manifest['images_per_second'] > 0


@pytest.mark.parametrize('solver', [{}, {'solver__name': 'ddim', 'solver__eta': 1.0}])
def test_an_image_depends_on_its_seed_alone(tmp_path, solver):
  whole = samples(get_plan(tmp_path, seeds='0-15', batch_size=16, **solver))
  # Bit for bit at any place in a batch of the same size, whatever else is in it.
  other = samples(get_plan(tmp_path, seeds='40-47,15,5,0,60-64', batch_size=16, **solver))
  np.testing.assert_array_equal(other[8:11], whole[[15, 5, 0]])
  # Another batch size sums in another order: float32 rounding, carried along by the solver.
  few = samples(get_plan(tmp_path, seeds='5-8', **solver))
  np.testing.assert_allclose(few, whole[5:9], atol=1e-3)


def test_files_do_not_depend_on_the_batch_size(tmp_path):
  plans = [get_plan(tmp_path / str(size), batch_size=size) for size in (4, 16)]
  for plan in plans:
    generate.run(plan)
  small, large = (read(plan).astype(int) for plan in plans)
  assert np.abs(small - large).max() <= 1  # Where rounding crosses a step of 1 / 127.5.


def test_samples_are_digits_of_their_class(tmp_path):
  plan = get_plan(tmp_path, seeds='0-19', labels='balanced')
  pictures, labels, _ = digits.images()
  distance = ((samples(plan)[:, None] - pictures[None, :])**2).sum((2, 3, 4))
  assert labels[distance.argmin(1)].tolist() == 2 * list(range(10))
  # Within the width of 0.05 per pixel of an image of the data set.
  assert np.sqrt(distance.min(1) / pictures[0].size).max() < 0.1


@pytest.mark.parametrize('source', seeds.SOURCES)
def test_a_run_starts_from_the_latents_of_who_is_asked(tmp_path, source):
  # A step of Euler with a model that answers 0 scales the latent, from 80 to 40.
  plan = get_plan(tmp_path, seeds_from=source, solver__name='euler', schedule__name='explicit',
                  schedule__sigmas='80,40')
  plan = with_apply(plan, lambda params, x, sigma, labels: 0 * x)
  some = np.resize(plan.results.seeds, 5 * devices.count())
  expected = devices.merge(seeds.latents(some, (8, 8, 3), source))[:5]
  np.testing.assert_allclose(samples(plan), 40 * expected, rtol=1e-5)


def test_batches_and_grids_share_one_compiled_program(tmp_path):
  count = []
  def apply(params, x, sigma, labels):
    count.append(1)
    return 0.5 * x
  plan = get_plan(tmp_path / 'a', batch_size=2)  # Three batches.
  generate.run(with_apply(plan, apply))
  once = len(count)
  generate.run(with_apply(get_plan(
      tmp_path / 'b', batch_size=2, seeds='90-99', labels='3', schedule__name='logsnr',
      schedule__sigma_max=40.0, seeds_from='torch_cpu'), apply))
  assert len(count) == once
  generate.run(with_apply(get_plan(tmp_path / 'c', batch_size=2, schedule__num_steps=5), apply))
  assert len(count) > once  # Another shape.


def test_samples_that_are_not_finite_name_the_seed_and_are_not_written(tmp_path):
  plan = with_apply(get_plan(tmp_path, seeds='7-9'),
                    lambda params, x, sigma, labels: x.at[1].set(np.nan))
  with pytest.raises(FloatingPointError, match='must be finite, got .* for seed 8; take more'):
    generate.run(plan)
  assert names(tmp_path) == ['run.json']


@pytest.mark.parametrize('limit, value', [('none', 3.0), ('clip', 1.0), ('dynamic', 1.0)])
def test_limits_on_the_denoised_image(tmp_path, limit, value):
  plan = get_plan(tmp_path, limit=limit, solver__name='euler', schedule__name='karras')
  bright = with_apply(plan, lambda params, x, sigma, labels: np.float32(3) + 0 * x)
  np.testing.assert_allclose(samples(bright), value, rtol=1e-5)


def test_a_model_without_classes_gets_no_labels(tmp_path):
  def apply(params, x, sigma, labels):
    assert labels is None
    return 0.5 + 0 * x
  plan = with_apply(get_plan(tmp_path, output__format='npz', labels='none'), apply, num_classes=0)
  generate.run(plan)
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['labels'] == [None] * 5
  with np.load(tmp_path / 'samples.npz') as arrays:
    assert list(arrays) == ['arr_0'] and arrays['arr_0'].shape == (5, 8, 8, 3)


def test_lists_are_text_on_the_command_line(tmp_path):
  plan = get_plan(tmp_path, schedule__name='explicit', schedule__sigmas='80,5, 0.5,0')
  assert plan.sigmas.tolist() == [80.0, 5.0, 0.5, 0.0]
  plan = get_plan(tmp_path, schedule__name='sgm_uniform', schedule__num_steps=4,
                  schedule__alphas_cumprod='stable_diffusion')
  assert plan.sigmas[0] == pytest.approx(14.6146, abs=1e-4) and len(plan.sigmas) == 5


def test_the_next_batch_is_computed_while_the_last_one_is_written(tmp_path, monkeypatch):
  events, of_test = [], threading.current_thread()
  def program(constants, inputs):
    events.append('start')
    return np.zeros((*inputs.seeds.shape, 8, 8, 3), np.float32), None
  def write(path, image):
    if path.stem.isdigit():  # The grid comes at the end.
      assert threading.current_thread() is not of_test
      time.sleep(0.02)
      events.append('written')
    written(path, image)
  written = images.write_png
  monkeypatch.setattr(sampler, 'program', lambda *_: program)
  monkeypatch.setattr(images, 'write_png', write)
  generate.run(get_plan(tmp_path, seeds='0-11'))
  assert events[:2] == ['start', 'start']
  assert events.count('start') == 3 and events.count('written') == 12


def test_progress_counts_images_and_those_that_were_there(tmp_path):
  calls = []
  class Progress:
    def __init__(self, *arguments, **keywords):
      calls.append((arguments, keywords))
    def __enter__(self):
      return lambda count=1, **shown: calls.append(count)
    def __exit__(self, *error):
      pass
  plan = get_plan(tmp_path)
  generate.run(plan, Progress)
  assert calls == [(('compiling', 1, 'program'), {}), 1,
                   (('sampling', 5, 'images'), {'done': 0}), 4, 1]
  for name in ('000001.png', '000003.png'):
    (tmp_path / name).unlink()
  calls.clear()
  assert ', 3 of them were there: ' in generate.run(plan, Progress)
  assert calls[2:] == [(('sampling', 5, 'images'), {'done': 3}), 2]


@pytest.mark.parametrize('overrides, message', [
    ({'seeds': '1,1'}, 'seeds: every seed must occur once, got 1'),
    ({'seeds': ''}, 'seeds: must be numbers and ranges .* got an empty text'),
    ({'seeds_from': 'torch'}, "unknown config.seeds_from 'torch'; did you mean torch_cpu?"),
    ({'labels': '11'}, 'labels: classes must be from 0 to 9, got 11'),
    ({'batch_size': 0}, 'config.batch_size: must be an integer from 1 to 65536, got 0; '),
    ({'output__grid__size': 32}, 'grid.size: must be an integer from 64 to 512, got 32'),
    ({'output__format': 'pgn'}, "unknown config.output.format 'pgn'; did you mean png?"),
    ({'output__uint8_rule': 'nearst'}, "config.output.uint8_rule 'nearst'; did you mean nearest?"),
    ({'limit': 'clop'}, "unknown config.limit 'clop'; did you mean clip. .* none"),
    ({'model__name': 'digit_exact'},
     "unknown config.model.name 'digit_exact'; did you mean digits_exact?"),
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


@pytest.mark.parametrize('content, message', [
    (None, r'nothing|unknown model'),
    ({}, 'without config.json'),
    ({'config.json': '{"format": 1000}'}, 'must be at most [0-9]+, got 1000; update'),
    ({'config.json': '{"format": 1}'}, 'must have all fields, got none for'),
    ({'config.json': '{"format":'}, 'must be JSON'),
])
def test_a_model_directory_that_cannot_be_used_is_explained(tmp_path, content, message):
  folder = tmp_path / 'model'
  if content is not None:
    folder.mkdir()
    for name, text in content.items():
      (folder / name).write_text(text)
  with pytest.raises(ValueError, match=message) as caught:
    get_plan(tmp_path / 'out', model__path=str(folder))
  assert '\n' not in str(caught.value) and str(folder) in str(caught.value)
  assert not (tmp_path / 'out').exists()


def test_latents_too_large_for_a_card_are_refused_before_any_work(tmp_path, monkeypatch):
  monkeypatch.setattr(seeds.torch_rng, 'MOST_CUDA', 100)
  with pytest.raises(ValueError, match='must have at most 100 numbers, got 192'):
    get_plan(tmp_path / 'out', seeds_from='torch_cuda')
  assert not (tmp_path / 'out').exists()


def test_the_text_none_takes_a_field_back(tmp_path):
  """As --config.guidance.classifier=None does for a config that has one."""
  plan = get_plan(tmp_path, guidance__classifier='None', model__path='None', solver__variant='None')
  assert plan.guide is None and plan.model.name == 'digits_exact'
  assert plan.solver.identity['variant'] == 'bh2'
