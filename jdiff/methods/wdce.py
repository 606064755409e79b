"""Weighted denoising cross-entropy (WDCE), and its form for Gaussian noise.

Fits a network to the reward-tilted law from terminal samples and one
log-weight each; no trajectory is kept. MDNS (arXiv:2508.10684), PDNS, DMPO and
TR2-D2 share it.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jdiff import sde
from jdiff.core import checks, weights
from jdiff.core import keys as keys_lib
from jdiff.core.types import LogitsFn, Params, ScoreFn
from jdiff.ctmc import masks
from jdiff.elbo import denoising, token_probs
from jdiff.methods import flow_matching
from jdiff.sde import paths

draw_time = flow_matching.within(flow_matching.uniform, 1e-3)
"""Times of `bridge_wdce` by default: there is no residual at 0."""


def wdce(
  params: Params,
  key: jax.Array,
  samples: jax.Array,
  log_weights: jax.Array,
  *,
  logits_fn: LogitsFn | None = None,
  mask_id: int,
  draw_masks: masks.DrawMasks | None = None,
  axis_name: weights.AxisName = None,
  group_size: int | None = None,
  baseline: jax.Array | None = None,
  num_prompt: int = 0,
  valid: jax.Array | None = None,
  token_log_probs: token_probs.TokenLogProbs | None = None,
  implementation: str = "batch",
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of each sample; its mean is `E_{P*}[-log p_theta(path)]`.

  Weights are self-normalised over this batch, or within each group of it, with
  a bias of order one over their number. To normalise over a larger buffer
  instead, pass `log_weights` relative to the buffer (`log(N w)`), resampled
  ones (zeros), or a batch that is the buffer.

  Args:
    params: Passed to `logits_fn`.
    key: One PRNG key, or `[B]` keys; consumed.
    samples: `[B, L]` int32 complete sequences.
    log_weights: `[B]` unnormalised, detached here.
    logits_fn: A `LogitsFn`.
    mask_id: The mask token.
    draw_masks: Mask law; exact-count masks by default.
    axis_name: Mesh axis of a sharded batch, inside `shard_map`.
    group_size: As in `coefficients`.
    baseline: As in `coefficients`.
    num_prompt: Sites at the front that are given, not scored.
    valid: `[B, L]` bool, False at padding; None if there is none.
    token_log_probs: Stands in for `logits_fn`, see `elbo.estimate`.
    implementation: `"batch"` or `"scan"`, see `elbo.estimate`.

  Returns:
    `(per_example [B], info)`.
  """
  checks.check_tokens("samples", samples)
  checks.check_shape("log_weights", log_weights, (samples.shape[0],))
  factors = coefficients(
    log_weights,
    axis_name=axis_name,
    group_size=group_size,
    baseline=baseline,
  )
  nll, info = denoising.masked_cross_entropy(
    params,
    key,
    samples,
    logits_fn=logits_fn,
    mask_id=mask_id,
    draw_masks=draw_masks,
    num_prompt=num_prompt,
    valid=valid,
    token_log_probs=token_log_probs,
    implementation=implementation,
  )
  return factors * nll, info


def bridge_wdce(
  params: Params,
  key: jax.Array,
  samples: jax.Array,
  log_weights: jax.Array,
  *,
  residual_fn: ScoreFn,
  reference: sde.Reference,
  draw_time: flow_matching.DrawTime = draw_time,
  axis_name: weights.AxisName = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """WDCE of a Gaussian process: `w |residual_fn(x_t, t) - residual|^2 / 2`.

  `x_t` is drawn from the reference's bridge to the sample, from a fresh start,
  with one time per example. At the optimum the control is that of the weighted
  law, up to the start that the reference remembers.

  Args:
    params: Passed to `residual_fn`.
    key: One PRNG key, or `[B]` keys; consumed.
    samples: `[B, ...]`.
    log_weights: `[B]`, unnormalised, detached; see `wdce`.
    residual_fn: A `ScoreFn`, see `sde.rollout`.
    reference: The process.
    draw_time: Law of `t`, within `(0, 1]`; see `methods.flow_matching`.
    axis_name: Mesh axis of a sharded batch, inside `shard_map`.

  Returns:
    `(per_example [B], info)`.
  """
  checks.check_rows("samples", samples)
  checks.check_numbers("log_weights", log_weights)
  checks.check_shape("log_weights", log_weights, (samples.shape[0],))
  samples = lax.stop_gradient(samples)
  keys = keys_lib.per_example(key, samples.shape[0])
  t = jax.vmap(draw_time)(keys_lib.fold(keys, 2))
  point = sde.bridge(keys, samples, t, reference=reference)
  answer = paths.residual(residual_fn, params, point.x, t, reference=reference)
  error = answer - point.residual
  square = jnp.sum(error**2, axis=tuple(range(1, error.ndim)))
  share = coefficients(log_weights, axis_name=axis_name)
  return 0.5 * share * square, {}


def coefficients(
  log_weights: jax.Array,
  *,
  axis_name: weights.AxisName = None,
  group_size: int | None = None,
  baseline: jax.Array | None = None,
) -> jax.Array:
  """What WDCE multiplies each negative log-likelihood by; no gradient.

  Args:
    log_weights: `[B]`, unnormalised.
    axis_name: Mesh axis of a sharded batch, inside `shard_map`. Groups stand
      whole on a shard and need none.
    group_size: Normalise within consecutive groups of this many samples (the
      rollouts of one prompt) instead of over the batch.
    baseline: `[B]`, subtracted; in the units of the weights, whose mean is
      one over the batch or in each group.

  Returns:
    `[B]`: `N w - baseline`, `w` the weights that sum to one over `N` samples.

  Raises:
    ValueError: If shapes or options do not fit.
  """
  checks.check_shape("log_weights", log_weights, (None,))
  log_weights = lax.stop_gradient(log_weights)
  if group_size is None:
    share = weights.relative(log_weights, axis_name)
  elif axis_name is not None:
    raise ValueError(
      "axis_name must be None with group_size, as groups do not cross shards; "
      f"got {axis_name!r}."
    )
  else:
    groups = in_groups("log_weights", log_weights, group_size)
    share = jax.vmap(weights.relative)(groups).reshape(-1)
  if baseline is None:
    return share
  checks.check_shape("baseline", baseline, log_weights.shape)
  return share - lax.stop_gradient(baseline)


def draw(
  key: jax.Array,
  samples: jax.Array,
  log_weights: jax.Array,
  num_samples: int,
) -> jax.Array:
  """`[num_samples, ...]` of a buffer, drawn by weight: equals from then on.

  Systematic, hence in the buffer's order: shuffle before it is cut into
  batches. Where no weight is left, which a trace cannot report, all are drawn
  alike.

  Args:
    key: PRNG key; consumed.
    samples: `[N, ...]`.
    log_weights: `[N]`, `-inf` where there is no sample.
    num_samples: How many.
  """
  checks.check_numbers("log_weights", log_weights)
  checks.check_shape("log_weights", log_weights, samples.shape[:1])
  none = jnp.all(log_weights == -jnp.inf)
  index = weights.resample(key, jnp.where(none, 0.0, log_weights), num_samples)
  return samples[index]


def in_groups(name: str, values: jax.Array, group_size: int) -> jax.Array:
  """`[B, ...]` as `[B / group_size, group_size, ...]`, or says why not."""
  checks.check_int("group_size", group_size, minimum=2)
  checks.check_rows(name, values)
  values = jnp.asarray(values)
  if values.shape[0] % group_size:
    raise ValueError(
      f"group_size must divide the {values.shape[0]} entries of {name}, got "
      f"{group_size}."
    )
  return values.reshape(-1, group_size, *values.shape[1:])
