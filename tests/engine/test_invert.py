"""Inversion: to the latent and back, end to end, and what it refuses."""

import json

import numpy as np
import pytest

from configs import default
from engine import inputs, invert
from tests.engine import wide
from tests.engine.sampling import get_config


def get_plan(workdir, **overrides):
  fields = {'seeds': '0-4', 'batch_size': 4, 'input__images': 'gaussian_digits', 'labels': 'given',
            'solver__name': 'euler', 'schedule__num_steps': 40, **overrides}
  return invert.plan(get_config(**fields), str(workdir))


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  folder = tmp_path_factory.mktemp('invert')
  return folder, invert.run(get_plan(folder, solver__name='heun'))


def test_images_come_back(done):
  """Of second order, 40 steps each way, on the bundled model."""
  folder, told = done
  manifest = json.loads((folder / 'manifest.json').read_text())
  assert manifest['nfe'] == {'encode': 80, 'decode': 80} and 'RMS error' in told
  start = inputs.load('test', 'gaussian_digits', (8, 8, 3)).take(np.arange(5))
  for seed, image in enumerate(start):
    back = inputs.read_picture('test', folder / f'{seed:06d}.png')
    error = np.sqrt(np.mean((inputs.to_model(back) - inputs.to_model(image))**2))
    assert error == pytest.approx(manifest['rms_error'][seed], abs=0.01)  # The file has 8 bits.
  assert np.median(manifest['rms_error']) < 0.1


def test_the_picture_and_its_reconstruction_are_side_by_side(done):
  """In a grid as wide as five pairs: pixels of the original, then of what came back."""
  folder, _ = done
  grid = inputs.read_picture('test', folder / 'grid.png')
  step = grid.shape[1] // 8  # A cell of 96 pixels, and a gap.
  start = inputs.load('test', 'gaussian_digits', (8, 8, 3)).take(np.arange(1))[0]
  back = inputs.read_picture('test', folder / '000000.png')
  for cell, image in enumerate((start, back)):
    shown = grid[6:102, 6 + cell * step:102 + cell * step]
    means = shown.reshape(8, 12, 8, 12, 3).mean((1, 3))
    assert np.corrcoef(means.ravel(), image.ravel())[0, 1] > 0.95


@pytest.mark.parametrize('fields', [
    {'solver__name': 'dpmpp', 'solver__max_order': 3},
    {'solver__name': 'unipc', 'schedule__name': 'edm'},  # Which ends in 0.
    {'solver__name': 'euler', 'solver__afs': True, 'solver__denoise_to_zero': True},
])
def test_multistep_solvers_and_ends_of_the_way_down(tmp_path, monkeypatch, fields):
  """On Gaussian data, a class of one component; of first order is the last one alone."""
  exact = wide.model()
  monkeypatch.setattr(invert.resolve, 'model', lambda config: exact)
  told = invert.run(get_plan(tmp_path, labels='1', seeds='0-1', batch_size=2, **fields))
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert 'RMS error' in told and max(manifest['rms_error']) < (
      0.2 if fields['solver__name'] == 'euler' else 0.02)
  assert manifest['nfe'] == {'encode': 39 if 'schedule__name' in fields else 40, 'decode': 40}


def test_latents_are_those_of_the_first_level(done):
  folder, _ = done
  latents = np.stack([np.load(folder / 'latents' / f'{seed:06d}.npz')['latent']
                      for seed in range(5)])
  assert latents.shape == (5, 8, 8, 3)
  assert 0.5 < latents.std() < 1.5  # Like noise: images have a standard deviation of 0.7 / 80.


def test_a_second_run_has_nothing_to_do_and_a_lost_image_is_made_again(done):
  folder, _ = done
  plan = get_plan(folder, solver__name='heun')
  assert 'nothing to do' in invert.run(plan)
  before = (folder / '000002.png').read_bytes()
  (folder / '000002.png').unlink()
  (folder / 'manifest.json').unlink()
  invert.run(plan)
  assert (folder / '000002.png').read_bytes() == before
  (folder / 'latents' / '000003.npz').unlink()  # Of a run that was complete.
  assert 'RMS error' in invert.run(plan) and (folder / 'latents' / '000003.npz').exists()


@pytest.mark.parametrize('fields, message', [
    ({'input__images': None, 'labels': '3'}, 'input.images: must name the images to invert'),
    ({'solver__name': 'ddim', 'solver__eta': 1.0}, 'solver must draw no noise, got ddim with'),
    ({'solver__name': 'dpm_adaptive'}, 'solver must be a table, got dpm_adaptive'),
    ({'share': '0/2'}, 'share: must be 0/1 with --mode=invert, got 0/2'),
    ({'guidance__method': 'classifier_free'}, 'guidance.method: must be left out with --mode=inve'),
    ({'condition__task': 'inpaint'}, 'condition.task: must be left out with --mode=invert'),
])
def test_bad_input(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **fields)
  assert not (tmp_path / 'out').exists()


def test_default_config_has_no_images():
  assert default.get_config().input.images is None


def test_a_damaged_latent_is_named(tmp_path):
  fields = {'model__name': 'digits_exact', 'seeds': '0-1', 'batch_size': 2, 'labels': 'none',
            'input__images': 'gaussian_digits', 'schedule__num_steps': 2, 'solver__name': 'euler'}
  invert.run(invert.plan(get_config(**fields), str(tmp_path)))
  (tmp_path / 'latents' / '000001.npz').write_bytes(b'junk')
  (tmp_path / 'manifest.json').unlink()
  with pytest.raises(OSError, match='000001.npz must be what a run wrote, .*; delete it and start'):
    invert.run(invert.plan(get_config(**fields), str(tmp_path)))
