"""Trains a small denoiser or classifier: `plan` checks everything, `run` does the work.

Step s draws its images, levels and noise from the seed and s alone, so a run that was killed and
started again ends with the parameters of one that was not.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from engine import (
  checkpoints,
  data as data_lib,
  files,
  identity,
  losses,
  plots,
  progress as progress_lib,
  resolve,
)
from models import directory, networks
from samplers import checks

_MODEL, _METRICS = 'model', 'metrics.jsonl'
_SIGMA_MIN, _SIGMA_MAX = 0.002, 80.0  # EDM's range, that of a model trained on all levels.
_LEAST = {'steps': 1, 'batch_size': 1, 'warmup': 0, 'log_every': 1, 'checkpoint_every': 1,
          'held_out': 0, 'seed': 0}
_HELD_OUT_BATCH = 512  # Images of one measurement on held-out data.


class State(NamedTuple):
  """What a step changes; a checkpoint holds it whole.

  Attributes:
    step: steps done, int32 scalar.
    params: of the network.
    ema: their moving average, which is what is kept in the end.
    optimizer: state of optax.
  """

  step: jax.Array
  params: Any
  ema: Any
  optimizer: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A run with nothing left to decide.

  Attributes:
    train: config.train.
    model: what goes into config.json of the model directory.
    network: the module.
    loss: loss(params, x0, labels, sigma, z, **call) -> (batch,).
    training: images to train on.
    held_out: images to measure on, or None.
    identity: what decides the result, plain values.
    workdir: folder of all output.
  """

  train: ml_collections.FrozenConfigDict
  model: dict[str, Any]
  network: nn.Module
  loss: Callable[..., jax.Array]
  training: data_lib.Data
  held_out: data_lib.Data | None
  identity: dict[str, Any]
  workdir: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it; nothing is compiled before all of it is found good.

  Args:
    config: the fields of configs/default.py, of which `train` counts.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    ValueError: if a field is out of range, the data cannot be used, or the folder cannot be written
      to or holds another run.
  """
  train = ml_collections.FrozenConfigDict(config.train)
  _check(train)
  training, held_out = data_lib.load(train.data, train.held_out)
  if train.kind == 'classifier' and training.num_classes < 2:
    raise ValueError(f'config.train.data: must have two classes or more for a classifier, got '
                     f'{training.num_classes} in {train.data!r}; add labels as arr_1')
  shape = training.images.shape[1:]
  settings = _settings(train.network, shape, training.num_classes)
  network = networks.build(train.network.name, settings)
  preconditioning = {'name': 'edm', 'settings': {'sigma_data': train.sigma_data}}
  coefficients = networks.preconditioning(**preconditioning)
  if train.kind == 'classifier':
    loss = losses.classification(networks.classifier(network, coefficients))
  else:
    loss = losses.denoising(networks.denoiser(network, coefficients), train.sigma_data)
  model = {'kind': train.kind, 'network': {'name': train.network.name, 'settings': settings},
           'preconditioning': preconditioning, 'sigma_min': _SIGMA_MIN,
           'sigma_max': train.sigma_max or _SIGMA_MAX, 'image_shape': list(shape),
           'num_classes': training.num_classes}
  decides = {name: value for name, value in train.to_dict().items() if name != 'checkpoint_every'}
  own = {'mode': 'train', 'train': decides, 'data_sha256': training.sha256}
  folder = pathlib.Path(workdir)
  identity.check_product(folder, own, _MODEL)
  return Plan(train=train, model=model, network=network, loss=loss, training=training,
              held_out=held_out, identity=own, workdir=files.check_folder(workdir))


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Trains from the last checkpoint on, and writes the model directory last.

  Args:
    plan: what `plan` returns.
    progress: shows how far the run is.

  Returns:
    One line for the user.

  Raises:
    FloatingPointError: if the loss is not finite.
    OSError: if a file cannot be written.
  """
  train, folder = plan.train, plan.workdir
  if (folder / _MODEL).exists():
    return f'{folder / _MODEL} is complete; nothing was left to do'
  files.remove_partial(folder)
  identity.write(folder, plan.identity)
  started = time.perf_counter()
  with checkpoints.opened(folder) as manager:
    shape = plan.training.images.shape[1:]
    state = checkpoints.restore(
        manager, jax.jit(functools.partial(initialize, plan.network, shape,
                                           make_optimizer(train))),
        jax.random.key(train.seed))
    first = int(state.step)
    lines = checkpoints.kept_lines(folder / _METRICS, first)
    with progress('training', train.steps, 'steps', done=first) as advance:
      for reached, line in _steps(plan, state, advance):
        if line:
          checkpoints.add_line(folder / _METRICS, lines, line)
        if int(reached.step) % train.checkpoint_every == 0 or int(reached.step) == train.steps:
          checkpoints.save('train', manager, int(reached.step), reached)
        state = reached
  title = f'{train.kind} of {train.data}, {plan.training.num_classes} classes'
  plots.write_training(folder / 'metrics.png', lines, title)
  directory.save(folder / _MODEL, plan.model, jax.device_get(state.ema),
                 {'trained': plan.identity}, train.dtype)
  return (f'{train.kind} in {folder / _MODEL}: {train.steps} steps, loss {lines[-1]["loss"]:.4f}, '
          f'{time.perf_counter() - started:.0f} s; see metrics.png')


def _steps(plan, state, advance):
  """Yields (state, line of metrics or None) where there is something to write."""
  train = plan.train
  key = jax.random.key(train.seed)
  images, labels = jax.device_put((plan.training.images, plan.training.labels))
  step = jax.jit(functools.partial(update, plan.loss, make_optimizer(train), train))
  measure = jax.jit(functools.partial(measure_loss, plan.loss, train))
  total, since, loss = [], None, None
  for i in range(int(state.step), train.steps):
    state, queued = step(state, key, images, labels)
    if loss is not None:  # The step before: one is always queued behind it.
      total.append(float(loss))
    advance(1, **({'loss': f'{total[-1]:.4f}'} if total else {}))
    loss, done = queued, i + 1
    since = since or (done, time.perf_counter())  # After the compilation.
    due = done % train.log_every == 0 or done == train.steps
    line = None
    if due:
      total.append(float(loss))
      value, loss = float(np.mean(total)), None
      if not np.isfinite(value):
        raise FloatingPointError(f'train: loss must be finite, got {value} at step {done}; lower '
                                 'config.train.learning_rate')
      line = {'step': done, 'images': done * train.batch_size, 'loss': value}
      seconds = time.perf_counter() - since[1]
      line['images_per_second'] = (done - since[0]) * train.batch_size / seconds
      if plan.held_out is not None:
        line['held_out_loss'] = float(measure(state.ema, key, plan.held_out.images,
                                              plan.held_out.labels))
      total, since = [], (done, time.perf_counter())
    if due or done % train.checkpoint_every == 0:
      yield state, line


def _settings(given, shape, num_classes):
  """Attributes of the network: those given, and those that follow from the data."""
  module = checks.lookup('network', given.name, networks.NETWORKS)
  derived = {'img_resolution': shape[0], 'out_channels': shape[2], 'label_dim': num_classes}
  return {name: value for name, value in derived.items() if name in module.__dataclass_fields__} | {
      name: list(value) if isinstance(value, tuple) else value for name, value in given.items()
      if value is not None and name != 'name'}


def make_optimizer(train: ml_collections.FrozenConfigDict) -> optax.GradientTransformation:
  """Returns Adam with linear warm-up, then constant or falling as a cosine to 0.

  Args:
    train: config.train.

  Returns:
    The optimizer.
  """
  peak = train.learning_rate
  if train.decay == 'cosine':
    rate = optax.warmup_cosine_decay_schedule(0.0, peak, train.warmup, train.steps)
  else:
    rate = optax.linear_schedule(0.0, peak, train.warmup)
  return optax.adam(rate)


def initialize(network: nn.Module, shape: tuple[int, int, int],
               optimizer: optax.GradientTransformation, key: jax.Array) -> State:
  """Returns the State before the first step."""
  params = networks.initialize(network, shape, key)
  return State(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))


def update(loss: Callable[..., jax.Array], optimizer: optax.GradientTransformation,
           train: ml_collections.FrozenConfigDict, state: State, key: jax.Array,
           images: jax.Array, labels: jax.Array | None) -> tuple[State, jax.Array]:
  """Does one step.

  Args:
    loss: of the Plan.
    optimizer: what `make_optimizer` returns.
    train: config.train.
    state: the State.
    key: of the run; the step is folded in here.
    images: of the training set, (n, side, side, channels).
    labels: int32 (n,), or None.

  Returns:
    (new State, mean loss).
  """
  of_batch, of_label, of_dropout, of_noise = jax.random.split(
      jax.random.fold_in(key, state.step), 4)
  indices = jax.random.randint(of_batch, (train.batch_size,), 0, len(images))
  x0, classes = images[indices], None
  if labels is not None:
    classes = labels[indices]
    if train.kind == 'denoiser':
      dropped = jax.random.bernoulli(of_label, train.label_dropout, classes.shape)
      classes = jnp.where(dropped, -1, classes)
  sigma, z = _noise(train, of_noise, x0)
  def mean_loss(params):
    return loss(params, x0, classes, sigma, z, train=True, rngs={'dropout': of_dropout}).mean()
  value, gradient = jax.value_and_grad(mean_loss)(state.params)
  updates, optimizer_state = optimizer.update(gradient, state.optimizer)
  params = optax.apply_updates(state.params, updates)
  decay = losses.ema_decay(state.step, train.batch_size, train.ema_half_life)
  ema = jax.tree.map(lambda mean, new: decay * mean + (1 - decay) * new, state.ema, params)
  return State(state.step + 1, params, ema, optimizer_state), value


def measure_loss(loss: Callable[..., jax.Array], train: ml_collections.FrozenConfigDict,
                 params: Any, key: jax.Array, images: jax.Array,
                 labels: jax.Array | None) -> jax.Array:
  """Returns the mean loss of the first held-out images, always under the same noise."""
  x0 = images[:_HELD_OUT_BATCH]
  sigma, z = _noise(train, key, x0)
  return loss(params, x0, None if labels is None else labels[:_HELD_OUT_BATCH], sigma, z).mean()


def _noise(train, key, x0):
  of_sigma, of_z = jax.random.split(key)
  sigma = losses.draw_sigma(of_sigma, len(x0), train.P_mean, train.P_std, train.sigma_max)
  return sigma, jax.random.normal(of_z, x0.shape)


def _check(train):
  """Raises ValueError for the first field of config.train that is out of range."""
  usual = 'configs/training.py has the usual one'
  checks.check_choice('config.train', 'kind', train.kind, ('denoiser', 'classifier'))
  checks.check_choice('config.train', 'decay', train.decay, ('constant', 'cosine'))
  checks.check_choice('config.train', 'dtype', train.dtype, directory.DTYPES)
  expected = 'noise_classifier' if train.kind == 'classifier' else 'song_unet'
  if train.network.name != expected:
    known = ', '.join(networks.NETWORKS)
    checks.lookup('network', train.network.name, networks.NETWORKS)
    raise ValueError(f'config.train.network.name: must be {expected} for a {train.kind}, got '
                     f'{train.network.name}; known: {known}')
  resolve.check_least('train', train, _LEAST, 'training.py')
  if train.warmup >= train.steps:
    raise ValueError(f'config.train.warmup: must be below config.train.steps, got {train.warmup} '
                     f'of {train.steps}; a twentieth is usual')
  for name in ('P_std', 'sigma_data', 'learning_rate', 'ema_half_life'):
    checks.check_positive('config.train', name, train[name], usual)
  for name, value in (('label_dropout', train.label_dropout),
                      ('network.dropout', train.network.dropout)):
    if not 0 <= checks.to_number(value) < 1:
      raise ValueError(f'config.train.{name}: must be from 0 to below 1, got {value!r}; 0.1 is '
                       'usual')
  if train.sigma_max is not None:
    checks.check_positive('config.train', 'sigma_max', train.sigma_max, 'None trains all levels')
    checks.check_range('config.train', _SIGMA_MIN, train.sigma_max)
