"""Samples of many solvers from the same seeds, with the time they take.

All tables are padded to the same numbers of rows and slots, so that one compiled program runs them;
rows that pad cost next to nothing. A loop has a program of its own.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import models
import samplers
from engine import batches, devices, guides, sampler, seeds as seeds_lib, solvers


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
  """The same seeds for every solver.

  Attributes:
    model: the denoiser.
    guide: guidance, or None.
    limit: limit on the denoised image, a key of sampler.LIMITS.
    source: of the noise, a key of samplers.noise.SOURCES; None: no table draws any.
    rows: of every padded table.
    slots: of every padded table.
    seeds: np.uint32 (n,).
    labels: np.int32 (n,), below 0 without a class.
    seeds_from: who draws latents, one of seeds.SOURCES.
    batch_size: images per call, over all devices.
  """

  model: models.Model
  guide: guides.Guide | None
  limit: str
  source: str | None
  rows: int
  slots: int
  seeds: np.ndarray
  labels: np.ndarray
  seeds_from: str
  batch_size: int

  @functools.cached_property
  def latents(self) -> np.ndarray:
    """Standard normal, float32 (n, height, width, channels)."""
    parts = batches.split(np.arange(len(self.seeds)), self._whole_batch)
    drawn = [devices.merge(seeds_lib.latents(self.seeds[part], self.model.image_shape,
                                             self.seeds_from)) for part in parts]
    return np.concatenate(drawn)[:len(self.seeds)]

  @property
  def _whole_batch(self):
    return devices.share_of(self.batch_size) * devices.count()

  def program(self, splits: bool, solve: Callable[..., Any] | None = None):
    """Returns the compiled sampler; arguments as solvers.Solver has them, no solve: of tables."""
    apart = splits and self.guide is not None  # Without guidance it is all the same.
    return sampler.program(sampler.Method(
        self.model.apply, solve or solvers.of_table(self.source), apart, None, self.limit,
        self.guide and self.guide.method))

  @functools.cached_property
  def _placed(self):
    """What does not depend on the table, on the devices: moved there once."""
    return devices.replicate((self.model.params, self.guide and self.guide.constants))

  def constants(self, arrays: Any, sigma_first: float) -> sampler.Constants:
    """Returns what all images share, on the devices."""
    params, guide = self._placed
    if isinstance(arrays, samplers.Table):
      arrays = samplers.pad(arrays, self.rows, self.slots)
    arrays, sigma_first = devices.replicate((arrays, np.float32(sigma_first)))
    return sampler.Constants(params, arrays, sigma_first, guide)

  def run(self, pieces: Sequence[Any], sigma_first: float, count: int, *,
          start: np.ndarray | None = None, splits: bool = False,
          solve: Callable[..., Any] | None = None) -> tuple[np.ndarray, float]:
    """Samples the first seeds.

    Args:
      pieces: tables, or coefficients of `solve`; run one after the other, each from where the one
        before has ended; those after the first draw no noise of their own.
      sigma_first: noise level at which the first one starts.
      count: of the seeds.
      start: images under the first level's noise, like the result; None: nothing but noise.
      splits: as solvers.Solver has it.
      solve: as solvers.Solver has it; None: that of tables.

    Returns:
      Samples in model units, float32 (count, height, width, channels), perhaps not finite; and
      the seconds that it took.
    """
    program = self.program(splits, solve)
    shared = [self.constants(arrays, 0 if i else sigma_first) for i, arrays in enumerate(pieces)]
    start = np.zeros_like(self.latents[:count]) if start is None else start
    parts = [self._inputs(part, start)
             for part in batches.split(np.arange(count), self._whole_batch)]
    started = time.perf_counter()
    ends = []
    for inputs in parts:
      for constants in shared:
        samples, _ = program(constants, inputs)
        inputs = inputs._replace(start=samples)
      ends.append(samples)
    ends = [devices.merge(samples) for samples in ends]  # Waits; the devices had all the work.
    return np.concatenate(ends)[:count], time.perf_counter() - started

  def _inputs(self, indices: np.ndarray, start: np.ndarray) -> Any:
    classes = self.model.num_classes or (self.guide and self.guide.num_classes)
    return sampler.Inputs(
        seeds=devices.split(self.seeds[indices]), latents=devices.split(self.latents[indices]),
        labels=devices.split(self.labels[indices]) if classes else None,
        start=devices.split(start[indices]))


def seconds_per_evaluation(trial: Trial, steps: int = 8, repeats: int = 3) -> float:
  """Measures what one evaluation of the network costs for all seeds, guidance included.

  The time of a table with `steps` evaluations less that of one with none, in the same program.

  Args:
    trial: on which seeds.
    steps: evaluations, at most the rows of the trial.
    repeats: of which the quickest counts.

  Returns:
    Seconds, above 0.
  """
  steps = min(steps, trial.rows)
  sigmas = np.geomspace(trial.model.sigma_max, trial.model.sigma_min, steps + 1)
  busy = samplers.make('euler', sigmas)
  idle = samplers.make('euler', sigmas[:2], afs=True)
  quickest = [min(trial.run([table], sigmas[0], len(trial.seeds))[1] for _ in range(repeats))
              for table in (busy, idle)]
  return max(quickest[0] - quickest[1], 1e-9) / (busy.nfe - idle.nfe)
