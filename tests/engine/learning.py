"""A network of one layer and small trainings of learned solvers."""

from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from engine import train_amed
from models import directory, networks

FIELDS = {'learn.num_steps': 2, 'learn.trajectories': 16, 'learn.batch_size': 4,
          'learn.teacher': 'euler', 'learn.M': 1, 'learn.log_every': 1,
          'learn.checkpoint_every': 2, 'learn.loss': 'intervals',
          'learn.schedule': 'polynomial'}


class Layer(nn.Module):
  """Stands for a network where it does not matter which one: it compiles in a moment."""

  out_channels: int = 3
  label_dim: int = 10
  model_channels: int = 4
  channel_mult: tuple[int, ...] = (1,)

  @nn.compact
  def __call__(self, x, c_noise, class_labels=None, train=False):
    if class_labels is None:
      class_labels = jnp.zeros((len(x), self.label_dim))
    shift = nn.Dense(self.out_channels)(jnp.concatenate([c_noise[:, None], class_labels], axis=1))
    out = jnp.tanh(nn.Dense(self.out_channels)(x) + shift[:, None, None])
    return out, out.mean(-1)


def stand_in(patch):
  """Makes the layer known as a network, for as long as the patch holds."""
  patch.setattr(networks, 'NETWORKS', MappingProxyType({**networks.NETWORKS, 'layer': Layer}))


def save_model(folder, seed=0):
  """Writes a denoiser of 8x8 pixels with random parameters."""
  network = {'name': 'layer', 'settings': {}}
  params = networks.initialize(networks.build(**network), (8, 8, 3), jax.random.key(seed))
  directory.save(folder, {
      'kind': 'denoiser', 'network': network,
      'preconditioning': {'name': 'edm', 'settings': {'sigma_data': 0.5}}, 'sigma_min': 0.002,
      'sigma_max': 80.0, 'image_shape': [8, 8, 3], 'num_classes': 10},
      jax.tree.map(np.asarray, params), 'random')
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
