"""Flow matching, and what every loss on pairs shares.

Rectified flow (arXiv:2209.03003) and conditional flow matching with no path
noise (arXiv:2210.02747, arXiv:2302.00482): regress the velocity of the path
between noise and data. The coupling is whatever made the pairs; no loss draws
or shuffles noise. Papers with data at `t = 1` are converted: here `t = 0` is
data, and the linear path's velocity is `noise - data`.

Per-example keys are folded once more for each use: 0 for label dropout, 1 for
times.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jdiff.core import checks
from jdiff.core import keys as keys_lib
from jdiff.core.types import Pairs, Params, VelocityFn
from jdiff.schedules.gaussian import GaussianSchedule
from jdiff.sde import interpolants

DrawTime = Callable[[jax.Array], jax.Array]
"""The law of one example's time: `key -> t`, a scalar in `[0, 1]`."""


def uniform(key: jax.Array) -> jax.Array:
  """`t` uniform in `[0, 1)`: the default `draw_time`."""
  return jax.random.uniform(key)


def logit_normal(mean: float = 0.0, std: float = 1.0) -> DrawTime:
  """`t = sigmoid(N(mean, std^2))`: fewer draws at the ends (SD3's law).

  A negative `mean` leans towards data.
  """
  checks.check_finite("mean", mean)
  checks.check_finite("std", std, positive=True)
  return lambda key: jax.nn.sigmoid(mean + std * jax.random.normal(key))


def beta(a: float = 0.8, b: float = 2.0) -> DrawTime:
  """`t ~ Beta(a, b)`; by default the paper's law, which leans towards data.

  Its mean is 2/7, and 0.27 of the draws lie below 0.1.
  """
  a = checks.check_finite("a", a, positive=True)
  b = checks.check_finite("b", b, positive=True)
  return lambda key: jax.random.beta(key, a, b)


def log_uniform(t_min: float, t_max: float = 1.0) -> DrawTime:
  """`log t` uniform between `log t_min` and `log t_max`, `0 < t_min < t_max`.

  Memorisation is decided where noise is as large as the gaps between data;
  this law finds that scale wherever it is.
  """
  t_min = checks.check_finite("t_min", t_min, positive=True)
  _check_range(t_min, t_max)
  low, high = math.log(t_min), math.log(t_max)
  return lambda key: jnp.exp(jax.random.uniform(key, (), None, low, high))


def within(draw_time: DrawTime, t_min: float, t_max: float = 1.0) -> DrawTime:
  """`t_min + (t_max - t_min) u`, with `u` in `[0, 1]` from `draw_time`."""
  _check_range(t_min, t_max)
  return lambda key: t_min + (t_max - t_min) * draw_time(key)


def flow_matching(
  params: Params,
  key: jax.Array,
  pairs: Pairs,
  *,
  velocity_fn: VelocityFn,
  schedule: GaussianSchedule | None = None,
  draw_time: DrawTime = uniform,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Mean squared error of the velocity at a random time of each path.

  Its minimiser is `E[dx_t / dt | x_t]`, of any coupling; there the loss is the
  conditional variance, which is zero if `x_t` determines the pair.

  Args:
    params: Passed to `velocity_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    pairs: `Pairs` of `B` examples.
    velocity_fn: A `VelocityFn`.
    schedule: The path; `schedules.gaussian.linear()` by default.
    draw_time: Law of `t`: `uniform` by default, or one of `logit_normal`,
      `beta`, `log_uniform` and `within`.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(per_example [B], info)`: squared errors, averaged over dimensions; `info`
    is empty.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  keys, pairs = prepare(key, pairs, null_label, label_dropout)
  t = times(keys, draw_time, pairs)
  point = interpolants.interpolate(pairs.noise, pairs.data, t, schedule)
  velocity = velocity_fn(params, point.x, t, **label_of(pairs))
  error = squared_error("velocity_fn", velocity, point.velocity)
  return mean_over_dims(error), {}


def prepare(
  key: jax.Array,
  pairs: Pairs,
  null_label: int | None = None,
  label_dropout: float = 0.0,
) -> tuple[jax.Array, Pairs]:
  """Checks a batch and drops labels from it.

  Args:
    key: One PRNG key, or `[B]` keys.
    pairs: `Pairs`.
    null_label: The label that means none.
    label_dropout: Probability that an example's label is replaced by it.

  Returns:
    `(keys [B], pairs)`, float32 at least.

  Raises:
    ValueError: If shapes or options do not fit.
    TypeError: If a dtype is of the wrong kind.
  """
  ends = {"noise": jnp.asarray(pairs.noise), "data": jnp.asarray(pairs.data)}
  for name, end in ends.items():
    if not jnp.issubdtype(end.dtype, jnp.floating):
      raise TypeError(f"pairs.{name} must be floating, got dtype {end.dtype}.")
    if not end.ndim:
      raise ValueError(f"pairs.{name} must have shape [B, ...], got [].")
  checks.check_shape("pairs.data", ends["data"], ends["noise"].shape)
  dtype = jnp.promote_types(jnp.result_type(*ends.values()), jnp.float32)
  noise, data = (end.astype(dtype) for end in ends.values())
  batch = noise.shape[0]
  keys = keys_lib.per_example(key, batch)
  label = pairs.label
  if label is not None:
    label = jnp.asarray(label)
    checks.check_shape("pairs.label", label, (batch,))
    if not jnp.issubdtype(label.dtype, jnp.integer):
      raise TypeError(f"pairs.label must be integers, got dtype {label.dtype}.")
  if null_label is not None:
    checks.check_int("null_label", null_label, minimum=0)
  checks.check_range("label_dropout", label_dropout, 0, 1)
  if label_dropout:
    if label is None or null_label is None:
      missing = "pairs.label" if label is None else "null_label"
      raise ValueError(
        f"label_dropout={label_dropout} needs {missing}, got None."
      )
    drop = jax.vmap(lambda k: jax.random.bernoulli(k, label_dropout))(
      keys_lib.fold(keys, 0)
    )
    label = jnp.where(drop, jnp.asarray(null_label, label.dtype), label)
  return keys, Pairs(noise, data, label)


def times(keys: jax.Array, draw_time: DrawTime, pairs: Pairs) -> jax.Array:
  """A time for each of `[B]` keys, `[B]` in the dtype of the pairs."""
  t = jax.vmap(draw_time)(keys_lib.fold(keys, 1))
  checks.check_shape("draw_time's answers", t, keys.shape)
  return t.astype(pairs.noise.dtype)


def label_of(pairs: Pairs) -> dict[str, jax.Array]:
  """The labels as keyword arguments, none if there are none."""
  return {} if pairs.label is None else {"label": pairs.label}


def squared_error(name: str, answer: jax.Array, target: jax.Array) -> jax.Array:
  """`(answer - target)^2`, after a check of what the network answered."""
  checks.check_shape(f"{name}'s answer", answer, target.shape)
  return jnp.square(answer - target)


def mean_over_dims(x: jax.Array) -> jax.Array:
  """`[B, ...]` to `[B]`."""
  return jnp.mean(x.reshape(x.shape[0], -1), axis=1)


def check_every(name: str, every: int, batch: int) -> int:
  """`every` as an int >= 2 that divides the batch, or an error."""
  every = checks.check_int(name, every, minimum=2)
  if batch % every:
    raise ValueError(f"{name} must divide the batch of {batch}, got {every}.")
  return every


def take_every(x: jax.Array, every: int) -> jax.Array:
  """Rows `every - 1, 2 every - 1, ...` of `x [B, ...]`.

  Spread out rather than at the end of the batch, so that shards of it hold
  equal shares and no row moves between devices.
  """
  return x.reshape(-1, every, *x.shape[1:])[:, -1]


def put_every(x: jax.Array, rows: jax.Array, every: int) -> jax.Array:
  """`x [B, ...]` with the rows of `take_every` replaced."""
  groups = x.reshape(-1, every, *x.shape[1:])[:, :-1]
  return jnp.concatenate([groups, rows[:, None]], axis=1).reshape(x.shape)


def means_by_part(per_example: jax.Array, every: int) -> list[jax.Array]:
  """Means over the rows that `take_every` leaves, and over those it takes."""
  groups = per_example.reshape(-1, every)
  return [jnp.mean(groups[:, :-1]), jnp.mean(groups[:, -1])]


def _check_range(t_min, t_max):
  checks.check_finite("t_min", t_min)
  checks.check_finite("t_max", t_max)
  if not 0 <= t_min < t_max <= 1:
    raise ValueError(
      f"times must satisfy 0 <= t_min < t_max <= 1, got t_min={t_min} and "
      f"t_max={t_max}."
    )
