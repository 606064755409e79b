"""Mean and variance of each mask law's estimate, against enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import elbo
from jdiff.schedules.quadrature import quadrature
from tests.elbo import networks

LENGTH, DRAWS, MIN_TIME = 6, 20_000, 0.05
SUBSETS = networks.every_subset(LENGTH)
# Terms as a network may give them: surprising with much hidden, and uneven.
TERMS = -np.exp(
  0.5 * np.random.default_rng(0).standard_normal((len(SUBSETS), LENGTH))
  + np.array([[len(a)] for a in SUBSETS]) / 3
  - 1
)
SIZE = np.array([len(a) for a in SUBSETS])
SUM = np.array([p[list(a)].sum() for a, p in zip(SUBSETS, TERMS, strict=True)])
EXACT = sum(SUM[SIZE == k].mean() / k for k in range(1, LENGTH + 1))


def look_up(params, tokens, t, sites, values):
  """The terms as a network's answer; token 1 is the mask."""
  del t, sites, values
  code = jnp.sum((tokens == 1) * 2 ** jnp.arange(LENGTH)[None], axis=1)
  return params[code]


def by_code():
  code = np.array([sum(2**i for i in a) for a in SUBSETS])
  table = np.zeros_like(TERMS)
  table[code] = TERMS
  return jnp.asarray(table, jnp.float32)


@functools.partial(jax.jit, static_argnums=0)
def draw(law, key):
  elbo_fn = elbo.estimator(mask_id=1, law=law, token_log_probs=look_up)
  return elbo_fn(by_code(), key, jnp.zeros((DRAWS, LENGTH), jnp.int32))


def moments(law, num_nodes, num_masks=1):
  """Mean and variance of the estimate by summing over all masks."""
  if law.startswith("dmc"):
    return double_moments(law, num_nodes)
  mean, variance = 0.0, 0.0
  for t, w in zip(*quadrature("gauss", num_nodes), strict=True):
    if law == "bernoulli":
      prob = t**SIZE * (1 - t) ** (LENGTH - SIZE)
      value = w / t * SUM
    else:
      middle = min(max(t * LENGTH + 0.5, 1), LENGTH)
      low = {"mid": int(middle), "round": max(1, round(t * LENGTH))}.get(
        law, max(1, int(t * LENGTH))
      )
      up = middle - low if law == "mid" else 0.0
      prob = np.zeros(len(SUBSETS))
      for k, p in ((low, 1 - up), (low + 1, up)):
        if p:
          prob[SIZE == k] += p / np.sum(SIZE == k)
      weight = w / t if law == "floor" else w * LENGTH / np.maximum(SIZE, 1)
      value = weight * SUM
    first = prob @ value
    mean += first
    variance += (prob @ value**2 - first**2) / num_masks
  return mean, variance


def double_moments(law, num_draws):
  if law == "dmc-count":
    prob = np.array([(SIZE == k).sum() for k in SIZE]) * LENGTH
    prob = np.where(SIZE > 0, 1 / prob, 0)
    value = LENGTH / np.maximum(SIZE, 1) * SUM
    first, second = prob @ value, prob @ value**2
  else:
    # The integrand is smooth in log t, where min_time is no small number.
    u, w = quadrature("gauss", 60)
    t = np.exp(np.log(MIN_TIME) * (1 - u))
    w = w * t * -np.log(MIN_TIME) / (1 - MIN_TIME)
    prob = t[:, None] ** SIZE * (1 - t[:, None]) ** (LENGTH - SIZE)
    value = (1 - MIN_TIME) / t[:, None] * SUM
    first = w @ (prob * value).sum(axis=1)
    second = w @ (prob * value**2).sum(axis=1)
  return first, (second - first**2) / num_draws


CASES = {
  "mid-2": ("mid", elbo.node_masks(2), 2, 1),
  "mid-2x2": ("mid", elbo.node_masks(2, 2), 2, 2),
  "round-3": ("round", elbo.node_masks(3, law="round"), 3, 1),
  "floor-3": ("floor", elbo.node_masks(3, law="floor"), 3, 1),
  "bernoulli-3": ("bernoulli", elbo.node_masks(3, law="bernoulli"), 3, 1),
  "dmc-count": ("dmc-count", elbo.double_monte_carlo(2), 2, 1),
  "dmc-bernoulli": (
    "dmc-bernoulli",
    elbo.double_monte_carlo(2, "bernoulli", min_time=MIN_TIME),
    2,
    1,
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_and_variance(name):
  law, masks, num_nodes, num_masks = CASES[name]
  mean, variance = moments(law, num_nodes, num_masks)
  got = np.asarray(draw(masks, jax.random.key(0)), np.float64)
  centred = got - got.mean()
  se = np.sqrt(variance / DRAWS)
  assert abs(got.mean() - mean) < 5 * se
  # The variance of a variance is (fourth moment - variance^2) / N.
  se_of_variance = np.sqrt(np.var(centred**2) / DRAWS)
  assert abs(got.var() - variance) < 5 * se_of_variance
  assert se_of_variance < 0.05 * variance
  if name in ("bernoulli-3", "dmc-count"):
    # Three Gauss nodes are exact for six sites.
    np.testing.assert_allclose(mean, EXACT, rtol=1e-12)
  if law in ("round", "floor"):
    assert abs(got.mean() - EXACT) > 5 * se


def test_fixed_counts_beat_the_alternatives():
  """At completion length; by the exact moments, nothing is drawn."""
  variance = {law: moments(law, 3)[1] for law in ("mid", "bernoulli")}
  variance["dmc"] = moments("dmc-count", 3)[1]
  assert variance["mid"] < min(variance["bernoulli"], variance["dmc"])


@pytest.mark.parametrize("law", ["mid", "bernoulli"])
def test_short_sequences_get_every_count(law):
  """If the terms depend on the count alone, nothing is left to chance."""
  valid = jnp.broadcast_to(jnp.arange(LENGTH) < 3, (4, LENGTH))

  def by_count(params, tokens, t, sites, values):
    del params, sites, values
    return jnp.broadcast_to(-jnp.exp(t)[:, None], tokens.shape)

  elbo_fn = elbo.estimator(
    mask_id=1, law=elbo.node_masks(5, 2, law=law), token_log_probs=by_count
  )
  tokens = jnp.zeros((4, LENGTH), jnp.int32)
  got = jax.jit(elbo_fn)(None, jax.random.key(0), tokens, valid)
  want = -np.exp(np.arange(1, 4) / 3).sum()
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # And without a valid site there is nothing, not NaN.
  none = jax.jit(elbo_fn)(None, jax.random.key(0), tokens, valid & False)
  np.testing.assert_array_equal(none, 0)


@pytest.mark.parametrize("law", ["mid", "round", "floor"])
def test_counts_follow_the_valid_sites(law):
  t, share = quadrature("gauss", 4)
  keys = jax.random.split(jax.random.key(0), 500)
  draws = jax.jit(jax.vmap(elbo.node_masks(4, law=law), (0, None)))
  for num_valid in (5, 11):
    valid = jnp.asarray(np.arange(12) % 12 < num_valid)[::-1]
    mask, weight = draws(keys, valid)
    assert not np.any(np.asarray(mask)[:, :, ~np.asarray(valid)])
    count = np.asarray(mask.sum(axis=2))
    middle = np.clip(t * num_valid + 0.5, 1, num_valid)
    if law == "mid":
      assert np.all(np.abs(count - middle[None]) < 1)
      # A count is one of two integers: its standard error is below 0.0224.
      np.testing.assert_allclose(count.mean(axis=0), middle, atol=5 * 0.0224)
    elif law == "round":
      want = np.maximum(1, np.round(t * num_valid))
      np.testing.assert_array_equal(count, np.tile(want, (500, 1)))
    want = num_valid / count if law != "floor" else 1 / t[None]
    np.testing.assert_allclose(
      weight, np.broadcast_to(4 * share * want, (500, 4)), rtol=1e-6
    )


def test_bad_arguments():
  with pytest.raises(ValueError, match="law must be one of"):
    elbo.node_masks(2, law="middle")
  with pytest.raises(ValueError, match="no node at t = 0"):
    elbo.node_masks(3, law="floor", rule="simpson")
  with pytest.raises(ValueError, match="num_masks must be >= 1, got 0"):
    elbo.node_masks(3, 0)
  with pytest.raises(TypeError, match="num_nodes must be an integer"):
    elbo.node_masks(2.0)
  with pytest.raises(ValueError, match="law must be 'count' or"):
    elbo.double_monte_carlo(2, "mid")
