"""Particle systems against quadrature, symmetries and known minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jdiff import targets
from jdiff.targets import particles, wells

CASES = {
  "dw4": lambda: particles.double_well_particles(),
  "lj13": lambda: particles.lennard_jones(),
  "lj5": lambda: particles.lennard_jones(
    5, 2, epsilon=0.5, rm=1.3, oscillator=0.7, beta=1.5
  ),
}


def positions(target, seed=0, size=4):
  """Configurations without close pairs: a jittered grid."""
  n, d = target.particles
  rng = np.random.default_rng(seed)
  side = int(np.ceil(n ** (1 / d)))
  grid = np.stack(np.meshgrid(*[np.arange(side)] * d), axis=-1)
  grid = grid.reshape(-1, d)[:n]
  return 1.1 * grid[None] + 0.1 * rng.normal(size=(size, n, d))


def written_out(x, pair, oscillator=0.0):
  """The energy by loops over ordered pairs, as the papers write it."""
  centre = x.mean(axis=0)
  value = 0.5 * oscillator * sum(np.sum((r - centre) ** 2) for r in x)
  for i, p in enumerate(x):
    for j, q in enumerate(x):
      if i != j:
        value += 0.5 * pair(np.sqrt(np.sum((p - q) ** 2)))
  return value


@pytest.mark.parametrize(
  ("case", "pair", "oscillator", "beta"),
  [
    ("dw4", lambda d: -4 * (d - 4) ** 2 + 0.9 * (d - 4) ** 4, 0.0, 1.0),
    ("lj13", lambda d: (1 / d) ** 12 - 2 * (1 / d) ** 6, 1.0, 1.0),
    (
      "lj5",
      lambda d: 0.5 * ((1.3 / d) ** 12 - 2 * (1.3 / d) ** 6),
      0.7,
      1.5,
    ),
  ],
)
def test_energy(case, pair, oscillator, beta):
  target = CASES[case]()
  n, d = target.particles
  assert target.dim == (n - 1) * d and target.shape == (n, d)
  assert target.sample is None and target.log_z is None is target.exact
  x = positions(target)
  want = [written_out(y, pair, oscillator) for y in x]

  @jax.jit
  def run(x):
    return jax.vmap(target.log_prob)(x), jax.vmap(target.observables)(x)

  with jax.enable_x64(True):
    log_prob, values = jax.device_get(run(jnp.asarray(x)))
  np.testing.assert_allclose(log_prob, -beta * np.array(want), rtol=1e-11)
  np.testing.assert_allclose(values["energy"], want, rtol=1e-11)
  apart = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)
  rows, columns = np.triu_indices(n, 1)
  apart = np.sort(apart[:, rows, columns], axis=1)
  np.testing.assert_allclose(values["distance"], apart, rtol=1e-12)
  radius = ((x - x.mean(axis=1, keepdims=True)) ** 2).sum(axis=2).mean(axis=1)
  np.testing.assert_allclose(
    values["radius_of_gyration"], radius**0.5, rtol=1e-12
  )


@pytest.mark.parametrize("case", CASES)
def test_symmetries_and_precision(case):
  target = CASES[case]()
  n, d = target.particles
  rng = np.random.default_rng(1)
  x = positions(target, size=3)
  turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
  moved = np.stack(
    [
      x,
      x[:, rng.permutation(n)],
      x @ turn,
      -x,
      x + rng.normal(size=(3, 1, d)),
      1.01 * x,
    ]
  )
  run = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(target.log_prob))))
  with jax.enable_x64(True):
    value, slope = jax.device_get(run(jnp.asarray(moved)))
  for other in value[1:5]:
    np.testing.assert_allclose(other, value[0], rtol=1e-11)
  # Control: a dilation is no symmetry.
  assert np.abs(value[5] - value[0]).min() > 1e-3
  # Forces turn with the particles, and do not move the centre.
  scale = np.abs(slope[0]).max()
  np.testing.assert_allclose(slope[2], slope[0] @ turn, atol=1e-11 * scale)
  np.testing.assert_allclose(slope[4], slope[0], atol=1e-11 * scale)
  np.testing.assert_allclose(slope.sum(axis=2), 0, atol=1e-11 * scale)
  low, low_slope = jax.device_get(run(jnp.asarray(moved, jnp.float32)))
  np.testing.assert_allclose(low, value, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(low_slope, slope, atol=1e-4 * scale)


@pytest.mark.parametrize("case", CASES)
def test_finite_at_collisions(case):
  target = CASES[case]()
  n, d = target.particles
  x = np.repeat(positions(target, size=1), 5, axis=0)
  x[0] = 0.0
  x[1, 1] = x[1, 0]
  x[2, 1] = x[2, 0] + 1e-12
  x[3, 1] = x[3, 0] + 1e-3
  x[4] *= 1e6
  x = jnp.asarray(x, jnp.float32)
  run = jax.jit(jax.vmap(jax.value_and_grad(target.log_prob)))
  value, slope = run(x)
  assert np.isfinite(value).all() and np.isfinite(slope).all()
  np.testing.assert_array_equal(slope[0], np.zeros((n, d)))
  # Control: the plain formula is not.
  plain = lambda x: jnp.linalg.norm(x[0] - x[1]) ** -12.0  # noqa: E731
  assert not np.isfinite(jax.vmap(jax.grad(plain))(x[1:3])[:, :2]).any()


def test_core():
  target = particles.lennard_jones(2, 1, oscillator=1e-6, rm=2.0, core=0.5)
  with jax.enable_x64(True):
    pair = lambda r: jnp.stack([jnp.zeros_like(r), r])[:, None]  # noqa: E731
    energy = jax.value_and_grad(lambda r: -target.log_prob(pair(r)))
    energy = jax.jit(jax.vmap(energy))
    r = jnp.array([0.25, 0.5, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0])
    value, slope = jax.device_get(energy(r))
  # One at the core: 2^12 - 2 * 2^6, with the slope of that law.
  np.testing.assert_allclose(value[2:5], 3968, rtol=1e-6)
  want = 12 / 2 * (2.0**7 - 2.0**13)
  np.testing.assert_allclose(slope[:5], want, rtol=1e-6)
  np.testing.assert_allclose(value[0], 3968 - 0.75 * want, rtol=1e-6)
  np.testing.assert_allclose([value[5], slope[5]], [-1, 0], atol=1e-5)
  # What the docstring says of the default.
  q = 0.6
  assert int(q**-12 - 2 * q**-6) == 416
  assert round(12 * (q**-13 - q**-7)) == 8759


def test_icosahedron_is_the_minimum():
  # -44.326801 in units of the pair's depth, without a harmonic potential.
  target = particles.lennard_jones(13, 3, oscillator=1e-9)
  golden = (1 + 5**0.5) / 2
  rows = [(0, s, t * golden) for s in (-1, 1) for t in (-1, 1)]
  shell = np.concatenate([np.roll(rows, k, axis=1) for k in range(3)])
  shape = np.vstack([np.zeros((1, 3)), shell / np.hypot(1, golden)])
  with jax.enable_x64(True):
    energy = jax.jit(lambda radius: -target.log_prob(radius * shape))
    best = optimize.minimize_scalar(energy, bounds=(0.8, 1.2), method="bounded")
    np.testing.assert_allclose(best.fun, -44.326801, atol=1e-6)
    # A minimum in every direction: six zero modes, no negative one.
    flat = lambda x: -target.log_prob(x.reshape(13, 3))  # noqa: E731
    hessian = jax.jit(jax.hessian(flat))((best.x * shape).ravel())
  curvature = np.linalg.eigvalsh(hessian)
  assert np.abs(curvature[:6]).max() < 1e-3 < 1 < curvature[6]


TWO = {
  "double": (
    particles.double_well_particles,
    dict(a=0.3, b=-2.0, c=0.5, centre=3.0, beta=0.8),
  ),
  "lennard": (
    particles.lennard_jones,
    dict(epsilon=1.5, oscillator=0.5, rm=1.2, beta=1.3),
  ),
}


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("case", TWO)
def test_two_particles_against_a_grid(case, dim):
  make, options = TWO[case]
  target = make(2, dim, **options)
  num, reach = {1: (20_001, 14.0), 2: (1401, 14.0), 3: (161, 8.0)}[dim]
  # In three dimensions one octant, at the centres of its cells.
  if dim == 3:
    axis = (np.arange(num) + 0.5) * reach / num
  else:
    axis = np.linspace(-reach, reach, num)
  y = np.stack(np.meshgrid(*[axis] * dim), axis=-1).reshape(-1, dim)
  cell = (axis[1] - axis[0]) ** dim * (8 if dim == 3 else 1)

  @jax.jit
  def moments(y):
    # The isometric coordinate of the subspace.
    x = jnp.stack([y, -y], axis=1) / 2**0.5
    weight = jnp.exp(jax.vmap(target.log_prob)(x))
    values = jax.vmap(target.observables)(x)
    mean = jax.tree.map(lambda v: jnp.tensordot(weight, v, 1), values)
    return weight.sum(), jax.tree.map(lambda v: v / weight.sum(), mean)

  with jax.enable_x64(True):
    mass, mean = jax.device_get(moments(jnp.asarray(y)))
  rtol = 1e-3 if dim == 3 else 1e-6
  answer = target.exact()
  assert answer["log_z"] == target.log_z
  np.testing.assert_allclose(np.exp(target.log_z), mass * cell, rtol=rtol)
  assert set(mean) == set(answer) - {"log_z"}
  for name, value in mean.items():
    np.testing.assert_allclose(answer[name], value, rtol=rtol, err_msg=name)


def test_weak_oscillator_keeps_its_mass():
  # Far wider than the pair's well: free but for the oscillator.
  target = particles.lennard_jones(2, 3, epsilon=1e-6, oscillator=1e-4)
  free = 1.5 * np.log(2 * np.pi / 1e-4)
  np.testing.assert_allclose(target.log_z, free, atol=1e-5)


def test_subspace_of_three():
  # Nearly free particles: a Gaussian on the subspace, known exactly.
  target = particles.lennard_jones(
    3, 1, epsilon=1e-7, rm=0.1, oscillator=2.0, beta=1.5
  )
  axis = np.linspace(-4, 4, 161)
  y = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
  basis = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
  run = jax.jit(jax.vmap(target.log_prob))
  with jax.enable_x64(True):
    value = run(jnp.asarray(y @ basis)[:, :, None])
  mass = np.exp(value).sum() * (axis[1] - axis[0]) ** 2
  np.testing.assert_allclose(mass, 2 * np.pi / (1.5 * 2), rtol=1e-4)


def test_shape_of_targets():
  assert wells.many_well(3).shape == (3,)
  assert particles.lennard_jones(3, 2).shape == (3, 2)
  with pytest.raises(ValueError, match="must be continuous.*length=9"):
    _ = targets.ising(3, beta=0.3).shape


@pytest.mark.parametrize(
  ("make", "error", "message"),
  [
    (
      lambda: particles.lennard_jones(1),
      ValueError,
      "num_particles must be >= 2",
    ),
    (lambda: particles.lennard_jones(3, 0), ValueError, "dim must be >= 1"),
    (
      lambda: particles.lennard_jones(3.0),
      TypeError,
      "num_particles must be an integer",
    ),
    (
      lambda: particles.lennard_jones(epsilon=0.0),
      ValueError,
      "epsilon must be positive",
    ),
    (
      lambda: particles.lennard_jones(rm=-1.0),
      ValueError,
      "rm must be positive",
    ),
    (
      lambda: particles.lennard_jones(oscillator=0.0),
      ValueError,
      "oscillator must be positive",
    ),
    (
      lambda: particles.lennard_jones(core=1.0),
      ValueError,
      "core must lie in",
    ),
    (
      lambda: particles.lennard_jones(core=1e-3),
      ValueError,
      "core must lie in",
    ),
    (
      lambda: particles.double_well_particles(c=0.0),
      ValueError,
      "c must be positive",
    ),
    (
      lambda: particles.double_well_particles(centre=0.0),
      ValueError,
      "centre must be positive",
    ),
    (
      lambda: particles.double_well_particles(beta=np.nan),
      ValueError,
      "beta must be positive",
    ),
    (
      lambda: particles.double_well_particles().log_prob(jnp.ones(8)),
      ValueError,
      r"x must have shape \[4, 2\].*jax.vmap",
    ),
  ],
)
def test_bad_arguments(make, error, message):
  with pytest.raises(error, match=message):
    make()
