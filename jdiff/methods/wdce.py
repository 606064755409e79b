"""Weighted denoising cross-entropy (WDCE).

Fits a masked network to the reward-tilted law from terminal samples and one
log-weight each; no trajectory is kept. MDNS (arXiv:2508.10684), PDNS, DMPO and
TR2-D2 share it.
"""

import jax
from jax import lax

from jdiff.core import checks, weights
from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import masks
from jdiff.elbo import denoising


def wdce(
  params: Params,
  key: jax.Array,
  samples: jax.Array,
  log_weights: jax.Array,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  draw_masks: masks.DrawMasks | None = None,
  axis_name: weights.AxisName = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of each sample; its mean is `E_{P*}[-log p_theta(path)]`.

  Weights are self-normalised over this batch, with a bias of order `1/B`. To
  normalise over a larger buffer instead, pass `log_weights` relative to the
  buffer (`log(N w)`), resampled ones (zeros), or a batch that is the buffer.

  Args:
    params: Passed to `logits_fn`.
    key: One PRNG key, or `[B]` keys; consumed.
    samples: `[B, L]` int32 complete sequences.
    log_weights: `[B]` unnormalised, detached here.
    logits_fn: A `LogitsFn`.
    mask_id: The mask token.
    draw_masks: Mask law; exact-count masks by default.
    axis_name: Mesh axis of a sharded batch, inside `shard_map`.

  Returns:
    `(per_example [B], info)`.
  """
  checks.check_shape("log_weights", log_weights, (samples.shape[0],))
  nll, info = denoising.masked_cross_entropy(
    params,
    key,
    samples,
    logits_fn=logits_fn,
    mask_id=mask_id,
    draw_masks=draw_masks,
  )
  share = weights.relative(lax.stop_gradient(log_weights), axis_name)
  return share * nll, info
