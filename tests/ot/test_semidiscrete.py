"""The dual against closed forms, and its error against the efficient floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import ot
from jdiff.ot import semidiscrete


def solve(points, **options):
  options.setdefault("num_samples", 200_000)
  options.setdefault("batch_size", 512)
  options.setdefault("num_eval", 2**15)
  run = jax.jit(functools.partial(ot.solve, **options))
  return run(jax.random.key(0), jnp.asarray(points, jnp.float32))


def test_points_on_a_line():
  # Cells are intervals, and neighbours' scores meet at the quantiles.
  y = np.array([-2.0, -0.5, 0.1, 1.0, 2.5])
  nu = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
  edges = stats.norm.ppf(np.cumsum(nu)[:-1])
  want = np.concatenate([[0], np.cumsum(-edges * np.diff(y))])
  solution = solve(y[:, None], weights=nu, num_samples=400_000)
  got = np.asarray(solution.bias)
  np.testing.assert_allclose(got - got[0], want, atol=0.02)
  np.testing.assert_allclose(nu @ got, 0, atol=1e-5)
  assert bool(solution.converged)


def test_two_points():
  y = np.array([[1.0, 2.0, 0.0], [-1.0, 0.5, 1.0]])
  nu = np.array([0.3, 0.7])
  solution = solve(y, weights=nu)
  want = np.linalg.norm(y[1] - y[0]) * stats.norm.ppf(0.7)
  assert abs(float(solution.bias[1] - solution.bias[0]) - want) < 0.02


def test_symmetry():
  angle = 2 * np.pi * np.arange(8) / 8
  octagon = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  solution = solve(octagon)
  np.testing.assert_allclose(solution.bias, 0, atol=0.02)
  # Shifting the points moves no cell.
  moved = solve(octagon + np.array([[3.0, -1.0]]))
  np.testing.assert_allclose(moved.bias, solution.bias, atol=1e-2)


def test_error_is_near_the_efficient_floor():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(300, 32)) * rng.uniform(0.5, 1.5, size=(300, 1))
  points = jnp.asarray(points, jnp.float32)
  solution = solve(points, num_eval=2**17)
  # Eighty per cent of the samples are averaged; the estimate's own deviation
  # is sqrt(2 M) / num_eval = 2e-4.
  assert float(solution.floor) == pytest.approx(299 / 160_000, rel=0.01)
  assert float(solution.marginal_error) < 2 * float(solution.floor)
  assert bool(solution.converged)
  # Controls: the closed-form start is far better than nearest neighbours, and
  # far worse than the solution.
  key = jax.random.key(1)
  centred = points - points.mean(axis=0, keepdims=True)
  start, _ = semidiscrete.analytic_start(centred, jnp.full(300, 1 / 300))
  errors = [
    float(ot.marginal_error(key, centred, bias, num_samples=2**15))
    for bias in (-0.5 * jnp.sum(centred**2, axis=1), start, solution.bias)
  ]
  assert errors[0] > 10 * errors[1] > 100 * errors[2]


def test_too_few_samples_return_the_start():
  points = jax.random.normal(jax.random.key(3), (600, 16))
  solution = solve(points, num_samples=512)
  centred = points - points.mean(axis=0, keepdims=True)
  start, _ = semidiscrete.analytic_start(centred, jnp.full(600, 1 / 600))
  np.testing.assert_allclose(
    solution.bias, start - start.mean(), rtol=1e-4, atol=1e-4
  )
  assert solution.num_samples == 0 and not bool(solution.converged)


def test_a_warm_start_is_kept():
  points = jax.random.normal(jax.random.key(4), (50, 16))
  init = jax.random.normal(jax.random.key(5), (50,))
  solution = solve(points, init=init, num_samples=10)
  np.testing.assert_allclose(solution.bias, init - init.mean(), atol=1e-5)


def test_bad_arguments():
  points = jnp.zeros((3, 2))
  key = jax.random.key(0)
  with pytest.raises(ValueError, match="weights must be positive"):
    ot.solve(key, points, weights=jnp.array([0.5, 0.5, 0.0]), num_samples=9)
  with pytest.raises(ValueError, match=r"weights must have shape \[3\]"):
    ot.solve(key, points, weights=jnp.ones(2) / 2, num_samples=9)
  with pytest.raises(ValueError, match="number of points must be >= 2"):
    ot.solve(key, points[:1], num_samples=9)
  with pytest.raises(ValueError, match=r"init must have shape \[3\]"):
    ot.solve(key, points, init=jnp.zeros(2), num_samples=9)
