"""Importance weights, in logs: the one place that normalises them.

`log_weights` are `[N]`, unnormalised, in nats; computations are float32 or
wider. Under `shard_map` or `pmap` pass `axis_name`: sums then run over all
shards and every shard gets the global answer. On globally sharded arrays
under `jit` leave it None. `-inf` entries are zero weights; if all are `-inf`
the answers are NaN, which the trainer's guard reports.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jdiff.core import checks

AxisName = str | tuple[str, ...] | None


def normalise(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Self-normalised weights `[N]` that sum to one over every shard."""
  log_weights = _wide(log_weights)
  return jnp.exp(log_weights - _log_sum_exp(log_weights, axis_name))


def relative(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Self-normalised weights `[N]` with mean one over every shard."""
  num = _count(_wide(log_weights), axis_name)
  return normalise(log_weights, axis_name) * num


def log_mean_exp(
  log_weights: jax.Array, axis_name: AxisName = None
) -> jax.Array:
  """`log((1/N) sum_n exp(log_weights_n))`, scalar."""
  log_weights = _wide(log_weights)
  num = _count(log_weights, axis_name)
  return _log_sum_exp(log_weights, axis_name) - jnp.log(num)


def log_z(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Estimate of `log Z`: consistent, its exponential unbiased; nats."""
  return log_mean_exp(log_weights, axis_name)


def log_z_se(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Delta-method standard error of `log_z`, `sqrt((N / ess - 1) / N)`."""
  num = _count(_wide(log_weights), axis_name)
  fraction = ess_fraction(log_weights, axis_name)
  return jnp.sqrt(jnp.maximum(1 / fraction - 1, 0) / num)


def elbo(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Mean log weight, a lower bound on `log Z` in expectation; nats."""
  log_weights = _wide(log_weights)
  return _sum(log_weights, axis_name) / _count(log_weights, axis_name)


def ess(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Effective sample size `(sum w)^2 / sum w^2`, in `[1, N]`."""
  return 1 / _sum(normalise(log_weights, axis_name) ** 2, axis_name)


def ess_fraction(
  log_weights: jax.Array, axis_name: AxisName = None
) -> jax.Array:
  """`ess / N`, in `[1/N, 1]`; `1 / ess_fraction -> 1 + chi2(P* || P)`."""
  num = _count(_wide(log_weights), axis_name)
  return ess(log_weights, axis_name) / num


def expectation(
  log_weights: jax.Array, values: jax.Array, axis_name: AxisName = None
) -> tuple[jax.Array, jax.Array]:
  """Self-normalised expectation of `values`, and its standard error.

  Args:
    log_weights: `[N]`.
    values: `[N, ...]`.
    axis_name: Mesh axis of a sharded `N`, inside `shard_map`.

  Returns:
    `(mean [...], se [...])`; the error is the delta method's
    `sqrt(sum w^2 (f - mean)^2)`.
  """
  checks.check_shape("values", values, (*log_weights.shape, *values.shape[1:]))
  weights = normalise(log_weights, axis_name)
  weights = weights.reshape(weights.shape + (1,) * (values.ndim - 1))
  mean = _sum(weights * values, axis_name)
  return mean, jnp.sqrt(_sum((weights * (values - mean[None])) ** 2, axis_name))


def resample(
  key: jax.Array,
  log_weights: jax.Array,
  num_samples: int,
  axis_name: AxisName = None,
) -> jax.Array:
  """Systematic resampling: `[num_samples]` int32 indices, unbiased.

  Entry `n` is drawn `num_samples * w_n` times, rounded up or down. The
  indices ascend; shuffle them where that matters.

  Args:
    key: PRNG key; consumed. Under `axis_name` the same key on every shard.
    log_weights: `[N]`, the local shard under `axis_name`.
    num_samples: Indices wanted, on each shard.
    axis_name: Mesh axis of a sharded `N`; indices are then global, and the
      draw is the one that a single device would make for all shards.
  """
  checks.check_key(key)
  checks.check_int("num_samples", num_samples)
  checks.check_shape("log_weights", log_weights, (None,))
  log_weights = _wide(log_weights)
  shards, rank = 1, jnp.arange(num_samples)
  if axis_name is not None:
    shards = lax.axis_size(axis_name)
    rank = rank + lax.axis_index(axis_name) * num_samples
    log_weights = lax.all_gather(log_weights, axis_name, tiled=True)
  cdf = jnp.cumsum(jax.nn.softmax(log_weights))
  total = num_samples * shards
  points = (rank + jax.random.uniform(key)) / total
  # Rounding leaves the cdf's end near, not at, one, and may put a point on it:
  # the last entry that has a weight is the last that may be drawn.
  index = jnp.searchsorted(cdf, points * cdf[-1], side="right")
  last = jnp.searchsorted(cdf, cdf[-1], side="left")
  return jnp.minimum(index, last).astype(jnp.int32)


def temper(log_weights: jax.Array, exponent) -> jax.Array:
  """`log(w ** exponent)`: converges to the law `P^(1-exponent) P*^exponent`.

  Exact zeros stay zeros for every exponent, 0 included.
  """
  log_weights = _wide(log_weights)
  checks.check_numbers("exponent", exponent)
  # Not -inf * 0, which is NaN.
  return jnp.where(log_weights == -jnp.inf, -jnp.inf, log_weights * exponent)


def kl(log_weights: jax.Array, axis_name: AxisName = None) -> jax.Array:
  """Estimate of `KL(P || P_w)` from samples of `P`: `log mean w - mean log w`.

  Over the weights that are not zero, where it is finite; nats.
  """
  log_weights = _wide(log_weights)
  present = log_weights > -jnp.inf
  num = _sum(present.astype(log_weights.dtype), axis_name)
  total = _sum(jnp.where(present, log_weights, 0), axis_name)
  return _log_sum_exp(log_weights, axis_name) - jnp.log(num) - total / num


def solve_exponent(
  log_weights: jax.Array,
  min_fraction=None,
  axis_name: AxisName = None,
  *,
  max_kl=None,
  offset: jax.Array | None = None,
  low: ArrayLike = 0.0,
  num_steps: int = 32,
) -> jax.Array:
  """The largest exponent in `[0, 1]` whose tempered weights stay even enough.

  `temper(log_weights, exponent)` then has `ess >= min_fraction * M`, with `M`
  the number of non-zero weights: zeros stay zeros at every exponent, so they
  cannot be asked for. Or it has `kl <= max_kl`. The ESS falls and the KL rises
  as the exponent grows, hence bisection, with a fixed number of steps;
  `jax.vmap` solves each group of samples by itself. DMPO's coefficient and
  PDNS's step are this number.

  Args:
    log_weights: `[N]`.
    min_fraction: The ESS wanted, as a share in `(0, 1)`; or None.
    axis_name: Mesh axis of a sharded `N`, inside `shard_map`.
    max_kl: The KL allowed instead, in nats.
    offset: `[N]` log-weights that are added untempered. Evenness need not then
      be monotone in the exponent, and the answer is a crossing.
    low: Smallest answer, given though the weights are too uneven there.
    num_steps: Halvings of `[low, 1]`.

  Returns:
    A scalar without gradient; exactly 1 where the weights as they are will do.

  Raises:
    ValueError: If not exactly one criterion is given, or it is out of range.
  """
  if (min_fraction is None) == (max_kl is None):
    raise ValueError(
      "pass exactly one of min_fraction and max_kl, got "
      f"min_fraction={min_fraction}, max_kl={max_kl}."
    )
  if min_fraction is None:
    checks.check_finite("max_kl", max_kl, positive=True)
  else:
    checks.check_range("min_fraction", min_fraction, 0, 1, ends="()")
  checks.check_int("num_steps", num_steps)
  log_weights = lax.stop_gradient(_wide(log_weights))
  if offset is not None:
    offset = lax.stop_gradient(_wide(offset, "offset"))
    checks.check_shape("offset", offset, log_weights.shape)

  def enough(exponent):
    tempered = temper(log_weights, exponent)
    if offset is not None:
      tempered = tempered + offset
    if min_fraction is None:
      return kl(tempered, axis_name) <= max_kl
    present = (tempered > -jnp.inf).astype(tempered.dtype)
    wanted = min_fraction * _sum(present, axis_name)
    return ess(tempered, axis_name) >= wanted

  def halve(_, bounds):
    low, high = bounds
    middle = (low + high) / 2
    ok = enough(middle)
    return jnp.where(ok, middle, low), jnp.where(ok, high, middle)

  one = jnp.ones((), log_weights.dtype)
  start = jnp.asarray(low, log_weights.dtype) * one
  low, _ = lax.fori_loop(0, num_steps, halve, (start, one))
  return jnp.where(enough(one), one, low)


def clip(
  log_weights: jax.Array, max_ratio: float, axis_name: AxisName = None
) -> jax.Array:
  """Truncates weights at `max_ratio` times their mean.

  Truncated importance sampling (Ionides, 2008): a finite `max_ratio` buys
  variance for a bias that vanishes as it grows with `N`.
  """
  checks.check_range("max_ratio", max_ratio, 0, jnp.inf, ends="(]")
  ceiling = log_mean_exp(log_weights, axis_name) + jnp.log(max_ratio)
  return jnp.minimum(_wide(log_weights), ceiling)


def _wide(x: jax.Array, name: str = "log_weights") -> jax.Array:
  checks.check_numbers(name, x)
  if not np.size(x):
    raise ValueError(f"{name} must not be empty.")
  return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def _sum(x: jax.Array, axis_name: AxisName) -> jax.Array:
  total = jnp.sum(x, axis=0)
  return total if axis_name is None else lax.psum(total, axis_name)


def _count(x: jax.Array, axis_name: AxisName) -> jax.Array:
  # In x's own precision: float32 would round log(N) in a float64 log_z.
  return _sum(jnp.ones(x.shape[0], x.dtype), axis_name)


def _log_sum_exp(x: jax.Array, axis_name: AxisName) -> jax.Array:
  peak = lax.stop_gradient(jnp.max(x, axis=0))
  if axis_name is not None:
    # pmax has no derivative rule; a gathered maximum of constants needs none.
    peak = jnp.max(lax.all_gather(peak, axis_name), axis=0)
  safe = jnp.where(jnp.isfinite(peak), peak, 0)
  return safe + jnp.log(_sum(jnp.exp(x - safe), axis_name))
