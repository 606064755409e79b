import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ot


@pytest.fixture(scope="module")
def problem():
  rng = np.random.default_rng(0)
  noise, points = rng.normal(size=(64, 5)), rng.normal(size=(23, 5))
  bias = rng.normal(size=23)
  return tuple(jnp.asarray(a, jnp.float32) for a in (noise, points, bias))


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 23, 100])
def test_assignment_is_the_dense_one(problem, chunk_size):
  noise, points, bias = problem
  scores = np.asarray(noise) @ np.asarray(points).T + np.asarray(bias)
  index, gap = jax.jit(
    lambda: ot.assign_with_gap(noise, points, bias, chunk_size=chunk_size)
  )()
  np.testing.assert_array_equal(index, scores.argmax(axis=1))
  ranked = np.sort(scores, axis=1)
  np.testing.assert_allclose(gap, ranked[:, -1] - ranked[:, -2], atol=1e-5)
  share = ot.histogram(noise, points, bias, chunk_size=chunk_size)
  want = np.bincount(scores.argmax(axis=1), minlength=23) / 64
  np.testing.assert_allclose(share, want, atol=1e-6)
  assert index.dtype == jnp.int32 and share.shape == (23,)


@pytest.mark.parametrize("chunk_size", [None, 2, 3])
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
