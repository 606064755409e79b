"""Masking schedules: the probability that a site is hidden at time `t`.

Time is house time: `t = 0` is data (nothing masked), `t = 1` is noise (all
masked). MDNS writes the same schedules in generation time `1 - t`; the
log-linear one of the paper, `lambda = 1 - t`, is `linear()` here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks


class MaskSchedule(NamedTuple):
  """A monotone masking law.

  Attributes:
    mask_prob: `t -> P(masked)`, from 0 at `t = 0` to 1 at `t = 1`.
    time: Its inverse, `P(masked) -> t`.
  """

  mask_prob: Callable[[jax.Array], jax.Array]
  time: Callable[[jax.Array], jax.Array]

  def alpha(self, t: jax.Array) -> jax.Array:
    """Probability that a site is still visible, `1 - mask_prob(t)`."""
    return 1 - self.mask_prob(t)

  def dmask_prob(self, t: jax.Array) -> jax.Array:
    """Derivative of `mask_prob` in `t`, elementwise."""
    slope = jax.grad(lambda s: self.mask_prob(s))
    t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
    return jax.vmap(slope)(t.ravel()).reshape(t.shape)

  def elbo_weight(self, t: jax.Array) -> jax.Array:
    """`mask_prob' / mask_prob`, the weight of the masked ELBO at `t > 0`."""
    return self.dmask_prob(t) / self.mask_prob(t)


def linear() -> MaskSchedule:
  """`mask_prob(t) = t`: the log-linear schedule."""
  return MaskSchedule(lambda t: t, lambda p: p)


def polynomial(power: float) -> MaskSchedule:
  """`mask_prob(t) = t ** power`; `power > 1` reveals most sites late."""
  checks.check_finite("power", power, positive=True)
  return MaskSchedule(lambda t: t**power, lambda p: p ** (1 / power))


def cosine() -> MaskSchedule:
  """`mask_prob(t) = 1 - cos(pi t / 2)`."""
  return MaskSchedule(
    lambda t: 1 - jnp.cos(0.5 * jnp.pi * t),
    lambda p: jnp.arccos(1 - p) * 2 / jnp.pi,
  )


def time_grid(num_steps: int) -> jax.Array:
  """`[num_steps + 1]` float32 times from 1 (noise) down to 0 (data)."""
  checks.check_int("num_steps", num_steps)
  return jnp.linspace(1.0, 0.0, num_steps + 1)
