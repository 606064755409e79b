"""Few-step baselines: consistency training and live reflow.

Consistency training (arXiv:2303.01469) in the flow-map form of the Shortcut
paper's comparison (arXiv:2410.12557): the prediction of the data from `x_t`,
`x_t - t u(x_t, t, 0)`, must agree with that from a slightly earlier point of
the same path. Live reflow is rectified flow's second stage (arXiv:2209.03003)
done while training, on pairs that the current model makes.

Differs: uniform grid and squared error, no growing number of steps. Left out:
distillation from a trained velocity, pseudo-Huber losses.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jdiff.core import checks
from jdiff.core.types import FlowMapFn, Pairs, Params, VelocityFn
from jdiff.methods import flow_matching as fm
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants, samplers


def consistency_training(
  params: Params,
  key: jax.Array,
  pairs: Pairs,
  *,
  flow_map_fn: FlowMapFn,
  ema_params: Params | None = None,
  num_steps: int = 128,
  schedule: GaussianSchedule | None = None,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Squared error between data predictions at adjacent times of one path.

  Counted in velocities: `u(x_t, t, 0)` is regressed on `(x_t - f) / t`, where
  `f` is the prediction at the less noisy time `t - 1 / num_steps`, or the data
  themselves where that time is 0. The network is called twice, once without
  gradient.

  Args:
    params: Passed to `flow_map_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    pairs: `Pairs` of `B` examples.
    flow_map_fn: A `FlowMapFn`; asked at `s = 0` alone.
    ema_params: What makes the targets; by default `params`. No gradient flows
      through them.
    num_steps: Intervals of the grid, whose right ends `t` are drawn from.
    schedule: The path; `schedules.gaussian.linear()` by default.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(per_example [B], info)`: squared errors, averaged over dimensions;
    `info["data_error"]` is the batch's mean squared difference of the two data
    predictions, a dimension.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  keys, pairs = fm.prepare(key, pairs, null_label, label_dropout)
  num_steps = checks.check_int("num_steps", num_steps)
  label = fm.label_of(pairs)

  def draw_index(key):
    return jnp.floor(num_steps * fm.uniform(key))

  index = fm.times(keys, draw_index, pairs)
  t, earlier = (index + 1) / num_steps, index / num_steps
  x = interpolants.interpolate(pairs.noise, pairs.data, t, schedule).x
  y = interpolants.interpolate(pairs.noise, pairs.data, earlier, schedule).x
  zero = jnp.zeros_like(t)
  teacher = params if ema_params is None else ema_params
  answer = flow_map_fn(teacher, y, earlier, zero, **label)
  checks.check_shape("flow_map_fn's answer", answer, y.shape)
  wide, before = interpolants.expand(t, x), interpolants.expand(earlier, x)
  # The boundary condition holds even where the network is no number at t = 0.
  denoised = jnp.where(before > 0, y - before * answer, pairs.data)
  target = lax.stop_gradient((x - denoised) / wide)
  answer = flow_map_fn(params, x, t, zero, **label)
  error = fm.squared_error("flow_map_fn", answer, target)
  info = {"data_error": jnp.mean(wide**2 * error)}
  return fm.mean_over_dims(error), info


def live_reflow(
  params: Params,
  key: jax.Array,
  pairs: Pairs,
  *,
  velocity_fn: VelocityFn,
  reflow_every: int = 8,
  num_steps: int = 8,
  schedule: GaussianSchedule | None = None,
  draw_time: fm.DrawTime = fm.uniform,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Flow matching with part of the data replaced by the model's own.

  Every `reflow_every`-th example of the batch keeps its noise (and label) and
  gets the data that `num_steps` Euler steps make of it, without gradient; give
  it examples in random order.

  Args:
    params: Passed to `velocity_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    pairs: `Pairs` of `B` examples.
    velocity_fn: A `VelocityFn`.
    reflow_every: An integer >= 2 that divides `B`.
    num_steps: Euler steps from noise to data.
    schedule: The path; `schedules.gaussian.linear()` by default.
    draw_time: Law of `t`.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(per_example [B], info)`: squared errors, averaged over dimensions; in
    `info` the means of the two parts, `flow_loss` and `reflow_loss`.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  keys, pairs = fm.prepare(key, pairs, null_label, label_dropout)
  every = fm.check_every("reflow_every", reflow_every, keys.shape[0])
  part = jax.tree.map(lambda x: fm.take_every(x, every), pairs)
  made = samplers.sample_ode(
    lax.stop_gradient(params),
    part.noise,
    velocity_fn=velocity_fn,
    num_steps=num_steps,
    label=part.label,
  ).samples
  data = fm.put_every(pairs.data, lax.stop_gradient(made), every)
  per_example, _ = fm.flow_matching(
    params,
    keys,
    pairs._replace(data=data),
    velocity_fn=velocity_fn,
    schedule=schedule,
    draw_time=draw_time,
  )
  flow, reflow = fm.means_by_part(per_example, every)
  return per_example, {"flow_loss": flow, "reflow_loss": reflow}
