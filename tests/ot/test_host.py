"""The CPU's fast masses are the histogram's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ot
from jdiff.ot import host


def problem(num_points, dim, num_rows):
  rng = np.random.default_rng(num_points)
  points = rng.normal(size=(num_points, dim))
  bias = -2 * np.linalg.norm(points, axis=1)
  bias[1] = -np.inf
  noise = rng.normal(size=(num_rows, dim))
  return tuple(jnp.asarray(a, jnp.float32) for a in (noise, points, bias))


def plain(noise, points, bias, mirrored):
  every = jnp.concatenate([noise, -noise]) if mirrored else noise
  return ot.histogram(every, points, bias)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
  "sizes, chunk_size",
  [((300, 6, 200), None), ((300, 6, 130), 70), ((9, 2, 5), 3)],
)
def test_masses(sizes, chunk_size, mirrored):
  noise, points, bias = problem(*sizes)
  got = host.masses(
    noise, points, bias, mirrored=mirrored, chunk_size=chunk_size
  )
  want = plain(noise, points, bias, mirrored)
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_allclose(got.sum(), 1, atol=1e-5)


def test_biases_that_share_the_products():
  noise, points, bias = problem(300, 6, 130)
  several = jnp.stack([bias, 0.9 * bias, 0.5 * bias])
  for mirrored in (False, True):
    got = host.masses(noise, points, several, mirrored=mirrored, chunk_size=70)
    want = [plain(noise, points, b, mirrored) for b in several]
    np.testing.assert_allclose(got, jnp.stack(want), atol=1e-6)


@pytest.mark.parametrize("twin", [5, 64 + 3, 250])
def test_ties_go_to_one_of_them(twin):
  # In another lane, in the same lane, in another chunk.
  noise, points, bias = problem(300, 3, 100)
  points = points.at[twin].set(points[3])
  bias = bias.at[jnp.array([3, twin])].set(0.0)
  got = host.masses(noise, points, bias, mirrored=True, chunk_size=128)
  want = plain(noise, points, bias, True)
  both = jnp.array([3, twin])
  np.testing.assert_allclose(got[both].sum(), want[both].sum(), atol=1e-6)
  others = np.delete(np.arange(300), both)
  np.testing.assert_allclose(got[others], want[others], atol=1e-6)


def test_a_batch_of_noise_must_be_even():
  points = jax.random.normal(jax.random.key(0), (10, 12))
  with pytest.raises(ValueError, match="batch_size must be a multiple of 2"):
    ot.solve(jax.random.key(0), points, num_samples=99, batch_size=33)
