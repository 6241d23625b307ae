"""Latents and labels that PyTorch draws per seed, without PyTorch: to make published pictures.

EDM and diff-sampler give every image a torch.Generator of its own, seeded with the number of the
image, and draw the latent (channels, height, width) first, then one label. This module reproduces
both draws in NumPy for the two kinds of generator, whose numbers have nothing in common:

  'cpu': the Mersenne twister MT19937, turned normal by Box-Muller in blocks of 16, or in double
    precision number by number where a tensor has fewer than 16;
  'cuda': Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), a
    function of the seed, the number of draws before this one, and the place of the element.

What is confirmed. CPU: numbers, labels and the draws after them against PyTorch 2.13.0, up to the
last bits of float32 logarithm, sine and cosine, which differ between processors (5e-7 at most in
25 million numbers). CUDA: Philox against the vectors of its authors; 12 published numbers of a
first draw to 1e-6; and to the 4 decimals that they show, printouts of cards with a first, second
and third randn of one generator, hence that every draw moves on by one block. That randint takes
the first word of a block modulo its range is in the source of PyTorch's kernel and agrees with the
8 numbers of one printout, whose seed is inferred. Not compared: a whole latent in full digits.
Cards approximate the sine in hardware, so expect differences of some 1e-6 there.
"""

from typing import NamedTuple

import numpy as np

DEVICES = 'cpu', 'cuda'

MOST_CUDA = 196_608
"""Most numbers of one tensor on 'cuda', as many as 3 x 256 x 256.

On a card every thread has a Philox sequence of its own, and number i is the first of thread i. If a
tensor has more numbers than the card runs threads at once, threads make several, and which ones
depends on the card. An RTX 4090 runs 196,608 threads and an A100 221,184, but a V100 163,840 and a
T4 40,960: larger tensors of such cards are not reproduced.
"""

_BLOCK = 16  # Tensors of at least so many numbers are filled in blocks on the CPU.
_AT_ONCE = 2**15  # Philox blocks computed together, few enough for a processor's cache.
_HIGHEST_SEED = 2**32 - 1
_LOW = np.uint64(2**32 - 1)  # Mask of a 32-bit word.
_TWO_PI = np.float32(2 * np.pi)


class Stream(NamedTuple):
  """Where the CPU generator of one seed stands; every draw returns the stream after it.

  Attributes:
    seed: from 0 to 2^32 - 1.
    position: 32-bit words of the twister that are used up.
    spare: second normal number of the last pair if it was not asked for, in double precision.
  """

  seed: int
  position: int = 0
  spare: float | None = None


def draw(seeds: np.ndarray, shape: tuple[int, int, int], num_classes: int,
         device: str) -> tuple[np.ndarray, np.ndarray | None]:
  """Draws the latent of every seed, then its label.

  For each seed: generator = torch.Generator(device).manual_seed(seed), then
  torch.randn((channels, height, width)) and torch.randint(num_classes, ()) from it.

  Args:
    seeds: whole numbers from 0 to 2^32 - 1, shape (n,).
    shape: (height, width, channels) of one image.
    num_classes: classes to draw the label from, 0 for no labels, below 2^28.
    device: 'cpu' or 'cuda', where PyTorch's generator lives.

  Returns:
    (latents, labels): float32 (n, height, width, channels), standard normal, and int32 (n,), or
    None without classes. Row i depends on seeds[i] alone.

  Raises:
    ValueError: if the device is unknown, a seed or num_classes is out of range, the shape is not
      three positive numbers, or an image is too large for 'cuda' (see MOST_CUDA).
  """
  if device not in DEVICES:
    raise ValueError(f"draw: device must be {' or '.join(map(repr, DEVICES))}, got {device!r}; "
                     'choose the one that made the pictures to repeat')
  seeds = np.asarray(seeds)
  bad = np.flatnonzero((seeds < 0) | (seeds > _HIGHEST_SEED))
  if bad.size:
    raise ValueError(f'draw: seeds must be from 0 to {_HIGHEST_SEED}, got {seeds[bad[0]]} at index '
                     f'{bad[0]}; take it modulo 2^32, as EDM does')
  if len(shape) != 3 or min(shape) < 1:
    raise ValueError('draw: shape must be three positive numbers (height, width, channels), got '
                     f'{tuple(shape)}; leave the number of images to seeds')
  if not 0 <= num_classes < 2**28:
    # From 2^28 on PyTorch makes a label of two words.
    raise ValueError(f'draw: num_classes must be from 0 to {2**28 - 1}, got {num_classes}; 0 draws '
                     'no labels')
  height, width, channels = shape
  count = height * width * channels
  if device == 'cuda':
    normals = cuda_randn(seeds, count)
    labels = cuda_randint(seeds, num_classes, 1) if num_classes else None
  else:
    normals = np.empty((len(seeds), count), np.float32)
    labels = np.empty(len(seeds), np.int32) if num_classes else None
    for i, seed in enumerate(seeds):
      normals[i], stream = cpu_randn(Stream(int(seed)), count)
      if num_classes:
        labels[i], _ = cpu_randint(stream, num_classes)
  latents = normals.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(latents), labels


def cpu_randn(stream: Stream, count: int) -> tuple[np.ndarray, Stream]:
  """Returns what torch.randn(count) draws from a CPU generator.

  From 16 numbers on, every block of 16 words makes 8 radii and 8 angles, and the result has 8
  cosines before 8 sines. If blocks do not fill the tensor, its last 16 numbers are made from 16
  fresh words, whatever was there. Fewer than 16 numbers are made one by one in double precision,
  where a pair's second number waits in the generator until it is asked for.

  Args:
    stream: where the generator stands.
    count: how many numbers, >= 1; a tensor's shape does not matter.

  Returns:
    (normals, stream): float32 (count,) and the stream after the draw.
  """
  if count < _BLOCK:
    return _few_normals(stream, count)
  whole = count - count % _BLOCK
  words, stream = _words(stream, count if whole == count else count + _BLOCK)
  blocks = _block_normals(np.concatenate([words[:whole], words[count:]]).reshape(-1, _BLOCK))
  normals = np.empty(count, np.float32)
  normals[:whole] = blocks[:whole]
  normals[-_BLOCK:] = blocks[-_BLOCK:]
  return normals, stream


def cpu_randint(stream: Stream, high: int) -> tuple[int, Stream]:
  """Returns what torch.randint(high, ()) draws from a CPU generator.

  Args:
    stream: where the generator stands; a spare normal number stays in it.
    high: one more than the largest result, from 1 to 2^28 - 1.

  Returns:
    (number, stream): the next word modulo high, and the stream after it.
  """
  words, stream = _words(stream, 1)
  return int(words[0]) % high, stream


def cuda_randn(seeds: np.ndarray, count: int, offset: int = 0) -> np.ndarray:
  """Returns what torch.randn(count) draws from a CUDA generator of each seed.

  Number i comes from the Philox block at counter (offset, 0, i, 0): its first two words x, y give
  sqrt(-2 ln u) sin v with u = (x + 1/2) / 2^32 and v = 2 pi (y + 1/2) / 2^32, in float32.

  Args:
    seeds: whole numbers from 0 to 2^32 - 1, shape (n,).
    count: how many numbers, from 1 to MOST_CUDA; a tensor's shape does not matter.
    offset: draws made before from the same generator, each of at most MOST_CUDA numbers. PyTorch
      counts 4 words for each, which is one block.

  Returns:
    float32 (n, count).

  Raises:
    ValueError: if count is above MOST_CUDA, where cards begin to differ.
  """
  if count > MOST_CUDA:
    raise ValueError(f'cuda_randn: a tensor must have at most {MOST_CUDA} numbers, got {count}; '
                     "above that they depend on the card, draw on 'cpu' instead")
  seeds = np.asarray(seeds)
  normals = np.empty((len(seeds), count), np.float32)
  step = max(1, _AT_ONCE // count)
  for i in range(0, len(seeds), step):
    x, y, _, _ = philox((offset, 0, np.arange(count), 0), (seeds[i:i + step, None], 0))
    # The rounding of u counts near 1, where the radius is about sqrt(2 - 2 u).
    u = x.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
    # One rounding of product and sum together, as compilers for cards fuse them.
    v = (y.astype(np.float32) * np.float64(_TWO_PI * 2**-32) + _TWO_PI * 2**-33).astype(np.float32)
    normals[i:i + step] = (
        np.sqrt(-2 * np.log(u, dtype=np.float64)) * np.sin(v, dtype=np.float64))
  return normals


def cuda_randint(seeds: np.ndarray, high: int, offset: int = 0) -> np.ndarray:
  """Returns what torch.randint(high, ()) draws from a CUDA generator of each seed.

  Args:
    seeds: whole numbers from 0 to 2^32 - 1, shape (n,).
    high: one more than the largest result, from 1 to 2^28 - 1.
    offset: draws made before from the same generator; see `cuda_randn`.

  Returns:
    int32 (n,), the first word of the Philox block at counter (offset, 0, 0, 0) modulo high.
  """
  return (philox((offset, 0, 0, 0), (np.asarray(seeds), 0))[0] % np.uint64(high)).astype(np.int32)


def philox(counter: tuple, key: tuple) -> tuple[np.ndarray, ...]:
  """Computes the random function Philox 4x32-10.

  Args:
    counter: four words from 0 to 2^32 - 1, numbers or arrays that broadcast with each other.
    key: two words, likewise.

  Returns:
    Four words of 32 bits as uint64, in the broadcast shape.
  """
  a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
  p, q = (np.asarray(word, np.uint64) for word in key)
  shift = np.uint64(32)
  for _ in range(10):
    # Products of two words fit 64 bits: no overflow.
    first, second = np.uint64(0xD2511F53) * a, np.uint64(0xCD9E8D57) * c
    a, b, c, d = (second >> shift) ^ b ^ p, second & _LOW, (first >> shift) ^ d ^ q, first & _LOW
    p, q = (p + np.uint64(0x9E3779B9)) & _LOW, (q + np.uint64(0xBB67AE85)) & _LOW
  return a, b, c, d


def _words(stream, count):
  """Returns the next words of the twister, uint32 (count,), and the stream after them."""
  end = stream.position + count
  # Frozen by NumPy's promise for RandomState: the full range of uint32 is the twister's own words.
  words = np.random.RandomState(stream.seed).randint(0, 2**32, end, np.uint32)
  return words[stream.position:], stream._replace(position=end)


def _block_normals(words):
  """Turns uint32 (blocks, 16) into normal numbers, flat."""
  # 24 bits: exact in float32, as is 1 - uniform, which is in (0, 1].
  uniform = (words & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2**-24)
  radius = np.sqrt(-2 * np.log(1 - uniform[:, :8], dtype=np.float64))
  angle = (_TWO_PI * uniform[:, 8:]).astype(np.float64)  # The product rounds to float32.
  return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)


def _few_normals(stream, count):
  """Returns up to 15 normal numbers, float32, and the stream after them."""
  ready = [] if stream.spare is None else [stream.spare]
  pairs = (count - len(ready) + 1) // 2
  words, stream = _words(stream, 4 * pairs)
  high, low = words.astype(np.uint64).reshape(-1, 2).T
  bits = (high << np.uint64(32) | low) & np.uint64(2**53 - 1)
  first, second = (bits * 2.0**-53).reshape(-1, 2).T
  radius = np.sqrt(-2 * np.log1p(-second))
  angle = 2 * np.pi * first
  made = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
  normals = np.concatenate([ready, made])
  spare = float(normals[count]) if len(normals) > count else None
  return normals[:count].astype(np.float32), stream._replace(spare=spare)
