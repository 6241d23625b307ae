"""Tasks with an image given in part: inpainting, super-resolution, colorization."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np

from engine import inputs
from samplers import checks, imputation

TASKS = 'inpaint', 'super_resolution', 'colorize'
KERNELS = 'mean', 'bicubic'
HOW = 'replace', 'gradient'
_DEFAULTS = {'image': None, 'mask': None, 'factor': 2, 'kernel': 'mean', 'method': 'replace',
             'scale': 1.0}


@dataclasses.dataclass(frozen=True)
class Method:
  """What of the condition shapes the program.

  Attributes:
    task: one of TASKS.
    how: one of HOW.
    factor: of the super-resolution, else 1.
    kernel: of the super-resolution, one of KERNELS.
    shape: of an image, (height, width, channels).
  """

  task: str
  how: str
  factor: int
  kernel: str
  shape: tuple[int, int, int]


class Constants(NamedTuple):
  """Arrays of the condition, shared by all images.

  Attributes:
    reference: an image that was measured, float32 (1, height, width, channels) in [-1, 1].
    mask: 1 where a pixel is known, float32 (height, width, 1); None but for inpainting.
    scale: of the gradient, float32 scalar.
  """

  reference: Any
  mask: Any
  scale: Any


class Condition(NamedTuple):
  """A task with nothing left to decide.

  Attributes:
    method: what shapes the program.
    constants: its arrays.
    identity: what it adds to run.json and the manifest.
    known: what is given of the image, float32 (height, width, channels) in [-1, 1].
    reference: the whole image, like `known`, or None where it was not given.
    text: for the user's line.
  """

  method: Method
  constants: Constants
  identity: dict[str, Any]
  known: np.ndarray
  reference: np.ndarray | None
  text: str


def plan(config: ml_collections.ConfigDict, shape: tuple[int, int, int]) -> Condition | None:
  """Resolves config.condition.

  Args:
    config: the fields of config.condition.
    shape: of the model's images.

  Returns:
    The Condition, or None without a task.

  Raises:
    ValueError: if a field is out of range, or a picture is missing or of another size.
  """
  if config.task is None:
    _refuse_leftovers(config, _DEFAULTS, 'without a task')
    return None
  for field, known in (('task', TASKS), ('kernel', KERNELS), ('method', HOW)):
    if config[field] not in known:
      raise ValueError(checks.unknown(f'config.condition.{field}', config[field], known))
  if config.image is None:
    raise ValueError('config.condition.image: must be a picture, got None; give the one to start '
                     'from')
  if (config.mask is not None) != (config.task == 'inpaint'):
    rule = 'a picture, white where pixels are known' if config.task == 'inpaint' else 'left out'
    raise ValueError(f'config.condition.mask: must be {rule} for the task {config.task}, got '
                     f'{config.mask}; only inpaint has one')
  if config.task != 'super_resolution':
    _refuse_leftovers(config, ('factor', 'kernel'), f'for the task {config.task}')
  if config.method != 'gradient':
    _refuse_leftovers(config, ('scale',), "with the method 'replace'")
  checks.check_positive('config.condition', 'scale', config.scale, '1 is the plain likelihood')
  factor = config.factor if config.task == 'super_resolution' else 1
  if not checks.is_integer(factor) or factor < 1 or shape[0] % factor or shape[1] % factor:
    raise ValueError('config.condition.factor: must be an integer that divides the height and '
                     f'width of the images, {shape[0]} and {shape[1]}, got {factor}; 2 and 4 are '
                     'usual')
  method = Method(config.task, config.method, int(factor), config.kernel, shape)
  reference, whole = _reference(pathlib.Path(config.image), method)
  mask = None
  if config.mask is not None:
    mask = inputs.read_picture('config.condition.mask', pathlib.Path(config.mask))
    if mask.shape[:2] != shape[:2]:
      raise ValueError(f'config.condition.mask: must be of the size of the images, {shape[:2]}, '
                       f'got {mask.shape[:2]} in {config.mask}; resize it without smoothing')
    mask = (mask.max(-1, keepdims=True) > 127).astype(np.float32)
  constants = Constants(reference[None], mask, np.float32(config.scale))
  known = np.asarray(operator(method, constants)(reference[None]))[0]
  digest = hashlib.sha256(reference.tobytes() + (b'' if mask is None else mask.tobytes()))
  identity = {'task': config.task, 'image': pathlib.Path(config.image).name,
              'sha256': digest.hexdigest(), 'method': config.method}
  if config.task == 'super_resolution':
    identity |= {'factor': int(factor), 'kernel': config.kernel}
  if config.mask is not None:
    identity['mask'] = pathlib.Path(config.mask).name
  if config.method == 'gradient':
    identity['scale'] = float(config.scale)
  return Condition(method, constants, {'condition': identity}, known,
                   reference if whole else None, f'{config.task} of {config.image}')


def _refuse_leftovers(config, fields, when):
  for field in fields:
    if config[field] != _DEFAULTS[field]:
      raise ValueError(f'config.condition.{field}: must be left out {when}, got {config[field]}; '
                       'nothing would read it')


def operator(method: Method, constants: Constants) -> Callable[[jax.Array], jax.Array]:
  """Returns the linear operator of a task: what is measured of an image, at its full size."""
  if method.task == 'inpaint':
    return imputation.inpainting(constants.mask)
  if method.task == 'colorize':
    return imputation.grayscale()
  if method.kernel == 'mean':
    return imputation.block_mean(method.factor)
  return imputation.bicubic(*method.shape[:2], method.factor)


def project(method: Method, constants: Constants) -> Callable[..., jax.Array] | None:
  """Returns the imputation where a step ends, None for the gradient."""
  if method.how != 'replace':
    return None
  return imputation.replace(operator(method, constants), constants.reference)


def log_prob(method: Method, constants: Constants,
             denoise: Callable[..., jax.Array]) -> Callable[..., jax.Array] | None:
  """Returns scale log p(measurement | D(x; sigma)) of each sample, None for the imputation."""
  if method.how != 'gradient':
    return None
  likelihood = imputation.log_likelihood(denoise, operator(method, constants), constants.reference)
  return lambda x, sigma: constants.scale * likelihood(x, sigma)


def _reference(path, method):
  """The image that was measured, and whether all of it was given."""
  field = 'config.condition.image'
  image = inputs.to_model(inputs.read_picture(field, path))
  height, width, channels = method.shape
  small = (height // method.factor, width // method.factor)
  allowed = {(height, width), small}
  if image.shape[:2] not in allowed:
    sizes = ' or '.join(f'{h}x{w}' for h, w in sorted(allowed, reverse=True))
    raise ValueError(f'{field}: must be of the size {sizes}, got {image.shape[0]}x{image.shape[1]} '
                     f'in {path}; resize it, or choose another model')
  gray = image.shape[-1] != channels
  if gray and (image.shape[-1] != 1 and channels == 1):
    raise ValueError(f'{field}: must be gray like the images of the model, got colours in {path}; '
                     'convert it first')
  if gray and method.task != 'colorize':
    raise ValueError(f'{field}: must have {channels} channels for the task {method.task}, got 1 in '
                     f"{path}; convert it, or choose the task 'colorize'")
  image = np.broadcast_to(image, (*image.shape[:2], channels))
  whole = image.shape[:2] == (height, width) and not gray
  if image.shape[:2] != (height, width):
    image = imputation.enlarge(image[None], method.factor, method.kernel)[0]
  return np.ascontiguousarray(image, np.float32), whole
