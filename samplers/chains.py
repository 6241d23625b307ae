"""Chains of discrete steps: a part of a network's training steps, and its noise levels.

A network of DDPM's kind knows M steps with alpha_bar_0 > alpha_bar_1 > ..., that is the noise
levels sigma_k = sqrt((1 - alpha_bar_k) / alpha_bar_k). Sampling may visit fewer of them, a chain,
and may start at an inner one.
"""

import re
from collections.abc import Sequence

import numpy as np

from samplers import checks, grids, levels as levels_lib


def respace(num: int, respacing: str | int | Sequence[int] = '') -> np.ndarray:
  """Returns the training steps that a chain visits.

  - '' all of them;
  - 'a,b,c' as many equal sections as numbers, a of the first (least noisy) section's steps, b of
    the second's, ...: start + rint(j (size - 1) / (count - 1)), ends included. A count of 1 takes
    the first step of its section, not its noisiest; 0 leaves the section out;
  - 'N' the same with one section;
  - 'ddimN' every s-th step from 0 on, with the least s that gives N of them.

  Source: Nichol & Dhariwal 2021 (iDDPM), arXiv:2102.09672, Sec. 4; guided-diffusion,
  space_timesteps; 'ddimN' as in DDIM, arXiv:2010.02502, App. D.2.

  Args:
    num: number of training steps M.
    respacing: as above; a number or a list of numbers is the text with commas.

  Returns:
    Integers of shape (n,), increasing, 0 <= k < M.

  Raises:
    ValueError: if the text is none of the above, a section has fewer steps than it should give, no
      stride gives N steps, or there would be none.
  """
  if not checks.is_integer(num) or num < 1:
    raise ValueError(f'respace: num must be an integer of at least 1, got {num!r}; it counts the '
                     'training steps')
  if isinstance(respacing, str) and respacing.startswith('ddim'):
    return _strided(num, respacing)
  counts = _counts(respacing)
  if not counts:
    return np.arange(num)
  least, longer = divmod(num, len(counts))
  sizes = [least + (i < longer) for i in range(len(counts))]
  steps = []
  for i, (start, size, count) in enumerate(zip(np.cumsum([0, *sizes]), sizes, counts,
                                               strict=False)):
    if count > size:
      raise ValueError(f'respace: respacing must take at most the {size} of {num} steps that '
                       f'section {i} has, got {count} in {respacing!r}; take fewer')
    # Added up one by one, as published chains were: a tie at 1/2 is decided by the rounding.
    stride = (size - 1) / max(count - 1, 1)
    steps.append(start + np.rint(np.cumsum([0.0] + [stride] * (count - 1))[:count]).astype(int))
  steps = np.concatenate(steps)
  if not len(steps):
    raise ValueError(f'respace: respacing must leave at least one step, got {respacing!r}; give a '
                     'count above 0')
  return steps


def respaced(num_steps: int | None = None, sigma_min: float | None = None,
             sigma_max: float | None = None, alphas_cumprod: str | Sequence[float] = 'ddpm',
             respacing: str | Sequence[int] | None = None,
             reverse_steps: int | None = None) -> np.ndarray:
  """Returns the noise levels of a chain of a network's own steps, highest first, then 0.

  They are exactly those of the table, so that the network is asked at whole steps of its training.
  With `reverse_steps` the chain starts at an inner level, for images that were diffused to it.

  Source: Nichol & Dhariwal 2021 (iDDPM), arXiv:2102.09672, Sec. 4; Lyu et al. 2022 (ES-DDPM),
  arXiv:2205.12524, Sec. 3, for the inner start.

  Args:
    num_steps: length of an evenly spaced chain, both ends included (the noisiest step alone for
      1), where there is no `respacing`; else unused.
    sigma_min: unused, the table gives it.
    sigma_max: unused.
    alphas_cumprod: the network's table, or a key of levels.ALPHAS_CUMPROD.
    respacing: which steps the chain has, see `respace`; '' is all.
    reverse_steps: number of the chain's steps in use, the least noisy ones; None: all.

  Returns:
    np.float64 of shape (reverse_steps + 1,), decreasing to 0.

  Raises:
    ValueError: if the table or the respacing is none, there is neither a respacing nor num_steps,
      or reverse_steps is outside the chain.
  """
  del sigma_min, sigma_max
  table = levels_lib.table_sigmas(levels_lib.read_alphas_cumprod('respaced', alphas_cumprod))
  if respacing is None and num_steps is None:
    raise ValueError("respaced: num_steps must be given without a respacing, got None; '' is all "
                     'steps')
  if respacing is None:
    chain = [len(table) - 1] if num_steps == 1 else respace(len(table), num_steps)
  else:
    chain = respace(len(table), respacing)
  count = len(chain) if reverse_steps is None else reverse_steps
  if not checks.is_integer(count) or not 1 <= count <= len(chain):
    raise ValueError(f'respaced: reverse_steps must be an integer from 1 to the {len(chain)} steps '
                     f'of the chain, got {count!r}; they are counted in the chain, not in training '
                     'steps')
  return grids.append_zero(table[chain][:count][::-1])


def _strided(num, respacing):
  text = respacing[len('ddim'):]
  if not text.isdecimal() or int(text) < 1:
    raise ValueError(f"respace: respacing must be 'ddim' and a number of at least 1, got "
                     f"{respacing!r}; such as 'ddim25'")
  wanted = int(text)
  # A stride s gives ceil(num / s) steps, and so the least s with at most `wanted` decides.
  stride = max(-(-num // wanted), 1)
  if -(-num // stride) == wanted:
    return np.arange(0, num, stride)
  near = [-(-num // s) for s in (stride, stride - 1) if s >= 1]
  raise ValueError(f'respace: respacing must be ddimN with N steps at a whole stride of the {num}, '
                   f'got {respacing!r}; the nearest are '
                   f'{" and ".join(f"ddim{count}" for count in near)}')


def _counts(respacing):
  """Numbers of steps by section; none for all steps."""
  if isinstance(respacing, str):
    parts = [part.strip() for part in respacing.split(',')] if respacing.strip() else []
    counts = [int(part) if re.fullmatch(r'[0-9]+', part) else None for part in parts]
  else:
    values = [respacing] if np.ndim(respacing) == 0 else list(respacing)
    counts = [int(v) if float(checks.to_number(v)).is_integer() and v >= 0 else None
              for v in values]
  if None in counts:
    raise ValueError("respace: respacing must be '', whole numbers separated by commas or 'ddimN', "
                     f"got {respacing!r}; such as '250' or '10,10,5'")
  return counts
