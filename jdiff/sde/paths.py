"""Controlled paths of a Gaussian reference, with exact path log-ratios.

A reference (`sde.references`) steps by `x_s = c x_t + sd eps` and ends, from
`x_t`, at `x_0 = a x_t + std eps'`. A policy says what it expects of that
residual, `residual_fn(x_t, t) = (E[x_0 | x_t] - a x_t) / std`, zero for the
reference, and how much of its variance is left, `spread`, one for it. With its
answers held over the step,

  x_s = c x_t + sd (v + rho eps),   v = sd a_s / std_t residual,
  rho^2 = (std_s^2 + a_s^2 sd^2 spread) / std_t^2,

which is the mean and the variance that `x_s` has given `x_t`, if they are those
of `x_0`. The kernels' ratio is exact whatever they are, and the reference ends
at its own Gaussian for any number of steps, so with the reward
`r(x) = log_prob(x) - reference.log_prob(x)`

  E[exp(log_ratio + r)] = Z

for any policy: fewer steps cost effective sample size, never bias. An
Euler-Maruyama kernel has no such identity, as its reference ends elsewhere.
`a / std residual` is the control, a gradient of `log E[exp(r(x_0)) | x_t]`.

Paths begin alike under both laws, which no control can change: the less of the
start is remembered (`Reference.memory`), the better the best control.

Differs from arXiv:2510.03824, whose steps hold the control and leave the noise
as it is (`spread` of one): at few steps most of the weights' variance is that.
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
from jdiff.sde import interpolants
from jdiff.sde.references import Reference, widen


class Bridge(NamedTuple):
  """Points of the reference between given ends, and what to regress on.

  Attributes:
    x: `[B, ...]`, `x_t`.
    residual: `[B, ...]`, `(data - a x_t) / std`: entries of order one. Its
      conditional mean given `x_t`, over the tilted law, is the best policy's.
  """

  x: jax.Array
  residual: jax.Array


def rollout(
  params: Params,
  key: jax.Array,
  *,
  residual_fn: ScoreFn,
  reference: Reference,
  num_samples: int,
  shape: Sequence[int],
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  spread: ArrayLike | None = None,
) -> Rollout:
  """Simulates the controlled process from noise to data.

  Args:
    params: Passed to `residual_fn`.
    key: One PRNG key, or `[N]` keys, one a path; consumed. Path `i` depends
      on `key` and `i` alone.
    residual_fn: A `ScoreFn`, see the module; zero gives the reference. It is
      asked at every time but the last.
    reference: The process that is controlled.
    num_samples: Paths `N`.
    shape: Shape of one sample.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times in `[0, 1]` instead.
    spread: `[K]` positive, the share of the residual's variance that is left
      at each step; one if None. `fit_spread` measures it.

  Returns:
    A `Rollout` without `log_policy`, `order` and `num_revealed`. Samples and
    `log_ratio` are differentiable in `params`, through the path (the gradient
    of an ELBO); for losses on fixed paths take `rollout_path` and
    `path_log_ratio`.

  Raises:
    ValueError: If sizes or times do not fit.
    TypeError: If the key is not a typed PRNG key.
  """
  result, _ = _simulate(
    params,
    key,
    residual_fn,
    reference,
    num_samples,
    shape,
    grids.as_grid(num_steps, times),
    spread,
    keep=False,
  )
  return result


def rollout_path(
  params: Params,
  key: jax.Array,
  *,
  residual_fn: ScoreFn,
  reference: Reference,
  num_samples: int,
  shape: Sequence[int],
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  spread: ArrayLike | None = None,
) -> tuple[Rollout, jax.Array]:
  """The same rollout, and its path `[K + 1, N, ...]`, noise first."""
  return _simulate(
    params,
    key,
    residual_fn,
    reference,
    num_samples,
    shape,
    grids.as_grid(num_steps, times),
    spread,
    keep=True,
  )


def path_log_ratio(
  params: Params,
  path: jax.Array,
  *,
  residual_fn: ScoreFn,
  reference: Reference,
  times: ArrayLike | None = None,
  spread: ArrayLike | None = None,
) -> jax.Array:
  """`log dP_ref/dP_policy` `[N]` along given paths, in nats.

  The paths are held fixed, whoever drew them, and the answer is differentiable
  in `params`, in memory that does not grow with the network's activations over
  all steps. On a rollout's own path it is `Rollout.log_ratio`.

  Args:
    params: Passed to `residual_fn`.
    path: `[K + 1, N, ...]`, noise first.
    residual_fn: A `ScoreFn`, see the module.
    reference: The process that is controlled.
    times: `[K + 1]` decreasing times of the points; uniform from 1 to 0 if
      None.
    spread: As in `rollout`.

  Raises:
    ValueError: If shapes or times do not fit.
  """
  checks.check_numbers("path", path)
  path = jnp.asarray(path)
  if path.ndim < 2 or path.shape[0] < 2:
    raise ValueError(
      "path must have shape [K + 1, N, ...] with K >= 1, got "
      f"{list(path.shape)}."
    )
  reference.check_shape(path.shape[2:])
  path = jax.lax.stop_gradient(widen(path))
  if times is None:
    times = grids.as_grid(path.shape[0] - 1)
  times = grids.as_grid(times=times)
  checks.check_shape("times", times, path.shape[:1])
  steps = _steps(reference, times, spread, path.dtype)
  size = reference.size(path.shape[2:])

  @jax.checkpoint
  def term(here, there, step):
    shift = step.gain * residual(
      residual_fn, params, here, step.t, reference=reference
    )
    noise = (there - step.c * here) / step.sd
    own = (noise - shift) / step.rho
    return _log_ratio(noise, own, step.rho, size)

  def body(total, xs):
    return total + term(*xs), None

  zeros = jnp.zeros(path.shape[1], path.dtype)
  zeros = carries.anchor(zeros, (params, path))
  total, _ = jax.lax.scan(body, zeros, (path[:-1], path[1:], steps))
  return total


def reference_path(
  key: jax.Array,
  data: jax.Array,
  *,
  reference: Reference,
  num_steps: int | None = None,
  times: ArrayLike | None = None,
) -> jax.Array:
  """Draws the reference's path given its data end, `[K + 1, N, ...]`.

  Noise comes first, as in `rollout_path`. With samples of the target for
  `data` these are paths of the best process `P*`, and the mean of
  `path_log_ratio + r` over them is at least `log Z` (EUBO): the one bound that
  sees a mode which the policy has lost.

  Args:
    key: One PRNG key, or `[N]` keys; consumed.
    data: `[N, ...]`, the points at `t = 0`.
    reference: The process.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times instead, ending at 0.
  """
  checks.check_rows("data", data)
  data = widen(jnp.asarray(data))
  reference.check_shape(data.shape[1:])
  times = grids.as_grid(num_steps, times)
  check_ends_at_data(times)
  keys = keys_lib.per_example(key, data.shape[0])
  times = times.astype(data.dtype)
  c, sd = reference.kernel(times[:-1], times[1:])
  std = reference.std(times)

  def body(x, xs):
    c, sd, std_t, std_s, index = xs
    noise = _normal(keys_lib.fold(keys, index), x.shape[1:], x.dtype, reference)
    # x_t given x_s, from their joint Gaussian.
    x = c * (std_t / std_s) ** 2 * x + sd * std_t / std_s * noise
    return x, x

  index = jnp.arange(c.size, dtype=jnp.uint32)
  xs = (c, sd, std[:-1], std[1:], index)
  start = carries.anchor(data, keys)
  _, path = jax.lax.scan(body, start, xs, reverse=True)
  return jnp.concatenate([path, data[None]])


def bridge(
  key: jax.Array,
  data: jax.Array,
  t: jax.Array,
  *,
  reference: Reference,
  noise: jax.Array | None = None,
) -> Bridge:
  """Draws `x_t` of the reference given both of its ends.

  Args:
    key: One PRNG key, or `[B]` keys; consumed.
    data: `[B, ...]`, the point at `t = 0`.
    t: `[B]` in `(0, 1]`; there is no residual at 0.
    reference: The process.
    noise: `[B, ...]`, the point at `t = 1`. None draws it afresh, independent
      of `data`, as in the reference only if that has no memory.

  Returns:
    A `Bridge`.

  Raises:
    ValueError: If shapes do not fit.
    TypeError: If the key is not a typed PRNG key.
  """
  checks.check_rows("data", data)
  data = widen(jnp.asarray(data))
  reference.check_shape(data.shape[1:])
  checks.check_numbers("t", t)
  checks.check_shape("t", t, data.shape[:1])
  keys = keys_lib.per_example(key, data.shape[0])
  t = jnp.asarray(t, data.dtype)
  one, zero = jnp.ones_like(t), jnp.zeros_like(t)

  def expand(a):
    return interpolants.expand(a, data)

  def normal(index):
    shape, dtype = data.shape[1:], data.dtype
    return _normal(keys_lib.fold(keys, index), shape, dtype, reference)

  if noise is None:
    noise = expand(reference.std(one)) * normal(1)
  noise = widen(jnp.asarray(noise))
  checks.check_shape("noise", noise, data.shape)
  # x_t given the noise end, then conditioned on the data end.
  c, sd = reference.kernel(one, t)
  gain, std = reference.kernel(t, zero)
  total = std**2 + (gain * sd) ** 2
  x = (
    expand(std**2 * c / total) * noise
    + expand(gain * sd**2 / total) * data
    + expand(sd * std / jnp.sqrt(total)) * normal(0)
  )
  return Bridge(x, (data - expand(gain) * x) / expand(std))


def residual(
  residual_fn: ScoreFn,
  params: Params,
  x: jax.Array,
  t: jax.Array,
  *,
  reference: Reference,
) -> jax.Array:
  """What a policy answers at `x` `[B, ...]` and `t` (scalar or `[B]`).

  Checked, in the precision of `x`, and without a centre of mass if the
  reference has none.
  """
  answer = residual_fn(
    params, x, jnp.broadcast_to(t, x.shape[:1]).astype(x.dtype)
  )
  checks.check_shape("residual_fn's answer", answer, x.shape)
  return reference.project(answer.astype(x.dtype))


def check_ends_at_data(times: jax.Array) -> None:
  """Raises unless a grid `[K + 1]` ends at 0, where it can be seen to."""
  if checks.is_concrete(times) and jax.device_get(times)[-1] != 0:
    raise ValueError(
      f"times must end at 0, the data, got {jax.device_get(times)[-1]}."
    )


class _Steps(NamedTuple):
  """What every step needs, `[K]` each."""

  t: jax.Array
  c: jax.Array
  sd: jax.Array
  gain: jax.Array
  rho: jax.Array


def _steps(reference, times, spread, dtype):
  times = times.astype(dtype)
  t, s, zeros = times[:-1], times[1:], jnp.zeros_like(times)
  c, sd = reference.kernel(t, s)
  a, std = reference.kernel(times, zeros)
  gain, rho = sd * a[1:] / std[:-1], jnp.ones_like(t)
  if spread is not None:
    checks.check_shape("spread", spread, t.shape, "One a step.")
    if checks.is_concrete(spread) and not (np.asarray(spread) > 0).all():
      raise ValueError(f"spread must be positive, got {np.asarray(spread)}.")
    left = std[1:] ** 2 + (a[1:] * sd) ** 2 * jnp.asarray(spread, dtype)
    rho = jnp.sqrt(left) / std[:-1]
  return _Steps(t, *(x.astype(dtype) for x in (c, sd, gain, rho)))


def _log_ratio(noise, own, rho, size):
  """`log dP_ref/dP_policy` of a step, by the noise that each would need."""
  # Not the difference of the squares, which cancels.
  return 0.5 * _inner(own - noise, own + noise) + size * jnp.log(rho)


def _simulate(
  params,
  key,
  residual_fn,
  reference,
  num_samples,
  shape,
  times,
  spread,
  *,
  keep,
):
  num_samples = checks.check_int("num_samples", num_samples)
  shape = checks.check_sizes("shape", shape, minimum=0)
  reference.check_shape(shape)
  keys = keys_lib.per_example(key, num_samples)
  steps = _steps(reference, times, spread, times.dtype)
  size = reference.size(shape)

  def body(carry, xs):
    x, log_ratio = carry
    step, index = xs
    shift = step.gain * residual(
      residual_fn, params, x, step.t, reference=reference
    )
    own = _normal(keys_lib.fold(keys, index), shape, times.dtype, reference)
    noise = shift + step.rho * own
    log_ratio = log_ratio + _log_ratio(noise, own, step.rho, size)
    x = step.c * x + step.sd * noise
    return (x, log_ratio), (x if keep else None)

  num_steps = times.size - 1
  index = jnp.arange(num_steps + 1, dtype=jnp.uint32)
  start = _normal(keys_lib.fold(keys, index[-1]), shape, times.dtype, reference)
  start = reference.std(times[0]) * start
  carry = (start, jnp.zeros(num_samples, start.dtype))
  carry = carries.anchor(carry, (params, keys))
  (samples, log_ratio), points = jax.lax.scan(body, carry, (steps, index[:-1]))
  result = Rollout(
    samples=samples,
    log_policy=None,
    log_ratio=log_ratio,
    order=None,
    num_revealed=None,
    nfe=jnp.full(num_samples, num_steps, jnp.int32),
  )
  return result, jnp.concatenate([start[None], points]) if keep else None


def _normal(keys, shape, dtype, reference):
  draws = jax.vmap(lambda k: jax.random.normal(k, shape, dtype))(keys)
  return reference.project(draws)


def _inner(a, b):
  return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))
