import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn import datasets

from jdiff import selection


def greedy_loop(features, num, first):
  features = np.asarray(features, np.float64)
  index, distance = [first], [np.inf]
  nearest = np.full(len(features), np.inf)
  for _ in range(num - 1):
    far = np.linalg.norm(features - features[index[-1]], axis=1)
    nearest = np.minimum(nearest, far)
    nearest[index[-1]] = -np.inf
    index.append(int(nearest.argmax()))
    distance.append(nearest[index[-1]])
  return np.array(index), np.array(distance)


def threshold_loop(features, num, threshold, decay, strict=True):
  """Algorithm 2, row by row."""
  features = np.asarray(features, np.float64)
  selected, remaining, passes = [], list(range(len(features))), 0
  while True:
    passes += 1
    rejected = []
    for i in remaining:
      if len(selected) == num:
        break
      near = np.inf
      if selected:
        near = np.linalg.norm(features[selected] - features[i], axis=1).min()
      if near > threshold or (not strict and near == threshold):
        selected.append(i)
      else:
        rejected.append(i)
    if len(selected) == num:
      return np.array(selected), passes, threshold
    remaining, threshold = rejected, decay * threshold


def lattice(num, seed=0):
  """Small integers: exact distances, ties and duplicates."""
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(0, 6, (num, 3)), jnp.float32)


@pytest.fixture(scope="module")
def digits():
  return jnp.asarray(datasets.load_digits().data[:600] / 16, jnp.float32)


def test_greedy_is_the_plain_loop(digits):
  rng = np.random.default_rng(0)
  run = jax.jit(selection.greedy, static_argnums=1)
  with jax.enable_x64(True):
    generic = jnp.asarray(rng.normal(size=(80, 2, 2)))
    tied = lattice(60).astype(jnp.float64)
    for pool, num, first in ((generic, 80, 3), (tied, 30, 59)):
      index, distance = greedy_loop(pool.reshape(len(pool), -1), num, first)
      found = run(pool, num, first=first)
      np.testing.assert_array_equal(found.index, index)
      np.testing.assert_allclose(found.distance, distance, rtol=1e-12)
      assert (np.diff(found.distance) <= 0).all()
  found = run(digits, 100, first=0)
  np.testing.assert_array_equal(found.index, greedy_loop(digits, 100, 0)[0])
  assert found.index.dtype == jnp.int32


def test_greedy_is_within_a_factor_of_two():
  rng = np.random.default_rng(0)
  pools = rng.normal(size=(30, 12, 2))
  sets = np.array(list(itertools.combinations(range(12), 4)))
  pairs = np.array(list(itertools.combinations(range(4), 2)))

  def smallest(pool, index):
    ends = pool[index[..., pairs]]
    return np.linalg.norm(np.diff(ends, axis=-2), axis=-1)[..., 0].min(axis=-1)

  # From every first row of every pool.
  run = jax.vmap(
    lambda pool, first: selection.greedy(pool, 4, first=first), (None, 0)
  )
  found = jax.jit(jax.vmap(run, (0, None)))(
    jnp.asarray(pools, jnp.float32), jnp.arange(12)
  )
  ratios, plain = [], []
  for pool, index, distance in zip(pools, *found, strict=True):
    best = smallest(pool, sets).max()
    spread = smallest(pool, np.asarray(index))
    np.testing.assert_allclose(spread, distance[:, -1], rtol=1e-5)
    ratios.append(spread / best)
    plain.append(smallest(pool, np.arange(4)) / best)
  assert 0.5 <= np.min(ratios) < 0.8
  # Control: any four rows are not.
  assert np.min(plain) < 0.2


def test_greedy_draws_its_first_row():
  pool = lattice(60)
  run = jax.jit(jax.vmap(lambda key: selection.greedy(pool, 2, key=key).index))
  index = run(jax.random.split(jax.random.key(0), 6000))
  count = np.bincount(index[:, 0], minlength=60)
  # Chi-squared with 59 degrees of freedom, five standard deviations.
  assert abs(((count - 100) ** 2 / 100).sum() - 59) < 5 * (2 * 59) ** 0.5


def test_greedy_on_eight_devices():
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  rng = np.random.default_rng(0)
  generic = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)
  split = jax.jit(
    jax.shard_map(
      lambda pool, key: selection.greedy(pool, 20, key=key, axis_name="x"),
      mesh=mesh,
      in_specs=(P("x"), P()),
      out_specs=P(),
    )
  )
  alone = jax.jit(lambda pool, key: selection.greedy(pool, 20, key=key))
  for seed, pool in enumerate((generic, lattice(64))):
    key = jax.random.key(seed)
    found, want = split(pool, key), alone(pool, key)
    np.testing.assert_array_equal(found.index, want.index)
    np.testing.assert_allclose(found.distance, want.distance, rtol=1e-6)


def test_threshold_decay_is_the_plain_loop():
  rng = np.random.default_rng(0)
  generic = rng.normal(size=(90, 2, 2))
  # Thresholds that are distances: rows at just that distance must not pass.
  cases = [(generic, 40, 2.5, 0.7), (lattice(90), 40, 4.0, 0.5)]
  with jax.enable_x64(True):
    run = jax.jit(selection.threshold_decay, static_argnums=1)
    for pool, num, threshold, decay in cases:
      flat = np.asarray(pool).reshape(90, -1)
      index, passes, last = threshold_loop(flat, num, threshold, decay)
      found = run(pool, num, threshold=threshold, decay=decay)
      np.testing.assert_array_equal(found.index, index)
      assert int(found.num_passes) == passes > 2
      assert float(found.threshold) == pytest.approx(last)
      assert bool(found.ok)
      key = jax.random.key(1)
      mixed = run(pool, num, threshold=threshold, decay=decay, key=key)
      order = np.asarray(jax.random.permutation(key, 90))
      index = threshold_loop(flat[order], num, threshold, decay)[0]
      np.testing.assert_array_equal(mixed.index, order[index])
  # Control: not strict, the loop keeps other rows.
  loose = threshold_loop(flat, num, threshold, decay, strict=False)[0]
  assert (loose != threshold_loop(flat, num, threshold, decay)[0]).any()


def test_threshold_decay_under_vmap():
  pool = lattice(40)
  decays = jnp.array([0.0, 0.5, 0.9])
  run = functools.partial(selection.threshold_decay, pool, 25, threshold=5)
  found = jax.jit(jax.vmap(lambda decay: run(decay=decay)))(decays)
  for i, decay in enumerate([0.0, 0.5, np.float32(0.9)]):
    index, passes, _ = threshold_loop(pool, 25, 5.0, decay)
    np.testing.assert_array_equal(found.index[i], index)
    assert int(found.num_passes[i]) == passes


def test_no_decay_is_no_selection():
  pool = lattice(60)
  distinct = [
    i for i, row in enumerate(pool.tolist()) if row not in pool.tolist()[:i]
  ]
  assert distinct[:30] != list(range(30))
  run = jax.jit(
    functools.partial(selection.threshold_decay, decay=0.0), static_argnums=1
  )
  found = run(pool, 30, threshold=100.0)
  np.testing.assert_array_equal(found.index, distinct[:30])
  assert int(found.num_passes) == 2 and float(found.threshold) == 0
  # Below the diameter, the first pass selects.
  below = run(pool, 30, threshold=4.0)
  assert (below.index != found.index).any()


def test_slow_decay_comes_close_to_greedy(digits):
  @jax.jit
  def entropy(index):
    return selection.kl_entropy(digits[index]).value

  run = jax.jit(
    functools.partial(selection.threshold_decay, threshold=4.0),
    static_argnums=1,
  )
  greedy = jax.jit(selection.greedy, static_argnums=1)(digits, 150, first=0)
  slow, fast = (run(digits, 150, decay=decay) for decay in (0.99, 0.5))
  assert abs(entropy(slow.index) - entropy(greedy.index)) < 1
  assert entropy(fast.index) < entropy(greedy.index) - 5
  assert entropy(jnp.arange(150)) < entropy(greedy.index) - 10


def test_too_few_distinct_rows():
  pool = jnp.tile(jnp.array([[0.0, 1], [2, 3], [5, 5]]), (4, 1))
  options = {"threshold": 10.0, "decay": 0.5}
  match = "features must have num=4 distinct rows, got 3"
  with pytest.raises(ValueError, match=match):
    selection.greedy(pool, 4, first=0)
  with pytest.raises(ValueError, match=match):
    selection.threshold_decay(pool, 4, **options)
  run = jax.jit(functools.partial(selection.threshold_decay, num=5, **options))
  found = run(pool)
  assert not bool(found.ok) and int(found.num_passes) == 3
  np.testing.assert_array_equal(found.index, [0, 2, 1, -1, -1])
  # Duplicates come last, at distance zero.
  far = jax.jit(lambda x: selection.greedy(x, 5, first=0))(pool)
  np.testing.assert_array_equal(far.index, [0, 2, 1, 3, 4])
  np.testing.assert_array_equal(np.asarray(far.distance) > 0, [1, 1, 1, 0, 0])
  # As many as there are is fine.
  assert selection.greedy(pool, 3, first=0).distance[-1] > 0
  assert bool(selection.threshold_decay(pool, 3, **options).ok)


def test_passes_are_capped():
  pool = lattice(30)
  options = {"threshold": 100.0, "decay": 0.5, "max_passes": 3}
  with pytest.raises(ValueError, match="within max_passes=3, got 1, the last"):
    selection.threshold_decay(pool, 5, **options)
  found = jax.jit(lambda x: selection.threshold_decay(x, 5, **options))(pool)
  assert not bool(found.ok) and int(found.num_passes) == 3
  assert float(found.threshold) == 25
  np.testing.assert_array_equal(found.index, [0, -1, -1, -1, -1])


def test_bad_arguments():
  pool = lattice(10)
  with pytest.raises(ValueError, match="num must be at most .* 10, got 11"):
    selection.greedy(pool, 11, first=0)
  with pytest.raises(ValueError, match="exactly one of first and key"):
    selection.greedy(pool, 2)
  with pytest.raises(ValueError, match="exactly one of first and key"):
    selection.greedy(pool, 2, first=0, key=jax.random.key(0))
  with pytest.raises(ValueError, match="first must be below 10"):
    selection.greedy(pool, 2, first=10)
  with pytest.raises(ValueError, match="first must be >= 0"):
    selection.greedy(pool, 2, first=-1)
  with pytest.raises(TypeError, match="first must be an integer"):
    selection.greedy(pool, 2, first=0.5)
  with pytest.raises(TypeError, match="key must be a typed PRNG key"):
    selection.greedy(pool, 2, key=jnp.zeros(2, jnp.uint32))
  broken = pool.at[0, 0].set(jnp.nan)
  with pytest.raises(ValueError, match="features must be finite, got 1 of 30"):
    selection.greedy(broken, 2, first=0)
  run = functools.partial(selection.threshold_decay, pool, 2)
  with pytest.raises(ValueError, match="features must be finite, got 1 of 30"):
    selection.threshold_decay(broken, 2, threshold=1.0, decay=0.5)
  with pytest.raises(ValueError, match="threshold must be >= 0"):
    run(threshold=-1.0, decay=0.5)
  with pytest.raises(ValueError, match="threshold must be finite"):
    run(threshold=np.inf, decay=0.5)
  with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\)"):
    run(threshold=1.0, decay=1.0)
  with pytest.raises(ValueError, match="max_passes must be >= 1"):
    run(threshold=1.0, decay=0.5, max_passes=0)
  with pytest.raises(TypeError, match="num must be an integer"):
    selection.threshold_decay(pool, 2.0, threshold=1.0, decay=0.5)
