import functools
import importlib.util
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ot
from jdiff.ot import pallas

SMALL = {"block_rows": 16, "block_points": 128, "block_dim": 128}


def problem(rows, num_points, dim, integers=False):
  rng = np.random.default_rng(0)
  shapes = (rows, dim), (num_points, dim), (num_points,)
  draw = (lambda s: rng.integers(-1, 2, s)) if integers else rng.standard_normal
  return [jnp.asarray(draw(shape), jnp.float32) for shape in shapes]


def oracle(noise, points, bias):
  """Index, gap and number of ties in float64."""
  noise, points, bias = (np.asarray(x, float) for x in (noise, points, bias))
  scores = noise @ points.T + bias
  ranked = np.sort(scores, axis=1)
  ties = (scores == ranked[:, -1:]).sum(axis=1)
  return scores.argmax(axis=1), ranked[:, -1] - ranked[:, -2], ties


# One tile; tiles that reach over every end; features in three tiles, whole
# and not; fewer rows than a tile's and one row.
@pytest.mark.parametrize(
  ("rows", "num_points", "dim", "blocks"),
  [
    (16, 128, 8, {}),
    (40, 300, 5, SMALL),
    (33, 140, 384, SMALL),
    (20, 130, 300, SMALL),
    (1, 129, 9, SMALL),
  ],
)
def test_the_kernel_is_the_dense_search(rows, num_points, dim, blocks):
  top = functools.partial(pallas.top, interpret=True, **blocks)
  extras = None, "second", "count"
  search = jax.jit(lambda *args: [top(*args, extra) for extra in extras])
  # Integers: exact scores, with many ties where there are few features.
  for integers in (False, True):
    args = problem(rows, num_points, dim, integers)
    want, gap, ties = oracle(*args)
    _, second, count = found = search(*args)
    for answer in found:
      np.testing.assert_array_equal(answer.cell, want)
      assert answer.cell.dtype == jnp.int32
    # A sum of 384 products of size one: at most 384 roundings of 2^-24 of 30.
    np.testing.assert_allclose(
      second.best - second.extra, gap, atol=0 if integers else 1e-3
    )
    np.testing.assert_array_equal(count.extra, ties)
    assert not integers or dim > 8 or ties.max() > 1


def test_it_is_an_implementation_of_the_public_functions():
  functions = ot.assign, ot.assign_with_gap, ot.histogram

  def leaves(*args, **options):
    return jax.tree.leaves([f(*args, **options) for f in functions])

  plain = jax.jit(leaves)
  kernel = jax.jit(functools.partial(leaves, implementation="pallas_interpret"))
  for integers in (False, True):
    args = problem(24, 70, 3, integers)
    for a, b in zip(kernel(*args), plain(*args), strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_allclose(a, b, atol=1e-5)


def test_points_without_mass_and_bfloat16():
  noise, points, bias = problem(16, 40, 4, integers=True)
  bias = bias.at[::2].set(-jnp.inf)
  want, _, _ = oracle(noise, points, bias)
  search = jax.jit(functools.partial(pallas.top, interpret=True))
  # Small integers are exact in bfloat16; points alone may be narrow.
  for narrow in (noise, noise.astype(jnp.bfloat16)):
    top = search(narrow, points.astype(jnp.bfloat16), bias)
    np.testing.assert_array_equal(top.cell, want)


def test_transforms():
  noise, points, bias = problem(32, 48, 5)
  want = ot.assign(noise, points, bias)
  options = {"implementation": "pallas_interpret"}
  batched = jax.jit(jax.vmap(lambda x: ot.assign(x, points, bias, **options)))(
    noise.reshape(4, 8, 5)
  )
  np.testing.assert_array_equal(batched.ravel(), want)
  mesh = jax.make_mesh(
    (2, 4), ("rows", "points"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  split = ot.on_mesh(ot.assign, mesh, points_axis="points", rows_axis="rows")
  got = jax.jit(lambda *a: split(*a, **options))(noise, points, bias)
  np.testing.assert_array_equal(got, want)


def test_bad_arguments():
  args = problem(16, 40, 4)
  for name, unit in (("rows", 16), ("points", 128), ("dim", 128)):
    with pytest.raises(ValueError, match=f"block_{name} must be a multiple"):
      pallas.top(*args, interpret=True, **{f"block_{name}": unit + 1})
  with pytest.raises(ValueError, match="extra must be None, 'second' or"):
    pallas.top(*args, "two", interpret=True)


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="needs the extra 'plan'"
)
def test_it_compiles_for_a_tpu():
  root = pathlib.Path(__file__).parents[2]
  command = [sys.executable, "-m", "benchmarks.laguerre", "--compile-one"]
  done = subprocess.run(
    command, cwd=root, capture_output=True, text=True, check=False, timeout=300
  )
  assert done.returncode == 0, done.stderr[-2000:]
  temporaries = json.loads(done.stdout.splitlines()[-1])
  # 1024 rows against 20000 points: 80 MB of scores that are nowhere.
  assert len(temporaries) == 6 and max(temporaries.values()) < 2**20
