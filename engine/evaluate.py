"""Measures an image set against a reference: `--mode=evaluate`.

Features are computed once, in parts that survive a kill (engine/features.py). Every number is kept
with the pipeline that made it and the recipe of the images (evaluation/recipe.py).
"""

import dataclasses
import functools
import hashlib
import pathlib
import time
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np

import models
from engine import (
  features as features_lib,
  files,
  identity as identity_lib,
  measures,
  pairs,
  progress as progress_lib,
  resolve,
  seeds as seeds_lib,
)
from evaluation import (
  clip_score,
  extractors,
  moments,
  recipe as recipe_lib,
  sources,
  statistics as statistics_lib,
)
from samplers import checks

_RESULT, _FEATURES = 'evaluate.json', 'features'
_SAME = 'config', 'found', 'inputs'  # Of a Plan: where they are as they were, so are the numbers.
_LAYOUTS = 'edm', 'adm'
_OF = {'network': 'network', 'sha256': 'network of SHA-256', 'name': 'pipeline'}
_KEPT_IMAGES = 10_000  # That statistics in ADM's layout hold at most, as the published ones do.


class Job(NamedTuple):
  """Features of an image set, there or to be computed.

  Attributes:
    features: where they belong.
    extractor: what computes them.
    images: what of.
  """

  features: features_lib.Features
  extractor: extractors.Extractor
  images: sources.ImageSet


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A measurement with nothing left to decide.

  Attributes:
    config: the fields of config.evaluate that were given, plain values.
    identity: what decides the numbers, nested dicts of plain values.
    images: what is measured.
    recipe: how it was made.
    found: what departs from the protocol and was accepted, name -> text.
    reference: what it is measured against, or None.
    metrics: keys of measures.METRICS.
    jobs: features to compute, by the names of measures.Sets.features.
    embed_texts: () -> embeddings of the prompts, or None.
    inputs: name -> SHA-256 of what single metrics read besides, so that it may change.
    batch_size: images per call, over all devices.
    share: which of how many machines this is.
    folder: the workdir, which exists and can be written to.
  """

  config: dict[str, Any]
  identity: dict[str, Any]
  images: sources.ImageSet
  recipe: recipe_lib.Recipe
  found: dict[str, str]
  reference: measures.Reference | None
  metrics: tuple[str, ...]
  jobs: Mapping[str, Job]
  embed_texts: Callable[[], np.ndarray] | None
  inputs: dict[str, str]
  batch_size: int
  share: tuple[int, int]
  folder: pathlib.Path


def plan(config: ml_collections.ConfigDict, workdir: str) -> Plan:
  """Resolves a config and checks it: all files but pixels are read.

  Args:
    config: the fields of configs/default.py.
    workdir: folder of all output; made here, once the config is found good.

  Returns:
    The Plan.

  Raises:
    OSError: if a file of the network cannot be read.
    ValueError: if a field is out of range, images or reference do not fit, the images depart from
      the protocol, or the folder holds something else.
  """
  config = resolve.read_none(config)
  group = config.evaluate
  given = {name: value for name, value in group.to_dict().items() if value is not None}
  batch_size, share = resolve.batch_size(config), seeds_lib.parse_share(config.share)
  if group.images is None:
    raise ValueError('config.evaluate.images: must name the images to measure, got None; give the '
                     'workdir of a run, a folder, a zip or an npz file')
  checks.check_choice('config.evaluate', 'layout', group.layout, _LAYOUTS)
  images = sources.open(group.images, 'config.evaluate.images')
  network = None if group.network is None else models.load_features(group.network)
  small = network is None and images.shape[:2] == models.digits.images()[0].shape[1:3]
  name = group.reference
  if name is None and small and (group.write_reference is None or group.metrics is not None):
    name = 'digits'
  reference = None if name is None else find_reference(name)
  metrics = _metrics(group, reference, small)
  _check_counts(metrics, images, reference)
  own, others = _layers(group, metrics, reference)
  if own and network is None and not small:
    raise ValueError('config.evaluate.network: must be the model directory of Inception for images '
                     f'of {images.shape[0]}x{images.shape[1]}, got None; --mode=convert makes it '
                     'of its published file, see docs/evaluation.md')
  pipeline = choose_pipeline(group.pipeline, reference, small)
  recipe = recipe_lib.read(images)
  found = _find(group, recipe, reference, network is not None) if metrics else {}
  recipe_lib.check(found, _words(group.accept))
  identity = {'mode': 'evaluate', 'images': {'digest': images.digest, 'count': images.count},
              'reference': reference and reference.sha256,
              'network': {'sha256': network and network.sha256, 'pipeline': pipeline}}
  identity_lib.check(pathlib.Path(workdir), identity)
  if group.write_reference is not None:
    _check_target(group.write_reference)
  top = pathlib.Path(workdir) / _FEATURES if group.features is None else (
      pathlib.Path(group.features))

  def job(extractor, some):
    return Job(features_lib.plan(extractor, some, top), extractor, some)
  jobs, embed_texts, inputs = {}, None, {}
  if own:
    jobs['images'] = job(_extractor(network, pipeline, own), images)
    check_dims(reference, jobs['images'].extractor)
  if others:
    jobs['reference'] = job(_extractor(network, pipeline, others), reference.images)
  if 'lpips' in metrics:
    lpips = models.load_features(group.lpips_network)
    extractor, inputs['lpips_network'] = pairs.lpips_extractor(lpips), lpips.sha256
    jobs['pairs'] = job(extractor, pairs.image_pairs(images, reference.images))
  if 'clip' in metrics:
    clip = models.load_features(group.clip_network)
    jobs['clip'] = job(pairs.clip_extractor(clip), images)
    ids = pairs.read_prompts(group.prompts, group.tokenizer, images.count, clip.module.context)
    embed_texts = functools.partial(clip_score.embed_texts, clip, ids)
    inputs |= {'clip_network': clip.sha256, 'prompts': hashlib.sha256(
        np.asarray(ids, '<i4').tobytes()).hexdigest()}
  folder = files.check_folder(workdir)
  return Plan(config=given, identity=identity, images=images, recipe=recipe, found=found,
              reference=reference, metrics=metrics, jobs=jobs, embed_texts=embed_texts,
              inputs=inputs, batch_size=batch_size, share=share, folder=folder)


def run(plan: Plan, progress: progress_lib.Progress = progress_lib.silent) -> str:
  """Computes the features that are not there yet, and every number; writes evaluate.json.

  Args:
    plan: what `plan` returns.
    progress: how to show progress.

  Returns:
    A line per metric, the first with the recipe.

  Raises:
    FloatingPointError: if a feature or a number is not finite.
    OSError: if an image is damaged, or a file cannot be written.
  """
  started = time.perf_counter()
  if plan.share == (0, 1):  # Else what looks left behind may be another machine's work.
    files.remove_partial(plan.folder)
  identity_lib.claim(plan.folder, plan.identity)
  earlier = identity_lib.read_result(plan.folder / _RESULT, ('config', 'found', 'metrics'))
  target = plan.config.get('write_reference')
  if earlier and all(earlier.get(name) == getattr(plan, name) for name in _SAME) and (
      target is None or pathlib.Path(target).exists()):
    return f'nothing to do: {_say(plan, earlier["metrics"])}'
  for job in plan.jobs.values():
    features_lib.extract(*job, plan.batch_size, plan.share, progress)
  rest = sum(len(features_lib.missing(job.features)) for job in plan.jobs.values())
  if rest:
    return (f'share {plan.share[0]}/{plan.share[1]} is complete; {rest} parts of the features are '
            'still missing, and the share that finishes last measures')
  sets = measures.Sets({name: job.features for name, job in plan.jobs.items()}, plan.reference,
                       plan.embed_texts)
  numbers = {}
  try:
    with progress('measuring', len(plan.metrics), 'metrics') as advance:
      for name in plan.metrics:
        numbers[name] = measures.measure(name, sets)
        advance()
    if target is not None:
      _write_reference(plan, pathlib.Path(target))
  except ValueError as error:  # A metric's own refusal of what the features turned out to be.
    raise FloatingPointError(str(error)) from error
  identity_lib.write_json(plan.folder / _RESULT, {
      'mode': 'evaluate', 'config': plan.config, 'line': _recipe_line(plan),
      'metrics': {name: {**measures.METRICS[name].options(sets), **values,
                         'feature': measures.METRICS[name].layer,
                         'pipeline': _pipeline_of(plan.jobs[measures.METRICS[name].source])}
                  for name, values in numbers.items()},
      'recipe': _plain(plan.recipe), 'found': plan.found,
      'inputs': plan.inputs,
      'images': {'path': plan.images.path, 'count': plan.images.count,
                 'shape': list(plan.images.shape), 'digest': plan.images.digest},
      'reference': plan.reference and {
          'name': plan.reference.name, 'sha256': plan.reference.sha256,
          'count': plan.reference.images.count if plan.reference.images else None},
      'seconds': round(time.perf_counter() - started, 3)})
  return _say(plan, numbers)


def find_reference(name: str) -> measures.Reference:
  """Returns the reference of a name: statistics, images, or both.

  Args:
    name: 'digits', a file of statistics, or an image set as evaluation.sources.open takes it.

  Raises:
    ValueError: if it is none of these.
  """
  if name == 'digits':
    images = sources.digits()
    return measures.Reference('digits', images.digest, None, images)
  who, path = 'config.evaluate.reference', pathlib.Path(name)
  members = ()
  if path.is_file() and zipfile.is_zipfile(path):
    with zipfile.ZipFile(path) as archive:
      members = archive.namelist()
  if path.suffix == '.pkl' or 'mu.npy' in members:
    statistics = statistics_lib.read(path)
    with path.open('rb') as file:
      sha256 = hashlib.file_digest(file, 'sha256').hexdigest()
    images = sources.open(path, who) if 'arr_0.npy' in members else None
    return measures.Reference(path.name, sha256, statistics._replace(images=None), images)
  images = sources.open(path, who)
  return measures.Reference(name, images.digest, None, images)


def _metrics(group, reference, small):
  """The metrics that were asked for, or the usual ones that can be had."""
  given = {'pairs': ('lpips_network',), 'clip': ('clip_network', 'prompts', 'tokenizer')}

  def refusal(name):
    metric = measures.METRICS[name]
    for field in given.get(metric.source, ()):
      if group[field] is None:
        return f'{name} needs config.evaluate.{field}'
    if small and metric.source == 'images' and metric.layer != 'pool':
      return f'{name} is a metric of Inception; give config.evaluate.network'
    if metric.needs and reference is None:
      return f'{name} needs a reference; give config.evaluate.reference'
    if metric.needs == 'images' and reference.images is None:
      return (f'{name} needs the images of the reference, and {reference.name} holds statistics '
              'alone; give an image set, or statistics with arr_0')
    if name == 'sfid' and reference.statistics and reference.statistics.mu_s is None:
      return (f'sfid needs statistics of spatial features, and {reference.name} has none; give '
              "statistics in ADM's layout, or an image set")
    return None
  if group.metrics is None:
    if reference is None and group.write_reference is not None:
      return ()
    return tuple(name for name, metric in measures.METRICS.items() if not refusal(name) and (
        metric.usual or metric.source in given))
  names = tuple(dict.fromkeys(_words(group.metrics)))
  if not names:
    raise ValueError('config.evaluate.metrics: must name one or more of '
                     f'{", ".join(measures.METRICS)}, got {group.metrics!r}; leave it out for all')
  for name in names:
    checks.lookup('config.evaluate.metrics', name, measures.METRICS)
    if problem := refusal(name):
      raise ValueError('config.evaluate.metrics: must be what the reference allows, got '
                       f'{group.metrics!r}: {problem}')
  return names


def _layers(group, metrics, reference):
  """Features of the images, and those of the reference's images, that metrics and files need."""
  statistics = reference and reference.statistics
  needed = [measures.METRICS[name] for name in metrics]
  needed = [metric for metric in needed if metric.source == 'images']
  own = {metric.layer for metric in needed}
  if group.write_reference is not None:
    own |= {'pool', 'spatial'} if group.layout == 'adm' else {'pool'}
  return own, {metric.layer for metric in needed
               if metric.needs == 'images' or (metric.needs and statistics is None)}


def _check_counts(metrics, images, reference):
  sets = [images] + ([reference.images] if reference and reference.images else [])
  for name in metrics:
    for some in sets if measures.METRICS[name].needs else sets[:1]:
      if some.count < measures.METRICS[name].least:
        raise ValueError(f'config.evaluate: {name} must have {measures.METRICS[name].least} images '
                         f'or more, got {some.count} in {some.path}; give more, or leave it out of '
                         'config.evaluate.metrics')


def choose_pipeline(name: str | None, reference: measures.Reference | None,
                    small: bool) -> str | None:
  """Returns the input pipeline of Inception: as given, else as the reference or its layout tells.

  Raises:
    ValueError: if one is given for digits, whose network has none, or another than the reference's.
  """
  if small:
    if name is not None:
      raise ValueError(f'config.evaluate.pipeline: must be left out for digits, got {name!r}; it '
                       'is for Inception, so give config.evaluate.network too')
    return None
  statistics = reference and reference.statistics
  recorded = statistics and statistics.recipe and statistics.recipe['pipeline'].get('name')
  if recorded and name not in (None, recorded):
    raise ValueError(f'config.evaluate.pipeline: must be {recorded!r} as that of the statistics in '
                     f'{reference.name}, got {name!r}; leave it out')
  if name or recorded:
    return name or recorded
  return 'edm' if statistics is not None and statistics.mu_s is None else 'tf1'


def _extractor(network, pipeline, layers):
  if network is not None:
    return extractors.inception(network, pipeline, sorted(layers))
  if 'spatial' in layers:
    raise ValueError("config.evaluate.layout: must be 'edm' for digits, got 'adm'; their network "
                     'has no spatial features')
  return extractors.digits()


def check_dims(reference: measures.Reference | None, extractor: extractors.Extractor) -> None:
  """Raises ValueError if statistics are of other features than an extractor's."""
  if reference is None or reference.statistics is None:
    return
  recorded = (reference.statistics.recipe or {}).get('pipeline', {})
  for name in ('network', 'sha256', 'name'):
    if recorded and recorded.get(name) != extractor.pipeline.get(name):
      raise ValueError(f'config.evaluate.reference: statistics must be of the {_OF[name]} '
                       f'{extractor.pipeline.get(name)}, got {recorded.get(name)} in '
                       f'{reference.name}; give those of the same network')
  wanted = extractor.dims.get('pool'), extractor.dims.get('spatial')
  for dim, mu in zip(wanted, (reference.statistics.mu, reference.statistics.mu_s), strict=True):
    if dim is not None and mu is not None and len(mu) != dim:
      raise ValueError(f'config.evaluate.reference: statistics must have {dim} dimensions as the '
                       f'features of {extractor.name}, got {len(mu)} in {reference.name}; give '
                       'those of the same network')


def _find(group, recipe, reference, full):
  """What departs from the protocol of the reference."""
  name, shape, rule = None, None, None
  if reference:
    name, told = reference.name, (reference.statistics and reference.statistics.recipe) or {}
    shape = reference.images.shape if reference.images else told.get('shape')
    rule = told.get('uint8')
  protocol = recipe_lib.protocol(name, shape, full, rule)
  if group.count is not None:
    if not checks.is_integer(group.count) or group.count < 1:
      raise ValueError(f'config.evaluate.count: must be an integer above 0, got {group.count}; '
                       '50000 is usual')
    protocol = protocol._replace(count=group.count)
  return recipe_lib.findings(recipe, protocol)


def _check_target(name):
  path = pathlib.Path(name)
  if path.suffix != '.npz' or not path.parent.is_dir():
    raise ValueError('config.evaluate.write_reference: must be an .npz file in a folder that is '
                     f'there, got {name!r}; such as statistics.npz')


def _write_reference(plan, target):
  features = plan.jobs['images'].features
  own = {layer: features_lib.moments(features, layer)
         for layer in ('pool', 'spatial') if layer in features.dims}
  layout, pictures, spatial = plan.config.get('layout', 'edm'), None, None
  if layout == 'adm':
    spatial = own['spatial']
    kept = min(plan.images.count, _KEPT_IMAGES)
    pictures = plan.images.take(np.arange(kept) * plan.images.count // kept)
  pool = own['pool']
  statistics_lib.write(target, statistics_lib.Statistics(
      mu=pool.mean, sigma=moments.covariance(pool), mu_s=spatial and spatial.mean,
      sigma_s=spatial and moments.covariance(spatial), images=pictures, num_images=pool.count,
      recipe={'features': plan.jobs['images'].extractor.name,
              'pipeline': _pipeline_of(plan.jobs['images']), 'shape': list(plan.images.shape),
              'count': pool.count, 'uint8': plan.recipe.uint8}), layout)


def _pipeline_of(job):
  return {name: value for name, value in job.extractor.pipeline.items() if name != 'layers'}


def _recipe_line(plan):
  parts = [recipe_lib.describe(plan.recipe, plan.found)]
  for name, job in plan.jobs.items():
    if name != 'reference':
      pipeline = _pipeline_of(job)
      words = job.extractor.name, pipeline.get('name'), pipeline['sha256'][:12]
      parts.append(' '.join(word for word in words if word))
  parts.append(f'reference {plan.reference.name} {plan.reference.sha256[:12]}' if plan.reference
               else 'no reference')
  return ', '.join(parts)


def _say(plan, numbers):
  """A line per metric, the first with the recipe."""
  lines = [measures.describe(name, values, plan.jobs[measures.METRICS[name].source].extractor.name)
           for name, values in numbers.items()]
  if (target := plan.config.get('write_reference')) is not None:
    lines.append(f'statistics of {plan.images.count:,} images in {target}')
  lines[0] = f'{lines[0]} ({_recipe_line(plan)})'
  return '\n'.join([*lines, f'see {_RESULT} in {plan.folder}'])


def _plain(recipe):
  """A recipe as plain values; its seeds are in the manifest it was read from."""
  told = recipe._asdict()
  seeds = told.pop('seeds')
  return {**told, 'seeds': seeds and [min(seeds), max(seeds)]}


def _words(text):
  return [word.strip() for word in str(text or '').split(',') if word.strip()]
