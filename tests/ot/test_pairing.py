import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jdiff import ot
from jdiff.ot import table


@pytest.fixture(scope="module")
def solution():
  points = jax.random.normal(jax.random.key(3), (60, 12))
  return ot.solve(jax.random.key(0), points, num_samples=60_000)


@pytest.fixture(scope="module")
def classes():
  """Three classes of 5, 30 and 13 points, in mixed order."""
  rng = np.random.default_rng(0)
  labels = np.repeat([0, 1, 2], [5, 30, 13])[rng.permutation(48)]
  points = rng.normal(size=(48, 10)) + 2.0 * labels[:, None]
  return labels, ot.solve_classes(
    jax.random.key(0),
    jnp.asarray(points, jnp.float32),
    labels,
    num_samples=40_000,
    num_eval=2**15,
  )


def test_pairs_depend_on_the_key_and_their_number_alone(solution):
  key = jax.random.key(7)
  whole = ot.pair(key, solution, 10)
  late = ot.pair(key, solution, 4, start=6)
  for a, b in zip(whole, late, strict=True):
    np.testing.assert_array_equal(a[6:], b)
  jitted = jax.jit(lambda s: ot.pair(key, s, 10))(solution)
  np.testing.assert_array_equal(jitted.index, whole.index)
  np.testing.assert_array_equal(
    whole.index, ot.transport(whole.noise, solution)
  )


def test_both_marginals_are_right(solution):
  num = 2**15
  drawn = jax.jit(lambda k: ot.pair(k, solution, num))(jax.random.key(1))
  count = np.bincount(drawn.index, minlength=60)
  # 59 degrees of freedom; the solution's own error adds num x marginal_error.
  chi2 = ((count - num / 60) ** 2 / (num / 60)).sum()
  own = num * max(float(solution.marginal_error), float(solution.floor))
  assert chi2 < 59 + 5 * (2 * 59) ** 0.5 + 3 * own
  noise = np.asarray(drawn.noise)
  assert abs(noise.mean()) < 5 / noise.size**0.5
  assert abs((noise**2).mean() - 1) < 5 * (2 / noise.size) ** 0.5
  # Points that are matched are nearer than chance would have them.
  points = np.asarray(solution.points)
  cost = ((noise - points[np.asarray(drawn.index)]) ** 2).sum(1).mean()
  assert cost < 0.85 * ((noise - np.roll(noise, 1, 0)) ** 2).sum(1).mean()


def test_twins_share_by_weight():
  # Two equal points of unequal weight, one of them twice, beside another.
  points = jnp.array([[1.0, 0], [-1, 0.5], [1, 0], [1, 0]])
  weights = jnp.array([0.1, 0.4, 0.2, 0.3])
  solution = ot.solve(
    jax.random.key(0), points, weights=weights, num_samples=200_000
  )
  assert solution.twins is not None and bool(solution.converged)
  gap = float(jnp.linalg.norm(points[0] - points[1])) * stats.norm.ppf(0.6)
  assert float(solution.bias[0] - solution.bias[1]) == pytest.approx(
    gap, abs=0.02
  )
  np.testing.assert_array_equal(solution.bias[0], solution.bias[2:])
  num = 2**15
  drawn = jax.jit(lambda k: ot.pair(k, solution, num))(jax.random.key(1))
  share = np.bincount(drawn.index, minlength=4) / num
  error = 5 * np.sqrt(np.asarray(weights) / num) + 2e-3
  assert (np.abs(share - np.asarray(weights)) < error).all()
  # Control: without the split the first one has all.
  alone = np.bincount(ot.transport(drawn.noise, solution), minlength=4)
  assert (alone[2:] == 0).all()


def test_classes_are_problems_of_their_own(classes):
  labels, solution = classes
  assert solution.classes.shape == (3, 30)
  assert solution.marginal_error.shape == (3,)
  assert bool(solution.converged.all())
  # The same as each class alone: one bias a class, up to sampling.
  member = np.flatnonzero(labels == 2)
  alone = ot.solve(
    jax.random.key(9), solution.points[member], num_samples=200_000
  )
  got = np.asarray(solution.bias)[member]
  np.testing.assert_allclose(got, alone.bias, atol=0.15)
  np.testing.assert_allclose(got.mean(), 0, atol=1e-4)
  drawn = ot.pair(jax.random.key(4), solution, 64)
  given = ot.pair(
    jax.random.key(4), solution, 64, label=labels[np.asarray(drawn.index)]
  )
  np.testing.assert_array_equal(drawn.index, given.index)
  scores = np.asarray(drawn.noise) @ np.asarray(solution.points).T
  scores = scores + np.asarray(solution.bias)
  for row, index in enumerate(np.asarray(drawn.index)):
    same = np.flatnonzero(labels == labels[index])
    assert index == same[scores[row, same].argmax()]


def test_a_table_is_the_pairs_made_ahead(solution):
  made = table.make(solution, seed=5, num_pairs=1000, rebalanced=False)
  online = ot.pair(jax.random.key(5), solution, 1000)
  np.testing.assert_array_equal(made.index, online.index)
  ids = jnp.array([3, 999, 17])
  np.testing.assert_array_equal(
    table.noise(5, ids, 12), np.asarray(online.noise)[np.asarray(ids)]
  )
  assert made.index.dtype == np.int32


def test_a_rebalanced_table_is_exact(solution, classes):
  made = table.make(solution, seed=5, num_pairs=1200, batch_size=500)
  assert (np.bincount(made.index, minlength=60) == 20).all()
  # Multinomial noise alone moves sqrt(M / (2 pi P)) of the pairs.
  share = made.num_moved / 1200
  assert 0.5 < share / (60 / (2 * np.pi * 1200)) ** 0.5 < 1.5


def test_a_table_of_classes(classes, tmp_path):
  labels, solution = classes
  made = table.make(solution, seed=1, num_pairs=4800, batch_size=256)
  assert (np.bincount(made.index, minlength=48) == 100).all()
  # Every point is the best of its class, but for those that were moved.
  drawn = np.asarray(table.noise(1, jnp.arange(4800), 10))
  own = labels[made.index]
  best = ot.transport(jnp.asarray(drawn), solution, label=jnp.asarray(own))
  assert (np.asarray(best) != made.index).sum() == made.num_moved < 480
  # Noise of every class is the whole of the noise.
  for label in range(3):
    mean = drawn[own == label].mean(axis=0)
    assert np.abs(mean).max() < 5 / (own == label).sum() ** 0.5
  # Control: pairs that cross classes do not have that.
  free = np.asarray(
    ot.transport(drawn, solution._replace(classes=None, bias=solution.bias))
  )
  skewed = drawn[labels[free] == 2].mean(axis=0)
  assert np.abs(skewed).max() > 5 / max((labels[free] == 2).sum(), 1) ** 0.5
  path = tmp_path / "pairs"
  table.save(path, made)
  table.load(path, solution.points, labels=labels)
  for other in (None, labels[::-1]):
    with pytest.raises(ValueError, match="made for other data"):
      table.load(path, solution.points, labels=other)


def test_a_table_knows_its_data(solution, tmp_path):
  path = tmp_path / "pairs.npz"
  made = table.make(solution, seed=2, num_pairs=120)
  table.save(path, made)
  again = table.load(path, solution.points)
  np.testing.assert_array_equal(again.index, made.index)
  assert (again.seed, again.num_moved) == (2, made.num_moved)
  for other in (
    solution.points[::-1],
    2 * solution.points,
    solution.points[:50],
  ):
    with pytest.raises(ValueError, match="were made for other data"):
      table.load(path, other)
  with jax.default_prng_impl("rbg"):
    with pytest.raises(ValueError, match="JAX's random bits differ"):
      table.load(path, solution.points)
  with pytest.raises(FileNotFoundError):
    table.load(tmp_path / "none.npz", solution.points)


def test_an_unconverged_bias_warns_unless_it_is_rebalanced(solution):
  rough = solution._replace(converged=jnp.array(False), tv=jnp.float32(0.25))
  with pytest.warns(UserWarning, match="off by 0.250 in total variation"):
    ot.pair(jax.random.key(0), rough, 4)
  with pytest.warns(UserWarning, match="off by 0.250"):
    table.make(rough, seed=0, num_pairs=60, rebalanced=False)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    table.make(rough, seed=0, num_pairs=60)


def test_minibatch_is_the_best_permutation():
  rng = np.random.default_rng(0)
  noise, data = rng.normal(size=(5, 2, 2)), rng.normal(size=(5, 2, 2))
  index = ot.minibatch(noise, data)

  def cost(order):
    return ((noise - data[list(order)]) ** 2).sum()

  best = min(itertools.permutations(range(5)), key=cost)
  np.testing.assert_array_equal(index, best)


def test_bad_arguments(solution, classes):
  with pytest.raises(ValueError, match="label needs a class-conditional"):
    ot.pair(jax.random.key(0), solution, 4, label=jnp.zeros(4, jnp.int32))
  with pytest.raises(ValueError, match="solution needs label"):
    ot.transport(jnp.zeros((4, 10)), classes[1])
  with pytest.raises(ValueError, match=r"label must have shape \[4\]"):
    ot.pair(jax.random.key(0), classes[1], 4, label=jnp.zeros(3, jnp.int32))
  points = jnp.zeros((4, 2)).at[:, 0].set(jnp.arange(4))
  for labels, message in (
    (np.array([0, 0, 1]), r"labels must have shape \[4\]"),
    (np.array([0, 0, 1, 0]), "class 1 has 1"),
    (np.array([0.0, 0, 1, 1]), "labels must be integers"),
  ):
    with pytest.raises(ValueError, match=message):
      ot.solve_classes(jax.random.key(0), points, labels, num_samples=100)
