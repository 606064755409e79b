"""Semi-discrete optimal transport from noise to finitely many points.

The dual is one bias a point; its gradient is each Laguerre cell's mass less the
point's weight. `solve` runs averaged, preconditioned stochastic approximation
from a closed-form start (arXiv:2510.25287 for averaging; start and
preconditioner from extreme-value statistics of Gaussian scores, re-derived):

  b_j <- b_j - eta_k (tau_j / nu_j) (mass_j - nu_j),   tau_j = s_j / z_j,
  b_j = -z_j s_j at first,   s_j = |y_j - mean|,   z_j = Phi^{-1}(1 - nu_j).

No step size is tuned. Meant for eight dimensions or more: in two or three the
cells' Laplacian is ill-conditioned and a diagonal preconditioner crawls.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy import stats

from jdiff.core import checks
from jdiff.ot import laguerre

Source = Callable[[jax.Array, tuple[int, int]], jax.Array]
"""`(key, (B, D)) -> [B, D]` noise of mean zero and unit variance."""


class Solution(NamedTuple):
  """A dual solution.

  Attributes:
    bias: `[M]` float32, score units, weighted mean zero.
    marginal_error: Scalar, unbiased estimate of `sum_j (p_j - nu_j)^2 / nu_j`
      on fresh noise; it may be slightly negative.
    floor: What an efficient estimator from as many samples would have,
      `(M - 1) / num_averaged`; infinite if no step was made.
    converged: Whether the error is at most `max(tolerance, 2 floor)`.
    num_samples: Noise vectors that the iteration used.
  """

  bias: jax.Array
  marginal_error: jax.Array
  floor: jax.Array
  converged: jax.Array
  num_samples: int


def standard_normal(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """The default source."""
  return jax.random.normal(key, shape)


def solve(
  key: jax.Array,
  points: jax.Array,
  *,
  weights: jax.Array | None = None,
  num_samples: int,
  batch_size: int = 1024,
  source: Source = standard_normal,
  init: jax.Array | None = None,
  num_eval: int = 2**17,
  tolerance: float = 1e-3,
  chunk_size: int | None = None,
) -> Solution:
  """Finds the bias under which cell `j` has mass `weights[j]`.

  Args:
    key: PRNG key; consumed.
    points: `[M, D]`, `M >= 2`, without duplicates.
    weights: `[M]` positive, summing to one; uniform by default.
    num_samples: Budget of noise vectors. The error goes as `M / num_samples`;
      with fewer than `M` the closed-form start is returned, since steps would
      make it worse.
    batch_size: Noise vectors a step.
    source: The noise; the start and the step are those of a Gaussian.
    init: `[M]` bias to start from, for a warm start.
    num_eval: Fresh noise vectors for `marginal_error`.
    tolerance: On `marginal_error`, for `converged`.
    chunk_size: See `laguerre.assign`.

  Raises:
    ValueError: If shapes, sizes or weights do not fit.
  """
  checks.check_shape("points", points, (None, None))
  num_points, dim = points.shape
  checks.check_int("number of points", num_points, 2)
  checks.check_int("num_samples", num_samples)
  checks.check_int("batch_size", batch_size)
  checks.check_int("num_eval", num_eval, 2)
  nu = _weights(weights, num_points)
  # Scores of all points shift alike with the mean, and it would eat digits.
  points = points.astype(jnp.float32)
  points = points - (nu @ points)[None]
  start, step = analytic_start(points, nu)
  if init is not None:
    checks.check_shape("init", init, (num_points,))
    start = jnp.asarray(init, jnp.float32)
  num_steps = num_samples // batch_size if num_samples >= num_points else 0
  key_steps, key_eval = jax.random.split(key)
  rate = min(0.5, 0.4 * batch_size / num_points)
  scale = max(1.0, 2 * num_points / batch_size)
  num_burn_in = num_steps // 5

  def update(bias, index):
    key = jax.random.fold_in(key_steps, index)
    noise = source(key, (batch_size, dim))
    mass = laguerre.histogram(noise, points, bias, chunk_size=chunk_size)
    eta = rate * (1 + index / scale) ** -0.6
    return bias - eta * step / nu * (mass - nu)

  def burn(bias, index):
    return update(bias, index), None

  def average(carry, index):
    bias, mean = carry
    bias = update(bias, index)
    count = index - num_burn_in + 1
    return (bias, mean + (bias - mean) / count), None

  last, _ = lax.scan(burn, start, jnp.arange(num_burn_in))
  (_, bias), _ = lax.scan(
    average, (last, last), jnp.arange(num_burn_in, num_steps)
  )
  bias = bias - nu @ bias
  error = marginal_error(
    key_eval,
    points,
    bias,
    weights=nu,
    num_samples=num_eval,
    source=source,
    chunk_size=chunk_size,
  )
  averaged = (num_steps - num_burn_in) * batch_size
  floor = jnp.float32((num_points - 1) / averaged if averaged else jnp.inf)
  bound = jnp.maximum(tolerance, jnp.where(averaged > 0, 2 * floor, 0))
  return Solution(bias, error, floor, error <= bound, num_steps * batch_size)


def analytic_start(
  points: jax.Array, weights: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`(bias, step)` `[M]` of centred points: `-z s`, and `s / z`.

  With Gaussian noise scores are `N(b_j, s_j^2)`; all win as often as they
  should if `b_j = T - z_j s_j`, were they independent.
  """
  spread = jnp.linalg.norm(points, axis=1)
  spread = jnp.maximum(spread, 1e-3 * spread.mean())
  z = stats.norm.ppf(1 - weights)
  # Few points: a cell's mass moves by about 1 / (0.4 s) however large it is.
  return -z * spread, spread / jnp.maximum(z, 0.4)


def marginal_error(
  key: jax.Array,
  points: jax.Array,
  bias: jax.Array,
  *,
  weights: jax.Array | None = None,
  num_samples: int = 2**17,
  batch_size: int = 1024,
  source: Source = standard_normal,
  chunk_size: int | None = None,
) -> jax.Array:
  """Unbiased `sum_j (p_j - nu_j)^2 / nu_j` of the hard cells, fresh noise.

  Its standard deviation at the optimum is about `sqrt(2 M) / num_samples`.
  """
  num_points, dim = points.shape
  nu = _weights(weights, num_points)
  batch_size = min(batch_size, num_samples)
  num_batches = -(-num_samples // batch_size)

  def body(counts, index):
    noise = source(jax.random.fold_in(key, index), (batch_size, dim))
    cell = laguerre.assign(noise, points, bias, chunk_size=chunk_size)
    return counts + jnp.bincount(cell, length=num_points), None

  counts, _ = lax.scan(
    body, jnp.zeros(num_points, jnp.int32), jnp.arange(num_batches)
  )
  total = float(num_batches * batch_size)
  # Relative counts keep float32 exact enough: c (c - 1) would not fit.
  share = counts / total
  return jnp.sum(share * (share - 1 / total) / nu) * total / (total - 1) - 1


def _weights(weights, num_points):
  if weights is None:
    return jnp.full(num_points, 1 / num_points, jnp.float32)
  checks.check_shape("weights", weights, (num_points,))
  weights = jnp.asarray(weights, jnp.float32)
  if checks.is_concrete(weights):
    total, low = float(weights.sum()), float(weights.min())
    if not (low > 0 and abs(total - 1) < 1e-3):
      raise ValueError(
        "weights must be positive and sum to one, got a minimum of "
        f"{low:.3g} and a sum of {total:.6g}; drop points of weight zero."
      )
  return weights
