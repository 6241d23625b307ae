"""Guidance by a classifier: Bayes' rule on exact models, and the guided job."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
import samplers
from engine import generate, seeds as seeds_lib, solvers
from models import mixture
from samplers import guidance
from tests.engine.sampling import get_plan, samples, with_network
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
    ({**GUIDED, 'labels': 'none'}, "labels: must be classes for guidance .* got 'none'"),
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


# -- Guidance by the difference of two networks ---------------------------------------------------

FREE = {'labels': '3,8', 'solver__name': 'euler', 'schedule__num_steps': 4, 'seeds': '0-3'}


def test_classifier_free_guidance_is_its_formula_in_one_call_or_two(tmp_path):
  one, two = (with_network(get_plan(
      tmp_path / str(calls), **FREE, guidance__method='classifier_free', guidance__scale=3.0,
      guidance__calls=calls, guidance__interval='0.05,20')) for calls in (1, 2))
  apart = samples(one)
  np.testing.assert_allclose(samples(two), apart, atol=2e-5)  # Another batch size sums otherwise.
  model, x = one.model, np.asarray(one.sigmas[0] * latents(one), np.float32)
  def free(x, sigma):
    cond, nobody = (model.apply(model.params, x, sigma, jnp.array(labels))
                    for labels in ([3, 8, 3, 8], [-1] * 4))
    return nobody + jnp.where((sigma > 0.05) & (sigma <= 20), 3.0, 1.0) * (cond - nobody)
  expected = jax.jit(lambda x: samplers.run(one.solver.arrays, free, x))(x)
  np.testing.assert_allclose(apart, expected, atol=2e-5)


def latents(plan):
  drawn = seeds_lib.latents(plan.results.seeds, plan.model.image_shape, 'jax')
  return np.asarray(drawn).reshape(-1, *plan.model.image_shape)


def test_autoguidance_by_a_weaker_model_within_its_levels(tmp_path):
  """And CFG++: both runs differ from plain ones, and say in the manifest what they were."""
  plain = samples(get_plan(tmp_path / 'plain', **FREE))
  for name, fields in (
      ('autoguidance', {'guidance__weak': 'digits_early', 'guidance__interval': '0,1'}),
      ('cfg_plus_plus', {})):
    plan = get_plan(tmp_path / name, **FREE, guidance__method=name, guidance__scale=0.4, **fields)
    assert abs(samples(plan) - plain).max() > 0.01
    assert plan.results.identity['guidance']['method'] == name
  generate.run(plan)
  manifest = json.loads((tmp_path / name / 'manifest.json').read_text())
  assert manifest['guidance'] == {'method': 'cfg_plus_plus', 'scale': 0.4}


METHODS = {
    'rescale': {'phi': 0.5, 'space': 'eps'}, 'apg': {'momentum': -0.5, 'norm_threshold': 2.0},
    'cfg_zero_star': {'zero_above': 50.0}, 'tcfg': {'interval': '0,50'}, 'mambo_g': {'ramp': '2'},
    'fresca': {'freq_cutoff': 2, 'negative': 5}, 'cfg_norm': {'ramp': 'cosine'},
    'perp_neg': {'negative': 5, 'negative_scale': 0.5},
    'cfg_plus_plus': {'solver__name': 'dpmpp_2m_cfg_pp', 'scale': 0.5}}


def test_every_method_is_run_below():
  assert {*METHODS, 'classifier_free'} == {*guidance.METHODS, 'cfg_plus_plus'}


@pytest.mark.parametrize('method', METHODS)
def test_every_method_from_its_fields_to_its_images(tmp_path, method):
  """Against `samplers.run` with the guidance built by hand; the manifest tells the fields."""
  fields = {'scale': 3.0, **METHODS[method]}
  solver = fields.pop('solver__name', 'euler')
  plan = get_plan(tmp_path, **{**FREE, 'schedule__num_steps': 2, 'solver__name': solver},
                  guidance__method=method,
                  **{f'guidance__{field}': value for field, value in fields.items()})
  seen = samples(plan)
  generate.run(plan)
  told = json.loads((tmp_path / 'manifest.json').read_text())['guidance']
  scale, interval, ramp = told.pop('scale'), told.pop('interval', None), told.pop('ramp', None)
  negative = told.pop('negative', None)
  assert told.pop('method') == method
  model, wanted = plan.model, jnp.array([3, 8, 3, 8])
  if ramp:
    scale = guidance.ramp(scale, model.sigma_min, model.sigma_max, ramp)

  def under(label):
    return lambda x, sigma: model.denoise(x, sigma, jnp.full(4, label))
  others = [under(-1 if negative is None else negative)]
  if method == 'perp_neg':
    others, told['denoise_negative'] = [under(-1)], under(negative)
  name = 'classifier_free' if method == 'cfg_plus_plus' else method
  denoise = guidance.METHODS[name](lambda x, sigma: model.denoise(x, sigma, wanted), *others,
                                   scale, interval=interval, **told)
  table = samplers.make(solver, plan.sigmas)
  assert table.answers == 1 + (method == 'cfg_plus_plus')
  expected = jax.jit(lambda x: samplers.run(table, denoise, x))(
      np.asarray(plan.sigmas[0] * latents(plan), np.float32))
  np.testing.assert_allclose(seen, expected, atol=2e-4)  # Of values of size 1 to 80, in float32.
  assert np.isfinite(seen).all()


def test_values_of_options_share_a_program_and_their_kinds_do_not(tmp_path):
  def program(name, **fields):
    return generate.sampler_of(get_plan(tmp_path / name, **FREE, guidance__method='apg',
                                        **{f'guidance__{k}': v for k, v in fields.items()}))[0]
  one = program('a', eta=0.3, norm_threshold=1.0, ramp='2')
  assert program('b', eta=0.5, norm_threshold=0.0, ramp='2', scale=7.0, negative=3) is one
  assert program('c', eta=0.3, norm_threshold=1.0, ramp='linear') is not one
  assert program('d', momentum=0.0) is program('e')


def test_splitting_asks_the_trained_classifier_in_rows_of_its_own(tmp_path):
  plan = get_plan(tmp_path, **{**FREE, 'solver__name': 'stsp'}, guidance__scale=2.0,
                  guidance__classifier='digits_classifier')
  assert plan.solver.splits
  model, classifier = plan.model, models.load_classifier('digits_classifier')
  labels = jnp.array([3, 8, 3, 8])
  guide = guidance.classifier_term(
      lambda x, sigma: classifier.log_prob(x, sigma)[jnp.arange(4), labels], 2.0)
  expected = jax.jit(lambda x: samplers.run(
      samplers.make('stsp', plan.sigmas), lambda x, sigma: model.denoise(x, sigma, labels), x,
      guide=guide))(np.asarray(plan.sigmas[0] * latents(plan), np.float32))
  np.testing.assert_allclose(samples(plan), expected, atol=1e-4)


@pytest.mark.parametrize('fields, message', [
    ({'guidance__method': 'magic'}, "unknown config.guidance.method 'magic'"),
    ({'guidance__method': 'classifier'}, "guidance.classifier: must be given with the method 'cla"),
    ({'guidance__method': 'classifier_free', 'guidance__weak': 'digits_early'},
     "guidance.weak: must be left out with the method 'classifier_free'"),
    ({'guidance__method': 'classifier_free', 'labels': 'none'}, 'labels: must be classes for'),
    ({'guidance__method': 'classifier_free', 'guidance__calls': 3}, 'guidance.calls: must be 1'),
    ({'guidance__method': 'classifier_free', 'guidance__interval': '5,1'},
     "interval: must be two noise levels, the lower one first, got '5,1'"),
    ({'guidance__method': 'cfg_plus_plus', 'solver__name': 'heun'},
     "'cfg_plus_plus' must go with the solver euler or ddim, without noise, got heun"),
    ({'guidance__method': 'cfg_plus_plus', 'solver__S_churn': 2.0}, 'got euler .* S_churn 2.0'),
    ({'guidance__method': 'cfg_plus_plus', 'solver__name': 'ddim', 'solver__eta': 1.0},
     'without noise, got ddim with eta 1.0'),
    ({'guidance__method': 'autoguidance', 'guidance__weak': 'digits_early'},
     "weak: must know all guided levels, up to 80, got digits_early up to 1; set .* '0,1'"),
    ({'guidance__interval': '0,1'}, 'guidance.interval: must be left out without guidance'),
    ({'guidance__method': 'cfg_plus_plus', 'guidance__interval': '0,1'},
     "interval: must be left out with the method 'cfg_plus_plus'"),
    ({'guidance__method': 'apg', 'solver__name': 'euler_cfg_pp'},
     "method: must be 'cfg_plus_plus' with the solver euler_cfg_pp, got 'apg'; or take euler"),
    ({'guidance__eta': 0.5}, 'guidance.eta: must be left out without guidance, got 0.5'),
    ({'guidance__method': 'rescale', 'guidance__eta': 0.5},
     "guidance.eta: must be left out with the method 'rescale', got 0.5; it is of apg"),
    ({'guidance__method': 'apg', 'guidance__momentum': -1.0}, 'apg: momentum must be between -1'),
    ({'guidance__method': 'apg', 'guidance__momentum': -0.5, 'solver__name': 'dpm_adaptive'},
     'momentum: must be 0 with a solver that is no table, got -0.5 with dpm_adaptive'),
    ({'guidance__method': 'perp_neg'}, "negative: must be given with the method 'perp_neg', got"),
    ({'guidance__method': 'tcfg', 'guidance__negative': 10}, 'class or prompt, 0 to 9, got 10'),
    ({'guidance__method': 'autoguidance', 'guidance__weak': 'digits_early',
      'guidance__interval': '0,1', 'guidance__negative': 1}, "left out with the method 'autogui"),
    ({'guidance__method': 'tcfg', 'guidance__ramp': '-1'}, "ramp: must be 'linear', .* got '-1'"),
    ({'guidance__method': 'cfg_plus_plus', 'guidance__ramp': '2'}, 'ramp: must be left out with'),
])
def test_bad_guidance_by_networks_is_refused(tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    get_plan(tmp_path / 'out', **{**FREE, **fields})
  assert not (tmp_path / 'out').exists()


def test_an_unconditional_model_cannot_be_guided_by_its_classes(tmp_path, monkeypatch):
  nobody = dataclasses.replace(models.load('digits_exact'), num_classes=0)
  monkeypatch.setattr(models, 'load', lambda name: nobody)
  with pytest.raises(ValueError, match='must have a model of classes, got the unconditional digit'):
    get_plan(tmp_path / 'out', **{**FREE, 'labels': 'none'}, guidance__method='classifier_free')


# -- Solvers that are no tables -------------------------------------------------------------------


def test_adaptive_steps_are_counted_by_image(tmp_path):
  plan = get_plan(tmp_path, **{**FREE, 'solver__name': 'dpm_adaptive'}, solver__rtol=0.2)
  assert 'on average' in generate.run(plan)
  nfe = json.loads((tmp_path / 'manifest.json').read_text())['nfe']
  assert 6 <= nfe['mean'] <= nfe['most'] <= 100
  with pytest.raises(ValueError, match='dpm_adaptive: rtol must be a finite number above 0'):
    get_plan(tmp_path / 'b', **{**FREE, 'solver__name': 'dpm_adaptive'}, solver__rtol=0.0)
  lost = get_plan(tmp_path / 'c', **{**FREE, 'solver__name': 'dpm_adaptive'}, solver__max_steps=1)
  with pytest.raises(FloatingPointError, match='samples must be finite, .*config.solver.max_steps'):
    generate.run(lost)


def test_learned_variance_lies_between_the_fixed_ones(tmp_path):
  """v = -1 is the small one, v = 1 the large one: the same samples as with these."""
  run = {**FREE, 'solver__name': 'ddpm'}
  with pytest.raises(ValueError, match="'learned' must have a model that learned one, got digits_"):
    get_plan(tmp_path / 'no', **run, solver__variance='learned')
  for v, name in ((-1.0, 'fixed_small'), (1.0, 'fixed_large')):
    fixed = get_plan(tmp_path / name, **run, solver__variance=name)
    apply = fixed.model.apply
    def variance(params, x, sigma, labels=None, v=v, apply=apply):
      return apply(params, x, sigma, labels), jnp.full_like(x, v)
    model = dataclasses.replace(fixed.model, apply_variance=variance)
    learned = dataclasses.replace(fixed, model=model, solver=solvers.plan(
        'ddpm', {'variance': 'learned'}, fixed.sigmas, 'brownian'))
    assert learned.solver.nfe == fixed.solver.nfe == 4
    # Draws count steps there and rows here, along one path: the intervals are the same.
    np.testing.assert_allclose(samples(learned), samples(fixed), atol=1e-3)


def test_noise_of_the_loops_is_along_the_path(tmp_path):
  for solver in ({'solver__name': 'dpm_adaptive', 'solver__eta': 1.0},):
    with pytest.raises(ValueError, match="noise: must be 'brownian' for dpm_adaptive, got 'gauss"):
      get_plan(tmp_path, **{**FREE, **solver}, noise='gaussian')
  with pytest.raises(ValueError, match="unknown config.noise 'pink'"):
    get_plan(tmp_path, **FREE, noise='pink')
