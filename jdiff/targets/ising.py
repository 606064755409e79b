"""The Ising model on a square lattice."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks, orders
from jdiff.core.types import Target
from jdiff.targets import cluster, exact, lattice, torus
from jdiff.targets import enumerate as enumerate_lib


def ising(
  size: int,
  *,
  beta: float,
  coupling: float = 1.0,
  field: float = 0.0,
  periodic: bool = True,
) -> Target:
  """`log_prob = beta (J sum_<ij> s_i s_j + h sum_i s_i)`, `s = 2 x - 1`.

  Each bond counts once (twice on a periodic lattice of side 2, as the shifted
  lattice sums have it). Orders: `"random"`, `"even_odd"`, `"chain"`.

  Args:
    size: Lattice side, `>= 2`; `L = size ** 2` sites.
    beta: Inverse temperature.
    coupling: `J`; negative is the antiferromagnet.
    field: `h`.
    periodic: Whether opposite edges are joined.

  Returns:
    A `Target` over tokens `{0, 1}`. Observables: `energy_per_site` (without
    beta), `magnetisation`, `abs_magnetisation`, `p_positive` (1 where the
    magnetisation is positive, 1/2 where zero) and `correlation`, `[size //
    2]`, of `s_i s_(i+r)` along rows and columns, `r = 1, 2, ...`.

  Raises:
    ValueError: If `size < 2` or a parameter is not finite.
    TypeError: If `size` is not an integer or a parameter not a number.
  """
  checks.check_int("size", size, 2)
  for name, value in (("beta", beta), ("coupling", coupling), ("field", field)):
    checks.check_finite(name, value)
  num_sites = size * size
  near = lattice.neighbours(size, periodic=periodic)

  def spins(x):
    wide = jnp.promote_types(jnp.result_type(float), jnp.float32)
    return (2 * x - 1).astype(wide).reshape(size, size)

  def interaction(x):
    """`J sum s s + h sum s`, which is minus the energy."""
    s = spins(x)
    bonds = sum(jnp.sum(a * b) for a, b in _pairs(s, 1, periodic))
    return coupling * bonds + field * jnp.sum(s)

  def observables(x):
    s = spins(x)
    m = jnp.mean(s)
    distances = range(1, max(size // 2, 1) + 1)
    correlation = [
      sum(jnp.mean(a * b) for a, b in _pairs(s, r, periodic)) / 2
      for r in distances
    ]
    return {
      "energy_per_site": -interaction(x) / num_sites,
      "magnetisation": m,
      "abs_magnetisation": jnp.abs(m),
      "p_positive": 0.5 * (1 + jnp.sign(m)),
      "correlation": jnp.stack(correlation),
    }

  def conditional(tokens, sites=None):
    seen, exists = lattice_values(tokens, near, sites)
    revealed = (seen >= 0) & (seen < 2)
    s = jnp.where(revealed, 2.0 * seen - 1.0, 0.0)
    odds = beta * (coupling * s.sum(axis=-1) + field)
    return jnp.stack([-odds, odds], -1), (revealed | ~exists).all(axis=-1)

  def describe():
    return exact.best(
      target, None if not static else (size, beta, coupling, field, periodic)
    )

  static = checks.is_concrete(beta, coupling, field)
  sample = None
  if static:
    sample = cluster.sampler(
      size,
      2,
      near,
      beta=float(beta),
      strength=2 * float(coupling),
      field=float(field),
      log_prob=lambda x: beta * interaction(x),
    )
  target = Target(
    log_prob=lambda x: beta * interaction(x),
    length=num_sites,
    num_tokens=2,
    sample=sample,
    observables=observables,
    conditional=conditional,
    orders={
      "random": orders.uniform(num_sites),
      "even_odd": lattice.even_odd(size, periodic=periodic),
      "chain": lattice.chain(size, periodic=periodic),
    },
    context=functools.partial(lattice.context, size, periodic=periodic),
  )
  if not static:
    return target
  answers = functools.cache(describe)
  target = target._replace(exact=answers)
  solvable = periodic and field == 0 and size > 2 and coupling * beta != 0
  if solvable and (coupling * beta > 0 or size % 2 == 0):
    k = abs(float(beta) * float(coupling))
    return target._replace(log_z=torus.kaufman_log_z(size, size, k))
  if 2**num_sites <= enumerate_lib.MAX_STATES:
    return target._replace(log_z=answers()["log_z"])
  return target


def lattice_values(tokens: jax.Array, near: np.ndarray, sites):
  """Tokens `[B, m, 4]` at the sites' neighbours (-1 beyond an edge)."""
  table = jnp.asarray(near)
  table = table if sites is None else table[sites]
  index = jnp.maximum(table, 0)
  if table.ndim == 2:
    seen, table = tokens[:, index], table[None]
  else:
    flat = index.reshape(index.shape[0], -1)
    seen = jnp.take_along_axis(tokens, flat, axis=1).reshape(index.shape)
  return jnp.where(table >= 0, seen, -1), jnp.broadcast_to(
    table >= 0, seen.shape
  )


def _pairs(grid: jax.Array, distance: int, periodic: bool):
  """The two lists of partners at a distance along rows and columns."""
  if periodic:
    return [(grid, jnp.roll(grid, -distance, axis)) for axis in (0, 1)]
  return [
    (grid[:-distance], grid[distance:]),
    (grid[:, :-distance], grid[:, distance:]),
  ]


CRITICAL_BETA = math.log(1 + math.sqrt(2)) / 2
"""Inverse critical temperature of the infinite lattice at `J = 1`, `h = 0`."""
