"""Samplers on Gaussian data: convergence orders, moments, exact flow maps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdiff import sde
from jdiff.core import keys as keys_lib
from jdiff.schedules import gaussian, grids
from tests.sde import laws

LAW = laws.GaussianLaw(gaussian.linear())
NOISE = jax.random.normal(jax.random.key(0), (16, 2, 3))


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_order(name):
  law = laws.GaussianLaw(laws.SCHEDULES[name])
  # The slope of sigma is infinite at t = 0 of the VP schedule.
  end = 0.05 if name == "vp" else 0.0
  counts = np.array([64, 128, 256])

  @functools.partial(jax.jit, static_argnums=0)
  def errors(method):
    found = []
    x = jnp.linspace(-2.0, 2.0, 5)[:, None]
    exact = law.flow(x, jnp.float64(1), jnp.float64(end))
    for count in counts:
      got = sde.sample_ode(
        None,
        x,
        velocity_fn=law.velocity,
        times=np.linspace(1, end, count + 1),
        method=method,
      )
      assert got.samples.dtype == jnp.float64
      found.append(jnp.abs(got.samples - exact).max())
    return jnp.stack(found)

  with jax.enable_x64(True):
    for method, want in [("euler", 1), ("heun", 2)]:
      found = np.asarray(errors(method))
      # The next term of the error bends the line by a few per cent.
      assert laws.order(found, counts) == pytest.approx(want, abs=0.1)
      assert found[-1] < 0.05**want


@pytest.mark.parametrize(
  ("options", "calls"),
  [({}, 1), ({"method": "heun"}, 2)],
)
def test_nfe_counts_the_calls(options, calls):
  seen = []

  def spy(params, x, t):
    jax.debug.callback(lambda t: seen.append(np.asarray(t)), t)
    return LAW.velocity(params, x, t)

  got = sde.sample_ode(None, NOISE, velocity_fn=spy, num_steps=4, **options)
  jax.block_until_ready(got)
  jax.effects_barrier()
  assert len(seen) == 4 * calls == got.nfe[0]
  assert got.nfe.shape == (16,) and got.nfe.dtype == jnp.int32
  assert all(t.shape == (16,) for t in seen)
  # Euler never asks at the end, where a field may be undefined.
  assert (min(t[0] for t in seen) > 0) == (calls == 1)


def test_edm():
  # In EDM's units x_sigma = data + sigma noise, and the field, made from a
  # denoiser, is 0 / 0 at sigma = 0.
  mean, std = 1.0, 0.5

  def velocity(params, x, sigma):
    del params
    sigma = sigma[:, None]
    denoised = (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)
    return (x - denoised) / sigma

  unit = jnp.linspace(-2, 2, 5)[:, None]
  run = functools.partial(
    sde.sample_ode,
    None,
    mean + np.hypot(std, 80.0) * unit,
    velocity_fn=velocity,
    method="heun",
    return_path=True,
  )
  errors, counts = [], [1, 2, 40, 80]
  every = jax.jit(
    lambda: [run(times=grids.edm(count), last_euler=True) for count in counts]
  )
  for count, got in zip(counts, jax.device_get(every()), strict=True):
    assert got.nfe[0] == 2 * count - 1
    assert got.path.shape == (count + 1, 5, 1)
    np.testing.assert_array_equal(got.path[-1], got.samples)
    errors.append(np.abs(got.samples - mean - std * np.asarray(unit)).max())
  assert np.isfinite(errors).all() and errors[-1] < 5e-3
  # The last step, of length 2e-3, is too short to spoil Heun's order.
  assert laws.order(errors[2:], counts[2:]) == pytest.approx(2, abs=0.2)
  assert not jnp.isfinite(run(times=grids.edm(4)).samples).all()


def test_path():
  @jax.jit
  def both():
    options = dict(velocity_fn=LAW.velocity, num_steps=4, method="heun")
    got = sde.sample_ode(None, NOISE, return_path=True, **options)
    return got, sde.sample_ode(None, NOISE, **options)

  got, without = both()
  assert got.path.shape == (5, *NOISE.shape)
  np.testing.assert_array_equal(got.path[0], NOISE)
  np.testing.assert_array_equal(got.path[-1], got.samples)
  assert without.path is None
  # Two loops of one program: rounding is all that may differ.
  np.testing.assert_allclose(without.samples, got.samples, atol=1e-6)


def euler_moments(law, times):
  """Mean and variance of the Euler-Maruyama chain itself; float64."""
  with jax.enable_x64(True):
    f, g2, (centre, variance) = jax.device_get(
      jax.jit(
        lambda t: (
          law.schedule.drift(t),
          law.schedule.diffusion_squared(t),
          law.moments(t),
        )
      )(times)
    )
  for stride in (4, 2, 1):
    mean, var = centre[0], variance[0]
    for k in range(0, len(times) - 1, stride):
      dt = times[k] - times[k + stride]
      factor = 1 - dt * (f[k] + g2[k] / variance[k])
      mean = factor * mean + dt * g2[k] * centre[k] / variance[k]
      var = factor**2 * var + dt * g2[k]
    yield mean, var


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_sde_moments(name):
  law = laws.GaussianLaw(laws.SCHEDULES[name])
  times = np.linspace(1.0 if name == "vp" else 0.95, 0, 401)
  chains = np.array(list(euler_moments(law, times)))
  # The chain's own law tends to the data's at order 1.
  errors = np.abs(chains - np.array([[law.mean, law.std**2]]))
  assert (errors[-1] < 0.02).all()
  for column in errors.T:
    assert (column < 1e-5).all() or laws.order(column, [1, 2, 4]) > 0.8

  num = 40_000

  @jax.jit
  def run(key):
    key_start, key_steps = jax.random.split(key)
    centre, variance = law.moments(jnp.float32(times[0]))
    start = jax.random.normal(key_start, (num // 2, 2))
    return sde.sample_sde(
      None,
      key_steps,
      centre + jnp.sqrt(variance) * start,
      score_fn=law.score,
      schedule=law.schedule,
      times=times[::4],
    )

  got = run(jax.random.key(1))
  x = np.asarray(got.samples, np.float64).ravel()
  mean, var = chains[0]
  assert abs(x.mean() - mean) < 5 * (var / num) ** 0.5
  assert abs(x.var() - var) < 5 * var * (2 / num) ** 0.5
  assert got.nfe[0] == 100


def test_sde_keys():
  law = laws.GaussianLaw(laws.SCHEDULES["vp"])
  run = jax.jit(
    functools.partial(
      sde.sample_sde,
      None,
      score_fn=law.score,
      schedule=law.schedule,
      num_steps=5,
      return_path=True,
    )
  )
  with jax.debug_key_reuse(True):
    got = run(jax.random.key(3), NOISE)
    same = run(jax.random.key(3), jnp.zeros_like(NOISE))
  assert got.path.shape == (6, *NOISE.shape)
  # Examples have noise of their own.
  assert np.unique(same.samples).size == NOISE.size
  keys = keys_lib.per_example(jax.random.key(3), 16)
  few = run(keys[5:7], NOISE[5:7])
  np.testing.assert_allclose(few.samples, got.samples[5:7], rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_sde_needs_data_in_its_start(name):
  law = laws.GaussianLaw(laws.SCHEDULES[name])
  run = functools.partial(
    sde.sample_sde,
    None,
    jax.random.key(0),
    score_fn=law.score,
    schedule=law.schedule,
  )
  for call in (run, jax.jit(run, static_argnames="num_steps")):
    with pytest.raises(ValueError, match="alpha > 0 where the SDE starts"):
      call(NOISE, num_steps=10)


@pytest.mark.parametrize("name", laws.SCHEDULES)
def test_exact_flow_map_needs_one_step(name):
  law = laws.GaussianLaw(laws.SCHEDULES[name])

  @jax.jit
  def run():
    exact = law.flow(NOISE, jnp.float32(1), jnp.float32(0))
    maps = [
      sde.sample_flow_map(
        None, NOISE, flow_map_fn=law.average, return_path=True, **options
      )
      for options in (
        {"num_steps": 1},
        {"num_steps": 7},
        {"times": [1, 0.2, 0]},
      )
    ]
    euler = sde.sample_ode(
      None, NOISE, velocity_fn=law.velocity, times=[1.0, 0.05]
    )
    return exact, maps, euler.samples

  exact, maps, euler = run()
  for got, steps in zip(maps, (1, 7, 2), strict=True):
    np.testing.assert_allclose(got.samples, exact, atol=2e-5)
    assert got.nfe[0] == steps == len(got.path) - 1
  # Control: its velocity, in one Euler step, is far off.
  assert float(jnp.abs(euler - exact).max()) > 0.1


def test_guidance():
  calls = []

  def velocity(params, x, t, *, label):
    calls.append(x.shape)
    return params[label][:, None] * x + t[:, None]

  params = jnp.array([1.0, 2.0, 5.0, 0.5])
  x = jax.random.normal(jax.random.key(4), (3, 2))
  t, label = jnp.array([0.1, 0.5, 0.9]), jnp.array([0, 2, 1])
  named = velocity(params, x, t, label=label)
  none = velocity(params, x, t, label=jnp.full(3, 3))
  calls.clear()
  for scale, want in [(0, none), (1, named), (3.0, none + 3 * (named - none))]:
    guided = sde.guided(velocity, scale=scale, null_label=3)
    got = guided(params, x, t, label=label)
    np.testing.assert_allclose(got, want, rtol=1e-5)
  assert calls == [(6, 2)] * 3
  got = sde.sample_ode(
    params, x, velocity_fn=guided, num_steps=2, label=label
  ).samples
  v1 = guided(params, x, jnp.ones(3), label=label)
  v2 = guided(params, x - v1 / 2, jnp.full(3, 0.5), label=label)
  np.testing.assert_allclose(got, x - v1 / 2 - v2 / 2, rtol=1e-4, atol=1e-4)
  with pytest.raises(ValueError, match="needs label"):
    guided(params, x, t)
  with pytest.raises(ValueError, match=r"label must have shape \[3\]"):
    guided(params, x, t, label=label[:2])
  with pytest.raises(ValueError, match="null_label must be >= 0"):
    sde.guided(velocity, scale=1.0, null_label=-1)


def field(params, x, t, s=None, label=None):
  del s
  return params * x * t.reshape(-1, 1, 1) + label.reshape(-1, 1, 1)


def run_all(params, noise, keys):
  """Every sampler, with labels that are the examples' indices."""
  options = dict(num_steps=4, label=jnp.arange(len(noise), dtype=jnp.int32))
  if jax.sharding.get_abstract_mesh().manual_axes:
    options["label"] += len(noise) * jax.lax.axis_index("x").astype(jnp.int32)
  ode = sde.sample_ode(
    params, noise, velocity_fn=field, method="heun", **options
  )
  stochastic = sde.sample_sde(
    params, keys, noise, score_fn=field, schedule=gaussian.vp(), **options
  )
  flow_map = sde.sample_flow_map(params, noise, flow_map_fn=field, **options)
  return jnp.stack([ode.samples, stochastic.samples, flow_map.samples], axis=1)


def test_transforms():
  keys = keys_lib.per_example(jax.random.key(7), 16)
  near = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  # One compilation serves two parameters.
  jitted = jax.jit(chex.assert_max_traces(run_all, n=1))
  want = jitted(jnp.float32(0.7), NOISE, keys)
  both = jax.jit(jax.vmap(run_all, in_axes=(0, None, None)))(
    jnp.array([1.4, 0.7]), NOISE, keys
  )
  near(both[1], want)
  near(both[0], jitted(jnp.float32(1.4), NOISE, keys))
  # Eight devices, by the compiler and by hand.
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  placed = jax.device_put((NOISE, keys), NamedSharding(mesh, P("x")))
  got = jax.jit(run_all)(jnp.float32(0.7), *placed)
  near(got, want)
  assert got.sharding.is_equivalent_to(NamedSharding(mesh, P("x")), got.ndim)
  by_hand = jax.shard_map(
    run_all, mesh=mesh, in_specs=(P(), P("x"), P("x")), out_specs=P("x")
  )
  near(jax.jit(by_hand)(jnp.float32(0.7), NOISE, keys), want)


def test_gradient():
  keys = keys_lib.per_example(jax.random.key(7), 4)
  with jax.enable_x64(True):
    noise = jnp.asarray(NOISE[:4], jnp.float64)

    def loss(params):
      square = jnp.mean(run_all(params, noise, keys) ** 2, axis=(0, 2, 3))
      return square @ jnp.array([1.0, 2.0, 3.0])

    run, step = jax.jit(jax.value_and_grad(loss)), 1e-5
    slope = (run(0.7 + step)[0] - run(0.7 - step)[0]) / (2 * step)
    # Central difference: h^2 and rounding / h, both near 1e-10 relative.
    np.testing.assert_allclose(run(0.7)[1], slope, rtol=1e-6)
    assert abs(slope) > 1e-3


def test_half_precision_noise_is_integrated_in_float32():
  got = sde.sample_ode(
    None, NOISE.astype(jnp.bfloat16), velocity_fn=LAW.velocity, num_steps=2
  )
  assert got.samples.dtype == jnp.float32


def test_bad_arguments():
  ode = functools.partial(sde.sample_ode, None, velocity_fn=LAW.velocity)
  with pytest.raises(ValueError, match="method must be 'euler' or 'heun'"):
    ode(NOISE, num_steps=2, method="rk4")
  with pytest.raises(ValueError, match="exactly one of num_steps and times"):
    ode(NOISE)
  with pytest.raises(ValueError, match="num_steps must be >= 1"):
    ode(NOISE, num_steps=0)
  with pytest.raises(ValueError, match="times must decrease"):
    ode(NOISE, times=[0.0, 1.0])
  with pytest.raises(ValueError, match=r"label must have shape \[16\]"):
    ode(NOISE, num_steps=2, label=jnp.zeros(3, jnp.int32))
  with pytest.raises(TypeError, match="label must be integers"):
    ode(NOISE, num_steps=2, label=jnp.zeros(16))
  with pytest.raises(TypeError, match="noise must be floating"):
    ode(jnp.zeros((2, 2), jnp.int32), num_steps=2)
  with pytest.raises(ValueError, match=r"noise must have shape \[B"):
    ode(jnp.zeros(()), num_steps=2)
  with pytest.raises(ValueError, match="velocity_fn's answer must have shape"):
    sde.sample_ode(
      None, NOISE, velocity_fn=lambda p, x, t: x[:, :1], num_steps=2
    )
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    sde.sample_sde(
      None,
      jnp.zeros(2, jnp.uint32),
      NOISE,
      score_fn=LAW.score,
      schedule=gaussian.vp(),
      num_steps=2,
    )
  with pytest.raises(ValueError, match=r"path must have shape \[3, B"):
    sde.straightness(NOISE, [1.0, 0.5, 0.0])
