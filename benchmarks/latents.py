"""Stable Diffusion v1 at full size, with random weights: parameters, memory, and time.

  python -m benchmarks.latents            prints what it finds; some minutes, 12 GB of memory
  python -m benchmarks.latents --write    also writes the section into benchmarks/README.md

Nothing is downloaded, and none of it depends on what the weights are. With diffusers installed
(`pip install diffusers==0.36.0 torch==2.13.0`, without torchvision) its U-Net runs beside ours
with the same weights.
"""

import argparse
import functools
import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.report import write_section
from convert import adm, autoencoder as stages, diffusers as folders, ldm, published, rules
from models import autoencoder, clip, networks

TITLE = 'Stable Diffusion v1 at full size'
_RUNS = 3
_SIDE, _CHANNELS, _TOKENS, _WIDTH = 64, 4, 77, 768
_TIME = 501.0  # Of 1000 training steps.
_TOWER = clip.TextTower(width=768, layers=12, heads=12, context=77, vocab=49408, mlp=3072)
# Of unet/config.json in the published folders.
_UNET = {
    'sample_size': 64, 'in_channels': 4, 'out_channels': 4, 'cross_attention_dim': 768,
    'attention_head_dim': 8, 'layers_per_block': 2, 'block_out_channels': [320, 640, 1280, 1280],
    'down_block_types': ['CrossAttnDownBlock2D'] * 3 + ['DownBlock2D'],
    'up_block_types': ['UpBlock2D'] + ['CrossAttnUpBlock2D'] * 3, 'act_fn': 'silu',
    'norm_num_groups': 32, 'norm_eps': 1e-5, 'flip_sin_to_cos': True, 'freq_shift': 0,
    'downsample_padding': 1, 'mid_block_scale_factor': 1, 'center_input_sample': False}


def unet() -> tuple[Any, Any]:
  """Returns (network, shapes of its parameters) of the published U-Net."""
  given = folders.unet_arguments(_UNET)
  table = ldm.alphas_cumprod({'linear_start': 0.00085, 'linear_end': 0.012, 'timesteps': 1000})
  config = ldm.denoiser_fields(given, _SIDE, table)
  network = networks.build(**config['network'])
  return network, rules.shapes(network, config['image_shape'], 10**6)


def first_stage() -> autoencoder.Autoencoder:
  """Returns the published first stage."""
  config = published.LDM['sd_v1']['first_stage_config']
  return autoencoder.build(stages.describe(config['params'], 'kl'))


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns (x, time, context) of one evaluation."""
  rng = np.random.default_rng(0)
  return (rng.standard_normal((1, _SIDE, _SIDE, _CHANNELS), np.float32), np.float32([_TIME]),
          rng.standard_normal((1, _TOKENS, _WIDTH), np.float32))


def count(shapes: Any) -> int:
  """Returns the number of parameters."""
  return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


def measure_ours() -> dict[str, Any]:
  """Returns counts, seconds and bytes, of a process that does nothing else."""
  network, shapes = unet()
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.asarray(
      0.02 * rng.standard_normal(leaf.shape, np.float32)), shapes)
  seconds, _ = _timed(_program(network), params, *inputs())
  tower = jax.eval_shape(_TOWER.init, jax.random.key(0), np.zeros((1, 2), np.int32))['params']
  return {'parameters': [count(shapes), count(autoencoder.shapes(first_stage())), count(tower)],
          'seconds': seconds, 'peak': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
          'decode': autoencoder.decode_bytes(first_stage(), (_SIDE, _SIDE, _CHANNELS))}


def measure_both() -> dict[str, Any]:
  """Returns seconds of diffusers' U-Net and ours with its weights, and how far they are apart."""
  import diffusers
  import torch
  torch.manual_seed(0)
  theirs = diffusers.UNet2DConditionModel(**_UNET).eval()
  x, t, context = inputs()
  with torch.inference_mode():
    call = [torch.from_numpy(array) for array in (x.transpose(0, 3, 1, 2).copy(), t, context)]
    slow, answer = _timed(functools.partial(_theirs, theirs), *call)
  tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
  network, like = unet()
  own = {folders.unet_name(name, network.num_blocks): rule
         for name, rule in adm.key_rules(network, like).items()}
  params = jax.tree.map(jnp.asarray, rules.place(own, tensors, like))
  del theirs, tensors
  fast, ours = _timed(_program(network), params, x, t, context)
  wanted = answer.transpose(0, 2, 3, 1)
  return {'version': diffusers.__version__, 'theirs': slow, 'ours': fast,
          'error': float(np.abs(ours - wanted).max()), 'size': float(wanted.std())}


def _theirs(network, *call):
  return network(*call).sample.numpy()


def _program(network) -> Callable[..., jax.Array]:
  return jax.jit(lambda params, x, t, context: network.apply(
      {'params': params}, x, t, context=context)[0])


def _timed(function, *args):
  """(Seconds of the fastest call after the first, the answer)."""
  seconds = []
  for _ in range(_RUNS + 1):
    started = time.perf_counter()
    answer = np.asarray(function(*args))
    seconds.append(time.perf_counter() - started)
  return min(seconds[1:]), answer


def _apart(part):
  """What a part finds in a process of its own."""
  done = subprocess.run([sys.executable, '-m', 'benchmarks.latents', '--part', part], check=True,
                        stdout=subprocess.PIPE, text=True)
  return json.loads(done.stdout.splitlines()[-1])


def render(ours: dict[str, Any], both: dict[str, Any] | None) -> str:
  """Returns what was found as Markdown."""
  unet_size, stage_size, text_size = (f'{number:,}' for number in ours['parameters'])
  text = f'''`python -m benchmarks.latents --write` makes this section, with random weights, on CPU
cores. Parameters: {unet_size} of the U-Net, {stage_size} of the first stage, {text_size} of the
text encoder.

One evaluation of the U-Net for a latent of {_SIDE} x {_SIDE} x {_CHANNELS} and {_TOKENS} tokens, in
float32: {ours['seconds']:.1f} s, and at most {ours['peak'] / 1e9:.2f} GB of the process, of which
{4 * ours['parameters'][0] / 1e9:.2f} GB are the parameters. Decoding its picture of 512 x 512 takes
at most {ours['decode'] / 1e9:.2f} GB, by the estimate that slices a batch.
'''
  if both:
    text += f'''
The U-Net of diffusers {both['version']} with the same weights, in the same process, takes
{both['theirs']:.1f} s, ours {both['ours']:.1f} s: {both['theirs'] / both['ours']:.2f} times as
fast. The answers, of size {both['size']:.2g}, differ by at most {both['error']:.1e}.
'''
  return text


def main() -> None:
  """Measures, prints, and writes the section with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write benchmarks/README.md')
  parser.add_argument('--part', choices=('ours', 'both'), help='measure this alone, for JSON')
  given = parser.parse_args()
  if given.part:
    print(json.dumps({'ours': measure_ours, 'both': measure_both}[given.part]()))
    return
  has_diffusers = importlib.util.find_spec('diffusers') is not None
  text = render(_apart('ours'), _apart('both') if has_diffusers else None)
  print(text)
  if given.write:
    write_section(TITLE, text)


if __name__ == '__main__':
  main()
