"""Exact-kernel rollouts: E[exp(log_weights)] = Z, bridges, gradients."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats

from jdiff import sde
from jdiff.core import keys as keys_lib
from jdiff.schedules import gaussian, grids
from jdiff.sde import references

SCHEDULE = gaussian.vp(0.1, 10.0)
SCALE = 2.0
REFERENCE = references.vp(SCHEDULE, scale=SCALE)


def double_well(x):
  """Two wells of unequal depth in one dimension."""
  return -jnp.sum((x**2 - 2.0) ** 2) + jnp.sum(0.5 * x)


def planar(x):
  """A double well along one axis, tied to the other."""
  return double_well(x[:1]) - 2.0 * (x[1] - 0.5 * x[0]) ** 2


TARGETS = {"double_well": (double_well, 1), "planar": (planar, 2)}


def residual(params, x, t):
  """Neither zero nor good: bounded, and uneven in x and t."""
  return params * (
    jnp.sin(2 * x + 1) - 0.3 * jnp.cos(3 * t)[:, None] * x[:, :1]
  )


def run(params=0.8, key=None, num_samples=16, **options):
  options = {"reference": REFERENCE, "residual_fn": residual, **options}
  options.setdefault("shape", (2,))
  if "times" not in options:
    options.setdefault("num_steps", 5)
  key = jax.random.key(0) if key is None else key
  return sde.rollout(params, key, num_samples=num_samples, **options)


def quadrature(log_density, dim):
  """Integral of exp(log_density) on [-6, 6]^dim, where all the mass is."""
  axis = np.linspace(-6, 6, 801)
  points = np.stack(np.meshgrid(*[axis] * dim, indexing="ij"), axis=-1)
  values = jax.vmap(log_density)(jnp.asarray(points.reshape(-1, dim)))
  # Smooth and zero with its derivatives at the ends: spectral accuracy.
  return (
    np.exp(np.asarray(values, np.float64)).sum() * (axis[1] - axis[0]) ** dim
  )


def euler_variance(num_steps):
  """Where the Euler-Maruyama reference ends, from N(0, SCALE^2)."""
  times = np.linspace(1, 0, num_steps + 1)
  variance = SCALE**2
  for t, dt in zip(times[:-1], times[:-1] - times[1:], strict=True):
    rate = 0.1 + 9.9 * t
    variance = (1 - rate * dt / 2) ** 2 * variance + SCALE**2 * rate * dt
  return variance


def euler_rollout(params, key, num_samples, dim, num_steps):
  """The same process with Euler-Maruyama kernels: the negative control."""

  def body(carry, k):
    x, log_ratio = carry
    t = 1 - k / num_steps
    rate, dt = SCHEDULE.diffusion_squared(t), 1 / num_steps
    sd = SCALE * jnp.sqrt(rate * dt)
    alpha = SCHEDULE.alpha(t)
    # The control of the same policy, which is a score.
    control = alpha / (SCALE * jnp.sqrt(1 - alpha**2))
    shift = sd * control * residual(params, x, jnp.full(num_samples, t))
    eps = jax.random.normal(jax.random.fold_in(key, k), x.shape)
    log_ratio -= jnp.sum(shift * (0.5 * shift + eps), axis=1)
    return ((1 - rate * dt / 2) * x + sd * (shift + eps), log_ratio), None

  start = SCALE * jax.random.normal(
    jax.random.fold_in(key, num_steps), (num_samples, dim)
  )
  carry = (start, jnp.zeros(num_samples))
  return jax.lax.scan(body, carry, jnp.arange(num_steps))[0]


def reward(log_prob, samples):
  return jax.vmap(lambda x: log_prob(x) - REFERENCE.log_prob(x))(samples)


def z_score(values, want):
  return (values.mean() - want) / (values.std() / len(values) ** 0.5)


@pytest.mark.parametrize(
  ("name", "num_steps", "seed"),
  [
    ("double_well", 2, 0),
    ("planar", 10, 0),
    *(
      pytest.param("planar", steps, seed, marks=pytest.mark.thorough)
      for steps in (10, 20, 50)
      for seed in (1, 2, 3)
    ),
  ],
)
def test_weights_are_exact(name, num_steps, seed):
  log_prob, dim = TARGETS[name]
  num = 200_000

  @jax.jit
  def draw(key):
    exact = run(0.3, key, num, shape=(dim,), num_steps=num_steps)
    euler = euler_rollout(0.3, jax.random.key(seed + 99), num, dim, num_steps)
    rewards = [reward(log_prob, x) for x in (exact.samples, euler[0])]
    return exact.samples, exact.log_ratio, euler[1], rewards

  samples, *log_ratios, rewards = jax.device_get(draw(jax.random.key(seed)))
  ratio = np.exp(np.float64(log_ratios[0]))
  weights, euler = np.exp(np.float64(log_ratios) + np.float64(rewards))
  assert 0.2 < log_ratios[0].std() < 1.5
  z = quadrature(log_prob, dim)
  # The reward is bounded above, as the target's tails are lighter, and the
  # control is small: a mean of 2e5 weights is as good as normal.
  assert abs(z_score(weights, z)) < 5
  assert weights.std() / num**0.5 < 0.01 * z
  # The log-ratio alone, and a moment of the reference under the policy.
  assert abs(z_score(ratio, 1.0)) < 5
  assert abs(z_score(ratio * np.float64(samples[:, 0]) ** 2, SCALE**2)) < 5

  # Control: Euler-Maruyama finds the integral against its own reference.
  end = euler_variance(num_steps) ** 0.5

  def tilted(x):
    own = references.vp(SCHEDULE, scale=end)
    return reward(log_prob, x[None])[0] + own.log_prob(x)

  assert abs(z_score(euler, quadrature(tilted, dim))) < 5
  # Against the integral itself it is off, where steps are long.
  assert num_steps > 10 or abs(z_score(euler, z)) > 5


def test_zero_control_is_the_reference():
  num = 50_000
  result = jax.jit(
    functools.partial(
      run,
      0.0,
      num_samples=num,
      num_steps=3,
      reference=references.vp(gaussian.cosine(), scale=SCALE),
    )
  )()
  assert (result.log_ratio == 0).all()
  x = np.asarray(result.samples, np.float64).ravel()
  assert abs(x.mean()) < 5 * SCALE / (2 * num) ** 0.5
  assert abs(x.var() - SCALE**2) < 5 * SCALE**2 * (1 / num) ** 0.5


def test_the_best_policy_has_constant_weights():
  # For a target N(mu, SCALE^2) the tilt exp(mu x / SCALE^2) moves x_0 given x_t
  # by mu std^2 / SCALE^2. With alpha(1) = 0 the start needs no shift, and every
  # weight is Z.
  mu, steps = 3.0, 6

  @functools.partial(jax.jit, static_argnums=0)
  def log_weights(schedule):
    reference = references.vp(schedule, scale=SCALE)

    def best(params, x, t):
      del params
      _, std = reference.kernel(t, jnp.zeros_like(t))
      return jnp.broadcast_to(mu * std[:, None] / SCALE**2, x.shape)

    result, path = sde.rollout_path(
      None,
      jax.random.key(3),
      residual_fn=best,
      reference=reference,
      num_samples=16,
      shape=(2,),
      num_steps=steps,
    )
    tilt = (mu * result.samples - mu**2 / 2).sum(axis=1) / SCALE**2
    return result.log_ratio + tilt, path[0]

  found, _ = log_weights(gaussian.cosine())
  np.testing.assert_allclose(found, 0, atol=1e-5)
  # With memory of the start, the log-weight is its share of the tilt.
  kept = np.exp(-5.05 / 2)
  found, start = log_weights(SCHEDULE)
  want = mu * kept * start / SCALE**2 - (mu * kept / SCALE) ** 2 / 2
  np.testing.assert_allclose(found, want.sum(axis=1), atol=1e-5)


def test_path_log_ratio():
  times = np.array([1.0, 0.9, 0.5, 0.2, 0.1, 0.0])
  options = dict(residual_fn=residual, reference=REFERENCE)
  result, path = jax.jit(
    lambda key: sde.rollout_path(
      0.8, key, num_samples=16, shape=(2,), times=times, **options
    )
  )(jax.random.key(0))
  chex.assert_shape(path, (6, 16, 2))
  same = jax.jit(lambda: run(times=times))()
  np.testing.assert_allclose(same.samples, path[-1], rtol=1e-5)
  np.testing.assert_allclose(same.log_ratio, result.log_ratio, rtol=1e-5)
  log_ratio = jax.jit(
    functools.partial(sde.path_log_ratio, times=times, **options)
  )
  np.testing.assert_allclose(
    log_ratio(0.8, path), result.log_ratio, rtol=1e-4, atol=1e-4
  )
  # Of another policy than the one that drew them, with less noise: log
  # densities of the two chains, step by step.
  alpha = np.exp(-0.5 * (0.1 * times + 4.95 * times**2))
  answers = jax.jit(jax.vmap(functools.partial(residual, -0.4)))(
    path[:-1], jnp.repeat(jnp.asarray(times[:-1, None], jnp.float32), 16, 1)
  )
  spread = np.linspace(0.9, 0.5, 5)
  path, answers = (np.asarray(x, np.float64) for x in (path, answers))
  want = 0.0
  for k, answer in enumerate(answers):
    c = alpha[k] / alpha[k + 1]
    sd = SCALE * np.sqrt(1 - c**2)
    std, std_next = (SCALE * np.sqrt(1 - alpha[i] ** 2) for i in (k, k + 1))
    mean = c * path[k] + sd**2 * alpha[k + 1] / std * answer
    variance = sd**2 / std**2
    variance *= std_next**2 + (alpha[k + 1] * sd) ** 2 * spread[k]
    want += stats.norm.logpdf(path[k + 1], c * path[k], sd).sum(axis=1)
    want -= stats.norm.logpdf(path[k + 1], mean, variance**0.5).sum(axis=1)
  np.testing.assert_allclose(
    log_ratio(-0.4, jnp.asarray(path, jnp.float32), spread=spread),
    want,
    rtol=1e-4,
    atol=1e-4,
  )


def test_gradients():
  options = dict(residual_fn=residual, reference=REFERENCE)
  with jax.enable_x64(True):
    path = jax.random.normal(jax.random.key(0), (4, 4, 2))

    def fixed(p):
      return jnp.sum(sde.path_log_ratio(p, path, **options) ** 2)

    def through(p):
      result = run(p, num_samples=4, num_steps=3)
      return jnp.sum(result.log_ratio + jax.vmap(planar)(result.samples))

    step = 1e-5
    for loss in (fixed, through):
      value = jax.jit(jax.value_and_grad(loss))
      slope = (value(0.8 + step)[0] - value(0.8 - step)[0]) / (2 * step)
      # Central difference: h^2 and rounding / h, both near 1e-10 relative.
      np.testing.assert_allclose(value(0.8)[1], slope, rtol=1e-6)
    # Whoever made the path, it is held fixed.
    moved = jax.jit(
      jax.grad(lambda p: sde.path_log_ratio(0.8, p, **options).sum())
    )
    assert not moved(path).any()


def test_reference_log_prob():
  x = jnp.array([[1.0, -2.0], [0.5, 3.0]])
  want = -0.5 * 14.25 / SCALE**2 - 2 * np.log(2 * np.pi * SCALE**2)
  np.testing.assert_allclose(REFERENCE.log_prob(x), want, rtol=1e-6)


def test_contract_and_transforms():
  key = jax.random.key(0)
  jitted = jax.jit(chex.assert_max_traces(run, n=1))
  result = jitted(0.8, key)
  chex.assert_shape(result.samples, (16, 2))
  chex.assert_shape(result.log_ratio, (16,))
  assert result.log_ratio.dtype == jnp.float32
  assert result.nfe.dtype == jnp.int32 and (result.nfe == 5).all()
  assert result.log_policy is result.order is result.num_revealed is None
  other = jitted(0.1, key)
  # A path's randomness is that of its own key.
  keys = keys_lib.per_example(key, 16)
  with jax.debug_key_reuse(True):
    both = jax.jit(
      jax.vmap(lambda p: run(p, keys[3:9], num_samples=6).samples)
    )(jnp.array([0.1, 0.8]))
  np.testing.assert_allclose(both[0], other.samples[3:9], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(both[1], result.samples[3:9], rtol=1e-4, atol=1e-5)
  for shape in ((3, 4), ()):
    form = jax.eval_shape(
      functools.partial(run, residual_fn=lambda p, x, t: p * x, shape=shape)
    )
    assert form.samples.shape == (16, *shape) and form.log_ratio.shape == (16,)


def test_devices():
  keys = keys_lib.per_example(jax.random.key(0), 16)
  data = jax.random.normal(jax.random.key(1), (16, 2))

  def both(params, keys, data):
    num = data.shape[0]
    result, path = sde.rollout_path(
      params,
      keys,
      residual_fn=residual,
      reference=REFERENCE,
      num_samples=num,
      shape=(2,),
      num_steps=5,
    )
    again = sde.path_log_ratio(
      params, path, residual_fn=residual, reference=REFERENCE
    )
    point = sde.bridge(
      keys_lib.fold(keys, 99),
      data,
      jnp.full(num, 0.3),
      reference=REFERENCE,
      noise=result.samples,
    )
    return result.samples, result.log_ratio, again, point

  want = jax.jit(both)(0.8, keys, data)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  placed = jax.device_put((keys, data), NamedSharding(mesh, P("x")))
  got = jax.jit(both)(0.8, *placed)
  chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)
  by_hand = jax.jit(
    jax.shard_map(
      both, mesh=mesh, in_specs=(P(), P("x"), P("x")), out_specs=P("x")
    )
  )(0.8, keys, data)
  chex.assert_trees_all_close(by_hand, want, rtol=1e-4, atol=1e-5)


def test_bad_arguments():
  with pytest.raises(ValueError, match="schedule must be variance preserving"):
    references.vp(gaussian.linear())
  with pytest.raises(ValueError, match="schedule must be variance preserving"):
    jax.jit(lambda: references.vp(gaussian.ve()).std(0.0))()
  with pytest.raises(ValueError, match="exactly one of num_steps and times"):
    run(num_steps=None)
  with pytest.raises(ValueError, match="times must decrease"):
    run(times=[0.0, 0.5, 1.0])
  with pytest.raises(ValueError, match="scale must be positive"):
    references.vp(SCHEDULE, scale=0.0)
  with pytest.raises(ValueError, match="num_samples must be >= 1"):
    run(num_samples=0)
  with pytest.raises(TypeError, match="every size in shape"):
    run(shape=(2.0,))
  with pytest.raises(ValueError, match="residual_fn's answer must have shape"):
    run(residual_fn=lambda p, x, t: x[:, :1])
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    run(key=jnp.zeros(2, jnp.uint32))
  options = dict(residual_fn=residual, reference=REFERENCE)
  with pytest.raises(ValueError, match="path must have shape"):
    sde.path_log_ratio(0.8, jnp.zeros((1, 3, 2)), **options)
  with pytest.raises(ValueError, match=r"times must have shape \[3\]"):
    sde.path_log_ratio(
      0.8, jnp.zeros((3, 3, 2)), times=grids.time_grid(4), **options
    )
  x, t = jnp.zeros((3, 2)), jnp.ones(3)
  with pytest.raises(ValueError, match=r"noise must have shape \[3, 2\]"):
    sde.bridge(jax.random.key(0), x, t, reference=REFERENCE, noise=x[:2])
  with pytest.raises(ValueError, match=r"t must have shape \[3\]"):
    sde.bridge(jax.random.key(0), x, t[:2], reference=REFERENCE)
