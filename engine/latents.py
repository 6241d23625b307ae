"""From samples to pictures: a model of latents has them decoded, any other is left as it is."""

from collections.abc import Callable

import numpy as np

import models
from engine import batches, devices
from models import autoencoder


def decoder(model: models.Model, memory: float,
            batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
  """Returns the function from samples to pictures.

  Args:
    model: whose samples they are.
    memory: for decoding, in GiB on each device; a batch is decoded in slices that need no more, of
      one image at least.
    batch_size: most samples of a call, over all devices; what comes in smaller numbers is padded,
      so that one program serves all.

  Returns:
    decode(samples (n, *image_shape)) -> pictures float32 (n, *picture_shape), around [-1, 1] and
    not clipped. It is compiled at the first call.
  """
  stage = model.first_stage
  if stage is None:
    return lambda samples: samples
  share = max(1, int(memory * 2**30 // autoencoder.decode_bytes(stage.module, model.image_shape)))
  size = min(share, devices.share_of(batch_size)) * devices.count()
  program, params = devices.spread(stage.apply_decode), devices.replicate(stage.params)

  def decode(samples):
    parts = [program(params, devices.split(samples[some]))
             for some in batches.split(np.arange(len(samples)), size)]
    return np.concatenate([devices.merge(part) for part in parts])[:len(samples)]
  return decode
