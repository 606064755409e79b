"""Shortcut models (arXiv:2410.12557): one network for every step size.

Most examples train the velocity; the rest ask that one step of size `d` equal
two of size `d / 2`, for `d` down from 1 by halves. The paper's time runs from
noise to data; here steps go from `t` to `s = t - d`, and its `s(x, t, d)` is
`u(x, t, s)`.

The slot of the smallest step: with `num_steps = K` the paper's network is told
the same `d` for the velocity and for a step of `1 / K`. Here that slot is
`s = t`. So sample `K` steps with `sde.sample_ode`, at `s = t`, and fewer, a
power of two, with `sde.sample_flow_map`.

Differs: pure noise at `t = 1`, where the code keeps `1e-5` of it everywhere;
levels and times of each example are drawn from its own key. Left out: guidance
in the smallest step's targets.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import FlowMapFn, Pairs, Params
from jdiff.methods import flow_matching as fm
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants


def shortcut(
  params: Params,
  key: jax.Array,
  pairs: Pairs,
  *,
  flow_map_fn: FlowMapFn,
  ema_params: Params | None = None,
  num_steps: int = 128,
  bootstrap_every: int = 8,
  clip: float | None = None,
  schedule: GaussianSchedule | None = None,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Squared errors of velocities, and of steps against two half steps.

  Every `bootstrap_every`-th example of the batch is a bootstrap one; give it
  examples in random order. The network is called once on the whole batch, and
  twice without gradient on the bootstrap examples.

  Args:
    params: Passed to `flow_map_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    pairs: `Pairs` of `B` examples.
    flow_map_fn: A `FlowMapFn`.
    ema_params: What makes the targets; by default `params`. No gradient flows
      through them.
    num_steps: `K`, a power of two >= 2. Times are multiples of `1 / K`; the
      steps learnt are 1, 1/2, ..., 2/K.
    bootstrap_every: An integer >= 2 that divides `B`.
    clip: Bounds the coordinates of bootstrap targets and of points half way
      (the paper's code: 4, for latents); None does not.
    schedule: The path; `schedules.gaussian.linear()` by default.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(per_example [B], info)`: squared errors, averaged over dimensions; in
    `info` the means of the two parts, `flow_loss` and `bootstrap_loss`.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  keys, pairs = fm.prepare(key, pairs, null_label, label_dropout)
  every = fm.check_every("bootstrap_every", bootstrap_every, keys.shape[0])
  _num_levels(num_steps)
  dtype = pairs.noise.dtype

  def flow_time(key):
    return (1 + jnp.floor(num_steps * fm.uniform(key))) / num_steps

  t = fm.times(keys, flow_time, pairs)
  late, size = _draw_steps(fm.take_every(keys, every), num_steps, dtype)
  s = fm.put_every(t, late - size, every)
  t = fm.put_every(t, late, every)
  point = interpolants.interpolate(pairs.noise, pairs.data, t, schedule)
  label = fm.label_of(pairs)
  target = two_half_steps(
    params if ema_params is None else ema_params,
    fm.take_every(point.x, every),
    late,
    size,
    flow_map_fn=flow_map_fn,
    num_steps=num_steps,
    clip=clip,
    **{name: fm.take_every(x, every) for name, x in label.items()},
  )
  target = fm.put_every(point.velocity, target, every)
  answer = flow_map_fn(params, point.x, t, s, **label)
  error = fm.squared_error("flow_map_fn", answer, target)
  per_example = fm.mean_over_dims(error)
  flow, bootstrap = fm.means_by_part(per_example, every)
  return per_example, {"flow_loss": flow, "bootstrap_loss": bootstrap}


def two_half_steps(
  params: Params,
  x: jax.Array,
  t: jax.Array,
  step_size: jax.Array,
  *,
  flow_map_fn: FlowMapFn,
  num_steps: int,
  clip: float | None = None,
  **label: jax.Array,
) -> jax.Array:
  """The average velocity of two steps of half the size, without gradient.

  Args:
    params: Passed to `flow_map_fn`.
    x: `[B, ...]`, the points at `t`.
    t: `[B]`.
    step_size: `[B]`, the whole step `d <= t`; half steps of `1 / num_steps`
      ask the network at `s = t`.
    flow_map_fn: A `FlowMapFn`.
    num_steps: `K`, as in `shortcut`.
    clip: Bounds the coordinates of the point half way and of the answer.
    **label: `label`, `[B]`, or nothing.

  Raises:
    ValueError: If shapes or options do not fit.
  """
  _num_levels(num_steps)
  if clip is not None:
    checks.check_finite("clip", clip, positive=True)
  for name, array in (("t", t), ("step_size", step_size)):
    checks.check_numbers(name, array)
    checks.check_shape(name, array, x.shape[:1])

  def clipped(x):
    return x if clip is None else jnp.clip(x, -clip, clip)

  half = step_size / 2
  told = jnp.where(half * num_steps <= 1, 0, half)

  def average(x, t):
    answer = flow_map_fn(params, x, t, t - told, **label)
    checks.check_shape("flow_map_fn's answer", answer, x.shape)
    return answer

  first = average(x, t)
  middle = clipped(x - interpolants.expand(half, x) * first)
  second = average(middle, t - half)
  return lax.stop_gradient(clipped((first + second) / 2))


def _draw_steps(keys, num_steps, dtype):
  """Times and sizes of steps: size `2^-k`, `k` uniform, `t` on its grid."""

  def draw(key):
    # Below 1 by 2^-23 at least, so that no product is rounded up to its end.
    level, place = jax.random.uniform(key, (2,))
    level = jnp.floor(_num_levels(num_steps) * level).astype(jnp.int32)
    # Not exp2, which need not be exact at integers. No grid point is off by
    # rounding: all are multiples of powers of two.
    count = jnp.left_shift(1, level).astype(dtype)
    return (1 + jnp.floor(count * place)) / count, 1 / count

  return jax.vmap(draw)(keys_lib.fold(keys, 2))


def _num_levels(num_steps):
  num_steps = checks.check_int("num_steps", num_steps, minimum=2)
  if num_steps & (num_steps - 1):
    raise ValueError(f"num_steps must be a power of two, got {num_steps}.")
  return num_steps.bit_length() - 1
