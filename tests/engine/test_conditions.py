"""Tasks with an image given in part, end to end, and what they refuse.

Only what is about a network asks the bundled one: the exact model compiles in a fraction of the
time. tests/test_main.py runs configs/inpaint.py as it is.
"""

import json

import numpy as np
import pytest

from configs import tasks
from engine import conditions, generate, images as images_lib, inputs
from tests.engine.sampling import get_plan, samples

THREE = str(tasks.EXAMPLES / 'three.png')
MASK = str(tasks.EXAMPLES / 'upper_half.png')
RUN = {'labels': 'none', 'solver__name': 'ddpm', 'seeds': '0-3', 'schedule__name': 'polynomial',
       'schedule__num_steps': 12, 'condition__image': THREE}
TASKS = {
    'inpaint': {'condition__task': 'inpaint', 'condition__mask': MASK},
    'mean': {'condition__task': 'super_resolution'},
    'bicubic': {'condition__task': 'super_resolution', 'condition__kernel': 'bicubic'},
    'colorize': {'condition__task': 'colorize'},
}


def measured(plan, images):
  method, constants = plan.condition.method, plan.condition.constants
  return np.asarray(conditions.operator(method, constants)(images))


@pytest.mark.parametrize('task', ['inpaint', 'mean', 'colorize'])
def test_samples_agree_with_what_was_measured(tmp_path, task):
  plan = get_plan(tmp_path, **RUN, **TASKS[task], schedule__sigma_min=0.02)
  last = plan.sigmas[-1]  # The grid ends there, so with noise of that level.
  images = samples(plan)
  error = measured(plan, images) - measured(plan, plan.condition.constants.reference)
  assert np.sqrt(np.mean(error**2)) < 1.2 * last
  assert abs(images[0] - images[1]).max() > 0.1  # Two answers to one question.


@pytest.mark.parametrize('solver', ['dpmpp', 'stsp'])
def test_gradient_pulls_towards_the_measurement(tmp_path, solver):
  """Folded into the denoiser, or split off into rows of its own."""
  run = {**RUN, **TASKS['inpaint'], 'model__name': 'digits_exact', 'solver__name': solver,
         'condition__method': 'gradient'}
  near, far = (get_plan(tmp_path / str(scale), **run, condition__scale=scale)
               for scale in (4.0, 1e-6))
  def error(plan):
    return np.sqrt(np.mean((measured(plan, samples(plan)) - measured(
        plan, plan.condition.constants.reference))**2))
  assert error(near) < 0.5 * error(far)


def test_run_shows_input_result_and_reference(tmp_path):
  plan = get_plan(tmp_path, **RUN, **TASKS['bicubic'], output__grid__columns=6)
  told = generate.run(plan)
  assert 'super_resolution of' in told
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['condition'] == {
      'task': 'super_resolution', 'image': 'three.png', 'method': 'replace', 'factor': 2,
      'kernel': 'bicubic', 'sha256': manifest['condition']['sha256']}
  grid = images_lib.read_png(tmp_path / 'grid.png')
  cells = [grid[6:102, 6 + 102 * column:102 + 102 * column] for column in range(6)]
  for left, right in ((0, 3), (2, 5)):  # Two rows of input, result, reference.
    np.testing.assert_array_equal(cells[left], cells[right])
  assert grid.shape[1] == 6 * 102 + 6 and abs(cells[1].astype(int) - cells[4]).max() > 20


def test_a_small_or_gray_picture_is_what_is_known(tmp_path):
  """No reference is shown then, and only what was given counts."""
  three = inputs.read_picture('test', tasks.EXAMPLES / 'three.png')
  images_lib.write_png(tmp_path / 'small.png', three[::2, ::2])
  images_lib.write_png(tmp_path / 'gray.png', three[..., :1])
  small = get_plan(tmp_path / 'a', **{
      **RUN, **TASKS['mean'], 'condition__image': str(tmp_path / 'small.png')})
  gray = get_plan(tmp_path / 'b', **{
      **RUN, **TASKS['colorize'], 'condition__image': str(tmp_path / 'gray.png')})
  for plan in (small, gray):
    assert plan.condition.reference is None
    np.testing.assert_allclose(measured(plan, plan.condition.constants.reference),
                               plan.condition.constants.reference, atol=1e-6)
  np.testing.assert_array_equal(small.condition.known[::2, ::2],
                                inputs.to_model(three[::2, ::2]))


@pytest.mark.parametrize('fields, message', [
    ({'condition__task': 'paint'}, "unknown config.condition.task 'paint'; did you mean inpaint"),
    ({'condition__task': None}, 'condition.image: must be left out without a task'),
    ({'condition__image': None}, 'condition.image: must be a picture, got None'),
    ({'condition__image': 'nowhere.png'}, 'condition.image: must be a PNG or JPEG picture, got no'),
    ({'condition__mask': None}, 'condition.mask: must be a picture, white where .* got None'),
    ({'condition__task': 'colorize'}, 'condition.mask: must be left out for the task colorize'),
    ({'condition__mask': 'LARGE'}, r'condition.mask: must be of the size .* \(8, 8\), got \(16'),
    ({'condition__image': 'LARGE'}, 'condition.image: must be of the size 8x8, got 16x16'),
    ({'condition__image': 'GRAY'}, 'condition.image: must have 3 channels for the task inpaint'),
    ({'condition__task': 'super_resolution', 'condition__mask': None, 'condition__factor': 3},
     'condition.factor: must be an integer that divides .* 8 and 8, got 3'),
    ({'condition__factor': 4}, 'condition.factor: must be left out for the task inpaint, got 4'),
    ({'condition__scale': 9.0}, "condition.scale: must be left out with the method 'replace'"),
    ({'condition__method': 'guess'}, "unknown config.condition.method 'guess'"),
    ({'condition__scale': 0.0, 'condition__method': 'gradient'},
     'config.condition: scale must be a finite number above 0'),
    ({'solver__name': 'dpm_adaptive'}, "condition.method: must be 'gradient' with dpm_adaptive"),
])
def test_bad_input_is_refused(tmp_path, fields, message):
  images_lib.write_png(tmp_path / 'large.png', np.zeros((16, 16, 3), np.uint8))
  images_lib.write_png(tmp_path / 'gray.png', np.zeros((8, 8, 1), np.uint8))
  files = {'LARGE': str(tmp_path / 'large.png'), 'GRAY': str(tmp_path / 'gray.png')}
  fields = {name: files.get(value, value) for name, value in fields.items()}
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **{**RUN, **TASKS['inpaint'], **fields})
  assert not (tmp_path / 'out').exists()
