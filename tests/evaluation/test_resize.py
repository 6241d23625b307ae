"""Resizing against the reference numbers, Pillow itself, and what any resize must keep."""

import numpy as np
import pytest
from PIL import Image

from evaluation import resize
from tests import reference

MANIFEST, ARRAYS = reference.load('inception')
STORED = ARRAYS['resize']
CASES = {case['id']: case for case in MANIFEST['cases'] if 'kind' in case}
BILINEAR = [name for name in CASES if name.startswith('tf1.')]
ANTIALIASED = [name for name in CASES if name.startswith('pil.')]
FUNCTIONS = {'tf1': resize.tf1, 'grid_sample': resize.grid_sample, 'half_pixel': resize.half_pixel,
             **{filter: lambda images, size, filter=filter: resize.pil(images, *size, filter)
                for filter in resize.FILTERS}}
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (2, 9, 13, 3), np.uint8)


def compare(case, own, name, tolerance):
  """Asserts that what is stored of a resized image is met; 0 asks for every bit."""
  every = 1 if CASES[case]['stored'] == 'all' else 23
  assert own.shape[:2] == tuple(CASES[case]['size_hw']) and own.dtype == STORED[name].dtype
  own = own[::every, ::every]
  assert own.shape == STORED[name].shape
  assert abs(own.astype(np.float64) - STORED[name]).max() <= tolerance, name


def test_every_case_is_replayed():
  assert (len(BILINEAR), len(ANTIALIASED)) == (6, 6)
  # Each has an input; tf1: y32, y64, half_pixel, two of them the detector's; pil: see below.
  assert len(STORED) == 6 * 4 + 2 + 6 * 7
  assert {filter for name in ANTIALIASED for filter in CASES[name]['filters']} == {*resize.FILTERS}


@pytest.mark.parametrize('case', BILINEAR)
def test_bilinear_is_that_of_the_originals(case):
  x, size, letter = STORED[f'{case}.x'], tuple(CASES[case]['size_hw']), case[-1]
  compare(case, resize.tf1(x, size), f'{case}.y32', 0)
  wide = x.astype(np.float64)
  # Sums of numbers up to 255, in another order than the originals: some units of 3e-14.
  compare(case, resize.tf1(wide, size), f'{case}.y64', 2e-12)
  compare(case, resize.half_pixel(wide, size), f'half_pixel.{letter}.y64', 2e-12)
  if letter in 'ef':
    compare(case, resize.grid_sample(wide, size), f'detector.{letter}.y64', 2e-12)


@pytest.mark.parametrize('case', ANTIALIASED)
def test_antialiased_is_that_of_the_originals(case):
  x, size = STORED[f'{case}.x'], CASES[case]['size_hw']
  for filter in CASES[case]['filters']:
    clipped = resize.pil(x.astype(np.float32), *size, filter).clip(0, 255)
    compare(case, clipped, f'{case}.{filter}.float', 0)
  compare(case, resize.pil(x, *size), f'{case}.bicubic.uint8', 0)
  # Without rounding it is PyTorch's, whose weights are sums in another order.
  compare(case, resize.pil(x.astype(np.float64), *size), f'{case}.torch_bicubic_antialias.y64',
          2e-12)


@pytest.mark.parametrize('size', [(9, 31), (20, 13), (33, 40), (9, 5), (4, 13), (5, 4)])
@pytest.mark.parametrize('filter', resize.FILTERS)
def test_pil_is_pillow_bit_by_bit(size, filter):
  # Sizes whose passes every version of Pillow takes in the same order.
  def pillow(channel):
    return np.asarray(Image.fromarray(channel).resize(size[::-1], kind))
  kind = Image.Resampling[filter.upper()]
  for image, own in zip(BYTES, resize.pil(BYTES, *size, filter), strict=True):
    np.testing.assert_array_equal(own, pillow(image))
  floats = BYTES.astype(np.float32)
  for image, own in zip(floats, resize.pil(floats, *size, filter), strict=True):
    for k in range(3):
      np.testing.assert_array_equal(own[..., k], pillow(image[..., k]))


def test_pil_goes_through_the_width_first():
  # Rounding between the passes shows their order; Pillow 13 swaps it here.
  tall = RNG.integers(0, 256, (36, 5, 1), np.uint8)
  own = resize.pil(tall, 4, 15)
  np.testing.assert_array_equal(own, resize.pil(resize.pil(tall, 36, 15), 4, 15))
  assert (own != resize.pil(resize.pil(tall, 4, 5), 4, 15)).any()


@pytest.mark.parametrize('name', FUNCTIONS)
def test_constants_stay_and_equal_sizes_change_nothing(name):
  constant = np.full((1, 5, 7, 1), 100.0)
  np.testing.assert_allclose(FUNCTIONS[name](constant, (11, 3)), 100, rtol=1e-14)
  np.testing.assert_array_equal(FUNCTIONS[name](BYTES, (9, 13)), BYTES)


@pytest.mark.parametrize('name', FUNCTIONS)
def test_an_image_does_not_depend_on_its_batch_or_channel(name):
  whole = FUNCTIONS[name](BYTES, (12, 8))
  np.testing.assert_array_equal(FUNCTIONS[name](BYTES[1], (12, 8)), whole[1])
  np.testing.assert_array_equal(FUNCTIONS[name](BYTES[..., 1:2], (12, 8)), whole[..., 1:2])
  assert FUNCTIONS[name](BYTES[:0], (12, 8)).shape == (0, 12, 8, 3)


@pytest.mark.parametrize('name', ['half_pixel', *resize.FILTERS])
def test_centred_resizes_commute_with_a_flip_and_tf1_does_not(name):
  x = BYTES.astype(np.float64)
  def both(function, size):
    return function(x, size), function(x[:, :, ::-1], size)[:, :, ::-1]
  # Not for box where edges of kernels fall on centres of pixels, which belong to one side only.
  np.testing.assert_allclose(*both(FUNCTIONS[name], (9, 31)), rtol=0, atol=1e-10)
  straight, flipped = both(resize.tf1, (9, 31))
  assert abs(straight - flipped).max() > 1


def test_precision_follows_the_images():
  for name, function in FUNCTIONS.items():
    assert function(BYTES.astype(np.float64), (3, 4)).dtype == np.float64, name
    assert function(BYTES.astype(np.float32), (3, 4)).dtype == np.float32, name
  assert resize.tf1(BYTES, 4).dtype == np.float32
  assert resize.pil(BYTES, 4, 4).dtype == np.uint8
  # EDM's resize is TensorFlow's up to the rounding of a ratio, which 3e-5 of a gray level bounds.
  both = (function(BYTES.astype(np.float64), 299) for function in (resize.tf1, resize.grid_sample))
  np.testing.assert_allclose(*both, rtol=0, atol=1e-3)


@pytest.mark.parametrize('images, size, message', [
    (BYTES, 0, r'tf1: size must be integers above 0, got \(0, 0\); give \(height, width\)'),
    (BYTES, (3, 2.5), r'tf1: size must be integers above 0, got \(3, 2.5\)'),
    (BYTES[0, 0], 3, r'tf1: images must have the shape \(\.\.\., height, width, channels\), got '
                     r'\(13, 3\); a single channel is'),
    (BYTES[:, :0], 3, r'tf1: images must have the shape .*, got \(2, 0, 13, 3\)')])
def test_bad_input_is_refused(images, size, message):
  with pytest.raises(ValueError, match=message):
    resize.tf1(images, size)


def test_an_unknown_filter_is_refused():
  with pytest.raises(ValueError, match=r"pil: unknown filter 'bicubik'; did you mean bicubic\?"):
    resize.pil(BYTES, 3, 3, 'bicubik')
