"""The path between a data point and a noise vector, and what can be read off.

`x_t = alpha(t) data + sigma(t) noise` for whatever coupling made the pair. A
velocity, a score, a noise and a denoiser prediction are linear functions of
one another given `x_t`; the conversions are here, once.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.schedules.gaussian import GaussianSchedule, linear


class Point(NamedTuple):
  """A point of a path.

  Attributes:
    x: `[B, ...]`, `x_t`.
    velocity: `[B, ...]`, `dx_t / dt = alpha' data + sigma' noise`. It points
      from data to noise: samplers run against it.
  """

  x: jax.Array
  velocity: jax.Array


def interpolate(
  noise: jax.Array,
  data: jax.Array,
  t: jax.Array,
  schedule: GaussianSchedule | None = None,
) -> Point:
  """The path at times `t`, and its velocity.

  Args:
    noise: `[B, ...]`, the path at `t = 1`.
    data: `[B, ...]`, the path at `t = 0`.
    t: `[B]` in `[0, 1]`.
    schedule: `schedules.gaussian.linear()` by default.

  Raises:
    ValueError: If the shapes do not fit.
  """
  schedule = linear() if schedule is None else schedule
  checks.check_numbers("t", t)
  checks.check_shape("data", data, noise.shape)
  checks.check_shape("t", t, noise.shape[:1])
  t = expand(t, noise)
  return Point(
    schedule.alpha(t) * data + schedule.sigma(t) * noise,
    schedule.dalpha(t) * data + schedule.dsigma(t) * noise,
  )


def denoised_from_velocity(
  velocity: jax.Array,
  x: jax.Array,
  t: jax.Array,
  schedule: GaussianSchedule | None = None,
) -> jax.Array:
  """`E[data | x_t]` of a velocity field `E[dx_t / dt | x_t]`.

  For the linear schedule it is `x - t v` at every `t`. Undefined where
  `sigma'` is infinite, at `t = 0` of the VP schedule.
  """
  schedule = linear() if schedule is None else schedule
  t = _expand_for("velocity", velocity, x, t)
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  dalpha, dsigma = schedule.dalpha(t), schedule.dsigma(t)
  return (dsigma * x - sigma * velocity) / (alpha * dsigma - dalpha * sigma)


def noise_from_velocity(
  velocity: jax.Array,
  x: jax.Array,
  t: jax.Array,
  schedule: GaussianSchedule | None = None,
) -> jax.Array:
  """`E[noise | x_t]` of a velocity field, of any coupling.

  Undefined where `sigma'` is infinite, at `t = 0` of the VP schedule.
  """
  schedule = linear() if schedule is None else schedule
  t = _expand_for("velocity", velocity, x, t)
  alpha, sigma = schedule.alpha(t), schedule.sigma(t)
  dalpha, dsigma = schedule.dalpha(t), schedule.dsigma(t)
  return (alpha * velocity - dalpha * x) / (alpha * dsigma - dalpha * sigma)


def score_from_velocity(
  velocity: jax.Array,
  x: jax.Array,
  t: jax.Array,
  schedule: GaussianSchedule | None = None,
) -> jax.Array:
  """`grad log p_t(x)`; true only of pairs that are independent, `t > 0`.

  Under any other coupling `E[noise | x_t]` is not the score of the marginal.
  """
  schedule = linear() if schedule is None else schedule
  noise = noise_from_velocity(velocity, x, t, schedule)
  return -noise / schedule.sigma(expand(t, x))


def velocity_from_score(
  score: jax.Array,
  x: jax.Array,
  t: jax.Array,
  schedule: GaussianSchedule | None = None,
) -> jax.Array:
  """The probability-flow velocity, `f x - g^2 score / 2`.

  Undefined where `alpha` is zero, at `t = 1` of the linear and cosine
  schedules: there the score is that of the noise whatever the data are.
  """
  schedule = linear() if schedule is None else schedule
  t = _expand_for("score", score, x, t)
  return schedule.drift(t) * x - 0.5 * schedule.diffusion_squared(t) * score


def expand(t: jax.Array, x: jax.Array) -> jax.Array:
  """`[B]` as `[B, 1, ...]`, to broadcast against `x [B, ...]`."""
  return jnp.reshape(t, jnp.shape(t) + (1,) * (x.ndim - jnp.ndim(t)))


def _expand_for(name: str, field: jax.Array, x: jax.Array, t: jax.Array):
  """`expand(t, x)`, after a check of what a field answered at `x` and `t`."""
  for what, array in ((name, field), ("x", x), ("t", t)):
    checks.check_numbers(what, array)
  checks.check_shape(name, field, np.shape(x))
  checks.check_shape("t", t, np.shape(x)[: np.ndim(t)])
  return expand(t, x)
