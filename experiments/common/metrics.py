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


def frechet(x: np.ndarray, y: np.ndarray) -> float:
  """Fréchet distance of the Gaussians fitted to features `[n, D]`, `[m, D]`.

  `|mean difference|^2 + tr(A + B - 2 (A B)^(1/2))`: FID's formula, on whatever
  features these are.
  """
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
  # A B has the eigenvalues of the symmetric A^(1/2) B A^(1/2).
  values, vectors = np.linalg.eigh(a)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
  means = np.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
  return float(means + np.trace(a) + np.trace(b) - 2 * cross)
