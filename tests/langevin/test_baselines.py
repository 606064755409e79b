import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import langevin
from jdiff.core.types import ConstrainedTarget
from jdiff.langevin import baselines
from jdiff.targets import manifolds
from tests import helpers
from tests.langevin import chains

GAUSSIAN = ConstrainedTarget(
  potential_fn=lambda x: 0.5 * jnp.sum((x - 1) ** 2 * jnp.array([1.0, 4.0])),
  dim=2,
  init=lambda key, n: 1 + jax.random.normal(key, (n, 2)),
  observables=lambda x: {"x1": x[0], "x2_squared": x[1] ** 2},
  exact=lambda: {"x1": 1.0, "x2_squared": 1.25},
)


def test_unconstrained():
  for make, step_size, bias in (
    (langevin.ula, 0.02, 0.02),
    (langevin.mala, 0.2, 0.0),
  ):
    k = make(GAUSSIAN.potential_fn, step_size=step_size)
    found, summary = chains.averages(
      k, GAUSSIAN, step_size=step_size, time=20, thinning=5
    )
    chains.check(found, GAUSSIAN.exact(), bias=bias)
  assert 0.5 < summary.mean["accept_prob"].mean() < 0.99


def test_mala_accepts_by_detailed_balance():
  # One step from a point, by quadrature over its noise: P(accept) must be the
  # mean of min(1, pi(y) q(y, x) / pi(x) q(x, y)).
  with jax.enable_x64(True):
    dt, x = 0.5, 0.7
    k = langevin.mala(lambda z: 0.25 * jnp.sum(z**4), step_size=dt)
    state = k.init(jnp.array([x]))
    keys = jax.random.split(jax.random.key(0), 40000)
    _, info = jax.vmap(k.step, in_axes=(0, None))(keys, state)
    xi = np.linspace(-8, 8, 20001)
    y = x - dt * x**3 + (2 * dt) ** 0.5 * xi
    back = (x - y + dt * y**3) / (2 * dt) ** 0.5
    log_ratio = 0.25 * (x**4 - y**4) + 0.5 * (xi**2 - back**2)
    weight = np.exp(-0.5 * xi**2)
    want = np.sum(weight * np.exp(np.minimum(log_ratio, 0))) / weight.sum()
    prob = np.asarray(info.accept_prob)
    assert abs(prob.mean() - want) < 4.5 * prob.std() / 200


@pytest.mark.parametrize("frozen", [False, True])
def test_projected_langevin(frozen):
  target = manifolds.ellipse(kappa=-1.0)
  k = langevin.projected_langevin(
    target.potential_fn, target.eq_fn, step_size=0.01, frozen=frozen
  )
  found, summary = chains.averages(k, target, step_size=0.01, time=8)
  chains.check(found, target.exact(), bias=0.01)
  assert summary.max["eq_residual"].max() <= 1e-6
  assert summary.status[:, langevin.Status.OK].mean() > 0.999


CASES = {
  "ellipse": (manifolds.ellipse(kappa=-1.0), 0.4, 1),
  "skewed circle": (manifolds.circle(skewed=True), 0.5, 2),
  "rotations": (manifolds.stiefel(3, kappa=1.0), 0.3, 2),
  "tilted cap": (manifolds.cap(0.0, -2.0), 0.4, 1),
  "ball": (manifolds.ball(3), 0.4, 2),
}


@pytest.mark.parametrize(
  "name",
  helpers.thorough(CASES, [name for name in CASES if name != "rotations"]),
)
def test_constrained_hmc_has_no_bias(name):
  target, step_size, num_steps = CASES[name]
  k = langevin.constrained_hmc(
    target.potential_fn,
    target.eq_fn,
    target.ineq_fn,
    step_size=step_size,
    num_steps=num_steps,
    persistence=0.3,
  )
  # With 200 chains, a potential too large by half shows at 6 errors for the
  # ball and at more than 20 for the others.
  found, summary = chains.averages(
    k, target, step_size=1.0, time=400, thinning=4, num_chains=200
  )
  chains.check(found, target.exact())
  if target.eq_fn is not None:
    assert summary.max["eq_residual"].max() < 1e-10


def chain_means(kernel, start, observable, *, num_samples, thinning, num_burn):
  """`power -> [C]`, averages of chains of `kernel(power)`; compiled once."""

  @jax.jit
  def run(key, power):
    samples, _ = langevin.run_chains(
      key,
      kernel(power),
      start,
      num_samples=num_samples,
      thinning=thinning,
      num_burn_in=num_burn,
    )
    return jax.vmap(jax.vmap(observable))(samples).mean(axis=0)

  def found(seed, power):
    with jax.enable_x64(True):
      means = np.asarray(run(jax.random.key(seed), jnp.float64(power)))
    return means.mean(), means.std() / len(means) ** 0.5

  return found


def test_half_temperature_noise_is_another_law():
  # The trap of the released samplers: momenta of half the variance.
  target = manifolds.circle(2.0)
  exact = target.exact()["x1"]

  def kernel(power):
    return langevin.constrained_hmc(
      lambda x: power * target.potential_fn(x), target.eq_fn, step_size=0.4
    )

  start = np.asarray(target.init(jax.random.key(100), 200), np.float64)
  found = chain_means(
    kernel, start, lambda x: x[0], num_samples=70, thinning=4, num_burn=120
  )
  for power, same in ((1.0, True), (2.0, False)):
    mean, se = found(0, power)
    assert (abs(mean - exact) < 4.5 * se) == same


def test_slack_variables_keep_the_law():
  target = manifolds.ball(1, 0.0)
  potential, eq_fn, lift = langevin.slack(
    target.potential_fn, target.eq_fn, target.ineq_fn
  )
  start = np.asarray(target.init(jax.random.key(0), 300), np.float64)
  with jax.enable_x64(True):
    lifted = jax.vmap(lift)(start)

  def kernel(power):
    return langevin.constrained_hmc(
      lambda z: power * potential(z), eq_fn, step_size=0.3
    )

  found = chain_means(
    kernel,
    lifted,
    lambda z: z[0][0] ** 2,
    num_samples=100,
    thinning=3,
    num_burn=100,
  )
  mean, se = found(1, 1.0)
  assert se < 0.005 and abs(mean - 1 / 3) < 4.5 * se
  # Without the correction the lifted circle is sampled: the arcsine law.
  mean, se = found(1, 0.0)
  assert abs(mean - 1 / 2) < 4.5 * se


def test_rattle_is_reversible():
  target = manifolds.ellipse(kappa=1.0)
  with jax.enable_x64(True):
    x = target.init(jax.random.key(0), 1)[0].astype(jnp.float64)
    x = x / jnp.sqrt(target.eq_fn(x)[0] + 1)
    rattle = baselines._rattle(
      target.potential_fn, target.eq_fn, x, 0.2, 30, 1e-13
    )
    p = rattle.tangent(x, jnp.array([0.3, -0.8]))
    y, q, good, _ = rattle.step(x, p)
    back, momentum, _, _ = rattle.step(y, -q)
    assert bool(good)
    np.testing.assert_allclose(back, x, atol=1e-10)
    np.testing.assert_allclose(momentum, -p, atol=1e-10)
    # A step that jumps over the set cannot be reversed, and says so.
    *_, good, _ = rattle.step(x, 40 * p)
    assert not bool(good)


def test_an_impossible_projection_stays_and_says_so():
  target = manifolds.circle()
  k = langevin.projected_langevin(
    lambda x: 50.0 * x[1], target.eq_fn, step_size=1.0
  )
  state = k.init(jnp.array([1.0, 0.0]))
  new, info = k.step(jax.random.key(0), state)
  np.testing.assert_array_equal(new.position, state.position)
  assert int(info.status) == langevin.Status.NOT_CONVERGED


def test_chains_that_cannot_move_say_so():
  def ball(x):
    return jnp.stack([jnp.sum(x**2) - 1])

  def flat(x):
    return jnp.zeros((), x.dtype)

  circle = manifolds.circle()
  hmc, projected = langevin.constrained_hmc, langevin.projected_langevin
  landing, broken = langevin.Status.LANDING, langevin.Status.NOT_FINITE
  for k, start, status in (
    (hmc(flat, None, ball, step_size=0.01), [3.0, 3.0], landing),
    (
      projected(flat, circle.eq_fn, lambda x: -x[:1], step_size=1e-3),
      [-1.0, 0.0],
      landing,
    ),
    (
      hmc(lambda x: jnp.sqrt(jnp.sum(x**2)), None, ball, step_size=0.1),
      [0.0, 0.0],
      broken,
    ),
    (
      hmc(flat, None, lambda x: jnp.nan * ball(x), step_size=0.1),
      [0.1, 0.0],
      broken,
    ),
  ):
    state = k.init(jnp.array(start))
    new, info = k.step(jax.random.key(0), state)
    assert int(info.status) == status
    np.testing.assert_array_equal(new.position, state.position)
  with pytest.raises(TypeError, match="typed PRNG key"):
    k.step(jnp.zeros(2, jnp.uint32), state)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda f, h: langevin.ula(f, step_size=-1.0), "step_size must be"),
    (
      lambda f, h: langevin.constrained_hmc(
        f, h, step_size=0.1, persistence=1.0
      ),
      "persistence must lie",
    ),
    (lambda f, h: langevin.constrained_hmc(f, step_size=0.1), "use mala"),
    (
      lambda f, h: langevin.projected_langevin(
        f, h, step_size=0.1, tolerance=0.0
      ),
      "tolerance must be positive",
    ),
  ],
)
def test_bad_options(make, message):
  target = manifolds.circle()
  with pytest.raises(ValueError, match=message):
    make(target.potential_fn, target.eq_fn)
