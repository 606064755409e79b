"""Which rows a buffer of the best, and one of a Pareto front, admits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jdiff.core import replay

NUM, LENGTH, CAPACITY = 60, 3, 7
ROW = np.arange(NUM, dtype=np.int32)

copies = jax.jit(replay.first_copies)
top = jax.jit(replay.take_top, static_argnums=2)
unique_top = jax.jit(replay.unique_top, static_argnums=4)
pareto_top = jax.jit(replay.pareto_top, static_argnums=4)


def stream(seed, num_symbols=3):
  """Rows over 27 sequences, so that most are copies, some of them invalid."""
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, num_symbols, (NUM, LENGTH)).astype(np.int8)
  return tokens, rng.random(NUM) < 0.8, rng


def first_of(tokens, valid):
  seen, first = set(), []
  for row, counts in zip(map(tuple, tokens), valid, strict=True):
    first.append(bool(counts) and row not in seen)
    seen |= {row} if counts else set()
  return first


def offer_one_by_one(tokens, valid, pairs, capacity):
  """The published rule: indices of the rows that a sequential buffer holds."""
  held = []
  for i in np.flatnonzero(valid):
    if any((tokens[i] == tokens[j]).all() for j in held):
      continue
    if len(held) < capacity:
      held.append(i)
      continue
    worst = min(held, key=lambda j: pairs[j])
    if pairs[i] > pairs[worst]:
      held[held.index(worst)] = i
  return held


def offer_to_front(tokens, valid, values):
  """The published rule for vectors, without copies and with room for all."""

  def dominates(a, b):
    return (values[a] >= values[b]).all() and (values[a] > values[b]).any()

  held, seen = [], set()
  for i in np.flatnonzero(valid):
    if tuple(tokens[i]) in seen:
      continue
    seen.add(tuple(tokens[i]))
    if not any(dominates(j, i) for j in held):
      held = [j for j in held if not dominates(i, j)] + [i]
  return held


@pytest.mark.parametrize("num_symbols", [1, 2, 3, 100])
def test_first_copies(num_symbols):
  tokens, valid, _ = stream(0, num_symbols)
  np.testing.assert_array_equal(copies(tokens, valid), first_of(tokens, valid))
  np.testing.assert_array_equal(
    copies(tokens.astype(np.int32) - 50), first_of(tokens, np.ones(NUM, bool))
  )
  assert not copies(tokens, np.zeros(NUM, bool)).any()


@pytest.mark.parametrize("factor", [2**16, 0])
def test_rows_that_share_a_hash_are_told_apart(factor, monkeypatch):
  class Multipliers:
    def integers(self, low, high, size, dtype):
      return np.full(size, factor, dtype)

  monkeypatch.setattr(np.random, "default_rng", lambda seed: Multipliers())
  tokens, valid = np.indices((4, 4)).reshape(2, -1).T, np.ones(48, bool)
  tokens = np.concatenate([tokens, tokens[::-1], tokens])
  valid[[0, 20, 21]] = False
  # Their hash is (2 ** 16 + 1) times the sum of tokens, or the sum itself.
  np.testing.assert_array_equal(
    jax.jit(lambda *x: replay.first_copies(*x))(tokens, valid),
    first_of(tokens, valid),
  )


def test_the_hash_settles_rows_in_one_pass():
  # As many passes as rows that share a hash: with fair 32-bit hashes 4096 rows
  # are all told apart but for a chance of 4096^2 / 2^33 = 0.2 %.
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, 4, (4096, 200)).astype(np.int32)
  tokens[1::2] = tokens[::2]
  tokens[1::2, 17] ^= 1  # neighbours in the least bit of one token
  factors = np.random.default_rng(0).integers(0, 2**32, 200, np.uint32) | 1
  hashes = (tokens.astype(np.uint32) * factors).sum(1, dtype=np.uint32)
  assert len(np.unique(hashes)) == 4096
  assert copies(tokens).all()


@pytest.mark.parametrize("capacity", [1, CAPACITY, NUM, NUM + 5])
def test_take_top_is_a_lexicographic_sort(capacity):
  _, keep, rng = stream(1)
  first = rng.integers(-2, 3, NUM).astype(np.float32)
  first[[3, 4, 5]] = np.nan, -np.inf, np.inf
  keep[[3, 4, 5]] = True
  second = rng.integers(0, 3, NUM).astype(np.int32)
  second[7] = np.iinfo(np.int32).min
  index, taken = top((first, second), keep, capacity)
  rank = np.where(np.isnan(first), -1e9, np.clip(first, -1e8, 1e8))
  want = sorted(
    np.flatnonzero(keep), key=lambda i: (-rank[i], -int(second[i]), i)
  )
  num = min(capacity, keep.sum())
  assert index.shape == taken.shape == (capacity,)
  assert index.dtype == jnp.int32 and taken.tolist() == [True] * num + [
    False
  ] * (capacity - num)
  np.testing.assert_array_equal(index[:num], want[:num])
  assert ((index >= 0) & (index < NUM)).all()
  # The control: with the keys the other way round it is another order.
  if capacity == NUM:
    swapped, _ = top((second, first), keep, capacity)
    assert (swapped[:num] != np.array(want)).any()


@pytest.mark.parametrize("capacity", [3, CAPACITY, 100])
def test_unique_top_is_the_sequential_buffer(capacity):
  for seed in range(5):
    tokens, valid, rng = stream(seed)
    # A reward for each sequence; the log-weight belongs to the path.
    code = tokens @ np.array([9, 3, 1])
    reward = rng.permutation(27).astype(np.float32)[code]
    log_weight = rng.normal(size=NUM).astype(np.float32)
    want = offer_one_by_one(
      tokens, valid, list(zip(reward, log_weight, strict=True)), capacity
    )
    held, taken = unique_top(ROW, valid, (reward, log_weight), tokens, capacity)
    assert held[taken].tolist() == sorted(want, key=lambda i: -reward[i])
    # In parts, the buffer first: the same.
    data, full = None, None
    rows = {"row": ROW, "x": tokens, "r": reward, "w": log_weight}
    for part in np.split(ROW, 4):
      more, ok = jax.tree.map(lambda x, p=part: x[p], rows), valid[part]
      if data is not None:
        more, ok = jax.tree.map(
          lambda *x: jnp.concatenate(x), (data, full), (more, ok)
        )
      data, full = unique_top(
        more, ok, (more["r"], more["w"]), more["x"], capacity
      )
    np.testing.assert_array_equal(data["row"][full], held[taken])


def test_the_first_copy_wins_even_over_a_better_one():
  tokens = np.array([[1, 2], [0, 2], [1, 2]])
  keys = (np.array([1.0, 1.0, 1.0]), np.array([0.0, 1.0, 2.0]))
  held, taken = unique_top(ROW[:3], np.ones(3, bool), keys, tokens, 2)
  assert taken.all() and held.tolist() == [1, 0]
  first = np.array([False, True, True])
  held, _ = unique_top(ROW[:3], first, keys, tokens, 2)
  assert held.tolist() == [2, 1]


def test_equal_rewards_hold_equal_rewards():
  # Distinct sequences that share a reward may stand in for each other.
  for seed in range(5):
    tokens, valid, rng = stream(seed)
    reward = rng.integers(0, 5, 27)[tokens @ np.array([9, 3, 1])]
    log_weight = rng.normal(size=NUM)
    pairs = list(zip(reward, log_weight, strict=True))
    want = offer_one_by_one(tokens, valid, pairs, CAPACITY)
    keys = (reward.astype(np.float32), log_weight.astype(np.float32))
    held, taken = unique_top(ROW, valid, keys, tokens, CAPACITY)
    assert sorted(reward[held[taken]]) == sorted(reward[want])


def test_pareto_top_is_the_sequential_front():
  for seed in range(5):
    tokens, valid, rng = stream(seed)
    code = tokens @ np.array([9, 3, 1])
    values = rng.integers(0, 6, (27, 3)).astype(np.float32)[code]
    values[5] = np.nan
    known = valid & ~np.isnan(values).any(1)
    want = offer_to_front(tokens, known, values)
    held, taken = pareto_top(ROW, valid, values, tokens, NUM)
    assert sorted(held[taken].tolist()) == sorted(want)
    # With less room the largest sums stay, the earlier of equal ones.
    few, kept = pareto_top(ROW, valid, values, tokens, 2)
    best = sorted(want, key=lambda i: (-values[i].sum(), i))[:2]
    assert few[kept].tolist() == best and len(want) > 2
    # The control: the front of the smallest is another.
    other, kept = pareto_top(ROW, valid, -values, tokens, NUM)
    assert set(other[kept].tolist()) != set(want)


def test_an_unknown_value_hides_no_copy():
  tokens = np.zeros((3, 2), np.int32)
  values = np.array([[np.nan, 1.0], [1.0, 2.0], [9.0, 9.0]], np.float32)
  held, taken = pareto_top(ROW[:3], np.ones(3, bool), values, tokens, 2)
  assert held[taken].tolist() == [1]


def test_nothing_and_nothing_new():
  tokens, _, rng = stream(2)
  keys = (rng.normal(size=NUM).astype(np.float32),)
  values = rng.normal(size=(NUM, 2)).astype(np.float32)
  none, everything = np.zeros(NUM, bool), np.ones(NUM, bool)
  assert not unique_top(ROW, none, keys, tokens, CAPACITY)[1].any()
  assert not pareto_top(ROW, none, values, tokens, CAPACITY)[1].any()
  same = np.broadcast_to(tokens[:1], tokens.shape)
  for held, taken in (
    unique_top(ROW, everything, keys, same, CAPACITY),
    pareto_top(ROW, everything, values, same, CAPACITY),
  ):
    assert held[taken].tolist() == [0]


def test_known_arrays_may_be_closed_over():
  tokens, valid, rng = stream(3)
  keys = (rng.normal(size=NUM).astype(np.float32),)
  want = unique_top(ROW, valid, keys, tokens, CAPACITY)
  got = jax.jit(lambda: replay.unique_top(ROW, valid, keys, tokens, CAPACITY))()
  chex.assert_trees_all_equal(got, want)


def test_vmap_shards_and_one_trace():
  def both(row, valid, values, tokens):
    keys = (values[:, 0], values[:, 1])
    return (
      replay.unique_top(row, valid, keys, tokens, CAPACITY),
      replay.pareto_top(row, valid, values, tokens, CAPACITY),
    )

  batches = []
  for seed in range(3):
    tokens, valid, rng = stream(seed)
    values = rng.normal(size=(NUM, 2)).astype(np.float32)
    batches.append((ROW[:56], valid[:56], values[:56], tokens[:56]))
  alone = jax.jit(chex.assert_max_traces(both, n=1))
  want = [alone(*batch) for batch in batches]
  stacked = (np.stack(x) for x in zip(*batches, strict=True))
  got = jax.jit(jax.vmap(both))(*stacked)
  for i in range(3):
    chex.assert_trees_all_equal(jax.tree.map(lambda x, i=i: x[i], got), want[i])
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  placed = jax.device_put(batches[0], NamedSharding(mesh, P("x")))
  chex.assert_trees_all_equal(jax.jit(lambda *x: both(*x))(*placed), want[0])


@pytest.mark.parametrize(
  ("error", "call", "message"),
  [
    (
      TypeError,
      lambda: replay.first_copies(jnp.zeros((3, 2))),
      "tokens must be integer",
    ),
    (
      ValueError,
      lambda: replay.first_copies(jnp.zeros((3, 2), int), jnp.ones(2, bool)),
      r"valid must have shape \[3\]",
    ),
    (
      ValueError,
      lambda: replay.take_top((jnp.zeros(2),), jnp.ones(3, bool), 2),
      r"ranks\[0\] must have shape \[3\]",
    ),
    (
      ValueError,
      lambda: replay.take_top((), jnp.ones(3, bool), 0),
      "capacity must be >= 1",
    ),
    (
      ValueError,
      lambda: replay.pareto_top(
        (), jnp.ones(3, bool), jnp.zeros(3), jnp.zeros((3, 1), int), 2
      ),
      r"values must have shape \[3, \*\]",
    ),
  ],
)
def test_bad_arguments(error, call, message):
  with pytest.raises(error, match=message):
    call()
