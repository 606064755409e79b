import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg
from sklearn import datasets

from jdiff import selection


def brute_force(samples, data, k):
  def share(inside, points):
    inner = np.linalg.norm(points[:, None] - points[None], axis=2)
    reach = np.sort(inner, axis=1)[:, k]
    cross = np.linalg.norm(inside[:, None] - points[None], axis=2)
    return (cross <= reach[None]).any(axis=1).mean()

  return share(samples, data), share(data, samples)


def test_precision_and_recall_by_hand():
  # Data reach one step each; the samples 2, 2, 2 and 6.5.
  data = jnp.array([0.0, 1, 2, 3])
  samples = jnp.array([-0.5, 1.5, 3.5, 10])
  run = jax.jit(functools.partial(selection.precision_recall, k=1))
  found = run(samples, data)
  assert float(found.precision) == 0.75 and float(found.recall) == 1
  # A ball holds its edge.
  edge = run(jnp.array([-1.0, 4, 4.5, 20]), data)
  assert float(edge.precision) == 0.5
  same = run(data, data)
  assert float(same.precision) == float(same.recall) == 1
  far = run(samples + 100, data)
  assert float(far.precision) == float(far.recall) == 0


def test_a_dropped_mode_costs_recall_alone():
  key_modes, key_data, key_samples = jax.random.split(jax.random.key(0), 3)
  mode = jax.random.bernoulli(key_modes, 0.5, (300, 1))
  data = jax.random.normal(key_data, (300, 2)) + 40.0 * mode
  samples = jax.random.normal(key_samples, (300, 2))
  run = jax.jit(selection.precision_recall)
  found, swapped = run(samples, data), run(data, samples)
  assert found.precision > 0.9
  kept = 1 - float(mode.mean())
  assert kept - 0.1 < found.recall <= kept
  assert (swapped.precision, swapped.recall) == (found.recall, found.precision)


def test_precision_and_recall_by_brute_force():
  rng = np.random.default_rng(0)
  data, samples = rng.normal(size=(60, 5)), 0.8 * rng.normal(size=(45, 5))
  # Copies within and across the sets.
  data[1], samples[2], samples[3] = data[0], samples[1], data[4]
  with jax.enable_x64(True):
    run = functools.partial(selection.precision_recall, k=3, chunk_size=7)
    found = jax.jit(run)(samples, data)
  want = brute_force(samples, data, 3)
  np.testing.assert_allclose(found, want, rtol=1e-12)
  assert 0 < want[1] < want[0] <= 1


def sample_with(mean, covariance, num, rng):
  """Points whose mean and covariance are just these."""
  x = rng.normal(size=(num, len(mean)))
  x -= x.mean(axis=0)
  x = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T).T
  return mean + x @ np.linalg.cholesky(covariance).T


def root_reference(x, y):
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  a, b = np.cov(x.T), np.cov(y.T)
  gap = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
  return gap + np.trace(a + b - 2 * linalg.sqrtm(a @ b).real)


def test_frechet_of_gaussians():
  rng = np.random.default_rng(0)
  turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
  a, b = (turn * s @ turn.T for s in (np.array([1.0, 4, 9]), [4.0, 1, 1]))
  shift = np.array([1.0, -2, 0.5])
  with jax.enable_x64(True):
    # Commuting: the squared differences of standard deviations.
    x = sample_with(np.zeros(3), a, 50, rng)
    y = sample_with(shift, b, 40, rng)
    want = 5.25 + 1 + 1 + 4
    run = jax.jit(selection.frechet)
    assert float(run(x, y)) == pytest.approx(want, rel=1e-12)
    assert float(run(x, x)) == pytest.approx(0, abs=1e-12)
    # Not commuting: two by two, tr (A B)^(1/2) = sqrt(tr AB + 2 sqrt(det AB)).
    c, d = np.array([[2.0, 1], [1, 3]]), np.array([[5.0, -2], [-2, 1]])
    product = c @ d
    cross = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    x = sample_with(np.zeros(2), c, 50, rng)
    y = sample_with(np.zeros(2), d, 40, rng)
    want = np.trace(c + d) - 2 * cross
    assert float(run(x, y)) == pytest.approx(want, rel=1e-12)
    # Control: as if they commuted, by their own diagonals, it is not that.
    wrong = np.sum((np.diag(c) ** 0.5 - np.diag(d) ** 0.5) ** 2)
    assert abs(wrong - want) > 0.5


def test_frechet_is_that_of_the_matrix_root():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(90, 6)) @ rng.normal(size=(6, 6))
  y = rng.normal(size=(70, 2, 3)) + 0.3
  want = root_reference(x, y.reshape(70, 6))
  with jax.enable_x64(True):
    found = float(jax.jit(selection.frechet)(x, y))
    assert found == pytest.approx(want, rel=1e-9)
  single = jax.jit(selection.frechet)(np.float32(x), np.float32(y))
  assert single.dtype == jnp.float32
  assert float(single) == pytest.approx(want, rel=1e-5)


def test_frechet_in_float32_of_singular_covariances():
  digits = datasets.load_digits().data / 8 - 1
  # Border pixels never change; and fewer rows than pixels.
  pairs = ((digits[:300], digits[300:600]), (digits[:40], digits[40:80]))

  @jax.jit
  def by_eigenvalues(x):
    """Of a set and itself, by the covariance alone: zero, were it exact."""
    covariance = jnp.cov(x.T)
    values, vectors = jnp.linalg.eigh(covariance)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0))[None]) @ vectors.T
    values = jnp.maximum(jnp.linalg.eigvalsh(root @ covariance @ root), 0)
    return 2 * jnp.trace(covariance) - 2 * jnp.sqrt(values).sum()

  run = jax.jit(selection.frechet)
  for x, y in pairs:
    with jax.enable_x64(True):
      want = float(run(x, y))
    x, y = np.float32(x), np.float32(y)
    assert float(run(x, y)) == pytest.approx(want, abs=1e-4)
    assert abs(float(run(x, x))) < 1e-4
    assert abs(float(by_eigenvalues(x))) > 3e-4


def test_bad_arguments():
  x = jnp.arange(12.0).reshape(6, 2)
  with pytest.raises(ValueError, match="k must be at most 5"):
    selection.precision_recall(x, x, k=6)
  with pytest.raises(ValueError, match="x must be >= 2, got 1"):
    selection.frechet(x[:1], x)
  for function in (
    selection.frechet,
    functools.partial(selection.precision_recall, k=1),
  ):
    with pytest.raises(ValueError, match="must have rows of one size, got 1"):
      function(x[:, :1], x)
    with pytest.raises(ValueError, match="must be finite, got 1 of 12"):
      function(x, x.at[0, 0].set(jnp.nan))
