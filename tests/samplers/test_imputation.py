"""Linear measurements: resampling against reference matrices, projectors, and agreement."""

import collections

import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from samplers import guidance, imputation, resize
from tests import reference

TABLES = reference.load('splitting')[1]['resizer_tables']
RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 8, 6, 3))
MASK = (RNG.random((8, 6, 1)) < 0.5).astype(float)
OPERATORS = {'inpainting': imputation.inpainting(MASK), 'mean': imputation.block_mean(2),
             'grayscale': imputation.grayscale(), 'bicubic': imputation.bicubic(8, 6, 2)}
PROJECTORS = {name: some for name, some in OPERATORS.items() if name != 'bicubic'}


def test_every_reference_matrix_is_here():
  assert collections.Counter(key.split('.')[-1] for key in TABLES) == {
      'cubic': 7, 'lanczos2': 7, 'lanczos3': 7, 'linear': 7, 'box': 4}


def test_box_kernel_repeats_pixels_where_it_enlarges():
  """The original cannot do it."""
  np.testing.assert_array_equal(resize.matrix(3, 2, 'box'), np.repeat(np.eye(3), 2, axis=0))


@pytest.mark.parametrize('key', TABLES)
def test_resampling_matrices(key):
  _, size, *scale, kernel = key.split('.')
  ours = resize.matrix(int(size), float('.'.join(scale)), kernel)
  np.testing.assert_allclose(ours, TABLES[key], rtol=0, atol=1e-15)


def test_constant_images_stay_as_they_are():
  for name in ('mean', 'grayscale', 'bicubic'):
    np.testing.assert_allclose(OPERATORS[name](jnp.full((1, 8, 6, 3), 0.7)), 0.7, rtol=1e-12)


@pytest.mark.parametrize('name', PROJECTORS)
def test_orthogonal_projectors(name):
  """P P = P, and <P a, b> = <a, P b>."""
  project, (a, b) = PROJECTORS[name], IMAGES
  np.testing.assert_allclose(project(project(IMAGES)), project(IMAGES), atol=1e-14)
  left, right = (jnp.sum(project(one[None]) * other[None]) for one, other in ((a, b), (b, a)))
  np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize('kernel', ['mean', 'bicubic'])
def test_small_images_enlarged_are_measurements(kernel):
  small = jnp.asarray(RNG.standard_normal((2, 4, 3, 3)))
  large = imputation.enlarge(small, 2, kernel)
  assert large.shape == (2, 8, 6, 3)
  resampling = {'mean': 'box', 'bicubic': 'cubic'}[kernel]
  rows, columns = (resize.matrix(size, 2, resampling) for size in (4, 3))
  np.testing.assert_allclose(OPERATORS[kernel](large), jnp.einsum(
      'ih,jw,nhwc->nijc', rows, columns, small), atol=1e-12)


@pytest.mark.parametrize('name', PROJECTORS)
def test_samples_agree_with_the_measurement_exactly(name):
  table = samplers.make('ddpm', samplers.schedule('edm', 4, 0.1, 10.0))
  out = samplers.run(table, reference.gaussian_denoiser(), jnp.asarray(10 * IMAGES),
                     draw=lambda r, x: x,
                     project=imputation.replace(PROJECTORS[name], 0.1 * IMAGES[:1]),
                     project_draw=lambda r, x: jnp.sin(x))
  wanted = jnp.broadcast_to(PROJECTORS[name](0.1 * IMAGES[:1]), IMAGES.shape)
  np.testing.assert_allclose(PROJECTORS[name](out), wanted, atol=1e-12)


def test_a_mask_for_each_image_goes_with_one_reference():
  masks = (RNG.random((2, 8, 6, 1)) < 0.5).astype(float)
  out = imputation.replace(imputation.inpainting(masks), jnp.full((1, 8, 6, 3), 0.5))(
      IMAGES, 0.0, jnp.zeros_like(IMAGES))
  np.testing.assert_array_equal(out, np.where(masks > 0, 0.5, IMAGES))


def test_replaced_noise_is_that_of_the_level():
  out = imputation.replace(OPERATORS['grayscale'], jnp.zeros_like(IMAGES))(
      jnp.zeros_like(IMAGES), 3.0, IMAGES)
  np.testing.assert_allclose(out, 3 * OPERATORS['grayscale'](IMAGES), rtol=1e-12)


def test_gradient_of_the_likelihood_of_gaussian_data():
  """D = b x with b = s^2 / (s^2 + sigma^2): the gradient is -b P (b x - reference)."""
  denoise, sigma = reference.gaussian_denoiser(0.5), 0.7
  shrink = 0.25 / (0.25 + sigma**2)
  target = jnp.ones_like(IMAGES)
  log_prob = imputation.log_likelihood(denoise, OPERATORS['mean'], target)
  expected = sigma * shrink * OPERATORS['mean'](shrink * IMAGES - target)
  np.testing.assert_allclose(guidance.classifier_term(log_prob, 1.0)(IMAGES, sigma), expected,
                             rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('call, message', [
    (lambda: imputation.block_mean(0), 'block_mean: factor must be an integer of at least 1, got'),
    (lambda: imputation.block_mean(4)(IMAGES), 'factor must divide height and width, 8 and 6, got'),
    (lambda: imputation.bicubic(8, 6, 4), 'bicubic: factor must divide height and width, 8 and 6'),
    (lambda: imputation.bicubic(8, 6, 1.5), 'bicubic: factor must be an integer'),
    (lambda: imputation.enlarge(IMAGES, 2, 'box'), "enlarge: unknown kernel 'box'"),
    (lambda: imputation.inpainting(MASK[:7])(IMAGES), r'mask must have shape \(8, 6, 1\)'),
    (lambda: imputation.inpainting(np.ones((8, 6, 3)))(IMAGES), r'mask must have .* got \(8, 6, 3'),
    (lambda: imputation.inpainting(np.ones((3, 8, 6, 1)))(IMAGES), 'or one for each of 2, got'),
    (lambda: imputation.inpainting(0.5 * MASK), 'mask must be 0 or 1 everywhere, got values from'),
    (lambda: resize.matrix(8, 0.5, 'sinc'), "resize: unknown kernel 'sinc'"),
    (lambda: resize.matrix(8, 0), 'resize: scale must be a finite number above 0'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
