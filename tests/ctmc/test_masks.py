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
  def naive(key, valid):
    mask, weight = ctmc.count_masks(2)(key, valid)
    del weight
    mask = jnp.concatenate([mask, ~mask])
    count = mask.sum(axis=1)
    return mask, LENGTH / jnp.maximum(count, 1).astype(jnp.float32)

  mean, se, _ = estimate(naive, 100_000)
  assert abs(mean - path_average(TABLE)) > 5 * se


@pytest.mark.parametrize("stratified", [False, True])
def test_counts_are_uniform_over_valid_sites(stratified):
  valid = np.array([1, 0, 1, 1, 1, 0, 1], bool)
  draw = ctmc.count_masks(2, stratified=stratified)
  keys = jax.random.split(jax.random.key(0), 3000)
  mask, weight = jax.jit(jax.vmap(draw, (0, None)))(keys, jnp.asarray(valid))
  assert not np.any(np.asarray(mask)[:, :, ~valid])
  count = np.asarray(mask.sum(axis=2))
  np.testing.assert_allclose(weight, 5 / count)
  # 6000 counts over 5 values; a share's standard error is below 0.006.
  np.testing.assert_allclose(
    np.bincount(count.ravel(), minlength=6)[1:] / count.size, 0.2, atol=0.03
  )
  np.testing.assert_allclose(
    np.asarray(mask).mean(axis=(0, 1))[valid], 0.6, atol=0.04
  )
  # Independent pairs agree in a fifth of the draws; systematic ones are at
  # least two counts apart. The standard error is 0.0073.
  same = np.mean(count[:, 0] == count[:, 1])
  assert same == 0 if stratified else abs(same - 0.2) < 0.04


@pytest.mark.parametrize("make", [ctmc.count_masks, ctmc.bernoulli_masks])
def test_no_valid_site(make):
  draw = jax.jit(make(2, antithetic=True))
  mask, weight = draw(jax.random.key(0), jnp.zeros(3, bool))
  assert not np.any(mask) and np.all(np.isfinite(weight))


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
  with pytest.raises(ValueError, match="must be even"):
    ctmc.count_masks(3, antithetic=True)
  with pytest.raises(ValueError, match="min_time"):
    ctmc.bernoulli_masks(2, min_time=0.0)
