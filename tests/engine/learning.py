"""A small model and small trainings of learned solvers."""

import functools

import jax
import numpy as np

from configs import default
from engine import train_amed
from models import directory, networks

NETWORK = {'name': 'song_unet', 'settings': {
    'img_resolution': 8, 'out_channels': 3, 'label_dim': 10, 'model_channels': 4,
    'channel_mult': [1], 'num_blocks': 1, 'dropout': 0.1}}
FIELDS = {'learn.num_steps': 2, 'learn.trajectories': 16, 'learn.batch_size': 4,
          'learn.teacher': 'euler', 'learn.M': 1, 'learn.log_every': 1,
          'learn.checkpoint_every': 2}


def save_model(folder, seed=0):
  """Writes a denoiser of digits with random parameters, which compiles fast."""
  network = networks.build(**NETWORK)
  params = jax.jit(functools.partial(networks.initialize, network, (8, 8, 3)))(
      jax.random.key(seed))
  params = jax.tree.map(lambda leaf: np.asarray(leaf) + 0.01, params)
  directory.save(folder, {
      'kind': 'denoiser', 'network': NETWORK,
      'preconditioning': {'name': 'edm', 'settings': {'sigma_data': 0.5}}, 'sigma_min': 0.002,
      'sigma_max': 80.0, 'image_shape': [8, 8, 3], 'num_classes': 10}, params, 'random')
  return folder


def configured(model, **fields):
  """The default config with these fields, '__' for the dots, for a small training."""
  config = default.get_config()
  given = {name.replace('__', '.'): value for name, value in fields.items()}
  config.update_from_flattened_dict(FIELDS | {'model.path': str(model)} | given)
  return config


def trained(folder, model, **fields):
  """Trains a predictor; the text that the job gives."""
  return train_amed.run(train_amed.plan(configured(model, **fields), str(folder)))
