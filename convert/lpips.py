"""LPIPS v0.1 with VGG16: key rules, and how its two published files become one network.

The convolutions are torchvision's file vgg16-397923af.pth; the weights of the compared channels are
five small tensors in another file: vgg.pth of LPIPS v0.1, or the same five as a list, in order. Lie
both in one folder, either can be converted: the other is found `beside` it. One file with all of
them serves too, be it under these names or those of the state dict of the package lpips.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from convert import rules
from models import lpips

LINS = tuple(f'lin{stage}.model.1.weight' for stage in range(len(lpips.STAGES)))
"""Names of the weights of the compared channels."""

PARTNERS = 'vgg.pth', 'vgg16-397923af.pth', 'lpips_weights.pt', 'weights-vgg16-lpips.pth'
"""Published names of the files, for `beside`."""

_CLASSIFIER = frozenset(f'classifier.{number}.{last}' for number in (0, 3, 6)
                        for last in ('weight', 'bias'))
# The package's state dict has the weights twice and the scaling of its inputs.
_PACKAGE = frozenset({'scaling_layer.shift', 'scaling_layer.scale',
                      *(f'lins.{stage}.model.1.weight' for stage in range(len(lpips.STAGES)))})


def matches(tensors: Any) -> bool:
  """Says whether the content of a file is of LPIPS with VGG16, whole or a part.

  Args:
    tensors: name -> array, or a list of arrays.
  """
  tensors = named(tensors)
  return any(name in tensors for name in (_vgg(28), _vgg(28, package=True), LINS[0]))


def named(content: Any) -> Mapping[str, np.ndarray]:
  """Returns tensors by their names; a list of five gets them by order, other content has none."""
  if isinstance(content, list | tuple) and len(content) == len(LINS):
    content = dict(zip(LINS, content, strict=True))
  if not isinstance(content, Mapping):
    return {}
  return {name: array for name, array in content.items() if isinstance(array, np.ndarray)}


def beside(path: pathlib.Path, tensors: Any, read: Callable[[pathlib.Path], Any],
           ) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Completes one of the two published files by the other one in its folder.

  Args:
    path: the file.
    tensors: its content.
    read: gives containers.Contents of a path.

  Returns:
    (tensors of both, {name of the other file: its SHA-256}, empty if the first was whole).

  Raises:
    OSError: if the other file cannot be read.
    ValueError: if there is none, or it does not hold what is missing.
  """
  tensors = dict(named(tensors))
  lacks = [what for what, there in (('VGG16', matches({name: array for name, array in
                                                       tensors.items() if name not in LINS})),
                                    ('the lin weights', any(name in tensors for name in LINS)))
           if not there]
  if not lacks:
    return tensors, {}
  for name in PARTNERS:
    other = path.with_name(name)
    if other == path or not other.is_file():
      continue
    contents = read(other)
    added = named(contents.data)
    if matches(added) and not added.keys() & tensors.keys():
      return {**tensors, **added}, {name: contents.sha256}
  raise ValueError(f'convert: source must hold VGG16 and the lin weights, got none of {lacks[0]}; '
                   "lay the other file, torchvision's vgg16-397923af.pth or vgg.pth of LPIPS v0.1, "
                   'beside it')


def convert(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], Any]:
  """Converts the network.

  Args:
    tensors: name -> array, of both files; torchvision's classifier is left out.

  Returns:
    (config, params): kind and network of a model directory, and parameters in float32.

  Raises:
    ValueError: if tensors are missing, not used, misshaped or not finite.
  """
  package = _vgg(0, package=True) in tensors
  ignored = _PACKAGE if package else _CLASSIFIER
  kept = {name: array for name, array in tensors.items() if name not in ignored}
  image = np.zeros((1, lpips.SMALLEST, lpips.SMALLEST, 3), np.float32)
  like = jax.eval_shape(lpips.VggDistance().init, jax.random.key(0), image, image)['params']
  params = rules.place(key_rules(package), kept, like, network='LPIPS v0.1 with VGG16',
                       remedy='take the published files')
  return {'kind': 'features', 'network': {'name': 'lpips_vgg', 'settings': {}}}, params


def key_rules(package: bool = False) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor.

  Args:
    package: for the names of the package lpips, else torchvision's.
  """
  result = {}
  for stage in lpips.STAGES:
    for number in stage:
      for last, parameter, layout in (('weight', 'kernel', 'conv'), ('bias', 'bias', 'same')):
        result[_vgg(number, last, package)] = rules.Rule((f'conv{number}', parameter), layout)
  for stage, name in enumerate(LINS):
    result[name] = rules.Rule((f'lin{stage}', 'kernel'), 'conv_to_dense')
  return result


def _vgg(number, last='weight', package=False):
  """Name of a tensor of torchvision's layer with this number."""
  if not package:
    return f'features.{number}.{last}'
  stage = next(i for i, stage in enumerate(lpips.STAGES) if number in stage)
  return f'net.slice{stage + 1}.{number}.{last}'
