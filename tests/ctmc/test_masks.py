import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ctmc
from jdiff.core import orders
from jdiff.elbo import masked_cross_entropy
from tests import helpers

LENGTH, VOCAB = 4, 2
TOKENS = jnp.array([[0, 1, 1, 0]])


def path_average(table):
  """The exact average of -log p over all orders, in NumPy."""
  law = orders.uniform(LENGTH)
  probs = [
    helpers.path_prob(table, np.asarray(TOKENS), blocks, VOCAB)[0]
    for blocks in helpers.enumerate_orders(law)
  ]
  return -np.mean(np.log(probs))


def subset_sum(table):
  table = np.asarray(table, np.float64)
  log_probs = table - np.logaddexp.reduce(table, axis=-1, keepdims=True)
  radix = (VOCAB + 1) ** np.arange(LENGTH)[::-1]
  x, total = np.asarray(TOKENS)[0], 0.0
  for m in range(1, LENGTH + 1):
    subsets = list(itertools.combinations(range(LENGTH), m))
    for s in subsets:
      tokens = x.copy()
      tokens[list(s)] = VOCAB
      row = tokens @ radix
      total -= sum(log_probs[row, d, x[d]] for d in s) / m / len(subsets)
  return total


# A wrong first-token marginal is what naive antithetic pairs mistrain.
TABLE = helpers.random_table(5, LENGTH, VOCAB).at[-1].mul(4.0)


def test_identity():
  np.testing.assert_allclose(path_average(TABLE), subset_sum(TABLE), rtol=1e-10)


def estimate(draw_masks, num=4000):
  nll, info = jax.jit(
    lambda key: masked_cross_entropy(
      TABLE,
      key,
      jnp.broadcast_to(TOKENS, (num, LENGTH)),
      logits_fn=helpers.table_logits(LENGTH, VOCAB),
      mask_id=VOCAB,
      draw_masks=draw_masks,
    )
  )(jax.random.key(0))
  return float(nll.mean()), float(nll.std()) / num**0.5, info


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("law", ["count", "bernoulli"])
def test_unbiased(law, antithetic):
  make = ctmc.count_masks if law == "count" else ctmc.bernoulli_masks
  mean, se, info = estimate(make(4, antithetic=antithetic))
  # min_time = 1e-3 leaves out about 1e-3 of the Bernoulli integral.
  slack = 0.0 if law == "count" else 0.02
  assert abs(mean - path_average(TABLE)) < 5 * se + slack
  assert se < 0.2 and int(info["nfe"][0]) == 4


def test_naive_antithetic_pairs_are_biased():
  def naive(key, length):
    mask, weight = ctmc.count_masks(2)(key, length)
    del weight
    mask = jnp.concatenate([mask, ~mask])
    count = mask.sum(axis=1)
    return mask, length / jnp.maximum(count, 1).astype(jnp.float32)

  mean, se, _ = estimate(naive, 100_000)
  assert abs(mean - path_average(TABLE)) > 5 * se


def test_counts_are_uniform():
  keys = jax.random.split(jax.random.key(0), 3000)
  mask, weight = jax.vmap(lambda k: ctmc.count_masks(2)(k, 5))(keys)
  count = np.asarray(mask.sum(axis=2))
  np.testing.assert_allclose(weight, 5 / count)
  # 6000 counts over 5 values; a share's standard error is below 0.006.
  np.testing.assert_allclose(
    np.bincount(count.ravel(), minlength=6)[1:] / count.size, 0.2, atol=0.03
  )
  np.testing.assert_allclose(np.asarray(mask).mean(axis=(0, 1)), 0.6, atol=0.04)


def test_uniform_corruption():
  noisy = ctmc.corrupt_uniform(
    jax.random.key(0),
    jnp.zeros((4000, 3), jnp.int32),
    jnp.full(4000, 0.6),
    num_tokens=4,
  )
  # P(changed) = 0.6 * 3/4; the standard error is 0.0046.
  assert abs(float((noisy > 0).mean()) - 0.45) < 5 * 0.0046


def test_bad_arguments():
  with pytest.raises(ValueError, match="must hold no mask id"):
    ctmc.corrupt(jax.random.key(0), jnp.full((1, 3), 2), mask_id=2)
  with pytest.raises(TypeError, match="integer tokens"):
    ctmc.corrupt(jax.random.key(0), jnp.zeros((1, 3)), mask_id=2)
  with pytest.raises(ValueError, match="must be even"):
    ctmc.count_masks(3, antithetic=True)
  with pytest.raises(ValueError, match="min_time"):
    ctmc.bernoulli_masks(2, min_time=0.0)
