"""Internal coordinates of a molecule: bonds, angles, torsions, and their law.

A tree (Z-matrix) places every atom by its distance to one placed atom, the
angle to a second and the dihedral to a third. Given those, the atom is in
spherical coordinates, so the Jacobian is a product of `b^2 sin a`, whatever
atoms are referred to. Units are free; angles are radians.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jdiff.core import checks

# Squared lengths and areas below it have no direction. Molecules in nm, and in
# Angstrom, are far above; its square is a normal float32.
TINY = 1e-16


class Internal(NamedTuple):
  """The `3 n - 6` shape coordinates of `n` atoms, in the order of a tree.

  Attributes:
    bonds: `[n - 1]`, lengths, of the tree's second atom onwards.
    angles: `[n - 2]`, in `(0, pi)`, of its third atom onwards.
    torsions: `[n - 3]`, dihedrals, of its fourth atom onwards.
  """

  bonds: jax.Array | np.ndarray
  angles: jax.Array | np.ndarray
  torsions: jax.Array | np.ndarray


def check_tree(tree: ArrayLike) -> np.ndarray:
  """`tree` as `[n, 4]` integers, or what is wrong with it.

  Args:
    tree: `[n, 4]`, `n >= 4`: rows of an atom, and of the atoms that its bond,
      angle and torsion refer to, all of which stand in earlier rows. The first
      row refers to none, the second to one, the third to two: -1 elsewhere.

  Raises:
    ValueError: If a row refers to later atoms, or twice to one.
    TypeError: If the entries are no integers.
  """
  rows = np.asarray(tree)
  checks.check_shape("tree", rows, (None, 4))
  if not np.issubdtype(rows.dtype, np.integer):
    raise TypeError(f"tree must hold integers, got dtype {rows.dtype}.")
  num = len(rows)
  if num < 4 or sorted(rows[:, 0]) != list(range(num)):
    raise ValueError(
      "tree must place each of n >= 4 atoms 0, ..., n - 1 once, got "
      f"{rows[:, 0].tolist()}."
    )
  for i, row in enumerate(rows):
    used, absent = np.split(row[1:], [min(i, 3)])
    earlier = np.isin(used, rows[:i, 0]).all()
    if not earlier or len(set(used)) < len(used) or (absent != -1).any():
      raise ValueError(
        f"tree row {i} must refer to {len(used)} different atoms of earlier "
        f"rows, then to -1, got {row.tolist()}."
      )
  return rows


def to_cartesian(tree: ArrayLike, internal: Internal) -> jax.Array:
  """Positions `[n, 3]` with the given internal coordinates.

  The tree's first atom is at the origin, its second on the positive x axis,
  its third in the xy plane with `y > 0`. A dihedral is positive if, seen along
  the middle bond, the far bond is clockwise of the near one (IUPAC).

  Args:
    tree: Static, as `check_tree` wants it.
    internal: One molecule's; batch with `jax.vmap`.
  """
  rows = check_tree(tree)
  num = len(rows)
  for name, values in zip(internal._fields, internal, strict=True):
    checks.check_numbers(f"internal.{name}", values)
  bonds, angles, torsions = (jnp.asarray(q) for q in internal)
  checks.check_shape("internal.bonds", bonds, (num - 1,))
  checks.check_shape("internal.angles", angles, (num - 2,))
  checks.check_shape("internal.torsions", torsions, (num - 3,))
  along, across = bonds[1:] * jnp.cos(angles), bonds[1:] * jnp.sin(angles)
  # The third atom, bonded to the second or to the first.
  on_second = rows[2, 1] == rows[1, 0]
  third = bonds[0] - along[0] if on_second else along[0]
  zero = jnp.zeros_like(third)
  start = jnp.array([[zero, zero, zero], [bonds[0], zero, zero]])
  start = jnp.concatenate([start, jnp.stack([third, across[0], zero])[None]])
  place = jnp.zeros((num, 3), start.dtype).at[rows[:3, 0]].set(start)
  along, across = along[1:, None], across[1:, None]
  cos, sin = jnp.cos(torsions)[:, None], jnp.sin(torsions)[:, None]
  for level in _levels(rows):
    atom, bonded, middle, far = rows[level].T
    row = level - 3
    axis = _unit(place[bonded] - place[middle])
    normal = _unit(jnp.cross(place[middle] - place[far], axis))
    towards = jnp.cross(normal, axis)
    turned = cos[row] * towards + sin[row] * normal
    step = across[row] * turned - along[row] * axis
    place = place.at[atom].set(place[bonded] + step)
  return place


def from_cartesian(tree: ArrayLike, positions: jax.Array) -> Internal:
  """The inverse of `to_cartesian`, up to a rigid motion.

  Args:
    tree: As in `to_cartesian`.
    positions: `[n, 3]`.

  Returns:
    Torsions in `(-pi, pi]`.
  """
  rows = check_tree(tree)
  checks.check_shape("positions", positions, (len(rows), 3))
  return Internal(
    distance(positions, rows[1:, :2]),
    angle(positions, rows[2:, :3]),
    dihedral(positions, rows[3:]),
  )


def log_det(internal: Internal) -> jax.Array:
  """`log |d positions / d (rigid motion, internal)|`, a scalar.

  `sum log b^2 + sum log sin a`. The rigid motion is the first atom's place and
  a rotation, with the measure of its rotation vector at zero: all rotations
  together have the volume `8 pi^2`.
  """
  bonds, angles, _ = internal
  return 2 * jnp.sum(jnp.log(bonds)) + jnp.sum(jnp.log(jnp.sin(angles)))


def distance(positions: jax.Array, atoms: ArrayLike) -> jax.Array:
  """Distances `[m]` of the pairs `atoms` `[m, 2]`; derivative 0 at zero."""
  a, b = _picked(positions, atoms, 2)
  return _norm(b - a)


def angle(positions: jax.Array, atoms: ArrayLike) -> jax.Array:
  """Angles `[m]`, in `[0, pi]`, at the middle atoms of `[m, 3]`."""
  a, b, c = _picked(positions, atoms, 3)
  left, right = a - b, c - b
  cos = jnp.sum(left * right, axis=1)
  sin = _norm(jnp.cross(left, right))
  return jnp.arctan2(sin, jnp.where(sin**2 + cos**2 > 0, cos, 1))


def dihedral(positions: jax.Array, atoms: ArrayLike) -> jax.Array:
  """Dihedrals `[m]` of `[m, 4]`, in `(-pi, pi]`; 0 where three atoms align."""
  i, j, k, m = _picked(positions, atoms, 4)
  a, b, c = j - i, k - j, m - k
  left, right = jnp.cross(a, b), jnp.cross(b, c)
  sin = _norm(b) * jnp.sum(a * right, axis=1)
  cos = jnp.sum(left * right, axis=1)
  fine = sin**2 + cos**2 > TINY**2
  return jnp.arctan2(jnp.where(fine, sin, 0), jnp.where(fine, cos, 1))


def _picked(positions, atoms, width):
  """Positions `[m, 3]` of each of the `width` columns of `atoms`."""
  checks.check_numbers("positions", positions)
  checks.check_shape("positions", positions, (None, 3))
  checks.check_integers("atoms", atoms)
  checks.check_shape("atoms", atoms, (None, width))
  positions = jnp.asarray(positions)
  return [positions[i] for i in jnp.asarray(atoms).T]


def _levels(rows):
  """Rows after the third, grouped by what must be placed before them."""
  depth = {int(atom): 0 for atom in rows[:3, 0]}
  for row in rows[3:]:
    depth[int(row[0])] = 1 + max(depth[int(a)] for a in row[1:])
  depths = np.array([depth[int(atom)] for atom in rows[:, 0]])
  return [np.flatnonzero(depths == d) for d in range(1, depths.max() + 1)]


def _norm(v):
  square = jnp.sum(v**2, axis=-1)
  fine = square > 0
  return jnp.where(fine, jnp.sqrt(jnp.where(fine, square, 1)), 0)


def _unit(v):
  square = jnp.sum(v**2, axis=-1, keepdims=True)
  return v / jnp.sqrt(jnp.maximum(square, TINY))
