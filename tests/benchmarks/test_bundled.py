"""The bundled models are as good as the report says, and what measures them is right."""


import numpy as np
import pytest

import models
import samplers
from benchmarks import bundled, report

REPORT = report.PAGE.read_text()


@pytest.fixture(scope='module')
def judge():
  return bundled.make_judge()


def test_frechet_distance_of_known_gaussians():
  rng = np.random.default_rng(0)
  z = rng.standard_normal((500, 5))
  z -= z.mean(0)
  z = z @ np.linalg.inv(np.linalg.cholesky(np.cov(z, rowvar=False)).T)  # Exactly N(0, I).
  mix = rng.standard_normal((5, 5))
  assert bundled.frechet(z, z) == pytest.approx(0, abs=1e-10)
  assert bundled.frechet(z, 3 * z + 1) == pytest.approx(5 * (2**2 + 1), rel=1e-10)
  # Commuting covariances I and M^T M: sum of (1 - singular value of M)^2.
  values = np.linalg.svd(mix, compute_uv=False)
  assert bundled.frechet(z, z @ mix) == pytest.approx(((1 - values)**2).sum(), rel=1e-9)
  flat = z * [1, 1, 1, 0, 0]  # Singular.
  assert bundled.frechet(z, flat) == pytest.approx(2, rel=1e-9)


def test_nearest_distance():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((7, 3)), rng.standard_normal((9, 3))
  brute = np.linalg.norm(a[:, None] - b[None], axis=-1).min(1)
  np.testing.assert_allclose(bundled.nearest(a, b), brute, rtol=1e-9)


def test_judge_knows_real_digits_and_memory(judge):
  images, labels, inks = models.digits.images()
  own = bundled.score(judge, images[inks == 3])
  assert own.frechet < 1e-6 and own.recognised > 0.99
  assert own.nearest == 0  # Most of them are the training set's own.
  assert (labels[inks == 3] == judge.labels).all()


def reported():
  """(solver, schedule, NFE) -> Scores of the page."""
  rows = [line.strip('| ').split(' | ') for line in REPORT.splitlines() if line.endswith('|')]
  return {(row[0], row[1], int(row[2])): bundled.Scores(
      float(row[3]), float(row[4].rstrip('%')) / 100, float(row[5]))
      for row in rows if len(row) == 6 and row[4].endswith('%')}


def test_report_meets_what_was_asked_of_the_model():
  rows = reported()
  trained = {key: scores for key, scores in rows.items() if not key[0].startswith('exact')}
  best = min((scores for key, scores in trained.items() if key[2] == 6 and key[0] != 'heun'),
             key=lambda scores: scores.frechet)
  heun = rows['heun', 'polynomial', 36]
  assert heun.frechet <= 12 and best.frechet <= 20
  assert heun.recognised >= 0.97 and best.recognised >= 0.97
  assert heun.nearest >= 0.8 and best.nearest >= 0.8


def test_first_samples_agree_with_the_report(judge):
  """300 samples of the best row at 6 evaluations: the model that is here is the one measured."""
  (solver, schedule, _), scores = min(
      ((key, scores) for key, scores in reported().items() if key[2] == 6),
      key=lambda pair: pair[1].frechet)
  model = models.load('digits')
  sigmas = samplers.schedule(schedule.split(',')[0], 6, model.sigma_min, model.sigma_max,
                             **bundled.SCHEDULES[schedule])
  table = samplers.make(solver, sigmas)
  images = bundled.sample(model, table, judge.labels[:300], sigmas[0], batch_size=300)
  own = bundled.score(judge, images)
  # Three standard errors of a share near 0.98 of 300, and a median of 300.
  assert own.recognised > scores.recognised - 0.025
  assert own.nearest == pytest.approx(scores.nearest, abs=0.1)


def test_report_on_a_small_scale(judge, tmp_path, monkeypatch):
  """Curves and rendering, end to end."""
  monkeypatch.setattr(bundled, 'SIGMAS', np.array([0.3, 3.0]))
  monkeypatch.setattr(bundled, 'HELD_OUT', 64)  # 28 digits; some of them were trained on.
  curves, losses = bundled.denoiser_curves(), bundled.classifier_curves()
  # At a high level nothing can be remembered: there all denoisers nearly agree.
  assert curves['trained - exact'][1] < curves['trained'][1] / 2
  assert np.isnan(curves['early'][1]) and curves['early'][0] < curves['exact'][0] + 0.2
  assert losses['trained'][0] < 0.2 < losses['trained'][1] < np.log(10)
  row = 'heun', 'polynomial', 36, bundled.Scores(1.0, 0.98, 1.1)
  text = bundled.render([row], curves, losses)
  assert '| heun | polynomial | 36 | 1.0 | 98.0% | 1.10 |' in text
  bundled.plot(curves, losses, tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 10_000

