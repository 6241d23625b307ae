"""Bits per dimension, end to end: what is measured, resumed and refused."""

import json

import numpy as np
import pytest

from engine import likelihood
from tests.engine.sampling import get_config


def get_plan(workdir, **overrides):
  fields = {'seeds': '0-4', 'batch_size': 4, 'input__images': 'gaussian_digits', 'labels': 'given',
            'solver__name': 'ddpm', 'schedule__num_steps': 50, **overrides}
  return likelihood.plan(get_config(**fields), str(workdir))


def read(folder):
  return json.loads((folder / 'likelihood.json').read_text())


def test_numbers_belong_to_their_images_and_a_killed_run_goes_on(tmp_path):
  told = likelihood.run(get_plan(tmp_path / 'a'))
  whole = read(tmp_path / 'a')
  assert 'bits per dimension at most' in told and (tmp_path / 'a' / 'likelihood.png').exists()
  assert whole['nfe'] == 51 and len(whole['vb_by_step']) == 51  # The last step leads to the image.
  np.testing.assert_allclose(
      np.mean(whole['total']), np.mean(whole['prior']) + np.sum(whole['vb_by_step']), rtol=1e-5)
  plan = get_plan(tmp_path / 'b')
  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(likelihood.batches, 'run', interrupted(likelihood.batches.run))
    likelihood.run(plan)
  assert len(list((tmp_path / 'b' / 'parts').glob('*.json'))) == 1
  likelihood.run(plan)
  np.testing.assert_allclose(read(tmp_path / 'b')['total'], whole['total'], rtol=1e-5)
  assert not (tmp_path / 'b' / 'parts').exists()
  assert 'nothing to do' in likelihood.run(plan)


def interrupted(run):
  """`batches.run` that is stopped after its first batch."""
  def stopped(indices, batch_size, start, finish, progress, what, done=0):
    def once(some, answers):
      finish(some, answers)
      raise KeyboardInterrupt
    return run(indices, batch_size, start, once, progress, what, done)
  return stopped


def test_noise_is_less_likely_than_digits(tmp_path):
  rng = np.random.default_rng(0)
  np.savez(tmp_path / 'noise.npz', arr_0=rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
  likelihood.run(get_plan(tmp_path / 'digits'))
  likelihood.run(get_plan(tmp_path / 'noise', input__images=str(tmp_path / 'noise.npz'),
                          labels='none'))
  assert min(read(tmp_path / 'noise')['total']) > 2 * max(read(tmp_path / 'digits')['total'])


def test_a_damaged_result_is_explained(tmp_path):
  plan = get_plan(tmp_path)
  (tmp_path / 'likelihood.json').write_text('{"half')
  with pytest.raises(OSError, match='likelihood.json must be what a run wrote, .*; delete it and'):
    likelihood.run(plan)


@pytest.mark.parametrize('fields, message', [
    ({'input__images': None, 'labels': '3'}, 'input.images: must name the images to measure'),
    ({'solver__name': 'euler'}, 'solver: must be ddpm, .* got euler'),
    ({'solver__afs': True}, 'solver: must be ddpm, with no option but variance'),
    ({'solver__variance': 'learned'}, "variance: 'learned' must have a model that learned one"),
    ({'guidance__method': 'classifier_free'}, 'guidance.method: must be left out'),
])
def test_bad_input(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **fields)
  assert not (tmp_path / 'out').exists()
