"""Conversions between predictions, against Gaussian closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import sde
from tests.sde import laws


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_conversions(name):
  schedule = laws.SCHEDULES[name]
  law = laws.GaussianLaw(schedule)
  with jax.enable_x64(True):
    x = jax.random.normal(jax.random.key(0), (9, 2, 3))
    t = jnp.linspace(0.1, 0.9, 9)
    velocity, score = law.velocity(None, x, t), law.score(None, x, t)
    wide = t.reshape(9, 1, 1)
    alpha, sigma = schedule.alpha(wide), schedule.sigma(wide)
    centre, variance = law.moments(wide)
    # Regression of data and of noise on x_t.
    data = law.mean + alpha * law.std**2 / variance * (x - centre)
    noise = sigma / variance * (x - centre)
    for function, given, want in [
      (sde.denoised_from_velocity, velocity, data),
      (sde.noise_from_velocity, velocity, noise),
      (sde.score_from_velocity, velocity, score),
      (sde.velocity_from_score, score, velocity),
    ]:
      got = function(given, x, t, schedule)
      np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(alpha * data + sigma * noise, x, atol=1e-12)


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_path(name):
  schedule = laws.SCHEDULES[name]
  with jax.enable_x64(True):
    noise, data = jax.random.normal(jax.random.key(1), (2, 5, 3))
    t = jnp.linspace(0.1, 0.9, 5)
    point = sde.interpolate(noise, data, t, schedule)
    step = 1e-5
    ahead = sde.interpolate(noise, data, t + step, schedule)
    behind = sde.interpolate(noise, data, t - step, schedule)
    # Central difference, h^2 = 1e-10 times a third derivative below 1e3.
    np.testing.assert_allclose(
      point.velocity, (ahead.x - behind.x) / (2 * step), atol=1e-7
    )
    # On a path of known ends the predictions are the ends.
    got = sde.denoised_from_velocity(point.velocity, point.x, t, schedule)
    np.testing.assert_allclose(got, data, atol=1e-9)
    got = sde.noise_from_velocity(point.velocity, point.x, t, schedule)
    np.testing.assert_allclose(got, noise, atol=1e-9)


def test_linear_is_the_default_and_has_no_singular_time():
  noise, data = jax.random.normal(jax.random.key(2), (2, 2, 4))
  t = jnp.array([0.0, 1.0])
  point = sde.interpolate(noise, data, t)
  np.testing.assert_allclose(point.x, jnp.stack([data[0], noise[1]]))
  np.testing.assert_allclose(point.velocity, noise - data, rtol=1e-6)
  got = sde.denoised_from_velocity(point.velocity, point.x, t)
  np.testing.assert_allclose(got, data, atol=1e-6)
  got = sde.noise_from_velocity(point.velocity, point.x, t)
  np.testing.assert_allclose(got, noise, atol=1e-6)


def test_probability_flow_of_a_vp_score_ends_at_the_data():
  # Its rate is finite at t = 0, where the slope of sigma is not.
  law = laws.GaussianLaw(laws.SCHEDULES["vp"])
  x, t = jnp.array([[0.3], [2.0]]), jnp.zeros(2)
  score = law.score(None, x, t)
  got = sde.velocity_from_score(score, x, t, law.schedule)
  np.testing.assert_allclose(got, -0.05 * (x + score), rtol=1e-5)


def test_bad_arguments():
  with pytest.raises(ValueError, match=r"data must have shape \[2, 3\]"):
    sde.interpolate(jnp.zeros((2, 3)), jnp.zeros((3, 2)), jnp.zeros(2))
  with pytest.raises(ValueError, match=r"t must have shape \[2\]"):
    sde.interpolate(jnp.zeros((2, 3)), jnp.zeros((2, 3)), jnp.zeros(()))
