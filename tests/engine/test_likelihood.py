"""Bits per dimension, end to end: what is measured, resumed and refused."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from engine import inputs, likelihood, seeds as seeds_lib
from samplers import likelihood as likelihood_lib
from tests.engine import wide
from tests.engine.sampling import get_config, interrupted

BOUND = {'solver__name': 'ddpm', 'schedule__num_steps': 50}


@pytest.fixture
def simple(monkeypatch):
  """Runs with a model whose density is known."""
  exact = wide.model()
  monkeypatch.setattr(likelihood.resolve, 'model', lambda config: exact)


def get_plan(workdir, **overrides):
  fields = {'seeds': '0-4', 'batch_size': 4, 'input__images': 'gaussian_digits', 'labels': '0,1',
            **overrides}
  return likelihood.plan(get_config(**fields), str(workdir))


def read(folder):
  return json.loads((folder / 'likelihood.json').read_text())


def test_the_ode_gives_the_density_of_the_model(simple, tmp_path):
  """Against the mixture's own density at the lowest level, given the class, in float64.

  From so high a level that the prior, which knows no mean of the data, leaves out nothing.
  """
  told = likelihood.run(get_plan(tmp_path, likelihood__divergence='exact',
                                 schedule__sigma_max=3000.0))
  found = read(tmp_path)
  pixels = inputs.load('test', 'gaussian_digits', (8, 8, 3)).take(np.arange(5))
  # Stream 4 of a seed: other numbers under the same seeds would break all that was measured.
  x = np.asarray(likelihood_lib.dequantize(
      jnp.asarray(pixels), seeds_lib.keys(np.arange(5), 4)), np.float64)
  labels = np.arange(5) % 2
  variance = wide.WIDTHS**2 + 0.002**2
  square = np.sum((x[:, None] - wide.MEANS)**2, (2, 3, 4))
  logs = -square / (2 * variance) - 96 * np.log(2 * np.pi * variance) + np.log(1 / 3)
  logs = np.where(labels[:, None] == wide.LABELS, logs, -np.inf)
  logs -= np.log(np.where(labels, 1 / 3, 2 / 3))[:, None]
  bits = 7 - np.logaddexp.reduce(logs, axis=1) / (192 * np.log(2))
  # Tens of steps, each off by up to 1e-4 nats per dimension.
  np.testing.assert_allclose(found['bits_per_dim'], bits, rtol=0, atol=2e-3)
  assert found['probe_errors'] == [None] * 5 and found['probe_error'] is None
  assert found['labels'] == labels.tolist()
  assert found['mean'] == pytest.approx(np.mean(bits), abs=2e-3)
  assert found['standard_error'] == pytest.approx(np.std(bits, ddof=1) / np.sqrt(5), abs=2e-3)
  assert f'{found["mean"]:.3f} +- {found["standard_error"]:.3f} bits per dimension by the' in told
  with Image.open(tmp_path / 'likelihood.png') as picture:
    assert picture.size[0] > 5 * 96


def test_numbers_belong_to_their_images_whatever_is_measured_beside_them(simple, tmp_path):
  """Probes and uniform noise come from the seed: another batch, another order, a killed run."""
  fields = {'likelihood__solver': 'heun_log', 'schedule__num_steps': 6, 'likelihood__probes': 3}
  likelihood.run(get_plan(tmp_path / 'a', **fields))
  whole = read(tmp_path / 'a')
  assert whole['nfe'] == [12] * 5 and len(whole['sigmas']) == 7
  likelihood.run(get_plan(tmp_path / 'b', **fields, batch_size=2, seeds='4,2', labels='0,1'))
  some = read(tmp_path / 'b')
  np.testing.assert_allclose(some['bits_per_dim'], np.array(whole['bits_per_dim'])[[4, 2]],
                             rtol=1e-5)
  np.testing.assert_allclose(some['probe_errors'], np.array(whole['probe_errors'])[[4, 2]],
                             rtol=1e-2)  # Differences of numbers that agree to five digits.
  plan = get_plan(tmp_path / 'c', **fields)
  kill(plan)
  assert len(list((tmp_path / 'c' / 'parts').glob('*.json'))) == 1
  likelihood.run(plan)
  np.testing.assert_allclose(read(tmp_path / 'c')['bits_per_dim'], whole['bits_per_dim'], rtol=1e-5)
  assert likelihood.run(plan).startswith('nothing to do: 5 images of gaussian_digits: ')
  assert 0 < whole['probe_error'] < whole['standard_error']  # Of the mean.


def test_more_images_are_measured_beside_those_that_are_there(simple, tmp_path, monkeypatch):
  fields = {'likelihood__solver': 'heun_log', 'schedule__num_steps': 3, 'labels': 'none'}
  likelihood.run(get_plan(tmp_path, **fields, seeds='0-3'))
  before = read(tmp_path)['bits_per_dim']
  measured = []
  run = likelihood.batches.run
  monkeypatch.setattr(likelihood.batches, 'run', lambda indices, *rest: (
      measured.extend(indices.tolist()), run(indices, *rest))[1])
  likelihood.run(get_plan(tmp_path, **fields, seeds='0-5'))
  assert measured == [4, 5] and read(tmp_path)['bits_per_dim'][:4] == before
  with pytest.raises(ValueError, match='must hold no images of other seeds, got seed 2 in'):
    get_plan(tmp_path, **fields, seeds='0-1')
  part = next((tmp_path / 'parts').glob('*.json'))
  part.write_text('{"half')
  with pytest.raises(OSError, match=f'{part.name} must be what a run wrote, .*; delete it and'):
    likelihood.run(get_plan(tmp_path, **fields, seeds='0-6'))


def kill(plan):
  """A run that is stopped after its first batch."""
  with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(likelihood.batches, 'run', interrupted(likelihood.batches.run))
    likelihood.run(plan)


def test_an_image_that_takes_too_many_steps_is_named(simple, tmp_path):
  plan = get_plan(tmp_path, likelihood__max_steps=2, likelihood__probes=1)
  with pytest.raises(FloatingPointError, match='must reach the highest level, got image 0 that'):
    likelihood.run(plan)
  likelihood.run(get_plan(tmp_path, likelihood__probes=1))  # The remedy, in the same folder.
  assert min(read(tmp_path)['nfe']) > 12


def test_the_bound_is_told_by_step_and_no_less_than_the_density(simple, tmp_path):
  told = likelihood.run(get_plan(tmp_path / 'bound', **BOUND))
  found = read(tmp_path / 'bound')
  assert 'bits per dimension at most' in told and (tmp_path / 'bound' / 'likelihood.png').exists()
  assert found['nfe'] == 51 and len(found['vb_by_step']) == 51  # The last step leads to the image.
  np.testing.assert_allclose(
      np.mean(found['bits_per_dim']), np.mean(found['prior']) + np.sum(found['vb_by_step']),
      rtol=1e-5)
  likelihood.run(get_plan(tmp_path / 'ode', likelihood__probes=1))
  assert min(np.subtract(found['bits_per_dim'], read(tmp_path / 'ode')['bits_per_dim'])) > 0


def test_noise_is_less_likely_than_digits(tmp_path):
  """By the bundled network."""
  rng = np.random.default_rng(0)
  np.savez(tmp_path / 'noise.npz', arr_0=rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8))
  fields = {'likelihood__solver': 'heun_log', 'schedule__num_steps': 10, 'labels': 'none',
            'likelihood__probes': 1}
  likelihood.run(get_plan(tmp_path / 'digits', **fields))
  likelihood.run(get_plan(tmp_path / 'noise', **fields, input__images=str(tmp_path / 'noise.npz')))
  assert min(read(tmp_path / 'noise')['bits_per_dim']) > max(
      read(tmp_path / 'digits')['bits_per_dim']) + 1


def test_a_damaged_result_is_explained(simple, tmp_path):
  plan = get_plan(tmp_path, **BOUND)
  (tmp_path / 'likelihood.json').write_text('{"half')
  with pytest.raises(OSError, match='likelihood.json must be what a run wrote, .*; delete it and'):
    likelihood.run(plan)


@pytest.mark.parametrize('fields, message', [
    ({'input__images': None, 'labels': '3'}, 'input.images: must name the images to measure'),
    ({'likelihood__method': 'bound', 'solver__name': 'euler'}, 'must be ddpm, .* got euler'),
    ({**BOUND, 'solver__afs': True}, 'solver: must be ddpm, with no option but variance'),
    ({**BOUND, 'solver__variance': 'learned'}, "'learned' must have a model that learned one"),
    ({'guidance__method': 'classifier_free'}, 'guidance.method: must be left out'),
    ({'likelihood__method': 'sde'}, "config.likelihood: unknown method 'sde'"),
    ({'likelihood__solver': 'rk5'}, "config.likelihood: unknown solver 'rk5'; did you mean rk4"),
    ({'likelihood__divergence': 'normal'}, "config.likelihood: unknown divergence 'normal'"),
    ({'likelihood__probes': 0}, 'likelihood.probes: must be an integer of 1 or more, got 0'),
    ({'likelihood__max_steps': 0}, 'likelihood.max_steps: must be an integer of 1 or more, got 0'),
    ({'likelihood__rtol': 0.0}, 'likelihood: rtol must be a finite number above 0, got 0.0'),
    ({'schedule__name': 'edm', 'schedule__num_steps': 1}, 'schedule: must have two levels above 0'),
])
def test_bad_input(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **fields)
  assert not (tmp_path / 'out').exists()
