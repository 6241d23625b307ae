"""Guidance by a classifier: Bayes' rule on exact models, and the guided job."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from engine import generate
from models import mixture
from samplers import guidance
from tests.engine.sampling import get_plan, samples
from tests.models.test_edm_nets import quickly

GUIDED = {'guidance__classifier': 'digits_exact', 'labels': '3,8'}


@pytest.mark.parametrize('sigma', [0.1, 1.0, 20.0])
def test_without_a_class_and_guided_is_the_denoiser_of_the_class(x64, sigma):
  model, classifier = models.load('digits_exact'), models.load_classifier('digits_exact')
  params = jax.tree.map(lambda array: jnp.asarray(array, np.float64) if (
      np.issubdtype(array.dtype, np.floating)) else jnp.asarray(array), model.params)
  labels = jnp.array([3, 8, 0])
  x = 0.3 + sigma * jax.random.normal(jax.random.key(0), (3, 8, 8, 3))
  def log_prob(x, sigma):
    return classifier.apply(params, x, sigma)[jnp.arange(3), labels]
  def uncond(x, sigma):
    return model.apply(params, x, sigma, jnp.full(3, mixture.UNCONDITIONAL))
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    guided = quickly(guidance.classifier(uncond, log_prob, 1.0))(x, jnp.asarray(sigma))
    expected = model.apply(params, x, sigma, labels)
  np.testing.assert_allclose(guided, expected, atol=1e-9)  # Sums over all digits' images.


def test_guided_samples_of_a_model_without_classes_are_those_of_the_classes(tmp_path):
  options = {'schedule__num_steps': 4, 'solver__name': 'euler'}
  wanted = samples(get_plan(tmp_path / 'a', labels='3,8', **options))
  guided = get_plan(tmp_path / 'b', **GUIDED, **options)
  apply = guided.model.apply
  guided = dataclasses.replace(guided, model=dataclasses.replace(
      guided.model, num_classes=0,  # As an unconditional network: it never sees the labels.
      apply=lambda params, x, sigma, labels=None: apply(params, x, sigma, None)))
  # In float32 the gradient of log p is a difference of sums over all images; 5e-6 was seen.
  assert abs(samples(guided) - wanted).max() < 1e-4


def test_scales_share_one_program_and_change_the_run(tmp_path):
  plans = [get_plan(tmp_path / str(scale), **GUIDED, guidance__scale=scale) for scale in (0.5, 2.0)]
  programs = [generate.sampler_of(plan)[0] for plan in plans]
  assert programs[0] is programs[1]
  generate.run(plans[0])
  manifest = json.loads((tmp_path / '0.5' / 'manifest.json').read_text())
  assert manifest['guidance']['classifier'] == 'digits_exact'
  assert manifest['guidance']['scale'] == 0.5 and manifest['labels'] == [3, 8, 3, 8, 3]
  with pytest.raises(ValueError, match=r'guidance\.scale 0\.5 \(now 2\.0\)'):
    get_plan(tmp_path / '0.5', **GUIDED, guidance__scale=2.0)


@pytest.mark.parametrize('fields, message', [
    ({'guidance__scale': 2.0}, 'guidance.scale: must be 1 without a classifier, got 2.0'),
    ({**GUIDED, 'guidance__scale': float('inf')}, 'scale: must be a finite number, got inf'),
    ({**GUIDED, 'labels': 'none'}, "labels: must be classes for a classifier .* got 'none'"),
    ({**GUIDED, 'guidance__classifier': 'nowhere'}, "unknown model 'nowhere'.*digits_classifier"),
    ({**GUIDED, 'guidance__classifier': str(models.model.ASSETS / 'digits')},
     'must be a classifier, got the denoiser'),
])
def test_bad_guidance_is_refused(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **fields)
  assert not (tmp_path / 'out').exists()


def test_classifier_of_other_images_is_refused(tmp_path, monkeypatch):
  other = dataclasses.replace(models.load_classifier('digits_classifier'), image_shape=(16, 16, 3))
  monkeypatch.setattr(models, 'load_classifier', lambda path: other)
  with pytest.raises(ValueError, match=r'images of shape \(8, 8, 3\), .* got \(16, 16, 3\)'):
    get_plan(tmp_path, **GUIDED)
