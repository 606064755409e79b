"""TR2-D2: fine-tuning a masked policy on what a search found (2509.25171).

The aim is `p* = p_ref exp(reward / reward_temperature) / Z`, for any reward.
Rounds of two halves: rows of complete sequences are gathered with the policy
as it is, by tree search (`jdiff.search`) or as independent rollouts, and the
policy is fitted to them by WDCE (`methods.wdce`) with a weighting below. Rows
keep both log-probabilities of their path, and their rewards, apart, so that the
weighting is a choice.

Which law a weighting leads to:

- `path`, on independent rollouts with their duplicates: `p*`, whatever the
  policy was, up to self-normalisation. On rows of a tree it is the released
  code's rule and leads elsewhere: rows below the root share prefixes that were
  chosen by reward, which no log-ratio knows of, and a unique set lacks the
  multiplicity that the weights assume.
- `support`, on unique rows: `p*` restricted to those rows, for reveals of one
  site a step and a reference whose conditionals are consistent. Its KL to `p*`
  is `-log p*(rows)`, which falls as rows are added from anywhere, a tree too.
- `reward`: `exp(reward / reward_temperature)` times the law that rows come
  from, again and again: with on-policy rounds it climbs without end.
- `uniform`: the rows themselves; behind a top-B buffer, the cross-entropy
  method.

A search buys reward early, path weights buy the law: the default is rounds of
the first and then of the second.

Differs from the released code: weights and gradients are sums over the buffer,
not a mean of them (a factor that Adam hides from all but its clipping), weights
are never centred, and the faults of its tree are not here (see `search`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jdiff.core import checks, replay, weights
from jdiff.core.types import Rollout
from jdiff.search import Proposal

INDEPENDENT = -1
"""`Rows.step` of an independent rollout."""


class Rows(NamedTuple):
  """Complete sequences, how they were come by, and what they are worth.

  Attributes:
    samples: `[B, L]` int32.
    log_policy: `[B]` float32, of the path, under the law really sampled.
    log_ref: `[B]` float32, of the same path under the reference.
    rewards: `[B, K]` float32; not finite where invalid.
    step: `[B]` int32, denoising steps of the node that a search expanded: 0 is
      the root, whose rows are independent draws; `INDEPENDENT` for rollouts.
    valid: `[B]` bool: False where there is no row, or no reward.
  """

  samples: jax.Array
  log_policy: jax.Array
  log_ref: jax.Array
  rewards: jax.Array
  step: jax.Array
  valid: jax.Array


Scalarise = Callable[[jax.Array], jax.Array]
"""`rewards [B, K] -> [B]`."""

Weighting = Callable[[Rows, jax.Array], jax.Array]
"""`(rows, tilt [B]) -> log_weights [B]`; the tilt is reward / temperature."""

Admit = Callable[[Rows, jax.Array, int], Rows]
"""`(rows, log_weights [B], capacity) -> rows` of that number."""


def from_rollout(rollout: Rollout, rewards: jax.Array) -> Rows:
  """The rows of independent rollouts; `rewards` are `[N]` or `[N, K]`."""
  if rollout.log_ratio is None or rollout.log_policy is None:
    raise ValueError("the rollout has no exact log_ratio, got None.")
  num = rollout.samples.shape[0]
  rewards = _columns(rewards, num)
  return Rows(
    rollout.samples,
    rollout.log_policy,
    rollout.log_policy + rollout.log_ratio,
    rewards,
    jnp.full(num, INDEPENDENT, jnp.int32),
    jnp.isfinite(rewards).all(axis=1),
  )


def from_proposals(proposals: Proposal, rewards: jax.Array) -> Rows:
  """The rows of a search's proposals, whatever leading axes they have.

  Args:
    proposals: With leaves `[..., M, L]`, `[..., M]` and `[...]`.
    rewards: `[..., M, K]`.
  """
  lead = proposals.log_policy.shape
  length, num = proposals.samples.shape[-1], proposals.log_policy.size
  checks.check_shape("rewards", rewards, (*lead, None))
  rewards = rewards.reshape(num, -1)
  step = jnp.broadcast_to(proposals.step[..., None], lead).reshape(num)
  valid = jnp.broadcast_to(proposals.valid[..., None], lead).reshape(num)
  return Rows(
    proposals.samples.reshape(num, length),
    proposals.log_policy.reshape(num),
    proposals.log_ref.reshape(num),
    rewards,
    step,
    valid & jnp.isfinite(rewards).all(axis=1),
  )


def total(rewards: jax.Array) -> jax.Array:
  """The sum of the objectives, which should then be of one scale."""
  return rewards.sum(axis=1)


def weighted(objective_weights: Sequence[float]) -> Scalarise:
  """`sum_k w_k r_k`."""
  w = _finite("objective_weights", objective_weights)

  def scalarise(rewards):
    checks.check_shape("rewards", rewards, (None, w.shape[0]))
    # Not a product of matrices, which accelerators round.
    return jnp.sum(rewards * w[None], axis=1)

  return scalarise


def chebyshev(
  objective_weights: Sequence[float], ideal: Sequence[float]
) -> Scalarise:
  """`-max_k w_k (ideal_k - r_k)`: reaches fronts that sums cannot."""
  w = _finite("objective_weights", objective_weights)
  best = _finite("ideal", ideal)
  checks.check_shape("ideal", best, w.shape)

  def scalarise(rewards):
    checks.check_shape("rewards", rewards, (None, w.shape[0]))
    return -jnp.max(w[None] * (best[None] - rewards), axis=1)

  return scalarise


def path(rows: Rows, tilt: jax.Array) -> jax.Array:
  """`log_ref - log_policy + tilt`; see the module."""
  return rows.log_ref - rows.log_policy + tilt


def support(rows: Rows, tilt: jax.Array) -> jax.Array:
  """`log_ref + tilt`, for unique rows; see the module."""
  return rows.log_ref + tilt


def reward(rows: Rows, tilt: jax.Array) -> jax.Array:
  """`tilt`; see the module."""
  del rows
  return tilt


def uniform(rows: Rows, tilt: jax.Array) -> jax.Array:
  """Zero; see the module."""
  return jnp.zeros_like(tilt)


def log_weights(
  rows: Rows,
  *,
  reward_temperature: float,
  weighting: Weighting = path,
  scalarise: Scalarise = total,
  min_ess_fraction: float | None = None,
) -> jax.Array:
  """`[B]` float32 log-weights of rows, `-inf` where they are not valid.

  Args:
    rows: The rows.
    reward_temperature: The tilt, positive, in units of the scalarised reward.
    weighting: Which law they lead to; see the module.
    scalarise: One reward of several objectives.
    min_ess_fraction: Lowers all to the largest power at which the ESS is this
      share of the valid rows (`weights.solve_exponent`). The law that they lead
      to then is a proximal one, between the rows' and the weighting's.

  Raises:
    ValueError: If shapes or options do not fit, or no row is known to be valid.
  """
  checks.check_finite("reward_temperature", reward_temperature, positive=True)
  if checks.is_concrete(rows.valid) and not np.asarray(rows.valid).any():
    raise ValueError(
      f"none of the {rows.valid.shape[0]} rows has a finite reward: there is "
      "nothing to fit. Check the reward on a few samples of the base policy."
    )
  if min_ess_fraction is not None:
    checks.check_range("min_ess_fraction", min_ess_fraction, 0, 1, ends="()")
  rewards = jnp.where(rows.valid[:, None], rows.rewards, 0)
  tilt = scalarise(rewards) / reward_temperature
  log_w = jnp.where(rows.valid, weighting(rows, tilt), -jnp.inf)
  if min_ess_fraction is None:
    return log_w
  exponent = weights.solve_exponent(log_w, min_ess_fraction)
  return weights.temper(log_w, exponent)


def unique_top(scalarise: Scalarise = total) -> Admit:
  """The best unique rows by reward, then by weight: the paper's buffer.

  The first copy of a duplicate stands, which is why older rows come first.
  """

  def admit(rows, log_weights, capacity):
    rewards = jnp.where(rows.valid[:, None], rows.rewards, 0)
    kept, valid = replay.unique_top(
      rows,
      rows.valid,
      (scalarise(rewards), log_weights),
      rows.samples,
      capacity,
    )
    return kept._replace(valid=valid)

  return admit


def pareto_front(rows: Rows, log_weights: jax.Array, capacity: int) -> Rows:
  """The unique non-dominated rows; of too many, those of largest sum.

  The plain sum, whatever objectives weigh elsewhere.
  """
  del log_weights
  kept, valid = replay.pareto_top(
    rows, rows.valid, rows.rewards, rows.samples, capacity
  )
  return kept._replace(valid=valid)


def summary(
  rows: Rows, log_weights: jax.Array, scalarise: Scalarise = total
) -> dict[str, jax.Array]:
  """What rows hold: `ess`, `num_rows`, `best`, `reward`, `independent`.

  `ess` is in rows. `best` is the largest scalarised reward (-1e9 where there
  are no rows), `reward` the mean one, `independent` the share of valid rows
  that are draws of the policy.
  """
  num = jnp.maximum(rows.valid.sum(), 1)
  rewards = jnp.where(rows.valid[:, None], rows.rewards, 0)
  sums = jnp.where(rows.valid, scalarise(rewards), 0)
  fits = jnp.any(log_weights > -jnp.inf)
  ess = weights.ess(jnp.where(fits, log_weights, 0.0))
  return {
    "ess": jnp.where(fits, ess, 0),
    "num_rows": rows.valid.sum(),
    "best": jnp.max(jnp.where(rows.valid, sums, -jnp.inf), initial=-1e9),
    "reward": sums.sum() / num,
    "independent": jnp.sum(rows.valid & (rows.step <= 0)) / num,
  }


def _finite(name, values):
  if not len(values):
    raise ValueError(f"{name} must hold a number for each objective, got ().")
  for value in values:
    checks.check_finite(name, value)
  return jnp.asarray(values, jnp.float32)


def _columns(rewards, num):
  checks.check_numbers("rewards", rewards)
  rewards = jnp.asarray(rewards, jnp.float32)
  if rewards.ndim == 1:
    rewards = rewards[:, None]
  checks.check_shape("rewards", rewards, (num, None))
  return rewards
