"""GDPO: group policy optimisation with the ELBO (arXiv:2510.08554).

A clipped policy gradient in which a sequence's log-likelihood is replaced by
an ELBO of few, well placed masks (`elbo.node_masks`). Advantages are rewards
less their group's mean.

The numbers that a ratio compares must come from the same masks: independent
ones raise the variance of the log-ratio a thousand times. So `loss` hands its
key to `elbo_fn` as it is, and `old_elbos` takes the very keys that the inner
steps will use: at equal parameters every ratio is one, up to rounding.

Differs from the released trainer, whose masks agree at the first node of the
first inner step only, and whose KL is a whole sequence's: its `exp` overflows
on long completions. Here the KL is that of a token.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import checks, weights
from jdiff.core.types import Params

ElboFn = Callable[..., jax.Array]
"""`(params, key, tokens [B, T], valid=None) -> elbo [B]`, in nats."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut to this range before `exp`: no overflow in float32."""


class Batch(NamedTuple):
  """Rollouts of one collection, or those of one inner step.

  Attributes:
    samples: `[B, T]` int32, whole canvases.
    advantages: `[B]`, `group_advantages(...)` flattened.
    lengths: `[B]`, valid tokens of each completion.
    elbo_old: `[B]`, under the collecting parameters, on this step's masks.
    elbo_ref: `[B]`, under the reference, on the same masks; or None.
    valid: `[B, T]` bool, or None: passed to `elbo_fn`.
  """

  samples: jax.Array
  advantages: jax.Array
  lengths: jax.Array
  elbo_old: jax.Array
  elbo_ref: jax.Array | None = None
  valid: jax.Array | None = None


def group_advantages(
  rewards: jax.Array,
  *,
  normalise_std: bool = False,
  leave_one_out: bool = False,
) -> jax.Array:
  """Rewards less the mean reward of their group.

  Args:
    rewards: `[Q, N]`, `N` rollouts of each of `Q` prompts.
    normalise_std: Divide by the group's standard deviation (`N - 1` in its
      denominator) plus 1e-4, as GRPO does. It gives groups that hardly differ
      the same say as others.
    leave_one_out: The mean of the other `N - 1` rewards: free of bias, and
      `N / (N - 1)` times the default.

  Returns:
    `[Q, N]` float32; exactly zero in a group whose rewards are all equal.

  Raises:
    ValueError: If a group has one member, or a known reward is not finite.
  """
  checks.check_shape("rewards", rewards, (None, None))
  checks.check_numbers("rewards", rewards)
  size = np.shape(rewards)[1]
  if size < 2:
    raise ValueError(
      "rewards must be [Q, N] with N >= 2, as one rollout has no advantage "
      f"over its group; got N={size}."
    )
  if checks.is_concrete(rewards):
    bad = np.count_nonzero(~np.isfinite(np.asarray(rewards)))
    if bad:
      raise ValueError(
        f"rewards must be finite, got {bad} of {np.size(rewards)} NaN or "
        "infinite."
      )
  rewards = jnp.asarray(rewards)
  wide = jnp.promote_types(rewards.dtype, jnp.float32)
  # Relative to the first, equal rewards are zeros and have a mean of zero;
  # the mean of equal numbers may be off by rounding.
  shifted = (rewards - rewards[:, :1]).astype(wide)
  advantages = shifted - shifted.mean(axis=1, keepdims=True)
  if leave_one_out:
    advantages = advantages * (size / (size - 1))
  if normalise_std:
    std = jnp.std(shifted, axis=1, keepdims=True, ddof=1)
    advantages = advantages / (std + 1e-4)
  return advantages


def old_elbos(
  params: Params,
  keys: jax.Array,
  samples: jax.Array,
  *,
  elbo_fn: ElboFn,
  valid: jax.Array | None = None,
) -> jax.Array:
  """The ELBO at fixed parameters on the masks of each inner step.

  Args:
    params: The collecting parameters, or the reference's.
    keys: `[mu]` keys, or `[mu, B]`: the ones that `loss` will be given.
    samples: `[B, T]` int32.
    elbo_fn: `(params, key, tokens, valid=None) -> [B]`.
    valid: Passed to `elbo_fn`.

  Returns:
    `[mu, B]`, no gradient. One inner step is in memory at a time.
  """
  checks.check_key(keys, "keys")
  if keys.ndim not in (1, 2):
    raise ValueError(
      f"keys must have shape [mu] or [mu, B], got {list(keys.shape)}."
    )
  params = lax.stop_gradient(params)
  elbo = lax.map(lambda key: elbo_fn(params, key, samples, valid=valid), keys)
  return lax.stop_gradient(elbo)


def loss(
  params: Params,
  key: jax.Array,
  batch: Batch,
  *,
  elbo_fn: ElboFn,
  clip: float = 0.2,
  ratio_norm: str = "length",
  kl_weight: float = 0.0,
  kl: str = "k3",
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The negated clipped objective of each rollout; minimise its mean.

  At a ratio of one the gradient is `-advantage * grad elbo / length`, whatever
  `ratio_norm`: the first inner step is REINFORCE on the ELBO.

  Args:
    params: Passed to `elbo_fn`; differentiable.
    key: One PRNG key, or `[B]`; consumed. The one `batch.elbo_old` was made
      with.
    batch: A `Batch`.
    elbo_fn: `(params, key, tokens, valid=None) -> [B]`, the same values for
      the same key and parameters.
    clip: The ratio's range is `[1 - clip, 1 + clip]`.
    ratio_norm: `"length"`: the ratio of geometric means over tokens, as in the
      released code. `"none"`: the ratio of sequence probabilities, its
      objective divided by the length, as in the paper; at some hundred tokens
      the clip binds at once.
    kl_weight: Weight of a penalty towards the reference.
    kl: Which estimate of `KL(p_theta || p_ref)`; see `kl_estimate`. It is made
      from log-ratios a token, under either `ratio_norm`.

  Returns:
    `(per_example [B], info)`: `ratio_mean`; `clip_fraction`, the share of
    rollouts to which the clip leaves no gradient; `ess_fraction` of the
    ratios; and `kl` where there is a reference. All scalars.

  Raises:
    ValueError: If shapes or options do not fit.
  """
  size = batch.samples.shape[0]
  for name in ("advantages", "lengths", "elbo_old"):
    checks.check_shape(f"batch.{name}", getattr(batch, name), (size,))
  if batch.elbo_ref is not None:
    checks.check_shape("batch.elbo_ref", batch.elbo_ref, (size,))
  check_options(clip, kl_weight, kl, batch.elbo_ref, "batch.elbo_ref")
  if ratio_norm not in ("length", "none"):
    raise ValueError(
      f"ratio_norm must be 'length' or 'none', got {ratio_norm!r}."
    )
  elbo = elbo_fn(params, key, batch.samples, valid=batch.valid)
  checks.check_shape("elbo_fn's answer", elbo, (size,))
  # A completion without a token has an ELBO of zero, not of 0 / 0.
  lengths = jnp.maximum(batch.lengths, 1).astype(elbo.dtype)
  log_ratio = elbo - lax.stop_gradient(batch.elbo_old)
  if ratio_norm == "length":
    log_ratio = log_ratio / lengths
  objective, info = surrogate(log_ratio, batch.advantages, clip)
  if ratio_norm == "none":
    objective = objective / lengths
  info["ess_fraction"] = weights.ess_fraction(lax.stop_gradient(log_ratio))
  per_example = -objective
  if batch.elbo_ref is not None:
    log_ref = (lax.stop_gradient(batch.elbo_ref) - elbo) / lengths
    penalty = kl_estimate(log_ref, kl)
    info["kl"] = lax.stop_gradient(penalty.mean())
    per_example = per_example + kl_weight * penalty
  return per_example, info


def surrogate(
  log_ratio: jax.Array, advantages: jax.Array, clip
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """PPO's `min(r A, clip(r) A)`, to be maximised.

  Args:
    log_ratio: `[...]`, cut to +-20.
    advantages: Of a shape that broadcasts with it; no gradient.
    clip: The ratio's range is `[1 - clip, 1 + clip]`.

  Returns:
    `(objective [...], info)`: `ratio_mean` and `clip_fraction`, scalars.
  """
  advantages = lax.stop_gradient(advantages)
  ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
  free = ratio * advantages
  clipped = jnp.clip(ratio, 1 - clip, 1 + clip) * advantages
  info = {
    "ratio_mean": ratio.mean(),
    "clip_fraction": jnp.mean(clipped < free, dtype=ratio.dtype),
  }
  return jnp.minimum(free, clipped), lax.stop_gradient(info)


def kl_estimate(log_ref_ratio: jax.Array, kind: str = "k3") -> jax.Array:
  """Schulman's estimates of `KL(p_theta || p_ref)` from samples of `p_theta`.

  With `d = log p_ref(x) - log p_theta(x)`: `k1 = -d`, unbiased, of either
  sign; `k2 = d^2 / 2`; `k3 = exp(d) - d - 1 >= 0`, unbiased. As penalties they
  are other things: on policy, with exact likelihoods, the mean gradient of k1
  is zero, that of k2 is the KL's, and that of k3 is that of
  `KL(p_ref || p_theta)`.

  Args:
    log_ref_ratio: `d [...]`; k3 cuts it to +-20.
    kind: `"k1"`, `"k2"` or `"k3"`.
  """
  if kind == "k1":
    return -log_ref_ratio
  if kind == "k2":
    return log_ref_ratio**2 / 2
  if kind == "k3":
    d = jnp.clip(log_ref_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
    # Near zero exp(d) - 1 would lose what is left after - d.
    return jnp.expm1(d) - d
  raise ValueError(f"kind must be 'k1', 'k2' or 'k3', got {kind!r}.")


def check_options(clip, kl_weight, kl: str, ref, ref_name: str) -> None:
  """Raises unless a clipped objective's options make sense together."""
  checks.check_finite("clip", clip, positive=True)
  checks.check_finite("kl_weight", kl_weight)
  if kl not in ("k1", "k2", "k3"):
    raise ValueError(f"kl must be 'k1', 'k2' or 'k3', got {kl!r}.")
  if ref is None and not (checks.is_concrete(kl_weight) and kl_weight == 0):
    raise ValueError(
      f"{ref_name} must be given where kl_weight is not 0, got None with "
      f"kl_weight={kl_weight}."
    )
