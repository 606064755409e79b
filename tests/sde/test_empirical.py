"""The empirical score against dense sums and closed forms."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdiff import sde
from jdiff.schedules import gaussian
from jdiff.sde import empirical
from jdiff.targets import mixtures


def dense(x, data, alpha, sigma):
  """Log-density, score, denoised and Hessian in NumPy, float64."""
  x, data = np.float64(x), np.float64(data)
  alpha, sigma = np.reshape(alpha, (-1, 1)), np.reshape(sigma, (-1, 1))
  away = x[:, None] - alpha[:, :, None] * data
  logits = -0.5 * ((away / sigma[:, :, None]) ** 2).sum(axis=2)
  peak = logits.max(axis=1, keepdims=True)
  weights = np.exp(logits - peak)
  total = weights.sum(axis=1, keepdims=True)
  weights /= total
  dim = x.shape[1]
  log_prob = (peak + np.log(total) - np.log(len(data)))[:, 0]
  log_prob = log_prob - 0.5 * dim * np.log(2 * np.pi * sigma[:, 0] ** 2)
  mean = weights @ data
  spread = data[None] - mean[:, None]
  covariance = np.einsum("bn,bnd,bne->bde", weights, spread, spread)
  bend = (alpha / sigma**2)[:, :, None] ** 2 * covariance
  hessian = bend - np.eye(dim) / sigma[:, :, None] ** 2
  return log_prob, (alpha * mean - x) / sigma**2, mean, hessian


def every(x, data, alpha, sigma, **options):
  """The three functions, in the order of `dense`."""
  args = (x, data, alpha, sigma)
  return (
    *sde.empirical_score(*args, **options),
    sde.empirical_denoised(*args, **options),
    sde.empirical_hessian(*args, **options),
  )


def points(num_rows=23, batch=6, dim=3, seed=0):
  rng = np.random.default_rng(seed)
  data = rng.normal(size=(num_rows, dim))
  alpha = rng.uniform(0.3, 1, batch)
  sigma = rng.uniform(0.2, 1, batch)
  rows = data[rng.integers(0, num_rows, batch)]
  x = alpha[:, None] * rows + sigma[:, None] * rng.normal(size=(batch, dim))
  return x, data, alpha, sigma


@pytest.mark.parametrize("chunk_size", [1, 7, None])
def test_streaming_is_softmax(chunk_size):
  x, data, alpha, sigma = points()
  want = dense(x, data, alpha, sigma)

  @jax.jit
  def run(*args):
    options = {"chunk_size": chunk_size}
    slope = jax.grad(
      lambda x: sde.empirical_score(x, *args[1:], **options)[0].sum()
    )
    return every(*args, **options), slope(args[0])

  with jax.enable_x64(True):
    got, slope = run(*map(jnp.asarray, (x, data, alpha, sigma)))
  for found, exact in zip(got, want, strict=True):
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(slope, got[1], rtol=1e-12, atol=1e-12)


def test_derivatives_are_those_of_the_density():
  # In everything, through products and through differences.
  x, data, alpha, sigma = points(num_rows=5, batch=2)
  with jax.enable_x64(True):
    args = tuple(map(jnp.asarray, (x, data, alpha, sigma)))

    def plain(x, data, alpha, sigma):
      away = x[:, None] - alpha[:, None, None] * data[None]
      logits = -0.5 * jnp.sum((away / sigma[:, None, None]) ** 2, axis=2)
      norm = 1.5 * jnp.log(2 * jnp.pi * sigma**2) + jnp.log(5)
      return jnp.sum(jax.nn.logsumexp(logits, axis=1) - norm)

    def streamed(*args):
      return jnp.sum(sde.empirical_score(*args, chunk_size=2)[0])

    def twice(function):
      """All slopes, and the derivative of one along a direction."""

      def slopes(x):
        return jax.grad(function, (0, 1, 2, 3))(x, *args[1:])

      return jax.jit(lambda x: jax.jvp(slopes, (x,), (jnp.cos(x),)))(args[0])

    want = twice(plain)
    for limit in (np.inf, 0.0):
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(empirical, "_MAX_ERROR", limit)
        got = twice(lambda *a: streamed(*a))
      chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-10)


def test_shapes_and_scalars():
  x, data, _, _ = points(dim=12)
  wide = [jnp.asarray(a, jnp.float32).reshape(-1, 2, 3, 2) for a in (x, data)]
  flat = [jnp.asarray(a, jnp.float32) for a in (x, data)]
  alpha, sigma = 0.8, 0.6
  got, want = jax.jit(
    lambda: (
      every(*wide, alpha, sigma),
      every(*flat, jnp.full(6, alpha), jnp.full(6, sigma)),
    )
  )()
  assert got[0].shape == (6,) and got[3].shape == (6, 12, 12)
  assert got[1].shape == got[2].shape == (6, 2, 3, 2)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a.ravel(), b.ravel(), rtol=1e-5, atol=1e-5)
  # Tweedie.
  tweedie = (wide[0] + sigma**2 * got[1]) / alpha
  np.testing.assert_allclose(got[2], tweedie, rtol=1e-4, atol=1e-4)
  # Half-precision rows are widened chunk by chunk; integers are rows too.
  for dtype in (jnp.bfloat16, jnp.int8):
    rows = (3 * flat[1]).astype(dtype)
    found = jax.jit(sde.empirical_score)(flat[0], rows, alpha, sigma)
    assert found[0].dtype == found[1].dtype == jnp.float32
    exact = dense(x, np.float64(rows.astype(jnp.float32)), alpha, sigma)
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-4)


@pytest.mark.parametrize("sigma", [1.0, 1e-2, 1e-3])
def test_float32(sigma):
  # Rows far from the origin, and pairs of them that only differences tell
  # apart: the score between two is decided by the last digits of distances.
  rng = np.random.default_rng(3)
  alpha, offset = np.float32(1.0), 8.0
  data = rng.integers(-8, 8, (40, 16)) + offset
  data[20:] = data[:20] + sigma * np.sign(rng.normal(size=(20, 16))) / 2
  data = np.float32(data)
  x = alpha * data[:20] + np.float32(sigma / 3 * rng.normal(size=(20, 16)))
  want = dense(x, data, alpha, np.float64(np.float32(sigma)))
  scale = 4 / sigma

  def error():
    got = jax.jit(lambda *a: sde.empirical_score(*a, chunk_size=16))(
      x, data, alpha, jnp.float32(sigma)
    )
    return max(
      np.abs(got[0] - want[0]).max(), np.abs(got[1] - want[1]).max() / scale
    )

  # Inputs of order 8 have 2^-21 between them, which the noise must exceed.
  assert error() < 1e-3 + 1e-6 / sigma
  # Control: products alone are lost.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(empirical, "_MAX_ERROR", np.inf)
    assert (error() > 0.1) == (sigma < 0.05)


def test_tiny_noise():
  x, data, _, _ = points(num_rows=12, dim=4)
  data[11] = 1e4
  data[7] = data[3]
  data, x = np.float32(data), np.float32(x)
  # On rows, near rows, half-way between two, and far away.
  x = np.stack(
    [data[0], data[3], data[1] + 1e-6, (data[4] + data[5]) / 2, x[0] + 1e6]
  )

  @jax.jit
  def run(sigma):
    def density(x):
      return sde.empirical_score(x, data, 1.0, sigma, chunk_size=5)[0].sum()

    return every(x, data, 1.0, sigma, chunk_size=5), jax.grad(density)(x)

  for sigma in (1e-3, 1e-6):
    (log_prob, score, clean, hessian), slope = run(jnp.float32(sigma))
    chex.assert_tree_all_finite((log_prob, score, clean, hessian, slope))
    np.testing.assert_allclose(slope, score, rtol=1e-3, atol=1e-2 / sigma)
    # Centring costs the last digits of the scale of the outlier's share.
    np.testing.assert_allclose(clean[:3], data[[0, 3, 1]], atol=1e-3)
    # The outlier's weight is zero wherever it is not the nearest row.
    np.testing.assert_allclose(clean[4], data[11], rtol=1e-5)
  # A duplicate counts twice and says nothing else.
  score = jax.jit(sde.empirical_score)
  once = score(x[1:2], data[3:4], 1.0, 0.5)
  twice = score(x[1:2], data[np.array([3, 7])], 1.0, 0.5)
  chex.assert_trees_all_close(once, twice, rtol=1e-5, atol=1e-5)


def test_outlier_changes_nothing():
  x, data, alpha, sigma = points()
  with jax.enable_x64(True):
    args = jnp.asarray(x), jnp.asarray(data), alpha, sigma
    far = jnp.asarray(np.vstack([data[:9], np.full((1, 3), 1e4), data[9:]]))
    run = jax.jit(functools.partial(every, chunk_size=5))
    want, got = jax.device_get((run(*args), run(args[0], far, *args[2:])))
  # One more row that is nowhere near: log(N + 1) for log N, and no more.
  np.testing.assert_allclose(got[0], want[0] - np.log(24 / 23), rtol=1e-10)
  for a, b in zip(got[1:], want[1:], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_mask():
  x, data, alpha, sigma = points()
  mask = np.ones(31, bool)
  mask[[0, 1, 2, 3, 9, 25, 26, 30]] = False
  padded = np.full((31, 3), np.nan)
  padded[mask] = data
  # The first chunk has no row at all.
  run = jax.jit(functools.partial(every, chunk_size=4))
  got = run(x, padded, alpha, sigma, mask=mask)
  want = dense(x, data, alpha, sigma)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_eight_devices_say_what_one_says():
  x, data, alpha, sigma = points(num_rows=29)
  mesh = jax.make_mesh(
    (2, 4), ("rows", "data"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )

  def pad(a):  # The last part of four has no row that counts.
    return np.concatenate([a, np.zeros((11, *a.shape[1:]), a.dtype)])

  def local(x, data, mask, alpha, sigma):
    options = {"mask": mask, "axis_name": "data", "chunk_size": 2}

    def density(x):
      args = (x, data, alpha, sigma)
      return sde.empirical_score(*args, **options)[0].sum()

    return every(x, data, alpha, sigma, **options), jax.grad(density)(x)

  split = jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(P("rows"), P("data"), P("data"), P("rows"), P("rows")),
      out_specs=P("rows"),
    )
  )
  with jax.enable_x64(True):
    args = x, pad(data), pad(np.ones(29, bool)), alpha, sigma
    args = tuple(map(jnp.asarray, args))
    compiled = split.lower(*args).compile()
    got, slope = compiled(*args)
  want = dense(x, data, alpha, sigma)
  for found, exact in zip(got, want, strict=True):
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-12)
  np.testing.assert_allclose(slope, want[1], rtol=1e-12, atol=1e-12)
  assert "all-gather" not in compiled.as_text()


def test_sampler_of_rows_on_eight_devices():
  x, data, _, _ = points(num_rows=24)
  mesh = jax.make_mesh(
    (8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
  )

  def run(data, x, axis_name=None):
    field = sde.empirical_velocity_fn(gaussian.linear(), axis_name=axis_name)
    return sde.sample_ode(
      None, x, velocity_fn=lambda _, x, t: field(data, x, t), num_steps=5
    ).samples

  split = jax.shard_map(
    functools.partial(run, axis_name="data"),
    mesh=mesh,
    in_specs=(P("data"), P()),
    out_specs=P(),
  )
  args = jnp.asarray(data), jnp.asarray(x)
  np.testing.assert_allclose(
    jax.jit(split)(*args), jax.jit(run)(*args), rtol=1e-5, atol=1e-5
  )


def test_memory_does_not_grow_with_the_rows():
  batch, dim = 32, 64

  def temporary(num_rows, derivative):
    def run(x, data, sigma):
      return sde.empirical_score(x, data, 0.9, sigma, chunk_size=256)[0].sum()

    run = jax.grad(run) if derivative else run
    forms = [
      jax.ShapeDtypeStruct(shape, jnp.float32)
      for shape in ((batch, dim), (num_rows, dim), ())
    ]
    compiled = jax.jit(run).lower(*forms).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  # A number for each pair of a point and a row would be 2 MB. Of differences,
  # 64 a pair, not even those of a chunk are kept.
  num_rows = 2**14
  assert temporary(num_rows, False) < 4 * batch * num_rows / 4
  carries = num_rows // 256 * 4 * batch * (dim + 3)
  assert temporary(num_rows, True) < carries + 4 * batch * num_rows / 4
  assert temporary(num_rows, True) < carries + 4 * batch * 256 * dim / 2


def test_two_point_hessian():
  data = jnp.array([[-1.0], [1.0]])
  x = jnp.zeros((1, 1))
  known = {0.01: 9899.4158, 0.1: 89.408376, 1.0: -0.66130311}
  with jax.enable_x64(True):
    # House time is the share of a horizon of 5.
    schedule = gaussian.vp(5.0, 5.0)
    hessian = jax.jit(sde.empirical_hessian)
    for t, digits in known.items():
      alpha, sigma = np.exp(-t / 2), np.sqrt(-np.expm1(-t))
      for f, want in ((schedule.alpha, alpha), (schedule.sigma, sigma)):
        np.testing.assert_allclose(f(jnp.float64(t / 5)), want, rtol=1e-13)
      args = x.astype(float), data.astype(float), alpha, sigma
      got = hessian(*args)[0, 0, 0]
      np.testing.assert_allclose(got, digits, rtol=1e-7)
      want = -1 / sigma**2 + alpha**2 * 4 / (4 * sigma**4)
      np.testing.assert_allclose(got, want, rtol=1e-12)
    # In more dimensions it is the eigenvalue along the pair, at its middle.
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(2, 4))
    alpha, sigma = 0.9, 0.3
    middle = alpha * pair.mean(axis=0, keepdims=True)
    got = hessian(middle, pair, alpha, sigma)
  square = ((pair[0] - pair[1]) ** 2).sum()
  want = np.full(4, -1 / sigma**2)
  want[-1] += alpha**2 * square / (4 * sigma**4)
  np.testing.assert_allclose(np.linalg.eigvalsh(got[0]), want, rtol=1e-10)


def digits(num=50):
  from sklearn import datasets

  return datasets.load_digits().data[:num] / 8 - 1


def nearest(samples, data):
  away = samples[:, None] - data[None]
  return np.sqrt((away**2).sum(axis=2).min(axis=1))


def test_samplers_return_the_training_set():
  data = digits()
  batch, dim = 24, data.shape[1]
  schedule = gaussian.vp(0.1, 12.0)
  # Down to a noise of 3e-8: nothing but the flow brings points to rows.
  times = np.geomspace(1, 1e-14, 97)

  @jax.jit
  def run(data, noise, key):
    field = sde.empirical_velocity_fn(gaussian.linear(), chunk_size=16)
    flow = sde.sample_ode(data, noise, velocity_fn=field, num_steps=30)
    field = sde.empirical_velocity_fn(schedule, chunk_size=16)
    ode = sde.sample_ode(
      data, noise, velocity_fn=field, times=times, method="heun"
    )

    def walk(params, score_fn):
      return sde.sample_sde(
        params, key, noise, score_fn=score_fn, schedule=schedule, times=times
      ).samples

    score_fn = sde.empirical_score_fn(schedule, chunk_size=16)
    ends = flow.samples, ode.samples, walk(data, score_fn)
    # A law as wide as the data, not its rows.
    wide = mixtures.mixture(np.ones(1), data.mean(axis=0)[None], 0.2)
    other = walk(wide, mixtures.score_fn(schedule.alpha, schedule.sigma))
    return ends, other

  with jax.enable_x64(True):
    noise = jax.random.normal(jax.random.key(4), (batch, dim), float)
    answers, other = jax.device_get(
      run(jnp.asarray(data), noise, jax.random.key(5))
    )
  for samples in answers:
    assert nearest(samples, data).max() < 1e-6
    # Not one row for all.
    assert len(np.unique(samples.round(3), axis=0)) > 8
  # Control: the smooth law copies none.
  assert nearest(other, data).min() > 0.5


def test_fields_agree():
  x, data, _, _ = points()
  x, data = np.float32(x), np.float32(data)
  schedules = gaussian.linear(), gaussian.vp()

  @jax.jit
  def run(t):
    pairs = []
    for schedule in schedules:
      score = sde.empirical_score_fn(schedule)(data, x, t)
      velocity = sde.empirical_velocity_fn(schedule, chunk_size=9)(data, x, t)
      pairs.append((velocity, sde.velocity_from_score(score, x, t, schedule)))
    return pairs

  for velocity, want in run(jnp.linspace(0.1, 0.9, 6)):
    np.testing.assert_allclose(velocity, want, rtol=1e-3, atol=1e-3)
  # All noise: the mean of the rows, where a score has nothing left to say.
  velocity, without = run(jnp.ones(6))[0]
  want = x - data.mean(axis=0)
  np.testing.assert_allclose(velocity, want, rtol=1e-4, atol=1e-5)
  assert not np.isfinite(without).any()


def test_transforms():
  x, data, alpha, sigma = (np.float32(a) for a in points())
  jitted = jax.jit(chex.assert_max_traces(sde.empirical_score, n=1))
  want = jitted(x, data, alpha, sigma)
  jitted(x, data, alpha, sigma / 1000)
  # One point at a time; products and differences side by side.
  each = jax.jit(
    jax.vmap(lambda x, a, s: sde.empirical_score(x[None], data, a, s))
  )(x, alpha, sigma)
  got = jax.tree.map(lambda a: a[:, 0], each)
  chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-4)


def test_bad_arguments():
  x, data = jnp.zeros((3, 2)), jnp.zeros((5, 2))
  score = sde.empirical_score
  with pytest.raises(ValueError, match=r"data must have shape \[\*, 2\]"):
    score(x, data[:, :1], 1.0, 1.0)
  with pytest.raises(ValueError, match="number of rows of data must be >= 1"):
    score(x, data[:0], 1.0, 1.0)
  with pytest.raises(ValueError, match=r"alpha must be a scalar or .* \[3\]"):
    score(x, data, jnp.ones(5), 1.0)
  with pytest.raises(ValueError, match="sigma must be positive"):
    jax.jit(lambda: score(x, data, 1.0, 0.0))()
  with pytest.raises(ValueError, match=r"mask must have shape \[5\]"):
    score(x, data, 1.0, 1.0, mask=jnp.ones(3, bool))
  with pytest.raises(ValueError, match="chunk_size must be >= 1"):
    score(x, data, 1.0, 1.0, chunk_size=0)
  with pytest.raises(ValueError, match=r"x must have shape \[B"):
    score(jnp.zeros(()), data, 1.0, 1.0)
  with pytest.raises(ValueError, match="takes no label"):
    velocity = sde.empirical_velocity_fn(gaussian.vp())
    velocity(data, x, jnp.ones(3), label=jnp.zeros(3, int))
