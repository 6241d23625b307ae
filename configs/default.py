"""Samples 64 digits from the bundled model with a fast solver: `python main.py`.

Expect out/ with 64 PNG files, grid.png, run.json and manifest.json after some seconds on two CPU
cores, the first time up to a minute, as the program is compiled.
Every field can be overridden, as in --config.solver.name=heun --config.schedule.num_steps=4.
"""

from collections.abc import Callable, Mapping

import ml_collections
from ml_collections import config_dict

import models  # noqa: F401 - the designs among them register
import samplers
from configs import (
    analyzing,
    comparing,
    converting,
    distilling,
    evaluating,
    learning,
    measuring,
    searching,
    training,
)

MODEL = 'digits'
"""The bundled model of `python main.py`."""


def get_config() -> ml_collections.ConfigDict:
  """Returns all fields of a run, locked: a misspelt override is an error."""
  config = ml_collections.ConfigDict()
  # One image per seed: numbers and ranges, both ends included; 'all' images of config.input.
  config.seeds = '0-63'
  # Who draws latents and random labels from a seed: 'jax', or, to repeat published pictures,
  # 'torch_cpu' or 'torch_cuda', as PyTorch's generators do. The noise of solvers is always JAX's.
  config.seeds_from = 'jax'
  # Classes: 'random' (drawn from the seed), 'balanced' (seed s gets class s mod their number),
  # 'none', one ('3'), a list ('0-4,7': seed s gets entry s mod 6), or 'given' by config.input.
  config.labels = 'random'
  # Images per call of the compiled sampler, over all devices: rounded up to a multiple of their
  # number. The last batch is padded. An image does not depend on it but for rounding.
  config.batch_size = 32
  # Machines that share a workdir sample contiguous shares of the seeds: '0/4' to '3/4' for four.
  config.share = '0/1'

  config.model = ml_collections.ConfigDict()
  config.model.name = MODEL  # A key of models.BUNDLED.
  config.model.path = config_dict.placeholder(str)  # A model directory, in place of the name.
  # Of a model that reads texts: prompts with '|' between them, a .txt file with one in each line,
  # or a .npz file of their features. config.labels chooses among them by number, from 0.
  config.model.prompts = config_dict.placeholder(str)

  # Noise levels: samplers.schedule(name, num_steps, sigma_min, sigma_max, **options).
  config.schedule = ml_collections.ConfigDict()
  config.schedule.name = 'polynomial'  # A key of samplers.SCHEDULES.
  config.schedule.num_steps = 8  # Intervals between levels.
  config.schedule.sigma_min = config_dict.placeholder(float)  # Lowest level > 0; None: the model's.
  config.schedule.sigma_max = config_dict.placeholder(float)  # First level; None: the model's.
  # Options of every schedule. None is the schedule's own default, see its docstring; lists are
  # text, '80,5,0.5,0'; alphas_cumprod also takes the name of a table, 'stable_diffusion'.
  _add_options(config.schedule, samplers.SCHEDULES, samplers.schedule_option_types)
  # Of 'explicit', in place of sigmas: a grid file, as --mode=search writes it, or a list in a text.
  config.schedule.path = config_dict.placeholder(str)

  # Solver: samplers.make(name, sigmas, **options).
  config.solver = ml_collections.ConfigDict()
  config.solver.name = 'dpmpp'  # A key of samplers.SOLVERS or samplers.LOOPS.
  # Options of every solver, as above; one that the chosen solver does not have is an error.
  _add_options(config.solver, {**samplers.SOLVERS, **samplers.LOOPS}, samplers.option_types)
  # A learned solver, in place of schedule and solver: the folder that --mode=train_amed or
  # --mode=convert made, the number of an experiment in exps/, or 'digits_amed', which comes with
  # the project. All its settings are its own.
  config.predictor = ml_collections.ConfigDict()
  config.predictor.path = config_dict.placeholder(str)
  # Noise of solvers that draw any: 'brownian' (along one path per seed, so that finer grids show
  # the same image), 'gaussian' (by step), 'two_point' or 'three_point' (weak order 1 and 2).
  config.noise = 'brownian'

  # Limit on the denoised image at each evaluation: 'none', 'clip' (to [-1, 1]) or 'dynamic' (per
  # sample, to its 0.995 quantile), which dpmpp and unipc were published with for pixel models.
  config.limit = 'none'

  # Guidance, towards the labels but for autoguidance:
  # 'classifier': by the gradient of a classifier of noisy images; splitting solvers (ltsp, stsp)
  #   take it in steps of its own.
  # 'classifier_free': away from what the model says without a class.
  # 'rescale', 'apg', 'cfg_zero_star', 'tcfg', 'mambo_g', 'fresca', 'cfg_norm': ways to do that
  #   without its harm at large scales, see samplers/guidance_methods.py and guidance_projected.py.
  # 'perp_neg': also away from config.guidance.negative, as far as that is not what is wanted.
  # 'cfg_plus_plus': steps that stay on the unguided noise, scale 0 to 1; solvers named *_cfg_pp,
  #   euler and ddim.
  # 'autoguidance': away from what a weaker model says.
  config.guidance = ml_collections.ConfigDict()
  config.guidance.method = config_dict.placeholder(str)  # None: 'classifier' where one is given.
  # Of 'classifier': a model directory, or a key of models.BUNDLED_CLASSIFIERS.
  config.guidance.classifier = config_dict.placeholder(str)
  config.guidance.weak = config_dict.placeholder(str)  # Of 'autoguidance': as config.model.
  # A larger one trades variety for likeness; between two networks 1 is none.
  config.guidance.scale = 1.0
  config.guidance.interval = config_dict.placeholder(str)  # Guided levels, '0.3,5'; None: all.
  # The scale grows from 1 at the model's highest level to itself at the lowest: 'linear' in the
  # logarithm of the level, 'cosine', or a power of the linear way, such as '2'; None: it does not.
  config.guidance.ramp = config_dict.placeholder(str)
  # Class, or number of the prompt, to lead away from; of all methods but 'perp_neg', which takes
  # both, in place of no class at all.
  config.guidance.negative = config_dict.placeholder(int)
  config.guidance.calls = 1  # Of the network for its answers: 1 (in one batch), or 2 (apart).
  # Options of every method, as above: samplers.guidance.METHODS.
  _add_options(config.guidance, samplers.guidance.METHODS, samplers.guidance.option_types)

  # A task with an image given in part; configs/inpaint.py and its neighbours.
  config.condition = ml_collections.ConfigDict()
  config.condition.task = config_dict.placeholder(str)  # inpaint, super_resolution or colorize.
  config.condition.image = config_dict.placeholder(str)  # The picture, whole or as it is given.
  config.condition.mask = config_dict.placeholder(str)  # Of inpaint: white where it is known.
  config.condition.factor = 2  # Of super_resolution.
  config.condition.kernel = 'mean'  # Of super_resolution: 'mean' over blocks, or 'bicubic'.
  # 'replace' what is known after every step, or follow the 'gradient' of the likelihood.
  config.condition.method = 'replace'
  config.condition.scale = 1.0  # Of the gradient.

  # Images to start from, to which the first level's noise is added: early-stopped diffusion. A .npz
  # file (arr_0, and perhaps their classes as arr_1), a folder of pictures, a picture, or
  # 'gaussian_digits'. Image s belongs to seed s. The jobs invert and likelihood take theirs here.
  config.input = ml_collections.ConfigDict()
  config.input.images = config_dict.placeholder(str)

  config.output = ml_collections.ConfigDict()
  # 'png': a file per image, named after its seed. 'npz': samples.npz with arr_0, uint8 (n, height,
  # width, channels) in the order of the seeds, and, if the images have classes, arr_1, integers.
  config.output.format = 'png'
  config.output.subfolders = False  # PNG files in folders of 1,000 seeds: 000000/, 001000/, ...
  # From [-1, 1] to bytes: 'nearest' (EDM, diff-sampler), or 'truncate', to the next lower (ADM).
  config.output.uint8_rule = 'nearest'
  # For decoding latents, GiB on each device: a batch is decoded in slices that need no more.
  config.output.decode_memory = 2.0
  config.output.grid = ml_collections.ConfigDict()  # grid.png, the first images to look at.
  config.output.grid.columns = 8  # Images per row.
  config.output.grid.rows = 8  # Rows at most; further images are in their own files only.
  config.output.grid.size = 96  # Least side of a shown image in pixels, 64 or more.

  config.train = training.get_group()  # Of --mode=train.
  config.learn = learning.get_group()  # Of --mode=train_amed.
  if taken := {option for name in samplers.DESIGNS for option in samplers.learned.design_options(
      name)} & set(config.learn):
    raise TypeError(f'configs: options of designs must not be fields of config.learn, got {taken}')
  _add_options(config.learn, samplers.DESIGNS, samplers.learned.design_option_types)
  config.distill = distilling.get_group()  # Of --mode=distill.
  config.search = searching.get_group()  # Of --mode=search.
  config.convert = converting.get_group()  # Of --mode=convert.
  config.evaluate = evaluating.get_group()  # Of --mode=evaluate.
  config.compare = comparing.get_group()  # Of --mode=compare.
  config.analyze = analyzing.get_group()  # Of --mode=analyze.
  config.likelihood = measuring.get_group()  # Of --mode=likelihood.
  return config.lock()


def _add_options(group: ml_collections.ConfigDict, functions: Mapping[str, Callable],
                 types: Callable[[str], Mapping[str, type]]) -> None:
  """Adds an empty field of the right type for every option of every function of a registry."""
  for name in functions:
    for option, kind in types(name).items():
      if option not in group:
        group[option] = config_dict.placeholder(kind)
      elif group.get_type(option) is not kind:
        raise TypeError(f'configs: option {option} must have one type in all of {list(functions)}, '
                        f'got {group.get_type(option).__name__} and, in {name}, {kind.__name__}')
