"""What a tree says of itself, against a second tree in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdiff import search
from jdiff.core import pareto
from jdiff.ctmc import branching
from jdiff.targets import enumerate as enumerate_lib
from tests import helpers

LENGTH, VOCAB, MASK = 5, 3, 3
LOGITS = helpers.table_logits(LENGTH, VOCAB)
POLICY = helpers.random_table(0, LENGTH, VOCAB)
REFERENCE = helpers.random_table(1, LENGTH, VOCAB)
RADIX = (VOCAB + 1) ** np.arange(LENGTH)[::-1]
PMF = np.random.default_rng(2).dirichlet(np.ones(VOCAB**LENGTH))
EXACT = enumerate_lib.denoiser(np.log(PMF).reshape((VOCAB,) * LENGTH))
LETTERS = np.array([[0.5, -0.25, 1.0], [-1.0, 0.75, 0.1]])


def reward(tokens, num_objectives=1):
  """Sums of letters, with a bonus for neighbours that are equal."""
  letters = jnp.asarray(LETTERS[:num_objectives], jnp.float32)
  same = (tokens[:, 1:] == tokens[:, :-1]).sum(axis=1)
  return (letters[:, tokens].sum(axis=2) - 0.3 * same[None]).T


class Mirror:
  """The same tree, a list of dictionaries, by the definitions."""

  def __init__(self, root, backup, num_steps, num_objectives, invalid=0.0):
    zeros = np.zeros(num_objectives)
    self.backup, self.num_steps, self.invalid = backup, num_steps, invalid
    self.low, self.high = zeros + np.inf, zeros - np.inf
    self.nodes, self.num_calls = [self.node(-1, 0, root, 1, zeros)], 0

  @staticmethod
  def node(parent, step, tokens, visits, total):
    return dict(
      parent=parent,
      step=step,
      tokens=np.array(tokens),
      visits=visits,
      total=total.astype(np.float64),
      kids=[],
    )

  def closed(self, i):
    """By recursion: complete, or all below it is."""
    node = self.nodes[i]
    if node["step"] == self.num_steps:
      return True
    return bool(node["kids"]) and all(self.closed(k) for k in node["kids"])

  def values(self, i):
    node = self.nodes[i]
    if self.backup == "max":
      return node["total"]
    return node["total"] / node["visits"]

  def path(self, i):
    """The node and all above it."""
    while i != -1:
      yield i
      i = self.nodes[i]["parent"]

  def expand(self, i, tokens, rewards):
    valid = np.isfinite(rewards).all(axis=1, keepdims=True)
    self.low = np.min(np.where(valid, rewards, np.inf), axis=0).clip(
      max=self.low
    )
    self.high = np.max(np.where(valid, rewards, -np.inf), axis=0).clip(
      min=self.high
    )
    rewards = np.where(valid, rewards, self.invalid).astype(np.float64)
    self.num_calls += len(rewards)
    node = self.nodes[i]
    for child, r in zip(tokens, rewards, strict=True):
      node["kids"].append(len(self.nodes))
      self.nodes.append(self.node(i, node["step"] + 1, child, 1, r))
    for j in self.path(i):
      above = self.nodes[j]
      above["visits"] += len(rewards) if self.backup == "count" else 1
      above["total"] = {
        "mean": above["total"] + rewards.mean(axis=0),
        "count": above["total"] + rewards.sum(axis=0),
        "sum": above["total"] + rewards.sum(axis=0),
        "max": np.maximum(above["total"], rewards.max(axis=0)),
      }[self.backup]

  def scores(self, i, exploration):
    """UCB1 of a node's children, `-inf` where there is nothing left."""
    spread = self.high - self.low
    spread = np.where(spread > 0, spread, 1)
    low = np.where(np.isfinite(self.low), self.low, 0)
    kids = self.nodes[i]["kids"]
    value = (np.array([self.values(k) for k in kids]) - low) / spread
    visits = np.array([self.nodes[k]["visits"] for k in kids])
    bonus = exploration * np.sqrt(np.log(self.nodes[i]["visits"]) / visits)
    is_open = [not self.closed(k) for k in kids]
    return np.where(np.array(is_open)[:, None], value + bonus[:, None], -np.inf)


def check_walk(mirror, node, pareto_pick=False, exploration=0.1):
  """That each step down to a node was one that the rule allows."""
  path = list(mirror.path(node))[::-1]
  ambiguous = 0
  for above, below in zip(path, path[1:], strict=False):
    score = mirror.scores(above, exploration)
    chosen = mirror.nodes[above]["kids"].index(below)
    assert score[chosen, 0] > -np.inf
    if pareto_pick:
      front = np.asarray(
        pareto.non_dominated(jnp.asarray(score), score[:, 0] > -np.inf)
      )
      # Float32 decides ties otherwise than float64: by how much, is small.
      beaten = (score > score[chosen] + 1e-5).all(axis=1)
      assert front[chosen] or not beaten.any()
      ambiguous += front.sum() > 1
    else:
      mean = score.mean(axis=1)
      assert mean[chosen] > mean.max() - 1e-5
  return ambiguous


def replay(tree, proposals, rewards, mirror, check=lambda mirror, node: None):
  """Repeats a search in the mirror, and compares everything."""
  tree = jax.device_get(tree)
  num_expansions, num_children = np.shape(proposals.log_policy)
  for t in range(num_expansions):
    if not proposals.valid[t]:
      assert mirror.closed(0) or (
        len(mirror.nodes) + num_children > len(tree.parent)
      )
      continue
    node = int(proposals.node[t])
    assert not mirror.closed(node) and not mirror.nodes[node]["kids"]
    assert proposals.step[t] == mirror.nodes[node]["step"]
    check(mirror, node)
    mirror.expand(node, proposals.children.tokens[t], np.asarray(rewards[t]))
  num = len(mirror.nodes)
  assert tree.num_nodes == num and tree.num_calls == mirror.num_calls
  for i, node in enumerate(mirror.nodes):
    assert tree.parent[i] == node["parent"] and tree.step[i] == node["step"]
    assert tree.first_child[i] == (node["kids"] or [0])[0]
    np.testing.assert_array_equal(tree.tokens[i], node["tokens"])
    assert tree.closed[i] == mirror.closed(i)
    assert tree.num_open[i] == sum(not mirror.closed(k) for k in node["kids"])
    assert tree.visits[i] == node["visits"]
    np.testing.assert_allclose(tree.total[i], node["total"], atol=1e-4)
  np.testing.assert_allclose(tree.low, mirror.low, rtol=1e-6)
  np.testing.assert_allclose(tree.high, mirror.high, rtol=1e-6)
  # Room that is not used yet is not touched.
  for leaf in (tree.tokens, tree.total, tree.visits, tree.closed, tree.step):
    assert not leaf[num:].any()
  return mirror


def log_probs(table, tokens, temperature=1.0):
  """`[L, V]` of one canvas, in NumPy and float64."""
  logits = np.asarray(table, np.float64)[tokens @ RADIX] / temperature
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def step_log_prob(table, parent, child, temperature=1.0):
  sites = np.flatnonzero(parent != child)
  return log_probs(table, parent, temperature)[sites, child[sites]].sum()


CASES = {
  "mean": (search.MEAN, 1, 4),
  "count": (search.COUNT, 1, 3),
  "sum": (search.SUM, 1, 2),
  "max": (search.MAX, 2, None),
}


@pytest.mark.parametrize("name", CASES)
def test_invariants(name):
  backup, num_objectives, num_steps = CASES[name]
  num_children, num_expansions, temperature = 4, 48, 0.7
  exploration = 1.0
  built = search.tree_search(
    LOGITS,
    length=LENGTH,
    mask_id=MASK,
    num_children=num_children,
    num_expansions=num_expansions,
    num_objectives=num_objectives,
    num_steps=num_steps,
    ref_logits_fn=LOGITS,
    temperature=temperature,
    score=search.uct(exploration),
    backup=backup,
  )

  @jax.jit
  def run(key):
    return built.run(
      POLICY, key, lambda x: reward(x, num_objectives), REFERENCE
    )

  tree, proposals, rewards = jax.device_get(run(jax.random.key(1)))
  sizes = branching.block_sizes(LENGTH, num_steps)
  root = np.full(LENGTH, MASK)
  ambiguous = 0

  def check(mirror, node):
    nonlocal ambiguous
    ambiguous += check_walk(mirror, node, num_objectives > 1, exploration)

  mirror = Mirror(root, name, len(sizes), num_objectives)
  replay(tree, proposals, rewards, mirror, check)
  assert num_objectives == 1 or ambiguous > 3
  if name == "mean":
    assert tree.visits[0] == 1 + num_expansions
    # The control: another backup's totals are not these.
    wrong = Mirror(root, "sum", len(sizes), num_objectives)
    with pytest.raises(AssertionError):
      replay(tree, proposals, rewards, wrong)
  assert tree.step[: tree.num_nodes].max() > 1
  assert (proposals.samples != MASK).all()
  np.testing.assert_allclose(
    rewards.reshape(-1, num_objectives),
    reward(proposals.samples.reshape(-1, LENGTH), num_objectives),
    rtol=1e-6,
  )
  # Log-probabilities of a node, from the tokens of those above it.
  for i in range(len(mirror.nodes)):
    policy = ref = 0.0
    for j in list(mirror.path(i))[:-1]:
      child = mirror.nodes[j]
      parent = mirror.nodes[child["parent"]]
      changed = parent["tokens"] != child["tokens"]
      assert (parent["tokens"][changed] == MASK).all()
      assert changed.sum() == sizes[parent["step"]]
      pair = parent["tokens"], child["tokens"]
      policy += step_log_prob(POLICY, *pair, temperature)
      ref += step_log_prob(REFERENCE, *pair)
      if j == i:
        step = step_log_prob(POLICY, *pair, temperature)
        np.testing.assert_allclose(tree.log_policy_step[i], step, atol=1e-4)
    np.testing.assert_allclose(tree.log_policy[i], policy, atol=1e-4)
    np.testing.assert_allclose(tree.log_ref[i], ref, atol=1e-4)
  # Of a proposal: the children's, and the last block where one is left.
  num_checked = 0
  for t in np.flatnonzero(proposals.valid):
    for m in range(num_children):
      child = tree.first_child[proposals.node[t]] + m
      sample = proposals.samples[t, m]
      known = tree.tokens[child] != MASK
      np.testing.assert_array_equal(tree.tokens[child][known], sample[known])
      if tree.step[child] < len(sizes) - 1:
        continue
      num_checked += 1
      policy, ref = tree.log_policy[child], tree.log_ref[child]
      policy += step_log_prob(POLICY, tree.tokens[child], sample, temperature)
      ref += step_log_prob(REFERENCE, tree.tokens[child], sample)
      np.testing.assert_allclose(proposals.log_policy[t, m], policy, atol=1e-4)
      np.testing.assert_allclose(proposals.log_ref[t, m], ref, atol=1e-4)
  assert num_checked >= num_children


def test_a_consistent_reference_does_not_see_the_path():
  """One site a step: its log-probability is that of the sequence alone."""
  built = search.tree_search(
    LOGITS,
    length=LENGTH,
    mask_id=MASK,
    num_children=8,
    num_expansions=10,
    num_prompt=1,
    ref_logits_fn=EXACT,
  )
  tree = built.init(jnp.array([2]))
  assert tree.tokens[0].tolist() == [2, MASK, MASK, MASK, MASK]
  tree, proposals, rewards = jax.device_get(
    jax.jit(lambda key: built.run(POLICY, key, reward, tree=tree))(
      jax.random.key(0)
    )
  )
  mirror = Mirror([2, MASK, MASK, MASK, MASK], "mean", 4, 1)
  replay(tree, proposals, rewards, mirror)
  assert (proposals.samples[..., 0] == 2).all() and tree.step.max() > 1
  state = proposals.samples @ VOCAB ** np.arange(LENGTH)[::-1]
  given = PMF.reshape(VOCAB, -1)[2].sum()
  want = np.log(PMF[state] / given)
  np.testing.assert_allclose(proposals.log_ref, want, atol=1e-4)
  assert np.abs(proposals.log_policy - want).max() > 0.1


TINY = dict(length=3, mask_id=2, num_children=2)
COIN = helpers.table_logits(3, 2)
FLAT = jnp.zeros((27, 3, 2))


def ones(tokens):
  return tokens.sum(axis=1) / 3.0


@pytest.fixture(scope="module")
def tiny():
  """`(init, tell, run)` of a search with more expansions than nodes."""
  built = search.tree_search(COIN, num_expansions=12, **TINY)

  @jax.jit
  def run(key, tree, bonus):
    return built.run(FLAT, key, lambda x: ones(x) + bonus, tree=tree)

  return built.init, jax.jit(built.tell), run


def test_an_exhausted_tree_asks_for_nothing(tiny):
  init, tell, run = tiny
  tree, proposals, rewards = jax.device_get(run(jax.random.key(0), init(), 0.0))
  # Two children a node and three steps: 1 + 2 + 4 nodes can be expanded.
  assert proposals.valid.tolist() == [True] * 7 + [False] * 5
  assert tree.num_calls == 14 and tree.num_nodes == 15
  assert tree.closed[:15].all() and len(set(proposals.node[:7])) == 7
  mirror = Mirror([2] * 3, "mean", 3, 1)
  replay(tree, proposals, rewards, mirror, check_walk)
  # Whatever comes after it changes nothing, told or by a further run.
  proposal = jax.tree.map(lambda x: x[-1], proposals)
  told = tell(tree, proposal, jnp.array([99.0, -99.0]))
  again, more, _ = run(jax.random.key(2), tree, 99.0)
  assert not more.valid.any()
  for other in (told, again):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(other), tree)


def test_a_search_without_a_valid_sequence(tiny):
  init, _, run = tiny
  tree, proposals, rewards = run(jax.random.key(0), init(), jnp.nan)
  assert (tree.low == jnp.inf).all() and (tree.high == -jnp.inf).all()
  assert (tree.total == 0).all() and proposals.valid.sum() == 7
  # With nothing to choose by, it goes where it has been least.
  mirror = Mirror([2] * 3, "mean", 3, 1)
  replay(tree, proposals, rewards, mirror, check_walk)


def test_a_closed_subtree_is_left_to_itself():
  """A closed half of the tree is passed over, however good it is."""
  built = search.tree_search(
    COIN, num_expansions=7, score=lambda c: -jnp.arange(2.0)[:, None], **TINY
  )
  _, proposals, _ = jax.jit(lambda key: built.run(FLAT, key, ones))(
    jax.random.key(0)
  )
  # Always the first open child: depth first.
  assert proposals.node.tolist() == [0, 1, 3, 4, 2, 9, 10]
  assert proposals.step.tolist() == [0, 1, 2, 2, 1, 2, 2]


def test_a_tree_that_goes_on_until_it_is_full():
  sizes = dict(length=LENGTH, mask_id=MASK, num_children=3, num_expansions=5)
  built = search.tree_search(LOGITS, capacity=32, **sizes)
  run = jax.jit(lambda key, tree: built.run(POLICY, key, reward, tree=tree))
  trees, runs = [built.init()], []
  for turn in range(3):
    tree, *found = run(jax.random.key(turn), trees[-1])
    trees.append(tree)
    runs.append(found)
  proposals, rewards = jax.tree.map(
    lambda *x: np.concatenate(x), *jax.device_get(runs)
  )
  # There is room for 1 + 3 x 10 nodes; a third run has none.
  assert proposals.valid.tolist() == [True] * 10 + [False] * 5
  assert tree.visits[0] == 11 and tree.num_calls == 30
  mirror = Mirror([MASK] * LENGTH, "mean", LENGTH, 1)
  replay(tree, proposals, rewards, mirror, check_walk)
  jax.tree.map(np.testing.assert_array_equal, trees[3], trees[2])
  # Where it can be seen, it is an error.
  with pytest.raises(
    ValueError, match="full: capacity=32 leaves no room for 3 .* after 31"
  ):
    built.ask(POLICY, jax.random.key(1), tree)


def test_invalid_sequences():
  """A NaN is a value, and is in no range; one makes the whole row invalid."""
  num_objectives, invalid = 2, -2.5
  built = search.tree_search(
    LOGITS,
    length=LENGTH,
    mask_id=MASK,
    num_children=4,
    num_expansions=12,
    num_objectives=num_objectives,
    invalid_value=invalid,
  )

  def some(tokens):
    values = reward(tokens, num_objectives)
    bad = (tokens[:, :1] == 0) & (jnp.arange(num_objectives)[None] == 0)
    return jnp.where(bad, jnp.nan, values)

  run = jax.jit(lambda key: built.run(POLICY, key, some))
  tree, proposals, rewards = jax.device_get(run(jax.random.key(0)))
  assert 0 < np.isnan(rewards[..., 0]).mean() < 1
  mirror = Mirror([MASK] * LENGTH, "mean", LENGTH, num_objectives, invalid)

  def check(mirror, node):
    check_walk(mirror, node, True)

  replay(tree, proposals, rewards, mirror, check)
  valid = np.isfinite(rewards).all(axis=-1)
  np.testing.assert_allclose(tree.low, rewards[valid].min(axis=0))
  np.testing.assert_allclose(tree.high, rewards[valid].max(axis=0))


def test_invalid_sequences_are_no_prize_where_rewards_are_negative():
  def built(**options):
    return search.tree_search(
      lambda params, tokens, t, sites=None: jnp.zeros(
        (tokens.shape[0], 6 if sites is None else jnp.shape(sites)[-1], 4)
      ),
      length=6,
      mask_id=4,
      num_children=8,
      num_expansions=32,
      **options,
    )

  def negative(tokens):
    values = -10 + 5 * jnp.mean(tokens == 1, axis=1)
    return jnp.where(tokens[:, 0] == 0, jnp.nan, values)

  def share(built):
    run = jax.jit(jax.vmap(lambda key: built.run(None, key, negative)))
    _, _, rewards = run(jax.random.split(jax.random.key(0), 8))
    return np.isnan(rewards).mean()

  # A quarter of the policy's own draws are invalid.
  assert share(built()) < 0.2
  assert share(built(invalid_value=0.0)) > 0.4
