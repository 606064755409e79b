"""Bridges of the reference process against Gaussian conditioning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import sde
from jdiff.schedules import gaussian
from jdiff.sde import references

SCHEDULE = gaussian.vp(0.1, 10.0)
SCALE = 2.0
REFERENCE = references.vp(SCHEDULE, scale=SCALE)


def reference_covariance(t):
  """Of (x_0, x_t, x_1): the OU correlation is a ratio of alphas; float64."""
  alpha, end = (np.exp(-0.5 * (0.1 * s + 4.95 * s**2)) for s in (t, 1.0))
  return SCALE**2 * np.array(
    [[1, alpha, end], [alpha, 1, end / alpha], [end, end / alpha, 1]]
  )


def test_bridge_is_gaussian_conditioning():
  num, ends = 20_000, np.array([0, 2])

  @jax.jit
  def draw(data, noise, t):
    point = sde.bridge(
      jax.random.key(4),
      jnp.full((num, 2), data),
      jnp.full(num, t),
      reference=REFERENCE,
      noise=jnp.full((num, 2), noise),
    )
    return point.x

  for t in (0.02, 0.3, 0.7, 0.98):
    cov = reference_covariance(t)
    gain = np.linalg.solve(cov[np.ix_(ends, ends)], cov[ends, 1])
    variance = cov[1, 1] - gain @ cov[ends, 1]
    origin = np.asarray(draw(0.0, 0.0, t), np.float64)
    # Affine in the ends, for the same noise.
    np.testing.assert_allclose(draw(1.0, 0.0, t) - origin, gain[0], atol=1e-5)
    np.testing.assert_allclose(draw(0.0, 1.0, t) - origin, gain[1], atol=1e-5)
    assert abs(origin.mean()) < 5 * (variance / origin.size) ** 0.5
    error = abs(origin.var() / variance - 1)
    assert error < 5 * (2 / origin.size) ** 0.5


def test_bridge_residual():
  data, noise = jax.random.normal(jax.random.key(5), (2, 7, 3))
  t = jnp.linspace(0.1, 1.0, 7)

  def log_prob(x, data, t):
    alpha = SCHEDULE.alpha(t)
    std = SCALE * jnp.sqrt(1 - alpha**2)
    return jax.scipy.stats.norm.logpdf(data, alpha * x, std).sum()

  @jax.jit
  def both(key):
    point = sde.bridge(key, data, t, reference=REFERENCE, noise=noise)
    return point, jax.vmap(jax.grad(log_prob))(point.x, data, t)

  point, want = both(jax.random.key(6))
  np.testing.assert_allclose(point.x[-1], noise[-1], rtol=1e-5)
  # The control of the bridge itself is a score.
  square = 0.1 * np.asarray(t) + 4.95 * np.asarray(t) ** 2
  alpha, std = np.exp(-square / 2), SCALE * (-np.expm1(-square)) ** 0.5
  control = (alpha / std)[:, None] * point.residual
  np.testing.assert_allclose(control, want, rtol=1e-4, atol=1e-5)


def test_bridge_regression_is_the_best_policy():
  # Data N(mu, tau^2), a start of no memory: the regression of the residual on
  # x_t, linear in it, by Gaussian conditioning of x_0 given x_t.
  mu, tau, t, num, schedule = 1.5, 0.7, 0.4, 100_000, gaussian.cosine()
  draws = jax.random.normal(jax.random.key(7), (2, num, 1))
  point = jax.jit(
    functools.partial(
      sde.bridge, reference=references.vp(schedule, scale=SCALE)
    )
  )(
    jax.random.key(8),
    mu + tau * draws[1],
    jnp.full(num, t),
    noise=SCALE * draws[0],
  )
  alpha, std = np.cos(np.pi * t / 2), SCALE * np.sin(np.pi * t / 2)
  gain = alpha * tau**2 / (alpha**2 * tau**2 + std**2)
  want = np.array([mu * (1 - gain * alpha), gain - alpha]) / std
  x = np.asarray(point.x, np.float64)[:, 0]
  y = np.asarray(point.residual, np.float64)[:, 0]
  design = np.stack([np.ones_like(x), x], axis=1)
  fit, (rss,), _, _ = np.linalg.lstsq(design, y, rcond=None)
  se = np.sqrt(rss / num * np.diag(np.linalg.inv(design.T @ design)))
  assert (np.abs(fit - want) < 5 * se).all() and (se < 0.01).all()
  # What is left of the variance, in units of the reference's.
  left = tau**2 * std**2 / (alpha**2 * tau**2 + std**2) / std**2
  assert abs(rss / num / left - 1) < 5 * (2 / num) ** 0.5
