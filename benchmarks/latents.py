"""Stable Diffusion v1 at full size, with random weights: parameters, memory, and time; grids.

  python -m benchmarks.latents            prints what it finds; some minutes, 12 GB of memory
  python -m benchmarks.latents --write    also writes the section into benchmarks/README.md

Nothing is downloaded, and none of it depends on what the weights are. With diffusers installed
(`pip install diffusers==0.42.1 torch==2.13.0`, without torchvision) its U-Net runs beside ours
with the same weights.
"""

import argparse
import functools
import importlib.util
import json
import pathlib
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import convert
from benchmarks import learned
from benchmarks.report import write_section
from configs import default
from convert import adm, autoencoder as stages, diffusers as folders, ldm, published, rules
from engine import generate, search
from models import autoencoder, clip, networks

TITLE = 'Stable Diffusion v1 at full size'
SMALL = pathlib.Path(__file__).parent.parent / 'tests/golden/ldm/sd_diffusers.tar.xz'
"""A small Stable Diffusion with random weights."""
_RUNS, _STEPS = 3, 10
_PROMPTS = 'a red fox|a lighthouse at night|two cats'
_SOLVERS = 'ipndm', 'dpmpp'
_DISCRETE = {'schedule.name': 'discrete'}
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


def measure_grids() -> dict[str, Any]:
  """Returns the distance of samples on several grids to a fine solution, on a small model."""
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    with tarfile.open(SMALL) as tar:
      tar.extractall(folder, filter='data')
    source = next(path.parent for path in folder.rglob('model_index.json'))
    config, params, told, _ = convert.read(source)
    convert.save(folder / 'model', config, params, told)
    search.run(search.plan(_configured(folder, {
        **_DISCRETE, 'search.num_steps': str(_STEPS), 'batch_size': 64}), str(folder / 'gits')))
    grids = {'discrete': _DISCRETE, 'polynomial, rho 7': {'schedule.rho': 7.0},
             'Align Your Steps': {'schedule.name': 'ays', 'schedule.model': 'SD1'},
             'GITS': {'schedule.name': 'explicit',
                      'schedule.path': str(folder / f'gits/grid-{_STEPS}.json')}}
    def samples(fields):
      return learned.samples_of(generate.plan(_configured(folder, fields), str(folder / 'out')))
    fine = samples({'solver.name': 'dpmpp', 'solver.max_order': 3, **_DISCRETE,
                    'schedule.num_steps': 200})
    return {label: {solver: float(np.sqrt(np.mean((samples({
        'solver.name': solver, 'solver.max_order': 2, 'schedule.num_steps': _STEPS, **fields})
        - fine)**2))) for solver in _SOLVERS} for label, fields in grids.items()}


_PARTS = {'ours': measure_ours, 'both': measure_both, 'grids': measure_grids}


def _configured(folder, fields):
  config = default.get_config()
  config.update_from_flattened_dict({
      'model.path': str(folder / 'model'), 'model.prompts': _PROMPTS, 'labels': 'balanced',
      'seeds': '0-63', 'guidance.method': 'classifier_free', 'guidance.scale': 7.5, **fields})
  return config


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


def render(ours: dict[str, Any], both: dict[str, Any] | None,
           grids: dict[str, dict[str, float]]) -> str:
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
  rows = '\n'.join(f'| {label} | {" | ".join(f"{row[name]:.3f}" for name in _SOLVERS)} |'
                   for label, row in grids.items())
  return text + f'''
Grids of {_STEPS} steps on the small reference checkpoint, whose weights are random, with prompts
and guidance of 7.5: root-mean-square distance per entry of the latent to 200 steps, over 64 seeds.
GITS was searched for this model (`--mode=search`), Align Your Steps is the published list for
Stable Diffusion 1.

| grid | {" | ".join(f"`{name}`, order 2" for name in _SOLVERS)} |
|---|{"---|" * len(_SOLVERS)}
{rows}
'''


def main() -> None:
  """Measures, prints, and writes the section with --write."""
  parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
  parser.add_argument('--write', action='store_true', help='write benchmarks/README.md')
  parser.add_argument('--part', choices=_PARTS, help='measure this alone, for JSON')
  given = parser.parse_args()
  if given.part:
    print(json.dumps(_PARTS[given.part]()))
    return
  has_diffusers = importlib.util.find_spec('diffusers') is not None
  text = render(_apart('ours'), _apart('both') if has_diffusers else None,
                _apart('grids'))
  print(text)
  if given.write:
    write_section(TITLE, text)


if __name__ == '__main__':
  main()
