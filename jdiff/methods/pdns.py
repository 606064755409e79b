"""PDNS: proximal diffusion neural samplers (arXiv:2510.03824).

A sampler of `exp(log_prob) / Z` is reached from its reference in stages, each
a weighted denoising regression on a buffer of the sampler's own draws. With
`W = log_ratio + reward` the log-weight of a path (`E[exp(W)] = Z`), `remaining`
`= lam` falls from 1, the reference, to 0, the target; the law after a stage has
the data end `target^(1 - lam) reference^lam`. A stage goes as far as its
weights stay even, so that no mode is lost to a few lucky paths.

One loop serves masked and Gaussian processes: a `Sampler` draws a `Buffer`, a
`Rule` turns it into weights, and the sampler's loss is fitted to them.

Differs from the released code: steps are solved by bisection on the device
instead of a bounded optimiser with a fallback; `anchored` lets `lam` fall only
as far as two buffers in a row allow; path log-ratios of Gaussian processes are
those of exact kernels, never of a noiseless last step.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jdiff import sde
from jdiff.core import checks, orders, weights
from jdiff.core.types import LogitsFn, Params, Rollout, ScoreFn, Target
from jdiff.ctmc import masks, reveal
from jdiff.methods import flow_matching, mdns, wdce
from jdiff.schedules import grids
from jdiff.sde import paths


class Buffer(NamedTuple):
  """Terminal samples of one stage; no path is kept.

  Attributes:
    samples: `[N, ...]`.
    log_ratio: `[N]` float32, log dP_ref/dP_policy of the path.
    reward: `[N]` float32, log d target / d reference at the sample, times Z.
  """

  samples: jax.Array
  log_ratio: jax.Array
  reward: jax.Array


class Progress(NamedTuple):
  """How far the stages have come; scalars.

  Attributes:
    remaining: float32, `lam`: 1 is the reference, 0 the target.
    allowed: float32, the `lam` that the last buffer would have allowed.
    exponent: float32, the last stage's `g` in `(0, 1]`: what it took of the
      way that was left.
    stage: int32, stages begun.
  """

  remaining: jax.Array
  allowed: jax.Array
  exponent: jax.Array
  stage: jax.Array


class Rule(Protocol):
  """What a stage aims at.

  `(progress, buffer, axis_name=None) -> (progress, log_weights [N])`; of a
  buffer drawn by the policy before it.
  """

  def __call__(
    self,
    progress: Progress,
    buffer: Buffer,
    axis_name: weights.AxisName = None,
  ) -> tuple[Progress, jax.Array]: ...


class Sampler(NamedTuple):
  """A process that can be drawn from, weighed and fitted.

  Attributes:
    collect: `(params, key, num_samples) -> Buffer`; no gradient.
    loss: `(params, key, samples [B, ...], log_weights [B]) -> (per_example
      [B], info)`.
    reward: `x -> ` reward of one sample; `-inf` where the density is zero.
    eubo: `(params, key, samples [N, ...]) -> [N]` log-weights of paths of the
      best process that end in samples of the target; their mean is at least
      `log Z`.
  """

  collect: Callable[..., Buffer]
  loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
  reward: Callable[[jax.Array], jax.Array]
  eubo: Callable[..., jax.Array]


def init() -> Progress:
  """Before the first stage: the sampler is its reference."""
  one, zero = jnp.float32(1), jnp.float32(0)
  return Progress(one, one, zero, jnp.int32(0))


def log_weights(buffer: Buffer) -> jax.Array:
  """`W [N]`, to the target itself; `E[exp(W)] = Z`. See `stage_log_weights`."""
  return stage_log_weights(buffer, 0.0)


def stage_log_weights(buffer: Buffer, remaining: ArrayLike) -> jax.Array:
  """Log-weights `[N]` to the law `target^(1 - lam) reference^lam`.

  `E[exp]` is its normaliser for every policy: of an Ising model `Z` at `1 -
  lam` times its `beta`, over `2^(lam L)`. Entries that are not finite, such as
  of energies that overflow, weigh nothing.
  """
  checks.check_numbers("remaining", remaining)
  tilt = weights.temper(buffer.reward, 1 - jnp.asarray(remaining))
  log_w = buffer.log_ratio + tilt
  return jnp.where(jnp.isfinite(log_w), log_w, -jnp.inf)


def anchored(
  *,
  min_fraction: float | None = None,
  max_kl: float | None = None,
  confirm: bool = True,
) -> Rule:
  """Aims at `target^(1 - lam) reference^lam` itself, whatever came before.

  `log_ratio + (1 - lam) reward`, with the smallest `lam` whose weights are even
  enough: errors of earlier stages do not add up, and a policy that lags behind
  halts the descent. The paper's "v1", for masked processes.

  Args:
    min_fraction: The ESS that a stage's weights keep, as a share in `(0, 1)`.
    max_kl: The KL from the policy to the stage's law instead, in nats.
    confirm: Let `lam` fall only as far as two buffers in a row allow: a single
      lucky one can claim that all is done. A policy that fits every stage at
      once then falls at every second one.
  """
  _check_criterion(min_fraction, max_kl)

  def rule(progress, buffer, axis_name=None):
    buffer = _finite(buffer)
    scale = weights.solve_exponent(
      buffer.reward,
      min_fraction,
      axis_name,
      max_kl=max_kl,
      offset=buffer.log_ratio,
      low=1 - progress.remaining,
    )
    allowed = 1 - scale
    remaining = allowed
    if confirm:
      remaining = jnp.maximum(allowed, progress.allowed)
    progress = _advance(progress, remaining, allowed)
    return progress, stage_log_weights(buffer, progress.remaining)

  return rule


def relative(
  *,
  min_fraction: float | None = None,
  max_kl: float | None = None,
  min_remaining: float = 0.05,
) -> Rule:
  """Aims at a proximal step from the policy: `policy^(1 - g) target^g`.

  `g W`, with the largest `g` whose weights are even enough. `lam` is a product
  of `1 - g` and says where exact stages would be; an error of one stage is left
  by a share `1 - g` to the next. The paper's "v2", for Gaussian processes.

  Args:
    min_fraction: The ESS that a stage's weights keep, as a share in `(0, 1)`.
    max_kl: The KL from the policy to the stage's law instead, in nats.
    min_remaining: The `lam` below which `g` is 1, at this stage and after it.
      A smaller `g` would never end.
  """
  _check_criterion(min_fraction, max_kl)
  checks.check_range("min_remaining", min_remaining, 0, 1, ends="[)")

  def rule(progress, buffer, axis_name=None):
    buffer = _finite(buffer)
    log_w = log_weights(buffer)
    exponent = weights.solve_exponent(
      log_w, min_fraction, axis_name, max_kl=max_kl
    )
    exponent = jnp.where(progress.remaining <= min_remaining, 1.0, exponent)
    remaining = progress.remaining * (1 - exponent)
    progress = _advance(progress, remaining, remaining)
    progress = progress._replace(exponent=exponent.astype(jnp.float32))
    return progress, weights.temper(log_w, exponent)

  return rule


def scheduled(remaining: ArrayLike) -> Rule:
  """`anchored` at given values of `lam`, whatever the weights.

  Args:
    remaining: `[K]` in `[0, 1]`, falling, one a stage; the last one stays.
      `[0.0]` is plain WDCE, which takes the whole way at once, and
      `linspace(1, 0, K)` a linear annealing.

  Raises:
    ValueError: If the values do not fall within `[0, 1]`.
  """
  checks.check_numbers("remaining", remaining)
  values = jnp.asarray(remaining, jnp.float32)
  checks.check_shape("remaining", values, (None,))
  if checks.is_concrete(values):
    known = jax.device_get(values)
    falls = (known[1:] <= known[:-1]).all()
    if not (known.size and falls and known[0] <= 1 and known[-1] >= 0):
      raise ValueError(
        f"remaining must fall from at most 1 to at least 0, got {known}."
      )

  def rule(progress, buffer, axis_name=None):
    del axis_name
    now = values[jnp.minimum(progress.stage, values.size - 1)]
    progress = _advance(progress, now, now)
    return progress, stage_log_weights(buffer, now)

  return rule


def masked(
  target: Target,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  order="random",
  num_steps: int | None = None,
  draw_masks: masks.DrawMasks | None = None,
  causal: bool = False,
  axis_name: weights.AxisName = None,
) -> Sampler:
  """The masked process, with the uniform law for its reference.

  Args:
    target: A discrete target.
    logits_fn: A `LogitsFn`.
    mask_id: The mask token.
    order: Order law of the rollouts.
    num_steps: Steps of a random order.
    draw_masks: Mask law of the loss, see `wdce.wdce`.
    causal: See `ctmc.path_log_prob`.
    axis_name: Mesh axis of sharded batches, inside `shard_map`.
  """
  length, _ = target.discrete()
  order = orders.as_order(order, range(length), num_steps)
  reward = mdns.reward_fn(target)

  def rollout(params, key, num_samples):
    return reveal.rollout(
      lax.stop_gradient(params),
      key,
      logits_fn=logits_fn,
      num_samples=num_samples,
      length=length,
      mask_id=mask_id,
      order=order,
    )

  def loss(params, key, samples, log_weights):
    return wdce.wdce(
      params,
      key,
      samples,
      log_weights,
      logits_fn=logits_fn,
      mask_id=mask_id,
      draw_masks=draw_masks,
      axis_name=axis_name,
    )

  def eubo(params, key, samples):
    return mdns.eubo(
      params,
      key,
      samples,
      target,
      logits_fn=logits_fn,
      mask_id=mask_id,
      order=order,
      causal=causal,
    )

  return Sampler(_collector(rollout, reward), loss, reward, eubo)


def gaussian(
  target: Target,
  *,
  residual_fn: ScoreFn,
  reference: sde.Reference,
  num_steps: int | None = None,
  times: ArrayLike | None = None,
  spread: Callable[[Params], jax.Array] | None = None,
  draw_time: flow_matching.DrawTime = wdce.draw_time,
  axis_name: weights.AxisName = None,
) -> Sampler:
  """A controlled Gaussian process.

  Args:
    target: A continuous target, of particles if the reference is centred.
      `sde.check_tails` looks whether its weights can have a variance.
    residual_fn: The network, a `ScoreFn` with answers of order one; see
      `sde.rollout`. Zero is the reference.
    reference: The process that is controlled.
    num_steps: Steps `K` of rollouts, uniform from 1 to 0.
    times: `[K + 1]` decreasing times instead.
    spread: `params -> [K]`, see `sde.rollout`; ones if None.
    draw_time: The losses' law of `t`; one that follows `times` is best.
    axis_name: Mesh axis of sharded batches, inside `shard_map`.

  Raises:
    ValueError: If the target and the reference do not fit.
  """
  shape = target.shape
  if reference.centred != (target.particles is not None):
    raise ValueError(
      "reference.centred must be set for a target of particles, and for no "
      f"other, got {reference.centred} for particles={target.particles}."
    )
  paths.check_ends_at_data(grids.as_grid(num_steps, times))

  def spread_of(params):
    return None if spread is None else lax.stop_gradient(spread(params))

  def rollout(params, key, num_samples):
    return sde.rollout(
      lax.stop_gradient(params),
      key,
      residual_fn=residual_fn,
      reference=reference,
      num_samples=num_samples,
      shape=shape,
      num_steps=num_steps,
      times=times,
      spread=spread_of(params),
    )

  def reward(x):
    return target.log_prob(x) - reference.log_prob(x)

  def loss(params, key, samples, log_weights):
    return wdce.bridge_wdce(
      params,
      key,
      samples,
      log_weights,
      residual_fn=residual_fn,
      reference=reference,
      draw_time=draw_time,
      axis_name=axis_name,
    )

  def eubo(params, key, samples):
    path = sde.reference_path(
      key, samples, reference=reference, num_steps=num_steps, times=times
    )
    log_ratio = sde.path_log_ratio(
      params,
      path,
      residual_fn=residual_fn,
      reference=reference,
      times=times,
      spread=spread_of(params),
    )
    return log_ratio + jax.vmap(reward)(samples)

  return Sampler(_collector(rollout, reward), loss, reward, eubo)


def weigh(rollout: Rollout, reward: Callable[[jax.Array], jax.Array]) -> Buffer:
  """A buffer of a rollout's samples; the rollout must have a `log_ratio`."""
  if rollout.log_ratio is None:
    raise ValueError("the rollout has no exact log_ratio, got None.")
  rewards = jax.vmap(reward)(rollout.samples)
  return Buffer(rollout.samples, rollout.log_ratio, rewards)


def draw(
  key: jax.Array, buffer: Buffer, log_weights: jax.Array, num_samples: int
) -> jax.Array:
  """Resamples a buffer by its weights: samples `[B, ...]` of weight one.

  Of the whole buffer, for jit on global arrays; not for `shard_map`.
  """
  checks.check_shape("log_weights", log_weights, (None,))
  checks.check_int("num_samples", num_samples)
  num = log_weights.shape[0]
  if num_samples > num:
    raise ValueError(
      f"a buffer of {num} samples must be at least as large as the batch of "
      f"num_samples={num_samples} that is drawn from it."
    )
  return wdce.draw(key, buffer.samples, log_weights, num_samples)


def summary(
  buffer: Buffer,
  progress: Progress,
  log_w: jax.Array,
  axis_name: weights.AxisName = None,
) -> dict[str, jax.Array]:
  """Where a stage stands, from its buffer.

  Returns:
    Scalars: `remaining` and `exponent` of the progress; `stage_ess_fraction` of
    the weights that are fitted; `stage_log_z`, the normaliser of the law
    `target^(1 - lam) reference^lam`; `log_z`, `elbo` and `ess_fraction` of the
    target itself; `invalid`, the share of samples without a finite weight.
  """
  total = log_weights(buffer)
  finite = total > -jnp.inf
  stage = stage_log_weights(buffer, progress.remaining)
  return {
    "remaining": progress.remaining,
    "exponent": progress.exponent,
    "stage_ess_fraction": weights.ess_fraction(log_w, axis_name),
    "stage_log_z": weights.log_z(stage, axis_name),
    "stage_log_z_se": weights.log_z_se(stage, axis_name),
    **mdns.summary(total, axis_name),
    "elbo": weights.elbo(jnp.where(finite, total, 0), axis_name)
    / weights.elbo(finite.astype(total.dtype), axis_name),
    "invalid": 1 - weights.elbo(finite.astype(total.dtype), axis_name),
  }


def _collector(rollout, reward):
  def collect(params, key, num_samples):
    return weigh(rollout(params, key, num_samples), reward)

  return collect


def _advance(progress, remaining, allowed):
  remaining = jnp.minimum(remaining, progress.remaining).astype(jnp.float32)
  done = progress.remaining == 0
  before = jnp.where(done, 1.0, progress.remaining)
  return Progress(
    remaining,
    jnp.asarray(allowed, jnp.float32),
    jnp.where(done, 1.0, 1 - remaining / before).astype(jnp.float32),
    progress.stage + 1,
  )


def _check_criterion(min_fraction: float | None, max_kl: float | None) -> None:
  """Says at factory time what `weights.solve_exponent` would while tracing."""
  weights.solve_exponent(jnp.zeros(1), min_fraction, max_kl=max_kl, num_steps=1)


def _finite(buffer: Buffer) -> Buffer:
  """Samples whose weight is not finite get a reward of `-inf`."""
  valid = jnp.isfinite(buffer.log_ratio + buffer.reward)
  return buffer._replace(
    log_ratio=jnp.where(valid, buffer.log_ratio, 0),
    reward=jnp.where(valid, buffer.reward, -jnp.inf),
  )
