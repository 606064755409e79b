"""Tree search over sequences against mctx, rollouts with a reward a second.

  python -m benchmarks.search

The problem is a royal road: eight letters of four, a quarter of the reward for
each of four pairs that is right, one best sequence. Every engine draws children
and rollouts by `ctmc.branch`, scores them by `rules.uct(0.1)` on values scaled
to the rewards seen, and asks for 1024 rewards a root, so that what differs is
how the tree is kept. Engines:

- ours: `jdiff.search`, vmapped over roots.
- mctx, B: a node is an expanded one, and holds its 16 children, their rollouts
  and rewards as its embedding; 64 expansions.
- mctx, A: a node is one child with its one rollout; 1024 simulations.

Both of them go through `mctx.search`, the library's own low-level entry, and
both expand a complete sequence again where it is the best child. Rows run in
turns, and the fastest turn counts; `compile` is the first call less that. The
network is an MLP that starts from uniform logits, so that all rows of a table
draw from one law.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mctx

from benchmarks import timing
from jdiff import nets, search
from jdiff.ctmc import branching

LENGTH, VOCAB = 8, 4
NUM_CHILDREN, NUM_EXPANSIONS = 16, 64
ROUNDS = 3
BASELINE = "mctx, B"


class Found(NamedTuple):
  """What engines are compared by: `[B, S, L]` sequences, `[B, S]` rewards.

  Attributes:
    samples: In the order in which they were asked for.
    rewards: Theirs.
    keys: `[B, T]`, of each expansion, for a replay; None in ours.
  """

  samples: jax.Array
  rewards: jax.Array
  keys: jax.Array | None = None


def pairs(tokens):
  """`[n]` share of right pairs of `[n, 8]` tokens."""
  right = tokens == jnp.arange(LENGTH)[None] % VOCAB
  return right.reshape(-1, LENGTH // 2, 2).all(axis=2).mean(axis=1)


def uniform(params, tokens, t, sites=None):
  """A network that costs nothing."""
  del params, t
  num = tokens.shape[1] if sites is None else sites.shape[-1]
  return jnp.zeros((tokens.shape[0], num, VOCAB))


def transition(logits, value):
  """A step of mctx without a reward of its own: values are all there is."""
  return mctx.RecurrentFnOutput(
    reward=jnp.zeros_like(value),
    discount=jnp.ones_like(value),
    prior_logits=logits,
    value=value,
  )


def ours(logits_fn, reward_fn, **sizes):
  """`(params, key, num_roots) -> Found`, as of every engine."""
  built = search.tree_search(logits_fn, **sizes)

  @functools.partial(jax.jit, static_argnums=2)
  def run(params, key, num_roots):
    keys = jax.random.split(key, num_roots)
    _, proposals, rewards = jax.vmap(
      lambda key: built.run(params, key, reward_fn)
    )(keys)
    samples = proposals.samples.reshape(num_roots, -1, sizes["length"])
    return Found(samples, rewards.reshape(num_roots, -1))

  return run


def mctx_b(logits_fn, reward_fn, *, pick=search.rules.best, **sizes):
  """The same through mctx, an expansion of all children a node."""
  length, num_children = sizes["length"], sizes["num_children"]
  mask_id = sizes["mask_id"]
  score_fn = search.uct()

  def expand(params, key, canvas, step):
    """One root's expansion of one canvas; `ask` splits a key like this."""
    _, key_branch = jax.random.split(key)
    drawn = branching.branch(
      params,
      key_branch,
      canvas,
      jnp.minimum(step, length - 1),
      logits_fn=logits_fn,
      num_branches=num_children,
      mask_id=mask_id,
    )
    # A complete sequence has no children but itself.
    complete = step >= length
    children = jnp.where(complete, canvas[None], drawn.children)
    samples = jnp.where(complete, canvas[None], drawn.samples)
    return {
      "children": children,
      "samples": samples,
      "rewards": reward_fn(samples),
      "log_policy_step": drawn.log_policy_step,
      "step": step + 1,
      "key": key,
    }

  def evaluate(params, key, canvas, step):
    num = canvas.shape[0]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(num))
    embedding = jax.vmap(expand, (None, 0, 0, 0))(params, keys, canvas, step)
    value = embedding["rewards"].mean(axis=1)
    logits = jnp.zeros((num, num_children))
    return logits, value, embedding

  def recurrent_fn(params, key, action, embedding):
    rows = jnp.arange(action.shape[0])
    canvas = embedding["children"][rows, action]
    logits, value, embedding = evaluate(params, key, canvas, embedding["step"])
    return transition(logits, value), embedding

  def select(key, tree, node, depth=0):
    del depth
    rewards = tree.embeddings["rewards"]
    seen = (tree.node_visits > 0)[:, None]
    low = jnp.min(jnp.where(seen, rewards, jnp.inf))
    spread = jnp.max(jnp.where(seen, rewards, -jnp.inf)) - low
    # A child counts its own rollout, and each expansion at or below it.
    visits = tree.children_visits[node].astype(jnp.float32)
    total = rewards[node] + visits * tree.children_values[node]
    value = (total / (1 + visits) - low) / jnp.where(spread > 0, spread, 1)
    is_open = jnp.ones(num_children, bool)
    children = search.rules.Children(
      value[:, None],
      1 + visits,
      tree.embeddings["log_policy_step"][node],
      1 + tree.node_visits[node].astype(jnp.float32),
      is_open,
    )
    return pick(key, score_fn(children), is_open).astype(jnp.int32)

  @functools.partial(jax.jit, static_argnums=2)
  def run(params, key, num_roots):
    key_root, key_search = jax.random.split(key)
    canvas = jnp.full((num_roots, length), mask_id, jnp.int32)
    zeros = jnp.zeros(num_roots, jnp.int32)
    logits, value, embedding = evaluate(params, key_root, canvas, zeros)
    root = mctx.RootFnOutput(
      prior_logits=logits, value=value, embedding=embedding
    )
    tree = mctx.search(
      params,
      key_search,
      root=root,
      recurrent_fn=recurrent_fn,
      root_action_selection_fn=select,
      interior_action_selection_fn=select,
      num_simulations=sizes["num_expansions"] - 1,
    )
    found = tree.embeddings
    samples = found["samples"].reshape(num_roots, -1, length)
    rewards = found["rewards"].reshape(num_roots, -1)
    return Found(samples, rewards, found["key"])

  return run


def mctx_a(logits_fn, reward_fn, **sizes):
  """One child and its rollout a simulation, the usual form of mctx."""
  length, num_children = sizes["length"], sizes["num_children"]
  mask_id = sizes["mask_id"]
  score_fn = search.uct()

  def draw(params, key, canvas, step):
    """One child of one root's canvas."""
    drawn = branching.branch(
      params,
      key,
      canvas,
      jnp.minimum(step, length - 1),
      logits_fn=logits_fn,
      num_branches=1,
      mask_id=mask_id,
    )
    complete = step >= length
    sample = jnp.where(complete, canvas, drawn.samples[0])
    return {
      "canvas": jnp.where(complete, canvas, drawn.children[0]),
      "samples": sample,
      "rewards": reward_fn(sample[None])[0],
      "step": step + 1,
      "key": key,
    }

  def outputs(embedding):
    value = embedding["rewards"]
    return jnp.zeros((value.shape[0], num_children)), value

  def recurrent_fn(params, key, action, embedding):
    del key  # Which child an action is does not change from visit to visit.
    keys = jax.vmap(jax.random.fold_in)(embedding["key"], action)
    embedding = jax.vmap(draw, (None, 0, 0, 0))(
      params, keys, embedding["canvas"], embedding["step"]
    )
    return transition(*outputs(embedding)), embedding

  def select(key, tree, node, depth=0):
    del depth
    rewards, seen = tree.embeddings["rewards"], tree.node_visits > 0
    low = jnp.min(jnp.where(seen, rewards, jnp.inf))
    spread = jnp.max(jnp.where(seen, rewards, -jnp.inf)) - low
    visits = tree.children_visits[node].astype(jnp.float32)
    value = tree.children_values[node] - low
    value = value / jnp.where(spread > 0, spread, 1)
    children = search.rules.Children(
      value[:, None],
      jnp.maximum(visits, 1),
      jnp.zeros(num_children),
      tree.node_visits[node].astype(jnp.float32),
      jnp.ones(num_children, bool),
    )
    # Every child is drawn before any is drawn again.
    score = jnp.where(visits[:, None] > 0, score_fn(children), jnp.inf)
    picked = search.rules.best(key, score, children.is_open)
    return picked.astype(jnp.int32)

  @functools.partial(jax.jit, static_argnums=2)
  def run(params, key, num_roots):
    key_root, key_search = jax.random.split(key)
    keys = jax.random.split(key_root, num_roots)
    canvas = jnp.full((num_roots, length), mask_id, jnp.int32)
    embedding = jax.vmap(draw, (None, 0, 0, None))(params, keys, canvas, 0)
    # The root's own rollout is a reward that was asked for, as all are.
    embedding = embedding | {"canvas": canvas, "step": embedding["step"] - 1}
    logits, value = outputs(embedding)
    tree = mctx.search(
      params,
      key_search,
      root=mctx.RootFnOutput(
        prior_logits=logits, value=value, embedding=embedding
      ),
      recurrent_fn=recurrent_fn,
      root_action_selection_fn=select,
      interior_action_selection_fn=select,
      num_simulations=num_children * sizes["num_expansions"] - 1,
    )
    found = tree.embeddings
    return Found(found["samples"], found["rewards"])

  return run


SIZES = dict(
  length=LENGTH,
  mask_id=VOCAB,
  num_children=NUM_CHILDREN,
  num_expansions=NUM_EXPANSIONS,
)


def table(title, logits_fn, params, num_roots, engines):
  """Engines on one network and number of roots."""
  key, found = jax.random.key(num_roots), {}

  def runner(name):
    run = engines[name](logits_fn, pairs, **SIZES)

    def call():
      found[name] = run(params, key, num_roots)
      return found[name]

    return call

  runs = {name: runner(name) for name in engines}
  # A call of one root takes milliseconds, and needs more turns to be steady.
  rounds = 10 * ROUNDS if num_roots == 1 else ROUNDS
  times = timing.measure(runs, rounds=rounds)
  calls = num_roots * NUM_CHILDREN * NUM_EXPANSIONS
  print(f"\n{title}, {num_roots} roots; float32, baseline: {BASELINE}")
  print(
    f"{'':7}  {'ms':>8}  {'rollouts/s':>10}  {'ratio':>6}  {'compile s':>9}"
    f"  {'mean best':>15}  {'hits':>5}"
  )
  for name, (seconds, compiling) in times.items():
    assert found[name].rewards.size == calls
    best = found[name].rewards.max(axis=1)
    ratio = times[BASELINE][0] / seconds
    timing.keep(f"{title}, {num_roots} roots", name, ratio, BASELINE)
    quality = f"{best.mean():.3f}"
    if num_roots > 1:
      quality += f" +- {best.std(ddof=1) / num_roots**0.5:.3f}"
    print(
      f"{name:7}  {1e3 * seconds:8.1f}  {calls / seconds:10.0f}  "
      f"{ratio:6.3f}  {compiling:9.2f}  "
      f"{quality:>15}  {(best == 1).mean():5.2f}",
      flush=True,
    )


def main():
  print(timing.where())
  print(
    f"{NUM_CHILDREN} children x {NUM_EXPANSIONS} expansions = "
    f"{NUM_CHILDREN * NUM_EXPANSIONS} rollouts with a reward a root, length "
    f"{LENGTH}, {VOCAB} letters, one site a step"
  )
  mlp = nets.mlp(LENGTH, VOCAB)
  params = mlp.init(jax.random.key(0))
  networks = {
    "uniform logits": (uniform, None),
    "MLP 2x128": (mlp.apply, params),
  }
  engines = {BASELINE: mctx_b, "ours": ours}
  for title, network in networks.items():
    for num_roots in (1, 32, 256):
      # One child a simulation is too slow to be shown more than once.
      slow = (
        {"mctx, A": mctx_a} if num_roots == 32 and network[1] is None else {}
      )
      table(title, *network, num_roots, engines | slow)


if __name__ == "__main__":
  main()
