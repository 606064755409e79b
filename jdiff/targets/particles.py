"""Particles that interact in pairs: double wells and Lennard-Jones clusters.

Configurations are `[n, d]` positions. Energies do not depend on the centre of
mass, so the law lives on the subspace where it is zero, with the volume of
`R^(nd)` restricted to it: `log_z` is an integral over `(n - 1) d` isometric
coordinates, of which two particles have `(x_1 - x_2) / sqrt(2)`. It is exact
for two particles, by radial quadrature in float64, and unknown for more; there
are no exact draws.

Observables: `energy` (not times `beta`), `distance` `[n (n - 1) / 2]` in
ascending order, and `radius_of_gyration`, the root of the mean of
`|x_i - centre|^2`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from jdiff.core import checks
from jdiff.core.types import Target


def double_well_particles(
  num_particles: int = 4,
  dim: int = 2,
  *,
  a: float = 0.0,
  b: float = -4.0,
  c: float = 0.9,
  centre: float = 4.0,
  beta: float = 1.0,
) -> Target:
  """`sum_(i < j) a s + b s^2 + c s^4` with `s = |x_i - x_j| - centre`.

  The defaults are DW-4 of arXiv:2510.03824: distances near `4 +- 1.49`.

  Args:
    num_particles: Particles `n`, at least 2.
    dim: Dimension `d` of space.
    a: Coefficient of the slope.
    b: Of the square; negative for two wells.
    c: Of the fourth power, positive.
    centre: Distance between the wells.
    beta: Inverse temperature.

  Raises:
    ValueError: If a number is out of its range.
    TypeError: If a count is not an integer.
  """
  a, b = checks.check_finite("a", a), checks.check_finite("b", b)
  c = checks.check_finite("c", c, positive=True)
  centre = checks.check_finite("centre", centre, positive=True)

  def pair(r, xp):
    s = r - centre
    return a * s + b * s**2 + c * s**4

  # Beyond it the energy rises.
  outer = centre + (abs(b) / c) ** 0.5 + (abs(a) / c) ** (1 / 3)
  return _cluster(num_particles, dim, pair, beta, outer)


def lennard_jones(
  num_particles: int = 13,
  dim: int = 3,
  *,
  epsilon: float = 1.0,
  rm: float = 1.0,
  oscillator: float = 1.0,
  core: float = 0.6,
  beta: float = 1.0,
) -> Target:
  """Lennard-Jones particles held together by a harmonic potential.

  `E = epsilon sum_(i < j) ((rm / r_ij)^12 - 2 (rm / r_ij)^6)
  + oscillator / 2 sum_i |x_i - centre|^2`: each pair counts once, as in early
  bgflow. The released adjoint samplers (and DEM, whose code they take) count
  it twice, which is `epsilon=2` here.

  Below `core * rm` the pair potential goes on along its tangent, so that
  energies and gradients are finite where particles meet. By default that is
  where a pair costs 416 `epsilon` or more (a factor `e^-416` of the density at
  `beta = epsilon = 1`), and no pair's force exceeds 8,759 `epsilon / rm`.

  Args:
    num_particles: Particles `n`, at least 2.
    dim: Dimension `d` of space.
    epsilon: Depth of a pair's well.
    rm: Distance at its bottom.
    oscillator: Stiffness of the harmonic potential, positive: without it the
      cluster evaporates.
    core: Distance, in `rm`, below which the law is changed; in `[0.01, 1)`.
    beta: Inverse temperature.

  Raises:
    ValueError: If a number is out of its range.
    TypeError: If a count is not an integer.
  """
  epsilon = checks.check_finite("epsilon", epsilon, positive=True)
  rm = checks.check_finite("rm", rm, positive=True)
  oscillator = checks.check_finite("oscillator", oscillator, positive=True)
  core = checks.check_finite("core", core)
  # Smaller ones overflow float32.
  checks.check_range("core", core, 0.01, 1, ends="[)")
  slope = 12 * (core**-7 - core**-13)

  def pair(r, xp):
    # Clamped: the power could overflow, and its gradient turn to NaN.
    q = r / rm
    sixth = xp.maximum(q, core) ** -6
    tangent = slope * xp.minimum(q - core, 0)
    return epsilon * ((sixth - 1) ** 2 - 1 + tangent)

  return _cluster(num_particles, dim, pair, beta, rm, oscillator)


def _cluster(
  num: int,
  dim: int,
  pair: Callable[[Any, Any], Any],
  beta: float,
  outer: float,
  oscillator: float = 0.0,
) -> Target:
  """Particles with the pair potential `pair(r, xp)`, `xp` NumPy or JAX's.

  Args:
    num: Particles.
    dim: Dimension of space.
    pair: The potential of a distance.
    beta: Inverse temperature.
    outer: A distance beyond which a pair's energy rises.
    oscillator: Stiffness of the harmonic potential.
  """
  num = checks.check_int("num_particles", num, 2)
  dim = checks.check_int("dim", dim)
  beta = checks.check_finite("beta", beta, positive=True)
  first, second = (i.astype(np.int32) for i in np.triu_indices(num, 1))

  def distances(x):
    squares = jnp.sum((x[first] - x[second]) ** 2, axis=1)
    # The double where: the root has no gradient at zero.
    apart = squares > 1e-30
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)

  def spread(x):
    return jnp.sum((x - jnp.mean(x, axis=0, keepdims=True)) ** 2)

  def energy(x):
    checks.check_shape("x", x, (num, dim), "Batch with jax.vmap.")
    value = jnp.sum(pair(distances(x), jnp))
    return value + 0.5 * oscillator * spread(x) if oscillator else value

  def observables(x):
    return {
      "energy": energy(x),
      "distance": jnp.sort(distances(x)),
      "radius_of_gyration": jnp.sqrt(spread(x) / num),
    }

  answer = None
  if num == 2:
    answer = _two(
      lambda r: pair(r, np) + 0.25 * oscillator * r**2, dim, beta, outer
    )
  return Target(
    log_prob=lambda x: -beta * energy(x),
    dim=(num - 1) * dim,
    log_z=None if answer is None else answer["log_z"],
    exact=None if answer is None else lambda: dict(answer),
    observables=observables,
    particles=(num, dim),
  )


def _two(energy, dim, beta, outer):
  """Exact answers for two particles of `energy(r)` at distance `r`."""
  reach = outer
  while True:
    # Until the density at the end is below exp(-60) of its greatest.
    values = energy(np.linspace(0, reach, 10_001))
    if beta * (values[-1] - values.min()) > 60:
      break
    reach *= 1.2
  # Gauss-Legendre on panels, half of them where the pair's wells are.
  near = np.linspace(0, min(reach, 4 * outer), 201)
  edges = np.union1d(near, np.linspace(0, reach, 201))
  nodes, weight = np.polynomial.legendre.leggauss(20)
  step = np.diff(edges)[:, None]
  r = (edges[:-1, None] + step * (nodes[None] + 1) / 2).ravel()
  weight = (weight[None] * step / 2).ravel()
  # The isometric coordinate is a vector of length r / sqrt(2).
  log_volume = (
    np.log(2)
    + dim / 2 * np.log(np.pi)
    - special.gammaln(dim / 2)
    - dim / 2 * np.log(2)
  )
  value = energy(r)
  log_mass = np.log(weight) + (dim - 1) * np.log(r) - beta * value
  log_total = special.logsumexp(log_mass)
  share = np.exp(log_mass - log_total)
  return {
    "log_z": float(log_total + log_volume),
    "energy": float(share @ value),
    "distance": np.array([share @ r]),
    "radius_of_gyration": float(share @ r) / 2,
  }
