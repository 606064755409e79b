"""More targets: lattices, molecules, sets, mixtures, fairness."""

import functools

import jax.numpy as jnp
import numpy as np

from jdiff import targets
from jdiff.targets import (
  exact,
  internal,
  lattice,
  manifolds,
  maxcut,
  mixtures,
  molecules,
  torus,
  transfer,
)
from tests.inputs.base import KEY, ROWS, case

TREE = np.array(
  [[0, -1, -1, -1], [1, 0, -1, -1], [2, 1, 0, -1], [3, 2, 1, 0]], np.int32
)
PLACES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]], np.float32) / 10
COORDINATES = np.zeros(6, np.float32)
POINT = np.zeros(2, np.float32)
PROBLEM = targets.ising(size=2, beta=0.3)
_ATOMS = np.array([[0.3, 0.3, 0.4]] * 4)
_NEAR = np.array([[0, 1], [1, 2], [2, 3]])
BAD_VECTOR = ["x", POINT[None], POINT[1:], POINT.astype(str)]
BAD_PLACES = ["x", PLACES[0], PLACES[:, 1:], PLACES.astype(str)]
BAD_ATOMS = ["x", np.zeros(3), np.zeros(3, np.int32), _NEAR.astype(np.float32)]


def _internal(bonds, angles, torsions):
  return internal.Internal(
    np.full(3, bonds), np.full(2, angles), np.full(1, torsions)
  )


CENTRE, SCALE = _internal(0.1, 1.5, 0.1), _internal(0.01, 0.1, 1.0)


def _chart():
  return molecules.chart(
    TREE, centre=CENTRE, scale=SCALE, windows=np.array([np.inf])
  )


def _field():
  return molecules.ForceField(
    bonds=_NEAR,
    bond_params=np.array([[0.1, 3e5]] * 3),
    angles=TREE[2:, :3],
    angle_params=np.array([[1.9, 400.0]] * 2),
    torsions=TREE[3:],
    torsion_params=np.array([[3, 0.3, 5.0]]),
    pairs=np.array([[0, 3]]),
    pair_params=np.array([[0.1, 0.3, 0.1]]),
  )


def _mixture():
  return mixtures.mixture(np.full(2, 0.5), np.eye(2), np.ones(2))


# Lattices.
_MODEL = dict(size=3, beta=0.3, coupling=1.0, field=0.0)
_FINITE = dict.fromkeys(("beta", "coupling", "field"), "finite")
_ARRAYS = {
  "coupling": ["x", np.ones((3, 2)), np.ones((9, 2), bool)],
  "field": ["x", np.ones(3), np.ones(9, bool)],
}
case(exact.ising_energy, lambda: _MODEL, _traced=False, size="two", **_FINITE)
case(
  exact.ising_transfer,
  lambda: dict(size=3, k=0.3, field=0.0),
  _traced=False,
  size="two",
  k="finite",
  field="finite",
)
case(
  exact.potts_transfer,
  lambda: dict(size=2, num_states=2, beta=0.3, coupling=1.0),
  _traced=False,
  size="two",
  num_states="two",
  beta="finite",
  coupling="finite",
)
for _function in (transfer.solve, transfer.sampler):
  case(
    _function,
    lambda: _MODEL | dict(size=3),
    _traced=False,
    size="two",
    beta="finite",
    **_ARRAYS,
  )
for _function in (lattice.checkerboard, lattice.even_odd, lattice.neighbours):
  case(_function, lambda: dict(size=3), _traced=False, size="two")
case(
  lattice.chain,
  lambda: dict(size=4, num_subsets=2),
  _traced=False,
  size="two",
  num_subsets="count",
)
case(
  lattice.context,
  lambda: dict(size=3, order=None, num_neighbours=2),
  _traced=False,
  size="two",
  num_neighbours="count",
)
for _function in (torus.kaufman_log_z, torus.kaufman_terms):
  case(
    _function,
    lambda: dict(rows=3, cols=4, k=0.3),
    _traced=False,
    rows="two",
    cols="two",
    k="positive",
  )
case(
  torus.row_correlation,
  lambda: dict(size=4, k=0.3),
  _traced=False,
  size="two",
  k="positive",
)
case(
  maxcut.max_cut_value,
  lambda: dict(
    edges=maxcut.petersen(), num_nodes=10, weights=np.ones(15), time_limit=9.0
  ),
  _traced=False,
  edges="tokens",
  num_nodes="count",
  weights=["x", np.ones(14), np.zeros(15), np.full(15, np.nan)],
  time_limit="positive",
)
case(
  targets.temper,
  lambda: dict(target=PROBLEM, scale=0.5),
  scale=["x", "1", True, 0, -1.0, np.nan, (1.0,), np.ones(2), jnp.ones(2)],
)

# Mixtures and wells.
case(
  targets.student_mixture,
  lambda: dict(
    weights=np.full(2, 0.5), means=np.eye(2), degrees=2.0, log_z=0.0
  ),
  weights="rows",
  means="rows",
  degrees="positive",
  log_z="finite",
)
case(
  targets.gaussian_mixture,
  lambda: dict(mixture=_mixture(), log_z=0.0),
  log_z="finite",
)
for _function in (mixtures.log_prob, mixtures.score):
  case(_function, lambda: dict(mixture=_mixture(), x=POINT), x=BAD_VECTOR)
case(
  mixtures.denoised,
  lambda: dict(mixture=_mixture(), x=POINT, alpha=0.5, sigma=0.5),
  x=BAD_VECTOR,
  alpha=["x", POINT],
  sigma=["x", POINT],
)
case(
  mixtures.diffused,
  lambda: dict(mixture=_mixture(), alpha=0.5, sigma=0.5),
  alpha=["x", POINT],
  sigma=["x", POINT],
)
case(
  targets.many_well_pairs,
  lambda: dict(dim=2),
  dim=["x", "2", True, 1.5, 3, 0, -2],
)

# Sets.
case(
  manifolds.cap,
  lambda: dict(height=0.0, kappa=0.0),
  height=["x", True, np.nan, -1.0, 1.0],
  kappa="finite",
)
case(manifolds.circle, lambda: dict(kappa=0.0), kappa="finite")
case(
  manifolds.ellipse,
  lambda: dict(axis=2.0, kappa=0.0),
  axis="positive",
  kappa="finite",
)
case(
  manifolds.half_space,
  lambda: dict(dim=2, bound=0.5),
  dim="count",
  bound="finite",
)
case(manifolds.simplex, lambda: dict(dim=2), dim="count")
case(
  manifolds.sphere,
  lambda: dict(dim=3, kappa=0.0),
  dim="two",
  kappa="finite",
)
case(
  manifolds.torus,
  lambda: dict(major=2.0, minor=1.0, tilt=(0.0, 0.0, 0.0)),
  major=["x", "3", True, np.nan, np.inf, 1.0],
  minor="positive",
  tilt=["x", 0.0, (0.0, 0.0), ("0", "0", "0")],
)

# Molecules.
for _function in (internal.check_tree, internal.from_cartesian):
  case(
    _function,
    lambda positions=_function is internal.from_cartesian: (
      dict(tree=TREE) | (dict(positions=PLACES) if positions else {})
    ),
    tree=["x", TREE[:3], TREE[::-1], TREE.astype(np.float32), TREE[:, :3]],
    **(
      dict(positions=BAD_PLACES) if _function is internal.from_cartesian else {}
    ),
  )
case(
  internal.to_cartesian,
  lambda: dict(tree=TREE, internal=CENTRE),
  tree=["x", TREE[:3], TREE.astype(np.float32)],
  internal=[
    CENTRE._replace(bonds=np.ones(2)),
    CENTRE._replace(angles=np.ones((1, 2))),
    CENTRE._replace(torsions="x"),
  ],
)
for _function, _atoms in (
  (internal.distance, TREE[1:, :2]),
  (internal.angle, TREE[2:, :3]),
  (internal.dihedral, TREE[3:]),
):
  case(
    _function,
    lambda atoms=_atoms: dict(positions=PLACES, atoms=atoms),
    positions=BAD_PLACES,
    atoms=BAD_ATOMS,
  )
case(
  molecules.pair_list,
  lambda: dict(
    atom_params=_ATOMS, exceptions=_NEAR, exception_params=np.zeros((3, 3))
  ),
  _traced=False,
  atom_params=["x", _ATOMS[:, 1:], _ATOMS[0]],
  exceptions=["x", _NEAR + 2, _NEAR[[0, 0, 1]], _NEAR[:2], _NEAR + 0.5],
  exception_params=["x", np.zeros((2, 3))],
)
for _function in (molecules.energy, molecules.energy_terms):
  case(
    _function,
    lambda: dict(force_field=_field(), positions=PLACES),
    positions=BAD_PLACES,
  )
case(
  molecules.chart,
  lambda: dict(
    tree=TREE,
    centre=CENTRE,
    scale=SCALE,
    windows=np.array([np.inf]),
    smoothing=0.5,
  ),
  _traced=False,
  tree=["x", TREE[:3]],
  centre=[
    CENTRE._replace(bonds=-CENTRE.bonds),
    CENTRE._replace(angles=np.zeros(2)),
    CENTRE._replace(torsions=np.array([np.nan])),
  ],
  scale=[SCALE._replace(bonds=np.zeros(3)), SCALE._replace(angles=np.ones(3))],
  windows=["x", np.zeros(2), np.array([-1.0]), np.array([4.0])],
  smoothing="positive",
)
case(
  molecules.molecule,
  lambda: dict(
    force_field=_field(),
    chart=_chart(),
    temperature=300.0,
    torsions={"turn": (0, 1, 2, 3)},
  ),
  force_field=[
    _field()._replace(pairs=np.array([[0, 4]])),
    _field()._replace(bonds=_NEAR.astype(np.float32)),
    _field()._replace(angle_params=np.ones((2, 3))),
  ],
  temperature="positive",
  torsions=[{"turn": (0, 1, 2)}, {"turn": (0, 1, 2, 4)}, {"turn": "x"}],
)
for _function, _name, _value, _bad in (
  (molecules.to_positions, "x", COORDINATES, BAD_VECTOR),
  (molecules.from_positions, "positions", PLACES, BAD_PLACES),
):
  case(
    _function,
    lambda name=_name, value=_value: {"chart": _chart(), name: value},
    **{_name: _bad},
  )
case(
  molecules.unwrap,
  lambda: dict(chart=_chart(), key=KEY(), x=jnp.asarray(COORDINATES)),
  key="key",
  x=BAD_VECTOR,
)

# Fairness.
_FLAGS = np.array([0, 0, 1, 1, 0, 1])
_GROUP = np.array([0, 1, 0, 1, 0, 1])
_BAD_FLAGS = ["x", _FLAGS[1:], _FLAGS + 1, np.full(6, np.nan)]
_BAD_ROWS = ["x", ROWS[0], np.full((6, 2), np.nan)]


def _fair():
  return dict(
    x=ROWS,
    y=_FLAGS,
    group=_GROUP,
    monotone=(0,),
    num_anchors=2,
    hidden=(2, 2),
    prior_precision=1.0,
    margin=0.0,
  )


case(
  targets.fair_bnn,
  _fair,
  _traced=False,
  x=_BAD_ROWS,
  y=_BAD_FLAGS,
  group=_BAD_FLAGS,
  monotone=["x", (2,), (-1,), (0.5,), 0],
  num_anchors="count",
  hidden=["x", (0, 2), (1.5, 2), 3],
  prior_precision="positive",
  margin="finite",
)
_PROBLEM = functools.cache(lambda: targets.fair_bnn(**_fair()))
case(
  targets.with_test_rows,
  lambda: dict(problem=_PROBLEM(), x=ROWS, y=_FLAGS, group=_GROUP),
  _traced=False,
  x=_BAD_ROWS,
  y=_BAD_FLAGS,
  group=_BAD_FLAGS,
)
