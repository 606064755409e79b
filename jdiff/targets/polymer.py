"""A chain of atoms with rigid bonds and angles that must not overlap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks
from jdiff.core.types import ConstrainedTarget

ANGLE = np.deg2rad(109.5)
TORSION = ((1, 0.5), (3, 0.2))
"""`(m, k)`: the potential is `sum k (1 + cos(m phi))` a torsion."""


def polymer(num_atoms: int) -> ConstrainedTarget:
  """`n` atoms in space: unit bonds, tetrahedral angles, torsion potential.

  Equalities fix `n - 1` squared bonds and `n - 2` cosines of angles;
  inequalities keep atoms that are three bonds or more apart at a distance of
  at least 1. Position and orientation are free, so only invariant observables
  have expectations. Up to five atoms these are known by quadrature over the
  torsions, with the volume of the rigid motions (arXiv:2510.22044, the
  experiment "highdim_polymer", without its potential between atoms, which
  vanishes on the feasible set).

  Args:
    num_atoms: `n >= 4`; positions are `[3 n]`.

  Returns:
    A target with the observables `gyration_squared` and `end_to_end_squared`.
  """
  checks.check_int("num_atoms", num_atoms, 4)
  pairs = np.array(
    [p for p in itertools.combinations(range(num_atoms), 2) if p[1] - p[0] > 2]
  )

  def atoms(x):
    return x.reshape(num_atoms, 3)

  def eq_fn(x):
    bonds = jnp.diff(atoms(x), axis=0)
    lengths = jnp.sum(bonds**2, axis=1)
    cosines = -jnp.sum(bonds[1:] * bonds[:-1], axis=1) / jnp.sqrt(
      lengths[1:] * lengths[:-1]
    )
    return jnp.concatenate([lengths - 1, cosines - np.cos(ANGLE)])

  def ineq_fn(x):
    gaps = atoms(x)[pairs[:, 0]] - atoms(x)[pairs[:, 1]]
    return 1 - jnp.sum(gaps**2, axis=1)

  def torsions(x):
    a, b, c = (
      jnp.diff(atoms(x), axis=0)[i : num_atoms - 3 + i] for i in range(3)
    )
    left, right = jnp.cross(a, b), jnp.cross(b, c)
    length = jnp.linalg.norm(b, axis=1)
    return jnp.arctan2(
      length * jnp.sum(a * right, axis=1), jnp.sum(left * right, axis=1)
    )

  def potential_fn(x):
    return torsion_energy(torsions(x), jnp)

  def observables(x):
    centred = atoms(x) - atoms(x).mean(axis=0, keepdims=True)
    return {
      "gyration_squared": jnp.mean(jnp.sum(centred**2, axis=1)),
      "end_to_end_squared": jnp.sum((atoms(x)[-1] - atoms(x)[0]) ** 2),
    }

  def build(phi):
    """Atoms `[n, 3]` of a chain with the given torsions `[n - 3]`."""
    turn = jnp.pi - ANGLE
    place = [
      jnp.zeros(3),
      jnp.array([1.0, 0, 0]),
      jnp.array([1 + jnp.cos(turn), jnp.sin(turn), 0]),
    ]
    for i in range(num_atoms - 3):
      before, last = place[-2] - place[-3], place[-1] - place[-2]
      normal = jnp.cross(before, last)
      normal = normal / jnp.linalg.norm(normal)
      up = jnp.cross(normal, last)
      step = (
        jnp.cos(turn) * last
        + jnp.sin(turn) * jnp.cos(phi[i]) * up * -1
        + jnp.sin(turn) * jnp.sin(phi[i]) * normal
      )
      place.append(place[-1] + step)
    return jnp.stack(place)

  def volume(phi):
    """Half the log-determinant of the metric of motions and torsions."""
    x = build(phi)
    shifts = jnp.broadcast_to(jnp.eye(3)[:, None], (3, num_atoms, 3))
    spins = jax.vmap(lambda axis: jnp.cross(axis, x))(jnp.eye(3))
    twists = jnp.moveaxis(jax.jacfwd(build)(phi), -1, 0)
    tangent = jnp.concatenate([shifts, spins, twists]).reshape(-1, x.size)
    return 0.5 * jnp.linalg.slogdet(tangent @ tangent.T)[1]

  def exact():
    if num_atoms > 5:
      return {}
    with jax.enable_x64(True):
      axis = 2 * np.pi * (np.arange(192) + 0.5) / 192
      grid = np.stack(np.meshgrid(*[axis] * (num_atoms - 3)), axis=-1)
      phi = jnp.asarray(grid.reshape(-1, num_atoms - 3))

      def one(p):
        x = build(p).ravel()
        log_weight = volume(p) - potential_fn(x)
        feasible = jnp.all(ineq_fn(x) <= 0)
        return jnp.where(feasible, log_weight, -jnp.inf), observables(x)

      log_weight, values = jax.lax.map(one, phi, batch_size=4096)
      share = np.asarray(jax.nn.softmax(log_weight))
      return {k: float(share @ np.asarray(v)) for k, v in values.items()}

  def init(key, num_chains):
    # Torsions near trans or gauche; chains that overlap are drawn again.
    shape = (num_chains, num_atoms - 3)

    @jax.jit
    def draw(key):
      third = jax.random.randint(key, shape, -1, 2)
      return jax.vmap(build)(jnp.pi + 2 * jnp.pi / 3 * third)

    kept: list[np.ndarray] = []
    for i in range(1000):
      x = draw(jax.random.fold_in(key, i)).reshape(num_chains, -1)
      ok = np.asarray(jax.vmap(ineq_fn)(x).max(axis=1) < 0)
      kept.extend(np.asarray(x)[ok])
      if len(kept) >= num_chains:
        return jnp.asarray(np.stack(kept[:num_chains]))
    raise ValueError(f"no feasible start of {num_atoms} atoms in 1000 draws.")

  return ConstrainedTarget(
    potential_fn=potential_fn,
    dim=3 * num_atoms,
    init=init,
    eq_fn=eq_fn,
    ineq_fn=ineq_fn,
    observables=observables,
    exact=exact,
  )


def torsion_energy(phi, xp):
  """`sum_m k_m (1 + cos(m phi))` over all torsions."""
  return sum(k * xp.sum(1 + xp.cos(m * phi)) for m, k in TORSION)
