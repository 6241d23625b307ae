"""Small runs, and their samples before they become bytes."""

import dataclasses
import functools
import sys

import jax
import numpy as np

from configs import default
from engine import devices, generate, inputs as inputs_lib, sampler, seeds as seeds_lib
from models import networks

BATCH_SIZES = 1, 7, 64


def get_config(**fields):
  """The default config with these fields, '__' for the dots."""
  config = default.get_config()
  config.update_from_flattened_dict({name.replace('__', '.'): v for name, v in fields.items()})
  return config


def get_plan(workdir, **overrides):
  """Plans a small run of the exact model; fields as keywords, '__' for the dots."""
  fields = {'seeds': '0-4', 'batch_size': 4, 'model__name': 'digits_exact',
            'solver__name': 'unipc', 'schedule__name': 'time_uniform', **overrides}
  return generate.plan(get_config(**fields), str(workdir))


def samples(plan):
  """Samples of all seeds of a plan, float32 (n, height, width, channels)."""
  size = devices.share_of(plan.batch_size) * devices.count()
  count = len(plan.results.seeds)
  program, constants = generate.sampler_of(plan)
  constants = devices.replicate(constants)
  batches = []
  for first in range(0, count, size):
    indices = np.minimum(np.arange(first, first + size), count - 1)
    seeds = plan.results.seeds[indices]
    latents = seeds_lib.latents(seeds, plan.model.image_shape, plan.seeds_from)
    start = plan.start and devices.split(inputs_lib.to_model(plan.start.take(seeds)))
    inputs = sampler.Inputs(devices.split(seeds), latents, devices.split(plan.labels[indices]),
                            start)
    batches.append(devices.merge(program(constants, inputs)[0]))
  return np.concatenate(batches)[:count]


def with_network(plan):
  """The plan with a small network of arbitrary weights in place of the exact model."""
  module = networks.build('song_unet', {
      'img_resolution': 8, 'out_channels': 3, 'label_dim': 10, 'model_channels': 8,
      'channel_mult': [1], 'num_blocks': 1, 'attn_resolutions': []})
  coefficients = networks.preconditioning('edm', {'sigma_data': 0.5})
  shapes = jax.eval_shape(functools.partial(networks.initialize, module, (8, 8, 3)),
                          jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
  apply = networks.select(networks.denoiser(module, coefficients), 0)
  return dataclasses.replace(
      plan, model=dataclasses.replace(plan.model, apply=apply, params=params))


def main(workdir, file):
  """Saves samples of every batch size, from a solver with noise, named by batch size and share."""
  arrays = {}
  for batch_size in BATCH_SIZES:
    plan = with_network(get_plan(workdir, seeds='0-15', batch_size=batch_size, solver__name='ddim',
                                 solver__eta=1.0, schedule__num_steps=4))
    arrays[f'{batch_size} {devices.share_of(batch_size)}'] = samples(plan)
  np.savez(file, devices=jax.local_device_count(), **arrays)


if __name__ == '__main__':
  main(*sys.argv[1:])
