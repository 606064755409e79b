"""Gaussian data under a Gaussian schedule: everything in closed form."""

import jax.numpy as jnp
import numpy as np

from jdiff.schedules import gaussian
from jdiff.sde import interpolants

SCHEDULES = {
  "linear": gaussian.linear(),
  "cosine": gaussian.cosine(),
  "vp": gaussian.vp(0.1, 10.0),
}


class GaussianLaw:
  """Data `N(mean, std^2 I)`, independent of the noise.

  `x_t` is `N(alpha mean, V)` with `V = alpha^2 std^2 + sigma^2`, so that the
  ODE's flow is affine: it keeps `(x - alpha mean) / sqrt(V)`.
  """

  def __init__(self, schedule, mean=1.0, std=0.5):
    self.schedule, self.mean, self.std = schedule, mean, std

  def moments(self, t):
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    return alpha * self.mean, alpha**2 * self.std**2 + sigma**2

  def velocity(self, params, x, t, label=None):
    del params, label
    t = interpolants.expand(t, x)
    alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
    dalpha, dsigma = self.schedule.dalpha(t), self.schedule.dsigma(t)
    centre, variance = self.moments(t)
    slope = alpha * dalpha * self.std**2 + sigma * dsigma
    return dalpha * self.mean + slope / variance * (x - centre)

  def score(self, params, x, t, label=None):
    del params, label
    centre, variance = self.moments(interpolants.expand(t, x))
    return -(x - centre) / variance

  def flow(self, x, t, s):
    (centre, variance), (end, final) = self.moments(t), self.moments(s)
    return end + jnp.sqrt(final / variance) * (x - centre)

  def average(self, params, x, t, s, label=None):
    """The exact average velocity of `[t, s]`."""
    del params, label
    t, s = interpolants.expand(t, x), interpolants.expand(s, x)
    return (x - self.flow(x, t, s)) / (t - s)


def order(errors, counts):
  """Slope of log error against log step size."""
  return -np.polyfit(np.log(counts), np.log(errors), 1)[0]
