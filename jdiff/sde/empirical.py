"""The score of a diffused training set: what a perfect memoriser learns.

If `X_0` is one of the rows `y_1, ..., y_N`, all equally likely, then
`x_t = alpha X_0 + sigma noise` has the density
`mean_i N(x; alpha y_i, sigma^2 I)`, and with the posterior weights
`w_i = softmax_i(-|x - alpha y_i|^2 / (2 sigma^2))`

  E[X_0 | x] = sum_i w_i y_i,   score = (alpha E[X_0 | x] - x) / sigma^2.

It minimises the denoising loss on those rows, and the reverse process under it
ends on them. By how much any other score, the true one included, loses on the
training set is the loss gap of arXiv:2511.03202 (definition and proposition
4.1).

Rows are streamed: a chunk at a time with a running maximum, so that `[B, N]` is
never held. Under `shard_map`, `axis_name` is the mesh axis that the rows are
split over; every shard then gets the answer for all of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jdiff.core import carries, checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Params, ScoreFn, VelocityFn
from jdiff.core.weights import AxisName
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants

CHUNK_SIZE = 1024
"""Rows a chunk."""

# Above this rounding error of a log-weight, in nats, squared distances are
# summed from differences: the product form `|x|^2 - 2 x.y + |y|^2` cancels.
_MAX_ERROR = 1e-3


class LossGap(NamedTuple):
  """Monte Carlo estimates, scalars, in the units of a squared score.

  Attributes:
    gap: Denoising loss of the score minus that of the empirical score, each
      with the target `-noise / sigma`.
    gap_se: Its standard error.
    fisher: Mean squared distance of the two scores under the empirical law of
      `x_t`: the same number in expectation, never negative, less noisy.
    fisher_se: Its standard error.
    loss: Denoising loss of the score.
    loss_empirical: Denoising loss of the empirical score, the least possible.
  """

  gap: jax.Array
  gap_se: jax.Array
  fisher: jax.Array
  fisher_se: jax.Array
  loss: jax.Array
  loss_empirical: jax.Array


def empirical_score(
  x: jax.Array,
  data: jax.Array,
  alpha: ArrayLike,
  sigma: ArrayLike,
  *,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> tuple[jax.Array, jax.Array]:
  """Log-density and score of the training set under Gaussian noise.

  Time is `4 B N D` operations. Memory beyond the arguments is that of
  `[B, chunk_size]` and `[B, D]`; with a derivative, that of `[B, D]` for each
  chunk. Computations are in float32 at least. Where `sigma` is so small that
  products would round away what tells rows apart, all of the call is computed
  from differences, which no matrix unit can do. Under `jax.vmap` over noise
  levels both are computed: give `[B]` of them instead, or use `jax.lax.map`.

  Args:
    x: `[B, ...]`, noised points.
    data: `[N, ...]`, the training set, or the local rows under `axis_name`.
    alpha: Weight of the data, a scalar or `[B]`.
    sigma: Standard deviation of the noise, a scalar or `[B]`, positive.
    mask: `[N]` bool, False for rows that do not exist (padding).
    chunk_size: Most rows a chunk; the answer does not depend on it beyond
      rounding.
    axis_name: Mesh axis that the rows are split over, inside `shard_map`.

  Returns:
    `(log_prob [B], score [B, ...])`: normalised, in nats, and its gradient in
    `x`. Differentiable in all floating arguments.

  Raises:
    ValueError: If shapes do not fit, or `sigma` is seen not to be positive.
  """
  law = _posterior(x, data, alpha, sigma, mask, chunk_size, axis_name)
  slope = (law.alpha * law.mean - law.x) / law.sigma / law.sigma
  return law.log_prob, slope.reshape(x.shape)


def empirical_denoised(
  x: jax.Array,
  data: jax.Array,
  alpha: ArrayLike,
  sigma: ArrayLike,
  *,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """`E[X_0 | x]` `[B, ...]`, a mean of training rows; see `empirical_score`."""
  law = _posterior(x, data, alpha, sigma, mask, chunk_size, axis_name)
  return (law.mean + law.centre[None]).reshape(x.shape)


def empirical_hessian(
  x: jax.Array,
  data: jax.Array,
  alpha: ArrayLike,
  sigma: ArrayLike,
  *,
  mask: jax.Array | None = None,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> jax.Array:
  """Hessian of the log-density, `[B, D, D]` over flattened dimensions.

  `-I / sigma^2 + alpha^2 / sigma^4 Cov[X_0 | x]`, whose first term alone is
  left where one row is certain; between rows the second is of order
  `sigma^-4`. The covariance is summed about its mean, in a second pass over the
  rows. Arguments are those of `empirical_score`.
  """
  law = _posterior(x, data, alpha, sigma, mask, chunk_size, axis_name)

  def body(total, rows, logits):
    weights = jnp.exp(logits - law.log_sum[:, None])
    away = rows[None] - law.mean[:, None]
    return total + jnp.einsum(
      "bc,bcd,bce->bde", weights, away, away, precision=lax.Precision.HIGHEST
    )

  dim = law.x.shape[1]
  covariance = law.scan(body, jnp.zeros((*law.x.shape, dim), law.x.dtype))
  if axis_name is not None:
    covariance = lax.psum(covariance, axis_name)
  alpha, sigma = law.alpha[:, :, None], law.sigma[:, :, None]
  bend = (alpha / sigma) ** 2 * covariance
  return (bend - jnp.eye(dim, dtype=bend.dtype)[None]) / sigma**2


def empirical_score_fn(
  schedule: GaussianSchedule,
  *,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> ScoreFn:
  """The empirical score as a `ScoreFn`, at `t > 0`; `params` is the data.

  Args:
    schedule: The process.
    chunk_size: See `empirical_score`.
    axis_name: Mesh axis of the rows. A sampler takes `params`, and all that
      comes of them, to differ from device to device: pass it None, and as field
      `lambda _, x, t: field(rows, x, t)` with the local rows.
  """
  if chunk_size is not None:
    checks.check_int("chunk_size", chunk_size)

  def score(params: Params, x: jax.Array, t: jax.Array) -> jax.Array:
    _, slope = empirical_score(
      x,
      params,
      schedule.alpha(t),
      schedule.sigma(t),
      chunk_size=chunk_size,
      axis_name=axis_name,
    )
    return slope

  return score


def empirical_velocity_fn(
  schedule: GaussianSchedule,
  *,
  chunk_size: int | None = None,
  axis_name: AxisName = None,
) -> VelocityFn:
  """Its `E[dx_t / dt | x_t]`, at `t > 0`; `params` is the data.

  From the denoised point, so that it is defined where `alpha` is zero too.
  Euler's last step to `t = 0` of the linear schedule lands on a mean of rows.

  Args:
    schedule: The process.
    chunk_size: See `empirical_score`.
    axis_name: See `empirical_score_fn`.
  """
  if chunk_size is not None:
    checks.check_int("chunk_size", chunk_size)

  def velocity(
    params: Params, x: jax.Array, t: jax.Array, **label: jax.Array
  ) -> jax.Array:
    if label:
      raise ValueError("an empirical velocity takes no label; pass those rows.")
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    clean = empirical_denoised(
      x, params, alpha, sigma, chunk_size=chunk_size, axis_name=axis_name
    )

    def expand(a):
      return interpolants.expand(a, x)

    noise = (x - expand(alpha) * clean) / expand(sigma)
    return (
      expand(schedule.dalpha(t)) * clean + expand(schedule.dsigma(t)) * noise
    )

  return velocity


def loss_gap(
  params: Params,
  key: jax.Array,
  data: jax.Array,
  t: ArrayLike,
  *,
  score_fn: ScoreFn,
  schedule: GaussianSchedule,
  num_samples: int,
  chunk_size: int | None = None,
) -> LossGap:
  """How much worse a score denoises the training set than its memoriser.

  For the true score of the law that the rows were drawn from it is the
  `Loss-Gap_t` of arXiv:2511.03202; for a network, how far it is from having
  memorised. Draws of a row and of noise are independent.

  Args:
    params: Passed to `score_fn`.
    key: One PRNG key, or `[num_samples]` keys; consumed.
    data: `[N, ...]`, the training set.
    t: One time in `(0, 1]`.
    score_fn: A `ScoreFn`.
    schedule: The process.
    num_samples: Draws; all are evaluated at once.
    chunk_size: See `empirical_score`.

  Returns:
    `LossGap`, summed over dimensions, not averaged.

  Raises:
    ValueError: If shapes or numbers do not fit.
    TypeError: If the key is not a typed PRNG key.
  """
  num_samples = checks.check_int("num_samples", num_samples, 2)
  checks.check_shape("t", t, (), "Batch with jax.lax.map.")
  checks.check_rows("data", data)
  data = jnp.asarray(data)
  dtype = _wide(data)
  t = jnp.asarray(t, dtype)
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)

  def draw(key):
    key_row, key_noise = jax.random.split(key)
    row = jax.random.randint(key_row, (), 0, data.shape[0])
    return row, jax.random.normal(key_noise, data.shape[1:], dtype)

  row, noise = jax.vmap(draw)(keys_lib.per_example(key, num_samples))
  x = alpha * data[row].astype(dtype) + sigma * noise
  other = score_fn(params, x, jnp.full(num_samples, t, dtype))
  checks.check_shape("score_fn's answer", other, x.shape)
  _, best = empirical_score(x, data, alpha, sigma, chunk_size=chunk_size)
  target = -noise / sigma

  def total(a):
    return jnp.sum(a.reshape(num_samples, -1), axis=1)

  # The difference of the losses without their cancellation.
  gap, gap_se = _mean(total((best - other) * (2 * target - other - best)))
  fisher, fisher_se = _mean(total((best - other) ** 2))
  return LossGap(
    gap,
    gap_se,
    fisher,
    fisher_se,
    jnp.mean(total((target - other) ** 2)),
    jnp.mean(total((target - best) ** 2)),
  )


def loss_gap_ceiling(
  dim: int, variance: ArrayLike, alpha: ArrayLike, sigma: ArrayLike
) -> jax.Array:
  """Expected loss gap of the true score on one row from `N(m, variance I)`.

  `D alpha^2 v / (sigma^2 (alpha^2 v + sigma^2))`: more rows have less on
  average. With the variance within components it is the scale to compare gaps
  by, near which separated components stay unless `N` is exponential in `D`.

  Args:
    dim: Dimension `D`.
    variance: `v`; it broadcasts with the others.
    alpha: Weight of the data.
    sigma: Standard deviation of the noise.
  """
  checks.check_int("dim", dim)
  signal = jnp.asarray(alpha) ** 2 * variance
  noise = jnp.asarray(sigma) ** 2
  return dim * signal / (noise * (signal + noise))


class _Posterior(NamedTuple):
  """The law of the row given `x`; points are relative to the rows' mean.

  Attributes:
    log_prob: `[B]`.
    log_sum: `[B]`, log of the sum of `exp(logits)` over all rows.
    mean: `[B, D]`, posterior mean minus `centre`.
    x: `[B, D]`, `x - alpha centre`.
    centre: `[D]`.
    alpha: `[B, 1]`.
    sigma: `[B, 1]`.
    scan: `(body, carry) -> carry` over the local chunks, with
      `body(carry, rows [C, D], logits [B, C])`.
  """

  log_prob: jax.Array
  log_sum: jax.Array
  mean: jax.Array
  x: jax.Array
  centre: jax.Array
  alpha: jax.Array
  sigma: jax.Array
  scan: Callable[..., Any]


def _posterior(x, data, alpha, sigma, mask, chunk_size, axis_name):
  checks.check_numbers("x", x)
  checks.check_numbers("data", data)
  x, data = jnp.asarray(x), jnp.asarray(data)
  if x.ndim < 1:
    raise ValueError("x must have shape [B, ...], got [].")
  checks.check_shape("data", data, (None, *x.shape[1:]), "Rows like x's.")
  num_rows = checks.check_int("number of rows of data", data.shape[0])
  dtype = jnp.promote_types(_wide(x), _wide(data))
  batch, dim = x.shape[0], int(np.prod(x.shape[1:]))
  x, data = x.reshape(batch, dim).astype(dtype), data.reshape(num_rows, dim)
  alpha = _per_row("alpha", alpha, batch, dtype)
  sigma = _per_row("sigma", sigma, batch, dtype, positive=True)
  if mask is not None:
    checks.check_shape("mask", mask, (num_rows,))
    mask = jnp.asarray(mask, bool)

  def add(total):
    return total if axis_name is None else lax.psum(total, axis_name)

  def present(rows, shown):
    """Rows in the working precision, with zeros for those that are not."""
    rows = rows.astype(dtype)
    return rows if shown is None else jnp.where(shown[:, None], rows, 0)

  shown = jnp.ones(num_rows, dtype) if mask is None else mask.astype(dtype)
  count = add(jnp.sum(shown))
  # Any centre gives the same answer; near the rows it costs fewest digits.
  centre = lax.stop_gradient(add(present(data, mask).sum(axis=0)) / count)
  x = x - alpha * centre[None]
  squares = jnp.sum(x**2, axis=1, keepdims=True)
  direct = _must_be_direct(squares, data, mask, centre, alpha, sigma)
  size = CHUNK_SIZE if chunk_size is None else chunk_size
  num_chunks = -(-num_rows // checks.check_int("chunk_size", size))
  size = -(-num_rows // num_chunks)

  def by_products(rows):
    products = jnp.einsum(
      "bd,cd->bc",
      x,
      rows,
      precision=lax.Precision.HIGHEST,
      preferred_element_type=dtype,
    )
    others = jnp.sum(rows**2, axis=1)[None]
    return squares - 2 * alpha * products + alpha**2 * others

  # Kept for a derivative, `away` would be the largest array by far.
  @jax.checkpoint
  def by_differences(rows):
    away = x[:, None] - alpha[:, :, None] * rows[None]
    return jnp.sum(away**2, axis=2)

  def scan(body, carry):
    # Without it a derivative would keep the logits of every chunk.
    @jax.checkpoint
    def step(carry, start):
      # The last chunk reaches back instead of over the end, since padding
      # would copy all rows; what an earlier chunk has had does not count.
      first = jnp.minimum(start, num_rows - size)
      rows = lax.dynamic_slice_in_dim(data, first, size)
      valid = first + jnp.arange(size) >= start
      if mask is not None:
        valid = valid & lax.dynamic_slice_in_dim(mask, first, size)
      rows = present(rows - centre[None], valid)
      distance = lax.cond(direct, by_differences, by_products, rows)
      logits = -0.5 * distance / sigma / sigma
      return body(carry, rows, jnp.where(valid[None], logits, -jnp.inf)), None

    carry = carries.anchor(carry, (x, data, alpha, sigma))
    starts = jnp.arange(0, num_rows, size, dtype=jnp.int32)
    return lax.scan(step, carry, starts)[0]

  def body(carry, rows, logits):
    peak, total, moment = carry
    new = jnp.maximum(peak, lax.stop_gradient(logits.max(axis=1)))
    shift = _finite(new)
    scale, weights = jnp.exp(peak - shift), jnp.exp(logits - shift[:, None])
    moment = scale[:, None] * moment + jnp.matmul(
      weights, rows, precision=lax.Precision.HIGHEST
    )
    return new, scale * total + weights.sum(axis=1), moment

  low, zeros = jnp.full(batch, -jnp.inf, dtype), jnp.zeros(batch, dtype)
  peak, total, moment = scan(body, (low, zeros, jnp.zeros_like(x)))
  if axis_name is not None:
    # A shard may have no row that counts: its maximum is -inf.
    own, peak = peak, lax.pmax(lax.stop_gradient(peak), axis_name)
    scale = jnp.exp(lax.stop_gradient(own) - _finite(peak))
    total, moment = add((scale * total, scale[:, None] * moment))
  log_sum = _finite(peak) + jnp.log(total)
  log_norm = jnp.log(count) + 0.5 * dim * jnp.log(2 * jnp.pi)
  log_prob = log_sum - log_norm - dim * jnp.log(sigma[:, 0])
  mean = moment / total[:, None]
  return _Posterior(log_prob, log_sum, mean, x, centre, alpha, sigma, scan)


def _must_be_direct(squares, data, mask, centre, alpha, sigma):
  """Whether products would lose too much to rounding, for any row of `x`."""
  others = jnp.sum((data.astype(centre.dtype) - centre[None]) ** 2, axis=1)
  others = jnp.max(others, where=mask, initial=0.0)
  error = jnp.finfo(centre.dtype).eps * (squares + alpha**2 * others)
  return lax.stop_gradient(jnp.any(error > _MAX_ERROR * sigma**2))


def _per_row(name, value, batch, dtype, *, positive=False):
  """A scalar or `[B]` as `[B, 1]`."""
  shape = np.shape(value)
  if shape not in ((), (batch,)):
    raise ValueError(
      f"{name} must be a scalar or have shape [{batch}], got {list(shape)}."
    )
  if positive and checks.is_concrete(value):
    if not np.all(np.asarray(value) > 0):
      raise ValueError(f"{name} must be positive, got {value}.")
  value = jnp.asarray(value, dtype).reshape(-1, 1)
  return jnp.broadcast_to(value, (batch, 1))


def _finite(peak):
  """The maximum to subtract; NaN is kept for the caller to see."""
  return jnp.where(peak == -jnp.inf, 0.0, peak)


def _mean(values):
  """Mean and standard error."""
  error = jnp.std(values, ddof=1) / values.size**0.5
  return jnp.mean(values), error


def _wide(x):
  return jnp.promote_types(jnp.result_type(x), jnp.float32)
