"""Reference numbers and analytic denoisers that the tests share."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from samplers import table as table_lib

GOLDEN = pathlib.Path(__file__).parent / 'golden'
SHAPE = 60, 5  # Rows and slots that all tables of up to 20 steps fit in.


def load(area):
  """Returns (manifest, arrays by file stem) of a set of reference numbers."""
  folder = GOLDEN / area
  manifest = json.loads((folder / 'manifest.json').read_text())
  return manifest, {path.stem: dict(np.load(path)) for path in folder.glob('*.npz')}


def mixture_denoiser(mixture):
  """D(x; sigma) of a mixture of isotropic Gaussians: weights w, means mu, standard deviations s."""
  w, mu, s = mixture['w'], mixture['mu'], mixture['s']
  flat = mu.reshape(len(mu), -1)

  def denoise(x, sigma):
    variance = jnp.asarray(s**2, x.dtype) + sigma**2
    points = x.reshape(len(x), 1, -1)
    square = jnp.sum((points - jnp.asarray(flat, x.dtype)[None])**2, -1)
    log_r = jnp.asarray(np.log(w), x.dtype)[None] - square / (2 * variance)[None] - (
        flat.shape[1] / 2 * jnp.log(variance))[None]
    shrink = (jnp.asarray(s**2, x.dtype) / variance)[None, :, None]
    means = shrink * points + (1 - shrink) * jnp.asarray(flat, x.dtype)[None]
    return jnp.sum(jax.nn.softmax(log_r, -1)[..., None] * means, 1).reshape(x.shape)
  return denoise


def gaussian_denoiser(std=0.5, mean=0.0):
  """D(x; sigma) of N(mean, std^2), whose ODE solution is known: see `gaussian_flow`."""
  def denoise(x, sigma):
    return mean + (x - mean) * (std**2 / (std**2 + sigma**2))
  return denoise


def gaussian_flow(x, sigma, sigma_next, std=0.5, mean=0.0):
  """Solution at sigma_next of the probability-flow ODE through x at sigma."""
  return mean + (x - mean) * np.sqrt((std**2 + sigma_next**2) / (std**2 + sigma**2))


@functools.cache
def sampler(denoise):
  """sample(table, x), which compiles once per denoiser: its tables are padded to one shape."""
  run = jax.jit(functools.partial(samplers.run, denoise=denoise))
  return lambda table, x: run(samplers.pad(table, *SHAPE), x=x)


def as_users_do(function):
  """jit by the generator of code that conftest.py does without, for what holds to the last bit."""
  options = {'xla_cpu_use_fusion_emitters': True} if jax.__version_info__ < (0, 11) else None
  return jax.jit(function, compiler_options=options)


def linear_map(table):
  """The sampler as a matrix, without a network.

  Rows: the input of each evaluation in turn, then the result. Columns: the unit latent, then the
  answers. The state at the first level is sigma[0] times the latent.
  """
  count = table.nfe
  state = np.zeros((table.slots, 1 + count))
  state[0, 0] = table.sigma[0]
  inputs = []
  for kind, mix in zip(table.kind, table.mix, strict=True):
    answer = np.zeros((1, 1 + count))
    if kind in (table_lib.DENOISE, table_lib.RAW):
      inputs.append(state[0])
      answer[0, len(inputs)] = 1
    state = mix @ np.concatenate([state, answer])
  return np.stack([*inputs, state[0]])


def evaluation_levels(table):
  """Noise levels of the network evaluations, in order."""
  return table.sigma[np.isin(table.kind, (table_lib.DENOISE, table_lib.RAW))]
