"""Masked cross-entropy: the one kernel behind WDCE, DCE and pretraining."""

import jax
import jax.numpy as jnp

from jdiff.core.types import LogitsFn, Params
from jdiff.ctmc import masks as masks_lib
from jdiff.elbo import estimators, token_probs


def masked_cross_entropy(
  params: Params,
  key: jax.Array,
  tokens: jax.Array,
  *,
  logits_fn: LogitsFn | None = None,
  mask_id: int,
  draw_masks: masks_lib.DrawMasks | None = None,
  num_prompt: int = 0,
  valid: jax.Array | None = None,
  token_log_probs: token_probs.TokenLogProbs | None = None,
  implementation: str = "batch",
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Estimates `-log p(path)` of each sequence, averaged over random orders.

  That is minus the ELBO, an upper bound on the negative log-likelihood in
  expectation. Unbiased over `key` under `ctmc.count_masks`, and under
  `ctmc.bernoulli_masks` up to their `min_time`.

  Args:
    params: Passed to the network; differentiable.
    key: One PRNG key, or `[B]` keys; consumed.
    tokens: `[B, T]` int32, no mask ids.
    logits_fn: A `LogitsFn`; `t` is the realised masked share.
    mask_id: The mask token.
    draw_masks: `ctmc.count_masks(...)` (default), `ctmc.bernoulli_masks` or
      `elbo.node_masks`.
    num_prompt: Sites at the front that are given, not scored.
    valid: `[B, T]` bool, False at padding; None if there is none.
    token_log_probs: Stands in for `logits_fn`, see `elbo.estimate`.
    implementation: `"batch"` or `"scan"`, see `elbo.estimate`.

  Returns:
    `(nll [B], info)` in nats a sequence; `info["nfe"]` counts evaluations a
    sequence.

  Source:
    "MDNS" (arXiv:2508.10684), the WDCE loss; the `1/m` form is its exact
    rewriting over mask counts.
  """
  masks = estimators.draw_masks(
    key,
    tokens,
    law=masks_lib.count_masks() if draw_masks is None else draw_masks,
    num_prompt=num_prompt,
    valid=valid,
  )
  elbo = estimators.estimate(
    params,
    tokens,
    masks,
    logits_fn=logits_fn,
    mask_id=mask_id,
    num_prompt=num_prompt,
    implementation=implementation,
    token_log_probs=token_log_probs,
  )
  batch, num_masks = masks.weight.shape
  return -elbo, {"nfe": jnp.full(batch, num_masks, jnp.int32)}
