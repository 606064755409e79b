"""How alike two sets are: precision and recall, Fréchet distance."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import checks
from jdiff.selection import neighbours


class PrecisionRecall(NamedTuple):
  """Shares of two sets that lie in the other's support.

  Attributes:
    precision: Scalar float, share of samples near data.
    recall: Scalar float, share of data near samples.
  """

  precision: jax.Array
  recall: jax.Array


def precision_recall(
  samples: jax.Array,
  data: jax.Array,
  *,
  k: int = 3,
  chunk_size: int | None = None,
) -> PrecisionRecall:
  """Improved precision and recall, by balls around points as a support.

  A set's support is the union of balls around its points, each reaching to the
  point's `k`-th neighbour within the set. Values depend on the sizes of the
  sets: compare those of equal `B`, `N` and `k` only.

  Args:
    samples: `[B, ...]`, features of what a model drew.
    data: `[N, ...]`, features of real data.
    k: Which neighbour, from 1 to one less than the smaller set.
    chunk_size: Most points a chunk.

  Raises:
    ValueError: If `k` is too large, shapes do not fit, or a known value is not
      finite.
    TypeError: If `k` is no integer or an array holds no numbers.

  Source:
    Kynkäänniemi et al., arXiv:1904.06991, eqs. 1 and 2, whose `k` is 3.
  """
  samples = neighbours.as_rows("samples", samples)
  data = neighbours.as_rows("data", data)
  neighbours.check_sizes("samples", samples, "data", data)

  def share(inside, points):
    reach, _ = neighbours.search(
      points, points, k, exclude_self=True, chunk_size=chunk_size
    )
    # Some ball holds the row if its lowest |x - y|^2 - reach^2 is not positive.
    power, _ = neighbours.search(
      inside, points, 1, offset=-reach[:, -1], chunk_size=chunk_size
    )
    return jnp.mean(power <= 0, dtype=power.dtype)

  return PrecisionRecall(share(samples, data), share(data, samples))


def frechet(x: jax.Array, y: jax.Array) -> jax.Array:
  """Fréchet distance of the Gaussians fitted to two sets of features.

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2))

  the squared 2-Wasserstein distance of the two; FID's formula, on whatever
  features these are. Covariances have `n - 1` in the denominator and may be
  singular.

  The trace of the root is the sum of the singular values of `R_x R_y^T`, for
  triangular factors `A = R_x^T R_x` of the centred features themselves.
  Eigenvalues of covariances would have float32's rounding before the root:
  1e-3 in the distance of two sets of digits, where this is off by 1e-5.

  Args:
    x: `[n, ...]`, flattened to `[n, D]`, `n >= 2`.
    y: `[m, ...]`, `m >= 2`.

  Returns:
    Scalar float, in squared units of the features; up to rounding `>= 0`.

  Raises:
    ValueError: If shapes do not fit, or a known value is not finite.
    TypeError: If an array holds no numbers.

  Source:
    Dowson and Landau, J. Multivar. Anal. 12 (1982); Heusel et al.,
    arXiv:1706.08500.
  """
  x = neighbours.widen(neighbours.as_rows("x", x))
  y = neighbours.widen(neighbours.as_rows("y", y))
  neighbours.check_sizes("x", x, "y", y)
  for name, rows in (("x", x), ("y", y)):
    checks.check_int(f"number of rows of {name}", rows.shape[0], 2)
  (x_mean, x_factor), (y_mean, y_factor) = _moments(x), _moments(y)
  product = jnp.matmul(x_factor, y_factor.T, precision=lax.Precision.HIGHEST)
  cross = jnp.linalg.svd(product, compute_uv=False).sum()
  means = jnp.sum((x_mean - y_mean) ** 2)
  return means + jnp.sum(x_factor**2) + jnp.sum(y_factor**2) - 2 * cross


def _moments(x):
  """The mean, and `R` with `R^T R` the covariance."""
  mean = x.mean(axis=0)
  factor = jnp.linalg.qr(x - mean[None], mode="r")
  return mean, factor / (x.shape[0] - 1) ** 0.5
