import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ot
from jdiff.ot import laguerre


@pytest.fixture(scope="module")
def problem():
  rng = np.random.default_rng(0)
  noise, points = rng.normal(size=(64, 5)), rng.normal(size=(23, 5))
  bias = rng.normal(size=23)
  return tuple(jnp.asarray(a, jnp.float32) for a in (noise, points, bias))


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
def test_assignment_is_the_dense_one(problem, chunk_size):
  noise, points, bias = problem
  scores = np.asarray(noise) @ np.asarray(points).T + np.asarray(bias)
  index, gap = jax.jit(
    lambda: ot.assign_with_gap(noise, points, bias, chunk_size=chunk_size)
  )()
  np.testing.assert_array_equal(index, scores.argmax(axis=1))
  ranked = np.sort(scores, axis=1)
  np.testing.assert_allclose(gap, ranked[:, -1] - ranked[:, -2], atol=1e-5)
  share = jax.jit(
    lambda: ot.histogram(noise, points, bias, chunk_size=chunk_size)
  )()
  want = np.bincount(scores.argmax(axis=1), minlength=23) / 64
  np.testing.assert_allclose(share, want, atol=1e-6)
  assert index.dtype == jnp.int32 and share.shape == (23,)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_ties(chunk_size):
  points = jnp.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [-1, 0]])
  noise = jnp.array([[2.0, 0], [0, 3.0]])
  bias = jnp.zeros(5)
  index, gap = ot.assign_with_gap(noise, points, bias, chunk_size=chunk_size)
  np.testing.assert_array_equal(index, [0, 1])
  np.testing.assert_allclose(gap, [0, 3])
  share = ot.histogram(noise, points, bias, chunk_size=chunk_size)
  np.testing.assert_allclose(share, [1 / 6, 1 / 2, 1 / 6, 1 / 6, 0], atol=1e-6)
  never = ot.assign(noise, points, bias.at[0].set(-jnp.inf))
  assert int(never[0]) == 2


@pytest.mark.parametrize("chunk_size", [None, 2, 5])
def test_the_second_best(problem, chunk_size):
  noise, points, bias = problem
  scores = np.asarray(noise) @ np.asarray(points).T + np.asarray(bias)
  top_two = jax.jit(functools.partial(laguerre.top_two, chunk_size=chunk_size))
  top = top_two(noise, points, bias)
  ranked = np.argsort(-scores, axis=1)
  np.testing.assert_array_equal(top.index, ranked[:, 0])
  np.testing.assert_array_equal(top.second, ranked[:, 1])
  best = np.sort(scores, axis=1)
  np.testing.assert_allclose(top.gap, best[:, -1] - best[:, -2], atol=1e-5)
  # Scores 2 0 2 2 -2 and 0 3 0 0 0: the lowest index is second, too.
  points = jnp.array([[1.0, 0], [0, 1], [1, 0], [1, 0], [-1, 0]])
  noise = jnp.array([[2.0, 0], [0, 3.0]])
  top = top_two(noise, points, jnp.zeros(5))
  np.testing.assert_array_equal(top.index, [0, 1])
  np.testing.assert_array_equal(top.second, [2, 0])
  np.testing.assert_array_equal(top.gap, [0, 3])


def lattice():
  """Small integers: scores are exact in float32, and most rows have ties."""
  rng = np.random.default_rng(1)
  noise, points = rng.integers(-2, 3, (70, 3)), rng.integers(-2, 3, (50, 3))
  bias = rng.integers(-1, 2, 50)
  return tuple(jnp.asarray(a, jnp.float32) for a in (noise, points, bias))


# Blocks of 14 rows, and of 15 of which the last is filled up.
@pytest.mark.parametrize(("rows", "chunk_size"), [(70, None), (74, 7)])
def test_blocks_of_rows(monkeypatch, rows, chunk_size):
  monkeypatch.setattr(laguerre, "ROW_SIZE", 16)
  noise, points, bias = lattice()
  noise = jnp.concatenate([noise, noise])[:rows]
  scores = np.asarray(noise) @ np.asarray(points).T + np.asarray(bias)
  options = {"chunk_size": chunk_size}
  index, gap = jax.jit(
    lambda x: ot.assign_with_gap(x, points, bias, **options)
  )(noise)
  np.testing.assert_array_equal(index, scores.argmax(axis=1))
  ranked = np.sort(scores, axis=1)
  np.testing.assert_array_equal(gap, ranked[:, -1] - ranked[:, -2])
  hits = scores == ranked[:, -1:]
  assert (hits.sum(axis=1) > 1).mean() > 0.3
  want = (hits / hits.sum(axis=1, keepdims=True)).mean(axis=0)
  # Under vmap, where only the first of the two has ties.
  far = jnp.array([0.0, 0.0, 9.0])
  shares = jax.jit(jax.vmap(lambda x, y: ot.histogram(x, y, bias, **options)))(
    jnp.stack([noise, jnp.tile(far, (rows, 1))]),
    jnp.stack([points, points.at[3].set(far)]),
  )
  np.testing.assert_allclose(shares[0], want, atol=1e-6)
  np.testing.assert_allclose(shares[1], np.eye(50)[3], atol=1e-6)


def test_memory_does_not_grow_with_points_or_rows_times_points():
  def temporaries(function, rows, num_points):
    shapes = (rows, 4), (num_points, 4), (num_points,)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = jax.jit(function).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  block = 4 * laguerre.ROW_SIZE * laguerre.CHUNK_SIZE
  # Not multiples of a block: the filled-up rows are copied, no point is.
  for function in (ot.assign, ot.assign_with_gap, ot.histogram):
    small = temporaries(function, 5_000, 2 * laguerre.CHUNK_SIZE)
    large = temporaries(function, 5_000, 2_000_000)
    assert large < 3 * block
    # The histogram's answer is as long as the points.
    own = 3 * 4 * 2_000_000 if function is ot.histogram else 0
    assert large - small < own + block / 8


def test_bfloat16_matches_on_centred_points():
  key_points, key_noise, key_bias = jax.random.split(jax.random.key(0), 3)
  points = jax.random.normal(key_points, (512, 32))
  points -= points.mean(axis=0)[None]
  noise = jax.random.normal(key_noise, (4096, 32))
  bias = jax.random.normal(key_bias, (512,))

  @jax.jit
  def agreement(shift):
    want = ot.assign(noise, points, bias)
    half = [x.astype(jnp.bfloat16) for x in (noise, points + shift)]
    return (ot.assign(*half, bias) == want).mean()

  assert agreement(0.0) > 0.99
  # A common part of ten standard deviations is what the digits go to.
  assert agreement(10.0) < 0.97


def test_potentials_are_biases_in_other_units(problem):
  noise, points, bias = problem
  potential = ot.potential_from_bias(bias, points)
  np.testing.assert_allclose(
    ot.bias_from_potential(potential, points), bias, atol=1e-5
  )
  cost = np.sum((np.asarray(noise)[:, None] - np.asarray(points)) ** 2, -1)
  want = (cost - np.asarray(potential)).argmin(axis=1)
  np.testing.assert_array_equal(ot.assign(noise, points, bias), want)


def test_transforms(problem):
  noise, points, bias = problem
  want = ot.assign(noise, points, bias)
  batched = jax.vmap(lambda x: ot.assign(x, points, bias, chunk_size=5))(
    noise.reshape(8, 8, 5)
  )
  np.testing.assert_array_equal(batched.ravel(), want)
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  spec = jax.sharding.PartitionSpec
  split = jax.jit(
    jax.shard_map(
      lambda x: ot.assign(x, points, bias, chunk_size=5),
      mesh=mesh,
      in_specs=spec("x"),
      out_specs=spec("x"),
    )
  )(noise)
  np.testing.assert_array_equal(split, want)


def test_bad_arguments(problem):
  noise, points, bias = problem
  with pytest.raises(ValueError, match=r"noise must have shape \[\*, 5\]"):
    ot.assign(noise[:, :4], points, bias)
  with pytest.raises(ValueError, match=r"bias must have shape \[23\]"):
    ot.assign(noise, points, bias[:3])
  with pytest.raises(ValueError, match="chunk_size must be >= 1"):
    ot.assign(noise, points, bias, chunk_size=0)
  with pytest.raises(ValueError, match="implementation must be 'xla'"):
    ot.assign(noise, points, bias, implementation="cuda")
  with pytest.raises(ValueError, match="number of points must be >= 2"):
    laguerre.top_two(noise, points[:1], bias[:1])
