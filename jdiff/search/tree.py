"""A search tree in arrays: preallocated, vmapped over roots, closed as it ends.

A node is a partly revealed canvas. An expansion adds `M` children, draws of the
policy, in consecutive slots, so that a node stores its first child alone. A
node with nothing left to draw below it is closed, and never selected again.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import carries, checks
from jdiff.search import rules

NO_NODE = -1


class Tree(NamedTuple):
  """One tree of at most `N` nodes; node 0 is the root.

  The root starts with one visit and a total of zero, which no score looks at.

  Attributes:
    tokens: `[N, L]` int16, or int32 for large vocabularies.
    parent: `[N]` int32; -1 at the root.
    first_child: `[N]` int32; 0 where not expanded.
    step: `[N]` int32, denoising steps behind the node.
    visits: `[N]` float32.
    total: `[N, K]` float32, see `rules.Backup`.
    log_policy_step: `[N]` float32, of the block that leads to the node.
    log_policy: `[N]` float32, of all that the node has revealed.
    log_ref: `[N]` float32, the same under the reference.
    num_open: `[N]` int32, children that are not closed.
    closed: `[N]` bool.
    low: `[K]` float32, the least reward seen.
    high: `[K]` float32, the largest.
    num_nodes: Scalar int32.
    num_calls: Scalar int32, rewards asked for.
  """

  tokens: jax.Array
  parent: jax.Array
  first_child: jax.Array
  step: jax.Array
  visits: jax.Array
  total: jax.Array
  log_policy_step: jax.Array
  log_policy: jax.Array
  log_ref: jax.Array
  num_open: jax.Array
  closed: jax.Array
  low: jax.Array
  high: jax.Array
  num_nodes: jax.Array
  num_calls: jax.Array


class NewChildren(NamedTuple):
  """What `expand` writes: `[M, L]` tokens and `[M]` log-probabilities."""

  tokens: jax.Array
  log_policy_step: jax.Array
  log_ref_step: jax.Array


def init(
  root: jax.Array, capacity: int, num_objectives: int, *, mask_id: int
) -> Tree:
  """A tree of its root alone.

  Args:
    root: `[L]` int32, hidden where it holds the mask.
    capacity: Nodes `N` that there is room for.
    num_objectives: `K`.
    mask_id: The mask token.
  """
  checks.check_shape("root", root, (None,))
  dtype = jnp.int16 if mask_id < 2**15 - 1 else jnp.int32
  ints = jnp.zeros(capacity, jnp.int32)
  floats = jnp.zeros(capacity)
  tokens = jnp.zeros((capacity, root.shape[0]), dtype)
  return Tree(
    tokens=tokens.at[0].set(root.astype(dtype)),
    parent=ints.at[0].set(NO_NODE),
    first_child=ints,
    step=ints,
    visits=floats.at[0].set(1),
    total=jnp.zeros((capacity, num_objectives)),
    log_policy_step=floats,
    log_policy=floats,
    log_ref=floats,
    num_open=ints,
    closed=jnp.zeros(capacity, bool),
    low=jnp.full(num_objectives, jnp.inf),
    high=jnp.full(num_objectives, -jnp.inf),
    num_nodes=jnp.int32(1),
    num_calls=jnp.int32(0),
  )


def select(
  tree: Tree,
  key: jax.Array,
  *,
  num_children: int,
  score: rules.Score,
  pick: rules.Pick,
  backup: rules.Backup,
) -> jax.Array:
  """The open node without children that the rules lead to from the root."""
  spread = tree.high - tree.low
  scale = jnp.where(spread > 0, spread, 1)
  low = jnp.where(jnp.isfinite(tree.low), tree.low, 0)

  def down(node):
    kids = tree.first_child[node] + jnp.arange(num_children)
    visits = tree.visits[kids]
    value = (backup.value(tree.total[kids], visits) - low[None]) / scale[None]
    is_open = ~tree.closed[kids]
    children = rules.Children(
      value, visits, tree.log_policy_step[kids], tree.visits[node], is_open
    )
    # A level is reached once a walk, which makes its number a key's.
    key_node = jax.random.fold_in(key, tree.step[node])
    chosen = pick(key_node, score(children), is_open)
    return tree.first_child[node] + chosen.astype(jnp.int32)

  def inner(node):
    # A closed root has no open child to go on to.
    return (tree.first_child[node] > 0) & ~tree.closed[node]

  root = carries.anchor(jnp.int32(0), (tree, key))
  return jax.lax.while_loop(inner, down, root)


def expand(
  tree: Tree,
  node: jax.Array,
  children: NewChildren,
  rewards: jax.Array,
  valid: jax.Array,
  *,
  num_steps: int,
  backup: rules.Backup,
  invalid_value: float | None,
) -> Tree:
  """Adds the children of a node, and credits their rewards upwards.

  Args:
    tree: The tree.
    node: Scalar int32, an open node without children.
    children: What was drawn.
    rewards: `[M, K]`, of a rollout from each; a NaN makes its row invalid.
    valid: Scalar bool; False leaves the tree as it is.
    num_steps: Steps of a whole path.
    backup: How rewards are credited.
    invalid_value: Stands for the reward of an invalid sequence; None is the
      least reward seen so far, 0 while there is none.
  """
  num_children, capacity = rewards.shape[0], tree.parent.shape[0]
  is_valid = jnp.isfinite(rewards).all(axis=1, keepdims=True)
  tree = tree._replace(
    low=jnp.where(
      valid,
      jnp.minimum(tree.low, jnp.min(_or(rewards, is_valid, jnp.inf), axis=0)),
      tree.low,
    ),
    high=jnp.where(
      valid,
      jnp.maximum(tree.high, jnp.max(_or(rewards, is_valid, -jnp.inf), axis=0)),
      tree.high,
    ),
    num_calls=tree.num_calls + jnp.where(valid, num_children, 0),
  )
  # Any constant would be good, or ruinous, to somebody's rewards.
  least = jnp.where(jnp.isfinite(tree.low), tree.low, 0)[None]
  fill = least if invalid_value is None else invalid_value
  rewards = _or(rewards, is_valid, fill)
  # Writes to slots past the end are dropped: no tree is copied to be kept.
  slots = jnp.where(valid, tree.num_nodes, capacity) + jnp.arange(num_children)
  here = jnp.where(valid, node, capacity)
  step = tree.step[node] + 1
  complete = step >= num_steps

  def write(old, new):
    new = jnp.broadcast_to(
      jnp.asarray(new, old.dtype), slots.shape + old.shape[1:]
    )
    return old.at[slots].set(new, mode="drop")

  tree = tree._replace(
    tokens=write(tree.tokens, children.tokens),
    parent=write(tree.parent, node),
    step=write(tree.step, step),
    visits=write(tree.visits, 1),
    total=write(tree.total, rewards),
    log_policy_step=write(tree.log_policy_step, children.log_policy_step),
    log_policy=write(
      tree.log_policy, tree.log_policy[node] + children.log_policy_step
    ),
    log_ref=write(tree.log_ref, tree.log_ref[node] + children.log_ref_step),
    closed=write(tree.closed, complete),
    first_child=tree.first_child.at[here].set(tree.num_nodes, mode="drop"),
    num_open=tree.num_open.at[here].set(
      jnp.where(complete, 0, num_children), mode="drop"
    ),
    num_nodes=tree.num_nodes + jnp.where(valid, num_children, 0),
  )
  start = jnp.where(valid, node, NO_NODE)
  tree = _credit(tree, start, rewards, backup)
  return _close(tree, jnp.where(complete, start, NO_NODE))


def _credit(tree, node, rewards, backup):
  """Rewards, at a node and all above it."""

  def up(carry):
    node, visits, total = carry
    visits = visits.at[node].set(backup.visits(visits[node], rewards.shape[0]))
    total = total.at[node].set(backup.total(total[node], rewards))
    return tree.parent[node], visits, total

  _, visits, total = jax.lax.while_loop(
    lambda carry: carry[0] != NO_NODE, up, (node, tree.visits, tree.total)
  )
  return tree._replace(visits=visits, total=total)


def _close(tree, node):
  """Closes a node, and those above whose last open child it was."""

  def up(carry):
    node, num_open, closed = carry
    closed = closed.at[node].set(True)
    parent = tree.parent[node]
    # The root has none: its count goes to a slot that is not there.
    slot = jnp.where(parent == NO_NODE, num_open.shape[0], parent)
    num_open = num_open.at[slot].add(-1, mode="drop")
    last = (parent != NO_NODE) & (num_open[parent] == 0)
    return jnp.where(last, parent, NO_NODE), num_open, closed

  _, num_open, closed = jax.lax.while_loop(
    lambda carry: carry[0] != NO_NODE, up, (node, tree.num_open, tree.closed)
  )
  return tree._replace(num_open=num_open, closed=closed)


def _or(values, present, fill):
  return jnp.where(present, values, fill)
