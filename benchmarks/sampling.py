"""Samples for the benchmarks, by the very program that main.py runs, one image per seed."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import models
import samplers
from engine import guides, sampler, seeds, solvers
from models import mixture

SLOTS = 5  # Of the largest table.


class Entry(NamedTuple):
  """A solver under the name that a report gives it.

  Attributes:
    label: the name.
    solver: a key of samplers.SOLVERS.
    options: its options.
  """

  label: str
  solver: str
  options: dict[str, Any]

  def table(self, sigmas: np.ndarray) -> samplers.Table:
    """Returns the solver's Table on a grid."""
    return samplers.make(self.solver, sigmas, **self.options)


def grid(model: models.Model, num_steps: int, sigma_max: float | None = None) -> np.ndarray:
  """Returns the polynomial grid of the model's range, or of its part up to sigma_max."""
  return samplers.schedule('polynomial', num_steps, model.sigma_min, sigma_max or model.sigma_max)


def sample(model: models.Model, entry: Entry, sigmas: np.ndarray, labels: np.ndarray, rows: int, *,
           guide: guides.Constants | None = None, classifier: models.Classifier | None = None,
           start: np.ndarray | None = None) -> np.ndarray:
  """Samples one image per label, from seeds 0, 1, ... as main.py does, all in one batch.

  Tables are padded to common sizes, so that a model has one compiled program for those with noise,
  one for those without, and one of each kind for guided ones.

  Args:
    model: the model.
    entry: the solver.
    sigmas: grid of noise levels.
    labels: classes, (n,).
    rows: number to which tables are padded.
    guide: scale and parameters of the classifier, None: none. The model then knows no classes; only
      the classifier does.
    classifier: that of `guide`.
    start: images that the noise of the first level is added to, in model units; None: none.

  Returns:
    Images in model units, float32 (n, *image_shape).
  """
  solver = solvers.plan(entry.solver, entry.options, sigmas, 'brownian')
  apply, method = model.apply, None
  if classifier is not None:
    apply = _without_class(model.apply)
    method = guides.Method('classifier', classifier.apply, calls=1)
  run = _program(sampler.Method(apply, solver.solve, solver.splits, None, 'none', method))
  table = samplers.pad(solver.arrays, rows, SLOTS)
  numbers = np.arange(len(labels), dtype=np.uint32)
  inputs = sampler.Inputs(numbers, latents(len(labels), model.image_shape),
                          jnp.asarray(labels, jnp.int32), start)
  constants = sampler.Constants(model.params, table, np.float32(sigmas[0]), guide)
  return np.asarray(run(constants, inputs)[0])


@functools.cache
def latents(count: int, shape: tuple[int, ...]) -> jax.Array:
  """Returns the latents of seeds 0 to count - 1, float32 (count, *shape)."""
  keys = seeds.keys(np.arange(count), seeds.LATENT)
  return jax.vmap(lambda key: jax.random.normal(key, shape, jnp.float32))(keys)


def rms(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the root-mean-square difference per pixel."""
  return float(np.sqrt(np.mean((np.asarray(a, np.float64) - b)**2)))


def markdown(head: list[str], rows: list[list[str]]) -> str:
  """Returns a table in Markdown."""
  return '\n'.join(f'| {" | ".join(row)} |' for row in [head, ['---'] * len(head), *rows])


@functools.cache
def _program(method: sampler.Method) -> Callable[..., Any]:
  return jax.jit(functools.partial(sampler.sample, method=method))


@functools.cache
def _without_class(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """The model of all classes, for a classifier to choose among them."""
  return lambda params, x, sigma, labels: apply(
      params, x, sigma, jnp.full_like(labels, mixture.UNCONDITIONAL))
