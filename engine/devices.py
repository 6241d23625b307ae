"""The devices of this process; no other file knows of them.

A batch is spread over all devices in equal shares: arrays of shape (batch, ...) become
(devices, share, ...), and one program runs on every device, which sees a batch of size `share`.
One device is the same with a single share. What a device computes depends on its share alone.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

_AXIS = 'devices'
_MOST_CPU_DEVICES = 4  # Each holds the parameters.


def use_cores() -> None:
  """Makes a CPU several devices, one for each core up to 4; before JAX looks for devices.

  Small networks leave most cores idle when they run on one device. JAX_NUM_CPU_DEVICES, or the flag
  of XLA, sets another number; accelerators stay what they are.
  """
  told = 'xla_force_host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if not told and 'JAX_NUM_CPU_DEVICES' not in os.environ:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    jax.config.update('jax_num_cpu_devices', min(cores or 1, _MOST_CPU_DEVICES))


def count() -> int:
  """Returns the number of devices."""
  return jax.local_device_count()


def kind() -> str:
  """Returns what the devices are called, such as 'cpu'."""
  return str(jax.local_devices()[0].device_kind)


def share_of(batch_size: int) -> int:
  """Returns how many images of a batch each device gets, rounded up."""
  return -(-batch_size // count())


def split(array: np.ndarray) -> jax.Array:
  """Returns an array (batch, ...) as (devices, share, ...), each share on its device.

  Args:
    array: on the host; the number of devices divides the batch.
  """
  return _place(array.reshape(count(), -1, *array.shape[1:]), _AXIS)


def merge(array: jax.Array) -> np.ndarray:
  """Waits for an array (devices, share, ...) and returns it on the host as (batch, ...)."""
  return np.asarray(array).reshape(-1, *array.shape[2:])


def replicate(tree: Any) -> Any:
  """Returns a pytree of arrays that lies whole on every device, ready for `spread`."""
  return _place(tree)


def copies(tree: Any) -> Any:
  """Returns a pytree of arrays as parts (devices, ...) that are all the same, for `spread`."""
  return _place(jax.tree.map(
      lambda leaf: np.broadcast_to(np.asarray(leaf), (count(), *np.shape(leaf))), tree), _AXIS)


def first(tree: Any) -> Any:
  """Waits for parts that are all the same and returns one of them on the host."""
  return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)


def mean(tree: Any) -> Any:
  """Returns the mean over all devices, within a function that is `spread`."""
  return jax.lax.pmean(tree, _AXIS)


def spread(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
  """Returns a function that runs on all devices, compiled at the first call of each shape.

  A call comes back when the work is queued; `merge` waits for the result.

  Args:
    function: function(whole, share) -> result; pure. It sees the share of one device.

  Returns:
    A function of (whole, parts): `whole` as `replicate` returns it, the leaves of `parts` and of
    the result of shape (devices, share, ...).
  """
  return jax.pmap(function, axis_name=_AXIS, in_axes=(None, 0))


def _place(tree, *axes):
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (_AXIS,))
  spec = jax.sharding.PartitionSpec(*axes)
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec))
