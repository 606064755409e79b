import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdiff import selection
from jdiff.selection import neighbours


def brute_force(queries, points, k, own=None, valid=None):
  """Distances and indices, ties to the lowest index, in float64."""
  x = np.asarray(queries, np.float64).reshape(len(queries), -1)
  y = np.asarray(points, np.float64).reshape(len(points), -1)
  distance = np.sqrt(((x[:, None] - y[None]) ** 2).sum(axis=2))
  if own is not None:
    distance[np.arange(len(x)), own] = np.inf
  if valid is not None:
    distance[:, ~valid] = np.inf
  index = np.argsort(distance, axis=1, kind="stable")[:, :k]
  return np.take_along_axis(distance, index, axis=1), index


def check(found, want, **tolerance):
  distance, index = want
  np.testing.assert_array_equal(found.index, index)
  np.testing.assert_allclose(found.distance, distance, **tolerance)


def lattice(num, dim=2, seed=1):
  """Small integers: distances are exact, and most rows have ties."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(-2, 3, (num, dim)), jnp.float32)


def mesh(*shape):
  axes = ("rows", "points")[-len(shape) :]
  kinds = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.make_mesh(shape, axes, axis_types=kinds)


# Chunks that divide the 53 points and that do not; one of a single point.
@pytest.mark.parametrize(("chunk_size", "k"), [(None, 4), (1, 1), (7, 53)])
def test_brute_force(chunk_size, k):
  rng = np.random.default_rng(0)
  queries, points = rng.normal(size=(20, 3, 2)), rng.normal(size=(53, 3, 2))
  options = {"chunk_size": chunk_size}
  with jax.enable_x64(True):
    found = jax.jit(lambda x, y: selection.nearest(x, y, k, **options))(
      queries, points
    )
    assert found.distance.dtype == jnp.float64
    # Sums of six squares.
    check(found, brute_force(queries, points, k), rtol=1e-14)
  assert found.index.shape == (20, k) and found.index.dtype == jnp.int32


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("rows", [70, 74])
def test_ties_and_blocks_of_rows(monkeypatch, rows, chunk_size):
  # Blocks of 14 rows, and of 15 of which the last is filled up.
  monkeypatch.setattr(neighbours, "ROW_SIZE", 16)
  queries, points = lattice(rows, seed=0), lattice(50)
  run = jax.jit(
    functools.partial(selection.nearest, k=5, chunk_size=chunk_size)
  )
  # 25 sites and 50 points: more ties than there are spare candidates.
  distance, index = brute_force(queries, points, 5)
  ties = brute_force(queries, points, 20)[0]
  assert (ties[:, 4] == ties[:, 14]).any()
  check(run(queries, points), (distance, index), rtol=1e-6)


def test_exclude_self():
  points = lattice(50)
  everyone = np.arange(50)
  # Duplicates are neighbours at distance zero; only the query itself is not.
  want = brute_force(points, points, 4, own=everyone)
  assert (want[0] == 0).any()
  run = jax.jit(functools.partial(selection.nearest, k=4, exclude_self=True))
  check(run(points, points), want, rtol=1e-6)
  some = jnp.array([41, 3, 3, 17])
  own = jax.jit(
    lambda x, y, i: selection.nearest(x, y, 49, exclude_self=i, chunk_size=8)
  )(points[some], points, some)
  check(own, brute_force(points[some], points, 49, own=some), rtol=1e-6)


def test_near_copies_keep_their_digits():
  rng = np.random.default_rng(0)
  # Distances of 1e-3 between points of norm 800 in float32.
  points = np.float32(100 + rng.normal(size=(300, 64)))
  points[100:200] = points[:100] + np.float32(1e-4 * rng.normal(size=(100, 64)))
  points[200:] = points[:100] + np.float32(1e-4 * rng.normal(size=(100, 64)))
  queries = points[:100] + np.float32(1e-4 * rng.normal(size=(100, 64)))
  want = brute_force(queries, points, 3)
  found = jax.jit(functools.partial(selection.nearest, k=3))(queries, points)
  check(found, want, rtol=1e-6)
  # Control: the expanded square, even about the mean, gets neither right.
  x, y = queries - points.mean(axis=0), points - points.mean(axis=0)
  squared = (x**2).sum(1)[:, None] - 2 * x @ y.T + (y**2).sum(1)
  assert (np.argsort(squared, axis=1)[:, :3] != want[1]).any()
  error = np.sort(squared, axis=1)[:, :3] / want[0] ** 2 - 1
  assert np.abs(error).max() > 0.1


def test_the_search_by_differences_runs_only_if_it_must(monkeypatch):
  rng = np.random.default_rng(0)
  points = jnp.asarray(rng.normal(size=(100, 8)), jnp.float32)
  stops = []
  loop = jax.lax.fori_loop

  def spy(start, stop, body, carry):
    stops.append(stop)
    return loop(start, stop, body, carry)

  monkeypatch.setattr(neighbours.lax, "fori_loop", spy)

  @jax.jit
  def run(queries, points):
    found = selection.nearest(queries, points, 2)
    return found, stops.pop()

  assert int(run(points, points)[1]) == 0
  # Twelve copies of each point: more than two and the spare ones.
  copies = jnp.tile(points[:10], (12, 1))
  found, stop = run(points[:10], copies)
  assert int(stop) == 1
  np.testing.assert_array_equal(found.distance, 0)
  want = np.stack([np.arange(10), np.arange(10) + 10], axis=1)
  np.testing.assert_array_equal(found.index, want)


def test_valid():
  rng = np.random.default_rng(0)
  queries, points = np.float32(rng.normal(size=(9, 3))), lattice(60, 3)
  valid = rng.random(60) < 0.4
  run = jax.jit(
    lambda x, y, v: selection.nearest(x, y, 3, valid=v, chunk_size=16)
  )
  want = brute_force(queries, points, 3, valid=valid)
  check(run(queries, points, valid), want, rtol=1e-5)
  two = np.arange(60) % 30 == 7
  found = run(queries, points, two)
  np.testing.assert_array_equal(found.index[:, 2], -1)
  np.testing.assert_array_equal(found.distance[:, 2], np.inf)
  assert set(np.unique(found.index[:, :2])) == {7, 37}


@pytest.mark.parametrize(
  # Generic and tied points; shards that hold fewer points than are wanted.
  ("num", "k", "shape"),
  [(64, 3, (8,)), (16, 7, (8,)), (40, 3, (2, 4))],
)
def test_eight_devices_say_what_one_says(num, k, shape):
  rng = np.random.default_rng(0)
  generic = jnp.asarray(rng.normal(size=(num, 2)), jnp.float32)
  rows = "rows" if len(shape) == 2 else None
  own = jnp.asarray(rng.permutation(num)[: num // 2])
  valid = jnp.asarray(rng.random(num) < 0.8)

  def both(queries, points, own, valid, axis_name=None):
    run = functools.partial(
      selection.nearest, queries, points, k, axis_name=axis_name
    )
    return run(exclude_self=own), run(valid=valid)

  split = jax.jit(
    jax.shard_map(
      functools.partial(both, axis_name="points"),
      mesh=mesh(*shape),
      in_specs=(P(rows), P("points"), P(rows), P("points")),
      out_specs=P(rows),
    )
  )
  alone = jax.jit(both)
  for points in (generic, lattice(num)):
    args = points[own], points, own, valid
    for found, want in zip(split(*args), alone(*args), strict=True):
      np.testing.assert_array_equal(found.index, want.index)
      np.testing.assert_allclose(found.distance, want.distance, rtol=1e-6)
    check(want, brute_force(points[own], points, k, valid=valid), rtol=1e-5)


def test_gradients():
  rng = np.random.default_rng(0)
  queries, points = rng.normal(size=(6, 3)), rng.normal(size=(30, 3))
  queries[2] = points[4]
  with jax.enable_x64(True):
    x, y = jnp.asarray(queries), jnp.asarray(points)
    run = functools.partial(selection.nearest, k=2, chunk_size=8)
    gradient = jax.jit(jax.grad(lambda x, y: run(x, y).distance.sum()))(x, y)
    distance, index = brute_force(queries, points, 2)
    # Unit vectors away from the neighbours; zero at a point itself.
    away = queries[:, None] - points[index]
    norm = np.where(distance > 0, distance, 1)[:, :, None]
    want = (away / norm).sum(axis=1)
  np.testing.assert_allclose(gradient, want, rtol=1e-12)


def test_transforms():
  points = lattice(64, 3)
  queries = jnp.stack([points[:8] + 0.25, points[8:16]])
  want = brute_force(queries.reshape(16, 3), points, 3)
  found = jax.jit(jax.vmap(lambda x: selection.nearest(x, points, 3)))(queries)
  found = jax.tree.map(lambda x: x.reshape(16, 3), found)
  check(found, want, rtol=1e-6)
  # Stored pixels and narrow floats are as good as these numbers in float32.
  pixels = jnp.asarray(points + 2, jnp.uint8)
  for kind in (jnp.uint8, jnp.bfloat16):
    y = pixels.astype(kind)
    found = jax.jit(lambda y: selection.nearest(y[:5], y, 3))(y)
    assert found.distance.dtype == jnp.float32
    check(found, brute_force(pixels[:5], pixels, 3), rtol=1e-6)
  # Values that are not known cannot raise: they show.
  broken = jax.jit(lambda y: selection.nearest(points[:2], y, 1))(
    points.at[50].set(jnp.nan)
  )
  assert np.isnan(broken.distance).all()


def test_memory_does_not_grow_with_points_or_rows_times_points():
  def temporaries(rows, num_points):
    shapes = (rows, 8), (num_points, 8)
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    run = functools.partial(selection.nearest, k=2)
    compiled = jax.jit(run).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  tile = 4 * neighbours.ROW_SIZE * neighbours.CHUNK_SIZE
  small = temporaries(5_000, 2 * neighbours.CHUNK_SIZE)
  large = temporaries(5_000, 1_000_000)
  assert large < 6 * tile
  # The zeros that stand for no offset.
  assert large - small < 4.1 * 1_000_000 + tile / 8


def test_bad_arguments():
  points = lattice(10)
  broken = points.at[3, 1].set(jnp.inf)
  nearest = selection.nearest
  with pytest.raises(ValueError, match="k must be at most 10"):
    nearest(points, points, 11)
  with pytest.raises(ValueError, match="k must be at most 9"):
    nearest(points, points, 10, exclude_self=True)
  with pytest.raises(ValueError, match="k must be >= 1"):
    nearest(points, points, 0)
  with pytest.raises(TypeError, match="k must be an integer"):
    nearest(points, points, 2.0)
  with pytest.raises(ValueError, match="rows of one size, got 1 and 2"):
    nearest(points[:, :1], points, 1)
  with pytest.raises(ValueError, match="queries must be finite, got 2 of 20"):
    nearest(points.at[3].set(jnp.nan), points, 1)
  with pytest.raises(ValueError, match="points must be finite, got 1 of 20"):
    jax.jit(lambda x: nearest(x, broken, 1))(points)
  with pytest.raises(TypeError, match="points must hold real numbers"):
    nearest(points, points > 0, 1)
  with pytest.raises(ValueError, match="points must have shape"):
    nearest(points, points[:0], 1)
  with pytest.raises(ValueError, match="got 4 queries and 10 points"):
    nearest(points[:4], points, 1, exclude_self=True)
  with pytest.raises(ValueError, match=r"exclude_self must have shape \[4\]"):
    nearest(points[:4], points, 1, exclude_self=jnp.arange(3))
  with pytest.raises(TypeError, match="exclude_self must be a bool or"):
    nearest(points[:4], points, 1, exclude_self=jnp.ones(4))
  with pytest.raises(ValueError, match=r"valid must have shape \[10\]"):
    nearest(points, points, 1, valid=jnp.ones(3, bool))
  with pytest.raises(ValueError, match="chunk_size must be >= 1"):
    nearest(points, points, 1, chunk_size=0)
