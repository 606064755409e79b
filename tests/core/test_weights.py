import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import optimize

from jdiff.core import weights


@pytest.fixture(scope="module")
def log_w():
  return jnp.asarray(
    np.random.default_rng(0).normal(100.0, 2.0, 64), jnp.float32
  )


def test_against_float64(log_w):
  w = np.exp(np.asarray(log_w, np.float64))
  np.testing.assert_allclose(weights.normalise(log_w), w / w.sum(), rtol=1e-4)
  np.testing.assert_allclose(weights.log_z(log_w), np.log(w.mean()), rtol=1e-6)
  np.testing.assert_allclose(
    weights.ess(log_w), w.sum() ** 2 / (w**2).sum(), rtol=1e-4
  )
  np.testing.assert_allclose(
    weights.ess_fraction(log_w), weights.ess(log_w) / 64, rtol=1e-6
  )
  np.testing.assert_allclose(weights.elbo(log_w), np.log(w).mean(), rtol=1e-6)
  values = np.random.default_rng(1).normal(size=(64, 3))
  mean, se = weights.expectation(log_w, jnp.asarray(values, jnp.float32))
  share = (w / w.sum())[:, None]
  np.testing.assert_allclose(mean, (share * values).sum(0), rtol=1e-3)
  assert se.shape == (3,) and (np.asarray(se) > 0).all()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_widened(dtype):
  for name in ("normalise", "log_z", "ess", "elbo"):
    assert getattr(weights, name)(jnp.zeros(4, dtype)).dtype == jnp.float32


def test_zero_weights():
  log_w = jnp.array([-jnp.inf, 0.0, 0.0, -jnp.inf])
  np.testing.assert_allclose(weights.ess(log_w), 2, rtol=1e-6)
  np.testing.assert_allclose(weights.normalise(log_w), [0, 0.5, 0.5, 0])
  assert np.isnan(weights.ess(jnp.full(3, -jnp.inf)))


@pytest.mark.parametrize(
  "name", ["normalise", "log_z", "log_z_se", "elbo", "ess", "ess_fraction"]
)
def test_sharded_axis(name, log_w):
  function = getattr(weights, name)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  out = P("x") if name == "normalise" else P()
  sharded = jax.shard_map(
    lambda w: function(w, "x"),
    mesh=mesh,
    in_specs=P("x"),
    out_specs=out,
    check_vma=False,
  )
  np.testing.assert_allclose(sharded(log_w), function(log_w), rtol=1e-5)


def test_sharded_resample_and_clip(log_w):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def both(w):
    key = jax.random.key(0)
    return weights.resample(key, w, 8, "x"), weights.clip(w, 2.0, "x")

  index, clipped = jax.shard_map(
    both, mesh=mesh, in_specs=P("x"), out_specs=P("x"), check_vma=False
  )(log_w)
  np.testing.assert_array_equal(
    index, weights.resample(jax.random.key(0), log_w, 64)
  )
  np.testing.assert_allclose(clipped, weights.clip(log_w, 2.0), rtol=1e-6)


def test_resample_counts():
  # Systematic: every count is the expectation, rounded up or down.
  log_w = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
  index = weights.resample(jax.random.key(3), log_w, 1000)
  counts = np.bincount(index, minlength=4)
  assert (np.abs(counts - [100, 400, 200, 300]) <= 1).all()


def test_temper_and_clip():
  log_w = jnp.array([0.0, 2.0, -jnp.inf])
  np.testing.assert_array_equal(
    weights.temper(log_w, 0.5), [0.0, 1.0, -jnp.inf]
  )
  clipped = weights.clip(jnp.array([0.0, 0.0, 0.0, 10.0]), 2.0)
  mean = np.exp(weights.log_z(jnp.array([0.0, 0.0, 0.0, 10.0])))
  np.testing.assert_allclose(np.exp(clipped[3]), 2 * mean, rtol=1e-5)
  with pytest.raises(ValueError, match="max_ratio must lie in"):
    weights.clip(log_w, 0.0)


def test_log_z_se_covers():
  # Log-normal weights with sigma = 0.5: z-scores of 200 replicates.
  log_w = 0.5 * jax.random.normal(jax.random.key(0), (200, 4096))
  z = (jax.vmap(weights.log_z)(log_w) - 0.125) / jax.vmap(weights.log_z_se)(
    log_w
  )
  # The standard deviation of 200 z-scores is 1 +- 0.05.
  assert 0.8 < float(z.std()) < 1.2 and abs(float(z.mean())) < 0.3


@pytest.mark.parametrize("seed", [65, 143])
def test_resampling_never_draws_a_zero_weight(seed):
  # With these keys the last of many points rounds onto the end of the cdf.
  log_w = jnp.concatenate([jnp.zeros(1000), jnp.full(24, -jnp.inf)])
  index = weights.resample(jax.random.key(seed), log_w, 2**20)
  assert int(index.max()) < 1000


def test_exponent_meets_its_ess(log_w):
  groups = jnp.stack([log_w, 100 * log_w, jnp.zeros(64)])
  solve = jax.jit(jax.vmap(weights.solve_exponent, in_axes=(0, None)))
  exponent = solve(groups, 0.5)
  # 100 times the logs want a hundredth of the exponent; equal weights none.
  np.testing.assert_allclose(exponent[1], exponent[0] / 100, rtol=1e-4)
  assert 0 < exponent[0] < 1 and exponent[2] == 1
  fraction = jax.vmap(weights.ess_fraction)(
    jax.vmap(weights.temper)(groups, exponent)
  )
  np.testing.assert_allclose(fraction[:2], 0.5, atol=1e-4)
  # Weights that will do are left as they are.
  assert float(weights.solve_exponent(log_w, 0.02)) == 1


def test_exponent_of_two_weights():
  # Weights 1 and e^x have ess = (1 + e^x)^2 / (1 + e^2x) = 1 + 1 / cosh(x):
  # a fraction f asks for cosh(x) = 1 / (2 f - 1).
  for fraction in (0.6, 0.9):
    got = weights.solve_exponent(jnp.array([0.0, 7.0, -jnp.inf]), fraction)
    want = np.arccosh(1 / (2 * fraction - 1)) / 7
    np.testing.assert_allclose(got, want, rtol=1e-4)
  assert weights.temper(jnp.array([-jnp.inf, 3.0]), 0.0).tolist() == [
    -np.inf,
    0,
  ]


def test_sharded_exponent(log_w):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(
    lambda w: weights.solve_exponent(w, 0.5, "x"),
    mesh=mesh,
    in_specs=P("x"),
    out_specs=P(),
    check_vma=False,
  )
  np.testing.assert_allclose(
    sharded(log_w), weights.solve_exponent(log_w, 0.5), rtol=1e-5
  )


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_bad_fraction(fraction):
  with pytest.raises(ValueError, match="min_fraction must lie in"):
    weights.solve_exponent(jnp.zeros(4), fraction)


def test_kl_of_two_weights():
  # Weights 1 and e^x: log((1 + e^x) / 2) - x / 2 = log cosh(x / 2).
  for x in (0.0, 0.7, -5.0):
    log_w = 3.0 + jnp.array([0.0, x])
    want = np.log(np.cosh(x / 2))
    np.testing.assert_allclose(weights.kl(log_w), want, atol=1e-6)
    # Zeros are left out of both means.
    padded = jnp.concatenate([log_w, jnp.full(3, -jnp.inf)])
    np.testing.assert_allclose(weights.kl(padded), want, atol=1e-6)
  assert weights.kl(jnp.zeros(4, jnp.float16)).dtype == jnp.float32
  assert np.isnan(weights.kl(jnp.full(3, -jnp.inf)))


def solve_in_float64(log_w, offset, low, *, min_fraction=None, max_kl=None):
  """The crossing by SciPy, of sums that share no code with `weights`."""
  log_w, offset = (np.asarray(a, np.float64) for a in (log_w, offset))

  def excess(exponent):
    total = offset + exponent * log_w
    w = np.exp(total - total.max())
    if max_kl is not None:
      return np.log(w.mean()) - np.log(w).mean() - max_kl
    return min_fraction - w.sum() ** 2 / (w**2).sum() / len(w)

  return optimize.brentq(excess, low, 1.0, xtol=1e-12)


CRITERIA = {"ess": {"min_fraction": 0.4}, "kl": {"max_kl": 0.3}}


@pytest.mark.parametrize("criterion", CRITERIA)
def test_exponent_against_scipy(criterion, log_w):
  limit = CRITERIA[criterion]
  solve = jax.jit(functools.partial(weights.solve_exponent, **limit))
  zeros = jnp.zeros(64)
  got = solve(log_w)
  want = solve_in_float64(log_w, zeros, 0.0, **limit)
  assert 0.1 < want < 0.9
  np.testing.assert_allclose(got, want, rtol=1e-4)
  # An offset that undoes 0.3 of the weights puts the crossing that much later.
  offset = -0.3 * log_w
  for low in (0.0, 0.3, 0.5):
    got = solve(log_w, offset=offset, low=low)
    np.testing.assert_allclose(
      got,
      solve_in_float64(log_w, offset, max(low, 0.3), **limit),
      rtol=1e-4,
    )
    np.testing.assert_allclose(got, want + 0.3, rtol=1e-3)
  # One that has nothing to do with them.
  other = 0.3 * jnp.asarray(np.random.default_rng(2).normal(size=64), "float32")
  got = solve(log_w, offset=other)
  np.testing.assert_allclose(
    got, solve_in_float64(log_w, other, 0.0, **limit), rtol=1e-4
  )
  assert abs(float(got) - want) > 1e-3
  # Where the weights are too uneven already, the answer is `low`.
  np.testing.assert_allclose(solve(log_w, low=0.9), 0.9, rtol=1e-6)
  # Even weights go all the way, zeros among them or not.
  even = jnp.array([2.0, 2.0, -jnp.inf])
  assert solve(even) == 1
  assert solve(log_w, offset=-log_w) == 1


def test_sharded_kl_and_exponents(log_w):
  # An empty shard has neither a peak nor a count.
  log_w = log_w.at[:8].set(-jnp.inf)

  def answers(w, axis_name=None):
    offset = -0.3 * jnp.where(w > -jnp.inf, w, 0)
    solve = functools.partial(
      weights.solve_exponent, w, axis_name=axis_name, offset=offset, low=0.1
    )
    solved = [solve(**limit) for limit in CRITERIA.values()]
    return jnp.stack([weights.kl(w, axis_name), *solved])

  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  sharded = jax.shard_map(
    lambda w: answers(w, "x"),
    mesh=mesh,
    in_specs=P("x"),
    out_specs=P(),
    check_vma=False,
  )
  want = jax.jit(answers)(log_w)
  np.testing.assert_allclose(jax.jit(sharded)(log_w), want, rtol=1e-4)
  # The control: shards that keep to themselves answer otherwise.
  alone = jax.jit(answers)(log_w[8:16])
  assert (np.abs(alone - want) > 1e-2).all()


def test_exponent_has_no_gradient(log_w):
  gradient = jax.grad(lambda w: weights.solve_exponent(w, max_kl=0.3))(log_w)
  assert not gradient.any()


@pytest.mark.parametrize(
  "options, message",
  [
    ({}, "exactly one of min_fraction and max_kl, got min_fraction=None"),
    ({"min_fraction": 0.5, "max_kl": 0.5}, "exactly one .* max_kl=0.5"),
    ({"max_kl": 0.0}, "max_kl must be positive"),
    ({"max_kl": float("nan")}, "max_kl must be positive and finite"),
    (
      {"max_kl": 0.5, "offset": np.zeros(3, np.float32)},
      r"offset must have shape \[4\]",
    ),
    ({"max_kl": 0.5, "num_steps": 0}, "num_steps"),
  ],
)
def test_bad_criteria(options, message):
  with pytest.raises(ValueError, match=message):
    weights.solve_exponent(jnp.zeros(4), **options)
