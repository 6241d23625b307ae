"""PyTorch's names and layouts of parameters, as the reference numbers store them, to ours."""

import jax
import jax.numpy as jnp


def params(arrays, dtype):
  """Returns nested dicts of device arrays from {'enc.8x8_conv.weight': (out, in, kh, kw), ...}."""
  return jax.tree.map(lambda array: jnp.asarray(array, dtype), nested(arrays))


def nested(arrays):
  """The same on the host, in the precision that they have."""
  result = {}
  for name, array in arrays.items():
    *modules, leaf = name.split('.')
    if leaf == 'resample_filter':  # A constant there, an attribute here.
      continue
    if modules[:1] in (['enc'], ['dec']):
      modules = ['_'.join(modules[:2]), *modules[2:]]
    inner = result
    for module in modules:
      inner = inner.setdefault(module, {})
    leaf, array = transposed(leaf, array)
    inner[leaf] = array
  return result


def transposed(leaf, array):
  """Returns the name and layout here of one array."""
  if leaf != 'weight':
    return leaf, array
  if array.ndim == 1:
    return 'scale', array
  return 'kernel', array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
