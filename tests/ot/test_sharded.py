import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jdiff import ot
from jdiff.ot import laguerre

FUNCTIONS = (ot.assign, ot.assign_with_gap, ot.histogram)


def mesh(*shape):
  axes = ("rows", "points")[-len(shape) :]
  kinds = (jax.sharding.AxisType.Auto,) * len(shape)
  return jax.make_mesh(shape, axes, axis_types=kinds)


def generic(num_points):
  rng = np.random.default_rng(0)
  shapes = (32, 6), (num_points, 6), (num_points,)
  return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def lattice(num_points):
  """Small integers: exact scores, and ties within and across shards."""
  rng = np.random.default_rng(1)
  shapes = (32, 2), (num_points, 2), (num_points,)
  return [
    jnp.asarray(rng.integers(-1, 2, shape), jnp.float32) for shape in shapes
  ]


def answers(mesh, *args, rows_axis=None, chunk_size=None):
  """The three functions on a mesh and on one device, leaf by leaf."""
  options = {"points_axis": "points", "rows_axis": rows_axis}
  splits = [ot.on_mesh(function, mesh, **options) for function in FUNCTIONS]
  # One program: compiling costs more than running.
  got = jax.jit(lambda *a: [f(*a, chunk_size=chunk_size) for f in splits])
  want = jax.jit(lambda *a: [f(*a) for f in FUNCTIONS])
  return [
    (np.asarray(a), np.asarray(b))
    for a, b in zip(
      jax.tree.leaves(got(*args)), jax.tree.leaves(want(*args)), strict=True
    )
  ]


@pytest.mark.parametrize(
  # A multiple of the shards, not one, and fewer points than shards.
  ("make", "num_points", "shape", "rows_axis", "chunk_size"),
  [
    (generic, 40, (2, 4), "rows", None),
    (generic, 43, (8,), None, 2),
    (lattice, 43, (2, 4), "rows", 2),
    (lattice, 43, (2, 4), None, None),
    (lattice, 5, (8,), None, None),
  ],
)
def test_eight_devices_say_what_one_says(
  make, num_points, shape, rows_axis, chunk_size
):
  options = {"rows_axis": rows_axis, "chunk_size": chunk_size}
  index, with_gap, gap, share = answers(
    mesh(*shape), *make(num_points), **options
  )
  for a, b in (index, with_gap):
    assert a.dtype == b.dtype == np.int32
    np.testing.assert_array_equal(a, b)
  np.testing.assert_allclose(*gap, atol=0 if make is lattice else 1e-5)
  # Shares are sums of 1, 1/2, 1/3, ... in another order.
  assert share[0].shape == (num_points,)
  np.testing.assert_allclose(*share, atol=1e-6)


def test_ties_across_shards_go_to_the_lowest_index():
  points = jnp.zeros((16, 2)).at[jnp.array([5, 9, 15])].set(1.0)
  noise = jnp.array([[1.0, 2.0], [-1.0, -1.0]])
  split = jax.jit(ot.on_mesh(ot.assign_with_gap, mesh(8), points_axis="points"))
  # Without the first of three: the next; without the others: a gap.
  for without, winner, want in (([], 5, 0), ([5], 9, 0), ([5, 9], 15, 3)):
    bias = np.zeros(16, np.float32)
    bias[without] = -np.inf
    index, gap = split(noise, points, bias)
    np.testing.assert_array_equal(index, [winner, 0])
    np.testing.assert_array_equal(gap, [want, 0])
  share = jax.jit(ot.on_mesh(ot.histogram, mesh(8), points_axis="points"))
  want = np.full(16, 1 / 26)
  want[[5, 9, 15]] = 1 / 6
  np.testing.assert_allclose(
    share(noise, points, jnp.zeros(16)), want, atol=1e-6
  )


def test_padded_points_are_never_chosen():
  # Zero vectors would have the best score were their bias not -inf.
  noise, points = jnp.ones((4, 3)), -jnp.ones((9, 3))
  for got, want in answers(mesh(8), noise, points, jnp.zeros(9)):
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_two_best_inside_shard_map():
  split = jax.jit(
    jax.shard_map(
      lambda *args: laguerre.top_two(*args, axis_name="points"),
      mesh=mesh(2, 4),
      in_specs=(P("rows"), P("points"), P("points")),
      out_specs=P("rows"),
    )
  )
  for args in (generic(40), lattice(40)):
    want = jax.jit(laguerre.top_two)(*args)
    got = split(*args)
    np.testing.assert_array_equal(got.index, want.index)
    np.testing.assert_array_equal(got.second, want.second)
    np.testing.assert_allclose(got.gap, want.gap, atol=1e-5)


def test_the_histogram_stays_where_its_points_are():
  noise, points, bias = generic(64)
  split = ot.on_mesh(
    ot.histogram, mesh(2, 4), points_axis="points", rows_axis="rows"
  )
  compiled = jax.jit(split).lower(noise, points, bias).compile()
  assert compiled.output_shardings.spec == P("points")
  assert "all-gather" not in compiled.as_text()


def test_bad_arguments():
  noise, points, bias = generic(40)
  with pytest.raises(ValueError, match="points_axis must be an axis of"):
    ot.on_mesh(ot.assign, mesh(8), points_axis="data")
  with pytest.raises(ValueError, match="function must be assign"):
    ot.on_mesh(laguerre.top_two, mesh(8), points_axis="points")
  split = ot.on_mesh(
    ot.assign, mesh(2, 4), points_axis="points", rows_axis="rows"
  )
  with pytest.raises(ValueError, match="noise must have a multiple of 2 rows"):
    split(noise[:7], points, bias)
  with pytest.raises(ValueError, match=r"bias must have shape \[40\]"):
    split(noise, points, bias[:3])
