"""Constrained problems of the plane, with shapes worth a picture."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core.types import ConstrainedTarget
from jdiff.targets import quadrature


def star() -> ConstrainedTarget:
  """Nine broad modes on a star with seven lobes, cut by a quintic.

  `h = |x| - 3 - cos(7 angle)`, `g = (x_1 - 2)^2 - 5 x_1 x_2^3 + x_2^5 / 2 - 40`
  (arXiv:2510.22044, the experiment "mix_gaussian").
  """
  grid = np.stack(np.meshgrid(*[[-2.0, 0.0, 2.0]] * 2), axis=-1).reshape(-1, 2)

  def potential_fn(x):
    squares = jnp.sum((x[None] - jnp.asarray(grid, x.dtype)) ** 2, axis=1)
    return -jax.scipy.special.logsumexp(-0.05 * squares)

  def eq_fn(x):
    rho = jnp.sqrt(jnp.maximum(jnp.sum(x**2), 1e-12))
    return jnp.stack([rho - 3 - jnp.cos(7 * jnp.arctan2(x[1], x[0]))])

  def ineq_fn(x):
    value = (x[0] - 2) ** 2 - 5 * x[0] * x[1] ** 3 + 0.5 * x[1] ** 5 - 40
    return jnp.stack([value])

  def curve(num):
    theta = quadrature.angles(num)
    rho, slope = 3 + np.cos(7 * theta), -7 * np.sin(7 * theta)
    points = rho[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1)
    return points, np.hypot(rho, slope)

  return _planar_curve(potential_fn, eq_fn, ineq_fn, lambda: curve(2**15))


def quadratic_poly() -> ConstrainedTarget:
  """`x_1^4 x_2^2 + x_1^2 + x_2 = 1`, `x_1^3 - x_2^3 <= 1`, `f = |x|^2 / 2`."""

  def curve():
    # x_2 = 1 - w^2 makes the curve smooth in w where its branches meet.
    w = (np.arange(2**15) + 0.5) * (2.0 / 2**15)
    y = 1 - w**2
    u = 2 * (1 - y) / (1 + np.sqrt(1 + 4 * y**2 * (1 - y)))
    x = np.sqrt(u)
    points = np.stack([x, y], axis=1)
    # Along h = 0: dx/dy = -h_y / h_x.
    slope = (2 * x**4 * y + 1) / (4 * x**3 * y**2 + 2 * x)
    length = np.sqrt(1 + slope**2) * 2 * w
    mirrored = points * np.array([[-1.0, 1.0]])
    return np.concatenate([points, mirrored]), np.concatenate([length, length])

  return _planar_curve(
    lambda x: 0.5 * jnp.sum(x**2),
    lambda x: jnp.stack([x[0] ** 4 * x[1] ** 2 + x[0] ** 2 + x[1] - 1]),
    lambda x: jnp.stack([x[0] ** 3 - x[1] ** 3 - 1]),
    curve,
  )


def two_lobe() -> ConstrainedTarget:
  """The uniform law on two disconnected crescents: `g = -log q - 2`.

  `q = (e^(-2 (x_1 - 3)^2) + e^(-2 (x_1 + 3)^2)) / e^(2 (|x| - 3)^2)`. Chains
  stay in their crescent; both are alike, and expectations are those of each.
  """

  def ineq_fn(x):
    rho = jnp.sqrt(jnp.maximum(jnp.sum(x**2), 1e-12))
    lobes = jnp.logaddexp(-2 * (x[0] - 3) ** 2, -2 * (x[0] + 3) ** 2)
    return jnp.stack([2 * (rho - 3) ** 2 - lobes - 2])

  def observables(x):
    return {
      "x1_abs": jnp.abs(x[0]),
      "x1_squared": x[0] ** 2,
      "x2_squared": x[1] ** 2,
    }

  def grid(num):
    axis = (np.arange(num) + 0.5) * (12 / num) - 6
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    rho = np.hypot(points[:, 0], points[:, 1])
    lobes = np.logaddexp(
      -2 * (points[:, 0] - 3) ** 2, -2 * (points[:, 0] + 3) ** 2
    )
    return points[2 * (rho - 3) ** 2 - lobes - 2 <= 0]

  def init(key, num_chains):
    points = jnp.asarray(grid(400))
    return points[jax.random.randint(key, (num_chains,), 0, len(points))]

  def exact():
    points = grid(2000)
    return quadrature.average(points, observables, np.zeros(len(points)))

  return ConstrainedTarget(
    potential_fn=lambda x: jnp.zeros((), x.dtype),
    dim=2,
    init=init,
    ineq_fn=ineq_fn,
    observables=observables,
    exact=exact,
    sample=init,
  )


def _planar_curve(potential_fn, eq_fn, ineq_fn, curve: Callable):
  """A curve with an inequality, known by its points and lengths."""

  def observables(x):
    return {
      "x1": x[0],
      "x2": x[1],
      "x1_squared": x[0] ** 2,
      "x2_squared": x[1] ** 2,
    }

  def weighted():
    points, length = curve()
    with jax.enable_x64(True):
      wide = jnp.asarray(points)
      feasible = jax.vmap(ineq_fn)(wide)[:, 0] <= 0
      log_density = np.asarray(-jax.vmap(potential_fn)(wide))
    log_weight = np.log(length) + log_density
    return points, np.where(np.asarray(feasible), log_weight, -np.inf)

  def exact():
    points, log_weight = weighted()
    return quadrature.average(points, observables, log_weight)

  def sample(key, num_samples):
    points, log_weight = weighted()
    # Not `categorical`, which draws a number for each point and sample.
    return jax.random.choice(
      key,
      jnp.asarray(points),
      (num_samples,),
      p=jax.nn.softmax(jnp.asarray(log_weight)),
    )

  return ConstrainedTarget(
    potential_fn=potential_fn,
    dim=2,
    init=sample,
    eq_fn=eq_fn,
    ineq_fn=ineq_fn,
    observables=observables,
    exact=exact,
    sample=sample,
  )
