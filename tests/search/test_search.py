"""Searches: what they find, carriers, devices, a peer, refusals."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import search as peer
from jdiff import search
from jdiff.core import reward
from tests import helpers

LENGTH, VOCAB, MASK = 5, 3, 3
NUM_CHILDREN, NUM_EXPANSIONS, NUM_ROOTS = 4, 6, 32
LOGITS = helpers.table_logits(LENGTH, VOCAB)
POLICY = helpers.random_table(0, LENGTH, VOCAB)
SIZES = dict(
  length=LENGTH,
  mask_id=MASK,
  num_children=NUM_CHILDREN,
  num_expansions=NUM_EXPANSIONS,
)
BUILT = search.tree_search(LOGITS, **SIZES)
KEYS = jax.random.split(jax.random.key(0), NUM_ROOTS)


def quarters(tokens):
  """Multiples of a quarter, the same in NumPy and in JAX."""
  return tokens[:, 0] / 4 - (tokens[:, 1:] == tokens[:, :-1]).sum(axis=1) / 2


TRACED = reward.JaxReward(quarters)


def run(key, reward_fn=TRACED):
  return BUILT.run(POLICY, key, reward_fn)


def assert_same(got, want):
  """Tokens and counts bitwise, numbers to rounding."""

  def check(a, b):
    if jnp.issubdtype(b.dtype, jnp.floating):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    else:
      np.testing.assert_array_equal(a, b)

  jax.tree.map(check, jax.device_get(got), jax.device_get(want))


@pytest.fixture(scope="module")
def singles():
  """Each root by itself; traced once for all, and no key is used twice."""
  single = jax.jit(chex.assert_max_traces(run, n=1))
  with jax.debug_key_reuse(True):
    found = [jax.device_get(single(key)) for key in KEYS]
  return jax.tree.map(lambda *x: np.stack(x), *found)


def test_roots_are_apart(singles):
  assert_same(jax.jit(jax.vmap(run))(KEYS), singles)
  assert len({x.tobytes() for x in singles[1].samples}) == NUM_ROOTS


@pytest.mark.parametrize("how", ["sharded jit", "shard_map"])
def test_one_and_eight_devices_agree(singles, how):
  mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
  many = jax.vmap(run)
  if how == "shard_map":
    many = jax.shard_map(many, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
  keys = jax.device_put(KEYS, NamedSharding(mesh, P("x")))
  found = jax.jit(many)(keys)
  shape = found[0].tokens.sharding.shard_shape(found[0].tokens.shape)
  assert shape[0] == NUM_ROOTS // 8
  assert_same(found, singles)


def test_carriers_find_the_same(singles):
  """Traced as above, called back, and by hand with ask and tell."""
  asked = []

  def fn(rows):
    asked.append(rows.shape)
    return quarters(rows)

  callback = reward.CallbackReward(reward.HostReward(fn, cache=False))
  assert_same(jax.jit(jax.vmap(lambda k: run(k, callback)))(KEYS), singles)
  # One call an expansion, for all roots; copies are asked for once.
  assert len(asked) == NUM_EXPANSIONS
  assert max(asked)[0] <= NUM_ROOTS * NUM_CHILDREN
  host = reward.HostReward(fn)
  ask, tell = jax.jit(BUILT.ask), jax.jit(BUILT.tell)
  tree, proposals = BUILT.init(), []
  for key in jax.random.split(KEYS[3], NUM_EXPANSIONS):
    proposal = ask(POLICY, key, tree)
    rewards = host(proposal.samples)
    tree = tell(tree, proposal, rewards)
    proposals.append((proposal, rewards))
  stacked = jax.tree.map(lambda *x: np.stack(x), *proposals)
  assert_same((tree, *stacked), jax.tree.map(lambda x: x[3], singles))
  unique = {x.tobytes() for x in stacked[0].samples.reshape(-1, LENGTH)}
  assert host.num_calls == len(unique) < NUM_EXPANSIONS * NUM_CHILDREN


def test_rules_of_ones_own():
  """Breadth first, by the worst reward, with a pick that is not random."""
  worst = search.rules.Backup(
    lambda visits, num: visits + 1,
    lambda total, rewards: jnp.minimum(total, rewards.min(axis=0)),
    lambda total, visits: total,
  )
  seen = {}

  def fewest(children):
    seen.update(children._asdict())
    return -children.visits[:, None] + 0 * children.value

  def last(key, score, is_open):
    del key
    best = jnp.where(is_open, score[:, 0], -jnp.inf)
    return score.shape[0] - 1 - jnp.argmax(best[::-1])

  built = search.tree_search(
    LOGITS,
    **(SIZES | dict(num_expansions=12)),
    score=fewest,
    pick=last,
    backup=worst,
  )
  tree, proposals, rewards = jax.jit(
    lambda key: built.run(POLICY, key, quarters)
  )(jax.random.key(0))
  # The root, its four children from the last, and so on below them.
  assert proposals.node.tolist()[:6] == [0, 4, 3, 2, 1, 8]
  assert proposals.step.tolist() == [0] + [1] * 4 + [2] * 7
  assert np.ptp(tree.visits[1:5]) <= 1
  assert tree.total[0, 0] == min(0, rewards.min())
  assert {k: v.shape for k, v in seen.items()} == {
    "value": (4, 1),
    "visits": (4,),
    "log_policy_step": (4,),
    "parent_visits": (),
    "is_open": (4,),
  }


NUM_ROAD = 64
ROAD = peer.SIZES


@pytest.fixture(scope="module")
def road():
  """The best reward of 64 roots, `[64]`, ours and mctx's."""
  found = [
    make(peer.uniform, peer.pairs, **ROAD)(None, jax.random.key(0), NUM_ROAD)
    for make in (peer.ours, peer.mctx_b)
  ]
  for each in found:
    assert each.rewards.shape == (NUM_ROAD, 1024)
    rewards = jax.jit(peer.pairs)(each.samples.reshape(-1, ROAD["length"]))
    np.testing.assert_array_equal(each.rewards.ravel(), rewards)
  return [np.asarray(each.rewards.max(axis=1)) for each in found]


def test_search_beats_as_many_independent_draws(road):
  ours, _ = road
  assert ours.mean() >= 0.82
  # A uniform policy's rollouts are uniform sequences.
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, peer.VOCAB, (NUM_ROAD * 1024, ROAD["length"]))
  draws = np.asarray(peer.pairs(jnp.asarray(tokens))).reshape(NUM_ROAD, -1)
  best_of_n = draws.max(axis=1)
  # In expectation 0.6575; the standard error is 0.016.
  assert best_of_n.mean() <= 0.70
  error = np.hypot(ours.std(), best_of_n.std()) / NUM_ROAD**0.5
  assert ours.mean() - best_of_n.mean() > 6 * error


def test_search_is_as_good_as_mctx(road):
  ours, theirs = road
  error = np.hypot(ours.std(), theirs.std()) / NUM_ROAD**0.5
  assert abs(ours.mean() - theirs.mean()) < 3 * error < 0.1


def test_search_is_mctx_step_for_step():
  """The same children from the same keys, expansion after expansion.

  No reward ties and no sequence is complete before the last expansion, where
  the two would differ on purpose.
  """
  length = num = 9
  rng = np.random.default_rng(0)
  letters = jnp.asarray(rng.standard_normal((length, 4)), jnp.float32)
  couples = jnp.asarray(rng.standard_normal((length - 1, 4, 4)), jnp.float32)

  def generic(tokens):
    rows = jnp.arange(length)[None]
    single = letters[rows, tokens].sum(axis=1)
    both = couples[rows[:, 1:] - 1, tokens[:, :-1], tokens[:, 1:]]
    return single + both.sum(axis=1)

  def first(key, score, is_open):
    del key
    return jnp.argmax(jnp.where(is_open, score[:, 0], -jnp.inf))

  sizes = dict(length=length, mask_id=4, num_children=6, num_expansions=num)
  theirs = peer.mctx_b(peer.uniform, generic, pick=first, **sizes)(
    None, jax.random.key(0), 8
  )
  built = search.tree_search(peer.uniform, pick=first, **sizes)

  @jax.jit
  def replay(keys, sign):
    def step(tree, key):
      proposal = built.ask(None, key, tree)
      rewards = generic(proposal.samples)
      tree = built.tell(tree, proposal, sign * rewards)
      return tree, (proposal.samples, rewards, proposal.step)

    return jax.vmap(lambda k: jax.lax.scan(step, built.init(), k)[1])(keys)

  samples, rewards, steps = replay(theirs.keys, 1.0)
  np.testing.assert_array_equal(
    samples.reshape(theirs.samples.shape), theirs.samples
  )
  np.testing.assert_allclose(rewards.reshape(8, -1), theirs.rewards, rtol=1e-6)
  assert steps.max() >= 3
  # The control: a search for the worst goes elsewhere.
  worst = replay(theirs.keys, -1.0)[0].reshape(theirs.samples.shape)
  assert (worst[:, :12] != theirs.samples[:, :12]).any()
  assert (worst != theirs.samples).any(axis=(1, 2)).all()


def with_rewards(rewards, **options):
  built = search.tree_search(LOGITS, **SIZES, **options)
  tree = built.init()
  proposal = jax.eval_shape(built.ask, POLICY, jax.random.key(0), tree)
  jax.eval_shape(built.tell, tree, proposal, rewards)


def build(**options):
  search.tree_search(LOGITS, **(SIZES | options))


@pytest.mark.parametrize(
  "call, error, message",
  [
    (
      lambda: with_rewards(jnp.zeros(5)),
      ValueError,
      r"rewards must have shape \[4, 1\], got \[5, 1\]",
    ),
    (
      lambda: with_rewards(jnp.zeros((4, 2))),
      ValueError,
      r"rewards must have shape \[4, 1\], got \[4, 2\]",
    ),
    (
      lambda: with_rewards(jnp.zeros(4), num_objectives=2),
      ValueError,
      r"rewards must have shape \[4, 2\], got \[4\]",
    ),
    (
      lambda: jax.eval_shape(lambda k: run(k, jnp.mean), jax.random.key(0)),
      ValueError,
      r"rewards must have shape \[4, 1\], got \[\]",
    ),
    (
      lambda: build(capacity=24),
      ValueError,
      "root and 6 expansions of 4 children, 25 nodes, got 24",
    ),
    (lambda: build(num_children=0), ValueError, "num_children must be >= 1"),
    (lambda: build(num_expansions=1.0), TypeError, "num_expansions must be an"),
    (lambda: build(num_objectives=0), ValueError, "num_objectives must be"),
    (lambda: build(num_prompt=-1), ValueError, "num_prompt must be >= 0"),
    (lambda: build(num_steps=9), ValueError, "num_steps must lie in"),
    (lambda: build(num_prompt=5), ValueError, "prompt"),
    (
      lambda: build(invalid_value=float("nan")),
      ValueError,
      "invalid_value must be finite",
    ),
    (
      lambda: BUILT.init(jnp.array([1])),
      ValueError,
      "prompt must have num_prompt=0 tokens, got 1",
    ),
    (
      lambda: search.tree_search(LOGITS, **SIZES, num_prompt=2).init(),
      ValueError,
      "prompt must have num_prompt=2 tokens, got 0",
    ),
    (
      lambda: BUILT.ask(POLICY, jnp.zeros(2, jnp.uint32), BUILT.init()),
      TypeError,
      "typed PRNG key",
    ),
  ],
)
def test_bad_arguments(call, error, message):
  with pytest.raises(error, match=message):
    call()
