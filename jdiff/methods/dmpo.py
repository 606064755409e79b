"""DMPO: distribution matching policy optimisation (arXiv:2510.08233).

KL-regularised RL has the optimum `p* = p_ref exp(reward / reward_temperature)
/ Z`. DMPO fits it by cross-entropy: WDCE (`methods.wdce`) on the rollouts of
each prompt, with weights self-normalised within the prompt's group. A group's
weights are all positive, so a small group pushes even its bad samples up, the
more so the longer it is reused; a baseline takes that push away.

Differs from the released code: exponents are solved and means taken over whole
groups, never over a device's slice; the loss is in nats a sequence and averaged
over prompts, so that the learning rate depends on neither; `p_ref / p_rollout`
is cut to `exp(+-50)`. Left out: the modes with a zero or negative temperature
(weights without a target law), and the DDO loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jdiff.core import checks, weights
from jdiff.core.types import Params
from jdiff.methods import gdpo, wdce

BASELINES = ("none", "group", "model", "negative")

MAX_LOG_RATIO = 50.0
"""ELBO noise beyond it would let one sample own its group."""


class Batch(NamedTuple):
  """Weighted rollouts of `Q` prompts, `N` consecutive ones each; `B = Q N`.

  Attributes:
    samples: `[B, T]` int32, whole canvases.
    log_weights: `[B]` float32; `-inf` where the reward is missing.
    opposite: `[B]`, the weights of the law tilted the other way, with the
      same exponent. The negative baseline needs it.
    keep: `[B]` bool: False where the reward is missing, and in groups that
      are left out.
    elbo_old: `[B]`, under the collecting parameters, on the masks of this
      inner step (`gdpo.old_elbos`), or None. The model baseline needs it.
    valid: `[B, T]` bool, or None: passed to `elbo_fn`.
  """

  samples: jax.Array
  log_weights: jax.Array
  opposite: jax.Array
  keep: jax.Array
  elbo_old: jax.Array | None = None
  valid: jax.Array | None = None


def log_weights(
  log_ratio: jax.Array,
  rewards: jax.Array,
  *,
  reward_temperature: float,
  coefficient: float = 1.0,
  min_ess_fraction: float | None = None,
) -> jax.Array:
  """Unnormalised log-weights that turn a group of rollouts into the optimum.

  They are `c (log_ratio + rewards / reward_temperature)`. With exact ratios
  and `c = 1` WDCE converges to `p*`; with less, each collection aims at
  `p_rollout^(1 - c) (p_ref exp(r / reward_temperature))^c`, a proximal step.

  Args:
    log_ratio: `[Q, N]`, `log p_ref - log p_rollout` of the samples, cut to
      +-50: exact, or a difference of ELBOs on the same masks.
    rewards: `[Q, N]`. One that is not finite is missing: its weight is zero,
      and its group is normalised over the rest.
    reward_temperature: The tilt, positive.
    coefficient: `c`, in `[0, 1]`.
    min_ess_fraction: If given, each group lowers its own `c` until its ESS is
      at least this share of its rewards; see `weights.solve_exponent`.

  Returns:
    `[Q, N]` float32 without gradient, `-inf` where the reward is missing.

  Raises:
    ValueError: If shapes or options do not fit, or a group is known to have
      no reward at all. In a trace such a group's weights are all `-inf`.
  """
  exponents, ratio, tilt = _parts(
    log_ratio, rewards, reward_temperature, coefficient, min_ess_fraction
  )
  return _temper(ratio + tilt, exponents)


def make_batch(
  samples: jax.Array,
  log_ratio: jax.Array,
  rewards: jax.Array,
  *,
  reward_temperature: float,
  coefficient: float = 1.0,
  min_ess_fraction: float | None = None,
  skip_tied: bool = False,
  elbo_old: jax.Array | None = None,
  valid: jax.Array | None = None,
) -> Batch:
  """The `Batch` of one collection; options as in `log_weights`.

  Args:
    samples: `[B, T]` int32, the `N` rollouts of a prompt consecutive.
    log_ratio: `[Q, N]`.
    rewards: `[Q, N]`.
    reward_temperature: The tilt, positive.
    coefficient: The largest exponent.
    min_ess_fraction: The ESS that each group's exponent leaves, or None.
    skip_tied: Leave out groups whose rewards are all equal. They hold no
      information about the reward: with ELBO ratios their weights are noise,
      with exact ones they pull towards the reference.
    elbo_old: `[B]`, or None; see `Batch`.
    valid: `[B, T]` bool, or None.

  Returns:
    A `Batch`. A group without a single reward is left out of it.

  Raises:
    ValueError: As `log_weights`.
  """
  exponents, ratio, tilt = _parts(
    log_ratio, rewards, reward_temperature, coefficient, min_ess_fraction
  )
  checks.check_shape(
    "samples",
    samples,
    (ratio.size, None),
    f"rewards are {list(ratio.shape)}: one row a reward.",
  )
  present = tilt > -jnp.inf
  low = jnp.min(tilt, axis=1, where=present, initial=jnp.inf)
  high = jnp.max(tilt, axis=1, where=present, initial=-jnp.inf)
  usable = (low < high) if skip_tied else (low <= high)
  up = _temper(ratio + tilt, exponents)
  down = _temper(jnp.where(present, ratio - tilt, -jnp.inf), exponents)
  # A group without a reward is left out, and must not be NaN on its way.
  empty = ~present.any(axis=1, keepdims=True)
  return Batch(
    samples,
    jnp.where(empty, 0, up).reshape(-1),
    jnp.where(empty, 0, down).reshape(-1),
    (present & usable[:, None]).reshape(-1),
    elbo_old,
    valid,
  )


def baseline(
  kind: str,
  log_weights: jax.Array,
  *,
  opposite: jax.Array | None = None,
  elbo: jax.Array | None = None,
  elbo_old: jax.Array | None = None,
) -> jax.Array:
  """What is subtracted from the weights, in their units: mean one in a group.

  `"none"`: zero. `"group"`: the mean of the group's weights. `"model"`:
  `p_theta / p_old`, self-normalised; its mean gradient is zero off-policy too,
  and before the first inner step it is the group's. With all three `p*` is
  stationary, and with the last two every weight is zero there: no gradient is
  left, not even noise. They have a failure of their own in small groups: a good
  sample may be pushed down until no rollout draws it, and nothing brings it
  back. (27 sequences, 2 of them good, groups of 4 reused 8 times: on most
  problems none of 16 seeds lost one of the two, on some 3 did.)

  `"negative"`: the weights of the law tilted the other way, the released
  code's default. It is a reward maximiser and does not match `p*`: the update
  raises `E_{p*}[log p] - E_{p-*}[log p]`, which has no finite stationary
  point, and entropy collapses if it goes on. Stop early, or use less than its
  full strength.

  Args:
    kind: `"none"`, `"group"`, `"model"` or `"negative"`.
    log_weights: `[Q, N]`; `-inf` entries are missing and get zero.
    opposite: `[Q, N]`, log-weights of the opposite tilt; for `"negative"`.
    elbo: `[Q, N]`, under the present parameters; for `"model"`.
    elbo_old: `[Q, N]`, under the collecting ones, on the same masks; for
      `"model"`.

  Returns:
    `[Q, N]`, no gradient.

  Raises:
    ValueError: If the kind is unknown, or what it needs is not there.
  """
  checks.check_shape("log_weights", log_weights, (None, None))
  present = log_weights > -jnp.inf
  if kind == "none":
    return jnp.zeros(log_weights.shape)
  if kind == "group":
    log_share = jnp.zeros(log_weights.shape)
  elif kind == "model":
    if elbo is None or elbo_old is None:
      raise ValueError(
        "baseline 'model' needs elbo and elbo_old, on the same masks; got "
        f"{'no elbo' if elbo is None else 'no elbo_old'}."
      )
    for name, value in (("elbo", elbo), ("elbo_old", elbo_old)):
      checks.check_shape(name, value, log_weights.shape)
    log_share = elbo - elbo_old
  elif kind == "negative":
    if opposite is None:
      raise ValueError("baseline 'negative' needs opposite, got None.")
    checks.check_shape("opposite", opposite, log_weights.shape)
    log_share = opposite
  else:
    raise ValueError(
      f"the kind of baseline must be one of {', '.join(BASELINES)}, got "
      f"{kind!r}."
    )
  log_share = jnp.where(present, lax.stop_gradient(log_share), -jnp.inf)
  return jax.vmap(weights.relative)(log_share)


def loss(
  params: Params,
  key: jax.Array,
  batch: Batch,
  *,
  elbo_fn: gdpo.ElboFn,
  group_size: int,
  baseline: str = "group",
  strength: float = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """WDCE of each rollout, with baseline; minimise its mean.

  The mean over examples is the mean over prompts of `sum_j (w_j - strength
  b_j) nll_j`, with `w` and `b` of sum one in each group.

  Args:
    params: Passed to `elbo_fn`; differentiable.
    key: One PRNG key, or `[B]`; consumed. For the model baseline the one that
      `batch.elbo_old` was made with.
    batch: `make_batch(...)`.
    elbo_fn: `(params, key, tokens, valid=None) -> [B]`.
    group_size: `N`, rollouts a prompt.
    baseline: The kind; see `dmpo.baseline`.
    strength: Scales the baseline; at less than one every weight of an average
      sample is positive.

  Returns:
    `(per_example [B], info)`: `ess_fraction`, mean over groups; `max_weight`,
    the largest share of a group that one sample has, mean over groups;
    `negative_fraction` of samples pushed down; `kept_fraction` of samples that
    were not left out. All scalars.

  Raises:
    ValueError: If shapes or options do not fit.
  """
  size = batch.samples.shape[0]
  for name in ("log_weights", "opposite", "keep"):
    checks.check_shape(f"batch.{name}", getattr(batch, name), (size,))
  checks.check_finite("strength", strength)

  def group(name, values):
    return wdce.in_groups(name, values, group_size)

  log_w = group("batch.log_weights", batch.log_weights)
  elbo = elbo_fn(params, key, batch.samples, valid=batch.valid)
  checks.check_shape("elbo_fn's answer", elbo, (size,))
  old = batch.elbo_old
  centre = _baseline(
    baseline,
    log_w,
    opposite=group("batch.opposite", batch.opposite),
    elbo=group("elbo_fn's answer", elbo),
    elbo_old=None if old is None else group("batch.elbo_old", old),
  )
  factors = wdce.coefficients(
    batch.log_weights,
    group_size=group_size,
    baseline=strength * centre.reshape(-1),
  )
  factors = jnp.where(batch.keep, factors, 0)
  info = {
    "ess_fraction": jax.vmap(weights.ess_fraction)(log_w).mean(),
    "max_weight": jax.vmap(weights.normalise)(log_w).max(axis=1).mean(),
    "negative_fraction": jnp.mean(factors < 0, dtype=jnp.float32),
    "kept_fraction": jnp.mean(batch.keep, dtype=jnp.float32),
  }
  return -factors * elbo, info


# `loss` has an argument of that name, as `wdce` has.
_baseline = baseline


def exact_target(
  log_ref: jax.Array, rewards: jax.Array, *, reward_temperature: float
) -> jax.Array:
  """`log p*` of every state of an enumerated space: `[S]`, normalised.

  Args:
    log_ref: `[S]`, normalised or not.
    rewards: `[S]`.
    reward_temperature: The tilt, positive.
  """
  checks.check_finite("reward_temperature", reward_temperature, positive=True)
  checks.check_shape("rewards", rewards, np.shape(log_ref))
  return jax.nn.log_softmax(log_ref + rewards / reward_temperature)


def _parts(log_ratio, rewards, temperature, coefficient, min_ess_fraction):
  """Exponents `[Q]`, cut ratios and `rewards / temperature`, `[Q, N]`."""
  checks.check_finite("reward_temperature", temperature, positive=True)
  checks.check_range("coefficient", coefficient, 0, 1)
  if min_ess_fraction is not None:
    checks.check_range("min_ess_fraction", min_ess_fraction, 0, 1, ends="()")
  checks.check_shape("rewards", rewards, (None, None))
  checks.check_shape("log_ratio", log_ratio, np.shape(rewards))
  if np.shape(rewards)[1] < 2:
    raise ValueError(
      "rewards must be [Q, N] with N >= 2, as the weight of a group of one "
      f"says nothing; got N={np.shape(rewards)[1]}."
    )
  if checks.is_concrete(rewards):
    missing = ~np.isfinite(np.asarray(rewards)).any(axis=1)
    if missing.any():
      raise ValueError(
        "rewards must hold a finite one in every group, got none in group "
        f"{int(np.argmax(missing))}."
      )
  rewards = jnp.asarray(rewards)
  wide = jnp.promote_types(rewards.dtype, jnp.float32)
  rewards = lax.stop_gradient(rewards.astype(wide))
  tilt = jnp.where(jnp.isfinite(rewards), rewards / temperature, -jnp.inf)
  ratio = lax.stop_gradient(jnp.asarray(log_ratio))
  ratio = jnp.clip(ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
  exponents = jnp.full((rewards.shape[0],), coefficient, wide)
  if min_ess_fraction is not None:
    full = weights.temper(ratio + tilt, coefficient)
    solved = jax.vmap(weights.solve_exponent, in_axes=(0, None))
    exponents = exponents * solved(full, min_ess_fraction)
  return exponents, ratio, tilt


_temper = jax.vmap(weights.temper)
