"""Exact expectations of constrained targets: printed digits, draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import targets
from jdiff.targets import manifolds, planar

DIGITS = [
  (manifolds.circle(2.0), "x1", 0.697774658, 1e-9),
  (manifolds.circle(2.0), "x2_squared", 0.348887329, 1e-9),
  (manifolds.ellipse(), "x1_squared", 1.680306773, 1e-9),
  (manifolds.circle(skewed=True), "x1", 0.0, 1e-9),
  (manifolds.sphere(3, 3.0), "z", 0.671636490, 1e-9),
  (manifolds.sphere(3, 3.0), "z_squared", 0.552242340, 1e-9),
  (manifolds.torus(), "radius_squared", 5.5, 1e-9),
  (manifolds.torus(), "x3_squared", 0.5, 1e-9),
  (manifolds.torus(tilt=(1, 0, 0.5)), "x1", 1.918138660, 1e-9),
  (manifolds.torus(tilt=(1, 0, 0.5)), "x3", 0.210789641, 1e-9),
  (manifolds.stiefel(3, kappa=1.0), "trace", 1.308789373, 1e-9),
  (manifolds.stiefel(3, kappa=1.0), "trace_squared", 3.0, 1e-9),
  (manifolds.cap(0.3), "z", 0.65, 1e-9),
  (manifolds.cap(0.0, 1.0), "z", 0.581976707, 1e-9),
  (manifolds.cap(0.0, -2.0), "z", 0.343482357, 1e-9),
  (manifolds.half_space(2), "x1", 1.141077770, 1e-9),
  (manifolds.half_space(2), "x1_squared", 1.570538885, 1e-9),
  (manifolds.ball(3), "radius_squared", 0.565050496, 1e-9),
  (manifolds.ball(5), "radius_squared", 0.690739990, 1e-9),
  (manifolds.ball(1, 0.0), "radius_squared", 1 / 3, 1e-9),
  # By grids and quadratures of their own, to fewer digits.
  (planar.two_lobe(), "x1_squared", 8.1124, 1e-3),
  (planar.two_lobe(), "x2_squared", 2.4674, 1e-3),
  (planar.star(), "x1_squared", 4.832443, 2e-4),
  (planar.star(), "x2", -0.403408, 1e-4),
  (planar.quadratic_poly(), "x1_squared", 0.558583, 1e-3),
  (planar.quadratic_poly(), "x2", 0.317668, 1e-3),
]


@pytest.mark.parametrize("target, name, value, tolerance", DIGITS)
def test_digits(target, name, value, tolerance):
  assert abs(target.exact()[name] - value) < tolerance


def check_on_the_set(target, x, eq_tolerance=1e-4, ineq_tolerance=1e-4):
  if target.eq_fn is not None:
    value = jax.jit(jax.vmap(target.eq_fn))(x)
    assert np.abs(value).max() < eq_tolerance
  if target.ineq_fn is not None:
    value = jax.jit(jax.vmap(target.ineq_fn))(x)
    assert np.max(value) < ineq_tolerance


SAMPLED = {
  "simplex": manifolds.simplex(3),
  "star": planar.star(),
  "polynomial": planar.quadratic_poly(),
  "two lobes": planar.two_lobe(),
  "stress": targets.stress(20, 3, 1),
  "obstacles": targets.stress(12, 2, 4),
}
NUM_DRAWS = 5000


@pytest.mark.parametrize("name", SAMPLED)
def test_draws(name):
  target = SAMPLED[name]
  x = target.sample(jax.random.key(0), NUM_DRAWS)
  assert x.shape == (NUM_DRAWS, target.dim)
  check_on_the_set(target, x)
  values = jax.jit(jax.vmap(target.observables))(x)
  for key, want in target.exact().items():
    value = np.asarray(values[key])
    se = value.std() / NUM_DRAWS**0.5
    # Points of a grid are 0.03 apart.
    assert abs(value.mean() - want) < 4.5 * se + 3e-3, key


@pytest.mark.parametrize(
  "target",
  [
    manifolds.circle(skewed=True),
    manifolds.sphere(4),
    manifolds.ellipse(),
    manifolds.torus(),
    manifolds.stiefel(4, 2),
    manifolds.stiefel(3),
    manifolds.cap(0.2),
    manifolds.ball(2),
    manifolds.half_space(2),
    manifolds.interval(),
  ],
)
def test_starts_are_on_the_set(target):
  x = target.init(jax.random.key(1), 64)
  assert x.shape == (64, target.dim)
  check_on_the_set(target, x)


def test_rotations_start_with_determinant_one():
  x = manifolds.stiefel(3).init(jax.random.key(0), 2000).reshape(-1, 3, 3)
  np.testing.assert_allclose(jnp.linalg.det(x), 1, atol=1e-4)
  # Uniform on SO(3): E tr^2 = 1, and its standard deviation is sqrt(2).
  traces = np.asarray(jnp.trace(x, axis1=1, axis2=2))
  assert abs(np.mean(traces**2) - 1) < 4.5 * (2 / 2000) ** 0.5
  assert abs(np.mean(traces)) < 4.5 / 2000**0.5


def test_obstacles_are_met():
  # The control: without them the set's own law breaks them as often as said.
  target = targets.stress(20, 3, 1, blocked=0.2)
  free = targets.stress(20, 3, 0)
  x = free.sample(jax.random.key(0), 4000)
  share = float((jax.vmap(target.ineq_fn)(x)[:, 0] > 0).mean())
  assert abs(share - 0.2) < 4.5 * 0.4 / 4000**0.5


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: manifolds.cap(1.0), "height must lie in"),
    (lambda: manifolds.torus(1.0, 2.0), "major must exceed"),
    (lambda: manifolds.stiefel(2, 3), "at most size"),
    (lambda: manifolds.ball(0), "dim must be >= 1"),
    (lambda: manifolds.ball(2, -1.0), "precision must be >= 0"),
    (lambda: manifolds.ellipse(0.0), "axis must be positive"),
    (lambda: targets.stress(5, 3, 3), "dim must be >= 8"),
    (lambda: targets.stress(9, 1, 1, blocked=0.9), "blocked must lie"),
  ],
)
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_polymers():
  for num_atoms in (4, 5, 7):
    target = targets.polymer(num_atoms)
    x = target.init(jax.random.key(0), 32)
    assert x.shape == (32, 3 * num_atoms)
    # Bonds, angles, and nobody overlaps.
    check_on_the_set(target, x, 1e-5, 0)
  assert target.exact() == {}
  # Rigid motions change nothing.
  turn = manifolds.stiefel(3).init(jax.random.key(1), 1)[0].reshape(3, 3)
  moved = (x[0].reshape(-1, 3) @ turn + jnp.arange(3.0)[None]).ravel()
  for fn in (target.potential_fn, target.eq_fn, target.ineq_fn):
    fn = jax.jit(fn)
    np.testing.assert_allclose(fn(moved), fn(x[0]), atol=2e-5)


@pytest.mark.thorough
def test_polymer_of_four_by_its_angle():
  # One torsion: a plain sum over it, with the volume by finite differences of
  # the atoms' inertia, done again in NumPy.
  target = targets.polymer(4)
  turn = np.pi - np.deg2rad(109.5)

  def atoms(phi):
    last = [
      1 + np.cos(turn) + np.cos(turn) ** 2 + np.sin(turn) ** 2 * -np.cos(phi),
      np.sin(turn) + np.cos(turn) * np.sin(turn) * (1 + np.cos(phi)),
      np.sin(turn) * np.sin(phi),
    ]
    first = [[0, 0, 0], [1, 0, 0], [1 + np.cos(turn), np.sin(turn), 0]]
    return np.array([*first, last])

  def volume(phi):
    x = atoms(phi)
    twist = (atoms(phi + 1e-5) - atoms(phi - 1e-5)) / 2e-5
    spins = [np.cross(axis, x) for axis in np.eye(3)]
    shifts = [np.tile(axis, (4, 1)) for axis in np.eye(3)]
    t = np.stack([*shifts, *spins, twist]).reshape(7, -1)
    return np.sqrt(np.linalg.det(t @ t.T))

  phi = 2 * np.pi * (np.arange(400) + 0.5) / 400
  energy = 0.5 * (1 + np.cos(phi)) + 0.2 * (1 + np.cos(3 * phi))
  weight = np.array([volume(p) for p in phi]) * np.exp(-energy)
  ends = np.array([np.sum(atoms(p)[3] ** 2) for p in phi])
  want = (weight * ends).sum() / weight.sum()
  np.testing.assert_allclose(
    target.exact()["end_to_end_squared"], want, rtol=1e-5
  )
  # The volume hardly depends on the torsion, but the digits above see it.
  plain = np.exp(-energy) @ ends / np.exp(-energy).sum()
  assert abs(plain / want - 1) > 2e-5


def fair_problem(**options):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(80, 3))
  group = rng.integers(0, 2, 80)
  y = (x[:, 0] + 0.8 * group + rng.normal(size=80) > 0).astype(int)
  return (x, y, group), targets.fair_bnn(x, y, group, hidden=(4, 3), **options)


@pytest.mark.thorough
def test_fair_bnn():
  (x, y, group), problem = fair_problem(monotone=(0, 2), num_anchors=5)
  target = problem.target
  params = target.init(jax.random.key(0), 3)
  assert params.shape == (3, target.dim) == (3, 3 * 4 + 4 + 15 + 4)
  logits = np.asarray(problem.logits_fn(params[0], x))
  prob = 1 / (1 + np.exp(-logits))
  gaps = [
    prob[(group == 1) & (y == v)].mean() - prob[(group == 0) & (y == v)].mean()
    for v in (1, 0)
  ]
  np.testing.assert_allclose(target.eq_fn(params[0]), gaps, atol=1e-5)
  slopes = target.ineq_fn(params[0])
  assert slopes.shape == (10,) and float(slopes.max()) <= 0
  # A slope by finite differences, at the first anchor and second feature.
  step = np.array([[0, 0, 1e-2]])
  ends = problem.logits_fn(
    params[0], np.concatenate([x[:1] + step, x[:1] - step])
  )
  np.testing.assert_allclose(slopes[1], -(ends[0] - ends[1]) / 2e-2, atol=1e-3)
  observed = target.observables(params[0])
  nll = -np.mean(np.log(np.where(y == 1, prob, 1 - prob)))
  np.testing.assert_allclose(observed["nll"], nll, rtol=1e-4)
  # Held-out rows enter observables alone.
  other = targets.with_test_rows(problem, x[:40] + 1, y[:40], group[:40])
  assert other.potential_fn(params[0]) == target.potential_fn(params[0])
  assert "test_nll" in other.observables(params[0])


def test_bad_fair_bnn():
  (x, y, group), _ = fair_problem()
  with pytest.raises(ValueError, match="y must hold 0 and 1"):
    targets.fair_bnn(x, y + 1, group)
  with pytest.raises(ValueError, match="rows of both labels"):
    targets.fair_bnn(x, y, np.zeros_like(group))
  with pytest.raises(ValueError, match="features below 3"):
    targets.fair_bnn(x, y, group, monotone=(3,))
  with pytest.raises(ValueError, match="group must have shape"):
    targets.fair_bnn(x, y, group[:3])


def test_extreme_arguments():
  assert manifolds.stiefel(2).exact()["trace_squared"] == 2.0
  mirrored = manifolds.sphere(3, -3.0).exact()
  assert abs(mirrored["z"] + 0.671636490) < 1e-8
  assert abs(mirrored["z_squared"] - 0.552242340) < 1e-8
  # Concentrated laws do not overflow: E x_1 is about 1 - 1 / (2 kappa).
  assert abs(manifolds.circle(1000.0).exact()["x1"] - 0.9995) < 1e-6
  for target in (
    manifolds.ellipse(kappa=400.0),
    manifolds.cap(0.0, -800.0),
    manifolds.torus(tilt=(500.0, 0.0, 0.0)),
  ):
    assert np.isfinite(list(target.exact().values())).all()
  # A law far narrower than its interval: E u^2 = 1 / n.
  wide = targets.stress(5000, 1, 0).exact()
  assert abs(wide["u_squared"] * 5000 - 1) < 1e-6
  with pytest.raises(ValueError, match="radius must exceed"):
    targets.stress(10, 3, 1, radius=0.01)


def test_rows_that_do_not_fit():
  (x, y, group), problem = fair_problem()
  with pytest.raises(ValueError, match="x must be finite"):
    targets.fair_bnn(np.full_like(x, np.nan), y, group)
  with pytest.raises(ValueError, match="y must have shape"):
    targets.with_test_rows(problem, x, y[:1], group)
  alone = targets.with_test_rows(problem, x, y, np.ones_like(group))
  params = alone.init(jax.random.key(0), 1)[0]
  assert np.isnan(alone.observables(params)["test_tpr_gap"])
