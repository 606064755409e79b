"""Masked cross-entropy: the one kernel behind WDCE, DCE and pretraining."""

import jax
import jax.numpy as jnp

from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import masks, reveal
from jdiff.ctmc.logits import forbid_mask


def masked_cross_entropy(
  params: Params,
  key: jax.Array,
  tokens: jax.Array,
  *,
  logits_fn: LogitsFn,
  mask_id: int,
  draw_masks: masks.DrawMasks | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Estimates `-log p(path)` of each sequence, averaged over random orders.

  Unbiased over `key` under both mask laws of `ctmc.corrupt` (Bernoulli masks
  up to their `min_time`); an upper bound on the negative log-likelihood in
  expectation.

  Args:
    params: Passed to `logits_fn`; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    tokens: `[B, L]` int32, no mask ids.
    logits_fn: A `LogitsFn`; `t` is the realised masked share.
    mask_id: The mask token.
    draw_masks: `ctmc.count_masks(...)` (default) or `ctmc.bernoulli_masks`.

  Returns:
    `(nll [B], info)` in nats a sequence; `info["nfe"]` counts evaluations a
    sequence.

  Source:
    "MDNS" (arXiv:2508.10684), the WDCE loss; the `1/m` form is its exact
    rewriting over mask counts.
  """
  masked, mask, weight = masks.corrupt(
    key, tokens, mask_id=mask_id, draw_masks=draw_masks
  )
  batch, num_masks, length = masked.shape
  t = mask.mean(axis=2, dtype=jnp.float32).reshape(-1)
  logits_fn = forbid_mask(logits_fn, mask_id)
  logits = logits_fn(params, masked.reshape(-1, length), t)
  values = jnp.broadcast_to(tokens[:, None], masked.shape).reshape(-1, length)
  terms = reveal.pick(reveal.log_softmax(logits), values)
  terms = jnp.where(mask, -terms.reshape(masked.shape), 0)
  nll = jnp.mean(weight * terms.sum(axis=2), axis=1)
  return nll, {"nfe": jnp.full(batch, num_masks, jnp.int32)}
