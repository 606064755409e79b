"""Tree search over partial unmaskings (arXiv:2509.25171, and 2412.17780).

A search proposes complete sequences of a masked policy and learns from their
rewards where to branch next. It is three pure functions, `init`, `ask` and
`tell`, with any reward between the last two; `run` is all of them under one
scan for rewards that are traced. One search has one root: `jax.vmap` runs many.

Differs from the released code: the score's bonus is one, a backup is a value
estimate, log-ratios are those of the path as drawn, exhausted subtrees are
closed, and invalid sequences keep the slot that they have. Left out: Bernoulli
reveals, which cancel from the ratio as fixed counts do.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import carries, checks
from jdiff.core.types import LogitsFn
from jdiff.ctmc import branching, reveal
from jdiff.search import rules
from jdiff.search import tree as tree_lib

Tree = tree_lib.Tree


class Proposal(NamedTuple):
  """`M` complete sequences that wait for their rewards.

  Attributes:
    samples: `[M, L]` int32.
    log_policy: `[M]` float32, of the whole path from the root's canvas, under
      the law really sampled.
    log_ref: `[M]` float32, the same under the reference.
    node: Scalar int32, the node that they expand.
    step: Scalar int32, its denoising steps; 0 is the root, whose rollouts are
      independent draws of the policy. All others follow a prefix that rewards
      have chosen.
    valid: Scalar bool; False if the tree is exhausted or full, and there is
      nothing to ask.
    children: The nodes to add.
  """

  samples: jax.Array
  log_policy: jax.Array
  log_ref: jax.Array
  node: jax.Array
  step: jax.Array
  valid: jax.Array
  children: tree_lib.NewChildren


class Search(NamedTuple):
  """A search as pure functions.

  Attributes:
    init: `(prompt=None) -> Tree`.
    ask: `(params, key, tree, ref_params=None) -> Proposal`.
    tell: `(tree, proposal, rewards [M] or [M, K]) -> Tree`; NaN is invalid.
    run: `(params, key, reward_fn, ref_params=None, tree=None) -> (tree,
      proposals, rewards)`, leaves with an axis of expansions; `reward_fn` maps
      `[M, L]` to `[M]` or `[M, K]` under a trace. A tree that is given goes
      on as far as it has room.
  """

  init: Callable[..., Tree]
  ask: Callable[..., Proposal]
  tell: Callable[..., Tree]
  run: Callable[..., tuple[Tree, Proposal, jax.Array]]


def tree_search(
  logits_fn: LogitsFn,
  *,
  length: int,
  mask_id: int,
  num_children: int,
  num_expansions: int,
  num_objectives: int = 1,
  num_steps: int | None = None,
  num_prompt: int = 0,
  ref_logits_fn: LogitsFn | None = None,
  temperature: float = 1.0,
  score: rules.Score | None = None,
  pick: rules.Pick | None = None,
  backup: rules.Backup = rules.MEAN,
  invalid_value: float | None = None,
  capacity: int | None = None,
) -> Search:
  """Builds a search over the paths of a masked policy.

  Args:
    logits_fn: The policy, a `LogitsFn`.
    length: Canvas length `L`, the prompt included.
    mask_id: The mask token.
    num_children: Children `M` of an expansion, and rewards asked for by it.
      Of one budget of rewards, fewer and larger expansions find less, see
      `benchmarks/search.py`.
    num_expansions: Expansions `T` of `run`.
    num_objectives: Columns `K` of the rewards.
    num_steps: Steps of a path; None reveals one site a step.
    num_prompt: Sites at the front that `init` is given.
    ref_logits_fn: The reference; `logits_fn` where only `ref_params` are given
      to `ask`, uniform over tokens without both.
    temperature: Of the policy; log-probabilities are of the law it makes.
    score: How children compare, `rules.uct(0.1)` by default. Values are scaled
      by the range of rewards in the tree, so that its constant needs no unit.
    pick: Which child the walk goes to; the best, or with several objectives a
      draw from the non-dominated ones.
    backup: How rewards are credited.
    invalid_value: Stands for the reward of an invalid sequence in values; it
      is in no range of rewards and in no buffer. None is the least reward that
      the tree has seen.
    capacity: Nodes that there is room for, `1 + T M` by default; more for
      trees that go on.

  Raises:
    ValueError: If sizes do not fit, or the tree has no room for `T`.
  """
  checks.check_int("length", length)
  temperature = checks.check_finite("temperature", temperature, positive=True)
  checks.check_int("num_children", num_children)
  checks.check_int("num_expansions", num_expansions)
  checks.check_int("num_objectives", num_objectives)
  if invalid_value is not None:
    checks.check_finite("invalid_value", invalid_value)
  needed = 1 + num_children * num_expansions
  capacity = needed if capacity is None else capacity
  if capacity < needed:
    raise ValueError(
      f"capacity must hold the root and {num_expansions} expansions of "
      f"{num_children} children, {needed} nodes, got {capacity}."
    )
  path_length = len(branching.block_sizes(length, num_steps, num_prompt))
  score = rules.uct() if score is None else score
  if pick is None:
    pick = rules.best if num_objectives == 1 else rules.non_dominated

  def init(prompt=None):
    canvas, given = reveal.prompted_canvas(prompt, 1, length, mask_id)
    if given != num_prompt:
      raise ValueError(
        f"prompt must have num_prompt={num_prompt} tokens, got {given}."
      )
    return tree_lib.init(canvas[0], capacity, num_objectives, mask_id=mask_id)

  def ask(params, key, tree, ref_params=None):
    room = tree.num_nodes + num_children <= capacity
    if checks.is_concrete(room) and jnp.ndim(room) == 0 and not room:
      raise ValueError(
        f"the tree is full: capacity={capacity} leaves no room for "
        f"{num_children} children after {int(tree.num_nodes)} nodes; pass a "
        "larger num_expansions or capacity."
      )
    key_select, key_branch = jax.random.split(key)
    node = tree_lib.select(
      tree,
      key_select,
      num_children=num_children,
      score=score,
      pick=pick,
      backup=backup,
    )
    drawn = branching.branch(
      params,
      key_branch,
      tree.tokens[node].astype(jnp.int32),
      # A closed root has no step left; its rows are not used.
      jnp.minimum(tree.step[node], path_length - 1),
      logits_fn=logits_fn,
      num_branches=num_children,
      mask_id=mask_id,
      num_steps=num_steps,
      num_prompt=num_prompt,
      ref_params=ref_params,
      ref_logits_fn=ref_logits_fn,
      temperature=temperature,
    )
    return Proposal(
      samples=drawn.samples,
      log_policy=tree.log_policy[node] + drawn.log_policy,
      log_ref=tree.log_ref[node] + drawn.log_ref,
      node=node,
      step=tree.step[node],
      valid=room & ~tree.closed[0],
      children=tree_lib.NewChildren(
        drawn.children.astype(tree.tokens.dtype),
        drawn.log_policy_step,
        drawn.log_ref_step,
      ),
    )

  def tell(tree, proposal, rewards):
    return tree_lib.expand(
      tree,
      proposal.node,
      proposal.children,
      _rewards(rewards, num_children, num_objectives),
      proposal.valid,
      num_steps=path_length,
      backup=backup,
      invalid_value=invalid_value,
    )

  def run(params, key, reward_fn, ref_params=None, tree=None):
    tree = init() if tree is None else tree
    tree = carries.anchor(tree, (params, key, ref_params))

    def body(tree, key):
      proposal = ask(params, key, tree, ref_params)
      rewards = _rewards(
        reward_fn(proposal.samples), num_children, num_objectives
      )
      return tell(tree, proposal, rewards), (proposal, rewards)

    keys = jax.random.split(key, num_expansions)
    tree, (proposals, rewards) = jax.lax.scan(body, tree, keys)
    return tree, proposals, rewards

  return Search(init, ask, tell, run)


def _rewards(rewards, num_children, num_objectives):
  """`[M, K]` float32 of `[M]` or `[M, K]`, or a ValueError."""
  rewards = jnp.asarray(rewards, jnp.float32)
  if num_objectives == 1 and rewards.ndim == 1:
    rewards = rewards[:, None]
  checks.check_shape(
    "rewards",
    rewards,
    (num_children, num_objectives),
    "It is [children, objectives], one row a proposed sequence.",
  )
  return rewards
