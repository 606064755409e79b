"""Diagnostics of chains and distances of samples, from libraries."""

import numpy as np
from scipy import optimize
from scipy.spatial import distance


def mean(values, exact: float | None = None) -> dict[str, float | None]:
  """A mean of independent values `[n]`, its standard error, and what is known.

  In the form that `evaluate` answers.
  """
  values = np.asarray(values, np.float64)
  return {
    "value": float(values.mean()),
    "se": float(values.std() / len(values) ** 0.5),
    "exact": exact,
  }


def ess(values):
  """Effective sample size of `[C, K]` values of C chains."""
  # A second and a half to import, needed by chains alone.
  from blackjax import diagnostics

  return diagnostics.effective_sample_size(values)


def r_hat(values):
  """Potential scale reduction of `[C, K]` values of C chains; 1 is mixed."""
  from blackjax import diagnostics

  return diagnostics.potential_scale_reduction(values)


def w2(x: np.ndarray, y: np.ndarray) -> float:
  """Exact 2-Wasserstein distance of two samples of equal size `[n, D]`."""
  cost = distance.cdist(x, y, "sqeuclidean")
  rows, columns = optimize.linear_sum_assignment(cost)
  return float(np.sqrt(cost[rows, columns].mean()))
