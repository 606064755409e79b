"""Samplers of Gaussian processes: ODE, reverse SDE, few-step flow maps.

All start from noise at the first time of a decreasing grid and end at data.
Only velocities, scores and average velocities are asked for, at times of the
grid; `sde.interpolants` turns other predictions into them.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jdiff.core import carries, checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import FlowMapFn, Params, VelocityFn
from jdiff.schedules import grids
from jdiff.schedules.gaussian import GaussianSchedule

# Below this share of data, alpha' / alpha is taken for infinite: it is what
# float32 leaves of cos(pi / 2), with room to spare.
_ALPHA_TINY = 1e-6


class Samples(NamedTuple):
  """What a sampler made.

  Attributes:
    samples: `[B, ...]`, the last point.
    nfe: `[B]` int32, calls of the field for each sample.
    path: `[K + 1, B, ...]`, all points, noise first; or None.
  """

  samples: jax.Array
  nfe: jax.Array
  path: jax.Array | None


class Straightness(NamedTuple):
  """How far paths are from straight lines at constant speed, `[B]` each.

  Attributes:
    straightness: Integral over the path's times of the squared distance of its
      velocity from the chord's, 0 for a straight line at constant speed.
    curvature: Length over chord, at least 1, with 1 for any straight line. 1
      for a path that stands still, infinite for a closed one.
  """

  straightness: jax.Array
  curvature: jax.Array


def sample_ode(
  params: Params,
  noise: jax.Array,
  *,
  velocity_fn: VelocityFn,
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  method: str = "euler",
  last_euler: bool = False,
  label: jax.Array | None = None,
  return_path: bool = False,
) -> Samples:
  """Integrates `dx / dt = v(x, t)` from noise to data on a time grid.

  Euler asks for the field at every time but the last. Heun asks at the last
  too, so the field must be defined there: where it is not (a velocity made
  from a denoiser or a score, at zero noise), pass `last_euler` or a grid that
  ends above.

  Args:
    params: Passed to `velocity_fn`.
    noise: `[B, ...]` float, the point at the first time. Integration is in
      its dtype, float32 at least.
    velocity_fn: A `VelocityFn`.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times instead; the field's own units, such as
      `schedules.grids.edm` for a field in terms of the noise level.
    method: `"euler"`, order 1 and one call a step, or `"heun"`, order 2 and
      two calls.
    last_euler: Makes the last step Euler's, as EDM does.
    label: `[B]` integer labels, passed on, or None.
    return_path: Whether to keep all points.

  Returns:
    `Samples`; differentiable in `params` and `noise`.

  Raises:
    ValueError: If shapes, times or the method do not fit.
    TypeError: If `noise` or `label` has another kind of dtype.
  """
  if method not in ("euler", "heun"):
    raise ValueError(f"method must be 'euler' or 'heun', got {method!r}.")
  x = _start(noise)
  times = grids.as_grid(num_steps, times).astype(x.dtype)
  velocity = _bind("velocity_fn", velocity_fn, params, x, label)

  def euler(x, t, s):
    return x - (t - s) * velocity(x, t)

  def heun(x, t, s):
    here = velocity(x, t)
    there = velocity(x - (t - s) * here, s)
    return x - 0.5 * (t - s) * (here + there)

  inputs = (params, label)
  if method == "euler":
    return _run(euler, x, times, inputs, return_path, 1)
  if not last_euler:
    return _run(heun, x, times, inputs, return_path, 2)
  last = _run(euler, x, times[-2:], inputs, return_path, 1)
  if times.size == 2:
    return last
  first = _run(heun, x, times[:-1], inputs, return_path, 2)
  last = _run(euler, first.samples, times[-2:], inputs, return_path, 1)
  path = None
  if first.path is not None and last.path is not None:
    path = jnp.concatenate([first.path, last.path[1:]])
  return Samples(last.samples, first.nfe + last.nfe, path)


def sample_sde(
  params: Params,
  key: jax.Array,
  noise: jax.Array,
  *,
  score_fn: Callable[..., jax.Array],
  schedule: GaussianSchedule,
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  label: jax.Array | None = None,
  return_path: bool = False,
) -> Samples:
  """Simulates the reverse-time SDE, `dx = (f x - g^2 score) dt + g dW`.

  Euler-Maruyama, weak order 1. The score is asked for at every time but the
  last, so it may be undefined at zero noise. `f` is infinite where `alpha`
  is zero, at `t = 1` of the linear and cosine schedules: give those `times`
  that start below 1, with a first step well below `1 - t`.

  Args:
    params: Passed to `score_fn`.
    key: One PRNG key, or `[B]` keys, one a sample; consumed. The noise of
      sample `i` depends on `key` and `i` alone.
    noise: `[B, ...]` float, the point at the first time.
    score_fn: A `ScoreFn`, of the law of `x_t`; given labels, it must take
      `label=`.
    schedule: The process that the score belongs to.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times instead.
    label: `[B]` integer labels, passed on, or None.
    return_path: Whether to keep all points.

  Returns:
    `Samples`; differentiable in `params` and `noise`.

  Raises:
    ValueError: If shapes or times do not fit, or `alpha` is zero at the first.
    TypeError: If the key is not typed, or a dtype is of another kind.
  """
  x = _start(noise)
  times = grids.as_grid(num_steps, times).astype(x.dtype)
  _check_alpha(schedule, times)
  keys = keys_lib.per_example(key, x.shape[0])
  score = _bind("score_fn", score_fn, params, x, label)

  def step(x, t, s, index):
    variance = schedule.diffusion_squared(t)
    drift = schedule.drift(t) * x - variance * score(x, t)
    draws = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(
      keys_lib.fold(keys, index)
    )
    return x - (t - s) * drift + jnp.sqrt(variance * (t - s)) * draws

  index = jnp.arange(times.size - 1, dtype=jnp.uint32)
  return _run(step, x, times, (params, label, keys), return_path, 1, index)


def sample_flow_map(
  params: Params,
  noise: jax.Array,
  *,
  flow_map_fn: FlowMapFn,
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  label: jax.Array | None = None,
  return_path: bool = False,
) -> Samples:
  """Jumps along an average velocity, `x_s = x_t - (t - s) u(x_t, t, s)`.

  The sampler of MeanFlow and Shortcut models; exact for any grid, one step
  included, if `u` is the average velocity of an ODE.

  Args:
    params: Passed to `flow_map_fn`.
    noise: `[B, ...]` float, the point at the first time.
    flow_map_fn: A `FlowMapFn`.
    num_steps: Steps `K` of the uniform grid from 1 to 0.
    times: `[K + 1]` decreasing times instead.
    label: `[B]` integer labels, passed on, or None.
    return_path: Whether to keep all points.

  Returns:
    `Samples`; differentiable in `params` and `noise`.

  Raises:
    ValueError: If shapes or times do not fit.
    TypeError: If `noise` or `label` has another kind of dtype.
  """
  x = _start(noise)
  times = grids.as_grid(num_steps, times).astype(x.dtype)
  average = _bind("flow_map_fn", flow_map_fn, params, x, label)

  def step(x, t, s):
    return x - (t - s) * average(x, t, s)

  return _run(step, x, times, (params, label), return_path, 1)


def guided(
  velocity_fn: VelocityFn, *, scale: ArrayLike, null_label: int
) -> VelocityFn:
  """Classifier-free guidance, `v_null + scale (v_label - v_null)`.

  Both velocities come from one call on a doubled batch, in which the two
  copies of an example are neighbours: a batch sharded over devices stays
  where it is. A sampler's `nfe` counts that call once; the network has run
  twice.

  Args:
    velocity_fn: A `VelocityFn` that takes labels.
    scale: 1 is the labelled velocity, 0 the unlabelled, more extrapolates.
    null_label: The label that means none, an integer >= 0.

  Returns:
    A `VelocityFn`; it needs `label=`.

  Raises:
    ValueError: If `scale` is not finite, or `null_label` negative.
  """
  scale = checks.check_finite("scale", scale)
  null_label = checks.check_int("null_label", null_label, minimum=0)

  def velocity(
    params: Params, x: jax.Array, t: jax.Array, **label: jax.Array
  ) -> jax.Array:
    if "label" not in label:
      raise ValueError("a guided velocity needs label, got none.")
    wanted = label["label"]
    checks.check_shape("label", wanted, x.shape[:1])

    def twice(a):
      return jnp.repeat(a, 2, axis=0)

    none = jnp.full_like(wanted, null_label)
    labels = jnp.stack([wanted, none], axis=1).ravel()
    both = velocity_fn(params, twice(x), twice(t), label=labels)
    both = both.reshape(x.shape[:1] + (2,) + both.shape[1:])
    return both[:, 1] + scale * (both[:, 0] - both[:, 1])

  return velocity


def straightness(path: jax.Array, times: ArrayLike) -> Straightness:
  """Measures generated paths against their chords.

  A path's velocity is taken constant over each step, so of an Euler path it is
  the field's at every point, and the integral is
  `int |v(x_t, t) - (x_1 - x_0)|^2 dt` on the grid.

  Args:
    path: `[K + 1, B, ...]`, as samplers return it.
    times: `[K + 1]`, the decreasing times of its points.

  Raises:
    ValueError: If shapes or times do not fit.
  """
  times = grids.as_grid(times=times)
  checks.check_numbers("path", path)
  path = jnp.asarray(path)
  if path.ndim < 2 or path.shape[0] != times.size:
    raise ValueError(
      f"path must have shape [{times.size}, B, ...], one point for each of "
      f"times, got {list(path.shape)}."
    )
  path = path.reshape(*path.shape[:2], -1)
  path = path.astype(jnp.promote_types(path.dtype, jnp.float32))
  steps = path[:-1] - path[1:]
  chord = path[0] - path[-1]
  lengths = (times[:-1] - times[1:]).astype(path.dtype)[:, None, None]
  share = lengths / jnp.sum(lengths)
  away = jnp.sum((steps - share * chord[None]) ** 2 / lengths, axis=(0, 2))
  length, direct = _norm(steps).sum(axis=0), _norm(chord)
  moved = direct > 0
  ratio = length / jnp.where(moved, direct, 1.0)
  still = jnp.where(length > 0, jnp.inf, 1.0).astype(path.dtype)
  # Rounding can leave the sum of the steps a little shorter than the chord.
  return Straightness(away, jnp.where(moved, jnp.maximum(ratio, 1.0), still))


def _norm(x):
  """Euclidean norm over the last axis, with gradient 0 at 0."""
  square = jnp.sum(x**2, axis=-1)
  positive = square > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def _start(noise):
  """The noise as the first carry: float32 at least."""
  noise = jnp.asarray(noise)
  if not jnp.issubdtype(noise.dtype, jnp.floating):
    raise TypeError(f"noise must be floating, got dtype {noise.dtype}.")
  if noise.ndim < 1:
    raise ValueError("noise must have shape [B, ...], got [].")
  return noise.astype(jnp.promote_types(noise.dtype, jnp.float32))


def _bind(name, field, params, x, label):
  """`field` as a function of `x` and of scalar times."""
  options = {}
  if label is not None:
    label = jnp.asarray(label)
    if not jnp.issubdtype(label.dtype, jnp.integer):
      raise TypeError(f"label must be integers, got dtype {label.dtype}.")
    checks.check_shape("label", label, x.shape[:1])
    options["label"] = label

  def call(x, *times):
    batched = [jnp.full(x.shape[:1], t, x.dtype) for t in times]
    answer = field(params, x, *batched, **options)
    checks.check_shape(f"{name}'s answer", answer, x.shape)
    return answer.astype(x.dtype)

  return call


def _run(step, x, times, inputs, return_path, calls, index=None):
  """Scans `step(x, t, s[, index])` over the grid's intervals."""

  def body(x, xs):
    x = step(x, *xs)
    return x, (x if return_path else None)

  xs = (times[:-1], times[1:]) + (() if index is None else (index,))
  start = carries.anchor(x, inputs)
  x, points = jax.lax.scan(body, start, xs)
  nfe = jnp.full(x.shape[:1], calls * (times.size - 1), jnp.int32)
  path = jnp.concatenate([start[None], points]) if return_path else None
  return Samples(x, nfe, path)


def _check_alpha(schedule, times):
  """Raises if the SDE has no drift at the first time, where it can be seen."""
  with jax.ensure_compile_time_eval():
    start = times[0]
    alpha = schedule.alpha(start)
  if checks.is_concrete(start, alpha) and not float(alpha) > _ALPHA_TINY:
    raise ValueError(
      "schedule must have alpha > 0 where the SDE starts, got "
      f"alpha({float(start)}) = {float(alpha)}; pass times that start below 1."
    )
