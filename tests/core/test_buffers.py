import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff.core import checks, ema, keys, orders, replay


def test_replay_is_a_ring():
  state = replay.init({"x": jnp.int32(0)}, 5)
  add = jax.jit(replay.add)
  held = []
  for i in range(9):
    batch = jnp.arange(3 * i, 3 * i + 3)
    state = add(state, {"x": batch})
    held = (held + batch.tolist())[-5:]
    assert int(replay.size(state)) == len(held)
    assert sorted(np.asarray(state.data["x"])[replay.valid(state)]) == held
  drawn = replay.sample(jax.random.key(0), state, 100)["x"]
  assert set(np.asarray(drawn).tolist()) <= set(held)
  with pytest.raises(ValueError, match="capacity of 5"):
    replay.add(state, {"x": jnp.zeros(6, jnp.int32)})
  with pytest.raises(ValueError, match="batch must be a"):
    replay.add(state, [jnp.zeros(2, jnp.int32)])


def test_per_example_keys_do_not_depend_on_the_shard():
  key = jax.random.key(1)
  whole = keys.per_example(key, 8)
  parts = [keys.per_example(key, 4, start) for start in (0, 4)]
  np.testing.assert_array_equal(
    jax.random.key_data(whole),
    np.concatenate([jax.random.key_data(p) for p in parts]),
  )
  assert keys.per_example(whole, 8) is whole
  with pytest.raises(TypeError, match="typed PRNG key"):
    keys.per_example(jnp.zeros(2, jnp.uint32), 4)


def test_ema_is_bias_corrected():
  decay, values = 0.9, np.random.default_rng(0).normal(size=12)
  average = jnp.float32(123.0)  # forgotten at once
  for t, value in enumerate(values, start=1):
    average = ema.update(average, jnp.float32(value), ema_decay=decay, count=t)
    share = decay ** np.arange(t)[::-1]
    want = (share * values[:t]).sum() / share.sum()
    np.testing.assert_allclose(average, want, rtol=2e-5)
  same = ema.update(average, jnp.float32(2.0), ema_decay=0.0, count=3)
  assert float(same) == 2.0
  with pytest.raises(ValueError, match="ema_decay"):
    ema.update(average, average, ema_decay=1.0, count=1)


def test_orders_draw_partitions():
  law = orders.Order(
    (orders.Stage((3, 1, 5), 2), orders.Stage((0, 4), 1), orders.Stage((2,), 1))
  )
  assert law.num_revealed.tolist() == [1, 2, 2, 1]
  drawn = jax.jit(jax.vmap(law.draw))(jax.random.split(jax.random.key(0), 64))
  drawn = np.asarray(drawn)
  assert (np.sort(drawn, axis=1) == np.arange(6)).all()
  assert set(drawn[:, 0]) == {1, 3, 5}
  assert (drawn[:, 1] < drawn[:, 2]).all() and (drawn[:, 3:] == [0, 4, 2]).all()
  assert hash(law) == hash(orders.Order(law.stages))


def test_uniform_order_is_uniform():
  drawn = jax.vmap(orders.uniform(3).draw)(
    jax.random.split(jax.random.key(0), 6000)
  )
  counts = np.unique(np.asarray(drawn), axis=0, return_counts=True)[1]
  # Six orders, 1000 each; five standard deviations are 144.
  assert len(counts) == 6 and np.abs(counts - 1000).max() < 144


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: orders.uniform(4, 5), r"num_steps must lie in \[1, length = 4\]"),
    (lambda: orders.blocks([[0, 1], [1]]), "more than once"),
    (lambda: orders.blocks([[]]), "at least one site"),
    (lambda: orders.as_order("left", range(4), None), "order must be"),
    (lambda: orders.as_order([[0]], range(4), None), "cover the 4 sites"),
    (lambda: orders.as_order([[0, 1]], range(2), 2), "pass num_steps=None"),
    (lambda: orders.uniform(4).step_of_site, "shuffles sites"),
    (lambda: checks.check_int("n", 0), "n must be >= 1"),
    (lambda: checks.check_finite("b", float("nan")), "b must be finite"),
  ],
)
def test_bad_arguments(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_segments_join_equal_blocks():
  law = orders.blocks([[0], [1], [2, 3], [4, 5], [6, 7, 8]])
  sizes = [(s.start, s.num_blocks, s.block_size) for s in law.segments()]
  assert sizes == [(0, 2, 1), (2, 2, 2), (6, 1, 3)]
  chex.assert_equal(law.step_of_site[5], 3)
