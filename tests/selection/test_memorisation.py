import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn import datasets

from jdiff import selection


@pytest.fixture(scope="module")
def digits():
  """Training digits, and held-out ones, in random order."""
  images = datasets.load_digits().images / 8 - 1
  order = np.random.default_rng(0).permutation(len(images))
  images = jnp.asarray(images[order], jnp.float32)
  return images[:1397], images[1397:]


def test_by_hand():
  data = jnp.array([[0.0, 0], [0, 0], [4, 0], [0, 8]])
  samples = jnp.array([[1.0, 0], [2, 0], [0.5, 0], [0, 4], [0, 8]])
  # Nearest over second distinct; the limit is not 1/3, for rounding.
  found = jax.jit(functools.partial(selection.memorised, ratio=0.34))(
    samples, data
  )
  want = [1 / 3, 1, 1 / 7, 1 / 2**0.5, 0]
  np.testing.assert_allclose(found.ratio[:3], want[:3], rtol=1e-6)
  np.testing.assert_allclose(found.ratio[4], 0)
  np.testing.assert_array_equal(found.index, [0, 0, 0, 0, 3])
  np.testing.assert_array_equal(found.memorised, [1, 0, 1, 0, 1])
  score = jax.jit(selection.generalisation_score, static_argnames="metric")
  want = [1, 2, 0.5, 4, 0]
  np.testing.assert_allclose(score(samples, data), want, rtol=1e-6)
  # The mean is over the two coordinates.
  score = score(samples, data, metric="mse")
  np.testing.assert_allclose(score, [0.5, 2, 0.125, 8, 0], rtol=1e-6)


def test_copies_and_held_out_digits(digits):
  train, held_out = digits
  rule = jax.jit(selection.memorised)
  copies, novel = rule(train[:400], train), rule(held_out, train)
  assert copies.memorised.all() and not novel.memorised.any()
  np.testing.assert_array_equal(copies.index, np.arange(400))
  # Near copies of an eighth of a grey level or so are copies.
  noise = jax.random.normal(jax.random.key(0), (400, 8, 8)) / 64
  near = rule(train[:400] + noise, train)
  assert near.memorised.all() and 0 < near.ratio.min()
  score = jax.jit(selection.generalisation_score)
  assert (score(train[:400], train) == 0).all()
  assert score(held_out, train).min() > 0.5


def test_duplicates_do_not_blind_the_rule(digits):
  train, held_out = digits
  train, held_out = train[:100], held_out[:100]
  noise = jax.random.normal(jax.random.key(0), (100, 8, 8)) / 64
  samples = jnp.concatenate([train + noise, held_out])
  rule = jax.jit(selection.memorised)
  want = rule(samples, train)
  np.testing.assert_array_equal(want.memorised, np.arange(200) < 100)
  # Two copies, and more than the search has spare candidates for.
  for times in (2, 15):
    copied = jnp.tile(train, (times, 1, 1))
    found = rule(samples, copied)
    np.testing.assert_array_equal(found.memorised, want.memorised)
    np.testing.assert_array_equal(found.index, want.index)
    np.testing.assert_allclose(found.ratio, want.ratio, rtol=1e-6)
  # Control: by the two nearest, copies or not, every sample is novel.
  two = jax.jit(functools.partial(selection.nearest, k=2))
  distance = two(samples, copied).distance
  assert (distance[:, 0] / distance[:, 1] > 0.99).all()


def test_the_ratio_of_squares(digits):
  train, held_out = digits
  train = train[:200]
  samples = jnp.concatenate([train[:40] * 0.9, held_out[:40]])
  rule = jax.jit(selection.memorised, static_argnames=("ratio", "squared"))
  plain = rule(samples, train)
  squares = rule(samples, train, ratio=1 / 9, squared=True)
  np.testing.assert_array_equal(plain.memorised, squares.memorised)
  assert 0 < plain.memorised.sum() < 80
  np.testing.assert_allclose(squares.ratio, plain.ratio**2, rtol=1e-5)
  # The paper's number taken of distances is another rule.
  strict = rule(samples, train, ratio=1 / 9)
  assert strict.memorised.sum() < plain.memorised.sum()


def test_eight_devices_say_what_one_says(digits):
  train, held_out = digits
  # Duplicates within and across shards.
  data = jnp.concatenate([train[:20]] * 4)
  samples = jnp.concatenate([train[:20] * 0.95, held_out[:20]])
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))

  def both(samples, data, axis_name=None):
    options = {"axis_name": axis_name, "chunk_size": 3}
    return (
      selection.memorised(samples, data, **options),
      selection.generalisation_score(samples, data, **options),
    )

  found = jax.jit(
    jax.shard_map(
      functools.partial(both, axis_name="x"),
      mesh=mesh,
      in_specs=(P(), P("x")),
      out_specs=P(),
    )
  )(samples, data)
  want = jax.jit(both)(samples, data)
  np.testing.assert_array_equal(found[0].index, want[0].index)
  np.testing.assert_array_equal(found[0].memorised, want[0].memorised)
  np.testing.assert_allclose(found[0].ratio, want[0].ratio, rtol=1e-6)
  np.testing.assert_allclose(found[1], want[1], rtol=1e-6)
  assert 0 < want[0].memorised.sum() < 40


def test_bad_arguments():
  data = jnp.arange(12.0).reshape(6, 2)
  equal = jnp.ones((5, 2))
  with pytest.raises(ValueError, match="at least two distinct rows, got 5"):
    selection.memorised(data, equal)
  hidden = jax.jit(selection.memorised)(data, equal)
  assert np.isnan(hidden.ratio).all() and not hidden.memorised.any()
  with pytest.raises(ValueError, match="ratio must be positive"):
    selection.memorised(data, data, ratio=0.0)
  with pytest.raises(ValueError, match="metric must be 'l2' or 'mse'"):
    selection.generalisation_score(data, data, metric="l1")
  for function in (selection.memorised, selection.generalisation_score):
    with pytest.raises(ValueError, match="samples and data must have rows of"):
      function(data[:, :1], data)
    with pytest.raises(ValueError, match="samples must be finite"):
      function(data.at[0, 0].set(jnp.nan), data)
