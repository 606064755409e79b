"""Bridges of the reference process against Gaussian conditioning."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import sde
from jdiff.schedules import gaussian

SCHEDULE = gaussian.vp(0.1, 10.0)
SCALE = 2.0


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
      jnp.full((num, 2), noise),
      jnp.full((num, 2), data),
      jnp.full(num, t),
      schedule=SCHEDULE,
      scale=SCALE,
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


def test_bridge_score():
  data, noise = jax.random.normal(jax.random.key(5), (2, 7, 3))
  t = jnp.linspace(0.1, 1.0, 7)

  def log_prob(x, data, t):
    alpha = SCHEDULE.alpha(t)
    std = SCALE * jnp.sqrt(1 - alpha**2)
    return sde.reference_log_prob(data - alpha * x, scale=std)

  @jax.jit
  def both(key):
    point = sde.bridge(key, noise, data, t, schedule=SCHEDULE, scale=SCALE)
    return point, jax.vmap(jax.grad(log_prob))(point.x, data, t)

  point, want = both(jax.random.key(6))
  np.testing.assert_allclose(point.x[-1], noise[-1], rtol=1e-5)
  np.testing.assert_allclose(point.score, want, rtol=1e-4, atol=1e-5)
  variance = -np.expm1(-(0.1 * np.asarray(t) + 4.95 * np.asarray(t) ** 2))
  np.testing.assert_allclose(point.std, SCALE * variance**0.5, rtol=1e-5)


def test_bridge_regression_is_the_best_control():
  # Data N(mu, tau^2), a start of no memory: the control that leads there is
  # the gradient of log p_t - log N(0, SCALE^2), linear in x.
  mu, tau, t, num, schedule = 1.5, 0.7, 0.4, 100_000, gaussian.cosine()
  draws = jax.random.normal(jax.random.key(7), (2, num, 1))
  point = jax.jit(
    functools.partial(sde.bridge, schedule=schedule, scale=SCALE)
  )(jax.random.key(8), SCALE * draws[0], mu + tau * draws[1], jnp.full(num, t))
  alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
  variance = alpha**2 * tau**2 + SCALE**2 * sigma**2
  want = np.array([alpha * mu / variance, 1 / SCALE**2 - 1 / variance])
  x = np.asarray(point.x, np.float64)[:, 0]
  y = np.asarray(point.score, np.float64)[:, 0]
  design = np.stack([np.ones_like(x), x], axis=1)
  fit, (rss,), _, _ = np.linalg.lstsq(design, y, rcond=None)
  se = np.sqrt(rss / num * np.diag(np.linalg.inv(design.T @ design)))
  assert (np.abs(fit - want) < 5 * se).all() and (se < 0.01).all()
