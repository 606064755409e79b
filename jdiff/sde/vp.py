"""Controlled paths of a stationary OU process, with exact path log-ratios.

The reference is the Ornstein-Uhlenbeck process whose law is `N(0, scale^2 I)`
at all times, run from `t = 1` to `t = 0`; its rate is that of a variance-
preserving schedule, so over a step from `t` to `s < t`

  x_s = c x_t + sd eps,   c = alpha(t) / alpha(s),   sd = scale sqrt(1 - c^2)

exactly. The policy shifts the noise: `x_s = c x_t + sd (v + eps)`, with
`v = sd g(x_t, t)` for a score-like control `g`. The reference so ends at
`N(0, scale^2 I)` for any number of steps, and with the reward
`r(x) = log_prob(x) - reference_log_prob(x)`

  E[exp(log_ratio + r)] = Z

for any control: fewer steps cost effective sample size, never bias. An
Euler-Maruyama kernel has no such identity, as its reference ends elsewhere.

Paths begin at `N(0, scale^2 I)` under both laws, which is stationary, so it
does not matter that `alpha(1) > 0`. It matters to the best control, which
cannot move the start: the less of it is remembered (`alpha(1)`), the better.

The process is that of PDNS (arXiv:2510.03824) in house time, data at `t = 0`:
its `alpha_t` is the schedule's rate, small near data and large near noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jdiff.core import carries, checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Params, Rollout, ScoreFn
from jdiff.schedules import grids
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants


class Bridge(NamedTuple):
  """Points of the reference between given ends, and what to regress on.

  Attributes:
    x: `[B, ...]`, `x_t`.
    score: `[B, ...]`, gradient in `x_t` of the reference's
      `log p(data | x_t)`. Its conditional mean given `x_t`, over the tilted
      law, is the best control.
    std: `[B]`, `scale sigma(t)`: `std * score` has entries of order one.
  """

  x: jax.Array
  score: jax.Array
  std: jax.Array


def rollout(
  params: Params,
  key: jax.Array,
  *,
  control_fn: ScoreFn,
  schedule: GaussianSchedule,
  num_samples: int,
  shape: Sequence[int],
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  scale: ArrayLike = 1.0,
) -> Rollout:
  """Simulates the controlled process from noise to data.

  Args:
    params: Passed to `control_fn`.
    key: One PRNG key, or `[N]` keys, one a path; consumed. Path `i` depends
      on `key` and `i` alone.
    control_fn: The control `g`, a `ScoreFn`; zero gives the reference. It is
      asked at every time but the last.
    schedule: Variance preserving; only `alpha` is used.
    num_samples: Paths `N`.
    shape: Shape of one sample.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times in `[0, 1]` instead.
    scale: Standard deviation of the reference.

  Returns:
    A `Rollout` without `log_policy`, `order` and `num_revealed`. Samples and
    `log_ratio` are differentiable in `params`, through the path (the gradient
    of an ELBO); for losses on fixed paths take `rollout_path` and
    `path_log_ratio`.

  Raises:
    ValueError: If sizes or times do not fit, or the schedule is not variance
      preserving.
    TypeError: If the key is not a typed PRNG key.
  """
  result, _ = _simulate(
    params,
    key,
    control_fn,
    schedule,
    num_samples,
    shape,
    grids.as_grid(num_steps, times),
    scale,
    keep=False,
  )
  return result


def rollout_path(
  params: Params,
  key: jax.Array,
  *,
  control_fn: ScoreFn,
  schedule: GaussianSchedule,
  num_samples: int,
  shape: Sequence[int],
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  scale: ArrayLike = 1.0,
) -> tuple[Rollout, jax.Array]:
  """The same rollout, and its path `[K + 1, N, ...]`, noise first."""
  return _simulate(
    params,
    key,
    control_fn,
    schedule,
    num_samples,
    shape,
    grids.as_grid(num_steps, times),
    scale,
    keep=True,
  )


def path_log_ratio(
  params: Params,
  path: jax.Array,
  *,
  control_fn: ScoreFn,
  schedule: GaussianSchedule,
  times: ArrayLike | None = None,
  scale: ArrayLike = 1.0,
) -> jax.Array:
  """`log dP_ref/dP_policy` `[N]` along given paths, in nats.

  The paths are held fixed, whoever drew them, and the answer is differentiable
  in `params`, in memory that does not grow with the network's activations over
  all steps. On a rollout's own path it is `Rollout.log_ratio`.

  Args:
    params: Passed to `control_fn`.
    path: `[K + 1, N, ...]`, noise first.
    control_fn: The control `g`, a `ScoreFn`.
    schedule: Variance preserving; only `alpha` is used.
    times: `[K + 1]` decreasing times of the points; uniform from 1 to 0 if
      None.
    scale: Standard deviation of the reference.

  Raises:
    ValueError: If shapes or times do not fit, or the schedule is not variance
      preserving.
  """
  path = jnp.asarray(path)
  if path.ndim < 2 or path.shape[0] < 2:
    raise ValueError(
      "path must have shape [K + 1, N, ...] with K >= 1, got "
      f"{list(path.shape)}."
    )
  path = jax.lax.stop_gradient(_widen(path))
  if times is None:
    times = grids.as_grid(path.shape[0] - 1)
  times = grids.as_grid(times=times)
  checks.check_shape("times", times, path.shape[:1])
  kernels = _kernels(schedule, times, scale, path.dtype)

  @jax.checkpoint
  def term(here, there, t, c, sd):
    shift = sd * _control(control_fn, params, here, t)
    noise = (there - c * here) / sd
    return _inner(shift, 0.5 * shift - noise)

  def body(total, xs):
    return total + term(*xs), None

  zeros = jnp.zeros(path.shape[1], path.dtype)
  zeros = carries.anchor(zeros, (params, path))
  total, _ = jax.lax.scan(body, zeros, (path[:-1], path[1:], *kernels))
  return total


def reference_log_prob(x: jax.Array, *, scale: ArrayLike = 1.0) -> jax.Array:
  """Normalised log-density of one sample `x` under `N(0, scale^2 I)`."""
  x = _widen(jnp.asarray(x))
  scale = checks.check_finite("scale", scale, positive=True)
  log_norm = jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi)
  return -0.5 * jnp.sum((x / scale) ** 2) - x.size * log_norm


def bridge(
  key: jax.Array,
  noise: jax.Array,
  data: jax.Array,
  t: jax.Array,
  *,
  schedule: GaussianSchedule,
  scale: ArrayLike = 1.0,
) -> Bridge:
  """Draws `x_t` of the reference given both of its ends.

  Args:
    key: One PRNG key, or `[B]` keys; consumed.
    noise: `[B, ...]`, the point at `t = 1`. Its law is `N(0, scale^2 I)`, not
      unit noise. Drawn afresh, it is independent of `data`, as in the
      reference only if `alpha(1) = 0`.
    data: `[B, ...]`, the point at `t = 0`.
    t: `[B]` in `(0, 1]`; `score` is undefined at 0 and grows like
      `1 / sigma(t)` towards it.
    schedule: Variance preserving.
    scale: Standard deviation of the reference.

  Returns:
    A `Bridge`.

  Raises:
    ValueError: If shapes do not fit, or the schedule is not variance
      preserving.
    TypeError: If the key is not a typed PRNG key.
  """
  data = _widen(jnp.asarray(data))
  noise = _widen(jnp.asarray(noise))
  checks.check_shape("noise", noise, data.shape)
  checks.check_shape("t", t, data.shape[:1])
  scale = checks.check_finite("scale", scale, positive=True)
  _check_variance_preserving(schedule)
  keys = keys_lib.per_example(key, data.shape[0])
  t = jnp.asarray(t, data.dtype)
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  alpha_end = schedule.alpha(jnp.ones_like(t))
  # Correlation of x_t with the noise end; where alpha is 0 they are the same.
  gone = alpha == 0
  start = jnp.where(gone, 1.0, alpha_end / jnp.where(gone, 1.0, alpha))
  total = (1 - alpha_end) * (1 + alpha_end)
  unknown = jnp.maximum((1 - start) * (1 + start), 0.0)
  std = jnp.asarray(scale * sigma)

  def expand(a):
    return interpolants.expand(a, data)

  draws = jax.vmap(lambda k: jax.random.normal(k, data.shape[1:], data.dtype))(
    keys
  )
  x = (
    expand(start * sigma**2 / total) * noise
    + expand(alpha * unknown / total) * data
    + expand(std * jnp.sqrt(unknown / total)) * draws
  )
  score = expand(alpha / std**2) * (data - expand(alpha) * x)
  return Bridge(x, score, std)


def _simulate(
  params, key, control_fn, schedule, num_samples, shape, times, scale, *, keep
):
  num_samples = checks.check_int("num_samples", num_samples)
  shape = tuple(
    checks.check_int("every size in shape", size, minimum=0) for size in shape
  )
  keys = keys_lib.per_example(key, num_samples)
  kernels = _kernels(schedule, times, scale, times.dtype)

  def normal(keys):
    return jax.vmap(lambda k: jax.random.normal(k, shape, times.dtype))(keys)

  def body(carry, xs):
    x, log_ratio = carry
    t, c, sd, index = xs
    shift = sd * _control(control_fn, params, x, t)
    draws = normal(keys_lib.fold(keys, index))
    log_ratio = log_ratio - _inner(shift, 0.5 * shift + draws)
    x = c * x + sd * (shift + draws)
    return (x, log_ratio), (x if keep else None)

  num_steps = times.size - 1
  index = jnp.arange(num_steps + 1, dtype=jnp.uint32)
  start = scale * normal(keys_lib.fold(keys, index[-1]))
  carry = (start, jnp.zeros(num_samples, start.dtype))
  carry = carries.anchor(carry, (params, keys))
  (samples, log_ratio), points = jax.lax.scan(
    body, carry, (*kernels, index[:-1])
  )
  result = Rollout(
    samples=samples,
    log_policy=None,
    log_ratio=log_ratio,
    order=None,
    num_revealed=None,
    nfe=jnp.full(num_samples, num_steps, jnp.int32),
  )
  return result, jnp.concatenate([start[None], points]) if keep else None


def _kernels(schedule, times, scale, dtype):
  """`(t, c, sd)` of every step, `[K]` each."""
  scale = checks.check_finite("scale", scale, positive=True)
  _check_variance_preserving(schedule)
  alpha = schedule.alpha(times.astype(dtype))
  c = alpha[:-1] / alpha[1:]
  # From the rounded c, so that c^2 scale^2 + sd^2 = scale^2 all the same.
  sd = scale * jnp.sqrt((1 - c) * (1 + c))
  return times[:-1].astype(dtype), c, sd.astype(dtype)


def _control(control_fn, params, x, t):
  control = control_fn(params, x, jnp.full(x.shape[:1], t, x.dtype))
  checks.check_shape("control_fn's answer", control, x.shape)
  return control.astype(x.dtype)


def _check_variance_preserving(schedule):
  with jax.ensure_compile_time_eval():
    t = jnp.linspace(0.0, 1.0, 5)
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
  if not checks.is_concrete(total):
    return
  # Rounding is below 1e-6; the linear schedule is off by a half.
  values = jax.device_get(total)
  if np.any(np.abs(values - 1) > 1e-3):
    raise ValueError(
      "schedule must be variance preserving, got alpha^2 + sigma^2 = "
      f"{values.tolist()} at t = 0, 1/4, ..., 1."
    )


def _inner(a, b):
  return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


def _widen(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
