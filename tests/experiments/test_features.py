"""Feature maps that are fitted once, and networks of the user's."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.common import features


def test_principal_components():
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(50, 2, 3)) * np.array([5.0, 3.0, 1.0])
  full = features.pca(rows, 6)(rows)
  distance = np.linalg.norm(np.asarray(full[:1] - full[1:]), axis=1)
  flat = rows.reshape(50, -1)
  np.testing.assert_allclose(
    distance, np.linalg.norm(flat[:1] - flat[1:], axis=1), rtol=1e-5
  )
  variance = np.asarray(full).var(axis=0, ddof=1)
  want = np.linalg.eigvalsh(np.cov(flat.T))[::-1]
  np.testing.assert_allclose(variance, want, rtol=1e-4)
  np.testing.assert_allclose(
    features.pca(rows, 2)(rows), full[:, :2], atol=1e-5
  )
  for num in (0, 7):
    with pytest.raises(ValueError, match="num_components must be"):
      features.pca(rows, num)
  with pytest.raises(ValueError, match="num_components must be at most 2"):
    features.pca(rows[:3], 3)


def test_embeddings_are_asked_in_equal_batches():
  shapes = []

  def function(x):
    shapes.append(x.shape)
    return x.sum(axis=2)

  mapped = features.embedding(function, shape=(2, 3), batch_size=4)
  rows = np.arange(54.0).reshape(9, 6)
  answer = mapped(rows)
  assert shapes == [(4, 2, 3)] * 3
  np.testing.assert_allclose(answer, rows.reshape(9, 2, 3).sum(axis=2))
  assert answer.dtype == jnp.float32
  bad = features.embedding(lambda x: x.sum(), batch_size=4)
  with pytest.raises(ValueError, match="function must answer"):
    bad(rows)
