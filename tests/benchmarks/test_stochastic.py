"""The reports on guided, stochastic and early-stopped sampling: what they measure is right."""

import jax
import numpy as np
import pytest

import models
import samplers
from benchmarks import bundled, early_stop, guided, report, sampling, stochastic
from engine import guides

PAGE = report.PAGE.read_text()
ROWS = 24  # Of guided tables, so that tests share the compiled programs.
SIGMAS = samplers.schedule('polynomial', 8, 0.002, 80.0)


def section(title):
  return PAGE.split(f'## {title}\n')[1].split('\n## ')[0]


def rows(title):
  """Cells of the section's table below its head, as text."""
  lines = [line for line in section(title).splitlines() if line.startswith('| ')]
  return [[cell.strip(' *') for cell in line.strip('|').split(' | ')] for line in lines[2:]]


@pytest.mark.parametrize('entry', stochastic.SAME_AS_DDPM, ids=lambda entry: entry.label)
def test_solvers_that_the_report_calls_equal_are(entry):
  ddpm = next(entry for entry in stochastic.ENTRIES if entry.label == 'ddpm')
  variance = np.geomspace(0.01, 4, 7)
  wanted = samplers.moments.gaussian_moments(ddpm.table(SIGMAS), 0.3, variance)
  got = samplers.moments.gaussian_moments(entry.table(SIGMAS), 0.3, variance)
  np.testing.assert_allclose(got, wanted, rtol=1e-10)


def test_distance_on_gaussian_data_is_that_of_samples():
  """The exact figure against 20,000 samples of the same table with the Gaussian's own denoiser."""
  rng = np.random.default_rng(0)
  grays = 8 + rng.standard_normal((500, 3)) @ np.diag([1.0, 2.0, 4.0]) @ rng.standard_normal((3, 3))
  table = sampling.Entry('', 'seeds', {'order': 1}).table(SIGMAS)
  mean, covariance = grays.mean(0) / 8 - 1, np.cov(grays, rowvar=False) / 64
  values, axes = np.linalg.eigh(covariance)

  def denoise(x, sigma):
    share = values / (values + sigma**2)
    along = (x - mean) @ axes
    return mean + share * along @ axes.T

  keys = jax.random.split(jax.random.key(0), 20_000)
  x = SIGMAS[0] * jax.vmap(lambda key: jax.random.normal(key, (1, 1, 3)))(keys)
  run = jax.jit(lambda x, keys: samplers.run(  # The intervals of its draws are disjoint.
      table, denoise, x, draw=samplers.noise.by_row(keys)))
  samples = 8 * (np.asarray(run(x, keys), np.float64).reshape(-1, 3) + 1)
  # Vectors with exactly the data's mean and covariance: those that the figure was made of.
  assert stochastic.on_gaussian(table, grays) == pytest.approx(
      bundled.frechet(samples, grays), rel=0.05)
  fine = sampling.Entry('', 'dpmpp', {}).table(samplers.schedule('polynomial', 500, 0.002, 80.0))
  assert stochastic.on_gaussian(fine, grays) < 0.01 < stochastic.on_gaussian(table, grays)


def test_cost_of_guided_solvers():
  counted = {entry.label: tuple(guided.cost(entry.table(SIGMAS))) for entry in guided.ENTRIES}
  assert counted == {'DDIM': (8, 8), 'PLMS4': (9, 9), 'LTSP4': (8, 8), 'STSP4': (8, 16)}
  reported = [tuple(int(cell) for cell in row[1:4]) for row in rows(guided.TITLE)
              if row[0] == 'STSP4']
  assert reported == [(n, n, 2 * n) for n in guided.STEPS]


def test_guidance_acts_through_both_kinds_of_solver():
  """Unguided, LTSP is iPNDM; guided, the class asked for becomes likelier with either."""
  model, classifier = models.load('digits_exact'), models.load_classifier('digits_exact')
  labels = np.arange(8)

  def sample(solver, scale):
    return sampling.sample(model, sampling.Entry('', solver, {}), SIGMAS, labels, ROWS,
                           classifier=classifier,
                           guide=guides.Constants(np.float32(scale), classifier.params))

  def right(images):
    return np.asarray(classifier.log_prob(images, np.float32(0.5))).argmax(1) == labels
  plain = sample('ipndm', 0.0)
  np.testing.assert_allclose(sample('ltsp', 0.0), plain, atol=1e-3)
  for solver in ('euler', 'ltsp'):
    assert right(sample(solver, 2.0)).sum() > right(plain).sum() + 2


def test_stochastic_report_on_a_small_scale(monkeypatch, tmp_path):
  """End to end with the exact denoiser: the figures, the text and the plot."""
  monkeypatch.setattr(stochastic, 'MODEL', 'digits_exact')
  monkeypatch.setattr(stochastic, 'IMAGES', 4)
  monkeypatch.setattr(stochastic, 'BUDGETS', (8, 16, 32))
  monkeypatch.setattr(stochastic, 'ENTRIES', [
      entry for entry in stochastic.ENTRIES
      if entry.label in ('edm S_churn=10', 'seeds order=2')])
  results = stochastic.measure()
  change = results.change['seeds order=2']
  assert set(change) == {16, 32}
  # Twice the steps show the same image; the draws of churn do not.
  assert change[32] < 0.2 < results.change['edm S_churn=10'][32]
  text = stochastic.render(results)
  assert text.count('| seeds order=2 |') == 1 and 'the change falls' in text
  stochastic.plot(results, tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 10_000


def test_guided_report_on_a_small_scale(monkeypatch, tmp_path):
  for name, value in (('MODEL', 'digits_exact'), ('CLASSIFIER', 'digits_exact'), ('IMAGES', 8),
                      ('SCALES', (4.0,)),
                      ('STEPS', (4, 8)), ('FINE', ROWS)):
    monkeypatch.setattr(guided, name, value)
  results = guided.measure()
  assert set(results) == set(guided.SCALES)
  assert all(result.distance['DDIM'][8] > result.converged for result in results.values())
  text = guided.render(results, guided.costs())
  assert text.count('| STSP4 |') == 2 and 'At scale 4 the nearest' in text
  guided.plot(results, tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 10_000


def test_early_stop_report_on_a_small_scale(monkeypatch, tmp_path):
  for name, value in (('MODELS', ('digits_exact',)), ('IMAGES', 8), ('STARTS', (1.0,)),
                      ('BUDGETS', (4,)), ('ENTRIES', early_stop.ENTRIES[:1])):
    monkeypatch.setattr(early_stop, name, value)
  before, images = early_stop.measure()
  started, noise = images.values()
  # An inner level keeps most of an image, noise nothing.
  assert sampling.rms(started, before) < 0.7 * sampling.rms(noise, before)
  judge = bundled.make_judge()._replace(labels=early_stop.classes())
  scores = {key: bundled.score(judge, own) for key, own in images.items()}
  sharp, blurry = next(iter(scores.values())), bundled.score(judge, before)
  assert sharp.nearest < blurry.nearest / 2  # The exact denoiser returns the digits themselves.
  text = early_stop.render(blurry, scores)
  assert '| digits_exact | sigma 1 | dpmpp |' in text and 'against' in text
  early_stop.plot(before, images, tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 5_000


def test_every_solver_is_reported():
  assert [row[0] for row in rows(stochastic.TITLE)] == [
      entry.label for entry in stochastic.ENTRIES]
  assert [(row[0], int(row[1])) for row in rows(guided.TITLE)] == [
      (entry.label, n) for n in guided.STEPS for entry in guided.ENTRIES]
  assert len(rows(early_stop.TITLE)) == 1 + len(early_stop.runs()) // len(early_stop.BUDGETS)


def test_reported_early_stop_sharpens_the_generator():
  """From sigma 1 both models come nearer to the digits, by both measures that see it."""
  before, *after = rows(early_stop.TITLE)
  figures = {tuple(row[:3]): [float(cell.rstrip('%')) for cell in row[3:]] for row in after}
  noise = figures['digits', 'noise', 'dpmpp']
  for name in early_stop.MODELS:
    frechet, nearest, *_ = own = figures[name, 'sigma 1', 'dpmpp']
    assert frechet < 0.8 * float(before[3]) and own[3] < 0.8 * float(before[3])
    assert frechet < noise[0] / 2  # At 4 evaluations; at 8 full sampling has caught up.
    assert 0.9 < nearest < float(before[4]) - 0.05


def test_runs_of_early_stop_stay_within_what_a_model_knows():
  keys = early_stop.runs()
  assert {key.start for key in keys if key.model == 'digits_early'} == {0.5, 1.0}
  assert {key.start for key in keys if key.model == 'digits'} == {0.5, 1.0, 2.0, None}
  assert len(keys) == len(set(keys)) == (2 + 4) * len(early_stop.ENTRIES) * len(early_stop.BUDGETS)
