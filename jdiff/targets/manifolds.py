"""Densities on sets with equality and inequality constraints.

Each knows exact expectations under the surface measure, by closed form or by
quadrature on the host in float64; see `ConstrainedTarget`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special, stats

from jdiff.core import checks
from jdiff.core.types import ConstrainedTarget
from jdiff.targets import quadrature


def circle(kappa: float = 0.0, *, skewed: bool = False) -> ConstrainedTarget:
  """The unit circle with `f = -kappa x_1` (von Mises).

  Args:
    kappa: Concentration.
    skewed: Writes the circle as `(2 + x_1)(|x|^2 - 1) = 0`, whose gradient has
      another length at each point: the surface measure does not care, the
      co-area measure does.
  """
  checks.check_finite("kappa", kappa)

  def eq_fn(x):
    value = jnp.sum(x**2) - 1
    return jnp.stack([(2 + x[0]) * value if skewed else value])

  def exact():
    theta = quadrature.angles(4096)
    points = np.stack([np.cos(theta), np.sin(theta)], axis=1)
    return quadrature.average(points, observables, kappa * points[:, 0])

  def observables(x):
    return {"x1": x[0], "x1_squared": x[0] ** 2, "x2_squared": x[1] ** 2}

  return ConstrainedTarget(
    potential_fn=lambda x: -kappa * x[0],
    dim=2,
    init=_directions(2),
    eq_fn=eq_fn,
    observables=observables,
    exact=exact,
  )


def sphere(dim: int = 3, kappa: float = 0.0) -> ConstrainedTarget:
  """The unit sphere of `R^dim` with `f = -kappa x_dim` (von Mises-Fisher)."""
  checks.check_int("dim", dim, 2)
  checks.check_finite("kappa", kappa)

  def exact():
    if kappa == 0:
      return {"z": 0.0, "z_squared": 1 / dim}
    pull = abs(kappa)
    z = special.ive(dim / 2, pull) / special.ive(dim / 2 - 1, pull)
    z = z * np.sign(kappa)
    return {"z": float(z), "z_squared": float(1 - (dim - 1) * z / kappa)}

  return ConstrainedTarget(
    potential_fn=lambda x: -kappa * x[-1],
    dim=dim,
    init=_directions(dim),
    eq_fn=lambda x: jnp.stack([jnp.sum(x**2) - 1]),
    observables=lambda x: {"z": x[-1], "z_squared": x[-1] ** 2},
    exact=exact,
  )


def ellipse(axis: float = 2.0, kappa: float = 0.0) -> ConstrainedTarget:
  """`x_1^2 / axis^2 + x_2^2 = 1` with `f = -kappa x_1`."""
  checks.check_finite("axis", axis, positive=True)
  checks.check_finite("kappa", kappa)

  def observables(x):
    return {"x1": x[0], "x1_squared": x[0] ** 2, "x2_squared": x[1] ** 2}

  def exact():
    theta = quadrature.angles(4096)
    points = np.stack([axis * np.cos(theta), np.sin(theta)], axis=1)
    length = np.hypot(axis * np.sin(theta), np.cos(theta))
    return quadrature.average(
      points, observables, np.log(length) + kappa * points[:, 0]
    )

  def init(key, num_chains):
    return _directions(2)(key, num_chains) * jnp.array([[axis, 1.0]])

  return ConstrainedTarget(
    potential_fn=lambda x: -kappa * x[0],
    dim=2,
    init=init,
    eq_fn=lambda x: jnp.stack([(x[0] / axis) ** 2 + x[1] ** 2 - 1]),
    observables=observables,
    exact=exact,
  )


def torus(
  major: float = 2.0,
  minor: float = 1.0,
  tilt: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> ConstrainedTarget:
  """The torus around the z axis with `f = -tilt . x`."""
  checks.check_finite("major", major)
  checks.check_finite("minor", minor, positive=True)
  checks.check_numbers("tilt", tilt)
  checks.check_shape("tilt", tilt, (3,))
  if not major > minor:
    raise ValueError(f"major must exceed minor={minor}, got {major}.")

  def place(around, along, xp):
    rho = major + minor * xp.cos(along)
    return xp.stack(
      [rho * xp.cos(around), rho * xp.sin(around), minor * xp.sin(along)],
      axis=-1,
    )

  def observables(x):
    return {
      "x1": x[0],
      "x3": x[2],
      "x1_squared": x[0] ** 2,
      "x3_squared": x[2] ** 2,
      "radius_squared": x[0] ** 2 + x[1] ** 2,
    }

  def exact():
    around, along = (
      a.ravel() for a in np.meshgrid(*[quadrature.angles(256)] * 2)
    )
    points = place(around, along, np)
    area = major + minor * np.cos(along)
    return quadrature.average(
      points, observables, np.log(area) + points @ np.array(tilt)
    )

  def init(key, num_chains):
    angles = jax.random.uniform(key, (num_chains, 2), maxval=2 * jnp.pi)
    return place(angles[:, 0], angles[:, 1], jnp)

  def eq_fn(x):
    rho = jnp.sqrt(x[0] ** 2 + x[1] ** 2)
    return jnp.stack([(rho - major) ** 2 + x[2] ** 2 - minor**2])

  return ConstrainedTarget(
    potential_fn=lambda x: -jnp.dot(jnp.asarray(tilt, x.dtype), x),
    dim=3,
    init=init,
    eq_fn=eq_fn,
    observables=observables,
    exact=exact,
  )


def stiefel(
  size: int, num_columns: int | None = None, kappa: float = 0.0
) -> ConstrainedTarget:
  """Orthonormal columns `X [size, num_columns]`, with `f = -kappa tr X`.

  Square matrices start with determinant +1 and keep it: `SO(size)`. Positions
  are `X` row by row. Expectations of the trace are known for `kappa = 0`, and
  on `SO(3)` for every `kappa` (density of the rotation angle).

  Args:
    size: Rows.
    num_columns: Columns, at most `size`; all by default.
    kappa: Pull towards the identity.
  """
  checks.check_int("size", size, 2)
  k = (
    size
    if num_columns is None
    else checks.check_int("num_columns", num_columns)
  )
  if k > size:
    raise ValueError(f"num_columns must be at most size={size}, got {k}.")
  upper = np.triu_indices(k)

  def eq_fn(x):
    matrix = x.reshape(size, k)
    return (matrix.T @ matrix - jnp.eye(k, dtype=x.dtype))[upper]

  def trace(x):
    return jnp.trace(x.reshape(size, k))

  def exact():
    if kappa == 0:
      square = k / size if k < size else (2.0 if size == 2 else 1.0)
      return {"trace": 0.0, "trace_squared": square}
    if (size, k) != (3, 3):
      return {}
    theta = quadrature.angles(8192)
    value = 1 + 2 * np.cos(theta)
    weight = (1 - np.cos(theta)) * np.exp(kappa * (value - 3))
    weight /= weight.sum()
    return {
      "trace": float(weight @ value),
      "trace_squared": float(weight @ value**2),
    }

  def init(key, num_chains):
    matrix = jax.random.normal(key, (num_chains, size, size))
    q, r = jnp.linalg.qr(matrix)
    # The signs of R's diagonal make Q uniform, and a row's sign makes det 1.
    q = q * jnp.sign(jnp.diagonal(r, axis1=1, axis2=2))[:, None]
    q = q.at[:, 0].multiply(jnp.sign(jnp.linalg.det(q))[:, None])
    return q[:, :, :k].reshape(num_chains, -1)

  return ConstrainedTarget(
    potential_fn=lambda x: -kappa * trace(x),
    dim=size * k,
    init=init,
    eq_fn=eq_fn,
    observables=lambda x: {"trace": trace(x), "trace_squared": trace(x) ** 2},
    exact=exact,
  )


def cap(height: float = 0.0, kappa: float = 0.0) -> ConstrainedTarget:
  """`{|x| = 1, z >= height}` in `R^3` with `f = -kappa z`."""
  checks.check_range("height", height, -1, 1, ends="()")
  checks.check_finite("kappa", kappa)

  def exact():
    # The height of a uniform point of the sphere is uniform (Archimedes).
    return quadrature.on_interval(height, 1.0, lambda z: kappa * z, "z")

  def init(key, num_chains):
    key_z, key_angle = jax.random.split(key)
    z = jax.random.uniform(key_z, (num_chains,), minval=height)
    rho = jnp.sqrt(1 - z**2)
    angle = jax.random.uniform(key_angle, (num_chains,), maxval=2 * jnp.pi)
    return jnp.stack([rho * jnp.cos(angle), rho * jnp.sin(angle), z], axis=1)

  return ConstrainedTarget(
    potential_fn=lambda x: -kappa * x[2],
    dim=3,
    init=init,
    eq_fn=lambda x: jnp.stack([jnp.sum(x**2) - 1]),
    ineq_fn=lambda x: jnp.stack([height - x[2]]),
    observables=lambda x: {"z": x[2], "z_squared": x[2] ** 2},
    exact=exact,
  )


def ball(dim: int, precision: float = 1.0) -> ConstrainedTarget:
  """`N(0, I / precision)` on `|x|^2 <= 1`; `precision = 0` is uniform."""
  checks.check_int("dim", dim)
  checks.check_finite("precision", precision)
  if precision < 0:
    raise ValueError(f"precision must be >= 0, got {precision}.")

  def exact():
    if precision == 0:
      return {"radius_squared": dim / (dim + 2)}
    ratio = stats.chi2.cdf(precision, dim + 2) / stats.chi2.cdf(precision, dim)
    return {"radius_squared": float(dim * ratio / precision)}

  def init(key, num_chains):
    key_direction, key_radius = jax.random.split(key)
    radius = jax.random.uniform(key_radius, (num_chains, 1)) ** (1 / dim)
    return radius * _directions(dim)(key_direction, num_chains)

  return ConstrainedTarget(
    potential_fn=lambda x: 0.5 * precision * jnp.sum(x**2),
    dim=dim,
    init=init,
    ineq_fn=lambda x: jnp.stack([jnp.sum(x**2) - 1]),
    observables=lambda x: {"radius_squared": jnp.sum(x**2)},
    exact=exact,
  )


def interval() -> ConstrainedTarget:
  """The uniform law on `[-1, 1]`, by two linear inequalities."""
  return ConstrainedTarget(
    potential_fn=lambda x: jnp.zeros((), x.dtype),
    dim=1,
    init=lambda key, n: jax.random.uniform(key, (n, 1), minval=-1.0),
    ineq_fn=lambda x: jnp.stack([x[0] - 1, -x[0] - 1]),
    observables=lambda x: {"x_squared": x[0] ** 2, "x_abs": jnp.abs(x[0])},
    exact=lambda: {"x_squared": 1 / 3, "x_abs": 0.5},
  )


def half_space(dim: int, bound: float = 0.5) -> ConstrainedTarget:
  """`N(0, I)` given `x_1 >= bound`."""
  checks.check_int("dim", dim)
  checks.check_finite("bound", bound)

  def exact():
    mean = stats.norm.pdf(bound) / stats.norm.sf(bound)
    return {"x1": float(mean), "x1_squared": float(1 + bound * mean)}

  def init(key, num_chains):
    x = jax.random.normal(key, (num_chains, dim))
    return x.at[:, 0].set(bound + jnp.abs(x[:, 0]))

  return ConstrainedTarget(
    potential_fn=lambda x: 0.5 * jnp.sum(x**2),
    dim=dim,
    init=init,
    ineq_fn=lambda x: jnp.stack([bound - x[0]]),
    observables=lambda x: {"x1": x[0], "x1_squared": x[0] ** 2},
    exact=exact,
  )


def simplex(dim: int) -> ConstrainedTarget:
  """The uniform law on `{x_i >= 0, sum x_i <= 1}`, with all its corners."""
  checks.check_int("dim", dim)

  def init(key, num_chains):
    return jax.random.dirichlet(key, jnp.ones(dim + 1), (num_chains,))[:, :dim]

  return ConstrainedTarget(
    potential_fn=lambda x: jnp.zeros((), x.dtype),
    dim=dim,
    init=init,
    ineq_fn=lambda x: jnp.concatenate([-x, jnp.sum(x)[None] - 1]),
    observables=lambda x: {"x1": x[0], "x1_squared": x[0] ** 2},
    exact=lambda: {
      "x1": 1 / (dim + 1),
      "x1_squared": 2 / ((dim + 1) * (dim + 2)),
    },
    sample=init,
  )


def _directions(dim: int):
  def init(key, num_chains):
    x = jax.random.normal(key, (num_chains, dim))
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)

  return init
