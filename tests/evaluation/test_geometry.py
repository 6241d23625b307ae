"""Trajectory geometry against reference numbers of the published notebooks, and its own laws."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samplers
from evaluation import curves, gaussian, geometry, optimal, projection
from models import mixture
from tests import reference

MANIFEST, ARRAYS = reference.load('analyzer')
CASES = {case['id']: case for case in MANIFEST['cases']}
COUNTS = {'trajectory statistics': 4, 'optimal denoiser': 1, 'Gaussian approximation': 4,
          'projection': 1, 'curvature and torsion': 2}
RTOL = 1e-9  # Of the manifest; relative to the largest number of the array.


def of_kind(kind):
  return [case['id'] for case in MANIFEST['cases'] if case['kind'] == kind]


def arrays(case):
  """The arrays of a case, without its key."""
  stem, key = CASES[case]['file'].removesuffix('.npz'), CASES[case].get('key')
  found = ARRAYS[stem]
  if key is None:
    return found
  return {name.removeprefix(f'{key}/'): value for name, value in found.items()
          if name.startswith(f'{key}/')}


def close(got, want, rtol=RTOL):
  np.testing.assert_allclose(got, want, rtol=0, atol=rtol * np.abs(want).max())


@functools.cache
def model():
  return reference.mixture_denoiser(ARRAYS['mixture_analyzer'])


def follow(denoise, table, x):
  """States at the grid points, on the host."""
  run = jax.jit(lambda x: samplers.run(table, denoise, x, trajectory=True)[1])
  return np.asarray(run(jnp.asarray(x)))


def answers(denoise, x, sigmas):
  return np.asarray(jax.jit(functools.partial(optimal.along, denoise))(jnp.asarray(x), sigmas))


def test_every_case_is_replayed():
  assert collections.Counter(case['kind'] for case in MANIFEST['cases']) == COUNTS


@pytest.mark.parametrize('case', of_kind('trajectory statistics'))
def test_observations(case):
  fields, want = CASES[case], arrays(case)
  sigmas = want['t_steps']
  start = ARRAYS['trajectories']['z'] * sigmas[0]
  x = follow(model(), samplers.make(fields['solver'], sigmas, **fields['options']), start)
  close(x, want['x'])
  denoised = answers(model(), x[:-1], sigmas[:-1])
  close(geometry.eps_of(x, denoised, sigmas), want['eps'])
  if fields['solver'] != 'heun':  # Its recorded images are the answers to the second call.
    close(denoised, want['denoised'])
  observed = geometry.observe(want['x'], want['denoised'], want['eps'])
  for name in geometry.Observations._fields:
    close(getattr(observed, name), want[name])


@pytest.mark.parametrize('case', of_kind('optimal denoiser'))
def test_optimal_denoiser(case):
  want, data = arrays(case), ARRAYS['trajectories']
  sigmas = want['t_steps']
  best = functools.partial(optimal.denoise, optimal.empirical(data['dataset']))
  euler = samplers.make('euler', sigmas)
  start = data['z'] * sigmas[0]
  x, x_opt = follow(model(), euler, start), follow(best, euler, start)
  inner = sigmas[:-1]
  denoised, denoised_opt = answers(model(), x[:-1], inner), answers(best, x_opt[:-1], inner)
  on_x, on_x_opt = answers(best, x[:-1], inner), answers(model(), x_opt[:-1], inner)
  for name, got in (('x', x), ('denoised', denoised), ('x_opt', x_opt),
                    ('denoised_opt', denoised_opt), ('opt_denoiser_on_x', on_x),
                    ('eps_opt', geometry.eps_of(x_opt, denoised_opt, sigmas)),
                    ('denoiser_on_x_opt', on_x_opt)):
    close(got, want[name])
  apart = optimal.differences(x, denoised, x_opt, denoised_opt, on_x, on_x_opt)
  for name in optimal.Differences._fields:
    close(getattr(apart, name), want[f'diff_{name}'])


@pytest.mark.parametrize('case', of_kind('Gaussian approximation'))
def test_gaussian_approximations(case):
  fields, want, data = CASES[case], arrays(case), ARRAYS['gaussian']
  labels = data['labels'].astype(np.int64) if fields['num_components'] > 1 else None
  rank = fields['num_principal_components']
  if rank is None:
    denoise = functools.partial(
        mixture.denoise, gaussian.unit_covariance(data['dataset'], labels))
  else:
    denoise = functools.partial(
        gaussian.denoise, gaussian.fit(data['dataset'], labels, rank))
  x = follow(denoise, samplers.make('euler', data['t_steps']),
             data['z'] * data['t_steps'][0])
  close(x, want['x'])
  # Recovered from the states, which amplifies their rounding by sigma over a step.
  close(answers(denoise, x[:-1], data['t_steps'][:-1]), want['denoised'], 1e-8)


@pytest.mark.parametrize('case', of_kind('projection'))
def test_projection(case):
  want = arrays(case)
  x = follow(model(), samplers.make('euler', want['t_steps']), want['x'][0])
  close(x, want['x'])
  seen = projection.project(want['x'])
  for axis, (name, rtol) in enumerate((('xs', RTOL), ('ys', RTOL), ('zs', 1e-7))):
    close(seen.coordinates[..., axis], want[name], rtol)
  close(seen.explained, want['explained'])
  close(seen.singular_values, want['singular_values'])
  kept, bend = projection.trim(seen.coordinates)
  np.testing.assert_array_equal(kept, want['kept'])
  close(bend, want['pc_norm'])
  close(projection.align(np.moveaxis(seen.coordinates[..., 1:], 1, 0)), want['aligned_formula'],
        1e-7)  # Holds zs.
  close(curves.arc_length(seen.coordinates), want['arc_length'])


@pytest.mark.parametrize('case', of_kind('curvature and torsion'))
def test_curvature_and_torsion(case):
  want, points = arrays(case), np.stack([ARRAYS['geometry'][name] for name in (
      'xs', 'ys', 'zs')], -1)
  curvature, torsion = curves.curvature_torsion(points, CASES[case]['window_size'])
  close(curvature, want['curvature'])
  close(torsion, want['torsion'], 1e-6)


def test_helix():
  want = {name.removeprefix('helix/'): array for name, array in ARRAYS['geometry'].items()
          if name.startswith('helix/')}
  points = np.stack([want['xs'], want['ys'], want['zs']], -1)
  curvature, torsion = curves.curvature_torsion(points, 21)
  close(curvature, want['curvature'])
  close(torsion, want['torsion'], 1e-6)
  # The fit's own error, away from the ends where it looks to one side.
  for got, exact in ((curvature, want['curvature_exact']), (torsion, want['torsion_exact'])):
    np.testing.assert_allclose(got[20:-20], np.broadcast_to(exact, got[20:-20].shape), rtol=0.01)


def test_straight_lines_and_still_points_have_numbers():
  line = np.linspace(5, 0, 9)[:, None, None, None, None] * np.ones((1, 1, 2, 2, 3))
  assert np.allclose(geometry.chord_deviation(line), 0)
  seen = projection.project(line)
  np.testing.assert_allclose(seen.coordinates[0, 0], [-5 * np.sqrt(12), 0, 0], atol=1e-12)
  assert np.isfinite(seen.explained).all()
  still = np.concatenate([line, line[:1]])  # Ends where it starts: there is no chord.
  np.testing.assert_allclose(geometry.chord_deviation(still)[-1], 5 * np.sqrt(12))
  assert np.isfinite(projection.project(still).coordinates).all()
  for points in (np.zeros((7, 1, 3)), np.linspace(0, 1, 7)[:, None, None] * np.ones((1, 1, 3))):
    curvature, torsion = curves.curvature_torsion(points, 5)
    assert np.abs(curvature).max() < 1e-8 and np.isfinite(torsion).all()


def test_projection_keeps_what_three_dimensions_hold():
  rng = np.random.default_rng(0)
  basis, _ = np.linalg.qr(rng.standard_normal((12, 3)))
  points = np.cumsum(rng.standard_normal((20, 4, 3)), axis=0)
  x = (points @ basis.T).reshape(20, 4, 2, 2, 3)
  seen = projection.project(x)
  np.testing.assert_allclose(np.linalg.norm(seen.coordinates, axis=-1),
                             geometry.distance_to_end(x), rtol=1e-9)
  middle = seen.coordinates[10]
  assert np.all(middle * [-1, 1, -1] > 0)
  np.testing.assert_allclose(seen.explained[:, 1:3], 1, rtol=1e-12)
  back = np.einsum('tbk,bkhwc->tbhwc', seen.coordinates, seen.axes)
  np.testing.assert_allclose(back, x - x[-1], atol=1e-9)


@pytest.mark.parametrize('dimension', [2, 3])
def test_alignment_undoes_any_rotation(dimension):
  rng = np.random.default_rng(0)
  curve = rng.standard_normal((30, dimension))
  turns = np.linalg.qr(rng.standard_normal((20, dimension, dimension)))[0]
  aligned = projection.align(np.concatenate([curve[None], curve @ turns]))
  np.testing.assert_allclose(aligned, np.broadcast_to(curve, aligned.shape), atol=1e-12)


def test_gaussian_of_full_rank_is_the_exact_denoiser_of_its_density():
  rng = np.random.default_rng(0)
  images = rng.standard_normal((200, 2, 2, 3)) @ rng.standard_normal((3, 3))
  x, sigma = jnp.asarray(rng.standard_normal((5, 2, 2, 3))), jnp.asarray([0.1, 0.5, 1, 3, 9])
  flat = images.reshape(200, -1)
  covariance = np.cov(flat.T)
  got = jax.jit(gaussian.denoise)(gaussian.fit(images), x, sigma).reshape(5, -1)
  for one, level, point in zip(got, sigma, x.reshape(5, -1), strict=True):
    want = flat.mean(0) + covariance @ np.linalg.solve(
        covariance + level**2 * np.eye(12), point - flat.mean(0))
    np.testing.assert_allclose(one, want, rtol=1e-9)


def test_labels_choose_the_component():
  rng = np.random.default_rng(0)
  images, labels = rng.standard_normal((30, 2, 2, 3)), np.arange(30) % 3
  x = jnp.asarray(rng.standard_normal((3, 2, 2, 3)))
  params = gaussian.fit(images, labels, rank=4)
  asked = jnp.asarray([2, 0, -1], jnp.int32)
  denoise = jax.jit(gaussian.denoise)
  got = denoise(params, x, 0.7, asked)
  own = denoise(gaussian.fit(images[labels == 2], rank=4), x, 0.7)
  np.testing.assert_allclose(got[0], own[0], rtol=1e-10)
  np.testing.assert_allclose(got[2], denoise(params, x, 0.7)[2], rtol=1e-12)


STATES = np.random.default_rng(0).standard_normal((4, 1, 2, 2, 3))


@pytest.mark.parametrize('call, message', [
    (lambda: geometry.observe(STATES[:2], STATES[:1], STATES[:1]), 'at least 3 points, .* got 2'),
    (lambda: geometry.observe(STATES, STATES, STATES[:3]), 'denoised must have shape .3, 1'),
    (lambda: geometry.chord_deviation(STATES[0]), 'time comes first'),
    (lambda: projection.project(STATES[:2]), 'project: .* at least 3 points, .* got 2'),
    (lambda: projection.trim(np.zeros((4, 1, 3))), 'fraction must .* got 0.8 of 1'),
    (lambda: curves.curvature_torsion(np.zeros((9, 1, 3)), 6), 'odd integer .* 9, got 6'),
    (lambda: curves.curvature_torsion(np.zeros((9, 1, 3)), 11), 'odd integer .* 9, got 11'),
    (lambda: curves.curvature_torsion(np.zeros((9, 3)), 5), r'points must have .* \(n, batch, 3'),
    (lambda: gaussian.fit(STATES[:, 0], rank=0), 'rank must be an integer of at least 1, got 0'),
    (lambda: gaussian.fit(STATES[:, 0], np.array([0, 0, 2, 2])), 'at least 2 .* got 0 in class 1'),
    (lambda: gaussian.fit(STATES), 'images must have shape'),
    (lambda: gaussian.fit(STATES[:, 0], np.zeros(4)), 'labels must be integers'),
])
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message) as caught:
    call()
  assert '\n' not in str(caught.value)
