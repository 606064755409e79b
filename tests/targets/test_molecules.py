"""A made-up molecule: its energy by other formulas, its law by quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

from jdiff.targets import internal, molecules
from jdiff.targets.internal import Internal

# A chain 0-1-2-3 with an atom 4 on atom 1.
TREE = np.array(
  [
    [1, -1, -1, -1],
    [2, 1, -1, -1],
    [0, 1, 2, -1],
    [3, 2, 1, 0],
    [4, 1, 2, 0],
  ]
)
ATOMS = np.array(
  [
    [0.3, 0.30, 0.40],
    [-0.2, 0.33, 0.35],
    [0.1, 0.34, 0.30],
    [-0.5, 0.25, 0.07],
    [0.3, 0.10, 0.06],
  ]
)
NEIGHBOURS = np.array(
  [[0, 1], [1, 2], [2, 3], [1, 4], [0, 2], [1, 3], [2, 4], [0, 4]]
)
EXCEPTIONS = np.vstack([NEIGHBOURS, [[3, 0]]])
SCALED = np.vstack([np.zeros((8, 3)), [[-0.15 / 1.2, 0.275, 0.0837]]])
PAIRS, PAIR_PARAMS = molecules.pair_list(ATOMS, EXCEPTIONS, SCALED)
FIELD = molecules.ForceField(
  bonds=np.array([[0, 1], [1, 2], [3, 2], [1, 4]]),
  bond_params=np.array([[0.15, 3e5], [0.14, 2e5], [0.1, 3e5], [0.11, 1e5]]),
  angles=np.array([[0, 1, 2], [3, 2, 1], [4, 1, 2], [0, 1, 4]]),
  angle_params=np.array([[1.9, 400.0], [2.1, 300], [2.0, 250], [2.0, 300]]),
  torsions=np.array([[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 1, 4]]),
  torsion_params=np.array([[3, 0.3, 5.0], [1, 0.0, 2.0], [2, np.pi, 20.0]]),
  pairs=PAIRS,
  pair_params=PAIR_PARAMS,
)
CENTRE = Internal(
  np.array([0.14, 0.15, 0.1, 0.11]),
  np.array([1.9, 2.1, 2.0]),
  np.array([0.4, 2.5]),
)
SCALE = Internal(np.full(4, 3e-3), np.full(3, 0.07), np.array([1.0, 0.1]))
WINDOWS = np.array([np.inf, np.pi / 3])
CHART = molecules.chart(TREE, centre=CENTRE, scale=SCALE, windows=WINDOWS)
NAMES = {"turn": (0, 1, 2, 3)}
TARGET = molecules.molecule(FIELD, CHART, torsions=NAMES)
BETA = 1 / (0.00831446261815324 * 300)
# Compiled once for each type.
LOG_PROB = jax.jit(TARGET.log_prob)
OBSERVE = jax.jit(TARGET.observables)
PLACE = jax.jit(lambda x: molecules.to_positions(CHART, x))
FIND = jax.jit(lambda positions: molecules.from_positions(CHART, positions))


def by_numpy(x, pair_params=PAIR_PARAMS):
  """The energy's terms by textbook formulas, with arccos and signs."""

  def between(i, j, k):
    u, v = x[i] - x[j], x[k] - x[j]
    return np.arccos(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

  def twist(i, j, k, m):
    left = np.cross(x[j] - x[i], x[k] - x[j])
    right = np.cross(x[k] - x[j], x[m] - x[k])
    cos = left @ right / np.linalg.norm(left) / np.linalg.norm(right)
    return np.sign((x[m] - x[k]) @ left) * np.arccos(cos)

  terms = dict.fromkeys(("bonds", "angles", "torsions", "nonbonded"), 0.0)
  for (i, j), (r, k) in zip(FIELD.bonds, FIELD.bond_params, strict=True):
    terms["bonds"] += k / 2 * (np.linalg.norm(x[i] - x[j]) - r) ** 2
  for atoms, (t, k) in zip(FIELD.angles, FIELD.angle_params, strict=True):
    terms["angles"] += k / 2 * (between(*atoms) - t) ** 2
  for a, (m, p, k) in zip(FIELD.torsions, FIELD.torsion_params, strict=True):
    terms["torsions"] += k * (1 + np.cos(m * twist(*a) - p))
  for (i, j), (q, s, e) in zip(PAIRS, pair_params, strict=True):
    r = np.linalg.norm(x[i] - x[j])
    lennard_jones = 4 * e * ((s / r) ** 12 - (s / r) ** 6)
    terms["nonbonded"] += lennard_jones + 138.935457644 * q / r
  return terms


def geometries(num, noise):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    at = np.asarray(internal.to_cartesian(TREE, CENTRE))
  return at[None] + noise * rng.standard_normal((num, 5, 3))


def test_pair_list_by_hand():
  assert [tuple(p) for p in PAIRS] == [(0, 3), (3, 4)]
  expected = [
    [-0.125, 0.275, 0.0837],
    [-0.15, 0.175, np.sqrt(0.07 * 0.06)],
  ]
  np.testing.assert_allclose(PAIR_PARAMS, expected)


def test_energy_by_numpy():
  unscaled = PAIR_PARAMS.copy()
  unscaled[0, 0] *= 1.2
  with jax.enable_x64(True):
    terms_of = jax.jit(lambda x: molecules.energy_terms(FIELD, x))
    energy_of = jax.jit(lambda x: molecules.energy(FIELD, x))
    for x in geometries(10, 0.01):
      found, expected = terms_of(x), by_numpy(x)
      for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-8, err_msg=name)
      total = energy_of(x)
      np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-8)
      other = by_numpy(x, unscaled)["nonbonded"]
      assert abs(other - found["nonbonded"]) > 1


def test_forces_by_differences():
  with jax.enable_x64(True):
    energy = jax.jit(
      jax.value_and_grad(lambda x: molecules.energy(FIELD, x.reshape(5, 3)))
    )
    (x,) = geometries(1, 0.01).reshape(1, 15)
    steps = 1e-6 * np.eye(15)
    rise = [energy(x + d)[0] - energy(x - d)[0] for d in steps]
    slope = np.array(rise) / 2e-6
    np.testing.assert_allclose(energy(x)[1], slope, rtol=1e-5, atol=1e-3)


def test_parameters_are_leaves():
  x = jnp.asarray(geometries(1, 0.01)[0], jnp.float32)

  def energy(params):
    return molecules.energy(FIELD._replace(pair_params=params), x)

  slope = jax.jit(jax.grad(energy))(jnp.asarray(PAIR_PARAMS, jnp.float32))
  apart = np.linalg.norm(x[PAIRS[:, 0]] - x[PAIRS[:, 1]], axis=1)
  np.testing.assert_allclose(slope[:, 0], 138.935457 / apart, rtol=1e-5)


def test_collisions_are_soft_and_smooth():
  # Coincident atoms, in float32.
  at_once = jax.jit(jax.value_and_grad(lambda x: molecules.energy(FIELD, x)))
  value, slope = at_once(jnp.zeros((5, 3)))
  assert np.isfinite(value) and np.isfinite(slope).all()

  # Two atoms alone: the textbook energy down to half a sigma, then finite
  # repulsion that keeps growing, with a continuous slope.
  empty = {k: v[:0] for k, v in FIELD._asdict().items()}
  pair = {
    "pairs": np.array([[0, 1]]),
    "pair_params": np.array([[0.1, 0.3, 0.4]]),
  }
  alone = molecules.ForceField(**(empty | pair))

  @jax.jit
  @jax.vmap
  @jax.value_and_grad
  def at(r):
    return molecules.energy(alone, jnp.zeros((2, 3), r.dtype).at[1, 0].set(r))

  with jax.enable_x64(True):
    r = np.linspace(0.151, 0.6, 50)
    expected = 1.6 * ((0.3 / r) ** 12 - (0.3 / r) ** 6) + 13.8935457644 / r
    edge = 0.15 + np.array([-1e-9, 1e-9])
    inner = np.linspace(0.0, 0.15, 100)
    answer = at(jnp.asarray(np.concatenate([r, edge, inner])))
    values, slopes = (np.asarray(part) for part in answer)
  np.testing.assert_allclose(values[:50], expected, rtol=1e-9)
  np.testing.assert_allclose(slopes[50], slopes[51], rtol=1e-6)
  assert (np.diff(values[52:]) < 0).all() and values[52] < 1e6


def test_the_line_covers_the_circle_once():
  # Over all turns the density sums to that of the circle, so log_z is the same.
  def circle(x):
    shape = Internal(
      *(c + s * q for c, s, q in zip(CENTRE, SCALE, x, strict=True))
    )
    positions = internal.to_cartesian(TREE, shape)
    return (
      -BETA * molecules.energy(FIELD, positions)
      + internal.log_det(shape)
      + np.log(np.concatenate(SCALE)).sum()
    )

  def parts(x):
    return Internal(x[:4], x[4:7], x[7:])

  turns = 2 * np.pi * np.arange(-4, 5)[:, None] * np.eye(9)[7][None]

  @jax.jit
  def line(x, smoothing):
    law = molecules.molecule(FIELD, CHART._replace(smoothing=smoothing))
    return jax.vmap(jax.vmap(law.log_prob))(x)

  with jax.enable_x64(True):
    points = np.full((400, 9), 0.1)
    points[:, 7] = 2 * np.pi * np.arange(400) / 400 - np.pi
    on_circle = jax.jit(jax.vmap(lambda x: circle(parts(x))))(points)
    for smoothing in (0.2, 0.5, 1.0):
      on_line = line(points[:, None] + turns[None], smoothing)
      total = special.logsumexp(on_line, axis=1)
      np.testing.assert_allclose(total, on_circle, atol=1e-7)
      assert np.abs(np.asarray(on_line).max(axis=1) - on_circle).max() > 0.3


def test_log_z_of_a_molecule_without_coupling():
  # Four atoms, no pairs: b^2 and sin a against Gaussians, a cosine's Bessel.
  field = molecules.ForceField(
    bonds=np.array([[0, 1], [1, 2], [2, 3]]),
    bond_params=np.array([[0.15, 3e4], [0.14, 2e4], [0.1, 3e4]]),
    angles=np.array([[0, 1, 2], [3, 2, 1]]),
    angle_params=np.array([[1.9, 300.0], [2.1, 200]]),
    torsions=np.array([[0, 1, 2, 3]]),
    torsion_params=np.array([[2, 0.7, 4.0]]),
    pairs=PAIRS[:0],
    pair_params=PAIR_PARAMS[:0],
  )
  tree = np.array(
    [[1, -1, -1, -1], [2, 1, -1, -1], [0, 1, 2, -1], [3, 2, 1, 0]]
  )
  chart = molecules.chart(
    tree,
    centre=Internal([0.14, 0.145, 0.1], [2.0, 2.1], [1.0]),
    scale=Internal([0.01, 0.02, 0.01], [0.1, 0.2], [1.3]),
    windows=[np.inf],
  )
  law = molecules.molecule(field, chart, temperature=400.0)
  beta = 1 / (0.00831446261815324 * 400)
  exact = 0.0
  for r, k in field.bond_params:
    variance = 1 / (beta * k)
    exact += np.log((r**2 + variance) * np.sqrt(2 * np.pi * variance))
  for t, k in field.angle_params:
    mass = integrate.quad(
      lambda a: np.sin(a) * np.exp(-beta * k / 2 * (a - t) ** 2),  # noqa: B023
      0,
      np.pi,
      points=[t],
      epsabs=1e-12,
    )[0]
    exact += np.log(mass)
  exact += np.log(2 * np.pi * special.i0e(4 * beta))
  # Along each axis through the centre; the law is a product.
  with jax.enable_x64(True):
    axis = np.linspace(-15, 15, 4001)
    lines = axis[None, :, None] * np.eye(6)[:, None]
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(law.log_prob)))(lines))
  at = values[0, 2000]
  shares = integrate.trapezoid(np.exp(values - at), axis, axis=1)
  log_z = at + np.log(shares).sum()
  # What lies beyond the limits of angles and bonds is below 1e-7.
  assert abs(log_z - exact) < 1e-5


def test_positions_and_coordinates_are_inverse():
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(0).uniform(-3, 3, 9))
    placed = PLACE(x)
    np.testing.assert_allclose(FIND(placed), x, atol=1e-9)
    turned = PLACE(x.at[7].add(2 * jnp.pi))
    np.testing.assert_allclose(FIND(turned), x, atol=1e-9)


def test_unwrap_draws_the_turns():
  num = 20000
  x = jnp.zeros(9).at[7].set(2.8)
  draw = jax.jit(jax.vmap(lambda k: molecules.unwrap(CHART, k, x)))
  drawn = np.asarray(draw(jax.random.split(jax.random.key(1), num)))
  normal = special.ndtr
  share = normal((2.8 - np.pi) / 0.5)
  share -= normal((2.8 - 3 * np.pi) / 0.5)
  moved = drawn[:, 7] < 0
  assert abs(moved.mean() - share) < 5 * np.sqrt(share * (1 - share) / num)
  np.testing.assert_allclose(drawn[moved, 7], 2.8 - 2 * np.pi, rtol=1e-5)
  assert (np.delete(drawn, 7, axis=1) == 0).all()


def test_far_coordinates_are_unlikely_but_finite():
  value_and_grad = jax.jit(jax.vmap(jax.value_and_grad(TARGET.log_prob)))
  at = float(LOG_PROB(jnp.zeros(9)))
  for far in (100.0, 1e3, 1e4):
    x = far * jnp.concatenate([jnp.eye(9), -jnp.eye(9)])
    value, slope = value_and_grad(x)
    assert np.isfinite(value).all() and np.isfinite(slope).all()
    assert (value < at - 100).all()
    inward = np.sum(np.asarray(slope * x), axis=1)
    assert (inward < 0).all()
  for i in range(5):
    random = 100 * jax.random.normal(jax.random.key(i), (18, 9))
    value, slope = value_and_grad(random)
    assert np.isfinite(value).all() and np.isfinite(slope).all()


def test_slopes_are_continuous_at_the_limits():
  with jax.enable_x64(True):
    slope = jax.jit(jax.grad(TARGET.log_prob))
    limits = {
      0: -0.5 * CENTRE.bonds[0] / SCALE.bonds[0],
      4: (0.25 - CENTRE.angles[0]) / SCALE.angles[0],
      5: (np.pi - 0.25 - CENTRE.angles[1]) / SCALE.angles[1],
      8: np.pi / 3 / SCALE.torsions[1],
    }
    for i, limit in limits.items():
      sides = [
        slope(jnp.zeros(9).at[i].set(limit * (1 + eps)))
        for eps in (-1e-9, 1e-9)
      ]
      np.testing.assert_allclose(*sides, rtol=1e-5, atol=1e-4)


def test_a_window_selects_a_mirror_image():
  # The sibling's torsion reversed; all distances of the molecule are kept.
  with jax.enable_x64(True):
    x = jnp.zeros(9)
    mirrored = FIND(-PLACE(x))
    energy = [float(OBSERVE(q)["energy"]) for q in (x, mirrored)]
    assert abs(mirrored[8]) * SCALE.torsions[1] > np.pi / 3
    free = CHART._replace(windows=np.array([np.inf, np.inf]))
    unbounded = jax.jit(molecules.molecule(FIELD, free).log_prob)
    gaps = [float(law(x) - law(mirrored)) for law in (LOG_PROB, unbounded)]
  # The torsion's own potential is not symmetric, within 20 kJ/mol.
  assert abs(energy[0] - energy[1]) < 20
  assert gaps[0] > 50 and gaps[1] < 20


def test_observables_and_temperature():
  with jax.enable_x64(True):
    x = jnp.asarray(np.random.default_rng(1).standard_normal(9))
    seen = OBSERVE(x)
    assert set(seen) == {"energy", "turn"}
    assert TARGET.dim == 9
    np.testing.assert_allclose(seen["turn"], CENTRE.torsions[0] + x[7])
    energy = sum(by_numpy(np.asarray(PLACE(x))).values())
    np.testing.assert_allclose(seen["energy"], energy, rtol=1e-8)
    hot = molecules.molecule(FIELD, CHART, temperature=600.0)
    difference = jax.jit(hot.log_prob)(x) - LOG_PROB(x)
    np.testing.assert_allclose(difference, BETA / 2 * energy, rtol=1e-6)


def test_float32_keeps_up():
  x = np.random.default_rng(2).standard_normal((20, 9))
  batch = jax.jit(jax.vmap(TARGET.log_prob))
  narrow = batch(jnp.asarray(x, jnp.float32))
  assert narrow.dtype == jnp.float32
  with jax.enable_x64(True):
    wide = batch(jnp.asarray(x))
  assert wide.dtype == jnp.float64
  # Bonds of 0.1 nm at k = 3e5: an ulp is worth k sd 1e-8 beta = 4e-3 nats.
  np.testing.assert_allclose(narrow, wide, atol=2e-2)


@pytest.mark.parametrize(
  ("change", "match"),
  [
    ({"windows": [np.inf]}, "windows must have shape"),
    ({"windows": [np.inf, 0.0]}, "windows must lie in"),
    ({"windows": [-np.inf, 1.0]}, "windows must lie in"),
    ({"windows": [np.nan, 1.0]}, "windows must lie in"),
    ({"smoothing": 0.0}, "smoothing must be positive"),
    ({"scale": SCALE._replace(bonds=np.zeros(4))}, "scale must be positive"),
    ({"scale": SCALE._replace(angles=np.ones(4))}, "scale.angles must have"),
    ({"centre": CENTRE._replace(bonds=-CENTRE.bonds)}, "centre.bonds must be"),
    ({"centre": CENTRE._replace(angles=np.full(3, 3.1))}, "centre.angles must"),
    (
      {"centre": CENTRE._replace(torsions=np.array([0, np.nan]))},
      "centre.torsions must be finite",
    ),
  ],
)
def test_charts_are_checked(change, match):
  given = {"centre": CENTRE, "scale": SCALE, "windows": WINDOWS}
  with pytest.raises(ValueError, match=match):
    molecules.chart(TREE, **(given | change))


def test_molecules_are_checked():
  beyond = FIELD._replace(pairs=PAIRS + 3)
  with pytest.raises(ValueError, match="force_field.pairs must hold atoms"):
    molecules.molecule(beyond, CHART)
  short = FIELD._replace(bond_params=FIELD.bond_params[:2])
  with pytest.raises(ValueError, match="force_field.bond_params must have"):
    molecules.molecule(short, CHART)
  floats = FIELD._replace(bonds=FIELD.bonds.astype(float))
  with pytest.raises(TypeError, match="force_field.bonds must hold integers"):
    molecules.molecule(floats, CHART)
  with pytest.raises(ValueError, match="temperature must be positive"):
    molecules.molecule(FIELD, CHART, temperature=0.0)
  with pytest.raises(ValueError, match="torsions\\['phi'\\] must hold atoms"):
    molecules.molecule(FIELD, CHART, torsions={"phi": (0, 1, 2, 9)})
  with pytest.raises(ValueError, match="x must have shape"):
    TARGET.log_prob(jnp.zeros(10))
  with pytest.raises(ValueError, match="positions must have shape"):
    molecules.energy(FIELD, jnp.zeros(15))


@pytest.mark.parametrize("pairs", [[[0, 0]], [[0, 5]], [[0, 1], [1, 0]]])
def test_exceptions_are_checked(pairs):
  with pytest.raises(ValueError, match="exceptions must be different pairs"):
    molecules.pair_list(ATOMS, pairs, np.zeros((len(pairs), 3)))


def test_every_pair_is_listed_or_excluded():
  listed = {tuple(sorted(p)) for p in np.vstack([PAIRS, NEIGHBOURS]).tolist()}
  assert listed == set(itertools.combinations(range(5), 2))
