"""Which law each weighting of rows leads to, by enumeration; and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import ctmc, elbo, search
from jdiff.core import replay, weights
from jdiff.methods import tr2d2, wdce
from jdiff.targets import enumerate as enumerate_lib
from tests.helpers import conditional_table

LENGTH, VOCAB, TEMPERATURE = 4, 3, 0.4
STATES = jnp.asarray(enumerate_lib.enumerate_states(LENGTH, VOCAB))
CODES = VOCAB ** np.arange(LENGTH)[::-1]


def reference():
  rng = np.random.default_rng(0)
  table = rng.normal(size=(VOCAB,) * LENGTH)
  return table - np.log(np.exp(table).sum())


TABLE = reference()
REF = enumerate_lib.denoiser(TABLE)
TILT = np.random.default_rng(1).normal(size=(LENGTH, VOCAB))


def reward(tokens):
  entries = jnp.asarray(TILT, jnp.float32)
  return entries[np.arange(LENGTH)[None], tokens].sum(axis=1)


REWARDS = np.asarray(reward(STATES), np.float64)
TARGET = TABLE.ravel() + REWARDS / TEMPERATURE
LOG_Z = np.log(np.exp(TARGET).sum())
TARGET = np.exp(TARGET - LOG_Z)


def policy(params, tokens, t, sites=None):
  """The reference's conditionals, flattened and pushed by the parameters."""
  logits = 0.5 * REF(None, tokens, t, sites)
  where = jnp.arange(LENGTH) if sites is None else jnp.asarray(sites)
  return logits + params[jnp.broadcast_to(where, logits.shape[:2])]


PARAMS = jnp.asarray(
  0.5 * np.random.default_rng(2).normal(size=(LENGTH, VOCAB)), jnp.float32
)


@pytest.fixture(scope="module")
def rows():
  """Independent rollouts of a policy that is not the reference."""
  num = 40_000
  rollout = jax.jit(
    lambda key: ctmc.rollout(
      PARAMS,
      key,
      logits_fn=policy,
      num_samples=num,
      length=LENGTH,
      mask_id=VOCAB,
      ref_params=(),
      ref_logits_fn=REF,
      temperature=1.3,
    )
  )(jax.random.key(0))
  return tr2d2.from_rollout(rollout, reward(rollout.samples))


@pytest.fixture(scope="module")
def found():
  """Every row that eight searches with the policy propose."""
  searcher = search.tree_search(
    policy,
    length=LENGTH,
    mask_id=VOCAB,
    num_children=8,
    num_expansions=40,
    ref_logits_fn=REF,
  )
  run = jax.jit(jax.vmap(lambda key: searcher.run(PARAMS, key, reward)))
  _, proposals, rewards = run(jax.random.split(jax.random.key(1), 8))
  return tr2d2.from_proposals(proposals, rewards)


def law(rows, log_weights):
  """`[S]`: the weighted histogram over all states."""
  share = np.asarray(weights.normalise(log_weights), np.float64)
  return np.bincount(
    np.asarray(rows.samples) @ CODES, share, minlength=len(TARGET)
  )


def distance(p, q):
  return np.abs(p - q).sum() / 2


def noise(rows, log_weights, p):
  """What the total variation of weighted draws is on average, about."""
  share = np.asarray(weights.normalise(log_weights), np.float64)
  size = 1 / (share**2).sum()
  return np.sqrt(2 / np.pi * p * (1 - p) / size).sum() / 2


def test_the_table_is_its_own_denoiser():
  got = conditional_table(lambda x: TABLE[tuple(x)], LENGTH, VOCAB)
  canvases = jnp.asarray(enumerate_lib.enumerate_states(LENGTH, VOCAB + 1))
  logits = REF(None, canvases, jnp.zeros(len(canvases)))
  np.testing.assert_allclose(
    jax.nn.log_softmax(logits), jax.nn.log_softmax(got), atol=2e-5
  )
  exact = elbo.exact_log_prob((), STATES, logits_fn=REF, mask_id=VOCAB)
  np.testing.assert_allclose(exact, TABLE.ravel(), atol=2e-5)
  some = jnp.array([[2, 0], [1, 3]])
  np.testing.assert_array_equal(
    REF(None, canvases[5:7], jnp.zeros(2), some),
    jnp.take_along_axis(logits[5:7], some[..., None], axis=1),
  )


def test_a_denoiser_has_no_nan_where_the_law_is_zero():
  table = np.array([[0.0, -np.inf], [-np.inf, -np.inf]])
  logits_fn = enumerate_lib.denoiser(table)
  canvases = jnp.asarray(enumerate_lib.enumerate_states(2, 3))
  logits = logits_fn(None, canvases, jnp.zeros(9))
  assert not jnp.isnan(logits).any()
  np.testing.assert_allclose(jnp.exp(logits[-1]), [[1, 0], [1, 0]])
  with pytest.raises(ValueError, match="too many to tabulate"):
    enumerate_lib.denoiser(np.zeros((2,) * 16))
  with pytest.raises(ValueError, match="log_pmf must have shape"):
    enumerate_lib.denoiser(np.zeros((2, 3)))


def test_path_weights_reach_the_tilted_law(rows):
  log_w = tr2d2.log_weights(rows, reward_temperature=TEMPERATURE)
  expected = noise(rows, log_w, TARGET)
  assert distance(law(rows, log_w), TARGET) < 1.7 * expected
  error = weights.log_z(log_w) - LOG_Z
  assert abs(error) < 4 * weights.log_z_se(log_w)


def test_path_weights_need_their_duplicates(rows):
  once = rows._replace(valid=replay.first_copies(rows.samples))
  log_w = tr2d2.log_weights(once, reward_temperature=TEMPERATURE)
  whole = tr2d2.log_weights(rows, reward_temperature=TEMPERATURE)
  assert distance(law(once, log_w), TARGET) > 4 * noise(rows, whole, TARGET)


def test_path_weights_of_a_search_do_not_reach_it(rows, found):
  options = dict(reward_temperature=TEMPERATURE)
  log_w = tr2d2.log_weights(found, **options)
  assert distance(law(found, log_w), TARGET) > 3 * noise(found, log_w, TARGET)
  assert set(np.unique(found.step)) == set(range(LENGTH))


def test_support_weights_are_the_law_on_its_rows(found):
  # Of all 81 sequences the searches see nearly every one: some are enough.
  some = found.valid & (jnp.arange(found.valid.size) < 100)
  once = found._replace(valid=replay.first_copies(found.samples, some))
  log_w = tr2d2.log_weights(
    once, reward_temperature=TEMPERATURE, weighting=tr2d2.support
  )
  got = law(once, log_w)
  held = np.zeros(len(TARGET))
  codes = np.asarray(once.samples)[np.asarray(once.valid)] @ CODES
  held[codes] = TARGET[codes]
  assert 0 < len(codes) < len(TARGET)
  # Exact, whatever the rows: no sampling noise.
  np.testing.assert_allclose(got, held / held.sum(), atol=1e-5)
  kl = np.sum(got[codes] * np.log(got[codes] / TARGET[codes]))
  np.testing.assert_allclose(kl, -np.log(held.sum()), atol=1e-4)
  # With duplicates it is another law.
  log_w = tr2d2.log_weights(
    found, reward_temperature=TEMPERATURE, weighting=tr2d2.support
  )
  assert distance(law(found, log_w), held / held.sum()) > 0.05


def test_reward_and_uniform_weights(rows):
  raw = law(rows, jnp.zeros(rows.valid.shape))
  log_w = tr2d2.log_weights(
    rows, reward_temperature=TEMPERATURE, weighting=tr2d2.uniform
  )
  np.testing.assert_allclose(law(rows, log_w), raw, atol=1e-6)
  log_w = tr2d2.log_weights(
    rows, reward_temperature=TEMPERATURE, weighting=tr2d2.reward
  )
  tilted = raw * np.exp(REWARDS / TEMPERATURE)
  np.testing.assert_allclose(law(rows, log_w), tilted / tilted.sum(), atol=1e-5)


def test_fewer_weights_are_evened_out(rows):
  log_w = tr2d2.log_weights(rows, reward_temperature=0.05, min_ess_fraction=0.3)
  np.testing.assert_allclose(weights.ess_fraction(log_w), 0.3, atol=1e-3)


def test_invalid_rows_have_no_weight(rows):
  rewards = rows.rewards.at[::2].set(jnp.nan).at[1].set(jnp.inf)
  some = jax.tree.map(lambda x: x[:64], rows)._replace(rewards=rewards[:64])
  some = some._replace(valid=jnp.isfinite(some.rewards).all(axis=1))
  log_w = tr2d2.log_weights(some, reward_temperature=TEMPERATURE)
  assert (log_w[::2] == -jnp.inf).all() and log_w[1] == -jnp.inf
  assert jnp.isfinite(log_w[3::2]).all()
  drawn = wdce.draw(jax.random.key(0), some.samples, log_w, 32)
  kept = {tuple(row) for row in np.asarray(some.samples[3::2]).tolist()}
  assert {tuple(row) for row in np.asarray(drawn).tolist()} <= kept
  info = tr2d2.summary(some, log_w)
  assert info["num_rows"] == 31
  np.testing.assert_allclose(info["best"], some.rewards[3::2].max())


def test_nothing_valid():
  empty = tr2d2.Rows(
    jnp.zeros((4, 2), jnp.int32),
    jnp.zeros(4),
    jnp.zeros(4),
    jnp.full((4, 1), jnp.nan),
    jnp.zeros(4, jnp.int32),
    jnp.zeros(4, bool),
  )
  with pytest.raises(ValueError, match="none of the 4 rows has a finite"):
    tr2d2.log_weights(empty, reward_temperature=1.0)
  # A trace cannot look: nothing becomes NaN there.
  log_w = jax.jit(lambda rows: tr2d2.log_weights(rows, reward_temperature=1.0))(
    empty
  )
  assert (log_w == -jnp.inf).all()
  info = tr2d2.summary(empty, log_w)
  assert info["ess"] == 0 and info["num_rows"] == 0
  assert all(jnp.isfinite(value) for value in info.values())
  drawn = wdce.draw(jax.random.key(0), empty.samples, log_w, 3)
  assert drawn.shape == (3, 2)


def test_buffers(found):
  log_w = tr2d2.log_weights(found, reward_temperature=TEMPERATURE)
  kept = tr2d2.unique_top()(found, log_w, 10)
  values = np.asarray(found.rewards[:, 0])
  first = np.asarray(replay.first_copies(found.samples))
  np.testing.assert_allclose(
    kept.rewards[:, 0], np.sort(values[first])[::-1][:10], rtol=1e-6
  )
  assert kept.valid.all()
  assert len(np.unique(kept.samples, axis=0)) == 10
  # More room than rows: the rest is not valid.
  wide = tr2d2.unique_top()(found, log_w, 5000)
  assert wide.valid.sum() == first.sum()


def test_a_pareto_buffer():
  rewards = jnp.array([[0, 3], [1, 2], [1, 1], [3, 0], [1, 2], [jnp.nan, 9]])
  num = len(rewards)
  rows = tr2d2.Rows(
    jnp.array([[0], [1], [2], [3], [1], [5]]),
    jnp.zeros(num),
    jnp.zeros(num),
    rewards,
    jnp.zeros(num, jnp.int32),
    jnp.isfinite(rewards).all(axis=1),
  )
  kept = tr2d2.pareto_front(rows, jnp.zeros(num), 4)
  samples = np.asarray(kept.samples)[np.asarray(kept.valid), 0]
  assert sorted(samples.tolist()) == [0, 1, 3]


def test_scalarised_rewards():
  rewards = jnp.array([[1.0, 2.0], [3.0, -1.0]])
  np.testing.assert_allclose(tr2d2.total(rewards), [3, 2])
  np.testing.assert_allclose(tr2d2.weighted((2, 1))(rewards), [4, 5])
  np.testing.assert_allclose(tr2d2.chebyshev((1, 1), (3, 3))(rewards), [-2, -4])
  with pytest.raises(ValueError, match="rewards must have shape"):
    tr2d2.weighted((1, 1, 1))(rewards)
  with pytest.raises(ValueError, match="ideal must have shape"):
    tr2d2.chebyshev((1, 1), (1, 1, 1))
  with pytest.raises(ValueError, match="objective_weights must be finite"):
    tr2d2.weighted((1, float("nan")))


def test_rows_of_proposals_and_rollouts(found, rows):
  assert found.samples.shape == (8 * 320, LENGTH)
  assert found.rewards.shape == (8 * 320, 1)
  assert (rows.step == tr2d2.INDEPENDENT).all()
  assert tr2d2.summary(rows, rows.log_ref)["independent"] == 1
  with pytest.raises(ValueError, match="rewards must have shape"):
    tr2d2.from_proposals(
      search.Proposal(
        jnp.zeros((2, 3, 4), jnp.int32),
        jnp.zeros((2, 3)),
        jnp.zeros((2, 3)),
        jnp.zeros(2, jnp.int32),
        jnp.zeros(2, jnp.int32),
        jnp.ones(2, bool),
        None,
      ),
      jnp.zeros((2, 4, 1)),
    )
