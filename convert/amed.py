"""AMED's predictors: the learned solver in a snapshot of its training, as a predictor directory.

A snapshot holds the predictor under 'model' and its loss under 'loss_fn'. The predictor's settings
are attributes of the one, the range of noise levels is told by the other alone, and the sizes of
the layers by the tensors.

Source: Zhou et al. 2024 (AMED-Solver), arXiv:2312.00094, and its published code, diff-sampler.
"""

import contextlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

import samplers
from convert import pickles, plain, rules
from samplers import amed as amed_lib, checks

CLASS = 'AMED_predictor'
"""Name of a predictor's class."""

_SCHEDULES = 'polynomial', 'logsnr', 'time_uniform', 'discrete'
_TABLES = 'stable_diffusion', 'latent_diffusion', None  # Of 'discrete'; None: the VP process's.
_GUIDANCE = MappingProxyType({None: None, 'uncond': None, 'cfg': 'classifier_free',
                              'cg': 'classifier'})
_CHANNELS = MappingProxyType({  # Data sets of the published code; no snapshot tells.
    **dict.fromkeys(('cifar10', 'ffhq', 'afhqv2', 'imagenet64', 'lsun_bedroom', 'lsun_cat',
                     'imagenet256', 'lsun_bedroom_ldm', 'ffhq_ldm'), 3), 'ms_coco': 4})
_MOST_POINTS = 1000
_LONGEST = 200  # Letters of a text.


def convert(network: pickles.Persistent, data: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
  """Converts a predictor.

  There num_steps counts the points of a grid, here its intervals. The stored grid was computed in
  float32: the schedule has to reproduce it, and its own levels are kept.

  Args:
    network: the predictor, as pickles.network returns it.
    data: of containers.Contents, with the loss under 'loss_fn'.

  Returns:
    (config, params): directory.PREDICTOR_FIELDS, and parameters in float32. `model` has the data
    set as its name, and None for what a snapshot does not tell of the denoiser: path and sha256,
    and the channels in image_shape where the published code does not know the data set.

  Raises:
    ValueError: if a setting is missing or out of range, the tensors are not those of the settings,
      or the stored grid is another one.
  """
  given = _plain(_given(network))
  schedule, sigmas = _grid(given, _loss(data))
  settings = _settings(given, network.tensors)
  like = jax.eval_shape(samplers.learned.design('amed', sigmas, **settings).initial,
                        jax.random.key(0))
  params = rules.place(key_rules(like), network.tensors, like,
                       network='the predictor that its settings describe',
                       remedy='take a whole snapshot')
  side = _whole(given, 'img_resolution', 1, 2**20)
  name = _choice(given, 'dataset_name')
  dynamic = settings['student'] == 'dpmpp' and settings['predict_x0']
  config = {'kind': 'predictor', 'design': {'name': 'amed', 'settings': settings},
            'schedule': schedule, 'sigmas': sigmas.tolist(),
            'limit': 'dynamic' if dynamic else 'none', 'guidance': _guidance(given),
            'model': {'name': name, 'path': None, 'sha256': None,
                      'image_shape': [side, side, _CHANNELS.get(name)]}}
  return config, params


def training(network: pickles.Persistent, data: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what a snapshot tells of its training, such as the teacher.

  Args:
    network: as in `convert`.
    data: as in `convert`.

  Returns:
    Plain values under the names of the published code (diff-sampler): sampler_tea, M, num_steps
    (points, not intervals) and so on.
  """
  told = _plain({**_given(network), **_range(_loss(data))})
  return {name: value for name, value in told.items() if name != 'training'}


def key_rules(like: Mapping[str, Any]) -> dict[str, rules.Rule]:
  """Returns the Rule of every tensor.

  Args:
    like: parameters of a predictor, or their shapes.
  """
  return {f'{layer}.{"weight" if last == "kernel" else last}':
          rules.Rule((layer, last), 'transposed' if last == 'kernel' else 'same')
          for layer, leaves in like.items() for last in leaves}


def _given(network):
  """Settings by the names of the published code."""
  return {**network.init_kwargs, **network.attributes}


def _loss(data):
  """Attributes of the loss."""
  state = getattr(data.get('loss_fn'), 'state', None)
  if not isinstance(state, dict):
    raise ValueError("convert: snapshot must hold the range of noise levels under 'loss_fn', got "
                     f'{plain.describe(data.get("loss_fn"))}; take the file as training wrote it')
  return state


def _range(loss):
  return {end: loss.get(end) for end in ('sigma_min', 'sigma_max')}


def _plain(values):
  """Those that are numbers, truth values or texts of ordinary size, and None."""
  sizes = {str: len, int: abs}
  def ordinary(value):
    bound = {str: _LONGEST, int: 2**63}.get(type(value))
    return bound is None or sizes[type(value)](value) < bound
  return {name: value for name, value in values.items() if isinstance(name, str)
          and isinstance(value, str | int | float | None) and ordinary(value)}


def _settings(given, tensors):
  """Options of the design `amed`, which checks them."""
  student, predict_x0 = given.get('sampler_stu'), given.get('predict_x0')
  order = given.get('max_order')
  if amed_lib.STUDENTS.get(student) == 1:  # Whatever is told has no meaning there.
    order = max(amed_lib.STUDENTS.values())
  # The first version of the published code had no scale_dir and a switch for scale_time.
  scale_dir = given.get('scale_dir', 0.05 if student == 'dpmpp' and predict_x0 else 0.01)
  scale_time = given.get('scale_time')
  if isinstance(scale_time, bool):
    scale_time = 0.2 * scale_time
  scales = {'scale_dir': scale_dir, 'scale_time': scale_time}
  return {'student': student,
          **{name: float(value) if checks.is_integer(value) else value
             for name, value in scales.items()},
          'afs': given.get('afs'), 'max_order': order, 'predict_x0': predict_x0,
          'lower_order_final': given.get('lower_order_final'),
          'hidden_dim': _size(tensors, 'enc_layer0.weight', 0),
          'bottleneck_output_dim': _size(tensors, 'enc_layer1.weight', 0),
          'noise_channels': _size(tensors, 'map_layer0.weight', 0),
          'bottleneck_size': _size(tensors, 'enc_layer0.weight', 1)}


def _size(tensors, name, axis):
  shape = tensors[name].shape if name in tensors else ()
  if len(shape) != 2:
    raise ValueError(f'convert: tensors must tell the sizes of the predictor, got no matrix {name};'
                     ' take a whole snapshot')
  return shape[axis]


def _guidance(given):
  """What config.guidance is to be, without the classifier itself; None for none."""
  method = _GUIDANCE[_choice(given, 'guidance_type', _GUIDANCE)]
  return method and {'method': method, 'scale': _number(given, 'guidance_rate')}


def _grid(given, loss):
  """(arguments of samplers.schedule, its levels) of the grid that the predictor belongs to.

  A snapshot does not name the table of a discrete schedule; its levels tell.
  """
  name = _choice(given, 'schedule_type', _SCHEDULES)
  ends = {end: _number(_range(loss), end) for end in _range(loss)}
  fields = {'name': name, 'num_steps': _whole(given, 'num_steps', 2, _MOST_POINTS) - 1, **ends}
  if 'rho' in samplers.schedule_options(name):
    fields['rho'] = _number(given, 'schedule_rho')
  tables = [{'alphas_cumprod': table} for table in _TABLES] if name == 'discrete' else [{}]
  choices = [fields | table for table in tables]
  first = samplers.schedule(**choices[0])  # Its errors are those of the fields.
  stored = loss.get('t_steps')
  if stored is None:
    return choices[0], first
  for choice in choices:
    with contextlib.suppress(ValueError):  # Another table may not reach as low.
      sigmas = samplers.schedule(**choice)
      if _agree(stored, sigmas):
        return choice, sigmas
  raise ValueError(f'convert: t_steps must be the grid of the settings, {name} with '
                   f'{_levels(first)}, got {_levels(stored)}; take a whole snapshot')


def _agree(stored, sigmas):
  """Whether a stored grid is this one, as another schedule, rho or table moves levels by percents.

  Computed in float32, sigma^2 = exp(e) - 1 (time_uniform, discrete) is off by some units of 2^-23:
  at 0.002 by a quarter. Else 1e-3 of sigma is more than rounding, also of levels typed in by hand.
  """
  if not isinstance(stored, np.ndarray) or stored.shape != sigmas.shape:
    return False
  error = np.abs(np.asarray(stored, np.float64)**2 - sigmas**2)
  return bool((error <= 1e-6 + 2e-3 * sigmas**2).all())


def _levels(stored):
  if not isinstance(stored, np.ndarray) or stored.ndim != 1:
    return plain.describe(stored)
  return ', '.join(f'{float(level):.4g}' for level in stored[:6]) + ', ...' * (len(stored) > 6)


def _choice(given, name, known=()):
  value = given.get(name)
  if value not in known if known else not isinstance(value, str):
    raise _wrong(name, f'one of {", ".join(map(str, known))}' if known else 'a name', value)
  return value


def _whole(given, name, low, high):
  value = given.get(name)
  if not checks.is_integer(value) or not low <= value <= high:
    raise _wrong(name, f'an integer from {low} to {high}', value)
  return value


def _number(given, name):
  value = given.get(name)
  if not np.isfinite(checks.to_number(value)):
    raise _wrong(name, 'a finite number', value)
  return float(value)


def _wrong(name, rule, value):
  return ValueError(f'convert: {name} of the predictor must be {rule}, got '
                    f'{plain.describe(value)}; take a whole snapshot')
