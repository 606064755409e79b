import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ot


def moved(count, quota):
  return np.maximum(count - quota, 0).sum()


@pytest.mark.parametrize("num_pairs, num_points", [(1000, 100), (1050, 100)])
@pytest.mark.parametrize("weighted", [False, True])
def test_quotas_are_met_with_the_fewest_changes(
  num_pairs, num_points, weighted
):
  rng = np.random.default_rng(0)
  index = rng.integers(0, num_points, num_pairs)
  index[:50] = 3  # a hub
  weights = None
  if weighted:
    weights = rng.dirichlet(np.full(num_points, 0.5))
    weights[7] = 0
    weights /= weights.sum()
  count = np.bincount(index, minlength=num_points)
  quota = ot.quotas(weights, num_pairs, count)
  assert quota.sum() == num_pairs
  share = 1 / num_points if weights is None else weights
  assert np.abs(quota - num_pairs * share).max() < 1
  done = jax.jit(ot.rebalance)(jnp.asarray(index), jnp.asarray(quota))
  after = np.asarray(done.index)
  np.testing.assert_array_equal(np.bincount(after, minlength=num_points), quota)
  changed = (after != index).sum()
  assert changed == int(done.num_moved) == moved(count, quota)
  if weights is None:
    # Left-over places go to the fullest: no choice moves fewer.
    low = np.sort(count)[::-1]
    best = np.full(num_points, num_pairs // num_points)
    best[: num_pairs % num_points] += 1
    assert changed == moved(low, best)


def test_the_least_clear_pairs_move():
  index = jnp.array([0, 0, 0, 0, 1, 1])
  gap = jnp.array([0.3, 0.1, 0.9, 0.2, 0.5, 0.5])
  done = ot.rebalance(index, jnp.array([2, 2, 2]), gap=gap)
  np.testing.assert_array_equal(done.index, [0, 2, 0, 2, 1, 1])


def test_entries_stay_in_their_group():
  rng = np.random.default_rng(1)
  group = np.repeat(np.arange(5), 20)[rng.permutation(100)]
  label = rng.integers(0, 5, 2000)
  index = np.array([rng.choice(np.flatnonzero(group == g)) for g in label])
  quota = np.zeros(100, int)
  for g in range(5):
    member = np.flatnonzero(group == g)
    quota[member] = ot.quotas(
      None,
      (label == g).sum(),
      np.bincount(index, minlength=100)[member],
    )
  done = ot.rebalance(
    jnp.asarray(index), jnp.asarray(quota), group=jnp.asarray(group)
  )
  np.testing.assert_array_equal(group[np.asarray(done.index)], label)
  np.testing.assert_array_equal(np.bincount(done.index, minlength=100), quota)
  # Control: without groups some cross.
  free = ot.rebalance(jnp.asarray(index), jnp.asarray(quota))
  assert (group[np.asarray(free.index)] != label).any()


def test_nothing_moves_when_quotas_are_met():
  index = jnp.array([2, 0, 1, 1, 2, 0])
  done = ot.rebalance(index, jnp.array([2, 2, 2]))
  np.testing.assert_array_equal(done.index, index)
  assert int(done.num_moved) == 0


def test_bad_arguments():
  index = jnp.array([0, 0, 1])
  with pytest.raises(ValueError, match="quota must sum to the number of"):
    ot.rebalance(index, jnp.array([1, 1]))
  with pytest.raises(ValueError, match="got 1 for 2 entries of group 0"):
    ot.rebalance(index, jnp.array([1, 2]), group=jnp.array([0, 1]))
  with pytest.raises(ValueError, match=r"gap must have shape \[3\]"):
    ot.rebalance(index, jnp.array([2, 1]), gap=jnp.zeros(2))
