"""Straightness and curvature of generated paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff import sde
from jdiff.schedules import gaussian, grids
from tests.sde import laws

LAW = laws.GaussianLaw(gaussian.linear())
NOISE = jax.random.normal(jax.random.key(0), (16, 2, 3))


def constant(params, x, t, label=None):
  del params, t, label
  return jnp.full_like(x, 2.0)


def test_straightness():
  measure = jax.jit(sde.straightness)
  # Straight at constant speed, on an uneven grid.
  times = jnp.array([1.0, 0.7, 0.2, 0.0])
  got = sde.sample_ode(
    None, NOISE, velocity_fn=constant, times=times, return_path=True
  )
  straight = measure(got.path, times)
  np.testing.assert_allclose(straight.straightness, 0, atol=1e-10)
  np.testing.assert_allclose(straight.curvature, 1, rtol=1e-6)
  # Straight at speed 2 t: curvature 1 still, int (2 t - 1)^2 dt = 1 / 3. On
  # the grid it is the squared means over steps, short of it by h^2 / 3.
  times = jnp.linspace(1.0, 0.0, 101)
  path = times[:, None, None] ** 2 * jnp.array([[3.0, 4.0]])[None]
  speed = measure(path, times)
  np.testing.assert_allclose(speed.curvature, 1, rtol=1e-5)
  np.testing.assert_allclose(speed.straightness, 25 / 3, rtol=2e-4)
  # A half circle: length pi over chord 2; |v|^2 - |chord|^2 = pi^2 - 4.
  angle = jnp.pi * times
  path = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)[:, None]
  circle = measure(path, times)
  np.testing.assert_allclose(circle.curvature, np.pi / 2, rtol=1e-4)
  np.testing.assert_allclose(circle.straightness, np.pi**2 - 4, rtol=1e-3)
  # Standing still, and a closed path; a finite gradient in both.
  still = measure(jnp.ones((101, 1, 2)), times)
  np.testing.assert_allclose(jnp.stack(still), [[0], [1]])
  closed = measure(jnp.concatenate([path[:50], path[:51][::-1]]), times)
  assert jnp.isinf(closed.curvature).all()
  slope = jax.jit(jax.grad(lambda p: jnp.sum(measure(p, times).curvature)))
  assert jnp.isfinite(slope(jnp.ones((101, 1, 2)))).all()


def test_euler_paths_are_measured_with_their_own_field():
  @jax.jit
  def run():
    times = grids.time_grid(8)
    got = sde.sample_ode(
      None, NOISE, velocity_fn=LAW.velocity, times=times, return_path=True
    )
    chord = NOISE - got.samples
    velocity = jax.vmap(functools.partial(LAW.velocity, None))(
      got.path[:-1], jnp.repeat(times[:-1, None], 16, axis=1)
    )
    want = jnp.sum((velocity - chord[None]) ** 2, axis=(0, 2, 3)) / 8
    return want, sde.straightness(got.path, times)

  want, straight = run()
  np.testing.assert_allclose(straight.straightness, want, rtol=1e-4)
  assert (straight.curvature >= 1).all()
