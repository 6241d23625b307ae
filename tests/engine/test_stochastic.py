"""Stochastic and discrete solvers from a config to images, on the bundled model."""

import json

import numpy as np
import pytest

from engine import generate
from tests.engine.sampling import get_plan, samples

RUNS = {
    'seeds': {'solver__name': 'seeds', 'solver__order': 3, 'noise': 'three_point',
              'schedule__num_steps': 8},
    'sde': {'solver__name': 'dpmpp_2m_sde', 'schedule__name': 'karras', 'schedule__num_steps': 15},
    'churn': {'solver__name': 'edm', 'solver__S_churn': 5.0, 'schedule__name': 'edm',
              'schedule__num_steps': 10},
    'chain': {'solver__name': 'ddpm', 'schedule__name': 'respaced', 'limit': 'clip',
              'schedule__respacing': 'ddim25', 'schedule__alphas_cumprod': 'cosine'},
    'consistency': {'solver__name': 'consistency', 'schedule__name': 'subset',
                    'schedule__num_steps': 39, 'schedule__ts': '0,13,26,39'},
    'early, guided': {'solver__name': 'ddim', 'solver__eta': 1.0, 'schedule__sigma_max': 1.0,
                      'schedule__num_steps': 6, 'input__images': 'gaussian_digits',
                      'guidance__classifier': 'digits_classifier'},
}


def of(name, workdir, **fields):
  labels = 'given' if 'input__images' in RUNS[name] else '3,8'
  # A network where it matters that there is one.
  model = 'digits' if name in ('seeds', 'consistency', 'early, guided') else 'digits_exact'
  return get_plan(workdir, **{'model__name': model, 'labels': labels, 'batch_size': 8,
                              'seeds': '0-7', 'schedule__name': 'polynomial', **RUNS[name],
                              **fields})


@pytest.mark.parametrize('name', RUNS)
def test_images_of_a_stochastic_run(name, tmp_path):
  """In range, mostly black as digits are, with ink in every one; told in the manifest."""
  plan = of(name, tmp_path)
  told = generate.run(plan)
  assert f'NFE {plan.solver.nfe}' in told
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['solver']['noise'] == RUNS[name].get('noise', 'brownian')
  assert manifest['nfe'] == plan.solver.nfe
  json.loads((tmp_path / 'manifest.json').read_text(), parse_constant=pytest.fail)  # No Infinity.
  images = samples(plan)
  if name == 'consistency':  # The network is none: its answers are means, not samples.
    return
  assert np.abs(images).max() < 1.6
  assert np.median(images.max((1, 2, 3))) > -0.9 and np.quantile(images, 0.3) < -0.8


def test_another_seed_is_another_image(tmp_path):
  images = samples(of('sde', tmp_path))
  assert np.abs(images[0] - images[2]).max() > 0.3  # Of one class.
