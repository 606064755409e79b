"""Gaussian reference processes from noise to data, by their exact kernels.

A reference runs from `t = 1` to `t = 0` and is given by two functions: the
kernel of any step, `x_s = c x_t + sd eps`, and the standard deviation of `x_t`.
Everything that a sampler needs follows exactly: bridges, the data end's law,
the gradient of `log p(x_0 | x_t)`, the process run backwards.

The processes are those of PDNS (arXiv:2510.03824, section 2) in house time:
its `alpha_t`, decreasing in generation time, is a schedule's rate, small near
data and large near noise.
"""

import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import Target
from jdiff.schedules.gaussian import GaussianSchedule

MAX_MEMORY = 0.1
"""Correlation of a reference's ends above which it is warned about."""


class Reference(NamedTuple):
  """A Gaussian Markov process from `t = 1` to `t = 0`, equal in all entries.

  Attributes:
    kernel: `(t, s) -> (c, sd)` for `s <= t`, elementwise: given `x_t`, `x_s` is
      `N(c x_t, sd^2)` in every entry.
    std: `t ->` standard deviation of `x_t`, whose mean is zero.
    centred: Whether samples are particles `[n, d]` with their centre of mass
      held at zero: noise is projected, and densities are those of `(n - 1) d`
      dimensions.
  """

  kernel: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
  std: Callable[[jax.Array], jax.Array]
  centred: bool = False

  def memory(self) -> jax.Array:
    """Correlation of both ends, scalar in `[0, 1]`; 0 is memoryless.

    The start of a path cannot be moved by a control, so the best control's law
    is the target's only if the start is forgotten.
    """
    with jax.ensure_compile_time_eval():
      one, zero = jnp.ones(()), jnp.zeros(())
      c, _ = self.kernel(one, zero)
      return jnp.abs(c * self.std(one) / self.std(zero))

  def log_prob(self, x: jax.Array) -> jax.Array:
    """Normalised log-density of one sample `x` at the data end, in nats."""
    x = widen(jnp.asarray(x))
    std = self.std(jnp.zeros((), x.dtype))
    square = jnp.sum((self.project(x) / std) ** 2)
    return -0.5 * square - self.size(x.shape) * (
      jnp.log(std) + 0.5 * jnp.log(2 * jnp.pi)
    )

  def project(self, x: jax.Array) -> jax.Array:
    """Takes the centre of mass of `x [..., n, d]` away, if `centred`."""
    return x - x.mean(axis=-2, keepdims=True) if self.centred else x

  def size(self, shape: tuple[int, ...]) -> int:
    """Dimensions in which a sample of that shape lives."""
    return math.prod(shape) - (shape[-1] if self.centred else 0)

  def check_shape(self, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless samples of this reference may have `shape`."""
    if self.centred and (len(shape) != 2 or shape[0] < 2):
      raise ValueError(
        "shape must be (n, d) with n >= 2 particles for a centred reference, "
        f"got {shape}."
      )


def vp(
  schedule: GaussianSchedule, *, scale: float = 1.0, centred: bool = False
) -> Reference:
  """The stationary Ornstein-Uhlenbeck process: `N(0, scale^2)` at all times.

  Over a step `c = alpha(t) / alpha(s)` and `sd = scale sqrt(1 - c^2)`, exactly,
  so that any number of steps ends at the same law.

  Args:
    schedule: Variance preserving.
    scale: Standard deviation of every entry. Half the distance of the target's
      modes at least, and enough for its tails: `check_tails`.
    centred: See `Reference`.

  Raises:
    ValueError: If `scale` is not positive or the schedule not variance
      preserving.

  Warns:
    UserWarning: If the ends' correlation `alpha(1)` is above 0.1.
  """
  scale = checks.check_finite("scale", scale, positive=True)
  _check_variance_preserving(schedule)
  variance = schedule.variance or (lambda t: schedule.sigma(t) ** 2)

  def kernel(t, s):
    alpha_t, alpha_s = schedule.alpha(t), schedule.alpha(s)
    # Only at t = s = 1 of a schedule that ends in pure noise.
    gone = alpha_s == 0
    alpha_s = jnp.where(gone, 1.0, alpha_s)
    c = jnp.where(gone, 1.0, alpha_t / alpha_s)
    # 1 - c^2 cancels near data, the difference of variances near noise.
    near = (variance(t) - variance(s)) / alpha_s**2
    square = jnp.where(jnp.abs(alpha_s) > 0.5, near, (1 - c) * (1 + c))
    square = jnp.where(gone, 0.0, square)
    return c, scale * jnp.sqrt(jnp.maximum(square, 0))

  return _checked(
    Reference(kernel, lambda t: scale * jnp.ones_like(t), centred)
  )


def brownian(*, scale: float = 1.0, centred: bool = False) -> Reference:
  """Brownian motion from the origin at `t = 1`: memoryless.

  `x_t` is `N(0, scale^2 (1 - t))`.

  Args:
    scale: Standard deviation of every entry at the data end.
    centred: See `Reference`.

  Raises:
    ValueError: If `scale` is not positive.
  """
  scale = checks.check_finite("scale", scale, positive=True)

  def kernel(t, s):
    return jnp.ones_like(t - s), scale * jnp.sqrt(t - s)

  return Reference(kernel, lambda t: scale * jnp.sqrt(1 - t), centred)


def check_tails(target: Target, reference: Reference) -> None:
  """Warns of a target whose tails are heavier than its reference's.

  Plain weights `exp(log_prob - reference.log_prob)` have a finite variance if
  `2 log_prob - reference.log_prob` falls in all directions. It is compared at 6
  and at 12 standard deviations of the reference in each coordinate, along 32
  directions.

  Warns:
    UserWarning: If it rises there along any.
  """
  dim = int(np.prod(target.shape))
  std = float(reference.std(jnp.zeros(())))
  with jax.ensure_compile_time_eval():
    rays = jax.random.normal(jax.random.key(0), (32, *target.shape))
    rays = reference.project(rays)
    norm = jnp.sqrt(jnp.sum(rays.reshape(32, -1) ** 2, axis=1))
    rays = rays / norm.reshape(-1, *[1] * len(target.shape))

    # One program: an energy of many terms takes long one by one.
    @jax.jit
    def tilt(radius):
      x = radius * std * max(dim, 1) ** 0.5 * rays
      log_prob = jax.vmap(target.log_prob)(x)
      return 2 * log_prob - jax.vmap(reference.log_prob)(x)

    near, far = tilt(6.0), tilt(12.0)
    # An energy that overflows is a density of zero: as light as can be.
    rises = jnp.isfinite(far) & (far > near)
    share = float(jnp.mean(rises))
  if share > 0:
    warnings.warn(
      "the target's tails are heavier than the reference's along "
      f"{share:.0%} of directions: importance weights have no finite variance. "
      f"Pass a scale above {std:g}, or clip the weights "
      "(core.weights.clip), at the price of a bias.",
      stacklevel=2,
    )


def _checked(reference: Reference) -> Reference:
  memory = reference.memory()
  if checks.is_concrete(memory) and jax.device_get(memory) > MAX_MEMORY:
    warnings.warn(
      f"the reference's ends have a correlation of {float(memory):.3g}, above "
      f"{MAX_MEMORY}: no control reaches the target exactly. Pass a schedule "
      "with a larger rate, such as schedules.gaussian.vp(0.1, 10.0).",
      stacklevel=3,
    )
  return reference


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


def widen(x: jax.Array) -> jax.Array:
  """`x` in float32 at least."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
