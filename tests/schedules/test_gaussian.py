"""Gaussian schedules against finite differences, and the time grids."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.schedules import gaussian, grids, masking

SCHEDULES = {
  "linear": gaussian.linear(),
  "cosine": gaussian.cosine(),
  "vp": gaussian.vp(),
  "ve": gaussian.ve(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_derivatives(name):
  schedule = SCHEDULES[name]
  with jax.enable_x64(True):
    t = jnp.linspace(0.05, 0.95, 19)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    step = 1e-5

    def slope(function):
      return (function(t + step) - function(t - step)) / (2 * step)

    # Central differences: error h^2 times a third derivative, 1e-10 x 1e3
    # (of ve's sigma), and rounding 1e-16 / h.
    near = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-8)
    near(schedule.dalpha(t), slope(schedule.alpha))
    near(schedule.dsigma(t), slope(schedule.sigma))
    near(schedule.log_snr(t), np.log(alpha**2 / sigma**2))
    near(schedule.drift(t), slope(lambda t: jnp.log(schedule.alpha(t))))
    # Ito: d(sigma^2)/dt = 2 f sigma^2 + g^2.
    growth = slope(lambda t: schedule.sigma(t) ** 2)
    near(
      schedule.diffusion_squared(t), growth - 2 * schedule.drift(t) * sigma**2
    )
    assert (jnp.diff(schedule.log_snr(t)) < 0).all()


def test_ends():
  ends = jnp.array([0.0, 1.0])
  for name in ("linear", "cosine"):
    np.testing.assert_allclose(SCHEDULES[name].alpha(ends), [1, 0], atol=1e-7)
    np.testing.assert_allclose(SCHEDULES[name].sigma(ends), [0, 1], atol=1e-7)
  np.testing.assert_allclose(
    SCHEDULES["vp"].alpha(ends), [1, np.exp(-20.1 / 4)], rtol=1e-5
  )
  np.testing.assert_allclose(SCHEDULES["ve"].sigma(ends), [2e-3, 80], rtol=1e-5)


def test_vp_has_a_linear_rate():
  schedule = gaussian.vp(0.5, 8.0)
  t = jnp.linspace(0.0, 1.0, 11)
  # At t = 0 too, where the slope of sigma is infinite.
  rate = 0.5 + 7.5 * t
  np.testing.assert_allclose(schedule.diffusion_squared(t), rate, rtol=1e-5)
  np.testing.assert_allclose(schedule.drift(t), -0.5 * rate, rtol=1e-5)
  assert jnp.isinf(schedule.dsigma(jnp.zeros(())))
  np.testing.assert_allclose(
    schedule.variance(t), schedule.sigma(t) ** 2, rtol=1e-6
  )


def test_edm_grid():
  grid = grids.edm(18)
  assert grid.shape == (19,) and grid.dtype == jnp.float32
  np.testing.assert_allclose(grid[jnp.array([0, 17, 18])], [80, 2e-3, 0])
  roots = np.asarray(grid[:-1], np.float64) ** (1 / 7)
  np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0], rtol=1e-5)
  np.testing.assert_allclose(grids.edm(4, 1.0, 7.0, 1.0), [7, 5, 3, 1, 0])
  np.testing.assert_allclose(grids.edm(1), [80, 0], rtol=1e-6)
  assert grids.time_grid is masking.time_grid


def test_as_grid():
  np.testing.assert_allclose(grids.as_grid(2), [1, 0.5, 0])
  assert grids.as_grid(times=[2, 1]).dtype == jnp.float32
  # Values are seen while tracing, if they are known.
  with pytest.raises(ValueError, match="times must decrease"):
    jax.jit(lambda: grids.as_grid(times=[1.0, 1.0]))()
  traced = jax.jit(lambda t: grids.as_grid(times=t))
  np.testing.assert_allclose(traced(jnp.array([0.0, 1.0])), [0, 1])


def test_bad_arguments():
  with pytest.raises(ValueError, match="exactly one of num_steps and times"):
    grids.as_grid()
  with pytest.raises(ValueError, match="exactly one of num_steps and times"):
    grids.as_grid(1, [1.0, 0.0])
  with pytest.raises(ValueError, match="num_steps must be >= 1"):
    grids.as_grid(0)
  with pytest.raises(ValueError, match=r"times must have shape \[\*\]"):
    grids.as_grid(times=jnp.ones((2, 2)))
  with pytest.raises(ValueError, match="times must hold both ends"):
    grids.as_grid(times=[1.0])
  with pytest.raises(ValueError, match="times must decrease"):
    grids.as_grid(times=[0.0, 1.0])
  with pytest.raises(ValueError, match="times must decrease"):
    grids.as_grid(times=[1.0, np.nan, 0.0])
  with pytest.raises(ValueError, match="num_steps must be >= 1"):
    grids.edm(0)
  with pytest.raises(ValueError, match="rho must be positive"):
    grids.edm(3, rho=0.0)
  for make in (functools.partial(grids.edm, 3), gaussian.ve):
    with pytest.raises(ValueError, match="sigma_min must be < sigma_max"):
      make(sigma_min=2.0, sigma_max=1.0)
  with pytest.raises(ValueError, match="beta_min must be positive"):
    gaussian.vp(0.0)
