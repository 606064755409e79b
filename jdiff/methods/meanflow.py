"""MeanFlow (arXiv:2505.13447): the average velocity by its own derivative.

The average velocity of `[s, t]`, `u = (x_t - x_s) / (t - s)`, obeys
`u = v - (t - s) du/dt` along the flow `dx/dt = v`. The right-hand side, made
from the network's own derivative, is the target. The paper's time is house
time already, and its `r` is `s`.

Differs: whether `s = t` is drawn for each example; the weight is that of the
paper, on the squared norm summed over dimensions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import FlowMapFn, Pairs, Params
from jdiff.methods import flow_matching as fm
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants


class Guidance(NamedTuple):
  """Classifier-free guidance that the network learns to include.

  The velocity `v` becomes `omega v + kappa u(x, t, t | label) + (1 - omega -
  kappa) u(x, t, t | null)`: an effective scale of `omega / (1 - kappa)`.

  Attributes:
    omega: Weight of the pair's velocity.
    kappa: Weight of the network's own labelled velocity; at 0 it is not asked.
    min_time: Earliest `t` that is guided.
    max_time: Latest.
  """

  omega: float
  kappa: float = 0.0
  min_time: float = 0.0
  max_time: float = 1.0


def meanflow(
  params: Params,
  key: jax.Array,
  pairs: Pairs,
  *,
  flow_map_fn: FlowMapFn,
  ratio: float = 0.25,
  draw_time: fm.DrawTime | None = None,
  power: float = 1.0,
  constant: float = 1e-3,
  guidance: Guidance | None = None,
  schedule: GaussianSchedule | None = None,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Adaptively weighted squared error of the average velocity.

  Each example draws two times, the later being `t`, and keeps them apart with
  probability `ratio`; otherwise `s = t` and the target is the velocity. The
  network is run once, with a forward derivative, plus once (twice if `kappa`
  is not 0) without gradient for guidance. `flow_map_fn` must support `jax.jvp`
  in `x` and `t`.

  With `power = 0` the minimiser over each `(x_t, t, s)` is the conditional mean
  of the target. A positive power weighs down what is far from its target, and
  the minimiser is then a more robust centre, the same where `x_t` determines
  the pair.

  Args:
    params: Passed to `flow_map_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    pairs: `Pairs` of `B` examples.
    flow_map_fn: A `FlowMapFn`.
    ratio: Probability that `s` differs from `t`, in `[0, 1]`.
    draw_time: Law of both times; `logit_normal(-0.4, 1)` by default.
    power: `p` of the weight `1 / (e + constant)^p`, where `e` is the example's
      squared error summed over dimensions; 0 for none.
    constant: Positive.
    guidance: Needs labels and `null_label`. Examples whose label is the null
      one (dropped, say) are not guided.
    schedule: The path; `schedules.gaussian.linear()` by default.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(per_example [B], info)`: weighted errors; `info["error"]` is the batch's
    mean squared error a dimension, without weights.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  keys, pairs = fm.prepare(key, pairs, null_label, label_dropout)
  checks.check_range("ratio", ratio, 0, 1)
  checks.check_finite("power", power)
  checks.check_finite("constant", constant, positive=True)
  draw_time = fm.logit_normal(-0.4, 1.0) if draw_time is None else draw_time
  t, s = _draw_times(keys, draw_time, ratio, pairs)
  point = interpolants.interpolate(pairs.noise, pairs.data, t, schedule)
  velocity = point.velocity
  if guidance is not None:
    velocity = _guided(
      params, point, t, pairs, flow_map_fn, guidance, null_label
    )
  answer, target = average_and_target(
    params,
    point.x,
    t,
    s,
    velocity,
    flow_map_fn=flow_map_fn,
    **fm.label_of(pairs),
  )
  error = fm.squared_error("flow_map_fn", answer, target)
  total = jnp.sum(error.reshape(error.shape[0], -1), axis=1)
  weight = lax.stop_gradient(total + constant) ** -power
  return weight * total, {"error": jnp.mean(error)}


def average_and_target(
  params: Params,
  x: jax.Array,
  t: jax.Array,
  s: jax.Array,
  velocity: jax.Array,
  *,
  flow_map_fn: FlowMapFn,
  **label: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """`u` and `v - (t - s) du/dt`, from one call under `jax.jvp`.

  Args:
    params: Passed to `flow_map_fn`.
    x: `[B, ...]`, the points at `t`.
    t: `[B]`.
    s: `[B]`, at most `t`.
    velocity: `[B, ...]`, `v`, along which the derivative is taken.
    flow_map_fn: A `FlowMapFn`.
    **label: `label`, `[B]`, or nothing.

  Returns:
    `(u, target)`, `[B, ...]`; no gradient flows through the target.

  Raises:
    ValueError: If shapes do not fit.
  """
  checks.check_rows("x", x)
  for name, array, shape in (
    ("t", t, x.shape[:1]),
    ("s", s, x.shape[:1]),
    ("velocity", velocity, x.shape),
  ):
    checks.check_numbers(name, array)
    checks.check_shape(name, array, shape)

  def average(x, t):
    return flow_map_fn(params, x, t, s, **label)

  # Made from t, so that under shard_map it varies over devices as t does.
  ones = 1 + 0 * t
  velocity = lax.stop_gradient(velocity)
  answer, slope = jax.jvp(average, (x, t), (velocity, ones))
  target = velocity - interpolants.expand(t - s, x) * slope
  return answer, lax.stop_gradient(target)


def _draw_times(keys, draw_time, ratio, pairs):
  first, second = (
    fm.times(keys_lib.fold(keys, i), draw_time, pairs) for i in (2, 3)
  )
  t, s = jnp.maximum(first, second), jnp.minimum(first, second)
  apart = jax.vmap(lambda k: jax.random.bernoulli(k, ratio))(
    keys_lib.fold(keys, 4)
  )
  return t, jnp.where(apart, s, t)


def _guided(params, point, t, pairs, flow_map_fn, guidance, null_label):
  """The velocity that guidance makes of the pair's."""
  if pairs.label is None or null_label is None:
    missing = "pairs.label" if pairs.label is None else "null_label"
    raise ValueError(f"guidance needs {missing}, got None.")
  for name, value in guidance._asdict().items():
    checks.check_finite(f"guidance.{name}", value)
  omega, kappa, min_time, max_time = guidance
  params = lax.stop_gradient(params)

  def at(label):
    return flow_map_fn(params, point.x, t, t, label=label)

  mixed = omega * point.velocity
  mixed += (1 - omega - kappa) * at(jnp.full_like(pairs.label, null_label))
  if kappa:
    mixed += kappa * at(pairs.label)
  guided = (pairs.label != null_label) & (t >= min_time) & (t <= max_time)
  guided = interpolants.expand(guided, point.x)
  return jnp.where(guided, mixed, point.velocity)
