"""Internal coordinates: hand values, round trips, the Jacobian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.targets import internal
from jdiff.targets.internal import Internal

# A chain with siblings, and one whose third atom is bonded to the first.
CHAIN = np.array(
  [
    [2, -1, -1, -1],
    [0, 2, -1, -1],
    [1, 0, 2, -1],
    [3, 1, 0, 2],
    [4, 1, 0, 3],
    [5, 3, 1, 4],
  ]
)
FORK = np.array(
  [
    [0, -1, -1, -1],
    [1, 0, -1, -1],
    [2, 0, 1, -1],
    [4, 0, 1, 2],
    [3, 4, 0, 2],
    [5, 0, 2, 4],
  ]
)

PLACE = jax.jit(lambda q: internal.to_cartesian(CHAIN, q))
FIND = jax.jit(lambda positions: internal.from_cartesian(CHAIN, positions))


def shape_of(seed, num=6):
  rng = np.random.default_rng(seed)
  return Internal(
    jnp.asarray(rng.uniform(0.1, 0.2, num - 1)),
    jnp.asarray(rng.uniform(0.7, 2.6, num - 2)),
    jnp.asarray(rng.uniform(-np.pi, np.pi, num - 3)),
  )


def test_the_fourth_atom_by_hand():
  # Right angles and unit bonds: along x, up y, and then cis, trans, or out of
  # the plane, clockwise as seen along y.
  tree = [[0, -1, -1, -1], [1, 0, -1, -1], [2, 1, 0, -1], [3, 2, 1, 0]]
  right = jnp.full(2, jnp.pi / 2)

  @jax.jit
  def place(torsion):
    placed = internal.to_cartesian(
      tree, Internal(jnp.ones(3), right, torsion[None])
    )
    # The same dihedral from its other end.
    atoms = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    return placed, internal.dihedral(placed, atoms)

  by_hand = {0: (0, 1, 0), 180: (2, 1, 0), 90: (1, 1, 1), -90: (1, 1, -1)}
  for degrees, last in by_hand.items():
    torsion = np.deg2rad(degrees).astype(np.float32)
    placed, found = place(torsion)
    expected = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], last])
    np.testing.assert_allclose(placed, expected, atol=1e-6)
    np.testing.assert_allclose(np.sin((found - torsion) / 2), 0, atol=1e-6)


@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
def test_round_trip(tree):
  @jax.jit
  def there_and_back(q):
    return internal.from_cartesian(tree, internal.to_cartesian(tree, q))

  with jax.enable_x64(True):
    for seed in range(5):
      given = shape_of(seed)
      found = there_and_back(given)
      for q, p in zip(given, found, strict=True):
        np.testing.assert_allclose(p, q, rtol=1e-10)


def test_rigid_motions_change_no_coordinate_and_mirrors_only_torsions():
  with jax.enable_x64(True):
    given = shape_of(1)
    placed = PLACE(given)
    turn = jax.random.orthogonal(jax.random.key(0), 3, dtype=jnp.float64)
    turn = turn * jnp.sign(jnp.linalg.det(turn))
    moved = FIND(placed @ turn + jnp.ones((1, 3)))
    mirrored = FIND(-placed)
    for q, p in zip(given, moved, strict=True):
      np.testing.assert_allclose(p, q, rtol=1e-10)
    np.testing.assert_allclose(mirrored.angles, given.angles, rtol=1e-10)
    np.testing.assert_allclose(mirrored.torsions, -given.torsions, rtol=1e-10)


@pytest.mark.parametrize("tree", [CHAIN, FORK], ids=["chain", "fork"])
def test_log_det_is_the_jacobian_with_rigid_motions(tree):
  def place(shift, spin, given):
    x = internal.to_cartesian(tree, given)
    # A rotation by its vector, to first order: exact for a derivative at zero.
    return (x + shift[None] + jnp.cross(spin[None], x)).ravel()

  with jax.enable_x64(True):
    jacobian = jax.jit(jax.jacfwd(place, argnums=(0, 1, 2)))
    for seed in range(5):
      given = shape_of(seed)
      shift, spin, inner = jacobian(jnp.zeros(3), jnp.zeros(3), given)
      matrix = jnp.concatenate([shift, spin, *inner], axis=1)
      assert matrix.shape == (18, 18)
      expected = jnp.linalg.slogdet(matrix)[1]
      np.testing.assert_allclose(internal.log_det(given), expected, rtol=1e-10)
      # The formula needs each of its parts.
      without = 2 * jnp.sum(jnp.log(given.bonds))
      assert abs(without - expected) > 1e-3


def test_under_vmap_and_jit():
  batch = jax.tree.map(
    lambda *q: jnp.stack(q), *[shape_of(i) for i in range(3)]
  )
  placed = jax.jit(jax.vmap(PLACE))(batch)
  one = PLACE(shape_of(2))
  np.testing.assert_allclose(placed[2], one, atol=1e-6)


def test_slopes_are_finite_where_atoms_coincide_or_align():
  atoms = np.array([[0, 1, 2, 3]])
  line = np.arange(4.0, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
  for of, width in (
    (internal.distance, 2),
    (internal.angle, 3),
    (internal.dihedral, 4),
  ):

    def one(x, of=of, width=width):
      return of(x, atoms[:, :width])[0]

    at = jax.jit(jax.value_and_grad(one))
    for x in (0 * line, line, 0.1 * line):
      value, slope = at(x)
      assert np.isfinite(value) and np.isfinite(slope).all(), of


@pytest.mark.parametrize(
  ("tree", "match"),
  [
    (CHAIN[:, :3], "tree must have shape"),
    (CHAIN[:3], "each of n >= 4 atoms"),
    (np.where(CHAIN == 5, 4, CHAIN), "each of n >= 4 atoms"),
    (np.where(CHAIN == -1, 0, CHAIN), "row 0 must refer to 0"),
    (CHAIN[[0, 1, 2, 5, 3, 4]], "row 3 must refer to 3"),
    (np.vstack([CHAIN[:5], [[5, 3, 3, 4]]]), "row 5 must refer to 3"),
  ],
)
def test_trees_are_checked(tree, match):
  with pytest.raises(ValueError, match=match):
    internal.check_tree(tree)


def test_other_arguments_are_checked():
  with pytest.raises(TypeError, match="tree must hold integers"):
    internal.check_tree(CHAIN.astype(float))
  short = shape_of(0)._replace(angles=jnp.ones(3))
  with pytest.raises(ValueError, match="internal.angles must have shape"):
    internal.to_cartesian(CHAIN, short)
  with pytest.raises(ValueError, match="positions must have shape"):
    internal.from_cartesian(CHAIN, jnp.zeros((5, 3)))
