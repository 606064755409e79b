"""Feature maps: a small classifier, principal components, networks of yours.

Each is fitted once, on real data, and frozen: distances of features can only be
compared if the map is the same.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks

WIDTH = 64


@functools.lru_cache(maxsize=4)
def _fit(shape, images, labels):
  # Heavy and needed by image sets alone.
  from sklearn import exceptions, neural_network

  x = np.frombuffer(images, np.float32).reshape(shape)
  y = np.frombuffer(labels, np.int32)
  model = neural_network.MLPClassifier(
    (WIDTH,), alpha=1e-2, max_iter=40, random_state=0
  )
  with warnings.catch_warnings():
    # Forty epochs are enough for features.
    warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
    model.fit(x, y)
  weight, bias = model.coefs_[0], model.intercepts_[0]
  return weight, bias, float(model.score(x, y))


def classifier(images: np.ndarray, labels: np.ndarray):
  """Hidden activations of a perceptron fitted to labelled images.

  Args:
    images: `[N, ...]`, pixels in `[-1, 1]`.
    labels: `[N]` integers.

  Returns:
    `(features, accuracy)`: `features(x [n, ...]) -> [n, 64]`, the same function
    for the same images, and the share of them that it classifies rightly.
  """
  flat = np.ascontiguousarray(images.reshape(len(images), -1), np.float32)
  weight, bias, accuracy = _fit(
    flat.shape, flat.tobytes(), np.asarray(labels, np.int32).tobytes()
  )

  def features(x):
    x = np.asarray(x, np.float32).reshape(len(x), -1)
    return np.maximum(x @ weight + bias, 0)

  return features, accuracy


def pca(
  rows: np.ndarray, num_components: int
) -> Callable[[jax.Array], jax.Array]:
  """Projection onto the first principal components of rows.

  Nothing is divided by its deviation: distances are those of the rows, but for
  what the components leave out.

  Args:
    rows: `[N, ...]`, flattened to `[N, D]`.
    num_components: From 1 to `min(N - 1, D)`.

  Returns:
    `features(x [n, ...]) -> [n, num_components]` float32.
  """
  flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
  most = min(len(flat) - 1, flat.shape[1])
  if checks.check_int("num_components", num_components) > most:
    raise ValueError(
      f"num_components must be at most {most} for rows of shape "
      f"{list(flat.shape)}, got {num_components}."
    )
  mean = flat.mean(axis=0)
  # A triangular factor first: small if there are fewer rows than columns.
  factor = np.linalg.qr(flat - mean, mode="r")
  basis = np.linalg.svd(factor, full_matrices=False)[2][:num_components].T
  # Signs are the library's choice, and it differs between machines.
  largest = np.abs(basis).argmax(axis=0)
  basis = basis * np.sign(basis[largest, np.arange(num_components)])
  mean, basis = (jnp.asarray(a, jnp.float32) for a in (mean, basis))

  def features(x):
    centred = jnp.asarray(x, jnp.float32).reshape(len(x), -1) - mean[None]
    return jnp.matmul(centred, basis, precision=jax.lax.Precision.HIGHEST)

  return features


def embedding(
  function: Callable[[np.ndarray], Any],
  *,
  shape: Sequence[int] | None = None,
  batch_size: int = 256,
) -> Callable[[jax.Array], jax.Array]:
  """A network of yours as a feature map; it need not be written in JAX.

  Args:
    function: `[batch_size, ...]` NumPy rows to as many features, flattened
      afterwards. It must not change from call to call.
    shape: Of one row as `function` wants it, by default as it comes.
    batch_size: Rows of each call; the last batch is filled up.

  Returns:
    `features(x [n, ...]) -> [n, f]` float32.
  """
  checks.check_int("batch_size", batch_size)

  def features(x):
    rows = np.asarray(x)
    rows = rows.reshape(
      len(rows), *(rows.shape[1:] if shape is None else shape)
    )
    parts = []
    for start in range(0, len(rows), batch_size):
      # The same shape in every call: it may be compiled.
      index = np.minimum(np.arange(start, start + batch_size), len(rows) - 1)
      answer = np.asarray(function(rows[index]), np.float32)
      if answer.shape[:1] != (batch_size,):
        raise ValueError(
          f"function must answer [{batch_size}, ...], one row for each given, "
          f"got shape {list(answer.shape)}."
        )
      parts.append(answer.reshape(batch_size, -1))
    return jnp.asarray(np.concatenate(parts)[: len(rows)])

  return features
