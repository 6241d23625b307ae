"""LPIPS: one network of two published files, under the names of either package."""

import jax
import numpy as np
import pytest

from convert import containers, lpips
from tests.convert import writing
from tests.models import test_lpips as network_tests


@pytest.fixture(scope='module')
def published():
  """VGG16 of torchvision with its classifier, and the lin weights."""
  tensors = network_tests.tensors()
  vgg = {name: array for name, array in tensors.items() if name not in lpips.LINS}
  head = {f'classifier.{number}.{last}': np.zeros(2, np.float32)
          for number in (0, 3, 6) for last in ('weight', 'bias')}
  return {**vgg, **head}, {name: tensors[name] for name in lpips.LINS}


def test_both_parts_make_the_network(published):
  vgg, lins = published
  config, params = lpips.convert({**vgg, **lins})
  assert config == {'kind': 'features', 'network': {'name': 'lpips_vgg', 'settings': {}}}
  jax.tree.map(np.testing.assert_array_equal, params, network_tests.params(np.float32))
  assert params['conv2']['kernel'][1, 2, 3, 4] == vgg['features.2.weight'][4, 3, 1, 2]
  assert params['lin1']['kernel'][5, 0] == lins['lin1.model.1.weight'][0, 5, 0, 0]


def test_names_of_the_package(published):
  vgg, lins = published
  package = {}
  for name, array in vgg.items():
    start, number, last = name.split('.')
    if start == 'features':  # Slices end behind the layers 3, 8, 15, 22 and 29.
      number_of_slice = 1 + sum(int(number) > end for end in (3, 8, 15, 22))
      package[f'net.slice{number_of_slice}.{number}.{last}'] = array
  twice = {f'lins.{i}.model.1.weight': array for i, array in enumerate(lins.values())}
  scaling = {f'scaling_layer.{name}': np.zeros((1, 3, 1, 1)) for name in ('shift', 'scale')}
  _, params = lpips.convert({**scaling, **package, **lins, **twice})
  jax.tree.map(np.testing.assert_array_equal, params, network_tests.params(np.float32))


def test_the_other_file_is_found_beside(published, tmp_path):
  vgg, lins = ({name: array[:1] for name, array in part.items()} for part in published)
  source, partner = tmp_path / 'vgg16.pth', tmp_path / 'vgg.pth'
  for path, part in ((source, vgg), (partner, lins)):
    path.write_bytes(writing.safetensors(part))
  tensors, others = lpips.beside(source, vgg, containers.read)
  assert tensors.keys() == vgg.keys() | lins.keys()
  assert others == {'vgg.pth': containers.read(partner).sha256}
  assert lpips.beside(source, tensors, containers.read)[1] == {}
  with pytest.raises(ValueError, match='got none of VGG16; lay the other file'):
    lpips.beside(partner, lins, containers.read)
  source.rename(tmp_path / 'vgg16-397923af.pth')
  assert lpips.beside(partner, lins, containers.read)[0].keys() == tensors.keys()
  as_list = lpips.named([*lins.values()])
  assert [*as_list] == [*lpips.LINS] and lpips.matches([*lins.values()])
  partner.unlink()
  with pytest.raises(ValueError, match='got none of the lin weights; lay the other file,'):
    lpips.beside(tmp_path / 'vgg16-397923af.pth', vgg, containers.read)


def test_other_files_are_told_apart(published):
  vgg, lins = published
  assert lpips.matches(vgg) and lpips.matches(lins)
  for other in ({'features.0.weight': np.zeros(1)}, [np.zeros(1)] * 4, {'step': 3}, 'text', {}):
    assert not lpips.matches(other)


def test_all_that_does_not_fit_is_told_at_once(published):
  vgg, lins = published
  tensors = {**vgg, **lins, 'features.30.weight': np.zeros(1), 'features.0.bias': np.zeros(63)}
  del tensors['lin3.model.1.weight']
  with pytest.raises(ValueError, match='missing lin3.model.1.weight; not used features.30.weight; '
                     r'features.0.bias is \(63,\) and must be \(64,\)'):
    lpips.convert(tensors)
