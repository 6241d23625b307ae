"""Every config loads, names a published file, and makes a grid and a solver on it."""

import importlib
import math
import pathlib
import re

import pytest

import samplers
from configs import default, es_ddpm, published
from convert import published as files
from samplers import levels

FOLDER = pathlib.Path(__file__).parent.parent / 'configs'
MODELS = sorted(path.stem for path in FOLDER.glob('*.py')
                if path.stem.startswith(('edm_', 'adm_')))


def variants(name):
  """(config, argument) of every variant of a config with every solver."""
  module = importlib.import_module(f'configs.{name}')
  known = [f'{variant},' for variant in getattr(module, 'VARIANTS', ())] or ['']
  for start in known:
    for solver in published.SCHEDULES:
      yield module.get_config(start + solver), start + solver
  yield module.get_config(), 'default'


def test_all_published_models_of_pixels_have_a_config():
  sources = {config.convert.source for name in MODELS for config, _ in variants(name)}
  edm = {f'{kind}-{data}-{end}.pkl' for kind in ('edm', 'baseline') for data, end in (
      *((f'{data}-{size}', f'uncond-{network}') for network in ('vp', 've') for data, size in (
          ('cifar10', '32x32'), ('ffhq', '64x64'), ('afhqv2', '64x64'))),
      ('cifar10-32x32', 'cond-vp'), ('cifar10-32x32', 'cond-ve'), ('imagenet-64x64', 'cond-adm'))}
  # Super-resolution needs images to start from; classifiers come with their models.
  adm = {f'{name}.pt' for name in files.ADM if not name.endswith(('upsampler', 'classifier'))}
  assert sources == edm | adm


@pytest.mark.parametrize('name', MODELS)
def test_config_is_a_run(name):
  text = (FOLDER / f'{name}.py').read_text()
  for config, argument in variants(name):
    assert set(config.to_dict()) == set(default.get_config().to_dict())
    with pytest.raises(AttributeError):
      config.solvr = 1  # Locked.
    assert config.model.path == f'checkpoints/{config.convert.source.rsplit(".", 1)[0]}', argument
    side = str(config.convert.resolution)
    assert side in config.convert.source or (side, name) == ('256', 'adm_lsun'), argument
    fields = {field: value for field, value in config.schedule.to_dict().items()
              if value is not None}
    sigmas = samplers.schedule(**{'sigma_min': 0.002, 'sigma_max': 80.0, **fields})
    assert samplers.make(config.solver.name, sigmas).nfe >= 10, argument
    if config.guidance.classifier is not None:
      stem = config.guidance.classifier.removeprefix('checkpoints/')
      assert stem in files.ADM and f'{stem}.pt' in text
      assert (config.schedule.name, config.schedule.rho, config.limit) == (
          'time_uniform', 1.0, 'clip')
  assert re.search(r'^from https://\S+/$', text, re.MULTILINE) and "The paper's FID" in text


@pytest.mark.parametrize('name', ['cm', 'ldm', 'sd_v1'])
def test_config_of_latents_or_consistency_is_a_run(name):
  module = importlib.import_module(f'configs.{name}')
  for variant in module.VARIANTS:
    config = module.get_config(variant)
    published_as = config.convert.published or variant
    assert files.ALIASES.get(published_as, published_as) in files.KNOWN
    fields = {field: value for field, value in config.schedule.to_dict().items()
              if value is not None}
    if name == 'cm':
      assert config.convert.source == f'{variant}.pt' and variant in files.CM
      if not variant.startswith('edm_'):  # The levels that published code visits.
        fields['ts'] = [int(number) for number in fields['ts'].split(',')]
      sigmas = samplers.schedule(**{'sigma_min': 0.002, 'sigma_max': 80.0, **fields})
      nfe = 10 if variant.startswith('edm_') else 2
    else:
      assert config.schedule.name == 'discrete' and config.solver.predict_x0 is False
      sigmas = samplers.schedule(**{'sigma_min': 0.03, 'sigma_max': 14.6, **fields,
                                    'alphas_cumprod': 'stable_diffusion'})
      nfe = 10
    options = {option: value for option, value in config.solver.to_dict().items()
               if value is not None and option != 'name'}
    assert samplers.make(config.solver.name, sigmas, **options).nfe == nfe
    assert config.model.path == f'checkpoints/{variant}'
  assert re.search(r'^(and .* )?from https://\S+/$', (FOLDER / f'{name}.py').read_text(),
                   re.MULTILINE)
  with pytest.raises(ValueError, match='variant must be one of'):
    module.get_config('none')


@pytest.mark.parametrize('call, message', [
    (lambda: importlib.import_module('configs.edm_cifar10').get_config('uncond'),
     'variant must be one of uncond-vp, .*, got .uncond.; such as uncond-vp or uncond-vp,dpmpp'),
    (lambda: importlib.import_module('configs.adm_imagenet256').get_config('ddpm'),
     'solver must be one of ipndm, .*, got .ddpm.'),
])
def test_bad_arguments_are_one_clear_line(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_early_stopped_runs_are_those_that_were_published():
  """Noise of training step 96 of 1,000 for ImageNet, of step 99 for LSUN; NFE 25 and 100."""
  for variant, alphas_cumprod, step in (
      ('imagenet64', 'cosine', 96), ('lsun_bedroom', 'ddpm', 99), ('lsun_cat', 'ddpm', 99)):
    config = es_ddpm.get_config(variant)
    fields = {name: value for name, value in config.schedule.to_dict().items()
              if value is not None}
    sigmas = samplers.schedule(**{'sigma_min': 0.002, 'sigma_max': 80.0, **fields})
    alpha_bar = levels.ALPHAS_CUMPROD[alphas_cumprod]()[step]
    assert sigmas[0] == pytest.approx(math.sqrt((1 - alpha_bar) / alpha_bar), rel=1e-12)
    assert samplers.ddpm.coefficients(sigmas).nfe == (25 if variant == 'imagenet64' else 100)
    assert f'{config.convert.source.removesuffix(".pt")}.pt' in files_of(variant)
  with pytest.raises(ValueError, match="variant must be one of imagenet64, .* got 'cifar'"):
    es_ddpm.get_config('cifar')


def files_of(variant):
  """The line of a variant in the first comment of configs/es_ddpm.py."""
  return next(line for line in es_ddpm.__doc__.splitlines() if line.strip().startswith(variant))
