"""The Potts model on a square lattice."""

import functools

import jax.numpy as jnp

from jdiff.core import checks, orders
from jdiff.core.types import Target
from jdiff.targets import cluster, exact, lattice
from jdiff.targets.ising import _pairs, lattice_values


def potts(
  size: int,
  num_states: int,
  *,
  beta: float,
  coupling: float = 1.0,
  periodic: bool = True,
) -> Target:
  """`log_prob = beta J sum_<ij> 1[x_i = x_j]`, each bond once.

  Args:
    size: Lattice side, `>= 2`.
    num_states: States `q >= 2` of a site.
    beta: Inverse temperature; the infinite lattice is critical at
      `log(1 + sqrt(q))`.
    coupling: `J`.
    periodic: Whether opposite edges are joined.

  Returns:
    A `Target` over tokens `[0, q)`. Observables: `energy_per_site`,
    `row_magnetisation`, `p_mode` (`[q]`, the chance that a state is the most
    frequent one, ties split) and `correlation` (`[size // 2]`, of
    `1[x_i = x_(i+r)] - 1/q`).

  Raises:
    ValueError: If a size is too small or a parameter not finite.
    TypeError: If a size is not an integer or a parameter not a number.
  """
  checks.check_int("size", size, 2)
  checks.check_int("num_states", num_states, 2)
  checks.check_finite("beta", beta)
  checks.check_finite("coupling", coupling)
  num_sites = size * size
  near = lattice.neighbours(size, periodic=periodic)

  def wide(x):
    return x.astype(jnp.promote_types(jnp.result_type(float), jnp.float32))

  def interaction(x):
    grid = x.reshape(size, size)
    bonds = sum(jnp.sum(wide(a == b)) for a, b in _pairs(grid, 1, periodic))
    return coupling * bonds

  def observables(x):
    grid = x.reshape(size, size)
    states = jnp.arange(num_states)
    share = wide(grid[..., None] == states[None, None]).mean(axis=1)
    row = (num_states * share.max(axis=1) - 1) / (num_states - 1)
    count = wide(x[:, None] == states[None]).sum(axis=0)
    top = wide(count == count.max())
    correlation = [
      sum(jnp.mean(wide(a == b)) for a, b in _pairs(grid, r, periodic)) / 2
      - 1 / num_states
      for r in range(1, max(size // 2, 1) + 1)
    ]
    return {
      "energy_per_site": -interaction(x) / num_sites,
      "row_magnetisation": row.mean(),
      "p_mode": top / top.sum(),
      "correlation": jnp.stack(correlation),
    }

  def conditional(tokens, sites=None):
    seen, exists = lattice_values(tokens, near, sites)
    revealed = (seen >= 0) & (seen < num_states)
    states = jnp.arange(num_states).reshape((1,) * seen.ndim + (-1,))
    agree = wide(seen[..., None] == states).sum(axis=-2)
    return beta * coupling * agree, (revealed | ~exists).all(axis=-1)

  def describe():
    shape = None
    if static and num_states**size <= 4096:
      shape = (size, num_states, beta, coupling, periodic)
    return exact.best_potts(target, shape)

  static = checks.is_concrete(beta, coupling)
  target = Target(
    log_prob=lambda x: beta * interaction(x),
    length=num_sites,
    num_tokens=num_states,
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
  if coupling * beta >= 0:
    target = target._replace(
      sample=cluster.sampler(
        size,
        num_states,
        near,
        beta=float(beta),
        strength=float(coupling),
        field=0.0,
        log_prob=target.log_prob,
      )
    )
  if periodic and num_states**size <= 1024:
    return target._replace(log_z=answers()["log_z"])
  return target
