"""Diagnostics of chains and distances of samples, from libraries."""

import numpy as np
from blackjax import diagnostics
from scipy import optimize
from scipy.spatial import distance


def ess(values):
  """Effective sample size of `[C, K]` values of C chains."""
  return diagnostics.effective_sample_size(values)


def r_hat(values):
  """Potential scale reduction of `[C, K]` values of C chains; 1 is mixed."""
  return diagnostics.potential_scale_reduction(values)


def w2(x: np.ndarray, y: np.ndarray) -> float:
  """Exact 2-Wasserstein distance of two samples of equal size `[n, D]`."""
  cost = distance.cdist(x, y, "sqeuclidean")
  rows, columns = optimize.linear_sum_assignment(cost)
  return float(np.sqrt(cost[rows, columns].mean()))
