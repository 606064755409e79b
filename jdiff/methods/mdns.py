"""MDNS: masked diffusion neural samplers (arXiv:2508.10684).

A masked process is taught to sample `exp(log_prob) / Z` from `log_prob` alone
by matching path measures. `W = log_ratio + log_prob + L log V` is the log
importance weight of a rollout; `E[exp(W)] = Z` for every network. Four losses
make `W` constant: RERF, LV and CE differentiate the path's log-probability,
WDCE replaces it by a denoising estimate.

Differs from the released code: `W` carries the whole `L log V`, so its
normaliser is `Z`; any order law that ignores the network may be used; CE may
subtract its control variate. Left out: LEAPS-style continuous-time variants.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import checks, replay, weights
from jdiff.core import keys as keys_lib
from jdiff.core import orders as orders_lib
from jdiff.core.types import LogitsFn, Method, Params, Rollout, Target
from jdiff.ctmc import flips, masks, paths, reveal
from jdiff.methods import wdce as wdce_lib
from jdiff.schedules import masking

PathLoss = Callable[..., jax.Array]
"""`(log_weights [B], path_weights [B], axis_name) -> per_example [B]`."""


class Batch(NamedTuple):
  """Weighted terminal samples.

  Attributes:
    samples: `[B, L]` int32.
    log_weights: `[B]` float32, `W` at collection.
    order: `[B, G]` int32, or None for the uniform reference.
    log_policy: `[B]` float32, the path's log-probability at collection, or
      None: losses on the path then take the batch to be on-policy.
  """

  samples: jax.Array
  log_weights: jax.Array
  order: jax.Array | None
  log_policy: jax.Array | None = None


def reward_fn(target: Target) -> Callable[[jax.Array], jax.Array]:
  """`x -> log_prob + L log V`: log target over the reference, times `Z`."""
  length, num_tokens = target.discrete()
  base = length * jnp.log(float(num_tokens))
  return lambda x: target.log_prob(x) + base


def log_weights(rollout: Rollout, target: Target) -> jax.Array:
  """`W [N]`: `log_ratio` and the reward, with `E[exp(W)] = Z`."""
  if rollout.log_ratio is None:
    raise ValueError("the rollout has no exact log_ratio, got None.")
  return rollout.log_ratio + jax.vmap(reward_fn(target))(rollout.samples)


def rerf(log_weights, path_weights, axis_name=None) -> jax.Array:
  """Relative-entropy loss with a mean baseline: `(W - mean W) W_theta`.

  On policy its gradient is that of `KL(P_theta || P*)`, times `(B-1)/B`.
  """
  _check_weights(log_weights, path_weights)
  log_weights = lax.stop_gradient(log_weights)
  advantage = log_weights - weights.elbo(log_weights, axis_name)
  return advantage * path_weights


def log_variance(log_weights, path_weights, axis_name=None) -> jax.Array:
  """Log-variance loss: `(W_theta - mean W_theta)^2`.

  Right off-policy too, where the batch holds `log_policy` of its collection and
  the path is not subsampled.
  """
  _check_weights(log_weights, path_weights)
  return (path_weights - weights.elbo(path_weights, axis_name)) ** 2


def cross_entropy(log_weights, path_weights, axis_name=None) -> jax.Array:
  """Cross-entropy `B softmax(W) W_theta`: `KL(P* || P_theta) + const`."""
  _check_weights(log_weights, path_weights)
  share = weights.relative(lax.stop_gradient(log_weights), axis_name)
  return share * path_weights


def cross_entropy_cv(log_weights, path_weights, axis_name=None) -> jax.Array:
  """`cross_entropy` with weights `softmax(W) - 1/B`.

  The control variate is free, and right only on fresh on-policy samples with
  the path's actual order, where `E[grad log p] = 0`.
  """
  return cross_entropy(log_weights, path_weights, axis_name) - path_weights


def _check_weights(log_weights, path_weights):
  checks.check_numbers("path_weights", path_weights)
  checks.check_shape("path_weights", path_weights, (None,))
  checks.check_numbers("log_weights", log_weights)
  checks.check_shape("log_weights", log_weights, np.shape(path_weights))


def collector(
  target: Target,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  num_samples: int,
  order="random",
  num_steps: int | None = None,
) -> Callable[[Params, jax.Array], Batch]:
  """`collect(params, key) -> Batch` from the masked process; no gradient."""
  length, _ = target.discrete()
  checks.check_int("num_samples", num_samples)
  law = orders_lib.as_order(order, range(length), num_steps)

  def collect(params, key):
    rollout = reveal.rollout(
      lax.stop_gradient(params),
      key,
      logits_fn=logits_fn,
      num_samples=num_samples,
      length=length,
      mask_id=mask_id,
      order=law,
    )
    log_w = log_weights(rollout, target)
    return Batch(rollout.samples, log_w, rollout.order, rollout.log_policy)

  return collect


def path_method(
  target: Target,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  num_samples: int,
  loss: PathLoss = rerf,
  order="random",
  num_steps: int | None = None,
  causal: bool = False,
  num_terms: int | None = None,
  max_log_weight: float | None = None,
  axis_name: weights.AxisName = None,
) -> Method:
  """MDNS with a loss on the path: `rerf`, `log_variance`, `cross_entropy`.

  Args:
    target: A discrete target.
    logits_fn: A `LogitsFn`.
    mask_id: The mask token.
    num_samples: Rollouts a batch.
    loss: The loss on `(W, W_theta)`.
    order: Order law of the rollouts.
    num_steps: Steps of a random order.
    causal: See `ctmc.path_log_prob`.
    num_terms: Terms of the path's log-probability to differentiate; None
      takes all.
    max_log_weight: Clips `W - mean W` to this range (a robust start at the
      price of a bias while it binds); None leaves `W` as it is.
    axis_name: Mesh axis of a sharded batch, inside `shard_map`. Each shard
      must then `collect` with keys of its own (`keys.per_example` and
      `start`), or all draw the same samples.

  Returns:
    A `Method`; `info` has `log_weights` statistics of the batch.

  Raises:
    ValueError: If the target is not discrete.
  """
  length, _ = target.discrete()
  law = orders_lib.as_order(order, range(length), num_steps)
  if num_terms is not None:
    checks.check_int("num_terms", num_terms)
  if max_log_weight is not None:
    checks.check_finite("max_log_weight", max_log_weight, positive=True)
  collect = collector(
    target,
    logits_fn=logits_fn,
    mask_id=mask_id,
    num_samples=num_samples,
    order=law,
  )

  def loss_fn(params, key, batch):
    log_policy = paths.path_log_prob(
      params,
      batch.samples,
      batch.order,
      law.num_revealed,
      logits_fn=logits_fn,
      mask_id=mask_id,
      causal=causal,
      key=key if num_terms is not None else None,
      num_terms=num_terms,
    )
    log_w = lax.stop_gradient(batch.log_weights)
    info = summary(log_w, axis_name)
    if max_log_weight is not None:
      mean = weights.elbo(log_w, axis_name)
      log_w = mean + jnp.clip(log_w - mean, -max_log_weight, max_log_weight)
    # W_theta: W at the collecting parameters, moved by the change since. A
    # subsampled path has noise in place of that change; only its gradient is
    # of use, and the batch must be on-policy.
    base = lax.stop_gradient(log_policy)
    if num_terms is None and batch.log_policy is not None:
      base = batch.log_policy
    path_weights = log_w - (log_policy - base)
    return loss(log_w, path_weights, axis_name), info

  return Method(collect, loss_fn)


def wdce_method(
  target: Target,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  num_samples: int,
  order="random",
  num_steps: int | None = None,
  draw_masks: masks.DrawMasks | None = None,
  axis_name: weights.AxisName = None,
) -> Method:
  """MDNS with WDCE; arguments as in `path_method` and `wdce.wdce`."""
  collect = collector(
    target,
    logits_fn=logits_fn,
    mask_id=mask_id,
    num_samples=num_samples,
    order=order,
    num_steps=num_steps,
  )

  def loss_fn(params, key, batch):
    per_example, info = wdce_lib.wdce(
      params,
      key,
      batch.samples,
      batch.log_weights,
      logits_fn=logits_fn,
      mask_id=mask_id,
      draw_masks=draw_masks,
      axis_name=axis_name,
    )
    return per_example, summary(batch.log_weights, axis_name) | info

  return Method(collect, loss_fn)


def udns_method(
  target: Target,
  *,
  logits_fn: LogitsFn,
  num_samples: int,
  num_steps: int,
  schedule: masking.MaskSchedule | None = None,
  min_time: float = 1e-2,
  axis_name: weights.AxisName = None,
) -> Method:
  """UDNS: the same interface with a uniform instead of a masked reference.

  The network sees noisy tokens and `t`, and is fitted by weighted
  cross-entropy on the clean tokens.
  """
  length, num_tokens = target.discrete()
  checks.check_int("num_samples", num_samples)
  checks.check_int("num_steps", num_steps)
  checks.check_range("min_time", min_time, 0, 1)
  schedule = masking.linear() if schedule is None else schedule

  def collect(params, key):
    rollout = flips.uniform_rollout(
      lax.stop_gradient(params),
      key,
      logits_fn=logits_fn,
      num_samples=num_samples,
      length=length,
      num_tokens=num_tokens,
      num_steps=num_steps,
      schedule=schedule,
    )
    return Batch(rollout.samples, log_weights(rollout, target), None)

  def loss_fn(params, key, batch):
    keys = keys_lib.per_example(key, batch.samples.shape[0])
    t = jax.vmap(
      lambda k: jax.random.uniform(jax.random.fold_in(k, 0), minval=min_time)
    )(keys)
    noisy = flips.corrupt_uniform(
      keys_lib.fold(keys, 1),
      batch.samples,
      schedule.mask_prob(t),
      num_tokens=num_tokens,
    )
    log_probs = reveal.log_softmax(logits_fn(params, noisy, t))
    nll = -reveal.pick(log_probs, batch.samples).sum(axis=1)
    share = weights.relative(batch.log_weights, axis_name)
    return share * nll, summary(batch.log_weights, axis_name)

  return Method(collect, loss_fn)


def eubo(
  params: Params,
  key: jax.Array,
  samples: jax.Array,
  target: Target,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  order="random",
  num_steps: int | None = None,
  causal: bool = False,
) -> jax.Array:
  """`W [N]` on true samples of the target, in orders drawn from the law.

  Its mean is at least `log Z` in expectation: the one diagnostic that sees a
  mode which the sampler has lost.
  """
  length, _ = target.discrete()
  checks.check_tokens("samples", samples)
  checks.check_shape("samples", samples, (None, length))
  law = orders_lib.as_order(order, range(length), num_steps)
  keys = keys_lib.per_example(key, samples.shape[0])
  log_policy = paths.path_log_prob(
    params,
    samples,
    jax.vmap(law.draw)(keys),
    law.num_revealed,
    logits_fn=logits_fn,
    mask_id=mask_id,
    causal=causal,
  )
  return jax.vmap(target.log_prob)(samples) - log_policy


def refresh(
  collect: Callable[[Params, jax.Array], Batch],
  params: Params,
  key: jax.Array,
  buffer: replay.ReplayState,
  is_due: jax.Array,
) -> replay.ReplayState:
  """Adds a fresh batch to the buffer where `is_due`, else returns it."""

  def add(buffer):
    batch = collect(params, key)._replace(order=None, log_policy=None)
    return replay.add(buffer, batch)

  return lax.cond(is_due, add, lambda b: b, buffer)


def draw_weighted(
  key: jax.Array, buffer: replay.ReplayState, num_samples: int
) -> Batch:
  """Resamples the buffer by its weights: a batch with `log_weights = 0`."""
  data: Any = buffer.data
  log_w = jnp.where(replay.valid(buffer), data.log_weights, -jnp.inf)
  samples = wdce_lib.draw(key, data.samples, log_w, num_samples)
  return Batch(samples, jnp.zeros(num_samples), None)


def buffer_summary(buffer: replay.ReplayState) -> dict[str, jax.Array]:
  """`summary` of the entries that a buffer holds so far."""
  data: Any = buffer.data
  valid, size = replay.valid(buffer), replay.size(buffer)
  log_w = jnp.where(valid, data.log_weights, -jnp.inf)
  return {
    "elbo": jnp.sum(jnp.where(valid, data.log_weights, 0)) / size,
    "log_z": weights.log_z(log_w) + jnp.log(valid.size / size),
    "ess_fraction": weights.ess(log_w) / size,
  }


def summary(
  log_weights: jax.Array, axis_name: weights.AxisName = None
) -> dict[str, jax.Array]:
  """`elbo`, `log_z` and `ess_fraction` of one batch of log-weights."""
  return {
    "elbo": weights.elbo(log_weights, axis_name),
    "log_z": weights.log_z(log_weights, axis_name),
    "ess_fraction": weights.ess_fraction(log_weights, axis_name),
  }
