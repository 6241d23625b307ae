"""Inception: its parameters, blocks and features against the reference numbers, in 64 bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluation import extractors
from models import inception
from tests import recipe, reference
from tests.models.test_edm_nets import quickly

MANIFEST, ARRAYS = reference.load('inception')
IMAGES = ARRAYS['images']
KEYS = recipe.load('inception/keys.json.gz')
PTH, DETECTOR = 'inception_v', 'detector_v'
OTHER = 'detector_other_inputs'
# Input pipeline, network, file of the numbers, how many of an image, the manifest's tolerance.
RUNS = {'tf1': ('tf1', PTH, 'tf1', 5, 1e-10), 'edm': ('edm', DETECTOR, 'edm', 4, 1e-10),
        'pytorch_fid': ('pytorch_fid', PTH, 'pytorch_fid', 4, 1e-10),
        'detector_tf1': ('tf1', DETECTOR, OTHER, 1, 1e-10),
        'clean': ('clean', DETECTOR, OTHER, 1, 1e-8)}
PROBABILITIES = {  # Of which logits.
    'probs_unbiased': 'logits_unbiased', 'probs_no_bias': 'logits_unbiased', 'probs': 'logits'}
MEANS = {'dims64': 'MaxPool_1', 'dims192': 'MaxPool_2', 'dims768': 'Mixed_6e'}  # Of which block.
_LEAVES = {'conv.weight': ('conv', 'kernel'), 'bn.weight': ('bn', 'scale'),
           'bn.bias': ('bn', 'bias'), 'bn.running_mean': ('bn', 'mean'),
           'bn.running_var': ('bn', 'var'), 'fc.weight': ('fc', 'kernel'),
           'fc.bias': ('fc', 'bias')}


@functools.cache
def params(tag):
  """Parameters of a network of the manifest, float32 on the host."""
  tensors = recipe.weights(recipe.load('inception/recipes.json.gz')[tag], tag)
  if tag == DETECTOR:
    tensors = pth_names(tensors)
  tree = {}
  for name, array in tensors.items():
    *modules, parent, leaf = name.split('.')
    inner = tree
    for module in (*modules, (path := _LEAVES[f'{parent}.{leaf}'])[0]):
      inner = inner.setdefault(module, {})
    inner[path[1]] = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
  return tree


def pth_names(tensors):
  """The detector's tensors under the names of the .pth file; it has no scale."""
  renamed = {pth: tensors[detector] for pth, detector, _ in KEYS['fc_map']}
  for pth, detector, _ in KEYS['map']:
    renamed[f'{pth}.conv.weight'] = tensors[f'{detector}.weight']
    renamed[f'{pth}.bn.weight'] = np.ones_like(tensors[f'{detector}.beta'])
    for ours, theirs in (('bias', 'beta'), ('running_mean', 'mean'), ('running_var', 'var')):
      renamed[f'{pth}.bn.{ours}'] = tensors[f'{detector}.{theirs}']
  return renamed


@functools.cache
def compiled():
  """Features of all images and blocks of one, in the precision of the inputs."""
  def evaluate(params, x, which):
    out = inception.apply(params, x, (*inception.FEATURES, *inception.BLOCKS))
    features = {name: out[name] for name in inception.FEATURES}
    means = {part: out[block].mean((1, 2)) for part, block in MEANS.items()}
    return features | means, {name: out[name][which] for name in inception.BLOCKS}
  return quickly(evaluate, static_argnums=2)


@functools.cache
def double(tag):
  return jax.tree.map(lambda array: jnp.asarray(array, np.float64), params(tag))


@functools.cache
def evaluated(run):
  """(features of all images, blocks of one with its input) of a run, float64 on the host."""
  pipeline, tag, *_ = RUNS[run]
  x = np.concatenate([extractors.inputs(pipeline, image[None], np.float64)
                      for image in IMAGES.values()])
  which = list(IMAGES).index('rgb64')
  out, blocks = jax.tree.map(np.asarray, compiled()(double(tag), x, which))
  return out, {'input': x[which], **{name: blocks[name] for name in inception.BLOCKS}}


def test_parameters_are_named_as_in_the_published_file():
  x = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), np.float32)
  made = jax.eval_shape(inception.Inception().init, jax.random.key(0), x)['params']
  given = params(PTH)
  assert jax.tree.map(lambda leaf: leaf.shape, made) == jax.tree.map(np.shape, given)
  assert len(jax.tree.leaves(given)) == len(KEYS['pth']) == 472


@pytest.mark.parametrize('run', RUNS)
def test_features_are_those_of_the_published_networks(run, x64):
  _, _, file, parts, tolerance = RUNS[run]
  expected = {name: value for name, value in ARRAYS[file].items() if f'.{run}.' in name}
  assert len(IMAGES) == 6 and len(expected) == 6 * parts
  out, _ = evaluated(run)
  for name, value in expected.items():
    image, _, part = name.split('.')
    own = out[PROBABILITIES.get(part, part)][list(IMAGES).index(image)]
    own = np.asarray(jax.nn.softmax(own)) if part in PROBABILITIES else own
    assert own.shape == value.shape and abs(own - value).max() < tolerance, name


@pytest.mark.parametrize('run, layout', [('tf1', 'pth'), ('edm', 'detector')])
def test_every_block_is_that_of_the_published_network(run, layout, x64):
  _, blocks = evaluated(run)
  names = MANIFEST['conventions']['block_order']
  theirs = names[layout]
  assert list(blocks) == names['pth'] and len(theirs) == 19
  for (name, own), other, shape in zip(blocks.items(), theirs, ARRAYS['blocks']['pth.shapes'],
                                       strict=True):
    stats = own.mean(), own.std(), own.min(), own.max(), abs(own).mean()
    probe = own.ravel()[np.arange(64) * own.size // 64]
    assert own.shape == tuple(shape), name
    np.testing.assert_allclose(stats, ARRAYS['blocks'][f'{layout}.{other}.stats'], atol=1e-10,
                               rtol=0, err_msg=name)
    np.testing.assert_allclose(probe, ARRAYS['blocks'][f'{layout}.{other}.probe'], atol=1e-10,
                               rtol=0, err_msg=name)


def test_what_is_not_asked_for_is_not_computed():
  x = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), np.float32)
  def convolutions(*names):
    function = jax.jit(functools.partial(inception.apply, names=names))
    return function.lower(params(PTH), x).as_text().count('stablehlo.convolution')
  assert convolutions('pool') == 94
  assert convolutions('MaxPool_1') == 3


@pytest.mark.parametrize('shape', [(1, 299, 299, 1), (299, 299, 3), (1, 224, 224, 3)])
def test_images_of_another_shape_are_refused(shape):
  with pytest.raises(ValueError, match=r'inception: x must have the shape \(n, 299, 299, 3\), got'):
    inception.apply({}, np.zeros(shape))


def test_unknown_names_are_refused():
  with pytest.raises(ValueError, match=r"inception: unknown name 'poll'; did you mean pool\?"):
    inception.apply({}, np.zeros((1, 299, 299, 3)), ['poll'])
