"""How a search prefers children, picks one, and credits what it found.

Each rule is a function or a record of functions, so that users can bring their
own. Objectives are the last axis: `K` columns, a score of each.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jdiff.core import checks, pareto

TIE = 1e-6
"""Scores that differ by less are equal; rewards are scaled to [0, 1]."""


class Children(NamedTuple):
  """What a score sees of the `M` children of a node.

  Attributes:
    value: `[M, K]`, their values, in units of the range of rewards seen so far
      in this tree: in `[0, 1]` but for backups that sum.
    visits: `[M]`.
    log_policy_step: `[M]`, log-probability of the block that each reveals.
    parent_visits: Scalar.
    is_open: `[M]` bool: something below is still to be drawn.
  """

  value: jax.Array
  visits: jax.Array
  log_policy_step: jax.Array
  parent_visits: jax.Array
  is_open: jax.Array


Score = Callable[[Children], jax.Array]
"""`children -> [M, K]`, larger is better."""

Pick = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(key, score [M, K], is_open [M]) -> index`, of an open child."""


class Backup(NamedTuple):
  """How an expansion's rewards enter the nodes above it.

  Attributes:
    visits: `(old [P], M) -> new`.
    total: `(old [..., K], rewards [M, K]) -> new`.
    value: `(total [..., K], visits [...]) -> [..., K]`.
  """

  visits: Callable
  total: Callable
  value: Callable


def uct(exploration: float = 0.1) -> Score:
  """`value + c sqrt(log N_parent / N)`, UCB1 on trees (Kocsis, 2006)."""
  _check(exploration)

  def score(children):
    log_n = jnp.log(jnp.maximum(children.parent_visits, 1))
    bonus = exploration * jnp.sqrt(log_n / children.visits)
    return children.value + bonus[:, None]

  return score


def puct(exploration: float = 0.1) -> Score:
  """`value + c p sqrt(N_parent) / (1 + N)`; `p` sums to one over children.

  The children are draws of the policy, so that `p` counts its preference a
  second time.
  """
  _check(exploration)

  def score(children):
    prior = jax.nn.softmax(children.log_policy_step)
    root = jnp.sqrt(children.parent_visits)
    bonus = exploration * prior * root / (1 + children.visits)
    return children.value + bonus[:, None]

  return score


def tr2d2(exploration: float = 0.1) -> Score:
  """The released code's `value + c log_p sqrt(N_parent) / N`.

  A log-probability is negative, so that this is a penalty which visits take
  away: the opposite of a bonus. For comparison.
  """
  _check(exploration)

  def score(children):
    root = jnp.sqrt(children.parent_visits)
    bonus = exploration * children.log_policy_step * root / children.visits
    return children.value + bonus[:, None]

  return score


def best(key: jax.Array, score: jax.Array, is_open: jax.Array) -> jax.Array:
  """The largest mean over objectives; ties at random."""
  mean = jnp.where(is_open, score.mean(axis=1), -jnp.inf)
  # Equal values must be ties on every machine, whatever their last bits.
  return _uniform(key, (mean >= mean.max() - TIE) & is_open)


def softmax(temperature: float = 1.0, top: int | None = None) -> Pick:
  """A draw from `softmax(mean score / temperature)`, of the `top` best."""
  checks.check_finite("temperature", temperature, positive=True)
  if top is not None:
    checks.check_int("top", top)

  def pick(key, score, is_open):
    mean = jnp.where(is_open, score.mean(axis=1), -jnp.inf)
    if top is not None:
      least = jax.lax.top_k(mean, min(top, mean.shape[0]))[0][-1]
      mean = jnp.where(mean >= least, mean, -jnp.inf)
    return jax.random.categorical(key, mean / temperature)

  return pick


def non_dominated(
  key: jax.Array, score: jax.Array, is_open: jax.Array
) -> jax.Array:
  """A uniform draw from the children that no open sibling dominates."""
  return _uniform(key, pareto.non_dominated(score, is_open))


def _uniform(key, allowed):
  return jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))


def _ratio(total, visits):
  return total / visits[..., None]


MEAN = Backup(
  lambda visits, num: visits + 1,
  lambda total, rewards: total + rewards.mean(axis=0),
  _ratio,
)
"""One visit and the mean reward: an expansion counts as one."""

COUNT = Backup(
  lambda visits, num: visits + num,
  lambda total, rewards: total + rewards.sum(axis=0),
  _ratio,
)
"""`M` visits and the sum of rewards: every rollout counts."""

SUM = Backup(
  lambda visits, num: visits + 1,
  lambda total, rewards: total + rewards.sum(axis=0),
  _ratio,
)
"""One visit and the sum, the released code's rule: with positive rewards an
expanded node outweighs its siblings `M` times, and the search is a chain."""

MAX = Backup(
  lambda visits, num: visits + 1,
  lambda total, rewards: jnp.maximum(total, rewards.max(axis=0)),
  lambda total, visits: total,
)
"""The best reward below a node."""


def _check(exploration):
  checks.check_range("exploration", exploration, 0, jnp.inf, ends="[)")
