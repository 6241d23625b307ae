"""The Inception of 2015-12-05: its tensors in the two published layouts, and where they go.

One is that of the .pth file of pytorch-fid and torch-fidelity, whose names the parameters keep. The
other is that of NVIDIA's detector, with names of TensorFlow's graph and no batch-norm scale, which
is 1 there.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np

from convert import rules as rules_lib
from models import feature_networks, inception

_NETWORK = 'the Inception of 2015-12-05'
_REMEDY = ('take pt_inception-2015-12-05-6726825d.pth of pytorch-fid, inception-2015-12-05.pt of '
           'NVIDIA, or a whole file')

_STEM = [name for name in inception.BLOCKS if name.startswith('Conv2d')]
_MIXED = [name for name in inception.BLOCKS if name.startswith('Mixed')]

# Branches of more than a convolution, in the order of the detector's towers; first match.
_TOWERS = {'Mixed_5': ('branch5x5', 'branch3x3dbl', 'branch_pool'),
           'Mixed_6a': ('branch3x3dbl',),
           'Mixed_6': ('branch7x7', 'branch7x7dbl', 'branch_pool'),
           'Mixed_7a': ('branch3x3', 'branch7x7x3'),
           'Mixed_7': ('branch3x3', 'branch3x3dbl', 'branch_pool')}

_PTH = {'kernel': 'conv.weight', 'scale': 'bn.weight', 'bias': 'bn.bias', 'mean': 'bn.running_mean',
        'var': 'bn.running_var'}
_DETECTOR = {'kernel': 'weight', 'bias': 'beta', 'mean': 'mean', 'var': 'var'}


def matches(tensors: Mapping[str, np.ndarray]) -> bool:
  """Says whether names of tensors are those of an Inception-v3, perhaps another one."""
  return any(name.startswith(('Mixed_5b.', 'layers.mixed.')) for name in tensors)


def convert(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Any]:
  """Makes a network of features of the tensors of a file.

  Args:
    tensors: name -> array, in either layout.

  Returns:
    (config, params): the fields of a model directory, and parameters in float32.

  Raises:
    ValueError: if it is another Inception, tensors are missing, unknown or of another shape, with
      all such names, or values are not finite.
  """
  head = tensors.get('fc.weight')
  if any(name.startswith('AuxLogits.') for name in tensors) or (
      head is not None and head.shape[:1] == (1000,)):
    raise ValueError(f'convert: tensors must be those of {_NETWORK}, with {inception.OUTPUTS} '
                     'classes and no AuxLogits, got the Inception-v3 of torchvision, whose '
                     f'features are others; {_REMEDY}')
  like = feature_networks.shapes(feature_networks.build('inception', {}))
  paths = flax.traverse_util.flatten_dict(like)
  detector = any(name.startswith('layers.') for name in tensors)
  scales = {path: leaf for path, leaf in paths.items() if detector and path[-1] == 'scale'}
  wanted = {path: leaf for path, leaf in paths.items() if path not in scales}
  # Counters of training steps, which a file that was saved again may have.
  counters = {f'{".".join(path[:-2])}.bn.num_batches_tracked' for path in paths
              if path[-1] == 'kernel'}
  params = rules_lib.place(
      {tensor_name(path, detector): _rule(path) for path in wanted},
      {name: tensor for name, tensor in tensors.items() if name not in counters},
      flax.traverse_util.unflatten_dict(wanted), network=_NETWORK, remedy=_REMEDY)
  flat = flax.traverse_util.flatten_dict(params)
  flat |= {path: np.ones(leaf.shape, np.float32) for path, leaf in scales.items()}
  return ({'kind': 'features', 'network': {'name': 'inception', 'settings': {}}},
          flax.traverse_util.unflatten_dict(flat))


def tensor_name(path: tuple[str, ...], detector: bool) -> str:
  """Returns the name in a file of a parameter.

  Args:
    path: of models.inception.Inception, such as ('Mixed_5b', 'branch1x1', 'bn', 'mean').
    detector: of NVIDIA's layout rather than the .pth file's.
  """
  if path[0] == 'fc':
    return f'{"output" if detector else "fc"}.{"weight" if path[1] == "kernel" else "bias"}'
  unit = path[:-2]
  return (f'{_detector_unit(*unit)}.{_DETECTOR[path[-1]]}' if detector
          else f'{".".join(unit)}.{_PTH[path[-1]]}')


def _rule(path):
  if path[-1] != 'kernel':
    return rules_lib.Rule(path)
  return rules_lib.Rule(path, 'transposed' if path[0] == 'fc' else 'conv')


def _detector_unit(block, branch=None):
  """The detector's name of a convolution, whose towers count from 0 without saying so."""
  if branch is None:
    return f'layers.{_numbered("conv", _STEM.index(block))}'
  layer = f'layers.{_numbered("mixed", _MIXED.index(block))}'
  towers = next(towers for start, towers in _TOWERS.items() if block.startswith(start))
  stem, step, side = re.fullmatch(r'(\w+?)(?:_(\d)([ab]?))?', branch).groups()
  if stem not in towers:
    return f'{layer}.conv'
  join = '_' if block in ('Mixed_7b', 'Mixed_7c') else '.'
  conv = (f'mixed{join}{_numbered("conv", "ab".index(side))}' if side
          else _numbered('conv', int(step or 1) - 1))
  return f'{layer}.{_numbered("tower", towers.index(stem))}{join}{conv}'


def _numbered(name, number):
  return f'{name}_{number}' if number else name
