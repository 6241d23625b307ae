"""Reference cases on discrete chains: their grids, the analytic network, and compiled replays.

States are stored as y = x / sqrt(1 + sigma^2). The replays take everything about a case as an
argument, so that all cases share one compilation each.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import samplers
from samplers import ddpm, guidance, levels as levels_lib
from tests import reference

STEPS = 100  # Of the longest chain.
VARIANCES = {'learned_range': 'learned', 'fixed_large': 'fixed_large', 'fixed_small': 'fixed_small'}
_RULES = {'linear': 'ddpm', 'cosine': 'cosine'}


def alphas_cumprod(case):
  return f'{_RULES[case["noise_schedule"]]}:{case["diffusion_steps"]}'


def grid(case):
  """Noise levels of the used part of the chain, and 0."""
  return samplers.schedule('respaced', alphas_cumprod=alphas_cumprod(case),
                           respacing=case['timestep_respacing'],
                           reverse_steps=case.get('reverse_steps'))


def root(sigmas):
  """sqrt(1 + sigma^2) of each level, to multiply image batches by step."""
  return np.sqrt(1 + np.asarray(sigmas)**2).reshape(-1, 1, 1, 1, 1)


def times(case, sigmas):
  """What the network is called with at these levels."""
  index = levels_lib.network_index(sigmas, levels_lib.read_alphas_cumprod(
      'test', alphas_cumprod(case)))
  return index * (1000 / case['diffusion_steps'] if case['rescale_timesteps'] else 1)


def assert_close(got, expected, case):
  """The manifest's rule: largest difference relative to the larger of 1 and the values."""
  got = np.asarray(got)
  assert got.shape == expected.shape
  error = np.abs(got - expected).max() / max(1, np.abs(expected).max())
  assert error <= case['tolerance'], error


class Problem(NamedTuple):
  """What the denoiser of a case depends on; arrays."""

  y: Any
  scale: Any
  clip: Any
  class_cond: Any
  denoised_fn: Any

  @classmethod
  def of(cls, case, y):
    return cls(jnp.asarray(y), jnp.asarray(case['classifier_scale'] or 0.0),
               *(jnp.asarray(bool(case.get(flag))) for flag in (
                   'clip_denoised', 'class_cond', 'denoised_fn')))


MIXTURE = reference.load('ddpm')[1]['mixture']
_ALL = reference.mixture_denoiser(MIXTURE)


def denoiser(problem):
  """D(x; sigma), of all classes or of one, scaled and clipped as the case says."""
  def plain(x, sigma):
    mean, square = (jnp.asarray(part)[problem.y] for part in (MIXTURE['mu'], MIXTURE['s']**2))
    square = square.reshape(-1, 1, 1, 1)
    one = (square * x + sigma**2 * mean) / (square + sigma**2)
    denoised = jnp.where(problem.class_cond, one, _ALL(x, sigma))
    return jnp.where(problem.denoised_fn, 0.9 * denoised + 0.02, denoised)

  def limited(x, sigma):
    return jnp.where(problem.clip, guidance.clip(plain)(x, sigma), plain(x, sigma))
  return limited


def denoiser_with_variance(problem):
  def denoise_variance(x, sigma):
    return denoiser(problem)(x, sigma), jnp.tanh(0.7 * x / jnp.sqrt(1 + sigma**2) - 0.2)
  return denoise_variance


def log_prob(problem):
  """log p(y | x; sigma) of the component that each sample should have."""
  def of_class(x, sigma):
    variance = jnp.asarray(MIXTURE['s']**2) + sigma**2
    means = jnp.asarray(MIXTURE['mu'].reshape(len(MIXTURE['mu']), -1))
    points = x.reshape(len(x), 1, -1)
    logits = jnp.asarray(np.log(MIXTURE['w']))[None] - (
        jnp.sum((points - means[None])**2, -1) / (2 * variance)[None]
        + means.shape[1] / 2 * jnp.log(variance)[None])
    return jnp.take_along_axis(jax.nn.log_softmax(logits), problem.y[:, None], 1)[:, 0]
  return of_class


def guide(problem):
  """Guidance term in units of eps."""
  def term(x, sigma):
    gradient = jax.grad(lambda x: jnp.sum(log_prob(problem)(x, sigma)))(x)
    return -problem.scale * sigma * gradient
  return term


@functools.cache
def compiled():
  """Replays, one compilation each: see the functions below."""
  def table_run(table, x, noise, problem, rows_per_step):
    # A step of several rows draws in its last one.
    return samplers.run(table, denoiser(problem), x, draw=lambda r, x: noise[r // rows_per_step],
                        guide=guide(problem))

  def chain_run(steps, x, noise, problem):
    return ddpm.sample(steps, denoiser_with_variance(problem), x, draw=lambda r, x: noise[r],
                       guide=guide(problem), trajectory=True)

  def guided_run(table, x, noise, problem):
    denoise = guidance.classifier(denoiser(problem), log_prob(problem), problem.scale)
    return samplers.run(table, denoise, x, draw=lambda r, x: noise[r])

  def guided_images(x, sigma, problem):
    return guidance.classifier(denoiser(problem), log_prob(problem), problem.scale)(x, sigma)

  return {f.__name__: jax.jit(f) for f in (table_run, chain_run, guided_run, guided_images)}


def noise_pool(noise):
  """Draws by step, in one shape for all areas."""
  return jnp.asarray(np.concatenate([noise, np.zeros((STEPS, *noise.shape[1:]))])[:STEPS])


def run_ddpm(case, x, noise, y):
  """States y after each step of a DDPM case, from the state x at the first level."""
  sigmas = grid(case)
  steps = ddpm.coefficients(sigmas, VARIANCES[case['model_var_type']])
  assert steps.nfe == case['num_steps'] == len(sigmas) - 1
  _, states = compiled()['chain_run'](ddpm.pad(steps, STEPS), jnp.asarray(x), noise_pool(noise),
                                      Problem.of(case, y))
  return np.asarray(states[1:len(sigmas)]) / root(sigmas[1:])


def run_fixed(case, x, noise, y):
  """The sample of a DDPM case of fixed variance through the table."""
  table = samplers.make('ddpm', grid(case), variance=case['model_var_type'])
  assert table.nfe == case['num_steps']
  return compiled()['table_run'](samplers.pad(table, 2 * STEPS, 2), jnp.asarray(x),
                                 noise_pool(noise), Problem.of(case, y), 2)


def run_ddim(case, sigmas, x, noise, y):
  """The sample of a DDIM case, or of any of its steps, from the state x at the first level."""
  table = samplers.make('ddim', sigmas, eta=case['eta'])
  assert table.nfe == len(sigmas) - 1
  return compiled()['guided_run'](samplers.pad(table, STEPS, 1), jnp.asarray(x), noise_pool(noise),
                                  Problem.of(case, y))


def check_ddim(case, sigmas, start, noise, y, trajectory):
  """The sample from the start, and every step from the recorded state before it."""
  assert_close(run_ddim(case, sigmas, start, noise, y), trajectory[-1], case)
  states = np.concatenate([start[None], trajectory * root(sigmas[1:])])
  for i, expected in enumerate(trajectory):
    end = run_ddim(case, sigmas[i:i + 2], states[i], noise[i:], y)
    assert_close(end / root(sigmas[i + 1])[0], expected, case)
