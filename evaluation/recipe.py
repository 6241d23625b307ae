"""How images were made, read from the manifests beside them, and whether a number of them counts.

A Frechet distance falls with the number of images, and changes with how labels are drawn, with the
size and the rounding of the images. Numbers can be compared where all of it is the same. So the
manifest that a run writes is read along with its images, and what departs from the protocol of the
reference is a finding, which refuses the number unless it is accepted by name.
"""

import itertools
import json
import pathlib
from collections.abc import Iterable, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from evaluation import sources
from samplers import checks

FINDINGS = MappingProxyType({
    'count': 'another number of images than the protocol has',
    'seeds': 'seeds with gaps or repeats',
    'labels': 'classes that were not drawn at random',
    'resolution': 'another size than that of the reference',
    'uint8': 'another rule from numbers to bytes than the reference was published with',
    'manifest': 'images without a manifest',
    'mixed': 'images of several runs, or others than the manifest lists',
    'incomplete': 'a run that has not ended',
})
"""What can be accepted by name, and what it is."""

MANIFEST, RUN = 'manifest.json', 'run.json'

_RULES = {'nearest': 'clip(x * 127.5 + 128, 0, 255), truncated',
          'truncate': 'clip((x + 1) * 127.5, 0, 255), truncated'}

# What must agree between runs whose images are taken together; seeds and machines may differ.
_SAME = ('mode', 'model', 'schedule', 'solver', 'limit', 'seeds_from', 'guidance', 'condition',
         'input', 'uint8_rule')
_IN_CONFIG = 'limit', 'seeds_from'  # Of a manifest.


class Protocol(NamedTuple):
  """What a reference expects of the images that are compared with it.

  Attributes:
    count: number of images, None where any will do.
    resolution: (height, width), None where it is not known.
    labels: rule of the classes of a model that has any, None where any will do.
    uint8: 'nearest' or 'truncate', None where it is not known.
  """

  count: int | None
  resolution: tuple[int, int] | None
  labels: str | None
  uint8: str | None


class Recipe(NamedTuple):
  """How images were made, as far as it is known.

  Attributes:
    count: images that are there.
    resolution: (height, width) of them.
    manifests: names of the files that were read, none if there are none.
    seeds: of the manifests, in order; None if unknown.
    labels: rule of the classes; None if unknown, 'none' for a model without.
    uint8: 'nearest', 'truncate' or what the manifest says; None if unknown.
    model: name and start of the hash; None if unknown.
    how: solver, schedule and evaluations in words; None if unknown.
    mixed: what shows that the images are not those of one run, or None.
    incomplete: what shows that the run has not ended, or None.
  """

  count: int
  resolution: tuple[int, int]
  manifests: tuple[str, ...]
  seeds: tuple[int, ...] | None
  labels: str | None
  uint8: str | None
  model: str | None
  how: str | None
  mixed: str | None
  incomplete: str | None


_FULL = 50_000  # Images of a published FID; Heusel et al. 2017, arXiv:1706.08500, and since.

# Published statistics and what their own tables were made with; file -> side, images, bytes. EDM
# rounds to the nearest byte, as diff-sampler does after it, guided-diffusion downwards.
_PUBLISHED = MappingProxyType({
    'cifar10-32x32.npz': (32, _FULL, 'nearest'),
    'ffhq-64x64.npz': (64, _FULL, 'nearest'),
    'afhqv2-64x64.npz': (64, _FULL, 'nearest'),
    'imagenet-64x64.npz': (64, _FULL, 'nearest'),
    'lsun_bedroom-256x256.npz': (256, _FULL, 'nearest'),
    'ms_coco-512x512.npz': (512, 30_000, 'nearest'),
    'img64.pkl': (64, _FULL, 'nearest'),
    'img512.pkl': (512, _FULL, 'nearest'),
    'VIRTUAL_imagenet64_labeled.npz': (64, _FULL, 'truncate'),
    'VIRTUAL_imagenet128_labeled.npz': (128, _FULL, 'truncate'),
    'VIRTUAL_imagenet256_labeled.npz': (256, _FULL, 'truncate'),
    'VIRTUAL_imagenet512.npz': (512, _FULL, 'truncate'),
    'VIRTUAL_lsun_bedroom256.npz': (256, _FULL, 'truncate'),
    'VIRTUAL_lsun_cat256.npz': (256, _FULL, 'truncate'),
    'VIRTUAL_lsun_horse256.npz': (256, _FULL, 'truncate'),
})


def protocol(name: str | None, shape: Sequence[int] | None, full: bool,
             uint8: str | None = None) -> Protocol:
  """Returns what a reference expects.

  Args:
    name: of its file, known for published statistics; None without a reference.
    shape: of its images, (height, width, channels), None where it is not known.
    full: whether a number is expected to be of 50,000 images, as Inception's are.
    uint8: rule of its bytes where it tells, None: that of its name.

  Returns:
    The Protocol.
  """
  side, count, rule = _PUBLISHED.get(name, (None, _FULL if full else None, None))
  resolution = tuple(shape[:2]) if shape else (side, side) if side else None
  return Protocol(count, resolution, 'random', uint8 or rule)


def read(images: sources.ImageSet) -> Recipe:
  """Reads the manifests of the runs that made images.

  Args:
    images: the set. A folder may hold several runs of one config, in folders of their own.

  Returns:
    The Recipe.

  Raises:
    ValueError: if a manifest is no JSON object.
  """
  path = pathlib.Path(images.path)
  top = path if path.is_dir() else path.parent
  runs = [_Run(folder) for folder in _folders(images, path, top)]
  runs = [run for run in runs if path.is_dir() or not run.listed or path.name in run.files]
  told = [run for run in runs if run.told]
  if not told:
    return Recipe(images.count, images.shape[:2], (), None, None, None, None, None, None, None)
  first = told[0].told
  whole = [run for run in told if run.listed]
  seeds = [seed for run in whole for seed in run.told['seeds']] if whole else None
  return Recipe(
      images.count, images.shape[:2],
      tuple(str(run.folder / name) for run in told
            for name in [MANIFEST if run.listed else RUN]),
      None if seeds is None else tuple(seeds), _labels(first), _rule(first), _model(first),
      _how(first), _mixed(images, runs, top), _incomplete(runs))


def findings(recipe: Recipe, protocol: Protocol) -> dict[str, str]:
  """Returns what departs from the protocol: name -> 'must ..., got ...'."""
  found = {}
  if protocol.count is not None and recipe.count != protocol.count:
    found['count'] = f'must be {protocol.count:,} images, got {recipe.count:,}'
  if protocol.resolution and recipe.resolution != tuple(protocol.resolution):
    found['resolution'] = (f'must be {_size(protocol.resolution)} as the reference, got '
                           f'{_size(recipe.resolution)}')
  if not recipe.manifests:
    return found | {'manifest': f'must come with the {MANIFEST} of their run, got none'}
  if recipe.incomplete:
    found['incomplete'] = f'must be of a run that has ended, got {recipe.incomplete}'
  if recipe.mixed:
    found['mixed'] = f'must be those of one run, got {recipe.mixed}'
  if recipe.seeds and (wrong := _gaps(recipe.seeds)):
    found['seeds'] = f'must have seeds without gaps or repeats, got {wrong}'
  if protocol.labels and recipe.labels not in ('none', protocol.labels):
    found['labels'] = f'must have labels by the rule {protocol.labels!r}, got {recipe.labels!r}'
  if protocol.uint8 and recipe.uint8 != protocol.uint8:
    found['uint8'] = (f'must be rounded by the rule {protocol.uint8!r} of the reference, got '
                      f'{recipe.uint8!r}')
  return found


def check(found: dict[str, str], accepted: Iterable[str]) -> None:
  """Refuses what departs from the protocol and was not accepted.

  Args:
    found: what `findings` returns.
    accepted: names of FINDINGS.

  Raises:
    ValueError: if a name is unknown, or there are findings that were not accepted; all of them are
      named, in one line.
  """
  accepted = tuple(accepted)
  for name in accepted:
    checks.lookup('config.evaluate.accept', name, FINDINGS)
  refused = {name: text for name, text in found.items() if name not in accepted}
  if refused:
    raise ValueError(f'evaluate: images {"; ".join(refused.values())}; mend it, or accept it with '
                     f'--config.evaluate.accept={",".join(sorted({*accepted, *refused}))}')


def describe(recipe: Recipe, found: Iterable[str]) -> str:
  """Returns the recipe in one line, with what was accepted."""
  parts = [f'{recipe.count:,} images of {_size(recipe.resolution)}']
  if not recipe.manifests:
    parts.append('no recipe known')
  if recipe.seeds:
    parts.append(f'seeds {_ranges(recipe.seeds)}')
  for name in ('labels', 'uint8', 'model'):
    if value := getattr(recipe, name):
      parts.append(f'{name} {value}')
  parts += [recipe.how] if recipe.how else []
  found = sorted(found)
  return ', '.join(parts + ([f'ACCEPTED: {", ".join(found)}'] if found else []))


class _Run:
  """A folder of a run of ours.

  Attributes:
    folder: the folder.
    told: what its manifest says, or run.json where it has not ended.
    listed: whether there is a manifest, which lists seeds and files.
    files: what the manifest lists, relative to the folder.
    stray: a field in which run.json and the manifest contradict each other, or None.
  """

  def __init__(self, folder):
    self.folder = folder
    manifest, run = _json(folder / MANIFEST), _json(folder / RUN)
    self.listed = manifest is not None and {'seeds', 'files'} <= manifest.keys()
    self.told = manifest if self.listed else run
    self.files = set(manifest['files']) if self.listed else set()
    self.stray = None
    if self.listed and run:
      before, config = ((told.get('config') or {}) for told in (run, manifest))
      pairs = [('model', run.get('model'), manifest.get('model'))] + [
          (name, before.get(name), manifest.get(name)) for name in ('schedule', 'solver')] + [
              (name, before.get(name), config.get(name)) for name in _IN_CONFIG]
      self.stray = next((name for name, before, now in pairs if before != now), None)


def _folders(images, path, top):
  """Folders with a run of ours that images lie in, or in a folder of."""
  if not path.is_dir():
    return [top]
  holding = {(top / name).parent for name in images.names} if images.kind == 'folder' else set()
  holding |= {folder.parent for folder in holding if folder != top} | {top}
  return sorted(folder for folder in holding
                if any((folder / name).is_file() for name in (MANIFEST, RUN)))


def _json(file):
  try:
    content = json.loads(file.read_text())
  except (FileNotFoundError, NotADirectoryError):
    return None
  except (ValueError, UnicodeDecodeError):
    content = None
  if not isinstance(content, dict):
    raise ValueError(f'recipe: {file} must be what a run wrote, got something else; make the '
                     'images again, or move it away and accept images without a manifest')
  return content


def _mixed(images, runs, top):
  told = [run for run in runs if run.told]
  stray = next((run for run in told if run.stray), None)
  if stray:
    return f'another {stray.stray} in {RUN} than in {MANIFEST} of {stray.folder}'
  for run in told[1:]:
    for name in _SAME:
      one, other = (_told(some, name) for some in (told[0], run))
      if one != other:
        return f'runs of another {name} in {told[0].folder} and {run.folder}'
    if _labels(run.told) != _labels(told[0].told):
      return f'runs of other labels in {told[0].folder} and {run.folder}'
  if any(not run.listed for run in told):
    return None
  listed = {(run.folder / name).relative_to(top).as_posix() for run in told for name in run.files}
  if listed and all(name.endswith('.npz') for name in listed):
    return _npz_count(images, told)
  extra, lost = sorted(set(images.names) - listed), sorted(listed - set(images.names))
  if extra:
    return f'{extra[0]}, which {MANIFEST} does not list ({len(extra)} such)'
  return f'no {lost[0]}, which {MANIFEST} lists ({len(lost)} such)' if lost else None


def _npz_count(images, runs):
  count = sum(len(run.told['seeds']) for run in runs)
  if count != images.count:
    return f'{images.count} images where {MANIFEST} lists {count} seeds'
  return None


def _told(run, name):
  """A field of a manifest, or of run.json, which has some of them in its config."""
  if name in _IN_CONFIG or (name in ('schedule', 'solver') and not run.listed):
    return (run.told.get('config') or {}).get(name)
  if name == 'uint8_rule':
    return _rule(run.told)
  if name == 'model':
    return (run.told.get('model') or {}).get('sha256')
  return run.told.get(name)


def _incomplete(runs):
  for run in runs:
    if run.told and not run.listed:
      return f'no {MANIFEST} in {run.folder}'
  return None


def _labels(told):
  """The rule of the classes; 'none' where the network has none to draw."""
  drawn = any(label is not None for label in told.get('labels') or ())  # Also for a classifier.
  if not drawn and not (told.get('model') or {}).get('num_classes'):
    return 'none'
  rule = str((told.get('config') or {}).get('labels'))
  return 'none of a model with classes' if rule == 'none' else rule


def _rule(told):
  """The rule of the bytes by its name; its formula where it has none."""
  rule = told.get('uint8_rule')
  if rule is None:
    return ((told.get('config') or {}).get('output') or {}).get('uint8_rule')
  return next((name for name, text in _RULES.items() if text == rule), str(rule))


def _model(told):
  model = told.get('model') or {}
  return f'{model.get("name")} {str(model.get("sha256"))[:12]}' if model else None


def _how(told):
  config: dict[str, Any] = told.get('config') or {}
  solver, schedule = (told.get(name) or config.get(name) or {} for name in ('solver', 'schedule'))
  if not solver:
    return None
  how = f'{solver.get("name")} on {schedule.get("name")}'
  if isinstance(told.get('nfe'), int):
    how += f' NFE {told["nfe"]}'
  if config.get('limit', 'none') != 'none':
    how += f', limit {config["limit"]}'
  if guidance := told.get('guidance'):
    how += f', {guidance.get("method")} guidance {guidance.get("scale")}'
  if condition := told.get('condition'):
    how += f', given in part for {condition.get("task")}'
  if start := told.get('input'):
    how += f', started from {start.get("images")}'
  return how


def _gaps(seeds: Sequence[int]) -> str | None:
  """What is wrong with seeds that are not a range."""
  ordered = sorted(seeds)
  for before, now in itertools.pairwise(ordered):
    if now == before:
      return f'seed {now} twice or more'
    if now > before + 1:
      return f'{now} after {before}'
  return None


def _ranges(seeds):
  ordered = sorted(seeds)
  if _gaps(ordered):
    return f'{ordered[0]}-{ordered[-1]} in part'
  return f'{ordered[0]}-{ordered[-1]}'


def _size(resolution):
  return 'x'.join(str(side) for side in resolution)
