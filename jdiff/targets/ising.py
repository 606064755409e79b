"""The Ising model on a square lattice."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks, orders
from jdiff.core.types import Target
from jdiff.targets import cluster, exact, lattice, torus, transfer
from jdiff.targets import enumerate as enumerate_lib


def ising(
  size: int,
  *,
  beta: float,
  coupling: float | np.ndarray | jax.Array = 1.0,
  field: float | np.ndarray | jax.Array = 0.0,
  periodic: bool = True,
) -> Target:
  """`log_prob = beta (sum_<ij> J_ij s_i s_j + sum_i h_i s_i)`, `s = 2 x - 1`.

  Each bond counts once (twice on a periodic lattice of side 2, as the shifted
  lattice sums have it). Orders: `"random"`, `"even_odd"`, `"chain"`.

  Args:
    size: Lattice side, `>= 2`; `L = size ** 2` sites.
    beta: Inverse temperature.
    coupling: `J`; negative is the antiferromagnet. Or `[L, 2]`, of each site
      with the one below it and the one on its right, as
      `lattice.neighbours` has them: spin glasses, diluted lattices. Without
      periodic edges, bonds beyond an edge are ignored.
    field: `h`, or `[L]`, of each site.
    periodic: Whether opposite edges are joined.

  Returns:
    A `Target` over tokens `{0, 1}`. Observables: `energy_per_site` (without
    beta), `magnetisation`, `abs_magnetisation`, `p_positive` (1 where the
    magnetisation is positive, 1/2 where zero) and `correlation`, `[size //
    2]`, of `s_i s_(i+r)` along rows and columns, `r = 1, 2, ...`.

    With an array among the parameters `sample` is exact, and `exact` has the
    answers of `transfer.solve`: those alone above side 4, and neither, nor
    `log_z`, above side `transfer.MAX_SIDE`. A network that shares weights over
    sites sees the disorder through `conditional` alone.

  Raises:
    ValueError: If `size < 2`, or a parameter is not finite or has a wrong
      shape.
    TypeError: If `size` is not an integer or a parameter holds no numbers.
  """
  checks.check_int("size", size, 2)
  num_sites = size * size
  checks.check_finite("beta", beta)
  _check("coupling", coupling, (num_sites, 2))
  _check("field", field, (num_sites,))
  disordered = np.ndim(coupling) > 0 or np.ndim(field) > 0
  near = lattice.neighbours(size, periodic=periodic)

  def spins(x):
    wide = jnp.promote_types(jnp.result_type(float), jnp.float32)
    return (2 * x - 1).astype(wide).reshape(size, size)

  def fill(dtype):
    """The parameters as `[L, 2]` and `[L]`."""
    return (
      jnp.broadcast_to(jnp.asarray(coupling, dtype), (num_sites, 2)),
      jnp.broadcast_to(jnp.asarray(field, dtype), (num_sites,)),
    )

  def interaction(x):
    """`sum J s s + sum h s`, which is minus the energy."""
    s = spins(x)
    if disordered:
      couplings, fields = fill(s.dtype)
      return _weigh(s, couplings, fields, periodic)
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
    if disordered:
      couplings, fields = fill(s.dtype)
      odds = beta * _local_field(s, couplings, fields, near, sites)
    else:
      odds = beta * (coupling * s.sum(axis=-1) + field)
    return jnp.stack([-odds, odds], -1), (revealed | ~exists).all(axis=-1)

  def describe():
    return exact.best(
      target, None if not static else (size, beta, coupling, field, periodic)
    )

  static = checks.is_concrete(beta, coupling, field)
  sample = None
  if static and disordered and size <= transfer.MAX_SIDE:
    sample = transfer.sampler(size, beta, coupling, field, periodic)
  elif static and not disordered:
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
  if not static or (disordered and size > transfer.MAX_SIDE):
    return target
  answers = functools.cache(describe)
  target = target._replace(exact=answers)
  if disordered:
    return target._replace(log_z=answers()["log_z"])
  solvable = periodic and field == 0 and size > 2 and coupling * beta != 0
  if solvable and (coupling * beta > 0 or size % 2 == 0):
    k = abs(float(beta) * float(coupling))
    return target._replace(log_z=torus.kaufman_log_z(size, size, k))
  if 2**num_sites <= enumerate_lib.MAX_STATES:
    return target._replace(log_z=answers()["log_z"])
  return target


def lattice_values(tokens: jax.Array, near: np.ndarray, sites):
  """Tokens `[B, m, D]` at the sites' neighbours, and which of them exist.

  Args:
    tokens: `[B, L]` int.
    near: `[L, D]` neighbours, -1 where there are fewer; so are their tokens.
    sites: `[m]`, `[B, m]` or None for all.
  """
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


def _check(name: str, value, shape: tuple[int, ...]) -> None:
  """Raises unless `value` is a finite number or such an array of them."""
  if np.ndim(value) == 0:
    checks.check_finite(name, value)
    return
  checks.check_shape(name, value, shape, "Or pass one number for all.")
  if not checks.is_concrete(value):
    return
  try:
    numbers = np.asarray(value, np.float64)
  except (TypeError, ValueError):
    raise TypeError(f"{name} must hold numbers, got {value!r}.") from None
  if not np.isfinite(numbers).all():
    where = np.argwhere(~np.isfinite(numbers))[0]
    raise ValueError(
      f"{name} must be finite, got {numbers[tuple(where)]} at {where.tolist()}."
    )


def _weigh(s: jax.Array, bonds: jax.Array, field: jax.Array, periodic: bool):
  """`sum J s s + sum h s` of a `[size, size]` grid, by `[L, 2]` and `[L]`."""
  total = jnp.sum(field.reshape(s.shape) * s)
  for axis, (a, b) in enumerate(_pairs(s, 1, periodic)):
    inside = bonds[:, axis].reshape(s.shape)[: a.shape[0], : a.shape[1]]
    total = total + jnp.sum(inside * a * b)
  return total


def _local_field(s, bonds, field, near: np.ndarray, sites):
  """`[B, m]`: the field at the sites whose neighbours' spins are `s`, or 0."""
  _, up, _, left = near.T
  around = jnp.stack(
    [bonds[:, 0], bonds[up, 0], bonds[:, 1], bonds[left, 1]], axis=1
  )
  if sites is not None:
    around, field = around[sites], field[sites]
  if around.ndim == 2:
    around, field = around[None], field[None]
  return (around * s).sum(axis=-1) + field


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
