"""OLLA against exact laws, with the traps as negative controls."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from jdiff import langevin, targets
from jdiff.core.types import ConstrainedTarget
from jdiff.langevin import constraints as cs
from jdiff.langevin import landing as landing_lib
from jdiff.targets import manifolds, planar
from tests.helpers import thorough
from tests.langevin import chains


def kernel(target, **options):
  return langevin.olla(
    target.potential_fn, target.eq_fn, target.ineq_fn, **options
  )


CASES = {
  # (target, step size, time, allowed bias): equalities alone bias by O(dt), a
  # boundary with epsilon="auto" too.
  "circle": (manifolds.circle(2.0), 0.01, 6, 0.005),
  "ellipse": (manifolds.ellipse(), 0.01, 12, 0.005),
  "ellipse tilted": (manifolds.ellipse(kappa=-1.0), 0.01, 8, 0.01),
  "skewed circle": (manifolds.circle(skewed=True), 0.01, 6, 0.01),
  "sphere": (manifolds.sphere(3, 3.0), 0.01, 4, 0.003),
  "torus": (manifolds.torus(tilt=(1.0, 0.0, 0.5)), 0.02, 40, 0.03),
  "rotations": (manifolds.stiefel(3, kappa=1.0), 0.02, 8, 0.02),
  "cap": (manifolds.cap(), 0.0025, 4, 0.003),
  "tilted cap": (manifolds.cap(0.0, -2.0), 0.0025, 4, 0.003),
  "half-space": (manifolds.half_space(2), 0.005, 8, 0.005),
  "ball": (manifolds.ball(3), 0.001, 1.2, 0.003),
  "interval": (manifolds.interval(), 0.002, 4, 0.003),
  "simplex": (manifolds.simplex(2), 0.001, 0.8, 0.003),
}


# One of each kind: curves, a surface, several equalities, a surface with an
# edge, a body, and corners.
FIRST = (
  *("ellipse tilted", "skewed circle", "sphere", "rotations"),
  *("tilted cap", "ball", "simplex"),
)


@pytest.mark.parametrize("name", thorough(CASES, FIRST))
def test_exact_laws(name):
  target, step_size, time, bias = CASES[name]
  found, summary = chains.averages(
    kernel(target, step_size=step_size), target, step_size=step_size, time=time
  )
  chains.check(found, target.exact(), bias=bias)
  if target.eq_fn is not None:
    assert np.abs(summary.mean["eq_residual"]).mean() < 0.05
  # Chains cross a boundary by up to the noise of a step, seldom by more.
  assert summary.status[:, langevin.Status.OK].mean() > 0.98


def test_haar_rotations_keep_their_determinant():
  target = manifolds.stiefel(3)
  found, summary = chains.averages(
    kernel(target, step_size=0.02), target, step_size=0.02, time=6
  )
  chains.check(found, target.exact(), bias=0.01)
  with jax.enable_x64(True):
    x = target.init(jax.random.key(0), 50)
    k = kernel(target, step_size=0.02)
    samples, _ = jax.jit(
      lambda key: langevin.run_chains(key, k, x, num_samples=100)
    )(jax.random.key(1))
    dets = np.linalg.det(np.reshape(samples[-1], (-1, 3, 3)))
  # |h| is of the order of the step size; the other component is at -1.
  np.testing.assert_allclose(dets, 1, atol=0.4)


@pytest.mark.parametrize("exact_trace", [False, True])
def test_transient_law(exact_trace):
  # E x_1(t) = exp(-(d - 1) t) sees the drift and the noise scale at once.
  target = manifolds.sphere(5)
  with jax.enable_x64(True):
    start = jnp.zeros((4000, 5)).at[:, 0].set(1.0)
    k = kernel(target, step_size=0.0025, num_probes=None if exact_trace else 1)
    samples, _ = jax.jit(
      lambda key: langevin.run_chains(key, k, start, num_samples=1, thinning=80)
    )(jax.random.key(0))
  x1 = np.asarray(samples[0, :, 0])
  se = x1.std() / 4000**0.5
  assert abs(x1.mean() - np.exp(-4 * 0.2)) < 4 * se + 0.003


@pytest.mark.parametrize(
  "target, name, area",
  [
    (manifolds.ellipse(), "x1_squared", 2.0),
    pytest.param(
      manifolds.circle(skewed=True),
      "x1",
      3**0.5 - 2,
      marks=pytest.mark.thorough,
    ),
  ],
)
def test_area_measure_is_another_law(target, name, area):
  # The trap of the co-area factor, and the way to ask for it.
  potential = langevin.conditioned(target.potential_fn, target.eq_fn)
  found, _ = chains.averages(
    langevin.olla(potential, target.eq_fn, step_size=0.01),
    target,
    step_size=0.01,
    time=10,
  )
  chains.check(found, {name: area}, bias=0.01)
  mean, se = found[name]
  assert abs(mean - target.exact()[name]) > 8 * se


def test_without_curvature_the_level_set_shifts():
  target = manifolds.ellipse()
  options = dict(step_size=0.01, landing=0.2)
  with pytest.raises(ValueError, match="samples a shifted set"):
    kernel(target, num_probes=0, **options)
  found, summary = chains.averages(
    kernel(target, num_probes=0, without_curvature=True, **options),
    target,
    step_size=0.01,
    time=10,
  )
  mean, se = found["x1_squared"]
  assert mean - target.exact()["x1_squared"] > 6 * se
  assert summary.mean["eq_residual"].mean() > 0.03


def test_fixed_epsilon_errs_on_both_sides():
  target, errors = manifolds.cap(), []
  for epsilon in (0.05, 1.0):
    found, _ = chains.averages(
      kernel(target, step_size=0.005, epsilon=epsilon),
      target,
      step_size=0.005,
      time=4,
      num_chains=400,
    )
    mean, se = found["z"]
    assert se < 0.01
    errors.append(mean - 0.5)
  assert errors[0] < -0.04 and errors[1] > 0.04


@pytest.mark.parametrize("landing", thorough((0.25, 1.0, 1.5), (0.25, 1.5)))
def test_boundary_rule_holds_for_other_landings(landing):
  target = manifolds.interval()
  found, _ = chains.averages(
    kernel(target, step_size=0.002, landing=landing),
    target,
    step_size=0.002,
    time=4,
  )
  chains.check(found, target.exact(), bias=0.004)


def excess_mass(landing, repulsion, num_cells=700, depth=9.0, top=5.0):
  """Excess mass of the boundary layer, by the chain's transfer matrix.

  In units of the step's noise: inside `y + N(0, 1)`, outside the deterministic
  `(1 - landing) y - repulsion`; reflected at `-depth`.
  """
  width = (depth + top) / num_cells
  edges = -depth + width * np.arange(num_cells + 1)
  cells = (edges[1:] + edges[:-1]) / 2
  inside = cells < 0
  move = np.zeros((num_cells, num_cells))
  start = cells[inside][:, None]
  for mean in (start, -2 * depth - start):
    move[inside] += np.diff(stats.norm.cdf(edges[None] - mean), axis=1)
  for i in np.flatnonzero(~inside):
    place = ((1 - landing) * cells[i] - repulsion + depth) / width - 0.5
    j = int(np.floor(place))
    move[i, j] += 1 - (place - j)
    move[i, j + 1] += place - j
  move /= move.sum(axis=1, keepdims=True)
  system = move.T - np.eye(num_cells)
  system[0] = 1
  mass = np.linalg.solve(system, np.eye(num_cells)[0])
  density = mass[cells < -depth / 2].sum() / (depth / 2)
  return mass.sum() / density - depth


@pytest.mark.parametrize(
  "landing", thorough((0.1, 0.5, 1.0, 1.5, 1.9), (0.1, 1.0, 1.9))
)
def test_repulsion_makes_the_boundary_mass_right(landing):
  root = optimize.brentq(
    lambda b: excess_mass(landing, b), 0.05, 3.0, xtol=1e-3
  )
  assert abs(float(landing_lib.repulsion(landing)) - root) < 0.02


def linear_problem():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 6)), rng.normal(size=2)
  c = rng.normal(size=6)
  return (lambda x: a @ x - b), (lambda x: jnp.stack([c @ x + 50.0]))


def test_linear_residuals_shrink_exactly():
  with jax.enable_x64(True):
    eq_fn, ineq_fn = linear_problem()
    epsilon, landing = 0.1, 0.3
    k = langevin.olla(
      lambda x: jnp.sum(x**4),
      eq_fn,
      ineq_fn,
      step_size=1e-3,
      landing=landing,
      epsilon=epsilon,
    )
    state = k.init(jnp.ones(6))
    h, g = eq_fn(state.position), ineq_fn(state.position)
    step = jax.jit(k.step)
    for i in range(5):
      state, _ = step(jax.random.key(i), state)
    ratio = (1 - landing) ** 5
    np.testing.assert_allclose(eq_fn(state.position), ratio * h, rtol=1e-10)
    np.testing.assert_allclose(
      ineq_fn(state.position) + epsilon, ratio * (g + epsilon), rtol=1e-10
    )


def test_stress_lands_and_keeps_its_radius():
  # float64: in float32 the planes are met to 2e-4 alone, see test_kernels.
  target = targets.stress(100, 10, 10)
  with jax.enable_x64(True):
    k = kernel(target, step_size=2e-3)
    start = target.init(jax.random.key(0), 16).astype(jnp.float64)
    start = start + 0.3 * jax.random.normal(jax.random.key(1), start.shape)
    samples, summary = jax.jit(
      lambda key: langevin.run_chains(
        key, k, start, num_samples=40, thinning=5, num_burn_in=60
      )
    )(jax.random.key(2))
  h = jax.vmap(jax.vmap(target.eq_fn))(samples)
  assert float(jnp.abs(jax.vmap(target.eq_fn)(start))[:, :-1].max()) > 1
  assert float(summary.max["eq_residual"][:, :-1].max()) < 1e-10
  assert abs(float(h[..., -1].mean())) < 0.2
  # Obstacles are met: the masked rows are at work.
  assert 0 < float(summary.mean["active"].mean()) < 0.2


def test_landing_of_two_never_lands():
  eq_fn, _ = linear_problem()
  with pytest.raises(ValueError, match=r"must lie in \(0, 2\)"):
    langevin.olla(lambda x: x.sum(), eq_fn, step_size=0.01, landing=2.0)
  with jax.enable_x64(True):
    x = jnp.ones(6)
    stacked = cs.stack(eq_fn, None, x)
    lin = cs.linearise(stacked, x)
    new = x - jax.jit(cs.normal_step)(lin, 2.0 * lin.values)
    np.testing.assert_allclose(eq_fn(new), -eq_fn(x), rtol=1e-10)


def test_full_rank_leaves_no_noise():
  with jax.enable_x64(True):
    k = langevin.olla(
      lambda x: jnp.sum(x),
      lambda x: jnp.stack([x[0] - 1, x[0] + x[1] - 2]),
      step_size=0.1,
    )
    state, step = k.init(jnp.array([3.0, 1.0])), jax.jit(k.step)
    one, two = (step(jax.random.key(i), state)[0] for i in (0, 1))
    np.testing.assert_allclose(one.position, two.position, atol=1e-12)


def test_star_keeps_its_law():
  # Mixing over the lobes is slow: started from the exact law, it must stay.
  target = planar.star()
  found, _ = chains.averages(
    kernel(target, step_size=5e-4), target, step_size=5e-4, time=0.5, burn_in=0
  )
  chains.check(found, target.exact(), num_se=4.5, bias=0.03)


def test_positions_may_be_trees():
  def eq_fn(p):
    return jnp.stack([jnp.sum(p["a"] ** 2) + p["b"] ** 2 - 1])

  tree = {"a": jnp.array([0.6, 0.0]), "b": jnp.float32(0.8)}
  k = langevin.olla(lambda p: -2 * p["b"], eq_fn, step_size=0.01)
  flat = langevin.olla(
    lambda x: -2 * x[2],
    lambda x: jnp.stack([jnp.sum(x**2) - 1]),
    step_size=0.01,
  )
  key = jax.random.key(0)
  state, info = jax.jit(k.step)(key, k.init(tree))
  other, _ = jax.jit(flat.step)(key, flat.init(jnp.array([0.6, 0.0, 0.8])))
  np.testing.assert_allclose(state.position["a"], other.position[:2], rtol=1e-6)
  np.testing.assert_allclose(state.position["b"], other.position[2], rtol=1e-6)
  assert info.eq_residual.shape == (1,) and info.ineq_value.shape == (0,)


def test_status_names_what_is_wrong():
  def circle(x):
    return jnp.stack([jnp.sum(x**2) - 1])

  key = jax.random.key(0)

  def one(potential_fn, eq_fn, position, ineq_fn=None):
    k = langevin.olla(potential_fn, eq_fn, ineq_fn, step_size=1e-3)
    state, info = jax.jit(k.step)(key, k.init(jnp.array(position)))
    return state.position, langevin.Status(int(info.status))

  def flat(x):
    return jnp.zeros((), x.dtype)

  on, far = [1.0, 0.0], [3.0, 4.0]
  assert one(flat, circle, on)[1] == langevin.Status.OK
  position, status = one(flat, circle, far)
  assert status == langevin.Status.LANDING
  assert jnp.linalg.norm(position) < 5
  twice = one(flat, lambda x: jnp.concatenate([circle(x), circle(x)]), on)
  assert twice[1] == langevin.Status.DEPENDENT
  assert jnp.isfinite(twice[0]).all()
  broken = one(lambda x: jnp.log(x[1] - 1), circle, on)
  assert broken[1] == langevin.Status.NOT_FINITE
  np.testing.assert_array_equal(broken[0], jnp.array(on))
  # A gradient that vanishes on the set is a dependence too.
  flat_gradient = one(flat, lambda x: circle(x) ** 2, on)
  assert flat_gradient[1] == langevin.Status.DEPENDENT


def test_a_bad_chain_does_not_disturb_the_others():
  target = manifolds.circle()
  k = langevin.olla(
    lambda x: jnp.where(x[0] > 5, jnp.nan, 0.0) * x[0],
    target.eq_fn,
    step_size=0.01,
  )
  start = target.init(jax.random.key(0), 4)
  run = jax.jit(
    lambda x: langevin.run_chains(jax.random.key(1), k, x, num_samples=5)
  )
  good, _ = run(start)
  bad, summary = run(start.at[2].set(jnp.array([9.0, 0.0])))
  keep = jnp.array([0, 1, 3])
  np.testing.assert_array_equal(good[:, keep], bad[:, keep])
  assert summary.status[2, langevin.Status.NOT_FINITE] == 1
  np.testing.assert_array_equal(bad[-1, 2], jnp.array([9.0, 0.0]))


def test_constraints_that_are_not_finite_are_reported():
  def log_wall(x):
    return jnp.stack([-1 - jnp.log(x[0])])

  k = langevin.olla(lambda x: 5 * x[0], None, log_wall, step_size=0.5)
  state = k.init(jnp.array([-0.1]))
  new, info = k.step(jax.random.key(0), state)
  assert int(info.status) == langevin.Status.NOT_FINITE
  np.testing.assert_array_equal(new.position, state.position)


def test_potentials_may_end_at_the_boundary():
  # Gamma(3/2) on x >= 0: the potential is undefined where steps overshoot.
  target = ConstrainedTarget(
    potential_fn=lambda x: x[0] - 0.5 * jnp.log(x[0]),
    dim=1,
    init=lambda key, n: jax.random.gamma(key, 1.5, (n, 1)),
    ineq_fn=lambda x: -x,
    observables=lambda x: {"x": x[0]},
    exact=lambda: {"x": 1.5},
  )
  found, summary = chains.averages(
    kernel(target, step_size=2e-3), target, step_size=2e-3, time=6
  )
  chains.check(found, target.exact(), bias=0.03)
  assert 0 < summary.status[:, langevin.Status.NOT_FINITE].mean() < 0.05


def test_float32_positions_under_x64():
  target = manifolds.cap()
  with jax.enable_x64(True):
    k = langevin.olla(
      target.potential_fn,
      target.eq_fn,
      target.ineq_fn,
      step_size=np.float64(0.01),
    )
    start = jnp.array([[0.6, 0.0, 0.8]], jnp.float32)
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      samples, _ = langevin.run_chains(
        jax.random.key(0), k, start, num_samples=2
      )
  assert samples.dtype == jnp.float32


@pytest.mark.parametrize(
  "options, error, message",
  [
    (
      dict(step_size=0.1, without_curvature=True),
      ValueError,
      "pass num_probes=0",
    ),
    (dict(step_size=0.1, epsilon=-0.5), ValueError, "epsilon must be finite"),
    (dict(step_size=0.1, epsilon=None), TypeError, "epsilon must be 'auto'"),
    (dict(step_size=0.0), ValueError, "step_size must be positive"),
    (dict(step_size=float("nan")), ValueError, "step_size must be positive"),
    (dict(step_size=0.1, landing=-1.0), ValueError, "landing must be positive"),
    (dict(step_size=0.1, epsilon="big"), ValueError, "epsilon must be 'auto'"),
    (dict(step_size=0.1, num_probes=-1), ValueError, "num_probes must be >= 0"),
    (dict(step_size=0.1, num_probes=1.5), TypeError, "num_probes must be an"),
  ],
)
def test_bad_options(options, error, message):
  with pytest.raises(error, match=message):
    kernel(manifolds.circle(), **options)


def test_bad_positions():
  k = kernel(manifolds.circle(), step_size=0.1)
  for dtype in (jnp.int32, jnp.bfloat16):
    with pytest.raises(TypeError, match="position must hold float arrays"):
      k.init(jnp.array([1, 0], dtype))
  target = manifolds.cap()
  short = kernel(target, step_size=0.1, epsilon=jnp.ones(2))
  with pytest.raises(ValueError, match=r"epsilon must be a scalar or \[1\]"):
    short.step(jax.random.key(0), short.init(jnp.array([0.6, 0.0, 0.8])))
  with pytest.raises(ValueError, match="pass eq_fn, ineq_fn or both"):
    langevin.olla(lambda x: x.sum(), step_size=0.1)
  scalar = langevin.olla(lambda x: x.sum(), lambda x: x.sum(), step_size=0.1)
  with pytest.raises(ValueError, match="eq_fn must return a vector"):
    scalar.init(jnp.ones(2))
