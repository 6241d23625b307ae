"""Small runs, and their samples before they become bytes."""

import dataclasses
import functools
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from engine import devices, generate, inputs as inputs_lib, sampler, seeds as seeds_lib
from models import layers, networks

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


def interrupted(run, after=0):
  """`batches.run` that is stopped after the first batch that ends with number `after` or more."""
  def stopped(indices, batch_size, start, finish, progress, what, done=0):
    def until(some, answers):
      finish(some, answers)
      if some[-1] >= after:
        raise KeyboardInterrupt
    return run(indices, batch_size, start, until, progress, what, done)
  return stopped


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


class OneBlock(nn.Module):
  """A block of the U-Nets between two convolutions, to compile faster than any of them."""

  label_dim: int = 10

  @nn.compact
  def __call__(self, x, c_noise, class_labels=None):
    if class_labels is None:
      class_labels = jnp.zeros((len(x), self.label_dim))
    emb = jnp.concatenate([c_noise[:, None], class_labels], axis=1)
    h = layers.UNetBlock(8, heads=1)(layers.Conv(8)(x), emb)
    return layers.Conv(3)(h), None


def with_network(plan):
  """The plan with a small network of arbitrary weights in place of the exact model."""
  module = OneBlock()
  coefficients = networks.preconditioning('edm', {'sigma_data': 0.5})
  shapes = jax.eval_shape(functools.partial(networks.initialize, module, (8, 8, 3)),
                          jax.random.key(0))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)
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
