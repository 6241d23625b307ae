"""The first stage of a latent diffusion model: pictures of latents, and latents of pictures.

Source: Rombach et al. 2022, arXiv:2112.10752, Sec. 3.1.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax

from models import autoencoder, directory as directory_lib, parts


@dataclasses.dataclass(frozen=True, eq=False)
class FirstStage:
  """An autoencoder with its parameters, in the units of the denoiser whose part it is.

  Attributes:
    config: what config.json tells, plain values.
    params: nested dicts of arrays, an argument of compiled functions.
    module: the network, without parameters.
    apply_decode: apply_decode(params, z) -> images (batch, height, width, channels), around
      [-1, 1], not clipped; z (batch, h, w, c) as the denoiser knows it, of any size.
    apply_encode: apply_encode(params, images) -> z; where the encoder gives a distribution, its
      mean.
    image_shape: (height, width, channels) of pictures in training.
    latent_shape: (h, w, c) of their latents.
    sha256: hash of the parameters as stored.
  """

  config: dict[str, Any]
  params: Any
  module: autoencoder.Autoencoder
  apply_decode: Callable[[Any, jax.Array], jax.Array]
  apply_encode: Callable[[Any, jax.Array], jax.Array]
  image_shape: tuple[int, int, int]
  latent_shape: tuple[int, int, int]
  sha256: str

  def picture_shape(self, latent_shape: Sequence[int]) -> tuple[int, int, int]:
    """Returns (height, width, channels) of the picture of a latent (h, w, c)."""
    return autoencoder.picture_shape(self.module, latent_shape)

  def decode(self, z: jax.Array) -> jax.Array:
    """Returns the pictures of latents, see `apply_decode`."""
    return self.apply_decode(self.params, z)

  def encode(self, images: jax.Array) -> jax.Array:
    """Returns the latents of pictures, see `apply_encode`."""
    return self.apply_encode(self.params, images)


def load_first_stage(directory: str | os.PathLike, dtype: str = 'float32') -> FirstStage:
  """Loads a first stage.

  Args:
    directory: a model directory of kind 'autoencoder'.
    dtype: of the parameters, one of directory.DTYPES. They are computed with in the precision of
      their input.

  Returns:
    The FirstStage; parameters are NumPy arrays.

  Raises:
    OSError: if a file cannot be read.
    ValueError: if there is no such directory, or it is incomplete, damaged, of a newer format, or
      holds another kind of model.
  """
  config = directory_lib.read_kind(directory, 'autoencoder', dtype)
  module = parts.first_stage('load', config)
  params = directory_lib.read_params(directory, autoencoder.shapes(module), config['sha256'], dtype)
  decode, encode = functions(module, float(config['scale_factor']))
  image, latent = (tuple(config[name]) for name in ('image_shape', 'latent_shape'))
  return FirstStage(config, params, module, decode, encode, image, latent, config['sha256'])


@functools.cache
def functions(module: autoencoder.Autoencoder, scale_factor: float,
              ) -> tuple[Callable[[Any, jax.Array], jax.Array], ...]:
  """Returns (apply_decode, apply_encode) of a FirstStage; equal arguments give the same two.

  Args:
    module: the network.
    scale_factor: latents of the denoiser over those of the network.
  """
  def decode(params, z):
    return autoencoder.decode(module, params, z, scale_factor)
  def encode(params, images):
    return autoencoder.encode(module, params, images, scale_factor)
  return decode, encode
