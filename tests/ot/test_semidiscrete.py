"""The dual against closed forms, and its error against the efficient floor."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import ot
from jdiff.ot import iteration


@jax.jit
def best_start(key, points):
  weights = jnp.full(len(points), 1 / len(points))
  cells = iteration.cells(
    points, weights, source=ot.standard_normal, mirrored=True
  )
  return iteration.best_start(key, cells)


@functools.cache
def solver(weights, **options):
  """Points of one shape are solved by one compiled program."""
  if weights is not None:
    options["weights"] = np.array(weights)
  return jax.jit(functools.partial(ot.solve, **options))


def solve(points, weights=None, init=None, **options):
  options = dict(num_samples=200_000, batch_size=512, num_eval=2**15) | options
  run = solver(None if weights is None else tuple(weights), **options)
  more = {} if init is None else {"init": init}
  return run(jax.random.key(0), jnp.asarray(points, jnp.float32), **more)


def test_points_on_a_line():
  # Cells are intervals, and neighbours' scores meet at the quantiles.
  y = np.array([-2.0, -0.5, 0.1, 1.0, 2.5])
  nu = np.array([0.1, 0.3, 0.2, 0.25, 0.15])
  edges = stats.norm.ppf(np.cumsum(nu)[:-1])
  want = np.concatenate([[0], np.cumsum(-edges * np.diff(y))])
  solution = solve(y[:, None], weights=nu, num_samples=400_000)
  got = np.asarray(solution.bias)
  np.testing.assert_allclose(got - got[0], want, atol=0.02)
  np.testing.assert_allclose(nu @ got, 0, atol=1e-5)
  assert bool(solution.converged)


def test_two_points():
  y = np.array([[1.0, 2.0, 0.0], [-1.0, 0.5, 1.0]])
  nu = np.array([0.3, 0.7])
  solution = solve(y, weights=nu)
  want = np.linalg.norm(y[1] - y[0]) * stats.norm.ppf(0.7)
  assert abs(float(solution.bias[1] - solution.bias[0]) - want) < 0.02


def test_symmetry():
  angle = 2 * np.pi * np.arange(8) / 8
  octagon = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  solution = solve(octagon)
  np.testing.assert_allclose(solution.bias, 0, atol=0.02)
  # Shifting the points moves no cell.
  moved = solve(octagon + np.array([[3.0, -1.0]]))
  np.testing.assert_allclose(moved.bias, solution.bias, atol=1e-2)


def test_error_is_near_the_efficient_floor():
  rng = np.random.default_rng(0)
  points = rng.normal(size=(300, 32)) * rng.uniform(0.5, 1.5, size=(300, 1))
  points = jnp.asarray(points, jnp.float32)
  solution = solve(points, num_eval=2**17)
  # Ninety per cent of the samples are averaged; the estimate's own deviation
  # is sqrt(2 M) / num_eval = 2e-4.
  assert float(solution.floor) == pytest.approx(299 / 180_000, rel=0.01)
  assert float(solution.marginal_error) < 2 * float(solution.floor)
  assert bool(solution.converged)
  # Controls: the closed-form start is far better than nearest neighbours, and
  # far worse than the solution.
  key = jax.random.key(1)
  centred = points - points.mean(axis=0, keepdims=True)
  start = best_start(key, centred)
  error = jax.jit(
    lambda bias: ot.marginal_error(key, centred, bias, num_samples=2**15)
  )
  errors = [
    float(error(bias))
    for bias in (-0.5 * jnp.sum(centred**2, axis=1), start, solution.bias)
  ]
  assert errors[0] > 50 * errors[1] > 250 * errors[2]


def test_too_few_samples_return_the_start():
  points = jax.random.normal(jax.random.key(3), (600, 16))
  with pytest.warns(UserWarning, match="less than the 600 points"):
    solution = solve(points, num_samples=512)
  key = jax.random.split(jax.random.key(0), 3)[0]
  start = best_start(key, points)
  np.testing.assert_allclose(
    solution.bias, start - start.mean(), rtol=1e-4, atol=1e-3
  )
  assert solution.num_samples == 0 and not bool(solution.converged)
  # Where the start is right too: no step, no claim.
  with pytest.warns(UserWarning, match="returned, not converged"):
    solution = solve(np.eye(2), num_samples=1)
  assert not bool(solution.converged)
  assert abs(float(solution.marginal_error)) < 0.01


def test_one_point_alone():
  # No other cell to balance: whatever has weight has everything.
  for weights in (np.array([1.0, 0, 0]), None):
    points = np.eye(3, 2) if weights is not None else np.ones((3, 2))
    eager = ot.solve(
      jax.random.key(0),
      jnp.asarray(points, jnp.float32),
      weights=weights,
      num_samples=4096,
      num_eval=2**12,
    )
    assert np.isfinite(float(eager.bias[0]))
    index = np.asarray(ot.pair(jax.random.key(1), eager, 64).index)
    if weights is not None:
      assert (index == 0).all()
      solution = solve(points, weights=weights, num_samples=4096)
      assert np.isfinite(float(solution.bias[0]))
    else:
      assert set(index) == {0, 1, 2}


def test_nearly_equal_doubles_are_equal_floats():
  points = np.random.default_rng(0).normal(size=(20, 8))
  points[7] = points[3] + 1e-12
  solution = ot.solve(
    jax.random.key(0), points, num_samples=20_000, num_eval=2**14
  )
  assert solution.twins is not None and bool(solution.converged)


def test_a_warm_start_is_kept():
  points = jax.random.normal(jax.random.key(4), (50, 16))
  init = jax.random.normal(jax.random.key(5), (50,))
  with pytest.warns(UserWarning, match="less than the 50 points"):
    solution = solve(points, init=init, num_samples=10)
  np.testing.assert_allclose(solution.bias, init - init.mean(), atol=1e-5)


def test_newton_solves_what_the_diagonal_does_not():
  # Two squares of a checkerboard: few neighbours a cell, far from Gaussian.
  rng = np.random.default_rng(0)
  corner = rng.integers(0, 2, (150, 1)) * 2.0 - 2.0
  points = (rng.uniform(0, 1, (150, 2)) + corner) / 0.45
  errors = {}
  for method in ("newton", "averaged"):
    solution = solve(points, method=method, num_samples=60_000)
    errors[method] = float(solution.marginal_error)
    assert bool(solution.converged) == (method == "newton")
  # Eighty per cent of half the samples are averaged: a floor of 0.0062.
  assert errors["newton"] < 0.013 < 0.1 < errors["averaged"]


def test_weights_of_zero_have_no_cell():
  y = np.array([-2.0, 0.3, -0.5, 0.1, 1.0, 2.5])
  nu = np.array([0.1, 0.0, 0.3, 0.2, 0.25, 0.15])
  solution = solve(y[:, None], weights=nu)
  # As in `test_points_on_a_line`: the same program.
  weights = np.delete(nu, 1)
  rest = solve(np.delete(y, 1)[:, None], weights=weights, num_samples=400_000)
  assert float(solution.bias[1]) == -np.inf
  np.testing.assert_allclose(np.delete(solution.bias, 1), rest.bias, atol=0.03)
  drawn = ot.pair(jax.random.key(0), solution, 256)
  assert not (np.asarray(drawn.index) == 1).any()


@pytest.fixture(scope="module")
def cloud():
  """24 points in 16 dimensions, and the same mirrored in one coordinate."""
  half = np.random.default_rng(2).normal(size=(24, 16))
  return np.concatenate([half, half * np.where(np.arange(16) == 3, -1, 1)])


def test_symmetries_of_the_noise(cloud):
  solution = solve(cloud)
  # A biased coin a cell: sd of b is about step / nu x sqrt(nu / M) = 0.03.
  bias = np.asarray(solution.bias)
  np.testing.assert_allclose(bias[:24], bias[24:], atol=0.15)
  # Rotations leave the potential alone.
  rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))
  turned = solve(cloud @ rotation)
  np.testing.assert_allclose(turned.bias, bias, atol=0.15)
  assert bias.std() > 0.5  # the biases do differ from point to point


def test_points_over_eight_devices(cloud):
  mesh = jax.make_mesh(
    (4, 2), ("points", "rows"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  spec = jax.sharding.PartitionSpec
  points = jnp.asarray(cloud, jnp.float32)
  options = dict(num_samples=8192, batch_size=256, num_eval=2**13)

  def local(key, points):
    solution = ot.solve(
      key, points, axis_name="points", rows_axis_name="rows", **options
    )
    return solution.bias, solution.marginal_error

  split = jax.jit(
    jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(spec(), spec("points")),
      out_specs=(spec("points"), spec()),
      check_vma=False,
    )
  )
  bias, error = split(jax.random.key(0), points)
  one = jax.jit(
    lambda key, points: ot.solve(key, points, method="averaged", **options)
  )(jax.random.key(0), points)
  # Rounding may move a row at a boundary: 1 / 256 of a batch, times 32 steps.
  np.testing.assert_allclose(bias, one.bias, atol=0.02)
  np.testing.assert_allclose(error, one.marginal_error, atol=5e-3)


def test_bad_arguments():
  points = jnp.zeros((3, 2))
  key = jax.random.key(0)
  for weights in ([0.7, 0.5, -0.2], [0.5, 0.4, 0.0]):
    with pytest.raises(ValueError, match="weights must be at least zero and"):
      ot.solve(key, points, weights=jnp.array(weights), num_samples=9)
  with pytest.raises(ValueError, match="method must be"):
    ot.solve(key, points, num_samples=9, method="sgd")
  with pytest.raises(ValueError, match=r"weights must have shape \[3\]"):
    ot.solve(key, points, weights=jnp.ones(2) / 2, num_samples=9)
  with pytest.raises(ValueError, match="number of points must be >= 2"):
    ot.solve(key, points[:1], num_samples=9)
  with pytest.raises(ValueError, match=r"init must have shape \[3\]"):
    ot.solve(key, points, init=jnp.zeros(2), num_samples=9)
