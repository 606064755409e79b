"""The diabetes study as a fairness problem, with rows held out."""

import functools

import numpy as np

from jdiff import targets
from jdiff.core.types import ConstrainedTarget

FEATURES = ("age", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
MONOTONE = ("bmi", "bp")


@functools.cache
def diabetes(test_share: float = 0.25, seed: int = 0):
  """Train and test arrays `(x, y, group)` of the diabetes study.

  442 patients (Efron et al., 2004), shipped with scikit-learn: `y` is a
  progression above the training median, `group` the sex, which is no feature.
  Rows are split at random and standardised by the training rows alone.
  """
  # Heavy and needed by this problem alone.
  from sklearn import datasets

  bunch = datasets.load_diabetes(scaled=False)
  columns = list(bunch.feature_names)
  x = bunch.data[:, [columns.index(name) for name in FEATURES]]
  group = (bunch.data[:, columns.index("sex")] > 1.5).astype(np.float32)
  order = np.random.default_rng(seed).permutation(len(x))
  num_test = int(test_share * len(x))
  test, train = order[:num_test], order[num_test:]
  y = (bunch.target > np.median(bunch.target[train])).astype(np.float32)
  centre, scale = x[train].mean(axis=0), x[train].std(axis=0)
  x = ((x - centre) / scale).astype(np.float32)
  return tuple((x[rows], y[rows], group[rows]) for rows in (train, test))


def fair_bnn(**options) -> ConstrainedTarget:
  """The posterior on the training rows, with the test likelihood observed."""
  train, test = diabetes()
  monotone = tuple(FEATURES.index(name) for name in MONOTONE)
  problem = targets.fair_bnn(*train, monotone=monotone, **options)
  return targets.with_test_rows(problem, *test)
