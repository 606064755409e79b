"""Gaussian schedules: how much data and how much noise is in `x_t`.

`x_t = alpha(t) data + sigma(t) noise` in house time: `t = 0` is data, `t = 1`
is noise. Flow papers with data at `t = 1` are converted at the boundary.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks


class GaussianSchedule(NamedTuple):
  """A Gaussian corruption law, elementwise in `t`.

  Attributes:
    alpha: Of `t`, the weight of the data, falling from 1 at `t = 0`.
    sigma: Of `t`, the standard deviation of the noise, rising from near 0.
    variance: `t -> sigma^2`, where its slope is finite though that of `sigma`
      is not (`vp` at `t = 0`); None squares `sigma`.
  """

  alpha: Callable[[jax.Array], jax.Array]
  sigma: Callable[[jax.Array], jax.Array]
  variance: Callable[[jax.Array], jax.Array] | None = None

  def dalpha(self, t: jax.Array) -> jax.Array:
    """Derivative of `alpha` in `t`."""
    return _slope(self.alpha, t)

  def dsigma(self, t: jax.Array) -> jax.Array:
    """Derivative of `sigma` in `t`."""
    return _slope(self.sigma, t)

  def log_snr(self, t: jax.Array) -> jax.Array:
    """`2 log(alpha / sigma)`, falling in `t`; infinite where one is zero."""
    return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

  def drift(self, t: jax.Array) -> jax.Array:
    """`f = alpha' / alpha` of the forward SDE `dx = f x dt + g dW`.

    Infinite where `alpha` is zero: at `t = 1` of `linear` and `cosine`.
    """
    return self.dalpha(t) / self.alpha(t)

  def diffusion_squared(self, t: jax.Array) -> jax.Array:
    """`g^2 = (sigma^2)' - 2 f sigma^2` of the same SDE."""
    variance = self.variance or (lambda t: self.sigma(t) ** 2)
    return _slope(variance, t) - 2 * self.drift(t) * variance(t)


def linear() -> GaussianSchedule:
  """`alpha = 1 - t`, `sigma = t`: straight lines, rectified flow."""
  return GaussianSchedule(lambda t: 1 - t, lambda t: t * jnp.ones_like(t))


def cosine() -> GaussianSchedule:
  """`alpha = cos(pi t / 2)`, `sigma = sin(pi t / 2)`: variance preserving."""
  return GaussianSchedule(
    lambda t: jnp.cos(0.5 * jnp.pi * t), lambda t: jnp.sin(0.5 * jnp.pi * t)
  )


def vp(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianSchedule:
  """The variance-preserving SDE with a linear rate (arXiv:2011.13456).

  `alpha = exp(-B / 2)`, `sigma^2 = 1 - exp(-B)`, with
  `B(t) = beta_min t + (beta_max - beta_min) t^2 / 2`. The rate rises from
  data to noise; `alpha(1)` is small but not 0, and `sigma` has an infinite
  slope at `t = 0`.
  """
  checks.check_finite("beta_min", beta_min, positive=True)
  checks.check_finite("beta_max", beta_max, positive=True)

  def integral(t):
    return beta_min * t + 0.5 * (beta_max - beta_min) * t**2

  return GaussianSchedule(
    lambda t: jnp.exp(-0.5 * integral(t)),
    lambda t: jnp.sqrt(-jnp.expm1(-integral(t))),
    lambda t: -jnp.expm1(-integral(t)),
  )


def ve(sigma_min: float = 2e-3, sigma_max: float = 80.0) -> GaussianSchedule:
  """`alpha = 1`, `sigma` geometric from `sigma_min` to `sigma_max`."""
  checks.check_finite("sigma_min", sigma_min, positive=True)
  checks.check_finite("sigma_max", sigma_max, positive=True)
  if sigma_min >= sigma_max:
    raise ValueError(
      f"sigma_min must be < sigma_max={sigma_max}, got {sigma_min}."
    )
  ratio = sigma_max / sigma_min
  return GaussianSchedule(jnp.ones_like, lambda t: sigma_min * ratio**t)


def _slope(function, t):
  t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t), jnp.float32))
  return jax.jvp(function, (t,), (jnp.ones_like(t),))[1]
