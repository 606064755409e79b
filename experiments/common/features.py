"""A feature map for images: a small classifier, trained once and frozen."""

import functools
import warnings

import numpy as np

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
